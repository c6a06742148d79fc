#!/bin/bash
# run.sh - run the integration tests and critest with what lies in this script's folder. Neither Go nor a network is
# needed. Arguments name what to run: "integration", "pods", "chaos", "critest", and "kubelet" where bin/tools/kubelet
# has been built (make kubelet out/v2). Without any it runs what make test-v2 does.
set -uo pipefail
cd "$(dirname "$0")"
export BERTH_TEST_ROOT=$PWD CRITEST_FOCUS=${FOCUS:-}

[[ $(stat -fc %T /sys/fs/cgroup) == cgroup2fs ]] || { echo "run.sh: this is not cgroup v2" >&2; exit 1; }
modprobe -a overlay br_netfilter nf_tables 2>/dev/null # where they are built in there is nothing to load
# The first who speaks with systemd starts it; that should not be a test, which looks for what it left behind.
[[ ! -d /run/systemd/system ]] || systemctl start dbus.service

# A node has an address. A machine without any network gets one by which it reaches nobody.
[[ $(ip route show default) ]] || { ip link add node0 type dummy && ip addr add 198.51.100.1/24 dev node0 && ip link set node0 up && ip route add default dev node0; }

status=0
(($#)) || set -- integration pods critest
for name; do
	echo "=== $name on $(uname -r), cgroup v2"
	"./$name.test" -test.v -test.timeout 4h ${RUN:+-test.run "$RUN"} || status=1
done
exit "$status"

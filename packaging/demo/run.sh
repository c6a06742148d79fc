#!/bin/bash
# run.sh - start a node with a demo pod and keep it until Ctrl-C, then leave nothing behind. `make run` builds what it
# needs. Everything is below one folder, /run/berth-demo, which a reboot empties as well.
set -euo pipefail
cd "$(dirname "$0")/../.."

dir=/run/berth-demo
socket=$dir/cri.sock
image=berth.local/demo-web:1
port=8080

((EUID == 0)) || { echo "make run: containers need root; try: sudo make run" >&2; exit 1; }
if [[ -S $socket ]] && bin/tools/crictl --runtime-endpoint "unix://$socket" --timeout 2s version >/dev/null 2>&1; then
	echo "make run: a demo runs already on $socket; end it with Ctrl-C in its terminal" >&2
	exit 1
fi
mkdir -p "$dir"

crictl() { bin/tools/crictl --runtime-endpoint "unix://$socket" --image-endpoint "unix://$socket" "$@" 2> >(grep -v 'msg="Config ' >&2); }

daemon=
clean_up() {
	local status=$?
	trap '' INT TERM HUP
	trap - EXIT
	if [[ -n $daemon ]]; then
		echo
		echo "draining the node"
		bin/berth drain --run-dir "$dir/run" --grace 5s || status=1
		kill -TERM "$daemon" 2>/dev/null || true
		wait "$daemon" 2>/dev/null || true
	fi
	if grep -qE " $dir(/| )" /proc/self/mountinfo; then
		echo "make run: something below $dir is still mounted; not removing it" >&2
		status=1
	else
		rm -rf --one-file-system "$dir"
	fi
	exit "$status"
}
trap clean_up EXIT
trap 'exit 0' INT TERM
trap 'exit 1' HUP

# In a session of its own, so that Ctrl-C reaches this script alone, which then ends things in order.
setsid bin/berth serve --root-dir "$dir/root" --run-dir "$dir/run" --cri-socket "$socket" --network builtin \
	--keeper "$PWD/bin/berth-keeper" --launch "$PWD/bin/berth-launch" >"$dir/berth.log" 2>&1 &
daemon=$!
for ((i = 0; i < 200; i++)); do
	[[ -S $socket ]] && crictl --timeout 5s version >/dev/null 2>&1 && break
	kill -0 "$daemon" 2>/dev/null || { daemon=; tail -n 20 "$dir/berth.log" >&2; exit 1; }
	sleep 0.1
done

bin/berth image load --run-dir "$dir/run" bin/demo-web.tar
cat >"$dir/pod.json" <<JSON
{"metadata": {"name": "demo", "namespace": "default", "uid": "demo"}, "hostname": "demo", "log_directory": "$dir/logs",
 "port_mappings": [{"container_port": $port, "host_port": $port}], "linux": {}}
JSON
cat >"$dir/container.json" <<JSON
{"metadata": {"name": "web"}, "image": {"image": "$image"}, "log_path": "web.log", "linux": {}}
JSON
pod=$(crictl runp "$dir/pod.json")
container=$(crictl create "$pod" "$dir/container.json" "$dir/pod.json")
crictl start "$container" >/dev/null
mapfile -t ips < <(crictl inspectp --output go-template \
	--template '{{.status.network.ip}}{{range .status.network.additionalIps}}{{"\n"}}{{.ip}}{{end}}' "$pod")

url() { if [[ $1 == *:* ]]; then echo "http://[$1]:$port"; else echo "http://$1:$port"; fi; }
cat <<TEXT

A pod with a web server runs on this node. Its addresses: ${ips[*]}

    curl $(url "${ips[0]}")
    curl $(url "${ips[1]:-${ips[0]}}")
    curl http://127.0.0.1:$port        # the host port

Look around in another terminal:

    export CONTAINER_RUNTIME_ENDPOINT=unix://$socket
    alias crictl=$PWD/bin/tools/crictl
    crictl pods
    crictl ps
    crictl logs -f ${container:0:13}
    crictl inspectp ${pod:0:13}
    crictl stats
    crictl info

The node's log is $dir/berth.log. Ctrl-C ends the pod and the node, and leaves nothing behind.
TEXT
wait "$daemon" || true
daemon=
echo "make run: the node ended by itself; the end of its log:" >&2
tail -n 20 "$dir/berth.log" >&2
exit 1

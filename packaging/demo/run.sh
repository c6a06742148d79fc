#!/bin/bash
# run.sh - start a node with a demo pod, keep it until Ctrl-C, then leave nothing behind. `make run` builds what it needs.
# All of the node's files are below one folder, /run/berth-demo, which a reboot empties as well.
set -euo pipefail
cd "$(dirname "$0")/../.."

dir=/run/berth-demo
socket=$dir/cri.sock
image=berth.local/demo-web:1
port=8080 # in the pod

say() { echo "make run: $*" >&2; }
crictl() { bin/tools/crictl --runtime-endpoint "unix://$socket" --image-endpoint "unix://$socket" "$@" 2> >(grep -v level=warning >&2); }
answers() { [[ -S $socket ]] && bin/tools/crictl -r "unix://$socket" --timeout 2s version >/dev/null 2>&1; }

# One demo at a time: a lock on the folder itself, so that no lock file is left. Programs started from here must not
# inherit it (8<&-), or they would hold it.
lock() {
	mkdir -p "$dir"
	exec 8<"$dir"
	flock -n 8 && [[ $dir -ef /proc/self/fd/8 ]] && return
	say "a demo runs already, in $dir; end it with Ctrl-C in its terminal"
	exit 1
}

daemon=   # process id
came_up=  # whether there may be pods and a keeper
start_node() {
	# In a session of its own, so that Ctrl-C reaches this script alone, which then ends things in order.
	setsid bin/berth serve --config /dev/null --root-dir "$dir/root" --run-dir "$dir/run" --cri-socket "$socket" \
		--network builtin --keeper "$PWD/bin/berth-keeper" --launch "$PWD/bin/berth-launch" >>"$dir/berth.log" 2>&1 8<&- &
	daemon=$!
}

# await_node returns when the node answers, and fails if it has ended or does not answer in 30 s. (In a trap, return without
# a number returns the status of what was interrupted.)
await_node() {
	local i
	for ((i = 0; i < 300; i++)); do
		answers && return 0
		kill -0 "$daemon" 2>/dev/null || break
		sleep 0.1
	done
	return 1
}

# end_node removes the pods and ends the node, also one that has not come up yet.
end_node() {
	if await_node; then
		setsid -w bin/berth drain --run-dir "$dir/run" --grace 5s 8<&- || return 1
		wait "$daemon" || true
	fi
	daemon= came_up=
}

clean_up() {
	local status=$?
	trap '' INT TERM HUP
	trap - EXIT
	if [[ -n $daemon || -n $came_up ]]; then
		echo $'\ndraining the node'
		kill -0 "$daemon" 2>/dev/null || start_node # its pods outlive a daemon
		end_node || status=1
	fi
	if ((status)) && [[ -s $dir/berth.log ]]; then
		say "the end of the node's log:"
		tail -n 15 "$dir/berth.log" >&2
	fi
	if [[ -n $daemon ]] || grep -qE " $dir(/| )" /proc/self/mountinfo; then
		say "the node could not be taken down; what is left is in $dir, and the next \`make run\` tries again"
		[[ -z $daemon ]] || kill "$daemon" 2>/dev/null || true
		exit 1
	fi
	rm -rf --one-file-system "$dir"
	exit "$status"
}

# free_port prints a port of the host that nobody listens on: a host port would take it away from him.
free_port() {
	local p
	for ((p = port; p < port + 100; p++)); do
		(: <"/dev/tcp/127.0.0.1/$p") 2>/dev/null || break
	done
	echo "$p"
}

url() { if [[ $1 == *:* ]]; then echo "'http://[$1]:$2'"; else echo "http://$1:$2"; fi; }

((EUID == 0)) || { say "containers need root; as root, or: sudo make run"; exit 1; }
lock
trap clean_up EXIT
trap 'exit 0' INT TERM
trap 'exit 1' HUP

if [[ -d $dir/root ]]; then
	say "an earlier run was killed; removing what it left"
	if answers; then
		bin/berth drain --run-dir "$dir/run" --grace 5s >/dev/null 8<&-
		while answers; do sleep 0.1; done
	else
		start_node
		end_node >/dev/null
	fi
	rm -rf --one-file-system "${dir:?}"/*
fi

start_node
await_node || { say "the node did not start"; exit 1; }
came_up=yes
bin/berth image load --run-dir "$dir/run" bin/demo-web.tar >/dev/null
host_port=$(free_port)
cat >"$dir/pod.json" <<JSON
{"metadata": {"name": "demo", "namespace": "default", "uid": "demo"}, "hostname": "demo", "log_directory": "$dir/logs",
 "port_mappings": [{"container_port": $port, "host_port": $host_port}], "linux": {}}
JSON
cat >"$dir/container.json" <<JSON
{"metadata": {"name": "web"}, "image": {"image": "$image"}, "log_path": "web.log", "linux": {},
 "labels": {"io.kubernetes.pod.name": "demo", "io.kubernetes.pod.namespace": "default"}}
JSON
pod=$(crictl runp "$dir/pod.json")
container=$(crictl create "$pod" "$dir/container.json" "$dir/pod.json")
crictl start "$container" >/dev/null
mapfile -t ips < <(crictl inspectp --output go-template \
	--template '{{.status.network.ip}}{{range .status.network.additionalIps}}{{"\n"}}{{.ip}}{{end}}' "$pod")

cri="${SUDO_USER:+sudo }$PWD/bin/tools/crictl -r unix://$socket"
echo
echo "A pod with a web server runs on this node. Its addresses: ${ips[*]}"
echo
for ip in "${ips[@]}"; do
	echo "    curl $(url "$ip" $port)"
done
echo "    curl http://localhost:$host_port    # by a port of the host"
cat <<TEXT

Look around in another terminal:

    $cri pods
    $cri ps
    $cri logs -f ${container:0:13}
    $cri stats
    $cri images
    $cri inspectp ${pod:0:13}
    ${SUDO_USER:+sudo }$PWD/bin/berth check --run-dir $dir/run

The node's log is $dir/berth.log. Ctrl-C ends the pod and the node, and leaves nothing behind.
TEXT
wait "$daemon" || { say "the node has failed"; exit 1; }
daemon= came_up=
say "somebody else has ended the node"

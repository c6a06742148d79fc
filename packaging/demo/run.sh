#!/bin/bash
# run.sh - start a node, apply the folder pods/ beside this file, show what comes of it, and keep it until Ctrl-C; then leave
# nothing behind. `make run` builds what it needs.
# All of the node's files are below one folder, /run/berth-demo, which a reboot empties as well.
set -euo pipefail
cd "$(dirname "$0")/../.."

dir=/run/berth-demo
socket=$dir/cri.sock
port=8080 # of the web server, in its pod

say() { echo "make run: $*" >&2; }
berth() { bin/berth "$1" --run-dir "$dir/run" "${@:2}"; }
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
	echo "kubelet: {podLogsDir: $dir/logs}" >"$dir/config.yaml"
	setsid bin/berth serve --config "$dir/config.yaml" --root-dir "$dir/root" --run-dir "$dir/run" --cri-socket "$socket" \
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
cp -r packaging/demo/pods "$dir/pods"
sed -i "s/hostPort: $port/hostPort: $host_port/" "$dir/pods/web.yaml"

# show prints a command, as one would type it, and what it says.
show() {
	echo
	echo "\$ berth ${*@Q}" | sed "s/'\([a-z0-9=/.:-]*\)'/\1/gi"
	berth "$@"
}

# fetch asks a web server as curl does, which may not be installed.
fetch() {
	exec 9<>"/dev/tcp/$1/$2"
	printf 'GET / HTTP/1.0\r\n\r\n' >&9
	sed '1,/^\r*$/d' <&9
	exec 9>&-
}

show apply -f "$dir/pods"
show wait --for=condition=Ready pod/web pod/vault --timeout=60s
show get pods -o wide
mapfile -t ips < <(berth get pod web -o 'jsonpath={range .status.podIPs[*]}{.ip}{"\n"}{end}')
for ip in "${ips[@]}"; do
	echo $'\n'"\$ curl $(url "$ip" $port)"
	fetch "$ip" $port
done
show exec vault -- cat /keys/word
echo
echo
echo "The web server is killed, and heals:"
berth get pods -w >"$dir/watched" 2>&1 8<&- &
watching=$!
show exec web -c server -- kill 1
show wait '--for=jsonpath={.status.containerStatuses[0].restartCount}=1' pod/web --timeout=60s
show wait --for=condition=Ready pod/web --timeout=60s
kill "$watching" && wait "$watching" || true
echo
cat "$dir/watched"

own="${SUDO_USER:+sudo }$PWD/bin/berth"
at="--run-dir $dir/run"
cat <<TEXT

The node runs on. A port of this machine leads to the web server: curl http://localhost:$host_port
In another terminal:

    $own get pods,configmaps,secrets,pvc $at
    $own describe pod web $at
    $own logs -f web $at
    $own exec -it vault $at -- sh
    $own top pods $at
    $own events $at
    $own apply $at -f $dir/pods    # after an edit there
    $own delete $at -f $dir/pods
    $own check $at
    KUBECONFIG=$dir/run/kubeconfig kubectl get pods

The node's log is $dir/berth.log. Ctrl-C ends the pods and the node, and leaves nothing behind.
TEXT
wait "$daemon" || { say "the node has failed"; exit 1; }
daemon= came_up=
say "somebody else has ended the node"

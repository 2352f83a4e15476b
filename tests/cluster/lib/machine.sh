# A machine of the cluster: one process tree in network, mount, PID, IPC and UTS namespaces of its own.
# Whatever a machine does (mounts, interfaces, firewall rules, daemons, containers) lives in these namespaces, so that
# ending its first process ends it all, as pulling a plug does, and the host never sees any of it.
# Sourced, never run.
# shellcheck shell=bash

# When a process was started, in clock ticks since boot: with its id it names one process, forever.
started_at() { sed -E 's/^.*\) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }

# Prints the process that guards a machine, if it is the one that we started.
machine_guard() {
  local pid start
  [[ -f $STATE/$1/machine ]] || return 1
  read -r pid start <"$STATE/$1/machine" || return 1
  [[ -n $start && $(started_at "$pid") == "$start" ]] || return 1
  echo "$pid"
}

# Prints a machine's first process, as the host numbers it.
machine_pid() {
  local guard
  guard=$(machine_guard "$1") || return 1
  pgrep --parent "$guard"
}

machine_is_on() { machine_pid "$1" >/dev/null; }

# Directories that daemons use wherever their own state is: each machine has its own.
PRIVATE_PLACES=(/run /var/log /var/lib/cni /var/lib/kubelet)

# A mount needs a directory to be on: those that the host lacks are made, and remembered.
private_places_make() {
  local place
  for place in "${PRIVATE_PLACES[@]}"; do
    [[ -d $place ]] || { echo "$place" >>"$STATE/made-on-host" && mkdir "$place"; }
  done
}
private_places_remove() {
  local place
  [[ -f $STATE/made-on-host ]] || return 0
  while read -r place; do
    # Not if another cluster has it: removing what is mounted on takes the mount away.
    grep -qs " $place " /proc/[0-9]*/mountinfo || rmdir --ignore-fail-on-non-empty "$place" || true
  done <"$STATE/made-on-host"
}

# Starts a machine and waits until it has set itself up. Its identity is written by the process itself before it does
# anything else: a crash of ours at any moment leaves nothing that `down` cannot find.
machine_start() {
  local name=$1 directory=$STATE/$1
  mkdir -p "$directory/tmp" "$STATE/logs/$name"
  rm -f "$directory/ready" "$directory"/*.pid
  # shellcheck disable=SC2016
  setsid bash -c '
    echo "$$ $(sed -E "s/^.*\) //" /proc/$$/stat | cut -d" " -f20)" >"$1/machine"
    exec unshare --net --mount --uts --ipc --pid --fork --kill-child --mount-proc -- "${@:2:2}" "$1" "${@:4}"
  ' guard "$directory" "$HERE/lib/first-process" "lastword-$name" "${PRIVATE_PLACES[@]}" \
    </dev/null >>"$STATE/logs/$name/machine.log" 2>&1 9>&- &
  disown
  wait_until 10 "machine $name" test -e "$directory/ready"
}

# SIGKILLs a machine with all that runs on it, and waits until it is gone: its guard ends after the last process.
machine_kill() {
  local guard
  if guard=$(machine_guard "$1"); then
    pkill -KILL --parent "$guard" || kill -KILL "$guard" 2>/dev/null || true
    wait_until 20 "the end of machine $1" process_is_gone "$guard"
  fi
  rm -f "$STATE/$1/machine" "$STATE/$1/ready" "$STATE/$1"/*.pid
}

process_is_gone() { [[ ! -e /proc/$1 ]]; }

# Runs a command on a machine, in all of its namespaces.
on() {
  local machine=$1 pid
  shift
  pid=$(machine_pid "$machine") || { echo "cluster: machine $machine is not on" >&2; return 1; }
  nsenter --target "$pid" --net --mount --uts --ipc --pid -- "$@"
}

# Starts a daemon on a machine: MACHINE NAME COMMAND…. Its log is logs/MACHINE/NAME.log.
daemon_start() {
  local machine=$1 name=$2
  shift 2
  # shellcheck disable=SC2016
  on "$machine" env TMPDIR="$STATE/$machine/tmp" bash -c '
    pidfile=$1 log=$2
    shift 2
    setsid "$@" </dev/null >>"$log" 2>&1 &
    echo $! >"$pidfile"
  ' daemon "$STATE/$machine/$name.pid" "$STATE/logs/$machine/$name.log" "$@" 9>&-
}

# A daemon's pid is one of its machine's PID namespace, where all processes are ours.
daemon_signal() {
  local machine=$1 name=$2 signal=$3
  [[ -f $STATE/$machine/$name.pid ]] || return 1
  on "$machine" kill "-$signal" "$(<"$STATE/$machine/$name.pid")" 2>/dev/null
}

daemon_is_running() { daemon_signal "$1" "$2" 0; }
daemon_is_gone() { ! daemon_is_running "$1" "$2"; }

# Ends a daemon: SIGTERM, and SIGKILL if it is still there after some seconds.
daemon_stop() {
  local machine=$1 name=$2
  daemon_signal "$machine" "$name" TERM || { rm -f "$STATE/$machine/$name.pid"; return 0; }
  if ! wait_quietly 5 daemon_is_gone "$machine" "$name"; then
    daemon_signal "$machine" "$name" KILL || true
    wait_until 10 "the end of $name on $machine" daemon_is_gone "$machine" "$name"
  fi
  rm -f "$STATE/$machine/$name.pid"
}

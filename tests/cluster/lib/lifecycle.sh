# Up and down as a whole. Sourced, never run.
# shellcheck shell=bash

# One `up`, `down` or fault at a time. The lock is on the script itself: no file is left behind.
lock() {
  exec 9<"$HERE/cluster"
  flock --nonblock 9 || { say "waiting for another cluster command to end"; flock 9; }
}

# The state's directory is removed as a whole: only ever one that we made.
claim_state() {
  if [[ -d $STATE && ! -e $STATE/.lastword-cluster && -n $(ls -A "$STATE") ]]; then
    echo "cluster: $STATE is not empty and not ours: set LASTWORD_CLUSTER_STATE to another place" >&2
    return 1
  fi
  mkdir -p "$STATE/logs"
  touch "$STATE/.lastword-cluster"
}

cluster_is_up() {
  [[ -e $STATE/up && $(readlink "$STATE/bin") == "$BIN" && $(readlink "$STATE/images") == "$IMAGES" ]] || return 1
  machine_is_on control && apiserver_is_ready || return 1
  local node
  for node in "${NODES[@]}"; do
    machine_is_on "$node" && node_is_ready "$node" || return 1
  done
}

cluster_up() {
  "$HERE/prerequisites"
  BIN=$("$HERE/binaries")
  IMAGES=$("$HERE/images" "$BIN")
  lock
  if cluster_is_up; then
    say "is up already"
    return
  fi
  cluster_take_down # what a crash may have left
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  trap up_failed EXIT
  cluster_start
  trap - EXIT INT TERM HUP
}

up_failed() {
  local status=$?
  trap '' INT TERM HUP
  trap - EXIT
  set +e # whatever fails on the way, the rest must be ended too
  say "did not come up: taking it down again"
  # shellcheck disable=SC2046
  kill $(jobs -p) 2>/dev/null
  wait
  show_last_words
  cluster_take_down
  exit $((status ? status : 1))
}

# The ends of the logs, since the state goes away with a failed start.
show_last_words() {
  local log
  for log in "$STATE"/logs/*/*.log; do
    if [[ -s $log ]]; then
      echo "--- ${log#"$STATE/logs/"}"
      tail -n 5 "$log"
    fi >&2
  done
}

cluster_start() {
  local machine node preparing=()
  claim_state
  ln -s "$BIN" "$STATE/bin"
  ln -s "$IMAGES" "$STATE/images"
  credentials_make
  private_places_make
  for machine in "${MACHINES[@]}"; do machine_start "$machine"; done
  network_start
  say "three machines are on"
  for node in "${NODES[@]}"; do
    node_prepare "$node" &
    preparing+=($!)
  done
  control_plane_start
  say "the API server is ready"
  kubectl apply -f "$HERE/config/coredns.yaml" >/dev/null
  for node in "${preparing[@]}"; do wait "$node"; done
  say "both containerds have their images"
  kube_proxy_start control
  for node in "${NODES[@]}"; do node_join "$node"; done
  for node in "${NODES[@]}"; do wait_until 60 "node $node to be Ready" node_is_ready "$node"; done
  say "both nodes are Ready"
  wait_until 60 "the cluster's DNS" dns_answers
  touch "$STATE/up"
  say "up: KUBECONFIG=$OUR_KUBECONFIG, inside the cluster's network: $HERE/cluster run COMMAND…"
}

# Answers through the service address: DNS, its pod, and kube-proxy on this machine all work.
dns_answers() {
  inside busybox nslookup kubernetes.default.svc.cluster.local "$DNS_SERVICE" 2>/dev/null |
    grep -q "$KUBERNETES_SERVICE"
}

cluster_down() {
  if [[ $(readlink /proc/self/ns/net) == "$(readlink "/proc/$(machine_pid control)/ns/net" 2>/dev/null)" ]]; then
    echo "cluster: 'down' would end the very command that asked for it: call it outside of 'cluster run'" >&2
    return 1
  fi
  lock
  cluster_take_down
  say "down"
}

# Ends all that the cluster ever started and removes its state: also what half an `up` left.
cluster_take_down() {
  [[ -e $STATE/.lastword-cluster ]] || return 0
  local machine
  visitors_end
  for machine in "${MACHINES[@]}"; do machine_kill "$machine" & done
  wait
  cgroups_remove
  private_places_remove
  rm -rf "$STATE"
}

# Commands that `cluster run` started and that were left behind would keep the network alive.
visitors_end() {
  local process network pid
  pid=$(machine_pid control) || return 0
  network=$(readlink "/proc/$pid/ns/net")
  for process in /proc/[0-9]*; do
    [[ $(readlink "$process/ns/net" 2>/dev/null) == "$network" ]] || continue
    [[ $(readlink "$process/ns/pid" 2>/dev/null) == "$(readlink /proc/self/ns/pid)" ]] || continue
    kill -KILL "${process#/proc/}" 2>/dev/null || true
  done
}

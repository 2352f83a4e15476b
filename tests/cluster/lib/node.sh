# A node: a machine with containerd, a kubelet and kube-proxy. Sourced, never run.
# shellcheck shell=bash

# All of a node that needs no API server: NODE, whose machine is on.
node_prepare() {
  network_plug "$1"
  cgroups_make "$1"
  node_configure "$1"
  containerd_start "$1"
  images_import "$1"
}

node_join() {
  kubelet_start "$1"
  kube_proxy_start "$1"
}

containerd_start() {
  daemon_start "$1" containerd containerd --config "$STATE/$1/containerd.toml"
  wait_until 20 "containerd on $1" containerd_answers "$1"
}
containerd_answers() { on "$1" ctr version >/dev/null 2>&1; }

kubelet_start() {
  date --utc +%Y-%m-%dT%H:%M:%SZ >"$STATE/$1/kubelet.since"
  daemon_start "$1" kubelet "$BIN/kubelet" --config="$STATE/$1/kubelet.yaml" --kubeconfig="$STATE/$1/kubelet.kubeconfig" \
    --root-dir="$STATE/$1/kubelet" --cert-dir="$STATE/$1/kubelet-pki" \
    --hostname-override="lastword-$1" --node-ip="${ADDRESS[$1]}" --node-labels="lastword.dev/role=$1"
}

kubelet_stop() { daemon_stop "$1" kubelet; }

# Fills in the node's configuration from config/.
node_configure() {
  local node=$1 directory=$STATE/$1 file
  mkdir -p "$directory/cni"
  for file in containerd.toml kubelet.yaml bridge.conflist; do
    sed -e "s#@DIRECTORY@#$directory#g; s#@LOGS@#$STATE/logs#g; s#@NODE@#$node#g; s#@PKI@#$STATE/pki#g" \
      -e "s#@CGROUP@#$CGROUP#g; s#@POD_CIDR@#${POD_CIDR[$node]}#g; s#@DNS_SERVICE@#$DNS_SERVICE#g" \
      "$HERE/config/$file" >"$directory/$file"
  done
  mv "$directory/bridge.conflist" "$directory/cni/"
  # The system node is for Lastword and its database: what does not ask for it goes to the other.
  if [[ $node == system ]]; then cat "$HERE/config/kubelet-system.yaml" >>"$directory/kubelet.yaml"; fi
  : >"$directory/resolv.conf" # no resolver above ours: a name outside the cluster is unknown at once
}

# Imports archives into a node's containerd: NODE [ARCHIVE…]; without one, the cluster's own images.
images_import() {
  local node=$1 archive ours=
  shift
  (($#)) || { ours=1; set -- "$IMAGES"/*.tar; }
  for archive in "$@"; do
    on "$node" ctr --namespace k8s.io images import "$archive" >/dev/null
  done
  # Under the names by which the examples know them, so that those work here to the letter.
  if [[ -n $ours ]]; then
    on "$node" ctr --namespace k8s.io images tag --force localhost/busybox:1 docker.io/library/busybox:1 >/dev/null
    on "$node" ctr --namespace k8s.io images tag --force localhost/python:1 docker.io/library/python:3.13-slim >/dev/null
  fi
}

# Ready by the word of the kubelet that runs now, not of one before it, whose word stands for some seconds.
node_is_ready() {
  local ready since
  read -r ready since < <(kubectl get node "lastword-$1" 2>/dev/null \
    -o jsonpath='{range .status.conditions[?(@.type=="Ready")]}{.status} {.lastHeartbeatTime}{end}') || true
  [[ $ready == True && $since > $(<"$STATE/$1/kubelet.since") ]]
}

# The node is lost, as when its plug is pulled.
node_kill() {
  machine_kill "$1"
  network_unplug "$1"
  cgroups_remove "$1"
}

# A lost node comes back: with an empty disk, or with the one it had when `keep` is given. One that is there stays as it is.
node_restore() {
  local node=$1 disk=${2:-empty}
  if machine_is_on "$node" && node_is_ready "$node"; then return; fi
  node_kill "$node" # what half a restore may have left
  [[ $disk == keep ]] || rm -rf "$STATE/$node/containerd" "$STATE/$node/kubelet" "$STATE/$node/pods"
  machine_start "$node"
  node_prepare "$node"
  node_join "$node"
  wait_until 60 "node $node to be Ready" node_is_ready "$node"
  wait_until 60 "the cluster's DNS" dns_answers # which runs on the system node
}

# cgroups: one directory a node in each hierarchy (one in all with cgroup v2), below a directory of the cluster's.
cgroup_mounts() { awk '$3 == "cgroup" || $3 == "cgroup2" {print $2}' /proc/mounts; }

cgroups_make() {
  local mount
  for mount in $(cgroup_mounts); do mkdir -p "$mount/$CGROUP/$1"; done
}

# Removes a node's cgroups, or with no node all; the kernel needs a moment after the last process.
cgroups_remove() {
  wait_until 20 "the end of cgroups" cgroups_removed "$CGROUP${1:+/$1}"
}
cgroups_removed() {
  local mount left=0
  for mount in $(cgroup_mounts); do
    [[ -d $mount/$1 ]] || continue
    find "$mount/$1" -depth -type d -exec rmdir {} + 2>/dev/null || left=1
  done
  return "$left"
}

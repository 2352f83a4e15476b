# Names, addresses and places that all parts of the local cluster agree on. Sourced, never run.
# shellcheck shell=bash disable=SC2034

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)
HERE=$REPO/tests/cluster
STATE=${LASTWORD_CLUSTER_STATE:-$REPO/target/cluster}
CLUSTER_CACHE=${LASTWORD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/lastword}/cluster

# The machines: `control` runs etcd, the API server, the controllers and the scheduler, and is no node.
# `system` is a node for Lastword itself; `worker` is the one that tests may take away.
NODES=(system worker)
MACHINES=(control "${NODES[@]}")

# All of these exist in network namespaces of the cluster's own alone.
declare -A ADDRESS=([control]=10.77.0.1 [system]=10.77.0.2 [worker]=10.77.0.3)
declare -A POD_CIDR=([system]=10.78.1.0/24 [worker]=10.78.2.0/24)
ALL_PODS=10.78.0.0/16
SERVICES=10.79.0.0/16
KUBERNETES_SERVICE=10.79.0.1
DNS_SERVICE=10.79.0.10

API_PORT=6443
OUR_KUBECONFIG=$STATE/kubeconfig
# One of its own for each state directory, so that two worktrees do not meet.
CGROUP=lastword-cluster-$(sha256sum <<<"$STATE" | cut -c1-8)

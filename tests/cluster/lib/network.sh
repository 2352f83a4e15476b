# One Ethernet for the three machines, a bridge on `control`; pods of a node are routed to that node.
# Sourced, never run.
# shellcheck shell=bash

# The bridge, and what the API server's machine must know to reach pods and services.
network_start() {
  # An address of its own: a bridge without one takes another whenever a node goes, and the rest no longer find it.
  on control ip link add lan address 02:00:0a:4d:00:01 type bridge
  on control ip address add "${ADDRESS[control]}/24" dev lan
  on control ip link set lan up
  # Services have no machine; a route lets packets to them leave, so that kube-proxy's rules can turn them to a pod.
  on control ip route add "$SERVICES" dev lan
  local node
  for node in "${NODES[@]}"; do
    on control ip route add "${POD_CIDR[$node]}" via "${ADDRESS[$node]}" dev lan
  done
}

# Plugs a node's cable in. Both ends are born inside their namespaces: the host's never has an interface of ours.
network_plug() {
  local node=$1 other
  ip link add "to-$node" netns "$(machine_pid control)" type veth peer name eth0 netns "$(machine_pid "$node")"
  on control ip link set "to-$node" master lan up
  on "$node" ip address add "${ADDRESS[$node]}/24" dev eth0
  on "$node" ip link set eth0 up
  on "$node" ip route add default via "${ADDRESS[control]}"
  for other in "${NODES[@]}"; do
    [[ $other == "$node" ]] || on "$node" ip route add "${POD_CIDR[$other]}" via "${ADDRESS[$other]}"
  done
}

# Takes a lost node's cable out at once; by itself the kernel would, some time later.
network_unplug() {
  if on control ip link show "to-$1" >/dev/null 2>&1; then on control ip link delete "to-$1" 2>/dev/null || true; fi
}

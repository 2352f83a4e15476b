# etcd, the API server, the controllers and the scheduler, on the machine `control`. Sourced, never run.
# shellcheck shell=bash

control_plane_start() {
  daemon_start control etcd etcd --data-dir="$STATE/control/etcd" --unsafe-no-fsync \
    --listen-client-urls=http://127.0.0.1:2379 --advertise-client-urls=http://127.0.0.1:2379 \
    --listen-peer-urls=http://127.0.0.1:2380 --logger=zap
  apiserver_start
  controllers_start
}

# One of each: no leader election, so that they outlive an API server that is away.
controllers_start() {
  daemon_start control controller-manager "$BIN/kube-controller-manager" \
    --kubeconfig="$STATE/control/controller-manager.kubeconfig" --leader-elect=false \
    --use-service-account-credentials --service-account-private-key-file="$STATE/pki/service-accounts.key" \
    --root-ca-file="$STATE/pki/ca.crt" --cluster-signing-cert-file="$STATE/pki/ca.crt" --cluster-signing-key-file="$STATE/pki/ca.key" \
    --node-monitor-period=1s --node-monitor-grace-period=8s --terminated-pod-gc-threshold=0 \
    --kube-api-qps=200 --kube-api-burst=400
  daemon_start control scheduler "$BIN/kube-scheduler" \
    --kubeconfig="$STATE/control/scheduler.kubeconfig" --leader-elect=false --kube-api-qps=200 --kube-api-burst=400
}

# SizeBasedListCostEstimate asks the watch cache for what Debian's old etcd cannot answer, and logs it all the time.
apiserver_start() {
  local pki=$STATE/pki
  daemon_start control apiserver "$BIN/kube-apiserver" \
    --etcd-servers=http://127.0.0.1:2379 \
    --bind-address=0.0.0.0 --secure-port="$API_PORT" --advertise-address="${ADDRESS[control]}" \
    --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key" --client-ca-file="$pki/ca.crt" \
    --token-auth-file="$pki/tokens.csv" --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction \
    --service-account-issuer=https://kubernetes.default.svc.cluster.local \
    --service-account-signing-key-file="$pki/service-accounts.key" --service-account-key-file="$pki/service-accounts.key" \
    --service-cluster-ip-range="$SERVICES" --allow-privileged \
    --kubelet-client-certificate="$pki/apiserver-to-kubelet.crt" --kubelet-client-key="$pki/apiserver-to-kubelet.key" \
    --kubelet-preferred-address-types=InternalIP --feature-gates=SizeBasedListCostEstimate=false
  wait_until 30 "the API server" apiserver_is_ready
}

apiserver_is_ready() { [[ $(kubectl get --raw /readyz 2>/dev/null) == ok ]]; }

# After an outage its clients would look for the API server twice a minute only: new ones look at once.
# (Kubelets end and start without a word to their pods.)
clients_restart() {
  local node
  daemon_stop control scheduler
  daemon_stop control controller-manager
  controllers_start
  kube_proxy_restart control
  for node in "${NODES[@]}"; do
    daemon_is_running "$node" kubelet || continue # lost, or stopped on purpose
    kubelet_stop "$node"
    kubelet_start "$node"
    kube_proxy_restart "$node"
    wait_until 60 "node $node to be Ready" node_is_ready "$node"
  done
}

apiserver_stop() { daemon_stop control apiserver; }

apiserver_kill() {
  daemon_signal control apiserver KILL || return 0
  wait_until 10 "the end of the API server" daemon_is_gone control apiserver
  rm -f "$STATE/control/apiserver.pid"
}

# Makes services work from MACHINE. `control` has no node of its own and borrows the system node's.
kube_proxy_start() {
  local machine=$1 node=$1
  [[ $machine == control ]] && node=system
  daemon_start "$machine" kube-proxy "$BIN/kube-proxy" \
    --kubeconfig="$STATE/control/kube-proxy.kubeconfig" --hostname-override="lastword-$node" \
    --proxy-mode=iptables --cluster-cidr="$ALL_PODS" --iptables-min-sync-period=100ms \
    --conntrack-max-per-core=0 --conntrack-tcp-timeout-established=0s --conntrack-tcp-timeout-close-wait=0s
}

kube_proxy_restart() {
  daemon_stop "$1" kube-proxy
  kube_proxy_start "$1"
}

# The cluster's certificates, tokens and kubeconfigs, made anew at each `up`. Sourced, never run.
# shellcheck shell=bash

credentials_make() (
  umask 077
  mkdir -p "$STATE/pki"
  cd "$STATE/pki" || return
  make_authority
  make_certificate apiserver "/CN=kube-apiserver" \
    "extendedKeyUsage=serverAuth
subjectAltName=DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local,DNS:localhost,IP:127.0.0.1,IP:${ADDRESS[control]},IP:$KUBERNETES_SERVICE"
  make_certificate apiserver-to-kubelet "/O=system:masters/CN=kube-apiserver-to-kubelet" "extendedKeyUsage=clientAuth"
  openssl genrsa -out service-accounts.key 2048 2>/dev/null
  make_users
)

make_key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1"; }

# A certificate that signs and one that serves: some TLS libraries refuse one that does both.
make_authority() {
  make_key ca.key
  openssl req -x509 -new -key ca.key -days 30 -subj "/CN=lastword-cluster" -out ca.crt \
    -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign,cRLSign,digitalSignature"
}

# NAME SUBJECT EXTENSIONS
make_certificate() {
  make_key "$1.key"
  openssl req -new -key "$1.key" -subj "$2" |
    openssl x509 -req -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -out "$1.crt" \
      -extfile <(printf '%s\n' "$3" "keyUsage=critical,digitalSignature") 2>/dev/null
}

# A line of the API server's token file, and the same user's kubeconfig.
make_users() {
  : >tokens.csv
  make_user admin admin system:masters "$OUR_KUBECONFIG"
  make_user controller-manager system:kube-controller-manager "" "$STATE/control/controller-manager.kubeconfig"
  make_user scheduler system:kube-scheduler "" "$STATE/control/scheduler.kubeconfig"
  make_user kube-proxy system:kube-proxy "" "$STATE/control/kube-proxy.kubeconfig"
  local node
  for node in "${NODES[@]}"; do
    make_user "kubelet-$node" "system:node:lastword-$node" system:nodes "$STATE/$node/kubelet.kubeconfig"
  done
}

# ID USER GROUP KUBECONFIG
make_user() {
  local token
  token=$(openssl rand -hex 24)
  echo "$token,$2,$1${3:+,\"$3\"}" >>tokens.csv
  mkdir -p "$(dirname "$4")"
  cat >"$4" <<YAML
apiVersion: v1
kind: Config
clusters:
  - name: lastword
    cluster:
      server: https://${ADDRESS[control]}:$API_PORT
      certificate-authority-data: $(base64 -w0 ca.crt)
users:
  - name: $1
    user: {token: $token}
contexts:
  - name: lastword
    context: {cluster: lastword, user: $1}
current-context: lastword
YAML
}

# What a failed test leaves for the one who reads it. Sourced, never run.
# shellcheck shell=bash

# Collects everything that tells what happened into DIRECTORY. Never fails as a whole: what cannot be had is left out.
logs_collect() {
  local directory=$1
  mkdir -p "$directory"
  if ! is_foreign; then cp -rL "$STATE/logs/." "$directory/" 2>/dev/null || true; fi # components', and pods' as on disk
  kubectl get all,events --all-namespaces --output=wide >"$directory/all.txt" 2>&1 || true
  kubectl get agents,agentturns --all-namespaces --output=yaml >"$directory/lastword.yaml" 2>&1 || true
  kubectl get pods --all-namespaces --output=yaml >"$directory/pods.yaml" 2>&1 || true
  kubectl describe nodes >"$directory/nodes.txt" 2>&1 || true
  pod_logs "$directory/pod-logs"
}

# Each container's output, also of the run before its last restart.
pod_logs() {
  local directory=$1 namespace pod containers container
  mkdir -p "$directory"
  kubectl get pods --all-namespaces --output=jsonpath='{range .items[*]}{.metadata.namespace}{" "}{.metadata.name}{" "}{.spec.initContainers[*].name}{" "}{.spec.containers[*].name}{"\n"}{end}' 2>/dev/null |
    while read -r namespace pod containers; do
      for container in $containers; do
        one_log "$namespace" "$pod" "$container" >"$directory/$namespace.$pod.$container.log"
        one_log "$namespace" "$pod" "$container" --previous >"$directory/$namespace.$pod.$container.before.log"
      done
    done
  find "$directory" -empty -type f -delete
}

one_log() { kubectl logs --namespace "$1" "$2" --container "${@:3}" 2>/dev/null </dev/null || true; }

{{/* The prefix of all names: the release's name, unless overridden. It is cut at 40 characters, to leave room for suffixes. */}}
{{- define "lastword.fullname" -}}
{{- .Values.fullnameOverride | default .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* The prefix of the names of cluster-wide objects. It holds the namespace, so that two releases of one name differ. */}}
{{- define "lastword.clustername" -}}
{{- printf "%s-%s" .Release.Namespace (include "lastword.fullname" .) -}}
{{- end -}}

{{/* The labels that select pods. They are immutable in a Deployment, so they never change. Arguments: root, component. */}}
{{- define "lastword.selector" -}}
app.kubernetes.io/name: lastword
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* All labels of an object. Arguments: root, component. */}}
{{- define "lastword.labels" -}}
{{ include "lastword.selector" . }}
app.kubernetes.io/part-of: lastword
app.kubernetes.io/version: {{ .root.Values.image.tag | default .root.Chart.AppVersion | trunc 63 | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "lastword.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository ($image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* The name of a role's ServiceAccount. Arguments: root, role (gateway or controller). */}}
{{- define "lastword.serviceAccountName" -}}
{{- (index .root.Values .role).serviceAccount.name | default (printf "%s-%s" (include "lastword.fullname" .root) .role) -}}
{{- end -}}

{{/* The names by which clients call the gateways, comma-separated. */}}
{{- define "lastword.hosts" -}}
{{- $service := printf "%s-gateway" (include "lastword.fullname" .) -}}
{{- $namespaced := printf "%s.%s" $service .Release.Namespace -}}
{{- $hosts := list $service $namespaced (printf "%s.svc" $namespaced) (printf "%s.svc.cluster.local" $namespaced) -}}
{{- if .Values.ingress.enabled -}}{{- $hosts = concat $hosts .Values.ingress.hosts -}}{{- end -}}
{{- if .Values.httpRoute.enabled -}}{{- $hosts = concat $hosts .Values.httpRoute.hostnames -}}{{- end -}}
{{- concat $hosts .Values.gateway.hosts | uniq | join "," -}}
{{- end -}}

{{/* The address that a port listens on, by the IP family. Arguments: root, port. */}}
{{- define "lastword.listen" -}}
{{- if eq .root.Values.ipFamily "IPv6" -}}
{{- printf "[::]:%v" .port -}}
{{- else -}}
{{- printf "0.0.0.0:%v" .port -}}
{{- end -}}
{{- end -}}

{{/* The DNS names of the Services that workers connect to, which are the names in the gateways' certificate: one address for all
gateways, and the addresses of each. */}}
{{- define "lastword.workersHost" -}}
{{- printf "%s-workers.%s.svc" (include "lastword.fullname" .) .Release.Namespace -}}
{{- end -}}
{{- define "lastword.workersDirectHost" -}}
{{- printf "%s-workers-direct.%s.svc" (include "lastword.fullname" .) .Release.Namespace -}}
{{- end -}}

{{- define "lastword.workersScheme" -}}
{{- ternary "https" "http" .Values.gateway.workerTls.enabled -}}
{{- end -}}

{{/* The directory where the files of gateway.workerTls are mounted. */}}
{{- define "lastword.workerTlsDirectory" -}}/etc/lastword/worker-tls{{- end -}}

{{/* Whether something has a certificate of the release's own authority: the worker port, or the evaluation Postgres. */}}
{{- define "lastword.ownTls" -}}
{{- $tls := .Values.gateway.workerTls -}}
{{- or (and $tls.enabled (not $tls.secretName)) .Values.postgres.evaluation.enabled -}}
{{- end -}}

{{/* The Secret of that authority and its certificates. */}}
{{- define "lastword.ownTlsSecret" -}}{{ include "lastword.fullname" . }}-tls{{- end -}}

{{/* The source of a projected volume that holds the authorities of gateway.workerTls. */}}
{{- define "lastword.workerCa" -}}
{{- $tls := .Values.gateway.workerTls -}}
secret:
  name: {{ $tls.caSecret.name | default $tls.secretName | default (include "lastword.ownTlsSecret" .) | quote }}
  items: [{key: {{ ternary $tls.caSecret.key "ca.crt" (ne $tls.caSecret.name "") | quote }}, path: ca.crt}]
{{- end -}}

{{/* The source of a projected volume that holds the worker port's certificate and key. */}}
{{- define "lastword.workerCertificate" -}}
{{- $named := .Values.gateway.workerTls.secretName -}}
secret:
  name: {{ $named | default (include "lastword.ownTlsSecret" .) | quote }}
  items: [{key: {{ ternary "tls" "workers" (ne $named "") }}.crt, path: tls.crt}, {key: {{ ternary "tls" "workers" (ne $named "") }}.key, path: tls.key}]
{{- end -}}

{{- define "lastword.pullSecrets" -}}
{{- with . }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* The fields that say on which nodes pods run. Argument: a map with nodeSelector, tolerations and affinity. */}}
{{- define "lastword.placement" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The first fields of a replicated role's pod spec. Arguments: root, role. */}}
{{- define "lastword.rolePod" -}}
{{- $values := index .root.Values .role -}}
{{- $selector := dict "root" .root "component" .role -}}
serviceAccountName: {{ include "lastword.serviceAccountName" . }}
# Both roles need their token: the controller for all it does, the gateway for TokenReviews.
automountServiceAccountToken: true
# Service links would set variables that begin with LASTWORD_, which are read as flags.
enableServiceLinks: false
{{- include "lastword.pullSecrets" .root.Values.image.pullSecrets }}
{{- with .root.Values.podSecurityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- $spread := dict "preferredDuringSchedulingIgnoredDuringExecution" (list (dict "weight" 100 "podAffinityTerm" (dict
    "topologyKey" "kubernetes.io/hostname"
    "labelSelector" (dict "matchLabels" (include "lastword.selector" $selector | fromYaml))))) }}
{{- include "lastword.placement" (dict "nodeSelector" $values.nodeSelector "tolerations" $values.tolerations
    "affinity" ($values.affinity | default (dict "podAntiAffinity" $spread))) }}
{{- with $values.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- range . }}
  {{- $constraint := deepCopy . }}
  {{- if not .labelSelector }}
  {{- $_ := set $constraint "labelSelector" (dict "matchLabels" (include "lastword.selector" $selector | fromYaml)) }}
  {{- end }}
  - {{ toYaml $constraint | nindent 4 | trim }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* The image and the security context of a container that runs the binary `lastword`. */}}
{{- define "lastword.container" -}}
image: {{ include "lastword.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- with .Values.securityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The environment of every container that connects to the database. */}}
{{- define "lastword.databaseEnv" -}}
- name: LASTWORD_DATABASE_URL
  valueFrom:
    secretKeyRef:
      {{- if .Values.postgres.evaluation.enabled }}
      name: {{ include "lastword.fullname" . }}-postgres
      key: url
      {{- else }}
      name: {{ .Values.database.existingSecret.name | quote }}
      key: {{ .Values.database.existingSecret.key | quote }}
      {{- end }}
{{- with .Values.database.direct.existingSecret }}
{{- if .name }}
- name: LASTWORD_DATABASE_DIRECT_URL
  valueFrom:
    secretKeyRef: {name: {{ .name | quote }}, key: {{ .key | quote }}}
{{- end }}
{{- end }}
{{- if ne .Values.database.pooler "auto" }}
- {name: LASTWORD_DATABASE_POOLER, value: {{ .Values.database.pooler }}}
{{- end }}
{{- $ca := .Values.database.caSecret }}
{{- if .Values.postgres.evaluation.enabled }}
{{- $ca = dict "name" (include "lastword.ownTlsSecret" .) "key" "ca.crt" }}
{{- end }}
{{- if $ca.name }}
- name: PGSSLROOTCERT
  valueFrom:
    secretKeyRef: {name: {{ $ca.name | quote }}, key: {{ $ca.key | quote }}}
{{- end }}
- {name: PGSSLMODE, value: {{ .Values.database.sslMode | default (ternary "verify-full" "require" (ne $ca.name "")) }}}
{{- if .Values.allowCleartext }}
- {name: LASTWORD_ALLOW_CLEARTEXT, value: "true"}
{{- end }}
{{- end -}}

{{/* A container's environment: the chart's own, without what is named in the extra one, and that. A name that stands in a list
twice is dropped by Kubernetes' merging at the next upgrade. Arguments: chart (YAML), extra (a list). */}}
{{- define "lastword.env" -}}
{{- $named := dict -}}
{{- range .extra }}{{- $_ := set $named .name true }}{{- end -}}
{{- $kept := list -}}
{{- range .chart | fromYamlArray }}{{- if not (hasKey $named .name) }}{{- $kept = append $kept . }}{{- end }}{{- end -}}
{{- concat $kept .extra | toYaml -}}
{{- end -}}

{{/* The environment that both roles have in common. */}}
{{- define "lastword.roleEnv" -}}
{{ include "lastword.databaseEnv" . }}
- {name: LASTWORD_POOL_GENERAL, value: {{ .Values.database.pool.general | int64 | quote }}}
- {name: LASTWORD_POOL_VITAL, value: {{ .Values.database.pool.vital | int64 | quote }}}
- {name: LASTWORD_ADMIN_LISTEN, value: {{ include "lastword.listen" (dict "root" . "port" 9090) | quote }}}
{{- with .Values.egress.allow }}
- {name: LASTWORD_EGRESS_ALLOW, value: {{ join "," . | quote }}}
{{- end }}
{{- with .Values.egress.namespaces }}
- {name: LASTWORD_EGRESS_NAMESPACES, value: {{ join "," . | quote }}}
{{- end }}
{{- with .Values.egress.deny }}
- {name: LASTWORD_EGRESS_DENY, value: {{ join "," . | quote }}}
{{- end }}
- {name: LASTWORD_LOG, value: {{ .Values.log.filter | quote }}}
- {name: LASTWORD_LOG_JSON, value: {{ .Values.log.json | quote }}}
{{- with .Values.traces.otlpEndpoint }}
- {name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ . | quote }}}
{{- end }}
{{- end -}}

{{/* The probes of both roles, on the admin port. A role that is not ready waits for the database and its schema, and a restart
would not help; so liveness does not depend on either. */}}
{{- define "lastword.probes" -}}
startupProbe:
  httpGet: {path: /livez, port: admin}
  periodSeconds: 1
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /livez, port: admin}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: admin}
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: 2
{{- end -}}

{{- define "lastword.gatewayGrace" -}}
{{- $grace := .Values.gateway.terminationGracePeriodSeconds -}}
{{- if kindIs "invalid" $grace -}}{{- add (int .Values.gateway.drainDelaySeconds) 20 -}}{{- else -}}{{- int $grace -}}{{- end -}}
{{- end -}}

{{/* Findings of kube-score that are meant: images are versions or digests, so a pull at each start buys nothing; a CPU
limit would delay heartbeats and sweeps; without runAsUser the platform chooses the user (OpenShift). */}}
{{- define "lastword.kubeScoreIgnore" -}}
container-image-pull-policy,container-resources
{{- if kindIs "invalid" .Values.podSecurityContext.runAsUser }},container-security-context-user-group-id{{ end }}
{{- end -}}

{{/* The annotations of an Ingress by which its controller passes streams on: see values.yaml, ingress.controller. */}}
{{- define "lastword.ingressAnnotations" -}}
{{- if eq .Values.ingress.controller "ingress-nginx" }}
nginx.ingress.kubernetes.io/proxy-http-version: "1.1"
nginx.ingress.kubernetes.io/proxy-buffering: "off"
nginx.ingress.kubernetes.io/proxy-request-buffering: "on"
nginx.ingress.kubernetes.io/proxy-read-timeout: "3600"
nginx.ingress.kubernetes.io/proxy-send-timeout: "3600"
nginx.ingress.kubernetes.io/proxy-body-size: 2m
{{- else if eq .Values.ingress.controller "nginx" }}
nginx.org/proxy-buffering: "False"
nginx.org/proxy-read-timeout: 3600s
nginx.org/proxy-send-timeout: 3600s
nginx.org/client-max-body-size: 2m
{{- else if eq .Values.ingress.controller "haproxy" }}
haproxy.org/timeout-server: 3600s
haproxy.org/timeout-client: 3600s
{{- else if eq .Values.ingress.controller "haproxy-ingress" }}
haproxy-ingress.github.io/timeout-server: 3600s
haproxy-ingress.github.io/timeout-client: 3600s
haproxy-ingress.github.io/proxy-body-size: 2m
{{- end }}
{{- end -}}

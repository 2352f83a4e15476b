{{/* Prefix of all names: the release's name, unless overridden. 40 characters leave room for suffixes. */}}
{{- define "lastword.fullname" -}}
{{- .Values.fullnameOverride | default .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* Prefix of names without a namespace: two releases of one name must not share them. */}}
{{- define "lastword.clustername" -}}
{{- printf "%s-%s" .Release.Namespace (include "lastword.fullname" .) -}}
{{- end -}}

{{/* What selects pods; never changes. Arguments: root, component. */}}
{{- define "lastword.selector" -}}
app.kubernetes.io/name: lastword
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* Labels of an object. Arguments: root, component. */}}
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

{{/* Arguments: root, role (gateway or controller). */}}
{{- define "lastword.serviceAccountName" -}}
{{- (index .root.Values .role).serviceAccount.name | default (printf "%s-%s" (include "lastword.fullname" .root) .role) -}}
{{- end -}}

{{/* An address to listen on. Arguments: root, port. */}}
{{- define "lastword.listen" -}}
{{- if eq .root.Values.ipFamily "IPv6" -}}
{{- printf "[::]:%v" .port -}}
{{- else -}}
{{- printf "0.0.0.0:%v" .port -}}
{{- end -}}
{{- end -}}

{{/* The name of the Service for workers, which its certificate is for. */}}
{{- define "lastword.workersHost" -}}
{{- printf "%s-workers.%s.svc" (include "lastword.fullname" .) .Release.Namespace -}}
{{- end -}}

{{- define "lastword.workersScheme" -}}
{{- ternary "https" "http" .Values.gateway.workerTls.enabled -}}
{{- end -}}

{{/* Where the files of gateway.workerTls are mounted. */}}
{{- define "lastword.workerTlsDirectory" -}}/etc/lastword/worker-tls{{- end -}}

{{/* Source of a projected volume: the authorities of gateway.workerTls. */}}
{{- define "lastword.workerCa" -}}
{{- $tls := .Values.gateway.workerTls -}}
secret:
  name: {{ $tls.caSecret.name | default $tls.secretName | quote }}
  items: [{key: {{ ternary $tls.caSecret.key "ca.crt" (ne $tls.caSecret.name "") | quote }}, path: ca.crt}]
{{- end -}}

{{- define "lastword.pullSecrets" -}}
{{- with . }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Where pods run. Argument: a map with nodeSelector, tolerations, affinity. */}}
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

{{/* The head of a replicated role's pod. Arguments: root, role. */}}
{{- define "lastword.rolePod" -}}
{{- $values := index .root.Values .role -}}
{{- $selector := dict "root" .root "component" .role -}}
serviceAccountName: {{ include "lastword.serviceAccountName" . }}
# Tokens: the controller talks to the API server, the gateway asks for TokenReviews.
automountServiceAccountToken: true
# Service links would set LASTWORD_… variables, which are flags.
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

{{/* Image and security of a container with our binary. */}}
{{- define "lastword.container" -}}
image: {{ include "lastword.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- with .Values.securityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Environment of whatever opens the database. */}}
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
{{- with .Values.database.caSecret }}
{{- if .name }}
- name: PGSSLROOTCERT
  valueFrom:
    secretKeyRef: {name: {{ .name | quote }}, key: {{ .key | quote }}}
{{- end }}
{{- end }}
{{- with .Values.database.sslMode | default (ternary "verify-full" "" (ne .Values.database.caSecret.name "")) }}
- {name: PGSSLMODE, value: {{ . }}}
{{- end }}
{{- end -}}

{{/* Environment of both roles. */}}
{{- define "lastword.roleEnv" -}}
{{ include "lastword.databaseEnv" . }}
- {name: LASTWORD_POOL_GENERAL, value: {{ .Values.database.pool.general | int64 | quote }}}
- {name: LASTWORD_POOL_VITAL, value: {{ .Values.database.pool.vital | int64 | quote }}}
- {name: LASTWORD_ADMIN_LISTEN, value: {{ include "lastword.listen" (dict "root" . "port" 9090) | quote }}}
{{- with .Values.egress.allow }}
- {name: LASTWORD_EGRESS_ALLOW, value: {{ join "," . | quote }}}
{{- end }}
{{- with .Values.egress.deny }}
- {name: LASTWORD_EGRESS_DENY, value: {{ join "," . | quote }}}
{{- end }}
- {name: LASTWORD_LOG, value: {{ .Values.log.filter | quote }}}
- {name: LASTWORD_LOG_JSON, value: {{ .Values.log.json | quote }}}
{{- end -}}

{{/* Health of both roles, on the admin port. Unready, a role waits for the database and its schema: nothing to restart for. */}}
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

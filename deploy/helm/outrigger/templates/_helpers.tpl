{{/* Names and labels. What decides is here; the manifests only say it. */}}

{{- define "outrigger.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "outrigger.selectorLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "outrigger.podLabels" -}}
{{ include "outrigger.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "outrigger.labels" -}}
{{ include "outrigger.podLabels" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "outrigger.serviceAccountName" -}}
{{- default (include "outrigger.fullname" .) .Values.serviceAccount.name -}}
{{- end -}}

{{/* Cluster-scoped names carry the namespace, so that two releases do not fight over them. */}}
{{- define "outrigger.clusterName" -}}
{{- printf "%s:%s" .Release.Namespace (include "outrigger.fullname" .) -}}
{{- end -}}

{{- define "outrigger.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{/* The Secret that is mounted, or nothing when the server makes its own certificates. */}}
{{- define "outrigger.certificateSecret" -}}
{{- if eq .Values.certificates.mode "certManager" -}}
{{- printf "%s-serving-cert" (include "outrigger.fullname" .) -}}
{{- else if eq .Values.certificates.mode "existingSecret" -}}
{{- required "certificates.existingSecret names the Secret when certificates.mode is existingSecret" .Values.certificates.existingSecret -}}
{{- end -}}
{{- end -}}

{{/* The command line. */}}
{{- define "outrigger.args" -}}
- serve
- --listen=[::]:{{ .Values.server.port }}
- --service={{ .Release.Namespace }}/{{ include "outrigger.fullname" . }}
- --shutdown-delay={{ .Values.server.shutdownDelaySeconds }}s
- --goaway-chance={{ .Values.server.goawayChance }}
- --list-bytes-max={{ .Values.server.listBytesMax }}
- --ring-bytes-max={{ .Values.server.ringBytesMax }}
- --max-requests-inflight={{ .Values.server.maxRequestsInflight }}
- --max-mutating-requests-inflight={{ .Values.server.maxMutatingRequestsInflight }}
- --request-timeout={{ .Values.server.requestTimeoutSeconds }}s
{{- with .Values.server.alwaysAllowPaths }}
- --authorization-always-allow-paths={{ join "," . }}
{{- end }}
- --log-level={{ .Values.server.logLevel }}
{{- if include "outrigger.certificateSecret" . }}
- --tls-cert-file=/etc/outrigger/tls/tls.crt
- --tls-private-key-file=/etc/outrigger/tls/tls.key
- --tls-ca-file=/etc/outrigger/tls/ca.crt
{{- end }}
{{- range .Values.server.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end -}}

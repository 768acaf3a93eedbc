{{/* Names, labels and what several manifests share. */}}

{{- define "etcd.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "etcd.selectorLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: member
{{- end -}}

{{- define "etcd.jobLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: job
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "etcd.labels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "etcd.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default (printf "v%s" .Chart.AppVersion) .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "etcd.shellImage" -}}
{{- if .Values.shellImage.digest -}}
{{- printf "%s@%s" .Values.shellImage.repository .Values.shellImage.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.shellImage.repository .Values.shellImage.tag -}}
{{- end -}}
{{- end -}}

{{/* The headless Service, which gives every member its name. */}}
{{- define "etcd.peers" -}}
{{- printf "%s-peers" (include "etcd.fullname" .) -}}
{{- end -}}

{{/* name-0.name-peers.namespace.svc, …: one a line. */}}
{{- define "etcd.memberNames" -}}
{{- range $i := until (int .Values.members) }}
{{ include "etcd.fullname" $ }}-{{ $i }}.{{ include "etcd.peers" $ }}.{{ $.Release.Namespace }}.svc
{{- end }}
{{- end -}}

{{- define "etcd.memberURLs" -}}
{{- $urls := list -}}
{{- range include "etcd.memberNames" . | trim | splitList "\n" -}}
{{- $urls = append $urls (printf "https://%s:2379" .) -}}
{{- end -}}
{{- join "," $urls -}}
{{- end -}}

{{/* What the members' certificate is for, as JSON: {"names": […], "ips": […]}. Members by name and not by
     wildcard, because etcd checks a peer's address against the names that it can look up. */}}
{{- define "etcd.subjectNames" -}}
{{- $service := printf "%s.%s.svc" (include "etcd.fullname" .) .Release.Namespace -}}
{{- $names := list "localhost" (include "etcd.fullname" .) $service (printf "%s.%s" $service .Values.clusterDomain) -}}
{{- range include "etcd.memberNames" . | trim | splitList "\n" -}}
{{- $names = concat $names (list . (printf "%s.%s" . $.Values.clusterDomain)) -}}
{{- end -}}
{{- dict "names" (concat $names .Values.tls.extraDNSNames) "ips" (concat (list "127.0.0.1" "::1") .Values.tls.extraIPs) | toJson -}}
{{- end -}}

{{/* Secrets by what they are for: server, root or client. */}}
{{- define "etcd.secret" -}}
{{- $root := index . 0 -}}
{{- $what := index . 1 -}}
{{- if eq $root.Values.tls.mode "existing" -}}
{{- index $root.Values.tls.existing (printf "%sSecret" $what) -}}
{{- else -}}
{{- printf "%s-%s" (include "etcd.fullname" $root) $what -}}
{{- end -}}
{{- end -}}

{{- define "etcd.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "etcd.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* The pod of a job: [root, script, extra environment, name of a claim to mount at /snapshots or ""]. */}}
{{- define "etcd.jobPod" -}}
{{- $root := index . 0 -}}
{{- $script := index . 1 -}}
{{- $environment := index . 2 -}}
{{- $claim := index . 3 -}}
restartPolicy: OnFailure
automountServiceAccountToken: false
enableServiceLinks: false
{{- with $root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- include "etcd.podSecurity" $root | nindent 2 }}
initContainers:
  - name: shell
    image: {{ include "etcd.shellImage" $root }}
    imagePullPolicy: {{ $root.Values.image.pullPolicy }}
    command: [cp, /bin/busybox, /shell/busybox]
    resources:
      requests: {cpu: 10m, memory: 16Mi}
      limits: {memory: 32Mi}
    securityContext:
      {{- include "etcd.containerSecurity" $root | nindent 6 }}
    volumeMounts:
      - {name: shell, mountPath: /shell}
containers:
  - name: {{ $script }}
    image: {{ include "etcd.image" $root }}
    imagePullPolicy: {{ $root.Values.image.pullPolicy }}
    command: [/shell/busybox, sh, /scripts/{{ $script }}.sh]
    env:
      - {name: BUSYBOX, value: /shell/busybox}
      - {name: ETCDCTL_CACERT, value: /etc/etcd/root/ca.crt}
      - {name: ETCDCTL_CERT, value: /etc/etcd/root/tls.crt}
      - {name: ETCDCTL_KEY, value: /etc/etcd/root/tls.key}
      - {name: MEMBERS, value: {{ include "etcd.memberURLs" $root | quote }}}
      {{- range $name, $value := $environment }}
      - {name: {{ $name }}, value: {{ $value | quote }}}
      {{- end }}
    resources:
      requests: {cpu: 10m, memory: 64Mi}
      limits: {memory: 256Mi}
    securityContext:
      {{- include "etcd.containerSecurity" $root | nindent 6 }}
    volumeMounts:
      - {name: shell, mountPath: /shell, readOnly: true}
      - {name: scripts, mountPath: /scripts, readOnly: true}
      - {name: root, mountPath: /etc/etcd/root, readOnly: true}
      {{- if $claim }}
      - {name: snapshots, mountPath: /snapshots}
      {{- end }}
volumes:
  - name: shell
    emptyDir: {sizeLimit: 16Mi}
  - name: scripts
    configMap:
      name: {{ include "etcd.fullname" $root }}-scripts
  - name: root
    secret:
      secretName: {{ include "etcd.secret" (list $root "root") }}
      defaultMode: 288 # 0440
  {{- if $claim }}
  - name: snapshots
    persistentVolumeClaim:
      claimName: {{ $claim }}
  {{- end }}
{{- with $root.Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $root.Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

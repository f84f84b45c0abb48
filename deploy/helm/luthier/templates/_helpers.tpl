{{- define "luthier.name" -}}
{{- printf "%s" .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "luthier.labels" -}}
app.kubernetes.io/name: luthier
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "luthier.selector" -}}
app.kubernetes.io/name: luthier
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "luthier.claim" -}}
{{- .Values.home.existingClaim | default (printf "%s-home" (include "luthier.name" .)) -}}
{{- end -}}

{{/* What every pod has: an account without rights, nothing to write but the home and /tmp. */}}
{{- define "luthier.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "luthier.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* Settings of server and workers. LUTHIER_ADMIN_KEY of the secret is not among them: the hook alone reads it. */}}
{{- define "luthier.env" -}}
- name: HOME
  value: /tmp
- name: LUTHIER_HOME
  value: /data
- name: LUTHIER_LOG_FORMAT
  value: json
{{- with .Values.artifacts }}
- name: LUTHIER_ARTIFACTS
  value: {{ . | quote }}
{{- end }}
- name: LUTHIER_DATABASE
  valueFrom: {secretKeyRef: {name: {{ .Values.existingSecret }}, key: LUTHIER_DATABASE}}
{{- range $key := list "AWS_ACCESS_KEY_ID" "AWS_SECRET_ACCESS_KEY" "AWS_ENDPOINT_URL" "AWS_DEFAULT_REGION" }}
- name: {{ $key }}
  valueFrom: {secretKeyRef: {name: {{ $.Values.existingSecret }}, key: {{ $key }}, optional: true}}
{{- end }}
{{- range .Values.secretEnv }}
- name: {{ . }}
  valueFrom: {secretKeyRef: {name: {{ $.Values.existingSecret }}, key: {{ . }}}}
{{- end }}
{{- range $key, $value := .Values.env }}
- name: {{ $key }}
  value: {{ $value | quote }}
{{- end }}
{{- end -}}

{{- define "luthier.homeVolume" -}}
- name: home
  {{- if .Values.home.shared }}
  persistentVolumeClaim: {claimName: {{ include "luthier.claim" . }}}
  {{- else }}
  {{- $_ := required "artifacts: with home.shared=false pods share nothing but the database and this bucket" .Values.artifacts }}
  emptyDir: {sizeLimit: {{ .Values.home.size }}}
  {{- end }}
- name: tmp
  emptyDir: {}
{{- end -}}

{{- define "ws-guard.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "ws-guard.pull" -}}
image: {{ include "ws-guard.image" . }}
{{- with .Values.image.pullPolicy }}
imagePullPolicy: {{ . }}
{{- end }}
{{- end -}}

{{- define "ws-guard.guard-labels" -}}
app.kubernetes.io/name: ws-guard
app.kubernetes.io/component: guard
{{- end -}}

{{- define "ws-guard.server-labels" -}}
app.kubernetes.io/name: ws-guard
app.kubernetes.io/component: server
{{- end -}}

{{/* Labels of every object; the argument is (context, component). */}}
{{- define "nodestats.labels" -}}
{{- $root := index . 0 -}}
{{- include "nodestats.selector" . }}
app.kubernetes.io/part-of: nodestats
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Labels by which a component's pods are found: these never change. */}}
{{- define "nodestats.selector" -}}
app.kubernetes.io/name: nodestats
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* Reference of an image; the argument is (context, image). */}}
{{- define "nodestats.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- with $root.Values.image.registry }}{{ trimSuffix "/" . }}/{{ end -}}
{{- $image.repository -}}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $image.tag | default $root.Chart.AppVersion }}{{ end -}}
{{- end }}

{{/* What all pods have: the argument is the context. */}}
{{- define "nodestats.pod" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
enableServiceLinks: false
{{- end }}

{{/* The URL by which the API is reached in the cluster. */}}
{{- define "nodestats.url" -}}
http://nodestats-api.{{ .Release.Namespace }}.svc:8080
{{- end }}

{{/* What every container has that needs no right at all. */}}
{{- define "nodestats.confined" -}}
runAsNonRoot: true
readOnlyRootFilesystem: true
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end }}

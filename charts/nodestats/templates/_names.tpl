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
https://nodestats-api.{{ .Release.Namespace }}.svc
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

{{/* A volume with the token by which the API knows a pod; it knows it by nothing else. */}}
{{- define "nodestats.token" -}}
- name: token
  projected:
    sources:
      - serviceAccountToken: {audience: nodestats, expirationSeconds: 600, path: token}
{{- end }}

{{/* Annotations of a part of `helm test`; the argument is its weight. */}}
{{- define "nodestats.hook" -}}
helm.sh/hook: test
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}

{{/* Where traces go: the variables of a program, given the context, its service's name, and whether it is
the agent, which sends by HTTP alone. */}}
{{- define "nodestats.telemetry" -}}
{{- $ := index . 0 }}{{ $service := index . 1 }}{{ $agent := index . 2 }}
{{- $otlp := $.Values.telemetry.otlp }}
{{- $endpoint := $otlp.endpoint }}
{{- if $agent }}
{{- $endpoint = $otlp.agentEndpoint | default (eq $otlp.protocol "grpc" | ternary "" $otlp.endpoint) }}
{{- end }}
{{- if $endpoint }}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ $endpoint | quote }}
- name: OTEL_EXPORTER_OTLP_PROTOCOL
  value: {{ $agent | ternary "http/protobuf" $otlp.protocol }}
- name: OTEL_SERVICE_NAME
  value: {{ $service }}
- name: OTEL_METRICS_EXPORTER
  value: {{ $otlp.metrics | ternary "otlp" "none" }}
- name: OTEL_TRACES_SAMPLER
  value: parentbased_traceidratio
- name: OTEL_TRACES_SAMPLER_ARG
  value: {{ $otlp.sampleRatio | quote }}
- name: OTEL_RESOURCE_ATTRIBUTES_NODE_NAME
  valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
- name: OTEL_RESOURCE_ATTRIBUTES_POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: OTEL_RESOURCE_ATTRIBUTES
  value: {{ printf "k8s.node.name=$(OTEL_RESOURCE_ATTRIBUTES_NODE_NAME),k8s.pod.name=$(OTEL_RESOURCE_ATTRIBUTES_POD_NAME),k8s.namespace.name=%s,service.namespace=%s%s" $.Release.Namespace $.Release.Namespace (empty $otlp.resourceAttributes | ternary "" (printf ",%s" $otlp.resourceAttributes)) | quote }}
{{- with $otlp.headersSecret }}
- name: OTEL_EXPORTER_OTLP_HEADERS
  valueFrom: {secretKeyRef: {name: {{ . }}, key: headers}}
{{- end }}
{{- if $otlp.caConfigMap }}
- name: OTEL_EXPORTER_OTLP_CERTIFICATE
  value: /collector/ca.crt
{{- end }}
{{- end }}
{{- end }}

{{/* The authorities of the collector, as a volume and where it is mounted. */}}
{{- define "nodestats.collector.volume" -}}
{{- with .Values.telemetry.otlp.caConfigMap }}
- name: collector
  configMap: {name: {{ . }}, items: [{key: ca.crt, path: ca.crt}]}
{{- end }}
{{- end }}
{{- define "nodestats.collector.mount" -}}
{{- if .Values.telemetry.otlp.caConfigMap }}
- {name: collector, mountPath: /collector, readOnly: true}
{{- end }}
{{- end }}

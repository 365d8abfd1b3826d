{{- /* PromQL that more than one object needs. */ -}}

{{- define "clip4str.selector" -}}
{{- default (printf "namespace=%q,job=%q" .Release.Namespace .Release.Name) .Values.monitoring.selector -}}
{{- end -}}

{{- define "clip4str.scrape" -}}
port: metrics
path: /metrics
interval: {{ .Values.monitoring.interval }}
scrapeTimeout: {{ .Values.monitoring.scrapeTimeout }}
{{- end -}}

{{- define "clip4str.alertLabels" -}}
{{- $root := first . -}}
severity: {{ last . }}
namespace: {{ $root.Release.Namespace }}
release: {{ $root.Release.Name }}
{{- end -}}

{{- define "clip4str.asked" -}}
{{- /* Pods without metrics are no calm but a fault, and KEDA falls back; unless having no pods is one of the sizes. */ -}}
serverAddress: {{ .Values.autoscaling.keda.serverAddress }}
ignoreNullValues: {{ eq (int .Values.autoscaling.minReplicas) 0 | quote }}
{{- end -}}

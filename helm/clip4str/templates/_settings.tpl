{{- /* What the service is told: settings, ports, paths of files, times. */ -}}

{{- define "clip4str.settings" -}}
{{- /* As YAML: every setting that has a value, those that the chart itself decides included. */ -}}
{{- $values := .Values -}}
{{- $settings := dict "host" "0.0.0.0" -}}
{{- if gt (int $values.gpu.count) 0 -}}
{{- $devices := list -}}
{{- range $n := until (int $values.gpu.count) -}}
{{- $devices = append $devices (printf "cuda:%d" $n) -}}
{{- end -}}
{{- $_ := set $settings "devices" (join "," $devices) -}}
{{- end -}}
{{- if ne $values.autoscaling.mode "none" -}}
{{- $_ := set $settings "queue_crops" $values.autoscaling.queueCrops -}}
{{- end -}}
{{- $settings = merge (deepCopy $values.settings) $settings -}}
{{- $_ := set $settings "model" (include "clip4str.model" .) -}}
{{- if $values.apiKeys.existingSecret -}}
{{- $_ := set $settings "api_keys_file" (printf "/etc/clip4str/keys/%s" $values.apiKeys.key) -}}
{{- end -}}
{{- if include "clip4str.tlsSecret" . -}}
{{- $_ := set $settings "tls_cert_file" "/etc/clip4str/tls/tls.crt" -}}
{{- $_ := set $settings "tls_key_file" "/etc/clip4str/tls/tls.key" -}}
{{- if $values.tls.clientCA.existingSecret -}}
{{- $_ := set $settings "tls_client_ca_file" (printf "/etc/clip4str/client-ca/%s" $values.tls.clientCA.key) -}}
{{- end -}}
{{- end -}}
{{- toYaml $settings -}}
{{- end -}}

{{- define "clip4str.model" -}}
{{- if eq .Values.model.source "pvc" -}}
{{- printf "/models/%s" .Values.model.pvc.path -}}
{{- else if eq .Values.model.source "fetch" -}}
{{- printf "/models/%s" .Values.model.fetch.file -}}
{{- else -}}
{{- .Values.model.name -}}
{{- end -}}
{{- end -}}

{{- define "clip4str.plain" -}}
{{- /* A value as the service reads it: large numbers, which YAML makes floats, in full. */ -}}
{{- if kindIs "float64" . -}}
{{- if eq (floor .) . -}}{{ int64 . }}{{- else -}}{{ . }}{{- end -}}
{{- else -}}
{{- . -}}
{{- end -}}
{{- end -}}

{{- define "clip4str.ports" -}}
{{- $settings := .Values.settings -}}
http: {{ default 8080 $settings.http_port | int }}
grpc: {{ default 50051 $settings.grpc_port | int }}
metrics: {{ default 9090 $settings.metrics_port | int }}
{{- end -}}

{{- define "clip4str.grace" -}}
{{- /* Seconds from a pod's being deleted to its being killed: leaving the Services, draining, stopping. */ -}}
{{- $drain := divf (default 25000 .Values.settings.drain_timeout_ms) 1000 | ceil | int -}}
{{- add .Values.rollout.preStopSleepSeconds $drain .Values.rollout.marginSeconds -}}
{{- end -}}

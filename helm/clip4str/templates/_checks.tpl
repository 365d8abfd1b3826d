{{- /* What the schema cannot say: values that need one another. Each failure is one line with the field's name. */ -}}

{{- define "clip4str.checks" -}}
{{- $values := .Values -}}
{{- $model := $values.model -}}
{{- if and (eq $model.source "pvc") (not (and $model.pvc.claimName $model.pvc.path)) -}}
{{- fail "model.pvc: model.source `pvc` needs claimName and path" -}}
{{- end -}}
{{- if and (eq $model.source "fetch") (not (and $model.fetch.url $model.fetch.sha256)) -}}
{{- fail "model.fetch: model.source `fetch` needs url and sha256" -}}
{{- end -}}
{{- $tls := $values.tls -}}
{{- if and $tls.existingSecret $tls.certManager.enabled -}}
{{- fail "tls: existingSecret and certManager.enabled exclude one another; empty one of them" -}}
{{- end -}}
{{- if and $tls.certManager.enabled (not $tls.certManager.issuerRef.name) -}}
{{- fail "tls.certManager.issuerRef.name: name the Issuer or ClusterIssuer" -}}
{{- end -}}
{{- if and $tls.clientCA.existingSecret (not (include "clip4str.tlsSecret" .)) -}}
{{- fail "tls.clientCA: it needs tls.existingSecret or tls.certManager beside it" -}}
{{- end -}}
{{- $auto := $values.autoscaling -}}
{{- if ne $auto.mode "none" -}}
{{- if gt (int $auto.minReplicas) (int $auto.maxReplicas) -}}
{{- fail "autoscaling.minReplicas must not exceed autoscaling.maxReplicas" -}}
{{- end -}}
{{- if and (eq (int $auto.minReplicas) 0) (not (and (eq $auto.mode "keda") $auto.keda.wakeUp.query)) -}}
{{- fail "autoscaling.minReplicas: 0 needs autoscaling.mode `keda` and autoscaling.keda.wakeUp.query" -}}
{{- end -}}
{{- end -}}
{{- range $kind := list "rest" "grpc" -}}
{{- $ingress := index $values.ingress $kind -}}
{{- if and $ingress.enabled (not $ingress.hosts) -}}
{{- fail (printf "ingress.%s.hosts: name the hosts of the Ingress" $kind) -}}
{{- end -}}
{{- $route := index $values.gateway $kind -}}
{{- if and $route.enabled (not $route.parentRefs) -}}
{{- fail (printf "gateway.%s.parentRefs: name the Gateway that the route is for" $kind) -}}
{{- end -}}
{{- end -}}
{{- if and $values.networkPolicy.enabled (not $values.networkPolicy.egress) -}}
{{- if eq $model.source "fetch" -}}
{{- fail "networkPolicy.egress: model.source `fetch` needs a rule that lets pods reach the model's host" -}}
{{- end -}}
{{- if $values.settings.otlp_endpoint -}}
{{- fail "networkPolicy.egress: settings.otlp_endpoint needs a rule that lets pods reach the collector" -}}
{{- end -}}
{{- end -}}
{{- end -}}

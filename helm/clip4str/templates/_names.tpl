{{- /* Names, labels, and the one image. */ -}}

{{- define "clip4str.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "clip4str.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "clip4str.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "clip4str.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "clip4str.selectorLabels" -}}
app.kubernetes.io/name: {{ include "clip4str.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: server
{{- end -}}

{{- define "clip4str.commonLabels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.labels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "clip4str.labels" -}}
{{ include "clip4str.selectorLabels" . }}
{{ include "clip4str.commonLabels" . }}
{{- end -}}

{{- define "clip4str.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "clip4str.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "clip4str.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- $kind := ternary "cuda" "cpu" (gt (int .Values.gpu.count) 0) -}}
{{- printf "%s:%s" $image.repository (default (printf "%s-%s" .Chart.AppVersion $kind) $image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "clip4str.tlsSecret" -}}
{{- if .Values.tls.certManager.enabled -}}
{{- printf "%s-tls" (include "clip4str.fullname" .) -}}
{{- else -}}
{{- .Values.tls.existingSecret -}}
{{- end -}}
{{- end -}}

{{- define "clip4str.testLabels" -}}
app.kubernetes.io/name: {{ include "clip4str.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: test
{{- end -}}

{{- /* What containers have in common. */ -}}

{{- define "clip4str.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ .Values.pod.runAsUser }}
runAsGroup: {{ .Values.pod.runAsUser }}
fsGroup: {{ .Values.pod.runAsUser }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "clip4str.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "clip4str.volumes" -}}
- name: tmp
  emptyDir:
    sizeLimit: {{ .Values.pod.tmpSize }}
- name: shm
  emptyDir:
    medium: Memory
    sizeLimit: {{ .Values.pod.shmSize }}
{{- if eq .Values.model.source "pvc" }}
- name: models
  persistentVolumeClaim:
    claimName: {{ .Values.model.pvc.claimName }}
    readOnly: true
{{- else if eq .Values.model.source "fetch" }}
- name: models
  emptyDir:
    sizeLimit: {{ .Values.model.fetch.sizeLimit }}
{{- end }}
{{- with .Values.apiKeys.existingSecret }}
- name: keys
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- with include "clip4str.tlsSecret" . }}
- name: tls
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- with .Values.tls.clientCA.existingSecret }}
- name: client-ca
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- end -}}

{{- define "clip4str.mounts" -}}
- name: tmp
  mountPath: /tmp
- name: shm
  mountPath: /dev/shm
{{- if ne .Values.model.source "image" }}
- name: models
  mountPath: /models
  readOnly: true
{{- end }}
{{- if .Values.apiKeys.existingSecret }}
- name: keys
  mountPath: /etc/clip4str/keys
  readOnly: true
{{- end }}
{{- if include "clip4str.tlsSecret" . }}
- name: tls
  mountPath: /etc/clip4str/tls
  readOnly: true
{{- end }}
{{- if .Values.tls.clientCA.existingSecret }}
- name: client-ca
  mountPath: /etc/clip4str/client-ca
  readOnly: true
{{- end }}
{{- end -}}

{{- define "clip4str.resources" -}}
{{- /* Graphics processors are asked for by equal requests and limits. */ -}}
{{- $resources := deepCopy .Values.resources -}}
{{- if gt (int .Values.gpu.count) 0 -}}
{{- $gpus := dict .Values.gpu.resource (int .Values.gpu.count) -}}
{{- range $kind := list "requests" "limits" -}}
{{- $_ := set $resources $kind (merge $gpus (default dict (index $resources $kind))) -}}
{{- $gpus = dict $.Values.gpu.resource (int $.Values.gpu.count) -}}
{{- end -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

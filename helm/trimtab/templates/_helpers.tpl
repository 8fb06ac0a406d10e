{{- define "trimtab.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "trimtab.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains (include "trimtab.name" .) .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "trimtab.name" .) | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "trimtab.selector" -}}
app.kubernetes.io/name: {{ include "trimtab.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "trimtab.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "trimtab.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "trimtab.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "trimtab.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "trimtab.image" -}}
{{- $tag := .Values.image.tag | default (printf "%s%s" .Chart.AppVersion (ternary "-gpu" "" .Values.gpu.enabled)) }}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository $tag }}
{{- end }}
{{- end }}

{{- define "trimtab.confined" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "trimtab.tlsSecret" -}}
{{- if .Values.tls.certManager.enabled }}
{{- if not .Values.tls.certManager.issuer.name }}{{ fail "tls.certManager.issuer.name is empty: name the issuer" }}{{ end }}
{{- printf "%s-tls" (include "trimtab.fullname" .) }}
{{- else }}
{{- .Values.tls.secretName }}
{{- end }}
{{- end }}

{{- /* Helm reads every YAML number as a float, but TOML distinguishes 1 from 1.0: restore integers, in place. */}}
{{- define "trimtab.whole" -}}
{{- $map := . }}
{{- range $key, $value := $map }}
{{- if kindIs "map" $value }}
{{- include "trimtab.whole" $value }}
{{- else if kindIs "slice" $value }}
{{- $list := list }}
{{- range $each := $value }}
{{- if kindIs "map" $each }}{{ include "trimtab.whole" $each }}{{ end }}
{{- if and (kindIs "float64" $each) (eq (toString $each) (toString (int64 $each))) }}
{{- $list = append $list (int64 $each) }}
{{- else }}
{{- $list = append $list $each }}
{{- end }}
{{- end }}
{{- $_ := set $map $key $list }}
{{- else if kindIs "float64" $value }}
{{- if eq $value (floor $value) }}{{ $_ := set $map $key (int64 $value) }}{{ end }}
{{- end }}
{{- end }}
{{- end }}

{{- /* The file that the server reads: .Values.config, and what follows from the other values. */}}
{{- define "trimtab.config" -}}
{{- $config := deepCopy .Values.config }}
{{- $server := $config.server | default dict }}
{{- if include "trimtab.tlsSecret" . }}
{{- $tls := dict "certificate" "/etc/trimtab/tls/tls.crt" "key" "/etc/trimtab/tls/tls.key" }}
{{- if .Values.tls.mutual }}{{ $_ := set $tls "client_ca" "/etc/trimtab/tls/ca.crt" }}{{ end }}
{{- $_ := set $server "tls" $tls }}
{{- $_ := set $config "server" $server }}
{{- end }}
{{- if and .Values.gpu.enabled (not $config.devices) }}
{{- $devices := list }}
{{- range $number := until (int .Values.gpu.count) }}{{ $devices = append $devices (printf "cuda:%d" $number) }}{{ end }}
{{- $_ := set $config "devices" $devices }}
{{- end }}
{{- include "trimtab.whole" $config }}
{{- toToml $config }}
{{- end }}

{{- /* The port of one of the addresses in config.server. */}}
{{- define "trimtab.port" -}}
{{- $address := index .root.Values.config.server .key | default "" }}
{{- if not $address }}{{ fail (printf "config.server.%s is empty: the pod's %s port follows from it" .key .name) }}{{ end }}
{{- $address | splitList ":" | last }}
{{- end }}
{{- define "trimtab.grpcPort" }}{{ include "trimtab.port" (dict "root" . "key" "grpc_address" "name" "gRPC") }}{{ end }}
{{- define "trimtab.metricsPort" }}{{ include "trimtab.port" (dict "root" . "key" "metrics_address" "name" "metrics") }}{{ end }}
{{- define "trimtab.healthPort" }}{{ include "trimtab.port" (dict "root" . "key" "health_address" "name" "health") }}{{ end }}

{{- /* What one server may still do after SIGTERM, in whole seconds. */}}
{{- define "trimtab.drain" -}}
{{- $seconds := .Values.config.server.drain_seconds }}
{{- if kindIs "invalid" $seconds }}{{ fail "config.server.drain_seconds is empty: the pod's grace follows from it" }}{{ end }}
{{- ceil $seconds | int }}
{{- end }}

{{- define "trimtab.bundles" -}}
{{- $bundles := .Values.bundles }}
{{- $given := list }}
{{- range $name := list "claim" "image" "init" }}
{{- if index $bundles $name }}{{ $given = append $given $name }}{{ end }}
{{- end }}
{{- if ne (len $given) 1 }}
{{- fail (printf "bundles: set exactly one of claim, image and init; %s" (empty $given | ternary "none is set" (join " and " $given | printf "%s are set"))) }}
{{- end }}
{{- first $given }}
{{- end }}

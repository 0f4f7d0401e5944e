#!/usr/bin/env bash
# PUT of a chunk with curl over HTTP/1.1 or HTTP/2.
#
# Parameters, JSON on stdin: url, ca, http ("1.1" or "2"), capability, file, chunk; optional ref, wait, headers, expect,
# timeout (s), chunked (true: no Content-Length on HTTP/1.1). Prints status, headers and body of the answer. The
# capability stays out of the argument list.
set -euo pipefail

params=$(cat)
field() { jq -r "$1" <<<"$params"; }
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

request=$(python3 "$here/waystation.py" request <<<"$params")
# curl writes Content-Length itself; chunked needs it gone.
jq -r '.headers | to_entries[] | select(.key != "content-length") | "\(.key): \(.value)"' <<<"$request" >"$work/headers"
[ "$(field '.chunked // false')" = false ] || echo "transfer-encoding: chunked" >>"$work/headers"

version=--http1.1
[ "$(field .http)" != 2 ] || version=--http2
code=0
said=$(curl --silent --show-error "$version" --cacert "$(field .ca)" --max-time "$(field '.timeout // 30')" \
  --header "@$work/headers" --upload-file "$(field .file)" --output "$work/body" \
  --write-out '%{http_code} %{http_version}\n%{header_json}' \
  "$(field .url)$(jq -r .path <<<"$request")" 2>"$work/error") || code=$?

if [ $code != 0 ]; then
  jq -cn --arg error "curl $code: $(cat "$work/error")" '{ok: false, error: $error}'
  exit 1
fi
read -r status http <<<"${said%%$'\n'*}"
touch "$work/body"
line=$(jq -cn --argjson status "$status" --arg http "$http" --argjson headers "${said#*$'\n'}" \
  --rawfile body "$work/body" --argjson params "$params" \
  '{ok: ($status | IN(($params.expect // [200, 201])[])), http: $http, status: $status, headers: ($headers | map_values(join(", "))),
    body: (if $body == "" then null else ($body | fromjson? // $body) end)}')
echo "$line"
jq -e .ok <<<"$line" >"$work/ok"

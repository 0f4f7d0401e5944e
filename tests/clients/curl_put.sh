#!/usr/bin/env bash
# PUT, PATCH or HEAD of a chunk with curl over HTTP/1.1 or HTTP/2.
#
# Parameters, one line of JSON on stdin: url, ca, http ("1.1" or "2"), capability, file, chunk; optional ref, wait,
# headers, expect (list of statuses), timeout (s), method ("PUT", "PATCH" or "HEAD"), offset (the body is what follows it), body
# ("stdin": what follows the line; then without Content-Length), continue ("always": no byte before 100 Continue;
# "never": not asked for; absent: curl decides). Prints status, headers and body of the answer and how many bytes of the
# body went out. The capability stays out of the argument list.
set -euo pipefail

read -r params
field() { jq -r "$1" <<<"$params"; }
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

request=$(python3 "$here/waystation.py" request <<<"$params")
# curl writes Content-Length itself, and knows whether it has one.
jq -r '.headers | to_entries[] | select(.key != "content-length") | "\(.key): \(.value)"' <<<"$request" >"$work/headers"

version=--http1.1
[ "$(field .http)" != 2 ] || version=--http2
case $(field '.method // "PUT"') in
  HEAD) how=(--head) ;;
  PUT | PATCH)
    how=(--upload-file "$(field .file)")
    offset=$(field '.offset // 0')
    if [ "$(field '.body // "file"')" = stdin ]; then
      how=(--upload-file -)
    elif [ "$offset" != 0 ]; then
      tail -c "+$((offset + 1))" "$(field .file)" >"$work/rest"
      how=(--upload-file "$work/rest")
    fi
    [ "$(field '.method // "PUT"')" = PUT ] || how+=(--request PATCH)
    ;;
esac
case $(field '.continue // "curl"') in
  # Longer than the whole request may take: a body that is sent was asked for.
  always) echo "expect: 100-continue" >>"$work/headers" && how+=(--expect100-timeout 600) ;;
  never) how+=(--header "expect:") ;;
esac

code=0
said=$(curl --silent --show-error "$version" --cacert "$(field .ca)" --max-time "$(field '.timeout // 30')" \
  --header "@$work/headers" "${how[@]}" --output "$work/body" \
  --write-out '%{http_code} %{http_version} %{size_upload}\n%{header_json}' \
  "$(field .url)$(jq -r .path <<<"$request")" 2>"$work/error") || code=$?

if [ $code != 0 ]; then
  jq -cn --arg error "curl $code: $(cat "$work/error")" '{ok: false, error: $error}'
  exit 1
fi
read -r status http sent <<<"${said%%$'\n'*}"
[ "$(field '.method // "PUT"')" != HEAD ] || : >"$work/body" # curl prints a HEAD's headers as its body
touch "$work/body"
line=$(jq -cn --argjson status "$status" --arg http "$http" --argjson sent "$sent" --argjson headers "${said#*$'\n'}" \
  --rawfile body "$work/body" --argjson params "$params" \
  '{ok: ($status | IN(($params.expect // [200, 201])[])), http: $http, status: $status, sent: $sent,
    headers: ($headers | map_values(join(", "))), body: (if $body == "" then null else ($body | fromjson? // $body) end)}')
echo "$line"
jq -e .ok <<<"$line" >"$work/ok"

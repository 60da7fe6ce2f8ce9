#!/usr/bin/env bash
# Derives the tables beside this script from the incident's files: which request ended how, after how many seconds,
# and what each server's log said about its cache pool. Facts only; no reply's text, no question.
#
#   examples/incident/make_facts.sh EVIDENCE_DIR        needs jq and the tools on the PATH
set -euo pipefail
evidence=${1:?directory that holds soak/ and soak_d2_5_2L_3_7_control/}
cd "$(dirname "$0")"
legs="soak soak_d2_5_2L_3_7_control"

echo "leg,run,index,ordinal,status,seconds,degenerate" > facts.csv
echo "leg,blocks_said,requests_answered,pool_line" > pools.csv
for leg in $legs; do
    records=$(mktemp)
    cute-dispatch-extract "$evidence/$leg/docker.log" 2> /dev/null | cute-audit -q --results "$evidence/$leg" > "$records" || true
    # A completion's label stands in the finding of the same ordinal, if it has one.
    jq -rs --arg leg "$leg" '
        (map(select(.type == "finding" and .ordinal != null and (.check == "single_token_run" or .check == "lucky_garbage"))
             | {key: (.ordinal | tostring), value: 1}) | from_entries) as $bad
        | .[] | select(.type == "completion")
        | [$leg, .run, .index, .ordinal, (if .error then "ERROR" elif .correct then "OK" else "WRONG" end),
           (.wall_ms / 100 | round / 10), ($bad[.ordinal | tostring] // 0)] | @csv' "$records" | tr -d '"' >> facts.csv
    posts=$(jq -s '[.[] | select(.event == "http_request" and .fields.method == "POST" and .fields.status == 200)] | length' "$records")
    blocks=$(jq -s '[.[] | select(.type == "pool")][0].num_blocks' "$records")
    grep -hoE 'Setting attention block size to [0-9]+ tokens|Available KV cache memory: [0-9.]+ GiB|GPU KV cache size: [0-9,]+ tokens|Maximum concurrency for [0-9,]+ tokens per request: [0-9.]+x|Mamba cache mode is set to .none. when prefix caching is disabled|Using fp8_e4m3 data type to store kv cache|CutePagedAttention initialized: .*' \
        "$evidence/$leg/docker.log" | while IFS= read -r line; do
            echo "$leg,$blocks,$posts,\"$line\"" >> pools.csv
        done
    rm "$records"
done
wc -l facts.csv pools.csv

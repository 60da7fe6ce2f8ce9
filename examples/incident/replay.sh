#!/usr/bin/env bash
# Replays the diagnosis of the incident from its facts, in seconds: `make incident`.
#
# Two soaks of a hybrid model each scored about 48, 48, 48, 11, 36 of 50, and nobody saw why for 70 hours of soaks.
# facts.csv says how each of their 500 requests ended; pools.csv, in the servers' own log lines, what their cache
# pools looked like. This script writes both as the records and logs the tools read, and the tools do the rest.
# Exit 0 when the diagnosis comes out: onset 162, recovery 214, a KV byte offset beyond a signed 32-bit index.
set -euo pipefail
cd "$(dirname "$0")/../.."
facts=examples/incident out=${OUT:-out/incident}
legs="soak soak_d2_5_2L_3_7_control"
mkdir -p "$out"

# A server's log: the lines about its pool, and one line for each request it answered.
server_log() {
    awk -F, -v leg="$1" 'NR > 1 && $1 == leg { answered = $3; line = $0; sub(/^[^"]*"/, "", line); sub(/"$/, "", line); print line }
        END { for (i = 0; i < answered; i++) print "INFO:     127.0.0.1:40000 - \"POST /v1/completions HTTP/1.1\" 200 OK" }' \
        "$facts/pools.csv"
}

# A client's results: the facts as completions. An output that collapsed is given the tail it had: one character.
results() {
    awk -F, -v leg="$1" '
        BEGIN { print "{\"type\":\"run\",\"v\":1,\"tool\":\"facts\",\"version\":\"1\"}" }
        NR > 1 && $1 == leg {
            tail = $7 == 1 ? "!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!" : "(sound)"
            printf "{\"type\":\"completion\",\"v\":1,\"id\":\"%s-%s\",\"leg\":\"%s\",\"run\":%d,\"index\":%d,\"ordinal\":%d,", $2, $3, leg, $2, $3, $4
            printf "\"correct\":%s,\"wall_ms\":%.0f,\"text_tail\":\"%s\",\"source\":\"facts.csv:%d\"}\n", $5 == "OK" ? "true" : "false", $6 * 1000, tail, NR
            n++
        }
        END { printf "{\"type\":\"end\",\"v\":1,\"tool\":\"facts\",\"complete\":true,\"counts\":{\"run\":1,\"completion\":%d}}\n", n }' \
        "$facts/facts.csv"
}

: > "$out/both.jsonl"
for leg in $legs; do
    mkdir -p "$out/$leg"
    server_log "$leg" > "$out/$leg/server.log"
    { cute-dispatch-extract "$out/$leg/server.log" 2> /dev/null; results "$leg"; } > "$out/$leg/evidence.jsonl"
    cat "$out/$leg/evidence.jsonl" >> "$out/both.jsonl"
done

# One leg: what happened, when, how sure, and by which mechanism.
code=0
cute-audit --quiet --explain < "$out/soak/evidence.jsonl" |
    cute-verdict --gate 'correct>=45/50' --gate degenerate=0 --report "$out/incident.html" > "$out/verdict.jsonl" || code=$?
# Both legs: what is the same in them when the trouble starts, and what is not.
cute-audit --explain < "$out/both.jsonl" 2> "$out/both.txt" | cute-verdict --quiet > "$out/both-verdict.jsonl" || true
sed -n '/^Counters at onset/,/^$/p' "$out/both.txt" >&2

echo "picture: $out/incident.html   records: $out/verdict.jsonl" >&2
for said in '"onset_ordinal":162' '"recovery_ordinal":214' '"explained":250' '"mechanism":"kv_offset_i32_overflow"' '"first_bad_block":655'; do
    grep '^{"type":"verdict"' "$out/verdict.jsonl" | grep -q "$said" || { echo "the diagnosis did not say $said" >&2; exit 1; }
done
[ "$code" -eq 1 ] || { echo "the verdict's exit code is $code, a failed gate is 1" >&2; exit 1; }

#!/usr/bin/env bash
# Three faults tell their stories. Each run is broken on purpose; the auditors must say so (exit 1). Exit 0 when
# all three are caught and the sound run passes.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-out/faults}
failed=0
try() { # name, expected exit code, options of cute-generate
    local name=$1 expected=$2 code
    shift 2
    echo "== $name" >&2
    OUT="$out/$name" bash examples/pipeline.sh "$@" 2> >(grep -E '^(Verdict|FAULT|cute-generate: FAULT|gate|correct|errors|findings|degenerate|  )' >&2)
    code=$?
    [ "$code" -eq "$expected" ] || failed=1
    echo "$name: exit $code, expected $expected" >&2
}
try sound 0
# the accuracy gate stays green; the same prompt's fingerprint and the zero check do not
try stale-state 1 --fault stale-state
# accuracy collapses from the first request on a recycled slot
try garbage-state 1 --fault garbage-state
# one request after the other: clean runs, a sharp onset, token 0 to the end, a sharp recovery at the list's wrap
try kv-offset-32 1 --fault kv-offset-32 --max-num-seqs 1
exit "$failed"

#!/usr/bin/env bash
# The main job, end to end: a hybrid model answers fifty questions five times, its dispatch log and state are
# audited, and a verdict with a picture comes out. The exit code is the verdict's, unless an earlier tool
# had trouble.
#
#   examples/pipeline.sh [more options of cute-generate]
#   MODEL=DIR PROMPTS=FILE RUNS=N LAYERS=3,7 OUT=DIR examples/pipeline.sh --fault stale-state
set -uo pipefail
cd "$(dirname "$0")/.."
model=${MODEL:-examples/tiny-hybrid} prompts=${PROMPTS:-examples/arith-50.jsonl}
runs=${RUNS:-5} layers=${LAYERS:-3,7} gate=${GATE:-correct>=45/50} out=${OUT:-out/demo}
mkdir -p "$out"

cute-load "$model" |
    cute-generate --prompts "$prompts" --runs "$runs" --phase-e-layers "$layers" "$@" 2> >(tee "$out/gen.log" >&2) |
    cute-audit --expect-coop-layers "$layers" --require-records --explain --dispatch "$out/gen.log" --quiet |
    cute-verdict --runs "$runs" --gate "$gate" --gate errors=0 --gate findings=0 --report "$out/soak.html" > "$out/verdict.jsonl"
codes=("${PIPESTATUS[@]}")

echo "records: $out/verdict.jsonl   picture: $out/soak.html   exit codes (load generate audit verdict): ${codes[*]}" >&2
for code in "${codes[@]:0:2}"; do
    [ "$code" -eq 0 ] || exit 2
done
exit "${codes[3]}"

#!/usr/bin/env bash
# The incident once more, as an experiment: `make reproduce`, seconds on a CPU.
#
# Five runs over the same fifty questions, one request after the other, on an engine whose decode truncates the byte
# offset into its KV pool: fine, fine, fine, collapsed, recovering. No request fails and no error is logged. The tools say
# which request was the first, by which mechanism and from which block on. Then the same soak without the fault: the
# hashes of all five runs agree. (replay.sh, beside this, diagnoses the original from its facts.)
# Exit 0 when all of it comes out; options go to both soaks.
set -euo pipefail
cd "$(dirname "$0")/../.."
model=${MODEL:-examples/tiny-hybrid} prompts=${PROMPTS:-examples/arith-50.jsonl} out=${OUT:-out/reproduce}
mkdir -p "$out"
failed=0
check() { # what, condition
    if [ "$2" "$3" "$4" ]; then echo "  yes: $1" >&2; else echo "  NO: $1 ($2 $3 $4)" >&2; failed=1; fi
}
# Five runs, audited and judged; leaves the records and prints the judge's exit code.
soak() { # name, options of cute-generate
    local name=$1 code=0
    shift
    cute-generate --device cpu --model "$model" --prompts "$prompts" --runs 5 --max-num-seqs 1 "$@" 2> "$out/$name.log" |
        cute-audit --quiet --explain > "$out/$name.jsonl" || [ "${PIPESTATUS[0]}" -eq 0 ] || { cat "$out/$name.log" >&2; exit 2; }
    cute-verdict --quiet --gate 'correct>=45/50' --gate findings=0 --report "$out/$name.html" \
        < "$out/$name.jsonl" > "$out/$name.verdict.jsonl" || code=$?
    echo "$code"
}
verdict() { grep '^{"type":"verdict"' "$out/$1.verdict.jsonl"; }
field() { verdict "$1" | grep -o "\"$2\":[^,}]*" | head -1 | cut -d: -f2 | tr -d '"'; } # name, field: its first value
scores() { verdict "$1" | grep -o '"run":[0-9]*,"correct":[0-9]*' | sed 's/.*://' | tr '\n' ' '; }
hashes() { # one digest a run: of its replies' fingerprints, in the order of the questions
    for run in 0 1 2 3 4; do
        grep "^{\"type\":\"completion\".*\"run\":$run," "$out/$1.jsonl" | grep -o '"fingerprint":"[^"]*"' | sha256sum | cut -c1-16
    done
}

echo "with the narrow offset:" >&2
code=$(soak broken --fault kv-offset-32 "$@")
read -r -a right <<< "$(scores broken)"
onset=$(field broken onset_ordinal) recovery=$(field broken recovery_ordinal)
mechanism=$(field broken mechanism) block=$(field broken first_bad_block)
echo "  correct of 50, run by run: ${right[*]}" >&2
for found in "$onset" "$recovery" "$mechanism" "$block"; do
    case $found in "" | null) echo "  NO: it did not collapse and recover, or the tools do not say how" >&2; exit 1 ;; esac
done
echo "  requests $onset to $((recovery - 1)) collapsed; $mechanism, from block $block on" >&2
check "the judge fails the soak" "$code" -eq 1
check "no request failed" "$(grep -c '"finish_reason":"error"' "$out/broken.jsonl" || true)" -eq 0
for run in 1 2 3; do check "run $run is fine" "${right[run - 1]}" -ge 45; done
check "run 4 collapses" "${right[3]}" -lt 25
check "run 5 recovers" "${right[4]}" -gt "${right[3]}"
check "it begins in run 4" $((onset / 50)) -eq 3
check "and ends in run 5" $((recovery / 50)) -eq 4
case $mechanism in kv_offset_i*_overflow) same=0 ;; *) same=1 ;; esac
check "the mechanism is an offset that overflows" "$same" -eq 0
check "it explains every request" "$(field broken explained)" -eq "$(field broken labels)"
# the pages that two requests held, the highest of each: the last sound one, and the first that collapsed
highest() { grep "^{\"type\":\"completion\".*\"ordinal\":$1," "$out/broken.jsonl" | sed 's/.*"kv_pages":\[\([^]]*\)\].*/\1/' | tr , '\n' | sort -n | tail -1; }
check "the request before it held blocks below $block only" "$(highest $((onset - 1)))" -lt "$block"
check "request $onset held one at or above it" "$(highest "$onset")" -ge "$block"

echo "without it:" >&2
code=$(soak sound "$@")
echo "  correct of 50, run by run: $(scores sound)" >&2
echo "  hashes of the runs: $(hashes sound | tr '\n' ' ')" >&2
check "the judge passes the soak" "$code" -eq 0
check "the hashes of all runs agree" "$(hashes sound | sort -u | wc -l)" -eq 1
check "as those of the broken soak did while it was fine" "$(hashes broken | head -3 | cat - <(hashes sound) | sort -u | wc -l)" -eq 1
echo "records and pictures: $out/*.jsonl $out/*.html" >&2
exit "$failed"

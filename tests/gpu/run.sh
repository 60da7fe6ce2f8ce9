#!/usr/bin/env bash
# Everything that needs a GPU, on the first one: the device's own tests, kernels and paths against transformers and the CPU,
# the pipeline on the tiny model with the tokens of the CPU, and the sanitizers. A table comes last; exit 1 when anything failed.
#
#   tests/gpu/run.sh [OUT]      logs go to OUT, by default out/gpu
set -uo pipefail
cd "$(dirname "$0")/../.."
out=${1:-out/gpu}
mkdir -p "$out"
export CUTE_TEST_DEVICE=${CUTE_TEST_DEVICE:-cuda:0}
rows=() failed=0

# step NAME COMMAND…: runs, keeps the log, remembers the outcome
step() {
    local name=$1 start=$SECONDS
    shift
    if "$@" >"$out/$name.log" 2>&1; then verdict=ok; else verdict="FAILED ($?)" failed=1; fi
    if grep -q '^skipped:' "$out/$name.log"; then verdict="skipped: $(grep -m1 '^skipped:' "$out/$name.log" | cut -c10-)" failed=1; fi
    rows+=("$(printf '%-24s %5d s   %s' "$name" $((SECONDS - start)) "$verdict")")
}

# Token ids of the fifty problems on two devices are the same.
same_tokens() {
    local device
    for device in cpu "$CUTE_TEST_DEVICE"; do
        target/release/cute-generate --model examples/tiny-hybrid --prompts examples/arith-50.jsonl --device "$device" \
            --phase-e-path "$1" | grep '"type":"completion"' | grep -o '"token_sha256":"[0-9a-f]*"' >"$out/tokens-${device%%:*}" || return 1
    done
    [ "$(wc -l <"$out/tokens-cpu")" = 50 ] && cmp "$out/tokens-cpu" "$out/tokens-${CUTE_TEST_DEVICE%%:*}"
}

step build cargo build --release --workspace --bins
step device cargo test -p cute-engine --test device -- --nocapture --test-threads 1
step cuda cargo test -p cute-engine --test cuda -- --nocapture
step demo env CUTE_DEVICE="$CUTE_TEST_DEVICE" bash examples/pipeline.sh
for path in coop lite auto; do
    step "tokens-$path" same_tokens "$path"
done
if command -v compute-sanitizer >/dev/null; then
    test=$(cargo test -p cute-engine --test cuda --no-run --message-format=json 2>/dev/null |
        grep -o '"executable":"[^"]*/cuda-[^"]*"' | tail -n 1 | cut -d'"' -f4)
    for tool in memcheck racecheck initcheck; do
        step "$tool" timeout 600 compute-sanitizer --tool "$tool" --error-exitcode 9 "$test" a_narrow_cache
    done
else
    rows+=("sanitizers                        skipped: no compute-sanitizer on the path")
fi

printf '%s\n' "${rows[@]}"
exit "$failed"

#!/usr/bin/env bash
# Everything that needs a GPU, on the first one: the device's own tests, every kernel against the CPU, models against
# transformers, guards, the pipeline on the tiny model with the tokens of the CPU on every path, and the sanitizers. A table
# comes last; exit 1 when anything failed or was skipped.
#
#   tests/gpu/run.sh [OUT]               logs go to OUT, by default out/gpu
#   ONLY='cuda|demo' tests/gpu/run.sh    the steps that are named so, by a regular expression
#   CUTE_BIN=DIR tests/gpu/run.sh        with what `tests/gpu/run.sh --build DIR` put there on another machine
set -uo pipefail
cd "$(dirname "$0")/../.."
tests=(device operations attention delta_rule packed experts choose cuda formats loading guards)
tools=(cute-load cute-generate cute-audit cute-verdict)
sanitizers=(memcheck racecheck initcheck)
declare -A paths=([paged]='--phase-e-fusion 0' [lite]='--phase-e-path lite' [coop]='--phase-e-path coop'
    [coop-gdn]='--phase-e-path coop --coop-gdn')

# build DIR: tools and test binaries, as files of these names
build() {
    mkdir -p "$1" && cargo build --release --workspace --bins || return 1
    local tool test found
    for tool in "${tools[@]}"; do cp "target/release/$tool" "$1/$tool" || return 1; done
    for test in "${tests[@]}"; do
        found=$(cargo test -p cute-engine --test "$test" --no-run --message-format=json |
            grep -o "\"executable\":\"[^\"]*/$test-[^\"]*\"" | tail -n 1 | cut -d'"' -f4) && cp "$found" "$1/$test" || return 1
    done
}
if [ "${1:-}" = --build ]; then
    build "${2:?a directory}"
    exit
fi

out=$(mkdir -p "${1:-out/gpu}" && cd "${1:-out/gpu}" && pwd)
export CUTE_TEST_DEVICE=${CUTE_TEST_DEVICE:-cuda:0}
rows=() failed=0

# step NAME COMMAND…: runs, keeps the log, remembers the outcome
step() {
    local name=$1 start=$SECONDS verdict
    shift
    [[ $name =~ ^(${ONLY:-.*})$ ]] || return 0
    if "$@" >"$out/$name.log" 2>&1; then verdict=ok; else verdict="FAILED ($?)" failed=1; fi
    if grep -q '^skipped:' "$out/$name.log"; then verdict="skipped: $(grep -m1 '^skipped:' "$out/$name.log" | cut -c10-)" failed=1; fi
    rows+=("$(printf '%-24s %5d s   %s' "$name" $((SECONDS - start)) "$verdict")")
}

# A test binary, where cargo would run it.
run_test() {
    (cd lib/engine && "$CUTE_BIN/$1" --nocapture "${@:2}")
}

# Token ids of the fifty problems on two devices are the same.
same_tokens() {
    local device
    for device in cpu "$CUTE_TEST_DEVICE"; do
        cute-generate --model examples/tiny-hybrid --prompts examples/arith-50.jsonl --device "$device" \
            "$@" | grep '"type":"completion"' | grep -o '"token_sha256":"[0-9a-f]*"' >"$out/tokens-${device%%:*}" || return 1
    done
    [ "$(wc -l <"$out/tokens-cpu")" = 50 ] && cmp "$out/tokens-cpu" "$out/tokens-${CUTE_TEST_DEVICE%%:*}"
}

# A sanitizer over two short replies. racecheck takes half a second and half a gigabyte of host memory a token: its prompts are short.
sanitize() {
    case $1 in
    racecheck) printf '{"id":"a","prompt":"Two and two"}\n{"id":"b","prompt":"Ann has three apples. How many?"}\n' ;;
    *) head -n 2 examples/arith-50.jsonl ;;
    esac |
        CUTE_RACECHECK=1 timeout 300 compute-sanitizer --tool "$1" --error-exitcode 9 "$CUTE_BIN/cute-generate" --model examples/tiny-hybrid \
            --max-tokens 4 --ignore-eos --device "$CUTE_TEST_DEVICE" "${@:2}"
}

if [ -z "${CUTE_BIN:-}" ]; then
    ONLY='' step build build out/gpu-bin
    CUTE_BIN=out/gpu-bin
fi
CUTE_BIN=$(cd "$CUTE_BIN" && pwd)
export CUTE_BIN PATH="$CUTE_BIN:$PATH"
step device run_test device --test-threads 1
for test in "${tests[@]:1}"; do
    step "$test" run_test "$test"
done
step demo env CUTE_DEVICE="$CUTE_TEST_DEVICE" bash examples/pipeline.sh
for path in "${!paths[@]}"; do
    step "tokens-$path" same_tokens ${paths[$path]}
done
if command -v compute-sanitizer >/dev/null; then
    for tool in "${sanitizers[@]}"; do
        for path in "${!paths[@]}"; do
            step "$tool-$path" sanitize "$tool" ${paths[$path]}
        done
    done
else
    rows+=("sanitizers                        skipped: no compute-sanitizer on the path") failed=1
fi

printf '%s\n' "${rows[@]}" | tee "$out/table.txt"
exit "$failed"

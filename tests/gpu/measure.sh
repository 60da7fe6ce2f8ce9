#!/usr/bin/env bash
# Every figure of docs/PERFORMANCE.md that a GPU makes, in one sitting: decode and prefill of the published shapes beside the
# stream of the same run, kernels by share of a step, mixtures of experts, and loading beside reading and sending alone.
#
#   tests/gpu/measure.sh [OUT]                    OUT/*.jsonl and the same in words in OUT/*.txt, by default out/measure
#   ONLY='dense|packed' tests/gpu/measure.sh      the parts that are named so, by a regular expression
#   CUTE_BENCH=FILE tests/gpu/measure.sh          with a cute-bench that was built on another machine
#
# Parts: dense packed long profile experts load large cold. `load`, `large` and `cold` write checkpoints of 18, 54 and 18 GB to
# TMPDIR, one after the other, and remove them.
set -uo pipefail
cd "$(dirname "$0")/../.."
out=$(mkdir -p "${1:-out/measure}" && cd "${1:-out/measure}" && pwd)
if [ -z "${CUTE_BENCH:-}" ]; then
    cargo build --release -p cute-engine --features bench --bin cute-bench || exit 2
    CUTE_BENCH=target/release/cute-bench
fi
failed=0 dir=
trap 'rm -rf "$dir"' EXIT

# part NAME ARGUMENTS…: one run of cute-bench, its records and words appended to those of the part
part() {
    local name=$1 start=$SECONDS
    shift
    [[ $name =~ ^(${ONLY:-.*})$ ]] || return 0
    echo "cute-bench $*" >>"$out/$name.txt"
    local verdict=ok
    "$CUTE_BENCH" "$@" >>"$out/$name.jsonl" 2>>"$out/$name.txt" || failed=1 verdict=FAILED
    printf '%-10s %5d s   %-6s   cute-bench %s\n' "$name" $((SECONDS - start)) "$verdict" "$*"
}

# A checkpoint of a shape, while parts need it.
with_checkpoint() {
    local name=$1 shape=$2
    shift 2
    [[ $name =~ ^(${ONLY:-.*})$ ]] || return 0
    dir=$(mktemp -d) || exit 2
    part "$name" --save "$dir" --shapes "$shape"
    "$@" "$dir"
    sed -i "s#$dir#DIR#g" "$out/$name".{jsonl,txt}
    rm -rf "$dir"
}
sweep() {
    local threads kib
    for threads in 4 8 16; do
        for kib in 512 1024 2048 8192; do part load --load "$1" --threads "$threads" --buffer "$kib" --repeats 2; done
    done
    part load --load "$1" --device none --repeats 2
}
once() { part "$1" --load "$3" --repeats 3 ${2:+"$2"}; }

part dense --shapes 0.8b,2b,4b,9b,27b --batches 1,4,16 --contexts 128 --prefill 512 --steps 10
part packed --shapes 27b --format fp8,nvfp4 --batches 1,16 --contexts 128 --prefill 512 --steps 10
part long --shapes 0.8b,4b,27b --batches 1,16 --contexts 8192 --prefill 8192 --steps 10
part profile --profile --shapes 0.8b,4b,27b --paths paged,coop,coop-gdn --batches 1 --contexts 128 --prefill 0 --steps 5
part experts --shapes 35b-a3b --format bf16,fp8,nvfp4 --paths paged --batches 1,4,16 --contexts 128 --prefill 512 --steps 10
with_checkpoint load 9b sweep
with_checkpoint large 27b once large ''
with_checkpoint cold 9b once cold --cold
exit "$failed"

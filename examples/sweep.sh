#!/usr/bin/env bash
# A sweep over the arms of a table: check the table, run each arm once, end with a line an arm.
#
#   examples/sweep.sh [arms.csv]        RUNS=N OUT=DIR
#
# Exit: 2 when the table is wrong or an arm had trouble, else 1 when an arm failed, else 3 when one was
# inconclusive, else 0.
set -uo pipefail
arms=$(realpath -m "${1:-$(dirname "$0")/arms.csv}")
cd "$(dirname "$0")/.."
runs=${RUNS:-1} out=${OUT:-out/sweep}
mkdir -p "$out"

if ! cute-audit --results "$arms" < /dev/null > "$out/arms.jsonl"; then
    echo "$arms is not a table of arms: see above" >&2
    exit 2
fi

worst=0
rank() { case $1 in 2) echo 3 ;; 1) echo 2 ;; 3) echo 1 ;; *) echo 0 ;; esac; }
while IFS=, read -r arm _; do
    make -s -f examples/soak.mk ARM="$arm" ARMS="$arms" RUNS="$runs" OUT="$out/$arm" clean
    make -s -f examples/soak.mk ARM="$arm" ARMS="$arms" RUNS="$runs" OUT="$out/$arm" > "$out/arm.log" 2>&1
    code=$(cat "$out/$arm/verdict.code" 2> /dev/null || echo 2)
    [ "$code" -ne 2 ] || cat "$out/arm.log" >&2
    printf '%-10s exit %s  %s\n' "$arm" "$code" "$out/$arm/soak.html"
    [ "$(rank "$code")" -le "$(rank "$worst")" ] || worst=$code
done < <(tail -n +2 "$arms")
exit "$worst"

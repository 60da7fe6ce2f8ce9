#!/usr/bin/env bash
# What each guard costs: processor seconds of a soak on the tiny model with one guard at a time, interleaved, as a table.
#
# reads   the tools of target/release (make build)     writes  markdown on stdout
# env     ROUNDS (7)  RUNS of the fifty questions in a soak (2)  CUTE_DEVICE (cpu)
#
# One thread, so that processor time is what the work takes however busy the machine is. The cost of a guard is what it adds to
# the processor time of the soak without it in the same round, over the processor time of that soak's decode steps; the table
# has the median over the rounds. On the CPU nothing is recorded: what `capture` seems to cost there is the noise.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$PWD/target/release:$PATH" LC_ALL=C
rounds=${ROUNDS:-7} runs=${RUNS:-2}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

fused=("" "--zero-check 0" "--guard slot0" "--guard capture" "--guard rows/16" "--guard rows" "--poison" "--trace-nonfinite" "--trace requests")
plain=("" "--guard recompute/10" "--guard recompute")

# one soak: its processor seconds, those of its decode steps (as its clock shares them out), and seconds of zeroing slots
soak() {
    local TIMEFORMAT='%U %S %R'
    # the words of an option are several arguments
    # shellcheck disable=SC2086
    { time cute-generate --device "${CUTE_DEVICE:-cpu}" --threads 1 --model examples/tiny-hybrid --prompts examples/arith-50.jsonl \
        --max-model-len 256 --page-size 16 --runs "$runs" $1 > "$scratch/stream" 2> "$scratch/log"; } 2> "$scratch/time"
    local seconds
    seconds=$(jq -r 'select(.type=="timing" and (.name=="decode" or .name=="zero_check")).ms / 1000' "$scratch/stream" | paste -sd' ')
    awk -v s="$seconds" '{ split(s, x, " "); cpu = $1 + $2; print cpu, cpu * x[1] / $3, x[2], x[1] }' "$scratch/time"
}

for ((round = 0; round < rounds; round++)); do
    for i in "${!fused[@]}"; do soak "${fused[$i]}" >> "$scratch/fused.$i"; done
    for i in "${!plain[@]}"; do soak "--phase-e-fusion 0 ${plain[$i]}" >> "$scratch/plain.$i"; done
done

# median, least and most of a column
figures() {
    awk -v c="$2" '{ print $c }' "$1" | sort -n |
        awk '{ x[NR] = $1 } END { m = NR % 2 ? x[(NR + 1) / 2] : (x[NR / 2] + x[NR / 2 + 1]) / 2; printf "%.6f %.6f %.6f\n", m, x[1], x[NR] }'
}

# of each round, what the soak adds to the one without a guard, in percent of that one's decode steps
added() {
    paste -d' ' "$scratch/$1.0" "$scratch/$1.$2" | awk '{ print 100 * ($5 - $1) / $2 }' > "$scratch/added"
    figures "$scratch/added" 1
}

table() {
    local group=$1 title=$2 i=0 option median cost least most
    shift 2
    for option in "$@"; do
        read -r median _ < <(figures "$scratch/$group.$i" 1)
        read -r cost least most < <(added "$group" "$i")
        if [ -z "$option" ]; then
            read -r cost _ < <(figures "$scratch/$group.0" 2)
            printf '| %s | none | %.2f | (decode %.2f s) | |\n' "$title" "$median" "$cost"
        else
            printf '| %s | `%s` | %.2f | %+.1f %% | %+.1f to %+.1f %% |\n' "$title" "$option" "$median" "$cost" "$least" "$most"
        fi
        i=$((i + 1))
    done
}

echo "| paths | guard | seconds | of decode time | least and most |"
echo "|---|---|---|---|---|"
table fused fused "${fused[@]}"
table plain "not fused" "${plain[@]}"

read -r decode _ < <(figures "$scratch/fused.0" 4)
read -r both _ < <(figures "$scratch/fused.0" 3)
read -r zeroing _ < <(figures "$scratch/fused.1" 3)
awk -v d="$decode" -v b="$both" -v z="$zeroing" 'BEGIN {
    printf "\nBy the engine\x27s own clock, of the time of decode steps: zeroing slots %.2f %%, proving it %.2f %%.\n", 100 * z / d, 100 * (b - z) / d }'

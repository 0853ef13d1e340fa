#!/bin/bash
# Runs an ablation on a SLURM cluster: an array of jobs for each level of need, with one run a job, and the table at the
# end. Called again after failures, it queues what is not finished. From the folder of the project:
#
#     GPUS=1 experiments/cluster/ablation.sh weight_selection --scale full
#
# What stands behind the script's name goes to `asr ablate`, SBATCH_OPTIONS to `sbatch`. Without
# SLURM, `--print-commands` is a list for any other way: `grep -v '^#' | parallel`, level by level.
set -euo pipefail

BIN=${BIN:-.venv/bin}
GPUS=${GPUS:-1}
PATH="$(cd "$BIN" && pwd):$PATH"
export PATH

folder=runs/slurm/$(date +%Y-%m-%d_%H-%M-%S)
mkdir -p "$folder"
asr ablate "$@" --print-commands | awk -v folder="$folder" '
    /^# level/ { file = folder "/level" $3 ".txt"; printf "" > file; next } { print > file }'

after=()
for commands in $(ls "$folder"/level*.txt | sort -V); do
    runs=$(wc -l < "$commands")
    [ "$runs" -gt 0 ] || continue
    job=$(sbatch --parsable --job-name=ablation --array="1-$runs" --gpus="$GPUS" --output="$folder/%x-%A_%a.log" \
        "${after[@]}" ${SBATCH_OPTIONS:-} --wrap "eval \"\$(sed -n \"\${SLURM_ARRAY_TASK_ID}p\" $commands)\"")
    echo "$runs runs of $commands: job $job"
    after=(--dependency="afterok:$job" --kill-on-invalid-dep=yes)
done
table="asr ablate $(printf '%q ' "$@")"
sbatch --parsable --job-name=ablation "${after[@]}" ${SBATCH_OPTIONS:-} --output="$folder/results.log" --wrap "$table"

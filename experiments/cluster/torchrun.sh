#!/bin/bash
# Trains on several machines that no scheduler rules. Say the same on each of them, from the folder of the project:
#
#     NODES=2 GPUS=8 MAIN=node01 experiments/cluster/torchrun.sh --trainer.default_root_dir /shared/runs/rnnt_teacher
#
# What stands behind the script's name goes to `lightning fit`. All machines must see the same corpus, the same runs
# folder and the same version of this project.
set -euo pipefail

CONFIG=${CONFIG:-experiments/rnnt_teacher.yaml}
NODES=${NODES:-1}        # machines
GPUS=${GPUS:-1}          # processes on each: one per GPU
MAIN=${MAIN:-localhost}  # the machine that the others look for; any of them
PORT=${PORT:-29500}      # on it, free and open to the others
BIN=${BIN:-.venv/bin}

# Each process would take as many threads as there are processors, and all together would wait for each other.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

# `c10d` lets the machines come in any order, and gives them their ranks. When a process dies, all are started anew, up
# to three times, and go on from the last checkpoint, which is also what `--ckpt_path last` does for a second call of
# this script; where there is none yet, the run begins. `batch_seconds` is that of a step of all processes together, so
# the run has the same steps on any number of GPUs. Many of them need no accumulation; set it again behind the script.
exec "$BIN/torchrun" \
    --nnodes "$NODES" --nproc-per-node "$GPUS" --max-restarts 3 \
    --rdzv-backend c10d --rdzv-endpoint "$MAIN:$PORT" --rdzv-id "$(basename "$CONFIG" .yaml)" \
    -m asr_lightning fit --config "$CONFIG" \
    --trainer.num_nodes "$NODES" --trainer.devices "$GPUS" --trainer.strategy ddp \
    --trainer.accumulate_grad_batches 1 \
    --ckpt_path last "$@"

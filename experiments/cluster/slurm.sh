#!/bin/bash
# Trains on several nodes of a SLURM cluster. From the folder of the project:
#
#     sbatch experiments/cluster/slurm.sh --trainer.default_root_dir /shared/runs/rnnt_teacher
#
# What stands behind the script's name goes to `lightning fit`. All nodes must see the same corpus and the same runs
# folder; of many small files a cluster's disk is fond of none: see `asr shards`.
#
# The name must be neither `bash` nor `interactive`: Lightning would not take that for a SLURM job.
#SBATCH --job-name=rnnt_teacher
#SBATCH --nodes=2
# One process per GPU. Lightning insists on this way of saying it, and refuses --ntasks.
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
# The process that trains, and one per further core, at most 8, that reads for it.
#SBATCH --cpus-per-task=9
#SBATCH --time=24:00:00
# Start again after a node has failed or another job has gone first, and write on into the same log.
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# Two minutes before the time is over this script (B) is told, not the processes that train.
#SBATCH --signal=B:USR1@120
set -euo pipefail

CONFIG=${CONFIG:-experiments/rnnt_teacher.yaml}
BIN=${BIN:-.venv/bin}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

# The job asks to be queued again and ends; started anew, it goes on from the newest of `last.ckpt` and `last-step.ckpt`.
# What is lost is at most what was trained since: the experiment's `every_n_train_steps`.
# Lightning could save once more at the signal, but it does so inside the signal handler, where its processes wait for
# each other while some are in the middle of a step: one that waits for a gradient never comes, and nothing is queued.
# So `auto_requeue` is off. Its checkpoint would not be found by `last` either.
requeue() {
    scontrol requeue "$SLURM_JOB_ID"
    wait
}
trap requeue USR1

# Steps are the same on any number of GPUs: `batch_seconds` is that of all processes together. So many of them need no
# accumulation; where their shares do not fit into memory, set it again behind the script's name.
#
# In the background, because a shell looks at signals only while it waits.
srun --kill-on-bad-exit=1 "$BIN/lightning" fit --config "$CONFIG" \
    --trainer.num_nodes "$SLURM_JOB_NUM_NODES" --trainer.devices "$SLURM_NTASKS_PER_NODE" --trainer.strategy ddp \
    --trainer.accumulate_grad_batches 1 \
    --trainer.plugins lightning.pytorch.plugins.environments.SLURMEnvironment \
    --trainer.plugins.init_args.auto_requeue false \
    --ckpt_path last "$@" &
wait $!

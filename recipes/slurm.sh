#!/bin/sh
# A SLURM job: trains on two nodes of four GPUs each. Adapt the #SBATCH lines and the paths, then `sbatch recipes/slurm.sh`
# in the root of the repository. After a time limit or a failure, submit it again with RESUME=<run id>.
#
# Not run on a cluster by its authors: torchrun itself is tested with several processes on one machine.
#SBATCH --job-name=stereo-depth
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
set -eu
first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
if [ -n "${RESUME:-}" ]; then
    set -- --resume "$RESUME"
else
    set -- --dataset-root "${DATASET_ROOT:-/data/FSD}" --cache-root "${CACHE_ROOT:-/ssd/cache}" \
        --model guided --batch-size "${BATCH_SIZE:-256}" --epochs "${EPOCHS:-20}"
fi
srun uv run --no-sync torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node 4 --rdzv-id "$SLURM_JOB_ID" \
    --rdzv-backend c10d --rdzv-endpoint "$first_node:29500" --no-python foundation-stereo-depth "$@"

#!/bin/sh
# Train weights as those that are installed with the program, from random weights.
#
# Expected after the guided part, on seven real Middlebury scenes at 320x240: EPE 0.80 px, bad-1 12.2 %, bad-2 8.0 %, AUSE
# 0.09 (random 0.69); on 300 synthetic validation scenes EPE 0.92 px. After the fused part: MODEL_CARD.md.
# Time: on two shared CPU cores about 15 minutes for the pool (10 GB), then 43 and 26 minutes for the two parts
# of the training. No GPU was available; on one, set PROCESSES=1, and add --batch-size 64, a larger pool and more epochs.
#
#     sh recipes/pretrain.sh              continue after an interruption: uv run foundation-stereo-depth --resume <folder>
set -eu
pool=${POOL:-pool}
run=${RUN:-runs/pretrain}
processes=${PROCESSES:-2}

# Two processes: rendering a scene is many small steps of Python, which threads cannot run in parallel.
pool_part() {
    OMP_NUM_THREADS=1 uv run foundation-stereo-cache --procedural-samples 16000 --cache-root "$pool" --shard "$1" --workers 1
}
pool_part 1/2 &
pool_part 2/2
wait $!
# The classical matcher has to be right about as often as it is on real pairs, so the views differ little.
part() {
    OMP_NUM_THREADS=1 uv run torchrun --nproc-per-node "$processes" --no-python foundation-stereo-depth --model guided \
        --cache-root "$pool" --require-cache --val-fraction 0.02 --optimizer adamw --warmup-fraction 0.05 \
        --flip-prob 0.5 --brightness-jitter 0.08 --contrast-jitter 0.08 --saturation-jitter 0.1 --hue-jitter 0.01 \
        --gamma-jitter 0.08 --lighting-jitter 0.05 --noise-std-max 0.05 --blur-prob 0.5 --blur-sigma-max 0.8 \
        --erase-prob 0.2 --erase-size-max 0.08 --vertical-offset-max-px 0.5 --num-workers 1 "$@"
}
part --epochs 5 --learning-rate 3e-3 --output-dir "$run/first"
part --epochs 3 --learning-rate 1.5e-3 --output-dir "$run" --seed 1 --initial-weights "$run/first/last.pt"
uv run foundation-stereo-export --checkpoint "$run/last.pt" -o "$run/guided.safetensors" --overwrite
# Walls, chessboards and 640x480: the same layers learn to choose between two matches (--model fused) and to refine what is
# predicted at half the size, on rooms and repetitive textures too. The pool holds predictions of the installed network;
# with IMAGES=<folder> its scenes contain photographs as well (cutout_scenes.py). The installed weights were made in
# more stages, the last of them on pools that keep what resembles real pairs, as bake_pool.py does now (MODEL_CARD.md);
# this part has not been run as it stands.
for seed in 101 102; do
    uv run python recipes/bake_pool.py "$pool-fused" --seed "$seed" --shards 40 ${IMAGES:+--images "$IMAGES"} &
done
wait
learn_on() {
    for rank in 0 1; do
        OMP_NUM_THREADS=1 uv run python recipes/learn_on.py "$@" --old-weights "$run/guided.safetensors" --processes 2 \
            --rank "$rank" &
    done
    wait
}
learn_on "$run/fused-1" "$pool-fused" --initial-weights "$run/guided.safetensors" --minutes 30 --new-share 0.5
learn_on "$run/fused-2" "$pool-fused" --initial-weights "$run/fused-1/last.safetensors" --minutes 45 \
    --learning-rate 5e-4 --new-share 0.7 --sigma-scale 1
cp "$run/fused-2/last.safetensors" src/foundation_stereo_depth/weights/default.safetensors

#!/bin/sh
# Makes the weights that are installed with the program, from nothing.
#
# Expected: docs/experiments.md, "The installed weights", has the figures; MODEL_CARD.md sums them up.
# Time: on two CPU cores 8 minutes for the pool and an hour for training; the pool takes 3.1 GB.
#
#     sh recipes/pretrain.sh              continue after an interruption: uv run foundation-stereo-depth --resume <folder>
set -eu
pool=${POOL:-pool}
run=${RUN:-runs/pretrain}

uv run foundation-stereo-cache --procedural-samples 5000 --cache-root "$pool"
# The classical matcher has to be right about as often as it is on real pairs, so the eyes differ little.
uv run foundation-stereo-depth --model guided --cache-root "$pool" --require-cache --val-fraction 0.02 \
    --epochs 9 --learning-rate 1e-3 --warmup-fraction 0.03 --nll-beta 1 --flip-prob 0.5 \
    --brightness-jitter 0.05 --contrast-jitter 0.05 --saturation-jitter 0.1 --hue-jitter 0.01 --gamma-jitter 0.05 \
    --lighting-jitter 0.03 --noise-std-max 0.008 --blur-sigma-max 0.7 --erase-prob 0.2 --erase-size-max 0.08 \
    --vertical-offset-max-px 0.4 --output-dir "$run"
uv run foundation-stereo-export --checkpoint "$run/best.pt" -o src/foundation_stereo_depth/weights/default.safetensors \
    --overwrite

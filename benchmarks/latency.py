"""How long one pair takes by every way of running a network, beside OpenCV's semi-global matcher: one JSON line.

Pictures in memory to maps in memory, batch 1, at the network's own size; all ways take turns in one run.

    uv run foundation-stereo-export --checkpoint best.pt -o best.onnx
    uv run python benchmarks/latency.py --checkpoint best.pt --onnx best.onnx
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from training_loop import commit, device_name, summary

from foundation_stereo_depth.block_matching import match_blocks
from foundation_stereo_depth.data.procedural import ProceduralSource
from foundation_stereo_depth.predict import Predictor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--onnx", type=Path)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    asked = parser.parse_args()

    networks = {
        "torch_fp32": Predictor.from_checkpoint(asked.checkpoint, precision="fp32"),
        "torch_bf16": Predictor.from_checkpoint(asked.checkpoint, precision="bf16"),
    }
    if asked.compile:
        networks["torch_bf16_compiled"] = Predictor.from_checkpoint(asked.checkpoint, precision="bf16", compile=True)
    if asked.onnx is not None:
        networks["onnxruntime"] = Predictor.from_checkpoint(asked.onnx, backend="onnxruntime")
        networks["openvino"] = Predictor.from_checkpoint(asked.onnx, backend="openvino")
    size = networks["torch_fp32"]
    source = ProceduralSource(length=1, seed=0, height=size.height, width=size.width, device=torch.device("cpu"))
    batch = next(source.batches([np.arange(1)], 0))
    left, right = (np.ascontiguousarray(eye[0].permute(1, 2, 0).numpy()) for eye in (batch.left, batch.right))
    ways: dict[str, Callable[[], object]] = {"sgbm_3way": lambda: match_blocks(left, right)}
    ways |= {name: lambda network=network: network(left, right) for name, network in networks.items()}

    for way in ways.values():
        for _ in range(3):
            way()
    times_ms: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(asked.rounds):
        for name, way in ways.items():
            began_s = time.perf_counter()
            way()
            times_ms[name].append(1000 * (time.perf_counter() - began_s))
    sgbm_ms = times_ms["sgbm_3way"]
    over_sgbm = {
        name: statistics.median(a / b for a, b in zip(times, sgbm_ms, strict=True)) for name, times in times_ms.items()
    }
    print(
        json.dumps(
            {
                "benchmark": "latency",
                "commit": commit(),
                "device": device_name(),
                "opencv_threads": cv2.getNumThreads(),
                "size": f"{size.width}x{size.height}",
                "ms": {name: summary(times) for name, times in times_ms.items()},
                "median_ratio_to_sgbm": over_sgbm,
                "described": {name: network.description for name, network in networks.items()},
            }
        )
    )


if __name__ == "__main__":
    main()

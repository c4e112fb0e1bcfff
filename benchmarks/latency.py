"""Latency of one pair with every way of running a network, and with OpenCV's semi-global matcher: one JSON line.

Images in memory to maps in memory, batch 1, at the network's own size: a real pair (scikit-image's motorcycle), and a
synthetic one with a near object, for which the prior searches a larger range. Each way runs in a process of its own, as
in use: the thread pools of torch, onnxruntime, OpenVINO and OpenCV spin while they wait, and in one process slow each
other down threefold. In each process the way and the matcher alternate, some calls at a time.

    uv run foundation-stereo-export --checkpoint best.pt -o best.onnx
    uv run python benchmarks/latency.py --checkpoint best.pt --onnx best.onnx
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import skimage.data
from training_loop import commit, device_name, summary

from foundation_stereo_depth.data.synthetic.torch_scenes import scene_sample
from foundation_stereo_depth.inference.predictor import Predictor
from foundation_stereo_depth.stereo import sgbm

_CALLS = 10  # of one before the other; the first two are not counted
_UNCOUNTED = 2
_DEEP_SCENE = 0
_WAYS = ("torch_fp32", "torch_bf16", "torch_bf16_compiled", "onnxruntime", "openvino")


def predictor_of(way: str, checkpoint: Path, onnx: Path | None, *, enlarge: bool) -> Predictor:
    """Open the network in one of `_WAYS`."""
    if way in ("onnxruntime", "openvino"):
        assert onnx is not None
        return Predictor.open(onnx, backend=way, enlarge=enlarge)
    precision = "fp32" if way == "torch_fp32" else "bf16"
    return Predictor.open(checkpoint, precision=precision, compile=way.endswith("compiled"), enlarge=enlarge)


def measured(way: str, asked: argparse.Namespace) -> dict[str, object]:
    """Return the figures of one way, and of the matcher measured alternately."""
    network = predictor_of(way, asked.checkpoint, asked.onnx, enlarge=not asked.live)
    figures = {name: compared(network, *pair, asked.rounds) for name, pair in pairs_of(network).items()}
    return {"described": network.description, "size": f"{network.width}x{network.height}"} | figures


def pairs_of(network: Predictor) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return left and right RGB of each scene, at the network's size."""
    size = (network.width, network.height)
    real = [cv2.resize(view, size, interpolation=cv2.INTER_AREA) for view in skimage.data.stereo_motorcycle()[:2]]
    deep = scene_sample(_DEEP_SCENE, network.height, network.width)
    return {"motorcycle": (real[0], real[1]), "deep": (deep.left, deep.right)}


def compared(network: Predictor, left: np.ndarray, right: np.ndarray, rounds: int) -> dict[str, object]:
    """Measure the network and the matcher alternately on one pair."""
    calls: dict[str, Callable[[], object]] = {
        "way": lambda: network(left, right),
        "sgbm_3way": lambda: sgbm.match(left, right),
    }
    for call in calls.values():
        for _ in range(3):
            call()
    times_ms: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            taken_ms = []
            for _ in range(_CALLS):
                began_s = time.perf_counter()
                call()
                taken_ms.append(1000 * (time.perf_counter() - began_s))
            times_ms[name].append(statistics.median(taken_ms[_UNCOUNTED:]))
    ratios = [ours / theirs for ours, theirs in zip(times_ms["way"], times_ms["sgbm_3way"], strict=True)]
    return {
        "ms": summary(times_ms["way"]),
        "sgbm_3way_ms": summary(times_ms["sgbm_3way"]),
        "over_sgbm_3way": summary(ratios),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--onnx", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--live", action="store_true", help="as in the live view: small images are not enlarged")
    parser.add_argument("--way", choices=_WAYS, help="measure this one alone, in this process")
    asked = parser.parse_args()
    if asked.way is not None:
        print(json.dumps(measured(asked.way, asked)))
        return
    ways = _WAYS if asked.onnx is not None else _WAYS[:3]
    results = {}
    for way in ways:
        command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        results[way] = json.loads(done.stdout.splitlines()[-1])
    print(
        json.dumps(
            {
                "benchmark": "latency",
                "commit": commit(),
                "device": device_name(),
                "opencv_threads": cv2.getNumThreads(),
                "ways": results,
            }
        )
    )


if __name__ == "__main__":
    main()

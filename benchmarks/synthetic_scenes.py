"""What a synthetic scene costs by compiled loops and by PyTorch on one core: one JSON line.

Both make the same floating scenes; rooms and repetition have no PyTorch side. All alternate in one process, scene by
scene; the processor's clock of the thread counts, so other programs matter little. `ratio` is PyTorch's time over
that of the compiled loops for each scene: median and quartiles.

    OMP_NUM_THREADS=1 uv run python benchmarks/synthetic_scenes.py --sizes 320x240 640x480
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from foundation_stereo_depth.data.synthetic.scenes import KINDS, render_scenes
from foundation_stereo_depth.data.synthetic.torch_scenes import scene_sample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=60)
    parser.add_argument("--sizes", nargs="+", default=["320x240", "640x480"])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps({size: measured(size, asked.scenes) for size in asked.sizes}))


def measured(size: str, count: int) -> dict[str, dict[str, float]]:
    width, height = (int(part) for part in size.split("x"))

    def compiled(kind: int) -> Callable[[int], object]:
        weights = tuple(float(kind == other) for other in range(len(KINDS)))
        return lambda i: render_scenes(0, [i], height, width, kinds=weights)

    sides = {"pytorch": lambda i: scene_sample(i, height, width)} | {
        kind: compiled(number) for number, kind in enumerate(KINDS)
    }
    times_ms: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(-2, count):  # the first two compile and warm up
        for name, make in sides.items():
            began_s = time.thread_time()
            make(max(i, 0))
            if i >= 0:
                times_ms[name].append(1000 * (time.thread_time() - began_s))
    return {
        name: {
            "mean_ms": round(statistics.mean(values), 2),
            "median_ms": round(statistics.median(values), 2),
            "ratio": [
                round(q, 2)
                for q in statistics.quantiles([a / b for a, b in zip(times_ms["pytorch"], values, strict=True)])
            ],
        }
        for name, values in times_ms.items()
    }


if __name__ == "__main__":
    main()

"""A page of made-up scenes, each checked by warping its right view; one JSON line of how well they agree, and how fast.

uv run python benchmarks/made_up_scenes.py -o docs/scenes.jpg
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from training_loop import commit, device_name

from foundation_stereo_depth.data.procedural import scene_sample
from foundation_stereo_depth.data.sample import StereoSample

_ROWS, _ACROSS = 6, 2
_HEIGHT, _WIDTH = 240, 320
_ALIKE = 12  # of 255: how much a visible point may differ between the eyes, where sampling differs


def warped_back(sample: StereoSample) -> np.ndarray:
    """What the right view shows at x - d for each pixel of the left one."""
    rows, columns = np.indices(sample.disparity_px.shape, dtype=np.float32)
    return cv2.remap(sample.right, columns - sample.disparity_px.astype(np.float32), rows, cv2.INTER_LINEAR)


def strip(sample: StereoSample, warped: np.ndarray, unlike: np.ndarray) -> np.ndarray:
    """Left, right, disparity, and the right view warped back, darkened where it shows something else."""
    level = np.clip(sample.disparity_px.astype(np.float32) / (0.3 * _WIDTH) * 255, 0, 255).astype(np.uint8)
    colours = cv2.cvtColor(cv2.applyColorMap(level, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)
    return np.hstack([sample.left, sample.right, colours, np.where(unlike[..., None], warped // 5, warped)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    asked = parser.parse_args()
    strips, alike_percent, times_ms = [], [], []
    scene_sample(0, _HEIGHT, _WIDTH)
    for i in range(_ROWS * _ACROSS):
        began_s = time.perf_counter()
        sample = scene_sample(i, _HEIGHT, _WIDTH)
        times_ms.append(1000 * (time.perf_counter() - began_s))
        warped = warped_back(sample)
        unlike = np.abs(warped.astype(np.int16) - sample.left).max(axis=2) > _ALIKE
        alike_percent.append(100 * float(1 - unlike.mean()))
        strips.append(strip(sample, warped, unlike))
    page = np.vstack([np.hstack(strips[i : i + _ACROSS]) for i in range(0, len(strips), _ACROSS)])
    small = cv2.resize(page, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(asked.output), cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 88])
    print(
        json.dumps(
            {
                "benchmark": "made_up_scenes",
                "commit": commit(),
                "device": device_name(),
                "threads": torch.get_num_threads(),
                "median_ms_per_scene": statistics.median(times_ms),
                "alike_percent": [round(share, 1) for share in alike_percent],
            }
        )
    )


if __name__ == "__main__":
    main()

"""A page of made-up scenes, each checked by warping its right view; one JSON line of how well they agree, and how fast.

Also how hard they are for the classical matcher that one network starts from, beside real pairs where there are some.

uv run python benchmarks/made_up_scenes.py -o docs/scenes.jpg --dataset-root <FSD folder>
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from training_loop import commit, device_name

from foundation_stereo_depth.data.fsd import open_fsd
from foundation_stereo_depth.data.sample import StereoSample
from foundation_stereo_depth.data.synthetic.torch_scenes import scene_sample
from foundation_stereo_depth.stereo.prior import prior_planes

_ROWS, _ACROSS = 6, 2
_HEIGHT, _WIDTH = 240, 320
_HARDNESS_SCENES = 100
_NOISES = (0, 2, 4)  # levels of 256
_JUMP_PX = 2.0  # between neighbours: a depth edge
_NEAR_PX = 9
_ALIKE = 12  # of 255: how much a visible point may differ between the eyes, where sampling differs


def warped_back(sample: StereoSample) -> np.ndarray:
    """What the right view shows at x - d for each pixel of the left one."""
    rows, columns = np.indices(sample.disparity_px.shape, dtype=np.float32)
    return cv2.remap(sample.right, columns - sample.disparity_px.astype(np.float32), rows, cv2.INTER_LINEAR)


def real_samples(root: Path) -> Iterator[StereoSample]:
    """Return the pairs of an FSD folder, at the network's size."""
    dataset = open_fsd(root)
    return (dataset.read(i, (_HEIGHT, _WIDTH)) for i in range(len(dataset)))


def made_up() -> Iterator[StereoSample]:
    """Scenes at the network's size."""
    return (scene_sample(i, _HEIGHT, _WIDTH) for i in range(_HARDNESS_SCENES))


def strip(sample: StereoSample, warped: np.ndarray, unlike: np.ndarray) -> np.ndarray:
    """Left, right, disparity, and the right view warped back, darkened where it shows something else."""
    level = np.clip(sample.disparity_px.astype(np.float32) / (0.3 * _WIDTH) * 255, 0, 255).astype(np.uint8)
    colours = cv2.cvtColor(cv2.applyColorMap(level, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)
    return np.hstack([sample.left, sample.right, colours, np.where(unlike[..., None], warped // 5, warped)])


def hardness(samples: Iterable[StereoSample], noise: float) -> dict[str, float]:
    """Means over pairs: how often and by how much `prior_planes` is wrong, near depth edges and away from them.

    Args:
        samples: the pairs.
        noise: added to both eyes, its deviation in levels of 256.
    """
    rows, random = [], np.random.default_rng(0)
    for sample in samples:
        true_px = np.asarray(sample.disparity_px, np.float32)
        known = np.isfinite(true_px) & (true_px > 0)
        planes = prior_planes(*(noisy(eye, noise, random) for eye in (sample.left, sample.right)))
        error_px = np.abs(planes[0] - true_px)
        known_px = np.where(known, true_px, np.nan)  # beside NaN there is no jump
        jumps = np.fmax(
            np.abs(np.diff(known_px, axis=1, prepend=known_px[:, :1])),
            np.abs(np.diff(known_px, axis=0, prepend=known_px[:1])),
        )
        near = cv2.dilate((jumps > _JUMP_PX).astype(np.uint8), np.ones((_NEAR_PX, _NEAR_PX), np.uint8)) > 0
        rows.append(
            {
                "epe_px": error_px[known].mean(),
                "bad_1_percent": 100 * (error_px[known] > 1).mean(),
                "bad_1_near_edges_percent": 100 * (error_px[known & near] > 1).mean() if near.any() else np.nan,
                "bad_1_away_percent": 100 * (error_px[known & ~near] > 1).mean(),
                "near_edges_percent": 100 * near[known].mean(),
                "matched_percent": 100 * planes[3][known].mean(),
                "median_disparity_px": np.median(true_px[known]),
                "largest_disparity_px": true_px[known].max(),
            }
        )
    return {name: round(float(np.nanmean([row[name] for row in rows])), 2) for name in rows[0]}


def noisy(eye: np.ndarray, deviation: float, random: np.random.Generator) -> np.ndarray:
    """A picture with white noise, of levels of 256."""
    return np.clip(np.rint(eye + random.normal(0, deviation, eye.shape)), 0, 255).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--dataset-root", type=Path, help="real pairs to compare with")
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
                "for_the_matcher": {f"noise of {noise}": hardness(made_up(), noise) for noise in _NOISES},
                "for_the_matcher_real": asked.dataset_root
                and {f"noise of {noise}": hardness(real_samples(asked.dataset_root), noise) for noise in _NOISES},
            }
        )
    )


if __name__ == "__main__":
    main()

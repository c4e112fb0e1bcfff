"""Settings of OpenCV's matcher at 320x240: EPE and bad pixels, and ratios to the recommended settings' (sgbm.match).

One JSON line per variant. The settings of the network's prior were chosen by this.

uv run python benchmarks/matcher_settings.py --dataset-root <FSD folder>
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from foundation_stereo_depth.data.fsd import open_fsd
from foundation_stereo_depth.data.sample import StereoSample
from foundation_stereo_depth.stereo.prior import prior_planes
from foundation_stereo_depth.stereo.sgbm import filled_from_background, match

_HEIGHT, _WIDTH = 240, 320
Variant = Callable[[np.ndarray, np.ndarray], np.ndarray]


def grey_matcher(
    *,
    penalties: tuple[int, int],
    uniqueness: int = 10,
    speckle_px: int = 100,
    disparities: int = 64,
    median: bool = True,
) -> Variant:
    """Return OpenCV's matcher on luminance, with 3x3 blocks and filled holes."""

    def match_grey(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        matcher = cv2.StereoSGBM.create(
            0, disparities, 3, *penalties, 1, 15, uniqueness, speckle_px, 2, cv2.STEREO_SGBM_MODE_SGBM_3WAY
        )
        greys = [cv2.cvtColor(view, cv2.COLOR_RGB2GRAY) for view in (left, right)]
        wider = [cv2.copyMakeBorder(view, 0, 0, disparities, 0, cv2.BORDER_REPLICATE) for view in greys]
        steps = np.asarray(matcher.compute(*wider))[:, disparities:]
        filled = np.nan_to_num(filled_from_background(steps.astype(np.float32) / 16, steps > 0))
        return cv2.medianBlur((filled * 16).astype(np.uint16), 5) / 16.0 if median else filled

    return match_grey


VARIANTS: dict[str, Variant] = {
    "recommended settings, RGB (sgbm.match)": lambda left, right: match(left, right).disparity_px,
    "recommended settings, grey": grey_matcher(penalties=(72, 288), median=False),
    "+ 5x5 median": grey_matcher(penalties=(72, 288)),
    "P1 36, P2 288": grey_matcher(penalties=(36, 288)),
    "P1 72, P2 144": grey_matcher(penalties=(72, 144)),
    "P1 36, P2 144": grey_matcher(penalties=(36, 144)),
    "P1 36, P2 72": grey_matcher(penalties=(36, 72)),
    "P1 24, P2 72": grey_matcher(penalties=(24, 72)),
    "P1 16, P2 48": grey_matcher(penalties=(16, 48)),
    "P1 36, P2 72, uniqueness 15, speckles 150": grey_matcher(penalties=(36, 72), uniqueness=15, speckle_px=150),
    "the same, 96 disparities": grey_matcher(penalties=(36, 72), uniqueness=15, speckle_px=150, disparities=96),
    "the same, disparities found in a small image (prior_planes)": lambda *pair: prior_planes(*pair)[0],
}


def figures(samples: list[StereoSample], variant: Variant) -> np.ndarray:
    """Return the means over scenes of EPE px, bad-1, bad-2 and D1 %."""
    rows = []
    for sample in samples:
        true_px = np.asarray(sample.disparity_px, np.float32)
        known = np.isfinite(true_px) & (true_px > 0)
        error_px = np.abs(variant(sample.left, sample.right) - true_px)[known]
        wrong = (error_px > 1, error_px > 2, (error_px > 3) & (error_px > 0.05 * true_px[known]))
        rows.append([error_px.mean(), *(100 * pixels.mean() for pixels in wrong)])
    return np.mean(rows, axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset-root", type=Path, required=True)
    index = open_fsd(parser.parse_args().dataset_root)
    samples = [index.read(i, (_HEIGHT, _WIDTH)) for i in range(len(index.names))]
    names = ("epe_px", "bad_1_percent", "bad_2_percent", "d1_percent")
    recommended = figures(samples, VARIANTS["recommended settings, RGB (sgbm.match)"])
    for name, variant in VARIANTS.items():
        began_s = time.perf_counter()
        found = figures(samples, variant)
        ms = 1000 * (time.perf_counter() - began_s) / len(samples)
        ratios = (found / recommended).round(3).tolist()
        print(
            json.dumps(
                {
                    "variant": name,
                    **dict(zip(names, found.round(3).tolist(), strict=True)),
                    "ratios": ratios,
                    "ms": round(ms, 1),
                }
            )
        )


if __name__ == "__main__":
    main()

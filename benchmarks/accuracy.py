"""Accuracy on groups of real scenes at several sizes, beside OpenCV's SGBM: textured scenes, plain walls, chessboards.

One JSON line per size and group: means over scenes of EPE, bad-1, bad-2 and D1, their ratios to SGBM's, figures of the
uncertainty pooled over pixels, and the time over SGBM's, alternating. Errors are in px of each size: images and ground
truth are resized to it first.

    uv run python benchmarks/accuracy.py --data <folder of the groups> [--checkpoint best.pt] [--figure figure.jpg]
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from foundation_stereo_depth.data.fsd import open_fsd
from foundation_stereo_depth.data.sample import StereoSample, resize_sample
from foundation_stereo_depth.inference.predictor import Predictor
from foundation_stereo_depth.metrics import disparity_errors
from foundation_stereo_depth.options.fields import parse_two_numbers
from foundation_stereo_depth.stereo import sgbm
from foundation_stereo_depth.stereo.match import StereoMatch, StereoMatcher
from foundation_stereo_depth.uncertainty import UncertaintyCounts, uncertainty_counts

GROUPS = ("fsd-sample", "fsd-more", "planes", "boards")
SIZES = ("320x240", "640x480")
_ERRORS = ("epe_px", "bad_1_percent", "bad_2_percent", "d1_percent")
_LARGEST_ERROR_PX = 4.0  # of the colours of the figure
_TILE_PX = (240, 180)


@dataclass(frozen=True, kw_only=True)
class SceneScore:
    """The figures of one scene.

    Attributes:
        network, sgbm: EPE in px, bad-1, bad-2 and D1 in percent.
        uncertainty: counts over the scene's pixels.
        network_ms, sgbm_ms: from images in memory to maps in memory.
    """

    name: str
    network: np.ndarray
    sgbm: np.ndarray
    uncertainty: UncertaintyCounts
    network_ms: float
    sgbm_ms: float


def time_call(matcher: StereoMatcher, sample: StereoSample) -> float:
    """Return the milliseconds of one call."""
    began_s = time.perf_counter()
    matcher(sample.left, sample.right)
    return 1000 * (time.perf_counter() - began_s)


def errors_of(disparity_px: np.ndarray, truth_px: np.ndarray) -> np.ndarray:
    """Return EPE, bad-1, bad-2 and D1 where the truth is known."""
    tensors = (torch.from_numpy(np.asarray(plane, np.float32))[None, None] for plane in (disparity_px, truth_px))
    figures = disparity_errors(*tensors).figures()
    return np.array([figures[name] for name in _ERRORS])


def score(predictor: Predictor, name: str, sample: StereoSample) -> tuple[SceneScore, list[np.ndarray]]:
    """Return the figures of the scene, and its row of the figure."""
    match = predictor(sample.left, sample.right)
    assert match.sigma_px is not None
    sgbm_px = np.nan_to_num(sgbm.match(sample.left, sample.right).disparity_px)  # 0 where nothing matched
    truth_px = np.asarray(sample.disparity_px, np.float32)
    times = [(time_call(predictor, sample), time_call(sgbm.match, sample)) for _ in range(3)]
    network_ms, sgbm_ms = np.median(times, axis=0)
    counts = uncertainty_counts(
        torch.from_numpy(match.disparity_px)[None, None],
        torch.from_numpy(2 * np.log(match.sigma_px))[None, None],
        torch.from_numpy(truth_px)[None, None],
        predictor.facts.distribution,
    )
    scored = SceneScore(
        name=name,
        network=errors_of(match.disparity_px, truth_px),
        sgbm=errors_of(sgbm_px, truth_px),
        uncertainty=counts,
        network_ms=network_ms,
        sgbm_ms=sgbm_ms,
    )
    return scored, draw_row(scored, sample, match, sgbm_px)


def draw_row(scored: SceneScore, sample: StereoSample, match: StereoMatch, sgbm_px: np.ndarray) -> list[np.ndarray]:
    """Return tiles: left view, truth, network, its error, its confidence, SGBM, its error."""
    truth_px = np.asarray(sample.disparity_px, np.float32)
    known = np.isfinite(truth_px) & (truth_px > 0)
    assert match.confidence is not None
    most_px = float(np.percentile(match.disparity_px, 99)) + 1

    def colours(values: np.ndarray, most: float, where: np.ndarray | None = None) -> np.ndarray:
        image = cv2.applyColorMap(np.clip(values / most * 255, 0, 255).astype(np.uint8), cv2.COLORMAP_TURBO)
        return image if where is None else np.where(where[..., None], image, 0).astype(np.uint8)

    def error(disparity_px: np.ndarray) -> np.ndarray:
        return colours(np.abs(np.nan_to_num(truth_px) - disparity_px), _LARGEST_ERROR_PX, known)

    tiles = {
        scored.name: cv2.cvtColor(sample.left, cv2.COLOR_RGB2BGR),
        f"truth, 0 to {most_px:.0f} px": colours(np.nan_to_num(truth_px), most_px, known),
        f"network, EPE {scored.network[0]:.2f} px": colours(match.disparity_px, most_px),
        f"its error, 0 to {_LARGEST_ERROR_PX:.0f} px": error(match.disparity_px),
        "P(|error| < 1 px), 0 to 1": colours(match.confidence, 1.0),
        f"SGBM, EPE {scored.sgbm[0]:.2f} px": colours(sgbm_px, most_px),
        "its error": error(sgbm_px),
    }
    return [add_title(cv2.resize(tile, _TILE_PX, interpolation=cv2.INTER_AREA), title) for title, tile in tiles.items()]


def add_title(tile: np.ndarray, title: str) -> np.ndarray:
    """Return the tile with a title at its top."""
    cv2.rectangle(tile, (0, 0), (_TILE_PX[0], 14), (0, 0, 0), -1)
    cv2.putText(tile, title, (3, 11), cv2.FONT_HERSHEY_SIMPLEX, 0.36, (255, 255, 255), 1, cv2.LINE_AA)
    return tile


def summarise(group: str, size: str, scores: list[SceneScore]) -> dict[str, object]:
    """Return the figures of a group of scenes."""
    network, sgbm = (np.mean([getattr(one, who) for one in scores], axis=0) for who in ("network", "sgbm"))
    counts = scores[0].uncertainty
    for one in scores[1:]:
        counts = counts + one.uncertainty
    uncertain = counts.figures()
    ratios = [one.network_ms / one.sgbm_ms for one in scores]
    return {
        "size": size,
        "group": group,
        "scenes": len(scores),
        "network": dict(zip(_ERRORS, network.round(3).tolist(), strict=True)),
        "sgbm": dict(zip(_ERRORS, sgbm.round(3).tolist(), strict=True)),
        "over_sgbm": [round(float(a / b), 3) if b > 0 else None for a, b in zip(network, sgbm, strict=True)],
        "ause_over_random": round(uncertain["ause_epe_px"] / uncertain["ause_epe_random_px"], 3),
        "ece_percent": round(uncertain["calibration_error_percent"], 2),
        "within_68_percent": round(uncertain["coverage_68_percent"], 1),
        "network_ms": round(float(np.median([one.network_ms for one in scores])), 1),
        "time_over_sgbm": [round(float(np.percentile(ratios, at)), 2) for at in (50, 10, 90)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the groups, each in the FSD layout")
    parser.add_argument("--groups", nargs="+", default=GROUPS)
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="of images, truth and network, as 320x240")
    parser.add_argument("--checkpoint", default="default", help=".pt, .safetensors or .onnx file")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--live", action="store_true", help="as in the live view: small images are not enlarged")
    parser.add_argument("--scenes", action="store_true", help="a line for each scene too")
    parser.add_argument("--figure", type=Path, help="image file: all scenes in rows, at the last of the sizes")
    asked = parser.parse_args()
    rows: list[list[np.ndarray]] = []
    for size in asked.sizes:
        width, height = parse_two_numbers("--sizes", size)
        predictor = Predictor.open(
            asked.checkpoint,
            device="cpu",
            precision=asked.precision,
            height=height,
            width=width,
            enlarge=not asked.live,
        )
        rows = []
        for group in asked.groups:
            dataset = open_fsd(asked.data / group)
            scores: list[SceneScore] = []
            for i in range(len(dataset)):
                sample = resize_sample(dataset.read(i), height, width)
                scored, row = score(predictor, dataset.names.scene(i), sample)
                scores.append(scored)
                rows.append(row)
                if asked.scenes:
                    print(json.dumps(summarise(scored.name, size, [scored])), flush=True)
            print(json.dumps(summarise(group, size, scores)), flush=True)
    if asked.figure is not None:
        cv2.imwrite(str(asked.figure), np.vstack([np.hstack(row) for row in rows]))


if __name__ == "__main__":
    main()

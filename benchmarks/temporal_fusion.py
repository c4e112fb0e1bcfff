"""Fusion over time on a synthetic rig: still, then panning, with one moving object and the noise of a sensor.

Prints flicker (temporal standard deviation on still pixels), EPE, errors behind moving edges, and coverage of the 68 %
interval, without and with fusion.

    uv run python benchmarks/temporal_fusion.py --scenes floating:1 room:2
"""

import argparse
import time
from collections.abc import Iterator

import numpy as np

from foundation_stereo_depth.data.synthetic import scenes
from foundation_stereo_depth.data.synthetic.primitives import empty_scene
from foundation_stereo_depth.data.synthetic.textures import packed_textures
from foundation_stereo_depth.inference.predictor import Predictor
from foundation_stereo_depth.stereo.match import StereoMatch
from live_camera.fusion import TemporalFusion

HEIGHT, WIDTH = 240, 320
STILL, FRAMES = 20, 40
PAN_PX, OBJECT_PX, NOISE = 1.5, 4.0, 4.0
LAPLACE_68 = 1.1394 / np.sqrt(2)
"""Half of the 68 % interval of a Laplacian, in standard deviations."""


def render_sequence(kind: str, index: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield left and right view with noise, and the true disparity, of each frame."""
    scene, texels, random = empty_scene(), packed_textures(), np.random.default_rng(index)
    if kind == "floating":
        target = scenes._draw_floating(7, 0, index, HEIGHT, WIDTH, scene, 12)
    else:
        target = scenes._draw_room(7, 0, index, HEIGHT, WIDTH, scene, False)
    primitives, count = scene.primitives, int(scene.setting[0]["count"])
    wide = primitives["left_to"][:count] - primitives["left_from"][:count]
    movable = (primitives["unbounded"][:count] == 0) & (primitives["content"][:count] < 0) & (wide > 20) & (wide < 140)
    movable &= (primitives["centre_x"][:count] > 0) & (primitives["centre_x"][:count] < WIDTH)
    mover = int(np.argmax(np.where(movable, primitives["d0"][:count], -1))) if movable.any() else None
    for frame in range(FRAMES):
        left, right = np.empty((2, HEIGHT, WIDTH, 3), np.uint8)
        disparity_px = np.empty((HEIGHT, WIDTH), np.float32)
        for name in ("centre_x", "left_from", "left_to"):
            primitives[name][:count] += np.float32(PAN_PX if frame >= STILL else 0)
            if mover is not None and frame:
                primitives[name][mover] += np.float32(OBJECT_PX if (frame // 12) % 2 == 0 else -OBJECT_PX)
        scene.highlights[:, 1] += np.float32(PAN_PX if frame >= STILL else 0)
        scenes._render(scene, target if frame == 0 else 0.0, texels, left, right, disparity_px)
        noisy = [np.clip(view + random.normal(0, NOISE, view.shape), 0, 255).round() for view in (left, right)]
        yield noisy[0].astype(np.uint8), noisy[1].astype(np.uint8), disparity_px


def score(frames: list[tuple[np.ndarray, np.ndarray, StereoMatch]], fuse: TemporalFusion | None) -> dict[str, float]:
    """Return the figures of a sequence of (left view, truth, match)."""
    began_s = time.thread_time()
    fused = [match if fuse is None else fuse(left, match) for left, _, match in frames]
    cpu_ms = 1000 * (time.thread_time() - began_s) / len(frames)
    truth = np.array([truth for _, truth, _ in frames])
    found, sigma = (np.array([getattr(match, name) for match in fused]) for name in ("disparity_px", "sigma_px"))
    errors = np.abs(found - truth)
    still, window = np.ptp(truth[:STILL], axis=0) < 1e-3, slice(STILL // 2, STILL)
    moved = np.abs(np.diff(truth, axis=0)) > 1
    behind = [errors[t][moved[t - 1] | moved[t - 2] | moved[t - 3]] for t in range(STILL // 2, STILL)]
    panned = [errors[t][moved[t - 1]] for t in range(STILL + 4, FRAMES)]
    inside = errors < LAPLACE_68 * sigma
    return {
        "flicker_px": float(np.std(found[window], axis=0)[still].mean()),
        "still_epe_px": float(errors[window][:, still].mean()),
        "panning_epe_px": float(errors[STILL + 2 :].mean()),
        "behind_object_px": float(np.concatenate(behind).mean()),
        "edges_panning_px": float(np.concatenate(panned).mean()),
        "still_68_percent": 100 * float(inside[window][:, still].mean()),
        "panning_68_percent": 100 * float(inside[STILL + 2 :].mean()),
        "cpu_ms": cpu_ms,
    }


def main() -> None:
    """Print the figures of each scene."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", nargs="+", default=["floating:1", "room:2", "floating:3", "room:4"])
    parser.add_argument("--forgetting", type=float, default=0.9)
    options = parser.parse_args()
    predictor = Predictor.open(enlarge=False)
    for scene in options.scenes:
        kind, index = scene.split(":")
        frames = [(left, truth, predictor(left, right)) for left, right, truth in render_sequence(kind, int(index))]
        for name, fuse in (("without", None), ("with", TemporalFusion(options.forgetting))):
            print(scene, name, {key: round(value, 3) for key, value in score(frames, fuse).items()}, flush=True)


if __name__ == "__main__":
    main()

import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from skimage import data

from foundation_stereo_depth.data.codecs import read_rgb
from live_camera.diagnostics import FrameCheck, check_arrangement
from live_camera.options import SourceOptions
from live_camera.rig import StereoFrame

RANDOM = np.random.default_rng(0)


def frame(left: np.ndarray, right: np.ndarray, at_s: float) -> StereoFrame:
    return StereoFrame(left_rgb=left, right_rgb=right, captured_at_s=at_s, skew_ms=0.0)


def noise() -> np.ndarray:
    return RANDOM.integers(100, 110, (48, 64, 3), dtype=np.uint8)


def test_black_and_frozen_views_are_reported() -> None:
    checker, still = FrameCheck(), noise()
    assert checker.check(frame(noise(), still, 10.0)) == []
    assert checker.check(frame(noise(), still, 10.9)) == []
    assert checker.check(frame(noise(), still, 11.1)) == ["the right view is frozen: reconnect the camera"]
    assert checker.check(frame(noise(), noise(), 11.2)) == []
    assert checker.check(frame(noise() // 50, noise(), 11.3)) == ["the left view is black: is the lens covered?"]


def real_pairs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    left, right, _ = data.stereo_motorcycle()
    yield left, right
    folder = os.environ.get("STEREO_SHARED_DATA")
    if folder is not None:
        for path in sorted(Path(folder).glob("fsd-sample/*/dataset/data/left/rgb/*.jpg")):
            yield read_rgb(path), read_rgb(path.parents[2] / "right/rgb" / path.name)
        for path in sorted(Path(folder).glob("oak-d/*_left.png")):
            yield read_rgb(path), read_rgb(path.with_name(path.name.replace("left", "right")))


def turned(view: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(view[::-1, ::-1])


def keep(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return left, right


def advice_of(left: np.ndarray, right: np.ndarray, source: SourceOptions | None = None, rectify=keep) -> str:
    return check_arrangement(frame(left, right, 0.0), rectify, source or SourceOptions()) or ""


def test_wrong_arrangements_of_real_pairs_are_found_and_correct_ones_accepted() -> None:
    for left, right in real_pairs():
        assert advice_of(left, right) == ""
        assert advice_of(right, left) == "left and right views seem to be swapped; use --swap"
        assert "swapped" in advice_of(turned(left), turned(right))  # the rig as a whole upside down
        advice = advice_of(left, turned(right))
        assert advice == "the right camera seems to be upside down; use --upside-down right"
        assert "the left camera seems to be upside down" in advice_of(turned(left), right)


def test_wrong_arrangements_are_found_when_rectified_by_the_other_cameras_maps() -> None:
    """Two cameras that point 3 degrees up and down, as cheap rigs do."""
    left, right, _ = data.stereo_motorcycle()
    height, width = left.shape[:2]
    K = np.array([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1.0]])
    rotations = [cv2.Rodrigues(np.array([sign * np.radians(3), 0.02, 0]))[0] for sign in (1, -1)]

    def warp(view: np.ndarray, rotation: np.ndarray) -> np.ndarray:
        return np.asarray(cv2.warpPerspective(view, K @ rotation @ np.linalg.inv(K), (width, height)), np.uint8)

    def rectify(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return warp(left, rotations[0]), warp(right, rotations[1])

    raw = warp(left, rotations[0].T), warp(right, rotations[1].T)
    assert advice_of(*raw, rectify=rectify) == ""
    assert "swapped" in advice_of(raw[1], raw[0], rectify=rectify)
    assert "the right camera seems to be upside down" in advice_of(raw[0], turned(raw[1]), rectify=rectify)
    assert "the left camera seems to be upside down" in advice_of(turned(raw[0]), raw[1], rectify=rectify)


def test_advice_names_the_flags_to_type() -> None:
    left, right, _ = data.stereo_motorcycle()
    # Pairs are arranged by the flags already.
    swapped = SourceOptions(swap=True)
    assert advice_of(right, left, swapped) == "left and right views seem to be swapped; remove --swap"
    # With --swap the right view is of the left camera.
    assert "use --upside-down left" in advice_of(left, turned(right), swapped)
    right_turned = SourceOptions(upside_down="right")
    assert advice_of(left, turned(right), right_turned).endswith("; remove --upside-down")
    assert advice_of(turned(left), right, right_turned).endswith("; use --upside-down both")
    both = SourceOptions(upside_down="both")
    assert advice_of(turned(left), right, both).endswith("; use --upside-down right")


@pytest.mark.parametrize("seed", range(3))
def test_views_that_match_in_no_arrangement_give_no_advice(seed: int) -> None:
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (2, 12, 16, 3), dtype=np.uint8)
    left, right = (np.asarray(cv2.resize(view, (160, 120)), np.uint8) for view in coarse)
    assert advice_of(left, right) == ""
    flat = np.full((120, 160, 3), 128, np.uint8)
    assert advice_of(flat, flat) == ""

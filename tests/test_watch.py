import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from skimage import data

from foundation_stereo_depth.data.formats import read_rgb
from live_camera.rig import StereoFrame
from live_camera.watch import FrameWatch, arrangement_complaint

RANDOM = np.random.default_rng(0)


def frame(left: np.ndarray, right: np.ndarray, at_s: float) -> StereoFrame:
    return StereoFrame(left_rgb=left, right_rgb=right, captured_at_s=at_s, skew_ms=0.0)


def noise() -> np.ndarray:
    return RANDOM.integers(100, 110, (48, 64, 3), dtype=np.uint8)


def test_black_and_frozen_eyes_are_told() -> None:
    watch, still = FrameWatch(), noise()
    assert watch.complaints(frame(noise(), still, 10.0)) == []
    assert watch.complaints(frame(noise(), still, 10.9)) == []
    assert watch.complaints(frame(noise(), still, 11.1)) == [
        "the right eye has not changed any more: plug it in again?"
    ]
    assert watch.complaints(frame(noise(), noise(), 11.2)) == []
    assert watch.complaints(frame(noise() // 50, noise(), 11.3)) == ["the left eye is black: is its lens covered?"]


def real_pairs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    left, right, _ = data.stereo_motorcycle()
    yield left, right
    folder = os.environ.get("STEREO_SHARED_DATA")
    if folder is not None:
        for path in sorted(Path(folder).glob("fsd-sample/*/dataset/data/left/rgb/*.jpg")):
            yield read_rgb(path), read_rgb(path.parents[2] / "right/rgb" / path.name)
        for path in sorted(Path(folder).glob("oak-d/*_left.png")):
            yield read_rgb(path), read_rgb(path.with_name(path.name.replace("left", "right")))


def test_eyes_that_stand_wrong_are_noticed_on_real_pairs_and_right_ones_are_not() -> None:
    for left, right in real_pairs():
        turned = [np.ascontiguousarray(eye[::-1, ::-1]) for eye in (left, right)]
        assert arrangement_complaint(left, right) is None
        assert "exchanged" in (arrangement_complaint(right, left) or "")
        assert "exchanged" in (arrangement_complaint(turned[0], turned[1]) or "")  # the rig as a whole upside down
        assert "the right eye seems to be upside down" in (arrangement_complaint(left, turned[1]) or "")
        assert "the left eye seems to be upside down" in (arrangement_complaint(turned[0], right) or "")


@pytest.mark.parametrize("seed", range(3))
def test_pictures_that_match_in_no_way_are_not_judged(seed: int) -> None:
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (2, 12, 16, 3), dtype=np.uint8)
    left, right = (np.asarray(cv2.resize(eye, (160, 120)), np.uint8) for eye in coarse)
    assert arrangement_complaint(left, right) is None
    flat = np.full((120, 160, 3), 128, np.uint8)
    assert arrangement_complaint(flat, flat) is None

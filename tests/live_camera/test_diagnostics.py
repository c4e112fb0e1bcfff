import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from live_camera.watch import FrameWatch, arrangement_complaint
from skimage import data

from foundation_stereo_depth.data.codecs import read_rgb
from live_camera.options import SourceOptions
from live_camera.rig import StereoFrame

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


def turned(eye: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(eye[::-1, ::-1])


def as_it_is(frame: StereoFrame) -> tuple[np.ndarray, np.ndarray]:
    return frame.left_rgb, frame.right_rgb


def complaint_of(left: np.ndarray, right: np.ndarray, source: SourceOptions | None = None, prepare=as_it_is) -> str:
    return arrangement_complaint(frame(left, right, 0.0), prepare, source or SourceOptions()) or ""


def test_eyes_that_stand_wrong_are_noticed_on_real_pairs_and_right_ones_are_not() -> None:
    for left, right in real_pairs():
        assert complaint_of(left, right) == ""
        assert complaint_of(right, left) == "left and right seem to be exchanged; --swap exchanges them"
        assert "exchanged" in complaint_of(turned(left), turned(right))  # the rig as a whole upside down
        complaint = complaint_of(left, turned(right))
        assert complaint == "the right eye seems to be upside down; --upside-down right turns it"
        assert "the left eye seems to be upside down" in complaint_of(turned(left), right)


def test_eyes_that_stand_wrong_are_noticed_though_each_was_rectified_by_the_other_ones_maps() -> None:
    """Two cameras that point 3 degrees up and down, as cheap rigs do."""
    left, right, _ = data.stereo_motorcycle()
    height, width = left.shape[:2]
    K = np.array([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1.0]])
    turns = [cv2.Rodrigues(np.array([sign * np.radians(3), 0.02, 0]))[0] for sign in (1, -1)]

    def seen(eye: np.ndarray, turn: np.ndarray) -> np.ndarray:
        return np.asarray(cv2.warpPerspective(eye, K @ turn @ np.linalg.inv(K), (width, height)), np.uint8)

    def rectified(frame: StereoFrame) -> tuple[np.ndarray, np.ndarray]:
        return seen(frame.left_rgb, turns[0]), seen(frame.right_rgb, turns[1])

    raw = seen(left, turns[0].T), seen(right, turns[1].T)
    assert complaint_of(*raw, prepare=rectified) == ""
    assert "exchanged" in complaint_of(raw[1], raw[0], prepare=rectified)
    assert "the right eye seems to be upside down" in complaint_of(raw[0], turned(raw[1]), prepare=rectified)
    assert "the left eye seems to be upside down" in complaint_of(turned(raw[0]), raw[1], prepare=rectified)


def test_what_is_advised_is_what_has_to_be_typed() -> None:
    left, right, _ = data.stereo_motorcycle()
    # Pairs are as the flags arranged them already.
    swapped = SourceOptions(swap=True)
    assert complaint_of(right, left, swapped) == "left and right seem to be exchanged; leave --swap out"
    # Behind --swap the right picture is the left camera's.
    assert "--upside-down left turns it" in complaint_of(left, turned(right), swapped)
    in_vain = SourceOptions(upside_down="right")
    assert complaint_of(left, turned(right), in_vain).endswith("; leave --upside-down out")
    assert complaint_of(turned(left), right, in_vain).endswith("; --upside-down both is right")
    both = SourceOptions(upside_down="both")
    assert complaint_of(turned(left), right, both).endswith("; --upside-down right is right")


@pytest.mark.parametrize("seed", range(3))
def test_pictures_that_match_in_no_way_are_not_judged(seed: int) -> None:
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (2, 12, 16, 3), dtype=np.uint8)
    left, right = (np.asarray(cv2.resize(eye, (160, 120)), np.uint8) for eye in coarse)
    assert complaint_of(left, right) == ""
    flat = np.full((120, 160, 3), 128, np.uint8)
    assert complaint_of(flat, flat) == ""

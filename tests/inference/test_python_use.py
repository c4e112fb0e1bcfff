"""The door for Python users: what a view may be, and what can be done with a match."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from foundation_stereo_depth import StereoCalibration
from foundation_stereo_depth.data.codecs import write_rgb
from foundation_stereo_depth.data.views import as_rgb
from foundation_stereo_depth.errors import DataError
from foundation_stereo_depth.outputs import PairMatch

IMAGE = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
RIG = StereoCalibration.centred(height=64, width=96, focal_px=80.0, baseline_m=0.1)


@pytest.mark.parametrize(
    "view",
    [
        IMAGE, IMAGE / 255, (IMAGE / 255).astype(np.float32), IMAGE.astype(np.uint16) << 8,
        np.dstack([IMAGE, IMAGE[..., 0]]),
    ],
    ids=["bytes", "float64", "float32", "16 bits", "with opacity"],
)  # fmt: skip
def test_colour_arrays_become_rgb_bytes(view: np.ndarray) -> None:
    assert np.array_equal(as_rgb(view, "left"), IMAGE)


def test_grey_bgr_and_files_become_rgb_bytes() -> None:
    grey = IMAGE[..., 0]
    for view in (grey, grey[..., None], grey / 255):
        assert np.array_equal(as_rgb(view, "left"), np.dstack([grey] * 3))
    assert np.array_equal(as_rgb(IMAGE[..., ::-1], "left", "bgr"), IMAGE)
    write_rgb(Path("a.png"), IMAGE)
    for path in ("a.png", Path("a.png")):
        assert np.array_equal(as_rgb(path, "left"), IMAGE)
    assert np.array_equal(as_rgb(np.asarray(cv2.imread("a.png")), "left", "bgr"), IMAGE)


@pytest.mark.parametrize(
    ("view", "message"),
    [
        (IMAGE.transpose(2, 0, 1), r"left view has the shape \(3, 4, 6\); channels come last: image.transpose"),
        (IMAGE[None], "it is a batch"),
        (np.zeros((0, 5, 3), np.uint8), "a path, or an array of shape"),
        (np.zeros(5), "a path, or an array of shape"),
        (IMAGE.astype(np.int64), "values of type int64; uint8, uint16 or floats from 0 to 1 are wanted"),
        (IMAGE > 3, "values of type bool"),
        (IMAGE.astype(np.float32), "floats from 0 to 71; they have to be from 0 to 1; divide it by 255"),
        (np.full((4, 6), np.nan), "floats from nan to nan"),
    ],
)  # fmt: skip
def test_what_is_no_image_is_refused_by_a_value_error(view: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        as_rgb(view, "left")  # pyright: ignore
    assert "\n" not in str(error.value)


def test_a_missing_file_is_refused() -> None:
    with pytest.raises(DataError, match=r"missing\.png"):
        as_rgb("missing.png", "left")


@pytest.fixture
def match(matching_predictor) -> PairMatch:
    left = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    return matching_predictor(64, 96)(left, np.roll(left, -4, axis=1))


def test_a_match_is_saved_by_suffix(match: PairMatch) -> None:
    assert match.save("new/depth.npy", RIG) == Path("new/depth.npy")
    saved_m, depth_m = np.load("new/depth.npy"), match.depth_m(RIG)
    assert np.array_equal(saved_m, depth_m, equal_nan=True)
    assert np.nanmedian(depth_m) == pytest.approx(80 * 0.1 / 4)
    match.save("disparity.npy")
    assert np.array_equal(np.load("disparity.npy"), match.disparity_px, equal_nan=True)
    assert match.save(Path("cloud.ply"), RIG).read_bytes().startswith(b"ply")
    figure = cv2.imread(str(match.save("depth.PNG", RIG)))
    assert figure is not None
    assert figure.shape[1] == 1800


def test_a_match_cannot_be_saved_as_anything(match: PairMatch) -> None:
    with pytest.raises(ValueError, match=r"depth\.jpg: a match is saved as \.png, \.npy, \.pfm, \.ply"):
        match.save("depth.jpg")
    with pytest.raises(ValueError, match="a point cloud needs a calibration"):
        match.save("cloud.ply")


def test_a_notebook_shows_a_match(match: PairMatch) -> None:
    assert match._repr_png_().startswith(b"\x89PNG")

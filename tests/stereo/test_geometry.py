import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.stereo.geometry import (
    StereoCalibration,
    depth_from_disparity,
    depth_std_from_disparity,
    disparity_from_depth,
)


def rig(**changes: float) -> StereoCalibration:
    values = {
        "width": 640, "height": 480, "focal_px": 500.0, "focal_y_px": 510.0, "cx_left_px": 320.0,
        "cx_right_px": 320.0, "cy_px": 240.0, "baseline_m": 0.1,
    } | changes  # fmt: skip
    return StereoCalibration(**values)  # pyright: ignore


def test_depth_of_hand_worked_examples() -> None:
    # 500 px * 0.1 m / 25 px
    assert depth_from_disparity(25.0, rig()) == 2.0
    # The cameras converge: 10 px of the 35 are the disparity at infinity.
    assert depth_from_disparity(35.0, rig(cx_left_px=330.0)) == 2.0
    # 2 m * 2 m * 0.5 px / 50 px m
    assert depth_std_from_disparity(25.0, 0.5, rig()) == pytest.approx(0.04)
    assert disparity_from_depth(2.0, rig(cx_left_px=330.0)) == 35.0


@pytest.mark.parametrize("make", [lambda v: np.array(v, np.float32), torch.tensor])
def test_unknown_disparity_gives_unknown_depth(make) -> None:
    values = make([math.nan, math.inf, -math.inf, -3.0, 0.0, 25.0])
    depth_m = depth_from_disparity(values, rig())
    assert type(depth_m) is type(values)
    assert depth_m.dtype == values.dtype
    assert [math.isnan(v) for v in depth_m.tolist()] == [True] * 5 + [False]
    std_m = depth_std_from_disparity(values, make([1.0] * 6), rig())
    assert [math.isnan(v) for v in std_m.tolist()] == [True] * 5 + [False]


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, 0, 10.0, 9.99])
def test_depth_at_infinity_or_beyond_is_unknown(value: float) -> None:
    assert math.isnan(depth_from_disparity(value, rig(cx_left_px=330.0)))


def test_zero_disparity_is_unknown_even_with_diverging_cameras() -> None:
    assert math.isnan(depth_from_disparity(0.0, rig(cx_left_px=310.0)))
    assert depth_from_disparity(1e-3, rig(cx_left_px=310.0)) == pytest.approx(5.0, rel=1e-3)


def test_disparity_of_depth_is_the_inverse() -> None:
    disparity_px = np.linspace(11, 200, 50)
    calibration = rig(cx_left_px=330.0)
    depth_m = depth_from_disparity(disparity_px, calibration)
    np.testing.assert_allclose(disparity_from_depth(depth_m, calibration), disparity_px)
    assert np.isnan(disparity_from_depth(np.array([0.0, -1.0, math.inf, math.nan]), calibration)).all()


def test_integers_give_depth() -> None:
    assert depth_from_disparity(torch.tensor([25]), rig()).tolist() == [2.0]
    assert depth_from_disparity(np.array([25, 0]), rig())[0] == 2.0


@pytest.mark.parametrize(("height", "width"), [(240, 320), (100, 1280), (480, 640)])
def test_resize_keeps_depth_and_its_standard_deviation(height: int, width: int) -> None:
    calibration = rig(cx_left_px=330.0)
    small = calibration.resized(height, width)
    ratio = width / 640
    assert depth_from_disparity(35.0 * ratio, small) == pytest.approx(2.0)
    assert depth_std_from_disparity(35.0 * ratio, 0.5 * ratio, small) == pytest.approx(0.04)
    assert (small.focal_y_px, small.cy_px) == pytest.approx((510.0 * height / 480, 240.5 * height / 480 - 0.5))
    assert (small.width, small.height, small.baseline_m) == (width, height, 0.1)
    # The axis stays where it is in the image: pixel i covers i - 1/2 to i + 1/2.
    assert (small.cx_left_px + 0.5) / width == pytest.approx(330.5 / 640)


def test_farthest_depth_that_can_be_measured() -> None:
    assert rig().farthest_m == math.inf
    assert rig(cx_left_px=310.0).farthest_m == pytest.approx(500 * 0.1 / 10)


def test_standard_deviation_is_the_slope_of_depth() -> None:
    step_px = 1e-4
    slope = abs(depth_from_disparity(25.0 + step_px, rig()) - depth_from_disparity(25.0 - step_px, rig())) / 2
    assert depth_std_from_disparity(25.0, step_px, rig()) == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [{"focal_px": 0.0}, {"baseline_m": -0.1}, {"baseline_m": math.nan}, {"width": 0}, {"cx_left_px": math.inf}],
)
def test_impossible_calibrations_are_rejected(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        rig(**wrong)


def test_stereo_does_not_import_torch() -> None:
    modules = "foundation_stereo_depth.stereo.geometry, foundation_stereo_depth.stereo.sgbm"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

from pathlib import Path

import numpy as np
import pytest
from rendered_rig import RenderedRig, converging_rig, noise_texture, plane_at

from foundation_stereo_depth.calibration.files import read_calibration
from foundation_stereo_depth.calibration.rig import RigCalibration
from foundation_stereo_depth.data.codecs import read_rgb
from foundation_stereo_depth.data.rectify import Rectifier, Resizer, create_rectifier, rectified_rig
from foundation_stereo_depth.data.row_check import check_first_pair, measure_row_difference
from foundation_stereo_depth.errors import CalibrationError

H, W = 240, 320
RIG = converging_rig()


@pytest.fixture(scope="module")
def raw() -> tuple[np.ndarray, np.ndarray]:
    wall = plane_at(noise_texture(600, 800), 2.4 / 800, (0, 0, 1.2), (0.1, 0.2, 0.0))
    return RenderedRig(RIG).pair(wall)


@pytest.fixture(scope="module")
def rectified(raw: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return Rectifier(RIG, height=H, width=W)(*raw)


def problem_of(pair: tuple[np.ndarray, np.ndarray], rig: RigCalibration | None, *, rectify: bool) -> str:
    return check_first_pair(*pair, create_rectifier(rig, height=60, width=80, rectify=rectify)) or ""


def test_rows_of_a_rectified_pair_agree_and_raw_ones_do_not(raw: tuple, rectified: tuple) -> None:
    before, after = measure_row_difference(*raw), measure_row_difference(*rectified)
    assert before is not None
    assert after is not None
    assert before.median_px > 2
    assert after.median_px < 0.3
    assert measure_row_difference(np.zeros((H, W, 3), np.uint8), np.zeros((H, W, 3), np.uint8)) is None


def test_right_choices_are_silent_and_wrong_ones_name_the_flag(raw: tuple, rectified: tuple) -> None:
    assert problem_of(raw, RIG, rectify=True) == ""
    assert problem_of(rectified, RIG, rectify=False) == ""
    assert "the images seem to be rectified already: use --no-rectify" in problem_of(rectified, RIG, rectify=True)
    assert "the images seem to be raw: leave --no-rectify out" in problem_of(raw, RIG, rectify=False)
    assert "give the rig's --calibration" in problem_of(raw, None, rectify=True)
    assert problem_of(rectified, None, rectify=True) == ""


def test_calibration_of_another_rig_is_questioned(raw: tuple) -> None:
    other = converging_rig()
    turned = np.array([[1, 0, 0], [0, np.cos(0.02), -np.sin(0.02)], [0, np.sin(0.02), np.cos(0.02)]])
    other = type(other)(**{**vars(other), "rotation": turned @ other.rotation})
    assert "is this the calibration of these images" in problem_of(raw, other, rectify=True)
    with pytest.raises(CalibrationError, match="do not fit a calibration made at 320x240"):
        problem_of(tuple(view[: H // 2] for view in raw), RIG, rectify=True)


def test_calibration_that_moves_no_pixel_only_resizes() -> None:
    already = rectified_rig(RIG.stereo_calibration)
    assert isinstance(create_rectifier(already, height=H, width=W), Resizer)
    ideal = RigCalibration(
        width=W,
        height=H,
        left_matrix=already.left_matrix,
        left_distortion=np.zeros(5),
        right_matrix=already.left_matrix,
        right_distortion=np.zeros(5),
        rotation=np.eye(3),
        translation_m=np.array([-0.06, 0, 0]),
        rectification=already.rectified,
    )
    assert isinstance(create_rectifier(ideal, height=60, width=80), Resizer)
    assert isinstance(create_rectifier(RIG, height=H, width=W), Rectifier)
    assert isinstance(create_rectifier(RIG, height=H, width=W, rectify=False), Resizer)


def test_raw_boards_of_a_real_rig_are_recognised(shared_data: Path) -> None:
    rig = read_calibration(shared_data / "calibration/usb_rig_640x480.npz")
    pair = tuple(read_rgb(shared_data / f"chessboard/{side}01.jpg") for side in ("left", "right"))
    found = measure_row_difference(*pair)
    assert found is not None
    assert 8 < found.median_px < 13  # 10.1 px by corners
    assert "differ" in problem_of(pair, rig, rectify=True)  # another rig's calibration

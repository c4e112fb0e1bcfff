import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
from rendered_rig import RenderedRig, chessboard, noise_texture, plane_at

from foundation_stereo_depth.calibration.files import read_calibration
from foundation_stereo_depth.calibration.rig import Rectification, RigCalibration
from foundation_stereo_depth.data.rectify import Rectifier, rectification_maps
from foundation_stereo_depth.errors import CalibrationError
from foundation_stereo_depth.stereo import sgbm
from foundation_stereo_depth.stereo.geometry import depth_from_disparity

GOLDEN = Path(__file__).parents[1] / "golden/calibration"
SQUARE_PX = 40


@pytest.fixture(scope="module")
def synthetic_rig() -> RigCalibration:
    return read_calibration(GOLDEN / "opencv.yml")


@pytest.fixture
def real(shared_data: Path) -> RigCalibration:
    return read_calibration(shared_data / "calibration/usb_rig_640x480.npz")


def corners_px(image: np.ndarray) -> np.ndarray:
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    found, corners = cv2.findChessboardCornersSB(grey, (9, 6), flags=cv2.CALIB_CB_ACCURACY)
    assert found
    corners = corners.reshape(-1, 2)
    return corners if corners[0, 0] < corners[-1, 0] else corners[::-1]  # the detector may begin at either end


@pytest.mark.parametrize(("height", "width"), [(480, 640), (240, 320), (288, 512)])
def test_depth_of_rectified_boards_is_accurate(real: RigCalibration, height: int, width: int) -> None:
    camera, rectifier = RenderedRig(real), Rectifier(real, height=height, width=width)
    for depth_m, turn_rad in [
        (0.5, (0.1, 0.0, 0.05)),
        (1.0, (0.1, 0.3, 0.05)),
        (2.0, (0.0, 0.2, 0.0)),
        (3.0, (0, 0, 0)),
    ]:
        square_m = 0.035 * max(depth_m, 0.7)
        board = plane_at(chessboard(9, 6, SQUARE_PX), square_m / SQUARE_PX, (0.02, 0.01, depth_m), turn_rad)
        left, right = (corners_px(view) for view in rectifier(*camera.pair(board)))
        assert np.abs(left[:, 1] - right[:, 1]).mean() < 0.05  # the views are row-aligned
        found_m = depth_from_disparity(left[:, 0] - right[:, 0], rectifier.stereo_calibration)
        truth_m = np.array([
            (real.rectified.left_rotation @ board.point((column + 2) * SQUARE_PX, (row + 2) * SQUARE_PX))[2]
            for row in range(6)
            for column in range(9)
        ])  # fmt: skip
        error = np.median(found_m / truth_m - 1)
        assert abs(error) < 0.005, (depth_m, error)


def test_sgbm_on_rectified_plane_gives_its_depth(real: RigCalibration) -> None:
    camera, rectifier = RenderedRig(real), Rectifier(real, height=480, width=640)
    for depth_m in (0.5, 1.0, 3.0):
        wall = plane_at(noise_texture(900, 1200), 2 * depth_m / 1200, (0, 0, depth_m), (0.0, 0.2, 0.0))
        match = sgbm.match(*rectifier(*camera.pair(wall)))
        found_m = depth_from_disparity(match.disparity_px, rectifier.stereo_calibration)
        error = np.abs(found_m / plane_depth_m(wall, real, 480, 640) - 1)
        # A quarter of a pixel: 34.9 px m of focal length and baseline make 0.7 % of each metre of it.
        assert np.median(error[match.valid & np.isfinite(found_m)]) < 0.007 * depth_m


def plane_depth_m(plane, rig: RigCalibration, height: int, width: int) -> np.ndarray:
    """Return the true depth in m of each pixel of the rectified left view."""
    stereo = rig.stereo_calibration.resized(height, width)
    rows, columns = np.mgrid[:height, :width]
    across, down = (columns - stereo.cx_left_px) / stereo.focal_px, (rows - stereo.cy_px) / stereo.focal_y_px
    rays = np.stack([across, down, np.ones((height, width))], axis=-1) @ rig.rectified.left_rotation
    normal = np.cross(plane.right_m, plane.down_m)
    return (plane.origin_m @ normal) / (rays @ normal)


def zone_plate(height: int, width: int) -> np.ndarray:
    """Return rings up to the Nyquist frequency, which show aliasing."""
    rows, columns = np.mgrid[:height, :width]
    waves = np.cos(np.pi * ((columns - width / 2) ** 2 + (rows - height / 2) ** 2) / width)
    return np.repeat((127.5 + 127.5 * waves)[..., None], 3, axis=2).astype(np.uint8)


@pytest.mark.parametrize(
    ("raw", "size", "at_least_db"),
    [((480, 640), (240, 320), 30), ((960, 1280), (240, 320), 27), ((480, 640), (192, 512), 24)],
)
def test_rectification_to_a_smaller_size_does_not_alias(
    synthetic_rig: RigCalibration, raw: tuple, size: tuple, at_least_db: float
) -> None:
    image = zone_plate(*raw)
    smaller, _ = Rectifier(synthetic_rig, height=size[0], width=size[1])(image, image)
    # Reference: the mean of 8x8 samples per pixel, each by Lanczos interpolation.
    scale = raw[1] / synthetic_rig.width
    x, y = ((each + 0.5) * scale - 0.5 for each in rectification_maps(synthetic_rig, size[0] * 8, size[1] * 8)[0])
    fine = cv2.remap(image, x, y, cv2.INTER_LANCZOS4)
    truth = cv2.resize(fine, size[::-1], interpolation=cv2.INTER_AREA)
    x, y = ((each + 0.5) * scale - 0.5 for each in rectification_maps(synthetic_rig, *size)[0])
    aliased = cv2.remap(image, x, y, cv2.INTER_LINEAR)
    assert cv2.PSNR(smaller, truth) > at_least_db
    assert cv2.PSNR(smaller, truth) > cv2.PSNR(aliased, truth) + 4


def test_frames_of_another_size_need_the_calibrated_aspect(synthetic_rig: RigCalibration) -> None:
    random = np.random.default_rng(0)
    small = cv2.resize(random.integers(0, 256, (30, 40, 3), dtype=np.uint8), (640, 480), interpolation=cv2.INTER_CUBIC)
    large = cv2.resize(small, (1280, 960), interpolation=cv2.INTER_LINEAR)
    rectifier = Rectifier(synthetic_rig, height=240, width=320)
    from_small, from_large = rectifier(small, small), rectifier(large, large)
    for one, other in zip(from_small, from_large, strict=True):
        assert cv2.PSNR(one, other) > 40
    with pytest.raises(
        CalibrationError, match="images of 1280x720 do not fit a calibration made at 640x480: the aspect"
    ):
        rectifier(large[:720], large[:720])
    with pytest.raises(CalibrationError, match="the left frame is 640x480, the right one 1280x960"):
        rectifier(small, large)


def test_fisheye_rig_gives_accurate_depth() -> None:
    rig = read_calibration(GOLDEN / "kalibr_equidistant.yaml")
    camera, rectifier = RenderedRig(rig), Rectifier(rig, height=480, width=640)
    board = plane_at(chessboard(9, 6, SQUARE_PX), 0.05 / SQUARE_PX, (0.05, 0.02, 1.0), (0.1, 0.2, 0.0))
    left, right = (corners_px(view) for view in rectifier(*camera.pair(board)))
    found_m = depth_from_disparity(left[:, 0] - right[:, 0], rectifier.stereo_calibration)
    truth_m = (rig.rectified.left_rotation @ board.point(2 * SQUARE_PX, 2 * SQUARE_PX))[2]
    assert found_m[0] == pytest.approx(truth_m, rel=0.005)


def test_far_points_have_no_negative_disparity(real: RigCalibration) -> None:
    """By stereoRectify without CALIB_ZERO_DISPARITY, far points had -8 px, outside of the range of any matcher."""
    cameras = (real.left_matrix, real.left_distortion, real.right_matrix, real.right_distortion)
    pose = (real.rotation, real.translation_m[:, None])
    r1, r2, p1, p2, *_ = cv2.stereoRectify(*cameras, (640, 480), *pose, flags=0, alpha=0)
    given = Rectification(left_rotation=r1, right_rotation=r2, left_projection=p1, right_projection=p2)
    rig = dataclasses.replace(real, rectification=given)
    assert rig.stereo_calibration.offset_px < -2
    rectifier = Rectifier(rig, height=480, width=640)
    assert rectifier.stereo_calibration.offset_px == pytest.approx(0)
    board = plane_at(chessboard(9, 6, SQUARE_PX), 0.1 / SQUARE_PX, (0.02, 0.01, 3.0), (0.0, 0.0, 0.0))
    left, right = (corners_px(view) for view in rectifier(*RenderedRig(rig).pair(board)))
    found_m = depth_from_disparity(left[:, 0] - right[:, 0], rectifier.stereo_calibration)
    truth_m = (r1 @ board.point(5 * SQUARE_PX, 4 * SQUARE_PX))[2]
    assert np.median(found_m) == pytest.approx(truth_m, rel=0.01)


def test_rectified_pair_is_not_changed() -> None:
    rig = read_calibration(GOLDEN / "stereodemo.json")
    image = noise_texture(480, 640)
    left, right = Rectifier(rig, height=480, width=640)(image, image)
    np.testing.assert_array_equal(left, image)
    np.testing.assert_array_equal(right, image)

from pathlib import Path

import cv2
import numpy as np
import pytest
from rendered_rig import RenderedRig, plane_at

from foundation_stereo_depth.calibration.files import read_calibration, save_calibration
from foundation_stereo_depth.data.codecs import write_rgb
from foundation_stereo_depth.errors import CalibrationError
from live_camera.board import Board, BoardView
from live_camera.check_board import check_board, format_checks
from live_camera.cli import calibrate_command
from live_camera.options import BoardOptions
from live_camera.precision import differentiate_reprojection, pack_shared, reproject
from live_camera.report import describe_precision, format_report
from live_camera.solve import BoardPair, CalibrationResult, calibrate, pair_views

GOLDEN = Path(__file__).parents[1] / "golden/calibration"
H, W = 480, 640
BOARD = Board(BoardOptions(square_mm=30))
NOISE_PX = 0.1
RIG = read_calibration(GOLDEN / "opencv.yml")
SHARED = pack_shared(
    ((RIG.left_matrix, RIG.left_distortion), (RIG.right_matrix, RIG.right_distortion)), RIG.rotation, RIG.translation_m
)
FOCAL_PX = (SHARED[0] + SHARED[9]) / 2


def pairs_of(count: int, seed: int, *, tilt_rad: float = 0.5, bend_m: float = 0.0) -> list[BoardPair]:
    """Return noisy corners of the board in random poses that both cameras see."""
    random = np.random.default_rng(seed)
    pairs: list[BoardPair] = []
    while len(pairs) < count:
        turn = cv2.Rodrigues(np.append(random.uniform(-tilt_rad, tilt_rad, 2), 0.1))[0]
        centre_m = np.append(random.uniform(-0.15, 0.2, 2), random.uniform(0.5, 0.9))
        middle_m = BOARD.points_m.mean(axis=0)
        points_m = BOARD.points_m + bend_m * np.array([0, 0, 1]) * np.linspace(-1, 1, 54)[:, None] ** 2
        pose = np.concatenate([cv2.Rodrigues(turn)[0].ravel(), centre_m - turn @ middle_m])
        both = reproject(SHARED, pose, points_m)
        if (both < 5).any() or (both > [W - 5, H - 5]).any():
            continue
        views = (both + random.normal(0, NOISE_PX, both.shape)).astype(np.float32)
        left, right = (BoardView(ids=np.arange(54), corners_px=view) for view in views)
        pairs.append(BoardPair(name=str(len(pairs)), left=left, right=right))
    return pairs


def errors_in_deviations(result: CalibrationResult) -> tuple[float, float]:
    """Return the errors of focal length and baseline, in their predicted standard deviations."""
    rig, precision = result.calibration, result.precision
    focal_px = (rig.left_matrix[0, 0] + rig.right_matrix[0, 0]) / 2
    baseline_m = np.linalg.norm(rig.translation_m) - np.linalg.norm(RIG.translation_m)
    return float((focal_px - FOCAL_PX) / precision.focal_px), float(baseline_m / precision.baseline_m)


def test_derivatives_equal_differences() -> None:
    pose = np.array([0.3, -0.2, 0.1, -0.1, -0.05, 0.6])
    by_shared, by_pose = differentiate_reprojection(SHARED, pose, BOARD.points_m)
    both = np.concatenate([SHARED, pose])
    for column, derivative in enumerate(np.hstack([by_shared, by_pose]).T):
        step = np.zeros(30)
        step[column] = 1e-6
        after, before = (
            reproject(values[:24], values[24:], BOARD.points_m).ravel() for values in (both + step, both - step)
        )
        np.testing.assert_allclose(derivative, (after - before) / 2e-6, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("count", [5, 12])
def test_predicted_deviations_are_those_of_repeated_calibrations(count: int) -> None:
    errors = np.array([errors_in_deviations(calibrate(pairs_of(count, seed), BOARD, H, W)) for seed in range(6)])
    rms = np.sqrt((errors**2).mean(axis=0))
    assert (rms > 0.35).all(), rms
    assert (rms < 1.6).all(), rms


def test_few_pairs_give_a_calibration_with_warnings_and_large_deviations() -> None:
    few, many = calibrate(pairs_of(4, 0), BOARD, H, W), calibrate(pairs_of(15, 0), BOARD, H, W)
    assert "only 4 of 4 pairs show the board in a different pose, better 15 to 20" in format_report(few, "a board")
    assert not many.warnings
    assert few.precision.depth_m[1] > 2 * many.precision.depth_m[1]
    assert many.precision.depth_m[1] > 2 * many.precision.depth_m[0]
    assert "focal length ± " in describe_precision(few)
    repeated = [BoardPair(name=f"again{pair.name}", left=pair.left, right=pair.right) for pair in pairs_of(4, 0)]
    twice = calibrate(pairs_of(4, 0) + repeated, BOARD, H, W)
    assert twice.precision.focal_px > 0.8 * few.precision.focal_px  # the same views again tell nothing new


def test_errors_that_corners_of_a_view_share_widen_the_deviations() -> None:
    flat, bent = (calibrate(pairs_of(10, 1, bend_m=bend_m), BOARD, H, W) for bend_m in (0.0, 0.002))
    assert bent.precision.depth_m[0] > 1.5 * flat.precision.depth_m[0]


def test_proposed_views_improve_depth_more_than_repeated_ones() -> None:
    result = calibrate(pairs_of(5, 3, tilt_rad=0.2), BOARD, H, W)
    assert len(result.proposed) == 2
    first, second = result.proposed
    assert 1 > first.depth_ratio > second.depth_ratio
    assert first.depth_ratio < 0.85  # a sixth view of the same kind would give about sqrt(5 / 6)
    report = format_report(result, "a board")
    assert f"  the board {first.description}: " in report


def test_two_poses_determine_nothing() -> None:
    with pytest.raises(CalibrationError, match="only 2 of 4 pairs show the board in a different pose; at least 3 are"):
        calibrate(pairs_of(2, 0) * 2, BOARD, H, W)


def circle_grid(columns: int, rows: int, step_px: int) -> np.ndarray:
    """Return dark circles on white, as OpenCV's asymmetric pattern; the first centre is at (2, 2) steps."""
    image = np.full((step_px * (rows + 3), step_px * (2 * columns + 3), 3), 235, np.uint8)
    for row in range(rows):
        for column in range(columns):
            centre = ((2 * column + row % 2 + 2) * step_px, (row + 2) * step_px)
            cv2.circle(image, centre, int(0.6 * step_px), (20, 20, 20), -1, cv2.LINE_AA)
    return image


def test_asymmetric_circle_grid_is_detected_where_it_is() -> None:
    board, step_px, step_m = Board(BoardOptions(pattern="circles", corners="4x11", square_mm=20)), 40, 0.02
    plane = plane_at(circle_grid(4, 11, step_px), step_m / step_px, (0.05, 0.0, 0.6), (0.3, 0.2, 0.0))
    left, right = RenderedRig(RIG).pair(plane)
    pair = pair_views(board, "0", board.detect(left), board.detect(right))
    assert pair is not None
    truth_m = np.array([
        plane.point((2 * column + row % 2 + 2) * step_px + 0.5, (row + 2) * step_px + 0.5)
        for row in range(11)
        for column in range(4)
    ])  # fmt: skip
    still = np.zeros(3)
    truth_px, _ = cv2.projectPoints(truth_m, still, still, RIG.left_matrix, RIG.left_distortion)
    found_px = pair.left.corners_px if np.ptp(pair.left.corners_px - truth_px[:, 0]) < 5 else pair.left.corners_px[::-1]
    assert np.abs(found_px - truth_px[:, 0]).max() < 0.5
    check = check_board(RIG, pair, board)
    assert abs(check.size_percent) < 0.3
    assert check.flatness_mm < 1.5
    assert board.detect(np.full((H, W, 3), 90, np.uint8)) is None


def test_check_states_size_and_flatness(capsys: pytest.CaptureFixture[str]) -> None:
    pair = pairs_of(1, 5)[0]
    good = check_board(RIG, pair, BOARD)
    assert abs(good.size_percent) < 0.3
    assert good.flatness_mm < 2
    larger = check_board(RIG, pair, Board(BoardOptions(square_mm=30 / 1.02)))
    assert larger.size_percent == pytest.approx(2, abs=0.3)
    assert larger.size_mm == pytest.approx(0.02 * 1000 * 0.03 / 1.02 * np.hypot(8, 5), rel=0.2)
    assert "median of 2: the board's size is" in format_checks([good, larger])
    save_calibration(Path("rig.npz"), RIG)
    grey = np.full((H // 2, W // 2, 3), 90, np.uint8)
    for name in ("left.png", "right.png"):
        write_rgb(Path(name), grey)
    flags = ["--images", "left.png", "right.png", "--square-mm", "30", "--check", "rig.npz"]
    assert calibrate_command(flags) == 2
    assert "the board was not found in both views of any of 1 pairs" in capsys.readouterr().err

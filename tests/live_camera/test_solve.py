import dataclasses
import subprocess
import sys
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from rendered_rig import RenderedRig, chessboard, plane_at

from foundation_stereo_depth.calibration.files import read_calibration
from foundation_stereo_depth.calibration.rig import RigCalibration
from foundation_stereo_depth.data.codecs import write_rgb
from foundation_stereo_depth.errors import CalibrationError, UserError
from foundation_stereo_depth.stereo.geometry import depth_from_disparity
from live_camera.board import MIN_COMMON_CORNERS, Board, BoardView
from live_camera.cli import calibrate_command
from live_camera.options import BoardOptions
from live_camera.report import draw_coverage, draw_rectified_pair, format_report, list_warnings
from live_camera.solve import BoardPair, calibrate, covered_cells, is_new_view, pair_views

GOLDEN = Path(__file__).parents[1] / "golden/calibration"
SQUARE_PX = 40
SQUARE_M = 0.03
CHARUCO_SQUARE_PX = 60  # 45 mm at the same 0.75 mm a pixel
HEIGHT, WIDTH = 480, 640

CHESSBOARD = BoardOptions(square_mm=30)
CHARUCO = BoardOptions(pattern="charuco", corners="6x4", square_mm=45, marker_mm=34, dictionary="5X5_50")

CHARUCO_FLAGS = ["--images", "a", "b", "--pattern", "charuco", "--square-mm", "30"]

# Centre of the board in metres, and its rotation vector in radians.
POSES = [
    ((0.06, 0.0, 0.55), (0.0, 0.0, 0.0)),
    ((-0.05, -0.08, 0.6), (0.4, 0.0, 0.1)),
    ((0.17, 0.08, 0.6), (-0.4, 0.2, 0.0)),
    ((0.16, -0.09, 0.7), (0.0, -0.5, 0.0)),
    ((-0.07, 0.1, 0.7), (0.0, 0.5, -0.1)),
    ((0.05, 0.0, 0.45), (0.3, 0.3, 0.2)),
    ((0.06, 0.02, 0.9), (-0.3, -0.4, 0.0)),
    ((0.2, 0.0, 0.65), (0.1, 0.5, 0.0)),
]


@cache
def true_rig() -> RigCalibration:
    return read_calibration(GOLDEN / "opencv.yml")


@cache
def rendered(pattern: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return pairs of a board, with the noise of a webcam."""
    if pattern == "chessboard":
        image = chessboard(9, 6, SQUARE_PX)
    else:
        dictionary = cv2.aruco.getPredefinedDictionary(cv2.aruco.DICT_5X5_50)
        board = cv2.aruco.CharucoBoard((7, 5), 0.045, 0.034, dictionary)
        grey = board.generateImage((7 * CHARUCO_SQUARE_PX, 5 * CHARUCO_SQUARE_PX))
        image = np.repeat(np.pad(grey, SQUARE_PX, constant_values=235)[..., None], 3, axis=2)
    camera, random = RenderedRig(true_rig()), np.random.default_rng(0)
    pairs = []
    for centre_m, rotation_rad in POSES:
        views = camera.pair(plane_at(image, SQUARE_M / SQUARE_PX, centre_m, rotation_rad))
        noisy = [np.clip(view + random.normal(0, 2, (HEIGHT, WIDTH, 1)), 0, 255).astype(np.uint8) for view in views]
        pairs.append((noisy[0], noisy[1]))
    return pairs


@cache
def found(pattern: str) -> tuple[Board, list[BoardPair]]:
    board = Board(CHESSBOARD if pattern == "chessboard" else CHARUCO)
    views = [pair_views(board, str(n), *map(board.detect, pair)) for n, pair in enumerate(rendered(pattern))]
    assert None not in views
    return board, views


@pytest.mark.parametrize("pattern", ["chessboard", "charuco"])
def test_calibrated_rig_equals_the_rendered_one(pattern: str) -> None:
    board, pairs = found(pattern)
    truth = true_rig()
    result = calibrate(pairs, board, HEIGHT, WIDTH)
    rig = result.calibration
    assert not result.rejected
    assert result.stereo_rms_px < 0.15
    assert result.row_errors_px.mean() < 0.1
    assert np.linalg.norm(rig.translation_m) == pytest.approx(np.linalg.norm(truth.translation_m), rel=0.005)
    assert rig.left_matrix[0, 0] == pytest.approx(truth.left_matrix[0, 0], rel=0.01)
    # The depth of a point 1.5 m away, three times as far as the board was.
    point_m = np.array([[[0.1, 0.05, 1.5]]])
    pose = cv2.Rodrigues(truth.rotation)[0], truth.translation_m
    origin = np.zeros(3)
    left, _ = cv2.projectPoints(point_m, origin, origin, truth.left_matrix, truth.left_distortion)
    right, _ = cv2.projectPoints(point_m, *pose, truth.right_matrix, truth.right_distortion)
    given = rig.rectified
    left = cv2.undistortPoints(
        left, rig.left_matrix, rig.left_distortion, R=given.left_rotation, P=given.left_projection
    )
    right = cv2.undistortPoints(
        right, rig.right_matrix, rig.right_distortion, R=given.right_rotation, P=given.right_projection
    )
    depth_m = depth_from_disparity(float(left[0, 0, 0] - right[0, 0, 0]), rig.stereo_calibration)
    assert depth_m == pytest.approx((given.left_rotation @ point_m.ravel())[2], rel=0.01)


def test_partly_visible_charuco_board_is_detected() -> None:
    board = Board(CHARUCO)
    left, right = rendered("charuco")[0]
    hidden = right.copy()
    hidden[:, : WIDTH // 2 - 60] = 90
    pair = pair_views(board, "half", board.detect(left), board.detect(hidden))
    assert pair is not None
    ids, _, in_right = pair.common
    assert 8 <= len(ids) < 24
    full = board.detect(right)
    assert full is not None
    np.testing.assert_allclose(in_right, full.corners_px[np.isin(full.ids, ids)], atol=0.3)
    hidden[:, : WIDTH - 100] = 90
    assert pair_views(board, "none", board.detect(left), board.detect(hidden)) is None


def test_corners_on_one_line_do_not_determine_the_pose() -> None:
    wide = Board(dataclasses.replace(CHARUCO, corners="12x4", dictionary="5X5_100"))
    assert not wide.determines_pose(np.arange(12))
    assert not wide.determines_pose(np.arange(4) * 12)
    assert not wide.determines_pose(np.arange(13))  # a line and one more are ambiguous
    assert not wide.determines_pose(np.array([*range(12), 18]))
    assert not wide.determines_pose(np.array([0, 13, 26, 39, 1, 14, 27])[:MIN_COMMON_CORNERS])
    assert wide.determines_pose(np.arange(14))
    row = BoardView(ids=np.arange(12), corners_px=np.float32([[10 * i, 50] for i in range(12)]))
    both = BoardView(ids=np.arange(24), corners_px=np.float32([[10 * (i % 12), 50 + i // 12] for i in range(24)]))
    assert pair_views(wide, "row", both, row) is None


def test_undefined_view_parameters_are_no_new_view() -> None:
    assert not is_new_view(np.full(6, np.nan), [])
    assert is_new_view(np.zeros(6), [])


def moved(pair: BoardPair, name: str, shift_px: float) -> BoardPair:
    right = BoardView(ids=pair.right.ids, corners_px=pair.right.corners_px + np.float32([0, shift_px]))
    return dataclasses.replace(pair, name=name, right=right)


def test_inconsistent_pair_is_rejected() -> None:
    board, pairs = found("chessboard")
    result = calibrate([*pairs[:3], moved(pairs[3], "3", 6.0), *pairs[4:]], board, HEIGHT, WIDTH)
    assert list(result.rejected) == ["3"]
    assert "px, of the others 0." in result.rejected["3"]
    assert [each.name for each in result.used] == ["0", "1", "2", "4", "5", "6", "7"]
    assert result.stereo_rms_px < 0.15
    text = format_report(result, "chessboard")
    assert "7 of 8 pairs used" in text
    assert "3                rejected: reprojection error" in text


@pytest.mark.parametrize(
    ("choose", "message"),
    [
        (lambda pairs: pairs[:2], "the board was found in both views of 2 pairs; at least 3 are needed"),
        (lambda pairs: [pairs[0]] * 4 + [pairs[1]] * 4, "only 2 of 8 pairs show the board in a different pose"),
        (
            lambda pairs: [dataclasses.replace(each, left=each.right, right=each.left) for each in pairs],
            "left and right are exchanged; swap the two cameras",
        ),
        (
            lambda pairs: [moved(each, each.name, 40.0 * (-1) ** n) for n, each in enumerate(pairs)],
            r"the pairs are inconsistent: reprojection error \d+\.\d px in all pairs",
        ),
    ],
)
def test_pairs_that_cannot_be_calibrated_are_an_error(choose, message: str) -> None:
    board, pairs = found("chessboard")
    with pytest.raises(CalibrationError, match=message):
        calibrate(choose(pairs), board, HEIGHT, WIDTH)


def test_board_without_tilt_is_an_error_that_names_what_is_unknown() -> None:
    board = Board(CHESSBOARD)
    rig, pairs, random = true_rig(), [], np.random.default_rng(1)
    for number, (x, y, z) in enumerate(
        [(0, 0, 0.5), (0.1, 0, 0.5), (0.1, 0.1, 0.6), (0, 0.1, 0.7), (0, 0, 0.8), (0, -0.1, 1.0)]
    ):
        points_m = board.points_m + np.array([x - 0.12, y - 0.07, z])
        rotation = cv2.Rodrigues(rig.rotation)[0]
        left, _ = cv2.projectPoints(points_m, np.zeros(3), np.zeros(3), rig.left_matrix, rig.left_distortion)
        right, _ = cv2.projectPoints(points_m, rotation, rig.translation_m, rig.right_matrix, rig.right_distortion)
        noisy = [view[:, 0] + random.normal(0, 0.1, (54, 2)) for view in (left, right)]
        views = [BoardView(ids=np.arange(54), corners_px=view.astype(np.float32)) for view in noisy]
        pairs.append(BoardPair(name=str(number), left=views[0], right=views[1]))
    with pytest.raises(CalibrationError, match=r"the pairs determine no calibration: .* tilted to the left and right"):
        calibrate(pairs, board, HEIGHT, WIDTH)


def test_real_rig_fits_better_than_plain_opencv(shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = [str(shared_data / f"chessboard/{side}*.jpg") for side in ("left", "right")]
    assert calibrate_command(["--images", *images, "--square-mm", "1000", "-o", "far.npz"]) == 0
    assert "a baseline of 3.327 m, where 0.01 to 2.0 are plausible" in capsys.readouterr().err
    assert calibrate_command(["--images", *images, "--square-mm", "25", "-o", "rig/real.npz"]) == 0
    report = capsys.readouterr().out
    assert "13 of 13 pairs used" in report
    assert Path("rig/real_report.txt").read_text() in report
    rig = read_calibration(Path("rig/real.npz"))
    # Plain OpenCV, with windows of 11 px: stereo RMS 0.448 px, rows 0.146 px in the mean and 3.77 px at most.
    with np.load("rig/real.npz") as figures:
        assert figures["stereo_rms"] < 0.22
        assert figures["row_error_mean"] < 0.12
        assert figures["row_error_max"] < 0.8
        assert (figures["rows"], figures["cols"], figures["square_size"]) == (6, 9, 0.025)
    assert rig.stereo_calibration.baseline_m / 0.025 == pytest.approx(3.33, abs=0.02)
    for image in ("rectified", "coverage"):
        assert cv2.imread(f"rig/real_{image}.png").shape == (480, 1280, 3)
    assert calibrate_command(["--images", *images, "--square-mm", "25", "-o", "rig/real.npz"]) == 2
    assert "rig/real.npz: exists already; give --overwrite" in capsys.readouterr().err


def write_pairs(folder: str, pairs: list[tuple[np.ndarray, np.ndarray]]) -> list[str]:
    Path(folder).mkdir()
    for number, pair in enumerate(pairs):
        for side, image in zip(("left", "right"), pair, strict=True):
            write_rgb(Path(f"{folder}/{side}{number}.png"), image)
    return ["--images", f"{folder}/left*.png", f"{folder}/right*.png", "--square-mm", "30"]


def test_pairs_without_a_board_are_rejected_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    blank = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    pairs = rendered("chessboard")
    flags = write_pairs("some", [*pairs[:7], (pairs[7][0], blank), (blank, blank)])
    assert calibrate_command(flags) == 0
    report = capsys.readouterr().out
    assert "7 of 9 pairs used" in report
    assert "7                rejected: board not found in the right view" in report
    assert "8                rejected: board not found in the left and the right view" in report
    assert Path("calibration/stereo_calib.npz").is_file()
    none = write_pairs("none", [(blank, blank)] * 2)
    assert calibrate_command([*none, "-o", "none.npz"]) == 2
    error = capsys.readouterr().err
    assert "no chessboard of 9x6 inner corners was found in both views of any of 2 pairs of none/left*.png" in error
    assert not Path("none.npz").exists()


def test_live_calibration_collects_pairs_and_calibrates(capsys: pytest.CaptureFixture[str]) -> None:
    # Recordings in which the board is still for nine frames, 0.45 s, in each pose.
    for position, side in enumerate(("left", "right")):
        writer = cv2.VideoWriter(f"{side}.avi", cv2.VideoWriter.fourcc(*"MJPG"), 20, (WIDTH, HEIGHT))
        for pair in rendered("chessboard")[:6]:
            for _ in range(9):
                writer.write(pair[position][..., ::-1])
        writer.release()
    flags = ["--left", "left.avi", "--right", "right.avi", "--fps", "20", "--headless", "--square-mm", "30"]
    assert calibrate_command([*flags, "--views", "6", "-o", "rig.npz"]) == 0
    report = capsys.readouterr().out
    assert len(list(Path("rig").glob("left_*.png"))) == 6
    assert "6 of 6 pairs used" in report
    assert read_calibration(Path("rig.npz")).stereo_calibration.baseline_m == pytest.approx(0.12, rel=0.01)
    assert calibrate_command([*flags, "-o", "rig.npz"]) == 2
    assert "rig.npz: exists already" in capsys.readouterr().err
    Path("rig.npz").unlink()
    assert calibrate_command([*flags, "-o", "rig.npz"]) == 2
    assert (
        "rig: contains pairs collected before; calibrate from them by --images 'rig/left_*.png' 'rig/right_*.png'"
        in capsys.readouterr().err
    )


def test_images_of_two_sizes_are_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    one, other = rendered("chessboard")[:2]
    small = (other[0][:240, :320], other[1][:240, :320])
    assert calibrate_command([*write_pairs("sizes", [one, small]), "-o", "a.npz"]) == 2
    assert "pair 1 is 320x240, the first is 640x480; a calibration needs images of one size" in capsys.readouterr().err
    assert calibrate_command([*write_pairs("views", [(one[0], small[1])]), "-o", "a.npz"]) == 2
    assert "left0.png: is 640x480, but its right view is 320x240" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "needs --left and --right (or --side-by-side), the cameras, or --images"),
        (["--images", "nothing*.png", "none*.png", "--square-mm", "30"], "nothing*.png: matches no file"),
        (["--images", "a", "b"], "needs --square-mm, the side of one square"),
        (["--corners", "9by6"], "--corners 9by6: has to be two whole numbers, across and down"),
        (["--corners", "2x6"], "--corners 2x6: a board needs at least 3x3 inner corners"),
        (["--output", "rig.yml"], "--output rig.yml: has to end in .npz"),
        (CHARUCO_FLAGS, "--pattern charuco: needs --marker-mm"),
        (["--images", "a", "b", "--square-mm", "30", "--swap"], "--images takes images as they are"),
        (
            [*CHARUCO_FLAGS, "--marker-mm", "20", "--corners", "20x9"],
            "--dictionary 4X4_50: has 50 markers, a board of 20x9 inner corners needs 105",
        ),
        (
            [*CHARUCO_FLAGS, "--marker-mm", "20", "--dictionary", "7"],
            "--dictionary 7: OpenCV has 4X4_100",
        ),
    ],
)  # fmt: skip
def test_invalid_calibration_flags_are_one_line(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert calibrate_command(flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("foundation-stereo-calibrate: ")
    assert message in error
    assert error.count("\n") == 1


def test_views_count_corners_from_the_same_end() -> None:
    board, pairs = found("chessboard")
    reversed_view = BoardView(ids=pairs[0].right.ids, corners_px=pairs[0].right.corners_px[::-1])
    again = pair_views(board, "reversed", pairs[0].left, reversed_view)
    assert again is not None
    np.testing.assert_array_equal(again.right.corners_px, pairs[0].right.corners_px)


@pytest.mark.parametrize("number", [3, 5, 6])
@pytest.mark.parametrize("turns", range(4))
def test_square_boards_are_counted_from_the_same_end_of_four(number: int, turns: int) -> None:
    board = Board(BoardOptions(corners=f"{number}x{number}", square_mm=30))
    rig = true_rig()
    points_m = board.points_m @ cv2.Rodrigues(np.float64([0.2, -0.3, 0.5]))[0].T + [0.0, -0.05, 0.8]
    left, _ = cv2.projectPoints(points_m, np.zeros(3), np.zeros(3), rig.left_matrix, rig.left_distortion)
    rotation = cv2.Rodrigues(rig.rotation)[0]
    right, _ = cv2.projectPoints(points_m, rotation, rig.translation_m, rig.right_matrix, rig.right_distortion)
    views = [BoardView(ids=np.arange(number**2), corners_px=view[:, 0].astype(np.float32)) for view in (left, right)]
    grid = views[1].corners_px.reshape(number, number, 2)
    turned = BoardView(ids=views[1].ids, corners_px=np.rot90(grid, turns).reshape(-1, 2))
    pair = pair_views(board, "turned", views[0], turned)
    assert pair is not None
    np.testing.assert_array_equal(pair.right.corners_px, views[1].corners_px)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("corners", [(6, 3), (5, 5), (6, 4)])
def test_charuco_boards_of_both_layouts_are_detected(legacy: bool, corners: tuple[int, int]) -> None:
    """Before 4.6 OpenCV began boards with an even number of rows with a white square; so does calib.io."""
    columns, rows = corners
    printed = cv2.aruco.CharucoBoard(
        (columns + 1, rows + 1), 0.03, 0.022, cv2.aruco.getPredefinedDictionary(cv2.aruco.DICT_5X5_50)
    )
    printed.setLegacyPattern(legacy)
    grey = np.pad(printed.generateImage((60 * (columns + 1), 60 * (rows + 1))), 30, constant_values=235)
    board = Board(
        BoardOptions(pattern="charuco", corners=f"{columns}x{rows}", square_mm=30, marker_mm=22, dictionary="5X5_50")
    )
    for image in (grey, np.full_like(grey, 90), grey):
        view = board.detect(np.repeat(image[..., None], 3, axis=2))
        assert (view is None) == (image is not grey)
    assert len(view.ids) == columns * rows
    row, column = np.divmod(view.ids, columns)
    expected = np.stack([30 + 60 * (column + 1), 30 + 60 * (row + 1)], axis=-1) - 0.5
    np.testing.assert_allclose(view.corners_px, expected, atol=1)


@pytest.mark.slow
def test_photographs_of_a_camera_with_two_lenses_are_views(capsys: pytest.CaptureFixture[str]) -> None:
    for number, pair in enumerate(rendered("chessboard")):
        write_rgb(Path(f"{number:02d}.PNG"), np.hstack(pair))
        write_rgb(Path(f"turned{number}.png"), np.hstack([pair[1][::-1, ::-1], pair[0][::-1, ::-1]]))
    flags = ["--square-mm", "30"]
    assert calibrate_command(["--images", "0*.PNG", *flags, "-o", "b.npz"]) == 0
    assert "8 of 8 pairs used" in capsys.readouterr().out
    arranged = ["--side-by-side", "turned*.png", "--swap", "--upside-down", "both"]
    assert calibrate_command([*arranged, *flags, "-o", "c.npz"]) == 0
    for name in ("b.npz", "c.npz"):
        assert read_calibration(Path(name)).stereo_calibration.baseline_m == pytest.approx(0.12, rel=0.01)
    write_rgb(Path("left0.png"), rendered("chessboard")[0][0])
    assert calibrate_command(["--images", "left*.png", *flags, "-o", "d.npz"]) == 2
    assert "left0.png: is 640x480, too narrow for two views side by side" in capsys.readouterr().err
    # As a process of its own: here types are checked, and three files are not of the option's type.
    program = Path(sys.executable).with_name("foundation-stereo-calibrate")
    expanded = subprocess.run(
        [program, "--images", "a.png", "b.png", "c.png", *flags], capture_output=True, text=True, check=False
    )
    assert expanded.returncode == 2
    assert "--images: takes two globs or folders, not 3 files; put each glob in quotes" in expanded.stderr


def test_covered_cells_and_their_image() -> None:
    view = BoardView(ids=np.arange(3), corners_px=np.float32([[0, 0], [79.9, 79.9], [639, 479]]))
    cells = covered_cells([view], HEIGHT, WIDTH)
    assert cells.sum() == 2
    assert cells[0, 0]
    assert cells[5, 7]
    image = draw_coverage([view], [], HEIGHT, WIDTH)
    assert image.shape == (HEIGHT, 2 * WIDTH, 3)
    assert image[40, 40, 1] > image[40, 40, 0]  # green where a corner was
    assert image[200, 200, 0] > image[200, 200, 1]  # red elsewhere


def test_warnings_of_high_error_and_low_coverage() -> None:
    board, pairs = found("chessboard")
    result = calibrate(pairs, board, HEIGHT, WIDTH)
    assert "warning" not in format_report(dataclasses.replace(result, coverage=(0.9, 0.9)), "a board")
    warnings = list_warnings(dataclasses.replace(result, coverage=(0.9, 0.2), stereo_rms_px=1.5))
    assert len(warnings) == 2
    assert "is the board flat and stiff" in warnings[0]
    assert "only 20% of the right image" in warnings[1]


def test_rectified_pair_has_lines_along_rows() -> None:
    image = draw_rectified_pair(true_rig(), *rendered("chessboard")[0])
    assert image.shape == (HEIGHT, 2 * WIDTH, 3)
    assert (image[20] == [60, 255, 60]).all()  # the first of 24 lines


def test_board_without_square_size_is_an_error() -> None:
    with pytest.raises(UserError, match="needs --square-mm"):
        Board(BoardOptions())

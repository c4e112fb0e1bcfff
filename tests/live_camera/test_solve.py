import dataclasses
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
from live_camera.board import FEWEST_CORNERS, Board, BoardView
from live_camera.cli import calibrate_command
from live_camera.options import BoardOptions
from live_camera.report import coverage_picture, doubts, rectified_picture, report
from live_camera.solve import BoardPair, calibrate, covered_cells, is_new_place, pair_views

GOLDEN = Path(__file__).parents[1] / "golden/calibration"
SQUARE_PX = 40
SQUARE_M = 0.03
CHARUCO_SQUARE_PX = 60  # 45 mm at the same 0.75 mm a pixel
HEIGHT, WIDTH = 480, 640

CHESSBOARD = BoardOptions(square_mm=30)
CHARUCO = BoardOptions(pattern="charuco", corners="6x4", square_mm=45, marker_mm=34, dictionary="5X5_50")

CHARUCO_FLAGS = ["--images", "a", "b", "--pattern", "charuco", "--square-mm", "30"]

# Middle of the board in metres, and its turn in radians.
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
    """Pairs of a board, with the noise of a webcam."""
    if pattern == "chessboard":
        picture = chessboard(9, 6, SQUARE_PX)
    else:
        dictionary = cv2.aruco.getPredefinedDictionary(cv2.aruco.DICT_5X5_50)
        board = cv2.aruco.CharucoBoard((7, 5), 0.045, 0.034, dictionary)
        grey = board.generateImage((7 * CHARUCO_SQUARE_PX, 5 * CHARUCO_SQUARE_PX))
        picture = np.repeat(np.pad(grey, SQUARE_PX, constant_values=235)[..., None], 3, axis=2)
    camera, random = RenderedRig(true_rig()), np.random.default_rng(0)
    pairs = []
    for centre_m, turn_rad in POSES:
        eyes = camera.pair(plane_at(picture, SQUARE_M / SQUARE_PX, centre_m, turn_rad))
        noisy = [np.clip(eye + random.normal(0, 2, (HEIGHT, WIDTH, 1)), 0, 255).astype(np.uint8) for eye in eyes]
        pairs.append((noisy[0], noisy[1]))
    return pairs


@cache
def found(pattern: str) -> tuple[Board, list[BoardPair]]:
    board = Board(CHESSBOARD if pattern == "chessboard" else CHARUCO)
    views = [pair_views(board, str(n), *map(board.find, pair)) for n, pair in enumerate(rendered(pattern))]
    assert None not in views
    return board, views


@pytest.mark.parametrize("pattern", ["chessboard", "charuco"])
def test_a_rendered_rig_is_found_again(pattern: str) -> None:
    board, pairs = found(pattern)
    truth = true_rig()
    result = calibrate(pairs, board, HEIGHT, WIDTH)
    rig = result.calibration
    assert not result.left_out
    assert result.stereo_rms_px < 0.15
    assert result.row_errors_px.mean() < 0.1
    assert np.linalg.norm(rig.translation_m) == pytest.approx(np.linalg.norm(truth.translation_m), rel=0.005)
    assert rig.left_matrix[0, 0] == pytest.approx(truth.left_matrix[0, 0], rel=0.01)
    # What users want of it: the depth of a point 1.5 m away, three times as far as the board was.
    point_m = np.array([[[0.1, 0.05, 1.5]]])
    pose = cv2.Rodrigues(truth.rotation)[0], truth.translation_m
    still = np.zeros(3)
    left, _ = cv2.projectPoints(point_m, still, still, truth.left_matrix, truth.left_distortion)
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


def test_a_charuco_board_may_be_seen_in_part() -> None:
    board = Board(CHARUCO)
    left, right = rendered("charuco")[0]
    hidden = right.copy()
    hidden[:, : WIDTH // 2 - 60] = 90
    pair = pair_views(board, "half", board.find(left), board.find(hidden))
    assert pair is not None
    ids, _, in_right = pair.common
    assert 8 <= len(ids) < 24
    whole = board.find(right)
    assert whole is not None
    np.testing.assert_allclose(in_right, whole.corners_px[np.isin(whole.ids, ids)], atol=0.3)
    hidden[:, : WIDTH - 100] = 90
    assert pair_views(board, "none", board.find(left), board.find(hidden)) is None


def test_a_charuco_board_of_which_one_line_is_seen_is_not_seen() -> None:
    """Corners in one line do not tell how the board stands."""
    wide = Board(dataclasses.replace(CHARUCO, corners="12x4", dictionary="5X5_100"))
    assert not wide.is_enough(np.arange(12))
    assert not wide.is_enough(np.arange(4) * 12)
    assert not wide.is_enough(np.arange(13))  # a line and one more may stand in many ways
    assert not wide.is_enough(np.array([*range(12), 18]))
    assert not wide.is_enough(np.array([0, 13, 26, 39, 1, 14, 27])[:FEWEST_CORNERS])
    assert wide.is_enough(np.arange(14))
    row = BoardView(ids=np.arange(12), corners_px=np.float32([[10 * i, 50] for i in range(12)]))
    both = BoardView(ids=np.arange(24), corners_px=np.float32([[10 * (i % 12), 50 + i // 12] for i in range(24)]))
    assert pair_views(wide, "row", both, row) is None


def test_a_place_that_is_none_blocks_no_other() -> None:
    assert not is_new_place(np.full(6, np.nan), [])
    assert is_new_place(np.zeros(6), [])


def moved(pair: BoardPair, name: str, shift_px: float) -> BoardPair:
    right = BoardView(ids=pair.right.ids, corners_px=pair.right.corners_px + np.float32([0, shift_px]))
    return dataclasses.replace(pair, name=name, right=right)


def test_a_pair_that_contradicts_the_others_is_left_out() -> None:
    board, pairs = found("chessboard")
    result = calibrate([*pairs[:3], moved(pairs[3], "3", 6.0), *pairs[4:]], board, HEIGHT, WIDTH)
    assert list(result.left_out) == ["3"]
    assert "px, the others to 0." in result.left_out["3"]
    assert [each.name for each in result.used] == ["0", "1", "2", "4", "5", "6", "7"]
    assert result.stereo_rms_px < 0.15
    text = report(result, "chessboard")
    assert "7 of 8 pairs used" in text
    assert "3                left out: fits to" in text


@pytest.mark.parametrize(
    ("choose", "said"),
    [
        (lambda pairs: pairs[:5], "both eyes see the board in 5 pairs; at least 6 are needed"),
        (lambda pairs: [pairs[0]] * 4 + [pairs[1]] * 4, "stands in only 2 different places in 8 pairs"),
        (
            lambda pairs: [dataclasses.replace(each, left=each.right, right=each.left) for each in pairs],
            "the eyes are exchanged; exchange left and right",
        ),
        (
            lambda pairs: [moved(each, each.name, 40.0 * (-1) ** n) for n, each in enumerate(pairs)],
            r"the pairs contradict each other: corners miss their places, all pairs by \d+",
        ),
    ],
)
def test_what_cannot_be_calibrated_is_said(choose, said: str) -> None:
    board, pairs = found("chessboard")
    with pytest.raises(CalibrationError, match=said):
        calibrate(choose(pairs), board, HEIGHT, WIDTH)


def test_a_board_that_is_never_tilted_is_refused() -> None:
    board = Board(CHESSBOARD)
    rig, pairs = true_rig(), []
    for number, (x, y, z) in enumerate(
        [(0, 0, 0.5), (0.1, 0, 0.5), (0.1, 0.1, 0.6), (0, 0.1, 0.7), (0, 0, 0.8), (0, -0.1, 1.0)]
    ):
        points_m = board.points_m + np.array([x - 0.12, y - 0.07, z])
        turn = cv2.Rodrigues(rig.rotation)[0]
        left, _ = cv2.projectPoints(points_m, np.zeros(3), np.zeros(3), rig.left_matrix, rig.left_distortion)
        right, _ = cv2.projectPoints(points_m, turn, rig.translation_m, rig.right_matrix, rig.right_distortion)
        views = [BoardView(ids=np.arange(54), corners_px=eye[:, 0].astype(np.float32)) for eye in (left, right)]
        pairs.append(BoardPair(name=str(number), left=views[0], right=views[1]))
    with pytest.raises(CalibrationError, match=r"tilted by at most \d degrees between any two pairs; 15 are needed"):
        calibrate(pairs, board, HEIGHT, WIDTH)


def test_a_real_rig_fits_better_than_plain_opencv(shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = [str(shared_data / f"chessboard/{eye}*.jpg") for eye in ("left", "right")]
    assert calibrate_command(["--images", *images, "--square-mm", "1000", "-o", "far.npz"]) == 2
    assert "a baseline of 3.327 m, where 0.01 to 2.0 are plausible" in capsys.readouterr().err
    assert calibrate_command(["--images", *images, "--square-mm", "25", "-o", "rig/real.npz"]) == 0
    said = capsys.readouterr().out
    assert "13 of 13 pairs used" in said
    assert Path("rig/real_report.txt").read_text() in said
    rig = read_calibration(Path("rig/real.npz"))
    # Plain OpenCV, with windows of 11 px: stereo RMS 0.448 px, rows 0.146 px in the mean and 3.77 px at most.
    with np.load("rig/real.npz") as figures:
        assert figures["stereo_rms"] < 0.22
        assert figures["row_error_mean"] < 0.12
        assert figures["row_error_max"] < 0.8
        assert (figures["rows"], figures["cols"], figures["square_size"]) == (6, 9, 0.025)
    assert rig.stereo_calibration.baseline_m / 0.025 == pytest.approx(3.33, abs=0.02)
    for picture in ("rectified", "coverage"):
        assert cv2.imread(f"rig/real_{picture}.png").shape == (480, 1280, 3)
    assert calibrate_command(["--images", *images, "--square-mm", "25", "-o", "rig/real.npz"]) == 2
    assert "rig/real.npz: is there already; --overwrite" in capsys.readouterr().err


def write_pairs(folder: str, pairs: list[tuple[np.ndarray, np.ndarray]]) -> list[str]:
    Path(folder).mkdir()
    for number, pair in enumerate(pairs):
        for eye, picture in zip(("left", "right"), pair, strict=True):
            write_rgb(Path(f"{folder}/{eye}{number}.png"), picture)
    return ["--images", f"{folder}/left*.png", f"{folder}/right*.png", "--square-mm", "30"]


def test_pairs_without_a_board_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    blank = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    pairs = rendered("chessboard")
    flags = write_pairs("some", [*pairs[:7], (pairs[7][0], blank), (blank, blank)])
    assert calibrate_command(flags) == 0
    said = capsys.readouterr().out
    assert "7 of 9 pairs used" in said
    assert "7                left out: the board was not found in the right eye" in said
    assert "8                left out: the board was not found in the left and the right eye" in said
    assert Path("calibration/stereo_calib.npz").is_file()
    none = write_pairs("none", [(blank, blank)] * 2)
    assert calibrate_command([*none, "-o", "none.npz"]) == 2
    error = capsys.readouterr().err
    assert "a chessboard of 9x6 inner corners was found by both eyes in none of 2 pairs of none/left*.png" in error
    assert not Path("none.npz").exists()


def test_a_rig_is_calibrated_live(capsys: pytest.CaptureFixture[str]) -> None:
    # A recording in which the board stands still for nine frames, 0.45 s, at each place.
    for place, pair in enumerate(rendered("chessboard")[:6]):
        for still in range(9):
            for eye, picture in zip(("left", "right"), pair, strict=True):
                write_rgb(Path(f"{eye}{place}{still}.jpg"), picture)
    flags = ["--left", "left*.jpg", "--right", "right*.jpg", "--fps", "20", "--headless", "--square-mm", "30"]
    assert calibrate_command([*flags, "--views", "6", "-o", "rig.npz"]) == 0
    said = capsys.readouterr().out
    assert "rig: 6 pairs collected" in said
    assert "6 of 6 pairs used" in said
    assert read_calibration(Path("rig.npz")).stereo_calibration.baseline_m == pytest.approx(0.12, rel=0.01)
    assert calibrate_command([*flags, "-o", "rig.npz"]) == 2
    assert "rig.npz: is there already" in capsys.readouterr().err
    Path("rig.npz").unlink()
    assert calibrate_command([*flags, "-o", "rig.npz"]) == 2
    assert (
        "rig: holds pairs that were collected before; --images 'rig/left_*.png' 'rig/right_*.png'"
        in capsys.readouterr().err
    )


def test_pictures_of_two_sizes_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    one, other = rendered("chessboard")[:2]
    small = (other[0][:240, :320], other[1][:240, :320])
    assert calibrate_command([*write_pairs("sizes", [one, small]), "-o", "a.npz"]) == 2
    assert "pair 1 is 320x240, the first is 640x480; calibrate one size at a time" in capsys.readouterr().err
    assert calibrate_command([*write_pairs("eyes", [(one[0], small[1])]), "-o", "a.npz"]) == 2
    assert "left0.png: is 640x480, but its right eye is 320x240" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "needs --left and --right (or --side-by-side), the cameras, or --images"),
        (["--images", "nothing*.png", "none*.png", "--square-mm", "30"], "nothing*.png: matches no file"),
        (["--images", "a", "b"], "needs --square-mm, the side of one square"),
        (["--corners", "9by6"], "--corners 9by6: has to be two whole numbers, across and down"),
        (["--corners", "2x6"], "--corners 2x6: a board has at least 3x3 of them"),
        (["--output", "rig.yml"], "--output rig.yml: a calibration is an .npz file"),
        (CHARUCO_FLAGS, "--pattern charuco: needs --marker-mm"),
        (["--images", "a", "b", "--square-mm", "30", "--swap"], "--images takes pictures as they are"),
        (
            [*CHARUCO_FLAGS, "--marker-mm", "20", "--corners", "20x9"],
            "--dictionary 4X4_50: has 50 markers, a board of 20x9 inner corners needs 105",
        ),
        (
            [*CHARUCO_FLAGS, "--marker-mm", "20", "--dictionary", "7"],
            "--dictionary 7: OpenCV knows 4X4_100",
        ),
    ],
)  # fmt: skip
def test_a_mistake_gets_one_line(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert calibrate_command(flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("foundation-stereo-calibrate: ")
    assert said in error
    assert error.count("\n") == 1


def test_both_eyes_count_corners_from_one_end() -> None:
    board, pairs = found("chessboard")
    turned = BoardView(ids=pairs[0].right.ids, corners_px=pairs[0].right.corners_px[::-1])
    again = pair_views(board, "turned", pairs[0].left, turned)
    assert again is not None
    np.testing.assert_array_equal(again.right.corners_px, pairs[0].right.corners_px)


def test_coverage_is_counted_in_cells() -> None:
    view = BoardView(ids=np.arange(3), corners_px=np.float32([[0, 0], [79.9, 79.9], [639, 479]]))
    cells = covered_cells([view], HEIGHT, WIDTH)
    assert cells.sum() == 2
    assert cells[0, 0]
    assert cells[5, 7]
    picture = coverage_picture([view], [], HEIGHT, WIDTH)
    assert picture.shape == (HEIGHT, 2 * WIDTH, 3)
    assert picture[40, 40, 1] > picture[40, 40, 0]  # green where a corner was
    assert picture[200, 200, 0] > picture[200, 200, 1]  # red elsewhere


def test_doubts_are_said() -> None:
    board, pairs = found("chessboard")
    result = calibrate(pairs, board, HEIGHT, WIDTH)
    assert "warning" not in report(dataclasses.replace(result, covered=(0.9, 0.9)), "a board")
    said = doubts(dataclasses.replace(result, covered=(0.9, 0.2), stereo_rms_px=1.5))
    assert len(said) == 2
    assert "is the board flat and stiff" in said[0]
    assert "only 20% of the right picture" in said[1]


def test_lines_cross_the_rectified_pair() -> None:
    picture = rectified_picture(true_rig(), *rendered("chessboard")[0])
    assert picture.shape == (HEIGHT, 2 * WIDTH, 3)
    assert (picture[20] == [60, 255, 60]).all() or (picture[20] == [255, 60, 60]).all()


def test_a_board_needs_its_size() -> None:
    with pytest.raises(UserError, match="needs --square-mm"):
        Board(BoardOptions())

from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from rendered_rig import RenderedRig, chessboard, plane_at

from foundation_stereo_depth.calibration.files import read_calibration
from live_camera import draw
from live_camera.board import Board
from live_camera.collect import MAX_EDGE_WIDTH_PX, Collector, collect_pairs, edge_width_px, fit_scale
from live_camera.options import BoardOptions

GOLDEN = Path(__file__).parents[1] / "golden/calibration"
BLANK = np.full((480, 640, 3), 90, np.uint8)
FRAME_S = 0.1


@dataclass(frozen=True)
class Frame:
    left_rgb: np.ndarray
    right_rgb: np.ndarray
    captured_at_s: float


@pytest.fixture(scope="module")
def poses() -> list[tuple[np.ndarray, np.ndarray]]:
    """Return a board in three poses."""
    camera, image = RenderedRig(read_calibration(GOLDEN / "opencv.yml")), chessboard(9, 6, 40)
    board_poses = [
        ((0.06, 0.0, 0.55), (0.0, 0.0, 0.0)),
        ((0.1, 0.05, 0.6), (0.4, 0.0, 0.0)),
        ((0.0, 0.0, 0.8), (0, 0.5, 0.0)),
    ]
    return [camera.pair(plane_at(image, 0.03 / 40, *pose)) for pose in board_poses]


def frames(pairs: list[tuple[np.ndarray, np.ndarray]], each: int = 5) -> list[Frame]:
    """Return a video that shows every pair for `each` frames."""
    return [Frame(*pair, FRAME_S * (n * each + k)) for n, pair in enumerate(pairs) for k in range(each)]


def board() -> Board:
    return Board(BoardOptions(square_mm=30))


def messages_of(collector: Collector, video: list[Frame]) -> list[str]:
    return [collector.offer(frame).message for frame in video]


def test_still_board_in_a_new_pose_is_accepted_once(poses: list) -> None:
    collector = Collector(board(), wanted=3)
    messages = messages_of(collector, frames([poses[0], poses[1]]))
    # 0.3 s at 10 fps are four frames, counted from the first.
    still = ["hold the board still"] * 3
    move = "move the board to another position, distance or tilt"
    assert messages == [*still, "pair saved", move, *still, "pair saved", move]
    assert [pair.name for pair in collector.pairs] == ["00", "01"]
    assert not collector.complete


def test_moving_board_is_not_accepted(poses: list) -> None:
    moving = [
        (np.roll(left, 2 * n, axis=1), np.roll(right, 2 * n, axis=1)) for n, (left, right) in enumerate([poses[0]] * 8)
    ]
    collector = Collector(board(), wanted=3)
    assert set(messages_of(collector, frames(moving, each=1))) == {"hold the board still"}


def test_blurred_board_is_not_accepted(poses: list) -> None:
    left, right = poses[0]
    blurred = cv2.GaussianBlur(right, (0, 0), 2.5)
    views = board().detect(right), board().detect(blurred)
    assert (
        edge_width_px(right, views[0]) < 0.75 * MAX_EDGE_WIDTH_PX < MAX_EDGE_WIDTH_PX < edge_width_px(blurred, views[1])
    )
    assert "blurred: use more light, or move the board away" in messages_of(
        Collector(board(), wanted=3), frames([(left, blurred)])
    )


def test_message_names_the_view_without_the_board(poses: list) -> None:
    left, right = poses[0]
    for pair, message in [
        ((left, BLANK), "board not found in the right view"),
        ((BLANK, right), "board not found in the left view"),
        ((BLANK, BLANK), "board not found in either view"),
    ]:
        assert set(messages_of(Collector(board(), wanted=3), frames([pair]))) == {message}


def test_accepted_pairs_are_written_with_coverage(poses: list) -> None:
    video = [*frames(poses[:2]), *(replace(frame, captured_at_s=frame.captured_at_s + 9) for frame in frames(poses))]
    assert collect_pairs(iter(video), board(), Path("pairs"), wanted=3) == 3
    assert sorted(path.name for path in Path("pairs").iterdir()) == [
        "coverage.png", "left_00.png", "left_01.png", "left_02.png", "right_00.png", "right_01.png", "right_02.png",
    ]  # fmt: skip
    np.testing.assert_array_equal(cv2.imread("pairs/left_02.png")[..., ::-1], poses[2][0])
    assert collect_pairs(iter(frames(poses[:1])), board(), Path("few"), wanted=3) == 1


def test_shown_image_has_the_coverage_and_the_message_below(poses: list) -> None:
    shown = []

    def show(image: np.ndarray) -> bool:
        shown.append(image)
        return len(shown) < 4

    assert collect_pairs(iter(frames(poses[:1])), board(), Path("shown"), wanted=3, show=show) == 1
    assert len(shown) == 4
    assert shown[0].shape == (480 + 2 * draw.ROW_PX, 1280, 3)
    assert (shown[3][:480] != shown[0][:480]).any()  # the area that was covered is tinted
    text = draw.draw_text_row("0 of 3 pairs  ·  hold the board still", 1280, draw.TEXT)[..., ::-1]
    assert np.array_equal(shown[0][480 : 480 + draw.ROW_PX], text)


@pytest.mark.parametrize("size", [(320, 240), (1280, 720), (1920, 1080)])
def test_collection_fits_the_screen_and_its_text_is_readable(size: tuple[int, int]) -> None:
    scale = fit_scale(2 * size[0], size[1], (1366, 768))
    assert 2 * size[0] * scale <= 1366 - 60
    assert size[1] * scale + 2 * draw.ROW_PX <= 768 - 60
    assert 2 * size[0] * scale >= 900
    assert fit_scale(2 * size[0], size[1], None) == max(1, 900 / (2 * size[0]))

from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from rendered_rig import RenderedRig, chessboard, plane_at

from foundation_stereo_depth.calibration.files import read_calibration
from live_camera.board import Board
from live_camera.collect import BLURRED_PX, Collector, collect, edge_width_px
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
    """A board in three places."""
    camera, picture = RenderedRig(read_calibration(GOLDEN / "opencv.yml")), chessboard(9, 6, 40)
    places = [
        ((0.06, 0.0, 0.55), (0.0, 0.0, 0.0)),
        ((0.1, 0.05, 0.6), (0.4, 0.0, 0.0)),
        ((0.0, 0.0, 0.8), (0, 0.5, 0.0)),
    ]
    return [camera.pair(plane_at(picture, 0.03 / 40, *place)) for place in places]


def frames(pairs: list[tuple[np.ndarray, np.ndarray]], each: int = 5) -> list[Frame]:
    """A video in which every pair stands still for so many frames."""
    return [Frame(*pair, FRAME_S * (n * each + k)) for n, pair in enumerate(pairs) for k in range(each)]


def board() -> Board:
    return Board(BoardOptions(square_mm=30))


def said_of(collector: Collector, video: list[Frame]) -> list[str]:
    return [collector.offer(frame).said for frame in video]


def test_a_board_is_taken_once_it_is_still_and_in_a_new_place(poses: list) -> None:
    collector = Collector(board(), wanted=3)
    said = said_of(collector, frames([poses[0], poses[1]]))
    # 0.3 s of stillness are four frames, the first of which only begins it.
    still = ["hold it still"] * 3
    assert said == [*still, "taken", "move it to another place, distance or tilt", *still, "taken", said[4]]
    assert [pair.name for pair in collector.pairs] == ["00", "01"]
    assert not collector.complete


def test_a_board_that_moves_is_not_taken(poses: list) -> None:
    moving = [
        (np.roll(left, 2 * n, axis=1), np.roll(right, 2 * n, axis=1)) for n, (left, right) in enumerate([poses[0]] * 8)
    ]
    collector = Collector(board(), wanted=3)
    assert set(said_of(collector, frames(moving, each=1))) == {"hold it still"}


def test_a_blurred_board_is_not_taken(poses: list) -> None:
    left, right = poses[0]
    blurred = cv2.GaussianBlur(right, (0, 0), 2.5)
    seen = board().find(right), board().find(blurred)
    assert edge_width_px(right, seen[0]) < 0.75 * BLURRED_PX < BLURRED_PX < edge_width_px(blurred, seen[1])
    assert "too blurred: more light, or more distance" in said_of(
        Collector(board(), wanted=3), frames([(left, blurred)])
    )


def test_both_eyes_have_to_see_it(poses: list) -> None:
    left, right = poses[0]
    for pair, said in [
        ((left, BLANK), "the right eye does not see the board"),
        ((BLANK, right), "the left eye does not see the board"),
        ((BLANK, BLANK), "neither eye sees the board"),
    ]:
        assert set(said_of(Collector(board(), wanted=3), frames([pair]))) == {said}


def test_pairs_are_written_as_they_are_taken(poses: list) -> None:
    video = [*frames(poses[:2]), *(replace(frame, captured_at_s=frame.captured_at_s + 9) for frame in frames(poses))]
    assert collect(iter(video), board(), Path("pairs"), wanted=3) == 3
    assert sorted(path.name for path in Path("pairs").iterdir()) == [
        "coverage.png", "left_00.png", "left_01.png", "left_02.png", "right_00.png", "right_01.png", "right_02.png",
    ]  # fmt: skip
    np.testing.assert_array_equal(cv2.imread("pairs/left_02.png")[..., ::-1], poses[2][0])
    assert collect(iter(frames(poses[:1])), board(), Path("few"), wanted=3) == 1


def test_what_is_collected_can_be_watched(poses: list) -> None:
    shown = []

    def show(picture: np.ndarray) -> bool:
        shown.append(picture)
        return len(shown) < 4

    assert collect(iter(frames(poses[:1])), board(), Path("seen"), wanted=3, show=show) == 1
    assert len(shown) == 4
    assert shown[0].shape == (480, 1280, 3)
    assert (shown[3] != shown[0]).any()  # the place that was taken is tinted now

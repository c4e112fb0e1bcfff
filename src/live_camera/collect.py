"""Pairs of a board for a calibration: detected in images that exist, or collected from live cameras."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from foundation_stereo_depth.data.codecs import write_rgb
from foundation_stereo_depth.data.pairs import Pairs
from foundation_stereo_depth.errors import CalibrationError
from live_camera import draw
from live_camera.board import Board, BoardView, ViewParameters
from live_camera.report import Image, PairImage, draw_coverage
from live_camera.solve import BoardPair, is_new_view, pair_views

STILL_S = 0.3
"""The board has to be still for this long, in every frame."""
MAX_MOTION = 1 / 640
"""The board moves if a corner moves by more than this fraction of the image width between two frames."""
MAX_EDGE_WIDTH_PX = 4.5
"""Edges that take more px than this from dark to bright, at 640 px width, are blurred.

Rendered edges take 2, those of 26 sharp images of real webcams 2.7 to 3.5 (measured).
"""
_REFERENCE_WIDTH_PX = 640
_LEGEND = "green: the board was there  ·  red: not yet  ·  yellow: corners found now  ·  q: end"
_MIN_SHOWN_WIDTH_PX = 900
"""Of both views side by side: the text below them needs as much."""
_MARGIN_PX = 80
"""Around the window, with its title bar."""


@dataclass(kw_only=True)
class DetectedPairs:
    """The board in a set of image pairs.

    Attributes:
        pairs: those in which both views show it.
        rejected: name of each other pair -> reason.
        size: height and width of the images, px; None where there are none.
        example: the first pair with the board, raw, RGB; None where there is none.
    """

    pairs: list[BoardPair] = field(default_factory=list[BoardPair])
    rejected: dict[str, str] = field(default_factory=dict[str, str])
    size: tuple[int, int] | None = None
    example: tuple[Image, Image] | None = None


def detect_pairs(
    images: Pairs,
    board: Board,
    arrange: Callable[[Image, Image], tuple[Image, Image]] = lambda left, right: (left, right),
) -> DetectedPairs:
    """Detect the board in pairs of images.

    Args:
        images: the pairs.
        board: the board in them.
        arrange: returns the views of a pair as they are meant: swapped, or turned.

    Raises:
        CalibrationError: the images differ in size.
    """
    found = DetectedPairs()
    progress = tqdm(
        images, total=images.count, unit="pair", desc="detecting the board", dynamic_ncols=True, leave=False
    )
    for pair in progress:
        left, right = arrange(pair.left, pair.right)
        height, width = left.shape[:2]
        found.size = found.size or (height, width)
        if (height, width) != found.size:
            raise CalibrationError(
                f"pair {pair.name} is {width}x{height}, the first is {found.size[1]}x{found.size[0]}; a calibration "
                "needs images of one size"
            )
        views = board.detect(left), board.detect(right)
        paired = pair_views(board, pair.name, *views)
        if paired is None:
            missing = [side for side, view in zip(("left", "right"), views, strict=True) if view is None]
            found.rejected[pair.name] = (
                f"board not found in the {' and the '.join(missing)} view"
                if missing
                else "too few common corners in both views"
            )
            continue
        found.pairs.append(paired)
        found.example = found.example or (left, right)
    return found


@runtime_checkable
class CapturedPair(Protocol):
    """What a rig has to yield: both frames, and their time. Skew does not matter for a board that is still."""

    @property
    def left_rgb(self) -> Image:
        """The left frame, RGB."""
        ...

    @property
    def right_rgb(self) -> Image:
        """The right frame, RGB, of the same size."""
        ...

    @property
    def captured_at_s(self) -> float:
        """When the pair was taken, s of a monotonic clock."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Feedback:
    """The result of offering one frame to a collector.

    Attributes:
        accepted: the pair was added.
        message: the reason, or what to do, for the user.
        left, right: the board in each view, where it was found.
    """

    accepted: bool
    message: str
    left: BoardView | None
    right: BoardView | None


class Collector:
    """Selects live frames for a calibration.

    Args:
        board: the board that is held before the cameras.
        wanted: number of pairs.

    Attributes:
        pairs: the board in each accepted pair.
    """

    def __init__(self, board: Board, wanted: int) -> None:
        self.pairs: list[BoardPair] = []
        self._board = board
        self._wanted = wanted
        self._accepted: list[ViewParameters] = []
        self._previous: BoardPair | None = None
        self._still_since_s = 0.0

    @property
    def complete(self) -> bool:
        """True once the wanted number of pairs has been accepted."""
        return len(self.pairs) >= self._wanted

    def offer(self, frame: CapturedPair) -> Feedback:
        """Add a frame if both views show the board, still, sharp and in a new pose."""
        left, right = (self._board.detect(view, fast=True) for view in (frame.left_rgb, frame.right_rgb))
        pair = pair_views(self._board, f"{len(self.pairs):02d}", left, right)
        still_s = self._update_stillness(pair, frame)
        height, width = frame.left_rgb.shape[:2]
        if pair is None:
            message = _describe_missing(left, right)
        elif not is_new_view(parameters := self._board.view_parameters(pair.left, height, width), self._accepted):
            message = "move the board to another position, distance or tilt"
        elif still_s < STILL_S:
            message = "hold the board still"
        elif _widest_edge_px(frame, pair) > MAX_EDGE_WIDTH_PX * width / _REFERENCE_WIDTH_PX:
            message = "blurred: use more light, or move the board away"
        else:
            self.pairs.append(pair)
            self._accepted.append(parameters)
            return Feedback(accepted=True, message="pair saved", left=left, right=right)
        return Feedback(accepted=False, message=message, left=left, right=right)

    def draw(
        self, frame: CapturedPair, feedback: Feedback, screen: tuple[int, int] | None = None
    ) -> UInt8[np.ndarray, "H2 W2 3"]:
        """Return both views side by side, RGB, tinted by their coverage, with the corners, above rows of text.

        Args:
            frame: as the cameras gave it.
            feedback: the result of offering it.
            screen: width and height that the image has to fit, px; None where they are unknown.
        """
        height, width = frame.left_rgb.shape[:2]
        views = np.hstack([frame.left_rgb, frame.right_rgb])
        shown = np.asarray(cv2.addWeighted(views, 0.7, self.draw_coverage(height, width), 0.3, 0), np.uint8)
        for view, shift in ((feedback.left, 0), (feedback.right, width)):
            for column, row in () if view is None else view.corners_px:
                cv2.circle(shown, (round(float(column)) + shift, round(float(row))), 3, (255, 220, 0), 1)
        scale = fit_scale(2 * width, height, screen)
        fitted = np.asarray(cv2.resize(shown, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)
        text = f"{len(self.pairs)} of {self._wanted} pairs  ·  {feedback.message}"
        colour = draw.NOTICE if feedback.accepted else draw.TEXT
        rows = [
            draw.draw_text_row(line, fitted.shape[1], row_colour)[..., ::-1]  # of a BGR canvas
            for line, row_colour in ((text, colour), (_LEGEND, draw.QUIET))
        ]
        return np.vstack([fitted, *rows])

    def draw_coverage(self, height: int, width: int) -> PairImage:
        """Return where corners have been detected so far, in both views side by side, RGB."""
        return draw_coverage([pair.left for pair in self.pairs], [pair.right for pair in self.pairs], height, width)

    def _update_stillness(self, pair: BoardPair | None, frame: CapturedPair) -> float:
        """Return for how many seconds the board has been still in both views."""
        previous, self._previous = self._previous, pair
        limit_px = MAX_MOTION * frame.left_rgb.shape[1]
        if pair is None or previous is None or _max_motion_px(previous, pair) > limit_px:
            self._still_since_s = frame.captured_at_s
        return frame.captured_at_s - self._still_since_s


def collect_pairs(
    frames: Iterable[CapturedPair],
    board: Board,
    folder: Path,
    wanted: int,
    show: Callable[[UInt8[np.ndarray, "H W 3"]], bool] | None = None,
    *,
    screen: tuple[int, int] | None = None,
) -> int:
    """Write suitable pairs as left_NN.png and right_NN.png, with coverage.png; return their number.

    Args:
        frames: of a rig, until it ends or enough are accepted.
        board: the board that is held before it.
        folder: destination; made where it does not exist.
        wanted: number of pairs.
        show: displays an image; returns False to end the collection.
        screen: width and height that the image has to fit, px; None where they are unknown.
    """
    folder.mkdir(parents=True, exist_ok=True)
    collector = Collector(board, wanted)
    with tqdm(total=wanted, unit="pair", desc="collecting", dynamic_ncols=True) as bar:
        for frame in frames:
            feedback = collector.offer(frame)
            if feedback.accepted:
                name = collector.pairs[-1].name
                write_rgb(folder / f"left_{name}.png", frame.left_rgb)
                write_rgb(folder / f"right_{name}.png", frame.right_rgb)
                write_rgb(folder / "coverage.png", collector.draw_coverage(*frame.left_rgb.shape[:2]))
                bar.update()
            bar.set_postfix_str(feedback.message)
            if collector.complete or (show is not None and not show(collector.draw(frame, feedback, screen))):
                break
    return len(collector.pairs)


def fit_scale(width: int, height: int, screen: tuple[int, int] | None) -> float:
    """Return the factor by which an image of a size, px, fits the screen with its text; small images are enlarged."""
    wanted = max(1.0, _MIN_SHOWN_WIDTH_PX / width)
    if screen is None:
        return wanted
    return min(wanted, (screen[0] - _MARGIN_PX) / width, (screen[1] - 2 * draw.ROW_PX - _MARGIN_PX) / height)


def edge_width_px(image: Image, view: BoardView) -> float:
    """Return how many px the board's edges take from dark to bright: 2 where sharp, 2.5 sigma where blurred."""
    first, last = view.corners_px.min(axis=0).astype(int), view.corners_px.max(axis=0).astype(int) + 1
    part = image[max(first[1], 0) : last[1], max(first[0], 0) : last[0]]
    grey = np.asarray(cv2.cvtColor(part, cv2.COLOR_RGB2GRAY), np.float32)
    # Sobel's 3x3 sums eight times the change per px, and averages along the edge, which reduces noise.
    across, down = (cv2.Sobel(grey, cv2.CV_32F, *axis) / 8 for axis in ((1, 0), (0, 1)))
    dark, bright = np.percentile(grey, (5, 95))
    steepest = float(np.percentile(np.hypot(across, down), 97))
    return float(bright - dark) / max(steepest, 1e-6)


def _widest_edge_px(frame: CapturedPair, pair: BoardPair) -> float:
    return max(edge_width_px(frame.left_rgb, pair.left), edge_width_px(frame.right_rgb, pair.right))


def _max_motion_px(previous: BoardPair, current: BoardPair) -> float:
    """Return by how much a corner moved at most; infinity where a view shares no corner with its predecessor."""
    motions: list[float] = []
    for old, new in ((previous.left, current.left), (previous.right, current.right)):
        _, in_old, in_new = np.intersect1d(old.ids, new.ids, return_indices=True)
        steps = np.linalg.norm(old.corners_px[in_old] - new.corners_px[in_new], axis=1)
        motions.append(float(steps.max(initial=0.0)) if len(steps) else float("inf"))
    return max(motions)


def _describe_missing(left: BoardView | None, right: BoardView | None) -> str:
    if left is None and right is None:
        return "board not found in either view"
    if left is not None and right is not None:
        return "too few common corners in both views"
    return f"board not found in the {'left' if left is None else 'right'} view"

"""Collecting pairs of a board from live eyes: still, sharp, seen by both, and in a place that is new."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from foundation_stereo_depth.data.codecs import write_rgb
from live_camera.board import Board, BoardView, Place
from live_camera.report import WidePicture, coverage_picture
from live_camera.solve import BoardPair, is_new_place, pair_views

STILL_S = 0.3
"""So long the board has to keep still, in every frame."""
STILL_SHARE = 1 / 640
"""It moves if a corner does by more than this share of the picture's width between two frames."""
BLURRED_PX = 4.5
"""Edges that take more px than this from dark to bright, at 640 px width, are blurred.

Drawn edges take 2, those of 26 sharp pictures of real webcams 2.7 to 3.5 (measured).
"""
_CALIBRATED_WIDTH = 640

Picture = UInt8[np.ndarray, "H W 3"]


@runtime_checkable
class StereoFrame(Protocol):
    """What a rig has to yield: both eyes, and when. A board that keeps still does not mind their skew."""

    @property
    def left_rgb(self) -> Picture:
        """What the left eye sees, RGB."""
        ...

    @property
    def right_rgb(self) -> Picture:
        """What the right eye sees, RGB, of the same size."""
        ...

    @property
    def captured_at_s(self) -> float:
        """When the pair was taken, on a clock that only goes forward."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Offer:
    """What a collector says of one frame.

    Attributes:
        taken: it was worth having.
        said: why, or what to do, for the user.
        left, right: the board in each eye, where it is seen.
    """

    taken: bool
    said: str
    left: BoardView | None
    right: BoardView | None


class Collector:
    """Chooses among live frames those that a calibration wants.

    Args:
        board: what is held before the eyes.
        wanted: how many pairs.

    Attributes:
        pairs: the board in each pair that was taken.
    """

    def __init__(self, board: Board, wanted: int) -> None:
        self.pairs: list[BoardPair] = []
        self._board = board
        self._wanted = wanted
        self._places: list[Place] = []
        self._before: BoardPair | None = None
        self._still_since_s = 0.0

    @property
    def complete(self) -> bool:
        """As many pairs as were wanted have been taken."""
        return len(self.pairs) >= self._wanted

    def offer(self, frame: StereoFrame) -> Offer:
        """Looks at a frame; takes it if the board is still, sharp, seen by both and in a new place."""
        left, right = (self._board.find(eye, quickly=True) for eye in (frame.left_rgb, frame.right_rgb))
        pair = pair_views(self._board, f"{len(self.pairs):02d}", left, right)
        still_s = self._still_for_s(pair, frame)
        height, width = frame.left_rgb.shape[:2]
        said = "taken"
        if pair is None:
            blind = (
                "neither eye sees" if left is None and right is None else f"the {_blind(left, right)} eye does not see"
            )
            said = f"{blind} the board"
        elif not is_new_place(place := self._board.place(pair.left, height, width), self._places):
            said = "move it to another place, distance or tilt"
        elif still_s < STILL_S:
            said = "hold it still"
        elif max(edge_width_px(eye, view) for eye, view in _eyes(frame, pair)) > BLURRED_PX * width / _CALIBRATED_WIDTH:
            said = "too blurred: more light, or more distance"
        else:
            self.pairs.append(pair)
            self._places.append(place)
            return Offer(taken=True, said=said, left=left, right=right)
        return Offer(taken=False, said=said, left=left, right=right)

    def picture(self, frame: StereoFrame, offer: Offer) -> WidePicture:
        """Both eyes side by side, RGB, tinted by what is covered, with the corners found and what to do."""
        height, width = frame.left_rgb.shape[:2]
        eyes = np.hstack([frame.left_rgb, frame.right_rgb])
        covered = self.coverage(height, width)
        shown = np.asarray(cv2.addWeighted(eyes, 0.7, covered, 0.3, 0), np.uint8)
        for view, shift in ((offer.left, 0), (offer.right, width)):
            for column, row in () if view is None else view.corners_px:
                cv2.circle(shown, (round(float(column)) + shift, round(float(row))), 3, (255, 220, 0), 1)
        text = f"{len(self.pairs)} of {self._wanted}: {offer.said}"
        for colour, thickness in (((0, 0, 0), 4), ((255, 255, 255), 1)):
            cv2.putText(shown, text, (10, 26), cv2.FONT_HERSHEY_SIMPLEX, 0.7, colour, thickness, cv2.LINE_AA)
        return shown

    def coverage(self, height: int, width: int) -> WidePicture:
        """Where corners have been seen so far, in both eyes side by side, RGB."""
        return coverage_picture([pair.left for pair in self.pairs], [pair.right for pair in self.pairs], height, width)

    def _still_for_s(self, pair: BoardPair | None, frame: StereoFrame) -> float:
        """For how long the board has kept still in both eyes."""
        before, self._before = self._before, pair
        limit_px = STILL_SHARE * frame.left_rgb.shape[1]
        if pair is None or before is None or max(_moved_px(before, pair)) > limit_px:
            self._still_since_s = frame.captured_at_s
        return frame.captured_at_s - self._still_since_s


def collect(
    frames: Iterable[StereoFrame],
    board: Board,
    folder: Path,
    wanted: int,
    show: Callable[[WidePicture], bool] | None = None,
) -> int:
    """Writes pairs worth having as left_NN.png and right_NN.png, with coverage.png; returns how many.

    Args:
        frames: from a rig, until it ends or enough are taken.
        board: what is held before it.
        folder: to write to; made where it does not exist.
        wanted: how many pairs.
        show: takes a picture to be seen; False ends the collection.
    """
    folder.mkdir(parents=True, exist_ok=True)
    collector = Collector(board, wanted)
    with tqdm(total=wanted, unit="pair", desc="collecting", dynamic_ncols=True) as bar:
        for frame in frames:
            offer = collector.offer(frame)
            if offer.taken:
                name = collector.pairs[-1].name
                write_rgb(folder / f"left_{name}.png", frame.left_rgb)
                write_rgb(folder / f"right_{name}.png", frame.right_rgb)
                write_rgb(folder / "coverage.png", collector.coverage(*frame.left_rgb.shape[:2]))
                bar.update()
            bar.set_postfix_str(offer.said)
            if collector.complete or (show is not None and not show(collector.picture(frame, offer))):
                break
    return len(collector.pairs)


def edge_width_px(picture: Picture, view: BoardView) -> float:
    """How many px the board's edges take from dark to bright: 2 where they are sharp, 2.5 sigma where blurred."""
    first, last = view.corners_px.min(axis=0).astype(int), view.corners_px.max(axis=0).astype(int) + 1
    part = picture[max(first[1], 0) : last[1], max(first[0], 0) : last[0]]
    grey = np.asarray(cv2.cvtColor(part, cv2.COLOR_RGB2GRAY), np.float32)
    # Sobel's 3x3 sums eight times the change per px, and averages along the edge, which calms noise.
    across, down = (cv2.Sobel(grey, cv2.CV_32F, *axis) / 8 for axis in ((1, 0), (0, 1)))
    dark, bright = np.percentile(grey, (5, 95))
    steepest = float(np.percentile(np.hypot(across, down), 97))
    return float(bright - dark) / max(steepest, 1e-6)


def _eyes(frame: StereoFrame, pair: BoardPair) -> tuple[tuple[Picture, BoardView], tuple[Picture, BoardView]]:
    return (frame.left_rgb, pair.left), (frame.right_rgb, pair.right)


def _moved_px(before: BoardPair, now: BoardPair) -> tuple[float, float]:
    """By how much a corner moved at most, in each eye; infinitely where no corner is seen twice."""
    moved: list[float] = []
    for old, new in ((before.left, now.left), (before.right, now.right)):
        _, of_old, of_new = np.intersect1d(old.ids, new.ids, return_indices=True)
        steps = np.linalg.norm(old.corners_px[of_old] - new.corners_px[of_new], axis=1)
        moved.append(float(steps.max(initial=0.0)) if len(steps) else float("inf"))
    return moved[0], moved[1]


def _blind(left: BoardView | None, right: BoardView | None) -> str:
    return "left" if left is None else "right" if right is None else "other"

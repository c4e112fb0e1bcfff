"""Calibration boards in pictures: chessboards and ChArUco boards, whose corners are known in metres."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, Float32, Int, UInt8

from foundation_stereo_depth.errors import UserError
from live_camera.options import BoardOptions

FEWEST_CORNERS = 8
"""A view with fewer common corners says too little about the lens to be worth having."""

_FEWEST_OFF_LINE = 2
"""With a single corner beside a line, the board may stand in many ways."""

Place = Float[np.ndarray, "6"]
"""Where and how a board stands before an eye."""

_WINDOW_SHARE = 0.3
"""Half width of the sub-pixel window, of the smallest distance of two corners in the view.

Measured on real pairs (docs/experiments.md): at 0.4 windows begin to hold the board's edge or a neighbour, and corners
move by pixels; smaller ones are noisier.
"""
_SMALLEST_WINDOW_PX = 2
_QUICK_WIDTH_PX = 640


@dataclass(frozen=True, kw_only=True, eq=False)
class BoardView:
    """The board as one eye sees it.

    Attributes:
        ids: which of the board's corners are seen.
        corners_px: where, column and row.
    """

    ids: Int[np.ndarray, " N"]
    corners_px: Float32[np.ndarray, "N 2"]


class Board:
    """A flat board of squares whose inner corners can be found.

    Args:
        options: what it looks like.

    Attributes:
        columns, rows: inner corners across and down.
        points_m: where the corners are on the board, row by row; the third coordinate is 0.

    Raises:
        UserError: there is no such board.
    """

    def __init__(self, options: BoardOptions) -> None:
        if options.square_mm is None:
            raise UserError(
                "needs --square-mm, the side of one square as a ruler measures it on the board: all depth hangs on it"
            )
        self.columns, self.rows = options.inner_corners
        square_m = options.square_mm / 1000
        across, down = np.meshgrid(np.arange(self.columns), np.arange(self.rows))
        places = np.stack([across.ravel(), down.ravel(), np.zeros(self.columns * self.rows)], axis=-1)
        self.points_m: Float32[np.ndarray, "K 3"] = (places * square_m).astype(np.float32)
        self._charuco = _charuco_detector(options, square_m) if options.pattern == "charuco" else None

    def find(self, picture: UInt8[np.ndarray, "H W 3"], *, quickly: bool = False) -> BoardView | None:
        """The board in a picture, or None where it is not seen; a ChArUco board may be seen in part.

        Args:
            picture: RGB.
            quickly: give up at once where nothing looks like a board, as live pictures mostly do.
        """
        grey = np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), np.uint8)
        return self._found_chessboard(grey, quickly) if self._charuco is None else self._found_charuco(grey)

    def _found_charuco(self, grey: UInt8[np.ndarray, "H W"]) -> BoardView | None:
        assert self._charuco is not None
        # The detector refines corners itself, in windows that end before the markers.
        found: Any = self._charuco.detectBoard(grey)
        corners, ids = found[:2]
        if ids is None or not self.is_enough(ids.ravel()):
            return None
        return BoardView(ids=ids.ravel(), corners_px=np.asarray(corners, np.float32).reshape(-1, 2))

    def is_enough(self, ids: Int[np.ndarray, " N"]) -> bool:
        """True for corners that tell how the board stands: enough of them, and no line that has all but one."""
        if len(ids) < FEWEST_CORNERS:
            return False
        row, column = np.divmod(ids, self.columns)
        across, down = column - column[:, None], row - row[:, None]  # from the first corner to the second
        # On the line through two corners lie all those for which this is 0.
        off_line = across[:, :, None] * down[:, None] != down[:, :, None] * across[:, None]
        apart = ~np.eye(len(ids), dtype=bool)
        return bool(off_line.sum(axis=2)[apart].min() >= _FEWEST_OFF_LINE)

    def _found_chessboard(self, grey: UInt8[np.ndarray, "H W"], quickly: bool) -> BoardView | None:
        size = (self.columns, self.rows)
        flags = cv2.CALIB_CB_ADAPTIVE_THRESH | cv2.CALIB_CB_NORMALIZE_IMAGE
        scale = 1.0
        if quickly:  # at 1920 px, looking for a board that is not there takes more than a second
            scale = max(1.0, grey.shape[1] / _QUICK_WIDTH_PX)
            small = cv2.resize(grey, None, fx=1 / scale, fy=1 / scale, interpolation=cv2.INTER_AREA)
            found, corners = cv2.findChessboardCorners(small, size, flags=flags | cv2.CALIB_CB_FAST_CHECK)
        else:
            found, corners = cv2.findChessboardCorners(grey, size, flags=flags)
            if not found:  # each of OpenCV's two detectors finds boards that the other misses
                found, corners = cv2.findChessboardCornersSB(grey, size, flags=cv2.CALIB_CB_EXHAUSTIVE)
        if not found:
            return None
        at_full_size = (np.asarray(corners, np.float32) + 0.5) * scale - 0.5
        grid = at_full_size.astype(np.float32).reshape(self.rows, self.columns, 2)
        window_px = max(_SMALLEST_WINDOW_PX, round(_WINDOW_SHARE * smallest_step_px(grid)))
        criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 100, 1e-4)
        refined = cv2.cornerSubPix(grey, grid.reshape(-1, 1, 2), (window_px, window_px), (-1, -1), criteria)
        return BoardView(ids=np.arange(self.columns * self.rows), corners_px=np.asarray(refined).reshape(-1, 2))

    def same_way_round(self, left: BoardView, right: BoardView) -> BoardView:
        """The right eye's view, counted from the same end of the board as the left one's.

        A chessboard looks the same turned by half a turn, so each eye's detector may begin at either end. The eyes of a
        rig stand upright side by side, so the board points the same way in both.
        """
        if self._charuco is not None:
            return right
        ends = [view.corners_px[-1] - view.corners_px[0] for view in (left, right)]
        if float(ends[0] @ ends[1]) > 0:
            return right
        return BoardView(ids=right.ids, corners_px=np.ascontiguousarray(right.corners_px[::-1]))

    def place(self, view: BoardView, height: int, width: int) -> Place:
        """Where and how the board stands in a picture; two views that differ by 0.1 anywhere are worth having both.

        Centre, in shares of the picture; size, its root of area in shares of the picture's; how much longer its upper
        side is than its lower and its left than its right, and how foreshortened it is, as logarithms so weighted that
        a tilt of 20 degrees counts.
        """
        homography, _ = cv2.findHomography(self.points_m[view.ids, :2], view.corners_px)
        ends = np.array([0, self.columns - 1, self.columns * self.rows - 1, self.columns * (self.rows - 1)])
        quad = cv2.perspectiveTransform(self.points_m[None, ends, :2], np.asarray(homography))[0]
        top, right, bottom, left = np.linalg.norm(quad - np.roll(quad, -1, axis=0), axis=1)
        centre, area = quad.mean(axis=0), cv2.contourArea(quad)
        flat = (self.columns - 1) / (self.rows - 1)
        return np.array([
            centre[0] / width,
            centre[1] / height,
            np.sqrt(area / (height * width)),
            2 * np.log(top / bottom),
            2 * np.log(left / right),
            np.log((top + bottom) / (left + right) / flat),
        ])  # fmt: skip


def smallest_step_px(grid: Float32[np.ndarray, "rows columns 2"]) -> float:
    """The smallest distance of two neighbouring corners."""
    return float(min(np.linalg.norm(np.diff(grid, axis=axis), axis=-1).min() for axis in (0, 1)))


def _charuco_detector(options: BoardOptions, square_m: float) -> cv2.aruco.CharucoDetector:
    if options.marker_mm is None or not options.marker_mm / 1000 < square_m:
        raise UserError(
            f"--pattern charuco: needs --marker-mm, the side of one marker, below --square-mm {options.square_mm}"
        )
    code = getattr(cv2.aruco, f"DICT_{options.dictionary.upper()}", None)
    if code is None:
        known = sorted(name.removeprefix("DICT_") for name in dir(cv2.aruco) if name.startswith("DICT_"))
        raise UserError(f"--dictionary {options.dictionary}: OpenCV knows {', '.join(known)}")
    dictionary = cv2.aruco.getPredefinedDictionary(code)
    columns, rows = options.inner_corners
    markers = (columns + 1) * (rows + 1) // 2
    if markers > len(dictionary.bytesList):
        raise UserError(
            f"--dictionary {options.dictionary}: has {len(dictionary.bytesList)} markers, a board of {columns}x{rows} "
            f"inner corners needs {markers}"
        )
    board = cv2.aruco.CharucoBoard((columns + 1, rows + 1), square_m, options.marker_mm / 1000, dictionary)
    return cv2.aruco.CharucoDetector(board)

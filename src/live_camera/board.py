"""Calibration boards in images: chessboards, ChArUco boards, asymmetric circle grids; corners are known in metres."""

import logging
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, Float32, Int, UInt8

from foundation_stereo_depth.errors import UserError
from live_camera.options import BoardOptions

logger = logging.getLogger(__name__)

MIN_COMMON_CORNERS = 8
"""A pair with fewer common corners constrains the camera model too little."""

_MIN_OFF_LINE = 2
"""With a single corner beside a line, the pose of the board is ambiguous."""

ViewParameters = Float[np.ndarray, "6"]
"""Position, size and skew of a board in an image, see `Board.view_parameters`."""

_WINDOW_FRACTION = 0.3
"""Half width of the sub-pixel window, as a fraction of the smallest distance of two corners in the view.

Measured on real pairs (benchmarks/calibration.py): from 0.4 on windows include the board's edge or a neighbour, and
corners move by pixels; smaller ones are noisier.
"""
_MIN_WINDOW_PX = 2
_FAST_WIDTH_PX = 640
_MIN_CIRCLE_PX = 3
"""Diameter and distance of circles; OpenCV's own limits miss boards in images of 320x240."""


@dataclass(frozen=True, kw_only=True, eq=False)
class BoardView:
    """The board as one camera sees it.

    Attributes:
        ids: which of the board's corners were detected.
        corners_px: their positions, column and row.
    """

    ids: Int[np.ndarray, " N"]
    corners_px: Float32[np.ndarray, "N 2"]


class Board:
    """A flat board of squares whose inner corners can be detected.

    Args:
        options: pattern and sizes of the board.

    Attributes:
        columns, rows: inner corners across and down.
        points_m: positions of the corners on the board, row by row; the third coordinate is 0.

    Raises:
        UserError: no such board exists, or its square size is missing.
    """

    def __init__(self, options: BoardOptions) -> None:
        if options.square_mm is None:
            raise UserError(
                "needs --square-mm, the side of one square as measured on the board with a ruler: it sets the scale "
                "of all depths"
            )
        self.columns, self.rows = options.inner_corners
        self._square_mm = options.square_mm
        square_m = options.square_mm / 1000
        across, down = np.meshgrid(np.arange(self.columns), np.arange(self.rows))
        self._circles = options.pattern == "circles"
        if self._circles:  # every other row is shifted by half of the distance of two circles in a row
            across = 2 * across + down % 2
        grid = np.stack([across.ravel(), down.ravel(), np.zeros(self.columns * self.rows)], axis=-1)
        self.points_m: Float32[np.ndarray, "K 3"] = (grid * square_m).astype(np.float32)
        self._charuco = _create_charuco_detectors(options, square_m) if options.pattern == "charuco" else []

    def black_squares(self) -> list[tuple[int, int]]:
        """Return column and row of the black squares of a chessboard or a ChArUco board."""
        white = {
            (int(left_mm / self._square_mm), int(top_mm / self._square_mm)) for left_mm, top_mm, _ in self.markers()
        }
        squares = [(column, row) for row in range(self.rows + 1) for column in range(self.columns + 1)]
        if white:
            return [square for square in squares if square not in white]
        return [(column, row) for column, row in squares if (column + row) % 2 == 0]

    def markers(self) -> list[tuple[float, float, UInt8[np.ndarray, "n n"]]]:
        """Return the markers of a ChArUco board: left and upper edge, mm from the board's corner; and the cells.

        The cells hold the marker's black border; 0 is black. Other boards have none.
        """
        if not self._charuco:
            return []
        board = self._charuco[0].getBoard()
        dictionary = board.getDictionary()
        cells = dictionary.markerSize + 2
        return [
            (
                float(1000 * corners[:, 0].min()),
                float(1000 * corners[:, 1].min()),
                np.asarray(cv2.aruco.generateImageMarker(dictionary, int(marker), cells), np.uint8),
            )
            for corners, marker in zip(
                (np.asarray(corners) for corners in board.getObjPoints()), np.ravel(board.getIds()), strict=True
            )
        ]

    def detect(self, image: UInt8[np.ndarray, "H W 3"], *, fast: bool = False) -> BoardView | None:
        """Return the board in an image, or None where it is not found; a ChArUco board may be partly visible.

        Args:
            image: RGB.
            fast: give up early where nothing looks like a board, as in most live frames.
        """
        grey = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)
        if self._circles:
            return self._detect_circles(grey)
        return self._detect_charuco(grey) if self._charuco else self._detect_chessboard(grey, fast)

    def _detect_charuco(self, grey: UInt8[np.ndarray, "H W"]) -> BoardView | None:
        views = {detector: _detect_charuco_corners(detector, grey) for detector in self._charuco}
        detector = max(views, key=lambda each: len(views[each].ids))
        view = views[detector]
        if not self.determines_pose(view.ids):
            return None
        if len(self._charuco) > 1 and 2 * min(len(each.ids) for each in views.values()) < len(view.ids):
            self._charuco = [detector]  # the board is of this layout in all other images, too
            if detector.getBoard().getLegacyPattern():
                logger.info("the board has the layout of OpenCV before 4.6: its first square is white")
        return view

    def determines_pose(self, ids: Int[np.ndarray, " N"]) -> bool:
        """Return True for enough corners to determine the board's pose: no line may hold all of them but one."""
        if len(ids) < MIN_COMMON_CORNERS:
            return False
        row, column = np.divmod(ids, self.columns)
        across, down = column - column[:, None], row - row[:, None]  # from the first corner to the second
        # Corners on the line through two others have a cross product of 0.
        off_line = across[:, :, None] * down[:, None] != down[:, :, None] * across[:, None]
        distinct = ~np.eye(len(ids), dtype=bool)
        return bool(off_line.sum(axis=2)[distinct].min() >= _MIN_OFF_LINE)

    def _detect_circles(self, grey: UInt8[np.ndarray, "H W"]) -> BoardView | None:
        """Return the centres of dark circles on a bright board; all of them have to be visible."""
        parameters = cv2.SimpleBlobDetector.Params()
        parameters.minArea, parameters.maxArea = _MIN_CIRCLE_PX**2, grey.size / 40
        parameters.minDistBetweenBlobs = _MIN_CIRCLE_PX
        for flags in (cv2.CALIB_CB_ASYMMETRIC_GRID, cv2.CALIB_CB_ASYMMETRIC_GRID | cv2.CALIB_CB_CLUSTERING):
            detector = cv2.SimpleBlobDetector.create(parameters)
            found, centres = cv2.findCirclesGrid(grey, (self.columns, self.rows), flags=flags, blobDetector=detector)
            if found:
                corners_px = np.asarray(centres, np.float32).reshape(-1, 2)
                return BoardView(ids=np.arange(len(corners_px)), corners_px=corners_px)
        return None

    def _detect_chessboard(self, grey: UInt8[np.ndarray, "H W"], fast: bool) -> BoardView | None:
        size = (self.columns, self.rows)
        flags = cv2.CALIB_CB_ADAPTIVE_THRESH | cv2.CALIB_CB_NORMALIZE_IMAGE
        scale = 1.0
        if fast:  # at 1920 px, searching for a board that is not there takes more than a second
            scale = max(1.0, grey.shape[1] / _FAST_WIDTH_PX)
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
        window_px = max(_MIN_WINDOW_PX, round(_WINDOW_FRACTION * min_corner_distance_px(grid)))
        criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 100, 1e-4)
        refined = cv2.cornerSubPix(grey, grid.reshape(-1, 1, 2), (window_px, window_px), (-1, -1), criteria)
        return BoardView(ids=np.arange(self.columns * self.rows), corners_px=np.asarray(refined).reshape(-1, 2))

    def align_order(self, left: BoardView, right: BoardView) -> BoardView:
        """Return the right view with its corners counted from the same end of the board as in the left view.

        A chessboard looks the same after half a turn, and one with as many rows as columns after a quarter turn, so the
        detector may begin at any of these ends. The cameras of a rig stand upright side by side, so the board points
        the same way in both views.
        """
        if self._charuco:
            return right
        grid = np.arange(self.columns * self.rows).reshape(self.rows, self.columns)
        turns = range(4) if self.columns == self.rows else (0, 2)
        orders = [np.rot90(grid, quarters).ravel() for quarters in turns]
        axes = self._axes(left.corners_px)
        order = max(orders, key=lambda order: float((axes * self._axes(right.corners_px[order])).sum()))
        return BoardView(ids=right.ids, corners_px=np.ascontiguousarray(right.corners_px[order]))

    def _axes(self, corners_px: Float32[np.ndarray, "N 2"]) -> Float[np.ndarray, "2 2"]:
        """Return the directions of the rows and of the columns of a complete board in an image, as unit vectors."""
        grid = corners_px.reshape(self.rows, self.columns, 2)
        axes = np.stack([(grid[:, -1] - grid[:, 0]).mean(axis=0), (grid[-1] - grid[0]).mean(axis=0)])
        return axes / np.linalg.norm(axes, axis=1, keepdims=True)

    def view_parameters(self, view: BoardView, height: int, width: int) -> ViewParameters:
        """Return how the board appears in an image; views that differ by 0.1 in any number are worth having both.

        Centre, as fractions of the image; size, the root of its area as a fraction of the image's; the ratios of its
        upper and lower side, of its left and right side, and its foreshortening, as logarithms so weighted that a tilt
        of 20 degrees counts.
        """
        homography, _ = cv2.findHomography(self.points_m[view.ids, :2], view.corners_px)
        ends = np.array([0, self.columns - 1, self.columns * self.rows - 1, self.columns * (self.rows - 1)])
        quad = cv2.perspectiveTransform(self.points_m[None, ends, :2], np.asarray(homography))[0]
        top, right, bottom, left = np.linalg.norm(quad - np.roll(quad, -1, axis=0), axis=1)
        centre, area = quad.mean(axis=0), cv2.contourArea(quad)
        aspect = (self.columns - 1) / (self.rows - 1)
        return np.array([
            centre[0] / width,
            centre[1] / height,
            np.sqrt(area / (height * width)),
            2 * np.log(top / bottom),
            2 * np.log(left / right),
            np.log((top + bottom) / (left + right) / aspect),
        ])  # fmt: skip


def min_corner_distance_px(grid: Float32[np.ndarray, "rows columns 2"]) -> float:
    """Return the smallest distance of two neighbouring corners."""
    return float(min(np.linalg.norm(np.diff(grid, axis=axis), axis=-1).min() for axis in (0, 1)))


def _detect_charuco_corners(detector: cv2.aruco.CharucoDetector, grey: UInt8[np.ndarray, "H W"]) -> BoardView:
    """Return the corners that a detector finds, perhaps none."""
    # The detector refines corners itself, in windows that end before the markers.
    found: Any = detector.detectBoard(grey)
    corners, ids = found[:2]
    if ids is None:
        return BoardView(ids=np.empty(0, np.int32), corners_px=np.empty((0, 2), np.float32))
    return BoardView(ids=ids.ravel(), corners_px=np.asarray(corners, np.float32).reshape(-1, 2))


def _create_charuco_detectors(options: BoardOptions, square_m: float) -> list[cv2.aruco.CharucoDetector]:
    """Return a detector for each layout that a board of this size may have.

    With an even number of rows of squares, OpenCV before 4.6 began with a white square, and so do boards of calib.io;
    later versions begin with a black one. With an odd number both are the same.
    """
    if options.marker_mm is None or not options.marker_mm / 1000 < square_m:
        raise UserError(
            f"--pattern charuco: needs --marker-mm, the side of one marker, below --square-mm {options.square_mm}"
        )
    code = getattr(cv2.aruco, f"DICT_{options.dictionary.upper()}", None)
    if code is None:
        known = sorted(name.removeprefix("DICT_") for name in dir(cv2.aruco) if name.startswith("DICT_"))
        raise UserError(f"--dictionary {options.dictionary}: OpenCV has {', '.join(known)}")
    dictionary = cv2.aruco.getPredefinedDictionary(code)
    columns, rows = options.inner_corners
    markers = (columns + 1) * (rows + 1) // 2
    if markers > len(dictionary.bytesList):
        raise UserError(
            f"--dictionary {options.dictionary}: has {len(dictionary.bytesList)} markers, a board of {columns}x{rows} "
            f"inner corners needs {markers}"
        )
    detectors: list[cv2.aruco.CharucoDetector] = []
    for legacy in (False, True) if (rows + 1) % 2 == 0 else (False,):
        board = cv2.aruco.CharucoBoard((columns + 1, rows + 1), square_m, options.marker_mm / 1000, dictionary)
        board.setLegacyPattern(legacy)
        detectors.append(cv2.aruco.CharucoDetector(board))
    return detectors

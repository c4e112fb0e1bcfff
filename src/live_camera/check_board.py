"""A board of known size, measured by a calibration: the error of its size, and how flat it appears, in mm."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from foundation_stereo_depth.calibration.rig import RigCalibration
from foundation_stereo_depth.data.rectify import rectify_points
from foundation_stereo_depth.stereo.geometry import depth_from_disparity
from live_camera.board import Board
from live_camera.solve import BoardPair


@dataclass(frozen=True, kw_only=True)
class BoardCheck:
    """A board as a calibration measures it in one pair.

    Attributes:
        name: of the pair.
        distance_m: of its middle along the optical axis.
        size_mm: measured minus known distance of the corners that are farthest apart.
        size_percent: the same, relative to the known one.
        flatness_mm: RMS distance of the corners from a plane.
        rows_px: mean absolute difference of rows after rectification.
    """

    name: str
    distance_m: float
    size_mm: float
    size_percent: float
    flatness_mm: float
    rows_px: float


def check_board(rig: RigCalibration, pair: BoardPair, board: Board) -> BoardCheck:
    """Return the error of the board's known size, and its flatness, in one raw pair of the calibration's size."""
    ids, left_px, right_px = pair.common
    left, right = rectify_points(rig, left_px, right_px)
    points_m = _triangulate(rig, left, left[:, 0] - right[:, 0])
    known_m = board.points_m[ids].astype(np.float64)
    spread = points_m - points_m.mean(axis=0)
    # The scale that maps the known corners onto the measured ones best, whatever the board's pose is.
    ratio = float(np.sqrt((spread**2).sum() / ((known_m - known_m.mean(axis=0)) ** 2).sum()))
    length_m = float(np.linalg.norm(np.ptp(known_m, axis=0)))
    normal = np.linalg.svd(spread)[2][2]
    return BoardCheck(
        name=pair.name,
        distance_m=float(points_m[:, 2].mean()),
        size_mm=1000 * (ratio - 1) * length_m,
        size_percent=100 * (ratio - 1),
        flatness_mm=1000 * float(np.sqrt(((spread @ normal) ** 2).mean())),
        rows_px=float(np.abs(left[:, 1] - right[:, 1]).mean()),
    )


def format_checks(checks: Sequence[BoardCheck]) -> str:
    """Return a line per pair, and the medians of all."""
    lines = [f"{'pair':16} {'distance':>9} {'size':>18} {'flatness':>9} {'rows':>8}"]
    lines += [
        f"{each.name:16} {each.distance_m:7.2f} m {each.size_mm:+7.1f} mm {each.size_percent:+6.2f} % "
        f"{each.flatness_mm:6.2f} mm {each.rows_px:5.2f} px"
        for each in checks
    ]
    size_mm, size_percent, flatness_mm, rows_px = (
        float(np.median([abs(getattr(each, name)) for each in checks]))
        for name in ("size_mm", "size_percent", "flatness_mm", "rows_px")
    )
    lines.append(
        f"median of {len(checks)}: the board's size is {size_mm:.1f} mm ({size_percent:.2f} %) off, its corners are "
        f"{flatness_mm:.2f} mm off a plane (RMS), rows differ by {rows_px:.2f} px"
    )
    return "\n".join(lines)


def _triangulate(
    rig: RigCalibration, left_px: Float[np.ndarray, "N 2"], disparity_px: Float[np.ndarray, " N"]
) -> Float[np.ndarray, "N 3"]:
    """Return rectified points in metres, in the left camera's rectified axes."""
    stereo = rig.stereo_calibration
    z = depth_from_disparity(disparity_px, stereo)
    x = (left_px[:, 0] - stereo.cx_left_px) * z / stereo.focal_px
    y = (left_px[:, 1] - stereo.cy_px) * z / stereo.focal_y_px
    return np.stack([x, y, z], axis=-1)

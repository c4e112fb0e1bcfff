"""Views of a board -> the calibration of the rig, and figures on its quality."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32

from foundation_stereo_depth.calibration.rig import RigCalibration
from foundation_stereo_depth.data.rectify import rectify_points
from foundation_stereo_depth.errors import CalibrationError
from live_camera.board import Board, BoardView, ViewParameters
from live_camera.precision import (
    DEPTHS_M,
    MIN_VIEWS,
    NotDeterminedError,
    Observation,
    Precision,
    ProposedView,
    Shared,
    estimate_covariance,
    estimate_precision,
    observe,
    pack_shared,
    propose_views,
)

FEW_PAIRS = 6
"""Fewer determine the nine unknowns of a camera, but hardly separate a bad pair from a good one: a warning."""
MIN_PARAMETER_DIFFERENCE = 0.1
"""Two views are different if `Board.view_parameters` differ by this much in any number."""
MIN_ANGLE_DEG = 15.0
"""Boards seen under angles that differ by less hardly separate focal length from distance: a warning."""
_MAX_RELATIVE_STD = 0.2
"""Of focal length, baseline, and depth at one metre: beyond it a calibration is of no use."""

_OUTLIER_RATIO = 2.5
_OUTLIER_PX = 0.3
"""A pair is rejected if its RMS is this many times the median, and at least this large."""
_MAX_RMS_PX = 3.0
"""Pairs that fit no better than this together are not of one rig, or not of this board."""
_MAX_REJECTED = 1 / 3
"""Of all pairs."""
_COVERAGE_CELLS = (6, 8)


@dataclass(frozen=True, kw_only=True, eq=False)
class BoardPair:
    """The board in both views at one time, its corners counted from the same end in both.

    Attributes:
        name: of the pair, for the report.
        left, right: the corners in each view.
    """

    name: str
    left: BoardView
    right: BoardView

    @property
    def common(self) -> tuple[Any, Float32[np.ndarray, "N 2"], Float32[np.ndarray, "N 2"]]:
        """The ids of the corners that both views have, and their positions in the left and in the right one."""
        ids, in_left, in_right = np.intersect1d(self.left.ids, self.right.ids, return_indices=True)
        return ids, self.left.corners_px[in_left], self.right.corners_px[in_right]


@dataclass(frozen=True, kw_only=True)
class PairFigures:
    """How well one pair fits: RMS reprojection errors, px.

    Attributes:
        name: of the pair.
        left_rms_px, right_rms_px: of each camera calibrated alone.
        stereo_rms_px: of both together.
        max_row_px: the largest difference of rows after rectification.
    """

    name: str
    left_rms_px: float
    right_rms_px: float
    stereo_rms_px: float
    max_row_px: float


@dataclass(frozen=True, kw_only=True, eq=False)
class CalibrationResult:
    """A calibration and how well it fits.

    Attributes:
        calibration: of the rig.
        used: figures of each pair that was used, in order.
        rejected: name of each other pair -> reason.
        left_rms_px, right_rms_px, stereo_rms_px: reprojection errors of each camera alone, and of both together.
        row_errors_px: difference of rows after rectification, of each corner that both views have.
        coverage: the fraction of the left and of the right image in which corners were detected.
        precision: standard deviations of the result.
        proposed: further views of the board that would help most.
        warnings: what is wrong with the choice of views, one line each.
    """

    calibration: RigCalibration
    used: tuple[PairFigures, ...]
    rejected: dict[str, str]
    left_rms_px: float
    right_rms_px: float
    stereo_rms_px: float
    row_errors_px: Float[np.ndarray, " N"]
    coverage: tuple[float, float]
    precision: Precision
    proposed: tuple[ProposedView, ...] = ()
    warnings: tuple[str, ...] = ()


def pair_views(board: Board, name: str, left: BoardView | None, right: BoardView | None) -> BoardPair | None:
    """Return the board in both views; None where a view lacks it, or they have too few corners in common."""
    if left is None or right is None:
        return None
    pair = BoardPair(name=name, left=left, right=board.align_order(left, right))
    return pair if board.determines_pose(pair.common[0]) else None


def calibrate(pairs: list[BoardPair], board: Board, height: int, width: int) -> CalibrationResult:
    """Calibrate the rig; pairs that fit far worse than the others are rejected.

    Args:
        pairs: the board in both views, in different poses.
        board: the same.
        height: of the images, px.
        width: of the images, px.

    Raises:
        CalibrationError: the pairs determine no calibration, are inconsistent, or not of a horizontal rig.
    """
    if len(pairs) < MIN_VIEWS:
        raise CalibrationError(
            f"the board was found in both views of {len(pairs)} pairs; at least {MIN_VIEWS} are needed, better 15 to 20"
        )
    if (distinct := _count_distinct(pairs, board, height, width)) < MIN_VIEWS:
        raise CalibrationError(
            f"only {distinct} of {len(pairs)} pairs show the board in a different pose; at least {MIN_VIEWS} are "
            "needed: move it over the whole image, near and far, and tilt it"
        )
    kept, rejected = list(pairs), dict[str, str]()
    while True:
        fit = _fit_rig(kept, board, (width, height))
        worst = int(fit.stereo_rms_px.argmax())
        rms_px, median_px = float(fit.stereo_rms_px[worst]), float(np.median(fit.stereo_rms_px))
        if rms_px <= max(_OUTLIER_PX, _OUTLIER_RATIO * median_px):
            break
        if len(rejected) + 1 > _MAX_REJECTED * len(pairs) or len(kept) <= MIN_VIEWS:
            raise _inconsistent(
                f"{rms_px:.2f} px in pair {kept[worst].name}, {median_px:.2f} px in the others (median)"
            )
        rejected[kept[worst].name] = f"reprojection error {rms_px:.2f} px, of the others {median_px:.2f} px (median)"
        del kept[worst]
    if fit.all_rms_px > _MAX_RMS_PX:
        raise _inconsistent(f"{fit.all_rms_px:.1f} px in all pairs (RMS)")
    distinct = _count_distinct(kept, board, height, width)
    precision, proposed = _judge_precision(fit, distinct, board, height, width)
    calibration = fit.calibration(height, width)
    rows = [_row_errors_px(calibration, pair) for pair in kept]
    used = tuple(
        PairFigures(
            name=pair.name,
            left_rms_px=float(fit.view_rms_px[index, 0]),
            right_rms_px=float(fit.view_rms_px[index, 1]),
            stereo_rms_px=float(fit.stereo_rms_px[index]),
            max_row_px=float(rows[index].max()),
        )
        for index, pair in enumerate(kept)
    )
    return CalibrationResult(
        calibration=calibration,
        used=used,
        rejected=rejected,
        left_rms_px=fit.left_rms_px,
        right_rms_px=fit.right_rms_px,
        stereo_rms_px=fit.all_rms_px,
        row_errors_px=np.concatenate(rows),
        coverage=(
            float(covered_cells([pair.left for pair in kept], height, width).mean()),
            float(covered_cells([pair.right for pair in kept], height, width).mean()),
        ),
        precision=precision,
        proposed=proposed,
        warnings=tuple(_list_weaknesses(fit, distinct, len(kept))),
    )


def covered_cells(views: list[BoardView], height: int, width: int) -> Bool[np.ndarray, "6 8"]:
    """Return which cells of an image, 8 across and 6 down, have had a corner in them."""
    cells = np.zeros(_COVERAGE_CELLS, bool)
    for view in views:
        y, x = (view.corners_px[:, axis] / size for axis, size in ((1, height), (0, width)))
        rows, columns = (np.floor(at * n).astype(int) for at, n in zip((y, x), _COVERAGE_CELLS, strict=True))
        inside = (rows >= 0) & (rows < _COVERAGE_CELLS[0]) & (columns >= 0) & (columns < _COVERAGE_CELLS[1])
        cells[rows[inside], columns[inside]] = True
    return cells


def is_new_view(parameters: ViewParameters, known: list[ViewParameters]) -> bool:
    """Return True where a board appears differently from all known views."""
    return bool(np.isfinite(parameters).all()) and all(
        float(np.abs(parameters - other).max()) >= MIN_PARAMETER_DIFFERENCE for other in known
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _RigFit:
    """OpenCV's result for some pairs, not checked yet.

    Attributes:
        cameras: matrix, px, and distortion of each camera.
        rotation, translation_m: X_right = R X_left + T.
        left_rms_px, right_rms_px, all_rms_px: of each camera alone, and of both together.
        view_rms_px: per pair, of each camera alone.
        stereo_rms_px: per pair, of both cameras together.
        board_rotations: per pair, from the board to the left camera.
        observations: per pair, what its corners say about the parameters.
    """

    cameras: tuple[tuple[Any, Any], tuple[Any, Any]]
    rotation: Float[np.ndarray, "3 3"]
    translation_m: Float[np.ndarray, "3"]
    left_rms_px: float
    right_rms_px: float
    all_rms_px: float
    view_rms_px: Float[np.ndarray, "N 2"]
    stereo_rms_px: Float[np.ndarray, " N"]
    board_rotations: Float[np.ndarray, "N 3 3"]
    observations: tuple[Observation, ...]

    @property
    def shared(self) -> Shared:
        """The parameters of both cameras and of their pose as one vector."""
        return pack_shared(self.cameras, self.rotation, self.translation_m)

    def calibration(self, height: int, width: int) -> RigCalibration:
        """Return the rig; raises a CalibrationError where it is not plausible."""
        (left_matrix, left_distortion), (right_matrix, right_distortion) = self.cameras
        return RigCalibration(
            width=width,
            height=height,
            left_matrix=left_matrix,
            left_distortion=left_distortion.ravel(),
            right_matrix=right_matrix,
            right_distortion=right_distortion.ravel(),
            rotation=self.rotation,
            translation_m=self.translation_m,
        )


def _fit_rig(pairs: list[BoardPair], board: Board, size: tuple[int, int]) -> _RigFit:
    try:
        return _fit_by_opencv(pairs, board, size)
    except cv2.error as error:
        raise _not_determined("OpenCV finds no solution") from error


def _fit_by_opencv(pairs: list[BoardPair], board: Board, size: tuple[int, int]) -> _RigFit:
    left = _fit_camera(board, [pair.left for pair in pairs], size)
    right = _fit_camera(board, [pair.right for pair in pairs], size)
    common = [pair.common for pair in pairs]
    # Both cameras are refined together with the pose: measured, that leaves 4 % less held-out row error than keeping
    # the values of each camera alone. A model of eight coefficients fits no better and doubles the row error.
    rms_px, k1, d1, k2, d2, rotation, translation, _, _, turns, shifts, per_view = cv2.stereoCalibrateExtended(
        [board.points_m[ids] for ids, _, _ in common],
        [corners for _, corners, _ in common],
        [corners for _, _, corners in common],
        left.matrix,
        left.distortion,
        right.matrix,
        right.distortion,
        size,
        np.eye(3),
        np.zeros((3, 1)),
        flags=cv2.CALIB_USE_INTRINSIC_GUESS,
        criteria=(cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 200, 1e-8),
    )
    cameras, translation_m = ((k1, d1), (k2, d2)), np.asarray(translation).ravel()
    shared = pack_shared(cameras, np.asarray(rotation), translation_m)
    poses = [np.concatenate([np.ravel(turn), np.ravel(at)]) for turn, at in zip(turns, shifts, strict=True)]
    return _RigFit(
        cameras=cameras,
        rotation=np.asarray(rotation),
        translation_m=translation_m,
        left_rms_px=left.rms_px,
        right_rms_px=right.rms_px,
        all_rms_px=float(rms_px),
        view_rms_px=np.column_stack([left.view_rms_px, right.view_rms_px]),
        stereo_rms_px=np.sqrt((np.asarray(per_view) ** 2).mean(axis=1)),
        board_rotations=np.array([cv2.Rodrigues(turn)[0] for turn in turns]),
        observations=tuple(
            observe(board.points_m[ids], left_px, right_px, pose, shared)
            for (ids, left_px, right_px), pose in zip(common, poses, strict=True)
        ),
    )


class _CameraFit(NamedTuple):
    """One camera calibrated alone: matrix, px, distortion, and RMS over all views and of each."""

    matrix: Float[np.ndarray, "3 3"]
    distortion: Float[np.ndarray, "..."]
    rms_px: float
    view_rms_px: Float[np.ndarray, " N"]


def _fit_camera(board: Board, views: list[BoardView], size: tuple[int, int]) -> _CameraFit:
    rms_px, matrix, distortion, _, _, _, _, per_view = cv2.calibrateCameraExtended(
        [board.points_m[view.ids] for view in views],
        [view.corners_px for view in views],
        size,
        np.eye(3),
        np.zeros(5),
    )
    return _CameraFit(np.asarray(matrix), np.asarray(distortion), float(rms_px), np.asarray(per_view).ravel())


def _row_errors_px(rig: RigCalibration, pair: BoardPair) -> Float[np.ndarray, " N"]:
    """Return the absolute difference of rows of each common corner after rectification."""
    _, left_px, right_px = pair.common
    left, right = rectify_points(rig, left_px, right_px)
    return np.abs(left[:, 1] - right[:, 1])


def _judge_precision(
    fit: _RigFit, distinct: int, board: Board, height: int, width: int
) -> tuple[Precision, tuple[ProposedView, ...]]:
    """Return the standard deviations of a fit, and which further views would help most.

    Raises:
        CalibrationError: the pairs do not determine the calibration.
    """
    try:
        covariance = estimate_covariance(fit.shared, fit.observations, distinct)
        precision = estimate_precision(fit.shared, covariance, height, width)
        proposed = propose_views(fit.shared, fit.observations, board, height, width)
    except NotDeterminedError:
        raise _not_determined("some of its numbers are not determined at all") from None
    relative = {
        "the focal length": precision.focal_px / fit.shared[0],
        "the baseline": precision.baseline_m / float(np.linalg.norm(fit.translation_m)),
        f"depth at {DEPTHS_M[0]:g} m": precision.depth_m[0] / DEPTHS_M[0],
    }
    worst = max(relative, key=lambda name: relative[name])
    if not relative[worst] <= _MAX_RELATIVE_STD:
        raise _not_determined(f"{worst} would be known to {relative[worst]:.0%} (standard deviation)")
    return precision, tuple(proposed)


def _count_distinct(pairs: list[BoardPair], board: Board, height: int, width: int) -> int:
    """Return how many pairs show the board in a pose of its own."""
    distinct: list[ViewParameters] = []
    for pair in pairs:
        parameters = board.view_parameters(pair.left, height, width)
        if is_new_view(parameters, distinct):
            distinct.append(parameters)
    return len(distinct)


def _list_weaknesses(fit: _RigFit, distinct: int, pairs: int) -> list[str]:
    """Return what is wrong with the choice of the views, one line each."""
    weaknesses: list[str] = []
    if distinct < FEW_PAIRS:
        weaknesses.append(
            f"only {distinct} of {pairs} pairs show the board in a different pose, better 15 to 20; a bad "
            "pair among few is hard to find: move the board over the whole image, near and far, and tilt it"
        )
    if (widest_deg := _widest_angle_deg(fit)) < MIN_ANGLE_DEG:
        weaknesses.append(
            f"the angle of the board differs by at most {widest_deg:.0f} degrees between any two pairs, better "
            f"{MIN_ANGLE_DEG:.0f} and more: tilt it to the left and right, up and down"
        )
    return weaknesses


def _not_determined(reason: str) -> CalibrationError:
    return CalibrationError(
        f"the pairs determine no calibration: {reason}; add pairs in which the board is tilted to the left and right, "
        "up and down, near and far, and in every corner of the image"
    )


def _inconsistent(errors: str) -> CalibrationError:
    return CalibrationError(
        f"the pairs are inconsistent: reprojection error {errors}; is the board flat, is --corners right, and did both "
        "cameras take each pair at the same time?"
    )


def _widest_angle_deg(fit: _RigFit) -> float:
    normals = fit.board_rotations[:, :, 2]
    return float(np.degrees(np.arccos(np.clip(normals @ normals.T, -1, 1))).max())

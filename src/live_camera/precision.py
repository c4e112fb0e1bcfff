"""How precise a calibration is, by the covariance of its fit, and which further views of the board would help most.

The parameters are those of both cameras (fx fy cx cy k1 k2 p1 p2 k3 of each) and the pose of the right one; the pose of
the board in each view is eliminated by the Schur complement (B. Triggs et al., Bundle adjustment, 2000, section 6.1).
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float

from live_camera.board import Board

_CAMERA = 9
"""Parameters of one camera."""
_SHARED = 2 * _CAMERA + 6
DEPTHS_M = (1.0, 3.0)
MIN_VIEWS = 3
"""Two views determine the parameters of an ideal camera, but leave no error to judge them by."""
_PROBES = (0.25, 0.5, 0.75)
"""Where in the left image the precision of depth is computed, as fractions of its width and height."""
_MIN_CORNER_ERROR_PX = 0.03
"""Standard deviation; no detector is better, however well a few corners fit."""
_MAX_CONDITION = 1e13
"""Of the scaled information matrix; beyond it a parameter is not determined at all."""
_MIN_VISIBLE = 0.03
"""A proposed view keeps this distance from the edges of both images, as a fraction of the width."""

Shared = Float[np.ndarray, "24"]
Pose = Float[np.ndarray, "6"]
"""Rotation vector and translation (m) from the board to the left camera."""


class Observation(NamedTuple):
    """What one pair contributes: corners of the board seen by both cameras, and the board's pose.

    Attributes:
        points_m: corners on the board.
        pose: from the board to the left camera.
        residuals_px: reprojection errors of both views, one after the other, x and y in turn.
    """

    points_m: Float[np.ndarray, "N 3"]
    pose: Pose
    residuals_px: Float[np.ndarray, " M"]


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Standard deviations of what a calibration says.

    Attributes:
        focal_px: of the mean horizontal focal length of both cameras.
        baseline_m: of the distance of the cameras.
        depth_m: of a point at each of `DEPTHS_M`, from the calibration alone.
    """

    focal_px: float
    baseline_m: float
    depth_m: tuple[float, ...]


class NotDeterminedError(Exception):
    """The views leave a parameter of the calibration undetermined."""


def pack_shared(
    cameras: tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
    rotation: Float[np.ndarray, "3 3"],
    translation_m: Float[np.ndarray, "3"],
) -> Shared:
    """Return the parameters of both cameras (matrix, distortion) and of their pose as one vector."""
    parts: list[np.ndarray] = []
    for matrix, distortion in cameras:
        parts += [matrix[[0, 1, 0, 1], [0, 1, 2, 2]], np.asarray(distortion).ravel()[:5]]
    return np.concatenate([*parts, cv2.Rodrigues(rotation)[0].ravel(), translation_m])


def reproject(shared: Shared, pose: Pose, points_m: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "2 N 2"]:
    """Return where both cameras see points of a board in a pose, px."""
    left = _project(shared[:_CAMERA], pose, points_m)
    rotation, translation_m, *_ = cv2.composeRT(pose[:3], pose[3:], shared[-6:-3], shared[-3:])
    right_pose = np.concatenate([np.ravel(rotation), np.ravel(translation_m)])
    return np.stack([left, _project(shared[_CAMERA : 2 * _CAMERA], right_pose, points_m)])


class Covariance(NamedTuple):
    """Two estimates of the covariance of the shared parameters.

    Attributes:
        independent: as if each corner had an error of its own.
        clustered: errors of the corners of a view may be alike (a bent board, blur, motion): the sandwich estimate of
            H. White (Econometrica 48, 1980) with views as clusters.

    Both are multiplied by n / (n - 2) for n distinct views: measured on subsets of three real sets, without it errors
    were 1.5 standard deviations (RMS) for 4 views, 1.3 for 6, 1.1 for 8 (docs/experiments/calibration.md).
    """

    independent: Float[np.ndarray, "24 24"]
    clustered: Float[np.ndarray, "24 24"]

    def deviation(self, gradient: Float[np.ndarray, "24"]) -> float:
        """Return the standard deviation of what has this gradient, by the estimate that is larger for it."""
        return float(np.sqrt(max(gradient @ each @ gradient for each in self)))


def estimate_covariance(shared: Shared, observations: Sequence[Observation], distinct: int) -> Covariance:
    """Return the covariance of the shared parameters.

    Args:
        shared: the parameters.
        observations: of each view.
        distinct: how many of the views show the board in a pose of its own; the others repeat their errors.

    Raises:
        NotDeterminedError: the views do not determine all parameters.
    """
    information, scores, squares, count = np.zeros((_SHARED, _SHARED)), [], 0.0, 0
    for observation in observations:
        by_shared, by_pose = differentiate_reprojection(shared, observation.pose, observation.points_m)
        reduced = _without_pose(by_shared, by_pose)
        information += reduced.T @ reduced
        scores.append(reduced.T @ observation.residuals_px)
        squares += float(observation.residuals_px @ observation.residuals_px)
        count += len(observation.residuals_px)
    inverse = _invert(information)
    free, views = count - _SHARED - 6 * len(observations), len(observations)
    if free <= 0 or distinct < MIN_VIEWS:
        raise NotDeterminedError
    few = distinct / (distinct - 2) * views / distinct
    independent = few * inverse * max(squares / free, _MIN_CORNER_ERROR_PX**2)
    meat = np.array(scores).T @ np.array(scores) * views / (views - 1)
    return Covariance(independent=independent, clustered=few * inverse @ meat @ inverse)


def estimate_precision(shared: Shared, covariance: Covariance, height: int, width: int) -> Precision:
    """Return the standard deviations that a covariance of the shared parameters means.

    Args:
        shared: the parameters.
        covariance: of them.
        height: of the images, px.
        width: of the images, px.
    """
    focal = np.zeros(_SHARED)
    focal[[0, _CAMERA]] = 0.5
    baseline = np.zeros(_SHARED)
    baseline[-3:] = shared[-3:] / np.linalg.norm(shared[-3:])
    return Precision(
        focal_px=covariance.deviation(focal),
        baseline_m=covariance.deviation(baseline),
        depth_m=tuple(
            float(np.sqrt(np.mean([covariance.deviation(each) ** 2 for each in gradients])))
            for gradients in (_depth_gradients(shared, depth_m, height, width) for depth_m in DEPTHS_M)
        ),
    )


def _project(camera: Float[np.ndarray, "9"], pose: Pose, points_m: Float[np.ndarray, "N 3"]) -> np.ndarray:
    fx, fy, cx, cy = camera[:4]
    matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    projected, _ = cv2.projectPoints(points_m.astype(np.float64), pose[:3], pose[3:], matrix, camera[4:])
    return np.asarray(projected).reshape(-1, 2)


def _steps() -> Shared:
    """Return a small change of each parameter: px of focal lengths and points, coefficients, radians, metres."""
    camera = np.array([1e-3, 1e-3, 1e-3, 1e-3, 1e-6, 1e-6, 1e-7, 1e-7, 1e-6])
    return np.concatenate([camera, camera, np.full(3, 1e-7), np.full(3, 1e-7)])


def _differentiate(
    function: Callable[[np.ndarray], np.ndarray], at: np.ndarray, steps: np.ndarray
) -> Float[np.ndarray, "M P"]:
    """Return the derivative of a function by each parameter, by central differences."""
    columns: list[np.ndarray] = []
    for index, step in enumerate(steps):
        change = np.zeros_like(at)
        change[index] = step
        columns.append((function(at + change) - function(at - change)).ravel() / (2 * step))
    return np.stack(columns, axis=1)


def differentiate_reprojection(
    shared: Shared, pose: Pose, points_m: Float[np.ndarray, "N 3"]
) -> tuple[Float[np.ndarray, "M 24"], Float[np.ndarray, "M 6"]]:
    """Return the derivatives of `reproject`, flattened, by the shared parameters and by the pose of the board."""
    rotation, translation_m, by_r1, by_t1, by_r2, by_t2, *more = cv2.composeRT(
        pose[:3], pose[3:], shared[-6:-3], shared[-3:]
    )
    right_pose = np.concatenate([np.ravel(rotation), np.ravel(translation_m)])
    left, right = (
        _project_with_jacobian(shared[first : first + _CAMERA], each, points_m)
        for first, each in ((0, pose), (_CAMERA, right_pose))
    )
    # Rows: rotation and translation of the right pose; columns: those of the board's pose, and of the right camera's.
    by_board_pose = np.block([[by_r1, by_t1], [more[0], more[1]]])
    by_rig_pose = np.block([[by_r2, by_t2], [more[2], more[3]]])
    none = np.zeros((len(left), _CAMERA))
    by_shared = np.block(
        [
            [left[:, 6:], none, np.zeros((len(left), 6))],
            [none, right[:, 6:], right[:, :6] @ by_rig_pose],
        ]
    )
    return by_shared, np.vstack([left[:, :6], right[:, :6] @ by_board_pose])


def _project_with_jacobian(
    camera: Float[np.ndarray, "9"], pose: Pose, points_m: Float[np.ndarray, "N 3"]
) -> Float[np.ndarray, "M 15"]:
    """Return the derivatives of a camera's points by rotation, translation, focal lengths, centre and distortion."""
    fx, fy, cx, cy = camera[:4]
    matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    _, jacobian = cv2.projectPoints(points_m.astype(np.float64), pose[:3], pose[3:], matrix, camera[4:])
    return np.asarray(jacobian)


def _without_pose(by_shared: Float[np.ndarray, "M 24"], by_pose: Float[np.ndarray, "M 6"]) -> Float[np.ndarray, "M 24"]:
    """Return what of the derivatives no change of the board's pose can imitate."""
    orthonormal, _ = np.linalg.qr(by_pose)
    return by_shared - orthonormal @ (orthonormal.T @ by_shared)


def _invert(information: Float[np.ndarray, "24 24"]) -> Float[np.ndarray, "24 24"]:
    scale = np.sqrt(np.maximum(np.diag(information), 1e-300))
    scaled = information / np.outer(scale, scale)
    if not np.isfinite(scaled).all() or np.linalg.cond(scaled) > _MAX_CONDITION:
        raise NotDeterminedError
    return np.linalg.inv(scaled) / np.outer(scale, scale)


def _depth_gradients(shared: Shared, depth_m: float, height: int, width: int) -> list[Float[np.ndarray, "24"]]:
    """Return how the measured depth of points at a depth depends on the shared parameters.

    A matcher finds a point of the left image at a column x of the right one, whatever the parameters are. So where a
    parameter would move x, the depth has to move it back: dZ/dp = -(dx/dp) / (dx/dZ).
    """
    gradients: list[np.ndarray] = []
    for across, down in itertools.product(_PROBES, _PROBES):
        pixel = np.array([[[across * width, down * height]]])

        def column(values: np.ndarray, pixel: np.ndarray = pixel) -> np.ndarray:
            fx, fy, cx, cy = values[:4]
            matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
            ray = np.asarray(cv2.undistortPoints(pixel, matrix, values[4:_CAMERA])).ravel()
            point_m = values[-1] * np.array([[ray[0], ray[1], 1.0]])
            return _project(values[_CAMERA : 2 * _CAMERA], values[-7:-1], point_m)[:, 0]

        steps = np.append(_steps(), 1e-6)
        derivative = _differentiate(column, np.append(shared, depth_m), steps).ravel()
        gradients.append(-derivative[:-1] / derivative[-1])
    return gradients


@dataclass(frozen=True, kw_only=True)
class ProposedView:
    """A view of the board that would make the calibration more precise.

    Attributes:
        description: where and how to hold the board.
        depth_ratio: the standard deviation of depth at the last of `DEPTHS_M` with this view and those proposed before
            it, over that of the calibration as it is.
    """

    description: str
    depth_ratio: float


_PLACES = ("left", "middle", "right"), ("top", "middle", "bottom")
_TILTS = {
    "facing the cameras": (0.0, 0.0),
    "its left side turned away": (0.0, -0.5),
    "its right side turned away": (0.0, 0.5),
    "its upper side tilted away": (0.5, 0.0),
    "its lower side tilted away": (-0.5, 0.0),
}
_WIDTHS = {
    "near, across half of the image": 0.5,
    "across a third of the image": 0.33,
    "far, across a fifth of the image": 0.2,
}


def propose_views(
    shared: Shared, observations: Sequence[Observation], board: Board, height: int, width: int, *, views: int = 2
) -> list[ProposedView]:
    """Return the views that would help most, one after the other, of those that a person can be told to hold.

    Corners are assumed to be as accurate as those of the calibration.
    """
    reduced = [_without_pose(*differentiate_reprojection(shared, each.pose, each.points_m)) for each in observations]
    information = sum((each.T @ each for each in reduced), np.zeros((_SHARED, _SHARED)))
    gradients = _depth_gradients(shared, DEPTHS_M[-1], height, width)
    before = _mean_variance(information, gradients)
    candidates = {
        text: candidate.T @ candidate
        for text, candidate in (
            (text, _without_pose(*differentiate_reprojection(shared, pose, board.points_m)))
            for text, pose in _candidate_poses(shared, board, height, width)
        )
    }
    proposed: list[ProposedView] = []
    for _ in range(min(views, len(candidates))):
        after = {text: _mean_variance(information + each, gradients) for text, each in candidates.items()}
        best = min(after, key=lambda text: after[text])
        information = information + candidates.pop(best)
        proposed.append(ProposedView(description=best, depth_ratio=float(np.sqrt(after[best] / before))))
    return proposed


def _mean_variance(information: Float[np.ndarray, "24 24"], gradients: Sequence[np.ndarray]) -> float:
    inverse = _invert(information)
    return float(np.mean([each @ inverse @ each for each in gradients]))


def _candidate_poses(shared: Shared, board: Board, height: int, width: int) -> list[tuple[str, Pose]]:
    """Return descriptions and poses of the board that both cameras would see as a whole."""
    fx, fy, cx, cy = shared[:4]
    middle_m = (board.points_m.min(axis=0) + board.points_m.max(axis=0)) / 2
    board_width_m = float(np.ptp(board.points_m[:, 0]))
    poses: list[tuple[str, Pose]] = []
    for (size_text, fraction), (tilt_text, tilt) in itertools.product(_WIDTHS.items(), _TILTS.items()):
        depth_m = fx * board_width_m / (fraction * width)
        rotation = cv2.Rodrigues(np.array([*tilt, 0.0]))[0]
        corners_m = (board.points_m - middle_m) @ rotation.T
        half_px = np.abs(corners_m[:, :2]).max(axis=0) * [fx, fy] / (depth_m - np.abs(corners_m[:, 2]).max())
        margin_px = half_px + _MIN_VISIBLE * width
        for column, row in itertools.product(range(3), range(3)):
            at_px = margin_px + np.array([column, row]) / 2 * ([width, height] - 2 * margin_px)
            centre_m = depth_m * np.array([(at_px[0] - cx) / fx, (at_px[1] - cy) / fy, 1.0])
            pose = np.concatenate([cv2.Rodrigues(rotation)[0].ravel(), centre_m - rotation @ middle_m])
            both = reproject(shared, pose, board.points_m)
            if (both < 0).any() or (both > [width, height]).any():
                continue
            place = f"at the {_PLACES[1][row]} {_PLACES[0][column]}" if (column, row) != (1, 1) else "in the middle"
            poses.append((f"{place}, {size_text}, {tilt_text}", pose))
    return poses


def observe(
    points_m: Float[np.ndarray, "N 3"],
    left_px: Float[np.ndarray, "N 2"],
    right_px: Float[np.ndarray, "N 2"],
    pose: Pose,
    shared: Shared,
) -> Observation:
    """Return what one pair contributes: the same corners in both views, and the fitted pose of the board."""
    residuals_px = np.stack([left_px, right_px]) - reproject(shared, pose, points_m)
    return Observation(np.asarray(points_m, np.float64), pose, residuals_px.ravel())

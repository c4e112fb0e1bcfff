"""How the two raw images of a rig are rectified: checked where a calibration gives it, chosen where it does not.

OpenCV's `stereoRectify` chooses good rotations for every rig, but for lenses wider than some 110 degrees its projection
is noise: a focal length of 37 px where the camera has 285, a principal point outside the image. So its result is
looked at, and where it is of no use the projection is chosen here, from the angles that both cameras see.
"""

import math
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Bool, Float

from foundation_stereo_depth.errors import CalibrationError

DistortionModel = Literal["radtan", "equidistant"]
"""OpenCV's usual model with up to 14 coefficients, and its fisheye model with 4."""

_WIDEST_RAD = math.radians(57.5)
"""Half of the widest view that is rectified into one plane: beyond it pixels are stretched by more than three times."""
_LEAST_HALF_VIEW = math.tan(math.radians(5))
"""Both cameras have to see at least this far to either side of straight ahead."""
_FOCAL_RATIOS = (0.4, 3.0)
_CHOSEN_FOCAL_RATIOS = (0.4, 1.0)
"""Rectified focal length over the raw one: what is taken from OpenCV, and what is chosen here."""
_PRINCIPAL_POINTS = (0.1, 0.9)
"""Where in the rectified image straight ahead may lie, as a fraction of width and height."""
_LEAST_COVERED = 0.5
"""Least fraction of a rectified image that comes from within the raw one."""
_PROBES = 256
_NOISE_FOCAL_RATIO, _NOISE_OFFSET = 0.2, 1.0
"""A given projection is noise where its focal length is shorter, or its principal point farther from the middle."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Rectification:
    """The rotations and projections of OpenCV's stereoRectify: R1 R2 P1 P2.

    Attributes:
        left_rotation, right_rotation: from each camera's axes to the rectified ones.
        left_projection, right_projection: of the rectified cameras, px; the right one holds -f B (px m) at [0, 3].
            Where both are relative to a third camera, as KITTI's, both hold such a number.
    """

    left_rotation: Float[np.ndarray, "3 3"]
    right_rotation: Float[np.ndarray, "3 3"]
    left_projection: Float[np.ndarray, "3 4"]
    right_projection: Float[np.ndarray, "3 4"]

    def __post_init__(self) -> None:
        for name, projection in (("P1", self.left_projection), ("P2", self.right_projection)):
            if not (np.isfinite(projection).all() and min(projection[0, 0], projection[1, 1], projection[2, 2]) > 0):
                raise CalibrationError(f"{name} is no projection: it has to be finite, with focal lengths above 0")

    @property
    def translation_m(self) -> Float[np.ndarray, "3"]:
        """T between the rectified cameras, K2^-1 p2 - K1^-1 p1: (-baseline, 0, 0) where they stand side by side."""
        left, right = self.left_projection, self.right_projection
        return np.linalg.solve(right[:, :3], right[:, 3]) - np.linalg.solve(left[:, :3], left[:, 3])

    @property
    def baseline_m(self) -> float:
        """The distance of the cameras; below 0 where left and right are swapped."""
        return float(-self.translation_m[0])

    @property
    def disparity_to_depth(self) -> Float[np.ndarray, "4 4"]:
        """OpenCV's Q: (column, row, disparity, 1) -> homogeneous metres."""
        left, right = self.left_projection, self.right_projection
        q = np.eye(4)
        q[0, 3], q[1, 3] = -left[0, 2], -left[1, 2]
        q[2, 2:] = 0.0, left[0, 0]
        q[3, 2:] = 1 / self.baseline_m, -(left[0, 2] - right[0, 2]) / self.baseline_m
        return q

    def relative_to_left(self) -> "Rectification":
        """Return the same with the left camera at the origin: P1's fourth column is 0, P2's is K2 T."""
        if not self.left_projection[:, 3].any():
            return self
        left, right = self.left_projection.copy(), self.right_projection.copy()
        left[:, 3], right[:, 3] = 0.0, right[:, :3] @ self.translation_m
        return Rectification(
            left_rotation=self.left_rotation,
            right_rotation=self.right_rotation,
            left_projection=left,
            right_projection=right,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Lens:
    """One raw camera: its matrix, its distortion, and where its image ends.

    Attributes:
        matrix: fx, fy, cx, cy, px.
        distortion: coefficients in OpenCV's order.
        model: of the distortion.
        width, height: of the raw image, px.
    """

    matrix: Float[np.ndarray, "3 3"]
    distortion: Float[np.ndarray, " N"]
    model: DistortionModel
    width: int
    height: int

    def sees(self, rays: Float[np.ndarray, "N 3"]) -> Bool[np.ndarray, " N"]:
        """Return which rays, in the camera's axes, end within the image and within what the lens model describes."""
        ahead = rays[:, 2] > 1e-6
        safe = np.where(ahead[:, None], rays, [0.0, 0.0, 1.0])
        points, still = np.ascontiguousarray(safe[:, None], np.float64), np.zeros(3)
        if self.model == "equidistant":
            pixels, _ = cv2.fisheye.projectPoints(points, still, still, self.matrix, self.distortion)
        else:
            pixels, _ = cv2.projectPoints(points, still, still, self.matrix, self.distortion)
        x, y = np.asarray(pixels).reshape(-1, 2).T
        inside = (x >= -0.5) & (x <= self.width - 0.5) & (y >= -0.5) & (y <= self.height - 0.5)
        radius = np.hypot(safe[:, 0], safe[:, 1]) / safe[:, 2]
        return ahead & inside & (radius <= self._largest_radius())

    def _largest_radius(self) -> float:
        """Return the tangent of the angle up to which the distortion grows; beyond it the polynomial folds back."""
        angle = np.linspace(0, math.radians(85), 1000)
        padded = np.zeros(8)
        padded[: min(8, len(self.distortion))] = self.distortion[:8]
        if self.model == "equidistant":
            square = angle**2
            distorted = angle * (1 + square * np.polynomial.polynomial.polyval(square, padded[:4]))
        else:
            k1, k2, _, _, k3, k4, k5, k6 = padded
            r = np.tan(angle)
            square = r**2
            numerator = np.polynomial.polynomial.polyval(square, [1, k1, k2, k3])
            distorted = r * numerator / np.polynomial.polynomial.polyval(square, [1, k4, k5, k6])
        folds = np.flatnonzero(~(np.diff(distorted) > 0))
        return float(np.tan(angle[folds[0]])) if len(folds) else math.inf


def compute_rectification(
    left: Lens, right: Lens, rotation: Float[np.ndarray, "3 3"], translation_m: Float[np.ndarray, "3"]
) -> Rectification:
    """Return OpenCV's rectification, zoomed until hardly a pixel is missing; for wide lenses one chosen by angles.

    Args:
        left: the left camera.
        right: the right camera, of the same image size and model.
        rotation: R of X_right = R X_left + T.
        translation_m: T.

    Raises:
        CalibrationError: the cameras do not look the same way, so no rectified image shows what both see.
    """
    cameras = (left.matrix, left.distortion, right.matrix, right.distortion)
    size, pose = (left.width, left.height), (rotation, translation_m[:, None])
    try:
        if left.model == "equidistant":
            r1, r2, p1, p2, _ = cv2.fisheye.stereoRectify(*cameras, size, *pose, flags=cv2.CALIB_ZERO_DISPARITY)
        else:
            r1, r2, p1, p2, _, _, _ = cv2.stereoRectify(*cameras, size, *pose, flags=cv2.CALIB_ZERO_DISPARITY, alpha=0)
    except cv2.error as error:
        raise CalibrationError("OpenCV finds no rectification for this rig; are its numbers right?") from error
    rotations = (np.asarray(r1, np.float64), np.asarray(r2, np.float64))
    if _is_usable(np.asarray(p1), rotations, (left, right)):
        projections = (np.asarray(p1), np.asarray(p2))
    else:
        projections = _choose_projections(rotations, (left, right), float(np.linalg.norm(translation_m)))
    return Rectification(
        left_rotation=rotations[0],
        right_rotation=rotations[1],
        left_projection=projections[0],
        right_projection=projections[1],
    )


def check_given(rectification: Rectification, left: Lens) -> None:
    """Check that a rectification that a calibration gives is no noise of the kind that stereoRectify can return.

    Raises:
        CalibrationError: its focal length or principal point belongs to no image that is of use.
    """
    given = rectification.left_projection
    focal_ratio = given[0, 0] / left.matrix[0, 0]
    across, down = given[0, 2] / left.width, given[1, 2] / left.height
    if focal_ratio < _NOISE_FOCAL_RATIO or max(abs(across - 0.5), abs(down - 0.5)) > _NOISE_OFFSET:
        raise CalibrationError(
            f"P1 has a focal length of {given[0, 0]:.4g} px and its principal point at ({given[0, 2]:.0f}, "
            f"{given[1, 2]:.0f}) in images of {left.width}x{left.height}, which is of no use: stereoRectify "
            "fails so for wide lenses; leave R1, R2, P1, P2 out of the file, and they are computed by another rule"
        )


def _is_usable(
    projection: Float[np.ndarray, "3 4"], rotations: tuple[np.ndarray, np.ndarray], lenses: tuple[Lens, Lens]
) -> bool:
    """True for a projection that a person could use: a plausible focal length, straight ahead in it, hardly a hole."""
    width, height = lenses[0].width, lenses[0].height
    focal_px, cx, cy = projection[0, 0], projection[0, 2], projection[1, 2]
    if not (np.isfinite(projection).all() and focal_px > 0):
        return False
    ratio = focal_px / ((lenses[0].matrix[0, 0] + lenses[1].matrix[0, 0]) / 2)
    low, high = _PRINCIPAL_POINTS
    return bool(
        _FOCAL_RATIOS[0] <= ratio <= _FOCAL_RATIOS[1]
        and low <= cx / width <= high
        and low <= cy / height <= high
        and math.atan(cx / focal_px) + math.atan((width - cx) / focal_px) <= math.radians(120)
        and all(
            _covered(projection, rotation, lens) >= _LEAST_COVERED
            for rotation, lens in zip(rotations, lenses, strict=True)
        )
    )


def _covered(projection: Float[np.ndarray, "3 4"], rotation: Float[np.ndarray, "3 3"], lens: Lens) -> float:
    """Return the fraction of the rectified image that comes from within the raw one."""
    x, y = np.meshgrid(np.linspace(0, lens.width - 1, 16), np.linspace(0, lens.height - 1, 12))
    pixels = np.stack([x.ravel(), y.ravel(), np.ones(x.size)])
    rays = rotation.T @ np.linalg.solve(projection[:, :3], pixels)
    return float(lens.sees(rays.T).mean())


def _choose_projections(
    rotations: tuple[np.ndarray, np.ndarray], lenses: tuple[Lens, Lens], baseline_m: float
) -> tuple[Float[np.ndarray, "3 4"], Float[np.ndarray, "3 4"]]:
    """Return P1 and P2 that show what both cameras see, at most 115 degrees across, with straight ahead in sight."""
    width, height = lenses[0].width, lenses[0].height
    (left_edge, right_edge), (top, bottom) = (_common_range(axis, rotations, lenses) for axis in (0, 1))
    raw_px = (lenses[0].matrix[0, 0] + lenses[1].matrix[0, 0]) / 2
    focal_px = max(width / (right_edge - left_edge), height / (bottom - top))
    focal_px = float(np.clip(focal_px, _CHOSEN_FOCAL_RATIOS[0] * raw_px, _CHOSEN_FOCAL_RATIOS[1] * raw_px))
    focal_px = max(focal_px, width / 2 / math.tan(_WIDEST_RAD))
    low, high = _PRINCIPAL_POINTS
    cx = float(np.clip((width - 1) / 2 - focal_px * (left_edge + right_edge) / 2, low * width, high * width))
    cy = float(np.clip((height - 1) / 2 - focal_px * (top + bottom) / 2, low * height, high * height))
    left = np.array([[focal_px, 0, cx, 0], [0, focal_px, cy, 0], [0, 0, 1.0, 0]])
    right = left.copy()
    right[0, 3] = -focal_px * baseline_m
    for name, rotation, lens in zip(("left", "right"), rotations, lenses, strict=True):
        if (covered := _covered(left, rotation, lens)) < _LEAST_COVERED:
            raise CalibrationError(
                f"no rectification shows what both cameras see: only {covered:.0%} of the {name} image would be "
                "filled; do the cameras look the same way, and do the lens's coefficients belong to this model?"
            )
    return left, right


def _common_range(
    axis: int, rotations: tuple[np.ndarray, np.ndarray], lenses: tuple[Lens, Lens]
) -> tuple[float, float]:
    """Return the tangents of the angles, along x (0) or y (1), between which both cameras see without a gap."""
    angles = np.linspace(0, _WIDEST_RAD, _PROBES)
    ends: list[float] = []
    for sign in (-1, 1):
        rays = np.zeros((_PROBES, 3))
        rays[:, axis], rays[:, 2] = sign * np.tan(angles), 1.0
        seen = np.logical_and(*(lens.sees(rays @ rotation) for rotation, lens in zip(rotations, lenses, strict=True)))
        last = len(seen) - 1 if seen.all() else int(np.argmin(seen)) - 1
        reach = math.tan(angles[max(last, 0)])
        if reach < _LEAST_HALF_VIEW:
            raise CalibrationError(
                "no rectification shows what both cameras see: straight ahead lies at the edge of an image or beyond; "
                "do the cameras look the same way?"
            )
        ends.append(sign * reach)
    return ends[0], ends[1]

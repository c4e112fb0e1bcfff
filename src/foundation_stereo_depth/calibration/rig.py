"""A rig of two cameras: what calibration found out, checked; and how its pictures become rectified.

OpenCV's conventions: a point at X in the left camera's axes (x right, y down, z forward) stands at R X + T in the right
camera's, so a right eye that is right of the left one has T[0] < 0. Metres and pixels.
"""

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Float

from foundation_stereo_depth.errors import CalibrationError
from foundation_stereo_depth.stereo.geometry import StereoCalibration

SMALLEST_BASELINE_M = 0.01
LARGEST_BASELINE_M = 2.0
"""Rigs that people hold or mount lie between; anything else is more likely a mistake of units."""

_ROTATION_TOLERANCE = 1e-3
"""Largest entry of R R' - I: files that keep four digits still pass."""
_RECTIFICATION_TOLERANCE = 0.01
"""How far a given rectification may turn, rad, and its baseline differ, relatively, from what R and T say."""
_ASPECT_TOLERANCE = 0.01
_FAR_OFF, _OUTSIDE = 0.1, 0.5
"""Shares of the picture by which a principal point is off its middle: unusual, and beyond its edge."""
_TOO_SMALL, _ALIKE = 0.35, 0.05
"""Where both are off by one factor, across and down, the picture size is wrong."""
_COEFFICIENTS = {"radtan": (0, 4, 5, 8, 12, 14), "equidistant": (4,)}
"""How many distortion coefficients OpenCV's two models take."""

DistortionModel = Literal["radtan", "equidistant"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Rectification:
    """How both eyes are turned until rows meet rows, and projected again: OpenCV's R1 R2 P1 P2.

    Attributes:
        left_rotation, right_rotation: from each camera's axes to the rectified ones.
        left_projection, right_projection: of the rectified eyes, px; the right one holds -f B (px m) at [0, 3].
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
        """T between the rectified eyes: (-baseline, 0, 0) where they stand side by side."""
        return np.linalg.solve(self.right_projection[:, :3], self.right_projection[:, 3])

    @property
    def baseline_m(self) -> float:
        """The distance of the eyes; below 0 where they are exchanged."""
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


@dataclass(frozen=True, kw_only=True, eq=False)
class RigCalibration:
    """Two cameras and how they stand to each other, as OpenCV's stereoCalibrate tells it, at one picture size.

    Attributes:
        width, height: of the raw pictures that the rest refers to, px.
        left_matrix, right_matrix: fx, fy, cx, cy in px, as 3x3 camera matrices.
        left_distortion, right_distortion: coefficients in OpenCV's order; none where pictures are free of it.
        distortion_model: radtan (OpenCV's usual model, up to 14 coefficients) or equidistant (its fisheye, 4).
        rotation, translation_m: X_right = R X_left + T.
        rectification: as the calibration gives it; None has it computed.

    Raises:
        CalibrationError: this is no horizontal rig with the left eye on the left, or numbers contradict each other.
    """

    width: int
    height: int
    left_matrix: Float[np.ndarray, "3 3"]
    left_distortion: Float[np.ndarray, " N"]
    right_matrix: Float[np.ndarray, "3 3"]
    right_distortion: Float[np.ndarray, " M"]
    distortion_model: DistortionModel = "radtan"
    rotation: Float[np.ndarray, "3 3"]
    translation_m: Float[np.ndarray, "3"]
    rectification: Rectification | None = None

    def __post_init__(self) -> None:
        _check_cameras(self)
        _check_pose(self)
        if self.rectification is not None:
            _check_rectification(self, self.rectification)

    @functools.cached_property
    def rectified(self) -> Rectification:
        """The rectification that the calibration gives, or else OpenCV's, zoomed until hardly a pixel is missing."""
        if self.rectification is not None:
            return self.rectification
        cameras = (self.left_matrix, self.left_distortion, self.right_matrix, self.right_distortion)
        size, pose = (self.width, self.height), (self.rotation, self.translation_m[:, None])
        if self.distortion_model == "equidistant":
            r1, r2, p1, p2, _ = cv2.fisheye.stereoRectify(*cameras, size, *pose, flags=cv2.CALIB_ZERO_DISPARITY)
        else:
            r1, r2, p1, p2, _, _, _ = cv2.stereoRectify(*cameras, size, *pose, flags=cv2.CALIB_ZERO_DISPARITY, alpha=0)
        return Rectification(left_rotation=r1, right_rotation=r2, left_projection=p1, right_projection=p2)

    @property
    def stereo_calibration(self) -> StereoCalibration:
        """What depth needs to know of rectified pictures of the calibration's own size."""
        left, right = self.rectified.left_projection, self.rectified.right_projection
        return StereoCalibration(
            width=self.width,
            height=self.height,
            focal_px=float(left[0, 0]),
            focal_y_px=float(left[1, 1]),
            cx_left_px=float(left[0, 2]),
            cx_right_px=float(right[0, 2]),
            cy_px=float(left[1, 2]),
            baseline_m=self.rectified.baseline_m,
        )

    def with_far_in_view(self) -> "RigCalibration":
        """One that gives what is far a disparity of 0 where this one gives less, which no matcher looks for.

        The right eye's rectified picture is moved by that much; everything else stays. Calibrations by
        `stereoRectify` without CALIB_ZERO_DISPARITY may be so. Pictures that are rectified already are left alone.
        """
        given = self.rectified
        offset_px = float(given.left_projection[0, 2] - given.right_projection[0, 2])
        if offset_px >= 0 or self._is_rectified_already:
            return self
        moved = given.right_projection.copy()
        moved[0, 2] += offset_px
        return dataclasses.replace(self, rectification=dataclasses.replace(given, right_projection=moved))

    @property
    def _is_rectified_already(self) -> bool:
        rectified = self.rectified
        rotations = (rectified.left_rotation, rectified.right_rotation)
        return (
            all(np.array_equal(rotation, np.eye(3)) for rotation in rotations)
            and not self.left_distortion.any()
            and not self.right_distortion.any()
            and np.array_equal(rectified.left_projection[:, :3], self.left_matrix)
            and np.array_equal(rectified.right_projection[:, :3], self.right_matrix)
        )

    def check_size(self, height: int, width: int) -> None:
        """Lets pass raw pictures of the calibration's size, or of another with the same aspect.

        Raises:
            CalibrationError: their aspect differs, so the camera cropped them or the calibration is another camera's.
        """
        if abs(width / height * self.height / self.width - 1) > _ASPECT_TOLERANCE:
            raise CalibrationError(
                f"images of {width}x{height} do not fit a calibration made at {self.width}x{self.height}: the "
                "aspect differs, so one cannot be scaled to the other; use the calibrated size, or calibrate at this"
            )


def rectified_already(
    *,
    width: int,
    height: int,
    left: Float[np.ndarray, "3 3"],
    right: Float[np.ndarray, "3 3"],
    translation_m: Float[np.ndarray, "3"],
) -> RigCalibration:
    """The rig of pictures that are rectified: no distortion, no turning, eyes side by side.

    Args:
        width: of the pictures, px.
        height: of the pictures, px.
        left: camera matrix.
        right: camera matrix; only cx may differ from the left one's.
        translation_m: T, (-baseline, 0, 0).
    """
    return RigCalibration(
        width=width,
        height=height,
        left_matrix=left,
        left_distortion=np.zeros(0),
        right_matrix=right,
        right_distortion=np.zeros(0),
        rotation=np.eye(3),
        translation_m=translation_m,
        rectification=Rectification(
            left_rotation=np.eye(3),
            right_rotation=np.eye(3),
            left_projection=np.column_stack([left, np.zeros(3)]),
            right_projection=np.column_stack([right, right @ translation_m]),
        ),
    )


def _check_cameras(rig: RigCalibration) -> None:
    if rig.width < 1 or rig.height < 1:
        raise CalibrationError(f"a picture size of {rig.width}x{rig.height} px; it has to be above 0")
    eyes = (("left", rig.left_matrix, rig.left_distortion), ("right", rig.right_matrix, rig.right_distortion))
    for eye, matrix, distortion in eyes:
        if not (np.isfinite(matrix).all() and np.isfinite(distortion).all()):
            raise CalibrationError(f"the {eye} camera's numbers are not all finite")
        if len(distortion) not in _COEFFICIENTS[rig.distortion_model]:
            raise CalibrationError(
                f"{len(distortion)} distortion coefficients of the {eye} camera; {rig.distortion_model} takes "
                f"{', '.join(map(str, _COEFFICIENTS[rig.distortion_model]))}"
            )
        fx, fy, cx, cy = matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]
        if not np.allclose(matrix, [[fx, 0, cx], [0, fy, cy], [0, 0, 1]], atol=1e-3):
            raise CalibrationError(
                f"the {eye} camera's matrix is not (fx 0 cx; 0 fy cy; 0 0 1); is it transposed, or another matrix?"
            )
        # Lenses from a 4-degree telephoto to a 160-degree fisheye, and pixels at most twice as wide as high.
        if not (0.1 * rig.width < fx < 15 * rig.width and 0.5 < fx / fy < 2):
            raise CalibrationError(
                f"focal lengths of {fx:.4g} and {fy:.4g} px in pictures {rig.width} px wide belong to no usual {eye} "
                "camera; are they in px, and is the picture size the calibrated one?"
            )
        across, down = cx / rig.width, cy / rig.height
        if max(across, down) < _TOO_SMALL and abs(across - down) < _ALIKE:
            raise CalibrationError(
                f"the {eye} camera's principal point ({cx:.1f}, {cy:.1f}) lies at {across:.2f} of the width and "
                f"{down:.2f} of the height; was it calibrated with pictures smaller than {rig.width}x{rig.height}?"
            )
        off = _off_centre(across, down)
        if off >= _OUTSIDE or (off > _FAR_OFF and _off_centre(cx / rig.height, cy / rig.width) < off / 3):
            raise CalibrationError(
                f"the {eye} camera's principal point ({cx:.1f}, {cy:.1f}) does not lie in {rig.width}x{rig.height} "
                "pictures as it would in those it was calibrated with; is the size right, width before height?"
            )


def _off_centre(across: float, down: float) -> float:
    """How far a point, in shares of width and height, is from the middle: 1/2 at the edges."""
    return max(abs(across - 0.5), abs(down - 0.5))


def _check_pose(rig: RigCalibration) -> None:
    _check_rotation("R", rig.rotation)
    x, y, z = (float(value) for value in rig.translation_m)
    if not all(map(math.isfinite, (x, y, z))):
        raise CalibrationError("T, the right camera's place, is not finite")
    if abs(y) > abs(x) and abs(y) > abs(z):
        raise CalibrationError(
            f"T is ({x:.4g}, {y:.4g}, {z:.4g}) m: one eye is above the other; only rigs side by side work: turn both "
            "cameras, or their pictures, by 90 degrees and calibrate again"
        )
    if abs(z) > abs(x):
        raise CalibrationError(
            f"T is ({x:.4g}, {y:.4g}, {z:.4g}) m: one eye is behind the other, which is no stereo rig; is it T of "
            "X_right = R X_left + T?"
        )
    if x > 0:
        raise CalibrationError(
            f"T is ({x:.4g}, {y:.4g}, {z:.4g}) m, but a right eye right of the left one has T[0] < 0 (X_right = R "
            "X_left + T): the eyes are exchanged; exchange left and right, or the calibration's two cameras"
        )
    baseline_m = math.hypot(x, y, z)
    if not SMALLEST_BASELINE_M <= baseline_m <= LARGEST_BASELINE_M:
        raise CalibrationError(
            f"a baseline of {baseline_m:.4g} m, where {SMALLEST_BASELINE_M} to {LARGEST_BASELINE_M} are plausible: is "
            "its unit another? --calibration-unit mm (or cm, m) says which; or was the square size left out?"
        )


def _check_rectification(rig: RigCalibration, given: Rectification) -> None:
    left, right = given.left_projection, given.right_projection
    _check_rotation("R1", given.left_rotation)
    _check_rotation("R2", given.right_rotation)
    if np.abs(left[:, :3] - right[:, :3])[[0, 1, 1], [0, 1, 2]].max() > 1e-3 * left[0, 0]:
        raise CalibrationError(
            "P1 and P2 differ in focal length or row of the principal point: rows would not meet rows"
        )
    baseline_m = float(np.linalg.norm(rig.translation_m))
    if not abs(given.baseline_m / baseline_m - 1) <= _RECTIFICATION_TOLERANCE:
        raise CalibrationError(
            f"P2 says a baseline of {given.baseline_m:.4g} m, T one of {baseline_m:.4g} m; are they in two units, "
            "or of two calibrations?"
        )
    # Rectified axes are common ones: both cameras' rotations lead to them, and T lies along their rows.
    relative = given.right_rotation @ rig.rotation @ given.left_rotation.T
    turned = np.abs(relative - np.eye(3)).max()
    along = given.right_rotation @ rig.translation_m / baseline_m
    if max(turned, np.abs(along - [-1, 0, 0]).max()) > _RECTIFICATION_TOLERANCE:
        raise CalibrationError("R1 and R2 do not rectify a rig with this R and T; are they another calibration's?")


def _check_rotation(name: str, rotation: Float[np.ndarray, "3 3"]) -> None:
    error = np.abs(rotation @ rotation.T - np.eye(3)).max()
    if not error <= _ROTATION_TOLERANCE or np.linalg.det(rotation) < 0:
        raise CalibrationError(
            f"{name} is no rotation: {name} {name}' differs from the identity by {error:.2g}, its determinant is "
            f"{np.linalg.det(rotation):.4g}"
        )

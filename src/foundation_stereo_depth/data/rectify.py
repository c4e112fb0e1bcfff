"""Raw frames of the camera's size -> a rectified pair of the network's size, in one remap per view."""

import logging
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, Float32, UInt8

from foundation_stereo_depth.calibration.rig import RigCalibration, create_rectified_rig
from foundation_stereo_depth.data.sample import resize_image
from foundation_stereo_depth.errors import CalibrationError
from foundation_stereo_depth.stereo.geometry import StereoCalibration

logger = logging.getLogger(__name__)

_FAR_M = 30.0
"""Few rigs of webcams can measure anything farther."""
_UNMOVED_PX = 0.05
"""Rectification that moves no pixel by more is left out: the images are rectified already."""


def create_rectifier(
    calibration: RigCalibration | None, *, height: int, width: int, rectify: bool = True
) -> "Rectifier | Resizer":
    """Return what makes a pair one that can be matched: rectified, or only resized.

    Pairs are only resized where there is no calibration, where `rectify` is off, and where the calibration would move
    no pixel because it describes images that are rectified already.

    Args:
        calibration: of the rig.
        height: of the resulting pair, px.
        width: the same.
        rectify: the pairs are raw.
    """
    if calibration is not None and rectify and largest_shift_px(calibration) > _UNMOVED_PX:
        return Rectifier(calibration, height=height, width=width)
    return Resizer(calibration, height=height, width=width)


def warn_of_near_limit(stereo: StereoCalibration | None) -> None:
    """Log a warning where a calibration gives points of a room a negative disparity, which no matcher finds."""
    if stereo is not None and stereo.farthest_m < _FAR_M:
        logger.warning(
            "depths beyond %.3g m cannot be measured: the calibration gives them a negative disparity",
            stereo.farthest_m,
        )


class Rectifier:
    """Rectifies pairs by a calibration and resizes them in the same step.

    Where the output is smaller than the input, each pixel is the mean of as many samples as it covers input pixels, so
    that nothing aliases; very large frames are first shrunk by a whole factor, which is four times as fast.

    Args:
        calibration: of the rig.
        height, width: of the rectified pair, px; another aspect than the camera's stretches it.

    Attributes:
        height, width: as given.
        given: the calibration as given.
        calibration: of the raw frames, with the rectification that is applied to them.
        stereo_calibration: of the rectified pair, at its size.
    """

    def __init__(self, calibration: RigCalibration, *, height: int, width: int) -> None:
        self.given: RigCalibration | None = calibration
        calibration = calibration.with_far_in_view()
        self.calibration: RigCalibration | None = calibration
        self._calibration = calibration
        self._maps: _Maps | None = None
        self.height, self.width = height, width
        self.stereo_calibration: StereoCalibration = calibration.stereo_calibration.resized(height, width)

    def __call__(
        self, left: UInt8[np.ndarray, "H W 3"], right: UInt8[np.ndarray, "H2 W2 3"]
    ) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w 3"]]:
        """Return the rectified pair, RGB; black outside of what a camera saw.

        Args:
            left: raw, RGB, of the calibration's size or another of its aspect.
            right: the same of the right camera, of the size of the left one.

        Raises:
            CalibrationError: the aspect is not the calibration's, or the two differ in size.
        """
        height, width = left.shape[:2]
        if right.shape != left.shape:
            raise CalibrationError(
                f"the left frame is {width}x{height}, the right one {right.shape[1]}x{right.shape[0]}; both need the "
                "size at which the rig was calibrated"
            )
        if self._maps is None or (height, width) != (self._maps.height, self._maps.width):
            self._maps = self._compute_maps(height, width)
        return self._remap(left, self._maps, 0), self._remap(right, self._maps, 1)

    def _remap(self, image: UInt8[np.ndarray, "H W 3"], maps: "_Maps", view: int) -> UInt8[np.ndarray, "h w 3"]:
        if maps.shrunk_size != (maps.width, maps.height):
            image = np.asarray(cv2.resize(image, maps.shrunk_size, interpolation=cv2.INTER_AREA), np.uint8)
        fine = cv2.remap(image, *maps.views[view], cv2.INTER_LINEAR)
        if fine.shape[:2] != (self.height, self.width):
            fine = cv2.resize(fine, (self.width, self.height), interpolation=cv2.INTER_AREA)
        return np.asarray(fine, np.uint8)

    def _compute_maps(self, height: int, width: int) -> "_Maps":
        self._calibration.check_size(height, width)
        raw_size = np.array([width, height])
        size = np.array([self.width, self.height])
        covered = np.maximum(1, np.round(raw_size / size)).astype(int)
        # Half of the factor first: shrinking and then averaging two samples a side costs 45 dB of fidelity at most.
        shrunk = raw_size // np.maximum(1, covered // 2)
        samples = np.maximum(1, np.round(shrunk / size)).astype(int) * size
        scale_x, scale_y = shrunk / [self._calibration.width, self._calibration.height]
        views = [
            cv2.convertMaps(
                ((x + 0.5) * scale_x - 0.5).astype(np.float32),
                ((y + 0.5) * scale_y - 0.5).astype(np.float32),
                cv2.CV_16SC2,
            )
            for x, y in rectification_maps(self._calibration, int(samples[1]), int(samples[0]))
        ]
        return _Maps(height=height, width=width, shrunk_size=(int(shrunk[0]), int(shrunk[1])), views=views)


class Resizer:
    """Resizes pairs that are rectified already, or whose calibration is unknown; used in place of a `Rectifier`.

    Args:
        calibration: of the pair, where it is known.
        height, width: of the resized pair, px.

    Attributes:
        height, width: as given.
        given: the calibration as given.
        calibration: of the pair before it is resized, as one that is rectified already; None where it is unknown.
        stereo_calibration: of the resized pair; None where it is unknown.
    """

    def __init__(self, calibration: RigCalibration | None, *, height: int, width: int) -> None:
        self.given = self._calibration = calibration
        self.calibration: RigCalibration | None = (
            None if calibration is None else rectified_rig(calibration.stereo_calibration)
        )
        self.height, self.width = height, width
        self.stereo_calibration: StereoCalibration | None = (
            None if calibration is None else calibration.stereo_calibration.resized(height, width)
        )

    def __call__(
        self, left: UInt8[np.ndarray, "H W 3"], right: UInt8[np.ndarray, "H W 3"]
    ) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w 3"]]:
        """Return the resized pair, RGB.

        Raises:
            CalibrationError: the aspect is not the calibration's.
        """
        if self._calibration is not None:
            self._calibration.check_size(*left.shape[:2])
        return resize_image(left, self.height, self.width), resize_image(right, self.height, self.width)


def rectified_rig(stereo: StereoCalibration) -> RigCalibration:
    """Return the calibration of images that are rectified already, as a rig that can be saved."""
    left = np.array([[stereo.focal_px, 0, stereo.cx_left_px], [0, stereo.focal_y_px, stereo.cy_px], [0, 0, 1]])
    right = left.copy()
    right[0, 2] = stereo.cx_right_px
    return create_rectified_rig(
        width=stereo.width,
        height=stereo.height,
        left=left,
        right=right,
        translation_m=np.array([-stereo.baseline_m, 0.0, 0.0]),
    )


def largest_shift_px(calibration: RigCalibration) -> float:
    """Return by how much rectification moves a pixel at most, px of the calibration's size; 0 leaves all in place."""
    shifts_px: list[float] = []
    for x, y in rectification_maps(calibration.with_far_in_view(), calibration.height, calibration.width):
        columns, rows = np.arange(x.shape[1])[None], np.arange(x.shape[0])[:, None]
        shifts_px.append(float(np.hypot(x - columns, y - rows).max()))
    return max(shifts_px)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Maps:
    """How raw frames of one size are remapped.

    Attributes:
        height, width: of the raw frames, px.
        shrunk_size: width and height to which they are shrunk first, px.
        views: for the left and the right view OpenCV's fixed-point maps into the shrunk frame.
    """

    height: int
    width: int
    shrunk_size: tuple[int, int]
    views: list[tuple[Any, Any]]


def rectify_points(
    rig: RigCalibration, left_px: Float32[np.ndarray, "N 2"], right_px: Float32[np.ndarray, "N 2"]
) -> tuple[Float[np.ndarray, "N 2"], Float[np.ndarray, "N 2"]]:
    """Return where points of the raw views stand in the rectified ones, px of the calibration's size."""
    given = rig.rectified
    cameras = (
        (left_px, rig.left_matrix, rig.left_distortion, given.left_rotation, given.left_projection),
        (right_px, rig.right_matrix, rig.right_distortion, given.right_rotation, given.right_projection),
    )
    undistort = cv2.fisheye.undistortPoints if rig.distortion_model == "equidistant" else cv2.undistortPoints
    left, right = (
        np.asarray(undistort(px[:, None].astype(np.float64), matrix, distortion, R=rotation, P=projection))[:, 0]
        for px, matrix, distortion, rotation, projection in cameras
    )
    return left, right


def rectification_maps(
    calibration: RigCalibration, height: int, width: int
) -> list[tuple[Float32[np.ndarray, "h w"], Float32[np.ndarray, "h w"]]]:
    """Return, for the left and the right view, the raw position (column, row, px) of each rectified pixel.

    Args:
        calibration: of the rig; raw frames are of its size.
        height: of the rectified views, px.
        width: of the rectified views, px; they are the calibration's own, stretched.
    """
    rectified = calibration.rectified
    scale_x, scale_y = width / calibration.width, height / calibration.height
    # Pixel i covers i - 1/2 to i + 1/2, so that stretching keeps the edges of the view in place.
    stretch = np.array([[scale_x, 0, (scale_x - 1) / 2], [0, scale_y, (scale_y - 1) / 2], [0, 0, 1]])
    init_maps = (
        cv2.fisheye.initUndistortRectifyMap
        if calibration.distortion_model == "equidistant"
        else cv2.initUndistortRectifyMap
    )
    cameras = (
        (calibration.left_matrix, calibration.left_distortion, rectified.left_rotation, rectified.left_projection),
        (calibration.right_matrix, calibration.right_distortion, rectified.right_rotation, rectified.right_projection),
    )
    maps: list[tuple[np.ndarray, np.ndarray]] = []
    for matrix, distortion, rotation, projection in cameras:
        new_matrix = stretch @ projection[:, :3]
        x, y = init_maps(matrix, distortion, rotation, new_matrix, (width, height), cv2.CV_32FC1)
        maps.append((np.asarray(x), np.asarray(y)))
    return maps

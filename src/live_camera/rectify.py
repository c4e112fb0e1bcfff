"""Raw eyes of the camera's size -> a rectified pair of the network's size, in one remap per eye."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from foundation_stereo_depth.calibration.rig import RigCalibration
from foundation_stereo_depth.errors import CalibrationError
from foundation_stereo_depth.stereo.geometry import StereoCalibration


class Rectifier:
    """Rectifies pairs by a calibration and brings them to one size at once.

    Where the size is smaller than the camera's, each pixel is the mean of as many samples as it covers raw ones, so
    that nothing aliases; very large pictures shrink by a whole factor beforehand, which is four times as fast.

    Args:
        calibration: the rig's.
        height, width: of the rectified pair, px; another aspect than the camera's stretches it.

    Attributes:
        stereo_calibration: what depth needs to know of the rectified pair, at its size.
    """

    def __init__(self, calibration: RigCalibration, *, height: int, width: int) -> None:
        calibration = calibration.with_far_in_view()
        self._calibration = calibration
        self._size = (width, height)
        self._raw: _Raw | None = None
        self.stereo_calibration: StereoCalibration = calibration.stereo_calibration.resized(height, width)

    def __call__(
        self, left: UInt8[np.ndarray, "H W 3"], right: UInt8[np.ndarray, "H2 W2 3"]
    ) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w 3"]]:
        """The rectified pair, RGB; black where a camera saw nothing.

        Args:
            left: raw, RGB, of the calibration's size or another of its aspect.
            right: the same of the right eye, of one size with the left.

        Raises:
            CalibrationError: the pictures' aspect is not the calibration's, or the eyes differ in size.
        """
        height, width = left.shape[:2]
        if right.shape != left.shape:
            raise CalibrationError(
                f"the left eye is {width}x{height}, the right one {right.shape[1]}x{right.shape[0]}; both have to "
                "be as they were calibrated"
            )
        if self._raw is None or (height, width) != (self._raw.height, self._raw.width):
            self._raw = self._prepared(height, width)
        return self._rectified(left, self._raw, 0), self._rectified(right, self._raw, 1)

    def _rectified(self, picture: UInt8[np.ndarray, "H W 3"], raw: "_Raw", eye: int) -> UInt8[np.ndarray, "h w 3"]:
        if raw.shrunk != (raw.width, raw.height):
            picture = np.asarray(cv2.resize(picture, raw.shrunk, interpolation=cv2.INTER_AREA), np.uint8)
        fine = cv2.remap(picture, *raw.maps[eye], cv2.INTER_LINEAR)
        if fine.shape[1::-1] != self._size:
            fine = cv2.resize(fine, self._size, interpolation=cv2.INTER_AREA)
        return np.asarray(fine, np.uint8)

    def _prepared(self, height: int, width: int) -> "_Raw":
        self._calibration.check_size(height, width)
        raw_size = np.array([width, height])
        size = np.array(self._size)
        covered = np.maximum(1, np.round(raw_size / size)).astype(int)
        # Half of the factor at first: shrinking and then averaging two samples a side costs 45 dB of fidelity at most.
        shrunk = raw_size // np.maximum(1, covered // 2)
        samples = np.maximum(1, np.round(shrunk / size)).astype(int) * size
        across, down = shrunk / [self._calibration.width, self._calibration.height]
        maps = [
            cv2.convertMaps(
                ((x + 0.5) * across - 0.5).astype(np.float32),
                ((y + 0.5) * down - 0.5).astype(np.float32),
                cv2.CV_16SC2,
            )
            for x, y in rectification_maps(self._calibration, int(samples[1]), int(samples[0]))
        ]
        return _Raw(height=height, width=width, shrunk=(int(shrunk[0]), int(shrunk[1])), maps=maps)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Raw:
    """How raw pictures of one size are read.

    Attributes:
        height, width: theirs, px.
        shrunk: width and height that they are shrunk to at first, px.
        maps: per eye, OpenCV's fixed-point maps into the shrunk picture.
    """

    height: int
    width: int
    shrunk: tuple[int, int]
    maps: list[tuple[Any, Any]]


def rectification_maps(
    calibration: RigCalibration, height: int, width: int
) -> list[tuple[Float32[np.ndarray, "h w"], Float32[np.ndarray, "h w"]]]:
    """For each eye, where in its raw picture (column, row, px) each pixel of the rectified one lies.

    Args:
        calibration: the rig's; raw pictures are of its size.
        height: of the rectified pictures, px.
        width: of the rectified pictures, px; they are the calibration's own, stretched.
    """
    rectified = calibration.rectified
    across, down = width / calibration.width, height / calibration.height
    # Pixel i of a picture covers i - 1/2 to i + 1/2, so that a stretch keeps its edges where they are.
    stretch = np.array([[across, 0, (across - 1) / 2], [0, down, (down - 1) / 2], [0, 0, 1]])
    make = (
        cv2.fisheye.initUndistortRectifyMap
        if calibration.distortion_model == "equidistant"
        else cv2.initUndistortRectifyMap
    )
    eyes = (
        (calibration.left_matrix, calibration.left_distortion, rectified.left_rotation, rectified.left_projection),
        (calibration.right_matrix, calibration.right_distortion, rectified.right_rotation, rectified.right_projection),
    )
    maps: list[tuple[np.ndarray, np.ndarray]] = []
    for matrix, distortion, turn, projection in eyes:
        x, y = make(matrix, distortion, turn, stretch @ projection[:, :3], (width, height), cv2.CV_32FC1)
        maps.append((np.asarray(x), np.asarray(y)))
    return maps

"""Raw eyes of the camera's size -> a rectified pair of the network's size, in one remap per eye."""

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from foundation_stereo_depth.calibration import RigCalibration
from foundation_stereo_depth.geometry import StereoCalibration


class Rectifier:
    """Rectifies pairs by a calibration and brings them to one size at once.

    Args:
        calibration: the rig's.
        height, width: of the rectified pair, px; another aspect than the camera's stretches it.

    Attributes:
        stereo_calibration: what depth needs to know of the rectified pair, at its size.
    """

    def __init__(self, calibration: RigCalibration, *, height: int, width: int) -> None:
        self._calibration = calibration
        self._height, self._width = height, width
        self._raw_size: tuple[int, int] | None = None
        self._maps: list[tuple[np.ndarray, np.ndarray]] = []
        self._finer = 1
        self.stereo_calibration: StereoCalibration = calibration.stereo_calibration.resized(height, width)

    def __call__(
        self, left: UInt8[np.ndarray, "H W 3"], right: UInt8[np.ndarray, "H W 3"]
    ) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w 3"]]:
        """The rectified pair, RGB; black where a camera saw nothing.

        Args:
            left: raw, RGB, of the calibration's size or another of its aspect.
            right: the same of the right eye, of one size with the left.

        Raises:
            CalibrationError: the pictures' aspect is not the calibration's.
        """
        if left.shape[:2] != self._raw_size:
            self._prepare(*left.shape[:2])
        return self._rectify(left, 0), self._rectify(right, 1)

    def _rectify(self, raw: UInt8[np.ndarray, "H W 3"], eye: int) -> UInt8[np.ndarray, "h w 3"]:
        fine = cv2.remap(raw, *self._maps[eye], cv2.INTER_LINEAR)
        if self._finer > 1:
            fine = cv2.resize(fine, (self._width, self._height), interpolation=cv2.INTER_AREA)
        return np.asarray(fine, np.uint8)

    def _prepare(self, height: int, width: int) -> None:
        self._calibration.check_size(height, width)
        # Each pixel of the small picture is the mean of so many samples a side that none of the raw ones is left out.
        self._finer = max(1, round(max(width / self._width, height / self._height)))
        maps = rectification_maps(self._calibration, self._height * self._finer, self._width * self._finer)
        across, down = width / self._calibration.width, height / self._calibration.height
        scaled = [((x + 0.5) * across - 0.5, (y + 0.5) * down - 0.5) for x, y in maps]
        self._maps = [cv2.convertMaps(x.astype(np.float32), y.astype(np.float32), cv2.CV_16SC2) for x, y in scaled]
        self._raw_size = (height, width)


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

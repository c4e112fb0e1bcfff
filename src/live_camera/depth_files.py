"""Files of the depth that a live view measures: a folder of NPY, or a lossless 16-bit video."""

import logging
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, UInt16

from foundation_stereo_depth.calibration.files import calibration_beside, save_calibration
from foundation_stereo_depth.data.codecs import encode_npy, silence_opencv
from foundation_stereo_depth.data.rectify import rectified_rig
from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.files import name_for_opencv, write_atomically
from foundation_stereo_depth.stereo.geometry import StereoCalibration
from live_camera.matcher import MatchedFrame
from live_camera.recording import FrameTimes, check_room, count_frames, times_beside

logger = logging.getLogger(__name__)

FARTHEST_MM = 65535
"""Largest value of 16 bits: so far, or farther."""
_VIDEO_SUFFIX = ".mkv"
_FALLBACK_FPS = 30.0


def depth_to_mm(depth_m: Float[np.ndarray, "H W"]) -> UInt16[np.ndarray, "H W"]:
    """Return depth in whole mm, 0 where it is unknown, 65535 where it is 65.535 m or more."""
    mm = np.clip(np.nan_to_num(depth_m, nan=0.0, posinf=0.0) * 1000 + 0.5, 0, FARTHEST_MM)
    return mm.astype(np.uint16)


class DepthVideo:
    """Writes the depth of each pair into a video, FFV1 of 16 bits, grey, mm; to be used in a `with`.

    Beside `out.mkv` lie `out.times.csv` and `out.calibration.npz`, of rectified images of its size.

    Args:
        path: the file, .mkv.
        calibration: of the depth maps.
        fps: nominal rate; the times of the maps are in the table.

    Raises:
        UserError: a file exists, cannot be written, or the maps have an odd size, which FFV1 of OpenCV does not keep.
    """

    def __init__(self, path: Path, calibration: StereoCalibration, fps: float) -> None:
        for kept in (path, times_beside(path), calibration_beside(path)):
            if kept.exists():
                raise UserError(f"--save-depth {path}: {'' if kept == path else f'{kept} '}exists already")
        size = calibration.width, calibration.height
        if size[0] % 2 or size[1] % 2:
            raise UserError(
                f"--save-depth {path}: a video needs an even width and height, and depth is {size[0]}x{size[1]}; give "
                "--network-width and --network-height, or name a folder"
            )
        self._path, self._written = path, 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._times = FrameTimes(times_beside(path))
        except OSError as error:
            raise UserError(f"--save-depth {path}: cannot be written ({error.strerror})") from error
        sixteen_bits = [cv2.VIDEOWRITER_PROP_DEPTH, cv2.CV_16U, cv2.VIDEOWRITER_PROP_IS_COLOR, 0]
        with silence_opencv():
            self._video = cv2.VideoWriter(
                name_for_opencv(path.absolute(), UserError),
                cv2.CAP_FFMPEG,
                cv2.VideoWriter.fourcc(*"FFV1"),
                fps,
                size,
                sixteen_bits,
            )
        if not self._video.isOpened():
            self._times.close()
            raise UserError(f"--save-depth {path}: cannot be written")
        save_calibration(calibration_beside(path), rectified_rig(calibration))

    def __enter__(self) -> "DepthVideo":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._video.release()
        self._times.close()
        stored = count_frames(self._path)
        logger.info("%s: %d depth maps written", self._path, stored)
        if stored < self._written and kind is None:
            raise UserError(f"--save-depth {self._path}: holds {stored} of {self._written} maps; is the disk full?")

    def __call__(self, matched: MatchedFrame) -> None:
        """Write the depth of one pair.

        Raises:
            UserError: the disk is full or removed.
        """
        assert matched.depth_m is not None, "no calibration"
        try:
            check_room(self._path.parent)
            self._video.write(depth_to_mm(matched.depth_m))
            self._times.add(matched.frame)
        except OSError as error:
            raise UserError(f"--save-depth {self._path}: cannot be written ({error.strerror or error})") from error
        self._written += 1


class DepthWriter:
    """Writes the depth of each pair to a folder, with the time of each and the calibration; to be used in a `with`.

    The folder gets `depth_000000.npy` and so on (float32 [H, W], metres, NaN unknown), `depth.times.csv`, and
    `depth.calibration.npz`, of rectified images of this size.

    Args:
        folder: made where it does not exist; has to be empty.
        calibration: of the depth maps.

    Raises:
        UserError: the folder is not empty, or cannot be written to.
    """

    def __init__(self, folder: Path, calibration: StereoCalibration) -> None:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"--save-depth {folder}: exists already; name a new or an empty folder")
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._times = FrameTimes(folder / "depth.times.csv")
        except OSError as error:
            raise UserError(f"--save-depth {folder}: cannot be written ({error.strerror})") from error
        save_calibration(folder / "depth.calibration.npz", rectified_rig(calibration))
        self._written = 0

    def __enter__(self) -> "DepthWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._times.close()
        logger.info("%s: %d depth maps written", self._folder, self._written)

    def __call__(self, matched: MatchedFrame) -> None:
        """Write the depth of one pair.

        Raises:
            UserError: the disk is full or removed.
        """
        assert matched.depth_m is not None, "no calibration"
        encoded = encode_npy(matched.depth_m)
        path = self._folder / f"depth_{self._written:06d}.npy"
        try:
            write_atomically(path, lambda file: file.write(encoded), durable=False)
            self._times.add(matched.frame)
        except OSError as error:
            raise UserError(f"--save-depth {path}: cannot be written ({error.strerror or error})") from error
        self._written += 1


def open_depth_writer(path: Path, calibration: StereoCalibration, fps: float | None) -> DepthVideo | DepthWriter:
    """Return what writes depth to a folder, or to a video where the name ends in .mkv.

    Args:
        path: made here; has to be new.
        calibration: of the depth maps.
        fps: rate of the video, maps per second; None where it is unknown.

    Raises:
        UserError: it exists, cannot be written to, or is a video of another kind.
    """
    if path.suffix.lower() == _VIDEO_SUFFIX:
        return DepthVideo(path, calibration, fps or _FALLBACK_FPS)
    if path.suffix.lower() in (".mp4", ".avi", ".mov", ".webm"):
        raise UserError(f"--save-depth {path}: lossless 16-bit video needs .mkv; or name a folder")
    return DepthWriter(path, calibration)

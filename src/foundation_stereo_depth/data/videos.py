"""Frames of videos with their times, and whether all of them came."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from foundation_stereo_depth.data.codecs import Image, silence_opencv
from foundation_stereo_depth.data.file_kinds import begins_as_video
from foundation_stereo_depth.data.image_size import LARGEST_PIXELS
from foundation_stereo_depth.errors import DataError
from foundation_stereo_depth.files import name_for_opencv, open_regular_file

_MISSING_FRAMES, _MISSING_SHARE = 2, 0.05
"""Frames, and share of the duration, by which a video may end before the time that its container states."""
_CHUNK_NAME = re.compile(rb"[0-9A-Za-z ]{4}")
_CHUNK_LISTS = (b"RIFF", b"LIST")
_LARGEST_FILE_BYTES = 2**50
"""Recordings of days are videos too."""
_BEGINNING_BYTES = 512
_MOST_CHUNKS = 2_000_000
"""Of an AVI; a day at 20 frames per second."""


def open_video(path: Path) -> cv2.VideoCapture:
    """Open a video file, and check what it says of itself before a frame is decoded.

    FFmpeg goes by content, whatever the name: it would also read images, and lists of further files.

    Raises:
        DataError: it is missing, no video, or its frames are larger than those of cameras.
    """
    with open_regular_file(path, at_most_bytes=_LARGEST_FILE_BYTES, error_type=DataError) as file:
        beginning = file.read(_BEGINNING_BYTES)
    # By its absolute path: `name:x.mp4` would be an address.
    name = name_for_opencv(path.absolute(), DataError) if begins_as_video(beginning) else ""
    with silence_opencv():
        capture = cv2.VideoCapture(name, cv2.CAP_FFMPEG)
    if not capture.isOpened():
        capture.release()
        raise DataError(f"{path}: is not a video that can be decoded")
    try:
        check_frame_size(path, capture.get(cv2.CAP_PROP_FRAME_WIDTH), capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
    except DataError:
        capture.release()
        raise
    return capture


def check_frame_size(path: Path, width: float, height: float) -> None:
    """Check the size of a video's frames, px, before one is decoded; OpenCV scales later ones to the first one's size.

    Raises:
        DataError: it is larger than the images that are read.
    """
    if width * height > LARGEST_PIXELS:
        raise DataError(f"{path}: says that its frames are {width:.0f}x{height:.0f}; is it damaged?")


@dataclass(frozen=True, kw_only=True)
class VideoFrame:
    """One frame of a video, RGB.

    Attributes:
        image: the frame.
        at_s: when it is shown, s from the first one.
        lasts_s: for how long frames are shown about it: since the last one, and at least for the nominal time, which
            WebM may state as a millisecond.
    """

    image: Image
    at_s: float
    lasts_s: float


class VideoProgress:
    """Counts the frames of a video while it is read, to say at the end whether all of them came.

    How many there are is known only then: Matroska, WebM, AVI and transport streams state a duration, which OpenCV
    multiplies by the nominal rate. So times are compared, not numbers.

    Attributes:
        frames: how many were read.
        at_s: when the newest one is shown, s from the first one.
    """

    def __init__(self) -> None:
        self.frames = 0
        self.at_s = 0.0
        self._first_s = 0.0

    def count(self, capture: cv2.VideoCapture) -> None:
        """Count the frame that was grabbed."""
        time_s = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        if self.frames == 0:
            self._first_s = time_s
        self.at_s = time_s - self._first_s
        self.frames += 1

    def explain_early_end(self, path: Path, capture: cv2.VideoCapture) -> str | None:
        """Return one line where no frame is left well before the time that the file states; else None."""
        lasts_s, stated_frames = frame_duration_s(capture), capture.get(cv2.CAP_PROP_FRAME_COUNT)
        stated_s, ended_s = stated_frames * lasts_s, self.at_s + lasts_s
        if self.frames == 0 or not 0 < stated_s < math.inf:  # what is written as it comes states no duration
            return None
        if self.frames >= stated_frames:
            return None
        if stated_s - ended_s <= max(_MISSING_FRAMES * ended_s / self.frames, _MISSING_SHARE * stated_s):
            return None
        if _is_complete_avi(path):
            return None
        return (
            f"{path}: decoding ended after {self.frames} frames, at {ended_s:.1f} of {stated_s:.1f} s; is it damaged, "
            "or cut?"
        )


def frame_duration_s(capture: cv2.VideoCapture) -> float:
    """Return how long one frame is shown at the nominal rate, s; infinity where there is no rate."""
    rate = capture.get(cv2.CAP_PROP_FPS)
    return 1 / rate if 0 < rate < math.inf else math.inf


def read_frames(path: Path) -> Iterator[VideoFrame]:
    """Yield the frames of a video.

    Raises:
        DataError: it cannot be decoded, or not to its end; the frames before have been yielded.
    """
    capture = open_video(path)
    try:
        progress, nominal_s = VideoProgress(), frame_duration_s(capture)
        while capture.grab():
            before_s = progress.at_s
            progress.count(capture)
            retrieved, bgr = capture.retrieve()
            if not retrieved:
                raise DataError(f"{path}: frame {progress.frames - 1} cannot be decoded")
            image = np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)
            yield VideoFrame(image=image, at_s=progress.at_s, lasts_s=max(nominal_s, progress.at_s - before_s))
        if progress.frames == 0:
            raise DataError(f"{path}: is not a video that can be decoded")
        if (problem := progress.explain_early_end(path, capture)) is not None:
            raise DataError(problem)
    finally:
        capture.release()


def _is_complete_avi(path: Path) -> bool:
    """Return True for an AVI all of whose chunks are there: the number of frames in its header is only a guess then."""
    with path.open("rb") as file:
        end = file.seek(0, 2)
        position, chunks = 0, 0
        while position + 8 <= end and chunks < _MOST_CHUNKS:
            file.seek(position)
            head = file.read(12)
            size = int.from_bytes(head[4:8], "little")
            if position == 0 and (head[:4] != b"RIFF" or head[8:] != b"AVI "):
                return False
            if _CHUNK_NAME.fullmatch(head[:4]) is None or position + 8 + size > end:
                return False
            chunks += 1
            # Lists are entered: what is in them follows their name.
            position += 12 if head[:4] in _CHUNK_LISTS else 8 + size + size % 2
    return position >= end


def read_frame_count(video: Path) -> int | None:
    """Return how many frames a video states that it has; None where it states none, as streams do."""
    capture = open_video(video)
    try:
        frames = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    finally:
        capture.release()
    return int(frames) if 0 < frames < math.inf else None


def read_fps(video: Path) -> float:
    """Return the nominal frames per second of a video; 30 where it states none."""
    capture = open_video(video)
    try:
        fps = capture.get(cv2.CAP_PROP_FPS)
    finally:
        capture.release()
    return fps if 0 < fps < math.inf else 30.0

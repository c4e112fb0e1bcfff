"""Files of a live view: recordings of the raw pairs, and snapshots of single pairs. Both are written in threads."""

import contextlib
import errno
import itertools
import logging
import queue
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from foundation_stereo_depth.calibration.files import calibration_beside, save_calibration
from foundation_stereo_depth.calibration.rig import RigCalibration
from foundation_stereo_depth.data.codecs import silence_opencv, write_rgb
from foundation_stereo_depth.data.rectify import rectified_rig
from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.files import name_for_opencv
from foundation_stereo_depth.log import count_of
from foundation_stereo_depth.outputs import write_outputs
from live_camera.draw import Canvas
from live_camera.matcher import MatchedFrame
from live_camera.rig import Rig, StereoFrame

logger = logging.getLogger(__name__)

CODECS = {".avi": "MJPG", ".mp4": "mp4v", ".mkv": "FFV1"}
"""Suffix of a recording -> its codec; FFV1 is lossless. A .mp4 that is not closed, after a power cut say, plays
nothing; of the others all but the last seconds play."""
_FAST_CODEC = "MJPG"
"""In .mkv by a key, where no suffix was chosen: FFV1 takes four times as long, and five times the space."""
_SNAPSHOT_FILES = {
    ("disparity", ".npy"): "disparity_px.npy",
    ("sigma", ".npy"): "sigma_px.npy",
    ("confidence", ".npy"): "confidence.npy",
    ("depth", ".npy"): "depth_m.npy",
    ("cloud", ".ply"): "cloud.ply",
}
_QUEUED_PAIRS = 16
_MIN_FREE_BYTES = 200 * 2**20
_MIN_FREE_PART = 0.1
"""Of a disk; the smaller of the two limits counts."""
_RESERVED_BYTES = 8 * 2**20
"""On disk while a video is written, and free for its index and its last frames where others have filled the disk."""
_COUNTED_BYTES = 500 * 2**20
"""Of a longer video only the estimated number of its frames is verified: counting reads all of it."""
_MIN_WRITTEN = 0.99
"""Of all pairs, where their number is the estimate from duration and rate."""
_CHECK_EVERY_BYTES = 512 * 2**20
"""Of raw pairs: some ten seconds, after which every format has written something of them to its file."""
_FALLBACK_FPS = 30.0


class Recorder:
    """Writes raw pairs side by side into a video, which `--side-by-side` plays again.

    Args:
        path: the file; its suffix decides the codec.
        fps: pairs per second.
        live: pairs for which writing is too slow are dropped and counted; otherwise `add` waits.
        codec: four letters; None takes that of the suffix.

    Attributes:
        written, dropped: numbers of pairs.

    Raises:
        UserError: the file cannot be written, or its suffix is unknown.
    """

    def __init__(self, path: Path, *, fps: float | None, live: bool, codec: str | None = None) -> None:
        check_recordable(path)
        self.path = path
        self._codec = codec or CODECS[path.suffix.lower()]
        self.written = self.dropped = 0
        self._fps = fps or _FALLBACK_FPS
        self._live = live
        self._failure: BaseException | None = None
        self._unchecked_bytes = self._file_bytes = 0
        self._pairs: queue.Queue[StereoFrame | None] = queue.Queue(_QUEUED_PAIRS)
        self._thread = threading.Thread(target=self._run, name="recording", daemon=True)
        self._thread.start()

    @property
    def failure(self) -> BaseException | None:
        """Why the recording stopped by itself; None while it runs."""
        return self._failure

    def add(self, frame: StereoFrame) -> None:
        """Queue a pair; called by the cameras' thread."""
        if self._failure is not None:
            return
        try:
            self._pairs.put(frame, block=not self._live)
        except queue.Full:
            self.dropped += 1

    def finish(self) -> None:
        """Write the queued pairs and close the file.

        Raises:
            UserError: the recording stopped before.
        """
        self._pairs.put(None)
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        frames = iter(self._pairs.get, None)
        try:
            self._write_pairs(frames)
        except (OSError, cv2.error) as error:
            self._failure = self._stopped(str(error.strerror if isinstance(error, OSError) else error))
        except _StoppedError as error:
            self._failure = self._stopped(str(error))
        except BaseException as error:  # raised again by `finish`
            self._failure = error
        for _ in frames:  # after a failure the queue is still emptied, so that `add` never blocks for ever
            pass

    def _write_pairs(self, frames: Iterator[StereoFrame]) -> None:
        first = next(frames, None)
        if first is None:
            return
        height, width = first.left_rgb.shape[:2]
        writer, times = self._open_writer(height, width), FrameTimes(times_beside(self.path))
        with tempfile.TemporaryFile(dir=self.path.parent) as reserved:
            try:
                reserved.write(bytes(_RESERVED_BYTES))
                reserved.flush()
                for frame in itertools.chain([first], frames):
                    if frame.left_rgb.shape[:2] != (height, width):
                        new_height, new_width = frame.left_rgb.shape[:2]
                        raise _StoppedError(f"the frame size changed from {width}x{height} to {new_width}x{new_height}")
                    self._check_disk(frame)
                    writer.write(cv2.cvtColor(np.hstack([frame.left_rgb, frame.right_rgb]), cv2.COLOR_RGB2BGR))
                    self.written += 1
                    times.add(frame)
            finally:
                with contextlib.suppress(OSError):  # of a disk that is full, or was removed
                    reserved.close()
                writer.release()
                times.close()
        if self.path.stat().st_size > _COUNTED_BYTES:
            incomplete = _estimate_frames(self.path) < _MIN_WRITTEN * self.written - 1
        else:
            incomplete = count_frames(self.path) < self.written
        if incomplete:
            raise UserError(
                f"--record {self.path}: holds {count_frames(self.path)} of {count_of(self.written, 'pair')}; the disk "
                "did not store all of them"
            )

    def _open_writer(self, height: int, width: int) -> Any:
        if height % 2:
            raise UserError(f"--record {self.path}: a video needs an even height, and the frames are {width}x{height}")
        code = cv2.VideoWriter.fourcc(*self._codec)
        with silence_opencv():
            writer = cv2.VideoWriter(
                name_for_opencv(self.path.absolute(), UserError), code, self._fps, (2 * width, height)
            )
        if not writer.isOpened():
            raise UserError(f"--record {self.path}: cannot be written")
        return writer

    def _check_disk(self, frame: StereoFrame) -> None:
        """Raise where the disk is nearly full, or the file does not grow: OpenCV does not report failed writes."""
        check_room(self.path.parent)
        self._unchecked_bytes += 2 * frame.left_rgb.nbytes
        if self._unchecked_bytes > _CHECK_EVERY_BYTES:
            before, self._file_bytes = self._file_bytes, self.path.stat().st_size
            self._unchecked_bytes = 0
            if self._file_bytes == before:
                raise _StoppedError("the file does not grow any more; is the disk full?")

    def _stopped(self, reason: str) -> UserError:
        return UserError(f"--record {self.path}: stopped after {count_of(count_frames(self.path), 'pair')}: {reason}")


class _StoppedError(Exception):
    """The recording cannot continue; the pairs so far are kept."""


def check_room(folder: Path) -> None:
    """Check that the disk of a folder has room for more.

    Raises:
        OSError: it is nearly full, or was removed.
    """
    disk = shutil.disk_usage(folder)
    if disk.free < min(_MIN_FREE_BYTES, _MIN_FREE_PART * disk.total):
        raise OSError(errno.ENOSPC, "the disk is nearly full")


def _estimate_frames(path: Path) -> int:
    """Return how many frames a finished video has by its duration and rate; -1 where it cannot be read."""
    with silence_opencv():
        video = cv2.VideoCapture(str(path.absolute()))
    count = round(video.get(cv2.CAP_PROP_FRAME_COUNT)) if video.isOpened() else -1
    video.release()
    return count


def count_frames(path: Path) -> int:
    """Return how many frames of a video can be read, without decoding them."""
    count = 0
    if path.is_file():
        with silence_opencv():
            video = cv2.VideoCapture(str(path.absolute()), cv2.CAP_FFMPEG, [cv2.CAP_PROP_FORMAT, -1])
            while video.grab():
                count += 1
        video.release()
    return count


def check_recordable(path: Path) -> None:
    """Check the name of a recording and make its folder.

    Raises:
        UserError: its suffix is unknown, the file exists, or its folder cannot be written to.
    """
    if path.suffix.lower() not in CODECS:
        raise UserError(f"--record {path}: has to end in {', '.join(CODECS)}")
    name_for_opencv(path.absolute(), UserError)
    for kept in (path, calibration_beside(path), times_beside(path)):
        if kept.exists():
            raise UserError(f"--record {path}: {'' if kept == path else f'{kept} '}exists already; name another file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise UserError(f"--record {path}: cannot be written there ({error.strerror})") from error


def times_beside(path: Path) -> Path:
    """Return where the times of a recording's pairs are kept: `raw.mkv` -> `raw.times.csv`."""
    return path.with_suffix(".times.csv")


class FrameTimes:
    """A table of when each pair was taken: its number, s since the first pair, and the skew of its views, ms.

    Args:
        path: the file to write; each line is there at once.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8", buffering=1)
        self._file.write("frame,time_s,skew_ms\n")
        self._frames = 0
        self._first_s = 0.0

    def add(self, frame: StereoFrame) -> None:
        """Add a line for the next pair."""
        if self._frames == 0:
            self._first_s = frame.captured_at_s
        self._file.write(f"{self._frames},{frame.captured_at_s - self._first_s:.6f},{frame.skew_ms:.3f}\n")
        self._frames += 1

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Recordings:
    """Starts and stops the recordings of a rig; to be used in a `with`, whose end closes the file properly.

    Args:
        rig: gives the pairs.
        calibration: of the recorded pairs, kept beside each recording; None where it is unknown.

    Attributes:
        written: complete files.
        incomplete: number of recordings that stopped by themselves.
    """

    def __init__(self, rig: Rig, calibration: RigCalibration | None = None) -> None:
        self._rig = rig
        self._calibration = calibration
        self._recorder: Recorder | None = None
        self.written: list[Path] = []
        self.incomplete = 0

    def __enter__(self) -> "Recordings":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def running(self) -> bool:
        """True while pairs are recorded."""
        return self._recorder is not None

    def start(self, path: Path, *, codec: str | None = None) -> None:
        """Start recording to a file, by the codec of its suffix unless one is given.

        Raises:
            UserError: it cannot be written.
        """
        self._recorder = Recorder(path, fps=self._rig.fps, live=self._rig.live, codec=codec)
        if self._calibration is not None:  # at once, so that a recording that is killed has it too
            save_calibration(calibration_beside(path), self._calibration)
        self._rig.on_frame = self._recorder.add

    def stop(self) -> str | None:
        """Finish the recording, if one runs; log and return its result. The view continues in any case."""
        recorder, self._recorder, self._rig.on_frame = self._recorder, None, None
        if recorder is None:
            return None
        try:
            recorder.finish()
        except UserError as error:
            self.incomplete += 1
            logger.warning(str(error))
            return str(error)
        if recorder.written == 0:
            for kept in (calibration_beside(recorder.path), times_beside(recorder.path)):
                kept.unlink(missing_ok=True)
            text = f"{recorder.path}: not written, since no pair arrived"
            logger.warning(text)
            return text
        dropped = f", {recorder.dropped} dropped because writing was too slow" if recorder.dropped else ""
        text = f"{recorder.path}: {count_of(recorder.written, 'pair')} recorded{dropped}"
        logger.info("%s; --side-by-side %s plays them", text, recorder.path)
        self.written.append(recorder.path)
        return text

    def stop_if_failed(self) -> str | None:
        """Stop a recording that cannot continue; return the reason."""
        if self._recorder is not None and self._recorder.failure is not None:
            return self.stop()
        return None

    def toggle(self, folder: Path) -> str | None:
        """Stop the recording, or start one in a folder, named by date and time; return what was done.

        Raises:
            UserError: it cannot be written.
        """
        if self._recorder is not None:
            return self.stop()
        path = unused_path(folder, ".mkv")
        self.start(path, codec=_FAST_CODEC)
        return f"recording {path}; r stops"


def unused_path(folder: Path, suffix: str = "") -> Path:
    """Return a path in a folder that does not exist yet, named by date and time."""
    name = time.strftime("%Y%m%d-%H%M%S")
    return next(path for n in range(10**6) if not (path := folder / f"{name}{f'-{n}' if n else ''}{suffix}").exists())


class Snapshots:
    """Saves single pairs in a thread, so that the view does not stall; to be used in a `with`.

    Args:
        folder: destination; each snapshot is a folder in it, named by date and time.
        calibration: of the raw pairs, kept beside them; None where it is unknown.

    Attributes:
        folder: as given.
        written: complete snapshots.
    """

    def __init__(self, folder: Path, calibration: RigCalibration | None = None) -> None:
        self.folder = folder
        self._calibration = calibration
        self._pool = ThreadPoolExecutor(1, "snapshots")
        self._pending: list[tuple[Path, Future[None]]] = []
        self.written: list[Path] = []

    def __enter__(self) -> "Snapshots":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()
        self.log_finished()

    def save(self, matched: MatchedFrame, images: dict[str, Canvas]) -> Path:
        """Start saving a pair, its maps, and the images of the windows; return the folder."""
        folder = unused_path(self.folder)
        folder.mkdir(parents=True)
        self._pending.append((folder, self._pool.submit(_save, folder, matched, images, self._calibration)))
        return folder

    def log_finished(self) -> str | None:
        """Log the result of each snapshot that was finished since the last call; return that of the last one.

        The view continues in any case.
        """
        text = None
        finished = [snapshot for snapshot in self._pending if snapshot[1].done()]
        self._pending = [snapshot for snapshot in self._pending if snapshot not in finished]
        for folder, future in finished:
            try:
                future.result()
            except OSError as error:
                text = f"{folder}: not saved ({error.strerror or error})"
                logger.warning(text)
            else:
                text = f"{folder}: snapshot saved"
                logger.info(text)
                self.written.append(folder)
        return text


def _save(folder: Path, matched: MatchedFrame, images: dict[str, Canvas], calibration: RigCalibration | None) -> None:
    for name, rgb in (
        ("raw_left", matched.frame.left_rgb),
        ("raw_right", matched.frame.right_rgb),
        ("left", matched.left),
        ("right", matched.right),
        *((f"window_{title.lower().replace(' ', '_')}", image[..., ::-1]) for title, image in images.items()),
    ):
        write_rgb(folder / f"{name}.png", np.ascontiguousarray(rgb))
    if calibration is not None:
        save_calibration(calibration_beside(folder / "raw_left.png"), calibration)
    if matched.calibration is not None:
        save_calibration(calibration_beside(folder / "left.png"), rectified_rig(matched.calibration))
    paths = {output: folder / name for output, name in _SNAPSHOT_FILES.items()}
    write_outputs(paths, matched.left, matched.match, matched.calibration)

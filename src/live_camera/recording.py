"""What stays of a live view: snapshots of one pair, and recordings of the raw pairs. Both are written in threads."""

import queue
import shutil
import sys
import tempfile
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from foundation_stereo_depth.data.codecs import encode_npy, encode_ply, write_rgb
from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.files import write_atomically
from foundation_stereo_depth.stereo.geometry import point_cloud
from live_camera.camera import quiet_opencv
from live_camera.draw import Canvas
from live_camera.rig import StereoFrame
from live_camera.view import Result

CODECS = {".avi": "MJPG", ".mp4": "mp4v", ".mkv": "FFV1"}
"""Suffix of a recording -> how it is compressed; FFV1 loses nothing."""
_WAITING_PAIRS = 16
_LEAST_FREE_BYTES = 200 * 2**20
_HELD_SHARE = 0.99
"""Of a long video the number of pictures is an estimate, from its length and rate."""
_CHECKED_EVERY_BYTES = 512 * 2**20
"""Of raw pictures: some ten seconds, after which every format has written something of them to its file."""
_FALLBACK_FPS = 30.0


class Recorder:
    """Writes raw pairs side by side into a video, which `--side-by-side` plays again.

    Args:
        path: the file; its suffix decides the compression.
        fps: pairs a second.
        live: pairs that the disk is too slow for are left out and counted; else they are waited for.

    Attributes:
        written, left_out: pairs.

    Raises:
        UserError: the file cannot be written, or its suffix is unknown.
    """

    def __init__(self, path: Path, *, fps: float | None, live: bool) -> None:
        check_recordable(path)
        self.path = path
        self.written = self.left_out = 0
        self._fps = fps or _FALLBACK_FPS
        self._live = live
        self._failure: UserError | None = None
        self._pairs: queue.Queue[StereoFrame | None] = queue.Queue(_WAITING_PAIRS)
        self._thread = threading.Thread(target=self._write, name="recording", daemon=True)
        self._thread.start()

    @property
    def failure(self) -> UserError | None:
        """Why the recording stopped by itself; None while it goes on."""
        return self._failure

    def add(self, frame: StereoFrame) -> None:
        """Takes a pair; called by the cameras' thread."""
        if self._failure is not None:
            return
        try:
            self._pairs.put(frame, block=not self._live)
        except queue.Full:
            self.left_out += 1

    def finish(self) -> str:
        """Writes what still waits and closes the file; says what is in it.

        Raises:
            UserError: the recording had to stop before.
        """
        self._pairs.put(None)
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        if self.written == 0:
            return f"{self.path}: nothing recorded, since no pair came"
        left_out = f", {self.left_out} left out because writing was too slow" if self.left_out else ""
        return f"{self.path}: {self.written} pairs recorded{left_out}; --side-by-side {self.path} plays them"

    def _write(self) -> None:
        """Writes until told to end; whatever happens, what still comes is taken, so that nobody waits for room."""
        try:
            self._write_pairs()
        except (OSError, cv2.error) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            self._failure = UserError(f"--record {self.path}: stopped after {self.written} pairs ({reason})")
            while self._pairs.get() is not None:
                pass

    def _write_pairs(self) -> None:
        writer: cv2.VideoWriter | None = None
        height = width = unseen_bytes = size_bytes = 0
        while (frame := self._pairs.get()) is not None:
            if self._failure is not None:
                continue  # what still comes is taken, so that nobody waits for room
            if writer is None:
                height, width = frame.left_rgb.shape[:2]
                if height % 2:
                    self._failure = UserError(
                        f"--record {self.path}: a video needs an even height, and the eyes are {width}x{height}"
                    )
                    continue
                code = cv2.VideoWriter.fourcc(*CODECS[self.path.suffix.lower()])
                with quiet_opencv():
                    writer = cv2.VideoWriter(str(self.path), code, self._fps, (2 * width, height))
                if not writer.isOpened():
                    self._failure = UserError(f"--record {self.path}: cannot be written")
                    continue
            if frame.left_rgb.shape[:2] != (height, width):
                self._failure = UserError(
                    f"--record {self.path}: stopped after {self.written} pairs, since the eyes were {width}x{height} "
                    f"and now are {frame.left_rgb.shape[1]}x{frame.left_rgb.shape[0]}"
                )
                continue
            writer.write(cv2.cvtColor(np.hstack([frame.left_rgb, frame.right_rgb]), cv2.COLOR_RGB2BGR))
            self.written += 1
            if self.written % 30 == 0 and shutil.disk_usage(self.path.parent).free < _LEAST_FREE_BYTES:
                self._failure = UserError(
                    f"--record {self.path}: stopped after {self.written} pairs, since its disk is nearly full"
                )
            # OpenCV does not say whether it could write.
            unseen_bytes += 2 * frame.left_rgb.nbytes
            if unseen_bytes > _CHECKED_EVERY_BYTES:
                unseen_bytes, before, size_bytes = 0, size_bytes, self.path.stat().st_size
                if size_bytes == before:
                    self._failure = UserError(
                        f"--record {self.path}: stopped after {self.written} pairs, since its disk takes no more"
                    )
        if writer is not None:
            writer.release()
            held = _pairs_in(self.path)
            if self._failure is None and held < _HELD_SHARE * self.written - 1:
                self._failure = UserError(
                    f"--record {self.path}: holds {held} of {self.written} pairs; its disk did not take them all"
                )


def _pairs_in(path: Path) -> int:
    """How many pictures a finished video has; -1 where it cannot be read."""
    with quiet_opencv():
        video = cv2.VideoCapture(str(path))
    count = round(video.get(cv2.CAP_PROP_FRAME_COUNT)) if video.isOpened() else -1
    video.release()
    return count


def check_recordable(path: Path) -> None:
    """Lets pass a recording's name; makes its folder.

    Raises:
        UserError: its suffix is unknown, the file is there already, or its folder cannot be written to.
    """
    if path.suffix.lower() not in CODECS:
        raise UserError(f"--record {path}: has to end in {', '.join(CODECS)}")
    if path.exists():
        raise UserError(f"--record {path}: is there already; name another file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise UserError(f"--record {path}: cannot be written there ({error.strerror})") from error


class Snapshots:
    """Saves single pairs in a thread, so that the view does not stall; to be used in a `with`.

    Args:
        folder: gets a folder per pair, named by date and time.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pool = ThreadPoolExecutor(1, "snapshots")
        self._waiting: list[tuple[Path, Future[None]]] = []

    def __enter__(self) -> "Snapshots":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def save(self, result: Result, pictures: dict[str, Canvas]) -> None:
        """Begins to save the pair, what was found in it, and the windows' pictures."""
        name = time.strftime("%Y%m%d-%H%M%S")
        folder = next(
            path for n in range(10**6) if not (path := self._folder / (f"{name}-{n}" if n else name)).exists()
        )
        folder.mkdir(parents=True)
        self._waiting.append((folder, self._pool.submit(_save, folder, result, pictures)))

    def tell(self) -> None:
        """Says of each pair that was asked for since the last call what became of it: the view goes on in any case."""
        done = [asked for asked in self._waiting if asked[1].done()]
        self._waiting = [asked for asked in self._waiting if asked not in done]
        for folder, future in done:
            try:
                future.result()
            except OSError as error:
                tqdm.write(f"{folder}: not saved ({error.strerror or error})", file=sys.stderr)
            else:
                tqdm.write(f"{folder}: saved")


def _save(folder: Path, result: Result, pictures: dict[str, Canvas]) -> None:
    answer = result.answer
    for name, rgb in (
        ("raw_left", result.frame.left_rgb),
        ("raw_right", result.frame.right_rgb),
        ("left", result.left),
        ("right", result.right),
        *((f"window_{title.lower().replace(' ', '_')}", picture[..., ::-1]) for title, picture in pictures.items()),
    ):
        write_rgb(folder / f"{name}.png", np.ascontiguousarray(rgb))
    maps = {
        "disparity_px": answer.disparity_px,
        "std_px": answer.std_px,
        "confidence": answer.confidence,
        "depth_m": result.depth_m,
    }
    for name, values in maps.items():
        if values is not None:
            encoded = encode_npy(values)
            write_atomically(folder / f"{name}.npy", lambda file, encoded=encoded: file.write(encoded), durable=False)
    if result.depth_m is not None and result.calibration is not None:
        everywhere = np.ones(result.depth_m.shape, bool)
        cloud = encode_ply(*point_cloud(result.depth_m, result.left, everywhere, result.calibration))
        write_atomically(folder / "cloud.ply", lambda file: file.write(cloud), durable=False)

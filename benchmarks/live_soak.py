"""Run a long headless live view under faults: memory and latency at its start and at its end, one JSON line.

Two videos play like cameras. A camera is lost and reopened many times; the watched checkpoint is replaced many times,
every fifth time by a truncated file first. Rectification, a real network, depth and all.

    uv run python benchmarks/live_soak.py --minutes 60 --fps 33 --height 120 --width 160
"""

import argparse
import dataclasses
import gc
import json
import math
import statistics
import tempfile
import time
from array import array
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import torch
from live_latency import distorted_rig, views, write_video
from training_loop import commit, device_name

from foundation_stereo_depth.checkpoint import Checkpoint, Progress, save_checkpoint
from foundation_stereo_depth.data.rectify import Rectifier
from foundation_stereo_depth.model import create_network
from foundation_stereo_depth.options import command_line
from foundation_stereo_depth.options.training import DataOptions, ModelOptions, TrainOptions
from live_camera.camera import Camera
from live_camera.cli import load_network
from live_camera.matcher import MatchedFrame, WatchedMatcher
from live_camera.options import CameraOptions, LiveViewOptions, ShowOptions, SourceOptions
from live_camera.rig import Rig
from live_camera.session import live_view
from live_camera.sources import GrabTimes, TwoCameras


class LossyCamera(Camera):
    """A video that plays without end, and whose camera can be disconnected."""

    connected = True

    def grab(self) -> float | None:
        """Grab the next frame."""
        if not self.connected:
            return None
        if super().grab() is None:
            self.rewind()
            super().grab()
        return time.monotonic()

    def reopen(self) -> bool:
        """Connect and open it again."""
        self.connected = True
        return super().reopen()


class PacedCameras(TwoCameras):
    """Cameras of a fixed rate."""

    def __init__(self, left: Camera, right: Camera, fps: float) -> None:
        super().__init__(left, right)
        self.live = True
        self._period_s = 1 / fps
        self._due_s = time.monotonic()

    def grab(self) -> GrabTimes:
        """Grab the next pair at its time."""
        self._due_s = max(self._due_s + self._period_s, time.monotonic())
        time.sleep(max(0.0, self._due_s - time.monotonic()))
        return super().grab()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--replacements", type=int, default=50)
    parser.add_argument("--losses", type=int, default=20)
    parser.add_argument("--fps", type=float, default=15.0, help="of the simulated cameras")
    parser.add_argument("--height", type=int, default=240, help="of the network's input, px")
    parser.add_argument("--width", type=int, default=320, help="the same")
    asked = parser.parse_args()
    first = untrained_checkpoint(asked.height, asked.width)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "last.pt"
        save_checkpoint(path, first)
        matcher = WatchedMatcher(path, lambda path: load_network(path, LiveViewOptions()))
        rectifier = Rectifier(distorted_rig(), height=matcher.height, width=matcher.width)
        cameras = [
            LossyCamera(str(write_video(Path(folder) / name, view, 60)), name, CameraOptions())
            for name, view in zip(("left.avi", "right.avi"), views(), strict=True)
        ]
        rig = Rig(PacedCameras(*cameras, asked.fps), SourceOptions(left="left", right="right"))
        measured = Measurements(60 * asked.minutes)
        faults = Faults(path, first, matcher, cameras, replacements=asked.replacements, losses=asked.losses)

        def after_pair(matched: MatchedFrame) -> None:
            fraction = measured.add(matched)
            faults.inject(fraction)
            if fraction > 1:
                raise KeyboardInterrupt

        try:
            live_view(rig, rectifier, matcher, ShowOptions(headless=True), after_pair=after_pair)
        except KeyboardInterrupt:
            gc.collect()
        results = {
            "benchmark": "live_soak",
            "commit": commit(),
            "device": device_name(),
            "torch_threads": torch.get_num_threads(),
            "network": matcher.description,
            "camera_fps": asked.fps,
            "replacements_loaded": matcher.replaced,
            "truncated_files_rejected": faults.truncated,
            "camera_losses": rig.losses,
        }
        print(json.dumps(results | measured.results()))


def untrained_checkpoint(height: int, width: int) -> Checkpoint:
    """Return a small network with random weights."""
    return Checkpoint(
        model={"model": "unet", "base_channels": 8, "depth": 4},
        weights=create_network(ModelOptions(base_channels=8, depth=4)).state_dict(),
        uncertainty={"distribution": "laplace", "scale": 1.0},
        metrics={},
        run_id="soak",
        progress=Progress(),
        options=command_line.options_to_dict(TrainOptions(data=DataOptions(height=height, width=width))),
    )


class Faults:
    """Replaces the checkpoint and disconnects cameras, evenly spread over the time.

    Attributes:
        truncated: number of truncated files written so far.
    """

    def __init__(
        self,
        path: Path,
        checkpoint: Checkpoint,
        matcher: WatchedMatcher,
        cameras: list[LossyCamera],
        *,
        replacements: int,
        losses: int,
    ) -> None:
        self._path, self._checkpoint, self._matcher, self._cameras = path, checkpoint, matcher, cameras
        self._replacements, self._losses = replacements, losses
        self._saved = self._lost = 0
        self.truncated = 0

    def inject(self, fraction: float) -> None:
        """Inject what is due when this fraction of the time is over, 0 to 1."""
        if fraction * (self._replacements + 1) > self._saved + 1 and self._saved < self._replacements:
            self._replace_checkpoint()
        if fraction * (self._losses + 1) > self._lost + 1 and self._lost < self._losses:
            self._lost += 1
            self._cameras[self._lost % 2].connected = False

    def _replace_checkpoint(self) -> None:
        if self._saved % 5 == 4 and self.truncated <= self._saved // 5:
            self._path.write_bytes(self._path.read_bytes()[:10_000])
            self.truncated += 1
            return
        if self.truncated > self._saved // 5 and self._matcher.problem is None:
            return  # the truncated file has not been checked yet
        self._saved += 1
        save_checkpoint(self._path, dataclasses.replace(self._checkpoint, progress=Progress(step=self._saved)))


class Measurements:
    """Memory, threads, open files and latency of this process over a planned time."""

    def __init__(self, length_s: float) -> None:
        self._process = psutil.Process()
        self._began_s = time.monotonic()
        self._length_s = length_s
        self._pairs = 0
        self._rss_mb: list[float] = []
        self._threads: list[int] = []
        self._files: list[int] = []
        self._latencies, self._reference = Tenths(), Tenths()

    def add(self, matched: MatchedFrame) -> float:
        """Measure after a pair; return the fraction of the time that is over."""
        self._pairs += 1
        now_s = time.monotonic()
        fraction = (now_s - self._began_s) / self._length_s
        self._latencies.add(fraction, 1000 * (now_s - matched.frame.captured_at_s))
        if self._pairs % 100 == 0:
            self._rss_mb.append(self._process.memory_info().rss / 2**20)
            self._threads.append(self._process.num_threads())
            self._files.append(self._process.num_fds())
            self._reference.add(fraction, reference_work_ms())
        return fraction

    def results(self) -> dict[str, Any]:
        """Return the figures for the JSON line."""
        rss_mb = self._rss_mb
        counts = {"threads": self._threads, "open_files": self._files}
        return {
            "minutes": (time.monotonic() - self._began_s) / 60,
            "pairs": self._pairs,
            "rss_mb": {
                "after_100_pairs": rss_mb[0],
                "tenths": [rss_mb[tenth * (len(rss_mb) - 1) // 10] for tenth in range(1, 11)],
                "highest": max(rss_mb),
            },
            **{
                name: {"after_100_pairs": values[0], "end": values[-1], "highest": max(values)}
                for name, values in counts.items()
            },
            "median_latency_ms_by_tenth": self._latencies.medians(),
            "reference_work_ms_by_tenth": self._reference.medians(),
        }


class Tenths:
    """Values by the tenth of the time in which they were measured; 4 bytes each, since memory is being measured."""

    def __init__(self) -> None:
        self._values = [array("f") for _ in range(10)]

    def add(self, fraction: float, value: float) -> None:
        """Add a value measured when this fraction of the time was over, 0 to 1."""
        self._values[min(9, int(10 * fraction))].append(value)

    def medians(self) -> list[float]:
        """Return one per tenth; NaN where there is no value."""
        return [statistics.median(values) if values else math.nan for values in self._values]


def reference_work_ms() -> float:
    """Return the time of a fixed piece of work, which is slower on a machine that other programs use."""
    began_s = time.perf_counter()
    cv2.GaussianBlur(REFERENCE_IMAGE, (0, 0), 3)
    return 1000 * (time.perf_counter() - began_s)


REFERENCE_IMAGE = np.zeros((240, 320, 3), np.uint8)


if __name__ == "__main__":
    main()

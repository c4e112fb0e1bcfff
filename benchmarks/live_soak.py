"""A long headless live view under faults: memory and latency at its start and at its end, one JSON line.

Two videos play as cameras would. A camera is lost again and again, and each time opened anew; the watched checkpoint is
replaced again and again, every fifth time by half a file first. Rectification, a real network, depth and all.

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

import cv2
import numpy as np
import psutil
import torch
from live_latency import distorted_rig, eyes, write_video
from training_loop import commit, device_name

from foundation_stereo_depth.checkpoint import Checkpoint, Progress, save_checkpoint
from foundation_stereo_depth.model import create_network
from foundation_stereo_depth.options import command_line
from foundation_stereo_depth.options.training import DataOptions, ModelOptions, TrainOptions
from live_camera.camera import Camera
from live_camera.cli import _loader  # pyright: ignore[reportPrivateUsage]
from live_camera.matcher import WatchedMatcher
from live_camera.options import CameraOptions, LiveViewOptions, ShowOptions, SourceOptions
from live_camera.rectify import Rectifier
from live_camera.rig import Rig
from live_camera.session import Preparation, live_view
from live_camera.sources import Grabbed, TwoCameras
from live_camera.view import Result


class LossyCamera(Camera):
    """A video that plays without end, and whose camera can be unplugged."""

    plugged = True

    def grab(self) -> float | None:
        """The next picture."""
        if not self.plugged:
            return None
        if super().grab() is None:
            self.rewind()
            super().grab()
        return time.monotonic()

    def reopen(self) -> bool:
        """Plugged in again, and opened anew."""
        self.plugged = True
        return super().reopen()


class PacedCameras(TwoCameras):
    """Cameras of a fixed rate."""

    def __init__(self, left: Camera, right: Camera, fps: float) -> None:
        super().__init__(left, right)
        self.live = True
        self._period_s = 1 / fps
        self._due_s = time.monotonic()

    def grab(self) -> Grabbed:
        """The next pair, not yet decoded, at its time."""
        self._due_s = max(self._due_s + self._period_s, time.monotonic())
        time.sleep(max(0.0, self._due_s - time.monotonic()))
        return super().grab()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--replacements", type=int, default=50)
    parser.add_argument("--losses", type=int, default=20)
    parser.add_argument("--fps", type=float, default=15.0, help="of the made-up cameras")
    parser.add_argument("--height", type=int, default=240, help="that the network works at, px")
    parser.add_argument("--width", type=int, default=320, help="the same")
    asked = parser.parse_args()
    process = psutil.Process()
    model = ModelOptions(base_channels=8, depth=4)
    first = Checkpoint(
        model={"model": "unet", "base_channels": 8, "depth": 4},
        weights=create_network(model).state_dict(),
        uncertainty={"distribution": "laplace", "scale": 1.0},
        metrics={},
        run_id="soak",
        progress=Progress(),
        options=command_line.options_to_dict(TrainOptions(data=DataOptions(height=asked.height, width=asked.width))),
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "last.pt"
        save_checkpoint(path, first)
        load = _loader(LiveViewOptions())
        matcher = WatchedMatcher(path, load)
        rectifier = Rectifier(distorted_rig(), height=matcher.height, width=matcher.width)
        prepare = Preparation(
            height=matcher.height, width=matcher.width, rectifier=rectifier, calibration=rectifier.stereo_calibration
        )
        cameras = [
            LossyCamera(str(write_video(Path(folder) / name, eye, 60)), name, CameraOptions())
            for name, eye in zip(("left.avi", "right.avi"), eyes(), strict=True)
        ]
        rig = Rig(PacedCameras(*cameras, asked.fps), SourceOptions(left="left", right="right"))
        began_s = time.monotonic()
        length_s = 60 * asked.minutes
        rss_mb: list[float] = []
        latencies = Tenths()
        yardstick = Tenths()
        pairs = 0
        threads: list[int] = []
        files: list[int] = []
        done = {"saved": 0, "broken": 0, "lost": 0}

        def after_pair(result: Result) -> None:
            nonlocal pairs
            pairs += 1
            now_s = time.monotonic()
            share = (now_s - began_s) / length_s
            latencies.add(share, 1000 * (now_s - result.frame.captured_at_s))
            if pairs % 100 == 0:
                rss_mb.append(process.memory_info().rss / 2**20)
                threads.append(process.num_threads())
                files.append(process.num_fds())
                yardstick.add(share, yardstick_ms())
            if share * (asked.replacements + 1) > done["saved"] + 1 and done["saved"] < asked.replacements:
                if done["saved"] % 5 == 4 and done["broken"] <= done["saved"] // 5:
                    path.write_bytes(path.read_bytes()[:10_000])
                    done["broken"] += 1
                    return
                if done["broken"] > done["saved"] // 5 and matcher.problem is None:
                    return  # the broken one has not been looked at yet
                done["saved"] += 1
                save_checkpoint(path, dataclasses.replace(first, progress=Progress(step=done["saved"])))
            if share * (asked.losses + 1) > done["lost"] + 1 and done["lost"] < asked.losses:
                done["lost"] += 1
                cameras[done["lost"] % 2].plugged = False
            if share > 1:
                raise KeyboardInterrupt

        try:
            live_view(rig, prepare, matcher, ShowOptions(headless=True), after_pair=after_pair)
        except KeyboardInterrupt:
            gc.collect()
        print(
            json.dumps(
                {
                    "benchmark": "live_soak",
                    "commit": commit(),
                    "device": device_name(),
                    "torch_threads": torch.get_num_threads(),
                    "network": matcher.name,
                    "minutes": (time.monotonic() - began_s) / 60,
                    "camera_fps": asked.fps,
                    "pairs": pairs,
                    "replacements_taken_over": matcher.replaced,
                    "broken_files_refused": done["broken"],
                    "camera_losses": rig.losses,
                    "rss_mb": {
                        "after_100_pairs": rss_mb[0],
                        "tenths": [rss_mb[tenth * (len(rss_mb) - 1) // 10] for tenth in range(1, 11)],
                        "highest": max(rss_mb),
                    },
                    "threads": {"after_100_pairs": threads[0], "end": threads[-1], "highest": max(threads)},
                    "open_files": {"after_100_pairs": files[0], "end": files[-1], "highest": max(files)},
                    "median_latency_ms_by_tenth": latencies.medians(),
                    "yardstick_ms_by_tenth": yardstick.medians(),
                }
            )
        )


class Tenths:
    """Values by the tenth of the time in which they were measured; four bytes each, since memory is what is watched."""

    def __init__(self) -> None:
        self._values = [array("f") for _ in range(10)]

    def add(self, share: float, value: float) -> None:
        """A value measured when this share of the time was over, 0 to 1."""
        self._values[min(9, int(10 * share))].append(value)

    def medians(self) -> list[float]:
        """One per tenth; NaN where there was no value."""
        return [statistics.median(values) if values else math.nan for values in self._values]


def yardstick_ms() -> float:
    """How long a fixed piece of work takes: a machine that others use more becomes slower at this as well."""
    began_s = time.perf_counter()
    cv2.GaussianBlur(YARDSTICK, (0, 0), 3)
    return 1000 * (time.perf_counter() - began_s)


YARDSTICK = np.zeros((240, 320, 3), np.uint8)


if __name__ == "__main__":
    main()

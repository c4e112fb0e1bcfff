"""Measure what the live view adds to its network: one JSON line.

Two videos of 640x480 play like two cameras, at a fixed rate, and drop frames that are not taken. The complete view
(grab, decode, rectify, network, depth, colours, windows) and the network alone on one pair alternate in one process; so
do the parts, on one thread. Windows need a display: `xvfb-run -a` gives one where there is none.

    xvfb-run -a uv run python benchmarks/live_latency.py
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from skimage import data
from training_loop import commit, device_name, summary

from foundation_stereo_depth.calibration.rig import RigCalibration
from foundation_stereo_depth.data.rectify import Rectifier
from foundation_stereo_depth.inference.predictor import open_network
from foundation_stereo_depth.options.inference import InferenceOptions
from live_camera.camera import Camera
from live_camera.matcher import MatchedFrame, Matcher
from live_camera.options import CameraOptions, ShowOptions, SourceOptions
from live_camera.rig import Rig, StereoFrame
from live_camera.session import live_view
from live_camera.sources import GrabTimes, TwoCameras
from live_camera.view import Status, ViewState, Windows, draw_windows

WIDTH, HEIGHT = 640, 480


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help=".pt, .safetensors or .onnx; else the installed network")
    parser.add_argument("--backend", choices=("auto", "torch", "onnxruntime", "openvino"), default="auto")
    parser.add_argument("--height", type=int, help="of the network's input, px; else as trained")
    parser.add_argument("--width", type=int, help="the same")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=100, help="per round")
    parser.add_argument("--fps", type=float, default=60.0, help="of the simulated cameras")
    asked = parser.parse_args()
    inference = InferenceOptions(backend=asked.backend)
    predictor = open_network(asked.checkpoint, inference, height=asked.height, width=asked.width, enlarge=False)
    matcher = Matcher(
        match=predictor, description=predictor.description, height=predictor.height, width=predictor.width
    )
    rectifier = Rectifier(distorted_rig(), height=matcher.height, width=matcher.width)
    with tempfile.TemporaryDirectory() as folder:
        videos = [
            write_video(Path(folder) / name, view)
            for name, view in zip(("left.avi", "right.avi"), views(), strict=True)
        ]
        whole_ms: list[float] = []
        bare_ms: list[float] = []
        latency_ms: list[float] = []
        parts_ms: dict[str, list[float]] = {}
        for turn in range(asked.rounds + 1):
            interval_ms, latency = run_live_view(videos, rectifier, matcher, asked.pairs, asked.fps)
            first = first_frame(videos)
            pair = rectifier(first.left_rgb, first.right_rgb)
            bare = [timed(lambda pair=pair: predictor(*pair)) for _ in range(asked.pairs)]
            parts = part_times(videos, rectifier, matcher, asked.pairs)
            if turn:  # the first round warms up
                whole_ms.append(interval_ms)
                bare_ms.append(statistics.median(bare))
                latency_ms.append(latency)
                for name, value in parts.items():
                    parts_ms.setdefault(name, []).append(value)
    around_ms = [sum(values) for values in zip(*parts_ms.values(), strict=True)]
    print(
        json.dumps(
            {
                "benchmark": "live_latency",
                "commit": commit(),
                "device": device_name(),
                "torch_threads": torch.get_num_threads(),
                "network": predictor.description,
                "camera_fps": asked.fps,
                "bare_network_ms": summary(bare_ms),
                "whole_ms_a_pair": summary(whole_ms),
                "whole_less_bare_ms": summary([w - b for b, w in zip(bare_ms, whole_ms, strict=True)]),
                "rate_of_whole_over_bare": summary([b / w for b, w in zip(bare_ms, whole_ms, strict=True)]),
                "latency_ms": summary(latency_ms),
                "latency_in_pair_times": summary([a / w for a, w in zip(latency_ms, whole_ms, strict=True)]),
                "around_the_network_ms": summary(around_ms),
                "around_as_share_of_network": summary([a / b for a, b in zip(around_ms, bare_ms, strict=True)]),
                "parts_ms": {name: summary(values) for name, values in parts_ms.items()},
            }
        )
    )


def run_live_view(
    videos: list[Path], rectifier: Rectifier, matcher: Matcher, pairs: int, fps: float
) -> tuple[float, float]:
    """Return median ms between two pairs in the windows, and median ms from grab to window."""
    shown_s: list[float] = []
    rig = Rig(LiveVideos(videos, fps), SourceOptions(left="left", right="right"))
    stats = live_view(
        rig, rectifier, matcher, ShowOptions(frames=pairs), after_pair=lambda _: shown_s.append(time.monotonic())
    )
    return 1000 * statistics.median(np.diff(shown_s)), stats.latency_ms


def part_times(videos: list[Path], rectifier: Rectifier, matcher: Matcher, pairs: int) -> dict[str, float]:
    """Return median ms of each part other than the network, one after the other."""
    cameras = [Camera(str(path), "video", CameraOptions()) for path in videos]
    times: dict[str, list[float]] = {}

    def part(name: str, work: Callable[[], Any]) -> Any:
        began_s = time.perf_counter()
        returned = work()
        times.setdefault(name, []).append(1000 * (time.perf_counter() - began_s))
        return returned

    calibration = rectifier.stereo_calibration
    status = Status(matcher="x")
    with Windows() as windows:
        for _ in range(pairs):
            for camera in cameras:
                if part("grab", camera.grab) is None:
                    raise SystemExit("the videos are shorter than --pairs")
            left, right = (part("decode", camera.retrieve) for camera in cameras)
            frame = StereoFrame(left_rgb=left, right_rgb=right, captured_at_s=0.0, skew_ms=0.0)
            left, right = part("rectify", lambda frame=frame: rectifier(frame.left_rgb, frame.right_rgb))
            match = matcher.match(left, right)
            depth_m = part("depth", lambda match=match: match.depth_m(calibration))
            matched = MatchedFrame(
                frame=frame, left=left, right=right, match=match, depth_m=depth_m, calibration=calibration
            )
            images = part("colours", lambda matched=matched: draw_windows(matched, ViewState(), status, 0.5))
            part("windows", lambda images=images: windows.show(images, (matcher.height, matcher.width)))
    for camera in cameras:
        camera.release()
    both = {"grab": 2, "decode": 2}
    return {name: both.get(name, 1) * statistics.median(values) for name, values in times.items()}


class LiveVideos(TwoCameras):
    """Two videos that behave like cameras: a frame arrives at its time, and is dropped if it is not taken."""

    def __init__(self, videos: list[Path], fps: float) -> None:
        super().__init__(*(Camera(str(path), "video", CameraOptions()) for path in videos))
        self.live = True
        self._began_s = time.monotonic()
        self._period_s = 1 / fps
        self._number = 0

    def grab(self) -> GrabTimes:
        """Grab the next pair at its time."""
        self._number += 1
        at_s = self._began_s + self._number * self._period_s
        time.sleep(max(0.0, at_s - time.monotonic()))
        for camera in self.cameras:
            if camera.grab() is None:
                camera.rewind()
                camera.grab()
        now_s = time.monotonic()
        return GrabTimes(now_s, now_s)


def views() -> tuple[np.ndarray, np.ndarray]:
    """Return a real pair of scikit-image (Middlebury's Motorcycle), 640x480."""
    left, right, _ = data.stereo_motorcycle()
    return tuple(cv2.resize(view, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA) for view in (left, right))  # pyright: ignore[reportReturnType]


def write_video(path: Path, image: np.ndarray, frames: int = 200) -> Path:
    """Write a Motion-JPEG video with noise, as webcams send it; return its path."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 30, (WIDTH, HEIGHT))
    random = np.random.default_rng(0)
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    for _ in range(frames):
        noise = random.integers(0, 4, bgr.shape, dtype=np.uint8)
        writer.write(cv2.add(bgr, noise))
    writer.release()
    return path


def first_frame(videos: list[Path]) -> StereoFrame:
    """Return the first pair."""
    images: list[Any] = []
    for path in videos:
        camera = Camera(str(path), "video", CameraOptions())
        camera.grab()
        images.append(camera.retrieve())
        camera.release()
    return StereoFrame(left_rgb=images[0], right_rgb=images[1], captured_at_s=0.0, skew_ms=0.0)


def distorted_rig() -> RigCalibration:
    """Return a synthetic rig of two webcams with some distortion and a slight rotation."""
    matrix = np.array([[500.0, 0, 322], [0, 501.0, 243], [0, 0, 1]])
    distortion = np.array([0.05, -0.1, 0.001, -0.0005, 0.02])
    rotation, _ = cv2.Rodrigues(np.array([0.005, 0.01, -0.004]))
    return RigCalibration(
        width=WIDTH,
        height=HEIGHT,
        left_matrix=matrix,
        left_distortion=distortion,
        right_matrix=matrix,
        right_distortion=distortion,
        rotation=np.asarray(rotation, np.float64),
        translation_m=np.array([-0.07, 0.0005, -0.0003]),
    )


def timed(work: Callable[[], object]) -> float:
    """Return milliseconds."""
    began_s = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - began_s)


if __name__ == "__main__":
    main()

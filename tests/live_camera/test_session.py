"""The commands of the live view without windows, and the files that they write."""

import itertools
import json
import logging
import re
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import shifted_pair
from fake_cameras import FakeCamera, machine
from rendered_rig import RenderedRig, converging_rig, noise_texture, plane_at

from foundation_stereo_depth.calibration.files import read_calibration, save_calibration
from foundation_stereo_depth.calibration.rig import RigCalibration
from foundation_stereo_depth.checkpoint import load_checkpoint, save_checkpoint
from foundation_stereo_depth.cli import predict_command
from foundation_stereo_depth.data.codecs import read_rgb, write_rgb
from foundation_stereo_depth.data.rectify import Resizer, create_rectifier
from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.inference.predictor import Predictor
from foundation_stereo_depth.stereo import sgbm
from foundation_stereo_depth.stereo.match import StereoMatch
from live_camera import camera as capture
from live_camera import cli, view
from live_camera import rig as rig_module
from live_camera import session as live
from live_camera.camera import CameraInfo
from live_camera.cli import calibrate_command, list_cameras_command, live_view_command
from live_camera.draw import Canvas
from live_camera.matcher import MatchedFrame, Matcher, WatchedMatcher, sgbm_matcher
from live_camera.options import CameraOptions, MatcherOptions, ShowOptions, SourceOptions
from live_camera.recording import Recorder, Recordings, Snapshots, check_recordable
from live_camera.rig import Rig, StereoFrame, open_rig
from live_camera.session import live_view

__all__ = ["machine"]
H, W, SHIFT_PX = 120, 160, 6
LEFT, RIGHT = shifted_pair(H, W, SHIFT_PX)
GLOBS = ["--left", "left*.png", "--right", "right*.png"]


@pytest.fixture
def images() -> None:
    """Write five pairs of images, and the calibration of their rig: no distortion, f B = 8 m px."""
    for number in range(5):
        write_rgb(Path(f"left{number}.png"), LEFT)
        write_rgb(Path(f"right{number}.png"), RIGHT)
    matrix = np.array([[80.0, 0, W / 2], [0, 80.0, H / 2], [0, 0, 1]])
    rig = RigCalibration(
        width=W,
        height=H,
        left_matrix=matrix,
        left_distortion=np.zeros(5),
        right_matrix=matrix,
        right_distortion=np.zeros(5),
        rotation=np.eye(3),
        translation_m=np.array([-0.1, 0, 0]),
    )
    save_calibration(Path("rig.npz"), rig)


def no_rectification() -> Resizer:
    return Resizer(None, height=H, width=W)


def record_results(monkeypatch: pytest.MonkeyPatch) -> list[MatchedFrame]:
    """Return a list that gets each result of the command's view."""
    results: list[MatchedFrame] = []
    original = live.live_view

    def live_view_recording(*args: Any, **more: Any) -> live.Statistics:
        return original(*args, **more | {"after_pair": results.append})

    monkeypatch.setattr(live, "live_view", live_view_recording)
    return results


def test_live_view_of_files_shows_every_pair_and_succeeds(images: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert live_view_command([*GLOBS, "--method", "sgbm", "--headless"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "5 pairs shown; " in captured.err
    assert "OpenCV SGBM; no calibration, so disparity only" in captured.err
    assert "seem" not in captured.err


@pytest.mark.parametrize("rectify", ["--rectify", "--no-rectify"])
def test_live_view_with_calibration_gives_metric_depth(
    images: None, rectify: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = record_results(monkeypatch)
    flags = [*GLOBS, "--method", "sgbm", "--headless", "--frames", "1", "--calibration", "rig.npz", rectify]
    assert live_view_command([*flags, "--network-width", "80", "--network-height", "90"]) == 0
    (result,) = results
    assert result.left.shape == (90, 80, 3)
    assert result.depth_m is not None
    assert np.median(result.depth_m) == pytest.approx(80 * 0.1 / SHIFT_PX, rel=0.02)


def test_default_calibration_is_used(images: None, capsys: pytest.CaptureFixture[str]) -> None:
    Path("calibration").mkdir()
    Path("rig.npz").rename("calibration/stereo_calib.npz")
    assert live_view_command([*GLOBS, "--method", "sgbm", "--headless", "--frames", "1"]) == 0
    assert "OpenCV SGBM; depth in metres" in capsys.readouterr().err


def test_network_shows_its_step_and_confidence(
    images: None, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = record_results(monkeypatch)
    assert live_view_command([*GLOBS, "--checkpoint", str(tiny_checkpoint), "--headless", "--device", "cpu"]) == 0
    error = capsys.readouterr().err
    assert "unet at 64x48" in error
    assert "step 0" in error
    assert len(results) == 5
    confidence = results[0].match.confidence
    assert confidence is not None
    assert confidence.shape == (48, 64)
    assert 0 <= confidence.min() <= confidence.max() <= 1


def test_watched_checkpoint_is_replaced_while_the_view_runs(
    images: None, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("live_camera.matcher._CHECK_EVERY_S", 0.01)
    descriptions: list[str] = []
    fresh = load_checkpoint(tiny_checkpoint)

    def watch(_: MatchedFrame) -> None:
        descriptions.append(matchers[0].description)
        if len(descriptions) == 5:
            tiny_checkpoint.write_bytes(b"half of a checkpoint")
        if len(descriptions) == 30:
            save_checkpoint(tiny_checkpoint, type(fresh)(**{**vars(fresh), "progress": type(fresh.progress)(step=77)}))
        if descriptions[-1].endswith("step 77"):
            raise KeyboardInterrupt

    matchers: list[WatchedMatcher] = []
    original = live.live_view

    def live_view_watched(
        rig: object, rectify: object, matcher: WatchedMatcher, options: object, **more: object
    ) -> object:
        matchers.append(matcher)
        time.sleep(0.01)
        return original(rig, rectify, matcher, options, **more | {"after_pair": watch})  # pyright: ignore

    monkeypatch.setattr(live, "live_view", live_view_watched)
    flags = ["--checkpoint", str(tiny_checkpoint), "--watch-checkpoint", "--headless", "--loop", "--fps", "30"]
    assert live_view_command([*GLOBS, *flags]) == 130  # Ctrl-C ends it
    assert descriptions[0].endswith("step 0")
    assert "best.pt is not used" in capsys.readouterr().err


def test_live_view_continues_after_a_camera_was_reconnected(
    machine: dict[int, FakeCamera], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rig_module, "_REOPEN_EVERY_S", 0.05)
    machine[0], machine[2] = FakeCamera(LEFT, fps=30), FakeCamera(RIGHT, fps=30)
    seen: list[MatchedFrame] = []

    def after(result: MatchedFrame) -> None:
        seen.append(result)
        if len(seen) == 5:
            machine[2].connected = False

    cameras = CameraOptions(focus="auto", exposure="auto", white_balance="auto")
    rig = open_rig(SourceOptions(left="0", right="2"), cameras)
    original = rig.next

    def next_pair(timeout_s: float) -> StereoFrame | None:
        frame = original(timeout_s)
        if frame is None and rig.waiting_for is not None:
            machine[2].connected = True
        return frame

    monkeypatch.setattr(rig, "next", next_pair)
    options = ShowOptions(headless=True, frames=10)
    stats = live_view(rig, no_rectification(), sgbm_matcher(height=H, width=W), options, after_pair=after)
    assert stats.pairs == 10
    assert rig.losses == 1
    assert caplog.messages.count("--right 2 was disconnected; waiting for it to come back") == 1
    assert "skew" in stats.summary(rig)


class CountingMatch:
    """Semi-global matching that counts its pairs, and fails at one of them on request."""

    def __init__(self, *, fails_at: int | None = None, failure: Exception | None = None) -> None:
        self.begun = 0
        self.began = threading.Condition()
        self._fails_at, self._failure = fails_at, failure
        self.matcher = Matcher(match=self, description="counting", height=H, width=W)

    def __call__(self, left: np.ndarray, right: np.ndarray) -> StereoMatch:
        with self.began:
            self.begun += 1
            self.began.notify_all()
        if self.begun == self._fails_at and self._failure is not None:
            raise self._failure
        return sgbm.match(left, right)


def image_rig(*, loop: bool = False) -> Rig:
    return open_rig(SourceOptions(left="left*.png", right="right*.png", loop=loop), CameraOptions(), realtime=False)


def matching_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("matching")]


def test_one_pair_is_matched_ahead_of_the_shown_one(images: None) -> None:
    counting = CountingMatch()
    begun: list[int] = []

    def after(_: MatchedFrame) -> None:
        with counting.began:
            assert counting.began.wait_for(lambda: counting.begun > len(begun) + 1 or len(begun) == 4, timeout=10)
        time.sleep(0.02)  # enough for a second one ahead
        begun.append(counting.begun)

    live_view(image_rig(), no_rectification(), counting.matcher, ShowOptions(headless=True), after_pair=after)
    assert begun == [2, 3, 4, 5, 5]
    assert not matching_threads()


def test_frames_option_limits_the_matched_pairs(images: None) -> None:
    counting, shown = CountingMatch(), list[MatchedFrame]()
    options = ShowOptions(headless=True, frames=3)
    stats = live_view(image_rig(loop=True), no_rectification(), counting.matcher, options, after_pair=shown.append)
    assert stats.pairs == counting.begun == len(shown) == 3
    times_s = [result.frame.captured_at_s for result in shown]
    assert times_s == sorted(times_s)


@pytest.mark.parametrize("failure", [UserError("out of memory"), ZeroDivisionError()])
def test_matcher_failure_is_raised_after_the_pairs_before_it(images: None, failure: Exception) -> None:
    shown: list[MatchedFrame] = []
    counting = CountingMatch(fails_at=3, failure=failure)
    with pytest.raises(type(failure)) as caught:
        live_view(
            image_rig(), no_rectification(), counting.matcher, ShowOptions(headless=True), after_pair=shown.append
        )
    assert caught.value is failure
    assert len(shown) == 2
    assert not matching_threads()


def test_corrupt_image_is_an_error_after_the_pairs_before_it(
    images: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = record_results(monkeypatch)
    Path("right3.png").write_bytes(b"no image")
    assert live_view_command([*GLOBS, "--method", "sgbm", "--headless"]) == 2
    assert "right3.png" in capsys.readouterr().err
    assert len(results) == 3


def test_interrupt_ends_the_threads_and_closes_the_recording(images: None, caplog: pytest.LogCaptureFixture) -> None:
    def interrupt(_: MatchedFrame) -> None:
        raise KeyboardInterrupt

    caplog.set_level(logging.INFO)
    options = ShowOptions(headless=True, record=Path("all.mkv"))
    with pytest.raises(KeyboardInterrupt):
        live_view(image_rig(loop=True), no_rectification(), CountingMatch().matcher, options, after_pair=interrupt)
    assert not matching_threads()
    (message,) = (line for line in caplog.messages if "recorded" in line)
    with open_rig(SourceOptions(side_by_side="all.mkv"), CameraOptions(), realtime=False) as rig:
        assert message.startswith(f"all.mkv: {len(list(rig))} pairs recorded")


def test_recording_plays_again_without_loss(images: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert live_view_command([*GLOBS, "--method", "sgbm", "--headless", "--record", "all.mkv"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "all.mkv\n"
    assert "all.mkv: 5 pairs recorded; --side-by-side all.mkv plays them" in captured.err
    with open_rig(SourceOptions(side_by_side="all.mkv"), CameraOptions(), realtime=False) as rig:
        frames = list(rig)
    assert len(frames) == 5
    assert np.abs(frames[4].left_rgb.astype(int) - LEFT).max() <= 3  # FFV1 is lossless in its own colour space
    assert np.abs(frames[4].right_rgb.astype(int) - RIGHT).max() <= 3
    assert live_view_command([*GLOBS, "--method", "sgbm", "--headless", "--record", "all.mkv"]) == 2
    assert "--record all.mkv: exists already" in capsys.readouterr().err


def test_incomplete_recording_is_an_error_at_the_end(
    images: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("live_camera.recording.cv2.VideoWriter.isOpened", lambda _: False)
    assert live_view_command([*GLOBS, "--method", "sgbm", "--headless", "--record", "all.mkv"]) == 2
    error = capsys.readouterr().err
    assert "5 pairs shown" in error
    assert "warning: --record all.mkv: cannot be written" in error
    assert "a recording is incomplete; the warning above states the reason" in error


@pytest.mark.parametrize("suffix", [".avi", ".mkv", ".mp4"])
def test_recording_stops_when_the_disk_is_nearly_full(suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    free = itertools.chain([2**40] * 30, itertools.repeat(2**20))
    usage = namedtuple("usage", "total free")
    monkeypatch.setattr("live_camera.recording.shutil.disk_usage", lambda _: usage(2**40, next(free)))
    recorder = Recorder(Path(f"all{suffix}"), fps=30, live=False)
    frame = StereoFrame(left_rgb=LEFT, right_rgb=RIGHT, captured_at_s=0.0, skew_ms=0.0)
    for _ in range(60):
        recorder.add(frame)
    with pytest.raises(ValueError, match=rf"--record all\{suffix}: stopped after 30 pairs: the disk is nearly full"):
        recorder.finish()
    assert frames_of(Path(f"all{suffix}")) == 30


def frames_of(path: Path) -> int:
    video, count = cv2.VideoCapture(str(path)), 0
    while video.grab():
        count += 1
    return count


@pytest.mark.parametrize("suffix", [".avi", ".mkv", ".mp4"])
def test_recording_that_the_disk_did_not_store_fails(suffix: str, tmp_path: Path) -> None:
    """By a file size limit, like a quota: OpenCV's video writer does not report it."""
    code = f"""
import resource, signal, sys
import cv2
import numpy as np
from pathlib import Path
from live_camera import recording
from live_camera.recording import Recorder
from live_camera.rig import StereoFrame
recording._RESERVED_BYTES = 0
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
recorder = Recorder(Path("all{suffix}"), fps=30, live=False)
random = np.random.default_rng(0)
for _ in range(40):
    view = random.integers(0, 256, (120, 160, 3), dtype=np.uint8)
    recorder.add(StereoFrame(left_rgb=view, right_rgb=view, captured_at_s=0.0, skew_ms=0.0))
try:
    recorder.finish()
except ValueError as error:
    print("FAILED", error)
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    found = re.fullmatch(
        rf"FAILED --record all{re.escape(suffix)}: holds (\d+) of 40 pairs; the disk did not store all of them\n",
        finished.stdout,
    )
    assert found is not None
    assert int(found[1]) == frames_of(tmp_path / f"all{suffix}")


@pytest.mark.parametrize("suffix", [".avi", ".mkv", ".mp4"])
@pytest.mark.parametrize("pairs", [1, 2, 45])
def test_complete_recording_does_not_fail(suffix: str, pairs: int) -> None:
    recorder = Recorder(Path(f"all{suffix}"), fps=29.97, live=False)
    for _ in range(pairs):
        recorder.add(StereoFrame(left_rgb=LEFT, right_rgb=RIGHT, captured_at_s=0.0, skew_ms=0.0))
    recorder.finish()
    assert recorder.written == pairs


def test_recording_stops_when_its_file_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("live_camera.recording._CHECK_EVERY_BYTES", LEFT.nbytes * 2 * 10)
    monkeypatch.setattr("live_camera.recording.cv2.VideoWriter", NullWriter)
    recorder = Recorder(Path("all.avi"), fps=30, live=False)
    for _ in range(60):
        recorder.add(StereoFrame(left_rgb=LEFT, right_rgb=RIGHT, captured_at_s=0.0, skew_ms=0.0))
    with pytest.raises(ValueError, match=r"--record all\.avi: stopped after 0 pairs: the file does not grow any more"):
        recorder.finish()


class NullWriter:
    """Writes nothing, without an error."""

    fourcc = cv2.VideoWriter.fourcc

    def __init__(self, path: str, *_: object) -> None:
        Path(path).touch()

    def isOpened(self) -> bool:
        return True

    def write(self, image: np.ndarray) -> None:
        pass

    def release(self) -> None:
        pass


def test_recording_needs_one_even_frame_size(images: None, caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder(Path("all.mkv"), fps=30, live=False)
    for image in (LEFT, LEFT, np.vstack([LEFT, LEFT])):
        recorder.add(StereoFrame(left_rgb=image, right_rgb=image, captured_at_s=0.0, skew_ms=0.0))
    with pytest.raises(ValueError, match=rf"stopped after 2 pairs: the frame size changed from {W}x{H} to {W}x{2 * H}"):
        recorder.finish()
    recorder = Recorder(Path("odd.mkv"), fps=30, live=False)
    recorder.add(StereoFrame(left_rgb=LEFT[:-1], right_rgb=RIGHT[:-1], captured_at_s=0.0, skew_ms=0.0))
    with pytest.raises(ValueError, match=f"a video needs an even height, and the frames are {W}x{H - 1}"):
        recorder.finish()
    recordings = Recordings(image_rig())
    recordings.start(Path("nothing.mkv"))
    recordings.stop()
    assert caplog.messages == ["nothing.mkv: not written, since no pair arrived"]
    assert recordings.written == []


def test_snapshot_that_cannot_be_written_is_a_warning(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    faults = iter([OSError(28, "No space left on device"), None])

    def save(*_: object) -> None:
        if (fault := next(faults)) is not None:
            raise fault

    monkeypatch.setattr("live_camera.recording._save", save)
    frame = StereoFrame(left_rgb=LEFT, right_rgb=RIGHT, captured_at_s=0.0, skew_ms=0.0)
    match = StereoMatch(disparity_px=np.zeros((H, W), np.float32), valid=np.ones((H, W), bool))
    result = MatchedFrame(frame=frame, left=LEFT, right=RIGHT, match=match, depth_m=None, calibration=None)
    with Snapshots(Path("captures")) as snapshots:
        for _ in range(2):
            snapshots.save(result, {})
    failed, saved = caplog.records
    assert (failed.levelname, saved.levelname) == ("WARNING", "INFO")
    assert "not saved (No space left on device)" in failed.getMessage()
    assert [f"{path}: snapshot saved" for path in snapshots.written] == [saved.getMessage()]


def test_recording_stops_when_its_disk_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_missing(folder: Path) -> None:
        raise FileNotFoundError(2, "No such file or directory", str(folder))

    monkeypatch.setattr("live_camera.recording.shutil.disk_usage", raise_missing)
    recorder = Recorder(Path("all.avi"), fps=30, live=False)
    frame = StereoFrame(left_rgb=LEFT, right_rgb=RIGHT, captured_at_s=0.0, skew_ms=0.0)
    for _ in range(60):
        recorder.add(frame)
    with pytest.raises(ValueError, match=r"--record all\.avi: stopped after 0 pairs: No such file"):
        recorder.finish()


def test_black_view_is_logged_once(machine: dict[int, FakeCamera], caplog: pytest.LogCaptureFixture) -> None:
    machine[0], machine[2] = FakeCamera(np.zeros_like(LEFT), fps=10), FakeCamera(RIGHT, fps=10)
    cameras = CameraOptions(focus="auto", exposure="auto", white_balance="auto")
    rig = open_rig(SourceOptions(left="0", right="2", max_skew_ms=1000), cameras)
    live_view(rig, no_rectification(), sgbm_matcher(height=H, width=W), ShowOptions(headless=True, frames=8))
    assert caplog.messages.count("the left view is black: is the lens covered?") == 1


def test_snapshot_contains_frames_maps_cloud_and_windows(images: None) -> None:
    results: list[MatchedFrame] = []
    rig = open_rig(SourceOptions(left="left*.png", right="right*.png"), CameraOptions(), realtime=False)
    resizer = Resizer(read_calibration(Path("rig.npz")), height=H, width=W)
    options = ShowOptions(headless=True, frames=1)
    live_view(rig, resizer, sgbm_matcher(height=H, width=W), options, after_pair=results.append)
    windows = view.draw_windows(results[0], view.ViewState(), view.Status(), 0.5)
    with Snapshots(Path("captures"), resizer.calibration) as snapshots:
        snapshots.save(results[0], windows)
        snapshots.save(results[0], windows)
    first, second = snapshots.written
    assert first != second
    assert {path.name for path in first.iterdir()} == {
        *("raw_left.png", "raw_right.png", "left.png", "right.png"),
        *("raw_left.calibration.npz", "left.calibration.npz"),
        *("window_stereo_pair.png", "window_depth.png"),
        *("disparity_px.npy", "depth_m.npy", "cloud.ply"),
    }
    assert np.array_equal(read_rgb(first / "raw_left.png"), LEFT)
    assert np.median(np.load(first / "depth_m.npy")) == pytest.approx(80 * 0.1 / SHIFT_PX, rel=0.02)


class FakeWindows:
    """Replaces `Windows`: no display, and keys that are pressed at given images."""

    def __init__(self, keys: dict[int, str]) -> None:
        self.state = view.ViewState()
        self.closed = False
        self.shown = 0
        self._keys = keys

    def __enter__(self) -> "FakeWindows":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, images: dict[str, Canvas], map_size: tuple[int, int]) -> str:
        assert map_size == (H, W)
        assert "Disparity" in images
        self.shown += 1
        keys = self._keys.get(self.shown, "")
        self.closed = "q" in keys
        for key in keys:
            if key not in "qsr":
                self.state.press(ord(key))
        return "".join(key for key in keys if key in "sr")


@pytest.fixture
def press_keys(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[int, str]], FakeWindows]:
    def press(keys: dict[int, str]) -> FakeWindows:
        windows = FakeWindows(keys)
        monkeypatch.setattr(live, "Windows", lambda: windows)
        return windows

    return press


def test_keys_that_cannot_save_are_warnings(
    images: None, press_keys: Callable[[dict[int, str]], FakeWindows], caplog: pytest.LogCaptureFixture
) -> None:
    Path("captures").write_text("no folder")
    windows = press_keys({2: "s", 3: "r", 6: "q"})
    rig = open_rig(SourceOptions(left="left*.png", right="right*.png", loop=True), CameraOptions(), realtime=False)
    live_view(rig, no_rectification(), sgbm_matcher(height=H, width=W), ShowOptions())
    assert windows.shown == 6
    assert [line.startswith("not saved: ") for line in caplog.messages] == [True, True]


def test_a_key_switches_temporal_fusion(images: None, press_keys: Callable[[dict[int, str]], FakeWindows]) -> None:
    values_px, shown_px = itertools.cycle((9.8, 10.2)), list[float]()

    def match(left: np.ndarray, right: np.ndarray) -> StereoMatch:
        return StereoMatch(disparity_px=np.full((H, W), next(values_px), np.float32), valid=np.ones((H, W), bool))

    press_keys({6: "t", 20: "t", 26: "q"})
    live_view(
        image_rig(loop=True),
        no_rectification(),
        Matcher(match=match, description="alternating", height=H, width=W),
        ShowOptions(),
        after_pair=lambda matched: shown_px.append(float(matched.match.disparity_px[0, 0])),
    )
    steps_px = np.abs(np.diff(shown_px))
    assert steps_px[:4].min() > 0.39
    assert steps_px[14:18].max() < 0.1
    assert steps_px[-2:].min() > 0.39


def test_recordings_of_the_same_second_have_different_names(
    images: None, press_keys: Callable[[dict[int, str]], FakeWindows], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("live_camera.recording.time.strftime", lambda _: "20260101-000000")
    press_keys({2: "r", 6: "r", 8: "r", 12: "r", 13: "q"})
    rig = open_rig(SourceOptions(left="left*.png", right="right*.png", loop=True), CameraOptions(), realtime=False)
    live_view(rig, no_rectification(), sgbm_matcher(height=H, width=W), ShowOptions())
    names = sorted(path.name for path in Path("captures").glob("*.mkv"))
    assert names == ["20260101-000000-1.mkv", "20260101-000000.mkv"]


def test_keys_save_record_pause_and_quit(
    images: None, press_keys: Callable[[dict[int, str]], FakeWindows], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_WAIT_S", 0.5)  # on a busy machine a pair may take longer than usual
    windows = press_keys({2: "s", 3: "r", 6: "r", 7: " ", 9: " ", 11: "q"})
    rig = open_rig(SourceOptions(left="left*.png", right="right*.png", loop=True), CameraOptions(), realtime=False)
    stats = live_view(rig, no_rectification(), sgbm_matcher(height=H, width=W), ShowOptions())
    assert windows.shown == 11
    assert stats.pairs == 8  # paused for two, and quit at the last
    (folder,) = (path for path in Path("captures").iterdir() if path.is_dir())
    assert (folder / "window_disparity.png").is_file()
    (video,) = Path("captures").glob("*.mkv")
    assert stats.written == [video, folder]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method", "sgbm"], "needs --left and --right, or --side-by-side"),
        ([*GLOBS, "--watch-checkpoint"], "--watch-checkpoint: needs the --run-id of a run, or a --checkpoint"),
        (
            [*GLOBS, "--method", "sgbm", "--checkpoint", "x.pt"],
            "--method sgbm takes no network; leave --checkpoint out",
        ),
        ([*GLOBS, "--checkpoint", "x.pt", "--run-id", "1"], "both name a network"),
        ([*GLOBS, "--checkpoint", "x.pt", "--weights", "last"], "chooses among the checkpoints of a run"),
        ([*GLOBS, "--mlflow-tracking-uri", "sqlite:///x.db"], "x.db: is where a run is kept; give --run-id"),
        ([*GLOBS, "--checkpoint", "gone.pt"], "gone.pt: cannot be read"),
        ([*GLOBS, "--method", "sgbm", "--calibration", "gone.npz"], "gone.npz: cannot be read"),
        ([*GLOBS, "--method", "sgbm", "--record", "all.gif"], "--record all.gif: has to end in .avi, .mp4, .mkv"),
        (
            [*GLOBS, "--method", "sgbm", "--record", "rig.npz/all.avi"],
            "--record rig.npz/all.avi: cannot be written there",
        ),
        (["--left", "a.mp4", "--right", "b.mp4", "--method", "sgbm"], "--left a.mp4: no such file"),
        ([*GLOBS, "--method", "sgbm", "--width", "640"], "--camera-width and --camera-height belong together"),
        ([*GLOBS, "--method", "sgbm", "--fourcc", "JPEGS"], "needs four letters"),
    ],
)
def test_invalid_live_view_flags_are_one_line_and_status_2(
    images: None, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert live_view_command([*flags, "--headless"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("foundation-stereo-live-view: ")
    assert message in error
    assert error.count("\n") == 1


def test_calibration_of_another_aspect_is_an_error(images: None, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(5):
        write_rgb(Path(f"left{number}.png"), LEFT[:90])
        write_rgb(Path(f"right{number}.png"), RIGHT[:90])
    for rectify in ("--rectify", "--no-rectify"):
        flags = ["--method", "sgbm", "--headless", "--calibration", "rig.npz", rectify]
        assert live_view_command([*GLOBS, *flags]) == 2
        assert "160x90" in capsys.readouterr().err


def test_swapped_views_are_logged_once(images: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert live_view_command([*GLOBS, "--swap", "--method", "sgbm", "--headless"]) == 0
    assert capsys.readouterr().err.count("left and right views seem to be swapped; remove --swap") == 1


def test_missing_display_is_an_error_before_cameras_are_opened(
    images: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert live_view_command([*GLOBS, "--method", "sgbm"]) == 2
    assert "no display was found; use --headless to run without one" in capsys.readouterr().err


def test_listing_without_cameras_is_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(capture, "find_cameras", list[CameraInfo])
    assert list_cameras_command([]) == 1
    assert (
        "error: no camera found; is one connected, do you have the permission to read it (on Linux: group video)"
        in capsys.readouterr().err
    )


def test_listing_has_sizes_and_previews(
    machine: dict[int, FakeCamera], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [
        CameraInfo(index=index, name="Webcam", path=f"/dev/v4l/by-path/usb-{index}", backend="V4L2") for index in (0, 2)
    ]
    monkeypatch.setattr(capture, "find_cameras", lambda: found)
    machine[0] = FakeCamera(LEFT)
    assert list_cameras_command(["--preview"]) == 0
    captured = capsys.readouterr()
    assert "0  Webcam  /dev/v4l/by-path/usb-0  V4L2\n   640x480 at 100 fps, 1280x480 at 100 fps" in captured.out
    assert "2  Webcam  /dev/v4l/by-path/usb-2  V4L2\n   does not open; another program may be using it" in captured.out
    assert read_rgb(Path("camera_0.png")).shape == LEFT.shape
    assert captured.out.endswith("\ncamera_0.png\n")
    assert "warning: camera_2.png: not saved" in captured.err


def test_calibration_without_source_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert calibrate_command(["--square-mm", "25"]) == 2
    assert "needs --left and --right (or --side-by-side), the cameras, or --images" in capsys.readouterr().err


def test_live_calibration_without_a_board_is_an_error(images: None, capsys: pytest.CaptureFixture[str]) -> None:
    for side, image in (("left", LEFT), ("right", RIGHT)):
        video = cv2.VideoWriter(f"{side}.avi", cv2.VideoWriter.fourcc(*"MJPG"), 30, (W, H))
        for _ in range(5):
            video.write(image)
        video.release()
    flags = ["--left", "left.avi", "--right", "right.avi", "--square-mm", "25", "--headless", "--fps", "200"]
    assert calibrate_command(flags) == 2
    assert "no pair was collected" in capsys.readouterr().err
    assert calibrate_command(flags) == 2
    assert "no pair was collected" in capsys.readouterr().err  # the empty folder is used again
    assert calibrate_command([*GLOBS, "--square-mm", "25"]) == 2
    assert "was found in both views of any of 5 pairs" in capsys.readouterr().err


def test_predicted_recording_has_the_depth_that_the_live_view_showed(
    matching_predictor: Callable[..., Predictor], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = converging_rig(height=H, width=W)
    save_calibration(Path("rig.npz"), rig)
    for number in range(3):
        wall = plane_at(noise_texture(600, 800), 1.6 / 800, (0.02 * number, 0, 0.7 + 0.1 * number), (0.1, 0.2, 0.0))
        for side, image in zip(("left", "right"), RenderedRig(rig).pair(wall), strict=True):
            write_rgb(Path(f"{side}{number}.png"), image)
    calibrated = ["--calibration", "rig.npz", "--method", "sgbm", "--headless"]
    assert live_view_command([*GLOBS, *calibrated, "--record", "raw.mkv"]) == 0
    Path("rig.npz").unlink()  # the recording carries it

    predictor = matching_predictor(H // 2, W // 2)
    monkeypatch.setattr("foundation_stereo_depth.inference.predictor.open_network", lambda *_, **__: predictor)
    shown = record_results(monkeypatch)
    assert live_view_command(["--side-by-side", "raw.mkv", "--headless"]) == 0
    assert predict_command(["raw.mkv", "-o", "out", "--write", "depth", "--map-format", "npy"]) == 0
    assert len(shown) == len(list(Path("out").iterdir())) == 3
    for number, result in enumerate(shown):
        assert result.depth_m is not None
        assert np.isfinite(result.depth_m).mean() > 0.9
        written_m = np.load(f"out/raw_{number:06d}_depth.npy")
        np.testing.assert_allclose(written_m[::2, ::2], result.depth_m, rtol=1e-5)


def test_recording_of_rectified_pairs_is_not_rectified_again(images: None) -> None:
    flags = [*GLOBS, "--method", "sgbm", "--headless", "--calibration", "rig.npz", "--no-rectify"]
    assert live_view_command([*flags, "--record", "pairs.mkv"]) == 0
    kept = read_calibration(Path("pairs.calibration.npz"))
    assert isinstance(create_rectifier(kept, height=H, width=W), Resizer)
    assert kept.stereo_calibration.focal_px * kept.stereo_calibration.baseline_m == pytest.approx(8.0)
    Path("pairs.mkv").unlink()
    with pytest.raises(UserError, match=r"--record pairs.mkv: pairs.calibration.npz exists already"):
        check_recordable(Path("pairs.mkv"))


def test_recording_keeps_the_rate_and_the_times_of_its_source(images: None) -> None:
    flags = [*GLOBS, "--method", "sgbm", "--headless", "--fps", "20", "--record", "all.mkv"]
    assert live_view_command(flags) == 0
    video = cv2.VideoCapture("all.mkv")
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(20)
    video.release()
    header, *lines = Path("all.times.csv").read_text().splitlines()
    assert header == "frame,time_s,skew_ms"
    times_s = [float(line.split(",")[1]) for line in lines]
    assert times_s[0] == 0
    assert len(times_s) == 5
    assert times_s == sorted(times_s)
    assert times_s[-1] > 0.15  # four intervals of 50 ms, and a busy machine may take longer


def test_depth_of_each_pair_is_saved_with_times_and_calibration(
    images: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = record_results(monkeypatch)
    flags = [*GLOBS, "--method", "sgbm", "--headless", "--save-depth", "depth"]
    assert live_view_command(flags) == 2
    assert "--save-depth: needs the rig's --calibration" in capsys.readouterr().err
    flags += ["--calibration", "rig.npz"]
    assert live_view_command([*flags, "--json"]) == 0
    for number, result in enumerate(results):
        np.testing.assert_array_equal(np.load(f"depth/depth_{number:06d}.npy"), result.depth_m)
    assert len(Path("depth/depth.times.csv").read_text().splitlines()) == 6
    assert read_calibration(Path("depth/depth.calibration.npz")).stereo_calibration.width == W
    line = json.loads(capsys.readouterr().out.splitlines()[0])
    assert line["pairs"] == 1
    assert line["centre_depth_m"] == pytest.approx(80 * 0.1 / SHIFT_PX, rel=0.05)
    assert line["centre_sigma_px"] is None
    assert live_view_command(flags) == 2
    assert "--save-depth depth: exists already" in capsys.readouterr().err


def test_network_that_is_not_named_is_the_newest_run_of_the_folder_or_the_installed_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    found = {None: Path("installed"), "latest": Path("runs/1/best.pt")}

    def find(source: MatcherOptions, _downloads: Path) -> Path:
        if source.run_id not in found:
            raise UserError("no run")
        return found[source.run_id]

    monkeypatch.setattr("foundation_stereo_depth.inference.predictor.find_network_file", find)
    assert cli.find_newest_network(MatcherOptions(), Path()) == Path("installed")
    Path("mlflow.db").touch()
    assert cli.find_newest_network(MatcherOptions(), Path()) == Path("runs/1/best.pt")
    del found["latest"]
    assert cli.find_newest_network(MatcherOptions(), Path()) == Path("installed")
    assert [message.partition(":")[2].split(",")[0] for message in caplog.messages] == [
        " the installed one",
        " runs/1/best.pt of the newest run; --checkpoint default is the installed one",
        " the installed one",
    ]
    assert not MatcherOptions(checkpoint="default").unnamed

"""The live view as a whole, without windows: what a user types, and what stays on disk."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import shifted_pair
from fake_cameras import FakeCamera, machine

from foundation_stereo_depth.calibration.files import save_calibration
from foundation_stereo_depth.calibration.rig import RigCalibration
from foundation_stereo_depth.checkpoint import load_checkpoint, save_checkpoint
from foundation_stereo_depth.data.codecs import read_rgb, write_rgb
from foundation_stereo_depth.errors import UserError
from live_camera import camera as capture
from live_camera import rig as rig_module
from live_camera import session as live
from live_camera import view
from live_camera.camera import FoundCamera
from live_camera.cli import calibrate_command, list_cameras_command, live_view_command
from live_camera.draw import Canvas
from live_camera.matcher import Answer, BlockMatcher, WatchedMatcher
from live_camera.options import CameraOptions, ShowOptions, SourceOptions
from live_camera.recording import Recorder, Snapshots
from live_camera.rig import Rig, StereoFrame, open_rig
from live_camera.session import Preparation, live_view
from live_camera.view import Result

__all__ = ["machine"]
H, W, SHIFT_PX = 120, 160, 6
LEFT, RIGHT = shifted_pair(H, W, SHIFT_PX)
GLOBS = ["--left", "left*.png", "--right", "right*.png"]


@pytest.fixture
def pictures() -> None:
    """Five pairs of pictures, and the calibration of the rig that took them: no distortion, f B = 8 m px."""
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


def plain_preparation() -> Preparation:
    return Preparation(height=H, width=W, rectifier=None, calibration=None)


def noted_results(monkeypatch: pytest.MonkeyPatch) -> list[Result]:
    """What the command's view finds, pair by pair."""
    results: list[Result] = []
    original = live.live_view

    def noting(*args: Any, **more: Any) -> live.Meter:
        return original(*args, **more | {"after_pair": results.append})

    monkeypatch.setattr(live, "live_view", noting)
    return results


def test_every_pair_of_files_is_shown_and_the_end_is_no_fault(
    pictures: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert live_view_command([*GLOBS, "--method", "sgbm", "--headless"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("5 pairs shown; ")
    assert "OpenCV SGBM; no calibration, so disparity only" in captured.err
    assert "seem" not in captured.err


@pytest.mark.parametrize("rectify", ["--rectify", "--no-rectify"])
def test_depth_is_metric_where_there_is_a_calibration(
    pictures: None, rectify: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    results: list[Result] = []
    original = live.live_view
    monkeypatch.setattr(
        live, "live_view", lambda *args, **more: original(*args, **more | {"after_pair": results.append})
    )
    flags = [*GLOBS, "--method", "sgbm", "--headless", "--frames", "1", "--calibration", "rig.npz", rectify]
    assert live_view_command([*flags, "--network-width", "80", "--network-height", "90"]) == 0
    (result,) = results
    assert result.left.shape == (90, 80, 3)
    assert result.depth_m is not None
    assert np.median(result.depth_m) == pytest.approx(80 * 0.1 / SHIFT_PX, rel=0.02)


def test_the_default_calibration_is_found(pictures: None, capsys: pytest.CaptureFixture[str]) -> None:
    Path("calibration").mkdir()
    Path("rig.npz").rename("calibration/stereo_calib.npz")
    assert live_view_command([*GLOBS, "--method", "sgbm", "--headless", "--frames", "1"]) == 0
    assert "OpenCV SGBM; depth in metres" in capsys.readouterr().err


def test_a_network_shows_its_step_and_its_doubt(
    pictures: None, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    results: list[Result] = []
    original = live.live_view
    monkeypatch.setattr(
        live, "live_view", lambda *args, **more: original(*args, **more | {"after_pair": results.append})
    )
    assert live_view_command([*GLOBS, "--checkpoint", str(tiny_checkpoint), "--headless", "--device", "cpu"]) == 0
    assert "unet at 64x48" in (said := capsys.readouterr().err)
    assert "step 0" in said
    assert len(results) == 5
    confidence = results[0].answer.confidence
    assert confidence is not None
    assert confidence.shape == (48, 64)
    assert 0 <= confidence.min() <= confidence.max() <= 1


def test_a_real_checkpoint_is_replaced_while_the_view_runs(
    pictures: None, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("live_camera.matcher._LOOK_EVERY_S", 0.01)
    names: list[str] = []
    fresh = load_checkpoint(tiny_checkpoint)

    def watch(_: Result) -> None:
        names.append(matchers[0].name)
        if len(names) == 5:
            tiny_checkpoint.write_bytes(b"half of a checkpoint")
        if len(names) == 30:
            save_checkpoint(tiny_checkpoint, type(fresh)(**{**vars(fresh), "progress": type(fresh.progress)(step=77)}))
        if names[-1].endswith("step 77"):
            raise KeyboardInterrupt

    matchers: list[WatchedMatcher] = []
    original = live.live_view

    def noted(rig: object, prepare: object, matcher: WatchedMatcher, options: object, **more: object) -> object:
        matchers.append(matcher)
        time.sleep(0.01)
        return original(rig, prepare, matcher, options, **more | {"after_pair": watch})  # pyright: ignore

    monkeypatch.setattr(live, "live_view", noted)
    flags = ["--checkpoint", str(tiny_checkpoint), "--watch-checkpoint", "--headless", "--loop", "--fps", "30"]
    assert live_view_command([*GLOBS, *flags]) == 130  # Ctrl-C ends it
    assert names[0].endswith("step 0")
    assert "best.pt not taken over" in capsys.readouterr().err


def test_cameras_end_to_end_with_a_loss(
    machine: dict[int, FakeCamera], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rig_module, "_REOPEN_EVERY_S", 0.05)
    machine[0], machine[2] = FakeCamera(LEFT, fps=30), FakeCamera(RIGHT, fps=30)
    seen: list[Result] = []

    def after(result: Result) -> None:
        seen.append(result)
        if len(seen) == 5:
            machine[2].plugged = False

    def plug_in(self: object) -> None:
        machine[2].plugged = True

    cameras = CameraOptions(exposure="auto", white_balance="auto")
    rig = open_rig(SourceOptions(left="0", right="2"), cameras)
    original = rig.next

    def next_pair(timeout_s: float) -> StereoFrame | None:
        frame = original(timeout_s)
        if frame is None and rig.waiting_for is not None:
            plug_in(rig)
        return frame

    monkeypatch.setattr(rig, "next", next_pair)
    options = ShowOptions(headless=True, frames=10)
    meter = live_view(rig, plain_preparation(), BlockMatcher(height=H, width=W), options, after_pair=after)
    assert meter.pairs == 10
    assert rig.losses == 1
    assert capsys.readouterr().err.count("--right 2 is gone; waiting until it is back") == 1
    assert "skew" in meter.figures(rig)


class CountingMatcher(BlockMatcher):
    """Counts its pairs, and fails at one of them where asked."""

    def __init__(self, *, fails_at: int | None = None, failure: Exception | None = None) -> None:
        super().__init__(height=H, width=W)
        self.begun = 0
        self.began = threading.Condition()
        self._fails_at, self._failure = fails_at, failure

    def __call__(self, left: np.ndarray, right: np.ndarray) -> Answer:
        with self.began:
            self.begun += 1
            self.began.notify_all()
        if self.begun == self._fails_at and self._failure is not None:
            raise self._failure
        return super().__call__(left, right)


def picture_rig(*, loop: bool = False) -> Rig:
    return open_rig(SourceOptions(left="left*.png", right="right*.png", loop=loop), CameraOptions(), realtime=False)


def matching_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("matching")]


def test_the_next_pair_is_matched_while_this_one_is_shown_and_no_more(pictures: None) -> None:
    matcher = CountingMatcher()
    begun: list[int] = []

    def after(_: Result) -> None:
        with matcher.began:
            assert matcher.began.wait_for(lambda: matcher.begun > len(begun) + 1 or len(begun) == 4, timeout=10)
        time.sleep(0.02)  # time enough for a third one, if it were begun
        begun.append(matcher.begun)

    live_view(picture_rig(), plain_preparation(), matcher, ShowOptions(headless=True), after_pair=after)
    assert begun == [2, 3, 4, 5, 5]
    assert not matching_threads()


def test_no_more_pairs_are_matched_than_are_asked_for(pictures: None) -> None:
    matcher, shown = CountingMatcher(), list[Result]()
    options = ShowOptions(headless=True, frames=3)
    meter = live_view(picture_rig(loop=True), plain_preparation(), matcher, options, after_pair=shown.append)
    assert meter.pairs == matcher.begun == len(shown) == 3
    times_s = [result.frame.captured_at_s for result in shown]
    assert times_s == sorted(times_s)


@pytest.mark.parametrize("failure", [UserError("out of memory"), ZeroDivisionError()])
def test_what_the_matcher_runs_into_comes_after_the_pairs_before_it(pictures: None, failure: Exception) -> None:
    shown: list[Result] = []
    matcher = CountingMatcher(fails_at=3, failure=failure)
    with pytest.raises(type(failure)) as caught:
        live_view(picture_rig(), plain_preparation(), matcher, ShowOptions(headless=True), after_pair=shown.append)
    assert caught.value is failure
    assert len(shown) == 2
    assert not matching_threads()


def test_a_damaged_picture_is_told_after_the_pairs_before_it(
    pictures: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = noted_results(monkeypatch)
    Path("right3.png").write_bytes(b"no picture")
    assert live_view_command([*GLOBS, "--method", "sgbm", "--headless"]) == 2
    assert "right3.png" in capsys.readouterr().err
    assert len(results) == 3


def test_an_interrupt_ends_the_threads_and_the_recording(pictures: None, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(_: Result) -> None:
        raise KeyboardInterrupt

    options = ShowOptions(headless=True, record=Path("all.mkv"))
    with pytest.raises(KeyboardInterrupt):
        live_view(picture_rig(loop=True), plain_preparation(), CountingMatcher(), options, after_pair=interrupt)
    assert not matching_threads()
    (said,) = (line for line in capsys.readouterr().out.splitlines() if "recorded" in line)
    with open_rig(SourceOptions(side_by_side="all.mkv"), CameraOptions(), realtime=False) as rig:
        assert said.startswith(f"all.mkv: {len(list(rig))} pairs recorded")


def test_a_recording_plays_again_without_a_loss(pictures: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert live_view_command([*GLOBS, "--method", "sgbm", "--headless", "--record", "all.mkv"]) == 0
    assert "all.mkv: 5 pairs recorded; --side-by-side all.mkv plays them" in capsys.readouterr().out
    with open_rig(SourceOptions(side_by_side="all.mkv"), CameraOptions(), realtime=False) as rig:
        frames = list(rig)
    assert len(frames) == 5
    assert np.abs(frames[4].left_rgb.astype(int) - LEFT).max() <= 3  # FFV1 keeps every byte of its own colour space
    assert np.abs(frames[4].right_rgb.astype(int) - RIGHT).max() <= 3
    assert live_view_command([*GLOBS, "--method", "sgbm", "--headless", "--record", "all.mkv"]) == 2
    assert "--record all.mkv: is there already" in capsys.readouterr().err


def test_a_recording_cut_short_is_told_at_the_end(
    pictures: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("live_camera.recording.cv2.VideoWriter.isOpened", lambda _: False)
    assert live_view_command([*GLOBS, "--method", "sgbm", "--headless", "--record", "all.mkv"]) == 2
    told = capsys.readouterr()
    assert "5 pairs shown" in told.out
    assert "--record all.mkv: cannot be written" in told.err
    assert "a recording is not whole; the line above says why" in told.err


def test_a_full_disk_stops_a_recording_and_not_the_view(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("live_camera.recording._LEAST_FREE_BYTES", 2**62)
    recorder = Recorder(Path("all.avi"), fps=30, live=False)
    frame = StereoFrame(left_rgb=LEFT, right_rgb=RIGHT, captured_at_s=0.0, skew_ms=0.0)
    for _ in range(60):
        recorder.add(frame)
    with pytest.raises(ValueError, match=r"--record all\.avi: stopped after 30 pairs, since its disk is nearly full"):
        recorder.finish()


@pytest.mark.parametrize("suffix", [".avi", ".mkv", ".mp4"])
def test_a_recording_that_its_disk_did_not_take_is_not_called_whole(suffix: str, tmp_path: Path) -> None:
    """A quota, say: the video writer itself is silent about it."""
    code = f"""
import resource, signal, sys
import cv2
import numpy as np
from pathlib import Path
from live_camera.recording import Recorder
from live_camera.rig import StereoFrame
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
recorder = Recorder(Path("all{suffix}"), fps=30, live=False)
random = np.random.default_rng(0)
for _ in range(40):
    eye = random.integers(0, 256, (120, 160, 3), dtype=np.uint8)
    recorder.add(StereoFrame(left_rgb=eye, right_rgb=eye, captured_at_s=0.0, skew_ms=0.0))
try:
    print(recorder.finish())
except ValueError as error:
    print("FAILED", error)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert ended.stdout.startswith(f"FAILED --record all{suffix}: holds")
    assert "of 40 pairs; its disk did not take them all" in ended.stdout


@pytest.mark.parametrize("suffix", [".avi", ".mkv", ".mp4"])
@pytest.mark.parametrize("pairs", [1, 2, 45])
def test_a_whole_recording_is_called_whole(suffix: str, pairs: int) -> None:
    recorder = Recorder(Path(f"all{suffix}"), fps=29.97, live=False)
    for _ in range(pairs):
        recorder.add(StereoFrame(left_rgb=LEFT, right_rgb=RIGHT, captured_at_s=0.0, skew_ms=0.0))
    assert recorder.finish().startswith(f"all{suffix}: {pairs} pairs recorded; --side-by-side")


def test_a_recording_that_stops_growing_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("live_camera.recording._CHECKED_EVERY_BYTES", LEFT.nbytes * 2 * 10)
    monkeypatch.setattr("live_camera.recording.cv2.VideoWriter", DeafWriter)
    recorder = Recorder(Path("all.avi"), fps=30, live=False)
    for _ in range(60):
        recorder.add(StereoFrame(left_rgb=LEFT, right_rgb=RIGHT, captured_at_s=0.0, skew_ms=0.0))
    with pytest.raises(ValueError, match=r"--record all\.avi: stopped after 11 pairs, since its disk takes no more"):
        recorder.finish()


class DeafWriter:
    """Writes nothing, and says nothing of it."""

    fourcc = cv2.VideoWriter.fourcc

    def __init__(self, path: str, *_: object) -> None:
        Path(path).touch()

    def isOpened(self) -> bool:
        return True

    def write(self, picture: np.ndarray) -> None:
        pass

    def release(self) -> None:
        pass


def test_a_recording_holds_pairs_of_one_even_size() -> None:
    recorder = Recorder(Path("all.mkv"), fps=30, live=False)
    for eye in (LEFT, LEFT, np.vstack([LEFT, LEFT])):
        recorder.add(StereoFrame(left_rgb=eye, right_rgb=eye, captured_at_s=0.0, skew_ms=0.0))
    with pytest.raises(
        ValueError, match=rf"stopped after 2 pairs, since the eyes were {W}x{H} and now are {W}x{2 * H}"
    ):
        recorder.finish()
    recorder = Recorder(Path("odd.mkv"), fps=30, live=False)
    recorder.add(StereoFrame(left_rgb=LEFT[:-1], right_rgb=RIGHT[:-1], captured_at_s=0.0, skew_ms=0.0))
    with pytest.raises(ValueError, match=f"a video needs an even height, and the eyes are {W}x{H - 1}"):
        recorder.finish()
    nothing = Recorder(Path("nothing.mkv"), fps=30, live=False).finish()
    assert nothing == "nothing.mkv: nothing recorded, since no pair came"


def test_a_snapshot_that_cannot_be_written_is_said_and_the_others_are_kept(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = iter([OSError(28, "No space left on device"), None])

    def save(*_: object) -> None:
        if (fault := next(faults)) is not None:
            raise fault

    monkeypatch.setattr("live_camera.recording._save", save)
    frame = StereoFrame(left_rgb=LEFT, right_rgb=RIGHT, captured_at_s=0.0, skew_ms=0.0)
    answer = Answer(disparity_px=np.zeros((H, W), np.float32))
    result = Result(frame=frame, left=LEFT, right=RIGHT, answer=answer, depth_m=None, calibration=None)
    with Snapshots(Path("captures")) as snapshots:
        for _ in range(2):
            snapshots.save(result, {})
    snapshots.tell()
    told = capsys.readouterr()
    assert "not saved (No space left on device)" in told.err
    assert told.out.endswith(": saved\n")


def test_a_recording_whose_disk_goes_away_ends_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(folder: Path) -> None:
        raise FileNotFoundError(2, "No such file or directory", str(folder))

    monkeypatch.setattr("live_camera.recording.shutil.disk_usage", gone)
    recorder = Recorder(Path("all.avi"), fps=30, live=False)
    frame = StereoFrame(left_rgb=LEFT, right_rgb=RIGHT, captured_at_s=0.0, skew_ms=0.0)
    for _ in range(60):
        recorder.add(frame)
    with pytest.raises(ValueError, match=r"--record all\.avi: stopped after 30 pairs \(No such file"):
        recorder.finish()


def test_a_black_eye_of_slow_cameras_is_told_once(
    machine: dict[int, FakeCamera], capsys: pytest.CaptureFixture[str]
) -> None:
    machine[0], machine[2] = FakeCamera(np.zeros_like(LEFT), fps=10), FakeCamera(RIGHT, fps=10)
    cameras = CameraOptions(exposure="auto", white_balance="auto")
    rig = open_rig(SourceOptions(left="0", right="2", max_skew_ms=1000), cameras)
    live_view(rig, plain_preparation(), BlockMatcher(height=H, width=W), ShowOptions(headless=True, frames=8))
    assert capsys.readouterr().err.count("the left eye is black") == 1


def test_a_snapshot_holds_everything(pictures: None, capsys: pytest.CaptureFixture[str]) -> None:
    results: list[Result] = []
    rig = open_rig(SourceOptions(left="left*.png", right="right*.png"), CameraOptions(), realtime=False)
    from foundation_stereo_depth.stereo.geometry import StereoCalibration

    calibration = StereoCalibration(
        width=W, height=H, focal_px=80, focal_y_px=80, cx_left_px=80, cx_right_px=80, cy_px=60, baseline_m=0.1
    )
    preparation = Preparation(height=H, width=W, rectifier=None, calibration=calibration)
    options = ShowOptions(headless=True, frames=1)
    live_view(rig, preparation, BlockMatcher(height=H, width=W), options, after_pair=results.append)
    windows = view.panels(results[0], view.ViewState(), view.Status(), 0.5)
    with Snapshots(Path("captures")) as snapshots:
        snapshots.save(results[0], windows)
        snapshots.save(results[0], windows)
    snapshots.tell()
    first, second = (Path(line.removesuffix(": saved")) for line in capsys.readouterr().out.splitlines())
    assert first != second
    assert {path.name for path in first.iterdir()} == {
        *("raw_left.png", "raw_right.png", "left.png", "right.png"),
        *("window_rectified_pair.png", "window_depth.png"),
        *("disparity_px.npy", "depth_m.npy", "cloud.ply"),
    }
    assert np.array_equal(read_rgb(first / "raw_left.png"), LEFT)
    assert np.median(np.load(first / "depth_m.npy")) == pytest.approx(80 * 0.1 / SHIFT_PX, rel=0.02)


class FakeWindows:
    """Windows that nobody sees, and somebody presses keys in."""

    def __init__(self, keys: dict[int, str]) -> None:
        self.state = view.ViewState()
        self.closed = False
        self.shown = 0
        self._keys = keys

    def __enter__(self) -> "FakeWindows":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, pictures: dict[str, Canvas], map_size: tuple[int, int]) -> str:
        assert map_size == (H, W)
        assert "Disparity" in pictures
        self.shown += 1
        keys = self._keys.get(self.shown, "")
        self.closed = "q" in keys
        for key in keys:
            if key not in "qsr":
                self.state.press(ord(key))
        return "".join(key for key in keys if key in "sr")


@pytest.fixture
def pressing(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[int, str]], FakeWindows]:
    def press(keys: dict[int, str]) -> FakeWindows:
        windows = FakeWindows(keys)
        monkeypatch.setattr(live, "Windows", lambda: windows)
        return windows

    return press


def test_keys_that_cannot_save_are_told_and_the_view_goes_on(
    pictures: None, pressing: Callable[[dict[int, str]], FakeWindows], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("captures").write_text("no folder")
    windows = pressing({2: "s", 3: "r", 6: "q"})
    rig = open_rig(SourceOptions(left="left*.png", right="right*.png", loop=True), CameraOptions(), realtime=False)
    live_view(rig, plain_preparation(), BlockMatcher(height=H, width=W), ShowOptions())
    assert windows.shown == 6
    assert len([line for line in capsys.readouterr().err.splitlines() if line.startswith("not saved: ")]) == 2


def test_recordings_of_one_second_have_names_of_their_own(
    pictures: None, pressing: Callable[[dict[int, str]], FakeWindows], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("live_camera.session.time.strftime", lambda _: "20260101-000000")
    pressing({2: "r", 6: "r", 8: "r", 12: "r", 13: "q"})
    rig = open_rig(SourceOptions(left="left*.png", right="right*.png", loop=True), CameraOptions(), realtime=False)
    live_view(rig, plain_preparation(), BlockMatcher(height=H, width=W), ShowOptions())
    names = sorted(path.name for path in Path("captures").glob("*.avi"))
    assert names == ["20260101-000000-1.avi", "20260101-000000.avi"]


def test_keys_save_record_hold_and_end(
    pictures: None, pressing: Callable[[dict[int, str]], FakeWindows], capsys: pytest.CaptureFixture[str]
) -> None:
    windows = pressing({2: "s", 3: "r", 6: "r", 7: " ", 9: " ", 11: "q"})
    rig = open_rig(SourceOptions(left="left*.png", right="right*.png", loop=True), CameraOptions(), realtime=False)
    meter = live_view(rig, plain_preparation(), BlockMatcher(height=H, width=W), ShowOptions())
    assert windows.shown == 11
    assert meter.pairs == 8  # two were held, and the last one was not counted: its window was closed
    (folder,) = (path for path in Path("captures").iterdir() if path.is_dir())
    assert (folder / "window_disparity.png").is_file()
    (video,) = Path("captures").glob("*.avi")
    said = capsys.readouterr().out
    assert f"{folder}: saved" in said
    assert f"{video}: " in said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--method", "sgbm"], "needs --left and --right, or --side-by-side"),
        ([*GLOBS, "--watch-checkpoint"], "--watch-checkpoint: which one? give the --run-id of the run"),
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
        ([*GLOBS, "--method", "sgbm", "--width", "640"], "--width and --height belong together"),
        ([*GLOBS, "--method", "sgbm", "--fourcc", "JPEGS"], "has four letters"),
    ],
)
def test_a_mistake_gets_one_line_and_status_2(
    pictures: None, flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert live_view_command([*flags, "--headless"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("foundation-stereo-live-view: ")
    assert said in error
    assert error.count("\n") == 1


def test_a_calibration_of_another_aspect_is_refused(pictures: None, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(5):
        write_rgb(Path(f"left{number}.png"), LEFT[:90])
        write_rgb(Path(f"right{number}.png"), RIGHT[:90])
    for rectify in ("--rectify", "--no-rectify"):
        flags = ["--method", "sgbm", "--headless", "--calibration", "rig.npz", rectify]
        assert live_view_command([*GLOBS, *flags]) == 2
        assert "160x90" in capsys.readouterr().err


def test_exchanged_eyes_are_said_once(pictures: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert live_view_command([*GLOBS, "--swap", "--method", "sgbm", "--headless"]) == 0
    assert capsys.readouterr().err.count("left and right seem to be exchanged; leave --swap out") == 1


def test_no_display_is_said_before_anything_is_opened(
    pictures: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert live_view_command([*GLOBS, "--method", "sgbm"]) == 2
    assert "no display was found; --headless works without one" in capsys.readouterr().err


def test_no_camera_is_status_1_and_names_what_to_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(capture, "find_cameras", list[FoundCamera])
    assert list_cameras_command([]) == 1
    assert "no camera found; is one plugged in, may you read it (on Linux: group video)" in capsys.readouterr().err


def test_cameras_are_listed_with_their_sizes_and_previews(
    machine: dict[int, FakeCamera], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [
        FoundCamera(index=index, name="Webcam", path=f"/dev/v4l/by-path/usb-{index}", backend="V4L2")
        for index in (0, 2)
    ]
    monkeypatch.setattr(capture, "find_cameras", lambda: found)
    machine[0] = FakeCamera(LEFT)
    assert list_cameras_command(["--preview"]) == 0
    said = capsys.readouterr().out
    assert "0  Webcam  /dev/v4l/by-path/usb-0  V4L2\n   640x480 at 100/s, 1280x480 at 100/s" in said
    assert "2  Webcam  /dev/v4l/by-path/usb-2  V4L2\n   does not open; another program may hold it" in said
    assert read_rgb(Path("camera_0.png")).shape == LEFT.shape
    assert "camera_2.png: not saved" in said


def test_calibrating_needs_cameras_or_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    assert calibrate_command(["--square-mm", "25"]) == 2
    assert "needs --left and --right (or --side-by-side), the cameras, or --images" in capsys.readouterr().err


def test_calibrating_live_without_a_board_says_so(pictures: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert calibrate_command([*GLOBS, "--square-mm", "25", "--headless", "--fps", "200"]) == 2
    assert "no pair was collected" in capsys.readouterr().err
    assert calibrate_command([*GLOBS, "--square-mm", "25", "--headless", "--fps", "200"]) == 2
    assert "no pair was collected" in capsys.readouterr().err  # and what came to nothing does not stand in the way

import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from fake_cameras import FakeCamera, machine  # noqa: F401

from foundation_stereo_depth.calibration.settings import CameraSettings
from foundation_stereo_depth.data import videos
from foundation_stereo_depth.errors import CameraError
from live_camera import camera as capture
from live_camera.camera import Camera, CameraInfo, is_device, is_pipeline, is_stream, is_video, probe_sizes
from live_camera.options import CameraOptions

FRAME = np.full((48, 64, 3), (200, 100, 50), np.uint8)


def test_address_kind_is_device_stream_or_video() -> None:
    assert is_device("0")
    assert is_device("/dev/v4l/by-path/pci-0000:00:14.0-usb-0:1:1.0-video-index0")
    assert is_stream("rtsp://camera/1")
    assert is_video("left.MP4")
    assert not is_device("left.mp4")
    assert not is_video("http://camera/1.mp4")


def test_grabbed_frame_is_rgb_and_has_the_driver_time(machine: dict[int, FakeCamera]) -> None:
    machine[0] = FakeCamera(FRAME)
    machine[0].frozen = True
    camera = Camera("0", "--left 0", CameraOptions())
    time_s = camera.grab()
    assert time_s is not None
    assert time_s == pytest.approx(time.monotonic(), abs=0.5)
    # The driver counts in ms; on the way there and back the last digit may turn.
    assert time_s == pytest.approx(camera._capture.at_s, abs=1e-6)  # pyright: ignore[reportPrivateUsage]
    assert np.array_equal(camera.retrieve(), FRAME)


def test_grab_without_driver_time_returns_time_of_arrival(machine: dict[int, FakeCamera]) -> None:
    machine[0] = FakeCamera(FRAME)
    machine[0].driver_times = False
    assert Camera("0", "--left 0", CameraOptions()).grab() == pytest.approx(time.monotonic(), abs=0.5)


def test_settings_are_read_back_and_differences_logged_once(
    machine: dict[int, FakeCamera], caplog: pytest.LogCaptureFixture
) -> None:
    machine[0] = FakeCamera(FRAME)
    mjpg, yuyv = (float(cv2.VideoWriter.fourcc(*word)) for word in ("MJPG", "YUYV"))
    machine[0].offers = {cv2.CAP_PROP_FRAME_WIDTH: 640, cv2.CAP_PROP_FRAME_HEIGHT: 480, cv2.CAP_PROP_FOURCC: yuyv}
    camera = Camera("0", "--left 0", CameraOptions(camera_width=1280, camera_height=720, fps=30))
    assert camera.reopen()
    assert caplog.messages == [
        "--left 0: pixel format MJPG was requested, the camera uses YUYV",
        "--left 0: width 1280 was requested, the camera uses 640",
        "--left 0: height 720 was requested, the camera uses 480",
    ]
    caplog.clear()
    machine[0].offers = {}
    Camera("0", "--left 0", CameraOptions(camera_width=1280, camera_height=720, fps=30))
    assert caplog.messages == []
    assert machine[0].settings[cv2.CAP_PROP_FOURCC] == mjpg


def test_locked_settings_survive_a_reopening_until_they_are_unlocked(machine: dict[int, FakeCamera]) -> None:
    machine[0] = FakeCamera(FRAME)
    machine[0].settings |= {cv2.CAP_PROP_AUTOFOCUS: 1.0, cv2.CAP_PROP_FOCUS: 30.0}
    camera = Camera("0", "--left 0", CameraOptions())
    assert machine[0].settings[cv2.CAP_PROP_AUTOFOCUS] == 1.0  # left as it was
    camera.lock({cv2.CAP_PROP_EXPOSURE: None, cv2.CAP_PROP_WB_TEMPERATURE: 5000.0, cv2.CAP_PROP_FOCUS: None})
    assert camera.find_changed() is None
    machine[0].settings[cv2.CAP_PROP_EXPOSURE] = 1.0
    assert camera.find_changed() == "--left 0: exposure was locked at 156, and is 1 now"
    machine[0].settings |= {cv2.CAP_PROP_AUTO_WB: 1.0, cv2.CAP_PROP_AUTOFOCUS: 1.0, cv2.CAP_PROP_EXPOSURE: 156.0}
    assert camera.find_changed() == "--left 0: automatic white balance is on again"
    assert camera.reopen()
    assert camera.read_settings() == CameraSettings(focus=30.0, exposure=156.0, gain=8.0, white_balance=5000.0)
    assert [machine[0].settings[name] for name in (cv2.CAP_PROP_AUTO_WB, cv2.CAP_PROP_AUTOFOCUS)] == [0.0, 0.0]
    camera.unlock({cv2.CAP_PROP_WB_TEMPERATURE: None})
    assert machine[0].settings[cv2.CAP_PROP_AUTO_WB] == 1.0
    assert camera.find_changed() is None


def test_controls_that_a_camera_lacks_are_none_without_a_warning(
    machine: dict[int, FakeCamera], caplog: pytest.LogCaptureFixture
) -> None:
    machine[0] = FakeCamera(FRAME)
    machine[0].refused = {cv2.CAP_PROP_FOCUS, cv2.CAP_PROP_AUTOFOCUS, cv2.CAP_PROP_GAIN}
    machine[0].settings |= dict.fromkeys(machine[0].refused, -1.0)
    camera = Camera("0", "--left 0", CameraOptions())
    camera.lock({cv2.CAP_PROP_FOCUS: 30.0, cv2.CAP_PROP_GAIN: None})
    assert camera.read_settings() == CameraSettings(exposure=156.0, white_balance=4600.0)
    assert camera.find_changed() is None
    assert caplog.messages == []


def test_camera_that_does_not_open_lists_the_cameras_found(
    machine: dict[int, FakeCamera],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(capture, "find_cameras", list[CameraInfo])
    with pytest.raises(
        CameraError, match=r"--left 3: the camera does not open; found: no camera at all\. .*group video"
    ):
        Camera("3", "--left 3", CameraOptions())
    found = CameraInfo(index=0, name="Webcam", path="", backend="V4L2")
    monkeypatch.setattr(capture, "find_cameras", lambda: [found])
    with pytest.raises(CameraError, match=r"found: 0 \(Webcam\)\."):
        Camera("3", "--left 3", CameraOptions())


def test_missing_and_undecodable_videos_have_messages_of_their_own() -> None:
    with pytest.raises(CameraError, match=r"--left gone\.mp4: no such file"):
        Camera("gone.mp4", "--left gone.mp4", CameraOptions())
    Path("corrupt.mp4").write_bytes(b"no video")
    with pytest.raises(CameraError, match=r"--left corrupt\.mp4: is not a video"):
        Camera("corrupt.mp4", "--left corrupt.mp4", CameraOptions())
    Path("folder.mp4").mkdir()
    with pytest.raises(CameraError, match=r"--left folder\.mp4: is not a regular file"):
        Camera("folder.mp4", "--left folder.mp4", CameraOptions())


def test_a_video_whose_frames_would_fill_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    writer = cv2.VideoWriter("a.avi", cv2.VideoWriter.fourcc(*"MJPG"), 30, (64, 48))
    writer.write(np.zeros((48, 64, 3), np.uint8))
    writer.release()
    Camera("a.avi", "--left a.avi", CameraOptions()).release()
    monkeypatch.setattr(videos, "LARGEST_PIXELS", 64 * 48 - 1)
    with pytest.raises(CameraError, match=r"--left a\.avi: says that its frames are 64x48; is it damaged"):
        Camera("a.avi", "--left a.avi", CameraOptions())


def test_unreachable_stream_is_an_error_with_its_address() -> None:
    with pytest.raises(CameraError, match=r"--left rtsp://127\.0\.0\.1:9/x: no stream answers"):
        Camera("rtsp://127.0.0.1:9/x", "--left rtsp://127.0.0.1:9/x", CameraOptions())


def test_probed_sizes_are_those_that_the_camera_sets(machine: dict[int, FakeCamera]) -> None:
    machine[0] = FakeCamera(FRAME)
    machine[0].offers = {cv2.CAP_PROP_FRAME_HEIGHT: 480}
    sizes = [(size.width, size.height) for size in probe_sizes(0)]
    assert sizes == [(640, 480), (1280, 480), (2560, 480), (1920, 480), (3840, 480)]
    assert probe_sizes(1) == []


def test_preview_is_none_for_a_camera_that_does_not_open(
    machine: dict[int, FakeCamera], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture, "find_cameras", list[CameraInfo])
    machine[0] = FakeCamera(FRAME)
    found = [CameraInfo(index=index, name="Webcam", path="", backend="V4L2") for index in (0, 1)]
    previews = [
        (camera.index, None if frame is None else frame.shape) for camera, frame in capture.read_previews(found)
    ]
    assert previews == [(0, (48, 64, 3)), (1, None)]


def test_stable_path_is_the_link_of_the_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "_STABLE_PATHS", tmp_path / "by-path")
    assert capture.stable_path(2) is None
    (tmp_path / "by-path").mkdir()
    (tmp_path / "by-path/usb-1").symlink_to("/dev/video2")
    assert capture.stable_path(2) == str(tmp_path / "by-path/usb-1")
    assert capture.stable_path(3) is None


@pytest.mark.parametrize(
    "pipeline",
    [
        "v4l2src device=/dev/video0 ! videoconvert ! appsink",
        "rtspsrc location=rtsp://camera/1 ! decodebin ! appsink",
        "filesrc location=a.mp4 ! decodebin ! appsink drop=1 name=x.mp4",
    ],
)
def test_gstreamer_pipeline_works_or_is_named(pipeline: str) -> None:
    assert is_pipeline(pipeline)
    assert not is_video(pipeline)
    assert not any(map(is_pipeline, ("0", "/dev/video0", "rtsp://camera/1", "wow!.mp4")))
    with pytest.raises(CameraError, match="is a GStreamer pipeline, and the OpenCV that is installed") as missing:
        Camera(pipeline, f"--left {pipeline}", CameraOptions())
    assert "\n" not in str(missing.value)

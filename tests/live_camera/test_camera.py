import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from fake_cameras import FakeCamera, machine  # noqa: F401

from foundation_stereo_depth.errors import CameraError
from live_camera import camera as capture
from live_camera.camera import Camera, FoundCamera, is_device, is_stream, is_video, offered_sizes
from live_camera.options import CameraOptions

PICTURE = np.full((48, 64, 3), (200, 100, 50), np.uint8)


def test_addresses_say_what_they_are() -> None:
    assert is_device("0")
    assert is_device("/dev/v4l/by-path/pci-0000:00:14.0-usb-0:1:1.0-video-index0")
    assert is_stream("rtsp://camera/1")
    assert is_video("left.MP4")
    assert not is_device("left.mp4")
    assert not is_video("http://camera/1.mp4")


def test_a_picture_comes_in_rgb_and_with_the_drivers_time(machine: dict[int, FakeCamera]) -> None:
    machine[0] = FakeCamera(PICTURE)
    machine[0].frozen = True
    camera = Camera("0", "--left 0", CameraOptions())
    time_s = camera.grab()
    assert time_s is not None
    assert time_s == pytest.approx(time.monotonic(), abs=0.5)
    # The driver counts in ms; on the way there and back the last digit may turn.
    assert time_s == pytest.approx(camera._capture.at_s, abs=1e-6)  # pyright: ignore[reportPrivateUsage]
    assert np.array_equal(camera.retrieve(), PICTURE)


def test_a_driver_without_a_clock_gets_ours(machine: dict[int, FakeCamera]) -> None:
    machine[0] = FakeCamera(PICTURE)
    machine[0].driver_times = False
    assert Camera("0", "--left 0", CameraOptions()).grab() == pytest.approx(time.monotonic(), abs=0.5)


def test_what_is_set_is_read_back_and_differences_are_said(machine: dict[int, FakeCamera]) -> None:
    machine[0] = FakeCamera(PICTURE)
    mjpg, yuyv = (float(cv2.VideoWriter.fourcc(*word)) for word in ("MJPG", "YUYV"))
    machine[0].offers = {cv2.CAP_PROP_FRAME_WIDTH: 640, cv2.CAP_PROP_FRAME_HEIGHT: 480, cv2.CAP_PROP_FOURCC: yuyv}
    camera = Camera("0", "--left 0", CameraOptions(width=1280, height=720, fps=30))
    assert camera.settings_missed == [
        "--left 0: format MJPG was asked for, YUYV is set",
        "--left 0: width 1280 was asked for, 640 is set",
        "--left 0: height 720 was asked for, 480 is set",
    ]
    machine[0].offers = {}
    assert Camera("0", "--left 0", CameraOptions(width=1280, height=720, fps=30)).settings_missed == []
    assert machine[0].settings[cv2.CAP_PROP_FOURCC] == mjpg


def test_colours_are_locked_and_stay_locked_after_a_loss(machine: dict[int, FakeCamera]) -> None:
    machine[0] = FakeCamera(PICTURE)
    camera = Camera("0", "--left 0", CameraOptions(white_balance=5000.0))
    chosen = camera.chosen_colours()
    assert chosen == {
        cv2.CAP_PROP_EXPOSURE: 156.0,
        cv2.CAP_PROP_GAIN: 8.0,
        cv2.CAP_PROP_WB_TEMPERATURE: 5000.0,
    }
    camera.lock_colours(chosen)
    machine[0].settings[cv2.CAP_PROP_EXPOSURE] = 1.0
    machine[0].settings[cv2.CAP_PROP_AUTO_WB] = 1.0
    assert camera.reopen()
    assert machine[0].settings[cv2.CAP_PROP_EXPOSURE] == 156.0
    assert machine[0].settings[cv2.CAP_PROP_AUTO_WB] == 0.0
    assert Camera("0", "--left 0", CameraOptions(exposure="auto", white_balance="auto")).chosen_colours() == {}


def test_a_camera_that_does_not_open_names_those_that_are_there(
    machine: dict[int, FakeCamera],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(capture, "find_cameras", list[FoundCamera])
    with pytest.raises(CameraError, match=r"--left 3: no camera opens there; there is none at all\. .*group video"):
        Camera("3", "--left 3", CameraOptions())
    found = FoundCamera(index=0, name="Webcam", path="", backend="V4L2")
    monkeypatch.setattr(capture, "find_cameras", lambda: [found])
    with pytest.raises(CameraError, match=r"there are 0 \(Webcam\)"):
        Camera("3", "--left 3", CameraOptions())


def test_files_that_are_no_videos_are_told_apart() -> None:
    with pytest.raises(CameraError, match=r"--left gone\.mp4: no such file"):
        Camera("gone.mp4", "--left gone.mp4", CameraOptions())
    Path("torn.mp4").write_bytes(b"no video")
    with pytest.raises(CameraError, match=r"--left torn\.mp4: is not a video"):
        Camera("torn.mp4", "--left torn.mp4", CameraOptions())


def test_a_stream_that_does_not_answer_is_named() -> None:
    with pytest.raises(CameraError, match=r"--left rtsp://127\.0\.0\.1:9/x: no stream answers"):
        Camera("rtsp://127.0.0.1:9/x", "--left rtsp://127.0.0.1:9/x", CameraOptions())


def test_offered_sizes_are_what_the_camera_answers(machine: dict[int, FakeCamera]) -> None:
    machine[0] = FakeCamera(PICTURE)
    machine[0].offers = {cv2.CAP_PROP_FRAME_HEIGHT: 480}
    sizes = [(size.width, size.height) for size in offered_sizes(0)]
    assert sizes == [(640, 480), (1280, 480), (2560, 480), (1920, 480), (3840, 480)]
    assert offered_sizes(1) == []


def test_previews_are_made_of_what_opens(machine: dict[int, FakeCamera], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "find_cameras", list[FoundCamera])
    machine[0] = FakeCamera(PICTURE)
    found = [FoundCamera(index=index, name="Webcam", path="", backend="V4L2") for index in (0, 1)]
    previews = [
        (camera.index, None if picture is None else picture.shape)
        for camera, picture in capture.preview_pictures(found)
    ]
    assert previews == [(0, (48, 64, 3)), (1, None)]


def test_the_port_names_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "_STABLE_PATHS", tmp_path / "by-path")
    assert capture.stable_path(2) is None
    (tmp_path / "by-path").mkdir()
    (tmp_path / "by-path/usb-1").symlink_to("/dev/video2")
    assert capture.stable_path(2) == str(tmp_path / "by-path/usb-1")
    assert capture.stable_path(3) is None

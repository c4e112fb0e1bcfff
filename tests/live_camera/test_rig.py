import re
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import shifted_pair
from fake_cameras import FakeCamera, machine  # noqa: F401

from foundation_stereo_depth.data.codecs import write_rgb
from foundation_stereo_depth.errors import CameraError, DataError, UserError
from live_camera import camera_settings
from live_camera import rig as rig_module
from live_camera.options import CameraOptions, SourceOptions
from live_camera.rig import Rig, StereoFrame, open_rig

LEFT, RIGHT = shifted_pair(48, 64, 5)
UNLOCKED = CameraOptions(focus="auto", exposure="auto", white_balance="auto")


@pytest.fixture
def two_cameras(machine: dict[int, FakeCamera], monkeypatch: pytest.MonkeyPatch) -> dict[int, FakeCamera]:
    monkeypatch.setattr(rig_module, "_REOPEN_EVERY_S", 0.02)
    monkeypatch.setattr(camera_settings, "SETTLING_S", 0.05)
    machine[0], machine[2] = FakeCamera(LEFT), FakeCamera(RIGHT)
    return machine


def live(**changes: object) -> Rig:
    return open_rig(SourceOptions(left="0", right="2", **changes), UNLOCKED)  # pyright: ignore[reportArgumentType]


def first(rig: Rig) -> StereoFrame:
    frame = rig.next(timeout_s=5)
    assert frame is not None
    return frame


def wait_until(condition: object, *, timeout_s: float = 5.0) -> None:
    assert callable(condition)
    until_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until_s
        time.sleep(0.005)


def write_video(path: str, images: list[np.ndarray]) -> None:
    height, width = images[0].shape[:2]
    writer = cv2.VideoWriter(path, cv2.VideoWriter.fourcc(*"FFV1"), 50.0, (width, height))
    for image in images:
        writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    writer.release()


def numbered(number: int) -> np.ndarray:
    return np.full((48, 64, 3), 10 * number, np.uint8)


def test_next_returns_the_newest_pair_left_and_right(two_cameras: dict[int, FakeCamera]) -> None:
    with live() as rig:
        frame = first(rig)
        assert np.abs(frame.left_rgb.astype(int) - LEFT).max() <= 3
        assert np.abs(frame.right_rgb.astype(int) - RIGHT).max() <= 3
        time.sleep(0.3)
        newest = first(rig)
        assert newest.captured_at_s - frame.captured_at_s > 0.1  # some thirty pairs arrived in the meantime
        assert rig.live


def test_swap_and_upside_down_are_applied(two_cameras: dict[int, FakeCamera]) -> None:
    two_cameras[0].frozen = two_cameras[2].frozen = True
    with live(swap=True, upside_down="left") as rig:
        frame = first(rig)
    assert np.array_equal(frame.left_rgb, RIGHT)
    assert np.array_equal(frame.right_rgb, LEFT[::-1, ::-1])


def test_pairs_with_too_much_skew_are_dropped_and_counted(
    two_cameras: dict[int, FakeCamera], monkeypatch: pytest.MonkeyPatch
) -> None:
    two_cameras[2].late_s = 0.004
    with live() as rig:
        assert first(rig).skew_ms == pytest.approx(4, abs=2)
        assert rig.skew_dropped == 0
    with live(max_skew_ms=1.0) as rig:
        assert rig.next(timeout_s=0.2) is None
        assert rig.skew_dropped > 5
        assert abs(rig.skew_ms) > 1
        assert rig.warning is None, "only after some time"
        monkeypatch.setattr(rig_module, "_SKEW_PATIENCE_S", 0.1)
        assert rig.warning is not None
        assert re.fullmatch(
            r"every pair is dropped: left and right are \d ms apart, but --max-skew-ms is 1", rig.warning
        )


def test_late_camera_is_grabbed_again_until_in_step(two_cameras: dict[int, FakeCamera]) -> None:
    two_cameras[2].late_s = 0.05  # five frames late: its frame n belongs to the other's n + 5
    with live() as rig:
        for _ in range(3):
            assert abs(first(rig).skew_ms) < 7


def test_disconnected_camera_is_reopened(two_cameras: dict[int, FakeCamera]) -> None:
    with live() as rig:
        first(rig)
        for loss in range(1, 4):
            two_cameras[2].connected = False
            wait_until(lambda: rig.waiting_for is not None)
            assert rig.waiting_for == "--right 2"
            rig.next(timeout_s=0.01)
            assert rig.next(timeout_s=0.05) is None
            assert not rig.ended
            two_cameras[2].connected = True
            wait_until(lambda: rig.waiting_for is None)
            assert time.monotonic() - first(rig).captured_at_s < 0.5
            assert rig.losses == loss
        assert two_cameras[0].opened == 1
        assert two_cameras[2].opened > 3


def test_camera_without_a_first_frame_is_logged_once(
    two_cameras: dict[int, FakeCamera], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_cameras[2].silent = True
    with live() as rig:
        assert rig.next(timeout_s=0.1) is None
        assert rig.warning is not None
        assert rig.warning.startswith(
            "--right 2 gives no frame; waiting. Two cameras may exceed the bandwidth of one USB"
        )
        frames = iter(rig)
        original = rig.next

        def next_pair(timeout_s: float) -> StereoFrame | None:
            frame = original(0.05)
            two_cameras[2].silent = False
            return frame

        monkeypatch.setattr(rig, "next", next_pair)
        assert next(frames).right_rgb.shape == RIGHT.shape
        assert rig.warning is None
    assert [line.startswith("--right 2 gives no frame") for line in caplog.messages] == [True]


def test_camera_that_reopens_without_frames_counts_as_one_loss(
    two_cameras: dict[int, FakeCamera], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("live_camera.rig._REOPEN_EVERY_S", 0.01)
    with live() as rig:
        first(rig)
        before, two_cameras[2].silent = two_cameras[2].opened, True
        wait_until(lambda: two_cameras[2].opened > before + 3)
        assert (rig.losses, rig.waiting_for) == (1, "--right 2")
        two_cameras[2].silent = False
        wait_until(lambda: rig.waiting_for is None)


def test_stalled_driver_is_a_warning_before_it_times_out(
    two_cameras: dict[int, FakeCamera], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("live_camera.rig._STALLED_S", 0.1)
    with live() as rig:
        first(rig)
        assert rig.warning is None
        two_cameras[2].fps = 2.0  # the next frame takes half a second
        wait_until(lambda: rig.warning == "no frames from the cameras; waiting")


def test_skew_warning_does_not_change_with_each_pair(two_cameras: dict[int, FakeCamera]) -> None:
    two_cameras[2].late_s = 0.004
    rig = live(max_skew_ms=2.0)
    with rig:
        wait_until(lambda: rig._skewed_since_s is not None)
        rig._skewed_since_s = time.monotonic() - 10
        warnings = {rig.warning for _ in range(20) if not time.sleep(0.01)}
        assert len(warnings) == 1
        assert "--max-skew-ms is 2" in str(warnings)


def test_corrupt_frames_are_dropped_and_counted(two_cameras: dict[int, FakeCamera]) -> None:
    two_cameras[2].corrupt = 3
    with live() as rig:
        first(rig)
        assert rig.corrupt_frames == 3
        assert rig.losses == 0
        two_cameras[2].corrupt = 10
        wait_until(lambda: rig.losses == 1)
        first(rig)


def test_cameras_of_two_sizes_are_an_error(two_cameras: dict[int, FakeCamera]) -> None:
    two_cameras[2].image = RIGHT[:40]
    with live() as rig, pytest.raises(CameraError, match="the left camera gives 64x48, the right one 64x40"):
        rig.next(timeout_s=5)


def test_changed_frame_size_is_an_error(two_cameras: dict[int, FakeCamera]) -> None:
    with live() as rig:
        first(rig)
        two_cameras[0].image = two_cameras[2].image = LEFT[:40]
        with pytest.raises(CameraError, match="the frame size changed from 64x48 to 64x40"):
            list(rig)


def test_both_cameras_are_locked_to_the_settings_of_the_left_one(
    two_cameras: dict[int, FakeCamera], caplog: pytest.LogCaptureFixture
) -> None:
    two_cameras[2].settings[cv2.CAP_PROP_EXPOSURE] = 20.0
    two_cameras[2].offers = {cv2.CAP_PROP_WB_TEMPERATURE: 2800.0}
    with open_rig(SourceOptions(left="0", right="2"), CameraOptions()):
        assert two_cameras[2].settings[cv2.CAP_PROP_EXPOSURE] == 156.0
    assert caplog.messages == ["--right 2: white balance 4600 was requested, the camera uses 2800"]


def test_settings_that_cannot_be_locked_are_logged(
    two_cameras: dict[int, FakeCamera], caplog: pytest.LogCaptureFixture
) -> None:
    two_cameras[2].silent = True
    with open_rig(SourceOptions(left="0", right="2"), CameraOptions()):
        assert caplog.messages[0] == (
            "--right 2: gave no frame at first, so focus, exposure and white balance of both cameras stay automatic; "
            "restart to lock them"
        )


def test_side_by_side_frame_is_split(machine: dict[int, FakeCamera]) -> None:
    machine[1] = FakeCamera(np.hstack([LEFT, RIGHT]))
    machine[1].frozen = True
    with open_rig(SourceOptions(side_by_side="1"), UNLOCKED) as rig:
        frame = first(rig)
    assert np.array_equal(frame.left_rgb, LEFT)
    assert np.array_equal(frame.right_rgb, RIGHT)
    assert frame.skew_ms == 0
    machine[1] = FakeCamera(np.hstack([LEFT, RIGHT])[:, 1:])
    with (
        open_rig(SourceOptions(side_by_side="1"), UNLOCKED) as rig,
        pytest.raises(DataError, match="--side-by-side 1: is 127 px wide"),
    ):
        rig.next(timeout_s=5)


def test_side_by_side_device_is_requested_at_twice_the_width(machine: dict[int, FakeCamera]) -> None:
    machine[1] = FakeCamera(np.hstack([LEFT, RIGHT]))
    with open_rig(
        SourceOptions(side_by_side="1"),
        replace(UNLOCKED, camera_width=640, camera_height=480),
    ) as rig:
        first(rig)
    assert machine[1].settings[cv2.CAP_PROP_FRAME_WIDTH] == 1280
    assert machine[1].settings[cv2.CAP_PROP_FRAME_HEIGHT] == 480


def test_videos_give_every_pair_and_end_with_the_shorter_one(caplog: pytest.LogCaptureFixture) -> None:
    write_video("left.mkv", [numbered(number) for number in range(9)])
    write_video("right.mkv", [numbered(number) for number in range(8)])  # one frame less
    rig = open_rig(SourceOptions(left="left.mkv", right="right.mkv"), CameraOptions(), realtime=False)
    with rig:
        numbers = [(int(frame.left_rgb[0, 0, 0]), int(frame.right_rgb[0, 0, 0])) for frame in rig]
    assert numbers == [(10 * number, 10 * number) for number in range(8)]
    assert rig.ended
    assert not rig.live
    assert caplog.messages == ["--right right.mkv has ended; the remaining frames of --left left.mkv are not used"]


def test_loop_over_a_deleted_video_is_an_error() -> None:
    write_video("both.mkv", [np.hstack([numbered(number)] * 2) for number in range(3)])
    rig = open_rig(SourceOptions(side_by_side="both.mkv", loop=True), CameraOptions(), realtime=False)
    with rig:
        first(rig)
        Path("both.mkv").unlink()
        with pytest.raises(CameraError, match=r"--side-by-side both\.mkv: no such file"):
            list(rig)


def test_loop_over_a_video_without_frames_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    write_video("both.mkv", [np.hstack([numbered(number)] * 2) for number in range(3)])
    rig = open_rig(SourceOptions(side_by_side="both.mkv", loop=True), CameraOptions(), realtime=False)
    with rig:
        first(rig)
        monkeypatch.setattr(rig._cameras.cameras[0], "rewind", lambda: None)
        with pytest.raises(CameraError, match="gives no frame when it is played again"):
            list(rig)


def test_looped_video_plays_at_its_own_rate() -> None:
    write_video("both.mkv", [np.hstack([numbered(number)] * 2) for number in range(3)])
    rig = open_rig(SourceOptions(side_by_side="both.mkv", loop=True), CameraOptions(), realtime=True)
    numbers: list[int] = []
    began_s = time.monotonic()
    with rig:
        for frame in rig:
            numbers.append(int(frame.left_rgb[0, 0, 0]) // 10)
            if len(numbers) == 11:
                break
    assert numbers == [0, 1, 2] * 3 + [0, 1]
    assert time.monotonic() - began_s >= 10 / 50 * 0.95


def test_image_globs_pair_by_number() -> None:
    for number in (3, 1, 2):
        write_rgb(Path(f"left{number}.png"), numbered(number))
        write_rgb(Path(f"right{number}.png"), numbered(10 + number))
    source = SourceOptions(left="left*.png", right="right*.png")
    with open_rig(source, CameraOptions(), realtime=False) as rig:
        numbers = [(int(frame.left_rgb[0, 0, 0]) // 10, int(frame.right_rgb[0, 0, 0]) // 10) for frame in rig]
    assert numbers == [(1, 11), (2, 12), (3, 13)]


def test_corrupt_image_is_an_error_with_its_name() -> None:
    write_rgb(Path("left1.png"), LEFT)
    Path("right1.png").write_bytes(b"corrupt")
    with (
        open_rig(SourceOptions(left="left*.png", right="right*.png"), CameraOptions()) as rig,
        pytest.raises(DataError, match=r"right1\.png"),
    ):
        rig.next(timeout_s=5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs --left and --right, or --side-by-side"),
        ({"left": "0"}, "--left without --right"),
        ({"right": "0"}, "--right without --left"),
        ({"left": "0", "right": "1", "side_by_side": "2"}, "--side-by-side gives both views already"),
        ({"left": "0", "right": "0"}, "--left and --right are both 0"),
        (
            {"left": "0", "right": "gone.mp4"},
            "--left 0 is a live camera, --right gone.mp4 is a video; both have to be of one kind",
        ),
        ({"left": "-1", "right": "2"}, "--left -1 is image files, --right 2 is a live camera"),
        ({"left": "", "right": "2"}, "--left: is empty"),
        ({"left": "a*.png", "right": "b*.png"}, r"a\*\.png: matches no file"),
    ],
)
def test_invalid_source_is_one_line(options: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_rig(SourceOptions(**options), CameraOptions())  # pyright: ignore[reportArgumentType]

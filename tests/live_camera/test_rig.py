import re
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import shifted_pair
from fake_cameras import FakeCamera, machine  # noqa: F401

from foundation_stereo_depth.data.codecs import write_rgb
from foundation_stereo_depth.errors import CameraError, DataError, UserError
from live_camera import rig as rig_module
from live_camera.options import CameraOptions, SourceOptions
from live_camera.rig import Rig, StereoFrame, open_rig

LEFT, RIGHT = shifted_pair(48, 64, 5)
UNLOCKED = CameraOptions(exposure="auto", white_balance="auto")


@pytest.fixture
def two_cameras(machine: dict[int, FakeCamera], monkeypatch: pytest.MonkeyPatch) -> dict[int, FakeCamera]:
    monkeypatch.setattr(rig_module, "_REOPEN_EVERY_S", 0.02)
    monkeypatch.setattr(rig_module, "_SETTLING_S", 0.05)
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


def write_video(path: str, pictures: list[np.ndarray]) -> None:
    height, width = pictures[0].shape[:2]
    writer = cv2.VideoWriter(path, cv2.VideoWriter.fourcc(*"FFV1"), 50.0, (width, height))
    for picture in pictures:
        writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    writer.release()


def numbered(number: int) -> np.ndarray:
    return np.full((48, 64, 3), 10 * number, np.uint8)


def test_the_newest_pair_is_shown_and_the_eyes_are_told_apart(two_cameras: dict[int, FakeCamera]) -> None:
    with live() as rig:
        frame = first(rig)
        assert np.abs(frame.left_rgb.astype(int) - LEFT).max() <= 3
        assert np.abs(frame.right_rgb.astype(int) - RIGHT).max() <= 3
        time.sleep(0.3)
        newest = first(rig)
        assert newest.captured_at_s - frame.captured_at_s > 0.1  # thirty pairs came meanwhile; here is the last one
        assert rig.live


def test_swapped_and_turned_eyes(two_cameras: dict[int, FakeCamera]) -> None:
    two_cameras[0].frozen = two_cameras[2].frozen = True
    with live(swap=True, upside_down="left") as rig:
        frame = first(rig)
    assert np.array_equal(frame.left_rgb, RIGHT)
    assert np.array_equal(frame.right_rgb, LEFT[::-1, ::-1])


def test_skew_is_measured_and_too_much_of_it_is_dropped_and_counted(
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
        assert rig.complaint is None, "it may be a moment's"
        monkeypatch.setattr(rig_module, "_APART_FOR_S", 0.1)
        assert rig.complaint is not None
        assert re.fullmatch(
            r"every pair is dropped: the eyes are \d ms apart, and --max-skew-ms allows 1", rig.complaint
        )


def test_an_eye_that_fell_behind_catches_up(two_cameras: dict[int, FakeCamera]) -> None:
    two_cameras[2].late_s = 0.05  # five pictures behind: its frame n belongs to the other's n + 5
    with live() as rig:
        for _ in range(3):
            assert abs(first(rig).skew_ms) < 7


def test_an_unplugged_camera_is_waited_for(two_cameras: dict[int, FakeCamera]) -> None:
    with live() as rig:
        first(rig)
        for loss in range(1, 4):
            two_cameras[2].plugged = False
            wait_until(lambda: rig.waiting_for is not None)
            assert rig.waiting_for == "--right 2"
            rig.next(timeout_s=0.01)
            assert rig.next(timeout_s=0.05) is None
            assert not rig.ended
            two_cameras[2].plugged = True
            wait_until(lambda: rig.waiting_for is None)
            assert time.monotonic() - first(rig).captured_at_s < 0.5
            assert rig.losses == loss
        assert two_cameras[0].opened == 1
        assert two_cameras[2].opened > 3


def test_a_camera_that_never_gives_a_picture_is_told_apart_from_one_that_is_gone(
    two_cameras: dict[int, FakeCamera], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    two_cameras[2].mute = True
    with live() as rig:
        assert rig.next(timeout_s=0.1) is None
        assert rig.complaint is not None
        assert rig.complaint.startswith("--right 2 gives no picture; waiting. Two cameras may be too much for one USB")
        frames = iter(rig)
        original = rig.next

        def next_pair(timeout_s: float) -> StereoFrame | None:
            frame = original(0.05)
            two_cameras[2].mute = False
            return frame

        monkeypatch.setattr(rig, "next", next_pair)
        assert next(frames).right_rgb.shape == RIGHT.shape
        assert rig.complaint is None
    assert capsys.readouterr().out.count("--right 2 gives no picture") == 1


def test_a_camera_that_comes_back_without_a_picture_is_lost_once(
    two_cameras: dict[int, FakeCamera], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("live_camera.rig._REOPEN_EVERY_S", 0.01)
    with live() as rig:
        first(rig)
        before, two_cameras[2].mute = two_cameras[2].opened, True
        wait_until(lambda: two_cameras[2].opened > before + 3)
        assert (rig.losses, rig.waiting_for) == (1, "--right 2")
        two_cameras[2].mute = False
        wait_until(lambda: rig.waiting_for is None)


def test_a_driver_that_holds_the_thread_is_told_before_it_gives_up(
    two_cameras: dict[int, FakeCamera], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("live_camera.rig._STALLED_S", 0.1)
    with live() as rig:
        first(rig)
        assert rig.complaint is None
        two_cameras[2].fps = 1.0  # the next picture takes a second
        wait_until(lambda: rig.complaint == "no pair comes any more; waiting")


def test_what_is_said_of_skew_does_not_change_with_each_pair(two_cameras: dict[int, FakeCamera]) -> None:
    two_cameras[2].late_s = 0.004
    rig = live(max_skew_ms=2.0)
    with rig:
        wait_until(lambda: rig._apart_since_s is not None)
        rig._apart_since_s = time.monotonic() - 10
        said = {rig.complaint for _ in range(20) if not time.sleep(0.01)}
        assert len(said) == 1
        assert "--max-skew-ms allows 2" in str(said)


def test_torn_pictures_are_left_out_and_counted(two_cameras: dict[int, FakeCamera]) -> None:
    two_cameras[2].torn = 3
    with live() as rig:
        first(rig)
        assert rig.damaged == 3
        assert rig.losses == 0
        two_cameras[2].torn = 10
        wait_until(lambda: rig.losses == 1)
        first(rig)


def test_eyes_of_two_sizes_are_refused(two_cameras: dict[int, FakeCamera]) -> None:
    two_cameras[2].picture = RIGHT[:40]
    with live() as rig, pytest.raises(CameraError, match="the left eye gives 64x48, the right one 64x40"):
        rig.next(timeout_s=5)


def test_a_size_that_changes_is_refused(two_cameras: dict[int, FakeCamera]) -> None:
    with live() as rig:
        first(rig)
        two_cameras[0].picture = two_cameras[2].picture = LEFT[:40]
        with pytest.raises(CameraError, match="gave 64x48 and now give 64x40"):
            list(rig)


def test_both_eyes_get_what_the_left_one_chose(two_cameras: dict[int, FakeCamera]) -> None:
    two_cameras[2].settings[cv2.CAP_PROP_EXPOSURE] = 20.0
    two_cameras[2].offers = {cv2.CAP_PROP_WB_TEMPERATURE: 2800.0}
    said: list[str] = []
    with open_rig(SourceOptions(left="0", right="2"), CameraOptions(), tell=said.append):
        assert two_cameras[2].settings[cv2.CAP_PROP_EXPOSURE] == 156.0
    assert said == ["--right 2: white balance 4600 was asked for, 2800 is set"]


def test_colours_that_could_not_be_locked_are_told(two_cameras: dict[int, FakeCamera]) -> None:
    two_cameras[2].mute = True
    said: list[str] = []
    with open_rig(SourceOptions(left="0", right="2"), CameraOptions(), tell=said.append):
        assert said == [
            "--right 2: gave no picture at first, so exposure and white balance of both eyes stay automatic; start "
            "again to have them locked"
        ]


def test_one_device_with_both_eyes(machine: dict[int, FakeCamera]) -> None:
    machine[1] = FakeCamera(np.hstack([LEFT, RIGHT]))
    machine[1].frozen = True
    with open_rig(SourceOptions(side_by_side="1"), UNLOCKED) as rig:
        frame = first(rig)
    assert np.array_equal(frame.left_rgb, LEFT)
    assert np.array_equal(frame.right_rgb, RIGHT)
    assert frame.skew_ms == 0
    machine[1] = FakeCamera(np.hstack([LEFT, RIGHT])[:, 1:])
    with open_rig(SourceOptions(side_by_side="1"), UNLOCKED) as rig, pytest.raises(CameraError, match="is 127 px wide"):
        rig.next(timeout_s=5)


def test_one_device_with_both_eyes_is_asked_for_both(machine: dict[int, FakeCamera]) -> None:
    machine[1] = FakeCamera(np.hstack([LEFT, RIGHT]))
    with open_rig(SourceOptions(side_by_side="1"), CameraOptions(width=640, height=480, exposure="auto")) as rig:
        first(rig)
    assert machine[1].settings[cv2.CAP_PROP_FRAME_WIDTH] == 1280
    assert machine[1].settings[cv2.CAP_PROP_FRAME_HEIGHT] == 480


def test_no_pair_of_two_videos_is_left_out_and_the_end_is_an_end(capsys: pytest.CaptureFixture[str]) -> None:
    write_video("left.mkv", [numbered(number) for number in range(9)])
    write_video("right.mkv", [numbered(number) for number in range(8)])  # one short: its last has no partner
    rig = open_rig(SourceOptions(left="left.mkv", right="right.mkv"), CameraOptions(), realtime=False)
    with rig:
        numbers = [(int(frame.left_rgb[0, 0, 0]), int(frame.right_rgb[0, 0, 0])) for frame in rig]
    assert numbers == [(10 * number, 10 * number) for number in range(8)]
    assert rig.ended
    assert not rig.live
    assert capsys.readouterr().out == "--right right.mkv is at its end, and --left left.mkv would go on\n"


def test_a_video_that_goes_away_does_not_play_again() -> None:
    write_video("both.mkv", [np.hstack([numbered(number)] * 2) for number in range(3)])
    rig = open_rig(SourceOptions(side_by_side="both.mkv", loop=True), CameraOptions(), realtime=False)
    with rig:
        first(rig)
        Path("both.mkv").unlink()
        with pytest.raises(CameraError, match=r"--side-by-side both\.mkv: no such file"):
            list(rig)


def test_a_video_that_holds_no_picture_any_more_does_not_play_again(monkeypatch: pytest.MonkeyPatch) -> None:
    write_video("both.mkv", [np.hstack([numbered(number)] * 2) for number in range(3)])
    rig = open_rig(SourceOptions(side_by_side="both.mkv", loop=True), CameraOptions(), realtime=False)
    with rig:
        first(rig)
        monkeypatch.setattr(rig._eyes.cameras[0], "rewind", lambda: None)
        with pytest.raises(CameraError, match="gives no picture any more when it is played again"):
            list(rig)


def test_videos_play_at_their_own_rate_and_again_and_again() -> None:
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


def test_globs_of_pictures_pair_by_their_numbers() -> None:
    for number in (3, 1, 2):
        write_rgb(Path(f"left{number}.png"), numbered(number))
        write_rgb(Path(f"right{number}.png"), numbered(10 + number))
    source = SourceOptions(left="left*.png", right="right*.png")
    with open_rig(source, CameraOptions(), realtime=False) as rig:
        numbers = [(int(frame.left_rgb[0, 0, 0]) // 10, int(frame.right_rgb[0, 0, 0]) // 10) for frame in rig]
    assert numbers == [(1, 11), (2, 12), (3, 13)]


def test_a_damaged_picture_stops_with_its_name() -> None:
    write_rgb(Path("left1.png"), LEFT)
    Path("right1.png").write_bytes(b"torn")
    with (
        open_rig(SourceOptions(left="left*.png", right="right*.png"), CameraOptions()) as rig,
        pytest.raises(DataError, match=r"right1\.png"),
    ):
        rig.next(timeout_s=5)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({}, "needs --left and --right, or --side-by-side"),
        ({"left": "0"}, "--left without --right"),
        ({"right": "0"}, "--right without --left"),
        ({"left": "0", "right": "1", "side_by_side": "2"}, "--side-by-side names both eyes already"),
        ({"left": "0", "right": "0"}, "--left and --right are both 0"),
        ({"left": "0", "right": "gone.mp4"}, "--left 0 is live, --right gone.mp4 is a video; both eyes have to be"),
        ({"left": "-1", "right": "2"}, "--left -1 is pictures in files, --right 2 is live"),
        ({"left": "", "right": "2"}, "--left: is empty"),
        ({"left": "a*.png", "right": "b*.png"}, r"a\*\.png: matches no file"),
    ],
)
def test_sources_that_do_not_work(flags: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        open_rig(SourceOptions(**flags), CameraOptions())  # pyright: ignore[reportArgumentType]

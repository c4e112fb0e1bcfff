import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from foundation_stereo_depth.data import videos
from foundation_stereo_depth.data.file_kinds import is_video
from foundation_stereo_depth.data.pairs import find_pairs
from foundation_stereo_depth.data.videos import read_frames
from foundation_stereo_depth.errors import CameraError, DataError, UserError
from live_camera.camera import Camera
from live_camera.options import CameraOptions, SourceOptions
from live_camera.recording import check_recordable
from live_camera.rig import open_rig

FRAMES = 16


def write(path: str, codec: str, frames: int = FRAMES) -> bytes:
    """Write noise at 10 frames per second; return the file."""
    random = np.random.default_rng(0)
    writer = cv2.VideoWriter(path, cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*codec), 10, (96, 32))
    for _ in range(frames):
        writer.write(cv2.resize(random.integers(0, 256, (8, 24, 3), dtype=np.uint8), (96, 32)))
    writer.release()
    return Path(path).read_bytes()


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.ts", "mp4v"), ("a.MTS", "mp4v"), ("a.m2ts", "mp4v"), ("a.wmv", "WMV2"), ("a.asf", "WMV2"),
        ("a.flv", "FLV1"), ("a.3gp", "mp4v"), ("a.3g2", "mp4v"), ("a.MOV", "mp4v"),
        ("a.webm", "VP80"), ("a.mkv", "FFV1"),
    ],
)  # fmt: skip
def test_every_kind_of_video_is_read_to_its_end(name: str, codec: str) -> None:
    write(name.lower(), codec)
    Path(name.lower()).rename(name)
    assert is_video(name)
    assert len(list(read_frames(Path(name)))) == FRAMES


def test_matroska_of_another_nominal_rate_is_complete() -> None:
    encoded = write("a.mkv", "FFV1")
    duration_ns = b"\x23\xe3\x83\x84" + (100_000_000).to_bytes(4)  # DefaultDuration: 10 frames per second
    assert encoded.count(duration_ns) == 1
    Path("a.mkv").write_bytes(encoded.replace(duration_ns, duration_ns[:4] + (25_000_000).to_bytes(4)))
    assert cv2.VideoCapture("a.mkv").get(cv2.CAP_PROP_FRAME_COUNT) > 3 * FRAMES  # OpenCV's estimate
    assert len(list(read_frames(Path("a.mkv")))) == FRAMES


def test_views_of_an_arbitrary_nominal_rate_are_paired_by_their_real_one() -> None:
    for name, rate in (("left.mkv", 10.0), ("right.mkv", 10.05)):  # after 16 frames 8 ms apart
        writer = cv2.VideoWriter(name, cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"FFV1"), rate, (96, 32))
        for level in range(FRAMES):
            writer.write(np.full((32, 96, 3), 10 * level, np.uint8))
        writer.release()
        encoded = Path(name).read_bytes()
        place = encoded.index(b"\x23\xe3\x83\x84") + 4
        Path(name).write_bytes(encoded[:place] + (1_000_000).to_bytes(4) + encoded[place + 4 :])  # 1000 per second
    assert cv2.VideoCapture("left.mkv").get(cv2.CAP_PROP_FPS) == 1000
    assert len(list(find_pairs("left.mkv", "right.mkv"))) == FRAMES


def with_stated_frames(avi: bytes, frames: int) -> bytes:
    """Return an AVI whose headers state another number of frames (avih dwTotalFrames, strh dwLength)."""
    for name, offset in ((b"avih", 8 + 16), (b"strh", 8 + 32)):
        place = avi.index(name) + offset
        avi = avi[:place] + frames.to_bytes(4, "little") + avi[place + 4 :]
    return avi


def test_avi_with_a_guessed_number_of_frames_is_complete_if_all_chunks_are_there() -> None:
    encoded = with_stated_frames(write("a.avi", "MJPG"), 63)
    Path("a.avi").write_bytes(encoded)
    assert cv2.VideoCapture("a.avi").get(cv2.CAP_PROP_FRAME_COUNT) == 63
    assert len(list(read_frames(Path("a.avi")))) == FRAMES


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mkv", "FFV1"), ("a.webm", "VP80"), ("a.avi", "MJPG"), ("a.flv", "FLV1")]
)
@pytest.mark.parametrize("tail", ["cut", "zeros"])
def test_video_that_ends_before_its_stated_time_is_told_after_its_frames(name: str, codec: str, tail: str) -> None:
    encoded = write(name, codec)
    kept = encoded[: len(encoded) * 7 // 10]
    Path(name).write_bytes(kept + bytes(len(encoded) - len(kept) if tail == "zeros" else 0))
    frames = []
    with pytest.raises(
        DataError, match=rf"{name}: decoding ended after \d+ frames, at \d\.\d of 1\.6 s; is it damaged"
    ):
        frames.extend(read_frames(Path(name)))
    assert 4 < len(frames) < FRAMES - 2


def test_camera_commands_tell_that_a_recording_ended_early() -> None:
    encoded = write("both.mkv", "FFV1")
    camera = Camera("both.mkv", "both.mkv", CameraOptions())
    while camera.grab() is not None:
        pass
    assert camera.explain_early_end() is None
    Path("both.mkv").write_bytes(encoded[: len(encoded) * 7 // 10])
    records = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("live_camera.rig.logger.warning", records.append)
        with open_rig(SourceOptions(side_by_side="both.mkv"), CameraOptions(), realtime=False) as rig:
            assert 4 < len(list(rig)) < FRAMES - 2
    assert len(records) == 1
    assert "both.mkv: decoding ended after" in records[0]


@pytest.mark.parametrize(
    "content",
    [b"#EXTM3U\n#EXTINF:1,\na.avi\n", b"ffconcat version 1.0\nfile a.avi\n", b"\x89PNG\r\n\x1a\n", b"no video", b""],
)
def test_only_videos_are_opened_whatever_the_name(content: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    write("a.avi", "MJPG")  # FFmpeg would play it for the second of them
    Path("list.mp4").write_bytes(content)
    with pytest.raises(DataError, match=r"^list\.mp4: is not a video that can be decoded$"):
        next(read_frames(Path("list.mp4")))
    assert capfd.readouterr().err == ""


def test_a_video_whose_name_is_not_utf8_is_an_error_and_not_the_end_of_the_process() -> None:
    name = os.fsdecode(b"\xff.avi")
    Path(name).write_bytes(write("a.avi", "MJPG"))
    with pytest.raises(DataError, match="its name is not UTF-8"):
        next(read_frames(Path(name)))
    with pytest.raises(CameraError, match="its name is not UTF-8"):
        Camera(name, "--left", CameraOptions())
    with pytest.raises(UserError, match="its name is not UTF-8"):
        check_recordable(Path(name))


def test_an_avi_of_empty_chunks_is_not_followed_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("a.avi").write_bytes(b"RIFF\xff\xff\xff\x00AVI " + b"JUNK\0\0\0\0" * 100)
    monkeypatch.setattr(videos, "_MOST_CHUNKS", 50)
    assert not videos._is_complete_avi(Path("a.avi"))

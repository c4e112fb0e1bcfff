from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from foundation_stereo_depth.calibration.files import read_calibration
from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.stereo.geometry import StereoCalibration
from foundation_stereo_depth.stereo.match import StereoMatch
from live_camera import depth_files
from live_camera.depth_files import depth_to_mm, open_depth_writer
from live_camera.matcher import MatchedFrame
from live_camera.rig import StereoFrame

H, W = 36, 62
CALIBRATION = StereoCalibration.centred(height=H, width=W, focal_px=50.0, baseline_m=0.1)


def matched(depth_m: np.ndarray, at_s: float) -> MatchedFrame:
    image = np.zeros((H, W, 3), np.uint8)
    return MatchedFrame(
        frame=StereoFrame(left_rgb=image, right_rgb=image, captured_at_s=at_s, skew_ms=0.5),
        left=image,
        right=image,
        match=StereoMatch(disparity_px=depth_m, valid=np.isfinite(depth_m), sigma_px=None, confidence=None),
        depth_m=depth_m,
        calibration=CALIBRATION,
    )


def read_video(path: Path) -> list[np.ndarray]:
    video = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_CONVERT_RGB, 0])
    frames: list[np.ndarray] = []
    while (read := video.read())[0]:
        frames.append(read[1])
    video.release()
    return frames


def test_depth_video_returns_every_bit_with_times_and_calibration(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    maps = [random.uniform(0.2, 70, (H, W)).astype(np.float32) for _ in range(5)]
    maps[0][3, 4] = np.nan
    with open_depth_writer(tmp_path / "new/out.mkv", CALIBRATION, 5.0) as write:
        for number, depth_m in enumerate(maps):
            write(matched(depth_m, 10 + 0.2 * number))
    frames = read_video(tmp_path / "new/out.mkv")
    assert [frame.dtype for frame in frames] == [np.uint16] * 5
    for frame, depth_m in zip(frames, maps, strict=True):
        np.testing.assert_array_equal(frame, depth_to_mm(depth_m))
    assert frames[0][3, 4] == 0
    assert max(frame.max() for frame in frames) == depth_files.FARTHEST_MM
    times = (tmp_path / "new/out.times.csv").read_text().splitlines()
    assert times[-1] == "4,0.800000,0.500"
    video = cv2.VideoCapture(str(tmp_path / "new/out.mkv"))
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(5)
    video.release()
    assert read_calibration(tmp_path / "new/out.calibration.npz").stereo_calibration.baseline_m == pytest.approx(0.1)


def test_depth_in_mm_is_rounded_and_within_half_a_millimetre() -> None:
    depth_m = np.array([[0.4994, 0.4996, 65.534, 65.6, np.nan]], np.float32)
    assert depth_to_mm(depth_m).tolist() == [[499, 500, 65534, 65535, 0]]


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("out.mp4", (H, W), "lossless 16-bit video needs .mkv"),
        ("out.mkv", (H - 1, W), "needs an even width and height, and depth is 62x35"),
        ("taken.mkv", (H, W), "taken.times.csv exists already"),
    ],
)
def test_depth_video_that_cannot_be_written_is_one_line(
    tmp_path: Path, name: str, size: tuple[int, int], message: str
) -> None:
    (tmp_path / "taken.times.csv").touch()
    with pytest.raises(UserError, match=message):
        open_depth_writer(tmp_path / name, replace(CALIBRATION, height=size[0], width=size[1]), 30.0)
    assert not (tmp_path / name).exists()


def test_depth_video_on_a_disk_without_room_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_folder: Path) -> None:
        raise OSError(28, "the disk is nearly full")

    monkeypatch.setattr(depth_files, "check_room", full)
    writer = open_depth_writer(tmp_path / "out.mkv", CALIBRATION, 30.0)
    with pytest.raises(UserError, match=r"out\.mkv: cannot be written \(the disk is nearly full\)"), writer as write:
        write(matched(np.ones((H, W), np.float32), 0.0))

from pathlib import Path

import cv2
import pytest

from foundation_stereo_depth.data.demo_pair import read_demo_pair
from foundation_stereo_depth.stereo import sgbm
from live_camera import camera, demo
from live_camera.camera import CameraInfo
from live_camera.cli import demo_command


@pytest.fixture(autouse=True)
def two_cameras(monkeypatch: pytest.MonkeyPatch) -> None:
    cameras = [CameraInfo(index=index, name=f"C{index}", path="", backend="V4L2") for index in (1, 3)]
    monkeypatch.setattr(camera, "find_cameras", lambda: cameras)


def test_demo_writes_a_figure_and_names_depth_and_cameras(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):  # the default file is replaced
        assert demo_command(["--method", "sgbm", "--no-open"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert cv2.imread("foundation_stereo_demo.png").shape[1] == 1200
    assert "centre of the image: 2.4" in printed[1]
    assert "found 1 (C1), 3 (C3)" in printed[2]
    assert "live-view --left 1 --right 3" in printed[3]
    assert len(printed) == 12


def test_demo_does_not_replace_a_named_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.png").write_bytes(b"mine")
    assert demo_command(["-o", "mine.png"]) == 2
    assert "mine.png: exists; name another file" in capsys.readouterr().err
    assert demo_command(["-o", "mine.gif"]) == 2


def test_figure_is_opened_only_where_there_is_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    monkeypatch.setattr(demo, "open_file", lambda path: opened.append(path) or True)
    monkeypatch.setattr(demo, "has_display", lambda: False)
    assert demo_command(["--method", "sgbm"]) == 0
    assert not opened
    monkeypatch.setattr(demo, "has_display", lambda: True)
    assert demo_command(["--method", "sgbm"]) == 0
    assert opened == [Path("foundation_stereo_demo.png")]


def test_pair_of_the_demo_has_the_depth_of_its_calibration() -> None:
    pair = read_demo_pair()
    match = sgbm.match(pair.left, pair.right)
    # Middlebury's Motorcycle stands 2 to 5 m from the cameras.
    assert 2.0 < float(match.depth_m(pair.calibration)[250, 370]) < 3.0

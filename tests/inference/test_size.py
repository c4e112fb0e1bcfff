from pathlib import Path

import cv2
import numpy as np
import pytest

from foundation_stereo_depth.cli import evaluate_command, predict_command
from foundation_stereo_depth.data.codecs import write_rgb
from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.inference import predictor
from foundation_stereo_depth.options.inference import PredictNetworkOptions, size_for
from live_camera.options import MatcherOptions


@pytest.mark.parametrize(
    ("size", "image_width_px", "expected"),
    [
        ("auto", 1280, (480, 640)),
        ("auto", 384, (480, 640)),
        ("auto", 383, (240, 320)),
        ("auto", 100, (240, 320)),
        ("200x96", 1280, (96, 200)),
    ],
)
def test_auto_is_the_largest_size_that_the_images_use(
    size: str, image_width_px: int, expected: tuple[int, int]
) -> None:
    assert size_for(size, image_width_px) == expected
    assert PredictNetworkOptions(size=size).size_for(image_width_px) == expected


def test_height_and_width_go_on_working_without_size() -> None:
    assert PredictNetworkOptions(height=96).size_for(1280) == (96, None)
    assert MatcherOptions(network_width=96).fixed_size == (None, 96)
    assert MatcherOptions(size="200x96").fixed_size == (96, 200)
    assert MatcherOptions(size="auto").fixed_size == (None, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "large"}, "--size large: has to be two whole numbers"),
        ({"size": "16x240"}, "--size 16x240: both sides have to be from 32 to 4096"),
        ({"size": "auto", "width": 320}, "--size auto: names what --width names too"),
        ({"size": "auto", "method": "sgbm"}, "leave --size out"),
    ],
)
def test_wrong_size_is_rejected(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PredictNetworkOptions(**options)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "auto", "network_height": 96}, "--size auto: names what --network-height names too"),
        ({"size": "auto", "method": "sgbm"}, "--size auto: is for networks"),
    ],
)
def test_wrong_size_of_the_live_view_is_rejected(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MatcherOptions(**options)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("width", "expected"), [(500, "640x480"), (200, "320x240")])
def test_predict_runs_at_the_size_that_the_first_pair_uses(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str], width: int, expected: str
) -> None:
    left, right = np.random.default_rng(0).integers(0, 256, (2, 120, width, 3), dtype=np.uint8)
    for name, view in (("left.png", left), ("right.png", right)):
        write_rgb(Path(name), view)
    flags = ["--checkpoint", str(tiny_checkpoint), "--size", "auto", "--allow-swapped"]
    assert predict_command(["left.png", "right.png", *flags]) == 0
    assert f"at {expected}, " in capsys.readouterr().err


def test_the_installed_network_predicts_at_the_size_of_the_images() -> None:
    assert PredictNetworkOptions().with_default_size().size == "auto"
    assert PredictNetworkOptions(checkpoint="default").with_default_size().size == "auto"
    for named in (
        {"size": "64x48"},
        {"height": 96},
        {"checkpoint": Path("best.pt")},
        {"run_id": "latest"},
        {"method": "sgbm"},
    ):
        options = PredictNetworkOptions(**named)
        assert options.with_default_size() is options


@pytest.mark.parametrize(("suffix", "expected"), [(".png", (480, 640)), (".mkv", (None, None))])
def test_recordings_are_predicted_at_the_size_of_the_live_view(
    monkeypatch: pytest.MonkeyPatch, suffix: str, expected: tuple[int | None, int | None]
) -> None:
    both = np.random.default_rng(0).integers(0, 256, (96, 1280, 3), dtype=np.uint8)
    if suffix == ".png":
        write_rgb(Path("both.png"), both)
    else:
        video = cv2.VideoWriter("both.mkv", cv2.VideoWriter.fourcc(*"MJPG"), 5, (1280, 96))
        video.write(both)
        video.release()
    opened: list[tuple[int | None, int | None]] = []

    def note_size(*_: object, height: int | None, width: int | None, **__: object) -> None:
        opened.append((height, width))
        raise UserError("seen")

    monkeypatch.setattr(predictor, "open_network", note_size)
    assert predict_command([f"both{suffix}", "--side-by-side"]) == 2
    assert opened == [expected]


def test_evaluate_takes_a_size(tiny_checkpoint: Path, shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--checkpoint", str(tiny_checkpoint), "--dataset-root", str(shared_data / "boards"), "--json"]
    assert evaluate_command([*flags, "--size", "64x48", "--max-samples", "1"]) == 0
    assert '"width": 64' in capsys.readouterr().out

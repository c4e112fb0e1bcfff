import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import shifted_pair
from rendered_rig import RenderedRig, converging_rig, noise_texture, plane_at

from foundation_stereo_depth.calibration.files import save_calibration
from foundation_stereo_depth.calibration.rig import RigCalibration
from foundation_stereo_depth.checkpoint import load_checkpoint
from foundation_stereo_depth.cli import predict_command
from foundation_stereo_depth.data.codecs import decode_whole_steps, read_png16, read_rgb, write_rgb
from foundation_stereo_depth.data.rectify import Rectifier
from foundation_stereo_depth.inference.predict import photometric_residual, seem_swapped
from foundation_stereo_depth.inference.predictor import Predictor
from foundation_stereo_depth.stereo.match import StereoMatch

OPEN_NETWORK = "foundation_stereo_depth.inference.predictor.open_network"


@pytest.fixture
def folders() -> None:
    """Five pairs, left/NNNN.png and right/NNNN.png, each of another size and shift."""
    for view in ("left", "right"):
        Path(view).mkdir()
    for number in range(5):
        left, right = shifted_pair(40 + number, 80 + 2 * number, 2 + 2 * number, seed=number)
        write_rgb(Path(f"left/{number:04d}.png"), left)
        write_rgb(Path(f"right/{number:04d}.png"), right)


@pytest.fixture
def matching(monkeypatch: pytest.MonkeyPatch, matching_predictor: Callable[..., Predictor]) -> None:
    """The command opens the matching network, whatever checkpoint is named."""
    monkeypatch.setattr(OPEN_NETWORK, lambda *_, **__: matching_predictor(44, 88))


def disparity_of(path: str) -> float:
    return float(np.median(decode_whole_steps(read_png16(Path(path)), 256)[6:-6, 24:-8]))


@pytest.mark.usefixtures("folders", "matching")
@pytest.mark.parametrize("batch_size", ["1", "2"])
def test_folders_are_predicted_pair_by_pair(batch_size: str, capfd: pytest.CaptureFixture[str]) -> None:
    flags = ["-o", "out", "--checkpoint", "any.pt", "--batch-size", batch_size]
    assert predict_command(["left", "right", *flags]) == 0
    for number in range(5):
        assert disparity_of(f"out/{number:04d}_disparity.png") == pytest.approx(2 + 2 * number, abs=0.6)
        assert Path(f"out/{number:04d}_figure.png").exists()
    printed = capfd.readouterr()
    assert printed.out == "out: 5 pairs written; out/0000_figure.png can be opened\n"
    assert "ms per pair" in printed.err
    assert "swapped" not in printed.err
    assert predict_command(["left", "right", *flags]) == 2
    assert "0000_disparity.png: exists" in capfd.readouterr().err


@pytest.mark.usefixtures("folders", "matching")
def test_readable_pairs_are_written_and_the_rest_later(capfd: pytest.CaptureFixture[str]) -> None:
    complete = Path("left/0003.png").read_bytes()
    Path("left/0003.png").write_bytes(b"?")
    flags = ["left", "right", "-o", "out", "--checkpoint", "any.pt", "--batch-size", "4", "--write", "disparity"]
    assert predict_command(flags) == 2
    printed = capfd.readouterr()
    assert not printed.out
    assert "out: 3 pairs written before that" in printed.err
    assert "0003.png" in printed.err
    Path("left/0003.png").write_bytes(complete)
    before = Path("out/0000_disparity.png").stat()
    assert predict_command([*flags, "--skip-existing"]) == 0
    printed = capfd.readouterr()
    assert "out: 3 of 5 pairs exist already" in printed.err
    assert "out: 2 pairs written" in printed.out
    assert Path("out/0000_disparity.png").stat() == before
    assert disparity_of("out/0004_disparity.png") == pytest.approx(10, abs=0.6)
    assert predict_command([*flags, "--skip-existing"]) == 0
    assert "5 of 5 pairs exist already" in capfd.readouterr().err


@pytest.mark.usefixtures("matching")
def test_figure_titles_are_not_mathtext_and_may_be_undecodable() -> None:
    names = [b"cost_$5_$x^.png", b"\xff.png"]
    left, right = shifted_pair(48, 96, 4)
    for view, image in (("left", left), ("right", right)):
        Path(view).mkdir()
        write_rgb(Path("one.png"), image)
        for name in names:
            (Path(view) / os.fsdecode(name)).write_bytes(Path("one.png").read_bytes())
    assert predict_command(["left", "right", "-o", "out", "--checkpoint", "any.pt"]) == 0
    assert len(list(Path("out").glob("*_figure.png"))) == 2


@pytest.mark.usefixtures("folders")
def test_disparity_beyond_16_bits_does_not_stop_the_batch(
    monkeypatch: pytest.MonkeyPatch, matching_predictor: Callable[..., Predictor], capfd: pytest.CaptureFixture[str]
) -> None:
    predictor = matching_predictor(44, 88)
    plain = predictor.batch

    def with_one_too_large(pairs: list, **more: list) -> list[StereoMatch]:
        matches = plain(pairs, **more)
        matches[0].disparity_px[1, 2] = 305.902
        return matches

    monkeypatch.setattr(predictor, "batch", with_one_too_large)
    monkeypatch.setattr(OPEN_NETWORK, lambda *_, **__: predictor)
    assert predict_command(["left", "right", "-o", "out", "--write", "disparity"]) == 0
    error = capfd.readouterr().err
    assert error.count("warning:") == len(list(Path("out").iterdir())) == 5
    assert "out/0004_disparity.png: 1 pixels of more than 255.996 px (up to 305.902) are unknown in it" in error
    assert "--map-format pfm or npy keeps them" in error


@pytest.mark.usefixtures("folders", "matching")
def test_swapped_views_are_refused_and_swapped_back(capfd: pytest.CaptureFixture[str]) -> None:
    flags = ["--checkpoint", "any.pt", "--write", "disparity"]
    swapped = ["right/0001.png", "left/0001.png"]
    assert predict_command([*swapped, "-o", "wrong", *flags]) == 2
    assert "left and right views seem to be swapped" in (error := capfd.readouterr().err)
    assert "--swap swaps them back, --allow-swapped takes them as they are" in error
    assert not list(Path().glob("wrong/*"))
    assert predict_command([*swapped, "-o", "wrong", "--allow-swapped", *flags]) == 0
    assert "warning: 0001: the left and right views seem to be swapped" in capfd.readouterr().err
    assert predict_command(["right/0001.png", "left/0001.png", "-o", "out", "--swap", *flags]) == 0
    assert "seem to be swapped" not in capfd.readouterr().err
    assert disparity_of("out/0001_disparity.png") == pytest.approx(4, abs=0.6)
    assert predict_command(["left/0001.png", "right/0001.png", "-o", "twice", "--swap", *flags]) == 2
    assert "leave --swap out" in capfd.readouterr().err


@pytest.mark.usefixtures("matching")
def test_pairs_that_cannot_be_one_are_refused(capfd: pytest.CaptureFixture[str]) -> None:
    flags = ["-o", "out", "--checkpoint", "any.pt", "--write", "disparity"]
    left, right = shifted_pair(44, 88, 6)
    black = np.zeros_like(left)
    for name, view in {"l": left, "copy": left, "black": black, "night": black + 1, "small": left[:20, :20]}.items():
        write_rgb(Path(f"{name}.png"), view)
    for names, message in (
        (("l.png", "copy.png"), "l: left and right are the same image"),
        (("black.png", "night.png"), "black: the left view is black, so nothing can be matched"),
        (("l.png", "black.png"), "l: the right view is black"),
        (("small.png", "small2.png"), "small: is 20x20 px; views of less than 32 px cannot be matched"),
    ):
        write_rgb(Path("small2.png"), right[:20, :20])
        assert predict_command([*names, *flags]) == 2, names
        assert message in capfd.readouterr().err
    assert not list(Path().glob("out/*"))
    for side, view in (("left", left), ("right", right)):
        Path(side).mkdir()
        for name, image in (("0", view), ("1", black), ("2", black)):
            write_rgb(Path(side, f"{name}.png"), image)
    assert predict_command(["left", "right", *flags]) == 0
    error = capfd.readouterr().err
    assert error.count("warning:") == 1
    assert "warning: 1: the left view is black" in error


@pytest.mark.parametrize("kind", ["grey", "16-bit grey", "16-bit colour"])
@pytest.mark.usefixtures("matching")
def test_grey_and_16_bit_images_are_predicted(kind: str) -> None:
    for name, view in zip(("a.png", "b.png"), shifted_pair(44, 88, 6), strict=True):
        stored = cv2.cvtColor(view, cv2.COLOR_RGB2GRAY) if "grey" in kind else view
        stored = stored.astype(np.uint16) * 257 if "16-bit" in kind else stored
        cv2.imwrite(name, stored)
    assert predict_command(["a.png", "b.png", "-o", "out", "--checkpoint", "any.pt", "--write", "disparity"]) == 0
    assert disparity_of("out/a_disparity.png") == 6


@pytest.mark.usefixtures("matching")
def test_side_by_side_video_is_predicted_frame_by_frame() -> None:
    frame = np.concatenate(shifted_pair(48, 88, 5), axis=1)
    writer = cv2.VideoWriter("both.avi", cv2.VideoWriter.fourcc(*"MJPG"), 10, (176, 48))
    for _ in range(3):
        writer.write(frame[..., ::-1])
    writer.release()
    flags = ["-o", "out", "--checkpoint", "any.pt", "--write", "disparity", "--map-format", "npy", "--batch-size", "2"]
    assert predict_command(["both.avi", *flags]) == 0
    assert sorted(path.name for path in Path("out").iterdir()) == [f"both_{n:06d}_disparity.npy" for n in range(3)]
    assert np.median(np.load("out/both_000002_disparity.npy")[6:-6, 24:-8]) == 5


@pytest.mark.usefixtures("folders")
def test_checkpoint_is_predicted_with_in_every_format(tiny_checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> None:
    flags = ["--write", "disparity,sigma,confidence,cloud", "--focal-px", "80", "--baseline-m", "0.1"]
    assert predict_command(["left", "right", "-o", "out", "--checkpoint", str(tiny_checkpoint), *flags]) == 0
    assert len(list(Path("out").iterdir())) == 20
    assert "unet at 64x48, torch" in capfd.readouterr().err


@pytest.mark.usefixtures("folders")
def test_bare_weights_are_warned_of(tiny_checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.save(load_checkpoint(tiny_checkpoint).weights, "bare.pt")
    flags = ["-o", "out", "--checkpoint", "bare.pt", "--write", "disparity"]
    assert predict_command(["left/0000.png", "right/0000.png", *flags]) == 0
    assert "warning: bare.pt: weights without our header" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["left", "right", "--method", "sgbm", "--checkpoint", "x.pt"],
            "--method sgbm takes no network; leave",
        ),
        (["left", "right", "--depth-range", "4", "1"], "--depth-range 4 1: has to be two depths in metres, the nearer"),
        (["left", "right", "--write", "video", "--skip-existing"], "--write video --skip-existing: a video needs"),
        (["left", "right", "-o", "out", "--checkpoint", "x.pt"], "x.pt: cannot be read (No such file"),
        (["left", "nowhere", "-o", "out", "--checkpoint", "x.pt"], "nowhere: no such file or folder"),
        (
            ["left", "right", "-o", "out", "--checkpoint", "x.pt", "--write", "depth"],
            "needs --calibration, or --focal-px",
        ),
        (["left", "right", "-o", "out", "--run-id", "0123"], "--run-id 0123: neither a file, nor a run"),
        (["left", "right", "-o", "out", "--weights", "last"], "--weights last: chooses among the checkpoints of a run"),
        (["left", "right", "-o", "out", "--weights", "best"], "of a run; give --run-id"),
        (
            ["left", "right", "-o", "out", "--mlflow-tracking-uri", "sqlite:///x.db"],
            "--mlflow-tracking-uri sqlite:///x.db: is where a run is kept; give --run-id",
        ),
    ],
)
@pytest.mark.usefixtures("folders")
def test_user_error_gets_one_line_and_status_2(
    argv: list[str], message: str, tracking_uri: str, capfd: pytest.CaptureFixture[str]
) -> None:
    where = ["--mlflow-tracking-uri", tracking_uri] if "--run-id" in argv else []
    assert predict_command([*argv, *where]) == 2
    error = capfd.readouterr().err
    assert error.startswith("foundation-stereo-predict: ")
    assert message in error
    assert error.count("\n") == 1


def test_missing_left_argument_gets_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        predict_command(["-o", "out"])
    assert "the following arguments are required: LEFT" in capfd.readouterr().err


@pytest.mark.parametrize("shift_px", [3, 7, 12])
def test_swapped_views_are_detected_and_others_are_not(shift_px: int) -> None:
    left, right = shifted_pair(60, 120, shift_px)
    assert not seem_swapped(left, right)
    assert seem_swapped(right, left)


def test_distant_scene_is_not_taken_for_swapped() -> None:
    left, _ = shifted_pair(60, 120, 1)
    assert not seem_swapped(left, left)


def test_photometric_residual_is_least_at_the_true_disparity() -> None:
    left, right = shifted_pair(60, 120, 5)
    true_px = np.full((60, 120), 5, np.float32)
    darker = (right * 0.99).astype(np.uint8)
    assert photometric_residual(left, right, true_px) < 0.2 * photometric_residual(left, right, true_px * 0)
    assert photometric_residual(left, darker, true_px) < 1.5
    assert photometric_residual(left, right, true_px + 1000) == float("inf")


@pytest.mark.parametrize("group", ["fsd-sample", "fsd-more", "planes", "boards"])
def test_swapped_real_pairs_are_detected(shared_data: Path, group: str) -> None:
    for scene in sorted((shared_data / group).iterdir()):
        left, right = (read_rgb(next(scene.glob(f"dataset/data/{view}/rgb/*"))) for view in ("left", "right"))
        assert not seem_swapped(left, right), scene.name
        assert seem_swapped(right, left), scene.name


@pytest.fixture
def raw_pair() -> RigCalibration:
    """Write a raw pair of a wall, left.png and right.png of 160x120, and the rig's calibration; return the rig."""
    rig = converging_rig(height=120, width=160)
    wall = plane_at(noise_texture(600, 800), 1.6 / 800, (0, 0, 0.8), (0.1, 0.2, 0.0))
    for name, view in zip(("left.png", "right.png"), RenderedRig(rig).pair(wall), strict=True):
        write_rgb(Path(name), view)
    save_calibration(Path("rig.npz"), rig)
    return rig


def predict_with(predictor: Predictor, monkeypatch: pytest.MonkeyPatch, *flags: str) -> None:
    monkeypatch.setattr("foundation_stereo_depth.inference.predictor.open_network", lambda *_, **__: predictor)
    assert predict_command([*flags, "--checkpoint", "any.pt", "--map-format", "npy", "--overwrite"]) == 0


def test_raw_pair_is_rectified_as_in_the_live_view(
    raw_pair: RigCalibration,
    matching_predictor: Callable[..., Predictor],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    predictor, raw = matching_predictor(60, 80), ("left.png", "right.png")
    flags = ("-o", "out", "--write", "depth,disparity,cloud", "--calibration", "rig.npz")
    predict_with(predictor, monkeypatch, *raw, *flags)
    assert "warning" not in capfd.readouterr().err
    live = Rectifier(raw_pair, height=60, width=80)
    depth_m = predictor(*live(*map(read_rgb, map(Path, raw)))).depth_m(live.stereo_calibration)
    written_m = np.load("out/left_depth.npy")
    assert written_m.shape == (120, 160)
    np.testing.assert_allclose(written_m[::2, ::2], depth_m, rtol=1e-5)
    assert np.nanmedian(written_m) == pytest.approx(0.8, rel=0.1)
    rectified = Rectifier(raw_pair, height=120, width=160)(*map(read_rgb, map(Path, raw)))
    for name, view in zip(("left_r.png", "right_r.png"), rectified, strict=True):
        write_rgb(Path(name), view)
    predict_with(predictor, monkeypatch, "left_r.png", "right_r.png", *flags, "--no-rectify")
    assert "seem" not in capfd.readouterr().err
    near = np.abs(np.load("out/left_r_depth.npy") - written_m) < 0.05
    assert near.mean() > 0.9
    predict_with(predictor, monkeypatch, "left_r.png", "right_r.png", *flags)
    assert "seem to be rectified already: use --no-rectify" in capfd.readouterr().err
    predict_with(predictor, monkeypatch, *raw, *flags, "--no-rectify")
    assert "the images seem to be raw" in capfd.readouterr().err
    predict_with(predictor, monkeypatch, *raw, "-o", "out", "--write", "disparity")
    assert "give the rig's --calibration" in capfd.readouterr().err


def test_image_with_its_calibration_beside_needs_no_flag(
    raw_pair: RigCalibration, matching_predictor: Callable[..., Predictor], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("left.png", "right.png", "-o", "out", "--write", "depth")
    predict_with(matching_predictor(60, 80), monkeypatch, *flags, "--calibration", "rig.npz")
    expected_m = np.load("out/left_depth.npy")
    Path("rig.npz").rename("left.calibration.npz")
    predict_with(matching_predictor(60, 80), monkeypatch, *flags)
    np.testing.assert_array_equal(np.load("out/left_depth.npy"), expected_m)


@pytest.mark.usefixtures("folders")
def test_sgbm_predicts_without_a_network_to_a_default_folder(capfd: pytest.CaptureFixture[str]) -> None:
    left, right = shifted_pair(60, 120, 8)
    write_rgb(Path("l.png"), left)
    write_rgb(Path("r.png"), right)
    assert predict_command(["l.png", "r.png", "--method", "sgbm"]) == 0
    assert sorted(path.name for path in Path("predictions").iterdir()) == ["l_disparity.png", "l_figure.png"]
    assert disparity_of("predictions/l_disparity.png") == pytest.approx(8, abs=0.1)
    assert capfd.readouterr().out == "predictions: 1 pair written; predictions/l_figure.png can be opened\n"


def test_video_shows_each_pair_beside_its_depth(capfd: pytest.CaptureFixture[str]) -> None:
    for view in ("left", "right"):
        Path(view).mkdir()
    for number in range(3):
        for view, image in zip(("left", "right"), shifted_pair(61, 120, 4 + number, seed=number), strict=True):
            write_rgb(Path(f"{view}/{number}.png"), image)
    flags = ["--method", "sgbm", "--write", "video", "--focal-px", "100", "--baseline-m", "0.1", "--video-fps", "5"]
    assert predict_command(["left", "right", *flags]) == 0
    assert "3 pairs written; predictions/depth.mp4 can be opened" in capfd.readouterr().out
    assert [path.name for path in Path("predictions").iterdir()] == ["depth.mp4"]
    video = cv2.VideoCapture("predictions/depth.mp4")
    assert video.get(cv2.CAP_PROP_FPS) == 5
    frames = [video.read()[1] for _ in range(3)]
    assert [frame.shape for frame in frames] == [(60, 240, 3)] * 3
    assert not video.read()[0]
    video.release()
    assert predict_command(["left", "right", *flags]) == 2
    assert "predictions/depth.mp4: exists; --overwrite replaces it" in capfd.readouterr().err

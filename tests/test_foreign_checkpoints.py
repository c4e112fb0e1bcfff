"""Checkpoints of the predecessor and weights of other programs open wherever a network is named, or get their name."""

import argparse
import gzip
import io
import json
import logging
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import shifted_pair
from torch import nn
from torch.optim.swa_utils import AveragedModel

from foundation_stereo_depth.checkpoint import load_checkpoint, read_trained
from foundation_stereo_depth.cli import evaluate_command, export_command, predict_command, train_command
from foundation_stereo_depth.data.codecs import write_rgb
from foundation_stereo_depth.errors import CheckpointError
from foundation_stereo_depth.inference.predictor import Predictor
from foundation_stereo_depth.model import create_network
from foundation_stereo_depth.options import command_line
from foundation_stereo_depth.options.inference import BackendName
from foundation_stereo_depth.options.training import ModelOptions
from foundation_stereo_depth.stereo.confidence import RIG_SIGMA_PX
from foundation_stereo_depth.training.setup import resolve
from foundation_stereo_depth.training.train import train
from live_camera.cli import load_network
from live_camera.options import LiveViewOptions

GOLDEN = Path(__file__).parent / "golden/predecessor"
"""As the predecessor wrote them, of 1 channel at 48x32; by throw-away code."""
KINDS = [
    ModelOptions(model="unet", base_channels=4, depth=2),
    ModelOptions(model="guided", base_channels=4),
    ModelOptions(model="fused", base_channels=4),
    ModelOptions(model="predecessor", base_channels=1),
]


@pytest.fixture
def pair_files(tmp_path: Path) -> tuple[str, str]:
    """Return the files of a pair of 48x32."""
    for name, view in zip(("left.png", "right.png"), shifted_pair(32, 48, 3), strict=True):
        write_rgb(tmp_path / name, view)
    return "left.png", "right.png"


def test_a_checkpoint_of_the_predecessor_predicts_what_its_weights_do(caplog: pytest.LogCaptureFixture) -> None:
    trained = read_trained(GOLDEN / "two_heads.pt")
    assert (trained.facts.height, trained.facts.width, trained.facts.distribution) == (32, 48, "laplace")
    assert trained.facts.header["metrics"] == {"val_loss": 5.25, "val_epe": 4.5}
    assert caplog.messages == []
    left, right = shifted_pair(32, 48, 3)
    pair = torch.from_numpy(np.concatenate([left, right], axis=2)).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        expected = trained.network()(pair)
    match = Predictor.open(GOLDEN / "two_heads.pt", device="cpu")(left, right)
    np.testing.assert_allclose(match.disparity_px, expected.disparity_px[0, 0], rtol=1e-4)
    variance = expected.log_variance[0, 0].exp() + RIG_SIGMA_PX**2
    np.testing.assert_allclose(match.sigma_px, variance.sqrt(), rtol=1e-4)


def test_a_network_with_one_output_has_no_uncertainty_and_says_so(
    pair_files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*pair_files, "--checkpoint", str(GOLDEN / "one_head.pt"), "--device", "cpu", "--map-format", "npy"]
    assert predict_command([*flags, "-o", "out", "--write", "disparity,figure"]) == 0
    error = capsys.readouterr().err
    assert error.count("one_head.pt: an older network with one output") == 1
    assert "--disparity-scale corrects" in error
    assert predict_command([*flags, "-o", "scaled", "--write", "disparity", "--disparity-scale", "1.5"]) == 0
    once, scaled = (np.load(f"{folder}/left_disparity.npy") for folder in ("out", "scaled"))
    np.testing.assert_allclose(scaled, 1.5 * once, rtol=1e-5)
    for more in (["--write", "sigma,confidence"], ["--write", "confidence"]):
        assert predict_command([*flags, "-o", "none", *more]) == 2
        assert f"{more[1]}: this network predicts disparity alone" in capsys.readouterr().err
    rig = ["--focal-px", "50", "--baseline-m", "0.1", "--write", "cloud"]
    assert predict_command([*flags, "-o", "none", *rig, "--min-confidence", "0.5"]) == 2
    assert "--min-confidence 0.5: this network predicts disparity alone" in capsys.readouterr().err
    assert not Path("none").exists()


def test_both_are_evaluated(tiny_tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, has_sigma in (("two_heads.pt", True), ("one_head.pt", False)):
        flags = ["--checkpoint", str(GOLDEN / name), "--dataset-root", str(tiny_tree), "--device", "cpu"]
        assert evaluate_command([*flags, "--max-samples", "1", "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
        assert ("nll_nat" in result["overall"]["network"]) is has_sigma
        assert result["settings"]["distribution"] == ("laplace" if has_sigma else None)
    assert evaluate_command([*flags, "--max-samples", "1"]) == 0
    assert "network: predicts no uncertainty" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["two_heads.pt", "one_head.pt"])
def test_both_are_exported_with_their_scale(name: str) -> None:
    flags = ["--checkpoint", str(GOLDEN / name), "--disparity-scale", "2"]
    assert export_command([*flags, "-o", "x.safetensors"]) == 0
    check_twice_the_disparity(name, "x.safetensors", "torch")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two_heads.pt", "one_head.pt"])
def test_both_are_exported_to_onnx_of_fixed_size_with_their_scale(name: str) -> None:
    flags = ["--checkpoint", str(GOLDEN / name), "--disparity-scale", "2", "--no-dynamic-size"]
    assert export_command([*flags, "-o", "x.onnx"]) == 0
    for backend in ("onnxruntime", "openvino"):
        check_twice_the_disparity(name, "x.onnx", backend)


@pytest.mark.parametrize("size", ["--dynamic-size", "--no-dynamic-size"])
def test_a_scale_is_no_part_of_an_onnx_file_whose_disparity_is_refined(
    size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export_command(["--disparity-scale", "2", size, "-o", "x.onnx"]) == 2
    assert capsys.readouterr().err.count("--disparity-scale: what fused predicts is refined by the images") == 1
    assert not Path("x.onnx").exists()


def test_a_scale_of_the_installed_network_leaves_the_deviation_of_a_rig() -> None:
    pair = shifted_pair(64, 320, 6)
    once, scaled = (Predictor.open(device="cpu", height=64, disparity_scale=scale)(*pair) for scale in (1, 0.001))
    np.testing.assert_allclose(scaled.disparity_px, 0.001 * once.disparity_px, rtol=1e-4)
    assert scaled.sigma_px is not None
    assert scaled.sigma_px.min() > 0.2 * RIG_SIGMA_PX


def check_twice_the_disparity(name: str, path: str, backend: BackendName) -> None:
    pair = shifted_pair(32, 48, 3)
    expected = Predictor.open(GOLDEN / name, device="cpu")(*pair)
    precision = "auto" if backend == "onnxruntime" else "fp32"
    found = Predictor.open(path, device="cpu", backend=backend, precision=precision)(*pair)
    np.testing.assert_allclose(found.disparity_px, 2 * expected.disparity_px, rtol=1e-3)
    assert (found.sigma_px is None) is (found.confidence is None) is (name == "one_head.pt")
    if expected.sigma_px is not None:
        network = expected.sigma_px**2 - RIG_SIGMA_PX**2
        np.testing.assert_allclose(found.sigma_px**2, 4 * network + RIG_SIGMA_PX**2, rtol=1e-2)


@pytest.mark.parametrize("name", ["two_heads.pt", "one_head.pt"])
def test_both_run_in_the_live_view(name: str) -> None:
    flags = {"checkpoint": GOLDEN / name, "disparity_scale": 3.0, "device": "cpu"}
    matcher = load_network(GOLDEN / name, command_line.build_options(LiveViewOptions, flags))
    pair = shifted_pair(32, 48, 3)
    once = Predictor.open(GOLDEN / name, device="cpu")(*pair)
    np.testing.assert_allclose(matcher.match(*pair).disparity_px, 3 * once.disparity_px, rtol=1e-5)
    assert matcher.description.endswith(", no uncertainty") is (name == "one_head.pt")


@pytest.mark.parametrize("name", ["two_heads.pt", "one_head.pt"])
def test_both_are_trained_further(name: str, tiny) -> None:
    flags = {key: value for key, value in tiny(epochs=1).items() if key not in ("base_channels", "depth")}
    options, _ = resolve(flags | {"initial_weights": GOLDEN / name, "learning_rate": 0.0})
    assert options.model == ModelOptions(model="predecessor", base_channels=1)
    train(options)
    before, after = torch.load(GOLDEN / name)["model_state_dict"], load_checkpoint(Path("out/last.pt"))
    assert torch.equal(after.training["weights"]["dec1.block.3.weight"], before["dec1.block.3.weight"])
    assert read_trained(Path("out/last.pt")).facts.predicts_uncertainty


def test_its_args_may_be_a_namespace_with_paths(tmp_path: Path) -> None:
    content = torch.load(GOLDEN / "two_heads.pt", weights_only=True)
    torch.save(content | {"args": argparse.Namespace(height=64, width=96, root=tmp_path)}, tmp_path / "x.pt")
    facts = read_trained(tmp_path / "x.pt").facts
    assert (facts.height, facts.width) == (64, 96)


def test_it_is_not_resumed(capsys: pytest.CaptureFixture[str]) -> None:
    assert train_command(["--resume", str(GOLDEN / "two_heads.pt")]) == 2
    assert "--initial-weights starts a new run from them" in capsys.readouterr().err


def wrapped(network: nn.Module, how: str) -> dict:
    """Return what a training script saves of a network."""
    weights = network.state_dict()
    match how:
        case "averaged":
            return AveragedModel(network).state_dict()
        case "inner":
            return {".".join([*key.split(".")[:1], "_orig_mod", *key.split(".")[1:]]): v for key, v in weights.items()}
        case "lightning":
            return {"state_dict": {f"model.{key}": value for key, value in weights.items()}, "epoch": 3}
        case _:
            return {how + key: value for key, value in weights.items()}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.model)
@pytest.mark.parametrize("how", ["", "module.", "_orig_mod.", "module._orig_mod.", "averaged", "inner", "lightning"])
def test_weights_are_read_whatever_wrapper_named_them(tmp_path: Path, kind: ModelOptions, how: str) -> None:
    network = create_network(kind)
    torch.save(wrapped(network, how), tmp_path / "x.pt")
    trained = read_trained(tmp_path / "x.pt")
    assert (trained.facts.model.model, trained.facts.model.base_channels) == (kind.model, kind.base_channels)
    assert trained.warning is not None
    assert "--disparity-scale" in trained.warning
    found = trained.network().state_dict()
    assert all(torch.equal(found[name], value) for name, value in network.state_dict().items())


def test_weights_that_stand_twice_are_refused(tmp_path: Path) -> None:
    weights = create_network(KINDS[0]).state_dict()
    torch.save(weights | {f"module.{key}": value for key, value in weights.items()}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"x\.pt: its weights stand in it twice"):
        read_trained(tmp_path / "x.pt")


def test_a_suffix_of_the_other_format_does_not_matter(tiny_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_checkpoint, tmp_path / "a.safetensors")
    shutil.copy(tiny_checkpoint.with_suffix(".safetensors"), tmp_path / "b.pt")
    assert read_trained(tmp_path / "a.safetensors").facts == read_trained(tmp_path / "b.pt").facts


class Doubled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def write_torchscript(path: Path) -> None:
    with warnings.catch_warnings(action="ignore"):  # it is deprecated, and files of it stay
        torch.jit.trace(Doubled(), torch.ones(1)).save(path)


def npz_bytes() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.ones(2))
    return file.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
WRITERS = {
    "torchscript.pt": (write_torchscript, "is a TorchScript file"),
    "pointer.pt": (lambda path: path.write_bytes(LFS), "is a Git LFS pointer.*git lfs pull"),
    "pointer.safetensors": (lambda path: path.write_bytes(LFS), "is a Git LFS pointer"),
    "pointer.onnx": (lambda path: path.write_bytes(LFS), "is a Git LFS pointer"),
    "page.pt": (lambda path: path.write_bytes(b"\xef\xbb\xbf\n<!DOCTYPE html><html>404</html>"), "is a web page"),
    "page.safetensors": (lambda path: path.write_bytes(b"<html><body>Log in</body></html>"), "is a web page"),
    "denied.pt": (lambda path: path.write_bytes(b'<?xml version="1.0"?><Error/>'), "is a web page"),
    "error.pt": (lambda path: path.write_bytes(b'{"error":"Not found"}'), "is a server's error message"),
    "zipped.pt": (lambda path: path.write_bytes(gzip.compress(b"weights")), "is compressed by gzip"),
    "arrays.pt": (lambda path: path.write_bytes(npz_bytes()), "is a ZIP archive, but not one of torch.save"),
    "model.pt": (lambda path: torch.save(Doubled(), path), r"could run code\); .*state_dict"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_of_another_kind_is_named(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    write, message = WRITERS[name]
    write(tmp_path / name)
    (tmp_path / "a.png").write_bytes(b"")
    logging.disable(logging.WARNING)
    try:
        assert export_command(["--checkpoint", name, "-o", "new.safetensors"]) == 2
    finally:
        logging.disable(logging.NOTSET)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert name in lines[0]
    if name != "pointer.onnx":
        with pytest.raises(CheckpointError, match=message):
            read_trained(tmp_path / name)


def test_weights_alone_are_not_resumed_and_the_way_on_is_named(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    safetensors_file = tiny_checkpoint.with_suffix(".safetensors")
    assert train_command(["--resume", str(safetensors_file)]) == 2
    error = capsys.readouterr().err
    assert "holds weights alone; a run resumes from its last.pt, and --initial-weights starts a new run" in error
    bare = tiny_checkpoint.with_name("bare.pt")
    torch.save(safetensors.torch.load_file(safetensors_file), bare)
    assert train_command(["--resume", str(bare)]) == 2
    assert "--initial-weights starts a new run from them" in capsys.readouterr().err

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from foundation_stereo_depth.checkpoint import (
    SAFETENSORS_KEY,
    inference_header,
    load_checkpoint,
    read_trained,
    save_safetensors,
)
from foundation_stereo_depth.errors import CheckpointError, UserError
from foundation_stereo_depth.inference.backends import open_backend
from foundation_stereo_depth.options.inference import InferenceOptions


def header_of(path: Path) -> dict:
    return inference_header(load_checkpoint(path))


def test_facts_are_the_same_from_both_kinds_of_file(tiny_checkpoint: Path) -> None:
    first, second = (
        read_trained(path).facts for path in (tiny_checkpoint, tiny_checkpoint.with_suffix(".safetensors"))
    )
    assert first == second
    assert (first.height, first.width, first.distribution, first.sigma_scale) == (48, 64, "laplace", 1.5)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_without_a_header_are_read_with_a_warning(
    tiny_checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str
) -> None:
    weights = load_checkpoint(tiny_checkpoint).weights
    path = tmp_path / f"bare{suffix}"
    if suffix == ".pt":
        torch.save(weights, path)
    else:
        safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
    trained = read_trained(path)
    assert caplog.messages == [trained.warning]
    assert "scale of their disparity is unknown, so absolute depth may be biased" in caplog.text
    assert (trained.facts.model.base_channels, trained.facts.model.depth) == (8, 2)
    trained.network()
    assert read_trained(path, log_warning=False).warning == trained.warning
    assert len(caplog.messages) == 1


def test_weights_of_another_network_without_a_header_are_refused(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.ones(2)}, tmp_path / "resnet.pt")
    with pytest.raises(
        CheckpointError, match=r"resnet.pt: is not a checkpoint .* nor the weights of one of its networks"
    ):
        read_trained(tmp_path / "resnet.pt")


def test_weights_that_do_not_fit_are_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    weights = load_checkpoint(tiny_checkpoint).weights
    weights["head.weight"] = weights["head.weight"][:, :2]
    save_safetensors(tmp_path / "x.safetensors", weights, header_of(tiny_checkpoint))
    with pytest.raises(CheckpointError, match=r"do not fit their network: .*head\.weight"):
        read_trained(tmp_path / "x.safetensors").network()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "another"}, "is not a checkpoint of foundation-stereo-depth"),
        ({"format_version": 0}, "has checkpoint format 0, this program reads 1"),
        ({"model": {"model": "unet", "wheels": 2}}, "its header is not as this version writes it"),
        ({"model": {"model": "unet", "depth": 99}}, "--depth is 99"),
        ({"height": None}, "its header is not as this version writes it"),
        ({"uncertainty": {"distribution": "cauchy"}}, "distribution cauchy"),
    ],
)
def test_foreign_and_other_headers_are_refused(
    tiny_checkpoint: Path, tmp_path: Path, change: dict, message: str
) -> None:
    save_safetensors(tmp_path / "x.safetensors", {"a": torch.ones(1)}, header_of(tiny_checkpoint) | change)
    with pytest.raises(CheckpointError, match=message):
        read_trained(tmp_path / "x.safetensors")


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_safetensors_is_refused(tiny_checkpoint: Path, tmp_path: Path, kept: float) -> None:
    complete = tiny_checkpoint.with_suffix(".safetensors").read_bytes()
    path = tmp_path / "truncated.safetensors"
    path.write_bytes(complete[: int(len(complete) * kept)])
    with pytest.raises(CheckpointError, match=r"truncated\.safetensors: is not a complete safetensors file"):
        read_trained(path)


def test_a_header_that_is_not_json_is_refused(tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors", {SAFETENSORS_KEY: "{"})
    with pytest.raises(CheckpointError, match="is not a complete safetensors file"):
        read_trained(tmp_path / "x.safetensors")


@pytest.mark.parametrize("name", ["none.pt", "none.safetensors", "none.onnx"])
def test_a_missing_file_is_named(name: str) -> None:
    with pytest.raises(CheckpointError, match=rf"{name}: cannot be read \(No such file"):
        open_backend(Path(name), InferenceOptions(device="cpu"))


def test_weights_run_on_torch_alone(tiny_checkpoint: Path) -> None:
    with pytest.raises(UserError, match=r"--backend openvino: runs \.onnx files, not .*foundation-stereo-export"):
        open_backend(tiny_checkpoint, InferenceOptions(backend="openvino", device="cpu"))


def test_the_header_is_plain_json(tiny_checkpoint: Path) -> None:
    header = header_of(tiny_checkpoint)
    assert json.loads(json.dumps(header)) == header

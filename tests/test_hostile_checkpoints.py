"""Damaged and hostile checkpoints: one `CheckpointError`, soon, and without taking much memory."""

import io
import os
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import safetensors.torch
import torch

from foundation_stereo_depth.checkpoint import (
    SAFETENSORS_KEY,
    check_size,
    inference_header,
    load_checkpoint,
    load_plain,
    read_trained,
    save_safetensors,
)
from foundation_stereo_depth.errors import CheckpointError
from foundation_stereo_depth.model import create_network, fewest_parameters
from foundation_stereo_depth.options.training import ModelOptions


def saved(content: object, **options: bool) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


def deflated(encoded: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(encoded)) as source, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for member in source.infolist():
            packed.writestr(member.filename, source.read(member))
    return file.getvalue()


WEIGHTS = {"stem.convolution.weight": torch.zeros(4, 6, 3, 3), "down.0.x": torch.zeros(4)}
OLD = saved(WEIGHTS, _use_new_zipfile_serialization=False)
CONTENT = {
    "old format, truncated": OLD[:28],
    "old format, truncated later": OLD[:-20],
    "a tensor of terabytes": saved({"stem.convolution.weight": torch.zeros(1).expand(2**20, 2**20)}),
    "one storage in many tensors": saved({f"down.{i}": torch.zeros(2**16)[:] for i in range(3)} | {"x": 1}),
    "deflated": deflated(saved({"x": torch.zeros(10**6)})),
    "sparse tensor": saved({"x": torch.eye(3).to_sparse()}),
    "complex tensor": saved({"x": torch.zeros(3, dtype=torch.complex64)}),
    "tensor without memory": saved({"x": torch.zeros(3, device="meta")}),
    "names that are no text": saved({1: torch.zeros(3), None: torch.zeros(3)}),
    "deep lists": b"\x80\x02" + b"]" * 3_000 + b"a" * 2_999 + b".",
    "an object without an end": b"\x80\x02" + b"(" * 10**4,
    "a number of a million digits": b"\x80\x02\x8b" + struct.pack("<I", 10**6) + b"\x7f" * 10**6 + b".",
    "gigabytes of nothing": b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\0\0\0\0\x40\x85R.",
    "no object": b"\x80\x02.",
    "zeros": bytes(10**5),
}


@pytest.mark.parametrize("name", CONTENT)
def test_hostile_content_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(CONTENT[name])
    for read in (read_trained, load_checkpoint):
        with pytest.raises(CheckpointError, match=r"x\.pt: "):
            read(path)


def test_every_flipped_bit_of_the_old_format_ends_in_one_error_or_in_weights(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    for at in range(0, len(OLD), 3):
        flipped = bytearray(OLD)
        flipped[at] ^= 1 << at % 8
        path.write_bytes(flipped)
        try:
            content = load_plain(path)
        except CheckpointError:
            continue
        assert isinstance(content, OrderedDict | dict | int | str | list | tuple), at


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".onnx"])
@pytest.mark.parametrize("kind", ["pipe", "device", "sparse"])
def test_what_is_no_regular_file_of_that_size_is_not_read(tmp_path: Path, suffix: str, kind: str) -> None:
    from foundation_stereo_depth.inference.backends import open_backend
    from foundation_stereo_depth.options.inference import InferenceOptions

    path = tmp_path / f"x{suffix}"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(2**40)
    with pytest.raises(CheckpointError, match=r"is not a regular file|has more than"):
        open_backend(path, InferenceOptions(device="cpu"))


@pytest.mark.parametrize(
    "change",
    [
        {"height": float("inf")},
        {"height": 10**6, "width": 10**6},
        {"height": 48.5},
        {"width": True},
        {"width": -64},
        {"uncertainty": {"distribution": "laplace", "scale": 1e300}},
        {"uncertainty": {"distribution": "laplace", "scale": float("nan")}},
        {"uncertainty": {"distribution": "laplace", "scale": 0}},
        {"uncertainty": {"distribution": "laplace", "scale": -1}},
        {"uncertainty": ["laplace"]},
        {"model": 7},
        {"model": {"base_channels": "8" * 5000}},
    ],
)
def test_headers_with_impossible_values_are_refused(tiny_checkpoint: Path, tmp_path: Path, change: dict) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    save_safetensors(tmp_path / "x.safetensors", checkpoint.weights, inference_header(checkpoint) | change)
    with pytest.raises(CheckpointError, match=r"x\.safetensors: (its header is not|the weights do not fit)"):
        read_trained(tmp_path / "x.safetensors")


@pytest.mark.parametrize("text", ["[" * 200_000, '{"kind": "' + "x" * 10**6, "NaN", "[]", '""', "1" * 5000])
def test_headers_of_odd_json_are_refused(tmp_path: Path, text: str) -> None:
    safetensors.torch.save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors", {SAFETENSORS_KEY: text})
    with pytest.raises(CheckpointError, match=r"x\.safetensors: is not a"):
        read_trained(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 18) + b'{"__metadata__": 1}',
        struct.pack("<Q", 10**6) + b"[" * 10**6,
        struct.pack("<Q", 67) + b'{"x": {"dtype": "F32", "shape": [%d], "data_offsets": [0, %d]}}' % (2**40, 2**42),
    ],
)
def test_damaged_safetensors_are_refused(tmp_path: Path, encoded: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(encoded)
    with pytest.raises(CheckpointError, match=r"x\.safetensors: is not a complete safetensors file"):
        read_trained(tmp_path / "x.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_that_are_not_finite_are_refused(
    tiny_checkpoint: Path, tmp_path: Path, suffix: str, value: float
) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    checkpoint.weights["head.weight"].view(-1)[-1] = value
    path = tmp_path / f"x{suffix}"
    if suffix == ".pt":
        torch.save(checkpoint.weights, path)
    else:
        save_safetensors(path, checkpoint.weights, inference_header(checkpoint))
    with pytest.raises(CheckpointError, match=rf"x{suffix}: its weights are not finite .*head\.weight"):
        read_trained(path)


def test_a_network_too_large_for_its_weights_is_not_made() -> None:
    with pytest.raises(CheckpointError, match="the weights do not fit their network: 1, where it has more than"):
        check_size(ModelOptions(model="unet", base_channels=512, depth=7), {"a": torch.zeros(1)})


@pytest.mark.parametrize(("model", "depth"), [("unet", 1), ("unet", 5), ("guided", 5), ("fused", 5)])
@pytest.mark.parametrize("base_channels", [4, 16])
def test_the_fewest_parameters_are_fewer_than_a_network_has(model: str, depth: int, base_channels: int) -> None:
    options = ModelOptions(model=model, depth=depth, base_channels=base_channels)
    count = sum(tensor.numel() for tensor in create_network(options).state_dict().values())
    assert fewest_parameters(options) < count < 30 * fewest_parameters(options)

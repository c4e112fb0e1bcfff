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

from foundation_stereo_depth import pickles
from foundation_stereo_depth.checkpoint import (
    SAFETENSORS_KEY,
    check_size,
    check_state_size,
    inference_header,
    load_checkpoint,
    load_plain,
    read_trained,
    save_safetensors,
)
from foundation_stereo_depth.errors import CheckpointError, UserError
from foundation_stereo_depth.model import create_network
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
    with pytest.raises(CheckpointError, match=r"the weights do not fit their network: a is \[1\], where .* absent"):
        check_size(ModelOptions(model="unet", base_channels=512, depth=7), {"a": torch.zeros(1)})


@pytest.mark.parametrize("model", ["unet", "guided", "fused", "predecessor"])
def test_the_weights_of_a_network_fit_it(model: str) -> None:
    options = ModelOptions(model=model, depth=2, base_channels=4)
    weights = create_network(options).state_dict()
    check_size(options, weights)
    name, tensor = next(iter(weights.items()))
    with pytest.raises(CheckpointError, match="do not fit their network"):
        check_size(options, weights | {name: tensor.flatten()})


def test_a_run_whose_training_state_could_not_be_read_back_is_not_begun() -> None:
    check_state_size(ModelOptions(model="unet", base_channels=128))
    with pytest.raises(UserError, match=r"--base-channels 256: has 200,.* lower --base-channels"):
        check_state_size(ModelOptions(model="unet", base_channels=256))


STEPS = 10_000
"""The limit in these tests; that of the program takes seconds."""
STRING = b"X" + struct.pack("<I", 1600) + b"x" * 1600 + b"q\0"
PICKLES = {
    "opcodes of one byte": b"N" * 2 * STEPS,
    "empty dictionaries": b"}" * 2 * STEPS,
    "marks": b"(" * 2 * STEPS,
    "numbers in a list": b"](" + b"K\1" * 2 * STEPS + b"e",
    "calls": b"ccollections\nOrderedDict\nq\0" + b"h\0)R0" * STEPS,
    "a long list copied by calls": b"](" + b"N" * 1000 + b"eq\0" + b"ccollections\nCounter\nh\0\x85R0" * 200,
    "a long string joined by calls": STRING + b"cpathlib\nPosixPath\nh\0\x85R0" * STEPS,
    "a long state": b"}(" + b"K\1N" * 1000 + b"uq\0" + b"ccollections\nOrderedDict\n)R" + b"h\0b" * 200,
    "bytes by number": b"cbuiltins\nbytearray\n\x8a\5\0\0\0\0\1\x85R",
    "encoded strings": b"c_codecs\nencode\n" + STRING + b"\x85R",
    "a tensor unfolded": b"ctorch._utils\n_rebuild_device_tensor_from_cpu_tensor\n)R",
}


@pytest.mark.parametrize("name", PICKLES)
@pytest.mark.parametrize("in_archive", [True, False])
def test_pickles_that_would_take_long_or_much_memory_are_refused(
    tmp_path: Path, name: str, in_archive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pickles, "MOST_STEPS", STEPS)
    pickled = b"\x80\2" + PICKLES[name] + b"."
    path = tmp_path / "x.pt"
    path.write_bytes(pickled)
    if in_archive:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x/data.pkl", pickled)
            archive.writestr("x/version", "3")
    with pytest.raises(CheckpointError, match=r"x\.pt: (takes more than 10,000 steps|would call \S+, which)"):
        load_plain(path)


def test_archives_with_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        for name in ("x/data.pkl", "X/DATA.PKL"):
            archive.writestr(name, b"\x80\2N.")
    with pytest.raises(CheckpointError, match="has two members of one name"):
        load_plain(tmp_path / "x.pt")


@pytest.mark.parametrize("dtype", ["F8_E4M3", "BOOL", "C64"])
def test_weights_of_types_that_no_network_has_are_refused(tmp_path: Path, dtype: str) -> None:
    network = create_network(ModelOptions(model="unet", base_channels=1, depth=1))
    weights = network.state_dict()
    kinds = {"F8_E4M3": torch.float8_e4m3fn, "BOOL": torch.bool, "C64": torch.complex64}
    safetensors.torch.save_file({k: v.to(kinds[dtype]) for k, v in weights.items()}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="has numbers of type"):
        read_trained(tmp_path / "x.safetensors")

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch

from foundation_stereo_depth.checkpoint import SAFETENSORS_KEY, Checkpoint, Progress, load_checkpoint, save_checkpoint
from foundation_stereo_depth.errors import CheckpointError
from foundation_stereo_depth.options import command_line
from foundation_stereo_depth.options.training import TrainOptions


def checkpoint_of() -> Checkpoint:
    return Checkpoint(
        model={"model": "unet", "base_channels": 8, "depth": 2},
        weights={"a": torch.rand(3, 2), "b": torch.rand(4, 2, 3, 3).to(memory_format=torch.channels_last)},
        uncertainty={"distribution": "laplace", "scale": 1.0},
        metrics={"validation/epe_px": 1.5},
        run_id="abc",
        progress=Progress(epoch=2, step_in_epoch=1, step=9, samples=72),
        options=command_line.options_to_dict(TrainOptions()),
        training={"history": [{"x": 1.0}], "random_state": torch.get_rng_state()},
    )


def test_a_saved_checkpoint_is_loaded_equal(tmp_path: Path) -> None:
    saved = checkpoint_of()
    save_checkpoint(tmp_path / "new/last.pt", saved)
    loaded = load_checkpoint(tmp_path / "new/last.pt")
    assert loaded.progress == saved.progress
    assert (loaded.model, loaded.metrics, loaded.run_id, loaded.options) == (
        saved.model, saved.metrics, saved.run_id, saved.options,
    )  # fmt: skip
    assert all(torch.equal(loaded.weights[name], tensor) for name, tensor in saved.weights.items())
    assert torch.equal(loaded.training["random_state"], saved.training["random_state"])
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["last.pt", "last.safetensors"]


def test_the_safetensors_header_describes_the_network(tmp_path: Path) -> None:
    saved = checkpoint_of()
    save_checkpoint(tmp_path / "best.pt", saved)
    with safetensors.safe_open(tmp_path / "best.safetensors", "pt") as file:
        header = json.loads(file.metadata()[SAFETENSORS_KEY])
        assert torch.equal(file.get_tensor("b"), saved.weights["b"])
        assert set(file.keys()) == {"a", "b"}
    assert header["model"] == saved.model
    assert header["uncertainty"] == {"distribution": "laplace", "scale": 1.0}
    assert (header["height"], header["width"], header["format_version"]) == (240, 320, 1)


class _Harmful:
    def __reduce__(self):
        return (Path.touch, (Path("harm_was_done"),))


def test_a_pickle_that_runs_code_is_not_opened(tmp_path: Path) -> None:
    for name, write in (("plain.pt", pickle.dumps), ("torch.pt", None)):
        path = tmp_path / name
        if write is None:
            torch.save({"kind": _Harmful()}, path)
        else:
            path.write_bytes(write(_Harmful()))
        with pytest.raises(CheckpointError, match=name):
            load_checkpoint(path)
    assert not Path("harm_was_done").exists()


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, checkpoint_of())
    complete = path.read_bytes()
    path.write_bytes(complete[: int(len(complete) * kept)])
    with pytest.raises(CheckpointError, match=r"last\.pt: is not a"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weights": torch.ones(2)}, "is not a checkpoint of foundation-stereo-depth"),
        (torch.ones(3), "is not a checkpoint of foundation-stereo-depth"),
        ({"kind": "foundation-stereo-depth checkpoint", "format_version": 99}, "has checkpoint format 99"),
        ({"kind": "foundation-stereo-depth checkpoint", "format_version": 1, "weights": {}}, "lacks model, "),
    ],
)
def test_foreign_and_other_versions_are_refused(tmp_path: Path, content, message: str) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "x.pt")


def test_flipped_bits_are_detected(tmp_path: Path) -> None:
    """PyTorch ignores wrong checksums and would return other weights."""
    save_checkpoint(tmp_path / "last.pt", checkpoint_of())
    complete = (tmp_path / "last.pt").read_bytes()
    random = np.random.default_rng(0)
    taken = 0
    for at in random.integers(0, len(complete), 200):
        flipped = bytearray(complete)
        flipped[at] ^= 1 << random.integers(0, 8)
        (tmp_path / "flipped.pt").write_bytes(flipped)
        try:
            found = load_checkpoint(tmp_path / "flipped.pt")
        except CheckpointError:
            continue
        taken += 1  # in dates and other fields that do not affect the content
        for name, tensor in load_checkpoint(tmp_path / "last.pt").weights.items():
            assert torch.equal(found.weights[name], tensor), at
    assert taken < 100


@pytest.mark.parametrize("text", ["error code: 404", "a page", "."])
def test_a_text_file_in_place_of_a_checkpoint_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "last.pt").write_text(text)
    with pytest.raises(CheckpointError, match=r"last\.pt: is not a"):
        load_checkpoint(tmp_path / "last.pt")


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.pt: cannot be read \(No such file"):
        load_checkpoint(tmp_path / "none.pt")

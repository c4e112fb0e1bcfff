"""Checkpoints: what a run needs to go on, and what anyone needs to use its weights. Nothing in one can run code.

`last.pt` and `best.pt` hold everything, as tensors and plain values that `torch.load(weights_only=True)` accepts;
`last.safetensors` and `best.safetensors` beside them hold the weights, with the rest that inference needs as JSON in
their header, for programs in other languages.
"""

import dataclasses
import io
import json
import pickle
import warnings
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

import safetensors.torch
import torch
from torch import Tensor

from foundation_stereo_depth.arguments import is_a
from foundation_stereo_depth.errors import CheckpointError
from foundation_stereo_depth.files import write_whole

CHECKPOINT_FORMAT = 1
CHECKPOINT_KIND = "foundation-stereo-depth checkpoint"
SAFETENSORS_KEY = "foundation_stereo_depth"
"""The key in the safetensors header under which the JSON stands."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far training has come.

    Attributes:
        epoch: the epoch in progress, from 0; equal to the number of epochs once all are done.
        step_in_epoch: steps of that epoch that are done.
        step: steps done in all.
        samples: training samples seen in all.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    samples: int = 0


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One moment of a run.

    Attributes:
        model: the options that make the network (`ModelOptions`, plain).
        weights: what to evaluate and ship: the moving average where training keeps one.
        uncertainty: the error's distribution, and the scale that validation data put on its standard deviation.
        metrics: of the newest finished epoch.
        run_id: the MLflow run.
        progress: where the run stands.
        options: all knobs of the run (`TrainOptions`, plain).
        training: everything else that going on needs: raw weights, optimizer, schedule, random state, history.
    """

    model: dict[str, Any]
    weights: dict[str, Tensor]
    uncertainty: dict[str, Any]
    metrics: dict[str, float]
    run_id: str
    progress: Progress
    options: dict[str, dict[str, Any]]
    training: dict[str, Any] = field(default_factory=dict[str, Any])


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Writes `path` and the safetensors beside it, each complete or not at all, even across a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {name: getattr(checkpoint, name) for name in _FIELDS} | {
        "kind": CHECKPOINT_KIND,
        "format_version": CHECKPOINT_FORMAT,
        "progress": dataclasses.asdict(checkpoint.progress),
    }
    save_safetensors(path.with_suffix(".safetensors"), checkpoint.weights, inference_header(checkpoint))
    # By way of memory: where a disk is full, torch.save hides what the system says of it.
    encoded = io.BytesIO()
    torch.save(content, encoded)
    # The file that a run goes on from comes last: where it is new, everything beside it is.
    write_whole(path, lambda file: file.write(encoded.getbuffer()), durable=True)


def inference_header(checkpoint: Checkpoint) -> dict[str, Any]:
    """What inference needs beside the weights, fit for JSON: it stands in the header of every exported file.

    How the pairs were augmented is there for those who teach the network more.
    """
    return {
        "kind": CHECKPOINT_KIND,
        "format_version": CHECKPOINT_FORMAT,
        "model": checkpoint.model,
        "uncertainty": checkpoint.uncertainty,
        "metrics": checkpoint.metrics,
        "run_id": checkpoint.run_id,
        "progress": dataclasses.asdict(checkpoint.progress),
        **{name: checkpoint.options.get("data", {}).get(name) for name in ("height", "width")},
        "augment": checkpoint.options.get("augment", {}),
    }


def save_safetensors(path: Path, weights: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Writes weights with their header, complete or not at all."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    encoded = safetensors.torch.save(plain, metadata={SAFETENSORS_KEY: json.dumps(header)})
    write_whole(path, lambda file: file.write(encoded), durable=True)


def load_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a `.pt` file, all tensors on the CPU.

    Raises:
        CheckpointError: it is missing, damaged, of another program or version, or holds anything but data.
    """
    return checkpoint_from_plain(load_plain(path), path)


def checkpoint_from_plain(content: Any, path: Path) -> Checkpoint:
    """The checkpoint that a `.pt` file's content makes; `path` is for messages.

    Raises:
        CheckpointError: it is of another program or version, or incomplete.
    """
    check_header(content, path)
    missing = [name for name in _FIELDS if name not in content]
    if missing:
        raise CheckpointError(f"{path}: lacks {', '.join(missing)}")
    fields: dict[str, Any] = {name: content[name] for name in _FIELDS}
    kinds = get_type_hints(Checkpoint) | {"progress": dict[str, int]}
    for name, value in fields.items():
        if not is_a(value, kinds[name]):
            raise CheckpointError(f"{path}: its {name} is not as this version writes it")
    try:
        fields["progress"] = Progress(**fields["progress"])
    except TypeError as error:
        raise CheckpointError(f"{path}: its progress is not as this version writes it ({error})") from error
    return Checkpoint(**fields)


def load_plain(path: Path) -> Any:
    """The tensors and plain values of a file that `torch.save` wrote, on the CPU, whichever program it was.

    Raises:
        CheckpointError: it is missing, damaged, or holds anything but data.
    """
    try:
        # Read whole first: the file may be replaced by its writer at any moment, what is in memory may not.
        encoded = path.read_bytes()
        damaged = _damaged_part(encoded)
        with warnings.catch_warnings(action="ignore"):  # of foreign pickles, which are refused below
            content: Any = None if damaged else torch.load(io.BytesIO(encoded), map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: is not a checkpoint of plain data, so it is not opened (it could run code)"
        ) from error
    except (RuntimeError, EOFError, LookupError, AttributeError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path}: is not a whole checkpoint; is the file truncated?") from error
    if damaged:
        raise CheckpointError(f"{path}: is damaged; its {damaged} has another checksum")
    return content


def _damaged_part(encoded: bytes) -> str | None:
    """The first part whose checksum, which PyTorch does not verify, is wrong; None where there is none."""
    if not zipfile.is_zipfile(io.BytesIO(encoded)):
        return None
    with zipfile.ZipFile(io.BytesIO(encoded)) as archive:
        return archive.testzip()


def check_header(header: Any, path: Path) -> None:
    """Lets pass what is marked as ours and of the version that is read here.

    Raises:
        CheckpointError: it is of another program or version.
    """
    if not isinstance(header, dict) or header.get("kind") != CHECKPOINT_KIND:
        raise CheckpointError(f"{path}: is not a checkpoint of foundation-stereo-depth")
    version = header.get("format_version")
    if not isinstance(version, int) or version != CHECKPOINT_FORMAT:
        raise CheckpointError(
            f"{path}: has checkpoint format {version}, this program reads {CHECKPOINT_FORMAT}; use the version that "
            "wrote it"
        )


_FIELDS = [item.name for item in dataclasses.fields(Checkpoint)]

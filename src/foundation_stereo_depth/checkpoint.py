"""Checkpoints: what resuming a run needs, and what using its weights needs. Nothing in one can run code.

`last.pt` and `best.pt` hold everything, as tensors and plain values that `torch.load(weights_only=True)` accepts;
`last.safetensors` and `best.safetensors` beside them hold the weights, with the rest that inference needs as JSON in
their header, for programs in other languages.
"""

import argparse
import dataclasses
import io
import json
import logging
import math
import os
import pathlib
import pickle
import warnings
import zipfile
from dataclasses import dataclass, field, replace
from io import BufferedIOBase
from pathlib import Path
from typing import IO, Any, cast, get_type_hints

import safetensors.torch
import torch
from torch import Tensor, nn

from foundation_stereo_depth.errors import CheckpointError, UserError
from foundation_stereo_depth.files import (
    ArchiveError,
    describe_replacement,
    open_regular_file,
    open_zip,
    read_regular_file,
    write_atomically,
)
from foundation_stereo_depth.model import create_network
from foundation_stereo_depth.model.predecessor import predicts_uncertainty, size_in_args
from foundation_stereo_depth.model.recognition import find_weights, recognise_network
from foundation_stereo_depth.network_facts import (
    CHECKPOINT_FORMAT,
    CHECKPOINT_KIND,
    NO_DISTRIBUTION,
    SAFETENSORS_KEY,
    NetworkFacts,
    check_header,
)
from foundation_stereo_depth.options.command_line import matches_type
from foundation_stereo_depth.options.training import DataOptions, ModelOptions
from foundation_stereo_depth.pickles import check_pickle

logger = logging.getLogger(__name__)

_PLAIN_CLASSES = (
    argparse.Namespace,
    *((pathlib.PosixPath, f"{module}.PosixPath") for module in ("pathlib", "pathlib._local")),
)
"""Classes in files of other programs that hold values and run no code."""
LARGEST_FILE_BYTES = 10**9
"""A training state of 62 million parameters; reading one takes its size in memory."""
_LARGEST_WEIGHTS_BYTES = LARGEST_FILE_BYTES // 2
"""Of a network alone, of which there is a second copy while it is loaded."""
STATE_BYTES_PER_PARAMETER = 16
"""In a training state: the parameter, its moving average and two moments of AdamW, 32 bits each."""
LARGEST_HEADER_BYTES = 10**7
"""The JSON in front of the weights; ours has some thousand."""
_PICKLE_MEMBER = "data.pkl"
"""Of the archive that torch.save writes."""
_LARGEST_CODE_BYTES = 10**8
_PICKLES_OF_OLD_FORMAT = 5
"""In front of the tensors: two numbers, facts about the machine, the content, and the names of the tensors."""
_MOST_VIEWS = 4
"""How often one tensor may be in a checkpoint: the weights are there for training, and to be shipped."""
_NUMBER_TYPES = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.int32}
_NUMBERS_AT_A_TIME = 2**22


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far training has progressed.

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
    """The state of a run at one moment.

    Attributes:
        model: the options that make the network (`ModelOptions`, plain).
        weights: what to evaluate and ship: the moving average where training keeps one.
        uncertainty: the error's distribution, and the factor on its standard deviation that was fitted to validation
            data.
        metrics: of the newest finished epoch.
        run_id: the MLflow run.
        progress: how far the run has progressed.
        options: all options of the run (`TrainOptions`, plain).
        training: everything else that resuming needs: raw weights, optimizer, schedule, random state, history.
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
    """Write `path` and the safetensors beside it, each complete or not at all, even across a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {name: getattr(checkpoint, name) for name in _FIELDS} | {
        "kind": CHECKPOINT_KIND,
        "format_version": CHECKPOINT_FORMAT,
        "progress": dataclasses.asdict(checkpoint.progress),
    }
    save_safetensors(path.with_suffix(".safetensors"), checkpoint.weights, inference_header(checkpoint))
    # By way of memory: where a disk is full, torch.save hides the system's error.
    encoded = io.BytesIO()
    torch.save(content, encoded)
    # The file that a run resumes from comes last: where it is new, everything beside it is.
    write_atomically(path, lambda file: file.write(encoded.getbuffer()), durable=True)


def inference_header(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what inference needs beside the weights, fit for JSON: the header of every exported file.

    The augmentation is included for `--initial-weights`.
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
    """Write weights with their header, complete or not at all."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    encoded = safetensors.torch.save(plain, metadata={SAFETENSORS_KEY: json.dumps(header)})
    write_atomically(path, lambda file: file.write(encoded), durable=True)


def load_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint in a `.pt` file, all tensors on the CPU.

    Raises:
        CheckpointError: it is missing, damaged, of another program or version, or holds anything but data.
    """
    if is_safetensors(path):
        raise CheckpointError(
            f"{path}: is a safetensors file, which holds weights alone; a run resumes from its last.pt, and "
            "--initial-weights starts a new run from weights"
        )
    content = load_plain(path)
    if not _is_ours(content) and _recognised(content):
        raise CheckpointError(
            f"{path}: is not a checkpoint of foundation-stereo-depth, but holds weights of a network that it knows: "
            "--initial-weights starts a new run from them"
        )
    return checkpoint_from_plain(content, path)


def checkpoint_from_plain(content: Any, path: Path) -> Checkpoint:
    """Return the checkpoint made from a `.pt` file's content; `path` is for messages.

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
        if not matches_type(value, kinds[name]):
            raise CheckpointError(f"{path}: its {name} is not as this version writes it")
    try:
        fields["progress"] = Progress(**fields["progress"])
    except TypeError as error:
        raise CheckpointError(f"{path}: its progress is not as this version writes it ({error})") from error
    return Checkpoint(**fields)


def load_plain(path: Path) -> Any:
    """Return the tensors and plain values of a file that any program wrote by `torch.save`, on the CPU.

    Raises:
        CheckpointError: it is missing, damaged, or holds anything but data.
    """
    with open_regular_file(path, at_most_bytes=LARGEST_FILE_BYTES, error_type=CheckpointError) as file:
        try:
            return _load_plain(file)
        except ArchiveError as error:
            raise CheckpointError(f"{path}: {error}") from error
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                f"{path}: is not a checkpoint of plain data, so it is not opened (it could run code); from a model "
                "that was saved as a whole, torch.save(model.state_dict(), ...) makes one"
            ) from error
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
        except Exception as error:  # PyTorch raises anything for what a foreign file holds
            raise CheckpointError(f"{path}: is not a complete checkpoint; is the file truncated?") from error


def _load_plain(file: BufferedIOBase) -> Any:
    """Return what torch.load does, once the file is found to be within limits of time and memory."""
    if foreign := _describe_beginning(file.read(512)):
        raise CheckpointError(foreign)
    size_bytes = file.seek(0, os.SEEK_END)
    if _is_zip(file):
        # PyTorch does not verify checksums. It compresses the code of TorchScript, and never a checkpoint.
        archive = open_zip(file, at_most_bytes=size_bytes + _LARGEST_CODE_BYTES)
        if foreign := _describe_archive([name.partition("/")[2] for name in archive.namelist()]):
            raise CheckpointError(foreign)
        if (unpacked_bytes := sum(member.file_size for member in archive.infolist())) > size_bytes:
            raise CheckpointError(
                f"would unpack to {unpacked_bytes:,} bytes, more than it has; no checkpoint is packed"
            )
        for name in archive.namelist():
            if name.lower().endswith(_PICKLE_MEMBER):
                with archive.open(name) as member:
                    check_pickle(member)
    else:
        file.seek(0)
        for _ in range(_PICKLES_OF_OLD_FORMAT):
            check_pickle(file)
    file.seek(0)
    # Foreign pickles are refused.
    with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(list(_PLAIN_CLASSES)):
        content: Any = torch.load(cast(IO[bytes], file), map_location="cpu", weights_only=True)
    _check_tensors(content, at_most_bytes=min(_MOST_VIEWS * size_bytes, LARGEST_FILE_BYTES))
    return content


def _is_zip(file: BufferedIOBase) -> bool:
    try:
        return zipfile.is_zipfile(file)
    except zipfile.BadZipFile:  # its end is a ZIP's, and damaged
        return True


def _describe_beginning(beginning: bytes) -> str | None:
    """Return what a file is that torch.load does not take, and what to do; None for everything else."""
    # Version and producer, as exporters of ONNX write them.
    if beginning[:1] == b"\x08" and any(name in beginning[:64] for name in (b"pytorch", b"onnx")):
        return "is an ONNX file; give it the suffix .onnx (foundation-stereo-predict runs it, no training takes it)"
    return describe_replacement(beginning)


def _describe_archive(names: list[str]) -> str | None:
    """Return the same for the members of a ZIP archive, without their first folder."""
    if _PICKLE_MEMBER in names and not any(name.startswith("code/") for name in names):
        return None
    if any(name.startswith("code/") or name == "constants.pkl" for name in names):
        kind = "is a TorchScript file (torch.jit.save)"
    elif any(name.startswith(("models/", "data/weights/", "archive_format", "serialized_")) for name in names):
        kind = "is a program that torch.export saved"
    else:
        return "is a ZIP archive, but not one of torch.save; if it is a download of several files, unpack it"
    return (
        f"{kind}, code rather than weights, so it is not opened; save the weights: torch.save(model.state_dict(), ...)"
    )


def _check_tensors(content: Any, at_most_bytes: int) -> None:
    """Check that all tensors in plain values are plain, and no larger than a file of their size can hold.

    A few bytes suffice for a tensor of terabytes: one number with strides of zero.

    Raises:
        CheckpointError: they are not.
    """
    pending, size_bytes = [content], 0
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending += value.values()
        elif isinstance(value, list | tuple | set):
            pending += value
        elif isinstance(value, Tensor):
            plain = type(value) in (Tensor, nn.Parameter) and value.layout is torch.strided and not value.is_nested
            if not plain or value.is_quantized or value.is_complex() or value.device.type != "cpu":
                raise CheckpointError("a tensor is of another kind than networks have")
            size_bytes += value.numel() * value.element_size()
        elif isinstance(value, torch.UntypedStorage | torch.TypedStorage):
            size_bytes += value.nbytes()
    if size_bytes > at_most_bytes:
        raise CheckpointError(f"its tensors would take {size_bytes:,} bytes")


@dataclass(frozen=True, kw_only=True)
class TrainedNetwork:
    """Weights and what they are.

    Attributes:
        warning: what a user of the network has to know, for the log; None where all is known.
    """

    facts: NetworkFacts
    weights: dict[str, Tensor]
    warning: str | None = None

    def network(self) -> nn.Module:
        """Return the network with its weights, in evaluation mode, on the CPU.

        Raises:
            CheckpointError: the weights do not fit the network that the header describes.
        """
        check_size(self.facts.model, self.weights, predicts_uncertainty=self.facts.predicts_uncertainty)
        network = create_network(self.facts.model, predicts_uncertainty=self.facts.predicts_uncertainty)
        try:
            network.load_state_dict(self.weights)
        except Exception as error:  # names, shapes and types of a foreign file
            raise CheckpointError(f"the weights do not fit their network: {str(error).splitlines()[-1]}") from error
        return network.eval()


def check_size(model: ModelOptions, weights: dict[str, Tensor], *, predicts_uncertainty: bool = True) -> None:
    """Check that weights have the names and shapes of the network that options describe, before it takes its memory.

    Raises:
        CheckpointError: they do not.
    """
    found = {name: tensor.shape for name, tensor in weights.items()}
    with torch.device("meta"):
        network = create_network(model, predicts_uncertainty=predicts_uncertainty)
    wanted = {name: tensor.shape for name, tensor in network.state_dict().items()}
    if wrong := sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)):
        shapes = [str(list(each[wrong[0]])) if wrong[0] in each else "absent" for each in (found, wanted)]
        raise CheckpointError(
            f"the weights do not fit their network: {wrong[0][:100]} is {shapes[0]}, where the network's is {shapes[1]}"
        )


def check_state_size(model: ModelOptions) -> None:
    """Check that a training state of a network will be no larger than those that are read.

    Raises:
        UserError: it would be larger.
    """
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in create_network(model).parameters())
    if (size_bytes := STATE_BYTES_PER_PARAMETER * count) > 0.99 * LARGEST_FILE_BYTES:
        raise UserError(
            f"--model {model.model} --base-channels {model.base_channels}: has {count:,} parameters, whose training "
            f"state of {size_bytes / 1e9:.1f} GB would be larger than the {LARGEST_FILE_BYTES / 1e9:.0f} GB that are "
            "read back; lower --base-channels or --depth"
        )


def read_trained(path: Path, *, log_warning: bool = True) -> TrainedNetwork:
    """Return the network in a `.pt` or `.safetensors` file, told apart by content.

    Files without our header are accepted, with a warning of what they leave open: weights of our networks, whatever
    wrapper named them, and checkpoints of the predecessor.

    Args:
        path: the file.
        log_warning: log it; without, it is in the result alone.

    Raises:
        CheckpointError: the file is missing, damaged, of another program or version, or holds anything but data.
    """
    if is_safetensors(path):
        header, content = _read_safetensors(path)
        if header is not None:
            return _checked(TrainedNetwork(facts=NetworkFacts.from_header(header, path), weights=content), path)
    else:
        content = load_plain(path)
    if _is_ours(content):
        checkpoint = checkpoint_from_plain(content, path)
        identity = checkpoint.training.get("data")
        facts = replace(
            NetworkFacts.from_header(inference_header(checkpoint), path),
            data_options=checkpoint.options.get("data", {}),
            data_identity=identity if isinstance(identity, str) else None,
        )
        return _checked(TrainedNetwork(facts=facts, weights=checkpoint.weights), path)
    trained = _without_header(content, path)
    if log_warning and trained.warning is not None:
        logger.warning(trained.warning)
    return _checked(trained, path)


def is_safetensors(path: Path) -> bool:
    """Return True for a safetensors file by its first bytes, where they decide; else by its suffix."""
    beginning = _first_bytes(path)
    if beginning[:4] == b"PK\x03\x04":  # the ZIP archive of torch.save
        return False
    return beginning[8:9] == b"{" or path.suffix == ".safetensors"


def _first_bytes(path: Path) -> bytes:
    try:
        with open_regular_file(path, at_most_bytes=LARGEST_FILE_BYTES, error_type=CheckpointError) as file:
            return file.read(512) or b""
    except CheckpointError:  # which reading the file reports
        return b""


def _is_ours(content: Any) -> bool:
    return isinstance(content, dict) and isinstance(kind := content.get("kind"), str) and kind == CHECKPOINT_KIND


def _recognised(content: Any) -> bool:
    """Return True for weights, with or without more, of a network that this program knows."""
    try:
        weights = find_weights(content)
        return weights is not None and recognise_network(weights) is not None
    except UserError:
        return False


def _checked(trained: TrainedNetwork, path: Path) -> TrainedNetwork:
    """Return the network whose weights are finite, of one NaN most networks make a map of NaN, and not too many."""
    size_bytes = sum(tensor.numel() * tensor.element_size() for tensor in trained.weights.values())
    if size_bytes > _LARGEST_WEIGHTS_BYTES:
        raise CheckpointError(
            f"{path}: its weights take {size_bytes:,} bytes, where {_LARGEST_WEIGHTS_BYTES:,} are the most"
        )
    for name, tensor in trained.weights.items():
        if tensor.dtype not in _NUMBER_TYPES:
            raise CheckpointError(f"{path}: {name[:100]} has numbers of type {tensor.dtype}, which no network has")
        # In parts: the whole would take its memory again.
        if not all(part.isfinite().all() for part in tensor.flatten().split(_NUMBERS_AT_A_TIME)):
            raise CheckpointError(f"{path}: its weights are not finite (NaN or infinity in {name[:100]})")
    return trained


def _read_safetensors(path: Path) -> tuple[Any, dict[str, Tensor]]:
    encoded = read_regular_file(path, at_most_bytes=_LARGEST_WEIGHTS_BYTES, error_type=CheckpointError)
    if foreign := describe_replacement(encoded[:512]):
        raise CheckpointError(f"{path}: {foreign}")
    length = int.from_bytes(encoded[:8], "little")
    if len(encoded) < 8 or length > LARGEST_HEADER_BYTES:
        raise CheckpointError(f"{path}: is not a complete safetensors file (its header has no sensible length)")
    try:
        text = json.loads(encoded[8 : 8 + length]).get("__metadata__", {}).get(SAFETENSORS_KEY)
        weights = safetensors.torch.load(encoded)
        return None if text is None else json.loads(text), weights
    except Exception as error:  # its own reader raises anything for what a foreign file holds
        raise CheckpointError(f"{path}: is not a complete safetensors file ({error})") from error


def _without_header(content: Any, path: Path) -> TrainedNetwork:
    """Return the network whose weights another program saved; sizes and scales that are not in the file are guessed.

    Raises:
        CheckpointError: it is no network that this program knows.
    """
    try:
        weights = find_weights(content)
        model = None if weights is None else recognise_network(weights)
    except UserError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if weights is None or model is None:
        raise CheckpointError(
            f"{path}: is not a checkpoint of foundation-stereo-depth, nor the weights of one of its networks (U-Net, "
            "guided, fused, predecessor)"
        )
    is_predecessor_run = model.model == "predecessor" and "model_state_dict" in content
    height, width = size_in_args(content.get("args")) if is_predecessor_run else (None, None)
    metrics = content.get("metrics") if is_predecessor_run else None
    defaults, has_sigma = DataOptions(), predicts_uncertainty(weights)
    header = {
        "kind": CHECKPOINT_KIND,
        "format_version": CHECKPOINT_FORMAT,
        "model": dataclasses.asdict(model),
        "uncertainty": {"distribution": "laplace" if has_sigma else NO_DISTRIBUTION, "scale": 1.0},
        "metrics": {
            str(name): float(value)
            for name, value in (metrics.items() if isinstance(metrics, dict) else ())
            if isinstance(value, int | float) and math.isfinite(value)
        },
        "height": height or defaults.height,
        "width": width or defaults.width,
    }
    size = f"; for want of their size they run at {header['width']}x{header['height']}"
    remedy = "--disparity-scale corrects a depth that is too large or too small by a constant factor"
    if not has_sigma:
        warning = (
            f"{path}: an older network with one output, the disparity: its standard deviation and confidence are "
            f"unknown, and it may stem from before the scale of the disparity was mended; {remedy}"
        )
    elif not is_predecessor_run:
        warning = (
            f"{path}: weights without our header: the scale of their disparity is unknown, so absolute depth may be "
            f"biased ({remedy}); the error's distribution is taken for a Laplacian"
        )
    else:
        warning = None if height and width else f"{path}: a checkpoint without the size of its images"
    if warning is not None and not (height and width):
        warning += size
    return TrainedNetwork(facts=NetworkFacts.from_header(header, path), weights=weights, warning=warning)


_FIELDS = [item.name for item in dataclasses.fields(Checkpoint)]

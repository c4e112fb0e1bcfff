"""Checkpoints: what resuming a run needs, and what using its weights needs. Nothing in one can run code.

`last.pt` and `best.pt` hold everything, as tensors and plain values that `torch.load(weights_only=True)` accepts;
`last.safetensors` and `best.safetensors` beside them hold the weights, with the rest that inference needs as JSON in
their header, for programs in other languages.
"""

import dataclasses
import io
import json
import logging
import pickle
import warnings
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_type_hints

import safetensors.torch
import torch
from torch import Tensor, nn

from foundation_stereo_depth.errors import CheckpointError
from foundation_stereo_depth.files import ArchiveError, open_zip, read_regular_file, write_atomically
from foundation_stereo_depth.model import create_network
from foundation_stereo_depth.options.command_line import group_from_dict, matches_type
from foundation_stereo_depth.options.training import DataOptions, ModelOptions
from foundation_stereo_depth.uncertainty import DISTRIBUTIONS

logger = logging.getLogger(__name__)

DEFAULT_WEIGHTS = Path(__file__).parent / "weights" / "default.safetensors"
"""The network that is installed with the program; MODEL_CARD.md describes it."""
CHECKPOINT_FORMAT = 1
CHECKPOINT_KIND = "foundation-stereo-depth checkpoint"
SAFETENSORS_KEY = "foundation_stereo_depth"
"""The key of the JSON in the safetensors header."""
LARGEST_FILE_BYTES = 2**35
"""The training state of the largest network that the options allow."""
LARGEST_HEADER_BYTES = 10**7
"""The JSON in front of the weights; ours has some thousand."""
_MOST_VIEWS = 4
"""How often one tensor may be in a checkpoint: the weights are there for training, and to be shipped."""
_SIGMA_SCALES = (1e-4, 1e4)


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
    return checkpoint_from_plain(load_plain(path), path)


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
    # Read into memory first: the file may be replaced by its writer at any moment.
    encoded = read_regular_file(path, at_most_bytes=LARGEST_FILE_BYTES, error_type=CheckpointError)
    try:
        if zipfile.is_zipfile(io.BytesIO(encoded)):
            open_zip(encoded, at_most_bytes=len(encoded))  # PyTorch does not verify checksums, and never compresses
        with warnings.catch_warnings(action="ignore"):  # of foreign pickles, which are refused below
            content: Any = torch.load(io.BytesIO(encoded), map_location="cpu", weights_only=True)
        _check_tensors(content, at_most_bytes=_MOST_VIEWS * len(encoded))
    except ArchiveError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: is not a checkpoint of plain data, so it is not opened (it could run code)"
        ) from error
    except Exception as error:  # PyTorch raises anything for what a foreign file holds
        raise CheckpointError(f"{path}: is not a complete checkpoint; is the file truncated?") from error
    return content


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


def check_header(header: Any, path: Path) -> None:
    """Check that a header is of this program and of the format version that it reads.

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


@dataclass(frozen=True, kw_only=True)
class NetworkFacts:
    """What a network's file holds beside its weights.

    Attributes:
        header: everything, as the JSON of exported files.
        model: the options that make the network.
        height, width: the size it was trained at, px.
        distribution: of its error, "laplace" or "gaussian".
        sigma_scale: the factor on its standard deviation that was fitted to validation data.
        data_options: the run's options about its data, plain; empty where the file keeps none, as all but a `.pt` do.
        data_identity: the same for the same samples; None where the file does not state it.
    """

    header: dict[str, Any]
    model: ModelOptions
    height: int
    width: int
    distribution: str
    sigma_scale: float
    data_options: dict[str, Any] = field(default_factory=dict[str, Any], compare=False)
    data_identity: str | None = field(default=None, compare=False)

    @classmethod
    def from_header(cls, header: Any, path: Path) -> "NetworkFacts":
        """Return the facts in the JSON of a header.

        Raises:
            CheckpointError: it is not ours, of another version, or incomplete.
        """
        check_header(header, path)
        try:
            size = group_from_dict(DataOptions, {name: header[name] for name in ("height", "width")})
            facts = cls(
                header=header,
                model=group_from_dict(ModelOptions, header["model"]),
                height=size.height,
                width=size.width,
                distribution=str(header["uncertainty"]["distribution"]),
                sigma_scale=_number_within(header["uncertainty"].get("scale", 1.0), *_SIGMA_SCALES),
            )
        except Exception as error:  # a foreign header may hold anything
            raise CheckpointError(f"{path}: its header is not as this version writes it ({error})") from error
        if facts.distribution not in DISTRIBUTIONS:
            raise CheckpointError(f"{path}: its error distribution {facts.distribution} is unknown to this version")
        return facts


def _number_within(value: Any, smallest: float, largest: float) -> float:
    number = float(value)
    if not smallest <= number <= largest:  # written so that NaN fails
        raise ValueError(f"{number} is not from {smallest} to {largest}")
    return number


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
        check_fit(self.facts.model, self.weights)
        network = create_network(self.facts.model)
        network.load_state_dict(self.weights)
        return network.eval()


def check_fit(model: ModelOptions, weights: dict[str, Tensor]) -> None:
    """Check that weights fit the network that options describe, without making it: it may be larger than the memory.

    Raises:
        CheckpointError: they do not.
    """
    try:
        with torch.device("meta"):
            network = create_network(model)
        with warnings.catch_warnings(action="ignore"):  # nothing is copied, as intended
            network.load_state_dict(weights)
    except Exception as error:  # names, shapes and types of a foreign file
        raise CheckpointError(f"the weights do not fit their network: {str(error).splitlines()[-1]}") from error


def read_trained(path: Path, *, log_warning: bool = True) -> TrainedNetwork:
    """Return the network in a `.pt` or `.safetensors` file.

    Weights of our U-Net without our header are accepted, with a warning.

    Args:
        path: the file.
        log_warning: log it; without, it is in the result alone.

    Raises:
        CheckpointError: the file is missing, damaged, of another program or version, or holds anything but data.
    """
    if path.suffix == ".safetensors":
        header, weights = _read_safetensors(path)
    else:
        content = load_plain(path)
        if not _is_bare(content):
            checkpoint = checkpoint_from_plain(content, path)
            identity = checkpoint.training.get("data")
            facts = replace(
                NetworkFacts.from_header(inference_header(checkpoint), path),
                data_options=checkpoint.options.get("data", {}),
                data_identity=identity if isinstance(identity, str) else None,
            )
            return _checked(TrainedNetwork(facts=facts, weights=checkpoint.weights), path)
        header, weights = None, content
    warning = None
    if header is None:
        header = _guessed_header(weights, path)
        warning = (
            f"{path}: weights without our header: the scale of their disparity is unknown, so absolute depth may be "
            "biased; this program's defaults are assumed for the size and the error's distribution"
        )
        if log_warning:
            logger.warning(warning)
    facts = NetworkFacts.from_header(header, path)
    return _checked(TrainedNetwork(facts=facts, weights=weights, warning=warning), path)


def _checked(trained: TrainedNetwork, path: Path) -> TrainedNetwork:
    """Return the network whose weights fit and are finite: of one NaN, most networks make a map of NaN."""
    try:
        check_fit(trained.facts.model, trained.weights)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    for name, tensor in trained.weights.items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"{path}: its weights are not finite (NaN or infinity in {name})")
    return trained


def _read_safetensors(path: Path) -> tuple[Any, dict[str, Tensor]]:
    encoded = read_regular_file(path, at_most_bytes=LARGEST_FILE_BYTES, error_type=CheckpointError)
    length = int.from_bytes(encoded[:8], "little")
    if len(encoded) < 8 or length > LARGEST_HEADER_BYTES:
        raise CheckpointError(f"{path}: is not a complete safetensors file (its header has no sensible length)")
    try:
        text = json.loads(encoded[8 : 8 + length]).get("__metadata__", {}).get(SAFETENSORS_KEY)
        weights = safetensors.torch.load(encoded)
        return None if text is None else json.loads(text), weights
    except Exception as error:  # its own reader raises anything for what a foreign file holds
        raise CheckpointError(f"{path}: is not a complete safetensors file ({error})") from error


def _is_bare(content: Any) -> bool:
    return (
        isinstance(content, dict)
        and bool(content)
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())
    )


def _guessed_header(weights: dict[str, Tensor], path: Path) -> dict[str, Any]:
    """Return a header made from the shapes of the weights and from defaults."""
    stem = weights.get("stem.convolution.weight")
    levels = {name.split(".")[1] for name in weights if name.startswith("down.")}
    if stem is None or stem.ndim != 4 or not levels:
        raise CheckpointError(f"{path}: is not a checkpoint of foundation-stereo-depth, nor the weights of its U-Net")
    defaults = DataOptions()
    return {
        "kind": CHECKPOINT_KIND,
        "format_version": CHECKPOINT_FORMAT,
        "model": {"model": "unet", "base_channels": stem.shape[0], "depth": len(levels)},
        "uncertainty": {"distribution": "laplace", "scale": 1.0},
        "height": defaults.height,
        "width": defaults.width,
    }


_FIELDS = [item.name for item in dataclasses.fields(Checkpoint)]

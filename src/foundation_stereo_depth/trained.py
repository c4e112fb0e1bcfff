"""What using a network needs, read from any file that holds one: a checkpoint, our safetensors, or bare weights."""

import json
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors
from torch import Tensor, nn

from foundation_stereo_depth.arguments import group_from_plain
from foundation_stereo_depth.checkpoint import (
    CHECKPOINT_FORMAT,
    CHECKPOINT_KIND,
    SAFETENSORS_KEY,
    check_header,
    checkpoint_from_plain,
    inference_header,
    load_plain,
)
from foundation_stereo_depth.errors import CheckpointError, UserError
from foundation_stereo_depth.model import create_network
from foundation_stereo_depth.options import DataOptions, ModelOptions
from foundation_stereo_depth.uncertainty import DISTRIBUTIONS

DEFAULT_WEIGHTS = Path(__file__).parent / "weights" / "default.safetensors"
"""The network that is installed with the program; MODEL_CARD.md says what it is."""
_DEFAULT = Path("default")


class UnknownScaleWarning(UserWarning):
    """Weights came without our header: what their numbers mean is a guess."""


@dataclass(frozen=True, kw_only=True)
class NetworkFacts:
    """What a network's file says beside its weights.

    Attributes:
        header: everything, as the JSON that stands in exported files.
        model: the options that make the network.
        height, width: the size it was trained at, px.
        distribution: of its error, "laplace" or "gaussian".
        sigma_scale: what validation data put on its standard deviation.
        data_options: the run's options about its data, plain; empty where the file keeps none, as all but a `.pt` do.
        data_identity: the same for the same samples; None where the file does not say.
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
        """From the JSON of a header.

        Raises:
            CheckpointError: it is not ours, of another version, or incomplete.
        """
        check_header(header, path)
        try:
            facts = cls(
                header=header,
                model=group_from_plain(ModelOptions, header["model"]),
                height=int(header["height"]),
                width=int(header["width"]),
                distribution=str(header["uncertainty"]["distribution"]),
                sigma_scale=float(header["uncertainty"].get("scale", 1.0)),
            )
        except (KeyError, TypeError, ValueError, UserError) as error:
            raise CheckpointError(f"{path}: its header is not as this version writes it ({error})") from error
        if facts.distribution not in DISTRIBUTIONS:
            raise CheckpointError(f"{path}: has errors of distribution {facts.distribution}, unknown to this version")
        return facts


@dataclass(frozen=True, kw_only=True)
class TrainedNetwork:
    """Weights, and what they are."""

    facts: NetworkFacts
    weights: dict[str, Tensor]

    def network(self) -> nn.Module:
        """The network with its weights, in evaluation mode, on the CPU.

        Raises:
            CheckpointError: the weights do not fit the network that the header names.
        """
        network = create_network(self.facts.model)
        try:
            network.load_state_dict(self.weights)
        except (RuntimeError, TypeError, AttributeError) as error:
            raise CheckpointError(f"the weights do not fit their network: {str(error).splitlines()[-1]}") from error
        return network.eval()


def read_trained(path: Path) -> TrainedNetwork:
    """The network in a `.pt` or `.safetensors` file.

    Bare weights of a network of ours are taken with an `UnknownScaleWarning`. The path `default` stands for
    `DEFAULT_WEIGHTS`.

    Raises:
        CheckpointError: the file is missing, damaged, of another program or version, or holds anything but data.
    """
    if path == _DEFAULT:
        path = DEFAULT_WEIGHTS
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
            return TrainedNetwork(facts=facts, weights=checkpoint.weights)
        header, weights = None, content
    if header is None:
        header = _guessed_header(weights, path)
        warnings.warn(
            f"{path}: bare weights without our header: the scale of their disparity is unknown, so absolute depth may "
            "be biased; the size and the error's distribution are taken to be this program's defaults",
            UnknownScaleWarning,
            stacklevel=2,
        )
    return TrainedNetwork(facts=NetworkFacts.from_header(header, path), weights=weights)


def _read_safetensors(path: Path) -> tuple[Any, dict[str, Tensor]]:
    try:
        with path.open("rb"):  # for the system's own words where it cannot be read
            pass
        with safetensors.safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(SAFETENSORS_KEY)
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
        return None if text is None else json.loads(text), weights
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (safetensors.SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path}: is not a whole safetensors file ({error})") from error


def _is_bare(content: Any) -> bool:
    return isinstance(content, dict) and bool(content) and all(isinstance(value, Tensor) for value in content.values())


def _guessed_header(weights: dict[str, Tensor], path: Path) -> dict[str, Any]:
    """A header made of the shapes of the weights and of defaults."""
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

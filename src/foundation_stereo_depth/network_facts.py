"""What the file of a network contains beside its weights. Imports no PyTorch: networks as ONNX run without it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foundation_stereo_depth.errors import CheckpointError
from foundation_stereo_depth.options.command_line import group_from_dict
from foundation_stereo_depth.options.training import DataOptions, ModelOptions
from foundation_stereo_depth.stereo.confidence import DISTRIBUTION_NAMES

DEFAULT_WEIGHTS = Path(__file__).parent / "weights" / "default.safetensors"
"""The network that is installed with the program; MODEL_CARD.md describes it."""
DEFAULT_ONNX = DEFAULT_WEIGHTS.with_name("default_int8.onnx")
"""The same network in 8 bits, for CPUs; `scripts/export_installed.py` makes it."""
CHECKPOINT_FORMAT = 1
CHECKPOINT_KIND = "foundation-stereo-depth checkpoint"
SAFETENSORS_KEY = "foundation_stereo_depth"
"""The key of the JSON in the safetensors header, and in the metadata of ONNX files."""
WEIGHTS_HASH = "weights_sha256"
"""In the JSON of the installed ONNX file: the SHA-256 of the weights' file."""
NO_DISTRIBUTION = "none"
"""In place of the error's distribution, of networks that predict no uncertainty."""
_SIGMA_SCALES = (1e-4, 1e4)
_DISPARITY_SCALES = (1e-6, 1e6)


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
        distribution: of its error, "laplace" or "gaussian"; `NO_DISTRIBUTION` where it predicts no uncertainty.
        sigma_scale: the factor on its standard deviation that was fitted to validation data.
        disparity_scale: the factor on its disparity that a user set when it was exported (`--disparity-scale`).
        data_options: the run's options about its data, plain; empty where the file keeps none, as all but a `.pt` do.
        data_identity: the same for the same samples; None where the file does not state it.
    """

    header: dict[str, Any]
    model: ModelOptions
    height: int
    width: int
    distribution: str
    sigma_scale: float
    disparity_scale: float = 1.0
    data_options: dict[str, Any] = field(default_factory=dict[str, Any], compare=False)
    data_identity: str | None = field(default=None, compare=False)

    @property
    def predicts_uncertainty(self) -> bool:
        """False for a network that predicts disparity alone: its standard deviation is unknown."""
        return self.distribution != NO_DISTRIBUTION

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
                disparity_scale=_number_within(header.get("disparity_scale", 1.0), *_DISPARITY_SCALES),
            )
        except Exception as error:  # a foreign header may hold anything
            raise CheckpointError(f"{path}: its header is not as this version writes it ({error})") from error
        if facts.distribution not in (*DISTRIBUTION_NAMES, NO_DISTRIBUTION):
            raise CheckpointError(f"{path}: its error distribution {facts.distribution} is unknown to this version")
        return facts


def _number_within(value: Any, smallest: float, largest: float) -> float:
    number = float(value)
    if not smallest <= number <= largest:  # written so that NaN fails
        raise ValueError(f"{number} is not from {smallest} to {largest}")
    return number

"""What a run begins with: its options, its data, and the weights of its first step."""

import dataclasses
import logging
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import nn

from foundation_stereo_depth.checkpoint import (
    Checkpoint,
    TrainedNetwork,
    check_size,
    check_state_size,
    load_checkpoint,
    read_trained,
)
from foundation_stereo_depth.data.batch import Source
from foundation_stereo_depth.data.dataset import DATASET_ROOT_VARIABLE, find_dataset_root
from foundation_stereo_depth.data.loader import open_files
from foundation_stereo_depth.data.synthetic.source import SceneSource
from foundation_stereo_depth.data.synthetic.torch_scenes import ProceduralSource
from foundation_stereo_depth.errors import CheckpointError, UserError
from foundation_stereo_depth.log import count_of
from foundation_stereo_depth.model import create_network, fused_from_guided
from foundation_stereo_depth.model.predecessor import with_uncertainty_head
from foundation_stereo_depth.network_facts import DEFAULT_WEIGHTS
from foundation_stereo_depth.options import command_line
from foundation_stereo_depth.options.fields import flag_of
from foundation_stereo_depth.options.training import AugmentOptions, ModelOptions, TrainOptions
from foundation_stereo_depth.tracking import checkpoint_of_run

logger = logging.getLogger(__name__)

_EARLIER_OPTIONS = {"optimizer": {"optimizer": "adamw"}, "data": {"procedural_half_size": 0.0}}
"""What runs that began before these options do."""
_LEAST_HALVED_PX = 96
"""Images that are smaller are not halved."""


def resolve(explicit: command_line.Explicit) -> tuple[TrainOptions, Checkpoint | None]:
    """Return the options from flags and environment, and the checkpoint that `--resume` names.

    A run with initial weights takes over their network and their augmentation, unless flags name others. A resumed run
    keeps its options; flags that do not change what it computes may be given again, and so may `--epochs`, which
    stretches the schedule.

    Raises:
        UserError: a flag is out of range, or would make the resumed run another one.
        CheckpointError: there is nothing to resume from.
    """
    requested = command_line.build_options(TrainOptions, explicit)
    resume = requested.tracking.resume
    if resume is None:
        # A run resumes with the data that it began with, whatever the environment says then.
        root = requested.data.dataset_root
        if requested.data.dataset == "fsd":
            root = root or find_dataset_root(None)
        initial = requested.optimizer.initial_weights
        base = command_line.default_options(TrainOptions, explicit)
        base = replace(base, data=replace(base.data, dataset_root=root))
        if initial is not None:
            given = _read_initial(initial)
            base = replace(base, model=given.facts.model, augment=_augmentation_of(given, initial))
        options = command_line.build_options(TrainOptions, explicit, base=base)
        warn_of_unused_flags(explicit, options)
        check_state_size(options.model)
        return options, None
    path = Path(resume)
    if path.is_dir():
        path = path / "last.pt"
    if path.suffix == ".pt" or path.exists():
        checkpoint = load_checkpoint(path)
        explicit = {"output_dir": path.parent} | explicit
    else:
        with tempfile.TemporaryDirectory() as folder:
            found = checkpoint_of_run(requested.tracking.mlflow_tracking_uri, resume, Path(folder))
            checkpoint = load_checkpoint(found)
            explicit = {"output_dir": None if Path(folder) in found.parents else found.parent} | explicit
    try:
        plain = {group: _EARLIER_OPTIONS.get(group, {}) | values for group, values in checkpoint.options.items()}
        saved = command_line.options_from_dict(TrainOptions, plain)
        check_size(saved.model, checkpoint.weights)
    except UserError as error:
        raise CheckpointError(f"--resume {resume}: {error}") from error
    if conflicts := command_line.find_fixed_conflicts(explicit, saved):
        raise UserError(
            f"--resume {resume}: a resumed run cannot change {', '.join(conflicts)}; leave that out, or start a new run"
        )
    return command_line.build_options(TrainOptions, explicit, base=saved), checkpoint


def warn_of_unused_flags(explicit: command_line.Explicit, options: TrainOptions) -> None:
    """Log a warning for typed flags that change nothing, given the others."""
    model, data = options.model.model, options.data
    has_files = data.dataset_root is not None or data.cache_root is not None
    augmentation = {field.name for field in dataclasses.fields(AugmentOptions)} - {"augment"}
    synthetic = {"procedural_samples", "procedural_val_samples", "procedural_half_size"}
    of_files = {"val_fraction", "max_samples", "skip_bad"}
    rules: tuple[tuple[bool, set[str], str], ...] = (
        (model != "unet", {"depth"}, f"with --model {model}, whose depth is fixed"),
        (model in ("unet", "predecessor"), {"region_weight"}, f"with --model {model}, whose loss has no such term"),
        (model != "unet", {"procedural_half_size"}, f"with --model {model}, which trains at full size"),
        (not options.runtime.compile, {"compile_mode", "compile_backend"}, "without --compile"),
        (not options.augment.augment, augmentation, "with --no-augment"),
        (has_files, synthetic, "with a data set: --dataset synthetic trains on synthetic scenes"),
        (not has_files, of_files, "without a data set"),
    )
    for applies, names, why in rules:
        if applies and (unused := [flag_of(name) for name in explicit if name in names]):
            logger.warning("%s: no effect %s", " ".join(unused), why)


class Data(NamedTuple):
    """What a run trains and validates on, and the facts about it that are recorded.

    Attributes:
        half_size: the source of the first epochs, as long as `train`.
        half_size_epochs: how many of them there are.
    """

    train: Source
    validation: Source
    facts: dict[str, object]
    half_size: Source | None = None
    half_size_epochs: int = 0

    def training_source(self, epoch: int) -> Source:
        """Return what an epoch, counted from 0, trains on."""
        return self.half_size if self.half_size is not None and epoch < self.half_size_epochs else self.train

    @property
    def identity(self) -> str:
        """Return a name of the samples, the same wherever they are stored."""
        return str(self.facts.get("dataset_fingerprint", self.facts["dataset"]))


def open_data(options: TrainOptions, device: torch.device) -> Data:
    """Return the data that the options name, or synthetic scenes where they name none.

    Raises:
        UserError: a data set is named, and cannot be used.
    """
    asked = options.data
    if asked.require_cache and asked.cache_root is None:
        raise UserError("--require-cache: needs a --cache-root")
    if asked.dataset_root is None and asked.cache_root is None:
        if asked.dataset not in ("fsd", "synthetic"):
            raise UserError(f"--dataset {asked.dataset}: needs --dataset-root, the folder where it is")
        if asked.dataset == "fsd":
            logger.info(
                "no data set given (--dataset-root, or $%s): training on synthetic scenes", DATASET_ROOT_VARIABLE
            )

        def scenes(length: int, seed: int, shrunk_by: int = 1) -> Source:
            height, width = asked.height // shrunk_by, asked.width // shrunk_by
            if device.type == "cuda":
                return ProceduralSource(length=length, seed=seed, height=height, width=width, device=device)
            return SceneSource(length=length, seed=seed, height=height, width=width)

        half_size_epochs = 0
        if options.model.model == "unet" and min(asked.height, asked.width) >= _LEAST_HALVED_PX:
            half_size_epochs = int(asked.procedural_half_size * options.optimizer.epochs)
        return Data(
            scenes(asked.procedural_samples, options.runtime.seed),
            # A seed of their own, the same in all runs, makes figures of different runs comparable.
            scenes(asked.procedural_val_samples, ProceduralSource.VALIDATION_SEED),
            {
                "dataset": "made-up scenes",
                "train_samples": asked.procedural_samples,
                "validation_samples": asked.procedural_val_samples,
                "split_by": "seed",
                "half_size_epochs": half_size_epochs,
            },
            scenes(asked.procedural_samples, options.runtime.seed, shrunk_by=2) if half_size_epochs else None,
            half_size_epochs,
        )
    files = open_files(asked, asked.dataset_root, pin_memory=device.type == "cuda")
    if files.incomplete:
        logger.info(
            "%s left out that lack a file, the first: %s",
            count_of(len(files.incomplete), "frame"), files.incomplete[0],
        )  # fmt: skip
    logger.info(
        "%s: split by %s; reading with %s",
        files.facts["dataset"],
        files.split.by,
        count_of(int(str(files.facts["reading_threads"])), "thread"),
    )
    return Data(files.train, files.validation, dict(files.facts))


def first_network(options: TrainOptions, resumed: Checkpoint | None) -> nn.Module:
    """Return the network before its first step, in training mode, on the CPU: random, or from `--initial-weights`.

    Args:
        options: of the run.
        resumed: the checkpoint that the run resumes from, if it does; its weights are loaded later.

    Raises:
        CheckpointError: the file of the weights cannot be used.
        UserError: it holds another network than the options name; a guided one can also start a fused one.
    """
    initial = options.optimizer.initial_weights
    if initial is None or resumed is not None:
        return create_network(options.model)
    given = _read_initial(initial)
    found_model = given.facts.model
    if (
        found_model.model == "guided"
        and replace(found_model, model="fused", depth=options.model.depth) == options.model
    ):
        network = create_network(options.model)
        network.load_state_dict(fused_from_guided(given.network().state_dict()))
        return network
    if found_model.model == options.model.model == "predecessor":
        given = replace(
            given, weights=with_uncertainty_head(given.weights), facts=replace(given.facts, distribution="laplace")
        )
    if (found := _flags_of(found_model)) != (asked := _flags_of(options.model)):
        raise UserError(f"--initial-weights {initial}: holds a network of {found}, and the flags ask for {asked}")
    try:
        return given.network().train()
    except CheckpointError as error:
        raise CheckpointError(f"--initial-weights {initial}: {error}") from error


def _read_initial(source: Path | Literal["default"]) -> TrainedNetwork:
    path = DEFAULT_WEIGHTS if source == "default" else Path(source)
    if path.suffix == ".onnx":
        raise UserError(f"--initial-weights {path}: has to be a .pt or .safetensors file")
    return read_trained(path, log_warning=False)  # of an unknown scale: training fits it again


def _augmentation_of(given: TrainedNetwork, source: Path | Literal["default"]) -> AugmentOptions:
    """Return the augmentation that the file's header describes; the defaults if it describes none."""
    plain = given.facts.header.get("augment", {})
    try:
        return command_line.group_from_dict(AugmentOptions, plain if isinstance(plain, dict) else {"augment": plain})
    except UserError as error:
        raise CheckpointError(f"--initial-weights {source}: {error}") from error


def _flags_of(model: ModelOptions) -> str:
    flags = f"--model {model.model} --base-channels {model.base_channels}"
    return f"{flags} --depth {model.depth}" if model.model == "unet" else flags

"""What a run begins with: its options, its data, and the weights of its first step."""

import logging
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from foundation_stereo_depth.checkpoint import (
    Checkpoint,
    TrainedNetwork,
    UnknownScaleWarning,
    load_checkpoint,
    read_trained,
)
from foundation_stereo_depth.data.batch import Source
from foundation_stereo_depth.data.dataset import DATASET_ROOT_VARIABLE, find_dataset_root
from foundation_stereo_depth.data.loader import open_files
from foundation_stereo_depth.data.synthetic.torch_scenes import ProceduralSource
from foundation_stereo_depth.errors import CheckpointError, UserError
from foundation_stereo_depth.model import create_network
from foundation_stereo_depth.options import command_line
from foundation_stereo_depth.options.training import AugmentOptions, DataOptions, ModelOptions, TrainOptions
from foundation_stereo_depth.tracking import checkpoint_of_run

logger = logging.getLogger(__name__)


def resolve(explicit: command_line.Explicit) -> tuple[TrainOptions, Checkpoint | None]:
    """The options that flags and the environment make, and the checkpoint that `--resume` asks to go on from.

    A run that begins with given weights takes over their network and their augmentation, unless flags name others:
    one network learns from pairs that another would make nothing of. A resumed run keeps its
    options; flags that do not change what it computes may be given anew, and so may `--epochs`, which stretches the
    schedule.

    Raises:
        UserError: a flag is out of range, or would make the resumed run another one.
        CheckpointError: there is nothing to go on from.
    """
    wished = command_line.build_options(TrainOptions, explicit)
    resume = wished.tracking.resume
    if resume is None:
        # A run goes on with the data that it began with, whatever the environment says by then.
        root = wished.data.dataset_root
        if wished.data.dataset == "fsd":
            root = root or find_dataset_root(None)
        initial = wished.optimizer.initial_weights
        base = replace(TrainOptions(), data=DataOptions(dataset_root=root))
        if initial is not None:
            given = _given(initial)
            base = replace(base, model=given.facts.model, augment=_augmentation(given, initial))
        return command_line.build_options(TrainOptions, explicit, base=base), None
    path = Path(resume)
    if path.is_dir():
        path = path / "last.pt"
    if path.suffix == ".pt" or path.exists():
        checkpoint = load_checkpoint(path)
        explicit = {"output_dir": path.parent} | explicit
    else:
        with tempfile.TemporaryDirectory() as folder:
            found = checkpoint_of_run(wished.tracking.mlflow_tracking_uri, resume, Path(folder))
            checkpoint = load_checkpoint(found)
            explicit = {"output_dir": None if Path(folder) in found.parents else found.parent} | explicit
    try:
        saved = command_line.options_from_dict(TrainOptions, checkpoint.options)
    except UserError as error:
        raise CheckpointError(f"--resume {resume}: {error}") from error
    if conflicts := command_line.find_fixed_conflicts(explicit, saved):
        raise UserError(
            f"--resume {resume}: a run that goes on keeps its {', '.join(conflicts)}; "
            "leave that out, or start a new run"
        )
    return command_line.build_options(TrainOptions, explicit, base=saved), checkpoint


class Data(NamedTuple):
    """What a run trains and validates on, and what it records about that."""

    train: Source
    validation: Source
    facts: dict[str, object]

    @property
    def identity(self) -> str:
        """The same for the same samples, wherever they lie."""
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

        def scenes(length: int, seed: int) -> ProceduralSource:
            return ProceduralSource(length=length, seed=seed, height=asked.height, width=asked.width, device=device)

        return Data(
            scenes(asked.procedural_samples, options.runtime.seed),
            # A seed of their own, the same in all runs, makes figures of different runs comparable.
            scenes(asked.procedural_val_samples, ProceduralSource.VALIDATION_SEED),
            {
                "dataset": "made-up scenes",
                "train_samples": asked.procedural_samples,
                "validation_samples": asked.procedural_val_samples,
                "split_by": "seed",
            },
        )
    files = open_files(asked, asked.dataset_root, pin_memory=device.type == "cuda")
    if files.incomplete:
        logger.info("%d frames lack a file and are left out, the first: %s", len(files.incomplete), files.incomplete[0])
    logger.info(
        "%s: split by %s; reading with %d threads",
        files.facts["dataset"],
        files.split.by,
        files.facts["reading_threads"],
    )
    return Data(files.train, files.validation, dict(files.facts))


def first_network(options: TrainOptions, resumed: Checkpoint | None) -> nn.Module:
    """The network before its first step, in training mode, on the CPU: random, or as `--initial-weights` has it.

    Args:
        options: of the run.
        resumed: where the run goes on from, if it does; then the weights are still to come from there.

    Raises:
        CheckpointError: the file of the weights cannot be used.
        UserError: it holds another network than the options ask for.
    """
    initial = options.optimizer.initial_weights
    if initial is None or resumed is not None:
        return create_network(options.model)
    given = _given(initial)
    if (found := _named(given.facts.model)) != (asked := _named(options.model)):
        raise UserError(f"--initial-weights {initial}: holds a network of {found}, and the flags ask for {asked}")
    try:
        return given.network().train()
    except CheckpointError as error:
        raise CheckpointError(f"--initial-weights {initial}: {error}") from error


def _given(path: Path) -> TrainedNetwork:
    if path.suffix == ".onnx":
        raise UserError(f"--initial-weights {path}: has to be a .pt or .safetensors file")
    with warnings.catch_warnings(category=UnknownScaleWarning, action="ignore"):  # training finds the scale anew
        given = read_trained(path)
    if not all(weights.isfinite().all() for weights in given.weights.values()):
        raise CheckpointError(f"--initial-weights {path}: holds weights that are not finite")
    return given


def _augmentation(given: TrainedNetwork, path: Path) -> AugmentOptions:
    """What the file says of it; the defaults where it says nothing."""
    said = given.facts.header.get("augment", {})
    try:
        return command_line.group_from_dict(AugmentOptions, said if isinstance(said, dict) else {"augment": said})
    except UserError as error:
        raise CheckpointError(f"--initial-weights {path}: {error}") from error


def _named(model: ModelOptions) -> str:
    named = f"--model {model.model} --base-channels {model.base_channels}"
    return named if model.model == "guided" else f"{named} --depth {model.depth}"

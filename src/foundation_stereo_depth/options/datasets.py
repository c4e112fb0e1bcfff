"""Which data sets a command reads: the names that `--dataset` takes, and `--dataset-root [NAME[:WEIGHT]=]PATH`."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.options.fields import expand_home

DatasetName = Literal[
    "fsd",
    "folders",
    "synthetic",
    "middlebury2014",
    "eth3d",
    "kitti2012",
    "kitti2015",
    "sceneflow",
    "sintel",
    "fallingthings",
    "instereo2k",
    "crestereo",
    "carla",
]
DATASET_NAMES: tuple[str, ...] = get_args(DatasetName)
LARGEST_WEIGHT = 100.0

DatasetRoots = Path | tuple[str, ...] | None
"""One folder, or what `--dataset-root` was given, once or several times."""

DATASET_HELP = (
    "layout of --dataset-root; fsd: <root>/<scene>/dataset/data/...; folders: left, right and disparity (PFM, KITTI "
    "PNG, NPY or FSD PNG), or KITTI's image_2, image_3, disp_occ_0; the others as torchvision.datasets documents them; "
    "synthetic: --dataset-root is a number of scenes"
)
DATASET_ROOT_HELP = (
    "folder of the data set; for fsd else $FOUNDATION_STEREO_ROOT, else "
    "~/Reference/OffTopic/Datasets/FoundationStereo, if it holds a scene; give it several times, each as NAME=PATH, to "
    "mix data sets"
)
DATASET_ROOT_METAVAR = "[NAME=]PATH"


@dataclass(frozen=True, kw_only=True)
class DatasetSource:
    """One data set of those that a command reads.

    Attributes:
        name: its layout, one of DATASET_NAMES.
        root: its folder; for synthetic scenes their number.
        weight: how often an epoch of training visits each of its samples, on average over epochs.
    """

    name: str
    root: Path
    weight: float = 1.0


def parse_dataset_sources(roots: DatasetRoots, default_name: str) -> tuple[DatasetSource, ...]:
    """Return the data sets that `--dataset-root` names; `default_name` is the layout of those without a NAME.

    A text is split at `=` only where a known name, perhaps with a weight, stands before it, so any path can be given.

    >>> parse_dataset_sources(("/data/fsd", "kitti2015:4=/data/kitti"), "fsd")[1].weight
    4.0

    Raises:
        UserError: a weight is no number above 0, or a path is empty.
    """
    texts = () if roots is None else (str(roots),) if isinstance(roots, Path) else roots
    return tuple(_parse_source(text, default_name) for text in texts)


def check_folders(roots: DatasetRoots, default_name: str) -> None:
    """Check that the folders of data sets exist; a command does so before it imports heavy packages.

    Raises:
        UserError: one does not.
    """
    for source in parse_dataset_sources(roots, default_name):
        if source.name != "synthetic" and not source.root.is_dir():
            raise UserError(f"{source.root}: no such folder; --dataset-root names the folder of the data set")


def _parse_source(text: str, default_name: str) -> DatasetSource:
    label, equals, path = text.partition("=")
    name, colon, weight = label.partition(":")
    if not equals or name not in DATASET_NAMES:
        name, colon, weight, path = default_name, "", "", text
    if not path.strip():
        raise UserError(f"--dataset-root {text!r}: names no folder")
    return DatasetSource(name=name, root=Path(expand_home(path)), weight=_parse_weight(text, weight) if colon else 1.0)


def _parse_weight(text: str, weight: str) -> float:
    try:
        number = float(weight)
    except ValueError:
        number = math.nan
    if not 0 < number <= LARGEST_WEIGHT:
        raise UserError(f"--dataset-root {text}: the weight has to be a number above 0, at most {LARGEST_WEIGHT:.0f}")
    return number

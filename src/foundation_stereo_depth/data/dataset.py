"""Stereo data sets: what one is, and the sources that `--dataset` names. Files, benchmarks and synthetic scenes alike.

To add a data set: a module with a class that has these members, a line in `DATASET_SOURCES`, and its name in
`options.datasets.DatasetName`.
"""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from foundation_stereo_depth.data.folders import open_folders
from foundation_stereo_depth.data.fsd import holds_scene, open_fsd
from foundation_stereo_depth.data.sample import (
    Incomplete,
    SampleNames,
    SourceStamp,
    StereoSample,
    join_names,
)
from foundation_stereo_depth.data.split import DATASET_SEPARATOR
from foundation_stereo_depth.data.synthetic.dataset import open_synthetic
from foundation_stereo_depth.errors import DataError, UserError
from foundation_stereo_depth.options.datasets import DatasetSource
from foundation_stereo_depth.options.fields import expand_home

logger = logging.getLogger(__name__)

DATASET_ROOT_VARIABLE = "FOUNDATION_STEREO_ROOT"
"""The environment variable that names the FSD folder where no flag does."""
DEFAULT_ROOT = "~/Reference/OffTopic/Datasets/FoundationStereo"
"""The FSD folder where neither a flag nor the variable names one."""


@runtime_checkable
class StereoDataset(Protocol):
    """Pairs with the left view's disparity, by position."""

    @property
    def names(self) -> SampleNames:
        """Scene and frame of each sample; a scene's frames may be near-duplicates of each other."""
        ...

    @property
    def incomplete(self) -> tuple[Incomplete, ...]:
        """Frames that are no samples because a file is missing."""
        ...

    def __len__(self) -> int: ...

    def read(self, i: int, size: tuple[int, int] | None = None) -> StereoSample:
        """Read sample i at its native size, or at another (height, width); raises DataError where that fails."""
        ...

    def stamp(self, i: int) -> SourceStamp:
        """Return what tells whether sample i has changed since it was cached; raises DataError where it is gone."""
        ...


DATASET_SOURCES: dict[str, Callable[[Path, Path | None], StereoDataset]] = {
    "fsd": open_fsd,
    "folders": lambda root, _: open_folders(root),
    "synthetic": lambda root, _: open_synthetic(str(root)),
}
"""Name -> what opens the data set at a root, given a folder that may keep a scan of it; others are torchvision's."""


def open_dataset(name: str, root: Path, *, keep_in: Path | None = None, download: bool = False) -> StereoDataset:
    """Return the data set that `--dataset` calls `name`.

    Args:
        name: one of `options.datasets.DATASET_NAMES`.
        root: its folder; of synthetic scenes their number.
        keep_in: a folder that keeps the scan of a large FSD tree.
        download: fetch what is not there; only middlebury2014 can.

    Raises:
        DataError: nothing usable is there.
        UserError: it cannot be downloaded.
    """
    if download and name != "middlebury2014":
        raise UserError(f"--download: torchvision downloads only middlebury2014; get {name} from its authors")
    if name in DATASET_SOURCES:
        return DATASET_SOURCES[name](root, keep_in)
    from foundation_stereo_depth.data.torchvision_datasets import open_benchmark  # noqa: PLC0415 (half a second)

    return open_benchmark(name, root, download=download)


def find_dataset_root(named: Path | None) -> Path | None:
    """Return the FSD folder: the one that the flag names, else the environment's, else the default if it has a scene.

    An empty variable stands for no data set at all.
    """
    if named is not None:
        return named
    if (variable := os.environ.get(DATASET_ROOT_VARIABLE)) is not None:
        return Path(expand_home(variable)) if variable else None
    default = Path(expand_home(DEFAULT_ROOT))
    if not holds_scene(default):
        return None
    logger.info("data set: %s (the default; --dataset-root or $%s names another)", default, DATASET_ROOT_VARIABLE)
    return default


@dataclass(frozen=True, kw_only=True)
class MixedDataset:
    """Several data sets as one: their samples one after the other.

    Attributes:
        parts: the data sets.
        first: position of each one's first sample, and the number of all samples.
        weights: how often an epoch of training visits the samples of each.
        names: each scene's name begins with the name of its data set, so that cache entries do not collide.
    """

    parts: tuple[StereoDataset, ...]
    first: Int64[np.ndarray, " _"]
    weights: tuple[float, ...]
    names: SampleNames

    @property
    def incomplete(self) -> tuple[Incomplete, ...]:
        """Return those of all parts."""
        return tuple(frame for part in self.parts for frame in part.incomplete)

    def __len__(self) -> int:
        return len(self.names)

    def read(self, i: int, size: tuple[int, int] | None = None) -> StereoSample:
        """Read sample i from the data set that it belongs to."""
        part, position = self._locate(i)
        return part.read(position, size)

    def stamp(self, i: int) -> SourceStamp:
        """Return the stamp of sample i."""
        part, position = self._locate(i)
        return part.stamp(position)

    def _locate(self, i: int) -> tuple[StereoDataset, int]:
        part = int(np.searchsorted(self.first, i, side="right")) - 1
        return self.parts[part], i - int(self.first[part])


def open_mixture(sources: Sequence[DatasetSource], keep_in: Path | None = None) -> MixedDataset:
    """Return one or several data sets as one; a single one keeps its sample names.

    The order of `sources` does not matter: the parts are sorted by name.

    Raises:
        DataError: one of them is not usable, or two of them cannot be told apart by name.
    """
    ordered = sorted(sources, key=_prefix_of)
    prefixes = ["" if len(sources) == 1 else _prefix_of(source) for source in ordered]
    for one, other, prefix in zip(ordered, ordered[1:], prefixes[1:], strict=False):
        if prefix == _prefix_of(one):
            raise DataError(
                f"--dataset-root {one.root} and {other.root}: samples of both would be called {prefix}...; give one of "
                "the folders (or a link to it) another name"
            )
    parts = tuple(open_dataset(source.name, source.root, keep_in=keep_in) for source in ordered)
    return MixedDataset(
        parts=parts,
        first=np.cumsum([0, *map(len, parts)], dtype=np.int64),
        weights=tuple(source.weight for source in ordered),
        names=join_names([(prefix, part.names) for prefix, part in zip(prefixes, parts, strict=True)]),
    )


def _prefix_of(source: DatasetSource) -> str:
    """Return what begins the names of a data set's scenes in a mixture; it stays when other data sets are added."""
    folder = "" if source.name == "synthetic" else f"-{source.root.resolve().name}"
    return f"{source.name}{folder}{DATASET_SEPARATOR}"

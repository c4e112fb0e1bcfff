"""Finding the samples of a FoundationStereo tree, and dividing them into training and validation.

    <root>/<scene>/dataset/data/{left/rgb,right/rgb}/NNNN.{jpg,jpeg,png}   and   left/disparity/NNNN.png

Any subset of the scenes is a data set. Frames are paired by name, never by rewriting paths, and everything is sorted,
so that the same tree gives the same samples on every machine.
"""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

from foundation_stereo_depth.data.formats import read_fsd_disparity, read_rgb
from foundation_stereo_depth.data.sample import SampleNames, SourceStamp, StereoSample
from foundation_stereo_depth.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
"""In order of preference, should one frame come in several."""
DISPARITY_SUFFIX = ".png"

DATASET_ROOT_VARIABLE = "FOUNDATION_STEREO_ROOT"
"""The environment variable that names the data set where no flag does."""

_LEFT = Path("dataset/data/left/rgb")
_RIGHT = Path("dataset/data/right/rgb")
_DISPARITY = Path("dataset/data/left/disparity")


class SamplePaths(NamedTuple):
    """The three files of one sample."""

    left: Path
    right: Path
    disparity: Path


@dataclass(frozen=True, kw_only=True)
class Incomplete:
    """A frame that lacks an eye or its disparity map."""

    name: str
    missing: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name} (no {', no '.join(self.missing)})"


@dataclass(frozen=True, kw_only=True)
class FsdIndex:
    """Every complete sample below `root`, sorted by scene and frame.

    Attributes:
        names: scene and frame of each sample.
        suffixes: for each sample, the positions in IMAGE_SUFFIXES of its left and right picture.
        incomplete: frames that were left out, with what they lack.
    """

    root: Path
    names: SampleNames
    suffixes: UInt8[np.ndarray, "N 2"]
    incomplete: tuple[Incomplete, ...]

    def __len__(self) -> int:
        return len(self.names)

    def paths(self, i: int) -> SamplePaths:
        """The files of sample i."""
        scene, stem = self.root / self.names.scene(i), self.names.stem(i)
        left, right = (IMAGE_SUFFIXES[int(s)] for s in self.suffixes[i])
        return SamplePaths(
            left=scene / _LEFT / (stem + left),
            right=scene / _RIGHT / (stem + right),
            disparity=scene / _DISPARITY / (stem + DISPARITY_SUFFIX),
        )


def named_dataset_root(named: Path | None) -> Path | None:
    """The data set's folder: the one that the flag names, else the environment's, else None."""
    return named or (Path(variable) if (variable := os.environ.get(DATASET_ROOT_VARIABLE)) else None)


def find_samples(root: Path) -> FsdIndex:
    """The index of whatever subset of FSD's scenes lies below `root`.

    Raises:
        DataError: `root` is no folder, or holds no complete sample.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; --dataset-root names the folder that holds the scenes")
    scenes = sorted(entry.name for entry in os.scandir(root) if (root / entry.name / _LEFT.parent.parent).is_dir())
    if not scenes:
        hint = f"; did you mean {root.parent}?" if (root / _LEFT.parent.parent).is_dir() else ""
        raise DataError(f"{root}: holds no <scene>/dataset/data folder{hint}")

    frames: list[tuple[int, str]] = []
    suffixes: list[tuple[int, int]] = []
    incomplete: list[Incomplete] = []
    for position, scene in enumerate(scenes):
        left = _frames(root / scene / _LEFT, IMAGE_SUFFIXES)
        right = _frames(root / scene / _RIGHT, IMAGE_SUFFIXES)
        disparity = _frames(root / scene / _DISPARITY, (DISPARITY_SUFFIX,))
        parts = {"left picture": left, "right picture": right, "disparity map": disparity}
        for stem in sorted({*left, *right, *disparity}):
            missing = tuple(part for part, found in parts.items() if stem not in found)
            if missing:
                incomplete.append(Incomplete(name=f"{scene}/{stem}", missing=missing))
                continue
            frames.append((position, stem))
            suffixes.append((left[stem], right[stem]))
    if not frames:
        example = f"; for example {incomplete[0]}" if incomplete else ""
        raise DataError(f"{root}: none of its {len(scenes)} scenes holds a complete sample{example}")
    return FsdIndex(
        root=root,
        names=SampleNames.from_pairs(tuple(scenes), frames),
        suffixes=np.array(suffixes, np.uint8),
        incomplete=tuple(incomplete),
    )


def read_fsd_sample(paths: SamplePaths) -> StereoSample:
    """One sample at its native size.

    Raises:
        DataError: a file cannot be decoded, or the three do not have one size.
    """
    left, right, disparity_px = read_rgb(paths.left), read_rgb(paths.right), read_fsd_disparity(paths.disparity)
    for path, array in ((paths.right, right), (paths.disparity, disparity_px)):
        if array.shape[:2] != left.shape[:2]:
            raise DataError(f"{path}: is {_size(array)}, but {paths.left} is {_size(left)}; the eyes must match")
    return StereoSample(left=left, right=right, disparity_px=disparity_px)


def source_stamp(paths: SamplePaths) -> SourceStamp:
    """Sizes and times of the last change of a sample's files, to be taken before they are read.

    Raises:
        DataError: one is missing or forbidden.
    """
    try:
        facts = [path.stat() for path in paths]
    except OSError as error:
        raise DataError(f"{error.filename}: {error.strerror}") from error
    return np.array([(fact.st_size, fact.st_mtime_ns) for fact in facts], np.int64)


class Split(NamedTuple):
    """Which samples of an index train and which validate: sorted positions, and how they were divided."""

    train: Int64[np.ndarray, " train"]
    validation: Int64[np.ndarray, " validation"]
    by: str


def take_spread(names: SampleNames, at_most: int | None) -> Int64[np.ndarray, " n"]:
    """Positions of at most `at_most` samples, the same on every machine, spread at random over all scenes, sorted."""
    if at_most is None or at_most >= len(names):
        return np.arange(len(names), dtype=np.int64)
    return np.sort(_ranked(names)[:at_most])


def split_samples(names: SampleNames, taken: Int64[np.ndarray, " n"], val_fraction: float) -> Split:
    """Training and validation samples, decided by their names alone: no seed, no order, no machine changes them.

    Frames of one scene are near-duplicates, so whole scenes are kept for validation where there are enough for the
    fraction to come out (at least 1 / val_fraction scenes); with fewer, single frames are.

    Args:
        names: every sample.
        taken: the positions to divide.
        val_fraction: the share to keep; 0 validates on the training samples.

    Raises:
        DataError: nothing would be left to train on.
    """
    if val_fraction == 0:
        return Split(taken, taken, "nothing: validation repeats the training samples")
    scene_of = names.scene_of[taken]
    scenes = np.unique(scene_of)
    if len(scenes) * val_fraction >= 1:
        order = _ranked([names.scenes[s] for s in scenes])
        kept = scenes[order[: max(1, round(len(scenes) * val_fraction))]]
        chosen = np.isin(scene_of, kept)
        by = f"scene: {len(kept)} of {len(scenes)} scenes validate"
    else:
        chosen = np.zeros(len(taken), bool)
        chosen[_ranked([names.name(int(i)) for i in taken])[: max(1, round(len(taken) * val_fraction))]] = True
        by = f"frame: {len(scenes)} scenes are too few to keep some apart, so validation may look too good"
    if chosen.all():
        raise DataError(f"{len(taken)} samples are too few to keep {val_fraction:.0%} apart; use --val-fraction 0")
    return Split(taken[~chosen], taken[chosen], by)


def fingerprint(names: Iterable[str]) -> str:
    """Twelve hex digits that identify a list of samples: the data set's identity in a run's record."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode() + b"\0")
    return digest.hexdigest()[:12]


def _frames(folder: Path, suffixes: tuple[str, ...]) -> dict[str, int]:
    """Frame name -> position of its suffix; the preferred suffix where a frame has several."""
    frames: dict[str, int] = {}
    if not folder.is_dir():
        return frames
    for entry in os.scandir(folder):
        stem, suffix = os.path.splitext(entry.name)  # noqa: PTH122 (a Path per file costs more than the scan)
        if suffix in suffixes:
            frames[stem] = min(frames.get(stem, len(suffixes)), suffixes.index(suffix))
    return frames


def _ranked(names: Iterable[str]) -> Int64[np.ndarray, " n"]:
    """Positions of `names` in an order that looks random and depends on the names alone."""
    digests = [hashlib.sha256(name.encode()).digest() for name in names]
    return np.array(sorted(range(len(digests)), key=digests.__getitem__), np.int64)


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"

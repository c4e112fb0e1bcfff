"""Finding the samples of a FoundationStereo tree, and dividing them into training and validation.

    <root>/<scene>/dataset/data/{left/rgb,right/rgb}/NNNN.{jpg,jpeg,png}   and   left/disparity/NNNN.png

Any subset of the scenes is a data set. Frames are paired by name, never by rewriting paths, and everything is sorted,
so that the same tree gives the same samples on every machine.
"""

import hashlib
import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64, UInt8

from foundation_stereo_depth.data.codecs import (
    decode_fsd_disparity,
    plausible_fsd_disparity,
    read_fsd_code,
    read_rgb,
)
from foundation_stereo_depth.data.loops import Loops
from foundation_stereo_depth.data.sample import SampleNames, SourceStamp, StereoSample, as_utf8, resize_image
from foundation_stereo_depth.data.scan import (
    DATA,
    DISPARITY,
    DISPARITY_SUFFIX,
    IMAGE_SUFFIXES,
    LEFT,
    RIGHT,
    Incomplete,
    scan,
)
from foundation_stereo_depth.errors import DataError
from foundation_stereo_depth.stereo.disparity import resize_disparity

DATASET_ROOT_VARIABLE = "FOUNDATION_STEREO_ROOT"
"""The environment variable that names the data set where no flag does."""


class SamplePaths(NamedTuple):
    """The three files of one sample."""

    left: Path
    right: Path
    disparity: Path


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
            left=scene / LEFT / (stem + left),
            right=scene / RIGHT / (stem + right),
            disparity=scene / DISPARITY / (stem + DISPARITY_SUFFIX),
        )


def find_dataset_root(named: Path | None) -> Path | None:
    """The data set's folder: the one that the flag names, else the environment's, else None."""
    return named or (Path(variable) if (variable := os.environ.get(DATASET_ROOT_VARIABLE)) else None)


def find_samples(root: Path, keep_in: Path | None = None, tell: Callable[[str], None] = lambda _: None) -> FsdIndex:
    """The index of whatever subset of FSD's scenes lies below `root`.

    Args:
        root: the data set.
        keep_in: a folder that keeps a large scan: the next start scans only where files came or went.
        tell: says to the user that the scan cannot be kept.

    Raises:
        DataError: `root` is no folder, or holds no complete sample, or the kept scan is damaged.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; --dataset-root names the folder that holds the scenes")
    scenes = sorted(entry.name for entry in os.scandir(root) if _is_scene(entry.path, tell))
    if not scenes:
        hint = f"; did you mean {root.parent}?" if (root / DATA).is_dir() else ""
        raise DataError(f"{root}: holds no <scene>/dataset/data folder{hint}")
    for scene in scenes:
        as_utf8(scene)
    scans, trouble = scan(root, scenes, keep_in)
    if trouble:
        tell(trouble)
    incomplete = tuple(frame for one in scans for frame in one.incomplete)
    counts = [len(one.lengths) for one in scans]
    if not sum(counts):
        example = f"; for example {incomplete[0]}" if incomplete else ""
        raise DataError(f"{root}: none of its {len(scenes)} scenes holds a complete sample{example}")
    return FsdIndex(
        root=root,
        names=SampleNames(
            scenes=tuple(scenes),
            scene_of=np.repeat(np.arange(len(scenes), dtype=np.uint32), counts),
            stems=np.concatenate([one.stems for one in scans]),
            stem_ends=np.cumsum(np.concatenate([one.lengths for one in scans]), dtype=np.int64),
        ),
        suffixes=np.concatenate([one.suffixes for one in scans]),
        incomplete=incomplete,
    )


def _is_scene(folder: str, tell: Callable[[str], None]) -> bool:
    try:
        return stat.S_ISDIR(os.stat(f"{folder}/{DATA}").st_mode)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        tell(f"{folder}: cannot be entered ({error.strerror}), and is left out")
        return False


def read_fsd_sample(
    paths: SamplePaths, size: tuple[int, int] | None = None, loops: Loops | None = None
) -> StereoSample:
    """One sample at its native size, or at another height and width; with compiled loops the same, but faster.

    The result at another size is `resize_sample`'s, but no more of the disparity is decoded than is kept.

    Raises:
        DataError: a file cannot be decoded, or the three do not have one size.
    """
    left, right, code = read_rgb(paths.left), read_rgb(paths.right), read_fsd_code(paths.disparity, loops)
    for path, array in ((paths.right, right), (paths.disparity, code)):
        if array.shape[:2] != left.shape[:2]:
            raise DataError(f"{path}: is {_size(array)}, but {paths.left} is {_size(left)}; the eyes must match")

    def decode(sampled: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w"]:
        return plausible_fsd_disparity(paths.disparity, decode_fsd_disparity(sampled), code.shape[1])

    height, width = left.shape[:2] if size is None else size
    return StereoSample(
        left=resize_image(left, height, width, loops),
        right=resize_image(right, height, width, loops),
        disparity_px=resize_disparity(code, height, width, decode),
    )


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
        chosen[_ranked(names.some(taken))[: max(1, round(len(taken) * val_fraction))]] = True
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


def _ranked(names: Iterable[str]) -> Int64[np.ndarray, " n"]:
    """Positions of `names` in an order that looks random and depends on the names alone."""
    # Eight bytes of each digest: a million of them are alike with a probability of 3e-8, and then keep their order.
    digests = np.frombuffer(b"".join(hashlib.sha256(name.encode()).digest()[:8] for name in names), ">u8")
    return np.argsort(digests, kind="stable").astype(np.int64, copy=False)


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"

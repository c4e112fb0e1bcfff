"""Which samples train and which validate: decided by their names alone, the same on every machine."""

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from foundation_stereo_depth.data.sample import SampleNames
from foundation_stereo_depth.errors import DataError

DATASET_SEPARATOR = "@@"
"""Stands between the name of a data set and its scenes' names, where several data sets are mixed."""


class Split(NamedTuple):
    """Sorted positions of the samples that train and of those that validate, and how they were divided."""

    train: Int64[np.ndarray, " train"]
    validation: Int64[np.ndarray, " validation"]
    by: str


def take_spread(names: SampleNames, at_most: int | None) -> Int64[np.ndarray, " n"]:
    """Return sorted positions of at most `at_most` samples, spread over all scenes, the same on every machine."""
    if at_most is None or at_most >= len(names):
        return np.arange(len(names), dtype=np.int64)
    return np.sort(rank_by_name(names)[:at_most])


def split_samples(names: SampleNames, taken: Int64[np.ndarray, " n"], val_fraction: float) -> Split:
    """Return training and validation samples: no seed, order or machine changes them.

    Frames of one scene are near-duplicates, so entire scenes are kept for validation where there are enough of them
    (at least 1 / val_fraction); with fewer, single frames are. Of several data sets each is split by itself, as it
    would be alone.

    Args:
        names: every sample.
        taken: the positions to divide.
        val_fraction: the fraction to keep; 0 validates on the training samples.

    Raises:
        DataError: nothing would be left to train on.
    """
    if val_fraction == 0:
        return Split(taken, taken, "nothing: validation repeats the training samples")
    parted = [scene.partition(DATASET_SEPARATOR) for scene in names.scenes]
    prefix_of = [dataset + separator if separator else "" for dataset, separator, _ in parted]
    prefixes = sorted(set(prefix_of))
    dataset_of = np.array([prefixes.index(prefix) for prefix in prefix_of])[names.scene_of[taken]]
    chosen = np.zeros(len(taken), bool)
    reasons: list[str] = []
    for dataset in np.unique(dataset_of).tolist():
        mine, prefix = dataset_of == dataset, prefixes[dataset]
        chosen[mine], by = _choose_validation(names, taken[mine], val_fraction, prefix)
        reasons.append(f"{prefix.removesuffix(DATASET_SEPARATOR)}: {by}" if prefix else by)
    return Split(taken[~chosen], taken[chosen], "; ".join(reasons))


def _choose_validation(
    names: SampleNames, taken: Int64[np.ndarray, " n"], val_fraction: float, prefix: str
) -> tuple[Bool[np.ndarray, " n"], str]:
    """Return which samples of one data set validate, and how they were divided; `prefix` is no part of their names."""
    scene_of = names.scene_of[taken]
    scenes = np.unique(scene_of)
    if len(scenes) * val_fraction >= 1:
        order = rank_by_name(names.scenes[s].removeprefix(prefix) for s in scenes)
        kept = scenes[order[: max(1, round(len(scenes) * val_fraction))]]
        chosen = np.isin(scene_of, kept)
        by = f"scene: {len(kept)} of {len(scenes)} scenes validate"
    else:
        chosen = np.zeros(len(taken), bool)
        order = rank_by_name(name.removeprefix(prefix) for name in names.some(taken))
        chosen[order[: max(1, round(len(taken) * val_fraction))]] = True
        by = f"frame: {len(scenes)} scenes are too few to keep some apart, so validation may be optimistic"
    if chosen.all():
        raise DataError(f"{len(taken)} samples are too few to keep {val_fraction:.0%} apart; use --val-fraction 0")
    return chosen, by


def fingerprint(names: Iterable[str]) -> str:
    """Return twelve hex digits that identify a list of samples: the data set's identity in a run's record."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode() + b"\0")
    return digest.hexdigest()[:12]


def rank_by_name(names: Iterable[str]) -> Int64[np.ndarray, " n"]:
    """Return the positions of `names` in an order that looks random and depends on the names alone."""
    # Eight bytes of each digest: two of a million are equal with a probability of 3e-8, and then keep their order.
    digests = np.frombuffer(b"".join(hashlib.sha256(name.encode()).digest()[:8] for name in names), ">u8")
    return np.argsort(digests, kind="stable").astype(np.int64, copy=False)

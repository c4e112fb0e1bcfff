"""Batches, and the order in which an epoch visits samples.

The order and every random number follow from (seed, epoch, index) alone, whatever the number of threads.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

Positions = Int64[np.ndarray, " _"]

VALIDATION_EPOCH = -1
"""The epoch whose random numbers validation uses, always the same."""


class ReadCounts(NamedTuple):
    """Counts of what reading met; those of two periods add up field by field.

    Attributes:
        cache_hits, cache_misses: samples that were read from the cache, and from their own files though there is one.
        rebuilt: entries that were damaged and have been rebuilt.
        bad: samples that could not be read, with the reason.
        unwritten: misses that could not be written to the cache, so that the next epoch will miss them again.
    """

    cache_hits: int = 0
    cache_misses: int = 0
    rebuilt: tuple[str, ...] = ()
    bad: tuple[str, ...] = ()
    unwritten: int = 0

    def plus(self, other: "ReadCounts") -> "ReadCounts":
        """Return the counts of both."""
        return ReadCounts(
            self.cache_hits + other.cache_hits,
            self.cache_misses + other.cache_misses,
            self.rebuilt + other.rebuilt,
            self.bad + other.bad,
            self.unwritten + other.unwritten,
        )


@dataclass(frozen=True, kw_only=True)
class StereoBatch:
    """A batch as it is copied to the device: images as bytes, no float yet.

    Attributes:
        left, right: RGB.
        disparity_px: of the left view, at this size; NaN or 0 where unknown. float16 where it came from a cache, and
            float32 on the device.
        indices: the sample's position in its source, from which its random numbers follow.
        counts: what reading it met.
    """

    left: UInt8[Tensor, "B 3 H W"]
    right: UInt8[Tensor, "B 3 H W"]
    disparity_px: Float[Tensor, "B 1 H W"]
    indices: Int64[Tensor, " B"]
    counts: ReadCounts = ReadCounts()

    def to(self, device: torch.device) -> "StereoBatch":
        """Return the batch on a device, disparity in float32, without waiting where the memory is pinned."""
        left, right, disparity_px, indices = (
            tensor.to(device, non_blocking=True) for tensor in (self.left, self.right, self.disparity_px, self.indices)
        )
        return replace(self, left=left, right=right, disparity_px=disparity_px.float(), indices=indices)

    def pinned(self) -> "StereoBatch":
        """Return the batch in page-locked memory, from which a GPU copies without waiting."""
        return replace(
            self,
            left=self.left.pin_memory(),
            right=self.right.pin_memory(),
            disparity_px=self.disparity_px.pin_memory(),
        )


@runtime_checkable
class Source(Protocol):
    """Batches of samples by position."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Return the sample's name for messages."""
        ...

    def batches(self, plan: Sequence[Positions], epoch: int) -> Iterator[StereoBatch]:
        """Yield one batch per entry of `plan`, in that order."""
        ...


def training_plan(
    length: int, batch_size: int, *, seed: int, epoch: int, rank: int = 0, world_size: int = 1
) -> list[Positions]:
    """Return the batches of one epoch for one process: shuffled positions, the same for any number of processes.

    `batch_size` counts the samples of all processes together; each takes its part of every batch. The last batch is
    filled up from the beginning of the epoch's order, so that all batches have one size.
    """
    order = np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(length)
    steps = -(-length // batch_size)
    order = np.resize(order, steps * batch_size).reshape(steps, batch_size)
    part = batch_size // world_size
    return list(order[:, rank * part : (rank + 1) * part])


def validation_plan(length: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> list[Positions]:
    """Return every position exactly once over all processes, in order; the last batch may be smaller."""
    mine = np.arange(rank, length, world_size)
    return [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]

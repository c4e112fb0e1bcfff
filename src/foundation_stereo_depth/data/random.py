"""Random numbers that belong to a sample rather than to a stream.

Every sample of every epoch has a key; every draw is a hash of (key, what it is for, position). So a batch of any size,
on any number of processes, threads or devices, gives each sample the same draws, and nothing needs to be saved to
repeat them.
"""

import functools
import math
import zlib
from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

Keys = Int64[Tensor, " B"]


def _signed(value: int) -> int:
    """The signed 64-bit integer with the same bits."""
    value %= 2**64
    return value - 2**64 if value >= 2**63 else value


# Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014, figure 17 (variant 13).
_GOLDEN_GAMMA = _signed(0x9E3779B97F4A7C15)
_MULTIPLIERS = (_signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB))


def _mixed(state: Int64[Tensor, "*shape"]) -> Int64[Tensor, "*shape"]:
    """The finaliser of SplitMix64. Tensor arithmetic wraps around; `>>` copies the sign, which the masks undo."""
    state = (state ^ ((state >> 30) & (2**34 - 1))) * _MULTIPLIERS[0]
    state = (state ^ ((state >> 27) & (2**37 - 1))) * _MULTIPLIERS[1]
    return state ^ ((state >> 31) & (2**33 - 1))


def sample_keys(seed: int, epoch: int, indices: Int64[Tensor, " B"]) -> Keys:
    """One key per sample, on the device of `indices`; epochs below 0 are free for other uses than training."""
    state = torch.full_like(indices, seed)
    for part in (torch.full_like(indices, epoch), indices):
        state = _mixed(state * _GOLDEN_GAMMA + part)
    return state


class Range(NamedTuple):
    """Numbers that belong together: so many from `low` to below `high`."""

    shape: tuple[int, ...] = ()
    low: float = 0.0
    high: float = 1.0


@functools.lru_cache(maxsize=256)
def _constants(ranges: tuple[tuple[str, Range], ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For each number of each range: what its purpose and its position add to a key, its low end, its span / 2^24."""
    counts = [math.prod(of.shape) for _, of in ranges]
    purposes = torch.tensor([zlib.crc32(purpose.encode()) * 2**20 for purpose, _ in ranges], dtype=torch.int64)
    positions = torch.cat([torch.arange(1, count + 1) * _GOLDEN_GAMMA for count in counts])
    low, high = (torch.tensor([getattr(of, end) for _, of in ranges], dtype=torch.float32) for end in ("low", "high"))
    repeats = torch.tensor(counts)
    purposes, low, span = (of_range.repeat_interleave(repeats) for of_range in (purposes, low, (high - low) / 2**24))
    return purposes.to(device), positions.to(device), low.to(device), span.to(device)


def uniforms(keys: Keys, ranges: Mapping[str, Range]) -> dict[str, Float[Tensor, "B ..."]]:
    """Numbers for several purposes, as `uniform` gives them one by one; together they take the time of one."""
    purposes, positions, low, step = _constants(tuple(ranges.items()), keys.device)
    bits = _mixed(_mixed(keys[:, None] + purposes) + positions)
    numbers = torch.addcmul(low, step, ((bits >> 40) & (2**24 - 1)).to(torch.float32))
    parts = numbers.split([math.prod(of.shape) for of in ranges.values()], dim=1)
    return {name: part.view(-1, *of.shape) for (name, of), part in zip(ranges.items(), parts, strict=True)}


def uniform(keys: Keys, purpose: str, *shape: int, low: float = 0.0, high: float = 1.0) -> Float[Tensor, " B *shape"]:
    """Numbers in [low, high), float32, one block of `shape` per key; `purpose` keeps the draws of one key apart."""
    return uniforms(keys, {purpose: Range(shape, low, high)})[purpose]


def chance(keys: Keys, purpose: str, *shape: int, probability: float) -> Tensor:
    """True with the given probability, one block of `shape` per key."""
    return uniform(keys, purpose, *shape) < probability


def whole(keys: Keys, purpose: str, *shape: int, below: int) -> Int64[Tensor, " B *shape"]:
    """Whole numbers from 0 to below - 1."""
    # 24 bits of fraction: for `below` up to a million the unevenness is under 10 %, and no use of ours minds it.
    return (uniform(keys, purpose, *shape) * below).to(torch.int64)

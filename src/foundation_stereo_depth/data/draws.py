"""Random numbers that belong to a sample rather than to a stream.

Every sample of every epoch has a key; every draw is a hash of (key, what it is for, position). So a batch of any size,
on any number of processes, threads or devices, gives each sample the same draws, and nothing needs to be saved to
repeat them.
"""

import math
import zlib

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


def uniform(keys: Keys, purpose: str, *shape: int, low: float = 0.0, high: float = 1.0) -> Float[Tensor, " B *shape"]:
    """Numbers in [low, high), float32, one block of `shape` per key; `purpose` keeps the draws of one key apart."""
    count = math.prod(shape)
    counter = torch.arange(1, count + 1, device=keys.device)
    stream = _mixed(keys + zlib.crc32(purpose.encode()) * 2**20)
    bits = _mixed(stream[:, None] + counter * _GOLDEN_GAMMA)
    unit = ((bits >> 40) & (2**24 - 1)).to(torch.float32) / 2**24
    return (low + (high - low) * unit).reshape(-1, *shape)


def chance(keys: Keys, purpose: str, *shape: int, probability: float) -> Tensor:
    """True with the given probability, one block of `shape` per key."""
    return uniform(keys, purpose, *shape) < probability


def whole(keys: Keys, purpose: str, *shape: int, below: int) -> Int64[Tensor, " B *shape"]:
    """Whole numbers from 0 to below - 1."""
    # 24 bits of fraction: for `below` up to a million the unevenness is under 10 %, and no use of ours minds it.
    return (uniform(keys, purpose, *shape) * below).to(torch.int64)

"""Random numbers from (key, purpose, position), bit for bit those of `data/draws.py`, for compiled loops."""

# Types of compiled functions are numba's to infer.
# pyright: basic

import math
import zlib

import numpy as np

from foundation_stereo_depth.data.synthetic.compiling import compiled

_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER_1, _MULTIPLIER_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S40 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(40)
_STEPS = np.float32(2.0**24)


def purpose(name: str) -> np.uint64:
    """Return what keeps the numbers of this purpose apart from those of others."""
    return np.uint64(zlib.crc32(name.encode()) * 2**20)


@compiled
def _mixed(state: np.uint64) -> np.uint64:
    """Return the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014, figure 17, variant 13)."""
    state = (state ^ (state >> _S30)) * _MULTIPLIER_1
    state = (state ^ (state >> _S27)) * _MULTIPLIER_2
    return state ^ (state >> _S31)


@compiled
def sample_key(seed: int, epoch: int, index: int) -> np.uint64:
    """Return the key of one sample of one epoch."""
    state = _mixed(np.uint64(seed) * _GOLDEN_GAMMA + np.uint64(epoch))
    return _mixed(state * _GOLDEN_GAMMA + np.uint64(index))


@compiled
def uniform(key: np.uint64, purpose: np.uint64, position: int, low: float, high: float) -> np.float32:
    """Return the number at a position of a purpose's block, in [low, high)."""
    bits = _mixed(_mixed(key + purpose) + np.uint64(position + 1) * _GOLDEN_GAMMA) >> _S40
    return np.float32(low) + np.float32((np.float32(high) - np.float32(low)) / _STEPS) * np.float32(bits)


@compiled
def chance(key: np.uint64, purpose: np.uint64, position: int, probability: float) -> bool:
    """Return True with the given probability."""
    return bool(uniform(key, purpose, position, 0.0, 1.0) < np.float32(probability))


@compiled
def whole(key: np.uint64, purpose: np.uint64, position: int, below: int) -> int:
    """Return a whole number from 0 to below - 1."""
    return int(uniform(key, purpose, position, 0.0, 1.0) * np.float32(below))


@compiled
def next_uniform(stream: np.ndarray, low: float, high: float) -> float:
    """Return the next number of a stream (key and position, uint64 [2]), in [low, high)."""
    stream[1] += np.uint64(1)
    bits = _mixed(stream[0] + stream[1] * _GOLDEN_GAMMA) >> _S40
    return low + (high - low) * (float(bits) / 2.0**24)


@compiled
def next_log_uniform(stream: np.ndarray, low: float, high: float) -> float:
    """Return the next number, even on a logarithmic scale."""
    return math.exp(next_uniform(stream, math.log(low), math.log(high)))


@compiled
def next_chance(stream: np.ndarray, probability: float) -> bool:
    """Return True with the given probability."""
    return next_uniform(stream, 0.0, 1.0) < probability


@compiled
def next_whole(stream: np.ndarray, below: int) -> int:
    """Return the next whole number from 0 to below - 1."""
    return int(next_uniform(stream, 0.0, 1.0) * below)

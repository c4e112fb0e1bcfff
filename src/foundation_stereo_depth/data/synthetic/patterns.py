"""Patterns of surfaces, averaged over about a sample's width: chessboards, tiles, bricks, books, folds."""

# Types of compiled functions are numba's to infer.
# pyright: basic

import numpy as np

from foundation_stereo_depth.data.synthetic.compiling import compiled
from foundation_stereo_depth.data.synthetic.primitives import BOOKS, CHESS, FOLDS
from foundation_stereo_depth.data.synthetic.rasterise import sine

_0, _1, _2, _HALF = (np.float32(value) for value in (0, 1, 2, 0.5))
_TURN = np.float32(2 * np.pi)


@compiled
def _hashed(m, n, seed):
    """Return 32 well-mixed bits for a cell (the finaliser of MurmurHash3)."""
    bits = np.uint32(m) * np.uint32(0x9E3779B1) + np.uint32(n) * np.uint32(0x85EBCA77) + np.uint32(seed)
    bits = (bits ^ (bits >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    bits = np.uint32(bits)
    bits = np.uint32((bits ^ (bits >> np.uint32(13))) * np.uint32(0xC2B2AE35))
    return np.uint32(bits ^ (bits >> np.uint32(16)))


@compiled
def _share(bits, shift):
    """Return eight of the bits as a number from -1 to 1."""
    return np.float32(np.int32((bits >> np.uint32(shift)) & np.uint32(255))) * np.float32(2 / 255) - _1


@compiled
def _solid(at, joint, half):
    """Return how much of at - half .. at + half lies outside joints, which are the first `joint` of each unit."""
    lower, upper = at - half, at + half
    whole_lower, whole_upper = np.floor(lower), np.floor(upper)
    inside = _1 - joint
    before = whole_lower * inside + max(lower - whole_lower - joint, _0)
    after = whole_upper * inside + max(upper - whole_upper - joint, _0)
    return (after - before) / (upper - lower)


@compiled
def _square_wave(at, half):
    """Return the mean over at - half .. at + half of a wave that is +1 for one unit and -1 for the next."""
    lower, upper = (at - half) * _HALF, (at + half) * _HALF
    whole_lower, whole_upper = np.floor(lower), np.floor(upper)
    # The integral of the wave over whole periods is zero, so what is left is a triangle.
    before, after = lower - whole_lower, upper - whole_upper
    return (min(after, _1 - after) - min(before, _1 - before)) / (upper - lower)


@compiled
def shade_pattern(primitive, v, step_px, begin, count, x, d, red, green, blue):  # noqa: PLR0915 (a kernel: calls in its loops would not be vectorised)
    """Change the colours by the primitive's pattern, averaged over about a sample's width."""
    m_x, n_x = primitive.m_x, primitive.n_x
    m_0, n_0 = primitive.m_y * v + primitive.m_1, primitive.n_y * v + primitive.n_1
    gx, gy, pattern, seed = primitive.gx, primitive.gy, primitive.pattern, primitive.pattern_seed
    red_2, green_2, blue_2 = primitive.red_2, primitive.green_2, primitive.blue_2
    joint_m, joint_n, shift, vary, tint = (
        primitive.joint_m,
        primitive.joint_n,
        primitive.shift,
        primitive.vary,
        primitive.tint,
    )
    centre_x = primitive.centre_x
    for j in range(count):
        i = begin + np.uint64(j)
        u = x[i] - centre_x
        w = _1 / d[i] if primitive.projective else _1
        m, n = (m_x * u + m_0) * w, (n_x * u + n_0) * w
        slope_m, slope_n = gx, gy
        if not primitive.projective:
            slope_m, slope_n = _0, _0
        half_m = _HALF * step_px * w * (abs(m_x - m * slope_m) + abs(primitive.m_y - m * slope_n))
        half_n = _HALF * step_px * w * (abs(n_x - n * slope_m) + abs(primitive.n_y - n * slope_n))
        half_m, half_n = max(half_m, np.float32(1e-4)), max(half_n, np.float32(1e-4))
        if pattern == CHESS:
            second = _HALF - _HALF * _square_wave(m, half_m) * _square_wave(n, half_n)
            bright = _1
            warm = _0
        elif pattern == FOLDS:
            second = _HALF + _HALF * sine(_TURN * m) * max(_1 - _2 * half_m, _0)
            bright = _1
            warm = _0
        else:
            row = np.floor(n)
            row_bits = _hashed(0, np.int32(row), seed)
            m = m + (shift * row if shift < _1 else _share(row_bits, 0) * np.float32(8))
            column = np.floor(m)
            if pattern == BOOKS:
                # The border between two books lies up to 0.4 of a mean book's width off its place.
                within = m - column
                border = np.float32(0.4) * _share(_hashed(np.int32(column), np.int32(row), seed + 7), 0)
                following = np.float32(0.4) * _share(_hashed(np.int32(column) + 1, np.int32(row), seed + 7), 0)
                if within < border:
                    column, following = column - _1, border
                    border = np.float32(0.4) * _share(_hashed(np.int32(column), np.int32(row), seed + 7), 0)
                elif within >= _1 + following:
                    column, border = column + _1, following
                    following = np.float32(0.4) * _share(_hashed(np.int32(column) + 1, np.int32(row), seed + 7), 0)
                bits = _hashed(np.int32(column), np.int32(row), seed)
                along = (m - column - border) / (_1 + following - border)  # across the back of the book
                height = np.float32(0.78) + np.float32(0.16) * _share(bits, 24)
                up = _1 - (n - row)
                # Backs are round: dark at both sides. Above a book it is dark. The shelf's board is the joint.
                bright = _1 - np.float32(1.4) * (along - _HALF) * (along - _HALF) * (_1 if along < _1 else _0)
                bright = np.float32(0.15) if up > height else bright
                label = np.float32(0.25) + np.float32(0.2) * _share(bits, 4)
                bright += np.float32(0.35) if abs(up - label) < np.float32(0.06) and (bits & np.uint32(3)) > 0 else _0
                bright *= _1 + vary * _share(bits, 0)
                warm = tint * _share(bits, 8)
                second = _1 - _solid(n, joint_n, half_n)
            else:
                bits = _hashed(np.int32(column), np.int32(row), seed)
                fade = max(_1 - _2 * max(half_m, half_n), _0)
                bright = _1 + fade * vary * _share(bits, 0)
                warm = fade * tint * _share(bits, 8)
                second = _1 - _solid(m, joint_m, half_m) * _solid(n, joint_n, half_n)
        first = _1 - second
        red[i] = first * (red[i] * bright + warm) + second * red_2
        green[i] = first * green[i] * bright + second * green_2
        blue[i] = first * (blue[i] * bright - warm) + second * blue_2

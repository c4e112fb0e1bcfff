"""Which primitive is nearest at each sample of a view, and its disparity there."""

# Types of compiled functions are numba's to infer.
# pyright: basic

import numpy as np

from foundation_stereo_depth.data.synthetic.compiling import compiled

_0, _1, _2, _4, _HALF = (np.float32(value) for value in (0, 1, 2, 4, 0.5))
_TURN = np.float32(2 * np.pi)
_SIN_3, _SIN_5, _SIN_7, _SIN_9 = (np.float32(c) for c in (-1 / 6, 1 / 120, -1 / 5040, 1 / 362880))


@compiled
def sine(x: np.float32) -> np.float32:
    """Return sin(x) within 4e-6, in a form that is vectorised."""
    x = x - _TURN * np.floor(x / _TURN + _HALF)  # -pi..pi
    # sin(x) = sin(pi - x): what lies beyond +-pi/2 is folded back.
    folded = abs(x)
    x = np.copysign(min(folded, np.float32(np.pi) - folded), x)
    s = x * x
    return x + x * s * (_SIN_3 + s * (_SIN_5 + s * (_SIN_7 + s * _SIN_9)))


@compiled
def place(p, y, right, xs, first, n, u, d):
    """Fill u and d, the places on a primitive and its disparity there, for n samples of a row from `first` on."""
    v = y - p.centre_y
    across = p.d0 + (p.gy + p.qy * v) * v
    centre_x, gx, qx = p.centre_x, p.gx, p.qx
    if not right:
        for i in range(n):
            u[i] = xs[first + np.uint64(i)] - centre_x
    elif qx == _0:
        slope = _1 / (_1 - gx)
        for i in range(n):
            u[i] = (xs[first + np.uint64(i)] - centre_x + across) * slope
    else:
        slope = _1 - gx
        for i in range(n):
            rest = xs[first + np.uint64(i)] - centre_x + across
            square = slope * slope - _4 * qx * rest
            u[i] = _2 * rest / (slope + np.sqrt(max(square, np.float32(1e-6))))
    for i in range(n):
        d[i] = across + (gx + qx * u[i]) * u[i]


@compiled
def outline(p, v, n, u, d, at_p, at_q):
    """Fill at_p and at_q, the coordinates of the outline."""
    p_x, p_0, q_x, q_0 = p.p_x, p.p_y * v + p.p_1, p.q_x, p.q_y * v + p.q_1
    if p.projective:
        for i in range(n):
            w = _1 / d[i]
            at_p[i] = (p_x * u[i] + p_0) * w
            at_q[i] = (q_x * u[i] + q_0) * w
    else:
        for i in range(n):
            at_p[i] = p_x * u[i] + p_0
            at_q[i] = q_x * u[i] + q_0
    if p.wobble > _0:
        wobble, rate, phase = p.wobble, p.wobble_rate, p.wobble_phase
        for i in range(n):
            at_p[i] += wobble * sine(rate * at_q[i] + phase)
    if p.grating_share < _1:
        gratings, share = p.gratings, p.grating_share
        for i in range(n):
            part = at_q[i] * gratings
            # Moved out of the outline where a gap is.
            at_q[i] = at_q[i] if part - np.floor(part) < share else np.float32(9)


@compiled
def enter(p, k, first, n, d, at_p, at_q, nearest_px, winner):
    """Enter primitive k in a row where it is inside its outline and nearest so far."""
    k = np.int32(k)
    if p.unbounded:
        for i in range(n):
            j = first + np.uint64(i)
            wins = d[i] > nearest_px[j]
            nearest_px[j] = d[i] if wins else nearest_px[j]
            winner[j] = k if wins else winner[j]
        return
    roundness, hollow = p.roundness, p.hollow
    for i in range(n):
        j = first + np.uint64(i)
        box, ellipse = max(abs(at_p[i]), abs(at_q[i])), at_p[i] * at_p[i] + at_q[i] * at_q[i]
        outline = box + roundness * (ellipse - box)
        wins = (outline < _1) & (outline > hollow) & (d[i] > nearest_px[j])
        nearest_px[j] = d[i] if wins else nearest_px[j]
        winner[j] = k if wins else winner[j]


@compiled
def _cut(low, high, slope, offset):
    """Return the part of low..high in which slope u + offset is at least 0."""
    if slope > 0:
        low = max(low, -offset / slope)
    elif slope < 0:
        high = min(high, -offset / slope)
    elif offset < 0:
        low = high + _1
    return low, high


@compiled
def _span(primitives, k, walls, v):
    """Return the stretch low..high of u, in px, that holds the primitive in a row."""
    p = primitives[k]
    low, high = p.left_from - p.centre_x, p.left_to - p.centre_x
    if p.unbounded:
        # A wall of a convex room is seen where no other one is nearer.
        for j in range(walls if k < walls else 0):
            if j != k:
                other = primitives[j]
                low, high = _cut(low, high, p.gx - other.gx, (p.gy - other.gy) * v + (p.d0 - other.d0))
        return low, high
    # |p| < 1 and |q| < 1; of a plane, multiplied by its disparity. The mix of box and ellipse lies within the box.
    p_0, q_0 = p.p_y * v + p.p_1, p.q_y * v + p.q_1
    one_x, one_0 = _0, _1
    if p.projective:
        one_x, one_0 = p.gx, p.gy * v + p.d0
    wide = _1 + p.wobble
    low, high = _cut(low, high, wide * one_x - p.p_x, wide * one_0 - p_0)
    low, high = _cut(low, high, wide * one_x + p.p_x, wide * one_0 + p_0)
    low, high = _cut(low, high, one_x - p.q_x, one_0 - q_0)
    return _cut(low, high, one_x + p.q_x, one_0 + q_0)


@compiled
def _columns(p, low, high, v, right, samples, columns):
    """Return the first sample of a row that may lie in low..high, and how many may."""
    if low > high:
        return 0, 0
    if right:
        across = p.d0 + (p.gy + p.qy * v) * v
        x_low = low - (across + (p.gx + p.qx * low) * low)
        x_high = high - (across + (p.gx + p.qx * high) * high)
        low, high = min(x_low, x_high), max(x_low, x_high)
    # Rounded outwards by a sample: float32 is no more exact than that far beyond the sides.
    begin = min(max((low + p.centre_x + _HALF) * samples - 2, 0), columns)
    end = min(max((high + p.centre_x + _HALF) * samples + 2, 0), columns)
    return int(begin), int(end) - int(begin)


@compiled
def rasterise(primitives, count, walls, right, samples, first_row, xs, ys, nearest_px, winner, scratch):
    """Find the nearest primitive at each sample of a band.

    Args:
        primitives: PRIMITIVE records; the first `count` are in use.
        count: of primitives.
        walls: so many of the first ones are walls of a convex room.
        right: for the right view.
        samples: across and down each pixel.
        first_row: of samples, of the band.
        xs: of the samples of a row, px.
        ys: of the rows of the band, px.
        nearest_px: disparity, filled.
        winner: number of the primitive, filled.
        scratch: rows for intermediate values.
    """
    rows, columns = nearest_px.shape
    nearest_px[:] = -np.inf
    winner[:] = 0
    u, d, at_p, at_q = scratch[0], scratch[1], scratch[2], scratch[3]
    for k in range(count):
        p = primitives[k]
        begin_y = int(min(max(p.top * samples - 1, 0), 1e6)) - first_row
        end_y = int(min(max(p.bottom * samples + samples + 1, 0), 1e6)) - first_row
        for row in range(max(begin_y, 0), min(end_y, rows)):
            v = ys[row] - p.centre_y
            low, high = _span(primitives, k, walls, v)
            begin, n = _columns(p, low, high, v, right, samples, columns)
            if n <= 0:
                continue
            first = np.uint64(begin)
            place(p, ys[row], right, xs, first, n, u, d)
            if not p.unbounded:
                outline(p, v, n, u, d, at_p, at_q)
            enter(p, k, first, n, d, at_p, at_q, nearest_px[row], winner[row])

"""Colours of points whose primitive is known: texture, pattern, light, shadows, exposure."""

# Types of compiled functions are numba's to infer.
# pyright: basic

from typing import NamedTuple

import numpy as np

from foundation_stereo_depth.data.synthetic.compiling import compiled
from foundation_stereo_depth.data.synthetic.patterns import shade_pattern
from foundation_stereo_depth.data.synthetic.primitives import NO_PATTERN
from foundation_stereo_depth.data.synthetic.textures import BLUE_STEPS, REACH, RED_GREEN_STEPS, TEXELS, TEXTURE_SIZE

_0, _1, _2, _4, _HALF = (np.float32(value) for value in (0, 1, 2, 4, 0.5))
_LAST, _MIRRORED = np.float32(TEXTURE_SIZE - 1), np.float32(2 * (TEXTURE_SIZE - 1))
_LOW, _RED_GREEN, _BLUE = np.float32(REACH), np.float32(2 * REACH / RED_GREEN_STEPS), np.float32(2 * REACH / BLUE_STEPS)
_MASK, _BLUE_MASK, _11, _22 = (np.int32(value) for value in (RED_GREEN_STEPS, BLUE_STEPS, 11, 22))
_X, _Y, _D, _A, _B, _LEVEL, _LIT, RED_ROW, GREEN_ROW, BLUE_ROW, _SLOT_ROWS = range(11)


@compiled
def _sigmoid(x: np.float32) -> np.float32:
    """Return 1 / (1 + exp(-x)) within 1e-5: the continued fraction of tanh, in a form that is vectorised."""
    t = min(max(x * _HALF, np.float32(-5)), np.float32(5))
    s = t * t
    above = t * (np.float32(135135) + s * (np.float32(17325) + s * (np.float32(378) + s)))
    below = np.float32(135135) + s * (np.float32(62370) + s * (np.float32(3150) + s * np.float32(28)))
    return _HALF + _HALF * min(max(above / below, -_1), _1)


class Slots(NamedTuple):
    """Arrays with a place for each point of a row of pixels whose colour is worked out.

    Points that lie side by side and see one primitive are a run. What depends on the primitive is done run by run;
    the rest, which is most, for all points at once, however short the runs are.
    """

    at: np.ndarray  # float32 [_SLOT_ROWS, points]: rows below
    base: np.ndarray  # int32 [points]: where the texture starts
    packed: np.ndarray  # int32 [4, points]: texels
    runs: np.ndarray  # int32 [runs, 4]: primitive, first point, points, row of samples: 0, 1; 2: of pixels
    begins: np.ndarray  # int32 [runs]: column of the first point


@compiled
def make_slots(points):
    """Return slots for so many points."""
    return Slots(
        np.empty((_SLOT_ROWS, points), np.float32),
        np.empty(points, np.int32),
        np.empty((4, points), np.int32),
        np.empty((points, 4), np.int32),
        np.empty(points, np.int32),
    )


@compiled
def _texel_coordinates(p, v, step_px, first, n, x, d, a, b, level):
    """Fill a and b, texels of the texture's largest level, and the level that fits the distance between points."""
    a_x, b_x, centre_x = p.a_x, p.b_x, p.centre_x
    a_0, b_0 = p.a_y * v + p.a_1, p.b_y * v + p.b_1
    if not p.projective:
        fits = _0
        if p.mipmapped:
            rate = max(p.a_x * p.a_x + p.b_x * p.b_x, p.a_y * p.a_y + p.b_y * p.b_y) * step_px * step_px
            fits = _fitting_level(rate)
        for i in range(n):
            j = first + np.uint64(i)
            u = x[j] - centre_x
            a[j] = a_x * u + a_0
            b[j] = b_x * u + b_0
            level[j] = fits
        return
    gx, gy, a_y, b_y = p.gx, p.gy, p.a_y, p.b_y
    square = step_px * step_px
    for i in range(n):
        j = first + np.uint64(i)
        w, u = _1 / d[j], x[j] - centre_x
        a_i = (a_x * u + a_0) * w
        b_i = (b_x * u + b_0) * w
        a[j], b[j] = a_i, b_i
        a_dx, b_dx = (a_x - a_i * gx) * w, (b_x - b_i * gx) * w
        a_dy, b_dy = (a_y - a_i * gy) * w, (b_y - b_i * gy) * w
        level[j] = _fitting_level(max(a_dx * a_dx + b_dx * b_dx, a_dy * a_dy + b_dy * b_dy) * square)


@compiled
def _fitting_level(rate):
    """Return the level whose texels are about as far apart as points that lie sqrt(rate) texels apart."""
    fits = _1 if rate > np.float32(2) else _0
    fits += _1 if rate > np.float32(8) else _0
    fits += _1 if rate > np.float32(32) else _0
    fits += _1 if rate > np.float32(128) else _0
    return fits + (_1 if rate > np.float32(512) else _0)


@compiled
def _mirrored(texel):
    """Return the coordinate within a texture that is mirrored beyond its sides."""
    return _LAST - abs(texel - _MIRRORED * np.floor(texel / _MIRRORED) - _LAST)


@compiled
def _look_up(texels, n, slots):
    """Fill red, green and blue with the textures' values, linear between texels."""
    a, b, level, base = slots.at[_A], slots.at[_B], slots.at[_LEVEL], slots.base
    red, green, blue = slots.at[RED_ROW], slots.at[GREEN_ROW], slots.at[BLUE_ROW]
    upper_left, upper_right, lower_left, lower_right = (
        slots.packed[0],
        slots.packed[1],
        slots.packed[2],
        slots.packed[3],
    )
    for i in range(n):
        lvl = np.int32(level[i])
        size = np.int32(TEXTURE_SIZE) >> lvl
        last = np.float32(size - np.int32(1))
        shrink = np.float32(size) * np.float32(1 / TEXTURE_SIZE)
        at_x = min(max((_mirrored(a[i]) + _HALF) * shrink - _HALF, _0), last)
        at_y = min(max((_mirrored(b[i]) + _HALF) * shrink - _HALF, _0), last)
        x_0, y_0 = np.int32(at_x), np.int32(at_y)
        a[i], b[i] = at_x - np.float32(x_0), at_y - np.float32(y_0)
        # Levels before this one have (4 S^2 - 4 size^2) / 3 texels, S^2 the largest.
        before = (np.int32(4 * TEXTURE_SIZE**2) - np.int32(4) * size * size) // np.int32(3)
        base[i] = base[i] + before + y_0 * size + x_0
        lower_left[i] = size
    for i in range(n):
        at = np.uint64(np.uint32(base[i]))
        below = at + np.uint64(np.uint32(lower_left[i]))
        # Beyond the last row and column lies something else, which has no weight.
        upper_left[i] = np.int32(texels[at])
        upper_right[i] = np.int32(texels[at + np.uint64(1)])
        lower_left[i] = np.int32(texels[below])
        lower_right[i] = np.int32(texels[below + np.uint64(1)])
    for i in range(n):
        ul, ur, ll, lr = upper_left[i], upper_right[i], lower_left[i], lower_right[i]
        w_ur = a[i] * (_1 - b[i])
        w_ul = _1 - b[i] - w_ur
        w_lr = a[i] * b[i]
        w_ll = b[i] - w_lr
        value = w_ul * np.float32(ul & _MASK) + w_ur * np.float32(ur & _MASK)
        red[i] = (value + w_ll * np.float32(ll & _MASK) + w_lr * np.float32(lr & _MASK)) * _RED_GREEN - _LOW
        value = w_ul * np.float32((ul >> _11) & _MASK) + w_ur * np.float32((ur >> _11) & _MASK)
        value += w_ll * np.float32((ll >> _11) & _MASK) + w_lr * np.float32((lr >> _11) & _MASK)
        green[i] = value * _RED_GREEN - _LOW
        value = w_ul * np.float32((ul >> _22) & _BLUE_MASK) + w_ur * np.float32((ur >> _22) & _BLUE_MASK)
        value += w_ll * np.float32((ll >> _22) & _BLUE_MASK) + w_lr * np.float32((lr >> _22) & _BLUE_MASK)
        blue[i] = value * _BLUE - _LOW


@compiled
def _light(scene, p, y, first, n, x, d, light):
    """Fill the light that reaches a run: of lamps, or of a slope."""
    setting = scene.setting[0]
    if not p.lit:
        centre_x, shade_x, shade_0 = p.centre_x, p.shade_x, _1 + p.shade_y * (y - p.centre_y)
        for i in range(n):
            j = first + np.uint64(i)
            light[j] = min(max(shade_0 + shade_x * (x[j] - centre_x), np.float32(0.4)), np.float32(1.6))
        return
    ambient, focal, baseline = setting.ambient, setting.focal_px, setting.baseline_m
    principal_x, v = setting.principal_x, y - setting.principal_y
    n_x, n_y, n_z = p.normal_x, p.normal_y, p.normal_z
    for i in range(n):
        light[first + np.uint64(i)] = ambient
    for lamp in range(setting.lamps):
        x_0, y_0, z_0, power = scene.lamps[lamp, 0], scene.lamps[lamp, 1], scene.lamps[lamp, 2], scene.lamps[lamp, 3]
        for i in range(n):
            j = first + np.uint64(i)
            scale = baseline / d[j]
            to_x, to_y, to_z = x_0 - (x[j] - principal_x) * scale, y_0 - v * scale, z_0 - focal * scale
            # A lamp has an extent, so nothing becomes infinitely bright beside it.
            square = to_x * to_x + to_y * to_y + to_z * to_z + np.float32(0.02)
            facing = max(n_x * to_x + n_y * to_y + n_z * to_z, _0)
            light[j] += power * facing / (square * np.sqrt(square))


@compiled
def _cast_shadows(shadows, n, x, y, light):
    """Take from the light what two soft half planes have in common; they lie where the left view sees them."""
    for shadow in range(shadows.shape[0]):
        dark = shadows[shadow, 0]
        if dark == _0:
            continue
        a_x, a_y, a_0 = shadows[shadow, 1], shadows[shadow, 2], shadows[shadow, 3]
        b_x, b_y, b_0 = shadows[shadow, 4], shadows[shadow, 5], shadows[shadow, 6]
        for i in range(n):
            light[i] *= _1 - dark * _sigmoid(a_x * x[i] + a_y * y[i] + a_0) * _sigmoid(b_x * x[i] + b_y * y[i] + b_0)


@compiled
def _locate_run(p, y, right, xs, step_px, begin, first, n, slots):
    """Fill what the shading of a run needs to know about its points."""
    x, at_y, d, base = slots.at[_X], slots.at[_Y], slots.at[_D], slots.base
    centre_x, v = p.centre_x, y - p.centre_y
    across = p.d0 + (p.gy + p.qy * v) * v
    gx, qx, slope = p.gx, p.qx, _1 - p.gx
    start = np.int32(p.texture * TEXELS)
    for i in range(n):
        j, u = first + np.uint64(i), xs[begin + np.uint64(i)] - centre_x
        if right:
            rest = u + across
            square = slope * slope - _4 * qx * rest
            # Back faces of things have slopes above 1.
            root = np.copysign(np.sqrt(max(square, np.float32(1e-6))), slope)
            u = _2 * rest / (slope + root)
        x[j], at_y[j], base[j] = u + centre_x, y, start
        d[j] = across + (gx + qx * u) * u
    _texel_coordinates(p, v, step_px, first, n, x, d, slots.at[_A], slots.at[_B], slots.at[_LEVEL])


@compiled
def _colour_run(p, y, step_px, exposure, first, n, slots):
    """Turn texture values of a run into colours, 0..1."""
    light, red, green, blue = slots.at[_LIT], slots.at[RED_ROW], slots.at[GREEN_ROW], slots.at[BLUE_ROW]
    red_m, green_m, blue_m = p.red, p.green, p.blue
    red_c, green_c, blue_c = p.red_c, p.green_c, p.blue_c
    if p.pattern == NO_PATTERN:
        for i in range(n):
            j = first + np.uint64(i)
            gain = light[j] * exposure
            red[j] = min(max((red_m + red_c * red[j]) * gain, _0), _1)
            green[j] = min(max((green_m + green_c * green[j]) * gain, _0), _1)
            blue[j] = min(max((blue_m + blue_c * blue[j]) * gain, _0), _1)
        return
    for i in range(n):
        j = first + np.uint64(i)
        red[j], green[j], blue[j] = red_m + red_c * red[j], green_m + green_c * green[j], blue_m + blue_c * blue[j]
    shade_pattern(p, y - p.centre_y, step_px, first, n, slots.at[_X], slots.at[_D], red, green, blue)
    for i in range(n):
        j = first + np.uint64(i)
        gain = light[j] * exposure
        red[j] = min(max(red[j] * gain, _0), _1)
        green[j] = min(max(green[j] * gain, _0), _1)
        blue[j] = min(max(blue[j] * gain, _0), _1)


@compiled
def shade(scene, right, run_count, points, row_xs, row_ys, steps_px, texels, slots):
    """Fill the colours of the points of all runs. The last three: of both rows of samples and of the row of pixels."""
    for run in range(run_count):
        k, first, n, row = slots.runs[run, 0], np.uint64(slots.runs[run, 1]), slots.runs[run, 2], slots.runs[run, 3]
        p = scene.primitives[k]
        begin = np.uint64(slots.begins[run])
        xs = row_xs[0] if row < 2 else row_xs[1]
        _locate_run(p, row_ys[row], right, xs, steps_px[row], begin, first, n, slots)
        _light(scene, p, row_ys[row], first, n, slots.at[_X], slots.at[_D], slots.at[_LIT])
    _look_up(texels, points, slots)
    _cast_shadows(scene.shadows, points, slots.at[_X], slots.at[_Y], slots.at[_LIT])
    exposure = scene.setting[0].exposure
    for run in range(run_count):
        k, first, n, row = slots.runs[run, 0], np.uint64(slots.runs[run, 1]), slots.runs[run, 2], slots.runs[run, 3]
        _colour_run(scene.primitives[k], row_ys[row], steps_px[row], exposure, first, n, slots)

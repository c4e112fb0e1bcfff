"""Planes in space as primitives: what their disparity, outline and coordinates are in the image, and their textures.

Lengths are metres. The camera is at the origin: x to the right, y down, z ahead. A plane n . X = h has at pixel (u, v)
from the principal point the disparity f B (n . (u, v, f)) / (h f), which is affine; its own coordinates are e . X, and
X = (u, v, f) B / d. A plane is given as (n, h, e1, e2).
"""

# Types of compiled functions are numba's to infer.
# pyright: basic

import math

import numpy as np

from foundation_stereo_depth.data.synthetic.compiling import compiled
from foundation_stereo_depth.data.synthetic.counter_rng import next_uniform
from foundation_stereo_depth.data.synthetic.floating import set_whole_frame
from foundation_stereo_depth.data.synthetic.primitives import MOST_PRIMITIVES

_NEAREST_M = 0.02


@compiled
def dot(a, b):
    """Return the scalar product of two vectors."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@compiled
def scaled(a, factor):
    """Return a vector times a factor."""
    return (a[0] * factor, a[1] * factor, a[2] * factor)


@compiled
def plus(a, b):
    """Return the sum of two vectors."""
    return (a[0] + b[0], a[1] + b[1], a[2] + b[2])


@compiled
def point_along(axes, x, y, z):
    """Return x of the first axis + y of the second + z of the third."""
    return plus(plus(scaled(axes[0], x), scaled(axes[1], y)), scaled(axes[2], z))


@compiled
def turned_axes(yaw, pitch, roll):
    """Return the directions of a turned body's x, y and z axis: first rolled, then pitched, then turned."""
    cy, sy, cp, sp, cr, sr = (
        math.cos(yaw),
        math.sin(yaw),
        math.cos(pitch),
        math.sin(pitch),
        math.cos(roll),
        math.sin(roll),
    )
    x = (cy * cr + sy * sp * sr, cp * sr, -sy * cr + cy * sp * sr)
    y = (-cy * sr + sy * sp * cr, cp * cr, sy * sr + cy * sp * cr)
    z = (sy * cp, -sp, cy * cp)
    return (x, y, z)


@compiled
def add_primitive(scene):
    """Return the number of one more primitive, plain and lit by lamps; the last one again where there is no room."""
    setting = scene.setting[0]
    k = setting.count
    if k < MOST_PRIMITIVES - 1:
        setting.count = k + 1
    p = scene.primitives[k]
    p.centre_x, p.centre_y = setting.principal_x, setting.principal_y
    p.qx, p.qy, p.roundness, p.wobble, p.hollow = 0, 0, 0, 0, -1
    p.grating_share, p.gratings = 1, 1
    p.unbounded, p.projective, p.content, p.mipmapped, p.lit, p.pattern = 0, 1, -1, 1, 1, 0
    p.shade_x, p.shade_y = 0, 0
    p.left_from, p.left_to, p.top, p.bottom = 0, -9, 0, -9
    p.a_x, p.a_y, p.a_1, p.b_x, p.b_y, p.b_1, p.texture = 0, 0, 0, 0, 0, 0, 0
    p.red, p.green, p.blue, p.red_c, p.green_c, p.blue_c = 0.5, 0.5, 0.5, 0, 0, 0
    return k


@compiled
def _numerators(setting, p, e, offset, unit):
    """Return the x, y and constant factor of d (e . X - offset) / unit at places on a plane."""
    b = setting.baseline_m
    return (
        np.float32((b * e[0] - offset * p.gx) / unit),
        np.float32((b * e[1] - offset * p.gy) / unit),
        np.float32((b * e[2] * setting.focal_px - offset * p.d0) / unit),
    )


@compiled
def set_plane(scene, k, n, h):
    """Set disparity and normal of a primitive on the plane n . X = h."""
    setting, p = scene.setting[0], scene.primitives[k]
    b = setting.baseline_m
    p.gx, p.gy, p.d0 = b * n[0] / h, b * n[1] / h, setting.focal_px * b * n[2] / h
    facing = -1.0 if h > 0 else 1.0
    p.normal_x, p.normal_y, p.normal_z = facing * n[0], facing * n[1], facing * n[2]


@compiled
def _set_frame(scene, k, corners, height, width):
    """Set the frame that holds four corners in the left view: everything, where one of them is behind the camera."""
    setting, p = scene.setting[0], scene.primitives[k]
    left, end, top, bottom = 1e9, -1e9, 1e9, -1e9
    in_front = 0
    for corner in corners:
        if corner[2] < _NEAREST_M:
            continue
        in_front += 1
        x = setting.principal_x + setting.focal_px * corner[0] / corner[2]
        y = setting.principal_y + setting.focal_px * corner[1] / corner[2]
        left, end, top, bottom = min(left, x), max(end, x), min(top, y), max(bottom, y)
    if in_front == 4:
        p.left_from, p.left_to, p.top, p.bottom = left, end, top, bottom
    elif in_front > 0:
        set_whole_frame(p, height, width)


@compiled
def add_rectangle(scene, plane, s, t, half_s, half_t, height, width):
    """Add a rectangle; `plane` is (n, h, e1, e2), s and t its centre along e1 and e2."""
    k = add_primitive(scene)
    n, h, e1, e2 = plane
    setting, p = scene.setting[0], scene.primitives[k]
    set_plane(scene, k, n, h)
    p.p_x, p.p_y, p.p_1 = _numerators(setting, p, e1, s, half_s)
    p.q_x, p.q_y, p.q_1 = _numerators(setting, p, e2, t, half_t)
    centre = plus(scaled(n, h), plus(scaled(e1, s), scaled(e2, t)))
    a, b = scaled(e1, half_s), scaled(e2, half_t)
    minus_a, minus_b = scaled(e1, -half_s), scaled(e2, -half_t)
    corners = (
        plus(plus(centre, a), b),
        plus(plus(centre, a), minus_b),
        plus(plus(centre, minus_a), b),
        plus(plus(centre, minus_a), minus_b),
    )
    _set_frame(scene, k, corners, height, width)
    return k


@compiled
def place_texture(stream, scene, k, plane, texture, texels_per_m, turned):
    """Lay a texture on a plane at a random place, turned by an angle."""
    setting, p = scene.setting[0], scene.primitives[k]
    e1, e2 = plane[2], plane[3]
    cos, sin = math.cos(turned), math.sin(turned)
    along = plus(scaled(e1, cos), scaled(e2, sin))
    across = plus(scaled(e1, -sin), scaled(e2, cos))
    p.texture = texture
    unit = 1.0 / texels_per_m
    p.a_x, p.a_y, p.a_1 = _numerators(setting, p, along, next_uniform(stream, -9, 9), unit)
    p.b_x, p.b_y, p.b_1 = _numerators(setting, p, across, next_uniform(stream, -9, 9), unit)


@compiled
def fit_texture(scene, k, texture, from_a, to_a, from_b, to_b):
    """Lay the part of a texture between these texels over the primitive's outline."""
    p = scene.primitives[k]
    p.texture = texture
    half_a, half_b, mid_a, mid_b = (to_a - from_a) / 2, (to_b - from_b) / 2, (from_a + to_a) / 2, (from_b + to_b) / 2
    p.a_x, p.a_y, p.a_1 = p.p_x * half_a + mid_a * p.gx, p.p_y * half_a + mid_a * p.gy, p.p_1 * half_a + mid_a * p.d0
    p.b_x, p.b_y, p.b_1 = p.q_x * half_b + mid_b * p.gx, p.q_y * half_b + mid_b * p.gy, p.q_1 * half_b + mid_b * p.d0


@compiled
def set_pattern(scene, k, pattern, plane, s, t, cell_s, cell_t, seed):
    """Lay a pattern on a plane: cells of the given size, one of which begins at (s, t)."""
    setting, p = scene.setting[0], scene.primitives[k]
    p.pattern, p.pattern_seed = pattern, seed
    p.m_x, p.m_y, p.m_1 = _numerators(setting, p, plane[2], s, cell_s)
    p.n_x, p.n_y, p.n_1 = _numerators(setting, p, plane[3], t, cell_t)
    p.shift, p.vary, p.tint, p.joint_m, p.joint_n = 0, 0, 0, 0, 0

"""Floating primitives in front of a curved background: the scenes of `torch_scenes.py`, drawn without PyTorch.

The same random numbers, from the same keys and purposes, so that both give the same scenes. `torch_scenes.py`
documents what is drawn and why.
"""

# Types of compiled functions are numba's to infer.
# pyright: basic

import math

import numpy as np

from foundation_stereo_depth.data.synthetic.compiling import compiled
from foundation_stereo_depth.data.synthetic.counter_rng import chance, purpose, uniform, whole
from foundation_stereo_depth.data.synthetic.torch_textures import TEXTURE_SIZE, TEXTURES

_SMALLEST, _FARTHEST_PLAIN, _LARGEST = 0.003, 0.14, 0.32
_CLUSTERS, _SOURCES = 2, 6

_FAR, _NEAR, _BACKGROUND_TILT = purpose("far"), purpose("near"), purpose("background tilt")
_SIZE, _CLUSTERED, _CLUSTERS_THERE, _MEMBER_SIZE = (
    purpose(name) for name in ("size", "clustered", "clusters", "leaf size")
)
_CLUSTER, _THIN, _THINNESS, _ASPECT, _ANGLE = (
    purpose(name) for name in ("cluster", "thin", "thinness", "aspect", "angle")
)
_CLUSTER_NEARNESS, _NEARNESS, _MEMBER_DEPTH = (purpose(name) for name in ("cluster nearness", "nearness", "leaf depth"))
_SLOPE_X, _SLOPE_Y, _CURVE_X, _CURVE_Y = (purpose(name) for name in ("slope x", "slope y", "curve x", "curve y"))
_WOBBLES, _WOBBLE, _WOBBLE_RATE, _WOBBLE_PHASE = (
    purpose(name) for name in ("sways", "sway", "sway often", "sway phase")
)
_HOLLOW, _HOLLOW_FROM, _IN_GRATINGS, _GRATING_SHARE, _GRATINGS = (
    purpose(name) for name in ("hollow", "hollow from", "in slats", "slat share", "slats")
)
_CENTRE_X, _CENTRE_Y, _ROUNDNESS = (purpose(name) for name in ("centre x", "centre y", "roundness"))
_CLUSTER_SPREAD, _CLUSTER_X, _CLUSTER_Y, _MEMBER_X, _MEMBER_Y = (
    purpose(name) for name in ("cluster spread", "cluster x", "cluster y", "leaf x", "leaf y")
)
_FLOOR, _FLOOR_DEPTH, _FLOOR_RISE = (purpose(name) for name in ("floor", "floor depth", "floor rise"))
_TEXTURE_ANGLE, _TEXTURE_SCALE, _TEXTURE_OFFSET, _TEXTURE = (
    purpose(name) for name in ("texture angle", "texture scale", "texture offset", "texture")
)
_GREY, _SATURATION, _COLOURFUL, _COLOUR = (purpose(name) for name in ("grey", "saturation", "colourful", "colour"))
_PLAIN, _CONTRAST, _CONTRAST_CHANNELS, _SHADING = (
    purpose(name) for name in ("plain", "contrast", "contrast channels", "shading")
)
_ALIKE, _ALIKE_TO = purpose("alike"), purpose("alike to")
_SHADOW, _SHADOW_DARK, _SHADOW_SOFTNESS, _SHADOW_X, _SHADOW_Y, _SHADOW_EDGE_A, _SHADOW_EDGE_B = (
    purpose(f"shadow{name}") for name in ("", " dark", " softness", " x", " y", " edge a", " edge b")
)
_HIGHLIGHT, _HIGHLIGHT_REACH, _HIGHLIGHT_X, _HIGHLIGHT_Y, _HIGHLIGHT_DISPARITY, _HIGHLIGHT_BRIGHT = (
    purpose(f"glow{name}") for name in ("", " reach", " x", " y", " disparity", " bright")
)
_PI = math.pi


@compiled
def _exp(value):
    return np.float32(math.exp(value))


@compiled
def _log_uniform(key, purpose, position, low, high):
    return _exp(uniform(key, purpose, position, math.log(low), math.log(high)))


@compiled
def draw_lights(key, height, width, shadows, highlights):
    """Fill shadows [2, 7] and highlights [2, 6], as `data/lights.py` draws them."""
    for j in range(2):
        shadows[j, 0] = uniform(key, _SHADOW_DARK, j, 0.2, 0.7) * chance(key, _SHADOW, j, 0.5)
        softness_px = _exp(uniform(key, _SHADOW_SOFTNESS, j, math.log(0.5), math.log(0.06 * width)))
        at_x = uniform(key, _SHADOW_X, j, 0.0, 1.0) * np.float32(width)
        at_y = uniform(key, _SHADOW_Y, j, 0.0, 1.0) * np.float32(height)
        for edge in range(2):
            angle = uniform(key, _SHADOW_EDGE_A if edge == 0 else _SHADOW_EDGE_B, j, 0.0, 2 * _PI)
            slope_x = np.float32(math.cos(angle)) / softness_px
            slope_y = np.float32(math.sin(angle)) / softness_px
            shadows[j, 1 + 3 * edge] = slope_x
            shadows[j, 2 + 3 * edge] = slope_y
            shadows[j, 3 + 3 * edge] = -(slope_x * at_x + slope_y * at_y)
        highlights[j, 0] = uniform(key, _HIGHLIGHT_BRIGHT, j, 0.0, 0.6) * chance(key, _HIGHLIGHT, j, 0.4)
        highlights[j, 1] = uniform(key, _HIGHLIGHT_X, j, 0.0, 1.0) * np.float32(width)
        highlights[j, 2] = uniform(key, _HIGHLIGHT_Y, j, 0.0, 1.0) * np.float32(height)
        for axis in range(2):
            reach = _exp(uniform(key, _HIGHLIGHT_REACH, 2 * j + axis, math.log(0.01), math.log(0.12)))
            highlights[j, 3 + axis] = np.float32(1) / (reach * np.float32(width))
        highlights[j, 5] = uniform(key, _HIGHLIGHT_DISPARITY, j, -0.05, 0.3) * np.float32(width)


@compiled
def _draw_background(key, height, width, primitive, far_px):
    half_w, half_h = np.float32(width / 2), np.float32(height / 2)
    primitive.centre_x, primitive.centre_y = half_w, half_h
    primitive.d0 = far_px
    primitive.gx = far_px * (uniform(key, _BACKGROUND_TILT, 0, -1.0, 1.0) * np.float32(0.25)) / half_w
    primitive.gy = far_px * (uniform(key, _BACKGROUND_TILT, 1, -1.0, 1.0) * np.float32(0.35)) / half_h
    primitive.qx = far_px * (uniform(key, _BACKGROUND_TILT, 2, -1.0, 1.0) * np.float32(0.05)) / (half_w * half_w)
    primitive.qy = far_px * (uniform(key, _BACKGROUND_TILT, 3, -1.0, 1.0) * np.float32(0.05)) / (half_h * half_h)
    primitive.unbounded = 1
    set_whole_frame(primitive, height, width)


@compiled
def set_whole_frame(primitive, height, width):
    """Rasterise the primitive everywhere: in the right view one sees more than a view's width further."""
    primitive.left_from, primitive.top = -width, -1
    primitive.left_to, primitive.bottom = 3 * width, height


@compiled
def _set_frame(primitive, reach_x, reach_y):
    primitive.left_from, primitive.left_to = primitive.centre_x - reach_x, primitive.centre_x + reach_x
    primitive.top, primitive.bottom = primitive.centre_y - reach_y, primitive.centre_y + reach_y


@compiled
def _draw_shape(key, i, height, width, far_px, near_px, primitive):
    """Fill geometry and outline of primitive i; return half its size, px, and its cluster, from 1; 0: in none."""
    w, h = np.float32(width), np.float32(height)
    clustered = chance(key, _CLUSTERED, i, 0.5) and chance(key, _CLUSTERS_THERE, 0, 0.5)
    cluster = whole(key, _CLUSTER, i, _CLUSTERS)
    size_px = w * (
        _log_uniform(key, _MEMBER_SIZE, i, 0.02, 0.15) if clustered else _log_uniform(key, _SIZE, i, 0.02, 0.7)
    )
    thin = chance(key, _THIN, i, 0.2)
    aspect = uniform(key, _THINNESS, i, 0.02, 0.15) if thin else uniform(key, _ASPECT, i, 0.35, 1.0)
    half_a = size_px / np.float32(2)
    half_b = max(half_a * aspect, np.float32(0.6))
    angle = uniform(key, _ANGLE, i, 0.0, _PI)
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    primitive.p_x, primitive.p_y = cos / half_a, sin / half_a
    primitive.q_x, primitive.q_y = -sin / half_b, cos / half_b
    nearness = uniform(key, _CLUSTER_NEARNESS, cluster, 0.0, 1.0) if clustered else uniform(key, _NEARNESS, i, 0.0, 1.0)
    d0 = far_px * np.float32((near_px / far_px) ** (nearness * nearness))
    if clustered:
        d0 = d0 * uniform(key, _MEMBER_DEPTH, i, 0.9, 1.15)
    bound = min(np.float32(0.25) * d0 / half_a, np.float32(0.3))
    primitive.d0 = d0
    primitive.gx = uniform(key, _SLOPE_X, i, -1.0, 1.0) * bound
    primitive.gy = uniform(key, _SLOPE_Y, i, -1.0, 1.0) * bound
    primitive.qx = uniform(key, _CURVE_X, i, -1.0, 1.0) * np.float32(0.2) * bound / half_a
    primitive.qy = uniform(key, _CURVE_Y, i, -1.0, 1.0) * np.float32(0.2) * bound / half_a
    wobble = uniform(key, _WOBBLE, i, 0.05, 0.3) if chance(key, _WOBBLES, i, 1 / 3) else np.float32(0)
    primitive.wobble = wobble
    primitive.wobble_rate = uniform(key, _WOBBLE_RATE, i, 2.0, 12.0)
    primitive.wobble_phase = uniform(key, _WOBBLE_PHASE, i, 0.0, 2 * _PI)
    primitive.hollow = uniform(key, _HOLLOW_FROM, i, 0.4, 0.85) if chance(key, _HOLLOW, i, 0.1) else np.float32(-1)
    in_gratings = chance(key, _IN_GRATINGS, i, 1 / 12) and not thin
    primitive.gratings = uniform(key, _GRATINGS, i, 1.0, 6.0)
    primitive.grating_share = uniform(key, _GRATING_SHARE, i, 0.3, 0.7) if in_gratings else np.float32(1)
    primitive.roundness = uniform(key, _ROUNDNESS, i, 0.0, 1.0)
    stretch = np.float32(1) + wobble
    reach_x = (abs(cos) * half_a + abs(sin) * half_b) * stretch
    reach_y = (abs(sin) * half_a + abs(cos) * half_b) * stretch
    if clustered:
        spread_px = uniform(key, _CLUSTER_SPREAD, cluster, 0.08, 0.35) * w
        primitive.centre_x = uniform(key, _CLUSTER_X, cluster, 0.0, 1.0) * w + spread_px * uniform(
            key, _MEMBER_X, i, -1.0, 1.0
        )
        primitive.centre_y = uniform(key, _CLUSTER_Y, cluster, 0.0, 1.0) * h + spread_px * uniform(
            key, _MEMBER_Y, i, -1.0, 1.0
        )
    else:
        primitive.centre_x = uniform(key, _CENTRE_X, i, -0.05, 1.15) * w
        primitive.centre_y = uniform(key, _CENTRE_Y, i, -0.05, 1.05) * h
    _set_frame(primitive, reach_x, reach_y)
    return half_a, cluster + 1 if clustered else 0


@compiled
def _make_floor(key, height, width, far_px, near_px, primitive):
    """Turn the first primitive into a floor: from a horizon down, nearer by a steady amount each row."""
    depth_px = np.float32(height) * uniform(key, _FLOOR_DEPTH, 0, 0.2, 0.7)
    rise_px = (near_px - far_px) * uniform(key, _FLOOR_RISE, 0, 0.2, 0.9)
    primitive.centre_x, primitive.centre_y = width / 2, height
    primitive.d0, primitive.gy = far_px + rise_px, rise_px / depth_px
    primitive.gx, primitive.qx, primitive.qy = 0, 0, 0
    primitive.p_x, primitive.p_y = 0.5 / width, 0
    primitive.q_x, primitive.q_y = 0, np.float32(1) / depth_px
    primitive.wobble, primitive.hollow, primitive.grating_share, primitive.roundness = 0, -1, 1, 0
    _set_frame(primitive, np.float32(2 * width), depth_px)


@compiled
def _draw_surface(key, i, primitive):
    """Fill the texture of surface i, as if no other shared it."""
    angle = uniform(key, _TEXTURE_ANGLE, i, 0.0, 2 * _PI)
    texels_per_px = _log_uniform(key, _TEXTURE_SCALE, i, 0.3, 2.0)
    cos, sin = np.float32(math.cos(angle)) * texels_per_px, np.float32(math.sin(angle)) * texels_per_px
    primitive.a_x, primitive.a_y, primitive.b_x, primitive.b_y = cos, -sin, sin, cos
    primitive.a_1 = uniform(key, _TEXTURE_OFFSET, 2 * i, 0.0, 2 * TEXTURE_SIZE)
    primitive.b_1 = uniform(key, _TEXTURE_OFFSET, 2 * i + 1, 0.0, 2 * TEXTURE_SIZE)
    primitive.texture = whole(key, _TEXTURE, i, TEXTURES)
    grey = uniform(key, _GREY, i, 0.1, 0.9)
    saturation = uniform(key, _SATURATION, i, 0.0, 1.0) * uniform(key, _COLOURFUL, 0, 0.0, 1.0)
    primitive.red = grey + uniform(key, _COLOUR, 3 * i, -0.3, 0.3) * saturation
    primitive.green = grey + uniform(key, _COLOUR, 3 * i + 1, -0.3, 0.3) * saturation
    primitive.blue = grey + uniform(key, _COLOUR, 3 * i + 2, -0.3, 0.3) * saturation
    contrast = uniform(key, _CONTRAST, i, 0.2, 0.7)
    if chance(key, _PLAIN, i, 0.12):
        contrast = contrast * np.float32(0.2)
    primitive.red_c = contrast * uniform(key, _CONTRAST_CHANNELS, 3 * i, 0.7, 1.0)
    primitive.green_c = contrast * uniform(key, _CONTRAST_CHANNELS, 3 * i + 1, 0.7, 1.0)
    primitive.blue_c = contrast * uniform(key, _CONTRAST_CHANNELS, 3 * i + 2, 0.7, 1.0)


@compiled
def draw_floating(key, height, width, scene, count):
    """Fill a scene with a background and `count` primitives in front of it."""
    far_px = np.float32(width) * _log_uniform(key, _FAR, 0, _SMALLEST, _FARTHEST_PLAIN)
    nearness = uniform(key, _NEAR, 0, 0.0, 1.0)
    near_px = far_px * np.float32(1.5) + (np.float32(_LARGEST * width) - np.float32(1.5) * far_px) * (
        nearness * nearness
    )
    primitives = scene.primitives
    _draw_background(key, height, width, primitives[0], far_px)
    for k in range(count + 1):
        primitive = primitives[k]
        half_px, cluster = np.float32(width / 2), 0
        if k > 0:
            half_px, cluster = _draw_shape(key, k - 1, height, width, far_px, near_px, primitive)
            if k == 1 and chance(key, _FLOOR, 0, 0.4):
                _make_floor(key, height, width, far_px, near_px, primitive)
                half_px = np.float32(width / 2)
        primitive.shade_x = uniform(key, _SHADING, 2 * k, -0.35, 0.35) / half_px
        primitive.shade_y = uniform(key, _SHADING, 2 * k + 1, -0.35, 0.35) / half_px
        alike = uniform(key, _ALIKE, k, 0.0, 1.0) < np.float32(0.7 if cluster > 0 else 0.3)
        source = cluster if cluster > 0 else whole(key, _ALIKE_TO, k, _SOURCES)
        _draw_surface(key, source if alike else k, primitive)
        primitive.content = -1
    draw_lights(key, height, width, scene.shadows, scene.highlights)
    setting = scene.setting[0]
    setting.count, setting.exact, setting.exposure, setting.walls = count + 1, 1, 1, 0


@compiled
def draw_floating_one(key, i, height, width, far_px, near_px, primitive):
    """Fill one primitive as floating scenes have them, between two disparities."""
    half_px, _ = _draw_shape(key, i, height, width, far_px, near_px, primitive)
    primitive.shade_x = uniform(key, _SHADING, 2 * i, -0.35, 0.35) / half_px
    primitive.shade_y = uniform(key, _SHADING, 2 * i + 1, -0.35, 0.35) / half_px
    _draw_surface(key, i, primitive)
    primitive.content = -1

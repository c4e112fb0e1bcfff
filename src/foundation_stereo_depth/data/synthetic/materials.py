"""Colours, textures and patterns of surfaces in rooms, most of them nearly plain."""

# Types of compiled functions are numba's to infer.
# pyright: basic

import math

from foundation_stereo_depth.data.synthetic.compiling import compiled
from foundation_stereo_depth.data.synthetic.counter_rng import next_chance, next_log_uniform, next_uniform, next_whole
from foundation_stereo_depth.data.synthetic.planes import place_texture, set_pattern
from foundation_stereo_depth.data.synthetic.primitives import BOOKS, CELLS, CHESS
from foundation_stereo_depth.data.synthetic.textures import CLOTH, PLASTER, STONE, WOOD
from foundation_stereo_depth.data.synthetic.torch_textures import TEXTURES

_PI = math.pi


@compiled
def set_colour(scene, k, rgb, contrast):
    """Set the colour of a primitive and the contrast of its texture."""
    p = scene.primitives[k]
    p.red, p.green, p.blue = rgb
    p.red_c, p.green_c, p.blue_c = contrast, contrast, contrast


@compiled
def draw_colour(stream, low, high, saturation):
    """Return a colour: a grey with some tint, more often warm than cold."""
    grey, tint = next_uniform(stream, low, high), saturation * next_uniform(stream, 0, 1)
    r, g, b = (
        next_uniform(stream, -0.5, 1) * tint,
        next_uniform(stream, -0.6, 0.6) * tint,
        next_uniform(stream, -1, 0.5) * tint,
    )
    return (
        min(max(grey * (1 + r), 0.02), 0.98),
        min(max(grey * (1 + g), 0.02), 0.98),
        min(max(grey * (1 + b), 0.02), 0.98),
    )


@compiled
def _seed(stream):
    return next_whole(stream, 1000000)


@compiled
def texture_plain(stream, scene, k, plane, rgb):
    """Give a surface hardly any texture, often none that a camera would record."""
    set_colour(scene, k, rgb, next_log_uniform(stream, 0.003, 0.06))
    texels_per_m = 128 / next_log_uniform(stream, 0.3, 3.0)
    place_texture(stream, scene, k, plane, PLASTER + next_whole(stream, 10), texels_per_m, 0.0)


@compiled
def _set_cells(stream, scene, k, plane, cell_s, cell_t, shift):
    """Set a pattern of tiles, bricks or planks: shift 0, a half, or 1 for a random one per row."""
    set_pattern(
        scene, k, CELLS, plane, next_uniform(stream, -9, 9), next_uniform(stream, -9, 9), cell_s, cell_t, _seed(stream)
    )
    p = scene.primitives[k]
    joint = min(cell_s, cell_t) * next_log_uniform(stream, 0.01, 0.12)
    p.joint_m, p.joint_n, p.shift = joint / cell_s, joint / cell_t, shift
    p.vary = next_uniform(stream, 0, 0.25) if next_chance(stream, 0.6) else 0.0
    p.tint = 0.05 * p.vary
    gain = next_uniform(stream, 0.3, 1.5)
    p.red_2, p.green_2, p.blue_2 = min(p.red * gain, 1), min(p.green * gain, 1), min(p.blue * gain, 1)


@compiled
def texture_books(stream, scene, k, plane, s, t, cell_s, cell_t):
    """Set a pattern of rows of books of about the given width, each with a shelf below."""
    set_pattern(scene, k, BOOKS, plane, s, t, cell_s, cell_t, _seed(stream))
    p = scene.primitives[k]
    p.vary, p.tint, p.joint_n = (
        next_uniform(stream, 0.2, 0.8),
        next_uniform(stream, 0, 0.3),
        next_uniform(stream, 0.03, 0.12),
    )
    p.red_2, p.green_2, p.blue_2 = draw_colour(stream, 0.1, 0.9, 0.3)


@compiled
def texture_wall(stream, scene, k, plane, rgb, repeats):
    """Texture a wall: plain or, with probability `repeats`, bricks, tiles, boards or a wallpaper."""
    if next_chance(stream, repeats):
        kind = next_whole(stream, 4)
        set_colour(scene, k, rgb, next_log_uniform(stream, 0.01, 0.15))
        place_texture(
            stream, scene, k, plane, STONE + next_whole(stream, 10), 128 / next_log_uniform(stream, 0.3, 2), 0
        )
        if kind == 0:
            size = next_log_uniform(stream, 0.08, 0.35)
            _set_cells(stream, scene, k, plane, size, size * next_uniform(stream, 0.25, 0.5), 0.5)
        elif kind == 1:
            size = next_log_uniform(stream, 0.05, 0.6)
            _set_cells(stream, scene, k, plane, size, size * next_log_uniform(stream, 0.5, 2), 0.0)
        elif kind == 2:
            _set_cells(stream, scene, k, plane, next_log_uniform(stream, 0.05, 0.3), 50.0, 0.0)
        else:
            size = next_log_uniform(stream, 0.05, 0.6)
            place_texture(stream, scene, k, plane, next_whole(stream, TEXTURES), 128 / size, 0)
            set_colour(scene, k, rgb, next_log_uniform(stream, 0.03, 0.4))
    else:
        texture_plain(stream, scene, k, plane, rgb)


@compiled
def texture_floor(stream, scene, k, plane):
    """Texture a floor: planks, tiles, carpet or plain."""
    rgb = draw_colour(stream, 0.1, 0.8, 0.6)
    kind = next_whole(stream, 6)
    if kind <= 1:
        set_colour(scene, k, rgb, next_log_uniform(stream, 0.03, 0.25))
        turned = 0.0 if next_chance(stream, 0.5) else _PI / 2
        turned_plane = plane if turned == 0.0 else (plane[0], plane[1], plane[3], plane[2])
        place_texture(
            stream, scene, k, turned_plane, WOOD + next_whole(stream, 10), 128 / next_log_uniform(stream, 0.4, 1.5), 0
        )
        _set_cells(stream, scene, k, turned_plane, next_uniform(stream, 0.4, 2), next_uniform(stream, 0.06, 0.2), 1.0)
    elif kind == 2:
        set_colour(scene, k, rgb, next_log_uniform(stream, 0.01, 0.2))
        place_texture(
            stream, scene, k, plane, STONE + next_whole(stream, 10), 128 / next_log_uniform(stream, 0.5, 2), 0
        )
        size = next_uniform(stream, 0.1, 0.6)
        _set_cells(stream, scene, k, plane, size, size, 0.0)
        if next_chance(stream, 0.25):
            set_pattern(scene, k, CHESS, plane, 0, 0, size, size, 0)
    elif kind == 3:
        set_colour(scene, k, rgb, next_log_uniform(stream, 0.03, 0.3))
        place_texture(
            stream, scene, k, plane, CLOTH + next_whole(stream, 10), 128 / next_log_uniform(stream, 0.1, 0.6), 0
        )
    elif kind == 4:
        texture_plain(stream, scene, k, plane, rgb)
    else:
        set_colour(scene, k, rgb, next_log_uniform(stream, 0.03, 0.4))
        place_texture(
            stream,
            scene,
            k,
            plane,
            next_whole(stream, TEXTURES),
            128 / next_log_uniform(stream, 0.3, 1.5),
            next_uniform(stream, 0, 6),
        )


@compiled
def texture_object(stream, scene, k, plane, rgb, material, detail_m):
    """Texture a side of an object: material 0, 1 plain, 2 wood, 3 cloth, 4 printed."""
    if material <= 1:
        set_colour(scene, k, rgb, next_log_uniform(stream, 0.003, 0.08))
        place_texture(stream, scene, k, plane, PLASTER + next_whole(stream, 10), 128 / (detail_m * 2), 0)
    elif material == 2:
        set_colour(scene, k, rgb, next_log_uniform(stream, 0.02, 0.2))
        place_texture(
            stream, scene, k, plane, WOOD + next_whole(stream, 10), 128 / next_log_uniform(stream, 0.3, 1.2), 0
        )
    elif material == 3:
        set_colour(scene, k, rgb, next_log_uniform(stream, 0.02, 0.25))
        place_texture(
            stream, scene, k, plane, CLOTH + next_whole(stream, 10), 128 / next_log_uniform(stream, 0.1, 0.5), 0
        )
    else:
        set_colour(scene, k, rgb, next_log_uniform(stream, 0.1, 0.6))
        place_texture(
            stream, scene, k, plane, next_whole(stream, TEXTURES), 128 / (detail_m * next_uniform(stream, 0.5, 3)), 0
        )

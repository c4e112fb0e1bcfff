"""What is on walls: doors, windows with blinds and curtains, posters."""

# Types of compiled functions are numba's to infer.
# pyright: basic

from foundation_stereo_depth.data.synthetic.compiling import compiled
from foundation_stereo_depth.data.synthetic.counter_rng import next_chance, next_log_uniform, next_uniform, next_whole
from foundation_stereo_depth.data.synthetic.materials import draw_colour, set_colour, texture_object, texture_plain
from foundation_stereo_depth.data.synthetic.planes import (
    add_primitive,
    add_rectangle,
    fit_texture,
    place_texture,
    scaled,
    set_pattern,
    set_plane,
)
from foundation_stereo_depth.data.synthetic.primitives import FOLDS
from foundation_stereo_depth.data.synthetic.textures import CLOTH
from foundation_stereo_depth.data.synthetic.torch_textures import TEXTURES


@compiled
def wall_plane(walls, i, off):
    """Return wall i, moved into the room by `off`, as (n, h, e1, e2)."""
    n, h, e1, e2 = walls[i]
    return (n, h - off, e1, e2)


@compiled
def add_door(stream, scene, walls, i, ranges, floor_y, trim, height, width):
    """Add a door with its frame, panels and handle to wall i."""
    low, high = ranges
    half_w, tall = next_uniform(stream, 0.35, 0.55), next_uniform(stream, 1.9, 2.2)
    s = next_uniform(stream, low, high)
    frame, door = next_uniform(stream, 0.04, 0.12), draw_colour(stream, 0.15, 0.95, 0.5)
    off = next_uniform(stream, 0.005, 0.03)
    plane = wall_plane(walls, i, off)
    k = add_rectangle(scene, plane, s, floor_y - (tall + frame) / 2, half_w + frame, (tall + frame) / 2, height, width)
    texture_plain(stream, scene, k, plane, trim)
    plane = wall_plane(walls, i, off + 0.002)
    k = add_rectangle(scene, plane, s, floor_y - tall / 2, half_w, tall / 2, height, width)
    material = 2 if next_chance(stream, 0.4) else 0
    texture_object(stream, scene, k, plane, door, material, 1.0)
    rows = next_whole(stream, 4)
    plane = wall_plane(walls, i, off + 0.004)
    for row in range(rows):
        part = tall / rows
        k = add_rectangle(scene, plane, s, floor_y - part * (row + 0.5), half_w * 0.7, part * 0.38, height, width)
        shade = next_uniform(stream, 0.7, 1.15)
        texture_plain(stream, scene, k, plane, scaled(door, shade))
        scene.primitives[k].hollow = 0.9
    plane = wall_plane(walls, i, off + 0.05)
    side = half_w * (0.85 if next_chance(stream, 0.5) else -0.85)
    k = add_rectangle(scene, plane, s + side, floor_y - 1.0, 0.06, 0.015, height, width)
    set_colour(scene, k, draw_colour(stream, 0.2, 0.9, 0.1), 0.0)


@compiled
def add_window(stream, scene, walls, i, ranges, sill_y, trim, height, width):
    """Add a window to wall i, through which one sees something far away; some with a blind or curtains."""
    low, high = ranges
    half_w, half_h = next_uniform(stream, 0.3, 0.9), next_uniform(stream, 0.35, 0.8)
    s, t = next_uniform(stream, low, high), sill_y - half_h
    outside = add_primitive(scene)
    # What is outside stands far beyond the wall, parallel to it, and is bright.
    n, h, e1, e2 = walls[i]
    far = (n, h + next_log_uniform(stream, 0.5, 30), e1, e2)
    set_plane(scene, outside, far[0], far[1])
    bright = next_log_uniform(stream, 0.4, 3)
    set_colour(scene, outside, scaled(draw_colour(stream, 0.4, 0.9, 0.4), bright), next_uniform(stream, 0, 0.6))
    place_texture(
        stream, scene, outside, far, next_whole(stream, TEXTURES), 128 / (far[1] * next_log_uniform(stream, 0.5, 3)), 0
    )
    scene.primitives[outside].lit = 0
    plane = wall_plane(walls, i, 0.002)
    k = add_rectangle(scene, plane, s, t, half_w, half_h, height, width)
    scene.primitives[k].content = outside
    off, bar = next_uniform(stream, 0.01, 0.05), next_uniform(stream, 0.02, 0.06)
    plane = wall_plane(walls, i, off)
    sides = (
        (0.0, half_h, half_w + bar, bar),
        (0.0, -half_h, half_w + bar, bar),
        (half_w, 0.0, bar, half_h),
        (-half_w, 0.0, bar, half_h),
    )
    for side in sides:
        k = add_rectangle(scene, plane, s + side[0], t + side[1], side[2], side[3], height, width)
        texture_plain(stream, scene, k, plane, trim)
    for _ in range(next_whole(stream, 3)):
        k = add_rectangle(
            scene, plane, s + half_w * next_uniform(stream, -0.5, 0.5), t, bar * 0.6, half_h, height, width
        )
        texture_plain(stream, scene, k, plane, trim)
    cover = next_whole(stream, 5)
    if cover == 0:  # an open blind
        plane = wall_plane(walls, i, off + next_uniform(stream, 0.01, 0.08))
        part = next_uniform(stream, 0.3, 1)
        k = add_rectangle(scene, plane, s, t - half_h * (1 - part), half_w, half_h * part, height, width)
        texture_plain(stream, scene, k, plane, draw_colour(stream, 0.3, 0.95, 0.3))
        p = scene.primitives[k]
        p.gratings = half_h * part / next_uniform(stream, 0.02, 0.06)
        p.grating_share = next_uniform(stream, 0.5, 0.95)
    elif cover <= 2:
        plane = wall_plane(walls, i, off + next_uniform(stream, 0.05, 0.15))
        rgb, texture, cell = (
            draw_colour(stream, 0.1, 0.95, 0.6),
            CLOTH + next_whole(stream, 10),
            next_uniform(stream, 0.06, 0.2),
        )
        long = next_uniform(stream, 1.1, 2)
        contrast = next_log_uniform(stream, 0.01, 0.2)
        for side in (-1.0, 1.0):
            k = add_rectangle(
                scene,
                plane,
                s + side * half_w,
                t + half_h * (long - 1.1),
                half_w * next_uniform(stream, 0.2, 0.5),
                half_h * long,
                height,
                width,
            )
            set_colour(scene, k, rgb, contrast)
            place_texture(stream, scene, k, plane, texture, 128 / 0.3, 0)
            set_pattern(scene, k, FOLDS, plane, next_uniform(stream, 0, 1), 0, cell, 1.0, 0)
            p = scene.primitives[k]
            dark = next_uniform(stream, 0.4, 0.95)
            p.red_2, p.green_2, p.blue_2 = p.red * dark, p.green * dark, p.blue * dark


@compiled
def add_poster(stream, scene, walls, i, ranges, camera_y, height, width):
    """Add a framed poster to wall i."""
    low, high = ranges
    half_w, half_h = next_log_uniform(stream, 0.08, 0.5), next_log_uniform(stream, 0.08, 0.4)
    s, t = next_uniform(stream, low, high), camera_y + next_uniform(stream, -0.6, 0.4)
    off, border = next_uniform(stream, 0.002, 0.03), next_uniform(stream, 0, 0.05)
    plane = wall_plane(walls, i, off)
    k = add_rectangle(scene, plane, s, t, half_w + border, half_h + border, height, width)
    texture_plain(stream, scene, k, plane, draw_colour(stream, 0.05, 0.95, 0.4))
    plane = wall_plane(walls, i, off + 0.001)
    k = add_rectangle(scene, plane, s, t, half_w, half_h, height, width)
    set_colour(scene, k, draw_colour(stream, 0.1, 0.9, 0.5), next_uniform(stream, 0, 0.6))
    begin, end = next_uniform(stream, 0, 60), next_uniform(stream, 70, 127)
    fit_texture(scene, k, next_whole(stream, TEXTURES), begin, end, begin, end)

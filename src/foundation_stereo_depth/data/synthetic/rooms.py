"""Rooms: planes seen from inside, furniture of cuboids, and what hangs, stands and is held there.

Most walls are nearly plain, as in real rooms: only their borders, the light and what is on them can be matched.
Others repeat: tiles, bricks, planks, backs of books, chessboards.
"""

# Types of compiled functions are numba's to infer.
# pyright: basic

import numpy as np

from foundation_stereo_depth.data.synthetic.compiling import compiled
from foundation_stereo_depth.data.synthetic.counter_rng import (
    next_chance,
    next_log_uniform,
    next_uniform,
    next_whole,
    purpose,
)
from foundation_stereo_depth.data.synthetic.floating import draw_floating_one, draw_lights, set_whole_frame
from foundation_stereo_depth.data.synthetic.furniture import add_board, draw_foreground, draw_furniture
from foundation_stereo_depth.data.synthetic.materials import draw_colour, texture_floor, texture_plain, texture_wall
from foundation_stereo_depth.data.synthetic.openings import add_door, add_poster, add_window, wall_plane
from foundation_stereo_depth.data.synthetic.planes import (
    add_primitive,
    add_rectangle,
    dot,
    point_along,
    scaled,
    set_plane,
    turned_axes,
)

_ROOM = purpose("room")
_FLOOR, _CEILING = 3, 4


@compiled
def _largest_disparity(walls, setting, height, width):
    """Return the largest disparity of the room over the image, per metre of baseline."""
    largest = 0.0
    for x in (0.0, float(width)):
        for y in (0.0, float(height)):
            ray = (x - setting.principal_x, y - setting.principal_y, setting.focal_px)
            for wall in walls:
                largest = max(largest, dot(wall[0], ray) / wall[1])
    return largest


@compiled
def draw_room(key, height, width, scene, repetition):  # noqa: C901, PLR0915 (one sequence of random numbers)
    """Fill a scene with a room; with `repetition`, more of what matches itself a period away."""
    stream = np.zeros(2, np.uint64)
    stream[0] = key + _ROOM
    setting = scene.setting[0]
    setting.count, setting.exact, setting.exposure, setting.walls = 0, 0, 1, 7
    setting.focal_px = width * next_log_uniform(stream, 0.6, 1.4)
    setting.principal_x = width * next_uniform(stream, 0.47, 0.53)
    setting.principal_y = height * next_uniform(stream, 0.46, 0.54)
    yaw, pitch, roll = (
        next_uniform(stream, -1.0, 1.0),
        next_uniform(stream, -0.3, 0.65),
        next_uniform(stream, -0.08, 0.08),
    )
    if next_chance(stream, 0.5):
        yaw, pitch = 0.3 * yaw, 0.4 * pitch
    if next_chance(stream, 0.1):
        roll = roll * 5
    world = turned_axes(yaw, pitch, roll)
    left, right = next_log_uniform(stream, 0.4, 3.5), next_log_uniform(stream, 0.4, 3.5)
    up, floor_y = next_uniform(stream, 0.5, 1.8), next_uniform(stream, 0.4, 1.8)
    back, behind = next_log_uniform(stream, 0.7, 6), 2.0
    minus_x, minus_y, minus_z = scaled(world[0], -1.0), scaled(world[1], -1.0), scaled(world[2], -1.0)
    cut = turned_axes(next_uniform(stream, -1.2, 1.2), next_uniform(stream, -0.3, 0.8), 0.0)
    cut_n = point_along(world, cut[2][0], cut[2][1], cut[2][2])
    corner = (
        abs(cut[2][2]) * back
        + (cut[2][0] * right if cut[2][0] > 0 else -cut[2][0] * left)
        + (cut[2][1] * floor_y if cut[2][1] > 0 else -cut[2][1] * up)
    )
    cut_h = corner * (next_uniform(stream, 0.75, 0.97) if next_chance(stream, 0.25) else 9.0)
    walls = (
        (world[2], back, world[0], world[1]),
        (minus_x, left, world[2], world[1]),
        (world[0], right, world[2], world[1]),
        (world[1], floor_y, world[0], world[2]),
        (minus_y, up, world[0], world[2]),
        (minus_z, behind, world[0], world[1]),
        (
            cut_n,
            cut_h,
            point_along(world, cut[0][0], cut[0][1], cut[0][2]),
            point_along(world, cut[1][0], cut[1][1], cut[1][2]),
        ),
    )
    largest = _largest_disparity(walls, setting, height, width)
    baseline = width * next_log_uniform(stream, 0.03, 0.28) / largest
    for wall in walls:  # the right camera stays in the room, too
        if wall[0][0] > 0:
            baseline = min(baseline, 0.4 * wall[1] / wall[0][0])
    setting.baseline_m = baseline
    _draw_lamps(stream, scene, world, left, right, up, floor_y, back)
    repeats = 0.5 if repetition else 0.15
    colour = draw_colour(stream, 0.35, 0.97, 0.4)
    for i in range(7):
        k = add_primitive(scene)
        plane = walls[i]
        set_plane(scene, k, plane[0], plane[1])
        set_whole_frame(scene.primitives[k], height, width)
        scene.primitives[k].unbounded = 1
        if i == _FLOOR:
            texture_floor(stream, scene, k, plane)
        elif i == _CEILING:
            texture_plain(stream, scene, k, plane, draw_colour(stream, 0.6, 0.97, 0.1))
        else:
            if next_chance(stream, 0.2):
                colour = draw_colour(stream, 0.1, 0.97, 0.6)
            texture_wall(stream, scene, k, plane, colour, repeats)
    trim = draw_colour(stream, 0.3, 0.97, 0.3)
    skirting, tall = next_chance(stream, 0.6), next_uniform(stream, 0.03, 0.08)
    depth = next_uniform(stream, 0.005, 0.02)
    for i in range(3):
        if skirting:
            plane = wall_plane(walls, i, depth)
            k = add_rectangle(scene, plane, 0.0, floor_y - tall, 8.0, tall, height, width)
            texture_plain(stream, scene, k, plane, trim)
        low, high = (-left, right) if i == 0 else (0.0, back)
        if next_chance(stream, 0.35):
            add_door(stream, scene, walls, i, (low, high), floor_y, trim, height, width)
        if next_chance(stream, 0.3):
            add_window(stream, scene, walls, i, (low, high), floor_y - 0.85, trim, height, width)
        for _ in range(next_whole(stream, 4)):
            if next_chance(stream, 0.6):
                add_poster(stream, scene, walls, i, (low, high), 0.0, height, width)
    if next_chance(stream, 0.85):
        draw_furniture(stream, scene, walls, world, (floor_y, back), repeats, height, width)
    if next_chance(stream, 0.5):
        draw_foreground(stream, scene, height, width)
    if next_chance(stream, 0.5 if repetition else 0.06):
        add_board(stream, scene, height, width)
    if next_chance(stream, 0.3):  # clutter, as floating scenes have it
        far_px = np.float32(setting.focal_px * baseline / back)
        near_px = max(np.float32(width * next_uniform(stream, 0.08, 0.3)), far_px * np.float32(1.3))
        for j in range(1 + next_whole(stream, 16)):
            k = add_primitive(scene)
            scene.primitives[k].projective, scene.primitives[k].lit = 0, 0
            scene.primitives[k].p_1, scene.primitives[k].q_1, scene.primitives[k].mipmapped = 0, 0, 0
            draw_floating_one(key, j, height, width, far_px, near_px, scene.primitives[k])
    draw_lights(key, height, width, scene.shadows, scene.highlights)
    setting.sharpening = next_uniform(stream, 0, 1.2) if next_chance(stream, 0.5) else 0.0
    target = min(0.45 * next_log_uniform(stream, 0.6, 1.6), 0.9)
    if next_chance(stream, 0.12):
        target = next_log_uniform(stream, 0.06, 0.2)
    return target


@compiled
def _draw_lamps(stream, scene, world, left, right, up, floor_y, back):
    setting = scene.setting[0]
    setting.lamps = next_whole(stream, 4)
    setting.ambient = next_uniform(stream, 0.2, 1.0)
    for lamp in range(setting.lamps):
        x, z = next_uniform(stream, -left, right) * 0.9, next_uniform(stream, -0.3, 1) * back * 0.9
        y = (
            -up * next_uniform(stream, 0.3, 0.95)
            if next_chance(stream, 0.7)
            else next_uniform(stream, -up, floor_y) * 0.9
        )
        place = point_along(world, x, y, z)
        for axis in range(3):
            scene.lamps[lamp, axis] = place[axis]
        scene.lamps[lamp, 3] = next_log_uniform(stream, 0.1, 3)

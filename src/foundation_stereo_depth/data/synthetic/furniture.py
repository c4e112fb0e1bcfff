"""Things in rooms: cuboids, tables and chairs, shelves, columns, railings, chessboards held before the cameras."""

# Types of compiled functions are numba's to infer.
# pyright: basic

import math

from foundation_stereo_depth.data.synthetic.compiling import compiled
from foundation_stereo_depth.data.synthetic.counter_rng import next_chance, next_log_uniform, next_uniform, next_whole
from foundation_stereo_depth.data.synthetic.materials import (
    draw_colour,
    set_colour,
    texture_books,
    texture_object,
    texture_plain,
)
from foundation_stereo_depth.data.synthetic.planes import (
    add_primitive,
    add_rectangle,
    dot,
    plus,
    point_along,
    scaled,
    set_pattern,
    turned_axes,
)
from foundation_stereo_depth.data.synthetic.primitives import CELLS, CHESS
from foundation_stereo_depth.data.synthetic.torch_textures import TEXTURES

_LARGEST_DISPARITY = 0.33
"""Of the width: things nearer than this are left out."""


@compiled
def _add_cuboid(stream, scene, centre, axes, half, rgb, material, front, height, width):
    """Add the visible faces of a cuboid; `front` 1: doors, 2: books on the face towards -z of its axes."""
    baseline = scene.setting[0].baseline_m
    focal = scene.setting[0].focal_px
    detail = max(half[0], half[1], half[2])
    for axis in range(3):
        for side in (-1.0, 1.0):
            n = scaled(axes[axis], side)
            h = dot(n, centre) + half[axis]
            if not (h < -1e-3 or n[0] * baseline - h > 1e-3) or abs(h) < 1e-4:
                continue
            e1 = axes[(axis + 1) % 3] if axis != 2 else axes[0]
            e2 = axes[(axis + 2) % 3] if axis != 2 else axes[1]
            if axis == 0:
                e1, e2 = axes[2], axes[1]
                a, b = half[2], half[1]
            elif axis == 1:
                e1, e2 = axes[0], axes[2]
                a, b = half[0], half[2]
            else:
                a, b = half[0], half[1]
            s, t = dot(centre, e1), dot(centre, e2)
            plane = (n, h, e1, e2)
            k = add_rectangle(scene, plane, s, t, a, b, height, width)
            texture_object(stream, scene, k, plane, rgb, material, detail)
            if axis == 2 and side < 0 and front == 1:
                set_pattern(
                    scene,
                    k,
                    CELLS,
                    plane,
                    s - a,
                    t - b,
                    2 * a / (1 + next_whole(stream, 4)),
                    2 * b / (1 + next_whole(stream, 4)),
                    0,
                )
                p = scene.primitives[k]
                p.joint_m, p.joint_n = next_uniform(stream, 0.005, 0.03), next_uniform(stream, 0.005, 0.03)
                p.red_2, p.green_2, p.blue_2 = p.red * 0.4, p.green * 0.4, p.blue * 0.4
            elif axis == 2 and side < 0 and front == 2:
                texture_books(
                    stream,
                    scene,
                    k,
                    plane,
                    s - a,
                    t - b,
                    next_uniform(stream, 0.015, 0.05),
                    2 * b / (1 + next_whole(stream, 5)),
                )
            # A plane through a camera's centre would divide by zero in that view.
            if abs(1 - scene.primitives[k].gx) < 1e-3:
                scene.primitives[k].gx += 2e-3
    return focal


@compiled
def _add_table(stream, scene, centre, axes, floor_y, rgb, material, height, width):
    """Add a board on four legs, and return half its extents and its height."""
    tall = next_uniform(stream, 0.4, 0.8)
    half_x, half_z, thick = (
        next_uniform(stream, 0.25, 0.9),
        next_uniform(stream, 0.25, 0.5),
        next_uniform(stream, 0.01, 0.04),
    )
    board = plus(centre, scaled(axes[1], floor_y - tall))
    _add_cuboid(stream, scene, board, axes, (half_x, thick, half_z), rgb, material, 0, height, width)
    leg = next_uniform(stream, 0.015, 0.04)
    for x in (-1.0, 1.0):
        for z in (-1.0, 1.0):
            foot = plus(
                plus(centre, scaled(axes[1], floor_y - tall / 2)),
                plus(scaled(axes[0], x * (half_x - leg)), scaled(axes[2], z * (half_z - leg))),
            )
            _add_cuboid(stream, scene, foot, axes, (leg, tall / 2 - thick, leg), rgb, 0, 0, height, width)
    if next_chance(stream, 0.3):  # a chair
        back = plus(plus(board, scaled(axes[2], half_z - leg)), scaled(axes[1], -half_x))
        _add_cuboid(stream, scene, back, axes, (half_x, half_x, leg), rgb, material, 0, height, width)
    return half_x, half_z, tall + thick


@compiled
def _add_round(stream, scene, centre, radius, stretch, column, width):
    """Add an ellipsoid, or a column, upright in the image: an ellipse or box that bulges towards the camera.

    An approximation: the bulge of a sphere is a circle's arc, this one is a parabola through its top and its rims.
    """
    setting = scene.setting[0]
    z, f = centre[2], setting.focal_px
    if z - radius < 0.1 or f * setting.baseline_m / (z - radius) > _LARGEST_DISPARITY * width:
        return
    k = add_primitive(scene)
    p = scene.primitives[k]
    rx, ry = f * radius / z, f * radius * stretch / z
    p.centre_x, p.centre_y = setting.principal_x + f * centre[0] / z, setting.principal_y + f * centre[1] / z
    p.projective, p.lit, p.roundness = 0, 0, 0 if column else 1
    p.p_x, p.p_y, p.p_1, p.q_x, p.q_y, p.q_1 = 1 / rx, 0, 0, 0, 1 / ry, 0
    rim = f * setting.baseline_m / z
    p.d0 = f * setting.baseline_m / (z - radius)
    p.gx, p.gy, p.qx, p.qy = 0, 0, -(p.d0 - rim) / (rx * rx), -(p.d0 - rim) / (ry * ry)
    if column:
        p.qy = 0
    p.shade_x, p.shade_y = next_uniform(stream, -0.5, 0.5) / rx, next_uniform(stream, -0.6, 0.1) / ry
    p.left_from, p.left_to, p.top, p.bottom = p.centre_x - rx, p.centre_x + rx, p.centre_y - ry, p.centre_y + ry
    set_colour(scene, k, draw_colour(stream, 0.05, 0.95, 0.6), next_log_uniform(stream, 0.003, 0.4))
    texels_per_px = 128 / (rx * next_log_uniform(stream, 0.5, 4))
    p.texture = next_whole(stream, TEXTURES)
    p.a_x, p.b_y = texels_per_px, texels_per_px
    p.a_1, p.b_1 = next_uniform(stream, 0, 200), next_uniform(stream, 0, 200)


@compiled
def _add_railing(stream, scene, centre, axes, floor_y, height, width):
    """Add an upright grid of bars between which one sees what is behind, with a rail on top."""
    half_s, half_t = next_uniform(stream, 0.3, 1.2), next_uniform(stream, 0.2, 0.5)
    n = axes[2]
    h, s = dot(n, centre), dot(centre, axes[0])
    if abs(h) < 0.1:
        return
    t = dot(centre, axes[1]) + floor_y - half_t
    rgb = draw_colour(stream, 0.05, 0.95, 0.4)
    bars = (n, h, axes[1], axes[0])
    k = add_rectangle(scene, bars, t, s, half_t, half_s, height, width)
    texture_plain(stream, scene, k, bars, rgb)
    scene.primitives[k].gratings = half_s / next_log_uniform(stream, 0.03, 0.2)
    scene.primitives[k].grating_share = next_uniform(stream, 0.15, 0.6)
    thick = next_uniform(stream, 0.01, 0.04)
    rail = plus(centre, scaled(axes[1], floor_y - 2 * half_t))
    _add_cuboid(stream, scene, rail, axes, (half_s, thick, thick), rgb, 0, 0, height, width)


@compiled
def add_board(stream, scene, height, width):
    """Hold a chessboard before the cameras, at any pose that shows its face."""
    setting = scene.setting[0]
    f = setting.focal_px
    squares_s, squares_t = 4 + next_whole(stream, 9), 3 + next_whole(stream, 7)
    yaw, pitch, roll = next_uniform(stream, -0.9, 0.9), next_uniform(stream, -0.8, 0.8), next_uniform(stream, -0.6, 0.6)
    if next_chance(stream, 0.5):
        yaw, pitch, roll = 0.4 * yaw, 0.4 * pitch, 0.2 * roll
    axes = turned_axes(yaw, pitch, roll)
    # Its size follows from how much of the image it fills, and its distance from its disparity.
    disparity_px = width * next_log_uniform(stream, 0.03, 0.25)
    z = f * setting.baseline_m / disparity_px
    square = next_uniform(stream, 0.2, 0.9) * width * z / f / squares_s
    half_s, half_t = square * squares_s / 2, square * squares_t / 2
    centre = (
        z * next_uniform(stream, -0.3, 0.3) * width / f,
        z * next_uniform(stream, -0.3, 0.3) * height / f,
        z,
    )
    n = scaled(axes[2], 1.0)
    h = dot(n, centre)
    if h < 0.3 * z:
        return
    border = square * next_uniform(stream, 0.1, 1.2)
    s, t = dot(centre, axes[0]), dot(centre, axes[1])
    back = (n, h * 1.002, axes[0], axes[1])
    white = next_uniform(stream, 0.6, 0.98)
    k = add_rectangle(scene, back, s, t, half_s + border, half_t + border, height, width)
    texture_plain(stream, scene, k, back, (white, white, white))
    front = (n, h, axes[0], axes[1])
    k = add_rectangle(scene, front, s, t, half_s, half_t, height, width)
    texture_plain(stream, scene, k, front, (white, white, white))
    set_pattern(scene, k, CHESS, front, s - half_s, t - half_t, square, square, 0)
    p = scene.primitives[k]
    black = next_uniform(stream, 0.02, 0.25)
    p.red_2, p.green_2, p.blue_2 = black, black, black
    if next_chance(stream, 0.5):  # a backing, thicker than the paper
        _add_cuboid(
            stream,
            scene,
            plus(centre, scaled(n, 0.02 * z)),
            axes,
            (half_s + border * 1.5, half_t + border * 1.5, 0.01 * z),
            draw_colour(stream, 0.1, 0.9, 0.4),
            0,
            0,
            height,
            width,
        )


@compiled
def _distance_to_wall(walls, ray):
    """Return how many times the ray fits into the room."""
    nearest = 0.0
    for wall in walls:
        nearest = max(nearest, dot(wall[0], ray) / wall[1])
    return 1 / nearest


@compiled
def draw_furniture(stream, scene, walls, world, extents, repeats, height, width):  # noqa: C901, PLR0915 (one sequence of random numbers)
    """Furniture on the floor where the cameras look: some along the walls, some freely turned."""
    setting = scene.setting[0]
    floor_y, back = extents
    nearest_m = setting.focal_px * setting.baseline_m / (_LARGEST_DISPARITY * width)
    for _ in range(2 + next_whole(stream, 8)):
        kind = next_whole(stream, 8)
        rgb, material = draw_colour(stream, 0.05, 0.95, 0.6), next_whole(stream, 5)
        ray = (next_uniform(stream, -0.55, 0.55) * width / setting.focal_px, 0.0, 1.0)
        place = scaled(ray, _distance_to_wall(walls, ray) * next_uniform(stream, 0.35, 0.97))
        x, z = dot(place, world[0]), dot(place, world[2])
        turn = 0.0 if next_chance(stream, 0.5) else next_uniform(stream, -1.5, 1.5)
        cos, sin = math.cos(turn), math.sin(turn)
        axes = (
            plus(scaled(world[0], cos), scaled(world[2], sin)),
            world[1],
            plus(scaled(world[0], -sin), scaled(world[2], cos)),
        )
        centre = point_along(world, x, 0.0, z)
        on_floor = scaled(world[1], floor_y)
        if kind <= 1:  # a table or chair, with things on it
            if centre[2] - 1.0 < nearest_m:
                continue
            half_x, half_z, tall = _add_table(stream, scene, centre, axes, floor_y, rgb, material, height, width)
            for _ in range(next_whole(stream, 6)):
                along = scaled(axes[0], next_uniform(stream, -half_x, half_x))
                across = scaled(axes[2], next_uniform(stream, -half_z, half_z))
                a, b = next_log_uniform(stream, 0.02, 0.25), next_log_uniform(stream, 0.02, 0.25)
                c = next_log_uniform(stream, 0.02, 0.15)
                spot = plus(plus(plus(centre, along), across), scaled(axes[1], floor_y - tall - b))
                if next_chance(stream, 0.7):
                    colour, of = draw_colour(stream, 0.05, 0.95, 0.7), next_whole(stream, 5)
                    _add_cuboid(stream, scene, spot, axes, (a, b, c), colour, of, 0, height, width)
                else:
                    a = min(a, 0.1)
                    _add_round(stream, scene, spot, a, max(b / a, 0.3), next_chance(stream, 0.5), width)
            continue
        if kind == 2:
            if centre[2] - 1.2 > nearest_m:
                _add_railing(stream, scene, centre, axes, floor_y, height, width)
            continue
        front = 0
        if kind == 3:  # a shelf or cupboard against the back wall
            half = (next_uniform(stream, 0.3, 1.2), next_uniform(stream, 0.3, 1.1), next_uniform(stream, 0.12, 0.35))
            centre, axes, front = (
                point_along(world, x, floor_y - half[1], back - half[2]),
                world,
                1 + next_whole(stream, 2),
            )
        elif kind == 4:  # something low and broad: sofa, bed
            half = (next_uniform(stream, 0.4, 1.1), next_uniform(stream, 0.15, 0.4), next_uniform(stream, 0.3, 0.6))
            centre = plus(plus(centre, on_floor), scaled(world[1], -half[1]))
        elif kind == 5:  # something tall and thin: lamp, post, leg of something
            thin, tall = next_log_uniform(stream, 0.01, 0.12), next_uniform(stream, 0.3, 1.2)
            half = (thin, tall, thin)
            centre = plus(plus(centre, on_floor), scaled(world[1], -tall))
            if next_chance(stream, 0.5):
                _add_round(stream, scene, centre, thin, tall / thin, True, width)
                continue
        else:
            half = (
                next_log_uniform(stream, 0.1, 0.6),
                next_log_uniform(stream, 0.1, 0.6),
                next_log_uniform(stream, 0.1, 0.5),
            )
            above = 0.0 if next_chance(stream, 0.7) else next_uniform(stream, 0, 1)
            centre = plus(plus(centre, on_floor), scaled(world[1], -half[1] - above))
            front = 2 if next_chance(stream, repeats) else 0
        if centre[2] - math.sqrt(half[0] ** 2 + half[2] ** 2) > nearest_m:
            _add_cuboid(stream, scene, centre, axes, half, rgb, material, front, height, width)


@compiled
def draw_foreground(stream, scene, height, width):
    """Things near the cameras, blank ones as often as not: boxes and balls at any pose."""
    setting = scene.setting[0]
    f = setting.focal_px
    for _ in range(1 + next_whole(stream, 3)):
        disparity_px = width * next_log_uniform(stream, 0.04, 0.28)
        z = f * setting.baseline_m / disparity_px
        size = next_log_uniform(stream, 0.04, 0.3) * width * z / f
        centre = (
            z * next_uniform(stream, -0.5, 0.5) * width / f,
            z * next_uniform(stream, -0.4, 0.6) * height / f,
            z + size,
        )
        if next_chance(stream, 0.25):
            _add_round(stream, scene, centre, size, next_uniform(stream, 0.5, 3), next_chance(stream, 0.4), width)
            continue
        axes = turned_axes(
            next_uniform(stream, -0.8, 0.8), next_uniform(stream, -0.5, 0.5), next_uniform(stream, -0.5, 0.5)
        )
        half = (
            size * next_log_uniform(stream, 0.2, 1),
            size * next_log_uniform(stream, 0.2, 1),
            size * next_log_uniform(stream, 0.2, 1),
        )
        material = 0 if next_chance(stream, 0.6) else next_whole(stream, 5)
        _add_cuboid(stream, scene, centre, axes, half, draw_colour(stream, 0.03, 0.97, 0.6), material, 0, height, width)

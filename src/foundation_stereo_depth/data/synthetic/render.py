"""Both views of a scene, and the disparity of the left one.

Rows are rendered in bands that stay in a core's second-level cache.
"""

# Types of compiled functions are numba's to infer.
# pyright: basic

import numpy as np

from foundation_stereo_depth.data.synthetic.compiling import compiled
from foundation_stereo_depth.data.synthetic.primitives import BAND_ROWS, SAMPLES
from foundation_stereo_depth.data.synthetic.rasterise import enter, outline, place, rasterise
from foundation_stereo_depth.data.synthetic.shading import BLUE_ROW, GREEN_ROW, RED_ROW, make_slots, shade

_0, _1, _HALF = (np.float32(value) for value in (0, 1, 0.5))
_BYTE = np.float32(255)


@compiled
def _add_runs(primitives, winner, begin, end, row, first, run_count, slots):
    """List the runs of begin..end of a row of winners, from point `first` on; return how many runs there are now."""
    while begin < end:
        k = winner[begin]
        until = begin + 1
        while until < end and winner[until] == k:
            until += 1
        content = primitives[k].content
        run = slots.runs[run_count]
        run[0], run[1], run[2], run[3] = k if content < 0 else content, first, until - begin, row
        slots.begins[run_count] = begin
        run_count += 1
        first += until - begin
        begin = until
    return run_count


@compiled
def _list_runs(primitives, exact, upper, lower, alike, slots):
    """List what has to be shaded in a row of pixels; return the numbers of runs and of points.

    A pixel whose four samples see one primitive has one point, at its centre; others, or all where `exact`, have four.
    Stretches of either kind follow one another, the upper samples of a stretch before its lower ones.
    """
    width = alike.shape[0]
    run_count, points = 0, 0
    if exact:
        run_count = _add_runs(primitives, upper, 0, 2 * width, 0, 0, 0, slots)
        run_count = _add_runs(primitives, lower, 0, 2 * width, 1, 2 * width, run_count, slots)
        return run_count, 4 * width
    for x in range(width):
        k = upper[2 * x]
        alike[x] = k if (upper[2 * x + 1] == k) & (lower[2 * x] == k) & (lower[2 * x + 1] == k) else -1
    begin = 0
    while begin < width:
        k, end = alike[begin], begin + 1
        if k >= 0:
            while end < width and alike[end] >= 0:
                end += 1
            run_count = _add_runs(primitives, alike, begin, end, 2, points, run_count, slots)
            points += end - begin
        else:
            while end < width and alike[end] < 0:
                end += 1
            n = 2 * (end - begin)
            run_count = _add_runs(primitives, upper, 2 * begin, 2 * end, 0, points, run_count, slots)
            run_count = _add_runs(primitives, lower, 2 * begin, 2 * end, 1, points + n, run_count, slots)
            points += 2 * n
        begin = end
    return run_count, points


@compiled
def _average(exact, alike, slots, pixels):
    """Fill the colours of a row of pixels from those of its points."""
    width = alike.shape[0]
    quarter = np.float32(0.25)
    for channel in range(3):
        points, pixel = slots.at[RED_ROW + channel], pixels[channel]
        if exact:
            for x in range(width):
                i, j = np.uint64(2 * x), np.uint64(2 * (width + x))
                total = points[i] + points[i + np.uint64(1)] + points[j] + points[j + np.uint64(1)]
                pixel[x] = total * quarter
            continue
        begin, point = 0, 0
        while begin < width:
            end = begin + 1
            if alike[begin] >= 0:
                pixel[begin] = points[point]
                point += 1
            else:
                while end < width and alike[end] < 0:
                    end += 1
                n = 2 * (end - begin)
                for x in range(begin, end):
                    i = point + 2 * (x - begin)
                    pixel[x] = (points[i] + points[i + 1] + points[i + n] + points[i + n + 1]) * quarter
                point += 2 * n
            begin = end


@compiled
def _add_highlights(scene, right, y, pixel_xs, pixels):
    """Add specular highlights, which each view sees at a place of its own."""
    for j in range(scene.highlights.shape[0]):
        bright, at_x, at_y = scene.highlights[j, 0], scene.highlights[j, 1], scene.highlights[j, 2]
        per_x, per_y, disparity_px = scene.highlights[j, 3], scene.highlights[j, 4], scene.highlights[j, 5]
        down = ((y - at_y) * per_y) ** 2
        if bright == _0 or down > 9:
            continue
        at_x = at_x - disparity_px if right else at_x
        for x in range(pixel_xs.shape[0]):
            across = ((pixel_xs[x] - at_x) * per_x) ** 2
            if across + down < 9:  # e^-9 of a full byte is 0.03
                highlight = bright * np.exp(-across - down)
                for channel in range(3):
                    pixels[channel, x] += highlight


@compiled
def positions(count, samples):
    """Return where samples lie, px; a pixel's centre is a whole number."""
    at = np.empty(count * samples, np.float32)
    for i in range(count * samples):
        at[i] = (np.float32(i) + _HALF) / np.float32(samples) - _HALF
    return at


@compiled
def render_view(scene, right, texels, view):
    """Fill `view`, uint8 [H, W, 3], RGB, with what the left or the right camera sees."""
    height, width, _ = view.shape
    ys = positions(height, SAMPLES)
    row_xs = (positions(width, SAMPLES), positions(width, 1))
    row_ys, steps_px = np.empty(3, np.float32), np.empty(3, np.float32)
    steps_px[0], steps_px[1], steps_px[2] = _HALF, _HALF, _1
    columns, rows = width * SAMPLES, BAND_ROWS * SAMPLES
    nearest_px, winner = np.empty((rows, columns), np.float32), np.empty((rows, columns), np.int32)
    scratch, slots = np.empty((4, columns), np.float32), make_slots(2 * columns)
    pixels, alike = np.empty((3, width), np.float32), np.empty(width, np.int32)
    setting = scene.setting[0]
    for top in range(0, height, BAND_ROWS):
        band_rows = min(BAND_ROWS, height - top)
        first, n = top * SAMPLES, band_rows * SAMPLES
        band_ys = ys[first : first + n]
        rasterise(
            scene.primitives,
            setting.count,
            setting.walls,
            right,
            SAMPLES,
            first,
            row_xs[0],
            band_ys,
            nearest_px[:n],
            winner[:n],
            scratch,
        )
        for row in range(band_rows):
            row_ys[0], row_ys[1], row_ys[2] = band_ys[2 * row], band_ys[2 * row + 1], top + row
            upper, lower = winner[2 * row], winner[2 * row + 1]
            runs, points = _list_runs(scene.primitives, setting.exact, upper, lower, alike, slots)
            shade(scene, right, runs, points, row_xs, row_ys, steps_px, texels, slots)
            _average(setting.exact, alike, slots, pixels)
            _add_highlights(scene, right, row_ys[2], row_xs[1], pixels)
            out = view[top + row]
            for x in range(width):
                for channel in range(3):
                    out[x, channel] = np.uint8(np.int32(np.rint(min(pixels[channel, x], _1) * _BYTE)))


@compiled
def render_disparity(scene, disparity_px):
    """Fill `disparity_px`, float32 [H, W]: exact, of the left view, at the centres of its pixels."""
    height, width = disparity_px.shape
    xs, ys = positions(width, 1), positions(height, 1)
    winner = np.empty((height, width), np.int32)
    scratch = np.empty((4, width), np.float32)
    setting = scene.setting[0]
    rasterise(scene.primitives, setting.count, setting.walls, False, 1, 0, xs, ys, disparity_px, winner, scratch)
    for y in range(height):
        for x in range(width):
            content = scene.primitives[winner[y, x]].content
            if content >= 0:
                p = scene.primitives[content]
                place(p, ys[y], False, xs, np.uint64(x), 1, scratch[0], scratch[1])
                disparity_px[y, x] = scratch[1, 0]


@compiled
def mean_brightness(scene, height, width, texels):
    """Return the mean of the left view, 0..1, and the share of it that is overexposed, from some rows of points."""
    rows = 12
    columns = 16
    xs, ys = np.empty(columns, np.float32), np.empty(rows, np.float32)
    for i in range(columns):
        xs[i] = (i + 0.5) * width / columns
    for i in range(rows):
        ys[i] = (i + 0.5) * height / rows
    nearest_px, winner = np.empty((1, columns), np.float32), np.empty((1, columns), np.int32)
    scratch, slots = np.empty((4, columns), np.float32), make_slots(columns)
    setting = scene.setting[0]
    total, bright = 0.0, 0
    row_ys, steps_px = np.empty(3, np.float32), np.ones(3, np.float32)
    for row in range(rows):
        for k in range(setting.count):
            p = scene.primitives[k]
            if ys[row] < p.top or ys[row] > p.bottom:
                continue
            place(p, ys[row], False, xs, np.uint64(0), columns, scratch[0], scratch[1])
            if not p.unbounded:
                outline(p, ys[row] - p.centre_y, columns, scratch[0], scratch[1], scratch[2], scratch[3])
            if k == 0:
                nearest_px[:] = -np.inf
            enter(p, k, np.uint64(0), columns, scratch[1], scratch[2], scratch[3], nearest_px[0], winner[0])
        runs = _add_runs(scene.primitives, winner[0], 0, columns, 0, 0, 0, slots)
        row_ys[0] = ys[row]
        shade(scene, False, runs, columns, (xs, xs), row_ys, steps_px, texels, slots)
        for i in range(columns):
            grey = (slots.at[RED_ROW, i] + slots.at[GREEN_ROW, i] + slots.at[BLUE_ROW, i]) / 3
            total += grey
            bright += grey > 0.97
    return total / (rows * columns), bright / (rows * columns)


@compiled
def sharpen(view, amount):
    """Return the view plus `amount` of its difference from the mean of 3 x 3 pixels, as cheap cameras sharpen."""
    height, width, _ = view.shape
    sharp = view.copy()
    flat, out = view.reshape(height, width * 3), sharp.reshape(height, width * 3)
    ninth = np.float32(1 / 9)
    for y in range(1, height - 1):
        above, here, below, row = flat[y - 1], flat[y], flat[y + 1], out[y]
        for j in range(3, width * 3 - 3):
            total = np.int32(above[j - 3]) + np.int32(above[j]) + np.int32(above[j + 3])
            total += np.int32(here[j - 3]) + np.int32(here[j]) + np.int32(here[j + 3])
            total += np.int32(below[j - 3]) + np.int32(below[j]) + np.int32(below[j + 3])
            value = np.float32(np.int32(here[j]))
            value += amount * (value - np.float32(np.int32(total)) * ninth)
            row[j] = np.uint8(np.int32(min(max(value + _HALF, _0), _BYTE)))
    return sharp

"""Two loops over pixels, compiled by numba while the program runs; OpenCV does the same work until they are.

Half of what it costs to read a FoundationStereo sample is undoing the filters of its PNG, one pixel after the other,
and much of the rest is averaging boxes of pixels. Compiling takes seconds and memory, which hundreds of samples win
back and a few do not: a reader that is about to decode many calls `compile_loops`. Both ways give the same bytes.

Measured against cv2.imdecode and cv2.resize(INTER_AREA) by `benchmarks/loader.py fill`.
"""

import functools
import inspect
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

COMPILE_FROM_SAMPLES = 400
"""As many have to be decoded before compiling has paid for itself."""

LARGEST_BOX = 16
"""Rows and columns of a box whose sum fits into 16 bits."""


class Loops(NamedTuple):
    """The functions below, compiled; they release Python's lock."""

    undo_filters: Callable[..., None]
    average_boxes: Callable[..., None]


def compile_loops() -> Loops:
    """Compile the loops, once per process; from then on every reader of the process uses them."""
    with _compile_lock:
        return _compile()


def compiled_loops() -> Loops | None:
    """Return the compiled loops; None where this process has not compiled them."""
    return _compile() if _compile.cache_info().currsize else None


_compile_lock = threading.Lock()


@functools.cache
def _compile() -> Loops:
    import numba  # noqa: PLC0415 (a second, which most programs have no use for)

    # No `cache=True`: what it saves is a second of a long job, and it writes to a disk that may be full or read-only.
    compile_loop: Any = numba.njit(nogil=True)
    return Loops(*(compile_loop(inspect.unwrap(loop)) for loop in (undo_filters, average_boxes)))


def undo_filters(
    skewed: UInt8[np.ndarray, "steps bytes"], kinds: UInt8[np.ndarray, " rows"], above: UInt8[np.ndarray, "width 4"]
) -> None:
    """Undo the filters of a band of PNG rows, in place.

    A filtered byte is its difference from a prediction made of the pixels to the left (a), above (b) and above to the
    left (c). So a pixel can be restored once these three are, and all pixels of a diagonal at a time: row r at column
    x, row r + 1 at column x - 1. Step t holds column t - r of row r, so that a diagonal lies side by side in memory and
    one instruction takes dozens of its bytes.

    Source: Portable Network Graphics specification, third edition, 9.2 (the filters) and 9.4 (Paeth).

    Args:
        skewed: pixels of four bytes, (width + rows - 1) steps of `rows` pixels; before and after a row, any value.
        kinds: the filter of each row: 0 none, 1 a, 2 b, 3 the mean of a and b, 4 Paeth's.
        above: the row above the band, unfiltered; zeros above the first.
    """
    size = skewed.shape[1]
    # One pixel more, at the front, for the row above: the byte above byte j of a diagonal is byte j of the last one.
    now, left, before = np.zeros(size + 4, np.int16), np.zeros(size + 4, np.int16), np.zeros(size + 4, np.int16)
    # All bits of the mask that belongs to a row's filter are set; so the loop below has no branches.
    masks = np.zeros((5, size), np.int16)
    for j in range(size):
        masks[kinds[j // 4], j] = -1
    is_a, is_b, is_mean, is_paeth = masks[1], masks[2], masks[3], masks[4]
    for t in range(skewed.shape[0]):
        step = skewed[t]
        for i in range(4):
            left[i] = above[min(t, above.shape[0] - 1), i]
        for j in range(size):
            a, b, c = left[4 + j], left[j], before[j]
            # Of a, b and c the one that a + b - c is nearest to, a before b before c where two are as near.
            from_a, from_b = np.int16(b - c), np.int16(a - c)
            far_a, far_b, far_c = np.int16(abs(from_a)), np.int16(abs(from_b)), np.int16(abs(np.int16(from_a + from_b)))
            nearer = b if far_b <= far_c else c
            near = min(far_b, far_c)
            paeth = a if far_a <= near else nearer
            mean = np.int16(np.int16(a + b) >> 1)
            guess = (a & is_a[j]) | (b & is_b[j]) | (mean & is_mean[j]) | (paeth & is_paeth[j])
            value = np.int16(np.int16(guess + step[j]) & np.int16(255))
            now[4 + j] = value
            step[j] = np.uint8(value)
        for j in range(4 * (t + 1), size):  # rows that have not begun
            now[4 + j] = 0
        now, left, before = before, now, left


def average_boxes(
    image: UInt8[np.ndarray, "H row"], averaged: UInt8[np.ndarray, "h w 3"], down: int, across: int
) -> None:
    """Fill `averaged` with the mean of each box of `down` x `across` pixels, rounded to nearest, halves to even.

    Args:
        image: rows of R, G, B, R, G, B, ...; h * down of them, w * across pixels each.
        averaged: is filled.
        down: at most LARGEST_BOX.
        across: at most LARGEST_BOX.
    """
    height, width, _ = averaged.shape
    row_bytes = image.shape[1]
    starts = row_bytes - 3 * (across - 1)  # where a box may begin
    columns, boxes = np.zeros(row_bytes, np.uint16), np.zeros(row_bytes, np.uint16)
    means = np.zeros(row_bytes, np.uint8)
    scale = np.float32(1) / np.float32(down * across)
    for y in range(height):
        first = image[y * down]
        for j in range(row_bytes):
            columns[j] = first[j]
        for i in range(1, down):
            row = image[y * down + i]
            for j in range(row_bytes):
                columns[j] = np.uint16(columns[j] + row[j])
        # Boxes at every pixel, not at every w-th: more of them, but side by side, dozens at a time.
        for j in range(starts):
            boxes[j] = columns[j]
        for i in range(1, across):
            part = columns[3 * i : 3 * i + starts]
            for j in range(starts):
                boxes[j] = np.uint16(boxes[j] + part[j])
        for j in range(starts):
            means[j] = np.uint8(np.int32(np.rint(np.float32(np.int32(boxes[j])) * scale)))
        for x in range(width):
            for channel in range(3):
                averaged[y, x, channel] = means[3 * x * across + channel]

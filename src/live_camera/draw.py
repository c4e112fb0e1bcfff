"""Images for the windows, BGR: colour bars, rows of text, cursors. Pure functions.

Rows of text are cached: OpenCV needs 0.2 ms for a line, more than for a depth map.
"""

import functools

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from foundation_stereo_depth.colours import Bgr, Canvas, ColourScale, apply_colours
from foundation_stereo_depth.files import text_for_opencv

BACKGROUND: Bgr = (30, 28, 26)
TEXT: Bgr = (225, 225, 225)
QUIET: Bgr = (150, 150, 150)
WARNING: Bgr = (60, 180, 255)
NOTICE: Bgr = (120, 230, 140)
ROW_PX = 24
BAR_PX = 74
_TEXT_PX, _MARGIN_PX, _BAR_COLOURS_PX = 15, 10, 16
_EPIPOLAR_ROWS = 16
_TICKS = 5
CONTOUR_STEP_M = 0.5
_BORDER_PX = 4
_SMOOTHED_PX = 5
"""Contours of a median of so many pixels: noise would draw islands."""


def draw_pair(
    left: UInt8[np.ndarray, "h w 3"], right: UInt8[np.ndarray, "h w 3"], height: int, width: int, *, lines: bool
) -> Canvas:
    """Return both views side by side, each resized; with `lines`, epipolar lines are drawn over them."""
    both = np.empty((height, 2 * width, 3), np.uint8)
    for half, view in ((both[:, :width], left), (both[:, width:], right)):
        half[:] = cv2.resize(cv2.cvtColor(view, cv2.COLOR_RGB2BGR), (width, height), interpolation=cv2.INTER_LINEAR)
    if lines:
        for number in range(1, _EPIPOLAR_ROWS):
            row = number * height // _EPIPOLAR_ROWS
            cv2.line(both, (0, row), (2 * width, row), (80, 220, 80), 1)
    return both


def draw_contours(view: Canvas, depth_m: Float32[np.ndarray, "h w"], scale: ColourScale) -> None:
    """Draw lines of equal depth into a view, one each 0.5 m up to the end of the colour range, in the map's colours."""
    height, width = view.shape[:2]
    smooth = np.asarray(cv2.medianBlur(np.nan_to_num(depth_m, nan=0.0), _SMOOTHED_PX), np.float32)
    smooth = cv2.resize(smooth, (width, height), interpolation=cv2.INTER_LINEAR)
    # A border, so that the edge of the image is no contour.
    smooth = cv2.copyMakeBorder(smooth, _BORDER_PX, _BORDER_PX, _BORDER_PX, _BORDER_PX, cv2.BORDER_REPLICATE)
    moved = (-_BORDER_PX, -_BORDER_PX)
    thickness = max(1, round(width / 480))
    for number in range(1, int(scale.high / CONTOUR_STEP_M) + 1):
        level_m = np.float32(number * CONTOUR_STEP_M)
        nearer = ((smooth < level_m) & (smooth > 0)).astype(np.uint8)
        found, _ = cv2.findContours(nearer, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE, offset=moved)
        long = [line for line in found if len(line) > width // 8]
        colour = apply_colours(np.full((1, 1), level_m), scale, 1, 1, None)[0, 0].tolist()
        cv2.drawContours(view, long, -1, (0, 0, 0), thickness + 2)
        cv2.drawContours(view, long, -1, colour, thickness)


def compose_window(body: Canvas, title: str, scale: ColourScale | None, rows: list[tuple[str, Bgr]]) -> Canvas:
    """Return the image of a window: a title, the body with its colour bar, and rows of text below."""
    height, body_width = body.shape[:2]
    width = body_width + (BAR_PX if scale is not None else 0)
    canvas = np.empty((height + ROW_PX * (1 + len(rows)), width, 3), np.uint8)
    canvas[:ROW_PX] = draw_text_row(title, width, TEXT)
    canvas[ROW_PX : ROW_PX + height, :body_width] = body
    if scale is not None:
        canvas[ROW_PX : ROW_PX + height, body_width:] = draw_colour_bar(scale, height)
    for number, (text, colour) in enumerate(rows):
        top = ROW_PX * (1 + number) + height
        canvas[top : top + ROW_PX] = draw_text_row(text, width, colour)
    return canvas


@functools.lru_cache(maxsize=128)
def draw_text_row(text: str, width: int, colour: Bgr) -> Canvas:
    """Return one row of text; text that does not fit is cut at its end."""
    row = np.full((ROW_PX, width, 3), BACKGROUND, np.uint8)
    while text and _text_width(text) > width - 2 * _MARGIN_PX:
        text = text.removesuffix("…")[:-1] + "…" if len(text) > 1 else ""
    _write(row, text, (_MARGIN_PX, ROW_PX - 7), colour)
    return row


@functools.lru_cache(maxsize=32)
def draw_colour_bar(scale: ColourScale, height: int) -> Canvas:
    """Return the bar beside a map, with numbers and unit; the high end is at the top."""
    bar = np.full((height, BAR_PX, 3), BACKGROUND, np.uint8)
    top, bottom = 2 * _TEXT_PX + 4, height - _TEXT_PX
    ramp = np.linspace(scale.high, scale.low, bottom - top, dtype=np.float32)[:, None]
    left = _MARGIN_PX
    bar[top:bottom, left : left + _BAR_COLOURS_PX] = apply_colours(ramp, scale, bottom - top, _BAR_COLOURS_PX, None)
    _write(bar, scale.unit, (left, _TEXT_PX + 2), QUIET)
    for number in range(_TICKS):
        fraction = number / (_TICKS - 1)
        row = round(bottom - 1 - fraction * (bottom - 1 - top))
        value = scale.low + fraction * (scale.high - scale.low)
        decimals = 0 if scale.high - scale.low >= 20 else 1 if scale.high - scale.low >= 3 else 2
        cv2.line(bar, (left + _BAR_COLOURS_PX, row), (left + _BAR_COLOURS_PX + 3, row), QUIET, 1)
        _write(bar, f"{value:.{decimals}f}", (left + _BAR_COLOURS_PX + 6, row + 5), TEXT)
    return bar


def draw_cursor(image: Canvas, column: int, row: int, half_px: int) -> None:
    """Draw a cross and the box around it into an image: the pixels whose values are shown."""
    for colour, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        cv2.rectangle(image, (column - half_px, row - half_px), (column + half_px, row + half_px), colour, thickness)
        cv2.line(image, (column - 3, row), (column + 3, row), colour, thickness)
        cv2.line(image, (column, row - 3), (column, row + 3), colour, thickness)


def draw_help(keys: dict[str, str], height: int, width: int) -> Canvas:
    """Return the list of the keys, and what the colours mean."""
    image = np.full((height, width, 3), BACKGROUND, np.uint8)
    step_px = min(_TEXT_PX + 8, (height - _TEXT_PX - _MARGIN_PX) // len(keys))
    for number, (key, meaning) in enumerate(keys.items()):
        row = _TEXT_PX + _MARGIN_PX + number * step_px
        _write(image, key, (2 * _MARGIN_PX, row), WARNING)
        _write(image, meaning, (2 * _MARGIN_PX + 70, row), TEXT)
    return image


@functools.cache
def _font() -> cv2.FontFace:
    return cv2.FontFace("sans")


def _text_width(text: str) -> int:
    return cv2.getTextSize((0, 0), text_for_opencv(text), (0, 0), _font(), _TEXT_PX)[2]


def _write(image: Canvas, text: str, at: tuple[int, int], colour: Bgr) -> None:
    cv2.putText(image, text_for_opencv(text), at, colour, _font(), _TEXT_PX)

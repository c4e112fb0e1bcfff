"""Pictures for the windows, BGR: colours, colour bars, strips of text. Pure functions, so that tests can look at them.

Text is drawn once and kept as long as it is the same: OpenCV needs 0.2 ms for a line, more than for a depth map.
"""

import functools
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

Bgr = tuple[int, int, int]
Canvas = UInt8[np.ndarray, "_ _ 3"]

BACKGROUND: Bgr = (30, 28, 26)
TEXT: Bgr = (225, 225, 225)
QUIET: Bgr = (150, 150, 150)
WARNING: Bgr = (60, 180, 255)
MASKED: Bgr = (70, 70, 70)
ROW_PX = 24
BAR_PX = 74
_TEXT_PX, _MARGIN_PX, _BAR_COLOURS_PX = 15, 10, 16
_EPIPOLAR_ROWS = 16
_TICKS = 5


@dataclass(frozen=True, kw_only=True)
class ColourScale:
    """What the colours mean.

    Attributes:
        low, high: the ends of the scale.
        unit: of both.
        colours: of OpenCV: COLORMAP_TURBO, COLORMAP_VIRIDIS.
        downwards: the first colour of the map stands at the high end, so that what is near is red in depth as well.
    """

    low: float
    high: float
    unit: str
    colours: int = cv2.COLORMAP_TURBO
    downwards: bool = False


def coloured(
    values: Float[np.ndarray, "h w"],
    scale: ColourScale,
    height: int,
    width: int,
    hidden: Bool[np.ndarray, "h w"] | None,
) -> Canvas:
    """The map in colours at a size; black where it is NaN, grey where `hidden`."""
    unknown = np.isnan(values)
    share = (values - np.float32(scale.low)) * np.float32(255 / (scale.high - scale.low))
    share[unknown] = 0
    level = np.clip(share, 0, 255).astype(np.uint8)
    if scale.downwards:
        level = 255 - level
    picture = np.asarray(cv2.applyColorMap(level, _colours(scale.colours)), np.uint8)
    picture[unknown] = 0
    if hidden is not None:
        picture[hidden & ~unknown] = MASKED
    return np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_NEAREST), np.uint8)


def eyes_picture(
    left: UInt8[np.ndarray, "h w 3"], right: UInt8[np.ndarray, "h w 3"], height: int, width: int, *, lines: bool
) -> Canvas:
    """Both eyes side by side, each at a size; with lines, on which a rectified pair shows the same things."""
    both = np.empty((height, 2 * width, 3), np.uint8)
    for half, eye in ((both[:, :width], left), (both[:, width:], right)):
        half[:] = cv2.resize(cv2.cvtColor(eye, cv2.COLOR_RGB2BGR), (width, height), interpolation=cv2.INTER_LINEAR)
    if lines:
        for number in range(1, _EPIPOLAR_ROWS):
            row = number * height // _EPIPOLAR_ROWS
            cv2.line(both, (0, row), (2 * width, row), (80, 220, 80), 1)
    return both


def panel(body: Canvas, title: str, scale: ColourScale | None, rows: list[tuple[str, Bgr]]) -> Canvas:
    """A window's picture: a title, the body with its colour bar, and rows of text below."""
    height, body_width = body.shape[:2]
    width = body_width + (BAR_PX if scale is not None else 0)
    whole = np.empty((height + ROW_PX * (1 + len(rows)), width, 3), np.uint8)
    whole[:ROW_PX] = text_row(title, width, TEXT)
    whole[ROW_PX : ROW_PX + height, :body_width] = body
    if scale is not None:
        whole[ROW_PX : ROW_PX + height, body_width:] = colour_bar(scale, height)
    for number, (text, colour) in enumerate(rows):
        top = ROW_PX * (1 + number) + height
        whole[top : top + ROW_PX] = text_row(text, width, colour)
    return whole


@functools.lru_cache(maxsize=128)
def text_row(text: str, width: int, colour: Bgr) -> Canvas:
    """One row of text; what does not fit is cut at its end."""
    row = np.full((ROW_PX, width, 3), BACKGROUND, np.uint8)
    while text and _text_width(text) > width - 2 * _MARGIN_PX:
        text = text.removesuffix("…")[:-1] + "…" if len(text) > 1 else ""
    _write(row, text, (_MARGIN_PX, ROW_PX - 7), colour)
    return row


@functools.lru_cache(maxsize=32)
def colour_bar(scale: ColourScale, height: int) -> Canvas:
    """The bar beside a map: the high end is at the top, with its numbers and unit."""
    bar = np.full((height, BAR_PX, 3), BACKGROUND, np.uint8)
    top, bottom = 2 * _TEXT_PX + 4, height - _TEXT_PX
    ramp = np.linspace(scale.high, scale.low, bottom - top, dtype=np.float32)[:, None]
    left = _MARGIN_PX
    bar[top:bottom, left : left + _BAR_COLOURS_PX] = coloured(ramp, scale, bottom - top, _BAR_COLOURS_PX, None)
    _write(bar, scale.unit, (left, _TEXT_PX + 2), QUIET)
    for number in range(_TICKS):
        share = number / (_TICKS - 1)
        row = round(bottom - 1 - share * (bottom - 1 - top))
        value = scale.low + share * (scale.high - scale.low)
        decimals = 0 if scale.high - scale.low >= 20 else 1 if scale.high - scale.low >= 3 else 2
        cv2.line(bar, (left + _BAR_COLOURS_PX, row), (left + _BAR_COLOURS_PX + 3, row), QUIET, 1)
        _write(bar, f"{value:.{decimals}f}", (left + _BAR_COLOURS_PX + 6, row + 5), TEXT)
    return bar


def mark(picture: Canvas, column: int, row: int, half_px: int) -> None:
    """Draws a cross and the box around it into the picture: where the mouse reads."""
    for colour, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        cv2.rectangle(picture, (column - half_px, row - half_px), (column + half_px, row + half_px), colour, thickness)
        cv2.line(picture, (column - 3, row), (column + 3, row), colour, thickness)
        cv2.line(picture, (column, row - 3), (column, row + 3), colour, thickness)


def help_picture(keys: dict[str, str], height: int, width: int) -> Canvas:
    """What each key does."""
    picture = np.full((height, width, 3), BACKGROUND, np.uint8)
    for number, (key, meaning) in enumerate(keys.items()):
        row = 30 + number * (_TEXT_PX + 8)
        _write(picture, key, (2 * _MARGIN_PX, row), WARNING)
        _write(picture, meaning, (2 * _MARGIN_PX + 70, row), TEXT)
    return picture


@functools.cache
def _colours(number: int) -> UInt8[np.ndarray, "256 1 3"]:
    """BGR of each level. By its number OpenCV makes the list anew at each map, three times the work of the map."""
    return np.asarray(cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], number), np.uint8)


@functools.cache
def _font() -> cv2.FontFace:
    return cv2.FontFace("sans")


def _text_width(text: str) -> int:
    return cv2.getTextSize((0, 0), text, (0, 0), _font(), _TEXT_PX)[2]


def _write(picture: Canvas, text: str, at: tuple[int, int], colour: Bgr) -> None:
    cv2.putText(picture, text, at, colour, _font(), _TEXT_PX)

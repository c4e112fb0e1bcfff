"""Figures of a match: the left view and maps in colours, each with its bar; as a PNG, or as a frame of a video."""

import functools
import math
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from foundation_stereo_depth.colours import (
    Canvas,
    ColourScale,
    apply_colours,
    colour_map_of,
    find_uncertain,
    fit_range,
)
from foundation_stereo_depth.files import text_for_opencv
from foundation_stereo_depth.options.inference import FigureOptions
from foundation_stereo_depth.stereo.match import StereoMatch

_CONFIDENCE = "confidence, P(|error| < 1 px)"
_SIGMA_TOP_PERCENT = 95
_CELL_PX, _BAR_PX, _BAR_WIDTH_PX = 600, 80, 16
_TITLE_PX, _TEXT_PX, _MARGIN_PX = 28, 15, 10
_MOST_TICKS = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Panel:
    """One map of a figure.

    Attributes:
        title: what it shows, with the unit.
        values: NaN is drawn black.
        scale: range and colours.
        hidden: pixels that are drawn grey; None for none.
    """

    title: str
    values: Float[np.ndarray, "H W"]
    scale: ColourScale
    hidden: Bool[np.ndarray, "H W"] | None = None


def scale_of_match(
    match: StereoMatch, depth_m: Float[np.ndarray, "H W"] | None, options: FigureOptions
) -> ColourScale | None:
    """Return the colours of a match's depth, m, or without a depth of its disparity, px; None where none is known.

    The range is that of the confident pixels, unless `--depth-range` names it.
    """
    values, unit = (match.disparity_px, "px") if depth_m is None else (depth_m, "m")
    ends = options.depth_range if options.depth_range is not None and depth_m is not None else None
    ends = ends or fit_range(values, find_uncertain(match, options.grey_below))
    if ends is None:
        return None
    return ColourScale(
        low=ends[0],
        high=ends[1],
        unit=unit,
        colour_map=colour_map_of(options.colormap),
        reverse=depth_m is not None,
    )


def match_panel(
    match: StereoMatch, depth_m: Float[np.ndarray, "H W"] | None, scale: ColourScale, grey_below: float
) -> Panel:
    """Return the depth, or without one the disparity; pixels of lower confidence are grey."""
    hidden = find_uncertain(match, grey_below)
    if depth_m is None:
        return Panel(title="disparity, px", values=match.disparity_px, scale=scale, hidden=hidden)
    return Panel(title="depth, m", values=depth_m, scale=scale, hidden=hidden)


def confidence_panel(match: StereoMatch) -> Panel:
    """Return the confidence; black for a matcher that predicts none."""
    unknown = np.full(match.disparity_px.shape, np.nan, np.float32)
    values = unknown if match.confidence is None else match.confidence
    scale = ColourScale(low=0.0, high=1.0, unit="", colour_map=cv2.COLORMAP_VIRIDIS)
    title = _CONFIDENCE if match.confidence is not None else "confidence: not predicted"
    return Panel(title=title, values=values, scale=scale)


def sigma_panel(sigma_px: Float[np.ndarray, "H W"]) -> Panel:
    """Return the standard deviation of the disparity."""
    known = sigma_px[np.isfinite(sigma_px)]
    top_px = max(1.0, float(np.percentile(known, _SIGMA_TOP_PERCENT))) if known.size else 1.0
    scale = ColourScale(low=0.0, high=top_px, unit="px", colour_map=cv2.COLORMAP_MAGMA)
    return Panel(title="standard deviation of the disparity, px", values=sigma_px, scale=scale)


def encode_figure(title: str, left: UInt8[np.ndarray, "H W 3"], panels: list[Panel], columns: int = 3) -> bytes:
    """Return a PNG of the left view and of maps with their colour bars.

    Drawn by OpenCV: Matplotlib takes longer to import than this program takes to match a pair.

    Args:
        title: of the left view.
        left: RGB.
        panels: the maps, at the size of the left view.
        columns: images in a row; a row is 1800 px wide where there are three.
    """
    width = _CELL_PX - _BAR_PX
    height = max(1, round(width * left.shape[0] / left.shape[1]))
    # A file name may contain bytes that are not valid UTF-8.
    cells = [_draw_cell(title.encode(errors="replace").decode(), _resize(left[..., ::-1], height, width))]
    for panel in panels:
        colours = apply_colours(panel.values, panel.scale, height, width, panel.hidden)
        cell = _draw_cell(panel.title, colours)
        cell[_TITLE_PX:, width:] = _draw_bar(panel, height)
        cells.append(cell)
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % columns)
    rows = [np.hstack(cells[first : first + columns]) for first in range(0, len(cells), columns)]
    return cv2.imencode(".png", np.vstack(rows))[1].tobytes()


def _draw_cell(title: str, image: Canvas) -> Canvas:
    """Return an image under its title, with room for a colour bar on its right."""
    height, width = image.shape[:2]
    cell = np.full((_TITLE_PX + height + _MARGIN_PX, width + _BAR_PX, 3), 255, np.uint8)
    while len(title) > 1 and _text_width(title) > width:
        title = title.removesuffix("…")[:-1] + "…"
    _write(cell, title, ((width - _text_width(title)) // 2, _TITLE_PX - 8))
    cell[_TITLE_PX : _TITLE_PX + height, :width] = image
    return cell


def _resize(image: UInt8[np.ndarray, "H W 3"], height: int, width: int) -> Canvas:
    smaller = width < image.shape[1]
    return np.asarray(
        cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR), np.uint8
    )


def _draw_bar(panel: Panel, height: int) -> Canvas:
    """Return the colour bar of a panel; a triangle at an end tells that values lie beyond it."""
    scale, bar = panel.scale, np.full((height + _MARGIN_PX, _BAR_PX, 3), 255, np.uint8)
    left, right, top, bottom = _MARGIN_PX, _MARGIN_PX + _BAR_WIDTH_PX, 2 * _MARGIN_PX, height - 2 * _MARGIN_PX
    if bottom - top < 2 * _TEXT_PX:
        return bar
    ramp = np.linspace(scale.high, scale.low, bottom - top, dtype=np.float32)[:, None]
    bar[top:bottom, left:right] = apply_colours(ramp, scale, bottom - top, _BAR_WIDTH_PX, None)
    with np.errstate(invalid="ignore"):
        beyond = ((panel.values > scale.high).any(), top, -1), ((panel.values < scale.low).any(), bottom - 1, 1)
    for is_beyond, row, direction in beyond:
        if is_beyond:
            tip = ((left + right) // 2, row + direction * _MARGIN_PX)
            corners = np.array([(left, row), (right - 1, row), tip], np.int32)
            cv2.fillPoly(bar, [corners], bar[row, left].tolist())
    for value, text in _ticks(scale):
        row = round(bottom - 1 - (value - scale.low) / (scale.high - scale.low) * (bottom - 1 - top))
        cv2.line(bar, (right, row), (right + 4, row), (0, 0, 0), 1)
        _write(bar, text, (right + 8, row + _TEXT_PX // 3))
    return bar


def _ticks(scale: ColourScale) -> list[tuple[float, str]]:
    """Return at most some eight values of a bar, multiples of 1, 2 or 5 and a power of ten, and how they are written.

    >>> [text for _, text in _ticks(ColourScale(low=0.94, high=3.6, unit="m"))]
    ['1.0', '1.5', '2.0', '2.5', '3.0', '3.5']
    """
    least_step = (scale.high - scale.low) / _MOST_TICKS
    power = math.floor(math.log10(least_step))
    step = next(factor * 10.0**power for factor in (1, 2, 5, 10) if factor * 10.0**power >= least_step)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    numbers = range(math.ceil(scale.low / step - 1e-9), math.floor(scale.high / step + 1e-9) + 1)
    return [(number * step, f"{number * step:.{decimals}f}") for number in numbers]


@functools.cache
def _font() -> cv2.FontFace:
    return cv2.FontFace("sans")


def _text_width(text: str) -> int:
    return cv2.getTextSize((0, 0), text_for_opencv(text), (0, 0), _font(), _TEXT_PX)[2]


def _write(image: Canvas, text: str, at: tuple[int, int]) -> None:
    cv2.putText(image, text_for_opencv(text), at, (0, 0, 0), _font(), _TEXT_PX)


def draw_frame(left: UInt8[np.ndarray, "H W 3"], panel: Panel) -> UInt8[np.ndarray, "h w 3"]:
    """Return the left view and a map in colours side by side, BGR, cropped to even sides, as videos need them."""
    height, width = left.shape[:2]
    view = np.asarray(cv2.cvtColor(left, cv2.COLOR_RGB2BGR), np.uint8)
    both = np.hstack([view, apply_colours(panel.values, panel.scale, height, width, panel.hidden)])
    return np.ascontiguousarray(both[: height - height % 2])

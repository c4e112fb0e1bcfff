"""Figures of a match: the left view and maps in colours, each with its bar; as a PNG, or as a frame of a video."""

import io
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from foundation_stereo_depth.colours import (
    MASKED,
    ColourScale,
    apply_colours,
    colour_map_of,
    find_uncertain,
    fit_range,
    lookup_table,
)
from foundation_stereo_depth.options.inference import FigureOptions
from foundation_stereo_depth.stereo.match import StereoMatch

_CONFIDENCE = "confidence, P(|error| < 1 px)"
_SIGMA_TOP_PERCENT = 95


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

    Args:
        title: of the left view.
        left: RGB.
        panels: the maps, at the size of the left view.
        columns: images in a row; a row is 1800 px wide where there are three.
    """
    # The live view writes maps without figures, and Matplotlib takes half a second to import.
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.colors import ListedColormap  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    rows = -(-(1 + len(panels)) // columns)
    aspect = left.shape[0] / left.shape[1]
    figure = Figure(figsize=(6 * columns, rows * (5.4 * aspect + 0.6)), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    # A file name is not mathtext, and may contain bytes that are not valid UTF-8.
    axes[0].set_title(title.encode(errors="replace").decode(), fontsize=11, parse_math=False)
    axes[0].imshow(left)
    for axis, panel in zip(axes[1:], panels, strict=False):
        axis.set_title(panel.title, fontsize=11)
        colours = lookup_table(panel.scale.colour_map)[:, 0, ::-1] / 255
        colour_map = ListedColormap(colours[::-1] if panel.scale.reverse else colours).with_extremes(bad="black")
        drawn = axis.imshow(
            panel.values, cmap=colour_map, vmin=panel.scale.low, vmax=panel.scale.high, interpolation="nearest"
        )
        if panel.hidden is not None:
            grey = np.zeros((*panel.values.shape, 4), np.uint8)
            grey[panel.hidden & np.isfinite(panel.values)] = (*MASKED, 255)
            axis.imshow(grey, interpolation="nearest")
        figure.colorbar(drawn, ax=axis, shrink=0.85, extend=_extend(panel))
    file = io.BytesIO()
    canvas.print_png(file)
    return file.getvalue()


def _extend(panel: Panel) -> str:
    """Return at which ends of the bar values lie beyond it, as Matplotlib names them."""
    with np.errstate(invalid="ignore"):
        below, above = (panel.values < panel.scale.low).any(), (panel.values > panel.scale.high).any()
    return {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}[
        bool(below), bool(above)
    ]


def draw_frame(left: UInt8[np.ndarray, "H W 3"], panel: Panel) -> UInt8[np.ndarray, "h w 3"]:
    """Return the left view and a map in colours side by side, BGR, cropped to even sides, as videos need them."""
    height, width = left.shape[:2]
    view = np.asarray(cv2.cvtColor(left, cv2.COLOR_RGB2BGR), np.uint8)
    both = np.hstack([view, apply_colours(panel.values, panel.scale, height, width, panel.hidden)])
    return np.ascontiguousarray(both[: height - height % 2])

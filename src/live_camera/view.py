"""The windows, their keys and the mouse, by OpenCV; and the 3-D view by rerun."""

import importlib
import logging
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from foundation_stereo_depth.colours import Bgr, Canvas, ColourScale, apply_colours
from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.stereo.geometry import depth_std_from_disparity, point_cloud
from live_camera import draw
from live_camera.matcher import MatchedFrame
from live_camera.options import ShowOptions
from live_camera.window_places import Place, keep_places, read_places

logger = logging.getLogger(__name__)

PAIR_WINDOW, DEPTH_WINDOW, DISPARITY_WINDOW, CONFIDENCE_WINDOW = "Stereo pair", "Depth", "Disparity", "DL Confidence"

KEYS = {
    "l": "draw epipolar lines: the same point lies on the same line in both views",
    "[  ]": "narrow or widen the colour range",
    "a": "adapt the colour range to the scene, or keep it",
    "c": "hide pixels of low confidence",
    "d": "draw contours of depth into the left view, one each 0.5 m",
    "t": "temporal fusion: average what does not move",
    "s": "save a snapshot: images, disparity, depth, point cloud",
    "r": "start or stop recording the raw pairs",
    "space": "pause",
    "h": "this help",
    "q  Esc": "quit; closing a window does the same",
    "colours": "as the bar beside the map says; black: unknown, grey: hidden by c",
}

_ESCAPE = 27
_MIN_VIEW_WIDTH_PX = 480
_SMALLEST_VIEW_PX = 160
_SCREEN_MARGIN_PX, _GAP_PX, _FRAME_PX = 20, 10, 40
"""Around all windows; between two; and what a window manager puts above each window."""
_FIRST_PAINT_MS = 20
"""A new window is white until it has painted itself, which it does while OpenCV waits for a key."""
_SIZE_TOLERANCE = 0.1
_PLACED_AFTER = 10
"""Images; by then the window manager has placed all windows."""
_RANGE_STEP = 1.2
_SMOOTHING = 0.15
"""Fraction by which the colour range approaches the scene's per image where it adapts."""
_BOX_HALF_PX = 4
"""The median of a box of 9x9 pixels of the map around the mouse is shown too."""
_MAX_POINT_DEPTH_M = 10.0
"""Points further away are left out in 3-D: their depth is inaccurate, and they make the rest small."""


@dataclass(kw_only=True)
class ViewState:
    """The settings that keys and mouse change.

    Attributes:
        cursor: column and row of the map under the mouse; None while it is elsewhere.
        low, high: the ends of the depth (or disparity) range; None before the first image.
        screen: width and height of the screen that the windows have to fit, px; None where it is unknown.
        depth_range: the ends to begin with where there is a depth, m; None takes the first image's.
        colour_map: OpenCV's, of depth and disparity.
    """

    lines: bool = False
    contours: bool = False
    temporal_fusion: bool = False
    adapt_range: bool = False
    hide_uncertain: bool = False
    paused: bool = False
    show_help: bool = False
    cursor: tuple[int, int] | None = None
    low: float | None = None
    high: float | None = None
    screen: tuple[int, int] | None = None
    depth_range: tuple[float, float] | None = None
    colour_map: int = cv2.COLORMAP_TURBO

    def press(self, key: int) -> None:
        """Apply a key that changes the view alone."""
        match chr(key):
            case "l":
                self.lines = not self.lines
            case "d":
                self.contours = not self.contours
            case "t":
                self.temporal_fusion = not self.temporal_fusion
            case "a":
                self.adapt_range = not self.adapt_range
            case "c":
                self.hide_uncertain = not self.hide_uncertain
            case "h":
                self.show_help = not self.show_help
            case " ":
                self.paused = not self.paused
            case "[" | "]" if self.high is not None and self.low is not None:
                self.adapt_range = False
                factor = _RANGE_STEP if chr(key) == "]" else 1 / _RANGE_STEP
                # Apart by more than the two digits to which the ends are rounded.
                self.high = max(self.low + 0.1, 1.2 * self.low, self.high * factor)
            case _:
                pass

    def fit_range(self, values: Float[np.ndarray, "H W"], *, is_depth: bool) -> None:
        """Set the range to the first map that has values; approach later ones where it adapts."""
        if self.high is not None and not self.adapt_range:
            return
        if self.high is None and is_depth and self.depth_range is not None:
            self.low, self.high = self.depth_range
            return
        samples = values[::4, ::4]
        samples = samples[np.isfinite(samples)]
        if samples.size == 0:
            return
        low, high = (float(end) for end in np.percentile(samples, (2, 95) if is_depth else (0, 99)))
        low, high = (0.9 * low, 1.1 * high) if is_depth else (0.0, 1.1 * high)
        if self.high is not None and self.low is not None:
            low = self.low + _SMOOTHING * (low - self.low)
            high = self.high + _SMOOTHING * (high - self.high)
        self.low, self.high = low, max(high, low + 0.1)


@dataclass(frozen=True, kw_only=True)
class Status:
    """The text below the images.

    Attributes:
        matcher: description of the matcher, with its training step.
        statistics: rates, latency, skew.
        warnings: what is wrong at the moment, one line each.
        recording: a recording is being made.
        notice: the answer to a key, shown for a few seconds.
    """

    matcher: str = ""
    statistics: str = ""
    warnings: list[str] = field(default_factory=list[str])
    recording: bool = False
    notice: str = ""


def draw_windows(matched: MatchedFrame, state: ViewState, status: Status, min_confidence: float) -> dict[str, Canvas]:
    """Return the image of each window, BGR, by its title."""
    raw_height, raw_width = matched.frame.left_rgb.shape[:2]
    width = fit_view_width(max(_MIN_VIEW_WIDTH_PX, matched.left.shape[1]), raw_height / raw_width, state.screen)
    height = round(width * raw_height / raw_width)
    is_depth = matched.depth_m is not None
    values = matched.match.disparity_px if matched.depth_m is None else matched.depth_m
    state.fit_range(values, is_depth=is_depth)
    low, high = (state.low or 0.0, state.high) if state.high is not None else (0.0, 1.0)
    scale = ColourScale(
        low=_two_digits(low),
        high=_two_digits(high),
        unit="m" if is_depth else "px",
        colour_map=state.colour_map,
        reverse=is_depth,
    )
    hidden = matched.low_confidence(min_confidence) if state.hide_uncertain else None
    scales = {DEPTH_WINDOW if is_depth else DISPARITY_WINDOW: scale}
    bodies = {
        PAIR_WINDOW: draw.draw_pair(matched.left, matched.right, height, width, lines=state.lines),
        **{name: apply_colours(values, scale, height, width, hidden) for name in scales},
    }
    if matched.match.confidence is not None:
        scales[CONFIDENCE_WINDOW] = ColourScale(low=0, high=100, unit="%", colour_map=cv2.COLORMAP_VIRIDIS)
        percent = matched.match.confidence * np.float32(100)
        bodies[CONFIDENCE_WINDOW] = apply_colours(percent, scales[CONFIDENCE_WINDOW], height, width, hidden)
    if state.contours and matched.depth_m is not None:
        draw.draw_contours(bodies[PAIR_WINDOW][:, :width], matched.depth_m, scale)
    cursor = state.cursor or centre_of(matched)
    _draw_cursors(bodies, cursor, height / matched.left.shape[0], width / matched.left.shape[1])
    values_text = describe_pixel(matched, *cursor)
    if state.show_help:
        bodies[PAIR_WINDOW] = draw.draw_help(KEYS, height, 2 * width)
    return {
        name: draw.compose_window(
            body, _title(name, state, rectified=is_depth), scales.get(name), _rows(name, status, values_text)
        )
        for name, body in bodies.items()
    }


def fit_view_width(wanted_px: int, aspect: float, screen: tuple[int, int] | None) -> int:
    """Return the width of one view, px, with which all windows fit the screen: the pair above, two maps below.

    Args:
        wanted_px: where the screen allows it.
        aspect: height of a view over its width.
        screen: width and height, px; None where it is unknown.
    """
    if screen is None:
        return wanted_px
    across = (screen[0] - 2 * _SCREEN_MARGIN_PX - _GAP_PX - 2 * draw.BAR_PX) / 2
    text = 2 * 3 * draw.ROW_PX + 2 * _FRAME_PX + _GAP_PX
    down = (screen[1] - 2 * _SCREEN_MARGIN_PX - text) / 2 / aspect
    return max(_SMALLEST_VIEW_PX, min(wanted_px, int(across), int(down)))


def _draw_cursors(bodies: dict[str, Canvas], cursor: tuple[int, int], scale_y: float, scale_x: float) -> None:
    """Mark the pixel under the mouse in each window, and in both views of the pair."""
    column, row = round((cursor[0] + 0.5) * scale_x), round((cursor[1] + 0.5) * scale_y)
    for name, body in bodies.items():
        draw.draw_cursor(body, column, row, round(_BOX_HALF_PX * scale_x))
        if name == PAIR_WINDOW:
            draw.draw_cursor(body, column + body.shape[1] // 2, row, round(_BOX_HALF_PX * scale_x))


class BoxMeasure(NamedTuple):
    """Medians of a small box: px and metres, with their predicted standard deviations; NaN where unknown."""

    disparity_px: float
    sigma_px: float
    depth_m: float
    sigma_m: float


def centre_of(matched: MatchedFrame) -> tuple[int, int]:
    """Return column and row of the middle of a result."""
    height, width = matched.match.disparity_px.shape
    return width // 2, height // 2


def measure_box(matched: MatchedFrame, column: int, row: int) -> BoxMeasure:
    """Return the medians of the box around a pixel."""
    rows, columns = _box(column, row)
    return _measure(matched, rows, columns)


def _box(column: int, row: int) -> tuple[slice, slice]:
    return (
        slice(max(0, row - _BOX_HALF_PX), row + _BOX_HALF_PX + 1),
        slice(max(0, column - _BOX_HALF_PX), column + _BOX_HALF_PX + 1),
    )


def _measure(matched: MatchedFrame, rows: slice, columns: slice) -> BoxMeasure:
    match, at, unknown = matched.match, (rows, columns), float("nan")
    disparity_px = _median(match.disparity_px[at])
    sigma_px = unknown if match.sigma_px is None else _median(match.sigma_px[at])
    depth_m = unknown if matched.depth_m is None else _median(matched.depth_m[at])
    sigma_m = unknown
    if matched.calibration is not None:
        sigma_m = float(depth_std_from_disparity(disparity_px, sigma_px, matched.calibration))
    return BoxMeasure(disparity_px, sigma_px, depth_m, sigma_m)


def describe_pixel(matched: MatchedFrame, column: int, row: int) -> str:
    """Return disparity, depth and confidence at a pixel of the map, and their medians in the box around it."""
    box = _box(column, row)
    side = 2 * _BOX_HALF_PX + 1
    pixel = _describe_medians(matched, slice(row, row + 1), slice(column, column + 1))
    return f"({column}, {row})  {pixel}    {side}x{side}:  {_describe_medians(matched, *box)}"


def _describe_medians(matched: MatchedFrame, rows: slice, columns: slice) -> str:
    found = _measure(matched, rows, columns)
    parts = [f"{found.disparity_px:.2f} px" if np.isfinite(found.disparity_px) else "no disparity"]
    if matched.match.sigma_px is not None:
        parts[0] += f" ± {found.sigma_px:.2f}"
    if matched.depth_m is not None:
        text = f"{found.depth_m:.3f} m" if np.isfinite(found.depth_m) else "no depth"
        parts.append(text + (f" ± {found.sigma_m:.3f}" if np.isfinite(found.sigma_m) else ""))
    if matched.match.confidence is not None:
        parts.append(f"P {100 * _median(matched.match.confidence[rows, columns]):.0f} %")
    return "  ".join(parts)


def _title(name: str, state: ViewState, *, rectified: bool) -> str:
    if name == PAIR_WINDOW:
        rows = "rectified" if rectified else "not rectified: no calibration"
        contours = "  ·  contours each 0.5 m" if state.contours and rectified else ""
        return f"left and right view, {rows}" + contours + ("  ·  paused" if state.paused else "") + "  ·  h: help"
    if name == CONFIDENCE_WINDOW:
        return "confidence, P(|error| < 1 px)"
    quantity = "depth" if name == DEPTH_WINDOW else "disparity (no calibration, so no depth)"
    return (
        quantity
        + ("  ·  averaged over time" if state.temporal_fusion else "")
        + ("  ·  adaptive range" if state.adapt_range else "")
        + ("  ·  low confidence hidden" if state.hide_uncertain else "")
    )


def _rows(name: str, status: Status, values_text: str) -> list[tuple[str, Bgr]]:
    if name == PAIR_WINDOW:
        recording = "● recording  ·  " if status.recording else ""
        warning = "  ·  ".join(status.warnings)
        second = (warning, draw.WARNING) if warning else (values_text, draw.TEXT)
        return [
            (recording + status.statistics, draw.TEXT),
            (status.notice, draw.NOTICE) if status.notice else second,
        ]
    if name == CONFIDENCE_WINDOW:
        return [(status.matcher, draw.QUIET), ("", draw.QUIET)]
    pixel, _, box = values_text.partition("    ")
    return [(pixel or status.matcher, draw.TEXT if pixel else draw.QUIET), (box, draw.TEXT)]


class Windows:
    """The windows on the screen; to be used in a `with`.

    Attributes:
        state: set by keys and mouse.
        closed: the user wants to quit.

    Raises:
        UserError: there is no display.
    """

    def __init__(self) -> None:
        self.state = ViewState(screen=check_display())
        self.closed = False
        self._open: set[str] = set()
        self._kept = read_places(self.state.screen)
        self._placed: dict[str, Place] = {}
        self._first: dict[str, Place] = {}
        self._shown = 0
        self._map_size = (1, 1)
        self._body_size = (1, 1)

    def __enter__(self) -> "Windows":
        return self

    def __exit__(self, *_: object) -> None:
        if moved := self._moved_places():
            keep_places(self.state.screen, moved)
        cv2.destroyAllWindows()

    def show(self, images: dict[str, Canvas], map_size: tuple[int, int]) -> str:
        """Show each image in the window of its title; return the pressed keys that are not the view's own.

        Args:
            images: BGR, by title.
            map_size: height and width of the maps in them, px.
        """
        pair = images[PAIR_WINDOW]
        self._map_size = map_size
        self._body_size = (pair.shape[0] - 3 * draw.ROW_PX, pair.shape[1] // 2)
        for name in [name for name in self._open if name not in images]:
            cv2.destroyWindow(name)
            self._open.discard(name)
        new = [name for name in images if name not in self._open]
        for name, image in images.items():
            if name in new:
                self._create(name, image)
            cv2.imshow(name, image)
        keys = self.poll_keys(_FIRST_PAINT_MS if new else 0)
        self._shown += 1
        if self._shown == _PLACED_AFTER // 2:
            self._place_again()
        if self._shown == _PLACED_AFTER:
            self._first = {name: place for name in self._open if (place := _place_of(name)) is not None}
        return keys

    def poll_keys(self, wait_ms: int = 0) -> str:
        """Apply the view's own keys and notice closed windows; return the other keys that were pressed.

        Args:
            wait_ms: how long the windows may take to paint themselves; 0 only if that is due.
        """
        others = ""
        key = cv2.waitKey(wait_ms) if wait_ms else cv2.pollKey()
        while key != -1:
            key &= 0xFF
            if key in (_ESCAPE, ord("q")):
                self.closed = True
            elif chr(key) in "sr":
                others += chr(key)
            else:
                self.state.press(key)
            key = cv2.pollKey()
        if any(cv2.getWindowProperty(name, cv2.WND_PROP_VISIBLE) < 1 for name in self._open):
            self.closed = True
        return others

    def _create(self, name: str, image: Canvas) -> None:
        cv2.namedWindow(name, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)
        left = _SCREEN_MARGIN_PX
        below = left + self._body_size[0] + 3 * draw.ROW_PX + _FRAME_PX + _GAP_PX
        beside = left + self._body_size[1] + draw.BAR_PX + _GAP_PX
        positions = {PAIR_WINDOW: (left, left), CONFIDENCE_WINDOW: (beside, below)}
        new = Place(*positions.get(name, (left, below)), image.shape[1], image.shape[0])
        place = self._placed[name] = self._kept.get(name, new)
        cv2.resizeWindow(name, place.width, place.height)
        cv2.moveWindow(name, place.left, place.top)
        cv2.setMouseCallback(name, self._track_mouse, name)
        self._open.add(name)

    def _place_again(self) -> None:
        """Request again the size of windows that did not get it: on a busy machine Qt may lose it, and the image."""
        for name in self._open:
            place, now = self._placed[name], _place_of(name)
            if now is not None and abs(now.width - place.width) > _SIZE_TOLERANCE * place.width:
                cv2.resizeWindow(name, place.width, place.height)
                cv2.moveWindow(name, place.left, place.top)

    def _moved_places(self) -> dict[str, Place]:
        """Return where the user moved the windows to, or how large they were made.

        OpenCV states the place of the image, and takes that of the frame around it: the difference to the place of the
        image when the window was new is what the user did.
        """
        places: dict[str, Place] = {}
        for name, first in self._first.items():
            now = _place_of(name) if name in self._open else None
            if now is not None and now != first:
                asked = self._placed[name]
                left, top = asked.left + now.left - first.left, asked.top + now.top - first.top
                places[name] = Place(left, max(0, top), now.width, now.height)
        return places

    def _track_mouse(self, event: int, column: int, row: int, _flags: int, name: Any) -> None:
        del event
        (body_height, body_width), (map_height, map_width) = self._body_size, self._map_size
        row -= draw.ROW_PX
        # Right of the left view is the right one; right of a map is its colour bar.
        if not (0 <= row < body_height and 0 <= column < (2 if name == PAIR_WINDOW else 1) * body_width):
            self.state.cursor = None
            return
        column %= body_width
        self.state.cursor = (column * map_width // body_width, row * map_height // body_height)


def _place_of(name: str) -> Place | None:
    """Return where the image of a window is on the screen; None where it was closed."""
    if cv2.getWindowProperty(name, cv2.WND_PROP_VISIBLE) < 1:
        return None
    return Place(*cv2.getWindowImageRect(name))


class ImageWindow:
    """A window that shows one RGB image after the other; to be used in a `with`.

    Attributes:
        screen: width and height of the screen, px; None where they are unknown.

    Raises:
        UserError: there is no display.
    """

    def __init__(self, title: str) -> None:
        self.screen = check_display()
        self._title = title
        cv2.namedWindow(title, cv2.WINDOW_AUTOSIZE | cv2.WINDOW_GUI_NORMAL)

    def __enter__(self) -> "ImageWindow":
        return self

    def __exit__(self, *_: object) -> None:
        cv2.destroyAllWindows()

    def __call__(self, image: UInt8[np.ndarray, "H W 3"]) -> bool:
        """Show an image; return False once the user has pressed q or Esc, or closed the window."""
        cv2.imshow(self._title, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        key = cv2.pollKey() & 0xFF
        return key not in (_ESCAPE, ord("q")) and cv2.getWindowProperty(self._title, cv2.WND_PROP_VISIBLE) >= 1


def check_display() -> tuple[int, int] | None:
    """Check that a window can be opened; return width and height of the screen, px, None where they are unknown.

    Raises:
        UserError: it cannot. Qt ends the whole process in that case, so a process of its own tries it.
    """
    tried = subprocess.run([sys.executable, "-c", _TRY_DISPLAY], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        display = os.environ.get("DISPLAY")
        found = f"DISPLAY is {display}, but no window opens there" if display else "no display was found"
        raise UserError(f"{found}; use --headless to run without one")
    size = [int(word) for word in tried.stdout.split() if word.isdigit()]
    return (size[0], size[1]) if len(size) == 2 else None


_TRY_DISPLAY = """
import cv2
cv2.namedWindow("display?")
cv2.destroyAllWindows()
try:
    import tkinter
    root = tkinter.Tk()
except Exception:  # not installed, as in some distributions: the size stays unknown
    raise SystemExit
print(root.winfo_screenwidth(), root.winfo_screenheight())
"""


class RerunView:
    """Shows each result in rerun's viewer; without a display in a file that it opens.

    Args:
        options: where to save, and the lowest confidence of a point.
        save_to: file to write where there is no display.

    Raises:
        UserError: rerun is not installed.
    """

    def __init__(self, options: ShowOptions, save_to: Path) -> None:
        try:
            self._rerun: Any = importlib.import_module("rerun")
        except ModuleNotFoundError as error:
            raise UserError("--rerun: rerun is not installed; install it by `uv sync --extra rerun`") from error
        self._min_confidence = options.min_confidence
        # The viewer writes an identifier into the home folder and sends what is used, unless it runs in CI.
        os.environ.setdefault("CI", "true")
        self._rerun.init("foundation-stereo-live-view", spawn=not options.headless)
        if options.headless:
            save_to.parent.mkdir(parents=True, exist_ok=True)
            self._rerun.save(str(save_to))
            logger.info("%s: the 3-D view is written there", save_to)
        self._rerun.log("/", self._rerun.ViewCoordinates.RIGHT_HAND_Y_DOWN, static=True)

    def __call__(self, matched: MatchedFrame) -> None:
        """Show one pair with its disparity, or its depth, confidence and points."""
        rerun = self._rerun
        rerun.set_time("captured", duration=matched.frame.captured_at_s)
        rerun.log("pair/left", rerun.Image(matched.left))
        rerun.log("pair/right", rerun.Image(matched.right))
        if matched.match.confidence is not None:
            rerun.log("confidence", rerun.DepthImage(matched.match.confidence, meter=1.0, colormap="viridis"))
        if matched.depth_m is None or matched.calibration is None:
            rerun.log("disparity", rerun.DepthImage(matched.match.disparity_px, meter=1.0))
            return
        height, width = matched.depth_m.shape
        rig = matched.calibration
        rerun.log(
            "camera",
            rerun.Pinhole(
                focal_length=(rig.focal_px, rig.focal_y_px),
                principal_point=(rig.cx_left_px, rig.cy_px),
                resolution=(width, height),
            ),
        )
        rerun.log("camera/depth", rerun.DepthImage(np.nan_to_num(matched.depth_m), meter=1.0))
        keep = (matched.depth_m < _MAX_POINT_DEPTH_M) & ~matched.low_confidence(self._min_confidence)
        points_m, colours = point_cloud(matched.depth_m, matched.left, keep, rig)
        rerun.log("points", rerun.Points3D(points_m, colors=colours))


def _median(values: Float[np.ndarray, "h w"]) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size else float("nan")


def _two_digits(value: float) -> float:
    """Return the value rounded, so that an adapting range does not draw a new colour bar for every image."""
    return float(f"{value:.2g}")

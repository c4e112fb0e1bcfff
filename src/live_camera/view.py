"""The windows: what they show, and what keys and mouse mean. The only imshow."""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.stereo.geometry import StereoCalibration, depth_std_from_disparity
from live_camera import draw
from live_camera.draw import Bgr, Canvas, ColourScale
from live_camera.matcher import Answer
from live_camera.rig import StereoFrame

PAIR_WINDOW, DEPTH_WINDOW, DISPARITY_WINDOW, CONFIDENCE_WINDOW = "Rectified pair", "Depth", "Disparity", "DL Confidence"

KEYS = {
    "l": "lines over the pair: the same thing has to stand on the same line",
    "[  ]": "nearer or farther end of the colours",
    "a": "colours follow the scene, or stay",
    "c": "hide doubtful pixels",
    "s": "save pair, disparity, depth, cloud and picture",
    "r": "record the raw pair, or stop",
    "space": "hold",
    "h": "this help",
    "q  Esc": "end; so does closing a window",
}

_ESCAPE = 27
_EYE_WIDTH_PX = 480
_RANGE_STEP = 1.2
_FOLLOWING = 0.15
"""Share of the way that the colours go per picture where they follow the scene."""
_BOX_HALF_PX = 4
"""The mouse also reads the median of a box of 9x9 pixels of the map."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """One pair and what was found in it.

    Attributes:
        frame: as the cameras gave it.
        left, right: rectified, RGB, at the matcher's size.
        answer: of the matcher.
        depth_m: NaN where unknown; None without a calibration.
        calibration: of the rectified pair, where there is one.
    """

    frame: StereoFrame
    left: UInt8[np.ndarray, "H W 3"]
    right: UInt8[np.ndarray, "H W 3"]
    answer: Answer
    depth_m: Float[np.ndarray, "H W"] | None
    calibration: StereoCalibration | None

    def doubtful(self, min_confidence: float) -> Bool[np.ndarray, "H W"] | None:
        """Where the matcher is not sure; None where it says nothing about that."""
        if self.answer.confidence is not None:
            return self.answer.confidence < min_confidence
        return self.answer.doubtful

    def read_out(self, column: int, row: int) -> str:
        """Disparity, depth and confidence at a pixel of the map, and their medians in the box around it."""
        box = (
            slice(max(0, row - _BOX_HALF_PX), row + _BOX_HALF_PX + 1),
            slice(max(0, column - _BOX_HALF_PX), column + _BOX_HALF_PX + 1),
        )
        side = 2 * _BOX_HALF_PX + 1
        here = self._values(slice(row, row + 1), slice(column, column + 1))
        return f"({column}, {row})  {here}    {side}x{side}:  {self._values(*box)}"

    def _values(self, rows: slice, columns: slice) -> str:
        answer, at = self.answer, (rows, columns)
        disparity_px = _median(answer.disparity_px[at])
        parts = [f"{disparity_px:.2f} px" if np.isfinite(disparity_px) else "no disparity"]
        if answer.std_px is not None:
            parts[0] += f" ± {_median(answer.std_px[at]):.2f}"
        if self.depth_m is not None and self.calibration is not None:
            depth_m = _median(self.depth_m[at])
            text = f"{depth_m:.3f} m" if np.isfinite(depth_m) else "no depth"
            if answer.std_px is not None and np.isfinite(depth_m):
                std_m = depth_std_from_disparity(disparity_px, _median(answer.std_px[at]), self.calibration)
                text += f" ± {std_m:.3f}"
            parts.append(text)
        if answer.confidence is not None:
            parts.append(f"P {100 * _median(answer.confidence[at]):.0f} %")
        return "  ".join(parts)


@dataclass(kw_only=True)
class ViewState:
    """What the keys and the mouse have set.

    Attributes:
        cursor: column and row of the map under the mouse; None while it is elsewhere.
        low, high: the ends of the depth (or disparity) colours; None before the first picture.
    """

    lines: bool = False
    follow: bool = False
    hide_doubtful: bool = False
    hold: bool = False
    show_help: bool = False
    cursor: tuple[int, int] | None = None
    low: float | None = None
    high: float | None = None

    def press(self, key: int) -> None:
        """What a key that concerns the view alone does."""
        match chr(key):
            case "l":
                self.lines = not self.lines
            case "a":
                self.follow = not self.follow
            case "c":
                self.hide_doubtful = not self.hide_doubtful
            case "h":
                self.show_help = not self.show_help
            case " ":
                self.hold = not self.hold
            case "[" | "]" if self.high is not None and self.low is not None:
                self.follow = False
                factor = _RANGE_STEP if chr(key) == "]" else 1 / _RANGE_STEP
                # Apart by more than the two digits that the ends are rounded to.
                self.high = max(self.low + 0.1, 1.2 * self.low, self.high * factor)
            case _:
                pass

    def fit(self, values: Float[np.ndarray, "H W"], *, is_depth: bool) -> None:
        """Sets the colours' ends to the first picture that has values, and goes after later ones where asked."""
        if self.high is not None and not self.follow:
            return
        few = values[::4, ::4]
        few = few[np.isfinite(few)]
        if few.size == 0:
            return
        low, high = (float(end) for end in np.percentile(few, (2, 95) if is_depth else (0, 99)))
        low, high = (0.9 * low, 1.1 * high) if is_depth else (0.0, 1.1 * high)
        if self.high is not None and self.low is not None:
            low = self.low + _FOLLOWING * (low - self.low)
            high = self.high + _FOLLOWING * (high - self.high)
        self.low, self.high = low, max(high, low + 0.1)


@dataclass(frozen=True, kw_only=True)
class Status:
    """What stands below the maps.

    Attributes:
        running: the matcher and its step.
        figures: rates, latency, skew.
        complaints: what is wrong just now, one line each.
        recording: a recording is being made.
    """

    running: str = ""
    figures: str = ""
    complaints: list[str] = field(default_factory=list[str])
    recording: bool = False


def panels(result: Result, state: ViewState, status: Status, min_confidence: float) -> dict[str, Canvas]:
    """The picture of each window, BGR, by its title."""
    source = result.frame.left_rgb.shape
    width = max(_EYE_WIDTH_PX, result.left.shape[1])
    height = round(width * source[0] / source[1])
    is_depth = result.depth_m is not None
    shown = result.answer.disparity_px if result.depth_m is None else result.depth_m
    state.fit(shown, is_depth=is_depth)
    low, high = (state.low or 0.0, state.high) if state.high is not None else (0.0, 1.0)
    scale = ColourScale(
        low=_two_digits(low), high=_two_digits(high), unit="m" if is_depth else "px", downwards=is_depth
    )
    hidden = result.doubtful(min_confidence) if state.hide_doubtful else None
    bodies = {
        PAIR_WINDOW: draw.eyes_picture(result.left, result.right, height, width, lines=state.lines),
        DEPTH_WINDOW if is_depth else DISPARITY_WINDOW: draw.coloured(shown, scale, height, width, hidden),
    }
    scales = {DEPTH_WINDOW: scale, DISPARITY_WINDOW: scale}
    if result.answer.confidence is not None:
        scales[CONFIDENCE_WINDOW] = ColourScale(low=0, high=100, unit="%", colours=cv2.COLORMAP_VIRIDIS)
        percent = result.answer.confidence * np.float32(100)
        bodies[CONFIDENCE_WINDOW] = draw.coloured(percent, scales[CONFIDENCE_WINDOW], height, width, hidden)
    read_out = ""
    if state.cursor is not None:
        column, row = state.cursor
        down, across = height / result.left.shape[0], width / result.left.shape[1]
        for name, body in bodies.items():
            for eye in range(2 if name == PAIR_WINDOW else 1):
                at = round((column + 0.5) * across) + eye * width, round((row + 0.5) * down)
                draw.mark(body, *at, round(_BOX_HALF_PX * across))
        read_out = result.read_out(column, row)
    if state.show_help:
        bodies[PAIR_WINDOW] = draw.help_picture(KEYS, height, 2 * width)
    return {
        name: draw.panel(body, _title(name, state), scales.get(name), _rows(name, status, read_out))
        for name, body in bodies.items()
    }


def _title(name: str, state: ViewState) -> str:
    if name == PAIR_WINDOW:
        return "left and right eye, rectified" + ("  ·  held" if state.hold else "") + "  ·  h: help"
    if name == CONFIDENCE_WINDOW:
        return "P(|error| < 1 px)"
    what = "depth" if name == DEPTH_WINDOW else "disparity; no calibration, so no depth"
    return what + ("  ·  colours follow" if state.follow else "") + ("  ·  doubt hidden" if state.hide_doubtful else "")


def _rows(name: str, status: Status, read_out: str) -> list[tuple[str, Bgr]]:
    if name == PAIR_WINDOW:
        recording = "● recording  ·  " if status.recording else ""
        complaint = "  ·  ".join(status.complaints)
        return [
            (recording + status.figures, draw.TEXT),
            (complaint or read_out, draw.WARNING if complaint else draw.TEXT),
        ]
    if name == CONFIDENCE_WINDOW:
        return [(status.running, draw.QUIET), ("", draw.QUIET)]
    here, _, box = read_out.partition("    ")
    return [(here or status.running, draw.TEXT if here else draw.QUIET), (box, draw.TEXT)]


class Windows:
    """The windows on the screen; to be used in a `with`.

    Attributes:
        state: what keys and mouse have set.
        closed: the user wants to end.

    Raises:
        UserError: there is no display.
    """

    def __init__(self) -> None:
        check_display()
        self.state = ViewState()
        self.closed = False
        self._open: dict[str, tuple[int, int]] = {}
        self._map_size = (1, 1)
        self._body_size = (1, 1)

    def __enter__(self) -> "Windows":
        return self

    def __exit__(self, *_: object) -> None:
        cv2.destroyAllWindows()

    def show(self, pictures: dict[str, Canvas], map_size: tuple[int, int]) -> str:
        """Shows each picture in the window of its title; returns the keys that were pressed and are not the view's.

        Args:
            pictures: BGR, by title.
            map_size: height and width of the maps in them, px.
        """
        pair = pictures[PAIR_WINDOW]
        self._map_size = map_size
        self._body_size = (pair.shape[0] - 3 * draw.ROW_PX, pair.shape[1] // 2)
        for name in [name for name in self._open if name not in pictures]:
            cv2.destroyWindow(name)
            del self._open[name]
        for name, picture in pictures.items():
            if name not in self._open:
                self._create(name, picture)
            cv2.imshow(name, picture)
        return self.keys()

    def keys(self) -> str:
        """Keys that were pressed and are not the view's; notices closed windows."""
        others = ""
        while (key := cv2.pollKey()) != -1:
            key &= 0xFF
            if key in (_ESCAPE, ord("q")):
                self.closed = True
            elif chr(key) in "sr":
                others += chr(key)
            else:
                self.state.press(key)
        if any(cv2.getWindowProperty(name, cv2.WND_PROP_VISIBLE) < 1 for name in self._open):
            self.closed = True
        return others

    def _create(self, name: str, picture: Canvas) -> None:
        cv2.namedWindow(name, cv2.WINDOW_AUTOSIZE | cv2.WINDOW_GUI_NORMAL)
        below = self._body_size[0] + 3 * draw.ROW_PX + 60
        places = {PAIR_WINDOW: (20, 20), CONFIDENCE_WINDOW: (20 + self._body_size[1] + draw.BAR_PX + 20, below)}
        cv2.moveWindow(name, *places.get(name, (20, below)))
        cv2.setMouseCallback(name, self._mouse, name)
        self._open[name] = picture.shape[:2]

    def _mouse(self, event: int, column: int, row: int, _flags: int, name: Any) -> None:
        del event
        (body_height, body_width), (map_height, map_width) = self._body_size, self._map_size
        row -= draw.ROW_PX
        # The right eye stands beside the left one; beside a map stands its colour bar.
        if not (0 <= row < body_height and 0 <= column < (2 if name == PAIR_WINDOW else 1) * body_width):
            self.state.cursor = None
            return
        column %= body_width
        self.state.cursor = (column * map_width // body_width, row * map_height // body_height)


class OneWindow:
    """A window for one RGB picture after the other; to be used in a `with`.

    Raises:
        UserError: there is no display.
    """

    def __init__(self, title: str) -> None:
        check_display()
        self._title = title
        cv2.namedWindow(title, cv2.WINDOW_AUTOSIZE | cv2.WINDOW_GUI_NORMAL)

    def __enter__(self) -> "OneWindow":
        return self

    def __exit__(self, *_: object) -> None:
        cv2.destroyAllWindows()

    def __call__(self, picture: UInt8[np.ndarray, "H W 3"]) -> bool:
        """Shows it; False once the user has pressed q or Esc, or closed the window."""
        cv2.imshow(self._title, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        key = cv2.pollKey() & 0xFF
        return key not in (_ESCAPE, ord("q")) and cv2.getWindowProperty(self._title, cv2.WND_PROP_VISIBLE) >= 1


def check_display() -> None:
    """Lets pass where a window can be opened.

    Raises:
        UserError: it cannot. Qt ends the whole program in that case, so a program of its own tries it.
    """
    code = "import cv2; cv2.namedWindow('display?'); cv2.destroyAllWindows()"
    tried = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    if tried.returncode != 0:
        display = os.environ.get("DISPLAY")
        found = f"DISPLAY is {display}, but no window opens there" if display else "no display was found"
        raise UserError(f"{found}; --headless works without one")


def _median(values: Float[np.ndarray, "h w"]) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size else float("nan")


def _two_digits(value: float) -> float:
    """Rounded so that colours that follow the scene do not draw a new bar for every picture."""
    return float(f"{value:.2g}")

"""`foundation-stereo-demo`: what a match of the installed pair looks like, in a figure and in words."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from foundation_stereo_depth.data.demo_pair import DemoPair
from foundation_stereo_depth.figures import encode_figure, match_panel, scale_of_match, sigma_panel
from foundation_stereo_depth.options.inference import FigureOptions
from foundation_stereo_depth.stereo.geometry import depth_std_from_disparity
from foundation_stereo_depth.stereo.match import StereoMatch
from live_camera.camera import CameraInfo

_CENTRE_HALF_PX = 4
"""The centre is the median of 9x9 pixels, as at the mouse of the live view."""


def draw_demo(pair: DemoPair, match: StereoMatch) -> bytes:
    """Return a PNG of the left view, disparity, its standard deviation, and depth."""
    options = FigureOptions()
    depth_m = match.depth_m(pair.calibration)
    scales = [(depth, scale_of_match(match, depth, options)) for depth in (None, depth_m)]
    panels = [match_panel(match, depth, scale, options.grey_below) for depth, scale in scales if scale is not None]
    if match.sigma_px is not None:
        panels.insert(1, sigma_panel(match.sigma_px))
    return encode_figure(pair.name, pair.left, panels, columns=2)


def describe_centre(pair: DemoPair, match: StereoMatch) -> str:
    """Return disparity and depth at the centre of the image, with their standard deviations."""
    height, width = match.disparity_px.shape
    rows = slice(height // 2 - _CENTRE_HALF_PX, height // 2 + _CENTRE_HALF_PX + 1)
    columns = slice(width // 2 - _CENTRE_HALF_PX, width // 2 + _CENTRE_HALF_PX + 1)
    disparity_px = float(np.nanmedian(match.disparity_px[rows, columns]))
    depth_m = float(np.nanmedian(match.depth_m(pair.calibration)[rows, columns]))
    if match.sigma_px is None:
        return f"centre of the image: {depth_m:.2f} m (disparity {disparity_px:.1f} px)"
    sigma_px = float(np.nanmedian(match.sigma_px[rows, columns]))
    sigma_m = depth_std_from_disparity(disparity_px, sigma_px, pair.calibration)
    return f"centre of the image: {depth_m:.2f} m ± {sigma_m:.2f} (disparity {disparity_px:.1f} px ± {sigma_px:.1f})"


def next_steps(cameras: Sequence[CameraInfo]) -> str:
    """Return three lines on what to do next, with the webcams that are plugged in."""
    names = ", ".join(f"{camera.index} ({camera.name})" for camera in cameras)
    left, right = (cameras[0].index, cameras[1].index) if len(cameras) > 1 else (0, 2)
    found = f"found {names}" if cameras else "none found"
    rig = f"--left {left} --right {right}"
    return (
        f"next, with your webcams ({found}):\n"
        f"  foundation-stereo live-view {rig}\n"
        f"  foundation-stereo calibrate {rig} --corners 9x6 --square-mm 25   # then depth is in metres\n"
        "  foundation-stereo train --model guided --epochs 5                       # a network of your own"
    )


def has_display() -> bool:
    """Return True where a program can show an image."""
    return sys.platform in ("win32", "darwin") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def open_file(path: Path) -> bool:
    """Open a file in the system's own program for it; return False where there is none."""
    if sys.platform == "win32":
        os.startfile(path)
        return True
    program = shutil.which("open" if sys.platform == "darwin" else "xdg-open")
    if program is None:
        return False
    subprocess.Popen([program, str(path)], start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return True

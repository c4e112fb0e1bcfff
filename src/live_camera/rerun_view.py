"""The live view in 3-D, by rerun: pair, depth, confidence, coloured points, and the camera that sees them."""

import importlib
from typing import Any

import numpy as np

from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.stereo.geometry import point_cloud
from live_camera.options import ShowOptions
from live_camera.view import Result

_FARTHEST_M = 10.0
"""Points further away are left out: their depth is worth little, and they make the rest small."""


class RerunView:
    """Shows each result in rerun's viewer; without a display into `live.rrd` in the folder for what is saved.

    Args:
        options: where to save, and how sure a point has to be.

    Raises:
        UserError: rerun is not installed.
    """

    def __init__(self, options: ShowOptions) -> None:
        try:
            self._rerun: Any = importlib.import_module("rerun")
        except ModuleNotFoundError as error:
            raise UserError("--rerun: rerun is not installed; `uv sync --extra rerun` adds it") from error
        self._min_confidence = options.min_confidence
        self._rerun.init("foundation-stereo-live-view", spawn=not options.headless)
        if options.headless:
            options.save_dir.mkdir(parents=True, exist_ok=True)
            self._rerun.save(str(options.save_dir / "live.rrd"))
        self._rerun.log("/", self._rerun.ViewCoordinates.RIGHT_HAND_Y_DOWN, static=True)

    def __call__(self, result: Result) -> None:
        """Shows one pair and what was found in it."""
        rerun = self._rerun
        rerun.set_time("captured", duration=result.frame.captured_at_s)
        rerun.log("pair/left", rerun.Image(result.left))
        rerun.log("pair/right", rerun.Image(result.right))
        if result.answer.confidence is not None:
            rerun.log("confidence", rerun.DepthImage(result.answer.confidence, meter=1.0, colormap="viridis"))
        if result.depth_m is None or result.calibration is None:
            rerun.log("disparity", rerun.DepthImage(result.answer.disparity_px, meter=1.0))
            return
        height, width = result.depth_m.shape
        rig = result.calibration
        rerun.log(
            "camera",
            rerun.Pinhole(
                focal_length=(rig.focal_px, rig.focal_y_px),
                principal_point=(rig.cx_left_px, rig.cy_px),
                resolution=(width, height),
            ),
        )
        rerun.log("camera/depth", rerun.DepthImage(np.nan_to_num(result.depth_m), meter=1.0))
        doubtful = result.doubtful(self._min_confidence)
        keep = result.depth_m < _FARTHEST_M
        points_m, colours = point_cloud(
            result.depth_m, result.left, keep if doubtful is None else keep & ~doubtful, rig
        )
        rerun.log("points", rerun.Points3D(points_m, colors=colours))

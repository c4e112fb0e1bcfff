import importlib
import os
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest

from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.stereo.geometry import StereoCalibration
from foundation_stereo_depth.stereo.match import StereoMatch
from live_camera.matcher import MatchedFrame
from live_camera.options import ShowOptions
from live_camera.rig import StereoFrame
from live_camera.view import RerunView

CALIBRATION = StereoCalibration(
    width=4, height=3, focal_px=2.0, focal_y_px=2.0, cx_left_px=1.5, cx_right_px=1.5, cy_px=1.0, baseline_m=0.1
)


def matched_frame(depth_m: np.ndarray | None) -> MatchedFrame:
    image = np.zeros((3, 4, 3), np.uint8)
    return MatchedFrame(
        frame=StereoFrame(left_rgb=image, right_rgb=image, captured_at_s=5.0, skew_ms=0.0),
        left=image,
        right=image,
        match=StereoMatch(
            disparity_px=np.ones((3, 4), np.float32),
            valid=np.ones((3, 4), bool),
            confidence=np.full((3, 4), 0.9, np.float32),
        ),
        depth_m=depth_m,
        calibration=None if depth_m is None else CALIBRATION,
    )


def test_missing_rerun_is_an_error_with_the_command_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib, "import_module", MagicMock(side_effect=ModuleNotFoundError))
    with pytest.raises(UserError, match="--rerun: rerun is not installed; install it by `uv sync --extra rerun`"):
        RerunView(ShowOptions(), Path("live.rrd"))


def test_rerun_shows_near_confident_points_or_disparity(monkeypatch: pytest.MonkeyPatch) -> None:
    rerun = MagicMock()
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(importlib, "import_module", lambda _: rerun)
    view = RerunView(ShowOptions(headless=True), Path("captures/live.rrd"))
    assert rerun.save.call_args.args == ("captures/live.rrd",)
    assert os.environ["CI"] == "true"  # so that its viewer sends nothing
    depth_m = np.full((3, 4), 2.0, np.float32)
    depth_m[0] = 20.0  # too far
    depth_m[1, 0] = np.nan
    view(matched_frame(depth_m))
    points_m = rerun.Points3D.call_args.args[0]
    assert points_m.shape == (7, 3)
    assert (points_m[:, 2] == 2).all()
    view(matched_frame(None))
    assert rerun.log.call_args.args[0] == "disparity"

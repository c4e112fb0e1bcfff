import importlib
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest

from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.stereo.geometry import StereoCalibration
from live_camera.matcher import Answer
from live_camera.options import ShowOptions
from live_camera.rerun_view import RerunView
from live_camera.rig import StereoFrame
from live_camera.view import Result

CALIBRATION = StereoCalibration(
    width=4, height=3, focal_px=2.0, focal_y_px=2.0, cx_left_px=1.5, cx_right_px=1.5, cy_px=1.0, baseline_m=0.1
)


def result(depth_m: np.ndarray | None) -> Result:
    picture = np.zeros((3, 4, 3), np.uint8)
    return Result(
        frame=StereoFrame(left_rgb=picture, right_rgb=picture, captured_at_s=5.0, skew_ms=0.0),
        left=picture,
        right=picture,
        answer=Answer(disparity_px=np.ones((3, 4), np.float32), confidence=np.full((3, 4), 0.9, np.float32)),
        depth_m=depth_m,
        calibration=None if depth_m is None else CALIBRATION,
    )


def test_without_rerun_the_way_to_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib, "import_module", MagicMock(side_effect=ModuleNotFoundError))
    with pytest.raises(UserError, match="--rerun: rerun is not installed; `uv sync --extra rerun` adds it"):
        RerunView(ShowOptions())


def test_near_and_sure_points_are_shown_and_without_depth_disparity(monkeypatch: pytest.MonkeyPatch) -> None:
    rerun = MagicMock()
    monkeypatch.setattr(importlib, "import_module", lambda _: rerun)
    view = RerunView(ShowOptions(headless=True, save_dir=Path("captures")))
    assert rerun.save.call_args.args == ("captures/live.rrd",)
    depth_m = np.full((3, 4), 2.0, np.float32)
    depth_m[0] = 20.0  # too far
    depth_m[1, 0] = np.nan
    view(result(depth_m))
    points_m = rerun.Points3D.call_args.args[0]
    assert points_m.shape == (7, 3)
    assert (points_m[:, 2] == 2).all()
    view(result(None))
    assert rerun.log.call_args.args[0] == "disparity"

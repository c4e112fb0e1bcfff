import numpy as np
import pytest

from foundation_stereo_depth.errors import CalibrationError
from foundation_stereo_depth.stereo.geometry import StereoCalibration
from foundation_stereo_depth.stereo.match import StereoMatch


def test_depth_scales_the_calibration_to_the_size_of_the_map() -> None:
    disparity_px = np.array([[8.0, np.nan, 0.0, 4.0]] * 3, np.float32)
    match = StereoMatch(disparity_px=disparity_px, valid=disparity_px > 0)
    for factor in (1, 2):
        rig = StereoCalibration.centred(height=3 * factor, width=4 * factor, focal_px=400.0 * factor, baseline_m=0.1)
        depth_m = match.depth_m(rig)
        np.testing.assert_allclose(depth_m, [[5.0, np.nan, np.nan, 10.0]] * 3, rtol=1e-6)
        assert depth_m.dtype == np.float32


def test_a_calibration_of_another_aspect_is_another_rigs() -> None:
    match = StereoMatch(disparity_px=np.ones((500, 741), np.float32), valid=np.ones((500, 741), bool))
    rig = StereoCalibration.centred(height=480, width=640, focal_px=450.0, baseline_m=0.1)
    with pytest.raises(CalibrationError, match="images of 741x500 do not fit a calibration made at 640x480"):
        match.depth_m(rig)


def test_a_match_is_printed_in_one_line() -> None:
    disparity_px = np.array([[8.0, np.nan, 4.0]], np.float32)
    assert repr(StereoMatch(disparity_px=disparity_px, valid=disparity_px > 0)) == (
        "<StereoMatch 3x1, disparity 4.0 to 8.0 px>"
    )
    assert repr(StereoMatch(disparity_px=disparity_px[:, 1:2], valid=disparity_px[:, 1:2] > 0)) == (
        "<StereoMatch 1x1, no disparity>"
    )

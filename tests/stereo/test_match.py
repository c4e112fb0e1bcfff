import numpy as np

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

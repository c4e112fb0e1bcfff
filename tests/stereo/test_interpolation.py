import numpy as np
import pytest

from foundation_stereo_depth.stereo import interpolation


def test_lapack_is_that_of_scipy_wherever_it_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.linalg import lapack

    rng = np.random.default_rng(0)
    system = (np.full(9, 3, np.float32), rng.random(8, np.float32), rng.random((9, 2), np.float32))
    expected = lapack.sptsv(*system)[2]
    np.testing.assert_array_equal(interpolation._lapack().sptsv(*system)[2], expected)
    monkeypatch.setattr(interpolation.PathFinder, "find_spec", lambda *_: None)
    np.testing.assert_array_equal(interpolation._lapack.__wrapped__().sptsv(*system)[2], expected)


def test_a_plane_is_extended_between_its_borders_and_not_across_an_edge_of_the_image() -> None:
    height, width = 96, 128
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    plane_px = (10 + 0.05 * x + 0.02 * y).astype(np.float32)
    grey = np.where(x < 96, 200, 40).astype(np.uint8)
    support = ((x < 8) | (x >= 80) & (x < 96)).astype(np.float32)
    found_px, found_support = interpolation.interpolate(plane_px, support, grey, 2)
    from_left_px, from_right_px = plane_px[:, 7:8], plane_px[:, 80:81]
    nearest_px = np.where(x < 44, from_left_px, from_right_px)  # 0.9 px wrong in the mean
    between = slice(8, 80)
    assert np.abs(found_px - plane_px)[:, between].mean() < 0.8 * np.abs(nearest_px - plane_px)[:, between].mean()
    assert found_support[:, :96].min() > 0.3
    assert found_support[:, 104:].max() < 0.05

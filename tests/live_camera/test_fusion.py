import numpy as np
import pytest

from foundation_stereo_depth.stereo.match import StereoMatch
from live_camera.fusion import TemporalFusion

H, W, SIGMA_PX = 40, 60, 0.3
GREY = np.full((H, W, 3), 120, np.uint8)


def match_of(disparity_px: np.ndarray, *, network: bool = True) -> StereoMatch:
    values = disparity_px.astype(np.float32)
    return StereoMatch(
        disparity_px=values,
        valid=np.isfinite(values),
        sigma_px=np.full((H, W), SIGMA_PX, np.float32) if network else None,
    )


@pytest.mark.parametrize("network", [True, False])
def test_noise_of_a_still_scene_averages_out(network: bool) -> None:
    random, fuse = np.random.default_rng(0), TemporalFusion(0.9)
    for _ in range(30):
        noisy = match_of(10 + SIGMA_PX * random.normal(size=(H, W)), network=network)
        fused = fuse(GREY, noisy)
    assert fused.disparity_px.mean() == pytest.approx(10, abs=0.02)
    assert fused.disparity_px.std() < noisy.disparity_px.std() / 3
    if network:
        assert fused.sigma_px is not None
        # Less uncertain, but the constant error remains; a few pixels have just restarted.
        assert fused.sigma_px.max() < SIGMA_PX + 1e-6
        assert (fused.sigma_px < 0.95 * SIGMA_PX).mean() > 0.95
        assert fused.sigma_px.min() > 0.5 * SIGMA_PX
    else:
        assert fused.sigma_px is None


def test_a_change_of_the_image_restarts_at_once() -> None:
    fuse, changed = TemporalFusion(0.9), GREY.copy()
    changed[:, 30:] = 160  # the image sees what the disparity hides in its noise
    for _ in range(10):
        fuse(GREY, match_of(np.full((H, W), 10.0)))
    fused = fuse(changed, match_of(np.full((H, W), 20.0))).disparity_px
    np.testing.assert_array_equal(fused[:, 35:], np.float32(20))
    np.testing.assert_array_equal(fused[:, :20], np.float32(10))


def test_a_disparity_that_jumps_is_left_out_until_it_lasts() -> None:
    fuse, near, far = TemporalFusion(0.9), np.full((H, W), 20.0), np.full((H, W), 10.0)
    for disparity_px in (*[far] * 10, near, far, *[near] * 4):
        fused = fuse(GREY, match_of(disparity_px)).disparity_px
        np.testing.assert_allclose(fused, 10.0, atol=1e-4)
    np.testing.assert_array_equal(fuse(GREY, match_of(near)).disparity_px, np.float32(20))


def test_forgetting_nothing_kept_returns_the_newest() -> None:
    fuse = TemporalFusion(0.0)
    for value in (10.0, 10.3):
        fused = fuse(GREY, match_of(np.full((H, W), value)))
    np.testing.assert_allclose(fused.disparity_px, 10.3, atol=1e-4)


def test_unknown_pixels_stay_unknown_and_come_back() -> None:
    fuse, hole = TemporalFusion(0.9), np.full((H, W), 10.0)
    hole[5, 5] = np.nan
    fuse(GREY, match_of(np.full((H, W), 10.0)))
    assert np.isnan(fuse(GREY, match_of(hole)).disparity_px[5, 5])
    assert fuse(GREY, match_of(np.full((H, W), 10.0))).disparity_px[5, 5] == 10.0


def test_another_size_starts_again() -> None:
    fuse = TemporalFusion(0.9)
    fuse(GREY, match_of(np.full((H, W), 10.0)))
    small = StereoMatch(disparity_px=np.ones((8, 9), np.float32), valid=np.ones((8, 9), bool))
    assert fuse(GREY[:8, :9], small) is small

import cv2
import numpy as np
import pytest

from foundation_stereo_depth.stereo import prior
from foundation_stereo_depth.stereo.prior import (
    TWO_PRIOR_PLANES,
    CoarsePrediction,
    add_smooth_match,
    first_match,
    prior_planes,
    smooth_match,
    two_prior_planes,
)
from foundation_stereo_depth.stereo.sgbm import find_search


@pytest.mark.parametrize("far_px", [-0.25, 0.0, 0.25, 0.5, 1.0])
def test_prior_of_very_distant_surfaces_is_not_near(far_px: float) -> None:
    # OpenCV finds no fractions of the smallest disparity searched: if that were 0, all this would be a hole.
    wall, thing = textured(160, 240), textured(160, 240, seed=1)
    x, y = np.meshgrid(np.arange(160, dtype=np.float32), np.arange(120, dtype=np.float32))
    inside = (abs(x - 80) < 20) & (abs(y - 60) < 30)
    inside_right = (abs(x + 20 - 80) < 20) & (abs(y - 60) < 30)

    def seen(image: np.ndarray, shift_px: float) -> np.ndarray:
        return cv2.remap(image, x + 40 + shift_px, y + 20, cv2.INTER_LINEAR)

    left = np.where(inside[..., None], seen(thing, 0), seen(wall, 0))
    right = np.where(inside_right[..., None], seen(thing, 20), seen(wall, far_px))
    found_px, matched = prior_planes(left, right)[[0, 3]]
    far = ~cv2.dilate(inside.astype(np.uint8), np.ones((41, 41))).astype(bool)
    assert matched[far].mean() > 0.9
    assert (np.abs(found_px[far] - max(far_px, 0)) > 1).mean() < 0.02
    assert np.median(found_px[abs(x - 80) + abs(y - 60) < 15]) == pytest.approx(20, abs=0.5)


def textured(height: int = 120, width: int = 160, *, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(40, 216, (height // 4, width // 4, 3), dtype=np.uint8)
    return np.kron(coarse, np.ones((4, 4, 1), np.uint8))


@pytest.mark.parametrize("gain", [(0.6, 0.6, 0.6), (1.1, 1.0, 0.8)])
def test_prior_equalises_a_differently_exposed_right_view(gain: tuple[float, float, float]) -> None:
    left = textured()
    right = np.roll(left, -8, axis=1)
    planes = prior_planes(left, (right * np.array(gain)).astype(np.uint8))
    assert np.abs(planes[0][:, 16:-16] - 8).mean() < 0.1
    assert np.abs(planes[4:7, 16:-16, 16:-16]).mean() < 0.005  # a level of 256 and a little


def test_prior_keeps_equally_exposed_views() -> None:
    left = textured()
    right = np.roll(left, -8, axis=1)
    right[:, :, 1] += 2  # less than chance makes of it
    unlike = prior_planes(left, right)[4:7, 16:-16, 16:-16]
    assert np.median(unlike, axis=(1, 2)) == pytest.approx([0, -2 / 255, 0], abs=1e-7)


@pytest.mark.parametrize("alike", [True, False])
def test_a_wall_is_moved_behind_the_object_where_the_first_match_agrees_with_itself(alike: bool) -> None:
    planes = np.zeros((TWO_PRIOR_PLANES, 240, 320), np.float32)
    planes[0, :, :200], planes[0, :, 200:], planes[3] = 5.0, 15.0, 1
    if not alike:  # as on a wall without any texture
        planes[0, :, :200] += np.random.default_rng(0).uniform(-4, 4, (240, 200)).astype(np.float32)
    smooth_px, support = np.full((240, 320), 15.0, np.float32), np.zeros((240, 320), np.float32)
    grey = np.full((240, 320), 200, np.uint8)
    support[:, 200:], grey[:, 200:] = 1, 90
    found = prior._find_behind(planes, smooth_px, support, grey)
    if not alike:
        assert found is None
        return
    assert found is not None
    behind_px, behind_support = found
    np.testing.assert_allclose(behind_px[:, :190], 5, atol=0.1)
    assert behind_support[:, :190].min() > 0.5
    assert behind_support[:, 210:].max() == 0


def test_the_smooth_match_of_what_is_infinitely_far_is_not_below_0() -> None:
    rng = np.random.default_rng(0)
    texture = cv2.GaussianBlur(rng.standard_normal((240, 320)).astype(np.float32), (0, 0), 2.0)
    left = np.repeat((128 + 40 / texture.std() * texture).clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
    beyond = cv2.warpAffine(left, np.float32([[1, 0, 0.4], [0, 1, 0]]), (320, 240), borderMode=cv2.BORDER_REPLICATE)
    planes = two_prior_planes(left, np.asarray(beyond))
    assert (planes[0] + planes[10]).min() >= 0


def test_a_coarse_prediction_takes_the_place_of_the_smooth_match_and_of_an_interpolation_far_from_it() -> None:
    height, width, shift_px = 120, 640, 12
    texture = cv2.GaussianBlur(np.random.default_rng(0).standard_normal((height, width + shift_px)), (0, 0), 1.0)
    grey = (128 + 20 / texture.std() * texture).round().astype(np.uint8)
    left, right = (np.repeat(view[..., None], 3, axis=2) for view in (grey[:, :width], grey[:, shift_px:]))
    coarse_px, sigma_px = (np.full((height, width), value, np.float32) for value in (shift_px + 1.0, 3.0))
    coarse_px[:, 400:] += 10
    planes = add_smooth_match(first_match(left, right)).complete(CoarsePrediction(coarse_px, sigma_px))
    np.testing.assert_array_equal(planes[:10], prior_planes(left, right))
    np.testing.assert_allclose(planes[0] + planes[10], coarse_px, atol=1e-5)
    np.testing.assert_allclose(planes[11], np.exp(-1.5), rtol=1e-5)  # 1.5 px at a width of 320
    interpolated_px = planes[0] + planes[13]
    assert np.abs(interpolated_px - shift_px)[:, 40:390].mean() < 0.1
    np.testing.assert_allclose(interpolated_px[:, 410:], coarse_px[:, 410:], atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(120, 160), (240, 320), (480, 640)])
def test_a_smooth_match_serves_pairs_of_other_sizes(height: int, width: int) -> None:
    shift_px = width // 16
    texture = cv2.GaussianBlur(np.random.default_rng(0).standard_normal((480, 700)), (0, 0), 2.0)
    grey = (128 + 20 / texture.std() * texture).round().astype(np.uint8)
    large = [np.repeat(view[..., None], 3, axis=2) for view in (grey[:, :640], grey[:, 40:680])]
    middle, pair = (
        [np.asarray(cv2.resize(v, s, interpolation=cv2.INTER_AREA)) for v in large]
        for s in ((320, 240), (width, height))
    )
    search = find_search(*large)
    smooth = smooth_match(*middle, search)
    np.testing.assert_allclose(np.median(smooth.disparity_px), 20, atol=0.1)
    planes = add_smooth_match(first_match(*pair, search), smooth).complete(None)
    assert np.abs(planes[0] + planes[10] - shift_px)[:, width // 8 :].mean() < 0.05 * shift_px
    assert planes[11].mean() > 0.9


def test_the_match_of_half_the_size_stands_where_there_is_no_texture() -> None:
    left = textured(240, 320)
    right = np.roll(left, -8, axis=1)
    left[:, 160:] = right[:, 160:] = 100
    half = first_match(left[::2, ::2], right[::2, ::2])
    half.planes[0, :, 100:] = 5.25
    planes = first_match(left, right, None, half).planes
    np.testing.assert_array_equal(planes[0, 20:-20, 210:], 10.5)
    assert np.median(planes[0, :, 20:140]) == 8
    np.testing.assert_array_equal(first_match(left, right).planes[0, :, 20:120], planes[0, :, 20:120])

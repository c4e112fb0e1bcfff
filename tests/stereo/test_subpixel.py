import cv2
import numpy as np
import pytest

from foundation_stereo_depth.stereo.subpixel import lucas_kanade_update, refine_flat_surfaces


def wall(truth_px: np.ndarray, contrast: float = 20.0) -> list[np.ndarray]:
    """Return the views of a textured surface, RGB."""
    height, width = truth_px.shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    noise = np.random.default_rng(0).standard_normal((height, width + 80)).astype(np.float32)
    texture = cv2.GaussianBlur(noise, (0, 0), 2.0)
    texture = 128 + contrast / texture.std() * texture
    across = (x + 40 - truth_px, x + 40)
    views = [cv2.remap(texture, columns.astype(np.float32), y, cv2.INTER_CUBIC) for columns in across]
    return [np.repeat(view.round().astype(np.uint8)[..., None], 3, axis=2) for view in views]


@pytest.mark.parametrize("scale", [1, 2])
def test_steps_on_a_slanted_wall_become_fractions_of_a_pixel(scale: int) -> None:
    y, x = np.mgrid[: 240 * scale, : 320 * scale].astype(np.float32)
    truth_px = 12.3 * scale + 0.01 * x + 0.015 * y
    stepped_px = np.round(truth_px)
    found = refine_flat_surfaces(*wall(truth_px), stepped_px)
    inner = (slice(30, -30), slice(60, -30))
    assert cv2.resize(found.is_flat.astype(np.uint8), truth_px.shape[::-1])[inner].all()
    before, after = (np.abs(disparity_px - truth_px)[inner].mean() for disparity_px in (stepped_px, found.disparity_px))
    assert before > 0.2
    assert after < 0.3 * before


def test_nothing_changes_beside_an_edge_of_depth() -> None:
    truth_px = np.full((240, 320), 10, np.float32)
    truth_px[:, 160:] = 20
    found = refine_flat_surfaces(*wall(truth_px), truth_px)
    assert not found.is_flat[:, 152:168].any()
    np.testing.assert_array_equal(found.disparity_px[:, 152:168], truth_px[:, 152:168])


def test_without_texture_nothing_but_smoothness_counts() -> None:
    y, x = np.mgrid[:240, :320].astype(np.float32)
    plane_px = 12 + 0.01 * x + 0.02 * y
    blank = np.full((240, 320, 3), 200, np.uint8)
    found = refine_flat_surfaces(blank, blank, plane_px)
    np.testing.assert_allclose(found.disparity_px[10:-10, 10:-10], plane_px[10:-10, 10:-10], atol=1e-4)


def test_what_is_infinitely_far_stays_there() -> None:
    left, right = wall(np.full((240, 320), -0.4, np.float32))
    found = refine_flat_surfaces(left, right, np.zeros((240, 320), np.float32))
    assert found.disparity_px.min() == 0


def test_an_update_is_no_larger_than_allowed() -> None:
    left, right = (view[..., 0] for view in wall(np.full((240, 320), 10.0, np.float32)))
    update_px, _ = lucas_kanade_update(
        left, right, np.full((240, 320), 9, np.float32), side_px=15, local_mean_side_px=7, largest_px=0.25
    )
    assert np.abs(update_px).max() == 0.25
    assert np.median(update_px) == 0.25


@pytest.mark.parametrize(("size", "unknown"), [((240, 320), np.nan), ((480, 640), np.inf), ((33, 1000), np.nan)])
def test_one_unknown_pixel_stays_the_only_one(size: tuple[int, int], unknown: float) -> None:
    truth_px = np.full(size, 10, np.float32)
    disparity_px = truth_px.copy()
    disparity_px[10, 100] = unknown
    found = refine_flat_surfaces(*wall(truth_px), disparity_px)
    assert np.isfinite(found.disparity_px).sum() == truth_px.size - 1
    is_flat = cv2.resize(found.is_flat.astype(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST)
    assert not is_flat[10, 95:105].any()
    assert np.abs(np.nan_to_num(found.disparity_px, posinf=10, nan=10) - 10).max() < 1


def test_deviation_is_smaller_on_a_textured_plane_and_larger_without_texture() -> None:
    y, x = np.mgrid[:240, :320].astype(np.float32)
    plane_px = 12.3 + 0.01 * x + 0.015 * y
    inner = (slice(40, -40), slice(60, -40))
    before_px = np.full((240, 320), 0.25, np.float32)
    textured = refine_flat_surfaces(*wall(plane_px, 60.0), plane_px).sigma_px(before_px)[inner]
    assert np.median(textured) < 0.15
    relief_px = plane_px + 0.9 * np.sin(x / 6)  # not flat within a window
    assert np.median(refine_flat_surfaces(*wall(relief_px, 60.0), relief_px).sigma_px(before_px)[inner]) > 0.22
    blank = np.full((240, 320, 3), 200, np.uint8)
    assert np.median(refine_flat_surfaces(blank, blank, plane_px).sigma_px(before_px)[inner]) > 0.25


def test_deviation_grows_by_what_the_refinement_changed() -> None:
    truth_px = np.full((240, 320), 10.0, np.float32)
    before_px = np.full((240, 320), 0.1, np.float32)
    right, wrong = (
        refine_flat_surfaces(*wall(truth_px), truth_px + error_px).sigma_px(before_px)[30:-30, 40:-30]
        for error_px in (0, 0.25)
    )
    assert np.median(wrong) > 2 * np.median(right)


@pytest.mark.parametrize("unknown", [np.nan, np.inf])
def test_deviation_beside_an_unknown_pixel_is_known(unknown: float) -> None:
    truth_px = np.full((240, 320), 10, np.float32)
    disparity_px = truth_px.copy()
    disparity_px[100, 100] = unknown
    before_px = np.full((240, 320), 0.4, np.float32)
    whole, part = (
        refine_flat_surfaces(*wall(truth_px), each_px).sigma_px(before_px) for each_px in (truth_px, disparity_px)
    )
    assert np.isfinite(part).all()
    assert part[100, 100] == pytest.approx(0.4)
    np.testing.assert_allclose(part[:, 200:-30], whole[:, 200:-30], rtol=1e-3)


def test_a_large_deviation_stays_on_a_textured_plane() -> None:
    plane_px = np.full((240, 320), 12.0, np.float32)
    before_px = np.full((240, 320), 0.8, np.float32)
    large = refine_flat_surfaces(*wall(plane_px, 60.0), plane_px).sigma_px(before_px)
    assert large.min() >= before_px.min()

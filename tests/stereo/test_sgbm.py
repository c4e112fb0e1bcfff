from pathlib import Path

import cv2
import numpy as np
import pytest

from foundation_stereo_depth.data.fsd import open_fsd
from foundation_stereo_depth.stereo.sgbm import disparities_for, filled_from_background, find_search, match

NAN = np.nan


def filled(rows: list[list[float]]) -> list[list[float]]:
    disparity_px = np.array(rows, np.float32)
    return filled_from_background(disparity_px, ~np.isnan(disparity_px)).tolist()


def test_holes_take_the_farther_neighbour_of_their_row() -> None:
    assert filled([[NAN, 9, NAN, NAN, 4, NAN], [5, NAN, 7, 7, NAN, 6]]) == [[9, 9, 4, 4, 4, 4], [5, 5, 7, 7, 6, 6]]


def test_row_without_matches_takes_the_nearest_row_with_one() -> None:
    assert filled([[NAN, NAN], [3, NAN], [NAN, NAN], [NAN, NAN], [NAN, 8]]) == [[3, 3], [3, 3], [3, 3], [8, 8], [8, 8]]


def test_map_without_matches_stays_unknown() -> None:
    assert np.isnan(filled([[NAN, NAN]] * 2)).all()


def test_integers_are_filled_like_floats() -> None:
    random = np.random.default_rng(0)
    steps, known = random.integers(0, 2000, (37, 53), dtype=np.int16), random.random((37, 53)) > 0.6
    known[[3, 4, 20]] = False
    found = filled_from_background(steps, known)
    assert found.dtype == np.int16
    np.testing.assert_array_equal(found, filled_from_background(steps.astype(np.float32), known))


@pytest.mark.parametrize(("width", "expected"), [(80, 16), (81, 32), (320, 64), (321, 80), (1280, 256)])
def test_a_fifth_of_the_width_is_searched(width: int, expected: int) -> None:
    assert disparities_for(width) == expected


@pytest.mark.parametrize("shift_px", [1, 7, 30])
def test_shifted_image_has_its_shift_as_disparity(shift_px: int) -> None:
    left = np.random.default_rng(0).integers(0, 256, (61, 203, 3), dtype=np.uint8)
    right = np.roll(left, -shift_px, axis=1)
    found = match(left, right)
    assert found.disparity_px.shape == found.valid.shape == (61, 203)
    assert np.abs(found.disparity_px[:, shift_px:] - shift_px).mean() < 0.1
    assert found.valid[:, shift_px:].mean() > 0.95
    # With swapped views there is no match at the true disparity.
    assert np.abs(match(right, left).disparity_px - shift_px).mean() > 2


def test_image_without_texture_has_no_matches() -> None:
    blank = np.full((48, 64, 3), 128, np.uint8)
    found = match(blank, blank)
    assert not found.valid.any()
    assert np.isnan(found.disparity_px).all()


MEASURED_EPE_PX = {
    "aloe": 0.96, "art": 1.95, "books": 1.21, "cones": 0.77, "flowerpots": 0.90, "motorcycle": 0.89, "reindeer": 1.13,
}  # fmt: skip


def test_real_scenes_score_as_measured(shared_data: Path) -> None:
    index = open_fsd(shared_data / "fsd-sample")
    for i in range(len(index)):
        sample = index.read(i, (240, 320))
        found = match(sample.left, sample.right)
        epe_px = np.nanmean(np.abs(found.disparity_px - sample.disparity_px))
        assert epe_px == pytest.approx(MEASURED_EPE_PX[index.names.scene(i).removeprefix("middlebury_")], abs=0.03)


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize(("side_px", "is_found"), [(14, False), (48, True)])
def test_a_small_near_region_is_no_object_at_any_size(scale: int, side_px: int, is_found: bool) -> None:
    height, width = 240 * scale, 320 * scale
    rng = np.random.default_rng(0)
    wall, thing = (
        np.repeat(
            cv2.resize(rng.integers(0, 256, (120, 200), dtype=np.uint8), (400 * scale, height))[..., None], 3, axis=2
        )
        for _ in range(2)
    )
    far_px, near_px, side = 10 * scale, 90 * scale, side_px * scale
    left, right = wall[:, :width].copy(), wall[:, far_px : far_px + width].copy()
    rows, x = slice(height // 2, height // 2 + side), width // 2
    left[rows, x : x + side] = thing[rows, :side]
    right[rows, x - near_px : x - near_px + side] = thing[rows, :side]
    search = find_search(left, right)
    assert search.farthest_px == pytest.approx(far_px, abs=2 * scale)
    assert search.nearest_px == pytest.approx(near_px if is_found else far_px, abs=5 * scale)
    assert search.disparities(width).stop < (130 if is_found else 50) * scale

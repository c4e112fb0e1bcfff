import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation_stereo_depth.stereo.disparity import nearest_indices, resize_disparity, valid_mask


@pytest.mark.parametrize("make", [lambda v: np.array(v, np.float32), torch.tensor])
def test_valid_is_finite_positive_and_below_the_maximum(make) -> None:
    values = make([math.nan, math.inf, -math.inf, -1.0, 0.0, 1e-6, 5.0, 6.0])
    assert valid_mask(values).tolist() == [False, False, False, False, False, True, True, True]
    assert valid_mask(values, maximum_px=6.0).tolist() == [False, False, False, False, False, True, True, False]


def test_nearest_indices_hold_the_centres_of_the_cells() -> None:
    assert nearest_indices(4, 2).tolist() == [1, 3]
    assert nearest_indices(6, 2).tolist() == [1, 4]
    assert nearest_indices(2, 4).tolist() == [0, 0, 1, 1]
    assert nearest_indices(5, 5).tolist() == [0, 1, 2, 3, 4]


@settings(deadline=None)  # a busy machine is no fault of the code
@given(st.integers(1, 400), st.integers(1, 400))
def test_nearest_indices_agree_with_torch_nearest_exact(source: int, target: int) -> None:
    line = torch.arange(source, dtype=torch.float64)[None, None]
    oracle = torch.nn.functional.interpolate(line, size=target, mode="nearest-exact")[0, 0]
    # torch computes in floating point; where a centre falls on a border it may land on either side.
    difference = np.abs(nearest_indices(source, target) - oracle.numpy())
    assert difference.max() <= 1
    borders = (2 * np.arange(target) + 1) * source % (2 * target) == 0
    assert not difference[~borders].any()


@pytest.mark.parametrize(("height", "width"), [(240, 320), (100, 1280), (720, 77), (37, 61)])
def test_resize_keeps_depth_at_any_height(height: int, width: int) -> None:
    # Depth is f B / d; the focal length follows the width, so d / width is what has to stay.
    disparity_px = np.linspace(1, 100, 720 * 1280, dtype=np.float32).reshape(720, 1280)
    resized = resize_disparity(disparity_px, height, width)
    assert resized.shape == (height, width)
    rows, columns = nearest_indices(720, height), nearest_indices(1280, width)
    np.testing.assert_allclose(resized / width, disparity_px[np.ix_(rows, columns)] / 1280, rtol=1e-6)


def test_resize_does_not_interpolate_between_surfaces() -> None:
    steps = np.where(np.arange(64) < 31, 10.0, 50.0).astype(np.float32) * np.ones((48, 1), np.float32)
    assert set(np.unique(resize_disparity(steps, 20, 32))) == {5.0, 25.0}


def test_resize_keeps_unknown_disparity_unknown() -> None:
    disparity_px = np.full((4, 4), np.nan, np.float32)
    assert np.isnan(resize_disparity(disparity_px, 2, 2)).all()

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import shifted_pair

from foundation_stereo_depth.data.codecs import read_rgb
from foundation_stereo_depth.inference.predictor import Predictor
from foundation_stereo_depth.inference.swapped_views import seem_swapped, unexplained


@pytest.mark.parametrize("shift_px", [3, 7, 12])
def test_exchanged_eyes_are_noticed_and_others_are_not(
    matching_predictor: Callable[..., Predictor], shift_px: int
) -> None:
    left, right = shifted_pair(60, 120, shift_px)
    predictor = matching_predictor(60, 120)
    assert not seem_swapped(predictor, left, right)
    assert seem_swapped(predictor, right, left)


def test_a_scene_far_away_is_not_suspected(matching_predictor: Callable[..., Predictor]) -> None:
    left, _ = shifted_pair(60, 120, 1)
    assert not seem_swapped(matching_predictor(60, 120), left, left)


def test_the_true_disparity_explains_everything_but_brightness() -> None:
    left, right = shifted_pair(60, 120, 5)
    true_px = np.full((60, 120), 5, np.float32)
    darker = (right * 0.99).astype(np.uint8)
    assert unexplained(left, right, true_px) < 0.2 * unexplained(left, right, true_px * 0)
    assert unexplained(left, darker, true_px) < 1.5
    assert unexplained(left, right, true_px + 1000) == float("inf")


def test_real_pairs_are_told_apart(shared_data: Path, matching_predictor: Callable[..., Predictor]) -> None:
    # At this width most disparities come within the 15 px that the matching network looks for.
    predictor = matching_predictor(93, 112)
    for scene in sorted((shared_data / "fsd-sample").iterdir()):
        left, right = (read_rgb(scene / f"dataset/data/{eye}/rgb/0000.jpg") for eye in ("left", "right"))
        assert not seem_swapped(predictor, left, right), scene.name
        assert seem_swapped(predictor, right, left), scene.name

"""Synthetic scenes by compiled loops: equal to PyTorch's, exact, and the same for any number of threads."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from foundation_stereo_depth.data.random import sample_keys, uniform
from foundation_stereo_depth.data.synthetic import compiling, counter_rng, scenes, torch_scenes
from foundation_stereo_depth.data.synthetic.primitives import CHESS, empty_scene
from foundation_stereo_depth.data.synthetic.render import positions
from foundation_stereo_depth.data.synthetic.scenes import FLOATING, KINDS, Views, render_scenes
from foundation_stereo_depth.data.synthetic.source import SceneSource
from foundation_stereo_depth.data.synthetic.textures import packed_textures

pytestmark = [pytest.mark.usefixtures("compiled_renderer"), pytest.mark.slow]  # compiling takes a minute

ROOMS, REPETITION = (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)


@compiling.compiled_once
def compiled_uniform(seed, epoch, index, purpose, position, low, high):
    return counter_rng.uniform(counter_rng.sample_key(seed, epoch, index), purpose, position, low, high)


@pytest.mark.parametrize("seed", [0, 7, 2**31])
def test_compiled_random_numbers_are_those_of_pytorch(seed: int) -> None:
    keys = sample_keys(seed, 3, torch.arange(5))
    expected = uniform(keys, "size", 4, low=-1.5, high=2.5).numpy()
    drawn = [
        [compiled_uniform(seed, 3, i, counter_rng.purpose("size"), j, -1.5, 2.5) for j in range(4)] for i in range(5)
    ]
    np.testing.assert_allclose(drawn, expected, rtol=0, atol=3e-7)  # one multiply-add, rounded once or twice


@pytest.mark.parametrize(("height", "width"), [(120, 160), (37, 61)])
def test_floating_scenes_equal_those_of_pytorch_within_one_level(height: int, width: int) -> None:
    indices = torch.arange(6)
    expected_batch = torch_scenes.render_scenes(sample_keys(5, 2, indices), indices, height, width)
    views = render_scenes(5, range(6), height, width, epoch=2)
    for name in ("left", "right"):
        expected = getattr(expected_batch, name).permute(0, 2, 3, 1).numpy().astype(np.int32)
        difference = np.abs(getattr(views, name) - expected).max(axis=3)
        # A sample that lies on an outline may fall to either side of it: one pixel in ten thousand.
        assert (difference > 1).mean() < 1e-4
        assert difference.mean() < 0.1
    error_px = np.abs(views.disparity_px - expected_batch.disparity_px[:, 0].numpy())
    assert (error_px > 1e-3).mean() < 1e-4


def test_batches_for_training_are_those_of_pytorch() -> None:
    size = {"length": 9, "seed": 3, "height": 37, "width": 61}
    plan = [np.array([4, 0]), np.array([8])]
    expected = list(torch_scenes.ProceduralSource(**size, device=torch.device("cpu")).batches(plan, -1))
    batches = list(SceneSource(**size).batches(plan, -1))
    assert [batch.indices.tolist() for batch in batches] == [[4, 0], [8]]
    for ours, theirs in zip(batches, expected, strict=True):
        assert (ours.left.float() - theirs.left.float()).abs().mean() < 0.1
        assert (ours.disparity_px - theirs.disparity_px).abs().median() < 1e-3


@pytest.mark.parametrize("kinds", [ROOMS, REPETITION])
def test_rooms_are_closed_and_within_range(kinds: tuple[float, float, float]) -> None:
    views = render_scenes(1, range(24), 60, 80, kinds=kinds)
    assert np.isfinite(views.disparity_px).all()
    assert views.disparity_px.min() > 0
    assert views.disparity_px.max() < 0.45 * 80
    assert (views.left != views.right).any(axis=(1, 2, 3)).all()


def test_a_scene_does_not_depend_on_its_batch_or_the_number_of_threads() -> None:
    kinds = (1.0, 1.0, 1.0)
    together = render_scenes(3, range(8), 37, 61, threads=4, kinds=kinds)
    for i in (2, 5):
        alone = render_scenes(3, [i], 37, 61, kinds=kinds)
        for a, b in zip(alone, together, strict=True):
            np.testing.assert_array_equal(a[0], b[i])
    later = render_scenes(3, [2], 37, 61, epoch=1, kinds=kinds)
    assert not np.array_equal(later.disparity_px[0], together.disparity_px[2])


def test_weights_of_kinds_choose_among_them() -> None:
    few = render_scenes(0, range(40), 8, 12, kinds=(0.5, 0.3, 0.2))
    of_kind = [render_scenes(0, range(40), 8, 12, kinds=only) for only in (FLOATING, ROOMS, REPETITION)]
    assert len(of_kind) == len(KINDS)
    same = np.array([(few.left == views.left).all(axis=(1, 2, 3)) for views in of_kind])
    assert same.any(axis=0).all()
    assert (same.mean(axis=1) > 0.05).all()
    assert 0.3 < same[0].mean() < 0.7


def warped_back(views: Views) -> tuple[np.ndarray, np.ndarray]:
    """Return the right views at x - d, and where that lies inside them."""
    n, height, width, _ = views.right.shape
    x = np.arange(width) - views.disparity_px
    x_0 = np.clip(np.floor(x).astype(int), 0, width - 2)
    share = (x - x_0)[..., None]
    i, y = np.arange(n)[:, None, None], np.arange(height)[None, :, None]
    right = views.right.astype(np.float32)
    return right[i, y, x_0] * (1 - share) + right[i, y, x_0 + 1] * share, (x >= 0) & (x <= width - 1)


@pytest.mark.parametrize("kinds", [ROOMS, REPETITION])
def test_the_right_view_of_rooms_warped_by_the_disparity_is_the_left_view(kinds: tuple[float, float, float]) -> None:
    views = render_scenes(2, range(16), 120, 160, kinds=kinds)
    warped, inside = warped_back(views)
    error = np.abs(warped - views.left).mean(axis=3)
    assert np.median(error[inside]) < 1
    # What is hidden from the right camera, highlights and edges differ: a sixth of all that lies inside, at most.
    assert (error[inside] > 12).mean() < 1 / 6
    beside, _ = warped_back(views._replace(disparity_px=views.disparity_px + 1))
    wrong = np.abs(beside - views.left).mean(axis=3)
    assert error[inside].mean() < 0.8 * wrong[inside].mean()


def board_scene():
    """Return a scene of one chessboard, parallel to the image, squares of 8 px, disparity 6.25 px."""
    scene = empty_scene()
    scene.setting["count"], scene.setting["exposure"] = 1, 1
    board = scene.primitives[0]
    for name, value in {
        "d0": 6.25, "unbounded": 1, "content": -1, "hollow": -1, "grating_share": 1, "left_from": -80, "left_to": 240,
        "bottom": 48, "top": -1, "red": 1, "green": 1, "blue": 1, "pattern": CHESS, "m_x": 1 / 8, "n_y": 1 / 8,
    }.items():  # fmt: skip
        board[name] = value
    return scene


def test_a_chessboard_is_where_its_disparity_says_in_both_views() -> None:
    scene, texels = board_scene(), packed_textures()
    left, right = np.zeros((48, 80, 3), np.uint8), np.zeros((48, 80, 3), np.uint8)
    disparity_px = np.zeros((48, 80), np.float32)
    scenes._render(scene, 0.0, texels, left, right, disparity_px)
    assert (disparity_px == 6.25).all()
    # Squares change where x is a multiple of 8, half a pixel before the sample at it.
    assert left[2, 1:8, 0].min() > 250
    assert left[2, 9:16, 0].max() < 5
    assert left[10, 1:8, 0].max() < 5
    assert right[2, 0:1, 0].min() > 250  # x = 0 of the right view is 6.25 of the left one
    assert right[2, 3:9, 0].max() < 5  # 9.25 .. 14.25


@compiling.compiled_once
def positions_once(count, samples):
    return positions(count, samples)


def test_samples_lie_evenly_within_pixels_with_integer_centres() -> None:
    np.testing.assert_array_equal(positions_once(2, 2), np.float32([-0.25, 0.25, 0.75, 1.25]))
    np.testing.assert_array_equal(positions_once(3, 1), np.float32([0, 1, 2]))


def test_machine_code_is_kept_apart_for_other_sources_and_not_where_nothing_can_be_written(monkeypatch, tmp_path):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    compiling._cache_folder.cache_clear()
    folder = compiling._cache_folder()
    assert folder is not None
    assert folder.parent == tmp_path / "foundation-stereo-depth"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file"))
    compiling._cache_folder.cache_clear()
    assert compiling._cache_folder() is None
    compiling._cache_folder.cache_clear()


def test_importing_the_pytorch_renderer_does_not_import_numba() -> None:
    code = "import sys, foundation_stereo_depth.data.synthetic.torch_scenes; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

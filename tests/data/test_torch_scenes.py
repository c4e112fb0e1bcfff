import ast
import zlib
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from foundation_stereo_depth.data import random as draws
from foundation_stereo_depth.data.random import Keys, sample_keys
from foundation_stereo_depth.data.synthetic import torch_scenes as procedural
from foundation_stereo_depth.data.synthetic import torch_shading as lights
from foundation_stereo_depth.data.synthetic import torch_textures as textures
from foundation_stereo_depth.data.synthetic.torch_scenes import (
    ProceduralSource,
    _draw_primitives,
    _nearest,
    render_scenes,
)
from foundation_stereo_depth.data.synthetic.torch_textures import TEXTURE_SIZE, texture_atlas
from foundation_stereo_depth.stereo.disparity import valid_mask


def scenes_of(count: int, height: int = 120, width: int = 160, seed: int = 0):
    indices = torch.arange(count)
    keys = sample_keys(seed, 0, indices)
    return keys, render_scenes(keys, indices, height, width)


@pytest.fixture(scope="module")
def scenes():
    """Keys, batch and the right view's disparity of a few scenes, rendered once."""
    keys, batch = scenes_of(6)
    return keys, batch, right_disparity_of(keys)


def right_disparity_of(keys: Keys) -> torch.Tensor:
    return _nearest(_draw_primitives(keys, 120, 160), 120, 160, 1, from_right=True)[0][:, None]


def warp(image: torch.Tensor, disparity_px: torch.Tensor, mode: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What the right view shows at x - d, and whether that lies inside it."""
    B, _, H, W = image.shape
    x = torch.arange(W) - disparity_px[:, 0]
    y = torch.arange(H)[:, None].expand(B, H, W)
    grid = torch.stack([x / (W - 1), y / (H - 1)], dim=-1) * 2 - 1
    return F.grid_sample(image, grid, mode=mode, align_corners=True), (x >= 0)[:, None]


def test_shapes_types_and_memory() -> None:
    _, batch = scenes_of(2, 37, 61)
    assert batch.left.shape == batch.right.shape == (2, 3, 37, 61)
    assert batch.left.dtype == torch.uint8
    assert batch.left.is_contiguous(memory_format=torch.channels_last)
    assert valid_mask(batch.disparity_px).all()
    assert (batch.left != batch.right).any()


def test_right_view_warped_back_is_the_left_view_where_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procedural, "highlight_rgb", lambda *_, **__: 0)  # highlights, which each view sees elsewhere
    keys, batch = scenes_of(6)
    right_disparity_px = right_disparity_of(keys)
    warped, inside = warp(batch.right.float(), batch.disparity_px, "bilinear")
    seen_px, _ = warp(right_disparity_px, batch.disparity_px, "nearest")
    # The right view sees the same surface where its own disparity there is the left one's, to a pixel of slope.
    visible = inside & ((seen_px - batch.disparity_px).abs() < 0.5)
    error = (warped - batch.left.float()).abs().mean(dim=1, keepdim=True)
    assert visible.float().mean() > 0.7
    assert error[visible].median() < 1.0  # of 255
    # What is left comes from sampling texture between pixels; half a pixel beside the truth leaves far more.
    for beside_px in (-0.5, 0.5):
        there, _ = warp(batch.right.float(), batch.disparity_px + beside_px, "bilinear")
        wrong = (there - batch.left.float()).abs().mean(dim=1, keepdim=True)
        assert error[visible].mean() < 0.5 * wrong[visible].mean()
        assert error[visible].quantile(0.9) < 0.4 * wrong[visible].quantile(0.9)
    occluded = inside & (seen_px > batch.disparity_px + 2)
    assert occluded.float().mean() > 0.02
    assert error[occluded].mean() > 30


def test_right_view_solves_for_the_same_surface(scenes) -> None:
    """Where the left view's nearest primitive is also the right one's, both give one disparity, tilted or curved."""
    _, batch, right_disparity_px = scenes
    seen_px, inside = warp(right_disparity_px, batch.disparity_px, "bilinear")
    difference_px = (seen_px - batch.disparity_px).abs()[inside]
    same = difference_px[difference_px < 0.5]
    assert len(same) > 0.7 * len(difference_px)
    assert same.median() < 1e-3


def test_surface_behind_another_is_hidden(scenes) -> None:
    _, batch, right_disparity_px = scenes
    seen_px, inside = warp(right_disparity_px, batch.disparity_px, "nearest")
    # At x - d the right view sees the left one's surface or something nearer; half a pixel of outline may differ.
    farther = inside & (seen_px < batch.disparity_px - 1)
    assert farther.float().mean() < 0.02


def test_disparities_cover_a_wide_range() -> None:
    _, batch = scenes_of(48, 36, 48)
    share = batch.disparity_px / 48
    assert share.min() < 0.01
    assert share.max() > 0.3
    assert 0.02 < share.mean() < 0.1
    assert (share > 0.2).float().mean() > 0.01


def test_scene_is_the_same_in_any_batch_and_differs_between_epochs() -> None:
    source = ProceduralSource(length=10, seed=3, height=37, width=61, device=torch.device("cpu"))
    together = next(source.batches([torch.arange(3).numpy()], epoch=0))
    alone = next(source.batches([torch.tensor([2]).numpy()], epoch=0))
    assert torch.equal(alone.left[0], together.left[2])
    assert torch.equal(alone.disparity_px[0], together.disparity_px[2])
    later = next(source.batches([torch.tensor([2]).numpy()], epoch=1))
    assert not torch.equal(later.disparity_px, alone.disparity_px)
    assert len(source) == 10
    assert source.name(4) == "synthetic scene 4 of seed 3"


def test_skipping_absent_features_changes_no_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    _, quick = scenes_of(2, 36, 48)
    monkeypatch.setattr(procedural, "_somewhere", lambda has: [True] * has.shape[1])
    _, complete = scenes_of(2, 36, 48)
    for name in ("left", "right", "disparity_px"):
        assert torch.equal(getattr(quick, name), getattr(complete, name))


def digest_code(path: Path) -> int:
    """Return a checksum of a module's code without docstrings, comments and imports."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            node.body = [
                line
                for line in node.body
                if not isinstance(line, ast.Import | ast.ImportFrom)
                and not (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant))
            ] or [ast.Pass()]
    return zlib.crc32(ast.unparse(tree).encode())


def test_version_of_scenes_changes_with_their_code() -> None:
    """Change the version and the digests together: a pool of another version is rebuilt, not mixed with the new one."""
    modules = (procedural, textures, lights, draws)
    paths = [Path(str(module.__file__)) for module in modules]
    digests = [digest_code(path) for path in paths]
    others = [
        path
        for path in paths[0].parent.glob("*.py")
        if path.name not in ("dataset.py", "source.py") and path not in paths
    ]
    compiled = zlib.crc32("".join(str(digest_code(path)) for path in sorted(others)).encode())
    assert procedural.SCENES_VERSION == 9
    assert compiled == 1454730849, "are scenes still the same? then change this number alone"
    assert digests == [940537838, 4203430585, 2135549120, 3436812693], (
        "are scenes still the same? then change this number alone"
    )


def test_textures_do_not_depend_on_the_threads_of_pytorch() -> None:
    of_one = texture_atlas(torch.device("cpu"))
    texture_atlas.cache_clear()
    torch.set_num_threads(2)
    try:
        assert torch.equal(texture_atlas(torch.device("cpu")), of_one)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_every_texture_has_detail() -> None:
    for texture in texture_atlas(torch.device("cpu"))[0].split(TEXTURE_SIZE, dim=1):
        steps = (texture[:, 1:] - texture[:, :-1]).abs()
        assert (steps < 1e-3).float().mean() < 0.1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_renders_the_same_scenes() -> None:
    indices = torch.arange(4)
    keys = sample_keys(0, 0, indices)
    here = render_scenes(keys, indices, 120, 160)
    there = render_scenes(keys.cuda(), indices.cuda(), 120, 160)
    same = (here.disparity_px - there.disparity_px.cpu()).abs() < 1e-2
    assert same.float().mean() > 0.999

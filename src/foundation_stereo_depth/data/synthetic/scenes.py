"""Synthetic scenes from (seed, epoch, index): the compiled renderer's one entry point."""

# Types of compiled functions are numba's to infer.
# pyright: basic

import functools
import logging
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from foundation_stereo_depth.data.sample import StereoSample
from foundation_stereo_depth.data.synthetic.compiling import compiled, compiled_once, has_machine_code
from foundation_stereo_depth.data.synthetic.counter_rng import purpose, sample_key, uniform
from foundation_stereo_depth.data.synthetic.floating import draw_floating
from foundation_stereo_depth.data.synthetic.primitives import empty_scene
from foundation_stereo_depth.data.synthetic.render import mean_brightness, render_disparity, render_view, sharpen
from foundation_stereo_depth.data.synthetic.rooms import draw_room
from foundation_stereo_depth.data.synthetic.textures import packed_textures

KINDS = ("floating", "room", "repetition")
"""Primitives in front of a curved background; rooms; rooms with boards, bricks, tiles and books in most of them."""

FLOATING = (1.0, 0.0, 0.0)
POOL_KINDS = (0.5, 0.3, 0.2)
"""Weights of KINDS: what PyTorch renders on a GPU, too; and what a cached pool holds."""

logger = logging.getLogger(__name__)

_FLOATING_PRIMITIVES = 56
_POOL_SEED = 0
_KIND = purpose("kind")
_announcing = threading.Lock()


class Views(NamedTuple):
    """Scenes, RGB and px."""

    left: UInt8[np.ndarray, "N H W 3"]
    right: UInt8[np.ndarray, "N H W 3"]
    disparity_px: Float32[np.ndarray, "N H W"]


def render_scenes(
    seed: int,
    indices: Sequence[int] | np.ndarray,
    height: int,
    width: int,
    threads: int = 1,
    *,
    epoch: int = 0,
    kinds: tuple[float, float, float] = FLOATING,
    floating_primitives: int = _FLOATING_PRIMITIVES,
) -> Views:
    """Render scenes that depend on (seed, epoch, index) and the weights of the kinds alone.

    Args:
        seed: of all of them.
        indices: one scene each.
        height: px.
        width: px.
        threads: render so many scenes at a time; Python's lock is free meanwhile.
        epoch: of the seed.
        kinds: how often each of KINDS comes; need not add up to 1.
        floating_primitives: before the background of floating scenes.
    """
    n = len(indices)
    views = Views(
        np.empty((n, height, width, 3), np.uint8),
        np.empty((n, height, width, 3), np.uint8),
        np.empty((n, height, width), np.float32),
    )
    weights = np.asarray(kinds, np.float64)
    bounds = np.cumsum(weights / weights.sum())
    texels = packed_textures()

    def render(row: int) -> None:
        index = int(indices[row])
        scene = empty_scene()
        kind = int(np.searchsorted(bounds, _draw_kind(seed, epoch, index), side="right"))
        # Each is compiled when it is first called: who wants no rooms does not wait for theirs.
        if KINDS[kind] == "floating":
            target = _draw_floating(seed, epoch, index, height, width, scene, floating_primitives)
        else:
            target = _draw_room(seed, epoch, index, height, width, scene, KINDS[kind] == "repetition")
        _render(scene, target, texels, views.left[row], views.right[row], views.disparity_px[row])

    if threads <= 1 or n <= 1:
        for row in range(n):
            render(row)
    else:
        with ThreadPoolExecutor(threads, thread_name_prefix="scenes") as pool:
            list(pool.map(render, range(n)))
    return views


def pool_sample(i: int, height: int, width: int) -> StereoSample:
    """Return scene `i` of the pool that a cache is filled with, the same at every call."""
    announce_compilation()
    left, right, disparity_px = render_scenes(_POOL_SEED, [i], height, width, kinds=POOL_KINDS)
    return StereoSample(left=left[0], right=right[0], disparity_px=disparity_px[0])


def announce_compilation() -> None:
    """Say, once, that the first scene on this machine takes longer."""
    with _announcing:
        _announce_once()


@functools.cache
def _announce_once() -> None:
    if not has_machine_code():
        logger.info("compiling the renderer of synthetic scenes, once per version on this machine: about a minute")


@compiled_once
def _draw_kind(seed, epoch, index):
    return uniform(sample_key(seed, epoch, index), _KIND, 0, 0.0, 1.0)


@compiled_once
def _draw_floating(seed, epoch, index, height, width, scene, count):
    draw_floating(sample_key(seed, epoch, index), height, width, scene, count)
    return 0.0


@compiled_once
def _draw_room(seed, epoch, index, height, width, scene, repetition):
    return draw_room(sample_key(seed, epoch, index), height, width, scene, repetition)


@compiled_once
def _render(scene, target, texels, left, right, disparity_px):
    """Render both views and the disparity of the left one, exposed for a mean of `target`; 0: as it is."""
    if target > 0:
        _expose(scene, target, disparity_px.shape[0], disparity_px.shape[1], texels)
    render_view(scene, False, texels, left)
    render_view(scene, True, texels, right)
    render_disparity(scene, disparity_px)
    amount = scene.setting[0].sharpening
    if amount > 0:
        left[:] = sharpen(left, amount)
        right[:] = sharpen(right, amount)


@compiled
def _expose(scene, target, height, width, texels):
    """Set the exposure so that the mean of the left view is about `target`, as a camera does."""
    setting = scene.setting[0]
    setting.exposure = 1
    mean, _ = mean_brightness(scene, height, width, texels)
    setting.exposure = target / max(mean, 0.02)
    if target < 0.75:  # a camera avoids that much is white
        for _ in range(6):
            _, bright = mean_brightness(scene, height, width, texels)
            if bright < 0.15:
                break
            setting.exposure *= 0.8

"""Procedural stereo scenes in batches on the training device, with exact disparity.

A scene is a curved, slanted background, often a floor, and many textured primitives floating in front of it. Each
primitive is a function, not an image: its disparity is a quadratic in left-image coordinates, its outline an inequality
in the same coordinates, its texture a lookup there. For a pixel (x, y) of the left view every primitive is evaluated at
(x, y); for a pixel (x_right, y) of the right view at the x that solves x - d(x, y) = x_right, which for a quadratic has
a closed form. In both views the primitive with the largest disparity, the nearest one, is visible. So disparity is
exact, occlusion is right in both views, and what one view shows behind an edge has a texture of its own.

Depth edges are not always intensity edges, nor the reverse: some primitives share a texture, textures are patched
together, shadows cross everything. Specular highlights have a disparity of their own, at no surface.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from foundation_stereo_depth.data.batch import Positions, StereoBatch
from foundation_stereo_depth.data.random import Keys, chance, sample_keys, uniform, whole
from foundation_stereo_depth.data.sample import SampleNames, SourceStamp, StereoSample
from foundation_stereo_depth.data.synthetic.torch_shading import (
    draw_highlights,
    draw_shadows,
    highlight_rgb,
    light_left_by_shadows,
)
from foundation_stereo_depth.data.synthetic.torch_textures import TEXTURE_SIZE, TEXTURES, look_up, texture_atlas

PIECES = 56
"""Primitives before the background; outlines that miss the image make the count vary from scene to scene."""
SAMPLES = 2
"""Colours are averaged over so many points across and down each pixel, as a shrunk photograph's are."""

SCENES_VERSION = 9
"""Another number whenever scenes come out otherwise: a pool keeps it, and entries of another one are rebuilt."""
SCENES_STAMP: SourceStamp = np.full((3, 2), -SCENES_VERSION, np.int64)
"""It, where entries of files keep what they were made of; no file has a size below 0."""

_PER_FOLDER = 100
_POOL_SEED = 0
_SMALLEST, _FARTHEST_PLAIN = 0.003, 0.14  # of the width: disparities of backgrounds
_LARGEST = 0.32  # of the width: the largest disparity of the scene with the nearest primitive
_CLUSTERS = 2  # in half of the scenes: small primitives close together, like foliage
_TEXTURE_SOURCES = 6  # the first surfaces, whose textures others copy


@dataclass(frozen=True, kw_only=True)
class ProceduralSource:
    """An endless data set of synthetic scenes, of which an epoch visits `length`; each epoch has new ones."""

    VALIDATION_SEED: ClassVar[int] = 2**31
    """Beyond every seed that training can have."""

    length: int
    seed: int
    height: int
    width: int
    device: torch.device

    def __len__(self) -> int:
        return self.length

    def name(self, index: int) -> str:
        """What messages call the scene."""
        return f"synthetic scene {index} of seed {self.seed}"

    def batches(self, plan: Sequence[Positions], epoch: int) -> Iterator[StereoBatch]:
        """One batch per entry of `plan`, rendered when it is asked for."""
        for positions in plan:
            indices = torch.as_tensor(positions, device=self.device)
            keys = sample_keys(self.seed, epoch, indices)
            # A GPU wants all scenes at once; a CPU is faster scene by scene, where each primitive has a small frame.
            at_once = len(indices) if self.device.type == "cuda" else 1
            parts = [
                render_scenes(keys[i : i + at_once], indices[i : i + at_once], self.height, self.width)
                for i in range(0, len(indices), at_once)
            ]
            yield joined(parts)


def scene_names(count: int) -> SampleNames:
    """Names of the first `count` scenes of a pool, a hundred to a folder."""
    folders = tuple(f"made-up-{n:05d}" for n in range(-(-count // _PER_FOLDER)))
    return SampleNames.from_pairs(folders, ((i // _PER_FOLDER, f"{i % _PER_FOLDER:02d}") for i in range(count)))


def scene_sample(i: int, height: int, width: int) -> StereoSample:
    """Scene `i` of the pool, the same at every call."""
    indices = torch.tensor([i])
    scene = render_scenes(sample_keys(_POOL_SEED, 0, indices), indices, height, width)
    left, right = (view[0].permute(1, 2, 0).numpy() for view in (scene.left, scene.right))
    return StereoSample(left=left, right=right, disparity_px=scene.disparity_px[0, 0].numpy())


def joined(parts: Sequence[StereoBatch]) -> StereoBatch:
    """One batch of several."""
    return StereoBatch(
        left=torch.cat([part.left for part in parts]),
        right=torch.cat([part.right for part in parts]),
        disparity_px=torch.cat([part.disparity_px for part in parts]),
        indices=torch.cat([part.indices for part in parts]),
    )


@dataclass(frozen=True, kw_only=True)
class _Primitives:
    """All primitives of B scenes, [B, K] each; primitive 0 is the background. Lengths in px, disparities in px."""

    centre_x: Tensor
    centre_y: Tensor
    reach_x: Tensor  # half the size of a frame that holds the primitive in the left view
    reach_y: Tensor
    d0: Tensor
    gx: Tensor
    gy: Tensor
    qx: Tensor
    qy: Tensor
    axes: Tensor  # [B, K, 2, 2], 1/px: rows turn (u, v) into (p, q), in which the outline is at about 1
    roundness: Tensor  # 0 box, 1 ellipse
    wave: Tensor  # [B, K, 3]: how far the outline wobbles in p along q, how often, from which phase
    hollow: Tensor  # the primitive begins where the outline's inequality exceeds this; below 0: it is filled
    bars: Tensor  # gaps per unit of q
    bar_fraction: Tensor  # width of a bar over that of a bar and its gap; 1: no gaps
    surface: Tensor  # [B, K, 17]: what `_colours` needs of the primitive that is visible at a pixel
    shadows: Tensor  # [B, SHADOWS, 7]: how dark, and of two soft half planes: 1/px across x, across y, and where
    highlights: Tensor  # [B, HIGHLIGHTS, 6]: brightness, centre x and y, 1/reach in x and y, disparity


@torch.no_grad()
def render_scenes(keys: Keys, indices: Int64[Tensor, " B"], height: int, width: int) -> StereoBatch:
    """One scene per key: both views, and the exact disparity of the left one, known everywhere."""
    primitives = _draw_primitives(keys, height, width)
    left, right = (_colours(primitives, height, width, from_right=right_view) for right_view in (False, True))
    disparity_px, _ = _nearest(primitives, height, width, 1, from_right=False)
    return StereoBatch(left=left, right=right, disparity_px=disparity_px[:, None], indices=indices)


def _draw_primitives(keys: Keys, height: int, width: int) -> _Primitives:  # noqa: PLR0915 (one draw after the other)
    n = PIECES

    def draw(purpose: str, low: float = 0.0, high: float = 1.0) -> Tensor:
        return uniform(keys, purpose, n, low=low, high=high)

    # The background: a disparity at its centre, and a tilt and curvature that change it by at most 0.7 of that.
    far_px = width * uniform(keys, "far", 1, low=math.log(_SMALLEST), high=math.log(_FARTHEST_PLAIN)).exp()
    # Some scenes are deep, most are not, as on real images: a matcher is about as often right on these.
    near_px = far_px * 1.5 + (_LARGEST * width - 1.5 * far_px) * uniform(keys, "near", 1) ** 2
    tilt = uniform(keys, "background tilt", 4, low=-1.0, high=1.0) * torch.tensor(
        [0.25, 0.35, 0.05, 0.05], device=keys.device
    )
    half_w, half_h = width / 2, height / 2
    background = torch.cat(
        [
            far_px * tilt[:, :2] / torch.tensor([half_w, half_h], device=keys.device),
            far_px * tilt[:, 2:] / torch.tensor([half_w**2, half_h**2], device=keys.device),
        ],
        dim=1,
    )

    # The primitives: mostly small, some as large as the image; nearer than the background's centre, with a long tail.
    size_px = width * draw("size", math.log(0.02), math.log(0.7)).exp()
    clustered = chance(keys, "clustered", n, probability=0.5) & chance(keys, "clusters", 1, probability=0.5)
    size_px = torch.where(clustered, width * draw("leaf size", math.log(0.02), math.log(0.15)).exp(), size_px)
    cluster = whole(keys, "cluster", n, below=_CLUSTERS)

    def of_cluster(purpose: str, low: float, high: float) -> Tensor:
        return uniform(keys, f"cluster {purpose}", _CLUSTERS, low=low, high=high).gather(1, cluster)

    thin = chance(keys, "thin", n, probability=0.2)
    aspect = torch.where(thin, draw("thinness", 0.02, 0.15), draw("aspect", 0.35, 1.0))
    half_a = size_px / 2
    half_b = (half_a * aspect).clamp(min=0.6)
    angle = draw("angle", 0.0, math.pi)
    cos, sin = angle.cos(), angle.sin()
    axis = torch.stack(
        [torch.stack([cos, sin], -1) / half_a[..., None], torch.stack([-sin, cos], -1) / half_b[..., None]], -2
    )
    nearness = torch.where(clustered, of_cluster("nearness", 0.0, 1.0), draw("nearness")) ** 2
    d0 = far_px * (near_px / far_px).pow(nearness)
    d0 = torch.where(clustered, d0 * draw("leaf depth", 0.9, 1.15), d0)
    # Slopes are per pixel; bounded so that over the primitive disparity changes by at most 0.6 d0 and never folds.
    bound = torch.minimum(0.25 * d0 / half_a, torch.full_like(d0, 0.3))
    gx, gy = (draw(f"slope {axis_name}", -1.0, 1.0) * bound for axis_name in "xy")
    qx, qy = (draw(f"curve {axis_name}", -1.0, 1.0) * 0.2 * bound / half_a for axis_name in "xy")

    # Outlines: a third wobble, one in ten is a frame, one in twelve a row of bars.
    wobble = torch.where(chance(keys, "sways", n, probability=1 / 3), draw("sway", 0.05, 0.3), 0.0)
    wave = torch.stack([wobble, draw("sway often", 2.0, 12.0), draw("sway phase", 0.0, 2 * math.pi)], -1)
    hollow = torch.where(chance(keys, "hollow", n, probability=0.1), draw("hollow from", 0.4, 0.85), -1.0)
    is_grating = chance(keys, "in slats", n, probability=1 / 12) & ~thin
    bar_fraction = torch.where(is_grating, draw("slat share", 0.3, 0.7), 1.0)
    stretch = 1 + wobble
    reach_x = (cos.abs() * half_a + sin.abs() * half_b) * stretch
    reach_y = (sin.abs() * half_a + cos.abs() * half_b) * stretch

    centre_x, centre_y = draw("centre x", -0.05, 1.15) * width, draw("centre y", -0.05, 1.05) * height
    spread_px = of_cluster("spread", 0.08, 0.35) * width
    member_x = of_cluster("x", 0.0, 1.0) * width + spread_px * draw("leaf x", -1.0, 1.0)
    member_y = of_cluster("y", 0.0, 1.0) * height + spread_px * draw("leaf y", -1.0, 1.0)
    centre_x, centre_y = torch.where(clustered, member_x, centre_x), torch.where(clustered, member_y, centre_y)

    # Often the first primitive is a floor: from a horizon down, nearer by a steady amount each row.
    is_floor = chance(keys, "floor", 1, probability=0.4)
    depth_px = height * uniform(keys, "floor depth", 1, low=0.2, high=0.7)  # rows from the horizon to the lower edge
    rise_px = (near_px - far_px) * uniform(keys, "floor rise", 1, low=0.2, high=0.9)

    def floored(values: Tensor, of_floor: Tensor | float) -> Tensor:
        first = torch.where(is_floor, torch.as_tensor(of_floor, device=keys.device), values[:, :1])
        return torch.cat([first, values[:, 1:]], dim=1)

    centre_x, centre_y = floored(centre_x, half_w), floored(centre_y, float(height))
    d0, gy = floored(d0, far_px + rise_px), floored(gy, rise_px / depth_px)
    gx, qx, qy = floored(gx, 0.0), floored(qx, 0.0), floored(qy, 0.0)
    reach_x, reach_y = floored(reach_x, 2.0 * width), floored(reach_y, depth_px)
    upright = torch.zeros_like(axis[:, :1])
    upright[..., 0, 0], upright[..., 1, 1] = 0.5 / width, 1 / depth_px
    axis = torch.cat([torch.where(is_floor[..., None, None], upright, axis[:, :1]), axis[:, 1:]], dim=1)
    wave = torch.cat([torch.where(is_floor[..., None], 0.0, wave[:, :1]), wave[:, 1:]], dim=1)
    hollow, bar_fraction = floored(hollow, -1.0), floored(bar_fraction, 1.0)
    roundness = floored(draw("roundness"), 0.0)
    half_a = floored(half_a, half_w)

    def with_background(first: Tensor | float, rest: Tensor) -> Tensor:
        first = first if isinstance(first, Tensor) else torch.full_like(rest[:, :1], first)
        return torch.cat([first.to(rest.dtype), rest], dim=1)

    return _Primitives(
        centre_x=with_background(half_w, centre_x),
        centre_y=with_background(half_h, centre_y),
        reach_x=with_background(2.0 * width, reach_x),
        reach_y=with_background(2.0 * height, reach_y),
        d0=with_background(far_px, d0),
        gx=with_background(background[:, 0:1], gx),
        gy=with_background(background[:, 1:2], gy),
        qx=with_background(background[:, 2:3], qx),
        qy=with_background(background[:, 3:4], qy),
        axes=with_background(torch.zeros_like(axis[:, :1]), axis),  # zero: everywhere inside
        roundness=with_background(0.0, roundness),
        wave=with_background(torch.zeros_like(wave[:, :1]), wave),
        hollow=with_background(-1.0, hollow),
        bars=with_background(1.0, draw("slats", 1.0, 6.0)),
        bar_fraction=with_background(1.0, bar_fraction),
        surface=torch.cat(
            [
                torch.stack([with_background(half_w, centre_x), with_background(half_h, centre_y)], dim=-1),
                _draw_surfaces(keys, with_background(half_w, half_a), with_background(0, clustered * (cluster + 1))),
            ],
            dim=-1,
        ),
        shadows=draw_shadows(keys, height, width),
        highlights=draw_highlights(keys, height, width),
    )


def _draw_surfaces(
    keys: Keys, half_size_px: Float[Tensor, "B n"], cluster: Int64[Tensor, "B n"]
) -> Float[Tensor, "B n 15"]:
    """Texture placement (2x2 matrix, offset, first row in the atlas), colour, contrast, shading across x and y.

    Args:
        keys: of the scenes.
        half_size_px: of each surface.
        cluster: of each surface, from 1; 0: in none.
    """
    n = half_size_px.shape[1]
    angle = uniform(keys, "texture angle", n, high=2 * math.pi)
    texels_per_px = uniform(keys, "texture scale", n, low=math.log(0.3), high=math.log(2.0)).exp()
    cos, sin = angle.cos() * texels_per_px, angle.sin() * texels_per_px
    offset = uniform(keys, "texture offset", n, 2, high=2 * TEXTURE_SIZE)
    first_row = whole(keys, "texture", n, below=TEXTURES).to(torch.float32) * TEXTURE_SIZE
    grey = uniform(keys, "grey", n, 1, low=0.1, high=0.9)
    saturation = uniform(keys, "saturation", n, 1) * uniform(keys, "colourful", 1, 1)
    colour = grey + uniform(keys, "colour", n, 3, low=-0.3, high=0.3) * saturation
    # One in eight is nearly plain, as walls and tables are.
    plain = chance(keys, "plain", n, 1, probability=0.12)
    contrast = uniform(keys, "contrast", n, 1, low=0.2, high=0.7) * torch.where(plain, 0.2, 1.0)
    contrast = contrast * uniform(keys, "contrast channels", n, 3, low=0.7, high=1.0)
    shading = uniform(keys, "shading", n, 2, low=-0.35, high=0.35) / half_size_px[..., None]
    placement = torch.stack([cos, -sin, sin, cos], -1)
    texture = torch.cat([placement, offset, first_row[..., None], colour, contrast], dim=-1)
    # Some are painted as one of the first few is, so that edges of depth need not show; each stands at its own place.
    alike = uniform(keys, "alike", n) < torch.where(cluster > 0, 0.7, 0.3)
    source = torch.where(cluster > 0, cluster, whole(keys, "alike to", n, below=_TEXTURE_SOURCES))
    copied = texture.gather(1, source[..., None].expand(-1, -1, texture.shape[-1]))
    return torch.cat([torch.where(alike[..., None], copied, texture), shading], dim=-1)


def _nearest(
    primitives: _Primitives, height: int, width: int, samples: int, *, from_right: bool
) -> tuple[Float[Tensor, "B h w"], Int64[Tensor, "B h w"]]:
    """Disparity of the nearest primitive and its number, at `samples` points across and down each pixel of one view."""
    device, B = primitives.d0.device, len(primitives.d0)
    x, y = _points(width, samples, device), _points(height, samples, device)[:, None]
    nearest_px = torch.full((B, len(y), len(x)), -math.inf, device=device)
    winner = torch.zeros(nearest_px.shape, dtype=torch.int64, device=device)
    frames = _frames(primitives, len(y), len(x), samples, from_right=from_right)
    wobbles, barred = _somewhere(primitives.wave[..., 0] > 0), _somewhere(primitives.bar_fraction < 1)
    for k, (rows, columns) in enumerate(frames):

        def of_primitive(values: Tensor, k: int = k) -> Tensor:
            return values[:, k, None, None]

        v = y[rows] - of_primitive(primitives.centre_y)  # [B, h, 1]
        across_px = of_primitive(primitives.d0) + (of_primitive(primitives.gy) + of_primitive(primitives.qy) * v) * v
        u = x[columns] - of_primitive(primitives.centre_x)
        gx, qx = of_primitive(primitives.gx), of_primitive(primitives.qx)
        if from_right:
            # Solve u - d(u, v) = u_right, that is qx u^2 + (gx - 1) u + (u_right + across) = 0, for the root near it.
            rest = u + across_px
            square = (1 - gx) ** 2 - 4 * qx * rest
            u = 2 * rest / ((1 - gx) + square.clamp(min=1e-6).sqrt())
        disparity_px = across_px + (gx + qx * u) * u
        axis = primitives.axes[:, k, :, :, None, None]
        p = axis[:, 0, 0] * u + axis[:, 0, 1] * v
        q = axis[:, 1, 0] * u + axis[:, 1, 1] * v
        if wobbles[k]:
            wave = primitives.wave[:, k, :, None, None]
            p = p + wave[:, 0] * torch.sin(wave[:, 1] * q + wave[:, 2])
        box, ellipse = torch.maximum(p.abs(), q.abs()), p * p + q * q
        outline = torch.lerp(box, ellipse, of_primitive(primitives.roundness))
        inside = (outline < 1) & (outline > of_primitive(primitives.hollow))
        if barred[k]:
            inside &= (q * of_primitive(primitives.bars)).remainder(1.0) < of_primitive(primitives.bar_fraction)
        before = nearest_px[:, rows, columns]
        wins = inside & (disparity_px > before)
        nearest_px[:, rows, columns] = torch.where(wins, disparity_px, before)
        winner[:, rows, columns] = winner[:, rows, columns].masked_fill(wins, k)
    return nearest_px, winner


def _somewhere(has: Bool[Tensor, "B n"]) -> list[bool]:
    """For each primitive, whether it has that in any scene of the batch, so that it is computed only where needed."""
    # Asking for the answer would make a GPU wait.
    return has.any(dim=0).tolist() if has.device.type == "cpu" else [True] * has.shape[1]


def _points(size: int, samples: int, device: torch.device) -> Float[Tensor, " n"]:
    """Where `samples` points per pixel lie, px; a pixel's centre is a whole number."""
    return (torch.arange(size * samples, device=device, dtype=torch.float32) + 0.5) / samples - 0.5


def _frames(
    primitives: _Primitives, rows: int, columns: int, samples: int, *, from_right: bool
) -> list[tuple[slice, slice]]:
    """For each primitive the rows and columns of points that hold it in every scene of the batch."""
    if primitives.d0.device.type != "cpu":  # asking for the numbers would make a GPU wait
        return [(slice(0, rows), slice(0, columns))] * primitives.d0.shape[1]
    change_px = (primitives.gx.abs() + primitives.qx.abs() * primitives.reach_x) * primitives.reach_x + (
        primitives.gy.abs() + primitives.qy.abs() * primitives.reach_y
    ) * primitives.reach_y
    nearest_px, farthest_px = (primitives.d0 + change_px, primitives.d0 - change_px) if from_right else (0.0, 0.0)
    first_x = (primitives.centre_x - primitives.reach_x - nearest_px).amin(dim=0)
    last_x = (primitives.centre_x + primitives.reach_x - farthest_px).amax(dim=0)
    first_y = (primitives.centre_y - primitives.reach_y).amin(dim=0)
    last_y = (primitives.centre_y + primitives.reach_y).amax(dim=0)

    def numbers(first_px: Tensor, last_px: Tensor, size: int) -> list[slice]:
        first = (first_px * samples - 1).clamp(0, size).tolist()
        last = (last_px * samples + samples + 1).clamp(0, size).tolist()
        return [slice(int(begin), int(end)) for begin, end in zip(first, last, strict=True)]

    return list(zip(numbers(first_y, last_y, rows), numbers(first_x, last_x, columns), strict=True))


def _colours(primitives: _Primitives, height: int, width: int, *, from_right: bool) -> UInt8[Tensor, "B 3 H W"]:
    """RGB bytes of one view, in channels_last memory."""
    disparity_px, winner = _nearest(primitives, height, width, SAMPLES, from_right=from_right)
    device, (B, h, w) = winner.device, winner.shape
    x, y = _points(width, SAMPLES, device), _points(height, SAMPLES, device)[:, None]
    scene = torch.arange(B, device=device)[:, None, None] * primitives.d0.shape[1]
    # One row per property: what follows then runs through memory in order.
    surface = primitives.surface.flatten(0, 1).T.contiguous().index_select(1, (scene + winner).flatten())
    u = (x + disparity_px if from_right else x.expand(B, h, w)).flatten() - surface[0]
    v = y.expand(B, h, w).flatten() - surface[1]
    texel_x = surface[2] * u + surface[3] * v + surface[6]
    texel_y = surface[4] * u + surface[5] * v + surface[7]
    texture = look_up(texture_atlas(device), texel_x, texel_y, surface[8])
    light = (1 + surface[15] * u + surface[16] * v).clamp(0.4, 1.6).view(B, h, w)
    light *= light_left_by_shadows(primitives.shadows, x + disparity_px if from_right else x, y)
    rgb = ((surface[9:12] + surface[12:15] * texture) * light.flatten()).clamp(0, 1)
    rgb = F.avg_pool2d(rgb.view(3, B, h, w).transpose(0, 1), SAMPLES)
    rgb = (rgb + highlight_rgb(primitives.highlights, height, width, from_right=from_right)).clamp(max=1)
    return (rgb * 255).round().to(torch.uint8).to(memory_format=torch.channels_last)

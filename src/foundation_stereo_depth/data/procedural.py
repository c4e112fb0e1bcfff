"""Stereo scenes made from nothing but a seed, in batches on the training device, with exact disparity.

A scene is a curved, slanted background and many textured pieces floating before it. Each piece is a function, not a
picture: its disparity is a quadratic in left-image coordinates,

    d(u, v) = d0 + gx u + gy v + qx u^2 + qy v^2,      (u, v) = (x, y) - centre,

its outline an inequality in the same coordinates, its texture a lookup there. A pixel of the left view asks every
piece at (x, y); a pixel (x_right, y) of the right view asks it at the x that solves x - d(x, y) = x_right, which for a
quadratic has a closed form. In both views the piece with the largest disparity, the nearest one, wins. So disparity is
exact, occlusion is right in both eyes, and what one eye sees behind an edge has a texture of its own.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from foundation_stereo_depth.data.dataset import Positions, StereoBatch
from foundation_stereo_depth.data.draws import Keys, chance, sample_keys, uniform, whole

PIECES = 20
"""Pieces before the background; outlines that miss the picture make the count vary from scene to scene."""

_TEXTURES = 48
_TEXTURE_SIZE = 128  # texels per side of a texture that repeats without a seam
_LARGEST = 0.35  # of the width: the nearest piece's disparity
_SMALLEST = 0.004  # of the width: the farthest background's


@dataclass(frozen=True, kw_only=True)
class ProceduralSource:
    """An endless data set of made-up scenes, of which an epoch visits `length`; each epoch has new ones."""

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
        return f"made-up scene {index} of seed {self.seed}"

    def batches(self, plan: Sequence[Positions], epoch: int) -> Iterator[StereoBatch]:
        """One batch per entry of `plan`, rendered when it is asked for."""
        for positions in plan:
            indices = torch.as_tensor(positions, device=self.device)
            keys = sample_keys(self.seed, epoch, indices)
            yield render_scenes(keys, indices, self.height, self.width)


@dataclass(frozen=True, kw_only=True)
class _Pieces:
    """All pieces of B scenes, [B, K] each; piece 0 is the background. Lengths in px, disparities in px."""

    centre_x: Tensor
    centre_y: Tensor
    d0: Tensor
    gx: Tensor
    gy: Tensor
    qx: Tensor
    qy: Tensor
    axes: Tensor  # [B, K, 2, 2], 1/px: rows turn (u, v) into coordinates in which the outline is at about 1
    roundness: Tensor  # 0 box, 1 ellipse
    surface: Tensor  # [B, K, 13]: what `_colours` needs of the piece that won a pixel


@torch.no_grad()
def render_scenes(keys: Keys, indices: Int64[Tensor, " B"], height: int, width: int) -> StereoBatch:
    """One scene per key: both views, and the exact disparity of the left one, known everywhere."""
    pieces = _draw_pieces(keys, height, width)
    left, disparity_px = _view(pieces, height, width, from_right=False)
    right, _ = _view(pieces, height, width, from_right=True)
    return StereoBatch(left=left, right=right, disparity_px=disparity_px, indices=indices)


def _draw_pieces(keys: Keys, height: int, width: int) -> _Pieces:
    n = PIECES

    def draw(purpose: str, low: float = 0.0, high: float = 1.0) -> Tensor:
        return uniform(keys, purpose, n, low=low, high=high)

    # The background: a disparity at its centre, and a tilt and curvature that change it by at most 0.7 of that.
    far_px = width * uniform(keys, "far", 1, low=math.log(_SMALLEST), high=math.log(0.12)).exp()
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

    # The pieces: mostly small, some as large as the picture; nearer than the background's centre, with a long tail.
    size_px = width * draw("size", math.log(0.02), math.log(0.5)).exp()
    thin = chance(keys, "thin", n, probability=0.2)
    aspect = torch.where(thin, draw("thinness", 0.04, 0.2), draw("aspect", 0.35, 1.0))
    half_a, half_b = size_px / 2, size_px / 2 * aspect
    angle = draw("angle", 0.0, math.pi)
    cos, sin = angle.cos(), angle.sin()
    axis = torch.stack(
        [torch.stack([cos, sin], -1) / half_a[..., None], torch.stack([-sin, cos], -1) / half_b[..., None]], -2
    )
    nearness = draw("nearness") ** 1.5
    d0 = far_px * (_LARGEST * width / far_px).pow(nearness)
    # Slopes are per pixel; bounded so that over the piece disparity changes by at most 0.6 d0 and never folds.
    bound = torch.minimum(0.25 * d0 / half_a, torch.full_like(d0, 0.3))
    gx, gy = (draw(f"slope {axis_name}", -1.0, 1.0) * bound for axis_name in "xy")
    qx, qy = (draw(f"curve {axis_name}", -1.0, 1.0) * 0.2 * bound / half_a for axis_name in "xy")

    def with_background(first: Tensor | float, rest: Tensor) -> Tensor:
        first = first if isinstance(first, Tensor) else torch.full_like(rest[:, :1], first)
        return torch.cat([first.to(rest.dtype), rest], dim=1)

    return _Pieces(
        centre_x=with_background(half_w, draw("centre x", -0.05, 1.15) * width),
        centre_y=with_background(half_h, draw("centre y", -0.05, 1.05) * height),
        d0=with_background(far_px, d0),
        gx=with_background(background[:, 0:1], gx),
        gy=with_background(background[:, 1:2], gy),
        qx=with_background(background[:, 2:3], qx),
        qy=with_background(background[:, 3:4], qy),
        axes=with_background(torch.zeros_like(axis[:, :1]), axis),  # zero: everywhere inside
        roundness=with_background(0.0, draw("roundness")),
        surface=_draw_surfaces(keys, n + 1),
    )


def _draw_surfaces(keys: Keys, n: int) -> Float[Tensor, "B n 13"]:
    """Texture placement (2x2 matrix, offset, row of the texture in the atlas), base colour and contrast per channel."""
    angle = uniform(keys, "texture angle", n, high=2 * math.pi)
    texels_per_px = uniform(keys, "texture scale", n, low=math.log(0.25), high=math.log(1.2)).exp()
    cos, sin = angle.cos() * texels_per_px, angle.sin() * texels_per_px
    offset = uniform(keys, "texture offset", n, 2, high=_TEXTURE_SIZE)
    texture = whole(keys, "texture", n, below=_TEXTURES).to(torch.float32)
    grey = uniform(keys, "grey", n, 1, low=0.1, high=0.9)
    base = grey + uniform(keys, "colour", n, 3, low=-0.3, high=0.3) * uniform(keys, "saturation", n, 1)
    # One in six is nearly plain, as walls and tables are.
    plain = chance(keys, "plain", n, 1, probability=1 / 6)
    contrast = uniform(keys, "contrast", n, 1, low=0.15, high=0.6) * torch.where(plain, 0.1, 1.0)
    contrast = contrast * uniform(keys, "contrast channels", n, 3, low=0.4, high=1.0)
    row = texture * (_TEXTURE_SIZE + 1)
    return torch.cat([torch.stack([cos, -sin, sin, cos], -1), offset, row[..., None], base, contrast], dim=-1)


def _view(pieces: _Pieces, height: int, width: int, *, from_right: bool) -> tuple[Tensor, Float[Tensor, "B 1 H W"]]:
    """RGB bytes [B 3 H W] and the disparity of the nearest piece at each pixel of one eye."""
    device, B = pieces.d0.device, len(pieces.d0)
    x = torch.arange(width, device=device, dtype=torch.float32).expand(B, height, width)
    y = torch.arange(height, device=device, dtype=torch.float32)[:, None]
    nearest_px = torch.full((B, height, width), -math.inf, device=device)
    winner = torch.zeros((B, height, width), dtype=torch.int64, device=device)
    for k in range(pieces.d0.shape[1]):

        def of_piece(values: Tensor, k: int = k) -> Tensor:
            return values[:, k, None, None]

        v = y - of_piece(pieces.centre_y)  # [B, H, 1]
        across_px = of_piece(pieces.d0) + (of_piece(pieces.gy) + of_piece(pieces.qy) * v) * v
        u = x - of_piece(pieces.centre_x)
        gx, qx = of_piece(pieces.gx), of_piece(pieces.qx)
        if from_right:
            # Solve u - d(u, v) = u_right, that is qx u^2 + (gx - 1) u + (u_right + across) = 0, for the root near it.
            rest = u + across_px
            square = (1 - gx) ** 2 - 4 * qx * rest
            u = 2 * rest / ((1 - gx) + square.clamp(min=1e-6).sqrt())
        disparity_px = across_px + (gx + qx * u) * u
        axis = pieces.axes[:, k, :, :, None, None]
        p = (axis[:, 0, 0] * u + axis[:, 0, 1] * v).abs()
        q = (axis[:, 1, 0] * u + axis[:, 1, 1] * v).abs()
        outline = torch.lerp(torch.maximum(p, q), p * p + q * q, of_piece(pieces.roundness))
        wins = (outline < 1) & (disparity_px > nearest_px)
        nearest_px = torch.where(wins, disparity_px, nearest_px)
        winner = winner.masked_fill(wins, k)
    scene = torch.arange(B, device=device)[:, None, None] * pieces.d0.shape[1]
    rows = torch.cat([pieces.centre_x[..., None], pieces.centre_y[..., None], pieces.surface], dim=-1).flatten(0, 1)
    surface = F.embedding(scene + winner, rows)
    x_left = x + nearest_px if from_right else x
    u, v = x_left - surface[..., 0], y - surface[..., 1]
    return _colours(u, v, surface[..., 2:]), nearest_px[:, None]


def _colours(u: Tensor, v: Tensor, surface: Tensor) -> Tensor:
    """RGB bytes, [B 3 H W] in channels_last memory, of surface points (u, v)."""
    size = _TEXTURE_SIZE
    texel_x = (surface[..., 0] * u + surface[..., 1] * v + surface[..., 4]) % size
    texel_y = (surface[..., 2] * u + surface[..., 3] * v + surface[..., 5]) % size + surface[..., 6]
    atlas = _texture_atlas(u.device)
    rows = atlas.shape[2]
    grid = torch.stack([texel_x / size, texel_y / (rows - 1)], dim=-1) * 2 - 1
    B, H, W = u.shape
    texture = F.grid_sample(atlas, grid.view(1, B * H, W, 2), mode="bilinear", align_corners=True)
    texture = texture.view(3, B, H, W).permute(1, 2, 3, 0)
    rgb = surface[..., 7:10] + surface[..., 10:13] * texture
    return (rgb.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 3, 1, 2)


@functools.cache
def _texture_atlas(device: torch.device) -> Float[Tensor, "1 3 rows columns"]:
    """All textures one below the other, -1..1; each repeats its first row and column, so that lookups wrap around."""
    generator = torch.Generator().manual_seed(0)
    textures = torch.stack([_texture(kind % 4, generator) for kind in range(_TEXTURES)])
    wrapped = F.pad(textures, (0, 1, 0, 1), mode="circular")
    return wrapped.transpose(0, 1).flatten(1, 2)[None].contiguous().to(device)


def _texture(kind: int, generator: torch.Generator) -> Float[Tensor, "3 size size"]:
    """One texture that repeats without a seam: clouds, patches, stripes, or rows of small marks."""
    size = _TEXTURE_SIZE

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    def noise(cells: int) -> Tensor:
        grid = torch.rand(1, 3, cells, cells, generator=generator) * 2 - 1
        # The middle third of three repeats has no border effects, and so no seam.
        whole_grid = F.interpolate(grid.repeat(1, 1, 3, 3), size=3 * size, mode="bicubic", align_corners=False)
        return whole_grid[0, :, size : 2 * size, size : 2 * size]

    roughness = float(torch.rand((), generator=generator)) * 0.7 + 0.3
    clouds = sum((noise(2**octave) * roughness ** (octave - 1) for octave in range(1, 8)), torch.zeros(3, size, size))
    clouds = clouds / clouds.std()
    if kind == 1:
        clouds = (clouds[:1] > 0).float() * 2 - 1 + 0.2 * clouds
    elif kind == 2:
        periods = [2 ** number(1, 6) for _ in range(2)]
        y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
        waves = torch.sin(2 * math.pi * x * periods[0] / size) + torch.sin(2 * math.pi * y * periods[1] / size)
        clouds = waves.expand(3, -1, -1) * 0.6 + 0.3 * clouds
    elif kind == 3:
        line, letter = 2 ** number(2, 5), 2 ** number(1, 4)
        marks = (torch.rand(size // line, size // letter, generator=generator) > 0.45).float()
        marks = marks.repeat_interleave(line, 0).repeat_interleave(letter, 1)
        gaps = (torch.arange(size) % line < max(1, line * 2 // 3)).float()[:, None]
        clouds = (marks * gaps * 2 - 1).expand(3, -1, -1) + 0.15 * clouds
    return (clouds * 0.6).clamp(-1, 1)

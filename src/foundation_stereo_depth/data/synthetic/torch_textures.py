"""Textures for synthetic scenes: clouds, patches, stripes, print, leaves, a few photographs, and patchwork of those."""

import functools
import math
from collections.abc import Sequence

import numpy as np
import skimage.data
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

TEXTURE_SIZE = 128
"""Texels per side. A lookup beyond a side is mirrored back, so no texture has a seam."""
TEXTURES = 120

_PHOTOGRAPHS = (
    "astronaut",
    "brick",
    "camera",
    "chelsea",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "moon",
    "page",
    "rocket",
)
_LEAVES = 220
_PATCHWORK = 40  # of all textures, the last ones: pieces of the others
_SEEDS = 12
_GRAIN = (0.02, 0.08)  # its deviation, of 0.5 for all that a texture shows


@functools.cache
def texture_atlas(device: torch.device) -> Float[Tensor, "1 3 rows columns"]:
    """All textures one below the other, about -1..1, each of mean 0; the same whatever the threads of PyTorch."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several add up means in another order
    try:
        return _create_atlas().to(device)
    finally:
        torch.set_num_threads(threads)


def _create_atlas() -> Float[Tensor, "1 3 rows columns"]:
    generator = torch.Generator().manual_seed(0)
    photographs = [torch.from_numpy(np.asarray(getattr(skimage.data, name)())) for name in _PHOTOGRAPHS]
    textures = []
    for number in range(TEXTURES - _PATCHWORK):
        kind = _KINDS[number % len(_KINDS)]
        image = photographs[number % len(photographs)]
        texture = _crop(image, generator) if kind is None else kind(generator)
        textures.append(_evened(texture))
    textures += [_evened(_patchwork(textures, generator)) for _ in range(_PATCHWORK)]
    grained = [texture + _grain(generator) for texture in textures]
    return torch.cat(grained, dim=1)[None].contiguous()


def look_up(
    atlas: Float[Tensor, "1 3 rows columns"], texel_x: Tensor, texel_y: Tensor, first_row: Tensor
) -> Float[Tensor, "3 N"]:
    """The textures at the given places, all [N]: mirrored beyond their sides, linear between texels."""
    last = TEXTURE_SIZE - 1
    x = last - (texel_x % (2 * last) - last).abs()
    y = last - (texel_y % (2 * last) - last).abs() + first_row
    grid = torch.stack([x / last, y / (atlas.shape[2] - 1)], dim=-1) * 2 - 1
    return F.grid_sample(atlas, grid[None, None], mode="bilinear", align_corners=True)[0, :, 0]


def _evened(texture: Float[Tensor, "3 size size"]) -> Float[Tensor, "3 size size"]:
    """Of mean 0 and one deviation, within -1..1."""
    texture = texture - texture.mean()
    return (texture / texture.std().clamp(min=1e-3) * 0.5).clamp(-1, 1)


def _number(generator: torch.Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high, (), generator=generator))


def _clouds(generator: torch.Generator) -> Float[Tensor, "3 size size"]:
    """Noise whose octaves fall off as photographs' do, by a drawn factor each."""
    roughness = float(torch.rand((), generator=generator)) * 0.7 + 0.3
    total = torch.zeros(3, TEXTURE_SIZE, TEXTURE_SIZE)
    for octave in range(1, 8):
        cells = torch.rand(1, 3, 2**octave, 2**octave, generator=generator) * 2 - 1
        fine = F.interpolate(cells, size=(TEXTURE_SIZE, TEXTURE_SIZE), mode="bicubic", align_corners=False)[0]
        total += fine * roughness ** (octave - 1)
    return total / total.std()


def _grain(generator: torch.Generator) -> Float[Tensor, "3 size size"]:
    """What no real surface is without, however plain: a little of the finest, which a matcher holds on to in noise."""
    size = (TEXTURE_SIZE, TEXTURE_SIZE)
    fine = 0.6 * torch.randn(1, *size, generator=generator) + 0.2 * torch.randn(3, *size, generator=generator)
    for texels in (2, 4):
        cells = torch.randn(1, 1, TEXTURE_SIZE // texels, TEXTURE_SIZE // texels, generator=generator)
        fine = fine + F.interpolate(cells, size=size, mode="bicubic", align_corners=False)[0]
    least, most = (math.log(strength) for strength in _GRAIN)
    strength = math.exp(least + (most - least) * float(torch.rand((), generator=generator)))
    return fine / fine.std() * strength


def _patches(generator: torch.Generator) -> Float[Tensor, "3 size size"]:
    clouds = _clouds(generator)
    return (clouds[:1] > 0).float() * 2 - 1 + 0.2 * clouds


def _stripes(generator: torch.Generator) -> Float[Tensor, "3 size size"]:
    """A regular pattern, which matches itself a period away."""
    y, x = torch.meshgrid(torch.arange(TEXTURE_SIZE), torch.arange(TEXTURE_SIZE), indexing="ij")
    periods_x, periods_y = (2 ** _number(generator, 1, 6) for _ in range(2))
    waves = torch.sin(2 * math.pi * x * periods_x / TEXTURE_SIZE) + torch.sin(
        2 * math.pi * y * periods_y / TEXTURE_SIZE
    )
    return waves * 0.6 + 0.3 * _clouds(generator)


def _print(generator: torch.Generator) -> Float[Tensor, "3 size size"]:
    """Rows of small marks, as text has."""
    line, letter = 2 ** _number(generator, 2, 5), 2 ** _number(generator, 1, 4)
    marks = (torch.rand(TEXTURE_SIZE // line, TEXTURE_SIZE // letter, generator=generator) > 0.45).float()
    marks = marks.repeat_interleave(line, 0).repeat_interleave(letter, 1)
    gaps = (torch.arange(TEXTURE_SIZE) % line < max(1, line * 2 // 3)).float()[:, None]
    return marks * gaps * 2 - 1 + 0.15 * _clouds(generator)


def _leaves(generator: torch.Generator) -> Float[Tensor, "3 size size"]:
    """Discs one over the other, sizes by a power law: the edges and flats of photographs.

    Lee, Mumford and Huang, "Occlusion models for natural images", IJCV 2001: a radius r has density r^-3.
    """
    y, x = torch.meshgrid(torch.arange(TEXTURE_SIZE), torch.arange(TEXTURE_SIZE), indexing="ij")
    image = torch.zeros(3, TEXTURE_SIZE, TEXTURE_SIZE)
    numbers = torch.rand(_LEAVES, 6, generator=generator).tolist()
    for share, at_x, at_y, *colour in numbers:
        radius = 3.0 / math.sqrt(share + (3.0 / TEXTURE_SIZE) ** 2)
        inside = (x - at_x * TEXTURE_SIZE) ** 2 + (y - at_y * TEXTURE_SIZE) ** 2 < radius**2
        grey = (colour[0] + colour[1] + colour[2]) / 3
        shade = torch.tensor([0.7 * grey + 0.3 * channel for channel in colour])
        image = torch.where(inside, shade[:, None, None], image)
    return image + 0.02 * _clouds(generator)


def _patchwork(textures: Sequence[Tensor], generator: torch.Generator) -> Float[Tensor, "3 size size"]:
    """Regions of several textures, each tinted and as strong as it is drawn: edges of colour within one surface."""
    y, x = torch.meshgrid(torch.arange(TEXTURE_SIZE), torch.arange(TEXTURE_SIZE), indexing="ij")
    seeds = torch.rand(_SEEDS, 2, generator=generator) * TEXTURE_SIZE
    nearest = ((x[..., None] - seeds[:, 0]) ** 2 + (y[..., None] - seeds[:, 1]) ** 2).argmin(dim=-1)
    image = torch.zeros(3, TEXTURE_SIZE, TEXTURE_SIZE)
    for seed in range(_SEEDS):
        texture = textures[_number(generator, 0, len(textures))]
        strength, *tint = torch.rand(4, generator=generator).tolist()
        grey = sum(tint) / 3
        shade = torch.tensor([0.7 * grey + 0.3 * channel - 0.5 for channel in tint])[:, None, None]
        image = torch.where(nearest == seed, 2 * shade + strength * texture, image)
    return image


def _crop(photograph: Tensor, generator: torch.Generator) -> Float[Tensor, "3 size size"]:
    """A square of a photograph, shrunk by up to two."""
    colours = photograph if photograph.ndim == 3 else photograph[..., None].expand(-1, -1, 3)
    side = min(_number(generator, TEXTURE_SIZE, 2 * TEXTURE_SIZE), *colours.shape[:2])
    top, left = (_number(generator, 0, size - side + 1) for size in colours.shape[:2])
    square = colours[top : top + side, left : left + side].permute(2, 0, 1).float()[None]
    return F.interpolate(square, size=(TEXTURE_SIZE, TEXTURE_SIZE), mode="bilinear", antialias=True)[0]


_KINDS = (_clouds, None, _leaves, _print, None, _stripes, _leaves, _patches, None, _leaves)  # None: a photograph

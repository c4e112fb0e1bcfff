"""Textures for compiled loops: those of `data/textures.py`, some more for rooms, with smaller levels of each.

A texel is 32 bits, 11 for red, 11 for green, 10 for blue, so that one load brings all three.
"""

import functools
import math

import numpy as np
import torch
from jaxtyping import UInt32
from torch import Tensor
from torch.nn import functional as F

from foundation_stereo_depth.data.synthetic.torch_textures import TEXTURE_SIZE, TEXTURES, texture_atlas

LEVELS = 6
"""128, 64, ..., 4 texels a side."""
LEVEL_STARTS = tuple(sum((TEXTURE_SIZE >> j) ** 2 for j in range(level)) for level in range(LEVELS + 1))
TEXELS = LEVEL_STARTS[-1]
"""Texels of one texture, all levels."""
REACH = 1.4
"""Texture values lie in -REACH..REACH."""
RED_GREEN_STEPS, BLUE_STEPS = 2**11 - 1, 2**10 - 1

ROOM_TEXTURES = 40
"""Surfaces of rooms, after the textures of `data/textures.py`: wood, cloth, carpet, plaster, stone."""
PLASTER, WOOD, CLOTH, STONE = (TEXTURES + 10 * kind for kind in range(4))
"""Number of the first texture of ten of a kind."""


@functools.cache
def packed_textures() -> UInt32[np.ndarray, " texels"]:
    """Return all textures, each with its levels from large to small."""
    atlas = texture_atlas(torch.device("cpu"))[0].unflatten(1, (TEXTURES, TEXTURE_SIZE)).transpose(0, 1)
    generator = torch.Generator().manual_seed(1)
    kinds = (_plaster, _wood, _cloth, _stone)
    room = [_evened(kinds[number // 10](generator)) for number in range(ROOM_TEXTURES)]
    level = torch.cat([atlas, torch.stack(room)])
    levels = []
    for _ in range(LEVELS):
        levels.append(_packed(level).reshape(len(level), -1))
        level = F.avg_pool2d(level, 2)
    # A lookup reads the texel to the right and below, also where they have no weight.
    return np.append(np.concatenate(levels, axis=1), np.zeros(TEXTURE_SIZE + 1, np.uint32))


def _packed(values: Tensor) -> UInt32[np.ndarray, "n size size"]:
    share = ((values.clamp(-REACH, REACH) + REACH) / (2 * REACH)).numpy().astype(np.float64)
    red, green = (np.rint(share[:, i] * RED_GREEN_STEPS).astype(np.uint32) for i in (0, 1))
    blue = np.rint(share[:, 2] * BLUE_STEPS).astype(np.uint32)
    return red | (green << 11) | (blue << 22)


def _evened(texture: Tensor) -> Tensor:
    texture = texture - texture.mean()
    return (texture / texture.std().clamp(min=1e-3) * 0.4).clamp(-1.2, 1.2)


def _noise(generator: torch.Generator, rows: int, columns: int, channels: int = 1) -> Tensor:
    cells = torch.randn(1, channels, rows, columns, generator=generator)
    return F.interpolate(cells, size=(TEXTURE_SIZE, TEXTURE_SIZE), mode="bicubic", align_corners=False)[0]


def _plaster(generator: torch.Generator) -> Tensor:
    """Stains of half a metre and grains of a texel."""
    total = torch.zeros(3, TEXTURE_SIZE, TEXTURE_SIZE)
    for cells in (3, 8, 20, 64, 128):
        total += _noise(generator, cells, cells) * float(torch.rand((), generator=generator))
    return total.expand(3, -1, -1) + 0.1 * _noise(generator, 4, 4, 3)


def _wood(generator: torch.Generator) -> Tensor:
    """Fibres along x, and rings that drift."""
    y = torch.linspace(0, 1, TEXTURE_SIZE)[:, None]
    rings = torch.sin(
        2 * math.pi * (y * float(3 + 9 * torch.rand((), generator=generator)) + 0.6 * _noise(generator, 5, 3))
    )
    fibres = _noise(generator, 100, 6) + 0.6 * _noise(generator, 128, 14) + 0.7 * _noise(generator, 30, 3)
    tint = torch.tensor([1.0, 0.9, 0.7])[:, None, None]
    return (0.6 * rings + fibres) * tint


def _cloth(generator: torch.Generator) -> Tensor:
    """Threads across and down, unevenly thick."""
    y, x = torch.meshgrid(torch.arange(TEXTURE_SIZE), torch.arange(TEXTURE_SIZE), indexing="ij")
    often = 2 ** int(torch.randint(4, 6, (), generator=generator))
    weave = torch.sin(2 * math.pi * often * x / TEXTURE_SIZE) * torch.sin(2 * math.pi * often * y / TEXTURE_SIZE)
    return weave[None] + 0.5 * _noise(generator, 128, 128, 3) + 0.8 * _noise(generator, 24, 24)


def _stone(generator: torch.Generator) -> Tensor:
    """Veins where noise passes zero, and clouds."""
    clouds = sum(_noise(generator, 2**n, 2**n) / 1.6**n for n in range(1, 7))
    veins = 1 / (1 + (12 * clouds) ** 2)
    return clouds + float(torch.rand((), generator=generator)) * 2 * veins + 0.2 * _noise(generator, 128, 128, 3)

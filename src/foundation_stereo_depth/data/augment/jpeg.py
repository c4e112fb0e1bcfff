"""What JPEG does to images, as tensor arithmetic: the same on every device, for a whole batch at once.

The lossy part of ITU-R T.81 alone: to luminance and colour differences, colour at half size, 8x8 cosine transforms,
rounding to multiples of a table. The lossless part would change nothing.
"""

import functools
import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

_BLOCK_PX = 8

# ITU-R T.81, tables K.1 and K.2, a row of 8 each line: the steps of luminance and of colour at quality 50.
_LUMINANCE = """
    16 11 10 16 24 40 51 61
    12 12 14 19 26 58 60 55
    14 13 16 24 40 57 69 56
    14 17 22 29 51 87 80 62
    18 22 37 56 68 109 103 77
    24 35 55 64 81 104 113 92
    49 64 78 87 103 121 120 101
    72 92 95 98 112 100 103 99
"""
_COLOUR = """
    17 18 24 47 99 99 99 99
    18 21 26 66 99 99 99 99
    24 26 56 99 99 99 99 99
    47 66 99 99 99 99 99 99
    99 99 99 99 99 99 99 99
    99 99 99 99 99 99 99 99
    99 99 99 99 99 99 99 99
    99 99 99 99 99 99 99 99
"""
# ITU-T T.871 (JFIF), section 7: rows give Y, Cb and Cr from R, G and B, the last two about 0.
_FROM_RGB = (
    (0.299, 0.587, 0.114),
    (-0.299 / 1.772, -0.587 / 1.772, 0.5),
    (0.5, -0.587 / 1.402, -0.114 / 1.402),
)


def compressed(images: Float[Tensor, "N 3 H W"], quality: Float[Tensor, " N"]) -> Float[Tensor, "N 3 H W"]:
    """Return the images, RGB of 0..1, as they come back from JPEG files with colour at half size.

    Args:
        images: RGB, 0..1.
        quality: of each, 1 (worst) to 100, by the scale of the Independent JPEG OptionGroup's library.
    """
    height, width = images.shape[2:]
    # Whole blocks at half size too; beyond the image its border is repeated.
    spare = (-width % (2 * _BLOCK_PX), -height % (2 * _BLOCK_PX))
    whole = F.pad(images * 255, (0, spare[0], 0, spare[1]), mode="replicate")
    from_rgb = torch.tensor(_FROM_RGB, device=images.device)
    planes = torch.einsum("pc,nchw->nphw", from_rgb, whole)
    # 50 keeps the tables, 100 makes every step 1, below 50 they grow without bound.
    scale = torch.where(quality < 50, 50 / quality, 2 - quality / 50)
    luminance = _rounded(planes[:, :1] - 128, scale, _LUMINANCE) + 128
    colour = _rounded(F.avg_pool2d(planes[:, 1:], 2), scale, _COLOUR)
    planes = torch.cat([luminance, F.interpolate(colour, scale_factor=2.0, mode="bilinear")], dim=1)
    rgb = torch.einsum("cp,nphw->nchw", torch.linalg.inv(from_rgb.cpu()).to(images.device), planes)
    return (rgb[:, :, :height, :width] / 255).clamp(0, 1)


def _rounded(planes: Float[Tensor, "N P H W"], scale: Float[Tensor, " N"], table: str) -> Float[Tensor, "N P H W"]:
    """Return the planes with the cosine coefficients of each block rounded to multiples of the scaled table."""
    steps = torch.tensor([float(step) for step in table.split()], device=planes.device)
    steps = (steps * scale[:, None]).round().clamp(1, 255).repeat_interleave(planes.shape[1], dim=0)[..., None, None]
    waves = _waves(planes.device)
    blocks = F.conv2d(planes.flatten(0, 1)[:, None], waves, stride=_BLOCK_PX)
    # The waves are orthonormal, so their transpose is their inverse.
    back = F.conv_transpose2d((blocks / steps).round() * steps, waves, stride=_BLOCK_PX)
    return back.view(planes.shape)


@functools.cache
def _waves(device: torch.device) -> Float[Tensor, "64 1 8 8"]:
    """Return the cosine waves of a block, row frequency first, each of length 1 (ITU-R T.81, A.3.3)."""
    place = torch.arange(_BLOCK_PX) + 0.5
    wave = torch.cos(torch.arange(_BLOCK_PX)[:, None] * place * (math.pi / _BLOCK_PX))
    wave /= wave.norm(dim=1, keepdim=True)
    return torch.einsum("vy,ux->vuyx", wave, wave).reshape(-1, 1, _BLOCK_PX, _BLOCK_PX).to(device)

"""What the surfaces of made-up scenes look like: their paint, and how they stand to the light."""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from foundation_stereo_depth.data.draws import Keys, chance, uniform, whole
from foundation_stereo_depth.data.textures import TEXTURE_SIZE, TEXTURES, look_up, texture_atlas

_DONORS = 6  # so many first surfaces lend their paint to others
_PARTS = (4, 2, 1, 3, 3, 2, 1, 1, 1, 4, 1)


def draw_surfaces(
    keys: Keys, half_size_px: Float[Tensor, "B n"], cluster: Int64[Tensor, "B n"]
) -> Float[Tensor, "B n 18"]:
    """Texture placement (2x2 matrix, offset, first row in the atlas), colour, contrast, light.

    Of light: its slope across x and y; how much is lost towards the outline; where the rim begins, and its light.

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
    contrast = uniform(keys, "contrast", n, 1, low=0.2, high=0.6) * torch.where(plain, 0.35, 1.0)
    contrast = contrast * uniform(keys, "contrast channels", n, 3, low=0.7, high=1.0)
    shading = uniform(keys, "shading", n, 2, low=-0.35, high=0.35) / half_size_px[..., None]
    placement = torch.stack([cos, -sin, sin, cos], -1)
    paint = torch.cat([placement, offset, first_row[..., None], colour, contrast], dim=-1)
    # Some are painted as one of the first few is, so that edges of depth need not show; each stands at its own place.
    alike = uniform(keys, "alike", n) < torch.where(cluster > 0, 0.7, 0.3)
    donor = torch.where(cluster > 0, cluster, whole(keys, "alike to", n, below=_DONORS))
    borrowed = paint.gather(1, donor[..., None].expand(-1, -1, paint.shape[-1]))
    # What is round turns away from the light at its outline, and a quarter have a rim of another shade: edges of colour
    # that are no edges of depth, right beside some that are.
    turning = chance(keys, "turning", n, probability=0.5) * uniform(keys, "turned", n, high=0.6)
    rimmed = chance(keys, "rimmed", n, probability=0.25)
    rim_from = torch.where(rimmed, uniform(keys, "rim from", n, low=0.7, high=0.95), math.inf)
    rim_light = uniform(keys, "rim light", n, low=0.4, high=1.6)
    light = torch.cat([shading, torch.stack([turning, rim_from, rim_light], dim=-1)], dim=-1)
    return torch.cat([torch.where(alike[..., None], borrowed, paint), light], dim=-1)


def look_of_surfaces(
    surface: Float[Tensor, "23 N"], u: Float[Tensor, " N"], v: Float[Tensor, " N"]
) -> tuple[Float[Tensor, "3 N"], Float[Tensor, " N"]]:
    """Paint, and the light that falls on it, at so many places, px from the centres of their surfaces.

    Args:
        surface: of each place: what `draw_surfaces` gives, the axes of the outline (2x2 matrix, 1/px), its roundness.
        u: to the right.
        v: down.
    """
    placement, offset, first_row, colour, contrast, slope, turning, rim_from, rim_light, axes, roundness = (
        surface.split(_PARTS)
    )
    texel_x = placement[0] * u + placement[1] * v + offset[0]
    texel_y = placement[2] * u + placement[3] * v + offset[1]
    paint = colour + contrast * look_up(texture_atlas(u.device), texel_x, texel_y, first_row[0])
    p, q = axes[0] * u + axes[1] * v, axes[2] * u + axes[3] * v
    outline = torch.lerp(torch.maximum(p.abs(), q.abs()), p * p + q * q, roundness[0])  # 1 where the surface ends
    light = (1 + slope[0] * u + slope[1] * v).clamp(0.4, 1.6) * (1 - turning[0] * outline.clamp(max=1).square())
    return paint, torch.where(outline > rim_from[0], rim_light[0] * light, light)

"""Light in synthetic scenes: shadows, which lie on surfaces, and specular highlights, which differ between views."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from foundation_stereo_depth.data.random import Keys, chance, uniform

SHADOWS, HIGHLIGHTS = 2, 2
"""Per scene, of which each is there or not."""


def draw_shadows(keys: Keys, height: int, width: int) -> Float[Tensor, "B n 7"]:
    """What two soft half planes have in common is in shadow."""
    n = SHADOWS
    there = chance(keys, "shadow", n, 1, probability=0.5)
    dark = uniform(keys, "shadow dark", n, 1, low=0.2, high=0.7) * there
    softness_px = uniform(keys, "shadow softness", n, 1, low=math.log(0.5), high=math.log(0.06 * width)).exp()
    at_x, at_y = uniform(keys, "shadow x", n, 1) * width, uniform(keys, "shadow y", n, 1) * height
    edges = []
    for edge in "ab":
        angle = uniform(keys, f"shadow edge {edge}", n, 1, high=2 * math.pi)
        slope_x, slope_y = angle.cos() / softness_px, angle.sin() / softness_px
        edges += [slope_x, slope_y, -(slope_x * at_x + slope_y * at_y)]
    return torch.cat([dark, *edges], dim=-1)


def draw_highlights(keys: Keys, height: int, width: int) -> Float[Tensor, "B n 6"]:
    """Reflections of lights: each view has them at another place of the surface, or only one view has them."""
    n = HIGHLIGHTS
    there = chance(keys, "glow", n, 1, probability=0.4)
    reach = (uniform(keys, "glow reach", n, 2, low=math.log(0.01), high=math.log(0.12)).exp() * width).reciprocal()
    at_x, at_y = uniform(keys, "glow x", n, 1) * width, uniform(keys, "glow y", n, 1) * height
    disparity_px = uniform(keys, "glow disparity", n, 1, low=-0.05, high=0.3) * width
    return torch.cat([uniform(keys, "glow bright", n, 1, high=0.6) * there, at_x, at_y, reach, disparity_px], dim=-1)


def light_left_by_shadows(shadows: Float[Tensor, "B n 7"], x: Tensor, y: Tensor) -> Float[Tensor, "B h w"]:
    """The share of light that reaches each place of the left view, wherever it is looked at from."""
    left = torch.ones((), device=shadows.device)
    for shadow in shadows[..., None, None].unbind(1):
        dark, ax, ay, a, bx, by, b = shadow.unbind(1)
        left = left * (1 - dark * torch.sigmoid(ax * x + ay * y + a) * torch.sigmoid(bx * x + by * y + b))
    return left


def highlight_rgb(
    highlights: Float[Tensor, "B n 6"], height: int, width: int, *, from_right: bool
) -> Float[Tensor, "B 1 H W"]:
    """What shines on top of everything."""
    x = torch.arange(width, device=highlights.device)
    y = torch.arange(height, device=highlights.device)[:, None]
    brightness, at_x, at_y, per_px_x, per_px_y, disparity_px = highlights[..., None, None].unbind(2)
    if from_right:
        at_x = at_x - disparity_px
    return (brightness * torch.exp(-(((x - at_x) * per_px_x) ** 2) - ((y - at_y) * per_px_y) ** 2)).sum(1, keepdim=True)

"""Light in made-up scenes: shadows, which lie on surfaces, and glows, which each eye sees at a place of its own.

Some shadows lie anywhere; others lie behind what stands before a surface, where edges of depth are.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from foundation_stereo_depth.data.draws import Keys, chance, uniform

SHADOWS, GLOWS = 2, 2
"""Per scene, of which each is there or not."""
_SMOOTHER = (2, 12)  # px: shade with sharp edges, and with soft ones
_FULL_SHADE = 3.0  # is reached where the surface is nearer by so much less than all of what shades it


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


def draw_glows(keys: Keys, height: int, width: int) -> Float[Tensor, "B n 6"]:
    """Reflections of lights: each eye sees them on its own place on the surface, or one eye alone."""
    n = GLOWS
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


def draw_gloom(keys: Keys, width: int) -> Float[Tensor, "B 5"]:
    """How dark shade behind the near is, how soft, where it falls, px, in x and y; how much darker the far is.

    That is: light is the disparity, over the largest, to this power.
    """
    shaded = chance(keys, "shade", 1, probability=0.7)
    dark = uniform(keys, "shade dark", 1, high=0.7) * shaded
    place_px = uniform(keys, "shade place", 2, low=-0.03, high=0.03) * width
    return torch.cat([dark, uniform(keys, "shade softness", 1), place_px, uniform(keys, "gloom", 1, high=0.35)], dim=-1)


def light_left_by_the_near(
    gloom: Float[Tensor, "B 5"],
    seen_by_left_px: Float[Tensor, "B H W"],
    disparity_px: Float[Tensor, "B h w"],
    x_left: Tensor,
    y: Tensor,
) -> Float[Tensor, "B h w"]:
    """The share of light that reaches surfaces behind others, and far ones.

    Args:
        gloom: see `draw_gloom`.
        seen_by_left_px: disparity of the left view.
        disparity_px: of the surfaces that an eye sees.
        x_left: where the left view has, or would have, them, px.
        y: their rows, px.
    """
    height, width = seen_by_left_px.shape[1:]
    dark, softness, place_x, place_y, power = gloom[..., None, None].unbind(1)
    sharp, soft = (
        F.interpolate(F.avg_pool2d(seen_by_left_px[:, None], of_px, ceil_mode=True), (height, width), mode="bilinear")
        for of_px in _SMOOTHER
    )
    around_px = torch.lerp(sharp, soft, softness[:, None])
    across, down = (x_left + place_x + 0.5) * (2 / width) - 1, (y + place_y + 0.5) * (2 / height) - 1
    at = torch.stack([across.expand_as(disparity_px), down.expand_as(disparity_px)], dim=-1)
    before_px = F.grid_sample(around_px, at, padding_mode="border", align_corners=False)[:, 0]
    shade = ((before_px - disparity_px) * (_FULL_SHADE / before_px)).clamp(0, 1)
    nearest_px = seen_by_left_px.amax(dim=(1, 2), keepdim=True)
    return (1 - dark * shade) * (disparity_px / nearest_px).clamp(0.02, 1).pow(power)


def glowing(glows: Float[Tensor, "B n 6"], height: int, width: int, *, from_right: bool) -> Float[Tensor, "B 1 H W"]:
    """What shines on top of everything."""
    x = torch.arange(width, device=glows.device)
    y = torch.arange(height, device=glows.device)[:, None]
    bright, at_x, at_y, per_px_x, per_px_y, disparity_px = glows[..., None, None].unbind(2)
    if from_right:
        at_x = at_x - disparity_px
    return (bright * torch.exp(-(((x - at_x) * per_px_x) ** 2) - ((y - at_y) * per_px_y) ** 2)).sum(1, keepdim=True)

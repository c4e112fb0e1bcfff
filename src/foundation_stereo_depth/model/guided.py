"""A network that refines one semi-global match.

It mixes four values for each pixel: the match, its local minimum and maximum (background and foreground of an edge),
and one of its own for whole regions.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from foundation_stereo_depth.model.refinement import CONTRAST, STEP_PX, RefinementNetwork
from foundation_stereo_depth.stereo.prior import PRIOR_PLANES

_DISPARITY_PX = 32.0  # scales disparities to about 1


class GuidedNetwork(RefinementNetwork):
    """Takes the pair and `stereo.prior.prior_planes` of it."""

    name = "guided"
    prior_planes = PRIOR_PLANES
    input_planes = 13
    corrections = 1
    initial_logits = (1.0, 0.0, 0.0, 0.5)

    def unet_input(self, pair: Float[Tensor, "B 6 H W"], prior: Float[Tensor, "B 10 H W"]) -> Float[Tensor, "B 13 H W"]:
        """Return the input of the U-Net, each plane about 1."""
        return guided_input(pair, prior)

    def mix(
        self,
        prior: Float[Tensor, "B 10 H W"],
        corrections_px: Float[Tensor, "B 1 h w"],
        weights: tuple[Float[Tensor, "B 4 h w"], ...],
    ) -> tuple[Float[Tensor, "B 4 h w"], Float[Tensor, "B 1 h w"]]:
        """Return the weighted mean of the candidates, and the value of the region."""
        prior_px, local_min, local_max = F.pixel_unshuffle(prior.split((3, 7), dim=1)[0], 2).split(4, dim=1)
        region_px = prior_px.mean(dim=1, keepdim=True) + corrections_px
        # What only one view shows is background: no region is nearer than all that was matched around it.
        background_px = torch.minimum(region_px, (prior_px + local_max).amax(dim=1, keepdim=True))
        mixed_px = (
            (1 - weights[3]) * prior_px + weights[1] * local_min + weights[2] * local_max + weights[3] * background_px
        )
        return mixed_px, region_px


def guided_input(pair: Float[Tensor, "B 6 H W"], prior: Float[Tensor, "B 10 H W"]) -> Float[Tensor, "B 13 H W"]:
    """Return the planes that a U-Net sees: the left view, since the prior compares it with the right, and the prior."""
    left, _ = pair.split(3, dim=1)
    prior_px, around, matched, residual, relief = prior.split((1, 2, 1, 5, 1), dim=1)
    return torch.cat(
        [
            (left - 0.5) * CONTRAST,
            residual * CONTRAST,
            (relief / (STEP_PX / 2)).clamp(-4, 4),
            around / STEP_PX,
            prior_px / _DISPARITY_PX,
            matched * 2 - 1,
        ],
        dim=1,
    )

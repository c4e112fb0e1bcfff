"""A network that chooses between two semi-global matches, or refines a coarse prediction, and corrects its choice.

The first match has small smoothness penalties: it keeps the edges of textured surfaces, and is random on textureless
and on repetitive ones. The smooth match has large penalties and rounds off edges. A third disparity is interpolated
from where both agree, up to edges of the image. The network mixes seven candidates for each pixel: the first match, its
local minimum and maximum (background and foreground of an edge), the smooth match, the interpolated disparity, and two
values of its own, relative to the first match and to the interpolated disparity.

So it predicts at the smallest size. At larger ones the prediction of half the size takes the place of the smooth match
(`inference.coarse_to_fine`).

The layers are those of the guided network, whose weights can therefore start this one: `fused_from_guided`.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from foundation_stereo_depth.model.guided import guided_input
from foundation_stereo_depth.model.refinement import CONTRAST, STEP_PX, RefinementNetwork
from foundation_stereo_depth.stereo.prior import PRIOR_PLANES, TWO_PRIOR_PLANES

_LARGEST_STEPS = 4.0
_ADDED_LOGIT = -1.0  # of a candidate that the guided network does not have
_TRUSTED_SUPPORT = 0.6


class FusedNetwork(RefinementNetwork):
    """Takes the pair and its `stereo.prior.two_prior_planes`."""

    name = "fused"
    prior_planes = TWO_PRIOR_PLANES
    input_planes = 19
    corrections = 2
    initial_logits = (1.0, 0.0, 0.0, 0.5, 0.0, 0.0, -0.5)

    def unet_input(self, pair: Float[Tensor, "B 6 H W"], prior: Float[Tensor, "B 16 H W"]) -> Float[Tensor, "B 19 H W"]:
        """Return the input of the U-Net, each plane about 1: the guided network's, and the two other disparities."""
        first, smooth, smooth_valid, smooth_residual, interpolated, support, interpolated_residual = prior.split(
            (PRIOR_PLANES, 1, 1, 1, 1, 1, 1), dim=1
        )
        return torch.cat(
            [
                guided_input(pair, first),
                (smooth / STEP_PX).clamp(-_LARGEST_STEPS, _LARGEST_STEPS),
                smooth_valid * 2 - 1,
                smooth_residual * CONTRAST,
                (interpolated / STEP_PX).clamp(-_LARGEST_STEPS, _LARGEST_STEPS),
                support * 2 - 1,
                interpolated_residual * CONTRAST,
            ],
            dim=1,
        )

    def mix(
        self,
        prior: Float[Tensor, "B 16 H W"],
        corrections_px: Float[Tensor, "B 2 h w"],
        weights: tuple[Float[Tensor, "B 4 h w"], ...],
    ) -> tuple[Float[Tensor, "B 4 h w"], Float[Tensor, "B 2 h w"]]:
        """Return the weighted mean of the candidates, and the network's own two disparities."""
        first, _, smooth, _, interpolated_and_support, _ = prior.split((3, 7, 1, 2, 2, 1), dim=1)
        candidates = torch.cat([first, smooth, interpolated_and_support], dim=1)
        first_px, local_min, local_max, smooth, interpolated, support = F.pixel_unshuffle(candidates, 2).split(4, dim=1)
        region_px = first_px.mean(dim=1, keepdim=True) + corrections_px[:, :1]
        extended_px = (first_px + interpolated).mean(dim=1, keepdim=True) + corrections_px[:, 1:]
        # What only one view shows is background: the region's value is no nearer than the local maximum of the first
        # match, unless the other two disparities are nearer and have support.
        supported = torch.where(support > _TRUSTED_SUPPORT, torch.maximum(smooth, interpolated), local_max)
        nearest_px = (first_px + torch.maximum(local_max, supported)).amax(dim=1, keepdim=True)
        region = torch.minimum(region_px, nearest_px) - first_px
        # Relative to the first match, whose own weight therefore does not occur.
        mixed_px = first_px + (
            weights[1] * local_min
            + weights[2] * local_max
            + weights[3] * region
            + weights[4] * smooth
            + weights[5] * interpolated
            + weights[6] * (extended_px - first_px)
        )
        return mixed_px, torch.cat([region_px, extended_px], dim=1)


def fused_from_guided(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights of a `FusedNetwork` that predicts about what the `GuidedNetwork` of the given weights does."""
    fused = dict(weights)
    stem, last_weight, last_bias = "stem.0.0.weight", "head.1.weight", "head.1.bias"
    fused[stem] = F.pad(weights[stem], (0, 0, 0, 0, 0, FusedNetwork.input_planes - weights[stem].shape[1]))
    # Of the guided network: a correction, 4 log-variances, 4 fine corrections, 16 logits.
    for name, initial in ((last_weight, 0.0), (last_bias, _ADDED_LOGIT)):
        correction, others = weights[name][:1], weights[name][1:]
        added = torch.full_like(correction, initial).expand(12, *correction.shape[1:])
        fused[name] = torch.cat([correction, torch.zeros_like(correction), others, added])
    return fused

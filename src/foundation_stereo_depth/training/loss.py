"""The terms of the training loss by name, and the weighted sum that is minimised.

A new term is an entry in `loss_terms` and its weight one in `loss_weights`; it is then logged by training and by
validation as `train/loss_<term>` and `validation/loss_<term>`.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from foundation_stereo_depth.model.prediction import StereoPrediction
from foundation_stereo_depth.options.training import LossOptions
from foundation_stereo_depth.stereo.disparity import valid_mask
from foundation_stereo_depth.uncertainty import DISTRIBUTIONS

_ROBUST_PX = 10.0
_PIXELS_PER_REGION = 4  # pixels of full resolution per pixel of half resolution


class LossSum(NamedTuple):
    """A loss that merges over batches and processes: add the sums, add the counts, then divide.

    Attributes:
        total: sum over valid pixels; 0 where no pixel is valid.
        valid: number of valid pixels of the ground truth, at full resolution.
    """

    total: Float[Tensor, ""]
    valid: Float[Tensor, ""]


def loss_terms(
    prediction: StereoPrediction, true_disparity_px: Float[Tensor, "B 1 H W"], options: LossOptions
) -> dict[str, LossSum]:
    """Return the terms of the loss, unweighted: `nll`, and `region` for a network that returns `region_px`."""
    terms = {"nll": heteroscedastic_loss(prediction, true_disparity_px, options)}
    if prediction.region_px is not None:
        terms["region"] = region_loss(prediction.region_px, true_disparity_px)
    return terms


def loss_weights(options: LossOptions) -> dict[str, float]:
    """Return the weight of every term that `loss_terms` can return."""
    return {"nll": 1.0, "region": options.region_weight}


def weighted_loss(terms: Mapping[str, LossSum], options: LossOptions) -> LossSum:
    """Return the weighted sum of the terms: the loss that is minimised."""
    weights = loss_weights(options)
    total = torch.stack([weights[name] * term.total for name, term in terms.items()]).sum()
    return LossSum(total, terms["nll"].valid)


def heteroscedastic_loss(
    prediction: StereoPrediction, true_disparity_px: Float[Tensor, "B 1 H W"], options: LossOptions
) -> LossSum:
    """Return the negative log-likelihood summed over valid pixels, in nats where beta is 0, in float32.

    Plain likelihood divides the gradient of the disparity by the variance: pixels that are hard at first are given a
    large variance and then learn no more. Each pixel's loss is therefore weighted by its scale to the power beta, held
    constant (Seitzer et al., "On the pitfalls of heteroscedastic uncertainty estimation", ICLR 2022, equation 5; there
    beta counts powers of the variance, here of what divides the error: sigma^2 for a Gaussian, b for a Laplacian).
    """
    valid = valid_mask(true_disparity_px)
    # Where the ground truth is unknown the prediction itself stands in, so that no NaN arises that has to be masked.
    predicted_px = prediction.disparity_px.float()
    error_px = predicted_px - torch.where(valid, true_disparity_px.float(), predicted_px.detach())
    log_scale, nll = DISTRIBUTIONS[options.loss].nll(error_px, prediction.log_variance.float())
    weight = (options.nll_beta * log_scale.detach()).exp()
    total = torch.where(valid, weight * nll, 0.0).sum()
    return LossSum(total, valid.sum().to(torch.float32))


def region_loss(region_px: Float[Tensor, "B n h w"], true_disparity_px: Float[Tensor, "B 1 H W"]) -> LossSum:
    """Return a robust error of n disparities at half resolution, each counted as the four pixels that it stands for.

    It grows like L1 up to some px and like a logarithm beyond, so that occluded regions do not dominate.
    """
    true_px = true_disparity_px[..., ::2, ::2].float()
    valid = valid_mask(true_px)
    error_px = (region_px.float() - torch.where(valid, true_px, 0.0)).abs()
    total = torch.where(valid, _ROBUST_PX * torch.log1p(error_px / _ROBUST_PX), 0.0).sum()
    return LossSum(_PIXELS_PER_REGION * total, valid_mask(true_disparity_px).sum().to(torch.float32))

"""The heteroscedastic loss: how unlikely the truth is under the disparity and the uncertainty that were predicted."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from foundation_stereo_depth.model.prediction import StereoPrediction, TrainingPrediction
from foundation_stereo_depth.options.training import LossOptions
from foundation_stereo_depth.stereo.disparity import valid_mask
from foundation_stereo_depth.uncertainty import DISTRIBUTIONS

_ROBUST_PX = 10.0
_PIXELS_PER_REGION = 4  # a pixel of half resolution stands for so many


class LossSum(NamedTuple):
    """A loss that merges over batches and processes: add the sums, add the counts, then divide.

    Attributes:
        total: sum over valid pixels, nats where beta is 0; 0 where no pixel is valid.
        valid: how many pixels that were.
    """

    total: Float[Tensor, ""]
    valid: Float[Tensor, ""]


def training_loss(
    prediction: StereoPrediction | TrainingPrediction,
    true_disparity_px: Float[Tensor, "B 1 H W"],
    options: LossOptions,
) -> LossSum:
    """The heteroscedastic loss, and for a network that has values of its own for regions their errors."""
    loss = heteroscedastic_loss(prediction, true_disparity_px, options)
    if not isinstance(prediction, TrainingPrediction):
        return loss
    true_px = true_disparity_px[..., ::2, ::2].float()
    valid = valid_mask(true_px)
    error_px = (prediction.region_px.float() - torch.where(valid, true_px, 0.0)).abs()
    # Grows like L1 up to some px and like a logarithm beyond: what one eye alone sees must not drown the rest.
    total = torch.where(valid, _ROBUST_PX * torch.log1p(error_px / _ROBUST_PX), 0.0).sum()
    return LossSum(loss.total + options.region_weight * _PIXELS_PER_REGION * total, loss.valid)


def heteroscedastic_loss(
    prediction: StereoPrediction | TrainingPrediction, true_disparity_px: Float[Tensor, "B 1 H W"], options: LossOptions
) -> LossSum:
    """The summed negative log-likelihood on valid pixels, in float32.

    Plain likelihood divides the gradient of the disparity by the variance: pixels that are hard at first are given a
    large variance and then learn no more. Each pixel's loss is therefore weighted by its scale to the power beta, held
    constant (Seitzer et al., "On the pitfalls of heteroscedastic uncertainty estimation", ICLR 2022, equation 5; there
    beta counts powers of the variance, here of what divides the error: sigma^2 for a Gaussian, b for a Laplacian).
    """
    valid = valid_mask(true_disparity_px)
    # Where the truth is unknown the prediction itself stands in: no NaN is born that a mask would have to hide.
    predicted_px = prediction.disparity_px.float()
    error_px = predicted_px - torch.where(valid, true_disparity_px.float(), predicted_px.detach())
    log_scale, nll = DISTRIBUTIONS[options.loss].nll(error_px, prediction.log_variance.float())
    weight = (options.nll_beta * log_scale.detach()).exp()
    total = torch.where(valid, weight * nll, 0.0).sum()
    return LossSum(total, valid.sum().to(torch.float32))

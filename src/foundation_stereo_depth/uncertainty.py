"""What a standard deviation means: the chance that an error stays small, by the distribution that training assumed."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def probability_within(
    threshold_px: float, sigma_px: Float[Tensor, "*shape"], distribution: str
) -> Float[Tensor, "*shape"]:
    """P(|error| < threshold), 0 to 1, of an error with this standard deviation.

    erf(t / (sigma sqrt 2)) for a Gaussian; 1 - exp(-t / b) with b = sigma / sqrt 2 for a Laplacian, whose variance is
    2 b^2.
    """
    if distribution == "gaussian":
        return torch.erf(threshold_px / (sigma_px * math.sqrt(2)))
    assert distribution == "laplace", distribution
    return -torch.expm1(-threshold_px * math.sqrt(2) / sigma_px)

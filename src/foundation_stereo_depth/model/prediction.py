"""What every network takes and returns."""

from typing import NamedTuple, Protocol

from jaxtyping import Float
from torch import Tensor


class StereoPrediction(NamedTuple):
    """Disparity of the left view and the logarithm of its error's variance, at the full size of the pair.

    Attributes:
        disparity_px: px of this size, at least 0.
        log_variance: natural logarithm of px^2, float32 whatever the network computes in.
        region_px: an auxiliary output of the guided and the fused network, for their loss: the one or two disparities
            that they predict themselves, at half the size (rounded up), in px of the full size. None from others.
    """

    disparity_px: Float[Tensor, "B 1 H W"]
    log_variance: Float[Tensor, "B 1 H W"]
    region_px: Float[Tensor, "B n h w"] | None = None


class StereoNetwork(Protocol):
    """Takes left RGB and right RGB, 0..1, as six channels of any height and width from 32 up.

    One with an attribute `prior_planes` takes a prior of that many planes (`stereo.prior.PRIORS`) as a second input.
    """

    def __call__(self, pair: Float[Tensor, "B 6 H W"], *prior: Float[Tensor, "B planes H W"]) -> StereoPrediction:
        """Return the prediction for a batch of pairs."""
        ...

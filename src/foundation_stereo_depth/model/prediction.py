"""What every network returns, and what it may be asked."""

from typing import NamedTuple, Protocol

from jaxtyping import Float
from torch import Tensor


class StereoPrediction(NamedTuple):
    """Disparity of the left view and the logarithm of its error's variance, at the full size of the pair.

    Attributes:
        disparity_px: px of this size, at least 0.
        log_variance: natural logarithm of px^2, float32 whatever the network computes in.
    """

    disparity_px: Float[Tensor, "B 1 H W"]
    log_variance: Float[Tensor, "B 1 H W"]


class StereoNetwork(Protocol):
    """Takes left RGB and right RGB, 0..1, as six channels of any height and width from 32 up."""

    def __call__(self, pair: Float[Tensor, "B 6 H W"]) -> StereoPrediction:
        """The prediction for a batch of pairs."""
        ...

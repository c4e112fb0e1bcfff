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


class TrainingPrediction(NamedTuple):
    """A prediction with what it was mixed from, which a loss can guide as well.

    Attributes:
        disparity_px, log_variance: as in `StereoPrediction`.
        region_px: the network's own value at half the size (rounded up), in px of the full size.
    """

    disparity_px: Float[Tensor, "B 1 H W"]
    log_variance: Float[Tensor, "B 1 H W"]
    region_px: Float[Tensor, "B 1 h w"]


class StereoNetwork(Protocol):
    """Takes left RGB and right RGB, 0..1, as six channels of any height and width from 32 up.

    One with `wants_prior = True` takes `block_matching.prior_planes` as a second input.
    """

    def __call__(
        self, pair: Float[Tensor, "B 6 H W"], *prior: Float[Tensor, "B 10 H W"]
    ) -> StereoPrediction | TrainingPrediction:
        """The prediction for a batch of pairs."""
        ...

"""Accuracy of disparity: EPE, RMSE, bad-N and D1.

All are sums or counts of whole numbers, so that they merge exactly, in any order, over batches, threads and processes.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from foundation_stereo_depth.stereo.disparity import valid_mask

BAD_THRESHOLDS_PX = (0.5, 1.0, 2.0, 3.0)
_D1_PX, _D1_FRACTION = 3.0, 0.05  # KITTI 2015: wrong if off by more than 3 px and by more than 5 % of the truth
STEPS_PER_PX = 2**20
"""Errors are summed as whole multiples of this fraction of a pixel, so that rounding does not depend on the order."""
_SQUARED_STEPS_PER_PX2 = 2**16
"""The same for squared errors, coarser so that a data set's sum stays below 2^63."""
_LARGEST_PX = 2.0**15
_LARGEST_SQUARED_PX2 = 2.0**24
"""The square of 4096 px. A prediction that is not a number counts as the largest error."""


@dataclass(frozen=True)
class DisparityErrors:
    """Counts over any number of valid pixels, on the device they were counted on.

    Attributes:
        counts: [valid pixels, error in 2^-20 px, squared error in 2^-16 px^2, bad-0.5, bad-1, bad-2, bad-3, D1].
    """

    counts: Int64[Tensor, "8"]

    @classmethod
    def none(cls, device: torch.device) -> "DisparityErrors":
        """Return counts over no pixels."""
        return cls(torch.zeros(4 + len(BAD_THRESHOLDS_PX), dtype=torch.int64, device=device))

    def __add__(self, other: "DisparityErrors") -> "DisparityErrors":
        return DisparityErrors(self.counts + other.counts)

    @property
    def valid(self) -> int:
        """The number of pixels that were counted."""
        return int(self.counts[0])

    def figures(self) -> dict[str, float]:
        """Return EPE and RMSE in px, bad-N and D1 in percent; empty where no pixel was valid."""
        valid, error, squared, *bad = (int(count) for count in self.counts.tolist())
        if valid == 0:
            return {}
        names = [*(f"bad_{threshold:g}_percent" for threshold in BAD_THRESHOLDS_PX), "d1_percent"]
        return {
            "epe_px": error / STEPS_PER_PX / valid,
            "rmse_px": math.sqrt(squared / _SQUARED_STEPS_PER_PX2 / valid),
            **{name: 100 * count / valid for name, count in zip(names, bad, strict=True)},
        }


@torch.no_grad()
def disparity_errors(
    disparity_px: Float[Tensor, "B 1 H W"], true_disparity_px: Float[Tensor, "B 1 H W"]
) -> DisparityErrors:
    """Return the errors of a prediction at the pixels with known ground truth.

    bad-N counts errors above N px; D1 errors above 3 px that are also above 5 % of the true disparity (Menze and
    Geiger, "Object scene flow for autonomous vehicles", CVPR 2015, section 5). Exactly on a threshold is not bad.
    """
    valid = valid_mask(true_disparity_px)
    error_px = absolute_error(disparity_px, true_disparity_px)
    squared_px2 = error_px.square().clamp(max=_LARGEST_SQUARED_PX2)
    sums = [round_to_steps(error_px).sum(), (squared_px2 * _SQUARED_STEPS_PER_PX2).round().to(torch.int64).sum()]
    d1 = error_px > (true_disparity_px.float() * _D1_FRACTION).clamp(min=_D1_PX)  # above both; where unknown it is 0
    bad = [error_px > threshold for threshold in BAD_THRESHOLDS_PX]
    return DisparityErrors(torch.stack([valid.sum(), *sums, *(mask.count_nonzero() for mask in [*bad, d1])]))


def absolute_error(
    disparity_px: Float[Tensor, "B 1 H W"], true_disparity_px: Float[Tensor, "B 1 H W"]
) -> Float[Tensor, "B 1 H W"]:
    """Return the absolute error in px, float32; 0 where the truth is unknown, the largest for NaN predictions.

    At most 2^15 px, so that sums of it cannot overflow.
    """
    valid = valid_mask(true_disparity_px)
    error_px = (disparity_px.float() - torch.where(valid, true_disparity_px.float(), 0.0)).abs()
    return torch.where(valid, error_px.nan_to_num(nan=_LARGEST_PX).clamp(max=_LARGEST_PX), 0.0)


def round_to_steps(error_px: Float[Tensor, "*shape"]) -> Int64[Tensor, "*shape"]:
    """Return errors as whole multiples of 2^-20 px."""
    return (error_px * STEPS_PER_PX).round().to(torch.int64)

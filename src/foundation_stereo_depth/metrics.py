"""Accuracy of disparity, as the field counts it. Everything is a sum or a count of whole numbers, so that metrics
merge exactly, in any order, over batches, threads and processes.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from foundation_stereo_depth.disparity import valid_mask

BAD_THRESHOLDS_PX = (1.0, 2.0, 3.0)
_D1_PX, _D1_SHARE = 3.0, 0.05  # KITTI 2015: wrong if off by more than 3 px and by more than 5 % of the truth
_STEPS_PER_PX = 2**20
"""Errors are summed as whole multiples of this part of a pixel: rounding is then the same however sums are grouped."""
_LARGEST_PX = 2.0**15


@dataclass(frozen=True)
class DisparityErrors:
    """Counts over any number of valid pixels, on the device they were counted on.

    Attributes:
        counts: [valid pixels, error in 2^-20 px, bad-1, bad-2, bad-3, D1].
    """

    counts: Int64[Tensor, "6"]

    @classmethod
    def none(cls, device: torch.device) -> "DisparityErrors":
        """Of no pixel yet."""
        return cls(torch.zeros(3 + len(BAD_THRESHOLDS_PX), dtype=torch.int64, device=device))

    def __add__(self, other: "DisparityErrors") -> "DisparityErrors":
        return DisparityErrors(self.counts + other.counts)

    def figures(self) -> dict[str, float]:
        """EPE in px, bad-N and D1 in percent; empty where no pixel was valid."""
        valid, error, *bad = (int(count) for count in self.counts.tolist())
        if valid == 0:
            return {}
        names = [*(f"bad_{threshold:g}_percent" for threshold in BAD_THRESHOLDS_PX), "d1_percent"]
        return {
            "epe_px": error / _STEPS_PER_PX / valid,
            **{name: 100 * count / valid for name, count in zip(names, bad, strict=True)},
        }


@torch.no_grad()
def disparity_errors(
    disparity_px: Float[Tensor, "B 1 H W"], true_disparity_px: Float[Tensor, "B 1 H W"]
) -> DisparityErrors:
    """The errors of a prediction at the pixels whose truth is known.

    bad-N counts errors above N px; D1 errors above 3 px that are also above 5 % of the true disparity (Menze and
    Geiger, "Object scene flow for autonomous vehicles", CVPR 2015, section 5). Exactly on a threshold is not bad.
    """
    valid = valid_mask(true_disparity_px)
    truth_px = torch.where(valid, true_disparity_px.float(), 0.0)
    error_px = torch.where(valid, (disparity_px.float() - truth_px).abs(), 0.0)
    steps = (error_px.clamp(max=_LARGEST_PX) * _STEPS_PER_PX).round().to(torch.int64)
    d1 = error_px > (truth_px * _D1_SHARE).clamp(min=_D1_PX)  # above both
    bad = [error_px > threshold for threshold in BAD_THRESHOLDS_PX]
    return DisparityErrors(torch.stack([valid.sum(), steps.sum(), *(mask.count_nonzero() for mask in [*bad, d1])]))

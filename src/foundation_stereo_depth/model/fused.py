"""A network that chooses between two semi-global matches, and corrects its choice.

The first match has small smoothness penalties: it keeps the edges of textured surfaces, and is random on textureless
and on repetitive ones. The smooth match has large penalties and rounds off edges. A third disparity is interpolated
from where both agree, up to edges of the image. A U-Net at half resolution mixes seven candidates for each pixel of
full resolution: the first match, its local minimum and maximum (background and foreground of an edge), the smooth
match, the interpolated disparity, and two values of its own, relative to the first match and to the interpolated
disparity; then it adds a fine correction.

The layers are those of the guided network, whose weights can therefore start this one: `fused_from_guided`.
"""

from collections.abc import Mapping
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from foundation_stereo_depth.model import guided
from foundation_stereo_depth.model.guided import UpBlock, check_batch, convolution
from foundation_stereo_depth.model.prediction import StereoPrediction
from foundation_stereo_depth.model.unet import LOG_VARIANCE_RANGE
from foundation_stereo_depth.options.training import ModelOptions
from foundation_stereo_depth.stereo.sgbm import PRIOR_PLANES, TWO_PRIOR_PLANES

_MULTIPLE = 16  # of the padded size, px
_STEP_PX = 8.0  # scales differences of disparity to about 1
_LARGEST_STEPS = 4.0
_CONTRAST = 4.0  # the same for differences of brightness
_CANDIDATES = 7
_INPUT_PLANES = 19  # of the U-Net
_INITIAL_LOGITS = (1.0, 0.0, 0.0, 0.5, 0.0, 0.0, -0.5)  # of the candidates, before the gain
_ADDED_LOGIT = -1.0  # of a candidate that the guided network does not have
_LOGIT_GAIN = 2.0  # so that small weights suffice for a clear choice
_TRUSTED_SUPPORT = 0.45
_FINE_PX, _LARGEST_FINE_PX = 0.25, 1.0
_INITIAL_LOG_VARIANCE = 1.0
_LOG_VARIANCE_GAIN = 4.0


class FusedNetwork(nn.Module):
    """Takes the pair and its `stereo.sgbm.two_prior_planes`.

    Args:
        base_channels: channels at half resolution; four times as many at a thirty-second.
    """

    prior_planes = TWO_PRIOR_PLANES

    def __init__(self, *, base_channels: int) -> None:
        super().__init__()
        levels = [base_channels * factor // 2 for factor in (2, 3, 4, 6, 8)]
        half = levels[0]
        self.stem = nn.Sequential(convolution(_INPUT_PLANES, half, size=2, stride=2), convolution(half, half))
        self.down = nn.ModuleList(
            nn.Sequential(convolution(above, below, stride=2), convolution(below, below))
            for above, below in pairwise(levels)
        )
        self.up = nn.ModuleList(UpBlock(below, above) for above, below in reversed(list(pairwise(levels))))
        # For each pixel of half resolution two corrections; for each of the four full-resolution pixels under it a
        # log-variance, a fine correction, and the logits of the candidates.
        last = nn.Conv2d(half, 2 + 4 * (2 + _CANDIDATES), kernel_size=1)
        with torch.no_grad():
            last.weight.mul_(0.1)
            logits = torch.tensor(_INITIAL_LOGITS).repeat_interleave(4)
            last.bias.copy_(torch.cat([torch.zeros(10), logits]))  # pyright: ignore[reportOptionalMemberAccess]
        self.head = nn.Sequential(convolution(half, half), last)

    def forward(self, pair: Float[Tensor, "B 6 H W"], prior: Float[Tensor, "B 16 H W"]) -> StereoPrediction:
        """Return the prediction for a pair of any size from 32x32 up, with both values of its own.

        Raises:
            UserError: the batch is too small to train on: one pair of one value per channel at a thirty-second.
        """
        H, W = pair.shape[-2:]
        if self.training:
            check_batch("fused", pair)
        below, right = ((size + _MULTIPLE - 1) // _MULTIPLE * _MULTIPLE - size for size in (H, W))
        if torch.compiler.is_exporting() or below or right:
            pair, prior = (F.pad(planes, (0, right, 0, below), mode="replicate") for planes in (pair, prior))
        skips = [self.stem(_unet_input(pair, prior))]
        for down in self.down:
            skips.append(down(skips[-1]))
        x = skips.pop()
        for up in self.up:
            x = up(x, skips.pop())
        # From here on the four pixels of full resolution that lie under one of half resolution are its channels.
        corrections, log_variance, fine, logits = self.head(x).float().split((2, 4, 4, 4 * _CANDIDATES), dim=1)
        mixed_px, own_px = _mix(prior, corrections * _STEP_PX, logits)
        fine_px = (fine * _FINE_PX / _LARGEST_FINE_PX).tanh() * _LARGEST_FINE_PX
        disparity_px = F.pixel_shuffle((mixed_px + fine_px).clamp(min=0), 2)
        log_variance = (log_variance * _LOG_VARIANCE_GAIN + _INITIAL_LOG_VARIANCE).clamp(*LOG_VARIANCE_RANGE)
        log_variance = F.pixel_shuffle(log_variance, 2)

        disparity_px, log_variance = disparity_px[..., :H, :W], log_variance[..., :H, :W]
        return StereoPrediction(disparity_px, log_variance, own_px[..., : (H + 1) // 2, : (W + 1) // 2])


def _mix(
    prior: Float[Tensor, "B 16 H W"], corrections_px: Float[Tensor, "B 2 h w"], logits: Float[Tensor, "B 28 h w"]
) -> tuple[Float[Tensor, "B 4 h w"], Float[Tensor, "B 2 h w"]]:
    """Return the mixture of the candidates, four pixels of full resolution as channels, and the network's own two."""
    first, _, smooth, _, interpolated_and_support, _ = prior.split((3, 7, 1, 2, 2, 1), dim=1)
    candidates = torch.cat([first, smooth, interpolated_and_support], dim=1)
    first_px, local_min, local_max, smooth, interpolated, support = F.pixel_unshuffle(candidates, 2).split(4, dim=1)
    region_px = first_px.mean(dim=1, keepdim=True) + corrections_px[:, :1]
    extended_px = (first_px + interpolated).mean(dim=1, keepdim=True) + corrections_px[:, 1:]
    # What only one view shows is background: the region's value is no nearer than the local maximum of the first match,
    # unless the other two disparities are nearer and have support.
    supported = torch.where(support > _TRUSTED_SUPPORT, torch.maximum(smooth, interpolated), local_max)
    nearest_px = (first_px + torch.maximum(local_max, supported)).amax(dim=1, keepdim=True)
    region = torch.minimum(region_px, nearest_px) - first_px
    weights = (logits * _LOGIT_GAIN).unflatten(1, (_CANDIDATES, 4)).softmax(dim=1).flatten(1, 2).split(4, dim=1)
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


def fused_options(weights: Mapping[str, Tensor]) -> ModelOptions | None:
    """Return the options of the fused network that has these weights; None for weights of another network."""
    stem = weights.get("stem.0.0.weight")
    if stem is None or stem.ndim != 4 or stem.shape[1] != _INPUT_PLANES:
        return None
    return ModelOptions(model="fused", base_channels=stem.shape[0])


def fused_from_guided(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights of a `FusedNetwork` that predicts about what the `GuidedNetwork` of the given weights does."""
    fused = dict(weights)
    stem, last_weight, last_bias = "stem.0.0.weight", "head.1.weight", "head.1.bias"
    fused[stem] = F.pad(weights[stem], (0, 0, 0, 0, 0, _INPUT_PLANES - weights[stem].shape[1]))
    # Of the guided network: a correction, 4 log-variances, 4 fine corrections, 16 logits.
    for name, initial in ((last_weight, 0.0), (last_bias, _ADDED_LOGIT)):
        correction, others = weights[name][:1], weights[name][1:]
        added = torch.full_like(correction, initial).expand(12, *correction.shape[1:])
        fused[name] = torch.cat([correction, torch.zeros_like(correction), others, added])
    return fused


def _unet_input(pair: Float[Tensor, "B 6 H W"], prior: Float[Tensor, "B 16 H W"]) -> Float[Tensor, "B 19 H W"]:
    """Return the input of the U-Net, each plane about 1: the guided network's, and the two other disparities."""
    first, smooth, smooth_valid, smooth_residual, interpolated, support, interpolated_residual = prior.split(
        (PRIOR_PLANES, 1, 1, 1, 1, 1, 1), dim=1
    )
    return torch.cat(
        [
            guided.unet_input(pair, first),
            (smooth / _STEP_PX).clamp(-_LARGEST_STEPS, _LARGEST_STEPS),
            smooth_valid * 2 - 1,
            smooth_residual * _CONTRAST,
            (interpolated / _STEP_PX).clamp(-_LARGEST_STEPS, _LARGEST_STEPS),
            support * 2 - 1,
            interpolated_residual * _CONTRAST,
        ],
        dim=1,
    )

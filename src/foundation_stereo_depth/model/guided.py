"""A network that corrects a classical matcher: it starts from what OpenCV answers, and looks where that is wrong.

The classical answer is right for most pixels. Where it is not, the right view warped by it differs from the left one,
or the pixel lies beside a depth edge, or nothing was matched there at all. A U-Net at half the resolution sees all that
and mixes four values for each pixel of full resolution: the classical one, the least and the most of those around it
(what lies behind an edge, and what before), and one of its own for whole regions; then it corrects the mixture finely.

Batch normalisation (Ioffe and Szegedy, ICML 2015) makes it learn in half the steps, and costs nothing once it is folded
into the convolutions.
"""

from collections.abc import Mapping
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.model.prediction import StereoPrediction
from foundation_stereo_depth.model.unet import LOG_VARIANCE_RANGE
from foundation_stereo_depth.options.training import ModelOptions
from foundation_stereo_depth.stereo.sgbm import PRIOR_PLANES

_MULTIPLE = 16  # of the padded size, px
_DISPARITY_PX = 32.0  # brings disparities to about 1
_STEP_PX = 8.0  # the same for jumps of disparity
_CONTRAST = 4.0  # the same for differences of brightness
_LUMINANCE = (0.299, 0.587, 0.114)
_CANDIDATES = 4
_SEEN = 13  # planes of what the U-Net is fed
_FIRST_SHARES = (1.0, 0.0, 0.0, 0.5)  # logarithms, before the gain
_SHARE_GAIN = 2.0  # makes sharp decisions cheap to learn
_FINE_PX, _LARGEST_FINE_PX = 0.25, 1.0
_FRESH_LOG_VARIANCE = 1.0
_LOG_VARIANCE_GAIN = 4.0
_BATCH_MOMENTUM = 0.03


class GuidedNetwork(nn.Module):
    """Takes the pair and `stereo.sgbm.prior_planes` of it.

    Args:
        base_channels: channels at half resolution; four times as many at a thirty-second.
    """

    prior_planes = PRIOR_PLANES

    def __init__(self, *, base_channels: int) -> None:
        super().__init__()
        levels = [base_channels * factor // 2 for factor in (2, 3, 4, 6, 8)]
        half = levels[0]
        # A kernel of 2 at a stride of 2 takes squares of four pixels apart; after the second convolution one sees 6x6.
        self.stem = nn.Sequential(convolution(_SEEN, half, size=2, stride=2), convolution(half, half))
        self.down = nn.ModuleList(
            nn.Sequential(convolution(above, below, stride=2), convolution(below, below))
            for above, below in pairwise(levels)
        )
        self.up = nn.ModuleList(UpBlock(below, above) for above, below in reversed(list(pairwise(levels))))
        # For each pixel of half resolution a correction in px; for each of the four full-resolution pixels under it
        # a log-variance, a fine correction, and the weights of the mixture.
        last = nn.Conv2d(half, 1 + 4 * (2 + _CANDIDATES), kernel_size=1)
        with torch.no_grad():
            last.weight.mul_(0.1)
            shares = torch.tensor(_FIRST_SHARES).repeat_interleave(4)
            last.bias.copy_(torch.cat([torch.zeros(9), shares]))  # pyright: ignore[reportOptionalMemberAccess]
        self.head = nn.Sequential(convolution(half, half), last)

    def forward(self, pair: Float[Tensor, "B 6 H W"], prior: Float[Tensor, "B 10 H W"]) -> StereoPrediction:
        """Return the prediction for a pair of any size from 32x32 up, with the regions' own value.

        Raises:
            UserError: the batch is too small to train on: one pair of one value per channel at a thirty-second.
        """
        H, W = pair.shape[-2:]
        if self.training:
            check_batch("guided", pair)
        below, beside = ((size + _MULTIPLE - 1) // _MULTIPLE * _MULTIPLE - size for size in (H, W))
        if torch.compiler.is_exporting() or below or beside:
            pair, prior = (F.pad(planes, (0, beside, 0, below), mode="replicate") for planes in (pair, prior))
        skips = [self.stem(unet_input(pair, prior))]
        for down in self.down:
            skips.append(down(skips[-1]))
        x = skips.pop()
        for up in self.up:
            x = up(x, skips.pop())
        # From here on the four pixels of full resolution that lie under one of half resolution are its channels.
        correction, log_variance, fine, logits = self.head(x).float().split((1, 4, 4, 4 * _CANDIDATES), dim=1)
        prior_px, least, most = F.pixel_unshuffle(prior.split((3, 7), dim=1)[0], 2).split(4, dim=1)
        region_px = prior_px.mean(dim=1, keepdim=True) + correction * _STEP_PX
        # What only one view shows is background: no region is nearer than all that the matcher found around it.
        background_px = torch.minimum(region_px, (prior_px + most).amax(dim=1, keepdim=True))
        weights = (logits * _SHARE_GAIN).unflatten(1, (_CANDIDATES, 4)).softmax(dim=1).flatten(1, 2).split(4, dim=1)
        # The weights of the matcher's own value, of the least and of the most around it, and of the region's.
        mixed_px = (1 - weights[3]) * prior_px + weights[1] * least + weights[2] * most + weights[3] * background_px
        # Bounded: regions that the matcher missed are the region's business, whose value is never too near.
        fine_px = (fine * _FINE_PX / _LARGEST_FINE_PX).tanh() * _LARGEST_FINE_PX
        disparity_px = F.pixel_shuffle((mixed_px + fine_px).clamp(min=0), 2)
        log_variance = (log_variance * _LOG_VARIANCE_GAIN + _FRESH_LOG_VARIANCE).clamp(*LOG_VARIANCE_RANGE)
        log_variance = F.pixel_shuffle(log_variance, 2)

        disparity_px, log_variance = disparity_px[..., :H, :W], log_variance[..., :H, :W]
        return StereoPrediction(disparity_px, log_variance, region_px[..., : (H + 1) // 2, : (W + 1) // 2])


def guided_options(weights: Mapping[str, Tensor]) -> ModelOptions | None:
    """Return the options of the guided network that has these weights; None for weights of another network."""
    stem = weights.get("stem.0.0.weight")
    if stem is None or stem.ndim != 4 or stem.shape[1] != _SEEN:
        return None
    return ModelOptions(model="guided", base_channels=stem.shape[0])


def check_batch(model: str, pair: Float[Tensor, "B 6 H W"]) -> None:
    """Check that a training batch is large enough for batch normalisation: more than one value per channel.

    Raises:
        UserError: it does not.
    """
    H, W = pair.shape[-2:]
    if pair.shape[0] == 1 and max(H, W) <= 2 * _MULTIPLE:
        raise UserError(
            f"--model {model}: one pair of {W}x{H} a process leaves one value per channel at a thirty-second, too "
            "few to normalise by; raise --batch-size, --height or --width"
        )


def unet_input(pair: Float[Tensor, "B 6 H W"], prior: Float[Tensor, "B 10 H W"]) -> Float[Tensor, "B 13 H W"]:
    """Return the input of the U-Net, each plane about 1: the left view, since the prior compares it with the right."""
    left, _ = pair.split(3, dim=1)
    prior_px, around, matched, unlike, relief = prior.split((1, 2, 1, 5, 1), dim=1)
    return torch.cat(
        [
            (left - 0.5) * _CONTRAST,
            unlike * _CONTRAST,
            (relief / (_STEP_PX / 2)).clamp(-4, 4),
            around / _STEP_PX,
            prior_px / _DISPARITY_PX,
            matched * 2 - 1,
        ],
        dim=1,
    )


def convolution(inputs: int, outputs: int, *, size: int = 3, stride: int = 1) -> nn.Sequential:
    """Return a convolution without bias, then batch normalisation and ReLU."""
    padding = (size - 1) // 2
    convolution = nn.Conv2d(inputs, outputs, kernel_size=size, stride=stride, padding=padding, bias=False)
    # He et al., "Delving deep into rectifiers", ICCV 2015.
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs, momentum=_BATCH_MOMENTUM), nn.ReLU(inplace=True))


class UpBlock(nn.Module):
    """Enlarges to the size of the skip and adds it."""

    def __init__(self, below: int, above: int) -> None:
        super().__init__()
        self.narrow = convolution(below, above)
        self.join = convolution(above, above)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Return the sum at the size of the skip, after a convolution."""
        return self.join(F.interpolate(self.narrow(x), size=skip.shape[-2:], mode="nearest") + skip)

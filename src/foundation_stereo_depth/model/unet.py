"""A 6-channel U-Net: both views are one input of six channels, and the network learns how to compare them."""

import math
from collections.abc import Mapping
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from foundation_stereo_depth.model.prediction import StereoPrediction
from foundation_stereo_depth.options.training import ModelOptions

LOG_VARIANCE_RANGE = (2 * math.log(0.01), 2 * math.log(100.0))
"""A standard deviation below 0.01 px or above 100 px says nothing true about a stereo match."""

LOG_SHARE_RANGE = (math.log(1e-4), math.log(1.0))
"""Disparity as a share of the width: from far beyond what can be told apart to all of it."""
FRESH_SHARE = 0.06
FRESH_SIGMA_PX = 4.0
"""Initial prediction: about the mean disparity of our scenes, and a standard deviation to match."""


class UNet(nn.Module):
    """Down to 1/2**(depth + 1) of the size and up to 1/2 again, with skips; two numbers per pixel of full size.

    The first convolution halves at once: at full resolution a 3x3 convolution costs four times as much and sees half
    as far, and the whole image has to be seen to find a disparity of a third of its width. Disparity is predicted as
    a share of the padded width, so that one set of weights makes sense at several sizes.

    Args:
        base_channels: channels at half resolution; they grow by this much with every level.
        depth: levels below half resolution.
    """

    def __init__(self, *, base_channels: int, depth: int) -> None:
        super().__init__()
        channels = [base_channels * (level + 1) for level in range(depth + 1)]
        self.multiple = 2 ** (depth + 1)
        self.stem = _Convolution(6, channels[0], kernel_size=5, stride=2)
        self.down = nn.ModuleList(
            nn.Sequential(_Convolution(above, below, stride=2), _Convolution(below, below))
            for above, below in pairwise(channels)
        )
        self.up = nn.ModuleList(_Up(below, above) for above, below in reversed(list(pairwise(channels))))
        # Two numbers for each of the four full-resolution pixels under one of ours. All four begin alike, or the first
        # epochs would draw a chequered pattern.
        self.head = nn.Conv2d(channels[0], 2 * 4, kernel_size=3, padding=1)
        begin = torch.randn(2, channels[0], 3, 3) * 0.01
        with torch.no_grad():
            self.head.weight.copy_(begin.repeat_interleave(4, dim=0))
            self.head.bias.zero_()  # pyright: ignore[reportOptionalMemberAccess]

    def forward(self, pair: Float[Tensor, "B 6 H W"]) -> StereoPrediction:
        """The prediction for a pair of any size from 32x32 up."""
        H, W = pair.shape[-2:]
        x = (pair - 0.5) * 4  # about unit variance
        # Rounded up in the one way that torch.export and ONNX follow for any size: no remainder, no negative number
        # divided, no branch on the size.
        below, right = ((size + self.multiple - 1) // self.multiple * self.multiple - size for size in (H, W))
        if torch.compiler.is_exporting() or below or right:
            x = F.pad(x, (0, right, 0, below), mode="replicate")
        x = self.stem(x)
        skips: list[Tensor] = []
        for down in self.down:
            skips.append(x)
            x = down(x)
        for up, skip in zip(self.up, reversed(skips), strict=True):
            x = up(x, skip)
        raw = F.pixel_shuffle(self.head(x).float(), 2)[..., :H, :W]
        # In logarithms an error of 10 % weighs the same near and far, and no disparity is negative (measured: better
        # than softplus and than a plain number).
        log_share = (raw[:, :1] * 2 + math.log(FRESH_SHARE)).clamp(*LOG_SHARE_RANGE)
        disparity_px = log_share.exp() * (W + right)
        log_variance = (raw[:, 1:] * 8 + 2 * math.log(FRESH_SIGMA_PX)).clamp(*LOG_VARIANCE_RANGE)
        return StereoPrediction(disparity_px, log_variance)


def unet_options(weights: Mapping[str, Tensor]) -> ModelOptions | None:
    """Return the options of the U-Net that has these weights; None for weights of another network."""
    stem = weights.get("stem.convolution.weight")
    levels = {name.split(".")[1] for name in weights if name.startswith("down.")}
    if stem is None or stem.ndim != 4 or not levels:
        return None
    return ModelOptions(model="unet", base_channels=stem.shape[0], depth=len(levels))


class _Convolution(nn.Module):
    def __init__(self, inputs: int, outputs: int, *, kernel_size: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, kernel_size, stride, padding=kernel_size // 2, bias=False)
        self.norm = nn.GroupNorm(math.gcd(outputs, 8), outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.convolution(x)), inplace=True)


class _Up(nn.Module):
    """Doubles the size and joins the skip."""

    def __init__(self, below: int, above: int) -> None:
        super().__init__()
        self.narrow = _Convolution(below, above)
        self.join = _Convolution(2 * above, above)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = F.interpolate(self.narrow(x), scale_factor=2.0, mode="nearest")
        return self.join(torch.cat([x, skip], dim=1))

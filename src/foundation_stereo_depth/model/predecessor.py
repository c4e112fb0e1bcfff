"""The 6-channel U-Net of the program that this one continues, so that its checkpoints stay of use.

Full resolution, batch normalisation, max pooling, transposed convolutions; disparity and the logarithm of a Laplace
scale from two 1x1 convolutions. Older checkpoints have one head, for disparity alone. Its checkpoints are a dict of
`epoch`, `model_state_dict`, `optimizer_state_dict`, `args` and `metrics`.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from foundation_stereo_depth.model.prediction import StereoPrediction
from foundation_stereo_depth.options.training import ModelOptions

LOG_SCALE_RANGE = (-6.0, 3.0)
"""Bounds of log b, the logarithm of the Laplace scale, px."""
_MULTIPLE = 16  # of the padded size, px
_SMALLEST_PX, _LARGEST_PX = 32, 4096  # of a plausible side
_FIRST = "enc1.block.0.weight"
_LEVELS = (1, 2, 4, 8, 16)  # channels at 1/1 to 1/16 of the size, in units of the base


class PredecessorUNet(nn.Module):
    """Takes left RGB and right RGB, 0..1, as six channels; its parameter names are those of the old checkpoints.

    Args:
        base_channels: channels at full resolution.
        predicts_uncertainty: False for the older networks, whose log-variance here is NaN.
    """

    wants_float32 = True
    """Its output is px: the 8 bits of bf16 would round 100 px to the next half."""

    def __init__(self, *, base_channels: int, predicts_uncertainty: bool) -> None:
        super().__init__()
        c1, c2, c3, c4, c5 = (base_channels * level for level in _LEVELS)
        self.predicts_uncertainty = predicts_uncertainty
        self.enc1, self.enc2, self.enc3 = _Block(6, c1), _Block(c1, c2), _Block(c2, c3)
        self.enc4, self.bottleneck = _Block(c3, c4), _Block(c4, c5)
        self.up4, self.up3 = nn.ConvTranspose2d(c5, c4, 2, stride=2), nn.ConvTranspose2d(c4, c3, 2, stride=2)
        self.up2, self.up1 = nn.ConvTranspose2d(c3, c2, 2, stride=2), nn.ConvTranspose2d(c2, c1, 2, stride=2)
        self.dec4, self.dec3, self.dec2, self.dec1 = _Block(c5, c4), _Block(c4, c3), _Block(c3, c2), _Block(c2, c1)
        if predicts_uncertainty:
            self.disparity_head, self.logvar_head = nn.Conv2d(c1, 1, 1), nn.Conv2d(c1, 1, 1)
        else:
            self.output_head = nn.Conv2d(c1, 1, 1)

    def forward(self, pair: Float[Tensor, "B 6 H W"]) -> StereoPrediction:
        """Return the prediction for a pair of any size from 32x32 up."""
        H, W = pair.shape[-2:]
        below, right = ((size + _MULTIPLE - 1) // _MULTIPLE * _MULTIPLE - size for size in (H, W))
        x = pair
        if torch.compiler.is_exporting() or below or right:
            x = F.pad(x, (0, right, 0, below), mode="replicate")
        skips: list[Tensor] = []
        for encoder in (self.enc1, self.enc2, self.enc3, self.enc4):
            x = encoder(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.bottleneck(x)
        for up, decoder in ((self.up4, self.dec4), (self.up3, self.dec3), (self.up2, self.dec2), (self.up1, self.dec1)):
            x = decoder(torch.cat([up(x), skips.pop()], dim=1))
        head = self.disparity_head if self.predicts_uncertainty else self.output_head
        disparity_px = F.softplus(head(x).float())[..., :H, :W]
        if not self.predicts_uncertainty:
            return StereoPrediction(disparity_px, torch.full_like(disparity_px, math.nan))
        log_scale = self.logvar_head(x).float().clamp(*LOG_SCALE_RANGE)[..., :H, :W]
        return StereoPrediction(disparity_px, math.log(2) + 2 * log_scale)  # the variance of a Laplacian is 2 b^2


class _Block(nn.Module):
    """Two 3x3 convolutions, each with batch normalisation and ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


def predecessor_options(weights: Mapping[str, Tensor]) -> ModelOptions | None:
    """Return the options of the `PredecessorUNet` that has these weights; None for weights of another network."""
    first = weights.get(_FIRST)
    if first is None or first.ndim != 4 or first.shape[1] != 6 or "dec1.block.0.weight" not in weights:
        return None
    return ModelOptions(model="predecessor", base_channels=first.shape[0])


def predicts_uncertainty(weights: Mapping[str, Tensor]) -> bool:
    """Return False for the older networks, which have one head."""
    return "output_head.weight" not in weights


def with_uncertainty_head(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights to train further: where there is one head, a second one that predicts a Laplace scale of 1 px."""
    renamed = {name.replace("output_head.", "disparity_head."): tensor for name, tensor in weights.items()}
    for part in ("weight", "bias"):
        renamed.setdefault(f"logvar_head.{part}", torch.zeros_like(renamed[f"disparity_head.{part}"]))
    return renamed


def size_in_args(args: Any) -> tuple[int | None, int | None]:
    """Return the height and width, px, in the `args` of a checkpoint (a dict, or an argparse.Namespace); else None."""
    values = args if isinstance(args, dict) else getattr(args, "__dict__", {})

    def side(name: str, position: int) -> int | None:
        found = next((values[key] for key in (name, f"image_{name}", f"img_{name}") if key in values), None)
        if found is None:
            size = next((values[key] for key in ("size", "image_size", "img_size") if key in values), ())
            found = size[position] if isinstance(size, list | tuple) and len(size) == 2 else None
        return found if type(found) is int and _SMALLEST_PX <= found <= _LARGEST_PX else None

    return side("height", 0), side("width", 1)

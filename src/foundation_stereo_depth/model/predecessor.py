"""The 6-channel U-Net of the program that this one continues, so that its checkpoints stay of use.

Full resolution, batch normalisation, max pooling, transposed convolutions; disparity and the logarithm of a Laplace
scale from two 1x1 convolutions. Older checkpoints have one head, for disparity alone.
"""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from foundation_stereo_depth.errors import CheckpointError
from foundation_stereo_depth.model.prediction import StereoPrediction

LOG_SCALE_RANGE = (-6.0, 3.0)
"""Bounds of log b, the logarithm of the Laplace scale, px."""
_MULTIPLE = 16  # of the padded size, px
_LEVELS = (1, 2, 4, 8, 16)  # channels at 1/1 to 1/16 of the size, in units of the base


class PredecessorUNet(nn.Module):
    """Takes left RGB and right RGB, 0..1, as six channels; its parameter names are those of the old checkpoints.

    Args:
        base_channels: channels at full resolution.
        predicts_uncertainty: False for the older networks, whose log-variance here is NaN.
    """

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


def is_predecessor(weights: Mapping[str, object]) -> bool:
    """True for the state_dict of a `PredecessorUNet`, by its names."""
    return "enc1.block.0.weight" in weights and "dec1.block.0.weight" in weights


def create_predecessor(weights: Mapping[str, Tensor]) -> PredecessorUNet:
    """Return the network that these weights belong to, with the weights, in evaluation mode.

    Raises:
        CheckpointError: the weights do not fit together.
    """
    first = weights["enc1.block.0.weight"]
    if first.ndim != 4 or first.shape[1] != 6 or not 1 <= first.shape[0] <= 512:
        raise CheckpointError(f"the first convolution has the shape {tuple(first.shape)}, but has to take 6 channels")
    network = PredecessorUNet(base_channels=first.shape[0], predicts_uncertainty="disparity_head.weight" in weights)
    try:
        network.load_state_dict(dict(weights))
    except (RuntimeError, TypeError, AttributeError) as error:
        raise CheckpointError(f"the weights do not fit their network: {str(error).splitlines()[-1].strip()}") from error
    return network.eval()

"""What networks share that refine the disparity of a classical matcher: a U-Net at half resolution.

The matcher is right at most pixels. Where it is not, the right view warped by its disparity differs from the left one,
or the pixel lies beside a depth edge, or nothing was matched there at all. The U-Net sees all of that. For each pixel
of full resolution it mixes candidates for the disparity, among them values of its own for whole regions; then it adds
a fine correction.

Batch normalisation (Ioffe and Szegedy, ICML 2015) makes it learn in half the steps, and costs nothing once it is folded
into the convolutions.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.model.prediction import StereoPrediction
from foundation_stereo_depth.model.unet import LOG_VARIANCE_RANGE
from foundation_stereo_depth.options.training import ModelOptions

STEP_PX = 8.0
"""Scales differences of disparity to about 1."""
CONTRAST = 4.0
"""The same for differences of brightness."""
_MULTIPLE = 16  # of the padded size, px
_LOGIT_GAIN = 2.0  # so that small weights suffice for a clear choice
_FINE_PX, _LARGEST_FINE_PX = 0.25, 1.0
_INITIAL_LOG_VARIANCE = 1.0
_LOG_VARIANCE_GAIN = 4.0
_BATCH_MOMENTUM = 0.03


class RefinementNetwork(nn.Module):
    """Takes the pair and its prior; a subclass says what the U-Net sees of both, and which candidates it mixes.

    Args:
        base_channels: channels at half resolution; four times as many at a thirty-second.
    """

    name: ClassVar[str]
    """As `--model` takes it."""
    prior_planes: ClassVar[int]
    """A key of `stereo.prior.PRIORS`."""
    input_planes: ClassVar[int]
    """Of the U-Net."""
    corrections: ClassVar[int]
    """Values of its own that the U-Net predicts for each pixel of half resolution."""
    initial_logits: ClassVar[tuple[float, ...]]
    """Of each candidate, before the gain."""

    def __init__(self, *, base_channels: int) -> None:
        super().__init__()
        levels = [base_channels * factor // 2 for factor in (2, 3, 4, 6, 8)]
        half = levels[0]
        # A kernel of 2 at a stride of 2 takes squares of four pixels apart; after the second convolution one sees 6x6.
        self.stem = nn.Sequential(convolution(self.input_planes, half, size=2, stride=2), convolution(half, half))
        self.down = nn.ModuleList(
            nn.Sequential(convolution(above, below, stride=2), convolution(below, below))
            for above, below in pairwise(levels)
        )
        self.up = nn.ModuleList(UpBlock(below, above) for above, below in reversed(list(pairwise(levels))))
        # For each pixel of half resolution the corrections; for each of the four full-resolution pixels under it a
        # log-variance, a fine correction, and the logits of the candidates.
        self._head_planes = (self.corrections, 4, 4, 4 * len(self.initial_logits))
        last = nn.Conv2d(half, sum(self._head_planes), kernel_size=1)
        with torch.no_grad():
            last.weight.mul_(0.1)
            logits = torch.tensor(self.initial_logits).repeat_interleave(4)
            zeros = torch.zeros(sum(self._head_planes[:3]))
            last.bias.copy_(torch.cat([zeros, logits]))  # pyright: ignore[reportOptionalMemberAccess]
        self.head = nn.Sequential(convolution(half, half), last)

    @classmethod
    def options_of(cls, weights: Mapping[str, Tensor]) -> ModelOptions | None:
        """Return the options of the network that has these weights; None for weights of another network."""
        stem = weights.get("stem.0.0.weight")
        if stem is None or stem.ndim != 4 or stem.shape[1] != cls.input_planes:
            return None
        return ModelOptions(model=cls.name, base_channels=stem.shape[0])  # pyright: ignore[reportArgumentType]

    def unet_input(self, pair: Float[Tensor, "B 6 H W"], prior: Float[Tensor, "B p H W"]) -> Float[Tensor, "B n H W"]:
        """Return the input of the U-Net, each plane about 1."""
        raise NotImplementedError

    def mix(
        self,
        prior: Float[Tensor, "B p H W"],
        corrections_px: Float[Tensor, "B c h w"],
        weights: tuple[Float[Tensor, "B 4 h w"], ...],
    ) -> tuple[Float[Tensor, "B 4 h w"], Float[Tensor, "B c h w"]]:
        """Return the weighted mean of the candidates, and the network's own values, in px of the full size.

        Four pixels of full resolution are channels of the one of half resolution above them; a weight for each of them
        and each candidate. The weights of the candidates add up to 1.
        """
        raise NotImplementedError

    def forward(self, pair: Float[Tensor, "B 6 H W"], prior: Float[Tensor, "B p H W"]) -> StereoPrediction:
        """Return the prediction for a pair of any size from 32x32 up, with the network's own values.

        Raises:
            UserError: the batch is too small to train on: one pair of one value per channel at a thirty-second.
        """
        H, W = pair.shape[-2:]
        if self.training:
            self._check_batch(pair)
        below, right = ((size + _MULTIPLE - 1) // _MULTIPLE * _MULTIPLE - size for size in (H, W))
        if torch.compiler.is_exporting() or below or right:
            pair, prior = (F.pad(planes, (0, right, 0, below), mode="replicate") for planes in (pair, prior))
        skips = [self.stem(self.unet_input(pair, prior))]
        for down in self.down:
            skips.append(down(skips[-1]))
        x = skips.pop()
        for up in self.up:
            x = up(x, skips.pop())
        corrections, log_variance, fine, logits = self.head(x).float().split(self._head_planes, dim=1)
        weights = (logits * _LOGIT_GAIN).unflatten(1, (len(self.initial_logits), 4)).softmax(dim=1).flatten(1, 2)
        mixed_px, own_px = self.mix(prior, corrections * STEP_PX, weights.split(4, dim=1))
        # Bounded: a region that the matcher missed is left to the candidates, which are never too near.
        fine_px = (fine * _FINE_PX / _LARGEST_FINE_PX).tanh() * _LARGEST_FINE_PX
        disparity_px = F.pixel_shuffle((mixed_px + fine_px).clamp(min=0), 2)
        log_variance = (log_variance * _LOG_VARIANCE_GAIN + _INITIAL_LOG_VARIANCE).clamp(*LOG_VARIANCE_RANGE)
        log_variance = F.pixel_shuffle(log_variance, 2)

        disparity_px, log_variance = disparity_px[..., :H, :W], log_variance[..., :H, :W]
        return StereoPrediction(disparity_px, log_variance, own_px[..., : (H + 1) // 2, : (W + 1) // 2])

    def _check_batch(self, pair: Float[Tensor, "B 6 H W"]) -> None:
        """Check that batch normalisation has more than one value per channel."""
        H, W = pair.shape[-2:]
        if pair.shape[0] == 1 and max(H, W) <= 2 * _MULTIPLE:
            raise UserError(
                f"--model {self.name}: one pair of {W}x{H} a process leaves one value per channel at a thirty-second, "
                "too few to normalise by; raise --batch-size, --height or --width"
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

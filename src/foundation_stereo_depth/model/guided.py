"""A network that corrects a classical matcher: it starts from what OpenCV answers, and looks where that is wrong.

Three views of the pair meet in it. The classical matcher's answer at full resolution is right for most pixels. Where
it is not, a correlation of learnt features at a quarter of the resolution knows other candidates, and a U-Net at half
the resolution sees edges, surfaces and how well the right view, warped by the classical answer, fits. The output is a
mixture of the classical values around each pixel, finely corrected.

The correlation seen as channels of a 2-D network: Mayer et al., "A large dataset to train convolutional networks for
disparity, optical flow, and scene flow estimation", CVPR 2016, section 5.2 (DispNetC). Upsampling by a learnt mixture
of neighbours: Teed and Deng, "RAFT", ECCV 2020, section 3.3. No normalisation: nothing is to be paid for at inference.
"""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from foundation_stereo_depth.model.prediction import StereoPrediction, TrainingPrediction
from foundation_stereo_depth.model.unet import LOG_VARIANCE_RANGE

DISPARITIES = 32
"""Candidates of the correlation, each a cell of a quarter of the resolution: 0 to 124 px."""
CELL_PX = 4

_FEATURES = 32
_SMOOTH_PX = 8
_MULTIPLE = 8  # of the padded size, px: whole cells, and whole squares to smooth over
_AROUND = ((0, 0), (0, -2), (0, 2), (0, -1), (0, 1), (-1, 0), (1, 0))
"""Rows and columns of half resolution to where classical values are taken from: an edge that the matcher put a few
pixels off is mended by the value from its other side."""
_FRESH_SHARE = 2.5
_SHARE_GAIN = 2.0  # makes choosing one value, and so a sharp edge, cheap to learn
_FINE_PX = 0.25
_FRESH_LOG_VARIANCE = 1.0


class GuidedNetwork(nn.Module):
    """Takes the pair and `block_matching.prior_planes` of it.

    Args:
        base_channels: channels at half resolution; twice as many at an eighth.
    """

    wants_prior = True

    def __init__(self, *, base_channels: int) -> None:
        super().__init__()
        half, quarter, *deeper = (base_channels * factor // 2 for factor in (2, 3, 4, 6, 8))
        self.features = nn.Sequential(
            _convolution(3, _FEATURES // 2, stride=2),
            _convolution(_FEATURES // 2, _FEATURES, stride=2),
            _convolution(_FEATURES, _FEATURES),
            nn.Conv2d(_FEATURES, _FEATURES, kernel_size=3, padding=1),
        )
        self.stem = nn.Sequential(_convolution(7 * 4 + 2, half), _convolution(half, half))
        self.down = _convolution(half, quarter, stride=2)
        self.meet = nn.Sequential(_convolution(quarter + DISPARITIES, quarter), _convolution(quarter, quarter))
        levels = [quarter, *deeper]
        self.deeper = nn.ModuleList(
            nn.Sequential(_convolution(above, below, stride=2), _convolution(below, below))
            for above, below in pairwise(levels)
        )
        self.up = nn.ModuleList(_Up(below, above) for above, below in reversed(list(pairwise(levels))))
        self.candidates = nn.Conv2d(quarter, DISPARITIES, kernel_size=1)
        self.last = _Up(quarter, half)
        # For each pixel of half resolution: its correction and how far to trust the correlation; and for each of the
        # four full-resolution pixels under it a log-variance, a fine correction, and the shares of the mixture.
        last = nn.Conv2d(2 * half, 2 + 4 * (2 + len(_AROUND) + 1), kernel_size=1)
        with torch.no_grad():
            last.weight.mul_(0.1)
            bias = torch.zeros(last.out_channels)
            bias[1] = -2.0
            bias[10:14] = _FRESH_SHARE
            last.bias.copy_(bias)  # pyright: ignore[reportOptionalMemberAccess]
        self.head = nn.Sequential(_convolution(half, 2 * half), last)

    def forward(
        self, pair: Float[Tensor, "B 6 H W"], prior: Float[Tensor, "B 5 H W"]
    ) -> StereoPrediction | TrainingPrediction:
        """The prediction for a pair of any size from 32x32 up, with its coarse stages while training."""
        H, W = pair.shape[-2:]
        below, beside = ((size + _MULTIPLE - 1) // _MULTIPLE * _MULTIPLE - size for size in (H, W))
        if torch.compiler.is_exporting() or below or beside:
            pair, prior = (F.pad(planes, (0, beside, 0, below), mode="replicate") for planes in (pair, prior))
        left, right = pair[:, :3], pair[:, 3:]
        prior_px, matched, warped = prior[:, :1], prior[:, 1:2], prior[:, 2:]
        half_px = F.avg_pool2d(prior_px, 2)

        # Half resolution: full-resolution pixels as channels. Disparity goes in as its difference from the
        # neighbourhood, since 16 bits would round 60 px to a quarter, and roughly as it is.
        smooth_px = F.interpolate(F.avg_pool2d(prior_px, _SMOOTH_PX), scale_factor=float(_SMOOTH_PX), mode="nearest")
        step = ((prior_px - smooth_px) / 4).clamp(-4, 4)
        fine = F.pixel_unshuffle(torch.cat([(left - 0.5) * 4, (left - warped) * 4, step], dim=1), 2)
        x_half = self.stem(torch.cat([fine, half_px / 32, F.avg_pool2d(matched, 2) * 2 - 1], dim=1))
        # Quarter resolution, where the correlation joins, and down from there.
        x = self.meet(torch.cat([self.down(x_half), self._correlation(left, right)], dim=1))
        skips = [x]
        for deeper in self.deeper:
            skips.append(deeper(skips[-1]))
        x = skips.pop()
        for up in self.up:
            x = up(x, skips.pop())
        raw = self.head(self.last(x, x_half)).float()
        log_variance = F.pixel_shuffle((raw[:, 2:6] * 4 + _FRESH_LOG_VARIANCE).clamp(*LOG_VARIANCE_RANGE), 2)

        # The answer: a mixture of the classical values around each pixel, and a fine correction.
        around_px = F.pad(F.pixel_unshuffle(prior_px, 2), (2, 2, 1, 1), mode="replicate")
        h, w = half_px.shape[-2:]
        mixable = [around_px[:, :, 1 + down : 1 + down + h, 2 + across : 2 + across + w] for down, across in _AROUND]
        # While training a coarse value of the network's own is mixed in as well.
        coarse_px = self._coarse_px(x, raw, half_px) if self.training else None
        if coarse_px is not None:
            mixable.append(coarse_px[:, 1:].expand(-1, 4, -1, -1))
        weights = (raw[:, 10:].unflatten(1, (-1, 4))[:, : len(mixable)] * _SHARE_GAIN).softmax(dim=1)
        mixed = raw[:, 6:10] * _FINE_PX
        for n, values_px in enumerate(mixable):
            mixed = mixed + weights[:, n] * values_px
        disparity_px = F.pixel_shuffle(mixed, 2).clamp(min=0)

        disparity_px, log_variance = disparity_px[..., :H, :W], log_variance[..., :H, :W]
        if coarse_px is not None:
            return TrainingPrediction(disparity_px, log_variance, coarse_px[..., : (H + 1) // 2, : (W + 1) // 2])
        return StereoPrediction(disparity_px, log_variance)

    def _coarse_px(
        self, x: Float[Tensor, "B C qh qw"], raw: Float[Tensor, "B R h w"], half_px: Float[Tensor, "B 1 h w"]
    ) -> Float[Tensor, "B 2 h w"]:
        """What the correlation finds, and the classical value corrected by it, px; both at half resolution.

        Only for training, where they teach the network to match. At inference they are left out of the mixture: made-up
        scenes teach it to trust them more than real pairs bear out (docs/experiments.md).
        """
        shares = self.candidates(x).float().softmax(dim=1)
        places_px = torch.arange(DISPARITIES, device=x.device, dtype=torch.float32) * CELL_PX
        quarter_px = torch.einsum("bdhw,d->bhw", shares, places_px)[:, None]
        found_px = F.interpolate(quarter_px, scale_factor=2.0, mode="bilinear")
        corrected_px = half_px + raw[:, 1:2].sigmoid() * (found_px - half_px) + raw[:, :1] * 4
        return torch.cat([found_px, corrected_px], dim=1)

    def _correlation(self, left: Float[Tensor, "B 3 H W"], right: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D h w"]:
        """How alike the features of left (x, y) and right (x - d, y) are, less the mean over d; 0 beyond the border.

        Channel i holds d = D - 1 - i.
        """
        ours, theirs = (self._unit_features(eye) for eye in (left, right))
        width = ours.shape[-1]
        # All products of a row with its partner at once, one multiplication of matrices.
        products = ours.permute(0, 2, 3, 1) @ theirs.permute(0, 2, 1, 3) / _FEATURES  # [B, h, x, x']
        # The band x' = x - D + 1 .. x of it. With D - 1 zeros before each row, the band of row x begins at column x;
        # seen as rows that are one longer, every band begins at column 0.
        flat = F.pad(products, (DISPARITIES - 1, 0)).flatten(2)
        band = F.pad(flat, (0, width)).unflatten(2, (width, width + DISPARITIES))[..., :DISPARITIES].permute(0, 3, 1, 2)
        return (band - band.mean(dim=1, keepdim=True)) * 4

    def _unit_features(self, view: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        """Features of one eye whose mean square over the channels is 1."""
        features = self.features((view - 0.5) * 4)
        return features * torch.rsqrt(features.float().square().mean(dim=1, keepdim=True) + 1e-4).to(features.dtype)


def _convolution(inputs: int, outputs: int, *, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1)
    # He et al., "Delving deep into rectifiers", ICCV 2015: without normalisation the scale has to begin right.
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    nn.init.zeros_(convolution.bias)  # pyright: ignore[reportArgumentType]
    return nn.Sequential(convolution, nn.ReLU(inplace=True))


class _Up(nn.Module):
    """Up to the size of the skip, and added to it."""

    def __init__(self, below: int, above: int) -> None:
        super().__init__()
        self.narrow = _convolution(below, above)
        self.join = _convolution(above, above)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.join(F.interpolate(self.narrow(x), size=skip.shape[-2:], mode="nearest") + skip)

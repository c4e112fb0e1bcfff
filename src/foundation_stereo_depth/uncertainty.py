"""Honesty and ranking of predicted uncertainty. Sums and counts of whole numbers, which merge exactly, as in metrics.

Coverage and reliability ask whether the predicted spread is true; sparsification asks whether the pixels that doubt
themselves are the ones that err.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from foundation_stereo_depth.metrics import STEPS_PER_PX, absolute_error, whole_steps
from foundation_stereo_depth.stereo.disparity import valid_mask

COVERAGE_SHARES = (0.50, 0.68, 0.90, 0.95)
RELIABLE_WITHIN_PX = 1.0
"""Reliability is of P(|error| < this)."""
_BAD_PX = 1.0
_RELIABILITY_BINS = 20
_LOG_VARIANCE_LIMIT, _LOG_VARIANCE_BINS = 16.0, 4096
"""Pixels are ranked by log-variance from -16 to 16 (0.0003 to 3000 px), in steps of 0.4 % of the deviation."""
_ERROR_BIN_BITS = 18
"""The oracle ranks errors by the upper bits of their float32 code: 32 steps per doubling."""
_ERROR_BINS = (0x7F800000 >> _ERROR_BIN_BITS) + 1
_NLL_STEPS_PER_NAT = 2**16
_LARGEST_NLL = 2.0**28
_RATIO_BINS_PER_DOUBLING, _RATIO_DOUBLINGS = 32, 16
"""Errors are counted by their ratio to the standard deviation, from 2^-16 to 2^16 of it, in steps of 2 %."""
RATIO_BINS = 2 * _RATIO_DOUBLINGS * _RATIO_BINS_PER_DOUBLING
_FITTED_SHARE = 0.68
_REMOVED_SHARES = np.linspace(0.0, 0.99, 100)


class Distribution(NamedTuple):
    """What a network's standard deviation says about the size of its error.

    Attributes:
        nll: (error in px, log-variance) -> (log of what divides the error, -log density), nats.
        within: (t / sigma) -> P(|error| < t).
        interval: P -> half the width of the interval that holds this share of the errors, in sigma.
    """

    nll: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    within: Callable[[Tensor], Tensor]
    interval: Callable[[float], float]


def gaussian_nll(error_px: Tensor, log_variance: Tensor) -> tuple[Tensor, Tensor]:
    """(log of what divides the squared error, -log N(error; 0, variance)), nats: (e^2 / v + log v + log 2 pi) / 2."""
    nll = 0.5 * (error_px.square() * (-log_variance).exp() + log_variance + math.log(2 * math.pi))
    return log_variance, nll


def laplace_nll(error_px: Tensor, log_variance: Tensor) -> tuple[Tensor, Tensor]:
    """(log b, -log Laplace(error; 0, b)), nats: |e| / b + log 2 b, where the variance is 2 b^2."""
    log_b = 0.5 * (log_variance - math.log(2))
    return log_b, error_px.abs() * (-log_b).exp() + log_b + math.log(2)


def _within_gaussian(t: Tensor) -> Tensor:
    return torch.erf(t / math.sqrt(2))


def _within_laplace(t: Tensor) -> Tensor:
    return -torch.expm1(-t * math.sqrt(2))  # 1 - exp(-t / b) with b = sigma / sqrt 2


def _gaussian_interval(share: float) -> float:
    return NormalDist().inv_cdf((1 + share) / 2)


def _laplace_interval(share: float) -> float:
    return -math.log1p(-share) / math.sqrt(2)


DISTRIBUTIONS = {
    "gaussian": Distribution(gaussian_nll, _within_gaussian, _gaussian_interval),
    "laplace": Distribution(laplace_nll, _within_laplace, _laplace_interval),
}


def probability_within(
    threshold_px: float, sigma_px: Float[Tensor, "*shape"], distribution: str
) -> Float[Tensor, "*shape"]:
    """P(|error| < threshold), 0 to 1, of an error with this standard deviation and distribution."""
    return DISTRIBUTIONS[distribution].within(threshold_px / sigma_px)


class ReliabilityCurve(NamedTuple):
    """Where pixels said P(|error| < 1 px) was p, what share of them were that good; one entry per bin in use."""

    predicted: Float[np.ndarray, " bins"]
    observed: Float[np.ndarray, " bins"]
    pixels: Int64[np.ndarray, " bins"]


class SparsificationCurve(NamedTuple):
    """The mean error of what remains after a share of the pixels is taken away.

    Attributes:
        removed: the share, from 0 to 0.99.
        by_doubt: the most doubtful pixels go first.
        by_oracle: the most wrong go first: the lowest curve there can be.
        at_random: any pixels go: the mean error, whatever the share.
    """

    removed: Float[np.ndarray, "100"]
    by_doubt: Float[np.ndarray, "100"]
    by_oracle: Float[np.ndarray, "100"]
    at_random: float

    @property
    def ause(self) -> float:
        """Area between the network's order and the oracle's: 0 is a perfect ranking."""
        return float(np.trapezoid(self.by_doubt - self.by_oracle, self.removed))

    @property
    def ause_random(self) -> float:
        """Area between a random order and the oracle's: what a ranking has to beat."""
        return float(np.trapezoid(self.at_random - self.by_oracle, self.removed))


@dataclass(frozen=True, kw_only=True)
class UncertaintyCounts:
    """Counts over any number of valid pixels, on the device they were counted on.

    Attributes:
        totals: [valid pixels, -log likelihood in 2^-16 nat, errors within the 50, 68, 90 and 95 % interval].
        reliability: per bin of P(|error| < 1 px): pixels, the sum of P in 2^-20, and how many were that good.
        by_doubt: per bin of log-variance: pixels, error in 2^-20 px, and bad-1.
        by_error: per bin of error: pixels, and error in 2^-20 px.
    """

    totals: Int64[Tensor, "6"]
    reliability: Int64[Tensor, "3 20"]
    by_doubt: Int64[Tensor, "3 4096"]
    by_error: Int64[Tensor, "2 8161"]

    @classmethod
    def none(cls, device: torch.device) -> "UncertaintyCounts":
        """Of no pixel yet."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int64, device=device)

        return cls(
            totals=zeros(2 + len(COVERAGE_SHARES)),
            reliability=zeros(3, _RELIABILITY_BINS),
            by_doubt=zeros(3, _LOG_VARIANCE_BINS),
            by_error=zeros(2, _ERROR_BINS),
        )

    def __add__(self, other: "UncertaintyCounts") -> "UncertaintyCounts":
        return UncertaintyCounts(
            totals=self.totals + other.totals,
            reliability=self.reliability + other.reliability,
            by_doubt=self.by_doubt + other.by_doubt,
            by_error=self.by_error + other.by_error,
        )

    def figures(self) -> dict[str, float]:
        """NLL in nats, coverage and calibration error of P(|error| < 1 px) in percent, AUSE in px and in percent.

        AUSE, against the oracle, stands beside that of a random order. Empty where no pixel was valid.
        """
        valid, nll, *covered = (int(count) for count in self.totals.tolist())
        if valid == 0:
            return {}
        reliable = self.reliability_curve()
        gaps = np.abs(reliable.observed - reliable.predicted)
        epe, bad = self.sparsification_of_epe(), self.sparsification_of_bad()
        return {
            "nll_nat": nll / _NLL_STEPS_PER_NAT / valid,
            **{
                f"coverage_{100 * share:.0f}_percent": 100 * count / valid
                for share, count in zip(COVERAGE_SHARES, covered, strict=True)
            },
            "calibration_error_percent": 100 * float((gaps * reliable.pixels).sum()) / valid,
            "ause_epe_px": epe.ause,
            "ause_epe_random_px": epe.ause_random,
            "ause_bad_1_percent": bad.ause,
            "ause_bad_1_random_percent": bad.ause_random,
        }

    def reliability_curve(self) -> ReliabilityCurve:
        """Predicted against observed P(|error| < 1 px)."""
        pixels, probability, hits = self.reliability.cpu().numpy()
        used = pixels > 0
        pixels = pixels[used]
        return ReliabilityCurve(probability[used] / STEPS_PER_PX / pixels, hits[used] / pixels, pixels)

    def sparsification_of_epe(self) -> SparsificationCurve:
        """Of the mean absolute error, px."""
        pixels, error, _ = self.by_doubt.cpu().numpy()
        oracle_pixels, oracle_error = self.by_error.cpu().numpy()
        return _sparsification((pixels, error / STEPS_PER_PX), (oracle_pixels, oracle_error / STEPS_PER_PX))

    def sparsification_of_bad(self) -> SparsificationCurve:
        """Of the share of errors above 1 px, percent."""
        pixels, _, bad = self.by_doubt.cpu().numpy()
        good_then_bad = np.array([pixels.sum() - bad.sum(), bad.sum()])
        return _sparsification((pixels, 100.0 * bad), (good_then_bad, good_then_bad * [0.0, 100.0]))


@torch.no_grad()
def uncertainty_counts(
    disparity_px: Float[Tensor, "B 1 H W"],
    log_variance: Float[Tensor, "B 1 H W"],
    true_disparity_px: Float[Tensor, "B 1 H W"],
    distribution: str,
) -> UncertaintyCounts:
    """What the pixels with known truth say about a predicted uncertainty.

    Args:
        disparity_px: predicted.
        log_variance: of its error, natural logarithm of px^2.
        true_disparity_px: NaN or 0 where unknown.
        distribution: of the error, a key of DISTRIBUTIONS.
    """
    law = DISTRIBUTIONS[distribution]
    valid = valid_mask(true_disparity_px)
    error_px = absolute_error(disparity_px, true_disparity_px)[valid]
    doubt = log_variance[valid].float()
    steps, bad = whole_steps(error_px), error_px > _BAD_PX

    # In float64 the last bit of exp, which differs between vector and scalar code, is far from changing any count.
    exact_px, exact_doubt = error_px.double(), doubt.double()
    sigma_px = (0.5 * exact_doubt).exp()
    nll = law.nll(exact_px, exact_doubt)[1].nan_to_num(nan=_LARGEST_NLL).clamp(max=_LARGEST_NLL)
    covered = [exact_px <= law.interval(share) * sigma_px for share in COVERAGE_SHARES]
    probability = law.within(RELIABLE_WITHIN_PX / sigma_px).nan_to_num(nan=0.0)

    def binned(bins: Tensor, count: int, *values: Tensor) -> Tensor:
        rows = [torch.ones_like(bins), *(value.to(torch.int64) for value in values)]
        empty = torch.zeros(count, dtype=torch.int64, device=bins.device)
        return torch.stack([empty.index_add(0, bins, row) for row in rows])

    return UncertaintyCounts(
        totals=torch.stack(
            [
                valid.sum(),
                (nll * _NLL_STEPS_PER_NAT).round().to(torch.int64).sum(),
                *(mask.sum() for mask in covered),
            ]
        ),
        reliability=binned(
            (probability * _RELIABILITY_BINS).to(torch.int64).clamp(max=_RELIABILITY_BINS - 1),
            _RELIABILITY_BINS,
            (probability * STEPS_PER_PX).round(),
            error_px < RELIABLE_WITHIN_PX,
        ),
        by_doubt=binned(
            ((doubt + _LOG_VARIANCE_LIMIT) * (_LOG_VARIANCE_BINS / (2 * _LOG_VARIANCE_LIMIT)))
            .nan_to_num(nan=_LOG_VARIANCE_BINS)
            .clamp(0, _LOG_VARIANCE_BINS - 1)
            .to(torch.int64),
            _LOG_VARIANCE_BINS,
            steps,
            bad,
        ),
        by_error=binned((error_px.view(torch.int32) >> _ERROR_BIN_BITS).to(torch.int64), _ERROR_BINS, steps),
    )


@torch.no_grad()
def error_ratio_counts(
    disparity_px: Float[Tensor, "B 1 H W"],
    log_variance: Float[Tensor, "B 1 H W"],
    true_disparity_px: Float[Tensor, "B 1 H W"],
) -> Int64[Tensor, "1024"]:
    """How many valid pixels have which |error| / sigma: counts per bin, which add up over batches and processes."""
    valid = valid_mask(true_disparity_px)
    error_px = absolute_error(disparity_px, true_disparity_px)[valid]
    doublings = (error_px.float().clamp(min=1e-9).log() - 0.5 * log_variance[valid].float()) / math.log(2)
    at = ((doublings + _RATIO_DOUBLINGS) * _RATIO_BINS_PER_DOUBLING).nan_to_num(nan=RATIO_BINS).clamp(0, RATIO_BINS - 1)
    return torch.bincount(at.to(torch.int64), minlength=RATIO_BINS)


def fitted_scale(ratio_counts: Int64[Tensor, "1024"], distribution: str) -> float:
    """The factor on the standard deviation with which the 68 % interval holds 68 % of the errors; 1 for no errors.

    One number for all pixels, after training (Levi et al., "Evaluating and calibrating uncertainty prediction in
    regression tasks", Sensors 2022, section 3.2). By a share rather than by likelihood: the few gross errors of what
    one eye alone sees would widen every pixel's interval.
    """
    counts = ratio_counts.cpu().numpy()
    if counts.sum() == 0:
        return 1.0
    ends = np.arange(1, len(counts) + 1) / _RATIO_BINS_PER_DOUBLING - _RATIO_DOUBLINGS
    doublings = np.interp(_FITTED_SHARE * counts.sum(), np.cumsum(counts), ends)
    return float(2.0**doublings / DISTRIBUTIONS[distribution].interval(_FITTED_SHARE))


def _sparsification(
    by_doubt: tuple[np.ndarray, np.ndarray], by_oracle: tuple[np.ndarray, np.ndarray]
) -> SparsificationCurve:
    """Curves from (pixels, summed error) per bin, in rising order of what ranks them.

    Pixels of one bin go in random order, so that the error of a part of a bin is that part of its sum.
    """
    total, error = int(by_doubt[0].sum()), float(by_doubt[1].sum())
    kept = (1 - _REMOVED_SHARES) * total

    def curve(pixels: np.ndarray, errors: np.ndarray) -> np.ndarray:
        used = pixels > 0
        ends = np.concatenate([[0], np.cumsum(pixels[used])])
        sums = np.concatenate([[0.0], np.cumsum(errors[used])])
        return np.interp(kept, ends, sums) / kept

    return SparsificationCurve(
        removed=_REMOVED_SHARES, by_doubt=curve(*by_doubt), by_oracle=curve(*by_oracle), at_random=error / total
    )

"""Calibration and ranking of predicted uncertainty, as sums and counts of whole numbers that merge exactly.

Coverage and reliability measure whether the predicted standard deviation fits the errors; sparsification measures
whether the most uncertain pixels are those with the largest errors.
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

from foundation_stereo_depth.metrics import STEPS_PER_PX, absolute_error, round_to_steps
from foundation_stereo_depth.stereo.disparity import valid_mask

COVERAGE_FRACTIONS = (0.50, 0.68, 0.90, 0.95)
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
_LARGEST_SIGMA_PX = 2.0**15
_RATIO_BINS_PER_DOUBLING, _RATIO_DOUBLINGS = 32, 16
"""Errors are counted by their ratio to the standard deviation, from 2^-16 to 2^16 of it, in steps of 2 %."""
RATIO_BINS = 2 * _RATIO_DOUBLINGS * _RATIO_BINS_PER_DOUBLING
_FITTED_FRACTION = 0.68
_REMOVED_FRACTIONS = np.linspace(0.0, 0.99, 100)


class Distribution(NamedTuple):
    """How errors are distributed, given their standard deviation.

    Attributes:
        nll: (error in px, log-variance) -> (log of what divides the error, -log density), nats.
        within: (t / sigma) -> P(|error| < t).
        interval: P -> half the width of the interval that contains this fraction of the errors, in sigma.
    """

    nll: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    within: Callable[[Tensor], Tensor]
    interval: Callable[[float], float]


def gaussian_nll(error_px: Tensor, log_variance: Tensor) -> tuple[Tensor, Tensor]:
    """Return (log variance, -log N(error; 0, variance)), nats: (e^2 / v + log v + log 2 pi) / 2."""
    nll = 0.5 * (error_px.square() * (-log_variance).exp() + log_variance + math.log(2 * math.pi))
    return log_variance, nll


def laplace_nll(error_px: Tensor, log_variance: Tensor) -> tuple[Tensor, Tensor]:
    """Return (log b, -log Laplace(error; 0, b)), nats: |e| / b + log 2 b, where the variance is 2 b^2."""
    log_b = 0.5 * (log_variance - math.log(2))
    return log_b, error_px.abs() * (-log_b).exp() + log_b + math.log(2)


def _within_gaussian(t: Tensor) -> Tensor:
    return torch.erf(t / math.sqrt(2))


def _within_laplace(t: Tensor) -> Tensor:
    return -torch.expm1(-t * math.sqrt(2))  # 1 - exp(-t / b) with b = sigma / sqrt 2


def _gaussian_interval(fraction: float) -> float:
    return NormalDist().inv_cdf((1 + fraction) / 2)


def _laplace_interval(fraction: float) -> float:
    return -math.log1p(-fraction) / math.sqrt(2)


DISTRIBUTIONS = {
    "gaussian": Distribution(gaussian_nll, _within_gaussian, _gaussian_interval),
    "laplace": Distribution(laplace_nll, _within_laplace, _laplace_interval),
}


def probability_within(
    threshold_px: float, sigma_px: Float[Tensor, "*shape"], distribution: str
) -> Float[Tensor, "*shape"]:
    """Return P(|error| < threshold), 0 to 1, of an error with this standard deviation and distribution."""
    return DISTRIBUTIONS[distribution].within(threshold_px / sigma_px)


class ReliabilityCurve(NamedTuple):
    """Predicted P(|error| < 1 px) against the fraction of pixels with such errors; one entry per bin in use."""

    predicted: Float[np.ndarray, " bins"]
    observed: Float[np.ndarray, " bins"]
    pixels: Int64[np.ndarray, " bins"]


class SparsificationCurve(NamedTuple):
    """The mean error of the pixels that remain after a fraction of them is removed.

    Attributes:
        removed: the fraction, from 0 to 0.99.
        by_uncertainty: the most uncertain pixels are removed first.
        by_oracle: the largest errors are removed first: the lowest curve possible.
        at_random: random pixels are removed: the mean error, whatever the fraction.
    """

    removed: Float[np.ndarray, "100"]
    by_uncertainty: Float[np.ndarray, "100"]
    by_oracle: Float[np.ndarray, "100"]
    at_random: float

    @property
    def ause(self) -> float:
        """The area between the curve by uncertainty and the oracle's: 0 is a perfect ranking."""
        return float(np.trapezoid(self.by_uncertainty - self.by_oracle, self.removed))

    @property
    def ause_random(self) -> float:
        """The area between a random order and the oracle's: a useful ranking has less."""
        return float(np.trapezoid(self.at_random - self.by_oracle, self.removed))


@dataclass(frozen=True, kw_only=True)
class UncertaintyCounts:
    """Counts over any number of valid pixels, on the device they were counted on.

    Attributes:
        totals: [valid pixels, -log likelihood in 2^-16 nat, errors within the 50, 68, 90 and 95 % interval].
        reliability: per bin of P(|error| < 1 px): pixels, the sum of P in 2^-20, and the number of such errors.
        by_uncertainty: per bin of log-variance: pixels, error in 2^-20 px, and bad-1.
        by_error: per bin of error: pixels, and error in 2^-20 px.
    """

    totals: Int64[Tensor, "6"]
    reliability: Int64[Tensor, "3 20"]
    by_uncertainty: Int64[Tensor, "3 4096"]
    by_error: Int64[Tensor, "2 8161"]

    @classmethod
    def none(cls, device: torch.device) -> "UncertaintyCounts":
        """Return counts over no pixels."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int64, device=device)

        return cls(
            totals=zeros(2 + len(COVERAGE_FRACTIONS)),
            reliability=zeros(3, _RELIABILITY_BINS),
            by_uncertainty=zeros(3, _LOG_VARIANCE_BINS),
            by_error=zeros(2, _ERROR_BINS),
        )

    def __add__(self, other: "UncertaintyCounts") -> "UncertaintyCounts":
        return UncertaintyCounts(
            totals=self.totals + other.totals,
            reliability=self.reliability + other.reliability,
            by_uncertainty=self.by_uncertainty + other.by_uncertainty,
            by_error=self.by_error + other.by_error,
        )

    def figures(self) -> dict[str, float]:
        """Return NLL in nats, coverage and calibration error of P(|error| < 1 px) in percent, AUSE in px and percent.

        AUSE is against the oracle, with that of a random order beside it. Empty where no pixel was valid.
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
                f"coverage_{100 * fraction:.0f}_percent": 100 * count / valid
                for fraction, count in zip(COVERAGE_FRACTIONS, covered, strict=True)
            },
            "calibration_error_percent": 100 * float((gaps * reliable.pixels).sum()) / valid,
            "ause_epe_px": epe.ause,
            "ause_epe_random_px": epe.ause_random,
            "ause_bad_1_percent": bad.ause,
            "ause_bad_1_random_percent": bad.ause_random,
        }

    def reliability_curve(self) -> ReliabilityCurve:
        """Return predicted against observed P(|error| < 1 px)."""
        pixels, probability, hits = self.reliability.cpu().numpy()
        used = pixels > 0
        pixels = pixels[used]
        return ReliabilityCurve(probability[used] / STEPS_PER_PX / pixels, hits[used] / pixels, pixels)

    def sparsification_of_epe(self) -> SparsificationCurve:
        """Return the curve of the mean absolute error, px."""
        pixels, error, _ = self.by_uncertainty.cpu().numpy()
        oracle_pixels, oracle_error = self.by_error.cpu().numpy()
        return _sparsification((pixels, error / STEPS_PER_PX), (oracle_pixels, oracle_error / STEPS_PER_PX))

    def sparsification_of_bad(self) -> SparsificationCurve:
        """Return the curve of the fraction of errors above 1 px, percent."""
        pixels, _, bad = self.by_uncertainty.cpu().numpy()
        good_then_bad = np.array([pixels.sum() - bad.sum(), bad.sum()])
        return _sparsification((pixels, 100.0 * bad), (good_then_bad, good_then_bad * [0.0, 100.0]))


@torch.no_grad()
def uncertainty_counts(
    disparity_px: Float[Tensor, "B 1 H W"],
    log_variance: Float[Tensor, "B 1 H W"],
    true_disparity_px: Float[Tensor, "B 1 H W"],
    distribution: str,
) -> UncertaintyCounts:
    """Return the counts over the pixels with known ground truth.

    Args:
        disparity_px: predicted.
        log_variance: of its error, natural logarithm of px^2.
        true_disparity_px: NaN or 0 where unknown.
        distribution: of the error, a key of DISTRIBUTIONS.
    """
    error_law = DISTRIBUTIONS[distribution]
    valid = valid_mask(true_disparity_px)
    error_px = absolute_error(disparity_px, true_disparity_px)[valid]
    log_variances = log_variance[valid].float()
    steps, bad = round_to_steps(error_px), error_px > _BAD_PX

    # In float64: the last bit of exp differs between vector and scalar code, and must not change a count.
    exact_px, exact_log = error_px.double(), log_variances.double()
    sigma_px = (0.5 * exact_log).exp()
    nll = error_law.nll(exact_px, exact_log)[1].nan_to_num(nan=_LARGEST_NLL).clamp(max=_LARGEST_NLL)
    covered = [exact_px <= error_law.interval(fraction) * sigma_px for fraction in COVERAGE_FRACTIONS]
    probability = error_law.within(RELIABLE_WITHIN_PX / sigma_px).nan_to_num(nan=0.0)

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
        by_uncertainty=binned(
            ((log_variances + _LOG_VARIANCE_LIMIT) * (_LOG_VARIANCE_BINS / (2 * _LOG_VARIANCE_LIMIT)))
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
def likelihood_sums(
    disparity_px: Float[Tensor, "B 1 H W"],
    log_variance: Float[Tensor, "B 1 H W"],
    true_disparity_px: Float[Tensor, "B 1 H W"],
    distribution: str,
) -> Int64[Tensor, "3"]:
    """Return [valid pixels, standard deviation in 2^-20 px, -log likelihood in 2^-16 nat]; sums of batches add up."""
    valid = valid_mask(true_disparity_px)
    log_variances = torch.where(valid, log_variance.float(), 0.0)
    sigma_px = (0.5 * log_variances).exp().nan_to_num(nan=_LARGEST_SIGMA_PX).clamp(max=_LARGEST_SIGMA_PX)
    nll = DISTRIBUTIONS[distribution].nll(absolute_error(disparity_px, true_disparity_px), log_variances)[1]
    nll_steps = (nll.nan_to_num(nan=_LARGEST_NLL).clamp(max=_LARGEST_NLL) * _NLL_STEPS_PER_NAT).round().to(torch.int64)
    return torch.stack([valid.sum(), (round_to_steps(sigma_px) * valid).sum(), (nll_steps * valid).sum()])


def likelihood_figures(sums: Int64[Tensor, "3"]) -> dict[str, float]:
    """Return the mean standard deviation in px and the mean NLL in nats; empty where no pixel was valid."""
    valid, sigma, nll = sums.tolist()
    if valid == 0:
        return {}
    return {"mean_sigma_px": sigma / STEPS_PER_PX / valid, "nll_nat": nll / _NLL_STEPS_PER_NAT / valid}


@torch.no_grad()
def error_ratio_counts(
    disparity_px: Float[Tensor, "B 1 H W"],
    log_variance: Float[Tensor, "B 1 H W"],
    true_disparity_px: Float[Tensor, "B 1 H W"],
) -> Int64[Tensor, "1024"]:
    """Return the number of valid pixels per bin of |error| / sigma; counts add up over batches and processes."""
    valid = valid_mask(true_disparity_px)
    error_px = absolute_error(disparity_px, true_disparity_px)[valid]
    doublings = (error_px.float().clamp(min=1e-9).log() - 0.5 * log_variance[valid].float()) / math.log(2)
    at = ((doublings + _RATIO_DOUBLINGS) * _RATIO_BINS_PER_DOUBLING).nan_to_num(nan=RATIO_BINS).clamp(0, RATIO_BINS - 1)
    return torch.bincount(at.to(torch.int64), minlength=RATIO_BINS)


def fitted_scale(ratio_counts: Int64[Tensor, "1024"], distribution: str) -> float:
    """Return the factor on the standard deviation with which the 68 % interval contains 68 % of the errors.

    It is 1 where there are no errors.

    One number for all pixels, after training (Levi et al., "Evaluating and calibrating uncertainty prediction in
    regression tasks", Sensors 2022, section 3.2). A quantile is fitted rather than the likelihood: the few gross errors
    of occluded pixels would widen every pixel's interval.
    """
    counts = ratio_counts.cpu().numpy()
    if counts.sum() == 0:
        return 1.0
    ends = np.arange(1, len(counts) + 1) / _RATIO_BINS_PER_DOUBLING - _RATIO_DOUBLINGS
    doublings = np.interp(_FITTED_FRACTION * counts.sum(), np.cumsum(counts), ends)
    return float(2.0**doublings / DISTRIBUTIONS[distribution].interval(_FITTED_FRACTION))


def _sparsification(
    by_uncertainty: tuple[np.ndarray, np.ndarray], by_oracle: tuple[np.ndarray, np.ndarray]
) -> SparsificationCurve:
    """Return curves from (pixels, summed error) per bin, in increasing order of what ranks them.

    Pixels of one bin are removed in random order, so a part of a bin has that part of its error.
    """
    total, error = int(by_uncertainty[0].sum()), float(by_uncertainty[1].sum())
    kept = (1 - _REMOVED_FRACTIONS) * total

    def curve(pixels: np.ndarray, errors: np.ndarray) -> np.ndarray:
        used = pixels > 0
        ends = np.concatenate([[0], np.cumsum(pixels[used])])
        sums = np.concatenate([[0.0], np.cumsum(errors[used])])
        return np.interp(kept, ends, sums) / kept

    return SparsificationCurve(
        removed=_REMOVED_FRACTIONS,
        by_uncertainty=curve(*by_uncertainty),
        by_oracle=curve(*by_oracle),
        at_random=error / total,
    )

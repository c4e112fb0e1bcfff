import math
from statistics import NormalDist

import numpy as np
import pytest
import torch

from foundation_stereo_depth.stereo.confidence import DISTRIBUTION_NAMES, probability_within
from foundation_stereo_depth.uncertainty import DISTRIBUTIONS, UncertaintyCounts, uncertainty_counts

JUST = 1e-4


def counts_of(
    errors_px: list[float], sigmas_px: list[float], distribution: str = "gaussian", truth_px: float = 50.0
) -> UncertaintyCounts:
    shape = (1, 1, 1, len(errors_px))
    truth = torch.full(shape, truth_px)
    log_variance = 2 * torch.tensor(sigmas_px, dtype=torch.float64).log().float().view(shape)
    return uncertainty_counts(truth + torch.tensor(errors_px).view(shape), log_variance, truth, distribution)


@pytest.mark.parametrize(
    ("distribution", "share", "halfwidth"),
    [
        ("gaussian", 50, 0.67449),
        ("gaussian", 68, 0.99446),
        ("gaussian", 90, 1.64485),
        ("gaussian", 95, 1.95996),
        # -log(1 - P) / sqrt 2
        ("laplace", 50, 0.49013),
        ("laplace", 68, 0.80570),
        ("laplace", 90, 1.62818),
        ("laplace", 95, 2.11832),
    ],
)
@pytest.mark.parametrize("sign", [-1, 1])
def test_an_interval_ends_where_its_distribution_says(distribution: str, share: int, halfwidth: float, sign: int):
    name = f"coverage_{share}_percent"
    inside = counts_of([sign * 4.0 * (halfwidth - JUST)], [4.0], distribution).figures()
    outside = counts_of([sign * 4.0 * (halfwidth + JUST)], [4.0], distribution).figures()
    assert (inside[name], outside[name]) == (100, 0)


def test_probabilities_agree_with_the_intervals_and_with_the_standard_library() -> None:
    for law in DISTRIBUTIONS.values():
        for share in (0.1, 0.5, 0.68, 0.9, 0.95):
            within = law.within(torch.tensor(law.interval(share), dtype=torch.float64))
            assert float(within) == pytest.approx(share, abs=1e-12)
    t = torch.tensor(0.7, dtype=torch.float64)
    assert float(DISTRIBUTIONS["gaussian"].within(t)) == pytest.approx(2 * NormalDist().cdf(0.7) - 1)
    assert float(DISTRIBUTIONS["laplace"].within(t)) == pytest.approx(1 - math.exp(-0.7 * math.sqrt(2)))


def test_hand_worked_likelihoods() -> None:
    # e = 2, sigma = 2: (1 + log 4 + log 2 pi) / 2; and with b = sqrt 2: 2 / sqrt 2 + log(2 sqrt 2)
    assert counts_of([2.0], [2.0]).figures()["nll_nat"] == pytest.approx(
        (1 + math.log(4) + math.log(2 * math.pi)) / 2, abs=1e-5
    )
    assert counts_of([2.0], [2.0], "laplace").figures()["nll_nat"] == pytest.approx(
        math.sqrt(2) + math.log(2 * math.sqrt(2)), abs=1e-5
    )


@pytest.mark.parametrize(("error_px", "hit"), [(1 - JUST, 1.0), (1.0, 0.0), (1 + JUST, 0.0), (-1 + JUST, 1.0)])
def test_reliability_counts_errors_below_a_pixel(error_px: float, hit: float) -> None:
    curve = counts_of([error_px], [1.0]).reliability_curve()
    assert curve.observed.tolist() == [hit]
    assert curve.predicted[0] == pytest.approx(math.erf(1 / math.sqrt(2)), abs=1e-5)


def test_a_hand_worked_calibration_error() -> None:
    # Laplace: P(|e| < 1) is 1 - exp(-sqrt 2 / sigma) = 0.5 at sigma = sqrt 2 / log 2, and 0.9 at sqrt 2 / log 10.
    half, sure = math.sqrt(2) / math.log(2), math.sqrt(2) / math.log(10)
    counts = counts_of([0.5, 0.5, 0.5, 5.0, 0.5, 0.5], [half * 0.99] * 4 + [sure * 0.99] * 2, "laplace")
    curve = counts.reliability_curve()
    assert curve.predicted == pytest.approx([0.5, 0.9], abs=0.01)
    assert curve.observed.tolist() == [0.75, 1.0]
    assert curve.pixels.tolist() == [4, 2]
    expected = 100 * (4 * (0.75 - curve.predicted[0]) + 2 * (1 - curve.predicted[1])) / 6
    assert counts.figures()["calibration_error_percent"] == pytest.approx(expected)


def test_a_perfect_order_has_no_area_a_constant_one_the_random_area_and_the_reverse_more() -> None:
    errors = [0.1 * 1.1**i for i in range(60)]
    perfect = counts_of(errors, errors).figures()
    constant = counts_of(errors, [1.0] * 60).figures()
    reverse = counts_of(errors, errors[::-1]).figures()
    for name in ("ause_epe_px", "ause_bad_1_percent"):
        random = name.replace("_px", "_random_px").replace("_percent", "_random_percent")
        assert perfect[name] == pytest.approx(0, abs=1e-9)
        assert constant[name] == pytest.approx(constant[random])
        assert reverse[name] > constant[name] > 0
        assert perfect[random] == pytest.approx(constant[random])


def test_the_curves_of_a_hand_worked_case() -> None:
    # Four pixels; the two of greatest doubt err by 4 and 0 px, the others by 2 and 0.
    counts = counts_of([0.0, 2.0, 4.0, 0.0], [0.1, 0.1, 8.0, 9.0])
    curve = counts.sparsification_of_epe()
    assert curve.at_random == 1.5
    np.testing.assert_allclose(curve.by_uncertainty[[0, 25, 50]], [1.5, 2.0, 1.0])
    np.testing.assert_allclose(curve.by_oracle[[0, 25, 50, 75]], [1.5, 2 / 3, 0, 0], atol=1e-12)
    bad = counts.sparsification_of_bad()
    np.testing.assert_allclose(bad.by_uncertainty[[0, 25, 50]], [50, 200 / 3, 50])
    np.testing.assert_allclose(bad.by_oracle[[0, 25, 50, 75]], [50, 100 / 3, 0, 0], atol=1e-12)


@pytest.mark.parametrize(("error_px", "percent"), [(1.0, 0.0), (1 + JUST, 100.0)])
def test_bad_1_is_strictly_above_a_pixel_here_too(error_px: float, percent: float) -> None:
    assert counts_of([error_px], [1.0]).sparsification_of_bad().at_random == percent


def test_the_histogram_agrees_with_sorting_every_pixel() -> None:
    random = np.random.default_rng(0)
    sigma = np.exp(random.normal(size=5000)).astype(np.float32)
    error = np.abs(random.normal(size=5000).astype(np.float32) * sigma)
    curve = counts_of(error.tolist(), sigma.tolist()).sparsification_of_epe()
    for by, key in ((curve.by_uncertainty, sigma), (curve.by_oracle, error)):
        ordered = error[np.argsort(key)]
        oracle = [ordered[: round(5000 * (1 - share))].mean() for share in curve.removed]
        np.testing.assert_allclose(by, oracle, atol=0.01)


@pytest.mark.parametrize("distribution", ["gaussian", "laplace"])
def test_errors_drawn_from_the_distribution_are_covered_as_it_says(distribution: str) -> None:
    random = np.random.default_rng(1)
    sigma = np.exp(random.uniform(-2, 2, 40_000))
    unit = random.normal(size=40_000) if distribution == "gaussian" else random.laplace(size=40_000) / math.sqrt(2)
    figures = counts_of((unit * sigma).tolist(), sigma.tolist(), distribution).figures()
    for share in (50, 68, 90, 95):
        assert figures[f"coverage_{share}_percent"] == pytest.approx(share, abs=1.0)
    assert figures["calibration_error_percent"] < 1.5


def test_unknown_truth_counts_for_nothing() -> None:
    counts = counts_of([1.0, math.nan], [1.0, 1.0], truth_px=math.nan)
    assert counts.figures() == {}
    none = UncertaintyCounts.none(torch.device("cpu"))
    assert none.figures() == {}
    assert all(torch.equal(getattr(none, name), getattr(counts, name)) for name in vars(none))


@pytest.mark.parametrize("wild", [math.nan, math.inf])
def test_predictions_that_are_no_number_are_counted_as_wrong(wild: float) -> None:
    figures = counts_of([wild, 0.0], [1.0, 1.0]).figures()
    assert figures["coverage_95_percent"] == 50
    assert all(math.isfinite(value) for value in figures.values())
    assert all(math.isfinite(value) for value in counts_of([1.0, 0.0], [math.nan, 1.0]).figures().values())


def test_parts_merge_exactly_in_any_order() -> None:
    generator = torch.Generator().manual_seed(0)
    truth, predicted = (torch.rand(12, 1, 37, 61, generator=generator) * 100 for _ in range(2))
    truth[truth < 10] = math.nan
    log_variance = torch.randn(12, 1, 37, 61, generator=generator) * 3
    whole = uncertainty_counts(predicted, log_variance, truth, "laplace")
    for cuts in ([1] * 12, [5, 7], [3, 4, 5]):
        maps = zip(predicted.split(cuts), log_variance.split(cuts), truth.split(cuts), strict=True)
        parts = [uncertainty_counts(*part, "laplace") for part in maps]
        for order in (parts, parts[::-1]):
            merged = UncertaintyCounts.none(torch.device("cpu"))
            for part in order:
                merged += part
            assert all(torch.equal(getattr(merged, name), getattr(whole, name)) for name in vars(whole))


def test_confidence_of_arrays_is_that_of_tensors() -> None:
    assert tuple(DISTRIBUTIONS) == DISTRIBUTION_NAMES
    sigma_px = np.geomspace(0.01, 100, 61, dtype=np.float32)
    for name, law in DISTRIBUTIONS.items():
        found = probability_within(1.0, sigma_px, name)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, law.within(torch.from_numpy(1.0 / sigma_px)).numpy(), rtol=1e-5)

import math

import pytest
import torch

from foundation_stereo_depth.metrics import DisparityErrors, disparity_errors

JUST = 1e-3


def figures_of(predicted_px: list[float], true_px: list[float]) -> dict[str, float]:
    shape = (1, 1, 1, len(true_px))
    return disparity_errors(torch.tensor(predicted_px).view(shape), torch.tensor(true_px).view(shape)).figures()


@pytest.mark.parametrize("threshold", [0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("sign", [-1, 1])
def test_bad_n_is_strictly_above_n(threshold: float, sign: int) -> None:
    name = f"bad_{threshold:g}_percent"
    assert figures_of([20 + sign * threshold], [20.0])[name] == 0
    assert figures_of([20 + sign * (threshold + JUST)], [20.0])[name] == 100


@pytest.mark.parametrize(
    ("truth_px", "error_px", "wrong"),
    [
        (10.0, 3.0, False),
        (10.0, 3.0 + JUST, True),  # 5 % of 10 px is less than 3 px
        (100.0, 4.0, False),  # above 3 px, but under 5 %
        (100.0, 5.0 - JUST, False),
        (100.0, 5.0 + JUST, True),
        (60.0, 3.0 + JUST, True),  # both limits meet at 60 px
        (60.0, 3.0 - JUST, False),
    ],
)
def test_d1_needs_both_limits(truth_px: float, error_px: float, wrong: bool) -> None:
    assert figures_of([truth_px + error_px], [truth_px])["d1_percent"] == 100 * wrong


def test_a_hand_worked_case() -> None:
    #        errors:   0    0.5   1.5   2.5   10    (unknown)
    figures = figures_of([5.0, 5.5, 6.5, 7.5, 15.0, 99.0, 99.0], [5.0, 5.0, 5.0, 5.0, 5.0, math.nan, 0.0])
    assert figures == pytest.approx(
        {
            "epe_px": 14.5 / 5,
            "rmse_px": math.sqrt((0.25 + 2.25 + 6.25 + 100) / 5),
            "bad_0.5_percent": 60.0,  # exactly half a pixel is not bad
            "bad_1_percent": 60.0,
            "bad_2_percent": 40.0,
            "bad_3_percent": 20.0,
            "d1_percent": 20.0,
        },
        abs=1e-6,
    )


def test_nothing_valid_gives_no_figures() -> None:
    assert figures_of([1.0, 2.0], [math.nan, 0.0]) == {}
    assert DisparityErrors.none(torch.device("cpu")).figures() == {}


def test_parts_merge_exactly_in_any_order() -> None:
    generator = torch.Generator().manual_seed(0)
    truth, predicted = (torch.rand(12, 1, 37, 61, generator=generator) * 100 for _ in range(2))
    whole = disparity_errors(predicted, truth)
    for cuts in ([1] * 12, [5, 7], [3, 4, 5]):
        parts = [disparity_errors(p, t) for p, t in zip(predicted.split(cuts), truth.split(cuts), strict=True)]
        for order in (parts, parts[::-1]):
            merged = DisparityErrors.none(torch.device("cpu"))
            for part in order:
                merged += part
            assert torch.equal(merged.counts, whole.counts)


def test_wild_predictions_do_not_overflow() -> None:
    figures = figures_of([1e30, 5.0], [5.0, 5.0])
    assert figures["epe_px"] == 2.0**15 / 2


@pytest.mark.parametrize("wild", [math.nan, math.inf, -math.inf])
def test_a_prediction_that_is_no_number_is_as_wrong_as_can_be(wild: float) -> None:
    figures = figures_of([wild, 5.0], [5.0, 5.0])
    assert figures["epe_px"] == 2.0**15 / 2
    assert figures["rmse_px"] == pytest.approx(2.0**12 / math.sqrt(2))
    assert {value for name, value in figures.items() if name.endswith("percent")} == {50.0}


def test_a_number_that_is_none_does_no_harm_where_the_truth_is_unknown() -> None:
    assert figures_of([math.nan, 5.0], [math.nan, 5.0])["epe_px"] == 0

import math

import pytest
import torch

from foundation_stereo_depth.model import StereoPrediction
from foundation_stereo_depth.options.training import LossOptions
from foundation_stereo_depth.training.loss import heteroscedastic_loss, loss_terms, loss_weights, weighted_loss


def prediction_of(disparity_px: float, sigma_px: float, shape=(2, 1, 5, 7)) -> StereoPrediction:
    return StereoPrediction(
        torch.full(shape, disparity_px, requires_grad=True),
        torch.full(shape, 2 * math.log(sigma_px), requires_grad=True),
    )


@pytest.mark.parametrize("name", ["gaussian", "laplace"])
def test_loss_without_beta_is_the_likelihood_of_torch(name: str) -> None:
    truth = torch.rand(2, 1, 5, 7) * 10 + 0.1
    prediction = prediction_of(5.0, 1.7)
    sigma = torch.tensor(1.7)
    distribution = {
        "gaussian": torch.distributions.Normal(5.0, sigma),
        "laplace": torch.distributions.Laplace(5.0, sigma / math.sqrt(2)),
    }[name]
    loss = heteroscedastic_loss(prediction, truth, LossOptions(loss=name, nll_beta=0.0))
    torch.testing.assert_close(loss.total, -distribution.log_prob(truth).sum(), rtol=1e-5, atol=1e-4)
    assert loss.valid == 70


@pytest.mark.parametrize(("name", "expected"), [("gaussian", -1.0), ("laplace", -1.0)])
def test_beta_1_gives_disparity_the_gradient_of_l2_and_l1(name: str, expected: float) -> None:
    for sigma_px in (0.1, 1.0, 10.0):
        prediction = prediction_of(4.0, sigma_px)
        loss = heteroscedastic_loss(prediction, torch.full((2, 1, 5, 7), 5.0), LossOptions(loss=name, nll_beta=1.0))
        loss.total.backward()
        torch.testing.assert_close(prediction.disparity_px.grad, torch.full((2, 1, 5, 7), expected))


@pytest.mark.parametrize("name", ["gaussian", "laplace"])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_loss_is_minimal_at_the_true_sigma(name: str, beta: float) -> None:
    errors = torch.distributions.Normal(0.0, 2.0).sample((1, 1, 200, 200))
    true_sigma_px = {"gaussian": 2.0, "laplace": 2.0 * math.sqrt(2 / math.pi) * math.sqrt(2)}[name]
    gradients = []
    for sigma_px in (true_sigma_px * 0.9, true_sigma_px * 1.1):
        prediction = prediction_of(50.0, sigma_px, (1, 1, 200, 200))
        loss = heteroscedastic_loss(prediction, 50 + errors, LossOptions(loss=name, nll_beta=beta))
        gradients.append(torch.autograd.grad(loss.total, prediction.log_variance)[0].sum())
    assert gradients[0] < 0 < gradients[1]


@pytest.mark.parametrize("name", ["gaussian", "laplace"])
def test_loss_ignores_unknown_pixels(name: str) -> None:
    truth = torch.full((1, 1, 2, 3), 6.0)
    truth[..., 0, :] = torch.tensor([math.nan, 0.0, math.inf])
    prediction = prediction_of(4.0, 1.0, (1, 1, 2, 3))
    loss = heteroscedastic_loss(prediction, truth, LossOptions(loss=name))
    loss.total.backward()
    assert loss.valid == 3
    for grad in (prediction.disparity_px.grad, prediction.log_variance.grad):
        assert (grad[..., 0, :] == 0).all()
        assert (grad[..., 1, :] != 0).all()


@pytest.mark.parametrize("name", ["gaussian", "laplace"])
def test_a_batch_without_a_valid_pixel_has_zero_loss_and_zero_gradient(name: str) -> None:
    prediction = prediction_of(4.0, 1.0)
    loss = heteroscedastic_loss(prediction, torch.full((2, 1, 5, 7), math.nan), LossOptions(loss=name))
    (loss.total / loss.valid.clamp(min=1)).backward()
    assert loss.total == 0
    assert loss.valid == 0
    assert (prediction.disparity_px.grad == 0).all()


def test_loss_is_computed_in_float32() -> None:
    half = StereoPrediction(torch.full((1, 1, 300, 300), 4.0).bfloat16(), torch.zeros(1, 1, 300, 300).bfloat16())
    loss = heteroscedastic_loss(half, torch.full((1, 1, 300, 300), 5.0), LossOptions(nll_beta=0.0))
    assert loss.total.dtype == torch.float32
    assert float(loss.total) / 90000 == pytest.approx(math.sqrt(2) + math.log(math.sqrt(2)), rel=1e-4)


def test_loss_sums_of_parts_add_up() -> None:
    truth, prediction = torch.rand(4, 1, 5, 7) * 9, prediction_of(4.0, 1.0, (4, 1, 5, 7))
    together = heteroscedastic_loss(prediction, truth, LossOptions())
    parts = [
        heteroscedastic_loss(StereoPrediction(*(t[i : i + 2] for t in prediction[:2])), truth[i : i + 2], LossOptions())
        for i in (0, 2)
    ]
    torch.testing.assert_close(together.total, parts[0].total + parts[1].total)
    assert together.valid == parts[0].valid + parts[1].valid


def test_only_a_prediction_with_regions_has_the_region_term() -> None:
    truth = torch.full((2, 1, 5, 7), 11.0)
    plain = prediction_of(4.0, 1.0)
    assert list(loss_terms(plain, truth, LossOptions())) == ["nll"]
    guided = plain._replace(region_px=torch.full((2, 1, 3, 4), 8.0))
    terms = loss_terms(guided, truth, LossOptions())
    # 24 regions of four pixels each, 3 px off: 10 log(1 + 3 / 10)
    assert float(terms["region"].total) == pytest.approx(4 * 24 * 10 * math.log(1.3), rel=1e-6)
    assert terms["region"].valid == terms["nll"].valid == 70


def test_the_weighted_loss_is_the_sum_of_the_weighted_terms() -> None:
    options = LossOptions(region_weight=0.25)
    prediction = prediction_of(4.0, 1.0)._replace(region_px=torch.full((2, 1, 3, 4), 8.0))
    terms = loss_terms(prediction, torch.full((2, 1, 5, 7), 11.0), options)
    assert set(loss_weights(options)) == set(terms)
    loss = weighted_loss(terms, options)
    torch.testing.assert_close(loss.total, terms["nll"].total + 0.25 * terms["region"].total)
    assert loss.valid == 70

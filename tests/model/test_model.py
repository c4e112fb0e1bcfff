import pytest
import torch

from foundation_stereo_depth.model import create_network
from foundation_stereo_depth.model.unet import LOG_VARIANCE_RANGE
from foundation_stereo_depth.options.training import ModelOptions


def network_of(**changes) -> torch.nn.Module:
    torch.manual_seed(0)
    return create_network(ModelOptions(base_channels=8, depth=3, **changes))


@pytest.mark.parametrize(("B", "H", "W"), [(1, 32, 32), (2, 37, 61), (1, 240, 320), (1, 33, 200)])
def test_prediction_has_the_size_of_the_pair(B: int, H: int, W: int) -> None:
    disparity_px, log_variance = network_of()(torch.rand(B, 6, H, W))[:2]
    assert disparity_px.shape == log_variance.shape == (B, 1, H, W)
    assert disparity_px.dtype == log_variance.dtype == torch.float32
    assert (disparity_px > 0).all()
    assert (log_variance >= LOG_VARIANCE_RANGE[0]).all()
    assert (log_variance <= LOG_VARIANCE_RANGE[1]).all()


def test_fresh_network_predicts_a_plausible_disparity() -> None:
    disparity_px = network_of()(torch.rand(2, 6, 240, 320)).disparity_px
    assert 5 < disparity_px.mean() < 40


def test_single_pair_equals_the_same_pair_in_a_batch() -> None:
    network, pairs = network_of().eval(), torch.rand(3, 6, 37, 61)
    together = network(pairs)
    alone = network(pairs[1:2])
    torch.testing.assert_close(alone.disparity_px[0], together.disparity_px[1], atol=1e-3, rtol=1e-4)


def test_both_outputs_and_both_views_get_gradients() -> None:
    network = network_of()
    pair = torch.rand(1, 6, 40, 72, requires_grad=True)
    disparity_px, log_variance = network(pair)[:2]
    (disparity_px.mean() + log_variance.mean()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert pair.grad is not None
    assert (pair.grad.abs().sum((0, 2, 3)) > 0).all()


def test_bf16_returns_float32() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        disparity_px, log_variance = network_of()(torch.rand(1, 6, 64, 96))[:2]
    assert disparity_px.dtype == log_variance.dtype == torch.float32


def test_width_and_depth_determine_the_number_of_weights() -> None:
    def count(n):
        return sum(p.numel() for p in n.parameters())

    torch.manual_seed(0)
    assert count(create_network(ModelOptions(base_channels=16, depth=3))) > 3.5 * count(network_of())
    assert count(create_network(ModelOptions(base_channels=8, depth=4))) > count(network_of())

"""The network of older checkpoints gives what its plain formula gives, from weights under the names it had."""

import pytest
import torch
from torch.nn import functional as F

from foundation_stereo_depth.errors import CheckpointError
from foundation_stereo_depth.model.predecessor import PredecessorUNet, create_predecessor, is_predecessor


def random_network(*, predicts_uncertainty: bool = True) -> PredecessorUNet:
    torch.manual_seed(0)
    network = PredecessorUNet(base_channels=4, predicts_uncertainty=predicts_uncertainty)
    for part in network.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
            part.weight.data.uniform_(0.5, 2)
    return network.eval()


def block(x: torch.Tensor, weights: dict, name: str) -> torch.Tensor:
    for convolution, norm in ((0, 1), (3, 4)):
        x = F.conv2d(x, weights[f"{name}.block.{convolution}.weight"], padding=1)
        mean, var, gain, bias = (
            weights[f"{name}.block.{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        x = F.relu(F.batch_norm(x, mean, var, gain, bias))
    return x


@torch.inference_mode()
def test_forward_is_the_plain_formula() -> None:
    network = random_network()
    weights, pair = network.state_dict(), torch.rand(2, 6, 48, 64)
    x, skips = pair, []
    for level in range(1, 5):
        x = block(x, weights, f"enc{level}")
        skips.append(x)
        x = F.max_pool2d(x, 2)
    x = block(x, weights, "bottleneck")
    for level in range(4, 0, -1):
        x = F.conv_transpose2d(x, weights[f"up{level}.weight"], weights[f"up{level}.bias"], stride=2)
        x = block(torch.cat([x, skips.pop()], dim=1), weights, f"dec{level}")
    disparity_px = F.softplus(F.conv2d(x, weights["disparity_head.weight"], weights["disparity_head.bias"]))
    log_b = F.conv2d(x, weights["logvar_head.weight"], weights["logvar_head.bias"]).clamp(-6, 3)
    found = network(pair)
    torch.testing.assert_close(found.disparity_px, disparity_px, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.log_variance.exp(), 2 * log_b.exp() ** 2, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_any_size_is_padded_and_cropped() -> None:
    found = random_network()(torch.rand(1, 6, 37, 61))
    assert found.disparity_px.shape == found.log_variance.shape == (1, 1, 37, 61)


def test_weights_are_recognised_and_loaded() -> None:
    for predicts_uncertainty in (True, False):
        network = random_network(predicts_uncertainty=predicts_uncertainty)
        weights = network.state_dict()
        assert is_predecessor(weights)
        again, pair = create_predecessor(weights), torch.rand(1, 6, 32, 32)
        assert again.predicts_uncertainty is predicts_uncertainty
        with torch.inference_mode():
            torch.testing.assert_close(again(pair), network(pair), equal_nan=True)
    assert not is_predecessor({"stem.convolution.weight": torch.zeros(1)})


@pytest.mark.parametrize("change", ["shape", "missing", "channels"])
def test_weights_that_do_not_fit_are_refused(change: str) -> None:
    weights = dict(random_network().state_dict())
    if change == "shape":
        weights["up2.weight"] = torch.zeros(3, 3, 2, 2)
    elif change == "missing":
        del weights["dec4.block.3.weight"]
    else:
        weights["enc1.block.0.weight"] = torch.zeros(4, 3, 3, 3)
    with pytest.raises(CheckpointError):
        create_predecessor(weights)

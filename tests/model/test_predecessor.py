"""The network of older checkpoints gives what its plain formula gives, from weights under the names it had."""

import argparse

import pytest
import torch
from torch.nn import functional as F

from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.model.predecessor import (
    PredecessorUNet,
    predecessor_options,
    size_in_args,
    with_uncertainty_head,
)
from foundation_stereo_depth.options.training import ModelOptions


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


def test_weights_are_recognised_by_names_and_shapes() -> None:
    weights = random_network().state_dict()
    assert predecessor_options(weights) == ModelOptions(model="predecessor", base_channels=4)
    assert predecessor_options({"stem.convolution.weight": torch.zeros(1)}) is None
    weights["enc1.block.0.weight"] = torch.zeros(4, 3, 3, 3)  # takes one image
    assert predecessor_options(weights) is None
    with pytest.raises(UserError, match="--base-channels is 600"):
        predecessor_options(weights | {"enc1.block.0.weight": torch.zeros(600, 6, 3, 3)})


@torch.inference_mode()
def test_an_added_uncertainty_head_predicts_a_laplace_scale_of_1_px() -> None:
    older, pair = random_network(predicts_uncertainty=False), torch.rand(1, 6, 32, 32)
    assert older(pair).log_variance.isnan().all()
    network = PredecessorUNet(base_channels=4, predicts_uncertainty=True)
    network.load_state_dict(with_uncertainty_head(older.state_dict()))
    found = network.eval()(pair)
    torch.testing.assert_close(found.disparity_px, older(pair).disparity_px)
    torch.testing.assert_close(found.log_variance.exp(), torch.full((1, 1, 32, 32), 2.0))  # 2 b^2
    both = random_network().state_dict()
    assert with_uncertainty_head(both).keys() == both.keys()


@pytest.mark.parametrize(
    ("args", "size"),
    [
        ({"height": 240, "width": 320, "lr": 1e-3}, (240, 320)),
        (argparse.Namespace(img_height=96, img_width=128), (96, 128)),
        ({"image_size": [48, 64]}, (48, 64)),
        ({"height": 10**9, "width": True}, (None, None)),
        (None, (None, None)),
    ],
)
def test_the_size_stands_in_the_args(args: object, size: tuple) -> None:
    assert size_in_args(args) == size

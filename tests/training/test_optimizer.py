"""Muon's changes are orthogonal, of AdamW's size, and for hidden kernels alone."""

import pytest
import torch

from foundation_stereo_depth.model import create_network
from foundation_stereo_depth.options.training import ModelOptions, OptimizerOptions
from foundation_stereo_depth.training.optimizer import Muon, create_optimizers, orthogonalised


@pytest.mark.parametrize("shape", [(48, 300), (300, 48), (1, 9)])
def test_singular_values_come_near_one_and_singular_vectors_stay(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = 1e-3 * torch.randn(shape)
    found = orthogonalised(matrix)
    values = torch.linalg.svdvals(found)
    assert 0.6 < values.min() <= values.max() < 1.3
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    within = left.T @ found @ right.T  # diagonal, if the vectors are the same
    assert (within - within.diag().diag()).abs().max() < 2e-3


def test_no_singular_value_grows_far_beyond_one() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(64, 64) * torch.logspace(-6, 3, 64)
    assert torch.linalg.svdvals(orthogonalised(matrix)).max() < 1.3


def test_the_iterations_are_those_of_pytorchs_muon() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(32, 288)
    weight = torch.nn.Parameter(torch.zeros(32, 288))
    reference = torch.optim.Muon([weight], lr=1.0, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    weight.grad = matrix
    reference.step()
    expected = -weight.detach() / (0.2 * 288**0.5)
    assert (orthogonalised(matrix) - expected).norm() < 0.02 * expected.norm()  # which computes in bfloat16


def test_a_matrix_of_zeros_stays() -> None:
    assert torch.equal(orthogonalised(torch.zeros(3, 5)), torch.zeros(3, 5))


def test_a_change_is_as_large_as_adamws_would_be() -> None:
    torch.manual_seed(0)
    kernel = torch.nn.Parameter(torch.zeros(64, 32, 3, 3))
    optimizer = Muon([kernel], weight_decay=0.0)
    optimizer.param_groups[0]["lr"] = 1e-3
    kernel.grad = torch.randn_like(kernel)
    optimizer.step()
    assert kernel.detach().square().mean().sqrt() == pytest.approx(0.2e-3, rel=0.25)


@pytest.mark.parametrize("model", ["unet", "guided", "fused", "predecessor"])
def test_every_weight_has_one_optimizer_and_heads_have_adamw(model) -> None:
    network = create_network(ModelOptions(model=model, base_channels=8, depth=2))
    adamw, muon = create_optimizers(network, OptimizerOptions())
    of_muon = {id(weight) for group in muon.param_groups for weight in group["params"]}
    of_adamw = {id(weight) for group in adamw.param_groups for weight in group["params"]}
    assert not of_muon & of_adamw
    assert of_muon | of_adamw == {id(weight) for weight in network.parameters()}
    for name, weight in network.named_parameters():
        assert (id(weight) in of_muon) == (weight.ndim == 4 and "head" not in name), name


def test_adamw_alone_takes_every_weight() -> None:
    network = create_network(ModelOptions(base_channels=8, depth=2))
    (optimizer,) = create_optimizers(network, OptimizerOptions(optimizer="adamw"))
    assert len(optimizer.param_groups[0]["params"]) == len(list(network.parameters()))

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from foundation_stereo_depth import arguments
from foundation_stereo_depth.block_matching import PRIOR_PLANES, match_blocks, prior_planes
from foundation_stereo_depth.checkpoint import CHECKPOINT_FORMAT, CHECKPOINT_KIND, save_safetensors
from foundation_stereo_depth.data.fsd import find_samples, read_fsd_sample
from foundation_stereo_depth.data.sample import resize_sample
from foundation_stereo_depth.export import export_network
from foundation_stereo_depth.loss import heteroscedastic_loss, training_loss
from foundation_stereo_depth.model import (
    GuidedNetwork,
    StereoPrediction,
    TrainingPrediction,
    create_network,
    network_inputs,
    priors_of,
    wants_prior,
)
from foundation_stereo_depth.model.guided import CELL_PX, DISPARITIES
from foundation_stereo_depth.options import ExportOptions, LossOptions, ModelOptions
from foundation_stereo_depth.predict import Predictor
from foundation_stereo_depth.trained import DEFAULT_WEIGHTS
from foundation_stereo_depth.uncertainty import DISTRIBUTIONS


@pytest.fixture
def network() -> GuidedNetwork:
    torch.manual_seed(0)
    return GuidedNetwork(base_channels=8).eval()


def inputs_of(B: int, H: int, W: int, disparity_px: float = 7.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    pair = torch.rand(B, 6, H, W, generator=generator)
    prior = torch.cat([torch.full((B, 1, H, W), disparity_px), torch.ones(B, 1, H, W), pair[:, 3:]], dim=1)
    return pair, prior


@pytest.mark.parametrize(("B", "H", "W"), [(1, 32, 32), (2, 37, 61), (1, 240, 320), (1, 33, 200)])
def test_any_size_in_same_size_out(network: GuidedNetwork, B: int, H: int, W: int) -> None:
    answer = network(*inputs_of(B, H, W))
    assert isinstance(answer, StereoPrediction)
    assert answer.disparity_px.shape == answer.log_variance.shape == (B, 1, H, W)
    assert (answer.disparity_px >= 0).all()


@pytest.mark.parametrize("disparity_px", [0.0, 7.0, 90.0])
def test_a_fresh_network_says_about_what_the_matcher_said(network: GuidedNetwork, disparity_px: float) -> None:
    said_px = network(*inputs_of(2, 64, 96, disparity_px)).disparity_px
    assert (said_px - disparity_px).abs().mean() < 0.5 + 0.1 * disparity_px


def test_bf16_does_not_round_large_disparities(network: GuidedNetwork) -> None:
    pair, prior = inputs_of(1, 64, 96, 100.3)
    with torch.autocast("cpu", torch.bfloat16):
        rounded_px = network(pair, prior).disparity_px
    # bf16 counts in steps of half a pixel at 100 px; what passes the prior on has to stay in float32.
    assert (rounded_px - network(pair, prior).disparity_px).abs().mean() < 0.1


def test_the_correlation_is_that_of_its_definition(network: GuidedNetwork) -> None:
    pair, _ = inputs_of(2, 32, 48)
    left, right = pair[:, :3], pair[:, 3:]
    with torch.no_grad():
        fast = network._correlation(left, right)
        both = network.features((torch.cat([left, right]) - 0.5) * 4)
        both = both / (both.square().mean(dim=1, keepdim=True) + 1e-4).sqrt()
    ours, theirs = both.chunk(2)
    slow = torch.zeros(2, DISPARITIES, 8, 12)
    for d in range(12):
        slow[:, DISPARITIES - 1 - d, :, d:] = (ours[..., d:] * theirs[..., : 12 - d]).mean(dim=1)
    slow = (slow - slow.mean(dim=1, keepdim=True)) * 4
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-5)


def test_every_weight_gets_a_gradient(network: GuidedNetwork) -> None:
    network.train()
    answer = network(*inputs_of(2, 48, 64))
    assert isinstance(answer, TrainingPrediction)
    assert answer.coarse_px.shape == (2, 2, 24, 32)
    loss = training_loss(answer, torch.full((2, 1, 48, 64), 9.0), LossOptions())
    loss.total.backward()
    for name, weights in network.named_parameters():
        assert weights.grad is not None, name
        assert weights.grad.abs().sum() > 0, name


def test_the_coarse_stages_count_in_the_loss_where_truth_is_known(network: GuidedNetwork) -> None:
    network.train()
    answer = network(*inputs_of(1, 35, 45))
    truth = torch.full((1, 1, 35, 45), 9.0)
    truth[..., 20:] = float("nan")
    plain = heteroscedastic_loss(answer, truth, LossOptions())
    guided = training_loss(answer, truth, LossOptions(coarse_weight=0.25))
    error_px = (answer.coarse_px - 9).abs()[..., :10]
    expected = 0.25 * 4 * (10 * torch.log1p(error_px / 10)).sum()
    torch.testing.assert_close(guided.total - plain.total, expected, rtol=1e-4, atol=1e-2)
    assert guided.valid == plain.valid


def test_only_a_network_that_wants_a_prior_gets_one() -> None:
    pair = torch.rand(2, 6, 40, 96)
    unet, guided = (create_network(ModelOptions(model=name, base_channels=8, depth=2)) for name in ("unet", "guided"))
    assert not wants_prior(unet)
    assert len(network_inputs(unet, pair)) == 1
    same, prior = network_inputs(guided, pair)
    assert same is pair
    assert prior.shape == (2, PRIOR_PLANES, 40, 96)
    pairs = (pair * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(prior.numpy(), priors_of(pairs))
    np.testing.assert_array_equal(priors_of(pairs[1:]), priors_of(pairs)[1:])


def test_the_prior_is_the_matchers_answer_and_the_right_view_warped_by_it() -> None:
    rng = np.random.default_rng(0)
    wide = rng.integers(0, 256, (60, 140, 3), dtype=np.uint8)
    left, right = np.ascontiguousarray(wide[:, :128]), np.ascontiguousarray(wide[:, 6:134])
    planes = prior_planes(left, right)
    np.testing.assert_array_equal(planes[0], match_blocks(left, right, grey=True).disparity_px)
    inner = np.s_[8:-8, 30:-8]
    assert np.median(np.abs(planes[0][inner] - 6)) < 0.1
    assert planes[1][inner].mean() > 0.9
    assert set(np.unique(planes[1])) <= {0.0, 1.0}
    exact = planes[0][inner] == 6
    shown = planes[2:].transpose(1, 2, 0)[inner] * 255
    np.testing.assert_allclose(shown[exact], left[inner][exact], atol=1)


def test_a_picture_in_which_nothing_matches_begins_far_away() -> None:
    blank = np.zeros((40, 64, 3), np.uint8)
    planes = prior_planes(blank, blank)
    assert np.isfinite(planes).all()
    assert (planes[0] >= 0).all()


def test_it_learns_to_mend_what_the_matcher_missed() -> None:
    """Overfit: the prior is wrong in a square by 12 px; the pictures tell."""
    torch.manual_seed(0)
    network = GuidedNetwork(base_channels=16).train()
    right = F.interpolate(torch.rand(1, 3, 16, 24), size=(64, 96), mode="bicubic").clamp(0, 1)
    left = right.roll(8, dims=3)
    truth = torch.full((1, 1, 64, 96), 8.0)
    prior_px = truth.clone()
    prior_px[..., 20:44, 30:60] = 20.0
    prior = torch.cat([prior_px, torch.ones_like(prior_px), right.roll(8, dims=3)], dim=1)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(100):
        loss = training_loss(network(torch.cat([left, right], dim=1), prior), truth, LossOptions(nll_beta=1))
        (loss.total / loss.valid).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    error_px = (network(torch.cat([left, right], dim=1), prior).disparity_px - truth).abs()
    assert (prior_px - truth).abs().mean() > 1
    assert error_px.mean() < 0.3


def test_an_export_has_both_inputs_and_answers_alike(tmp_path: Path) -> None:
    torch.manual_seed(0)
    options = ModelOptions(model="guided", base_channels=8)
    header = {
        "kind": CHECKPOINT_KIND,
        "format_version": CHECKPOINT_FORMAT,
        "model": dataclasses.asdict(options),
        "uncertainty": {"distribution": "laplace", "scale": 1.0},
        "height": 48,
        "width": 64,
    }
    path, onnx = tmp_path / "guided.safetensors", tmp_path / "guided.onnx"
    save_safetensors(path, create_network(options).state_dict(), header)
    export_network(path, arguments.build(ExportOptions, {"checkpoint": path, "output": onnx}))  # checks itself
    rng = np.random.default_rng(0)
    left, right = rng.integers(0, 256, (2, 50, 70, 3), dtype=np.uint8)
    ours = Predictor.from_checkpoint(path, precision="fp32")(left, right)
    for backend in ("onnxruntime", "openvino"):
        precision = "auto" if backend == "onnxruntime" else "fp32"
        theirs = Predictor.from_checkpoint(onnx, backend=backend, precision=precision)(left, right)
        np.testing.assert_allclose(theirs.disparity_px, ours.disparity_px, atol=0.01)
        np.testing.assert_allclose(theirs.sigma_px, ours.sigma_px, rtol=0.02)


def test_cells_cover_a_hundred_pixels() -> None:
    assert DISPARITIES * CELL_PX > 100


def test_the_installed_network_is_small_and_better_than_the_matcher_on_real_pairs(shared_data: Path) -> None:
    assert DEFAULT_WEIGHTS.stat().st_size < 16e6
    predictor = Predictor.from_checkpoint("default", device="cpu")
    index = find_samples(shared_data / "fsd-sample")
    ours_px, matchers_px, within = [], [], []
    for i in range(len(index.names)):
        sample = resize_sample(read_fsd_sample(index.paths(i)), 240, 320)
        known = np.isfinite(sample.disparity_px) & (sample.disparity_px > 0)
        answer = predictor(sample.left, sample.right)
        error_px = np.abs(answer.disparity_px - sample.disparity_px)[known]
        ours_px.append(error_px.mean())
        matchers_px.append(
            np.abs(match_blocks(sample.left, sample.right).disparity_px - sample.disparity_px)[known].mean()
        )
        interval_px = DISTRIBUTIONS["laplace"].interval(0.68) * answer.sigma_px[known]
        within.append((error_px <= interval_px).mean())
    assert np.mean(ours_px) < 0.95 * np.mean(matchers_px)
    assert 0.60 < np.mean(within) < 0.76

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from foundation_stereo_depth.checkpoint import CHECKPOINT_FORMAT, CHECKPOINT_KIND, save_safetensors
from foundation_stereo_depth.data.fsd import open_fsd
from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.inference.export import export_network
from foundation_stereo_depth.inference.predictor import Predictor
from foundation_stereo_depth.model import (
    GuidedNetwork,
    StereoPrediction,
    create_network,
    fuse_batch_norms,
    network_inputs,
    priors_of,
    wants_prior,
)
from foundation_stereo_depth.network_facts import DEFAULT_WEIGHTS
from foundation_stereo_depth.options import command_line
from foundation_stereo_depth.options.inference import ExportOptions
from foundation_stereo_depth.options.training import LossOptions, ModelOptions, OptimizerOptions, TrainOptions
from foundation_stereo_depth.stereo.prior import PRIOR_PLANES, prior_planes
from foundation_stereo_depth.stereo.sgbm import match
from foundation_stereo_depth.training.loss import heteroscedastic_loss, loss_terms, weighted_loss
from foundation_stereo_depth.training.state import TrainingState
from foundation_stereo_depth.uncertainty import DISTRIBUTIONS


@pytest.fixture
def network() -> GuidedNetwork:
    torch.manual_seed(0)
    return GuidedNetwork(base_channels=8).eval()


def inputs_of(B: int, H: int, W: int, disparity_px: float = 7.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    pair = torch.rand(B, 6, H, W, generator=generator)
    return pair, prior_of(torch.full((B, 1, H, W), disparity_px), pair[:, :3] - pair[:, 3:])


def prior_of(disparity_px: torch.Tensor, unlike: torch.Tensor) -> torch.Tensor:
    """Return the planes of a matcher with this disparity and this photometric difference of the views."""
    least_px = -F.max_pool2d(-disparity_px, 9, stride=1, padding=4)
    most_px = F.max_pool2d(disparity_px, 9, stride=1, padding=4)
    grey = unlike.mean(dim=1, keepdim=True)
    H, W = disparity_px.shape[-2:]
    whole_px = F.pad(disparity_px, (0, -W % 16, 0, -H % 16), mode="replicate")
    means_px = F.interpolate(F.avg_pool2d(whole_px, 16), scale_factor=16)[..., :H, :W]
    around = [least_px - disparity_px, most_px - disparity_px]
    relief = disparity_px - means_px
    return torch.cat([disparity_px, *around, torch.ones_like(grey), unlike, grey, grey, relief], dim=1)


@pytest.mark.parametrize(("B", "H", "W"), [(1, 32, 32), (2, 37, 61), (1, 240, 320), (1, 33, 200)])
def test_prediction_has_the_size_of_the_pair(network: GuidedNetwork, B: int, H: int, W: int) -> None:
    answer = network(*inputs_of(B, H, W))
    assert isinstance(answer, StereoPrediction)
    assert answer.disparity_px.shape == answer.log_variance.shape == (B, 1, H, W)
    assert (answer.disparity_px >= 0).all()


@pytest.mark.parametrize("disparity_px", [0.0, 7.0, 90.0])
def test_fresh_network_predicts_about_the_prior(network: GuidedNetwork, disparity_px: float) -> None:
    predicted_px = network(*inputs_of(2, 64, 96, disparity_px)).disparity_px
    assert (predicted_px - disparity_px).abs().mean() < 0.5 + 0.1 * disparity_px


def test_bf16_does_not_round_large_disparities(network: GuidedNetwork) -> None:
    pair, prior = inputs_of(1, 64, 96, 100.3)
    with torch.autocast("cpu", torch.bfloat16):
        rounded_px = network(pair, prior).disparity_px
    # bf16 counts in steps of half a pixel at 100 px; what passes the prior on has to stay in float32.
    assert (rounded_px - network(pair, prior).disparity_px).abs().mean() < 0.1


def test_every_weight_gets_a_gradient(network: GuidedNetwork) -> None:
    network.train()
    pair, prior = inputs_of(2, 48, 64)
    prior[:, 2] += 4  # one candidate is right
    answer = network(pair, prior)
    assert answer.region_px is not None
    assert answer.region_px.shape == (2, 1, 24, 32)
    loss = weighted_loss(loss_terms(answer, torch.full((2, 1, 48, 64), 11.0), LossOptions()), LossOptions())
    loss.total.backward()
    for name, weights in network.named_parameters():
        assert weights.grad is not None, name
        assert weights.grad.abs().sum() > 0, name


def test_training_rejects_one_value_per_channel(network: GuidedNetwork) -> None:
    network.train()
    with pytest.raises(UserError, match="one pair of 32x32 a process leaves one value per channel"):
        network(*inputs_of(1, 32, 32))
    for shape in ((2, 32, 32), (1, 33, 32), (1, 32, 33)):
        assert network(*inputs_of(*shape)).disparity_px.shape[-2:] == shape[1:]
    smallest = {"model": "guided", "height": 32, "width": 32, "batch_size": 1}
    with pytest.raises(UserError, match="--batch-size 1: leaves one value per channel"):
        command_line.build_options(TrainOptions, smallest)
    for change in ({"model": "unet"}, {"height": 33}, {"width": 33}, {"batch_size": 2}):
        command_line.build_options(TrainOptions, smallest | change)


def test_disparity_lies_between_the_candidates_up_to_a_fine_correction(network: GuidedNetwork) -> None:
    network.train()
    pair, prior = inputs_of(1, 48, 64)
    prior[:, 1] -= 5
    prior[:, 2] += 5
    answer = network(pair, prior)
    region_px = F.interpolate(answer.region_px, scale_factor=2.0, mode="nearest")
    candidates_px = torch.cat([prior[:, :1], prior[:, :1] + prior[:, 1:3], region_px], dim=1)
    assert (answer.disparity_px > candidates_px.amin(dim=1, keepdim=True) - 0.5).all()
    assert (answer.disparity_px < candidates_px.amax(dim=1, keepdim=True) + 0.5).all()


def test_fine_correction_is_bounded(network: GuidedNetwork) -> None:
    pair, prior = inputs_of(1, 48, 64, disparity_px=20.0)
    last = network.head[1]
    with torch.no_grad():
        last.bias[5:9] = torch.tensor([1e3, -1e3, 1e3, -1e3])  # of the four fine corrections under each value
        last.bias[-4:] = -1e3  # no share for the region's value, which has bounds of its own
    apart_px = (network(pair, prior).disparity_px - 20).abs()
    torch.testing.assert_close(apart_px, torch.ones_like(apart_px), rtol=0, atol=1e-3)


def test_region_loss_counts_only_known_truth(network: GuidedNetwork) -> None:
    network.train()
    answer = network(*inputs_of(1, 35, 45))
    truth = torch.full((1, 1, 35, 45), 9.0)
    truth[..., 20:] = float("nan")
    plain = heteroscedastic_loss(answer, truth, LossOptions())
    options = LossOptions(region_weight=0.25)
    guided = weighted_loss(loss_terms(answer, truth, options), options)
    error_px = (answer.region_px - 9).abs()[..., :10]
    expected = 0.25 * 4 * (10 * torch.log1p(error_px / 10)).sum()
    torch.testing.assert_close(guided.total - plain.total, expected, rtol=1e-4, atol=1e-2)
    assert guided.valid == plain.valid


def test_fused_batch_norms_do_not_change_the_prediction(network: GuidedNetwork) -> None:
    network.train()
    for seed in range(3):  # statistics that are not those of a fresh network
        torch.manual_seed(seed)
        network(*inputs_of(2, 48, 64))
    network.eval()
    inputs = inputs_of(1, 64, 96)
    before = network(*inputs)
    kinds = {type(part).__name__ for part in fuse_batch_norms(network).modules()}
    assert "BatchNorm2d" not in kinds
    after = network(*inputs)
    torch.testing.assert_close(after.disparity_px, before.disparity_px, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(after.log_variance, before.log_variance, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shift_px", [4, 30, 70, 110])
def test_prior_searches_the_disparities_that_occur(shift_px: int) -> None:
    rng = np.random.default_rng(shift_px)
    wide = cv2.resize(rng.integers(0, 256, (60, 110, 3), dtype=np.uint8), (440, 240), interpolation=cv2.INTER_CUBIC)
    left, right = np.ascontiguousarray(wide[:, :320]), np.ascontiguousarray(wide[:, shift_px : shift_px + 320])
    found_px = prior_planes(left, right)[0][8:-8, shift_px + 8 : -8]
    assert np.median(np.abs(found_px - shift_px)) < 0.25
    assert (np.abs(found_px - shift_px) < 1).mean() > 0.98


def test_prior_is_computed_only_for_networks_that_take_one() -> None:
    pair = torch.rand(2, 6, 40, 96)
    unet, guided = (create_network(ModelOptions(model=name, base_channels=8, depth=2)) for name in ("unet", "guided"))
    assert not wants_prior(unet)
    assert len(network_inputs(unet, pair)) == 1
    same, prior = network_inputs(guided, pair)
    assert same is pair
    assert prior.shape == (2, PRIOR_PLANES, 40, 96)
    pairs = (pair * 255).round().to(torch.uint8).view(2, 2, 3, 40, 96).permute(0, 1, 3, 4, 2).contiguous().numpy()
    np.testing.assert_array_equal(prior.numpy(), priors_of(pairs))
    np.testing.assert_array_equal(priors_of(pairs[1:]), priors_of(pairs)[1:])


def test_planes_of_the_prior_are_as_documented() -> None:
    rng = np.random.default_rng(0)
    wide = rng.integers(0, 256, (60, 140, 3), dtype=np.uint8)
    left, right = np.ascontiguousarray(wide[:, :128]), np.ascontiguousarray(wide[:, 6:134])
    right[20:40, 40:80] = wide[20:40, 49:89]  # a square at 9 px
    planes = prior_planes(left, right)
    inner = np.s_[8:-8, 30:-8]
    assert np.median(np.abs(planes[0][inner] - 6)) < 0.1
    assert planes[3][inner].mean() > 0.8
    assert set(np.unique(planes[3])) <= {0.0, 1.0}
    for y, x in ((20, 50), (30, 70), (45, 30)):
        around = planes[0][y - 4 : y + 5, x - 4 : x + 5]
        assert (planes[1][y, x], planes[2][y, x]) == (around.min() - planes[0][y, x], around.max() - planes[0][y, x])
    most_px = planes[0] + planes[2]
    assert most_px.max() > 8.5
    for rows, columns in ((slice(16, 32), slice(48, 64)), (slice(48, 60), slice(0, 16))):
        square = planes[0][rows, columns]
        whole = np.pad(square, ((0, 16 - len(square)), (0, 0)), mode="edge")
        np.testing.assert_allclose(planes[9][rows, columns], square - whole.mean(), atol=1e-5)
    exact = planes[0] == 6
    exact[:45] = exact[:, :30] = False
    np.testing.assert_allclose(planes[4:7, exact], 0, atol=0.005)
    behind = np.zeros_like(exact)
    behind[25:35, 52:75] = True  # by the least, where that is the ground's 6 px, the right view shows the ground
    behind &= planes[0] + planes[1] == 6
    assert behind.any()
    rows, columns = np.nonzero(behind)
    grey_left, grey_right = (cv2.cvtColor(view, cv2.COLOR_RGB2GRAY).astype(float) for view in (left, right))
    expected = grey_left[rows, columns] - grey_right[rows, columns - 6]
    np.testing.assert_allclose(planes[7][behind] * 255, expected, atol=1)


def test_prior_of_an_unmatched_image_is_finite() -> None:
    blank = np.zeros((40, 64, 3), np.uint8)
    planes = prior_planes(blank, blank)
    assert np.isfinite(planes).all()
    assert (planes[0] >= 0).all()


def test_network_overfits_one_pair_with_a_wrong_prior() -> None:
    """The prior is wrong by 12 px in a square, where only the images show the disparity."""
    torch.manual_seed(0)
    network = GuidedNetwork(base_channels=16).train()
    right = F.interpolate(torch.rand(1, 3, 16, 24), size=(64, 96), mode="bicubic").clamp(0, 1)
    left = right.roll(8, dims=3)
    truth = torch.full((1, 1, 64, 96), 8.0)
    prior_px = truth.clone()
    prior_px[..., 20:44, 30:60] = 20.0
    # By the matcher's answer the views are alike but in the square, where it looks 12 px too far.
    unlike = torch.where(prior_px == 20, left - right.roll(20, dims=3), 0.0)
    prior = prior_of(prior_px, unlike)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(100):
        options = LossOptions(nll_beta=1)
        loss = weighted_loss(loss_terms(network(torch.cat([left, right], dim=1), prior), truth, options), options)
        (loss.total / loss.valid).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    error_px = (network(torch.cat([left, right], dim=1), prior).disparity_px - truth).abs()
    assert (prior_px - truth).abs().mean() > 1
    assert error_px.mean() < 0.3


@pytest.mark.slow
def test_exported_network_takes_the_prior_and_predicts_the_same(tmp_path: Path) -> None:
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
    export_network(command_line.build_options(ExportOptions, {"checkpoint": path, "output": onnx}))
    rng = np.random.default_rng(0)
    left, right = rng.integers(0, 256, (2, 50, 70, 3), dtype=np.uint8)
    ours = Predictor.open(path, precision="fp32")(left, right)
    for backend in ("onnxruntime", "openvino"):
        precision = "auto" if backend == "onnxruntime" else "fp32"
        theirs = Predictor.open(onnx, backend=backend, precision=precision)(left, right)
        np.testing.assert_allclose(theirs.disparity_px, ours.disparity_px, atol=0.01)
        np.testing.assert_allclose(theirs.sigma_px, ours.sigma_px, rtol=0.02)


def test_installed_network_is_small_and_better_than_sgbm_on_real_pairs(shared_data: Path) -> None:
    assert DEFAULT_WEIGHTS.stat().st_size < 16e6
    predictor = Predictor.open(device="cpu")
    index = open_fsd(shared_data / "fsd-sample")
    ours_px, matchers_px, within = [], [], []
    for i in range(len(index.names)):
        sample = index.read(i, (240, 320))
        known = np.isfinite(sample.disparity_px) & (sample.disparity_px > 0)
        found = predictor(sample.left, sample.right)
        error_px = np.abs(found.disparity_px - sample.disparity_px)[known]
        ours_px.append(error_px.mean())
        matchers_px.append(np.abs(match(sample.left, sample.right).disparity_px - sample.disparity_px)[known].mean())
        interval_px = DISTRIBUTIONS["laplace"].interval(0.68) * found.sigma_px[known]
        within.append((error_px <= interval_px).mean())
    assert np.mean(ours_px) < 0.85 * np.mean(matchers_px)
    assert 0.60 < np.mean(within) < 0.76


def test_averaged_weights_have_averaged_statistics() -> None:
    torch.manual_seed(0)
    network = GuidedNetwork(base_channels=8).train()
    state = TrainingState.create(network, OptimizerOptions(ema_decay=0.9), "scenes")
    assert state.average is not None
    for seed in range(30):
        pair, prior = inputs_of(2, 48, 64)
        network(pair * (1 + seed), prior)
        state.average.update_parameters(network)
    ours, averaged = (dict(part.named_buffers()) for part in (network, state.evaluated))
    name = "stem.0.1.running_var"
    assert 0 < averaged[name].mean() < 0.95 * ours[name].mean()
    assert averaged["stem.0.1.num_batches_tracked"] == 30

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from foundation_stereo_depth.checkpoint import CHECKPOINT_FORMAT, CHECKPOINT_KIND, read_trained, save_safetensors
from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.inference.export import export_network
from foundation_stereo_depth.inference.predictor import Predictor
from foundation_stereo_depth.model import (
    FusedNetwork,
    GuidedNetwork,
    StereoPrediction,
    create_network,
    fuse_batch_norms,
    fused_from_guided,
    network_inputs,
    priors_of,
)
from foundation_stereo_depth.options.command_line import build_options
from foundation_stereo_depth.options.inference import ExportOptions
from foundation_stereo_depth.options.training import LossOptions, ModelOptions, OptimizerOptions, TrainOptions
from foundation_stereo_depth.stereo.prior import PRIOR_PLANES, TWO_PRIOR_PLANES, prior_planes, two_prior_planes
from foundation_stereo_depth.training.loss import loss_terms, weighted_loss
from foundation_stereo_depth.training.setup import first_network

FIRST, LOCAL_MIN, LOCAL_MAX, SMOOTH, INTERPOLATED, SUPPORT = 0, 1, 2, 10, 13, 14


@pytest.fixture
def network() -> FusedNetwork:
    torch.manual_seed(0)
    return FusedNetwork(base_channels=8).eval()


def random_inputs(B: int, H: int, W: int, disparity_px: float = 7.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    pair = torch.rand(B, 6, H, W, generator=generator)
    prior = torch.randn(B, TWO_PRIOR_PLANES, H, W, generator=generator) * 0.1
    prior[:, FIRST] = disparity_px
    prior[:, LOCAL_MIN] = -1
    prior[:, LOCAL_MAX] = 1
    prior[:, 3] = prior[:, 11] = prior[:, SUPPORT] = 1
    return pair, prior


def textured(height: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))


def chessboard_pair(disparity_px: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a pair in which a board at this disparity stands before texture at 6 px, and where the board is."""
    wide = textured(240, 400)
    left, right = wide[:, :320].copy(), wide[:, 6:326].copy()
    y, x = np.mgrid[:120, :160]
    board = np.where((x // 16 + y // 16) % 2 == 0, 30, 220).astype(np.uint8)[..., None].repeat(3, axis=2)
    left[60:180, 100:260] = board
    right[60:180, 100 - disparity_px : 260 - disparity_px] = board
    inside = np.zeros((240, 320), bool)
    inside[68:172, 108:252] = True
    return left, right, inside


@pytest.mark.parametrize(("B", "H", "W"), [(1, 32, 32), (2, 37, 61), (1, 240, 320), (1, 33, 200), (1, 480, 640)])
def test_output_has_the_size_of_the_input(network: FusedNetwork, B: int, H: int, W: int) -> None:
    answer = network(*random_inputs(B, H, W))
    assert isinstance(answer, StereoPrediction)
    assert answer.disparity_px.shape == answer.log_variance.shape == (B, 1, H, W)
    assert (answer.disparity_px >= 0).all()


def test_every_weight_gets_a_gradient(network: FusedNetwork) -> None:
    network.train()
    answer = network(*random_inputs(2, 48, 64))
    assert answer.region_px is not None
    assert answer.region_px.shape == (2, 2, 24, 32)
    terms = loss_terms(answer, torch.full((2, 1, 48, 64), 11.0), LossOptions())
    weighted_loss(terms, LossOptions()).total.backward()
    for name, weights in network.named_parameters():
        assert weights.grad is not None, name
        assert weights.grad.abs().sum() > 0, name


def test_too_small_training_batch_is_rejected_with_the_name_of_the_network(network: FusedNetwork) -> None:
    with pytest.raises(UserError, match="--model fused: one pair of 32x32"):
        network.train()(*random_inputs(1, 32, 32))
    smallest = {"model": "fused", "height": 32, "width": 32, "batch_size": 1}
    with pytest.raises(UserError, match="--model fused --height 32"):
        build_options(TrainOptions, smallest)


def test_candidate_with_a_mixture_weight_of_one_is_the_prediction(network: FusedNetwork) -> None:
    pair, prior = random_inputs(1, 48, 64, disparity_px=20.0)
    prior[:, SMOOTH], prior[:, INTERPOLATED] = 5.0, -7.0
    last = network.head[1]
    for candidate, expected_px in {0: 20, 1: 19, 2: 21, 4: 25, 5: 13}.items():
        with torch.no_grad():
            last.weight.zero_()
            last.bias.zero_()
            last.bias[10 + 4 * candidate : 14 + 4 * candidate] = 100.0
        answer_px = network(pair, prior).disparity_px
        torch.testing.assert_close(answer_px, torch.full_like(answer_px, expected_px), rtol=0, atol=1e-3)


def test_network_from_guided_weights_predicts_about_the_same() -> None:
    torch.manual_seed(0)
    guided = GuidedNetwork(base_channels=8).eval()
    fused = FusedNetwork(base_channels=8).eval()
    fused.load_state_dict(fused_from_guided(guided.state_dict()))
    pair, prior = random_inputs(2, 48, 64)
    prior[:, SMOOTH] = prior[:, INTERPOLATED] = 0.0
    before, after = guided(pair, prior[:, :PRIOR_PLANES]), fused(pair, prior)
    assert (after.disparity_px - before.disparity_px).abs().max() < 1.0
    torch.testing.assert_close(after.log_variance, before.log_variance, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("asked", "starts"), [({}, True), ({"depth": 2}, True), ({"base_channels": 12}, False)])
def test_training_of_fused_starts_from_a_guided_file(tmp_path: Path, asked: dict[str, int], starts: bool) -> None:
    guided, path = ModelOptions(model="guided", base_channels=8), tmp_path / "guided.safetensors"
    weights = create_network(guided).state_dict()
    save_safetensors(path, weights, header_of(guided))
    optimizer = OptimizerOptions(initial_weights=path)
    model = dataclasses.replace(ModelOptions(model="fused", base_channels=8), **asked)
    options = TrainOptions(model=model, optimizer=optimizer)
    if not starts:
        with pytest.raises(UserError, match=r"holds a network of --model guided .* ask for --model fused"):
            first_network(options, None)
        return
    network = first_network(options, None)
    assert network.training
    torch.testing.assert_close(network.state_dict(), fused_from_guided(weights), rtol=0, atol=0)


def test_fused_batch_norm_keeps_the_prediction(network: FusedNetwork) -> None:
    network.train()
    for _ in range(3):  # statistics unlike those of a new network
        network(*random_inputs(2, 48, 64))
    network.eval()
    inputs = random_inputs(1, 64, 96)
    before = network(*inputs)
    after = fuse_batch_norms(network)(*inputs)
    torch.testing.assert_close(after.disparity_px, before.disparity_px, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(240, 320), (37, 61), (480, 640), (33, 200)])
def test_first_planes_are_those_of_one_match(height: int, width: int) -> None:
    wide = textured(height, width + 12)
    left, right = np.ascontiguousarray(wide[:, :width]), np.ascontiguousarray(wide[:, 5 : width + 5])
    planes = two_prior_planes(left, right)
    assert planes.shape == (TWO_PRIOR_PLANES, height, width)
    assert np.isfinite(planes).all()
    np.testing.assert_array_equal(planes[:PRIOR_PLANES], prior_planes(left, right))
    inner = np.s_[8:-8, 16:-8]
    tolerance_px = 0.3 * max(1, width / 320)  # the smooth match runs at a width of about 320 px
    for plane in (SMOOTH, INTERPOLATED):
        assert np.median(np.abs(planes[0] + planes[plane] - 5)[inner]) < tolerance_px
    assert set(np.unique(planes[11])) <= {0.0, 1.0}
    assert 0 <= planes[SUPPORT].min() <= planes[SUPPORT].max() <= 1


def test_smooth_match_and_interpolation_are_right_on_a_chessboard() -> None:
    left, right, inside = chessboard_pair(24)
    planes = two_prior_planes(left, right)
    for plane in (SMOOTH, INTERPOLATED):
        assert (np.abs(planes[0] + planes[plane] - 24)[inside] > 1).mean() < 0.02


def test_textureless_wall_is_interpolated_from_its_borders() -> None:
    wide = textured(240, 400)
    left, right = wide[:, :320].copy(), wide[:, 12:332].copy()
    left[60:180, 80:240] = right[60:180, 68:228] = 128
    rng = np.random.default_rng(0)
    left, right = (np.clip(rng.normal(view, 2), 0, 255).astype(np.uint8) for view in (left, right))
    planes = two_prior_planes(left, right)
    first_px, interpolated_px = (plane[70:170, 90:230] for plane in (planes[0], planes[0] + planes[INTERPOLATED]))
    assert np.abs(interpolated_px - 12).mean() < 0.5 * np.abs(first_px - 12).mean()
    assert np.abs(interpolated_px - 12).mean() < 1.0


def test_planes_are_finite_where_nothing_matches() -> None:
    blank = np.zeros((40, 64, 3), np.uint8)
    planes = two_prior_planes(blank, blank)
    assert np.isfinite(planes).all()
    assert (planes[0] + planes[SMOOTH] >= 0).all()


def test_each_network_takes_its_own_prior() -> None:
    pair = torch.rand(2, 6, 40, 96)
    pairs = (pair * 255).round().to(torch.uint8).view(2, 2, 3, 40, 96).permute(0, 1, 3, 4, 2).contiguous().numpy()
    for name, planes in (("guided", PRIOR_PLANES), ("fused", TWO_PRIOR_PLANES)):
        _, prior = network_inputs(create_network(ModelOptions(model=name, base_channels=8)), pair)
        np.testing.assert_array_equal(prior.numpy(), priors_of(pairs, planes))


@pytest.mark.parametrize("model", ["guided", "fused"])
def test_checkpoint_opens_as_the_network_that_its_header_names(tmp_path: Path, model: str) -> None:
    torch.manual_seed(0)
    options = ModelOptions(model=model, base_channels=8)
    path = tmp_path / "weights.safetensors"
    network = create_network(options).eval()
    save_safetensors(path, network.state_dict(), header_of(options))
    opened = read_trained(path).network()
    assert type(opened) is {"guided": GuidedNetwork, "fused": FusedNetwork}[model]
    pair = torch.rand(1, 6, 40, 96)
    inputs = network_inputs(network, pair)
    torch.testing.assert_close(opened(*inputs).disparity_px, network(*inputs).disparity_px, rtol=0, atol=0)


def header_of(options: ModelOptions) -> dict[str, object]:
    return {
        "kind": CHECKPOINT_KIND,
        "format_version": CHECKPOINT_FORMAT,
        "model": dataclasses.asdict(options),
        "uncertainty": {"distribution": "laplace", "scale": 1.0},
        "height": 48,
        "width": 64,
    }


@pytest.mark.slow
def test_exported_network_takes_both_inputs_and_predicts_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    options = ModelOptions(model="fused", base_channels=8)
    path, onnx = tmp_path / "fused.safetensors", tmp_path / "fused.onnx"
    save_safetensors(path, create_network(options).state_dict(), header_of(options))
    # It verifies itself, at an odd size too.
    export_network(build_options(ExportOptions, {"checkpoint": path, "output": onnx, "dynamic_size": True}))
    rng = np.random.default_rng(0)
    left, right = rng.integers(0, 256, (2, 50, 70, 3), dtype=np.uint8)
    ours = Predictor.open(path, precision="fp32")(left, right)
    for backend in ("onnxruntime", "openvino"):
        precision = "auto" if backend == "onnxruntime" else "fp32"
        theirs = Predictor.open(onnx, backend=backend, precision=precision)(left, right)
        np.testing.assert_allclose(theirs.disparity_px, ours.disparity_px, atol=0.01)
        np.testing.assert_allclose(theirs.sigma_px, ours.sigma_px, rtol=0.02)

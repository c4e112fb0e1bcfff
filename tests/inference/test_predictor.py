from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import shifted_pair

from foundation_stereo_depth import tracking
from foundation_stereo_depth.data.codecs import read_fsd_disparity, read_rgb
from foundation_stereo_depth.errors import CheckpointError, UserError
from foundation_stereo_depth.inference.predictor import Predictor, find_network_file, open_network
from foundation_stereo_depth.inference.torch_backend import TorchBackend
from foundation_stereo_depth.model import create_network
from foundation_stereo_depth.network_facts import DEFAULT_WEIGHTS
from foundation_stereo_depth.options.inference import InferenceOptions, NetworkSourceOptions
from foundation_stereo_depth.options.training import ModelOptions
from foundation_stereo_depth.stereo.confidence import RIG_SIGMA_PX

INNER = np.s_[6:-6, 24:-8]


@pytest.mark.parametrize(("height", "width"), [(48, 96), (37, 61), (33, 200), (32, 32), (100, 7)])
def test_match_has_the_size_of_the_images(tiny_checkpoint: Path, height: int, width: int) -> None:
    prediction = Predictor.open(tiny_checkpoint, device="cpu")(*shifted_pair(height, width, 2))
    for values in (prediction.disparity_px, prediction.sigma_px, prediction.confidence):
        assert (values.shape, values.dtype) == ((height, width), np.float32)
        assert np.isfinite(values).all()


def test_disparity_scales_with_the_width_and_not_the_height(matching_predictor: Callable[..., Predictor]) -> None:
    left, right = shifted_pair(60, 120, 8)
    for height, width in [(60, 120), (40, 60), (120, 120), (60, 60), (40, 240)]:
        predictor = matching_predictor(height, width)
        disparity_px = predictor(left, right).disparity_px
        known = width <= 120  # at 240 the shift is 16 px, more than this network searches
        assert (np.median(disparity_px[INNER]) == 8) == known, (height, width)


def test_sigma_scales_with_the_width_and_the_fitted_scale_and_has_a_minimum(
    matching_predictor: Callable[..., Predictor],
) -> None:
    # The network predicts a variance of 1 px^2 at its own size, a third of the images' width.
    prediction = matching_predictor(40, 40, sigma_scale=1.5)(*shifted_pair(50, 120, 3))
    np.testing.assert_allclose(prediction.sigma_px, 3 * np.hypot(1.5, RIG_SIGMA_PX), rtol=1e-6)
    sure = matching_predictor(40, 40, sigma_scale=1e-6)(*shifted_pair(50, 120, 3))
    np.testing.assert_allclose(sure.sigma_px, 3 * RIG_SIGMA_PX, rtol=1e-6)


def test_minimum_of_sigma_grows_with_the_width_of_the_network(matching_predictor: Callable[..., Predictor]) -> None:
    sure = matching_predictor(40, 640, sigma_scale=1e-6)(*shifted_pair(40, 640, 3))
    np.testing.assert_allclose(sure.sigma_px, 2 * RIG_SIGMA_PX, rtol=1e-6)


def test_confidence_is_the_probability_of_an_error_below_one_pixel(
    matching_predictor: Callable[..., Predictor],
) -> None:
    pair = shifted_pair(40, 80, 3)
    random = np.random.default_rng(0)
    for distribution, errors_px in [
        ("gaussian", random.normal(0, 1.5, 400_000)),
        ("laplace", random.laplace(0, 1.5 / np.sqrt(2), 400_000)),
    ]:
        prediction = matching_predictor(40, 80, sigma_scale=1.5, distribution=distribution)(*pair)
        observed = (np.abs(errors_px) < 1).mean()
        np.testing.assert_allclose(prediction.confidence, observed, atol=4e-3)


def test_flipped_images_have_flipped_disparity(matching_predictor: Callable[..., Predictor]) -> None:
    left, right = shifted_pair(47, 90, 6)
    predictor = matching_predictor(47, 90)
    upright = predictor(left, right).disparity_px
    flipped = predictor(left[::-1], right[::-1]).disparity_px
    np.testing.assert_array_equal(flipped[::-1], upright)


def test_mirrored_and_swapped_views_keep_the_disparity(matching_predictor: Callable[..., Predictor]) -> None:
    left, right = shifted_pair(47, 90, 6)
    mirrored = matching_predictor(47, 90)(right[:, ::-1], left[:, ::-1]).disparity_px
    assert np.median(mirrored[INNER]) == 6


def test_padding_to_a_multiple_does_not_change_the_prediction() -> None:
    torch.manual_seed(0)
    network = create_network(ModelOptions(base_channels=8, depth=2)).eval()
    backend = TorchBackend(network, device="cpu", precision="fp32", compile=False)
    pairs = np.random.default_rng(0).integers(0, 256, (1, 2, 37, 61, 3), dtype=np.uint8)
    padded = np.pad(pairs, ((0, 0), (0, 0), (0, 3), (0, 3), (0, 0)), mode="edge")
    for alone, cropped in zip(backend(pairs), backend(padded), strict=True):
        np.testing.assert_allclose(alone, cropped[:, :37, :61], atol=1e-4)


def test_batch_of_unequal_sizes_equals_single_predictions(tiny_checkpoint: Path) -> None:
    predictor = Predictor.open(tiny_checkpoint, device="cpu", precision="fp32")
    pairs = [shifted_pair(37, 61, 2, seed=1), shifted_pair(70, 90, 5, seed=2)]
    for together, pair in zip(predictor.batch(pairs), pairs, strict=True):
        alone = predictor(*pair)
        np.testing.assert_allclose(together.disparity_px, alone.disparity_px, atol=1e-3)
        np.testing.assert_allclose(together.sigma_px, alone.sigma_px, rtol=1e-3)


def test_pt_and_safetensors_predict_the_same(tiny_checkpoint: Path) -> None:
    pair = shifted_pair(37, 61, 2)
    first, second = (
        Predictor.open(str(path), device="cpu", precision="fp32")(*pair)
        for path in (tiny_checkpoint, tiny_checkpoint.with_suffix(".safetensors"))
    )
    np.testing.assert_array_equal(first.disparity_px, second.disparity_px)
    np.testing.assert_array_equal(first.sigma_px, second.sigma_px)


def test_open_network_takes_options_paths_and_names_of_files(tiny_checkpoint: Path) -> None:
    cpu = InferenceOptions(device="cpu")
    for source in (NetworkSourceOptions(checkpoint=tiny_checkpoint), tiny_checkpoint, str(tiny_checkpoint)):
        predictor = open_network(source, cpu, height=96)
        assert (predictor.height, predictor.width) == (96, 64)
    for source in ("nowhere.pt", Path("nowhere")):  # a path is never taken for a run
        with pytest.raises(CheckpointError, match=r"nowhere.*: cannot be read"):
            open_network(source, cpu)


@pytest.mark.parametrize(
    "source", [None, "default", NetworkSourceOptions(), NetworkSourceOptions(checkpoint="default")]
)
def test_network_without_a_name_is_the_installed_one(source: NetworkSourceOptions | str | None) -> None:
    assert find_network_file(source, Path("unused")) == DEFAULT_WEIGHTS


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("0123abcd", "best.pt"),
        (NetworkSourceOptions(run_id="0123abcd"), "best.pt"),
        (NetworkSourceOptions(run_id="0123abcd", weights="last"), "last.pt"),
    ],
)
def test_other_names_are_runs(monkeypatch: pytest.MonkeyPatch, source: NetworkSourceOptions | str, name: str) -> None:
    def find(uri: str | None, run_id: str, download_to: Path, *, name: str, flag: str) -> Path:
        assert (uri, run_id, flag) == (None, "0123abcd", "--run-id")
        return download_to / name

    monkeypatch.setattr(tracking, "checkpoint_of_run", find)
    assert find_network_file(source, Path("fetched")) == Path("fetched") / name


def test_network_size_is_the_checkpoints_unless_given(tiny_checkpoint: Path) -> None:
    assert Predictor.open(tiny_checkpoint).description.startswith("unet at 64x48, torch")
    asked = Predictor.open(tiny_checkpoint, height=96)
    assert (asked.height, asked.width) == (96, 64)
    with pytest.raises(UserError, match="at least 32 px"):
        Predictor.open(tiny_checkpoint, width=31)


def test_views_of_unequal_size_are_rejected(tiny_checkpoint: Path) -> None:
    left, right = shifted_pair(40, 60, 2)
    with pytest.raises(UserError, match="the left image is 60x40, the right one 60x39"):
        Predictor.open(tiny_checkpoint).batch([(left, right[:39])])


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 TB")],
)
def test_out_of_memory_names_the_flag(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    predictor = Predictor.open(tiny_checkpoint)

    def run_out(_: torch.Tensor) -> None:
        raise error

    monkeypatch.setattr(predictor._backend, "_network", run_out)
    with pytest.raises(UserError, match=r"out of memory with 1 pair at 64x48.*--batch-size"):
        predictor(*shifted_pair(40, 60, 2))


def test_other_runtime_errors_keep_their_type(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor.open(tiny_checkpoint)
    monkeypatch.setattr(predictor._backend, "_network", lambda _: torch.zeros(2) + torch.zeros(3))
    with pytest.raises(RuntimeError, match="size of tensor"):
        predictor(*shifted_pair(40, 60, 2))


def test_network_is_compiled_only_with_the_option(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # torch.compile itself would take half a minute.
    compiled: list[torch.nn.Module] = []

    monkeypatch.setattr(torch.nn.Module, "compile", lambda network: compiled.append(network))  # noqa: PLW0108 (a method has to be a function)
    for asked in (False, True):
        Predictor.open(tiny_checkpoint, device="cpu", compile=asked)
        assert len(compiled) == asked


def test_real_pair_of_another_size_is_matched(shared_data: Path, matching_predictor: Callable[..., Predictor]) -> None:
    # Cones at a quarter of its width: its disparities, up to 55 px, come within the 15 px that this network searches.
    data = shared_data / "fsd-sample/middlebury_cones/dataset/data"
    truth_px = read_fsd_disparity(data / "left/disparity/0000.png")
    predictor = matching_predictor(93, 112)
    prediction = predictor(read_rgb(data / "left/rgb/0000.jpg"), read_rgb(data / "right/rgb/0000.jpg"))
    error_px = np.abs(prediction.disparity_px - truth_px)
    assert np.nanmedian(error_px) < 2

"""Files that earlier releases wrote still open; each folder of golden/release_* was written by that release."""

import shutil
from pathlib import Path

import pytest
import torch

from foundation_stereo_depth.checkpoint import load_checkpoint, read_trained
from foundation_stereo_depth.data.cache import open_cache
from foundation_stereo_depth.model import network_inputs
from foundation_stereo_depth.training.setup import resolve
from foundation_stereo_depth.training.train import train

RELEASE = Path(__file__).parent / "golden/release_0_1_0"
FILES = ("unet_last.pt", "unet_last.safetensors", "guided_best.safetensors")


@pytest.mark.parametrize("name", FILES)
def test_a_network_of_release_0_1_0_predicts(name: str) -> None:
    trained = read_trained(RELEASE / name)
    assert (trained.facts.height, trained.facts.width) == (32, 48)
    network = trained.network()
    prediction = network(*network_inputs(network, torch.rand(1, 6, 32, 48)))
    assert prediction.disparity_px.shape == prediction.log_variance.shape == (1, 1, 32, 48)
    assert prediction.disparity_px.isfinite().all()


def test_a_run_of_release_0_1_0_resumes_within_its_epoch(tiny, tracking_uri: str) -> None:
    Path("out").mkdir()
    shutil.copy(RELEASE / "unet_last.pt", "out/last.pt")
    before = load_checkpoint(Path("out/last.pt"))
    assert (before.progress.epoch, before.progress.step_in_epoch) == (0, 2)  # stopped before it validated
    train(*resolve({"resume": "out/last.pt", "mlflow_tracking_uri": tracking_uri}))
    history = load_checkpoint(Path("out/last.pt")).training["history"]
    assert len(history) == 2
    assert "train/loss_nll" not in history[0]  # that release summed the whole loss alone
    assert history[1]["train/loss_nll"] == pytest.approx(history[1]["train/loss"])


@pytest.mark.parametrize("name", FILES)
def test_a_network_of_release_0_1_0_is_trained_further(name: str, tiny) -> None:
    flags = {key: value for key, value in tiny(epochs=1).items() if key not in ("base_channels", "depth")}
    options, _ = resolve(flags | {"initial_weights": RELEASE / name, "learning_rate": 0.0})
    train(options)
    expected = read_trained(RELEASE / name).weights
    trained = load_checkpoint(Path("out/last.pt")).training["weights"]
    learned = [key for key in expected if "running_" not in key and "num_batches" not in key]
    assert learned
    assert all(torch.equal(trained[key], expected[key]) for key in learned)


def test_a_cache_of_release_0_1_0_is_read(tiny) -> None:
    shutil.copytree(RELEASE / "cache", "cache")
    cache = open_cache(Path("cache"), 32, 48)
    assert cache.read("made-up-00000", "00").left.shape == (32, 48, 3)
    flags = tiny(epochs=1, cache_root=Path("cache"), require_cache=True, batch_size=1) | {"dataset_root": None}
    train(resolve(flags)[0])
    history = load_checkpoint(Path("out/last.pt")).training["history"]
    assert history[0]["data/cache_hits"] > 0

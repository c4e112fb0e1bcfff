"""What many tests need: a small FSD tree, real data where it is at hand, and a folder of their own to run in."""

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from foundation_stereo_depth.checkpoint import Checkpoint, NetworkFacts, Progress, save_checkpoint
from foundation_stereo_depth.data.codecs import encode_fsd_disparity, write_rgb
from foundation_stereo_depth.inference.backends import TorchBackend
from foundation_stereo_depth.inference.predictor import Predictor
from foundation_stereo_depth.model import StereoPrediction, create_network
from foundation_stereo_depth.options import command_line
from foundation_stereo_depth.options.training import DataOptions, ModelOptions, TrainOptions

# Two tests run at a time, some in processes of their own: threads that wait for each other would wait by spinning.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"
# A shell that starts the tests in the background has them ignore Ctrl-C, and with them all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def write_fsd_sample(
    root: Path, scene: str, stem: str, height: int, width: int, *, seed: int, suffix: str = ".png"
) -> np.ndarray:
    """One sample of noise whose right view is the left one moved by a whole number of pixels; returns the disparity."""
    random = np.random.default_rng(seed)
    shift_px = int(random.integers(2, 9))
    left = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    disparity_px = np.full((height, width), shift_px, np.float32)
    disparity_px[:, :shift_px] = np.nan
    data = root / scene / "dataset/data"
    for part in ("left/rgb", "right/rgb", "left/disparity"):
        (data / part).mkdir(parents=True, exist_ok=True)
    write_rgb(data / f"left/rgb/{stem}{suffix}", left)
    write_rgb(data / f"right/rgb/{stem}{suffix}", np.roll(left, -shift_px, axis=1))
    write_rgb(data / f"left/disparity/{stem}.png", encode_fsd_disparity(disparity_px))
    return disparity_px


@pytest.fixture
def fsd_tree(tmp_path: Path) -> Path:
    """Three scenes of two frames each, every scene of another size."""
    root = tmp_path / "fsd"
    for scene, (height, width) in enumerate([(37, 61), (48, 64), (90, 160)]):
        for frame in range(2):
            write_fsd_sample(root, f"scene_{scene}", f"{frame:04d}", height, width, seed=10 * scene + frame)
    return root


@pytest.fixture
def shared_data() -> Path:
    """Real pictures, which are no part of this repository."""
    folder = os.environ.get("STEREO_SHARED_DATA")
    if folder is None:
        pytest.skip("STEREO_SHARED_DATA does not name a folder of real data")
    return Path(folder)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test runs in a folder of its own, so that nothing it writes stays behind or meets another test's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FOUNDATION_STEREO_ROOT", raising=False)
    return tmp_path


@pytest.fixture(scope="session")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One MLflow database for all tests: making one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def tiny(tracking_uri: str) -> Callable[..., dict[str, Any]]:
    """Flags of a run that takes a second; keyword arguments change or add some."""

    def flags(**changes: Any) -> dict[str, Any]:
        return {
            "height": 48,
            "width": 64,
            "base_channels": 8,
            "depth": 2,
            "epochs": 2,
            "batch_size": 4,
            "procedural_samples": 12,
            "procedural_val_samples": 5,
            "precision": "fp32",
            "device": "cpu",
            "mlflow_tracking_uri": tracking_uri,
            "output_dir": Path("out"),
        } | changes

    return flags


@pytest.fixture
def tiny_options(tiny: Callable[..., dict[str, Any]]) -> Callable[..., TrainOptions]:
    """The same as options."""
    return lambda **changes: command_line.build_options(TrainOptions, tiny(**changes))


class MatchingNetwork(torch.nn.Module):
    """Finds the shift from 0 to 15 px at which the eyes agree best: slow, but right, and without weights to learn."""

    def forward(self, pair: torch.Tensor) -> StereoPrediction:
        left, right = pair[:, :3], pair[:, 3:]
        costs = []
        for shift_px in range(16):
            moved = torch.roll(right, shift_px, dims=3)
            moved[..., :shift_px] = 5.0  # what lies outside the right picture agrees with nothing
            cost = (left - moved).abs().mean(dim=1, keepdim=True)
            costs.append(torch.nn.functional.avg_pool2d(cost, 5, stride=1, padding=2, count_include_pad=False))
        disparity_px = torch.stack(costs).argmin(dim=0).float()
        return StereoPrediction(disparity_px, torch.zeros_like(disparity_px))


@pytest.fixture
def matching_predictor() -> Callable[..., Predictor]:
    """A predictor whose network matches; at any height and width."""

    def predictor(height: int, width: int, *, sigma_scale: float = 1.0, distribution: str = "laplace") -> Predictor:
        facts = NetworkFacts(
            header={},
            model=ModelOptions(),
            height=height,
            width=width,
            distribution=distribution,
            sigma_scale=sigma_scale,
        )
        backend = TorchBackend(MatchingNetwork(), device="cpu", precision="fp32", compile=False)
        return Predictor(backend, facts)

    return predictor


@pytest.fixture
def tiny_checkpoint(tmp_path: Path) -> Path:
    """A checkpoint of a small network with fresh weights, made for 64x48; its safetensors lies beside it."""
    torch.manual_seed(0)
    model = ModelOptions(base_channels=8, depth=2)
    path = tmp_path / "tiny/best.pt"
    save_checkpoint(
        path,
        Checkpoint(
            model={"model": "unet", "base_channels": 8, "depth": 2},
            weights=create_network(model).state_dict(),
            uncertainty={"distribution": "laplace", "scale": 1.5},
            metrics={"validation/epe_px": 1.5},
            run_id="abc",
            progress=Progress(),
            options=command_line.options_to_dict(TrainOptions(data=DataOptions(height=48, width=64))),
        ),
    )
    return path


def shifted_pair(height: int, width: int, shift_px: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two views of a smooth random picture, the right one moved to the left by a whole number of pixels."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, ((height + 3) // 4, (width + shift_px + 3) // 4, 3), dtype=np.uint8)
    scene = cv2.resize(coarse, (width + shift_px, height), interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(scene[:, :width]), np.ascontiguousarray(scene[:, shift_px:])


def command_of(flags: dict) -> list[str]:
    """The command line of the same flags."""
    words: list[str] = []
    for name, value in flags.items():
        flag = name.replace("_", "-")
        words += [f"--{flag if value else 'no-' + flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return [str(Path(sys.executable).with_name("foundation-stereo-depth")), *words]


@pytest.fixture(autouse=True)
def unconfigured_logging() -> Iterator[None]:
    """Undo what a command run in this process has done to logging, so that the next test's caplog sees records."""
    yield
    for package in ("foundation_stereo_depth", "live_camera"):
        logger = logging.getLogger(package)
        logger.handlers, logger.propagate = [], True
        logger.setLevel(logging.NOTSET)

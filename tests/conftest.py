"""Fixtures of many tests: small FSD trees, real data where available, and a folder of its own for each test."""

import fcntl
import logging
import os
import shutil
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
from foundation_stereo_depth.inference.predictor import Predictor
from foundation_stereo_depth.inference.torch_backend import TorchBackend
from foundation_stereo_depth.model import StereoPrediction, create_network
from foundation_stereo_depth.options import command_line
from foundation_stereo_depth.options.training import DataOptions, ModelOptions, TrainOptions

# Several tests run at a time, some in processes of their own; threads of PyTorch that wait for each other spin.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"
# A shell that starts the tests in the background has them ignore Ctrl-C, and their child processes too.
signal.signal(signal.SIGINT, signal.default_int_handler)


def write_fsd_sample(
    root: Path, scene: str, stem: str, height: int, width: int, *, seed: int, suffix: str = ".png"
) -> np.ndarray:
    """Write a sample of noise whose right view is the left one shifted by whole pixels; return the disparity."""
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


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Accept the option that pyproject.toml sets also where xdist is disabled by `-p no:xdist`."""
    if not pluginmanager.hasplugin("xdist"):
        parser.addoption("--numprocesses", help="not used without xdist")


@pytest.fixture
def fsd_tree(tmp_path: Path) -> Path:
    """Return a data set of three scenes of two frames each, every scene of another size."""
    root = tmp_path / "fsd"
    for scene, (height, width) in enumerate([(37, 61), (48, 64), (90, 160)]):
        for frame in range(2):
            write_fsd_sample(root, f"scene_{scene}", f"{frame:04d}", height, width, seed=10 * scene + frame)
    return root


@pytest.fixture
def shared_data() -> Path:
    """Return the folder of real images, which are not part of this repository."""
    folder = os.environ.get("STEREO_SHARED_DATA")
    if folder is None:
        pytest.skip("STEREO_SHARED_DATA does not name a folder of real data")
    return Path(folder)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run every test in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    # Empty: no data set, not even the default one of this machine.
    monkeypatch.setenv("FOUNDATION_STEREO_ROOT", "")
    # What a user of this machine has set for its runs.
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture(scope="session")
def compiled_renderer(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Compile the renderer of synthetic scenes in one process; the others wait, and read its machine code from disk."""
    from foundation_stereo_depth.data.synthetic.scenes import render_scenes

    with (tmp_path_factory.getbasetemp().parent / "compiled_renderer.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for kinds in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)):
            render_scenes(0, [0], 8, 12, kinds=kinds)


@pytest.fixture(scope="session")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return one MLflow database for all tests of a process: creating one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture(scope="session")
def tiny_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data set of three scenes of three frames of 48x32: files are read faster than scenes are rendered."""
    root = tmp_path_factory.mktemp("tiny") / "fsd"
    for scene in range(3):
        for frame in range(3):
            write_fsd_sample(root, f"scene_{scene}", f"{frame:04d}", 32, 48, seed=10 * scene + frame)
    return root


SYNTHETIC = {"dataset_root": None, "procedural_samples": 4, "procedural_val_samples": 2}
"""Flags of a run on synthetic scenes."""


def tiny_flags(tree: Path, tracking_uri: str) -> dict[str, Any]:
    """Return flags of a run of three steps an epoch that takes some tenths of a second."""
    return {
        "height": 32,
        "width": 48,
        "base_channels": 4,
        "depth": 1,
        "epochs": 2,
        "batch_size": 2,
        "dataset_root": tree,
        "val_fraction": 0.34,
        "num_workers": 0,
        "precision": "fp32",
        "device": "cpu",
        "mlflow_tracking_uri": tracking_uri,
        "output_dir": Path("out"),
    }


def skip_previews(patch: pytest.MonkeyPatch) -> None:
    """Draw an empty preview: a real one takes five times as long as all else of an epoch."""
    from matplotlib.figure import Figure

    from foundation_stereo_depth.training import run

    patch.setattr(run, "draw_preview", lambda *_, **__: Figure(figsize=(0.1, 0.1)))


@pytest.fixture
def tiny(tiny_tree: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Return the flags of `tiny_flags`; keyword arguments change or add some."""
    skip_previews(monkeypatch)
    return lambda **changes: tiny_flags(tiny_tree, tracking_uri) | changes


@pytest.fixture
def tiny_options(tiny: Callable[..., dict[str, Any]]) -> Callable[..., TrainOptions]:
    """Return the same as options."""
    return lambda **changes: command_line.build_options(TrainOptions, tiny(**changes))


@pytest.fixture(scope="session")
def finished_run(tiny_tree: Path, tracking_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of one epoch, to read or to copy."""
    from foundation_stereo_depth.training.setup import resolve
    from foundation_stereo_depth.training.train import train

    with pytest.MonkeyPatch.context() as patch:
        skip_previews(patch)
        folder = tmp_path_factory.mktemp("finished") / "out"
        flags = tiny_flags(tiny_tree, tracking_uri) | {"epochs": 1, "output_dir": folder}
        return train(*resolve(flags))


@pytest.fixture
def own_run(finished_run: Path, tmp_path: Path) -> Path:
    """Return a copy of the finished run that a test may change or resume."""
    return Path(shutil.copytree(finished_run, tmp_path / "out"))


class MatchingNetwork(torch.nn.Module):
    """Returns the shift from 0 to 15 px at which the views agree best: correct without trained weights."""

    def forward(self, pair: torch.Tensor) -> StereoPrediction:
        left, right = pair[:, :3], pair[:, 3:]
        costs = []
        for shift_px in range(16):
            moved = torch.roll(right, shift_px, dims=3)
            moved[..., :shift_px] = 5.0  # what is outside the right image matches nothing
            cost = (left - moved).abs().mean(dim=1, keepdim=True)
            costs.append(torch.nn.functional.avg_pool2d(cost, 5, stride=1, padding=2, count_include_pad=False))
        disparity_px = torch.stack(costs).argmin(dim=0).float()
        return StereoPrediction(disparity_px, torch.zeros_like(disparity_px))


@pytest.fixture
def matching_predictor() -> Callable[..., Predictor]:
    """Return a function that makes a predictor with a `MatchingNetwork` for a height and width."""

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
    """Return a checkpoint of a small network with random weights, for 64x48, with its safetensors beside it."""
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
    """Return two views of a smooth random image, the right one shifted to the left by a whole number of pixels."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, ((height + 3) // 4, (width + shift_px + 3) // 4, 3), dtype=np.uint8)
    scene = cv2.resize(coarse, (width + shift_px, height), interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(scene[:, :width]), np.ascontiguousarray(scene[:, shift_px:])


def command_of(flags: dict) -> list[str]:
    """Return the command line of the same flags."""
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
    signal.signal(signal.SIGINT, signal.default_int_handler)  # an interrupted command ignores further ones

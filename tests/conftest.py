"""What many tests need: a small FSD tree, real data where it is at hand, and a folder of their own to run in."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foundation_stereo_depth.data.formats import encode_fsd_disparity, write_rgb
from foundation_stereo_depth.options import TrainOptions

torch.set_num_threads(2)


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
    from foundation_stereo_depth import arguments

    return lambda **changes: arguments.build(TrainOptions, tiny(**changes))

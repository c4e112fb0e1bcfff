"""The Rust trainer beside this package: the same samples, bytes, losses and figures.

Its own tests (`cargo test` in rust-trainer/) need no Python; these run both programs.
"""

import json
import math
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_fsd_sample

from foundation_stereo_depth.checkpoint import Checkpoint, Progress, read_trained, save_checkpoint
from foundation_stereo_depth.cli import cache_command
from foundation_stereo_depth.data.cache import open_cache
from foundation_stereo_depth.data.fsd import open_fsd
from foundation_stereo_depth.data.loader import open_files
from foundation_stereo_depth.data.split import fingerprint, split_samples, take_spread
from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.import_rust_run import RUST_RUN_TAG, import_rust_command, read_rust_run
from foundation_stereo_depth.model import create_network
from foundation_stereo_depth.options import command_line
from foundation_stereo_depth.options.training import ModelOptions, TrainOptions
from foundation_stereo_depth.training.train import train

RUST = Path(__file__).parents[1] / "rust-trainer"
SIZE = ["--height", "48", "--width", "64"]
SMALL = [*SIZE, "--base-channels", "8", "--depth", "2", "--num-workers", "1"]
EXACT_PX = 1e-3


@pytest.fixture(scope="session")
def rust_program() -> Path:
    """Return the built program."""
    cargo = shutil.which("cargo")
    if cargo is None:
        pytest.skip("cargo is not installed: the Rust trainer cannot be built")
    subprocess.run([cargo, "build", "--release", "--quiet"], cwd=RUST, check=True)
    target = Path(os.environ.get("CARGO_TARGET_DIR", RUST / "target"))
    return target / "release/foundation-stereo-train"


@pytest.fixture
def rust(rust_program: Path) -> Callable[..., str]:
    """Return a function that runs the program, checks its exit status, and returns what it prints."""

    def run(*words: object, status: int = 0) -> str:
        done = subprocess.run([rust_program, *map(str, words)], capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    return run


def rust_run() -> Path:
    """Return the folder of the only run."""
    (folder,) = Path("outputs-rs").iterdir()
    return folder


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def odd_tree(root: Path) -> Path:
    """Write a data set with odd names, stems of three digits, several suffixes of one frame, missing parts."""
    for scene, stem in [("räume 1", "001"), ("räume 1", "010"), ("Z", "0001"), ("a.b", "x.y"), (".hidden", "7")]:
        write_fsd_sample(root, scene, stem, 48, 64, seed=len(scene) + len(stem))
    data = root / "räume 1/dataset/data"
    shutil.copy(data / "left/rgb/001.png", data / "left/rgb/001.jpeg")
    shutil.copy(data / "left/rgb/001.png", data / "left/rgb/099.png")
    (data / "left/rgb/notes.txt").write_text("no image")
    (root / "empty/dataset/data").mkdir(parents=True)
    (root / "no scene").mkdir()
    return root


@pytest.mark.slow
@pytest.mark.parametrize(("max_samples", "fraction"), [(None, 0.1), (None, 0.3), (4, 0.25), (3, 0.0)])
def test_samples_and_split_are_the_same(
    tmp_path: Path, rust: Callable[..., str], max_samples: int | None, fraction: float
) -> None:
    root = odd_tree(tmp_path / "data")
    some = [] if max_samples is None else ["--max-samples", max_samples]
    rust("--dataset-root", root, "--val-fraction", fraction, "--epochs", 1, *some, *SMALL)
    facts = read_json(rust_run() / "config.json")["facts"]
    dataset = open_fsd(root)
    taken = take_spread(dataset.names, max_samples)
    split = split_samples(dataset.names, taken, fraction)
    assert facts["dataset_fingerprint"] == fingerprint(dataset.names.some(taken))
    assert facts["train_fingerprint"] == fingerprint(dataset.names.some(split.train))
    assert facts["validation_fingerprint"] == fingerprint(dataset.names.some(split.validation))
    assert (facts["train_samples"], facts["validation_samples"]) == (len(split.train), len(split.validation))
    assert facts["incomplete_samples"] == len(dataset.incomplete) == 1
    assert facts["split_by"] == split.by


@pytest.mark.slow
def test_samples_and_disparity_of_real_scenes_are_the_same(shared_data: Path, rust: Callable[..., str]) -> None:
    dataset = shared_data / "fsd-sample"
    rust("--build-cache-only", "--dataset-root", dataset, "--cache-root", "rust")
    assert cache_command(["--dataset-root", str(dataset), "--cache-root", "python"]) == 0
    assert cache_command(["--verify", "--dataset-root", str(dataset), "--cache-root", "rust"]) == 0
    means = []
    for path in sorted(Path("python").glob("*/*.npz")):
        ours, theirs = np.load(path), np.load("rust" / path.relative_to("python"))
        assert ours["disparity"].tobytes() == theirs["disparity"].tobytes()
        assert np.array_equal(ours["source"], theirs["source"])
        for view in ("left", "right"):
            levels = np.abs(ours[view].astype(int) - theirs[view])
            assert levels.max() <= 4  # JPEG decoders differ
            means.append(levels.mean())
    assert len(means) == 14
    assert np.mean(means) < 0.3


@pytest.mark.slow
def test_a_cache_of_png_images_has_the_same_bytes(tmp_path: Path, rust: Callable[..., str]) -> None:
    for frame in range(3):
        write_fsd_sample(tmp_path / "data", "scene", f"{frame:04d}", 144, 256, seed=frame)
    rust("--build-cache-only", "--dataset-root", "data", "--cache-root", "rust", *SIZE)
    assert cache_command(["--dataset-root", "data", "--cache-root", "python", *SIZE]) == 0
    files = sorted(path.relative_to("python") for path in Path("python").rglob("*") if path.is_file())
    assert len(files) == 4
    for file in files:
        assert ("python" / file).read_bytes() == ("rust" / file).read_bytes(), file


def other_layouts(arrays: dict[str, np.ndarray]) -> dict[str, Callable[[Path], None]]:
    """Return writers of one entry in other layouts of NPZ files."""
    big = {name: array.astype(array.dtype.newbyteorder(">")) for name, array in arrays.items()}
    fortran = {name: np.asfortranarray(array) for name, array in arrays.items()}
    wide = arrays | {"disparity": arrays["disparity"].astype(np.float32)}
    return {
        "plain": lambda path: np.savez(path, **arrays),
        "deflated": lambda path: np.savez_compressed(path, **arrays),
        "big endian": lambda path: np.savez(path, **big),
        "fortran order": lambda path: np.savez(path, **fortran),
        "float32": lambda path: np.savez(path, **wide),
        "more members": lambda path: np.savez(path, **arrays, note=np.zeros(9), camera=np.array(["left"])),
    }


@pytest.mark.slow
def test_entries_of_other_programs_are_read(tmp_path: Path, rust: Callable[..., str]) -> None:
    """All layouts of one sample give one loss."""
    random = np.random.default_rng(0)
    views = random.integers(0, 256, (2, 48, 64, 3), np.uint8)
    arrays = {"left": views[0], "right": views[1], "disparity": random.uniform(0, 9, (48, 64)).astype(np.float16)}
    losses = set[float]()
    for name, write in other_layouts(arrays).items():
        folder = tmp_path / name
        (folder / "scene").mkdir(parents=True)
        write(folder / "scene/0000.npz")
        rust("--cache-root", folder, "--require-cache", "--val-fraction", 0, "--epochs", 1, "--no-augment", *SMALL)
        losses.add(read_json(rust_run() / "metrics_history.json")[0]["metrics"]["validation/loss"])
        shutil.rmtree("outputs-rs")
    assert len(losses) == 1


@pytest.mark.slow
def test_damaged_entries_are_rebuilt_or_refused(tmp_path: Path, rust: Callable[..., str]) -> None:
    for frame in range(4):
        write_fsd_sample(tmp_path / "data", "scene", f"{frame:04d}", 48, 64, seed=frame)
    words = ["--dataset-root", "data", "--cache-root", "cache", *SIZE]
    assert cache_command(words) == 0
    truncated, flipped = Path("cache/scene/0001.npz"), Path("cache/scene/0002.npz")
    truncated.write_bytes(truncated.read_bytes()[:5000])
    content = bytearray(flipped.read_bytes())
    content[9000] ^= 4
    flipped.write_bytes(content)
    message = rust(*words, *SMALL[4:], "--require-cache", "--epochs", 1, status=2)
    assert "is damaged" in message
    assert len(message.strip().splitlines()[-1:]) == 1
    assert "2 of them in place of damaged ones" in rust("--build-cache-only", *words)
    assert cache_command(["--verify", *words]) == 0


def write_weights(path: Path) -> None:
    """Write a network of the Python package with initial weights."""
    torch.manual_seed(0)
    model = ModelOptions(base_channels=8, depth=2)
    save_checkpoint(
        path.with_suffix(".pt"),
        Checkpoint(
            model={"model": "unet", "base_channels": 8, "depth": 2},
            weights=create_network(model).state_dict(),
            uncertainty={"distribution": "laplace", "scale": 1.0},
            metrics={},
            run_id="0",
            progress=Progress(),
            options={"data": {"height": 48, "width": 64}},
        ),
    )


@pytest.mark.slow
def test_both_programs_train_alike_from_the_same_weights(
    tmp_path: Path, rust: Callable[..., str], tracking_uri: str
) -> None:
    """Three epochs of the same batches: losses and errors of training and validation agree."""
    for frame in range(10):
        write_fsd_sample(tmp_path / "data", f"scene_{frame % 5}", f"{frame:04d}", 48, 64, seed=frame)
    write_weights(Path("given.safetensors"))
    shared = {"dataset_root": Path("data"), "epochs": 3, "batch_size": 3, "val_fraction": 0.3, "augment": False}
    rust("--dataset-root", "data", "--epochs", 3, "--batch-size", 3, "--val-fraction", 0.3, "--no-augment",
         "--initial-weights", "given.safetensors", *SIZE, "--num-workers", 1)  # fmt: skip
    options = command_line.build_options(
        TrainOptions,
        shared
        | {
            "initial_weights": Path("given.safetensors"), "base_channels": 8, "depth": 2, "height": 48, "width": 64,
            "device": "cpu", "precision": "fp32", "num_workers": 1, "mlflow_tracking_uri": tracking_uri,
            "output_dir": Path("python"),
        },
    )  # fmt: skip
    train(options)
    found = read_json(rust_run() / "metrics_history.json")[-1]["metrics"]
    expected = read_trained(Path("python/last.safetensors")).facts.header["metrics"]
    for name in ("train/loss", "train/epe_px", "validation/loss", "validation/epe_px", "learning_rate"):
        assert found[name] == pytest.approx(expected[name], abs=EXACT_PX), name
    assert set(expected) - set(found) == set()


@pytest.mark.slow
def test_python_computes_what_rust_reports_of_its_checkpoint(tmp_path: Path, rust: Callable[..., str]) -> None:
    for frame in range(6):
        write_fsd_sample(tmp_path / "data", f"scene_{frame % 3}", f"{frame:04d}", 48, 64, seed=frame)
    rust("--dataset-root", "data", "--cache-root", "cache", "--epochs", 3, "--val-fraction", 0.34, *SMALL)
    trained = read_trained(rust_run() / "checkpoints/last.safetensors")
    options = command_line.build_options(
        TrainOptions, {"height": 48, "width": 64, "val_fraction": 0.34, "num_workers": 0, "cache_root": Path("cache")}
    ).data
    source = open_files(options, Path("data"), pin_memory=False).validation
    (batch,) = source.batches([np.arange(len(source))], epoch=0)
    with torch.no_grad():
        disparity_px = trained.network()(torch.cat([batch.left, batch.right], 1).float() / 255).disparity_px
    valid = batch.disparity_px > 0
    epe_px = (disparity_px - batch.disparity_px)[valid].abs().mean()
    metrics = trained.facts.header["metrics"]
    assert float(epe_px) == pytest.approx(metrics["validation/epe_px"], abs=1e-4)
    assert trained.facts.sigma_scale == metrics["validation/sigma_scale"]
    assert open_cache(Path("cache"), 48, 64).names().name(0) == "scene_0/0000"


@pytest.mark.slow
def test_a_run_is_imported_into_mlflow_once(tmp_path: Path, rust: Callable[..., str], tracking_uri: str) -> None:
    from mlflow.tracking import MlflowClient

    write_fsd_sample(tmp_path / "data", "scene", "0000", 48, 64, seed=0)
    rust("--dataset-root", "data", "--epochs", 2, "--val-fraction", 0, "--run-name", "from Rust", *SMALL)
    words = [str(rust_run()), "--mlflow-tracking-uri", tracking_uri, "--experiment-name", "imported"]
    assert import_rust_command(words) == import_rust_command(words) == 0
    client = MlflowClient(tracking_uri)
    experiment = client.get_experiment_by_name("imported")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "from Rust")
    assert run.data.tags[RUST_RUN_TAG] == rust_run().name
    assert run.data.params["epochs"] == "2"
    history = client.get_metric_history(run.info.run_id, "validation/epe_px")
    assert [point.step for point in history] == [1, 2]
    folders = {name: [Path(file.path).name for file in client.list_artifacts(run.info.run_id, name)]
               for name in ("previews", "checkpoints")}  # fmt: skip
    assert folders["previews"] == ["epoch_0001.png", "epoch_0002.png"]
    assert "best.safetensors" in folders["checkpoints"]


def test_a_folder_without_a_run_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert import_rust_command([str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("foundation-stereo-import-rust: ")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "metrics_history.json").write_text("[]")
    assert import_rust_command([str(tmp_path)]) == 2
    assert "not as the Rust trainer writes them" in capsys.readouterr().err
    (tmp_path / "metrics_history.json").write_text("[" * 100_000)
    assert import_rust_command([str(tmp_path)]) == 2
    assert "metrics_history.json: is not JSON" in capsys.readouterr().err
    (tmp_path / "config.json").unlink()
    os.mkfifo(tmp_path / "config.json")
    assert import_rust_command([str(tmp_path)]) == 2
    assert "config.json: is not a regular file" in capsys.readouterr().err


CONFIG = {"run_id": "0a", "started_ms": 1, "run_name": None, "facts": {}, "options": {"optimizer": {"epochs": 2}}}
EPOCH = {"epoch": 1, "time_ms": 2, "metrics": {"validation/epe_px": 1.5, "train/loss": None}}


def write_run_of_one_epoch(folder: Path) -> None:
    for content, name in ((CONFIG, "config.json"), ([EPOCH], "metrics_history.json")):
        (folder / name).write_text(json.dumps(content))


@pytest.mark.parametrize(
    "damage",
    [
        {"run_id": None}, {"run_id": "a' or '1"}, {"run_id": {}}, {"started_ms": "x"}, {"started_ms": math.nan},
        {"started_ms": -1}, {"run_name": [1]}, {"epoch": None}, {"epoch": 0}, {"time_ms": True}, {"time_ms": 10**40},
        {"metrics": {"a": "b"}}, {"options": {"optimizer": {"epochs": "2"}}},
    ],
    ids=str,
)  # fmt: skip
def test_a_run_with_values_of_other_kinds_is_refused_before_mlflow_is_asked(tmp_path: Path, damage: dict) -> None:
    write_run_of_one_epoch(tmp_path)
    assert len(read_rust_run(tmp_path).history) == 1
    damaged = CONFIG | damage if set(damage) <= set(CONFIG) else [EPOCH | damage]
    (tmp_path / ("config.json" if isinstance(damaged, dict) else "metrics_history.json")).write_text(
        json.dumps(damaged)
    )
    with pytest.raises(UserError, match="not as the Rust trainer writes them"):
        read_rust_run(tmp_path)


def test_files_of_others_and_endless_ones_are_not_copied_to_mlflow(
    tmp_path: Path, tracking_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(tmp_path / "run"), "--mlflow-tracking-uri", tracking_uri]
    best, secret = tmp_path / "run/checkpoints/best.safetensors", tmp_path / "secret"
    best.parent.mkdir(parents=True)
    write_run_of_one_epoch(tmp_path / "run")
    secret.write_text("of another user")
    best.symlink_to(secret)
    assert import_rust_command(words) == 2
    assert "best.safetensors: is a link to a file outside" in capsys.readouterr().err
    best.unlink()
    best.touch()
    os.truncate(best, 10**10)
    assert import_rust_command(words) == 2
    assert "best.safetensors: has more than" in capsys.readouterr().err

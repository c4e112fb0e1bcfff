"""The Rust trainer against this package on the same cores, alternating: `uv run python benchmarks/rust.py`.

CPU seconds of a training step (fp32, the default network, 320x240), and of filling a cache from 1280x720 images. Needs
`cargo build --release --examples --bins` in rust-trainer.
"""

import argparse
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from foundation_stereo_depth.data.codecs import encode_fsd_disparity, write_rgb

RELEASE = Path(__file__).parents[1] / "rust-trainer/target/release"
BATCH, STEPS = 8, 3

PYTHON_STEP = f"""
import time, torch
from foundation_stereo_depth.model import create_network
from foundation_stereo_depth.options.training import LossOptions, ModelOptions, OptimizerOptions
from foundation_stereo_depth.training.loss import loss_terms, weighted_loss
from foundation_stereo_depth.training.state import TrainingState
options = LossOptions()
network = create_network(ModelOptions()).to(memory_format=torch.channels_last)
state = TrainingState.create(network, OptimizerOptions(learning_rate=1e-3), "")
pair, truth = torch.rand({BATCH}, 6, 240, 320), 1 + 59 * torch.rand({BATCH}, 1, 240, 320)
for step in range({STEPS} + 1):
    if step == 1:
        began = time.process_time()
    loss = weighted_loss(loss_terms(network(pair), truth, options), options)
    (loss.total / loss.valid).backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    state.change_weights(1e-3)
print((time.process_time() - began) / {BATCH * STEPS})
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=600)
    asked = parser.parse_args()
    compare("training step, CPU-s a sample", asked.rounds, rust_step, python_step)
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(Path(folder) / "data", asked.samples)
        for name, words in {"rust": rust_words(folder), "python": python_words(folder)}.items():
            print(f"{name} fills a cache:", " ".join(words).replace(folder, "DIR"))
        compare(
            f"filling a cache with {asked.samples} samples, CPU-s each",
            asked.rounds,
            lambda: cpu_seconds(rust_words(folder)) / asked.samples,
            lambda: cpu_seconds(python_words(folder)) / asked.samples,
        )


def compare(what: str, rounds: int, rust: Callable[[], float], python: Callable[[], float]) -> None:
    """Measure both alternately; print medians, and median and range of the ratios."""
    pairs = [(rust(), python()) for _ in range(rounds)]
    ratios = sorted(a / b for a, b in pairs)
    rust_s, python_s = (statistics.median(values) for values in zip(*pairs, strict=True))
    print(f"{what}: Rust {rust_s:.4f}, Python {python_s:.4f}; Rust / Python {statistics.median(ratios):.2f} "
          f"({ratios[0]:.2f} to {ratios[-1]:.2f})", flush=True)  # fmt: skip


def rust_step() -> float:
    """Return CPU seconds per sample."""
    words = [RELEASE / "examples/train_step", str(BATCH), str(STEPS)]
    printed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    found = re.match(r"[\d.]+", printed)
    assert found is not None, printed
    return float(found[0])


def python_step() -> float:
    """Return CPU seconds per sample; waiting threads spin only for a moment, as long spins would count as CPU time."""
    environment = os.environ | {"GOMP_SPINCOUNT": "1000"}
    done = subprocess.run(
        [sys.executable, "-c", PYTHON_STEP], capture_output=True, text=True, check=True, env=environment
    )
    return float(done.stdout)


def rust_words(folder: str) -> list[str]:
    program = str(RELEASE / "foundation-stereo-train")
    return [
        program,
        "--build-cache-only",
        "--overwrite",
        "--dataset-root",
        f"{folder}/data",
        "--cache-root",
        f"{folder}/r",
    ]


def python_words(folder: str) -> list[str]:
    program = str(Path(sys.executable).parent / "foundation-stereo-cache")
    return [program, "--overwrite", "--dataset-root", f"{folder}/data", "--cache-root", f"{folder}/p"]


def cpu_seconds(words: list[str]) -> float:
    """Run a command, and return its user and system time in s."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(words, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def write_dataset(root: Path, samples: int) -> None:
    """Write samples of 1280x720 with the statistics of photographs: links to a few files."""
    random = np.random.default_rng(0)
    for frame in range(samples):
        data = root / "scene/dataset/data"
        for part, suffix in (("left/rgb", ".jpg"), ("right/rgb", ".jpg"), ("left/disparity", ".png")):
            path = data / part / f"{frame:04d}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if frame >= 4:
                path.symlink_to(data / part / f"{frame % 4:04d}{suffix}")
            elif suffix == ".jpg":
                write_rgb(path, textured(random))
            else:
                planes = cv2.resize(random.uniform(5, 200, (9, 16)), (1280, 720), interpolation=cv2.INTER_LINEAR)
                write_rgb(path, encode_fsd_disparity(planes))


def textured(random: np.random.Generator) -> np.ndarray:
    """Return an image of noise whose amplitude falls with frequency."""
    image = np.zeros((720, 1280, 3))
    for power in range(2, 8):
        size = (2**power * 16 // 9, 2**power)
        image += (
            cv2.resize(random.normal(size=(size[1], size[0], 3)), (1280, 720), interpolation=cv2.INTER_CUBIC)
            * 40
            / power
        )
    return np.clip(image + 128 + random.normal(scale=3, size=image.shape), 0, 255).astype(np.uint8)


if __name__ == "__main__":
    main()

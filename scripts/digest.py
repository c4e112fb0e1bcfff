"""Write digests of everything that the commands compute, to show that a refactoring changed no number.

    uv run python scripts/digest.py before/            # on the commit before
    uv run python scripts/digest.py after/ --old before/
    diff before/digest.json after/digest.json

CPU, fp32, seed 0, one thread. Every figure goes through the installed console scripts, so that the same script runs on
both sides. `--old` names the folder that an older version wrote: its checkpoints and its cache have to open. Needs
$STEREO_SHARED_DATA; takes a few minutes.
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

os.environ["OPENCV_FOR_THREADS_NUM"] = "1"  # with more, calibration differs in the last digits from run to run
TIMES = ("speed/", "data/", "system/")
"""Metrics of the machine, not of the program."""
TRAIN = [*["--device", "cpu", "--precision", "fp32", "--seed", "0", "--batch-size", "4", "--num-workers", "1"]]
SYNTHETIC = [*["--procedural-samples", "24", "--procedural-val-samples", "8", "--epochs", "1"]]


def run(command: str, *arguments: object, stdout: bool = False) -> str:
    """Run a console script; return what it printed."""
    done = subprocess.run(
        [str(Path(sys.executable).parent / command), *map(str, arguments)],
        check=False,
        text=True,
        capture_output=True,
    )
    if done.returncode:
        raise SystemExit(f"{command} {arguments}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout if stdout else ""


def sha(content: bytes) -> str:
    """Return the first half of the SHA-256."""
    return hashlib.sha256(content).hexdigest()[:32]


def of_arrays(arrays: dict[str, np.ndarray]) -> dict[str, str]:
    """Return shape, type and digest of each array."""
    return {name: f"{a.dtype} {a.shape} {sha(np.ascontiguousarray(a).tobytes())}" for name, a in sorted(arrays.items())}


def of_checkpoint(path: Path) -> dict[str, Any]:
    """Return digests of the weights, and the history without times."""
    content = torch.load(path, weights_only=True)
    weights = {name: tensor.numpy() for name, tensor in content["weights"].items()}
    raw = {name: tensor.numpy() for name, tensor in content["training"]["weights"].items()}
    history = [
        {name: value for name, value in epoch.items() if not name.startswith(TIMES)}
        for epoch in content["training"]["history"]
    ]
    return {
        "weights": sha(json.dumps(of_arrays(weights)).encode()),
        "raw_weights": sha(json.dumps(of_arrays(raw)).encode()),
        "names": sha(" ".join(weights).encode()),
        "history": history,
        "progress": content["progress"],
        "model": content["model"],
    }


def train(folder: Path, *arguments: object) -> dict[str, Any]:
    """Train into `folder`; return the digest of its last checkpoint."""
    run("foundation-stereo-depth", *TRAIN, *arguments, "--output-dir", folder)
    return of_checkpoint(folder / "last.pt")


def train_interrupted(folder: Path, *arguments: object) -> dict[str, Any]:
    """Train, stop by SIGTERM in the middle of the epoch, resume; return the digest of the last checkpoint."""
    command = [str(Path(sys.executable).parent / "foundation-stereo-depth"), *TRAIN, *map(str, arguments)]
    command += ["--output-dir", str(folder), "--checkpoint-minutes", "0"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (folder / "last.pt").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.wait()
    stopped_after = torch.load(folder / "last.pt", weights_only=True)["progress"]["step_in_epoch"]
    assert stopped_after > 0, "the run ended before it could be stopped"
    run("foundation-stereo-depth", "--resume", folder / "last.pt")
    return of_checkpoint(folder / "last.pt")


def of_entries(cache: Path) -> dict[str, str]:
    """Return the digest of every entry's bytes."""
    return {str(path.relative_to(cache)): sha(path.read_bytes()) for path in sorted(cache.rglob("*.npz"))}


def evaluate(*arguments: object) -> Any:
    """Return the evaluation without times, versions and paths."""

    def without_times(value: Any) -> Any:
        if isinstance(value, dict):
            skipped = ("latency_ms", "settings", "versions", "device")
            return {name: without_times(inner) for name, inner in value.items() if name not in skipped}
        return [without_times(inner) for inner in value] if isinstance(value, list) else value

    text = run(
        "foundation-stereo-evaluate", *arguments, "--device", "cpu", "--precision", "fp32", "--json", stdout=True
    )
    return sha(json.dumps(without_times(json.loads(text)), sort_keys=True).encode())


def of_video(path: Path) -> list[str]:
    """Return the digest of every frame."""
    capture = cv2.VideoCapture(str(path))
    frames: list[str] = []
    while True:
        there, frame = capture.read()
        if not there:
            return frames
        frames.append(sha(frame.tobytes()))


def main() -> None:
    """Compute all digests, in the order in which commands need each other's results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="results; has to be empty or absent")
    parser.add_argument("--old", type=Path, help="results of an older version, whose files have to open")
    asked = parser.parse_args()
    shared = Path(os.environ["STEREO_SHARED_DATA"]).resolve()
    folder: Path = asked.folder.resolve()
    old = folder if asked.old is None else asked.old.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ |= {"OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    os.chdir(folder)
    fsd, digests = shared / "fsd-sample", dict[str, Any]()

    def note(name: str, value: Any) -> None:
        digests[name] = value
        (folder / "digest.json").write_text(json.dumps(digests, indent=1, sort_keys=True) + "\n")
        print(name, flush=True)

    for model in ("unet", "guided"):
        options = ["--model", model]
        note(f"train {model} on files", train(folder / model, *options, "--dataset-root", fsd, "--epochs", 1))
        note(f"train {model} on synthetic scenes", train(folder / f"{model}-synthetic", *options, *SYNTHETIC))
    resumed = train_interrupted(folder / "resumed", "--model", "unet", *SYNTHETIC)
    assert resumed == digests["train unet on synthetic scenes"], "a resumed run differs from an uninterrupted one"
    note("resumed equals uninterrupted", True)

    run("foundation-stereo-cache", "--dataset-root", fsd, "--cache-root", folder / "cache")
    note("cache of files", of_entries(folder / "cache"))
    run("foundation-stereo-cache", "--procedural-samples", 12, "--cache-root", folder / "pool")
    note("cache of synthetic scenes", of_entries(folder / "pool"))
    cached = ["--cache-root", old / "cache", "--require-cache", "--dataset-root", fsd, "--epochs", 1]
    note("train from a cache", train(folder / "cached", *cached))

    note("evaluate installed", evaluate("--dataset-root", fsd, "--baseline", "sgbm"))
    note("evaluate installed, native size", evaluate("--dataset-root", fsd, "--at-native-size", "--max-samples", 2))
    note("evaluate old checkpoint", evaluate("--dataset-root", fsd, "--checkpoint", old / "unet" / "best.pt"))
    note(
        "evaluate old safetensors", evaluate("--dataset-root", fsd, "--checkpoint", old / "guided" / "best.safetensors")
    )

    scene = fsd / "middlebury_cones" / "dataset" / "data"
    rig = ["--focal-px", 451, "--baseline-m", 0.075, "--map-format", "png,pfm,npy"]
    what = ["--write", "disparity,sigma,confidence,depth,picture,cloud", "--precision", "fp32", "--device", "cpu"]
    run("foundation-stereo-predict", scene / "left/rgb", scene / "right/rgb", "-o", folder / "out", *rig, *what)
    files = {path.name: sha(path.read_bytes()) for path in sorted((folder / "out").iterdir())}
    note("predict", {name.replace("_picture", "_figure"): digest for name, digest in files.items()})

    boards = shared / "chessboard"
    run(
        *("foundation-stereo-calibrate", "--images", boards / "left*.jpg", boards / "right*.jpg"),
        *("--corners", "9x6", "--square-mm", 25, "--output", folder / "rig.npz"),
    )
    with np.load(folder / "rig.npz") as arrays:
        note("calibration", of_arrays({name: arrays[name] for name in arrays.files}))

    live = ["--left", boards / "left*.jpg", "--right", boards / "right*.jpg", "--calibration", folder / "rig.npz"]
    live += ["--headless", "--method", "sgbm", "--record", folder / "raw.mkv"]
    run("foundation-stereo-live-view", *live)
    note("live recording", of_video(folder / "raw.mkv"))


if __name__ == "__main__":
    main()

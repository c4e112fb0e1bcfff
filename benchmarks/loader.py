"""What the data path costs beside a straightforward one (reference.py): one JSON line for each part, ms per sample.

All ways of one part take turns in one process on one thread; ratios are of each round.

    uv run python benchmarks/loader.py read        cached entries -> batch of bytes, the page cache warm
    uv run python benchmarks/loader.py augment     cached entries -> augmented batch of floats
    uv run python benchmarks/loader.py fill        1280x720 JPEG, JPEG, PNG -> cached entry
    uv run python benchmarks/loader.py wait        share of an epoch that waits for data, U-Net on this device
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import reference
import torch
from PIL import Image
from training_loop import commit, device_name, fill_cache, ratio, summary

from foundation_stereo_depth.checkpoint import load_checkpoint
from foundation_stereo_depth.data.augment.pipeline import augmented_pair
from foundation_stereo_depth.data.cache import open_cache
from foundation_stereo_depth.data.codecs import encode_fsd_disparity
from foundation_stereo_depth.data.fsd import open_fsd
from foundation_stereo_depth.data.loader import FileSource, open_files
from foundation_stereo_depth.data.loops import compile_loops
from foundation_stereo_depth.data.memory import keep_freed_memory
from foundation_stereo_depth.data.random import sample_keys
from foundation_stereo_depth.data.sample import StereoSample
from foundation_stereo_depth.data.synthetic.torch_scenes import ProceduralSource
from foundation_stereo_depth.options import command_line
from foundation_stereo_depth.options.training import AugmentOptions, DataOptions, TrainOptions
from foundation_stereo_depth.training.train import train

HEIGHT, WIDTH, BATCH = 240, 320, 8
Ways = dict[str, Callable[[int], object]]


class Cost(NamedTuple):
    """Milliseconds for one sample: on the wall, and of the processor, which other programs stretch less."""

    ms: float
    cpu_ms: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--rounds", type=int, default=20)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = PARTS[asked.part](Path(folder), asked.rounds)
    print(json.dumps({"benchmark": asked.part, "commit": commit(), "device": device_name()} | figures))


def take_turns(ways: Ways, rounds: int, samples: int) -> dict[str, list[Cost]]:
    """What a sample costs each way in each round; the first two rounds warm up."""
    costs: dict[str, list[Cost]] = {name: [] for name in ways}
    for i in range(rounds + 2):
        for name, way in ways.items():
            began_s, cpu_began_s = time.perf_counter(), time.process_time()
            way(i)
            spent_s = time.perf_counter() - began_s, time.process_time() - cpu_began_s
            costs[name].append(Cost(*(1000 * one / samples for one in spent_s)))
    return {name: of_way[2:] for name, of_way in costs.items()}


def compared(costs: dict[str, list[Cost]], baseline: str) -> dict[str, object]:
    """Times, and how often the baseline's contain them: by the clock on the wall, and by the processor's."""
    figures: dict[str, object] = {}
    for prefix, field in (("", "ms"), ("cpu_", "cpu_ms")):
        times = {name: [getattr(one, field) for one in of_way] for name, of_way in costs.items()}
        over = {name: ratio(times[baseline], of_way) for name, of_way in times.items() if name != baseline}
        figures |= {
            f"{prefix}ms_per_sample": {name: summary(of_way) for name, of_way in times.items()},
            f"{prefix}{baseline}_over": over,
        }
    return figures


def noise_cache(root: Path, samples: int) -> list[Path]:
    """Entries of noise, which are as long as any."""
    cache, random = open_cache(root, HEIGHT, WIDTH), np.random.default_rng(0)
    for i in range(samples):
        left, right = random.integers(0, 256, (2, HEIGHT, WIDTH, 3), dtype=np.uint8)
        disparity_px = random.uniform(0, 60, (HEIGHT, WIDTH)).astype(np.float32)
        cache.write(f"s{i % 8}", f"{i:04d}", StereoSample(left=left, right=right, disparity_px=disparity_px))
    return [cache.path(*name.split("/")) for name in cache.names()]


def cached_source(root: Path, workers: int) -> FileSource:
    options = DataOptions(
        cache_root=root, require_cache=True, height=HEIGHT, width=WIDTH, val_fraction=0.0, num_workers=workers
    )
    return open_files(options, None, pin_memory=False).train


def measure_read(root: Path, rounds: int) -> dict[str, object]:
    """np.load and our reader to batches; below them what no reader can beat: the bare bytes, and copying them."""
    torch.set_num_threads(1)
    samples = 128
    entries = noise_cache(root, samples)
    source = cached_source(root, 0)
    plan = np.split(np.arange(samples), samples // BATCH)
    scratch = bytearray(2**20)
    in_memory = np.stack([np.fromfile(entry, np.uint8) for entry in entries])
    room = np.empty((BATCH, in_memory.shape[1]), np.uint8)

    def np_load(_: int) -> None:
        for indices in plan:
            reference.batch([entries[i] for i in indices])

    def ours(_: int, workers: int = 0) -> None:
        for _ in replace(source, workers=workers).batches(plan, 0):
            pass

    def bare(_: int) -> None:
        for entry in entries:
            file = os.open(entry, os.O_RDONLY)
            os.readv(file, [scratch])
            os.close(file)

    def memcpy(_: int) -> None:
        for indices in plan:
            for row, i in enumerate(indices):
                room[row] = in_memory[i]

    def np_load_alone(_: int) -> None:
        for entry in entries:
            reference.load(entry)

    ways: Ways = {
        "np_load": np_load,
        "np_load_alone": np_load_alone,
        "ours": ours,
        "ours_1_thread_ahead": lambda i: ours(i, 1),
    }
    ways |= {"ours_2_threads_ahead": lambda i: ours(i, 2), "bare_read": bare, "memcpy": memcpy}
    return compared(take_turns(ways, rounds, samples), "np_load") | {"entry_bytes": in_memory.shape[1]}


def measure_augment(root: Path, rounds: int) -> dict[str, object]:
    """Everything at its defaults; what the reference does not do as well (gamma, lighting, offset, erasing, JPEG)."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    samples = 16
    fill_cache(root, samples)  # scenes, not noise, which takes JPEG twice as long
    entries = sorted(root.rglob("*.npz"))
    source, options = cached_source(root, 0), AugmentOptions()
    plan = np.split(np.arange(samples), samples // BATCH)

    def straightforward(_: int) -> None:
        for indices in plan:
            reference.augmented_batch([entries[i] for i in indices], options)

    def ours(i: int, jpeg_prob: float = options.jpeg_prob) -> None:
        for host_batch in source.batches(plan, 0):
            batch = host_batch.to(torch.device("cpu"))
            augmented_pair(batch, sample_keys(0, i, batch.indices), replace(options, jpeg_prob=jpeg_prob))

    ways: Ways = {"reference": straightforward, "ours": ours, "ours_without_jpeg": lambda i: ours(i, 0.0)}
    return compared(take_turns(ways, rounds, samples), "reference")


def fsd_tree(root: Path, frames: int) -> None:
    """Made-up scenes of FSD's size and encodings, written by PIL, as JPEG, JPEG and PNG."""
    height, width = 720, 1280
    source = ProceduralSource(length=frames, seed=0, height=height, width=width, device=torch.device("cpu"))
    for i in range(frames):
        batch = next(source.batches([np.array([i])], 0))
        left, right = (np.ascontiguousarray(eye[0].permute(1, 2, 0).numpy()) for eye in (batch.left, batch.right))
        code = encode_fsd_disparity(batch.disparity_px[0, 0].numpy())
        folder = root / "s/dataset/data"
        for part, picture in ((f"left/rgb/{i:04d}.jpg", left), (f"right/rgb/{i:04d}.jpg", right)):
            (folder / part).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(folder / part, quality=95)
        (folder / "left/disparity").mkdir(parents=True, exist_ok=True)
        Image.fromarray(code).save(folder / f"left/disparity/{i:04d}.png")


def measure_fill(root: Path, rounds: int) -> dict[str, object]:
    """Files to entry, with the compiled loops that builds of large caches use."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    keep_freed_memory()
    compile_loops()
    frames = 4
    fsd_tree(root / "fsd", frames)
    dataset = open_fsd(root / "fsd")
    cache = open_cache(root / "cache", HEIGHT, WIDTH)
    (root / "reference").mkdir()

    # New names in each round, as in a cache that is being filled: to replace a file costs a file system half a
    # millisecond more.
    def straightforward(turn: int) -> None:
        for i in range(frames):
            reference.fill(dataset.paths(i), root / f"reference/{turn}-{i}.npz", HEIGHT, WIDTH)

    def ours(turn: int) -> None:
        for i in range(frames):
            cache.write("s", f"{turn}-{i}", dataset.read(i, (HEIGHT, WIDTH)))

    return compared(take_turns({"reference": straightforward, "ours": ours}, rounds, frames), "reference") | {
        "jpeg_bytes": dataset.paths(0).left.stat().st_size,
        "png_bytes": dataset.paths(0).disparity.stat().st_size,
    }


def measure_wait(root: Path, rounds: int) -> dict[str, object]:
    """What `train` itself reports of its epochs on a cache; every epoch but the first, which warms up."""
    noise_cache(root / "cache", 160)
    options = command_line.build_options(
        TrainOptions,
        {
            "cache_root": root / "cache", "require_cache": True, "val_fraction": 0.05, "epochs": rounds + 1,
            "model": "unet", "mlflow_tracking_uri": f"sqlite:///{root}/mlflow.db", "output_dir": root / "run",
        },
    )  # fmt: skip
    with contextlib.redirect_stdout(sys.stderr):
        train(options)
    history = load_checkpoint(root / "run/last.pt").training["history"][1:]
    return {
        name: summary([epoch[f"speed/{name}"] for epoch in history]) for name in ("data_wait_percent", "samples_per_s")
    }


PARTS = {"read": measure_read, "augment": measure_augment, "fill": measure_fill, "wait": measure_wait}

if __name__ == "__main__":
    main()

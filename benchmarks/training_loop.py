"""What the training command costs on top of its arithmetic: one JSON line.

Both sides alternate in one process. The command's side is `train` itself, on a filled cache, with everything it does
while an epoch runs: reading, augmenting, stepping, averaging weights, metrics, the progress bar. Two bare loops repeat
one resident batch through the same network in the same precision: forward, loss, backward, clip, AdamW; one of them
also augments the batch each time, since that is arithmetic on the training device and not a cost of the loop.

    uv run python benchmarks/training_loop.py
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from foundation_stereo_depth.checkpoint import load_checkpoint
from foundation_stereo_depth.data.augment.pipeline import as_pair, augmented_pair
from foundation_stereo_depth.data.cache import open_cache
from foundation_stereo_depth.data.random import sample_keys
from foundation_stereo_depth.data.sample import StereoSample
from foundation_stereo_depth.data.synthetic.torch_scenes import ProceduralSource
from foundation_stereo_depth.device import Processes, autocast, pick_device, pick_precision
from foundation_stereo_depth.model import create_network
from foundation_stereo_depth.options import command_line
from foundation_stereo_depth.options.training import TrainOptions
from foundation_stereo_depth.training.loss import heteroscedastic_loss
from foundation_stereo_depth.training.train import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=160)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        fill_cache(root / "cache", asked.samples)
        sides = {
            "command": lambda i: command_rate(root, i, augment=True),
            "bare_augmented": lambda _: bare_rate(asked.samples, augment=True),
            "command_no_augment": lambda i: command_rate(root, i, augment=False),
            "bare": lambda _: bare_rate(asked.samples, augment=False),
        }
        rates: dict[str, list[float]] = {name: [] for name in sides}
        for i in range(asked.rounds + 1):
            for name, measure in sides.items():
                rates[name].append(measure(i))
    rates = {name: values[1:] for name, values in rates.items()}  # the first round warms up
    print(
        json.dumps(
            {
                "benchmark": "training_loop",
                "commit": commit(),
                "device": device_name(),
                "samples_per_s": {name: summary(values) for name, values in rates.items()},
                "command_over_bare_both_augmented": ratio(rates["command"], rates["bare_augmented"]),
                "command_over_bare_neither_augmented": ratio(rates["command_no_augment"], rates["bare"]),
                "command_augmented_over_bare_not": ratio(rates["command"], rates["bare"]),
            }
        )
    )


def options_of(root: Path, i: int, *, augment: bool) -> TrainOptions:
    return command_line.build_options(
        TrainOptions,
        {
            "cache_root": root / "cache", "require_cache": True, "val_fraction": 0.01, "epochs": 1, "augment": augment,
            "mlflow_tracking_uri": f"sqlite:///{root}/mlflow.db", "output_dir": root / f"run-{i}-{augment}",
        },
    )  # fmt: skip


def command_rate(root: Path, i: int, *, augment: bool) -> float:
    options = options_of(root, i, augment=augment)
    train(options)
    assert options.tracking.output_dir is not None
    history = load_checkpoint(options.tracking.output_dir / "last.pt").training["history"]
    return history[-1]["speed/samples_per_s"]


def bare_rate(samples: int, *, augment: bool) -> float:
    options = TrainOptions()
    device = pick_device(options.runtime.device, Processes.from_environment())
    precision = pick_precision(options.runtime.precision, device)
    network = create_network(options.model).to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters())
    B = options.optimizer.batch_size
    source = ProceduralSource(length=B, seed=0, height=options.data.height, width=options.data.width, device=device)
    batch = next(source.batches([np.arange(B)], 0))
    pair = as_pair(batch)
    steps, began_s = samples // B, 0.0
    for step in range(-2, steps):
        if step == 0:
            synchronise(device)
            began_s = time.perf_counter()
        if augment:
            pair = augmented_pair(batch, sample_keys(0, step, batch.indices), options.augment)
        with autocast(device, precision):
            prediction = network(pair)
        loss = heteroscedastic_loss(prediction, batch.disparity_px, options.loss)
        (loss.total / loss.valid).backward()
        nn.utils.clip_grad_norm_(network.parameters(), options.optimizer.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    synchronise(device)
    return steps * B / (time.perf_counter() - began_s)


def fill_cache(root: Path, samples: int) -> None:
    options = TrainOptions()
    cache = open_cache(root, options.data.height, options.data.width)
    source = ProceduralSource(
        length=samples, seed=0, height=options.data.height, width=options.data.width, device=torch.device("cpu")
    )
    for batch in source.batches(np.split(np.arange(samples), samples // 8), 0):
        for row, index in enumerate(batch.indices.tolist()):
            left, right = (view[row].permute(1, 2, 0).numpy() for view in (batch.left, batch.right))
            sample = StereoSample(left=left, right=right, disparity_px=batch.disparity_px[row, 0].numpy())
            cache.write(f"scene_{index % 100:03d}", f"{index:04d}", sample)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def summary(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratio(numerator: list[float], denominator: list[float]) -> dict[str, float]:
    return summary([a / b for a, b in zip(numerator, denominator, strict=True)])


def commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    ).stdout.strip()


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()

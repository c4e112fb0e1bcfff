"""`foundation-stereo-evaluate`: contenders on the scenes of a benchmark, scored by the same rules."""

import dataclasses
import json
import math
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torchvision
from jaxtyping import Bool, Float
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from foundation_stereo_depth import __version__, report
from foundation_stereo_depth.block_matching import match_blocks
from foundation_stereo_depth.checkpoint import Checkpoint, load_checkpoint
from foundation_stereo_depth.data.benchmarks import BenchmarkScene, open_benchmark
from foundation_stereo_depth.data.dataset import read_ahead
from foundation_stereo_depth.data.fsd import DATASET_ROOT_VARIABLE, named_dataset_root
from foundation_stereo_depth.data.sample import StereoSample, resize_image, resize_sample
from foundation_stereo_depth.device import Processes, autocast, pick_device, pick_precision
from foundation_stereo_depth.disparity import nearest_indices
from foundation_stereo_depth.errors import CheckpointError, UserError
from foundation_stereo_depth.metrics import DisparityErrors, disparity_errors
from foundation_stereo_depth.model import create_network
from foundation_stereo_depth.options import BenchmarkOptions, DataOptions, ModelOptions, RuntimeOptions
from foundation_stereo_depth.report import Plain, Score
from foundation_stereo_depth.tracking import add_to_run, checkpoint_of_run
from foundation_stereo_depth.uncertainty import DISTRIBUTIONS, UncertaintyCounts, uncertainty_counts


class Answer(NamedTuple):
    """What a contender says of a pair, at the pair's own size.

    Attributes:
        disparity_px: dense.
        log_variance: of its error, natural logarithm of px^2; None where the contender predicts none.
        matched: where the answer is its own; None where it answers everywhere.
    """

    disparity_px: Float[np.ndarray, "H W"]
    log_variance: Float[np.ndarray, "H W"] | None = None
    matched: Bool[np.ndarray, "H W"] | None = None


Contender = Callable[[StereoSample], Answer]
"""Answers for a pair; it does not look at the truth."""


def benchmark(options: BenchmarkOptions) -> str:
    """Evaluates as the options say; the results as a table, or as JSON where that is asked for.

    With a run named, the results, the table and the plots are added to it in MLflow.

    Raises:
        UserError: the options, the checkpoint, the data or the tracking store do not allow it.
    """
    if options.run_id is not None and options.checkpoint is not None:
        raise UserError("--run-id and --checkpoint: name one of the two")
    if options.run_id is None and options.checkpoint is None and options.baseline == "none":
        raise UserError("nothing to evaluate: name a network by --run-id or --checkpoint, or --baseline sgbm")
    root = named_dataset_root(options.dataset_root) if options.dataset == "fsd" else options.dataset_root
    if root is None:
        variable = f" or ${DATASET_ROOT_VARIABLE}" if options.dataset == "fsd" else ""
        raise UserError(f"--dataset {options.dataset}: needs --dataset-root{variable}, the folder where it is")
    runtime = RuntimeOptions(device=options.device, precision=options.precision)
    device = pick_device(runtime, Processes(rank=0, local_rank=0, world_size=1))
    precision = pick_precision(runtime, device)
    checkpoint = _named_checkpoint(options)
    height, width = _size(options, checkpoint)
    scenes = open_benchmark(options.dataset, root, download=options.download)

    contenders: dict[str, Contender] = {}
    if checkpoint is not None:
        network = load_network(checkpoint).to(device)
        contenders["network"] = _network_contender(network, checkpoint, height, width, precision)
    if options.baseline == "sgbm":
        contenders["sgbm"] = _sgbm_contender
    distribution = "laplace" if checkpoint is None else checkpoint.uncertainty["distribution"]

    scored: list[tuple[BenchmarkScene, dict[str, Score]]] = []
    # On a CPU, reading ahead would take the cores that are being timed.
    workers = 0 if device.type == "cpu" else 2
    positions = _spread(len(scenes), options.max_samples)
    warm = False
    for native in tqdm(
        read_ahead(positions, scenes.read, workers), total=len(positions), unit="scene", leave=False, file=sys.stderr
    ):
        scene = native if options.at_native_size else _resized(native, height, width)
        if not warm:  # the first call of each pays for what later ones find done
            for contender in contenders.values():
                contender(scene.sample)
            warm = True
        scored.append((scene, {name: _score(c, scene, distribution, device) for name, c in contenders.items()}))

    totals = {name: scored[0][1][name] for name in contenders}
    for _, scores in scored[1:]:
        totals = {name: total.plus(scores[name]) for name, total in totals.items()}
    settings = {
        **{k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(options).items() if k != "json"},
        "dataset_root": str(root),
        "height": height,
        "width": width,
        "distribution": None if checkpoint is None else distribution,
        "uncertainty_scale": None if checkpoint is None else checkpoint.uncertainty["scale"],
    }
    device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    result = {
        "settings": settings,
        "versions": _versions(),
        "device": {"name": device_name, "precision": str(precision).removeprefix("torch."),
                   "threads": torch.get_num_threads()},
        "scenes": [_scene_plain(scene, scores) for scene, scores in scored],
        "overall": {name: _with_curves(score) for name, score in totals.items()},
    }  # fmt: skip
    if options.run_id is not None:
        _record(options, options.run_id, result, totals)
    return json.dumps(result, indent=2) if options.json else report.table(result)


def load_network(checkpoint: Checkpoint) -> nn.Module:
    """The network that a checkpoint holds, in evaluation mode, on the CPU.

    Raises:
        CheckpointError: its weights and its options do not fit together.
    """
    network = create_network(ModelOptions(**checkpoint.model))
    try:
        network.load_state_dict(checkpoint.weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"the checkpoint of run {checkpoint.run_id} does not fit its own options: {error}"
        ) from error
    return network.to(memory_format=torch.channels_last).eval()  # pyright: ignore[reportCallIssue]


def _named_checkpoint(options: BenchmarkOptions) -> Checkpoint | None:
    if options.run_id is not None:
        with tempfile.TemporaryDirectory() as folder:
            name = f"{options.weights}.pt"
            checkpoint = load_checkpoint(
                checkpoint_of_run(options.mlflow_tracking_uri, options.run_id, Path(folder), name=name, flag="--run-id")
            )
    elif options.checkpoint is not None:
        checkpoint = load_checkpoint(options.checkpoint)
    else:
        return None
    if (distribution := checkpoint.uncertainty.get("distribution")) not in DISTRIBUTIONS:
        raise CheckpointError(
            f"the checkpoint's errors are said to be {distribution}, not one of {list(DISTRIBUTIONS)}"
        )
    return checkpoint


def _size(options: BenchmarkOptions, checkpoint: Checkpoint | None) -> tuple[int, int]:
    """(height, width) that the network runs at, and that is scored at unless native size is asked for."""
    data = dataclasses.asdict(DataOptions()) if checkpoint is None else checkpoint.options["data"]
    return options.height or data["height"], options.width or data["width"]


def _network_contender(
    network: nn.Module, checkpoint: Checkpoint, height: int, width: int, precision: torch.dtype
) -> Contender:
    """The network at its own size; what it says is stretched to the pair's size, values following the width."""
    device = next(network.parameters()).device
    widening = 2 * math.log(checkpoint.uncertainty["scale"])

    @torch.inference_mode()
    def answer(sample: StereoSample) -> Answer:
        native_height, native_width = sample.left.shape[:2]
        views = [resize_image(view, height, width) for view in (sample.left, sample.right)]
        pair = torch.from_numpy(np.concatenate(views, axis=2)).to(device)[None].permute(0, 3, 1, 2)
        with autocast(device, precision):
            disparity_px, log_variance = network(pair.to(torch.float32) / 255)
        if (native_height, native_width) != (height, width):
            disparity_px, log_variance = (
                F.interpolate(each, size=(native_height, native_width), mode="bilinear", align_corners=False)
                for each in (disparity_px, log_variance)
            )
        ratio = native_width / width
        return Answer(
            (disparity_px[0, 0] * ratio).cpu().numpy(),
            (log_variance[0, 0] + (2 * math.log(ratio) + widening)).cpu().numpy(),
        )

    return answer


def _sgbm_contender(sample: StereoSample) -> Answer:
    found = match_blocks(sample.left, sample.right)
    # Where nothing in the whole picture could be matched there is no surface to fill from: the answer is "far away".
    return Answer(np.nan_to_num(found.disparity_px, nan=0.0), matched=found.matched)


def _score(contender: Contender, scene: BenchmarkScene, distribution: str, device: torch.device) -> Score:
    """One scene's sums: errors everywhere, where both eyes see, where one does, and where the contender matched."""
    began_s = time.perf_counter()
    answer = contender(scene.sample)  # ends with maps in main memory, so that nothing is left waiting on the device
    elapsed_ms = 1000 * (time.perf_counter() - began_s)
    if device.type == "mps":
        device = torch.device("cpu")  # it has no float64

    def on_device(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)[None, None]

    disparity_px, truth_px = on_device(answer.disparity_px), on_device(scene.sample.disparity_px)

    def errors_where(mask: np.ndarray | None) -> DisparityErrors:
        if mask is None:
            return DisparityErrors.none(device)
        return disparity_errors(disparity_px, torch.where(on_device(mask), truth_px, math.nan))

    uncertainty: UncertaintyCounts | None = None
    if answer.log_variance is not None:
        uncertainty = uncertainty_counts(disparity_px, on_device(answer.log_variance), truth_px, distribution)
    return Score(
        errors=disparity_errors(disparity_px, truth_px),
        visible=errors_where(scene.non_occluded),
        occluded=errors_where(None if scene.non_occluded is None else ~scene.non_occluded),
        matched=errors_where(answer.matched),
        uncertainty=uncertainty,
        latencies_ms=(elapsed_ms,),
    )


def _resized(scene: BenchmarkScene, height: int, width: int) -> BenchmarkScene:
    mask = scene.non_occluded
    if mask is not None:
        rows, columns = nearest_indices(mask.shape[0], height), nearest_indices(mask.shape[1], width)
        mask = mask[rows[:, None], columns]
    return dataclasses.replace(scene, sample=resize_sample(scene.sample, height, width), non_occluded=mask)


def _spread(length: int, at_most: int | None) -> list[int]:
    """Positions of at most so many scenes, evenly spread."""
    if at_most is None or at_most >= length:
        return list(range(length))
    return [(2 * i + 1) * length // (2 * at_most) for i in range(at_most)]


def _scene_plain(scene: BenchmarkScene, scores: dict[str, Score]) -> Plain:
    height, width = scene.sample.left.shape[:2]
    return {
        "name": scene.name,
        "height": height,
        "width": width,
        "results": {name: score.to_plain() for name, score in scores.items()},
    }


def _with_curves(score: Score) -> Plain:
    plain = score.to_plain()
    if score.uncertainty is not None and score.errors.valid:
        plain["curves"] = report.curves(score.uncertainty)
    return plain


def _versions() -> Plain:
    return {
        "foundation_stereo_depth": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "opencv": cv2.__version__,
        "numpy": np.__version__,
    }


def _record(options: BenchmarkOptions, run_id: str, result: Plain, totals: dict[str, Score]) -> None:
    """Adds the results to the run: figures as metrics; JSON, table and plots as files."""
    name = options.dataset + ("-native" if options.at_native_size else "")
    doubting = {k: s.uncertainty for k, s in totals.items() if s.uncertainty is not None and s.errors.valid}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "results.json").write_text(json.dumps(result, indent=2) + "\n")
        Path(folder, "table.txt").write_text(report.table(result) + "\n")
        if doubting:
            report.reliability_figure(doubting, name).savefig(Path(folder, "reliability.png"), dpi=80)
            report.sparsification_figure(doubting, name).savefig(Path(folder, "sparsification.png"), dpi=80)
        metrics = report.flat_metrics(result["overall"], f"evaluate/{name}")
        add_to_run(options.mlflow_tracking_uri, run_id, metrics, Path(folder), f"evaluate/{name}")

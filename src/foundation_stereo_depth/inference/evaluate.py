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
from tqdm import tqdm

from foundation_stereo_depth import __version__
from foundation_stereo_depth.checkpoint import NetworkFacts
from foundation_stereo_depth.data.dataset import (
    DATASET_ROOT_VARIABLE,
    StereoDataset,
    find_dataset_root,
    open_dataset,
)
from foundation_stereo_depth.data.prefetch import prefetch
from foundation_stereo_depth.data.sample import StereoSample, resize_sample
from foundation_stereo_depth.data.split import Split, fingerprint, split_samples, take_spread
from foundation_stereo_depth.device import Processes, pick_device
from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.inference import report
from foundation_stereo_depth.inference.predictor import Predictor
from foundation_stereo_depth.inference.report import Plain, Score
from foundation_stereo_depth.metrics import DisparityErrors, disparity_errors
from foundation_stereo_depth.options.command_line import group_from_dict
from foundation_stereo_depth.options.datasets import parse_dataset_sources
from foundation_stereo_depth.options.inference import BenchmarkOptions, EvaluateOptions
from foundation_stereo_depth.options.training import DataOptions
from foundation_stereo_depth.stereo.sgbm import match_blocks
from foundation_stereo_depth.tracking import add_to_run
from foundation_stereo_depth.uncertainty import UncertaintyCounts, uncertainty_counts


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


def benchmark(network: Path | None, options: EvaluateOptions) -> str:
    """Evaluates as the options say; the results as a table, or as JSON where that is asked for.

    With a run named, the results, the table and the plots are added to it in MLflow.

    Args:
        network: the file that holds it; None evaluates the baseline alone.
        options: all options.

    Raises:
        UserError: the options, the network's file, the data or the tracking store do not allow it.
    """
    asked = options.evaluation
    if network is None and asked.baseline == "none":
        raise UserError("--checkpoint none: leaves nothing to evaluate; add --baseline sgbm")
    root = find_dataset_root(asked.dataset_root) if asked.dataset == "fsd" else asked.dataset_root
    if root is None:
        variable = f" or ${DATASET_ROOT_VARIABLE}" if asked.dataset == "fsd" else ""
        raise UserError(f"--dataset {asked.dataset}: needs --dataset-root{variable}, the folder where it is")
    predictor = None if network is None else _predictor(network, options)
    distribution = "laplace" if predictor is None else predictor.facts.distribution
    # Without a network the baseline is scored at the size that networks are trained at.
    size = DataOptions() if predictor is None else predictor
    height, width = options.network.height or size.height, options.network.width or size.width
    device = pick_device(options.inference.device, Processes.single())
    dataset = open_dataset(asked.dataset, root, download=asked.download)

    contenders: dict[str, Contender] = {}
    if predictor is not None:
        contenders["network"] = _network_contender(predictor)
    if asked.baseline == "sgbm":
        contenders["sgbm"] = _sgbm_contender

    # Figures and sums alone: thousands of scenes do not fit into memory.
    lines: list[Plain] = []
    totals: dict[str, Score] = {}
    # On a CPU, reading ahead would take the cores that are being timed.
    workers = 0 if device.type == "cpu" else 2
    positions = _asked_positions(dataset, root, None if predictor is None else predictor.facts, asked)
    warm = False
    samples = prefetch(positions, dataset.read, workers)
    for i, native in zip(positions, tqdm(samples, total=len(positions), unit="scene", leave=False), strict=True):
        sample = native if asked.at_native_size else resize_sample(native, height, width)
        if not warm:  # the first call of each pays for what later ones find done
            for contender in contenders.values():
                contender(sample)
            warm = True
        scores = {name: _score(c, sample, distribution, device) for name, c in contenders.items()}
        lines.append(_scene_plain(dataset.names.name(i), sample, scores))
        totals = {name: totals[name].plus(score) if totals else score for name, score in scores.items()}

    result = {
        "settings": {
            **{k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(asked).items() if k != "json"},
            "dataset_root": str(root),
            "checkpoint": None if network is None else str(network),
            "run_id": options.network.run_id,
            "height": height,
            "width": width,
            "distribution": None if predictor is None else distribution,
            "uncertainty_scale": None if predictor is None else predictor.facts.sigma_scale,
        },
        "versions": _versions(),
        "device": {
            "name": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "network": None if predictor is None else predictor.description,
            "threads": torch.get_num_threads(),
        },
        "scenes": lines,
        "overall": {name: _with_curves(score) for name, score in totals.items()},
    }
    if options.network.run_id is not None:
        _record(options, options.network.run_id, result, totals)
    return json.dumps(result, indent=2) if asked.json else report.table(result)


def _predictor(network: Path, options: EvaluateOptions) -> Predictor:
    """What users get from this file: what is evaluated is what is shipped."""
    asked = options.inference
    return Predictor.from_checkpoint(
        network,
        device=asked.device,
        precision=asked.precision,
        backend=asked.backend,
        compile=asked.compile,
        height=options.network.height,
        width=options.network.width,
    )


def _network_contender(predictor: Predictor) -> Contender:
    """The network at its own size; the predictor stretches what it says to the pair's size."""

    def answer(sample: StereoSample) -> Answer:
        prediction = predictor(sample.left, sample.right)
        return Answer(prediction.disparity_px, 2 * np.log(prediction.sigma_px))

    return answer


def _sgbm_contender(sample: StereoSample) -> Answer:
    found = match_blocks(sample.left, sample.right)
    # Where nothing in the whole picture could be matched there is no surface to fill from: the answer is "far away".
    return Answer(np.nan_to_num(found.disparity_px, nan=0.0), matched=found.matched)


def _score(contender: Contender, sample: StereoSample, distribution: str, device: torch.device) -> Score:
    """One scene's sums: errors everywhere, where both eyes see, where one does, and where the contender matched."""
    began_s = time.perf_counter()
    answer = contender(sample)  # ends with maps in main memory, so that nothing is left waiting on the device
    elapsed_ms = 1000 * (time.perf_counter() - began_s)
    if device.type == "mps":
        device = torch.device("cpu")  # it has no float64

    def on_device(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)[None, None]

    disparity_px, truth_px = on_device(answer.disparity_px), on_device(sample.disparity_px)

    def errors_where(mask: np.ndarray | None) -> DisparityErrors:
        if mask is None:
            return DisparityErrors.none(device)
        return disparity_errors(disparity_px, torch.where(on_device(mask), truth_px, math.nan))

    uncertainty: UncertaintyCounts | None = None
    if answer.log_variance is not None:
        uncertainty = uncertainty_counts(disparity_px, on_device(answer.log_variance), truth_px, distribution)
    return Score(
        errors=disparity_errors(disparity_px, truth_px),
        visible=errors_where(sample.non_occluded),
        occluded=errors_where(None if sample.non_occluded is None else ~sample.non_occluded),
        matched=errors_where(answer.matched),
        uncertainty=uncertainty,
        latencies_ms=(elapsed_ms,),
    )


def _asked_positions(
    scenes: StereoDataset, root: Path, facts: NetworkFacts | None, asked: BenchmarkOptions
) -> list[int]:
    """Positions of the scenes to score. Standard error hears how many of them the network was trained on.

    Raises:
        UserError: only validation scenes are asked for, and which those are cannot be known.
    """
    split = _split_of_run(scenes, root, facts)
    if asked.split == "validation":
        if isinstance(split, str):
            raise UserError(f"--split validation: {split}")
        if not _keeps_apart(split):
            raise UserError("--split validation: the network's run kept no scene apart (its --val-fraction is 0)")
        print(f"validation scenes only, split by {split.by}", file=sys.stderr)
        return [int(split.validation[i]) for i in _spread(len(split.validation), asked.max_samples)]
    positions = _spread(len(scenes), asked.max_samples)
    if not isinstance(split, str):
        if known := int(np.isin(positions, split.train).sum()):
            remedy = "; --split validation leaves them out" if _keeps_apart(split) else ""
            print(
                f"warning: the network was trained on {known} of the {len(positions)} scenes that it is scored on"
                f"{remedy}",
                file=sys.stderr,
            )
    elif facts is not None and _is_root_of_run(facts, root):
        print(
            f"warning: the network was trained on {root}, which holds other samples by now: it may know some of those "
            "that it is scored on",
            file=sys.stderr,
        )
    return positions


def _split_of_run(scenes: StereoDataset, root: Path, facts: NetworkFacts | None) -> Split | str:
    """How the network's run divided these scenes; or, in words, why that is not known."""
    if facts is None:
        return "needs the network whose run kept scenes apart, and --checkpoint none names none"
    if not facts.data_options:
        return "this network's file does not keep its run's options; a run's own best.pt and last.pt do"
    # Other options of data may be those of another version.
    kept = {k: v for k, v in facts.data_options.items() if k in ("max_samples", "val_fraction")}
    data = group_from_dict(DataOptions, kept)
    taken = take_spread(scenes.names, data.max_samples)
    # A run says what it learnt from by names, wherever they lay; old ones do not.
    identity = facts.data_identity
    if not (_is_root_of_run(facts, root) if identity is None else fingerprint(scenes.names.some(taken)) == identity):
        return f"the network's run learnt from other samples than {root} holds now, so it kept none of them apart"
    return split_samples(scenes.names, taken, data.val_fraction)


def _keeps_apart(split: Split) -> bool:
    return split.validation is not split.train


def _is_root_of_run(facts: NetworkFacts, root: Path) -> bool:
    named = facts.data_options.get("dataset_root")
    roots = (named,) if isinstance(named, str) else named
    sources = parse_dataset_sources(roots if isinstance(roots, tuple) else None, "fsd")
    return any(source.root.resolve() == root.resolve() for source in sources)


def _spread(length: int, at_most: int | None) -> list[int]:
    """Positions of at most so many scenes, evenly spread."""
    if at_most is None or at_most >= length:
        return list(range(length))
    return [(2 * i + 1) * length // (2 * at_most) for i in range(at_most)]


def _scene_plain(name: str, sample: StereoSample, scores: dict[str, Score]) -> Plain:
    height, width = sample.left.shape[:2]
    return {
        "name": name,
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


def _record(options: EvaluateOptions, run_id: str, result: Plain, totals: dict[str, Score]) -> None:
    """Adds the results to the run: figures as metrics; JSON, table and plots as files."""
    asked = options.evaluation
    name = asked.dataset + ("-validation" if asked.split == "validation" else "")
    name += "-native" if asked.at_native_size else ""
    doubting = {k: s.uncertainty for k, s in totals.items() if s.uncertainty is not None and s.errors.valid}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "results.json").write_text(json.dumps(result, indent=2) + "\n")
        Path(folder, "table.txt").write_text(report.table(result) + "\n")
        if doubting:
            report.reliability_figure(doubting, name).savefig(Path(folder, "reliability.png"), dpi=80)
            report.sparsification_figure(doubting, name).savefig(Path(folder, "sparsification.png"), dpi=80)
        metrics = report.flat_metrics(result["overall"], f"evaluate/{name}")
        add_to_run(options.network.mlflow_tracking_uri, run_id, metrics, Path(folder), f"evaluate/{name}")

"""`foundation-stereo-evaluate`: score stereo methods on the scenes of a benchmark, all by the same rules."""

import dataclasses
import json
import logging
import math
import platform
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
import torchvision
from jaxtyping import UInt8
from tqdm import tqdm

from foundation_stereo_depth import __version__, log
from foundation_stereo_depth.calibration.files import read_calibration_of
from foundation_stereo_depth.data.dataset import (
    DATASET_ROOT_VARIABLE,
    StereoDataset,
    find_dataset_root,
    open_dataset,
)
from foundation_stereo_depth.data.prefetch import prefetch
from foundation_stereo_depth.data.rectify import Rectifier, Resizer, create_rectifier
from foundation_stereo_depth.data.row_check import check_first_pair
from foundation_stereo_depth.data.sample import StereoSample, resize_sample
from foundation_stereo_depth.data.split import Split, fingerprint, split_samples, take_spread
from foundation_stereo_depth.device import Processes, pick_device
from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.inference import report
from foundation_stereo_depth.inference.predictor import open_network
from foundation_stereo_depth.inference.report import Plain, Score
from foundation_stereo_depth.metrics import DisparityErrors, disparity_errors
from foundation_stereo_depth.network_facts import NetworkFacts
from foundation_stereo_depth.options.command_line import group_from_dict
from foundation_stereo_depth.options.datasets import parse_dataset_sources
from foundation_stereo_depth.options.inference import (
    BenchmarkOptions,
    EvaluatedNetworkOptions,
    EvaluatedRigOptions,
    EvaluateOptions,
)
from foundation_stereo_depth.options.training import DataOptions
from foundation_stereo_depth.stereo import sgbm
from foundation_stereo_depth.stereo.match import StereoMatch, StereoMatcher
from foundation_stereo_depth.tracking import add_to_run, check_run
from foundation_stereo_depth.uncertainty import UncertaintyCounts, uncertainty_counts

logger = logging.getLogger(__name__)


def evaluate(options: EvaluateOptions) -> str:
    """Evaluate as the options say; return the results as a table, or as JSON with `--json`.

    With `--run-id`, the results, the table and the plots are also added to that run in MLflow.

    Raises:
        UserError: the options, the network's file, the data or the tracking store do not allow it.
    """
    asked, network = options.evaluation, options.network
    if network.method == "sgbm":
        asked, network = dataclasses.replace(asked, baseline="sgbm"), dataclasses.replace(network, checkpoint="none")
    if network.checkpoint == "none" and asked.baseline == "none":
        raise UserError("--checkpoint none: leaves nothing to evaluate; add --baseline sgbm, or give --method sgbm")
    root = find_dataset_root(asked.dataset_root) if asked.dataset == "fsd" else asked.dataset_root
    if root is None:
        variable = f" or ${DATASET_ROOT_VARIABLE}" if asked.dataset == "fsd" else ""
        raise UserError(f"--dataset {asked.dataset}: needs --dataset-root{variable}, the folder where it is")
    asked_height, asked_width = _asked_size(network, asked, root)
    predictor = None
    if network.checkpoint != "none":
        predictor = open_network(network, options.inference, height=asked_height, width=asked_width)
    has_sigma = predictor is not None and predictor.facts.predicts_uncertainty
    distribution = predictor.facts.distribution if predictor is not None and has_sigma else "laplace"
    # Without a network the baseline is scored at the size that networks are trained at.
    size = DataOptions() if predictor is None else predictor
    height, width = asked_height or size.height, asked_width or size.width
    run_id = network.run_id
    if run_id is not None:  # before the work, not after it
        run_id = check_run(network.mlflow_tracking_uri, run_id)
    device = pick_device(options.inference.device, Processes.single())
    dataset = open_dataset(asked.dataset, root, download=asked.download)

    preparation = _Preparation(options.rig)
    methods: dict[str, StereoMatcher] = {}
    if predictor is not None:
        methods["network"] = predictor
    if asked.baseline == "sgbm":
        methods["sgbm"] = _match_everywhere

    # Only figures and sums are kept: thousands of scenes do not fit into memory.
    lines: list[Plain] = []
    totals: dict[str, Score] = {}
    # On a CPU, reading ahead would take the cores that are being timed.
    workers = (0 if device.type == "cpu" else 2) if asked.workers == "auto" else asked.workers
    positions = _asked_positions(dataset, root, None if predictor is None else predictor.facts, asked)
    warm = False
    samples = prefetch(positions, dataset.read, workers)
    for i, native in zip(positions, tqdm(samples, total=len(positions), unit="scene", leave=False), strict=True):
        sample = preparation.prepare(native, None if asked.at_native_size else (height, width))
        if not warm:  # the first call of each method includes set-up work
            for method in methods.values():
                method(sample.left, sample.right)
            warm = True
        scores = {name: _score(method, sample, distribution, device) for name, method in methods.items()}
        lines.append(_scene_plain(dataset.names.name(i), sample, scores))
        totals = {name: totals[name].plus(score) if totals else score for name, score in scores.items()}
    if not any(score.errors.valid for score in totals.values()):
        raise UserError(
            f"{root}: no disparity is known in the {log.count_of(len(positions), 'scene')} that "
            f"{'was' if len(positions) == 1 else 'were'} scored, so that there is no accuracy"
        )

    result = {
        "settings": {
            **{
                k: str(v) if isinstance(v, Path) else v
                for k, v in dataclasses.asdict(asked).items()
                if k not in ("json", "output", "workers")
            },
            "dataset_root": str(root),
            "calibration": None if options.rig.calibration is None else str(options.rig.calibration),
            "rectify": options.rig.rectify,
            "checkpoint": None if predictor is None else _name_of(network),
            "run_id": run_id,
            "height": height,
            "width": width,
            "distribution": distribution if has_sigma else None,
            "uncertainty_scale": predictor.facts.sigma_scale if predictor is not None and has_sigma else None,
            "disparity_scale": None if predictor is None else predictor.facts.disparity_scale,
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
    _keep_results(options, run_id, result, totals)
    return json.dumps(result, indent=2) if asked.json else report.table(result)


def _asked_size(network: EvaluatedNetworkOptions, asked: BenchmarkOptions, root: Path) -> tuple[int | None, int | None]:
    """Return the height and width that the options name, px, for the first scene with `--size auto`; None for none."""
    if network.size != "auto":
        return network.size_for(0)
    return network.size_for(open_dataset(asked.dataset, root, download=asked.download).read(0).left.shape[1])


class _Preparation:
    """Makes samples ready to be scored: rectified where they are raw, and resized.

    Args:
        options: the calibration of raw images, and whether they are raw.
    """

    def __init__(self, options: EvaluatedRigOptions) -> None:
        self._calibration = read_calibration_of(options)
        self._rectify = options.rectify
        self._rectifier: Rectifier | Resizer | None = None

    def prepare(self, sample: StereoSample, size: tuple[int, int] | None) -> StereoSample:
        """Return a sample at a size, height and width; None keeps its own. The disparity is the rectified left view's.

        Raises:
            CalibrationError: the images do not have the calibration's aspect.
        """
        height, width = size or sample.left.shape[:2]
        resized = sample if size is None else resize_sample(sample, height, width)
        if self._calibration is None:
            return resized
        is_first, rectifier = self._rectifier is None, self._rectifier
        if rectifier is None or (rectifier.height, rectifier.width) != (height, width):
            rectifier = create_rectifier(self._calibration, height=height, width=width, rectify=self._rectify)
            self._rectifier = rectifier
        if is_first and (problem := check_first_pair(sample.left, sample.right, rectifier)) is not None:
            logger.warning("the first pair: %s", problem)
        if isinstance(rectifier, Resizer):
            return resized
        left, right = rectifier(sample.left, sample.right)
        return dataclasses.replace(resized, left=left, right=right)


def _name_of(network: EvaluatedNetworkOptions) -> str:
    if network.run_id is not None:
        return network.run_file
    return str(network.checkpoint or "default")


def _match_everywhere(left: UInt8[np.ndarray, "H W 3"], right: UInt8[np.ndarray, "H W 3"]) -> StereoMatch:
    """Return the match of OpenCV's matcher; disparity 0, infinitely far, where nothing at all could be matched."""
    match = sgbm.match(left, right)
    return dataclasses.replace(match, disparity_px=np.nan_to_num(match.disparity_px, nan=0.0))


def _score(method: StereoMatcher, sample: StereoSample, distribution: str, device: torch.device) -> Score:
    """Return the sums of one scene: errors on all, on non-occluded, on occluded, and on matched pixels."""
    began_s = time.perf_counter()
    match = method(sample.left, sample.right)  # returns arrays, so nothing is pending on the device
    elapsed_ms = 1000 * (time.perf_counter() - began_s)
    if device.type == "mps":
        device = torch.device("cpu")  # it has no float64

    def on_device(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)[None, None]

    disparity_px, truth_px = on_device(match.disparity_px), on_device(sample.disparity_px)

    def errors_where(mask: np.ndarray | None) -> DisparityErrors:
        if mask is None:
            return DisparityErrors.none(device)
        return disparity_errors(disparity_px, torch.where(on_device(mask), truth_px, math.nan))

    uncertainty: UncertaintyCounts | None = None
    if match.sigma_px is not None:
        log_variance = on_device(2 * np.log(match.sigma_px))
        uncertainty = uncertainty_counts(disparity_px, log_variance, truth_px, distribution)
    return Score(
        errors=disparity_errors(disparity_px, truth_px),
        visible=errors_where(sample.non_occluded),
        occluded=errors_where(None if sample.non_occluded is None else ~sample.non_occluded),
        matched=errors_where(match.valid if match.sigma_px is None else None),
        uncertainty=uncertainty,
        latencies_ms=(elapsed_ms,),
    )


def _asked_positions(
    scenes: StereoDataset, root: Path, facts: NetworkFacts | None, asked: BenchmarkOptions
) -> list[int]:
    """Return the positions of the scenes to score; log a warning if the network was trained on some of them.

    Raises:
        UserError: only validation scenes are asked for, and which those are cannot be known.
    """
    split = _split_of_run(scenes, root, facts)
    if asked.split == "validation":
        if isinstance(split, str):
            raise UserError(f"--split validation: {split}")
        if not _keeps_apart(split):
            raise UserError("--split validation: the network's run had no validation scenes (its --val-fraction is 0)")
        logger.info("validation scenes only, split by %s", split.by)
        return [int(split.validation[i]) for i in _spread(len(split.validation), asked.max_samples)]
    positions = _spread(len(scenes), asked.max_samples)
    if not isinstance(split, str):
        if known := int(np.isin(positions, split.train).sum()):
            remedy = "; --split validation leaves them out" if _keeps_apart(split) else ""
            logger.warning(
                "the network was trained on %d of the %d scenes that it is scored on%s", known, len(positions), remedy
            )
    elif facts is not None and _is_root_of_run(facts, root):
        logger.warning(
            "the network was trained on %s, which contains other samples now: it may have been trained on some of the "
            "scenes that it is scored on",
            root,
        )
    return positions


def _split_of_run(scenes: StereoDataset, root: Path, facts: NetworkFacts | None) -> Split | str:
    """Return how the network's run divided these scenes; or, as text, why that is not known."""
    if facts is None:
        return "needs a network, whose run divided the scenes, but --checkpoint is none"
    if not facts.data_options:
        return "this network's file does not contain its run's options; a run's own best.pt and last.pt do"
    # The other options may be those of another version.
    kept = {k: v for k, v in facts.data_options.items() if k in ("max_samples", "val_fraction")}
    data = group_from_dict(DataOptions, kept)
    taken = take_spread(scenes.names, data.max_samples)
    # Runs record the names of their samples, wherever the folder is; the oldest ones do not.
    identity = facts.data_identity
    if not (_is_root_of_run(facts, root) if identity is None else fingerprint(scenes.names.some(taken)) == identity):
        return f"the network's run was trained on other samples than {root} contains now"
    return split_samples(scenes.names, taken, data.val_fraction)


def _keeps_apart(split: Split) -> bool:
    return split.validation is not split.train


def _is_root_of_run(facts: NetworkFacts, root: Path) -> bool:
    named = facts.data_options.get("dataset_root")
    roots = (named,) if isinstance(named, str) else named
    sources = parse_dataset_sources(roots if isinstance(roots, tuple) else None, "fsd")
    return any(source.root.resolve() == root.resolve() for source in sources)


def _spread(length: int, at_most: int | None) -> list[int]:
    """Return the positions of at most so many scenes, evenly spread."""
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


def _keep_results(options: EvaluateOptions, run_id: str | None, result: Plain, totals: dict[str, Score]) -> None:
    if options.evaluation.output is not None:
        _write_results(options.evaluation.output, _name_of_evaluation(options), result, totals)
    if run_id is not None:
        _record(options, run_id, result, totals)


def _name_of_evaluation(options: EvaluateOptions) -> str:
    asked = options.evaluation
    name = asked.dataset + ("-validation" if asked.split == "validation" else "")
    return name + ("-native" if asked.at_native_size else "")


def _write_results(folder: Path, name: str, result: Plain, totals: dict[str, Score]) -> None:
    """Write JSON, table and plots to a folder, in place of older ones."""
    predicted = {k: s.uncertainty for k, s in totals.items() if s.uncertainty is not None and s.errors.valid}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(result, indent=2) + "\n")
    (folder / "table.txt").write_text(report.table(result) + "\n")
    if predicted:
        report.reliability_figure(predicted, name).savefig(folder / "reliability.png", dpi=80)
        report.sparsification_figure(predicted, name).savefig(folder / "sparsification.png", dpi=80)


def _record(options: EvaluateOptions, run_id: str, result: Plain, totals: dict[str, Score]) -> None:
    """Add the results to the run: figures as metrics; JSON, table and plots as files."""
    name = _name_of_evaluation(options)
    with tempfile.TemporaryDirectory() as folder:
        _write_results(Path(folder), name, result, totals)
        metrics = report.flat_metrics(result["overall"], f"evaluate/{name}")
        add_to_run(options.network.mlflow_tracking_uri, run_id, metrics, Path(folder), f"evaluate/{name}")

"""`foundation-stereo-export`: networks for other programs, as ONNX verified against PyTorch or as safetensors."""

import importlib
import importlib.util
import json
import logging
import math
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor, nn

from foundation_stereo_depth.checkpoint import TrainedNetwork, read_trained, save_safetensors
from foundation_stereo_depth.data.batch import StereoBatch
from foundation_stereo_depth.data.synthetic.torch_scenes import ProceduralSource
from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.files import write_atomically
from foundation_stereo_depth.inference.backends import (
    Backend,
    NetworkOutput,
    OnnxRuntimeBackend,
    OpenVinoBackend,
    hash_file,
    inputs_of,
)
from foundation_stereo_depth.inference.coarse_to_fine import COARSE_TO_FINE_MODEL, predict_coarse_to_fine
from foundation_stereo_depth.inference.onnx_file import ONNX_INPUT, ONNX_OUTPUTS, ONNX_PRIOR
from foundation_stereo_depth.inference.predictor import find_network_file
from foundation_stereo_depth.inference.torch_backend import TorchBackend
from foundation_stereo_depth.model import fuse_batch_norms, prior_planes_of
from foundation_stereo_depth.network_facts import DEFAULT_ONNX, DEFAULT_WEIGHTS, SAFETENSORS_KEY, WEIGHTS_HASH
from foundation_stereo_depth.options.inference import ExportFileOptions, ExportOptions

TOLERANCE_OF_WIDTH = 1e-4
"""Largest difference of disparity from PyTorch's in float32, as a fraction of the width: 0.03 px at 320."""
TOLERANCE_LOG_VARIANCE = 0.01
HALF_TOLERANCE_FACTOR = 30
"""Sixteen bits have three digits: both tolerances are multiplied by this under `--half` (assumption)."""

EPE_FACTOR_INT8, APART_OF_EPE_INT8, LOG_VARIANCE_INT8 = 1.03, 0.25, 0.3
"""Under `--int8` single pixels may differ by much, but not their mean: the largest ratio of the EPE on synthetic scenes
to PyTorch's, and the largest mean differences of disparity, as a fraction of that EPE, and of log-variance."""
INSTALLED_SIZES = ((240, 320), (480, 640))
"""Height and width, px, at which the installed network is calibrated and checked in 8 bits."""

Predict = Callable[[UInt8[np.ndarray, "B 2 H W 3"]], NetworkOutput]
Values = TypeVar("Values", np.ndarray, Tensor)

_CHECKED_PAIRS = 2
_SCORED_PAIRS = 16
_CALIBRATION_PAIRS = range(_SCORED_PAIRS, 48)  # from which the ranges of 8 bits are measured
_ODD_SIZE = (61, 87)  # the second size at which a network of any size is verified, px


def export_network(options: ExportOptions) -> Path:
    """Write the network in the format that the suffix of `--output` names; return the file.

    Raises:
        UserError: the output or the checkpoint cannot be used, or the exported network predicts something else.
    """
    if options.file.output is not None:
        _check_output(options.file.output, options.file)
    with TemporaryDirectory(prefix="foundation-stereo-") as folder:
        checkpoint = find_network_file(options.network, Path(folder))
        trained = read_trained(checkpoint)
    kind = "_int8" if options.file.int8 else "_half" if options.file.half else ""
    output = options.file.output or Path(f"{trained.facts.model.model}{kind}.onnx")
    _check_output(output, options.file)
    height = options.network.height or trained.facts.height
    width = options.network.width or trained.facts.width
    scale = options.network.disparity_scale * trained.facts.disparity_scale
    header = {key: value for key, value in trained.facts.header.items() if key != "disparity_scale"}
    header |= {"height": height, "width": width}
    trained = replace(trained, facts=replace(trained.facts, disparity_scale=scale))
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.suffix == ".safetensors":
        if options.file.int8:
            raise UserError("--int8: is for .onnx files")
        network = trained.network().half() if options.file.half else trained.network()
        save_safetensors(output, network.state_dict(), header | ({} if scale == 1 else {"disparity_scale": scale}))
        print(f"{output}: {_size(output)}, weights and header")
        return output
    if scale != 1 and trained.facts.model.model == COARSE_TO_FINE_MODEL:
        raise UserError(
            f"--disparity-scale: what {trained.facts.model.model} predicts is refined by the images, and an ONNX file "
            "would scale it before that; give it to the command that predicts, or export to .safetensors"
        )
    for module in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(module) is None:
            raise UserError(f"{module} is not installed; `uv sync --extra onnx` adds it")
    encoded = _onnx(_exported(trained, options.file), header, height, width, options.file)
    if options.file.int8:
        encoded = quantize_to_int8(encoded, _calibration_inputs(trained, height, width))
    sizes = [(height, width), *([_ODD_SIZE] if options.file.dynamic_size else [])]
    found = write_checked(output, encoded, trained, sizes, options.file)
    print(f"{output}: {_size(output)}, opset {options.file.opset}; {found}")
    return output


def export_installed(weights: Path = DEFAULT_WEIGHTS, output: Path = DEFAULT_ONNX) -> str:
    """Write the installed network in 8 bits, if it predicts what PyTorch does in float32; return the differences.

    The scenes that calibrate and check it are synthetic, the same ones every time.

    Raises:
        UserError: 8 bits cost too much; nothing is written then.
    """
    trained, options = read_trained(weights), ExportFileOptions(int8=True)
    header = trained.facts.header | {WEIGHTS_HASH: hash_file(weights)}
    encoded = _onnx(_exported(trained, options), header, *INSTALLED_SIZES[0], options)
    inputs = chain.from_iterable(_calibration_inputs(trained, *size) for size in INSTALLED_SIZES)
    return write_checked(output, quantize_to_int8(encoded, inputs), trained, INSTALLED_SIZES, options)


def _check_output(output: Path, options: ExportFileOptions) -> None:
    if output.suffix not in (".onnx", ".safetensors"):
        raise UserError(f"--output (-o) {output}: has to end in .onnx or .safetensors")
    if output.exists() and not options.overwrite:
        raise UserError(f"{output}: exists; --overwrite replaces it")


def write_checked(
    output: Path,
    encoded: bytes,
    trained: TrainedNetwork,
    sizes: Sequence[tuple[int, int]],
    options: ExportFileOptions,
) -> str:
    """Write the bytes of an ONNX file if they predict what PyTorch does at each size; return the differences.

    The pairs are synthetic scenes, run by PyTorch in float32 and by every backend for ONNX files that is installed.

    Raises:
        UserError: the predictions differ by more than the tolerance; nothing is written then.
    """
    network = TorchBackend(trained.network(), device="cpu", precision="fp32", compile=False)

    def reference(pairs: UInt8[np.ndarray, "B 2 H W 3"]) -> NetworkOutput:
        return scaled(*network(pairs), trained.facts.disparity_scale)

    trial = output.with_name(f".checking-{output.name}")
    try:
        write_atomically(trial, lambda file: file.write(encoded), durable=False)
        backends: list[Backend] = [OnnxRuntimeBackend(trial, device="cpu")]
        if importlib.util.find_spec("openvino") is not None:
            backends.append(OpenVinoBackend(trial, device="cpu", precision="fp32"))
    finally:
        trial.unlink(missing_ok=True)
    check = _check_scores if options.int8 else _check_differences
    lines: list[str] = []
    for size in sizes:
        count = len(_share_of(range(_SCORED_PAIRS), *size)) if options.int8 else _CHECKED_PAIRS
        cases = _predict_cases(reference, count, *size)
        lines += [f"{exported.description}, {check(output, cases, exported, options)}" for exported in backends]
    write_atomically(output, lambda file: file.write(encoded), durable=True)
    return "; ".join(lines)


class _Case(NamedTuple):
    """A synthetic scene and what the reference predicts for it."""

    pair: UInt8[np.ndarray, "1 2 H W 3"]
    truth_px: Float32[np.ndarray, "1 H W"]
    predicted: NetworkOutput


def _predict_cases(reference: Predict, count: int, height: int, width: int) -> list[_Case]:
    """Return so many synthetic scenes of a size, each predicted once, for every backend to be compared with."""
    scenes = (synthetic_scenes(range(i, i + 1), height, width) for i in range(count))
    return [
        _Case(pairs_of(scene), scene.disparity_px[:, 0].float().numpy(), reference(pairs_of(scene))) for scene in scenes
    ]


def _check_differences(output: Path, cases: list[_Case], exported: Predict, options: ExportFileOptions) -> str:
    """Compare all pixels of a few pairs; return the largest differences as text.

    Raises:
        UserError: they exceed the tolerance.
    """
    height, width = cases[0].truth_px.shape[1:]
    apart = [largest_differences(case.predicted, exported(case.pair)) for case in cases]
    apart_px, apart_log = np.max(apart, axis=0)  # NaN where one is
    factor = HALF_TOLERANCE_FACTOR if options.half else 1
    allowed_px, allowed_log = factor * TOLERANCE_OF_WIDTH * width, factor * TOLERANCE_LOG_VARIANCE
    found = (
        f"{width}x{height}: within {apart_px:.2g} px and {apart_log:.2g} of log-variance of PyTorch (allowed "
        f"{allowed_px:.2g} px, {allowed_log:.2g})"
    )
    # Written so that NaN fails.
    if not (apart_px <= allowed_px and apart_log <= allowed_log):
        remedy = "leave --half out" if options.half else "try another --opset"
        raise UserError(f"{output}: not written, since the exported network is not {found}; {remedy}")
    return found


def _check_scores(output: Path, cases: list[_Case], exported: Predict, _: ExportFileOptions) -> str:
    """Compare both networks with the ground truth, and with each other; return their differences as text.

    Raises:
        UserError: the exported network's error is larger by too much, or it predicts something else.
    """
    height, width = cases[0].truth_px.shape[1:]
    epes_px, apart_px, apart_log, largest_px = [], [], [], 0.0
    for case in cases:
        (ours_px, ours_log), (theirs_px, theirs_log) = case.predicted, exported(case.pair)
        epes_px.append([np.abs(each_px - case.truth_px).mean() for each_px in (ours_px, theirs_px)])
        differences_px = _apart(ours_px, theirs_px)
        apart_px.append(differences_px.mean())
        largest_px = max(largest_px, float(differences_px.max()))
        apart_log.append(_apart(ours_log, theirs_log).mean())
    our_epe_px, their_epe_px = np.mean(epes_px, axis=0)
    found = (
        f"{width}x{height}: EPE {their_epe_px:.3g} px on {len(cases)} synthetic scenes, PyTorch's {our_epe_px:.3g} px; "
        f"disparities {np.mean(apart_px):.2g} px apart in the mean and {largest_px:.2g} at most, log-variances "
        f"{np.mean(apart_log):.2g} in the mean"
    )
    # Written so that NaN fails.
    agrees = np.mean(apart_px) <= APART_OF_EPE_INT8 * our_epe_px and np.mean(apart_log) <= LOG_VARIANCE_INT8
    if not (their_epe_px <= EPE_FACTOR_INT8 * our_epe_px and agrees):
        raise UserError(f"{output}: not written, since 8 bits cost too much: {found}; leave --int8 out")
    return found


def synthetic_scenes(numbers: range, height: int, width: int) -> StereoBatch:
    """Return the synthetic scenes of these numbers, the same ones every time."""
    scenes = ProceduralSource(
        length=numbers.stop,
        seed=ProceduralSource.VALIDATION_SEED,
        height=height,
        width=width,
        device=torch.device("cpu"),
    )
    [batch] = scenes.batches([np.array(numbers)], epoch=0)
    return batch


def _share_of(numbers: range, height: int, width: int) -> range:
    """Return every fourth of the numbers for large scenes, which have as many more pixels and take longer to draw."""
    return numbers if height * width <= math.prod(INSTALLED_SIZES[0]) else numbers[::4]


def pairs_of(scenes: StereoBatch) -> UInt8[np.ndarray, "B 2 H W 3"]:
    """Return the left and right view of each scene."""
    return torch.stack([scenes.left, scenes.right], dim=1).permute(0, 1, 3, 4, 2).contiguous().numpy()


def _calibration_inputs(trained: TrainedNetwork, height: int, width: int) -> Iterator[dict[str, np.ndarray]]:
    """Yield the network's inputs for the pairs from which the ranges of 8 bits are measured."""
    network = TorchBackend(trained.network(), device="cpu", precision="fp32", compile=False)
    prior_planes = prior_planes_of(trained.network())
    for pair in pairs_of(synthetic_scenes(_share_of(_CALIBRATION_PAIRS, height, width), height, width)):
        yield inputs_of(pair[None], prior_planes)
        if trained.facts.model.model == COARSE_TO_FINE_MODEL:
            recorded: list[dict[str, np.ndarray]] = []

            def record(pairs: np.ndarray, prior: np.ndarray | None) -> NetworkOutput:
                recorded.append(inputs_of(pairs, prior_planes, prior))  # noqa: B023 (called in this round alone)
                return network(pairs, prior)

            predict_coarse_to_fine(record, pair[None], trained.facts.sigma_scale)
            yield from recorded


def largest_differences(first: NetworkOutput, second: NetworkOutput) -> tuple[float, float]:
    """Return the largest absolute difference of disparity, px, and of log-variance; 0 of one that neither predicts."""
    return float(np.abs(first[0] - second[0]).max()), float(_apart(first[1], second[1]).max())


def _apart(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the absolute difference of log-variance; 0 where both networks predict none at all."""
    none = bool(np.isnan(first).all() and np.isnan(second).all())
    return np.zeros_like(first) if none else np.abs(first - second)


class _ExportedNetwork(nn.Module):
    """A network with the inputs and outputs of the ONNX file: 32 bits each, and no auxiliary outputs."""

    def __init__(self, network: nn.Module, *, half: bool, disparity_scale: float) -> None:
        super().__init__()
        self.network = network.half() if half else network
        self.disparity_scale = disparity_scale
        self.input_type = torch.float16 if half else torch.float32
        self.prior_planes = prior_planes_of(network)

    def forward(self, pair: Tensor, prior: Tensor | None = None) -> tuple[Tensor, Tensor]:
        inputs = (pair,) if prior is None else (pair, prior)
        prediction = self.network(*(each.to(self.input_type) for each in inputs))
        return scaled(prediction.disparity_px.float(), prediction.log_variance.float(), self.disparity_scale)


def scaled(disparity_px: Values, log_variance: Values, factor: float) -> tuple[Values, Values]:
    """Return a prediction whose disparity is multiplied by a factor, and its standard deviation with it."""
    if factor == 1:
        return disparity_px, log_variance
    return disparity_px * factor, log_variance + 2 * math.log(factor)


def _exported(trained: TrainedNetwork, options: ExportFileOptions) -> nn.Module:
    network = fuse_batch_norms(trained.network())
    return _ExportedNetwork(network, half=options.half, disparity_scale=trained.facts.disparity_scale).eval()


def _onnx(network: nn.Module, header: dict[str, Any], height: int, width: int, options: ExportFileOptions) -> bytes:
    """Return the bytes of the ONNX file."""
    free = torch.export.Dim.DYNAMIC
    # The example has another size than the check, and no side that the exporter could specialise on (1, multiples).
    example = (height + 3, width + 5) if options.dynamic_size else (height, width)
    sizes = {0: free} | ({2: free, 3: free} if options.dynamic_size else {})
    inputs = [torch.rand(2, 6, *example)]
    if planes := prior_planes_of(network):
        inputs.append(torch.rand(2, planes, *example))
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(action="ignore"):  # from the exporter's own use of its libraries
        program: Any = torch.onnx.export(
            network,
            tuple(inputs),
            input_names=[ONNX_INPUT, ONNX_PRIOR][: len(inputs)],
            output_names=list(ONNX_OUTPUTS),
            dynamic_shapes=(sizes,) * len(inputs),
            opset_version=options.opset,
            dynamo=True,
            verbose=False,
            verify=False,
        )
    program.model.metadata_props[SAFETENSORS_KEY] = json.dumps(header)
    _name_sizes(program.model, options.dynamic_size)
    return program.model_proto.SerializeToString()


def _name_sizes(model: Any, dynamic_size: bool) -> None:
    """Name the sizes that may vary B, H and W, where the exporter numbers them."""
    names = {0: "B"} | ({2: "H", 3: "W"} if dynamic_size else {})
    for value in [*model.graph.inputs, *model.graph.outputs]:
        for axis, name in names.items():
            value.shape[axis] = name


def quantize_to_int8(encoded: bytes, inputs: Iterable[dict[str, np.ndarray]]) -> bytes:
    """Return the network with its convolutions computed in 8 bits, except the first and the last.

    CPUs with VNNI or similar instructions multiply 8-bit integers twice as fast as 16-bit numbers. Weights have one
    scale per channel; activations have one per layer, from the minimum and maximum over the given inputs
    (Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference", 2018, section 3). 8 bits cost the
    most accuracy in the first convolution, whose planes have different ranges, and in the last
    (docs/experiments/accuracy.md).

    Args:
        encoded: an ONNX file of 32-bit numbers.
        inputs: by name, of some typical pairs.

    Raises:
        UserError: its temporary files cannot be written.
    """
    # Optional dependencies.
    onnx: Any = importlib.import_module("onnx")
    quantization: Any = importlib.import_module("onnxruntime.quantization")
    network = onnx.load_from_string(encoded)
    convolutions = [node.name for node in network.graph.node if node.op_type == "Conv"]
    try:
        with TemporaryDirectory() as folder, _without_logging():
            output = Path(folder) / "network.onnx"
            quantization.quantize_static(
                network,
                output,
                _CalibrationReader(inputs),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=["Conv"],
                nodes_to_exclude=[convolutions[0], convolutions[-1]],
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                extra_options={"QuantizeBias": False},
            )
            return output.read_bytes()
    except OSError as error:
        raise UserError(f"--int8: its temporary files cannot be written ({error.strerror or error})") from error


class _CalibrationReader:
    """Returns the inputs one by one, as onnxruntime asks for them."""

    def __init__(self, inputs: Iterable[dict[str, np.ndarray]]) -> None:
        self._remaining = iter(inputs)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._remaining, None)


@contextmanager
def _without_logging() -> Generator[None]:
    """Silence onnxruntime's advice to optimise the file first, which it does itself when it loads one."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _size(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB"

"""Networks for other programs: ONNX that has been checked against PyTorch, or plain safetensors."""

import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from foundation_stereo_depth.checkpoint import SAFETENSORS_KEY, TrainedNetwork, read_trained, save_safetensors
from foundation_stereo_depth.data.batch import StereoBatch
from foundation_stereo_depth.data.synthetic.torch_scenes import ProceduralSource
from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.files import write_atomically
from foundation_stereo_depth.inference.backends import (
    ONNX_INPUT,
    ONNX_OUTPUTS,
    ONNX_PRIOR,
    Backend,
    OnnxRuntimeBackend,
    RawPrediction,
    TorchBackend,
    inputs_of,
)
from foundation_stereo_depth.inference.quantize import in_int8
from foundation_stereo_depth.model import StereoPrediction, fuse_batch_norms, wants_prior
from foundation_stereo_depth.options.inference import ExportFileOptions, ExportOptions
from foundation_stereo_depth.stereo.sgbm import PRIOR_PLANES

TOLERANCE_OF_WIDTH = 1e-4
"""Largest difference of disparity from PyTorch's in float32, as a share of the width: 0.03 px at 320."""
TOLERANCE_LOG_VARIANCE = 0.01
HALF_TOLERANCE_FACTOR = 30
"""Sixteen bits carry three digits: both tolerances grow by this much under `--half` (assumption)."""

EPE_FACTOR_INT8, LOG_VARIANCE_INT8 = 1.03, 0.3
"""Under `--int8` single pixels may differ by much, all together not: the largest EPE on made-up scenes over PyTorch's,
and the largest mean difference of log-variance."""

_CHECKED_PAIRS = 2
_SCORED_PAIRS = 16
_RANGED_PAIRS = range(_SCORED_PAIRS, 48)  # of which the ranges of 8 bits come
_ODD_SIZE = (61, 87)  # the second size at which a network of any size is checked, px


def export_network(checkpoint: Path, options: ExportOptions) -> Path:
    """Writes the network in a checkpoint as the suffix of `--output` says; returns the file.

    Raises:
        UserError: the output or the checkpoint cannot be used, or the exported network answers differently.
    """
    output = options.file.output
    if output is None or output.suffix not in (".onnx", ".safetensors"):
        raise UserError("needs --output (-o), a file that ends in .onnx or .safetensors")
    if output.exists() and not options.file.overwrite:
        raise UserError(f"{output}: is there already; --overwrite replaces it")
    trained = read_trained(checkpoint)
    height = options.network.height or trained.facts.height
    width = options.network.width or trained.facts.width
    header = trained.facts.header | {"height": height, "width": width}
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.suffix == ".safetensors":
        if options.file.int8:
            raise UserError("--int8: is for .onnx files")
        network = trained.network().half() if options.file.half else trained.network()
        save_safetensors(output, network.state_dict(), header)
        print(f"{output}: {_size(output)}, weights and header")
        return output
    for module in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(module) is None:
            raise UserError(f"{module} is not installed; `uv sync --extra onnx` adds it")
    encoded = _onnx(_exported(trained, options.file), header, height, width, options.file)
    if options.file.int8:
        if not all(weights.isfinite().all() for weights in trained.weights.values()):
            raise UserError(f"{checkpoint}: holds weights that are not finite")
        encoded = in_int8(encoded, _typical_inputs(trained, height, width))
    found = write_checked(output, encoded, trained, (height, width), options.file)
    print(f"{output}: {_size(output)}, opset {options.file.opset}; {found}")
    return output


def write_checked(
    output: Path, encoded: bytes, trained: TrainedNetwork, size: tuple[int, int], options: ExportFileOptions
) -> str:
    """Writes the bytes of an ONNX file if they answer as PyTorch does at (height, width); returns how well they do.

    The pairs are made-up scenes, through onnxruntime and through PyTorch in float32.

    Raises:
        UserError: the answers differ by more than the tolerance; nothing is written then.
    """
    reference = TorchBackend(trained.network(), device="cpu", precision="fp32", compile=False)
    trial = output.with_name(f".checking-{output.name}")
    try:
        write_atomically(trial, lambda file: file.write(encoded), durable=False)
        exported = OnnxRuntimeBackend(trial, device="cpu")
    finally:
        trial.unlink(missing_ok=True)
    check = _scored if options.int8 else _compared
    lines = [
        check(output, reference, exported, (rows, columns), options)
        for rows, columns in [size, *([_ODD_SIZE] if options.dynamic_size else [])]
    ]
    write_atomically(output, lambda file: file.write(encoded), durable=True)
    return "; ".join(lines)


def _compared(
    output: Path, reference: Backend, exported: Backend, size: tuple[int, int], options: ExportFileOptions
) -> str:
    """How far single pixels of few pairs are apart.

    Raises:
        UserError: too far.
    """
    height, width = size
    pairs = pairs_of(made_up(range(_CHECKED_PAIRS), height, width))
    apart_px, apart_log = largest_differences(reference(pairs), exported(pairs))
    factor = HALF_TOLERANCE_FACTOR if options.half else 1
    allowed_px, allowed_log = factor * TOLERANCE_OF_WIDTH * width, factor * TOLERANCE_LOG_VARIANCE
    said = (
        f"{width}x{height}: within {apart_px:.2g} px and {apart_log:.2g} of log-variance of PyTorch (allowed "
        f"{allowed_px:.2g} px, {allowed_log:.2g})"
    )
    # Written so that NaN fails.
    if not (apart_px <= allowed_px and apart_log <= allowed_log):
        remedy = "leave --half out" if options.half else "try another --opset"
        raise UserError(f"{output}: not written, since the exported network is not {said}; {remedy}")
    return said


def _scored(output: Path, reference: Backend, exported: Backend, size: tuple[int, int], _: ExportFileOptions) -> str:
    """How far both are from the truth.

    Raises:
        UserError: the exported network is farther by too much.
    """
    height, width = size
    epes_px, apart_log = [], []
    for i in range(_SCORED_PAIRS):
        scene = made_up(range(i, i + 1), height, width)
        truth_px = scene.disparity_px[:, 0].numpy()
        answers = [backend(pairs_of(scene)) for backend in (reference, exported)]
        epes_px.append([np.abs(answer.disparity_px - truth_px).mean() for answer in answers])
        apart_log.append(np.abs(answers[0].log_variance - answers[1].log_variance).mean())
    ours_px, theirs_px = np.mean(epes_px, axis=0)
    said = (
        f"{width}x{height}: EPE {theirs_px:.3g} px on {_SCORED_PAIRS} made-up scenes, PyTorch's {ours_px:.3g} px, and "
        f"log-variances {np.mean(apart_log):.2g} apart"
    )
    # Written so that NaN fails.
    if not (theirs_px <= EPE_FACTOR_INT8 * ours_px and np.mean(apart_log) <= LOG_VARIANCE_INT8):
        raise UserError(f"{output}: not written, since 8 bits cost too much: {said}; leave --int8 out")
    return said


def made_up(numbers: range, height: int, width: int) -> StereoBatch:
    """The made-up scenes of these numbers, the same every time."""
    scenes = ProceduralSource(
        length=numbers.stop,
        seed=ProceduralSource.VALIDATION_SEED,
        height=height,
        width=width,
        device=torch.device("cpu"),
    )
    [batch] = scenes.batches([np.array(numbers)], epoch=0)
    return batch


def pairs_of(scenes: StereoBatch) -> UInt8[np.ndarray, "B 2 H W 3"]:
    """Left and right of each scene."""
    return torch.stack([scenes.left, scenes.right], dim=1).permute(0, 1, 3, 4, 2).contiguous().numpy()


def _typical_inputs(trained: TrainedNetwork, height: int, width: int) -> Iterator[dict[str, np.ndarray]]:
    """What the network is called with for some pairs, one after another."""
    names = [ONNX_INPUT, ONNX_PRIOR] if wants_prior(trained.network()) else [ONNX_INPUT]
    for pair in pairs_of(made_up(_RANGED_PAIRS, height, width)):
        yield inputs_of(pair[None], names)


def largest_differences(first: RawPrediction, second: RawPrediction) -> tuple[float, float]:
    """The largest absolute difference of disparity, px, and of log-variance."""
    apart_px, apart_log = (np.abs(a - b).max() for a, b in zip(first, second, strict=True))
    return float(apart_px), float(apart_log)


class _Half(nn.Module):
    """A network of 16-bit weights that takes and gives 32 bits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.half()
        self.wants_prior = wants_prior(network)

    def forward(self, pair: Tensor, prior: Tensor | None = None) -> StereoPrediction:
        inputs = (pair.half(),) if prior is None else (pair.half(), prior.half())
        disparity_px, log_variance = self.network(*inputs)
        return StereoPrediction(disparity_px.float(), log_variance.float())


def _exported(trained: TrainedNetwork, options: ExportFileOptions) -> nn.Module:
    network = fuse_batch_norms(trained.network())
    return _Half(network).eval() if options.half else network


def _onnx(network: nn.Module, header: dict[str, Any], height: int, width: int, options: ExportFileOptions) -> bytes:
    """The bytes of the ONNX file."""
    free = torch.export.Dim.DYNAMIC
    # The example is of another size than the check's; and no side of it is 1 or a multiple that could be taken as law.
    example = (height + 3, width + 5) if options.dynamic_size else (height, width)
    sizes = {0: free} | ({2: free, 3: free} if options.dynamic_size else {})
    inputs = [torch.rand(2, 6, *example)]
    if wants_prior(network):
        inputs.append(torch.rand(2, PRIOR_PLANES, *example))
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(action="ignore"):  # of the exporter's own use of its libraries
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
    """Calls the sizes that may vary by their names in the field, where the exporter numbers them."""
    names = {0: "B"} | ({2: "H", 3: "W"} if dynamic_size else {})
    for value in [*model.graph.inputs, *model.graph.outputs]:
        for axis, name in names.items():
            value.shape[axis] = name


def _size(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB"

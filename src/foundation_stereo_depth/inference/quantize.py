"""An ONNX network in 8-bit integers, which CPUs with VNNI or its like multiply twice as fast as 16-bit numbers."""

import importlib
import logging
import tempfile
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from foundation_stereo_depth.errors import UserError


def in_int8(encoded: bytes, inputs: Iterable[dict[str, np.ndarray]]) -> bytes:
    """The network with its convolutions computed in 8 bits, but for the first and the last.

    Weights have a scale for each channel; what flows between convolutions has one for each layer, by the least and the
    most that the given inputs bring about (Krishnamoorthi, "Quantizing deep convolutional networks for efficient
    inference", 2018, section 3). The first convolution takes planes of different kinds and the last one gives the
    answer: there 8 bits cost most (docs/experiments.md).

    Args:
        encoded: an ONNX file of 32-bit numbers.
        inputs: by name, of some typical pairs.

    Raises:
        UserError: there is no room for temporary files.
    """
    # Not everybody has these installed.
    onnx: Any = importlib.import_module("onnx")
    quantization: Any = importlib.import_module("onnxruntime.quantization")
    network = onnx.load_from_string(encoded)
    convolutions = [node.name for node in network.graph.node if node.op_type == "Conv"]
    try:
        with tempfile.TemporaryDirectory() as folder, _without_advice():
            output = Path(folder) / "network.onnx"
            quantization.quantize_static(
                network,
                output,
                _Typical(inputs),
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


class _Typical:
    """Hands out the inputs as onnxruntime asks for them."""

    def __init__(self, inputs: Iterable[dict[str, np.ndarray]]) -> None:
        self._left = iter(inputs)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._left, None)


@contextmanager
def _without_advice() -> Generator[None]:
    """Onnxruntime logs that the file might be optimised first, which it does itself when it loads one."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)

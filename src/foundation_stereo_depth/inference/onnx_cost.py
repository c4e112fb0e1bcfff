"""What running an ONNX network takes, from the sizes of all that it computes, found without computing it.

An operator of a few bytes may return terabytes, or take hours. So only operators whose output sizes are understood here
are run: those that an export of this program has, and their like
(https://onnx.ai/onnx/operators/; sizes as defined there).
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

MOST_BYTES = 10**9
"""Of all arrays that exist at one time. A full-resolution U-Net of 64 channels at 640x480 has a third of that."""
MOST_OPERATIONS = 10**12
"""Products of all convolutions, and numbers that the other operators read and write: some ten seconds of a CPU. The
installed network takes a thousandth."""
_MOST_KNOWN = 1024
"""Numbers of a constant whose values may be needed: sizes, axes, paddings."""
_WIDE_TYPES = (7, 11, 13)
"""64-bit numbers (TensorProto.DataType)."""


class UnknownCostError(ValueError):
    """The sizes cannot be found, or are too large."""


@dataclass(frozen=True, kw_only=True)
class Array:
    """The sizes of an array, and its numbers where they are few and known."""

    shape: tuple[int, ...]
    item_bytes: int = 4
    numbers: np.ndarray | None = None

    @property
    def count(self) -> int:
        """Return how many numbers it has."""
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class Node:
    """One operator: names of its inputs, empty for those that are left out, of its outputs, and its attributes."""

    operator: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    attributes: Mapping[str, Any] = field(default_factory=dict[str, Any])


def check_cost(nodes: Sequence[Node], arrays: dict[str, Array], kept: Sequence[str]) -> None:
    """Check that running a network takes neither long nor much memory.

    Args:
        nodes: in the order in which they are run, as the format demands.
        arrays: constants and inputs by name.
        kept: names of the outputs.

    Raises:
        UnknownCostError: it does, or contains an operator that is not understood.
    """
    last_use = {name: number for number, node in enumerate(nodes) for name in node.inputs}
    constants, known = set(arrays), dict(arrays)
    live_bytes = operations = 0
    for number, node in enumerate(nodes):
        outputs, products = _apply(node, known)
        for name, output in zip(node.outputs, outputs, strict=False):
            if min(output.shape, default=1) < 0:
                raise UnknownCostError(f"its {node.operator} returns an array of the size {list(output.shape)}")
            if name in known:
                raise UnknownCostError(f"computes {name[:40]} twice")
            known[name] = output
            live_bytes += output.count * output.item_bytes
            operations += output.count
        operations += products + sum(known[name].count for name in node.inputs if name)
        if live_bytes > MOST_BYTES:
            raise UnknownCostError(f"needs more than {MOST_BYTES:,} bytes for the result of its {node.operator}")
        if operations > MOST_OPERATIONS:
            raise UnknownCostError(f"takes more than {MOST_OPERATIONS:,} operations for one pair")
        for name in {*node.inputs, *node.outputs} - {"", *kept} - constants:
            if last_use.get(name, -1) <= number:
                live_bytes -= known[name].count * known[name].item_bytes


def _apply(node: Node, known: Mapping[str, Array]) -> tuple[list[Array], int]:
    """Return what an operator returns, and how many products it takes beyond one for each number."""
    missing = [name for name in node.inputs if name and name not in known]
    if missing:
        raise UnknownCostError(f"its {node.operator} needs {missing[0][:40]}, which is not there")
    if node.operator not in _RULES:
        raise UnknownCostError(f"contains {node.operator[:40]}, which no network of this program has")
    inputs = [known[name] if name else None for name in node.inputs]
    try:
        return _RULES[node.operator](_Call(node, inputs))
    except UnknownCostError:
        raise
    except (ValueError, IndexError, TypeError, OverflowError, ZeroDivisionError, AttributeError, KeyError) as error:
        raise UnknownCostError(f"its {node.operator} is damaged ({error})") from error


class _Call:
    """An operator with what it is given."""

    def __init__(self, node: Node, inputs: Sequence[Array | None]) -> None:
        self.node = node
        self.inputs = inputs

    def input(self, number: int) -> Array:
        """Return an input that has to be there."""
        found = self.inputs[number]
        if found is None:
            raise ValueError(f"it lacks input {number}")
        return found

    def attribute(self, name: str, default: Any = None) -> Any:
        """Return an attribute."""
        return self.node.attributes.get(name, default)

    def whole_numbers(self, number: int, name: str = "") -> list[int] | None:
        """Return what is given as an input, or in older versions as an attribute; None where it is left out.

        Raises:
            UnknownCostError: it is not known before the network is run.
        """
        if name and name in self.node.attributes:
            given = self.node.attributes[name]
            return [int(value) for value in given] if isinstance(given, list) else [int(given)]
        if number >= len(self.inputs) or self.inputs[number] is None:
            return None
        numbers = self.input(number).numbers
        if numbers is None:
            raise UnknownCostError(f"its {self.node.operator} has sizes that depend on the images")
        return [int(value) for value in numbers.reshape(-1)]


Result = tuple[list[Array], int]


def _resized(array: Array, shape: Sequence[int], numbers: np.ndarray | None = None) -> Result:
    return [Array(shape=tuple(shape), item_bytes=array.item_bytes, numbers=numbers)], 0


def _same(call: _Call) -> Result:
    first = call.input(0)
    numbers = first.numbers if call.node.operator == "Identity" else None
    return [Array(shape=first.shape, item_bytes=max(4, first.item_bytes), numbers=numbers)], 0


def _cast(call: _Call) -> Result:
    first, wide = call.input(0), call.attribute("to") in _WIDE_TYPES
    return [Array(shape=first.shape, item_bytes=8 if wide else 4, numbers=first.numbers)], 0


_ARITHMETIC: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": lambda a, b: np.floor_divide(a, b) if a.dtype.kind == "i" else np.divide(a, b),
    "Min": np.minimum,
    "Max": np.maximum,
}


def _broadcast(call: _Call) -> Result:
    arrays = [call.input(number) for number in range(len(call.inputs))]
    shape = np.broadcast_shapes(*(array.shape for array in arrays))
    known, numbers = [array.numbers for array in arrays if array.numbers is not None], None
    if call.node.operator in _ARITHMETIC and len(known) == len(arrays):
        with np.errstate(all="raise"):
            # Of arrays without axes numpy makes scalars.
            numbers = np.asarray(functools.reduce(_ARITHMETIC[call.node.operator], known))
    largest = max(array.item_bytes for array in arrays)
    return [Array(shape=shape, item_bytes=largest, numbers=numbers)], 0


def _shape(call: _Call) -> Result:
    sizes = call.input(0).shape[call.attribute("start", 0) : call.attribute("end")]
    return [Array(shape=(len(sizes),), item_bytes=8, numbers=np.array(sizes, np.int64))], 0


def _constant(call: _Call) -> Result:
    value = next(iter(call.node.attributes.values()))
    if isinstance(value, Array):
        return [value], 0
    numbers = np.array(value, np.float64 if isinstance(value, float) else np.int64)
    return [Array(shape=numbers.shape, item_bytes=8, numbers=numbers)], 0


def _squeeze(call: _Call) -> Result:
    array, axes = call.input(0), call.whole_numbers(1, "axes")
    rank = len(array.shape)
    dropped = {i for i, size in enumerate(array.shape) if size == 1} if axes is None else {axis % rank for axis in axes}
    shape = [size for i, size in enumerate(array.shape) if i not in dropped]
    if math.prod(shape) != array.count:
        raise ValueError("it drops an axis of more than one number")
    return _resized(array, shape, None if array.numbers is None else array.numbers.reshape(shape))


def _unsqueeze(call: _Call) -> Result:
    array, axes = call.input(0), call.whole_numbers(1, "axes") or []
    rank = len(array.shape) + len(axes)
    added, rest = {axis % rank for axis in axes}, iter(array.shape)
    shape = [1 if i in added else next(rest) for i in range(rank)]
    return _resized(array, shape, None if array.numbers is None else array.numbers.reshape(shape))


def _expand(call: _Call) -> Result:
    array, sizes = call.input(0), call.whole_numbers(1) or []
    return _resized(array, np.broadcast_shapes(array.shape, sizes))


def _reshape(call: _Call) -> Result:
    array, sizes = call.input(0), call.whole_numbers(1, "shape") or []
    if not call.attribute("allowzero", 0):
        sizes = [array.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
    if sizes.count(-1) == 1:
        rest = -math.prod(sizes)
        sizes = [array.count // rest if size == -1 else size for size in sizes]
    if math.prod(sizes) != array.count:
        raise ValueError(f"it turns {list(array.shape)} into {sizes}")
    return _resized(array, sizes, None if array.numbers is None else array.numbers.reshape(sizes))


def _concat(call: _Call) -> Result:
    arrays = [call.input(number) for number in range(len(call.inputs))]
    axis = call.attribute("axis", 0) % len(arrays[0].shape)
    shape = list(arrays[0].shape)
    if any(len(array.shape) != len(shape) for array in arrays):
        raise ValueError("its inputs have different numbers of axes")
    shape[axis] = sum(array.shape[axis] for array in arrays)
    known = [array.numbers for array in arrays if array.numbers is not None]
    numbers = np.concatenate(known, axis) if len(known) == len(arrays) and math.prod(shape) <= _MOST_KNOWN else None
    return _resized(arrays[0], shape, numbers)


def _axes(axes: Sequence[int] | None, rank: int) -> list[int]:
    return list(range(rank)) if axes is None else [axis % rank for axis in axes]


def _pad(call: _Call) -> Result:
    array = call.input(0)
    pads, shape = call.whole_numbers(1, "pads") or [], list(array.shape)
    axes = _axes(call.whole_numbers(3), len(shape))
    for i, axis in enumerate(axes):
        shape[axis] += pads[i] + pads[len(axes) + i]
    return _resized(array, shape)


def _slice(call: _Call) -> Result:
    array = call.input(0)
    starts, ends = call.whole_numbers(1, "starts") or [], call.whole_numbers(2, "ends") or []
    axes = _axes(call.whole_numbers(3, "axes"), len(array.shape))
    steps = call.whole_numbers(4) or [1] * len(starts)
    taken = [slice(None)] * len(array.shape)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=False):
        taken[axis] = slice(start, None if step < 0 and end < -array.shape[axis] else end, step)
    shape = [len(range(*part.indices(size))) for part, size in zip(taken, array.shape, strict=True)]
    return _resized(array, shape, None if array.numbers is None else array.numbers[tuple(taken)])


def _split(call: _Call) -> Result:
    array = call.input(0)
    axis = call.attribute("axis", 0) % len(array.shape)
    parts = len(call.node.outputs)
    size = math.ceil(array.shape[axis] / parts)
    sizes = call.whole_numbers(1, "split") or [min(size, array.shape[axis] - i * size) for i in range(parts)]
    if sum(sizes) != array.shape[axis]:
        raise ValueError("its parts are not the whole")
    shapes = [(*array.shape[:axis], size, *array.shape[axis + 1 :]) for size in sizes]
    return [Array(shape=shape, item_bytes=array.item_bytes) for shape in shapes], 0


def _transpose(call: _Call) -> Result:
    array = call.input(0)
    order = call.attribute("perm", list(range(len(array.shape)))[::-1])
    if sorted(order) != list(range(len(array.shape))):
        raise ValueError("its order of axes is none")
    return _resized(array, [array.shape[axis] for axis in order])


def _gather(call: _Call) -> Result:
    array, chosen = call.input(0), call.input(1)
    axis = call.attribute("axis", 0) % len(array.shape)
    numbers = None
    if array.numbers is not None and chosen.numbers is not None and array.count <= _MOST_KNOWN:
        numbers = np.asarray(np.take(array.numbers, chosen.numbers.astype(np.int64), axis))
    return _resized(array, [*array.shape[:axis], *chosen.shape, *array.shape[axis + 1 :]], numbers)


def _windows(call: _Call, window: Sequence[int]) -> list[int]:
    """Return how many places a window has along each axis of an image."""
    sizes, rank = call.input(0).shape[2:], len(window)
    if len(sizes) != rank or min(window) < 1:
        raise ValueError("its window has other axes than its input")
    strides, dilations = call.attribute("strides", [1] * rank), call.attribute("dilations", [1] * rank)
    pads = call.attribute("pads", [0] * 2 * rank)
    if call.attribute("auto_pad", b"NOTSET") in (b"SAME_UPPER", b"SAME_LOWER"):
        return [math.ceil(size / stride) for size, stride in zip(sizes, strides, strict=True)]
    rounded = math.ceil if call.attribute("ceil_mode", 0) else math.floor
    return [
        rounded((size + pads[i] + pads[i + rank] - dilations[i] * (window[i] - 1) - 1) / strides[i]) + 1
        for i, size in enumerate(sizes)
    ]


def _convolution(call: _Call) -> Result:
    array, weights = call.input(0), call.input(1)
    outputs, channels, *window = weights.shape
    if channels * call.attribute("group", 1) != array.shape[1]:
        raise ValueError("its weights are for other channels than its input has")
    shape = (array.shape[0], outputs, *_windows(call, window))
    return [Array(shape=shape, item_bytes=array.item_bytes)], math.prod(shape) * channels * math.prod(window)


def _transposed_convolution(call: _Call) -> Result:
    array, weights = call.input(0), call.input(1)
    channels, outputs, *window = weights.shape
    rank, group = len(window), call.attribute("group", 1)
    if channels != array.shape[1] or len(array.shape) != rank + 2 or "output_shape" in call.node.attributes:
        raise ValueError("its weights do not fit its input")
    ones = [1] * rank
    strides, dilations = call.attribute("strides", ones), call.attribute("dilations", ones)
    pads, added = call.attribute("pads", [0] * 2 * rank), call.attribute("output_padding", [0] * rank)
    sizes = [
        (size - 1) * strides[i] - pads[i] - pads[i + rank] + dilations[i] * (window[i] - 1) + 1 + added[i]
        for i, size in enumerate(array.shape[2:])
    ]
    products = array.count * outputs * math.prod(window)
    return [Array(shape=(array.shape[0], outputs * group, *sizes), item_bytes=array.item_bytes)], products


def _pool(call: _Call) -> Result:
    array, window = call.input(0), call.attribute("kernel_shape")
    shape = (*array.shape[:2], *_windows(call, window))
    products = math.prod(shape) * math.prod(window)
    return [Array(shape=shape, item_bytes=array.item_bytes)] * len(call.node.outputs), products


def _resize(call: _Call) -> Result:
    array = call.input(0)
    axes = _axes(call.attribute("axes"), len(array.shape))
    shape, sizes = list(array.shape), call.whole_numbers(3)
    if sizes is None:
        scales = call.input(2).numbers
        if scales is None:
            raise UnknownCostError("its Resize has sizes that depend on the images")
        sizes = [math.floor(array.shape[axis] * float(scale)) for axis, scale in zip(axes, scales, strict=True)]
    for axis, size in zip(axes, sizes, strict=True):
        shape[axis] = size
    return [Array(shape=tuple(shape), item_bytes=array.item_bytes)], 16 * math.prod(shape)


def _depth_to_space(call: _Call) -> Result:
    array, block = call.input(0), call.attribute("blocksize")
    batch, channels, height, width = array.shape
    return _resized(array, (batch, channels // block**2, height * block, width * block))


def _reduce(call: _Call) -> Result:
    array = call.input(0)
    axes = _axes(call.whole_numbers(1, "axes"), len(array.shape))
    kept = call.attribute("keepdims", 1)
    shape = [1 if i in axes else size for i, size in enumerate(array.shape) if kept or i not in axes]
    return _resized(array, shape)


_RULES: dict[str, Callable[[_Call], Result]] = {
    **dict.fromkeys(
        (
            *("Abs", "Ceil", "Clip", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity"),
            *("LeakyRelu", "Log", "LogSoftmax", "Neg", "Not", "Reciprocal", "Relu", "Round", "Sigmoid", "Sign"),
            *("Softmax", "Softplus", "Sqrt", "Tanh", "DequantizeLinear", "QuantizeLinear", "BatchNormalization"),
            *("GroupNormalization", "InstanceNormalization", "LayerNormalization"),
        ),
        _same,
    ),
    **dict.fromkeys(
        (
            *("Add", "Sub", "Mul", "Div", "Min", "Max", "Pow", "PRelu", "Where", "And", "Or"),
            *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"),
        ),
        _broadcast,
    ),
    **dict.fromkeys(("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"), _reduce),
    "AveragePool": _pool,
    "Cast": _cast,
    "Concat": _concat,
    "Constant": _constant,
    "Conv": _convolution,
    "ConvTranspose": _transposed_convolution,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Gather": _gather,
    "MaxPool": _pool,
    "Pad": _pad,
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}

"""Check an .onnx file before a runtime opens it: it may come from anyone, and the runtimes compute what it says.

An ONNX file is a message of protocol buffers: fields of a number, a kind and a value. Only the fields that matter here
are read, so that no package is needed for it (https://github.com/onnx/onnx, onnx.proto).
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from foundation_stereo_depth.errors import CheckpointError
from foundation_stereo_depth.inference.onnx_cost import Array, Node, UnknownCostError, check_cost
from foundation_stereo_depth.network_facts import SAFETENSORS_KEY
from foundation_stereo_depth.options.training import DataOptions

ONNX_INPUT = "pair"
ONNX_PRIOR = "prior"
"""The second input, of networks that take a prior."""
ONNX_OUTPUTS = ("disparity_px", "log_variance")
LARGEST_ONNX_BYTES = 250_000_000
"""The runtimes need several times as many; the largest networks in use have a tenth."""

_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5
_FLOAT32 = 1
_ITEM_BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 16: 16}
"""Bits of a number by its type (TensorProto.DataType)."""
_NUMBER_TYPES = {1: "<f4", 6: "<i4", 7: "<i8", 11: "<f8"}
"""Types of constants whose numbers may be sizes."""
_MOST_SIZES = 64
_STANDARD_DOMAINS = (b"", b"ai.onnx")
_MOST_FIELDS = 10**6
"""An export has some thousand; reading a million takes two seconds."""
_MOST_CHANNELS = 256
"""Of an input whose number of planes is free."""


class _UnreadableError(ValueError):
    """The file is no such message, or is one that no export of this program is."""


@dataclass
class _Network:
    inputs: dict[str, list[int | None]] = field(default_factory=dict[str, list[int | None]])
    outputs: dict[str, list[int | None]] = field(default_factory=dict[str, list[int | None]])
    constants: dict[str, Array] = field(default_factory=dict[str, Array])
    nodes: list[Node] = field(default_factory=list[Node])
    header: Any = None
    fields_read: int = 0

    def fields(self, message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
        """Yield number and value of each field, up to a number for the whole file.

        Raises:
            ValueError: the message ends within one, or is of another encoding.
        """
        for found in _fields(message):
            self.fields_read += 1
            if self.fields_read > _MOST_FIELDS:
                raise ValueError("too many fields")
            yield found

    def parts(self, message: memoryview, wanted: int) -> Iterator[memoryview]:
        """Yield the messages in the fields of one number."""
        return (_bytes_of(value) for number, value in self.fields(message) if number == wanted)


def check_onnx(path: Path, encoded: bytes) -> None:
    """Check that an ONNX file can be a network of this program, whose weights are finite.

    It has the inputs and outputs of `foundation-stereo-export`, no control flow (a loop may have no end), no functions,
    no operators of other programs, no data in other files, and takes neither long nor much memory for a pair of its
    own size.

    Raises:
        CheckpointError: it has others, or is damaged.
    """
    try:
        network = _read_model(memoryview(encoded))
        _check_interface(network)
        check_cost(network.nodes, network.constants | _input_arrays(network), list(network.outputs))
    except (_UnreadableError, UnknownCostError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (ValueError, IndexError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not a complete ONNX file ({error})") from error


def _read_model(message: memoryview) -> _Network:
    network, graphs = _Network(), 0
    for number, value in network.fields(message):
        if number == 7:
            _read_graph(_bytes_of(value), network)
            graphs += 1
        elif number == 14:
            _read_metadata(_bytes_of(value), network)
        elif number in (20, 25):
            raise _UnreadableError("contains functions, which no network of this program has")
    if graphs != 1:
        raise _UnreadableError("is not a complete ONNX file")
    return network


def _read_metadata(message: memoryview, network: _Network) -> None:
    parts = dict(network.fields(message))
    if bytes(_bytes_of(parts.get(1, memoryview(b"")))) == SAFETENSORS_KEY.encode():
        network.header = json.loads(bytes(_bytes_of(parts.get(2, memoryview(b"")))))


def _read_graph(message: memoryview, network: _Network) -> None:
    for number, value in network.fields(message):
        if number == 1:
            network.nodes.append(_read_node(_bytes_of(value), network))
        elif number == 5:
            name, constant = _read_tensor(_bytes_of(value), network)
            network.constants[name] = constant
        elif number in (11, 12):
            name, shape = _read_value_info(_bytes_of(value), network)
            (network.inputs if number == 11 else network.outputs)[name] = shape
        elif number == 15:
            raise _UnreadableError("contains sparse weights, which no network of this program has")


def _read_node(message: memoryview, network: _Network) -> Node:
    """Return an operator, which has to be a standard one, without control flow."""
    fields = list(network.fields(message))
    operator = "".join(_text_of(value) for number, value in fields if number == 4)
    if any(number == 7 and bytes(_bytes_of(value)) not in _STANDARD_DOMAINS for number, value in fields):
        raise _UnreadableError(f"contains {operator} of another program, which no network of this program has")
    return Node(
        operator=operator,
        inputs=[_text_of(value) for number, value in fields if number == 1],
        outputs=[_text_of(value) for number, value in fields if number == 2],
        attributes=dict(
            _read_attribute(_bytes_of(value), operator, network) for number, value in fields if number == 5
        ),
    )


def _read_attribute(message: memoryview, operator: str, network: _Network) -> tuple[str, Any]:
    name, value, several = "", None, list[int | float]()
    for part, found in network.fields(message):
        if part in (6, 11):
            raise _UnreadableError(f"contains control flow ({operator}), which no network of this program has")
        if part in (5, 10):
            _, value = _read_tensor(_bytes_of(found), network)
        elif part == 1:
            name = _text_of(found)
        elif part == 2:
            value = float(np.frombuffer(_bytes_of(found), "<f4")[0])
        elif part == 3 and isinstance(found, int):
            value = _signed(found)
        elif part == 4:
            value = bytes(_bytes_of(found)[:1000])
        elif part == 7:
            several += np.frombuffer(_bytes_of(found), "<f4").tolist()
        elif part == 8:
            several += [_signed(found)] if isinstance(found, int) else map(_signed, _packed(found))
    return name, several if value is None else value


def _read_tensor(message: memoryview, network: _Network) -> tuple[str, Array]:
    """Return a constant and its name; its numbers have to be in the file and finite."""
    name, kind, shape = "", 0, list[int]()
    raw, floats, whole = memoryview(b""), memoryview(b""), list[int]()
    for number, value in network.fields(message):
        if number == 1:
            shape += [value] if isinstance(value, int) else _packed(value)
        elif number == 2 and isinstance(value, int):
            kind = value
        elif number == 4:
            floats = _bytes_of(value)
        elif number in (5, 7):
            whole += [_signed(value)] if isinstance(value, int) else map(_signed, _packed(value))
        elif number == 8:
            name = _text_of(value)
        elif number == 9:
            raw = _bytes_of(value)
        elif number in (13, 14) and value:
            raise _UnreadableError("keeps weights in another file; export it as one file")
    count = math.prod(shape)
    if not 0 <= count <= LARGEST_ONNX_BYTES or (raw and 8 * len(raw) != count * _ITEM_BITS.get(kind, 8 * len(raw))):
        raise _UnreadableError(f"is damaged: {name or 'a constant'} is not as large as its shape says")
    # A single number may well be infinite: a bound, or the unknown.
    if count > 1 and not (_is_finite(raw, kind) and _is_finite(floats, _FLOAT32)):
        raise _UnreadableError(f"its weights are not finite (NaN or infinity in {name or 'a constant'})")
    numbers = None
    if count <= _MOST_SIZES and kind in _NUMBER_TYPES:
        numbers = np.array(whole) if whole else np.frombuffer(raw or floats, _NUMBER_TYPES[kind])
        numbers = numbers.reshape(shape)
    item_bytes = max(1, _ITEM_BITS.get(kind, 64) // 8)
    return name, Array(shape=tuple(shape), item_bytes=item_bytes, numbers=numbers)


def _signed(value: int) -> int:
    """Return a whole number that may be negative, of 64 bits."""
    return value - 2**64 if value >= 2**63 else value


def _is_finite(numbers: memoryview, kind: int) -> bool:
    if kind == 16:  # bfloat16 is the upper half of a float32
        return not ((np.frombuffer(numbers, "<u2") & 0x7F80) == 0x7F80).any()
    float_type = {1: "<f4", 10: "<f2", 11: "<f8"}.get(kind)
    return float_type is None or bool(np.isfinite(np.frombuffer(numbers, float_type)).all())


def _read_value_info(message: memoryview, network: _Network) -> tuple[str, list[int | None]]:
    """Return the name and shape of an input or output, None for sizes that are free."""
    name, shape, kinds = "", list[int | None](), list[int]()
    for number, value in network.fields(message):
        if number == 1:
            name = _text_of(value)
        elif number == 2:
            for tensor in network.parts(_bytes_of(value), 1):
                kinds += [kind for part, kind in network.fields(tensor) if part == 1 and isinstance(kind, int)]
                for sizes in network.parts(tensor, 2):
                    shape += [_size_of(size, network) for size in network.parts(sizes, 1)]
    if kinds != [_FLOAT32]:
        raise _UnreadableError(f"its {name} is not an array of 32-bit numbers")
    return name, shape


def _size_of(message: memoryview, network: _Network) -> int | None:
    return next((value for number, value in network.fields(message) if number == 1 and isinstance(value, int)), None)


def _input_arrays(network: _Network) -> dict[str, Array]:
    """Return the inputs for one pair of the size that the file states."""
    stated = network.header if isinstance(network.header, dict) else {}
    defaults, sizes = DataOptions(), dict[int, int]()
    for axis, name in ((2, "height"), (3, "width")):
        size = network.inputs[ONNX_INPUT][axis] or stated.get(name)
        sizes[axis] = size if isinstance(size, int) else getattr(defaults, name)
    return {
        name: Array(shape=(shape[0] or 1, shape[1] or _MOST_CHANNELS, sizes[2], sizes[3]))
        for name, shape in network.inputs.items()
        if name not in network.constants
    }


def _check_interface(network: _Network) -> None:
    inputs = {name: shape for name, shape in network.inputs.items() if name not in network.constants}
    if not {ONNX_INPUT} <= inputs.keys() <= {ONNX_INPUT, ONNX_PRIOR} or network.outputs.keys() != set(ONNX_OUTPUTS):
        raise _UnreadableError(
            f"takes {_named(inputs)} and returns {_named(network.outputs)}, where an export of this program takes "
            f"{ONNX_INPUT} and returns {_named(ONNX_OUTPUTS)}"
        )
    pair = inputs[ONNX_INPUT]
    wanted = [(ONNX_INPUT, pair, 6), *((name, shape, 1) for name, shape in network.outputs.items())]
    for name, shape, planes in [*wanted, *((name, inputs[name], None) for name in inputs if name == ONNX_PRIOR)]:
        fits = len(shape) == len(pair) == 4 and (planes is None or shape[1] in (planes, None))
        if not fits or any(a not in (b, None) and b is not None for a, b in zip(shape[2:], pair[2:], strict=True)):
            needed = "four sizes" if planes is None else f"{planes} planes"
            raise _UnreadableError(f"its {name} has the shape {shape}; it has to have {needed}, and the pair's, {pair}")


def _named(names: Sequence[str] | dict[str, list[int | None]]) -> str:
    return " and ".join(name[:40] for name in list(names)[:4]) or "nothing"


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield number and value of each field.

    Raises:
        ValueError: the message ends within one, or is of another encoding.
    """
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        if kind not in (_BYTES, _EIGHT_BYTES, _FOUR_BYTES):
            raise ValueError(f"a field of kind {kind}")
        length = 8 if kind == _EIGHT_BYTES else 4
        if kind == _BYTES:
            length, at = _varint(message, at)
        if at + length > len(message):
            raise ValueError("it ends within a field")
        yield key >> 3, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than 64 bits")


def _packed(message: memoryview) -> list[int]:
    values, at = list[int](), 0
    while at < len(message):
        value, at = _varint(message, at)
        values.append(value)
    return values


def _bytes_of(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise _UnreadableError("is not a complete ONNX file (a number in place of a message)")
    return value


def _text_of(value: int | memoryview) -> str:
    return bytes(_bytes_of(value)[:1000]).decode(errors="replace")

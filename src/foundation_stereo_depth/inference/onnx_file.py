"""Check an .onnx file before a runtime opens it: it may come from anyone, and the runtimes compute what it says.

An ONNX file is a message of protocol buffers: fields of a number, a kind and a value. Only the fields that matter here
are read, so that no package is needed for it (https://github.com/onnx/onnx, onnx.proto).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from foundation_stereo_depth.errors import CheckpointError

ONNX_INPUT = "pair"
ONNX_PRIOR = "prior"
"""The second input, of networks that take a prior."""
ONNX_OUTPUTS = ("disparity_px", "log_variance")
LARGEST_ONNX_BYTES = 2**30
"""Protocol buffers end at twice as many; the largest networks in use have a hundredth."""

_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5
_FLOAT32 = 1
_ITEM_BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 16: 16}
"""Bits of a number by its type (TensorProto.DataType)."""
_STANDARD_DOMAINS = (b"", b"ai.onnx")
_MOST_FIELDS = 10**6


class _UnreadableError(ValueError):
    """The file is no such message, or is one that no export of this program is."""


@dataclass
class _Network:
    inputs: dict[str, list[int | None]] = field(default_factory=dict[str, list[int | None]])
    outputs: dict[str, list[int | None]] = field(default_factory=dict[str, list[int | None]])
    constants: set[str] = field(default_factory=set[str])


def check_onnx(path: Path, encoded: bytes) -> None:
    """Check that an ONNX file can be a network of this program, whose weights are finite.

    It has the inputs and outputs of `foundation-stereo-export`, no control flow (a loop may have no end), no functions,
    no operators of other programs, and no data in other files.

    Raises:
        CheckpointError: it has others, or is damaged.
    """
    try:
        network = _read_model(memoryview(encoded))
        _check_interface(network)
    except _UnreadableError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (ValueError, IndexError) as error:
        raise CheckpointError(f"{path}: is not a complete ONNX file ({error})") from error


def _read_model(message: memoryview) -> _Network:
    network, graphs = _Network(), 0
    for number, value in _fields(message):
        if number == 7:
            _read_graph(_bytes_of(value), network)
            graphs += 1
        elif number in (20, 25):
            raise _UnreadableError("contains functions, which no network of this program has")
    if graphs != 1:
        raise _UnreadableError("is not a complete ONNX file")
    return network


def _read_graph(message: memoryview, network: _Network) -> None:
    for number, value in _fields(message):
        if number == 1:
            _check_node(_bytes_of(value))
        elif number == 5:
            network.constants.add(_check_tensor(_bytes_of(value)))
        elif number in (11, 12):
            name, shape = _read_value_info(_bytes_of(value))
            (network.inputs if number == 11 else network.outputs)[name] = shape
        elif number == 15:
            raise _UnreadableError("contains sparse weights, which no network of this program has")


def _check_node(message: memoryview) -> None:
    """Check that an operator is a standard one, without control flow."""
    fields = list(_fields(message))
    operator = "".join(_text_of(value) for number, value in fields if number == 4)
    if any(number == 7 and bytes(_bytes_of(value)) not in _STANDARD_DOMAINS for number, value in fields):
        raise _UnreadableError(f"contains {operator} of another program, which no network of this program has")
    for number, attribute in fields:
        for part, value in _fields(_bytes_of(attribute)) if number == 5 else ():
            if part in (6, 11):
                raise _UnreadableError(f"contains control flow ({operator}), which no network of this program has")
            if part in (5, 10):
                _check_tensor(_bytes_of(value))


def _check_tensor(message: memoryview) -> str:
    """Check that a constant's numbers are in the file and finite; return its name."""
    name, kind, shape = "", 0, list[int]()
    raw, floats = memoryview(b""), memoryview(b"")
    for number, value in _fields(message):
        if number == 1:
            shape += [value] if isinstance(value, int) else _packed(value)
        elif number == 2 and isinstance(value, int):
            kind = value
        elif number == 4:
            floats = _bytes_of(value)
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
    return name


def _is_finite(numbers: memoryview, kind: int) -> bool:
    if kind == 16:  # bfloat16 is the upper half of a float32
        return not ((np.frombuffer(numbers, "<u2") & 0x7F80) == 0x7F80).any()
    float_type = {1: "<f4", 10: "<f2", 11: "<f8"}.get(kind)
    return float_type is None or bool(np.isfinite(np.frombuffer(numbers, float_type)).all())


def _read_value_info(message: memoryview) -> tuple[str, list[int | None]]:
    """Return the name and shape of an input or output, None for sizes that are free."""
    name, shape, kinds = "", list[int | None](), list[int]()
    for number, value in _fields(message):
        if number == 1:
            name = _text_of(value)
        elif number == 2:
            for tensor in _parts(_bytes_of(value), 1):
                kinds += [kind for part, kind in _fields(tensor) if part == 1 and isinstance(kind, int)]
                for sizes in _parts(tensor, 2):
                    shape += [_size_of(size) for size in _parts(sizes, 1)]
    if kinds != [_FLOAT32]:
        raise _UnreadableError(f"its {name} is not an array of 32-bit numbers")
    return name, shape


def _size_of(message: memoryview) -> int | None:
    return next((value for number, value in _fields(message) if number == 1 and isinstance(value, int)), None)


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


def _parts(message: memoryview, wanted: int) -> Iterator[memoryview]:
    return (_bytes_of(value) for number, value in _fields(message) if number == wanted)


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield number and value of each field.

    Raises:
        ValueError: the message ends within one, or is of another encoding.
    """
    at = 0
    for _ in range(_MOST_FIELDS):
        if at == len(message):
            return
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
    raise ValueError("too many fields")


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

"""What unpickling a file of any origin costs, found before one object of it is made.

A pickle is a program: each byte may build an object, and a few bytes may copy a large one again and again. PyTorch's
restricted unpickler runs no foreign code, but it has no limit on time and memory.
"""

import pickletools
from io import BufferedIOBase
from typing import IO, Any, cast

from foundation_stereo_depth.errors import CheckpointError

MOST_STEPS = 500_000
"""Opcodes, and items that calls are given. A training state of this program has some thousand, and a hundred for each
epoch of its history; half a million take a second or two, and a tenth of a gigabyte."""
_CALL_STEPS = 10
"""How much longer a call takes than other opcodes."""
_CHARACTERS_PER_STEP = 16
_CALLS = {"REDUCE", "NEWOBJ", "BUILD", "GLOBAL", "BINPERSID"}
_GROWS_BY = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD"}
_MEMORY_HUNGRY = {
    "builtins bytearray",
    "__builtin__ bytearray",
    "_codecs encode",
    *(f"torch._utils _rebuild_{kind}" for kind in ("device_tensor_from_cpu_tensor", "device_tensor_from_numpy")),
    *(f"torch._utils _rebuild_{kind}" for kind in ("sparse_tensor", "nested_tensor", "qtensor", "wrapper_subclass")),
}
"""Functions that PyTorch lets a pickle call, of which one call takes gigabytes; weights need none of them."""


def check_pickle(file: BufferedIOBase | IO[bytes]) -> None:
    """Check that unpickling takes neither long nor much memory; the file then stands behind the pickle.

    Sizes of objects are added up, not the objects built. What is no pickle is left to the unpickler, which stops at the
    same byte.

    Raises:
        CheckpointError: it takes too much.
    """
    try:
        _count_steps(file)
    except CheckpointError:
        raise
    except (ValueError, IndexError, KeyError):  # no pickle
        return


def _count_steps(file: BufferedIOBase | IO[bytes]) -> None:
    """Follow the opcodes with the size of each object in its place; a list of one number, since objects are shared."""
    steps, stack, marks, memo = 0, list[list[int]](), list[int](), dict[int, list[int]]()
    opcodes: Any = pickletools.genops(cast(IO[bytes], file))  # an argument's type follows from its opcode
    for opcode, argument, _ in opcodes:
        name, before = opcode.name, opcode.stack_before
        steps += 1
        size = 1 + len(argument) // _CHARACTERS_PER_STEP if isinstance(argument, str | bytes | bytearray) else 1
        if isinstance(argument, int) and name.startswith("LONG") and "BIN" not in name:
            size += argument.bit_length() // _CHARACTERS_PER_STEP
        if name == "GLOBAL" and argument in _MEMORY_HUNGRY:
            raise CheckpointError(f"would call {argument.replace(' ', '.')}, which no weights need")
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if name == "MEMOIZE" else int(argument)] = stack[-1]
            continue
        if name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[int(argument)])
            continue
        if name == "MARK":
            marks.append(len(stack))
            continue
        begin = marks.pop() if pickletools.markobject in before else len(stack) - len(before)
        used = stack[begin:]
        del stack[begin:]
        if name in _CALLS:
            steps += _CALL_STEPS + sum(each[0] for each in used)
        if name in _GROWS_BY:
            grown = used.pop(0) if pickletools.markobject not in before else stack.pop()
            grown[0] += sum(each[0] for each in used)
            stack.append(grown)
        else:
            size = min(size + sum(each[0] for each in used), 10 * MOST_STEPS)
            stack += [[size] for _ in opcode.stack_after]
        if steps > MOST_STEPS:
            raise CheckpointError(f"takes more than {MOST_STEPS:,} steps to unpickle, which no checkpoint does")

"""Read NPZ files of known keys, types and shapes straight into arrays, and verify every byte of them.

An NPZ is a ZIP of NPY files. What `np.savez` writes for given keys, types and shapes differs from file to file only in
the arrays and their checksums. So a file is compared with the layout that `np.savez` gives: the arrays go straight to
their destination, all other bytes have to be the layout's, and the checksums have to be right. Every other legal file
(deflated, other members, Fortran order, ZIP64) is read by Python's and NumPy's own readers, under limits that are
checked before memory is taken.

Measured against np.load by `benchmarks/loader.py read`.
"""

import io
import math
import os
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from zlib_ng import zlib_ng

_LARGEST_FILE = 8
"""A file may be so many times as large as its arrays (it may hold other members), and a mebibyte more."""
_LARGEST_HEADER = 4096
"""Bytes that the NPY header of one array may take; NumPy writes 128."""
NPY_HEADER = re.compile(
    rb"\x93NUMPY(?:(?P<v1>\x01\x00..)|[\x02\x03]\x00....)\s*\{\s*'descr'\s*:\s*'(?P<descr>[<>|=][a-zA-Z]\d*)'\s*,"
    rb"\s*'fortran_order'\s*:\s*(?P<fortran>True|False)\s*,\s*'shape'\s*:\s*\((?P<shape>[\d, ]{0,99})\)\s*,?\s*\}",
    re.DOTALL,
)
"""The NPY format, versions 1 to 3; matched rather than evaluated, since a header is a Python expression."""
_OPEN = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
"""Without waiting where the file is a pipe, which no entry is."""


class NpzError(ValueError):
    """A file is not an NPZ with the expected arrays, or is damaged; the message follows the file's name."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Type and shape that an array is expected to have."""

    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Return how many numbers it has."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Return how many bytes it takes."""
        return self.count * self.dtype.itemsize


class _Span(NamedTuple):
    """An array in a file: where it starts, the checksum of the NPY header before it, and where checksums are kept."""

    key: str
    start: int
    length: int
    header_crc: int
    crc_at: tuple[int, ...]  # within the bytes outside the arrays


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """What all files that `np.savez` writes of some kinds of arrays have in common.

    Attributes:
        size: of the file, bytes.
        spans: the arrays, in the file's order.
        rest: all bytes outside the arrays, one stretch after the other, checksums zeroed.
    """

    size: int
    spans: tuple[_Span, ...]
    rest: bytes


class NpzReader:
    """Reads files that hold arrays of known keys, types and shapes. Any number of threads may share one.

    Args:
        wanted: the arrays that are read.
        extras: an array that a file may hold besides; it is verified where it is there, and not returned.
    """

    def __init__(self, wanted: Mapping[str, Kind], extras: Mapping[str, Kind]) -> None:
        self._wanted, self._extras = dict(wanted), dict(extras)
        self._largest_file = _LARGEST_FILE * sum(kind.bytes for kind in wanted.values()) + 2**20
        self._layouts = (_make_layout({**wanted, **extras}), _make_layout(wanted))

    def read(self, path: str | Path, into: Mapping[str, np.ndarray]) -> None:
        """Fill the arrays of `into`, which are contiguous and of the wanted types and shapes.

        Raises:
            FileNotFoundError: there is no such file.
            NpzError: it is damaged or holds something else; `into` then holds arbitrary values.
        """
        try:
            file = os.open(path, _OPEN)
            try:
                size = os.fstat(file).st_size
                for layout in self._layouts:
                    if layout.size == size and self._read_layout(file, layout, into):
                        return
                    os.lseek(file, 0, os.SEEK_SET)
                if size > self._largest_file:
                    raise NpzError(f"is damaged ({size} bytes, where such arrays never need {self._largest_file})")
                encoded = os.read(file, size)
            finally:
                os.close(file)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise NpzError(f"cannot be read ({error.strerror or error})") from error
        for key, array in _read_any(encoded, self._wanted).items():
            into[key][...] = array

    def _read_layout(self, file: int, layout: _Layout, into: Mapping[str, np.ndarray]) -> bool:
        """Fill the arrays; return whether the file is complete, undamaged and of this layout."""
        rest = bytearray(len(layout.rest))
        arrays = {**{key: np.empty(kind.shape, kind.dtype) for key, kind in self._extras.items()}, **into}
        if _read_to(file, _split_file(layout, arrays, rest)) != layout.size:
            return False
        for span in layout.spans:
            crc = zlib_ng.crc32(arrays[span.key].data, span.header_crc).to_bytes(4, "little")
            for at in span.crc_at:
                if not rest.startswith(crc, at):
                    return False
                rest[at : at + 4] = bytes(4)
        return bytes(rest) == layout.rest


def _split_file(layout: _Layout, arrays: Mapping[str, np.ndarray], rest: bytearray) -> list[memoryview]:
    """Return the destinations of the bytes of a file, one stretch after the other."""
    pieces: list[memoryview] = []
    unread = memoryview(rest)
    position = 0
    for span in layout.spans:
        gap = span.start - position
        pieces += (unread[:gap], arrays[span.key].data)
        unread, position = unread[gap:], span.start + span.length
    return [*pieces, unread]


if hasattr(os, "readv"):

    def _read_to(file: int, pieces: Sequence[memoryview]) -> int:
        """Fill the pieces and return how many bytes there were: one system call, without Python's lock."""
        return os.readv(file, pieces)

else:

    def _read_to(file: int, pieces: Sequence[memoryview]) -> int:
        """Fill the pieces and return how many bytes there were."""
        count = 0
        for piece in pieces:
            part = os.read(file, piece.nbytes)
            piece.cast("B")[: len(part)] = part
            count += len(part)
        return count


def _make_layout(kinds: Mapping[str, Kind]) -> _Layout:
    """Return the layout, found by writing arrays of noise, whose bytes and checksums stand nowhere else in the file."""
    random = np.random.default_rng(0)
    arrays = {
        key: np.frombuffer(random.bytes(kind.bytes), kind.dtype).reshape(kind.shape) for key, kind in kinds.items()
    }
    file = io.BytesIO()
    np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
    encoded = file.getvalue()
    rest, position = bytearray(), 0
    spans: list[_Span] = []
    with zipfile.ZipFile(file) as archive:
        crcs = {key: archive.getinfo(f"{key}.npy").CRC.to_bytes(4, "little") for key in kinds}
    for key, array in arrays.items():
        start = encoded.index(array.tobytes(), position)
        header = encoded.rindex(b"\x93NUMPY", 0, start)
        spans.append(_Span(key, start, array.nbytes, zlib.crc32(encoded[header:start]), ()))
        rest += encoded[position:start]
        position = start + array.nbytes
    rest += encoded[position:]
    placed = tuple(
        span._replace(crc_at=tuple(found.start() for found in re.finditer(re.escape(crcs[span.key]), rest)))
        for span in spans
    )
    for span in placed:
        assert len(span.crc_at) == 2, "once before the array and once in the directory"
        for at in span.crc_at:
            rest[at : at + 4] = bytes(4)
    return _Layout(size=len(encoded), spans=placed, rest=bytes(rest))


def _read_any(encoded: bytes, wanted: Mapping[str, Kind]) -> dict[str, np.ndarray]:
    """Return the arrays of any legal NPZ, by way of Python's own reader.

    Raises:
        NpzError: it is damaged, lacks an array, or holds another type or shape.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(encoded)) as archive:
            names = set(archive.namelist())
            missing = [key for key in wanted if f"{key}.npy" not in names]
            arrays = {key: _read_any_array(archive, key, kind) for key, kind in wanted.items() if key not in missing}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError) as error:
        if isinstance(error, NpzError):
            raise
        raise NpzError(f"is damaged ({error})") from error
    if missing:
        raise NpzError(f"lacks {', '.join(missing)}")
    return arrays


def _read_any_array(archive: zipfile.ZipFile, key: str, wanted: Kind) -> np.ndarray:
    member = archive.getinfo(f"{key}.npy")
    if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise NpzError(f"is damaged (its {key} is encrypted, or packed by method {member.compress_type})")
    with archive.open(member) as packed:
        # As far as is sensible, whatever size the header gives. Python verifies the checksum when it meets the end.
        body = packed.read(wanted.bytes + _LARGEST_HEADER)
        longer = packed.read(1)
    header = NPY_HEADER.match(body[:_LARGEST_HEADER])
    if header is None:
        raise NpzError(f"is damaged (its {key} does not begin as an NPY array does)")
    shape = tuple(int(number) for number in header["shape"].replace(b",", b" ").split())
    descr = header["descr"].decode()
    if (descr[1:], shape) != (wanted.dtype.str[1:], wanted.shape):
        raise NpzError(f"holds {key} {descr} {shape}, not {wanted.dtype.str} {wanted.shape}")
    prefix = 10 if header["v1"] else 12
    begins = prefix + int.from_bytes(body[8:prefix], "little")
    if begins < header.end() or len(body) < begins + wanted.bytes or longer:
        raise NpzError(f"is damaged (its {key} differs in length from its header)")
    order = "F" if header["fortran"] == b"True" else "C"
    dtype = wanted.dtype.newbyteorder(">" if descr[0] == ">" else "<")
    return np.frombuffer(body, dtype, wanted.count, begins).reshape(shape, order=order)

"""Reading NPZ files of known keys, types and shapes straight into arrays, every array byte verified.

An NPZ is a ZIP of NPY files. Files that one program stored (not deflated) with the same keys, types and shapes differ
only in the arrays and their checksums. So the first one is taken apart strictly, byte by byte, and its layout is kept;
from each later one the arrays go straight to their place, all other bytes have to be the layout's, and the checksums
have to be right. Whatever is legal but unusual (deflated, Fortran order, ZIP64, odd headers) takes the slow road
through Python's and NumPy's own readers, under limits that are checked before memory is taken.
"""

import io
import math
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from zlib_ng import zlib_ng

_LARGEST_FILE = 8
"""A file may be so many times as large as its arrays (it may hold other members), and a mebibyte more."""
_LARGEST_HEADER = 4096
"""Bytes that the NPY header of one array may take; NumPy writes 128."""
_NPY_HEADER = re.compile(
    rb"\x93NUMPY(?:(?P<v1>\x01\x00..)|[\x02\x03]\x00....)\s*\{\s*'descr'\s*:\s*'(?P<descr>[<>|=][a-zA-Z]\d*)'\s*,"
    rb"\s*'fortran_order'\s*:\s*(?P<fortran>True|False)\s*,\s*'shape'\s*:\s*\((?P<shape>[\d, ]{0,99})\)\s*,?\s*\}",
    re.DOTALL,
)
"""The NPY format, versions 1 to 3; matched rather than evaluated, since a header is a Python expression."""
_OPEN = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
"""Not waiting for whoever fills a pipe: a pipe is no entry."""
_LAYOUTS_KEPT = 4
"""Different layouts in one folder: one for each program that wrote there."""

# The fields of a ZIP's records by their names in PKWARE's APPNOTE.TXT, sections 4.3.7, 4.3.12 and 4.3.16.
_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_ZIP64_SIZES = struct.Struct("<2H2Q")  # section 4.5.3
_NAME_IS_UTF8 = 1 << 11


class NpzError(ValueError):
    """A file is no NPZ with the wanted arrays in it, or is not whole; the message says how, after the file's name."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Type and shape that an array is expected to have."""

    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """How many bytes it takes."""
        return self.count * self.dtype.itemsize


class _Span(NamedTuple):
    """An array in a file: where it starts, the checksum of the NPY header before it, and where checksums are kept."""

    key: str
    start: int
    length: int
    header_crc: int
    crc_at: tuple[int, int]  # within the bytes that are no array


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """What files of one kind have in common.

    Attributes:
        size: of the file, bytes.
        spans: the wanted arrays, in the file's order.
        rest: all bytes that belong to no wanted array, one stretch after the other, `free` ones zeroed.
        free: stretches of `rest` that may differ from file to file: checksums, other members, the ZIP's comment.
    """

    size: int
    spans: tuple[_Span, ...]
    rest: bytes
    free: tuple[slice, ...]


class NpzReader:
    """Reads files that hold arrays of known keys, types and shapes. Any number of threads may share one."""

    def __init__(self, wanted: Mapping[str, Kind]) -> None:
        self._wanted = dict(wanted)
        self._headers = {key: _npy_header(kind) for key, kind in wanted.items()}
        self._largest_file = _LARGEST_FILE * sum(kind.bytes for kind in wanted.values()) + 2**20
        # Replaced, never changed in place: a thread that reads sees the old tuple or the new one.
        self._layouts: tuple[_Layout, ...] = ()

    def read(self, path: str | Path, into: Mapping[str, np.ndarray]) -> None:
        """Fills the arrays of `into`, which are contiguous and of the wanted types and shapes.

        Raises:
            FileNotFoundError: there is no such file.
            NpzError: it is damaged or holds something else; what `into` holds then has no meaning.
        """
        try:
            file = os.open(path, _OPEN)
            try:
                size = os.fstat(file).st_size
                for layout in self._layouts:
                    if layout.size == size and _read_known(file, layout, into):
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
        self._read_unknown(encoded, into)

    def _read_unknown(self, encoded: bytes, into: Mapping[str, np.ndarray]) -> None:
        """Takes the file apart, and keeps its layout where it is a usual one."""
        layout = _layout_of(encoded, self._headers)
        if layout is None or not _copy_known(encoded, layout, into):
            for key, array in _slowly_read(encoded, self._wanted).items():
                into[key][...] = array
        elif layout not in self._layouts and len(self._layouts) < _LAYOUTS_KEPT:
            self._layouts = (*self._layouts, layout)


def _read_known(file: int, layout: _Layout, into: Mapping[str, np.ndarray]) -> bool:
    """Fills the arrays and says whether the file is whole and of this layout."""
    rest = bytearray(len(layout.rest))
    return _read_to(file, _pieces(layout, into, rest)) == layout.size and _is_right(layout, into, rest)


def _copy_known(encoded: bytes, layout: _Layout, into: Mapping[str, np.ndarray]) -> bool:
    """The same from memory."""
    rest = bytearray(len(layout.rest))
    position = 0
    for piece in _pieces(layout, into, rest):
        stop = position + piece.nbytes
        piece.cast("B")[:] = encoded[position:stop]
        position = stop
    return _is_right(layout, into, rest)


def _pieces(layout: _Layout, into: Mapping[str, np.ndarray], rest: bytearray) -> list[memoryview]:
    """The places for the bytes of a file, one stretch after the other."""
    pieces: list[memoryview] = []
    unread = memoryview(rest)
    position = 0
    for span in layout.spans:
        gap = span.start - position
        pieces += (unread[:gap], into[span.key].data)
        unread, position = unread[gap:], span.start + span.length
    return [*pieces, unread]


if hasattr(os, "readv"):

    def _read_to(file: int, pieces: list[memoryview]) -> int:
        """Fills the pieces, and returns how many bytes there were: one system call, without Python's lock."""
        return os.readv(file, pieces)

else:

    def _read_to(file: int, pieces: list[memoryview]) -> int:
        """Fills the pieces, and returns how many bytes there were."""
        count = 0
        for piece in pieces:
            part = os.read(file, piece.nbytes)
            piece.cast("B")[: len(part)] = part
            count += len(part)
        return count


def _is_right(layout: _Layout, into: Mapping[str, np.ndarray], rest: bytearray) -> bool:
    """True where the checksums are the arrays', and all else is as in the layout."""
    for span in layout.spans:
        crc = zlib_ng.crc32(into[span.key].data, span.header_crc).to_bytes(4, "little")
        if not all(rest.startswith(crc, at) for at in span.crc_at):
            return False
    for free in layout.free:
        rest[free] = bytes(free.stop - free.start)
    return bytes(rest) == layout.rest


def _npy_header(kind: Kind) -> bytes:
    """What NumPy writes before such an array."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": kind.dtype.str, "fortran_order": False, "shape": kind.shape})
    return header.getvalue()


class _Member(NamedTuple):
    """What a ZIP's directory says of one member, and where it says the checksum."""

    name: bytes
    plain: bool
    crc: int
    size: int
    stored_size: int
    start: int
    crc_at: int


def _layout_of(encoded: bytes, headers: Mapping[str, bytes]) -> _Layout | None:
    """The layout of a stored NPZ whose arrays have exactly these NPY headers; None where anything is unusual."""
    directory = _directory(encoded)
    if directory is None:
        return None
    names = {f"{key}.npy".encode(): key for key in headers}
    spans: list[_Span] = []
    free: list[tuple[int, int]] = [(len(encoded) - directory.comment, len(encoded))]
    crc_at: list[tuple[int, int]] = []
    position = 0
    for member in directory.members:
        if member.start != position:  # a gap, an overlap, or an order that nobody writes
            return None
        body = _body(encoded, member)
        if body is None:
            return None
        position = body + member.stored_size
        # Dates say nothing about the arrays, and the checksum of an array is held against the array.
        free += [(member.start + 10, member.start + 18), (member.crc_at - 4, member.crc_at + 4)]
        if member.name not in names:
            free.append((body, position))
            continue
        key = names[member.name]
        header = headers[key]
        if any(span.key == key for span in spans) or not member.plain or not encoded.startswith(header, body):
            return None
        spans.append(_Span(key, body + len(header), member.size - len(header), zlib.crc32(header), (0, 0)))
        crc_at.append((member.start + 14, member.crc_at))
    if len(spans) != len(headers) or position != directory.start:
        return None
    return _without_arrays(encoded, spans, crc_at, free)


class _Directory(NamedTuple):
    """A ZIP's members, where the directory itself begins, and how long the comment behind it is."""

    members: list[_Member]
    start: int
    comment: int


def _directory(encoded: bytes) -> _Directory | None:
    """The directory of a ZIP that is one file, not ZIP64, and ends where its end record says; else None."""
    end = encoded.rfind(b"PK\5\6")
    if end < 0 or end + _END.size > len(encoded):
        return None
    _, disk, first_disk, here, count, length, start, comment = _END.unpack_from(encoded, end)
    if disk or first_disk or here != count or start + length != end or end + _END.size + comment != len(encoded):
        return None
    members: list[_Member] = []
    at = start
    for _ in range(count):
        if at + _CENTRAL.size > end:
            return None
        (signature, _, _, flags, method, _, _, crc, stored_size, size, name, extra, remark, _, _, _, local) = (
            _CENTRAL.unpack_from(encoded, at)
        )
        if signature != b"PK\1\2":
            return None
        name_at = at + _CENTRAL.size
        plain = method == 0 and flags & ~_NAME_IS_UTF8 == 0 and size == stored_size < 2**32 - 1
        members.append(_Member(encoded[name_at : name_at + name], plain, crc, size, stored_size, local, at + 16))
        at = name_at + name + extra + remark
    return _Directory(members, start, comment) if at == end else None


def _body(encoded: bytes, member: _Member) -> int | None:
    """Where the member's bytes begin; None where its local header does not say what the directory says."""
    if member.start + _LOCAL.size > len(encoded):
        return None
    signature, _, flags, method, _, _, crc, stored_size, size, name, extra = _LOCAL.unpack_from(encoded, member.start)
    name_at = member.start + _LOCAL.size
    body = name_at + name + extra
    if signature != b"PK\3\4" or encoded[name_at : name_at + name] != member.name:
        return None
    if stored_size == size == 2**32 - 1 and extra == _ZIP64_SIZES.size <= len(encoded) - name_at - name:
        # NumPy reserves room for sizes of 64 bits, which the directory then does not need.
        tag, length, size, stored_size = _ZIP64_SIZES.unpack_from(encoded, name_at + name)
        if (tag, length) != (1, 16):
            return None
    if (crc, stored_size, size) != (member.crc, member.stored_size, member.size):
        return None
    return None if member.plain and (method or flags & ~_NAME_IS_UTF8) else body


def _without_arrays(
    encoded: bytes, spans: list[_Span], crc_at: list[tuple[int, int]], free: list[tuple[int, int]]
) -> _Layout:
    """The layout, its places counted in the bytes that are left when the arrays are cut out."""

    def moved(at: int) -> int:
        return at - sum(span.length for span in spans if span.start < at)

    rest = bytearray()
    position = 0
    for span in spans:
        rest += encoded[position : span.start]
        position = span.start + span.length
    rest += encoded[position:]
    placed = [span._replace(crc_at=(moved(a), moved(b))) for span, (a, b) in zip(spans, crc_at, strict=True)]
    may_differ = [slice(moved(start), moved(stop)) for start, stop in free]
    for stretch in may_differ:
        rest[stretch] = bytes(stretch.stop - stretch.start)
    return _Layout(size=len(encoded), spans=tuple(placed), rest=bytes(rest), free=tuple(may_differ))


def _slowly_read(encoded: bytes, wanted: Mapping[str, Kind]) -> dict[str, np.ndarray]:
    """The arrays of any legal NPZ, by way of Python's own reader.

    Raises:
        NpzError: it is damaged, lacks an array, or holds another type or shape.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(encoded)) as archive:
            names = set(archive.namelist())
            missing = [key for key in wanted if f"{key}.npy" not in names]
            arrays = {key: _slowly_read_array(archive, key, kind) for key, kind in wanted.items() if key not in missing}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError) as error:
        if isinstance(error, NpzError):
            raise
        raise NpzError(f"is damaged ({error})") from error
    if missing:
        raise NpzError(f"lacks {', '.join(missing)}")
    return arrays


def _slowly_read_array(archive: zipfile.ZipFile, key: str, wanted: Kind) -> np.ndarray:
    member = archive.getinfo(f"{key}.npy")
    if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise NpzError(f"is damaged (its {key} is encrypted, or packed by method {member.compress_type})")
    with archive.open(member) as packed:
        # As far as is sensible, whatever size is promised. Python verifies the checksum when it meets the end.
        body = packed.read(wanted.bytes + _LARGEST_HEADER)
        goes_on = packed.read(1)
    header = _NPY_HEADER.match(body[:_LARGEST_HEADER])
    if header is None:
        raise NpzError(f"is damaged (its {key} does not begin as an NPY array does)")
    shape = tuple(int(number) for number in header["shape"].replace(b",", b" ").split())
    descr = header["descr"].decode()
    if (descr[1:], shape) != (wanted.dtype.str[1:], wanted.shape):
        raise NpzError(f"holds {key} {descr} {shape}, not {wanted.dtype.str} {wanted.shape}")
    prefix = 10 if header["v1"] else 12
    begins = prefix + int.from_bytes(body[8:prefix], "little")
    if begins < header.end() or len(body) < begins + wanted.bytes or goes_on:
        raise NpzError(f"is damaged (its {key} has not the length that its header says)")
    order = "F" if header["fortran"] == b"True" else "C"
    dtype = wanted.dtype.newbyteorder(">" if descr[0] == ">" else "<")
    return np.frombuffer(body, dtype, wanted.count, begins).reshape(shape, order=order)

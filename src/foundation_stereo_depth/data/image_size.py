"""How many pixels an image file says it holds, from its header alone: decoders believe it and take the memory.

A PNG of 3 MB can say 32000x32000. Every file is checked here before it is decoded; a kind of image whose header is not
understood here is not decoded at all.
"""

import math
import re
import struct
from collections.abc import Callable
from pathlib import Path

from foundation_stereo_depth.data.npz import NPY_HEADER
from foundation_stereo_depth.errors import DataError

LARGEST_VIEW_PIXELS = 25_000_000
"""Of a view or a disparity map: a camera of 6000x4000. To predict a pair of them takes 2 GB of memory."""
LARGEST_PIXELS = 2 * LARGEST_VIEW_PIXELS
"""Of all images in a file together: both views, side by side or one after the other."""
LARGEST_FILE_BYTES = 10**9
"""50 million pixels of 128 bits, uncompressed, and more."""

_PNG_CHUNK = struct.Struct(">I4s")
_PNG_END_BYTES = 4  # a checksum follows each chunk
_MOST_JPEG_SCANS = 200
"""A progressive JPEG has about ten; each one, however short, passes over all pixels."""
_JPEG_SIZES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
"""Markers of a frame header (ITU-T T.81, table B.1)."""
_JPEG_ALONE = {0x00, 0x01, *range(0xD0, 0xD9), 0xFF}
"""Markers, or filling bytes, that no length follows."""
_MOST_TIFF_PAGES = 1000
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_TILE_WIDTH, _TIFF_TILE_HEIGHT = 256, 257, 322, 323
_TIFF_NUMBERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}
_NETPBM_HEADER_BYTES = 2**16
_NETPBM_GAP = rb"(?:\s|#[^\n]*\n)*"
_NETPBM = re.compile(rb"P[1-6fF]" + _NETPBM_GAP + rb"(\d{1,9})(?:\s|#[^\n]*\n)" + _NETPBM_GAP + rb"(\d{1,9})\D")
_PAM_SIDE = rb"^%s[ \t]+(\d{1,9})[ \t\r]*$"
_HDR = re.compile(rb"[-+][XY]\s+(\d{1,9})\s+[-+][XY]\s+(\d{1,9})")


class _DamagedHeaderError(ValueError):
    """The beginning is that of an image, and the rest of its header is not."""


def check_pixels(path: Path, encoded: bytes, at_most: int = LARGEST_PIXELS) -> None:
    """Check that an image, a PFM or a NumPy file holds no more pixels than images do; other files are not judged.

    Args:
        path: of the file, for messages.
        encoded: its content.
        at_most: so many pixels.

    Raises:
        DataError: it holds more, or its header is damaged.
    """
    try:
        pixels = count_pixels(encoded)
    except (struct.error, IndexError, OverflowError) as error:  # the last of an offset beyond 64 bits
        raise DataError(f"{path}: its header is truncated") from error
    except _DamagedHeaderError as error:
        raise DataError(f"{path}: is damaged: {error}") from error
    if pixels is not None and pixels > at_most:
        raise DataError(
            f"{path}: its header gives {pixels:,} pixels, and at most {at_most:,} are read, since a pair of them takes "
            "2 GB of memory; shrink both views by the same factor, or is the file damaged?"
        )


def is_image(encoded: bytes) -> bool:
    """Return True for content that begins as an image does whose size `check_pixels` checks."""
    return _reader_of(encoded) not in (None, _npy_pixels)


def count_pixels(encoded: bytes) -> int | None:
    """Return how many pixels a file's header says that its images have together; None for other files."""
    reader = _reader_of(encoded)
    return None if reader is None else reader(encoded)


def _reader_of(encoded: bytes) -> Callable[[bytes], int] | None:
    if encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP":
        return _webp_pixels
    return next((reader for beginnings, reader in _READERS if encoded.startswith(beginnings)), None)


def _png_pixels(encoded: bytes) -> int:
    """Portable Network Graphics specification, third edition: 5.3 (chunks), 11.2.1 (IHDR), 11.3.6 (animation)."""
    width, height = struct.unpack_from(">II", encoded, 16)
    at, frames = 8, 0
    while at + _PNG_CHUNK.size <= len(encoded):
        length, kind = _PNG_CHUNK.unpack_from(encoded, at)
        at += _PNG_CHUNK.size + length + _PNG_END_BYTES
        if at > len(encoded):
            raise _DamagedHeaderError(f"a part of it ({kind!r}) is said to end behind the end of the file")
        frames += kind == b"fcTL"
        if kind == b"IEND":
            break
    return width * height * max(1, frames)


def _jpeg_pixels(encoded: bytes) -> int:
    """ITU-T T.81, annex B."""
    if encoded.count(b"\xff\xda") > _MOST_JPEG_SCANS:
        raise _DamagedHeaderError(f"it has more than {_MOST_JPEG_SCANS} scans")
    at = 2
    while (at := encoded.find(b"\xff", at)) >= 0 and at + 9 <= len(encoded):
        marker = encoded[at + 1]
        if marker in _JPEG_SIZES:
            height, width = struct.unpack_from(">HH", encoded, at + 5)
            return width * height
        if marker == 0xDA:
            break
        at += 1 if marker in _JPEG_ALONE else 2 + max(2, struct.unpack_from(">H", encoded, at + 2)[0])
    return 0  # the decoder says what is wrong


def _bmp_pixels(encoded: bytes) -> int:
    (header_bytes,) = struct.unpack_from("<I", encoded, 14)
    width, height = struct.unpack_from("<HH" if header_bytes == 12 else "<ii", encoded, 18)
    return abs(width * height)


def _webp_pixels(encoded: bytes) -> int:
    """WebP container specification; RFC 6386, 9.1 (VP8); WebP lossless bitstream, 3 (VP8L)."""
    canvas, largest, frames, at = 0, 0, 0, 12
    while at + 8 <= len(encoded):
        kind, (length,) = encoded[at : at + 4], struct.unpack_from("<I", encoded, at + 4)
        body = at + 8
        if kind == b"VP8X":
            canvas = _webp_side(encoded, body + 4) * _webp_side(encoded, body + 7)
        elif kind == b"VP8 ":
            width, height = struct.unpack_from("<HH", encoded, body + 6)
            largest = max(largest, (width & 0x3FFF) * (height & 0x3FFF))
        elif kind == b"VP8L":
            (bits,) = struct.unpack_from("<I", encoded, body + 1)
            largest = max(largest, ((bits & 0x3FFF) + 1) * ((bits >> 14 & 0x3FFF) + 1))
        elif kind == b"ANMF":
            frames += 1
        at = body + length + length % 2
        if body + length > len(encoded):
            raise _DamagedHeaderError(f"a part of it ({kind!r}) is said to end behind the end of the file")
    return max(canvas, largest) * max(1, frames)


def _webp_side(encoded: bytes, at: int) -> int:
    return int.from_bytes(encoded[at : at + 3], "little") + 1


def _tiff_pixels(encoded: bytes) -> int:
    """TIFF 6.0, section 2, and BigTIFF; the pixels of all pages, each at least as large as one of its tiles."""
    order = "<" if encoded[:1] == b"I" else ">"
    big = struct.unpack_from(order + "H", encoded, 2)[0] == 43
    pointer, count, entry_bytes, value_at = ("Q", "Q", 20, 12) if big else ("I", "H", 12, 8)
    (at,) = struct.unpack_from(order + pointer, encoded, 8 if big else 4)
    seen: set[int] = set()
    pixels = 0
    while at:
        if at in seen or len(seen) == _MOST_TIFF_PAGES:
            raise _DamagedHeaderError("its list of pages has no end")
        seen.add(at)
        (entries,) = struct.unpack_from(order + count, encoded, at)
        first = at + struct.calcsize(order + count)
        if first + entries * entry_bytes > len(encoded):
            raise _DamagedHeaderError("its list of tags is said to end behind the end of the file")
        sides: dict[int, int] = {}
        for entry in range(first, first + entries * entry_bytes, entry_bytes):
            tag, kind = struct.unpack_from(order + "HH", encoded, entry)
            if tag in (_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_TILE_WIDTH, _TIFF_TILE_HEIGHT):
                (value,) = struct.unpack_from(order + _TIFF_NUMBERS.get(kind, "I"), encoded, entry + value_at)
                sides[tag] = max(value, sides.get(tag, 0))
        page = sides.get(_TIFF_WIDTH, 0) * sides.get(_TIFF_HEIGHT, 0)
        pixels += max(page, sides.get(_TIFF_TILE_WIDTH, 0) * sides.get(_TIFF_TILE_HEIGHT, 0))
        (at,) = struct.unpack_from(order + pointer, encoded, first + entries * entry_bytes)
    return pixels


def _netpbm_pixels(encoded: bytes) -> int:
    """PBM, PGM, PPM and PFM: the letter P and another one, width, height; comments may stand between."""
    found = _NETPBM.match(encoded[:_NETPBM_HEADER_BYTES])
    if found is None:
        raise _DamagedHeaderError("width and height do not follow its first two letters")
    return int(found[1]) * int(found[2])


def _pam_pixels(encoded: bytes) -> int:
    header = encoded[:_NETPBM_HEADER_BYTES].partition(b"ENDHDR")[0]
    names = (b"WIDTH", b"HEIGHT", b"DEPTH")
    sides = [re.findall(_PAM_SIDE % name, header, re.MULTILINE) for name in names]
    if any(len(side) != 1 or header.count(name) != 1 for name, side in zip(names, sides, strict=True)):
        raise _DamagedHeaderError("its header does not give WIDTH, HEIGHT and DEPTH once each")
    width, height, channels = (int(side[0]) for side in sides)
    return width * height * max(1, channels // 4)


def _hdr_pixels(encoded: bytes) -> int:
    # A comment may look like the size: the largest counts.
    return max((int(a) * int(b) for a, b in _HDR.findall(encoded[:_NETPBM_HEADER_BYTES])), default=0)


def _npy_pixels(encoded: bytes) -> int:
    found = NPY_HEADER.match(encoded[:4096])
    if found is None:
        raise _DamagedHeaderError("it does not begin as a NumPy array of numbers does")
    count = math.prod(int(side) for side in found["shape"].replace(b",", b" ").split())
    if count * max(1, int(found["descr"][2:] or b"1")) > len(encoded):
        raise _DamagedHeaderError("its numbers are said to end behind the end of the file")
    return count


_READERS: tuple[tuple[tuple[bytes, ...], Callable[[bytes], int]], ...] = (
    ((b"\x89PNG\r\n\x1a\n",), _png_pixels),
    ((b"\xff\xd8\xff",), _jpeg_pixels),
    ((b"BM",), _bmp_pixels),
    ((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), _tiff_pixels),
    (tuple(b"P" + letter for letter in (b"1", b"2", b"3", b"4", b"5", b"6", b"f", b"F")), _netpbm_pixels),
    ((b"P7",), _pam_pixels),
    ((b"#?RGBE", b"#?RADIANCE"), _hdr_pixels),
    ((b"\x93NUMPY",), _npy_pixels),
)

"""Decode plain PNGs faster than OpenCV and PIL do, for filling a cache with a million of them.

Plain is what FoundationStereo's disparity maps are: 8-bit RGB, not interlaced, not transparent. Any other PNG, and
every damaged one, is left to OpenCV, which decodes or refuses it.

Measured against cv2.imdecode and PIL by `benchmarks/loader.py fill`.
"""

import struct
from collections.abc import Iterator

import cv2
import numpy as np
from jaxtyping import UInt8
from numpy.lib.stride_tricks import as_strided
from zlib_ng import zlib_ng

from foundation_stereo_depth.data.loops import Loops, compiled_loops

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Portable Network Graphics specification, third edition: 5.3 (chunks), 11.2.1 (IHDR).
_CHUNK = struct.Struct(">I4s")
_CHECKSUM = struct.Struct(">I")
_HEADER = struct.Struct(">2I5B")
_PLAIN = (8, 2, 0, 0, 0)
"""Bits, RGB, the only compression, the only set of filters, no interlacing."""
_BITS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
"""Of a sample, by type of colour (11.2.1)."""
_CHUNKS_OF_PIXELS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
_IGNORED = {b"tEXt", b"zTXt", b"iTXt", b"tIME", b"pHYs", b"gAMA", b"sRGB", b"cHRM", b"sBIT", b"eXIf"}
"""Chunks that do not change the pixels; a PNG with others (transparency, a palette) is left to OpenCV."""
_LARGEST_SIDE = 10**6
_LARGEST_PIXELS = 2**30
"""Both as many as OpenCV decodes."""
_LARGEST_WINDOW = 2**15
"""Bytes that compressed data may refer back to (RFC 1950, 2.2: CINFO)."""
_BAND_ROWS = 64
"""Rows whose filters are undone together: their diagonals stay in a processor's L1 and L2 caches."""


def decode_plain_png(encoded: bytes) -> UInt8[np.ndarray, "H W 3"] | None:
    """Return the image in RGB; None where the loops are not compiled, or the file is not a complete, plain PNG."""
    loops = compiled_loops()
    filtered = None if loops is None else _inflate_rows(encoded)
    return None if loops is None or filtered is None else _undo_filters(filtered, loops)


class DamagedPngError(ValueError):
    """A PNG is damaged; the message says where."""


def keep_pixels(encoded: bytes) -> bytes:
    """Return a PNG without anything that does not change its pixels; other files as they are.

    What is left out may unpack to gigabytes, and OpenCV's library for PNGs prints a line on each oddity of it.

    Raises:
        DamagedPngError: a part is cut, has another checksum or is missing, or the header makes no sense.
    """
    if not encoded.startswith(_SIGNATURE):
        return encoded
    chunks = list(_read_chunks(encoded))
    kinds = [kind for kind, _ in chunks]
    if b"IEND" not in kinds:
        raise DamagedPngError("a part of it is cut, or has another checksum")
    if kinds[0] != b"IHDR" or len(chunks[0][1]) != _HEADER.size or b"IDAT" not in kinds:
        raise DamagedPngError("it has no header, or no pixels")
    width, height, bits, colours, *methods = _HEADER.unpack(chunks[0][1])
    if bits not in _BITS.get(colours, ()) or 0 in (width, height) or methods[:2] != [0, 0] or methods[2] > 1:
        raise DamagedPngError("its header makes no sense")
    kept = [_write_chunk(kind, body) for kind, body in chunks if kind in _CHUNKS_OF_PIXELS]
    return b"".join((_SIGNATURE, *kept))


def _write_chunk(kind: bytes, body: memoryview) -> bytes:
    return b"".join((_CHUNK.pack(len(body), kind), body, _CHECKSUM.pack(zlib_ng.crc32(body, zlib_ng.crc32(kind)))))


def _inflate_rows(encoded: bytes) -> UInt8[np.ndarray, "H row"] | None:
    """Return the rows as they were compressed: the number of a filter, then the filtered bytes."""
    chunks = list(_read_chunks(encoded))
    kinds = [kind for kind, _ in chunks]
    data = [i for i, kind in enumerate(kinds) if kind == b"IDAT"]
    if not data or data[-1] - data[0] >= len(data):  # none, or with something between them
        return None
    if kinds[0] != b"IHDR" or kinds[-1] != b"IEND" or set(kinds[1:-1]) - {b"IDAT"} - _IGNORED:
        return None
    if len(chunks[0][1]) != _HEADER.size:
        return None
    width, height, *encoding = _HEADER.unpack(chunks[0][1])
    if tuple(encoding) != _PLAIN or max(width, height) > _LARGEST_SIDE or not 0 < width * height <= _LARGEST_PIXELS:
        return None
    compressed = b"".join(chunks[i][1] for i in data)
    expected = height * (1 + 3 * width)
    if not compressed or 1 << (compressed[0] >> 4) + 8 < min(expected, _LARGEST_WINDOW):
        return None  # zlib accepts a window that is too small; OpenCV does not
    inflation = zlib_ng.decompressobj()
    try:
        # As many bytes as the header says, then one more to see that the stream ends: that verifies its checksum.
        rows = inflation.decompress(compressed, expected)
        rest = inflation.decompress(inflation.unconsumed_tail, 1)
    except zlib_ng.error:  # pyright: ignore[reportGeneralTypeIssues]
        return None
    if len(rows) != expected or rest or not inflation.eof:
        return None
    filtered = np.frombuffer(rows, np.uint8).reshape(height, 1 + 3 * width)
    return filtered if filtered[:, 0].max() <= 4 else None


def _read_chunks(encoded: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Yield kind and body of each chunk, up to the last, or to the first one that is truncated or damaged."""
    view = memoryview(encoded)
    at = len(_SIGNATURE)
    if encoded[:at] != _SIGNATURE:
        return
    while at + _CHUNK.size + _CHECKSUM.size <= len(encoded):
        length, kind = _CHUNK.unpack_from(encoded, at)
        end = at + _CHUNK.size + length
        if end + _CHECKSUM.size > len(encoded):
            return
        if zlib_ng.crc32(view[at + 4 : end]) != _CHECKSUM.unpack_from(encoded, end)[0]:
            return
        yield kind, view[at + _CHUNK.size : end]
        if kind == b"IEND":
            return
        at = end + _CHECKSUM.size


def _undo_filters(filtered: UInt8[np.ndarray, "H row"], loops: Loops) -> UInt8[np.ndarray, "H W 3"]:
    """Return the pixels of filtered rows."""
    height, width = len(filtered), filtered.shape[1] // 3
    image = np.empty((height, width, 3), np.uint8)
    # Four bytes to a pixel can be moved as one number; each row has space for the diagonals to begin and end.
    padded = np.empty((min(_BAND_ROWS, height), width + _BAND_ROWS, 4), np.uint8)
    above = np.zeros((width, 4), np.uint8)
    for y in range(0, height, _BAND_ROWS):
        lines = filtered[y : y + _BAND_ROWS]
        rows = len(lines)
        band = padded[:rows, :width]
        cv2.cvtColor(as_strided(lines[:, 1:], (rows, width, 3), (*lines.strides[:1], 3, 1)), cv2.COLOR_RGB2RGBA, band)
        # Rows whose strides are a pixel shorter: column t of row r is column t - r of the image.
        diagonals = as_strided(padded.view(np.int32)[..., 0], (rows, width + rows - 1), (padded.strides[0] - 4, 4))
        steps = cv2.transpose(diagonals)
        loops.undo_filters(steps.view(np.uint8), lines[:, 0], above)
        cv2.transpose(steps, diagonals)
        cv2.cvtColor(band, cv2.COLOR_RGBA2RGB, image[y : y + rows])
        above = band[-1].copy()
    return image

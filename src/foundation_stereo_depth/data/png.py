"""Decoding plain PNGs faster than the libraries do, for filling a cache with a million of them.

Plain is what FoundationStereo's disparity maps are: 8-bit RGB, not interlaced, nothing transparent. Whatever is not
plain, or not whole, is left to OpenCV, which decodes or refuses it.
"""

import struct
from collections.abc import Iterator

import cv2
import numpy as np
from jaxtyping import UInt8
from numpy.lib.stride_tricks import as_strided
from zlib_ng import zlib_ng

from foundation_stereo_depth.data.loops import Loops

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Portable Network Graphics specification, third edition: 5.3 (chunks), 11.2.1 (IHDR).
_CHUNK = struct.Struct(">I4s")
_CHECKSUM = struct.Struct(">I")
_HEADER = struct.Struct(">2I5B")
_PLAIN = (8, 2, 0, 0, 0)
"""Bits, RGB, the only compression, the only set of filters, no interlacing."""
_CHANGE_NOTHING = {b"tEXt", b"zTXt", b"iTXt", b"tIME", b"pHYs", b"gAMA", b"sRGB", b"cHRM", b"sBIT", b"eXIf"}
"""Chunks that a plain PNG may have besides; others, which might make pixels transparent or refused, are OpenCV's."""
_LARGEST_SIDE = 10**6
_LARGEST_PIXELS = 2**30
"""Both as many as OpenCV decodes."""
_LARGEST_WINDOW = 2**15
"""Bytes that compressed data may refer back to (RFC 1950, 2.2: CINFO)."""
_ROWS = 64
"""Of a band whose filters are undone together: its diagonals stay in a processor's nearest caches."""


def decode_plain_png(encoded: bytes, loops: Loops) -> UInt8[np.ndarray, "H W 3"] | None:
    """The picture in RGB; None where the file is anything but a whole, plain PNG."""
    filtered = _filtered_rows(encoded)
    return None if filtered is None else _undo_filters(filtered, loops)


def _filtered_rows(encoded: bytes) -> UInt8[np.ndarray, "H row"] | None:
    """Its rows as they are compressed: the number of a filter, then the filtered bytes."""
    chunks = list(_chunks(encoded))
    kinds = [kind for kind, _ in chunks]
    pictures = [i for i, kind in enumerate(kinds) if kind == b"IDAT"]
    if not pictures or pictures[-1] - pictures[0] >= len(pictures):  # none, or with something between them
        return None
    if kinds[0] != b"IHDR" or kinds[-1] != b"IEND" or set(kinds[1:-1]) - {b"IDAT"} - _CHANGE_NOTHING:
        return None
    if len(chunks[0][1]) != _HEADER.size:
        return None
    width, height, *encoding = _HEADER.unpack(chunks[0][1])
    if tuple(encoding) != _PLAIN or max(width, height) > _LARGEST_SIDE or not 0 < width * height <= _LARGEST_PIXELS:
        return None
    compressed = b"".join(chunks[i][1] for i in pictures)
    promised = height * (1 + 3 * width)
    if not compressed or 1 << (compressed[0] >> 4) + 8 < min(promised, _LARGEST_WINDOW):
        return None  # zlib would not mind a window that is too small; OpenCV does
    inflation = zlib_ng.decompressobj()
    try:
        # No more than the header promises, and one byte to see that there is no more; then the checksum has been read.
        rows = inflation.decompress(compressed, promised)
        rest = inflation.decompress(inflation.unconsumed_tail, 1)
    except zlib_ng.error:  # pyright: ignore[reportGeneralTypeIssues]
        return None
    if len(rows) != promised or rest or not inflation.eof:
        return None
    filtered = np.frombuffer(rows, np.uint8).reshape(height, 1 + 3 * width)
    return filtered if filtered[:, 0].max() <= 4 else None


def _chunks(encoded: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Kind and body of each chunk whose checksum is right, up to the last, or to the first that is not whole."""
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
    """The pixels of filtered rows."""
    height, width = len(filtered), filtered.shape[1] // 3
    picture = np.empty((height, width, 3), np.uint8)
    # Four bytes to a pixel can be moved as one number; and each row has room for the diagonals to begin and end.
    room = np.empty((min(_ROWS, height), width + _ROWS, 4), np.uint8)
    above = np.zeros((width, 4), np.uint8)
    for y in range(0, height, _ROWS):
        lines = filtered[y : y + _ROWS]
        rows = len(lines)
        band = room[:rows, :width]
        cv2.cvtColor(as_strided(lines[:, 1:], (rows, width, 3), (*lines.strides[:1], 3, 1)), cv2.COLOR_RGB2RGBA, band)
        # Rows that are a pixel closer to one another in memory: column t of row r is column t - r of the picture.
        diagonals = as_strided(room.view(np.int32)[..., 0], (rows, width + rows - 1), (room.strides[0] - 4, 4))
        steps = cv2.transpose(diagonals)
        loops.undo_filters(steps.view(np.uint8), lines[:, 0], above)
        cv2.transpose(steps, diagonals)
        cv2.cvtColor(band, cv2.COLOR_RGBA2RGB, picture[y : y + rows])
        above = band[-1].copy()
    return picture

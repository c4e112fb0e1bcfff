"""Faults of JPEG files that leave every pixel right. They are corrected in the bytes, which are then decoded strictly.

libjpeg reports only its first warning, so a file whose first warning is harmless may be damaged further on. With the
harmless fault corrected, a strict decoder finds what else there is. libjpeg ignores these faults in the same way, so
the pixels are those of OpenCV, which decodes such files without a warning of its own.

Format: ITU-T T.81, annex B (markers); T.871 (JFIF).
"""

import re
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8

from foundation_stereo_depth.data.image_size import count_pixels

Image = UInt8[np.ndarray, "H W 3"]
Decode = Callable[[bytes], Image]
"""A strict decoder: raises a ValueError with libjpeg's message for any warning."""

_MOST_STRAY_BYTES = 32
"""Before one marker. Damage usually leaves hundreds: of 1500 files with holes of zeros or of foreign data, 3 % left the
decoder with so few bytes, where 13 % gave no warning at all (measured)."""
_ZERO_RUN = bytes(32)
"""Zeros in the entropy-coded data of a file that has stray bytes as well: rather a hole than an image of one colour."""
_MOST_ATTEMPTS = 256
"""Each decodes the whole file."""
_MOST_DECODED_PIXELS = 5 * 10**8
"""In all attempts together: some seconds."""

_RESTARTS = range(0xD0, 0xD8)
_ALONE = {*_RESTARTS, 0xD8, 0x01}
"""Markers without a length, beside the end of the image."""
_END, _APP0, _APP14, _SCAN = 0xD9, 0xE0, 0xEE, 0xDA
_SEQUENTIAL_FRAMES = (0xC0, 0xC1)
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_WHOLE_SPECTRUM = bytes([0, 63, 0])
"""First and last coefficient and bit positions of a sequential scan: the only ones that T.81 allows (table B.3)."""
_NEXT_MARKER = re.compile(rb"\xff+[^\x00\xff]")
_END_OF_SCAN = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")
_STRAY_WARNING = re.compile(r"(\d+) extraneous bytes before marker 0x([0-9a-f]{2})")


def decode_despite_harmless_faults(encoded: bytes, decode: Decode) -> tuple[Image, list[str]]:
    """Return the image, and the faults that were corrected, in words.

    Args:
        encoded: a file that `decode` refuses.
        decode: a strict decoder.

    Raises:
        ValueError: the file has other faults too; the message is the decoder's.
    """
    current, faults = _correct_headers(encoded)
    result, position, attempts = _attempt(current, decode), 0, 0
    most_attempts = min(_MOST_ATTEMPTS, _MOST_DECODED_PIXELS // max(1, count_pixels(encoded) or 0))
    while isinstance(result, ValueError):
        stray = _STRAY_WARNING.search(str(result))
        if stray is None or int(stray[1]) > _MOST_STRAY_BYTES:
            raise result
        # The message names the marker's kind, not its place. Bytes that are cut off before an earlier marker of that
        # kind were needed there, and are missed; so the first place at which none is missed is the right one.
        count, failure = int(stray[1]), result
        for marker in re.finditer(rb"\xff+" + re.escape(bytes([int(stray[2], 16)])), current[position:]):
            place = position + marker.start()
            shorter = current[: place - count] + current[place:]
            result, attempts = _attempt(shorter, decode), attempts + 1
            if not isinstance(result, ValueError) or _STRAY_WARNING.search(str(result)):
                current, position = shorter, place
                faults.append(f"{count} stray bytes before a marker")
                break
            if attempts >= most_attempts:
                raise failure
        else:
            raise failure
    if position and _ZERO_RUN in current[current.index(b"\xff" + bytes([_SCAN])) :]:
        raise ValueError("Corrupt JPEG data: a part of it is zeros")
    return result, faults


def _attempt(encoded: bytes, decode: Decode) -> Image | ValueError:
    try:
        return decode(encoded)
    except ValueError as error:
        return error


def _correct_headers(encoded: bytes) -> tuple[bytes, list[str]]:
    """Return the file with the headers that libjpeg reads it by, and what was corrected; the rest is left as it is."""
    out, faults = bytearray(), list[str]()
    position, frame, components, adobe = 0, 0, 0, None
    while (marker := _NEXT_MARKER.search(encoded, position)) is not None:
        stray = marker.start() - position
        if 0 < stray <= _MOST_STRAY_BYTES:
            faults.append(f"{stray} stray bytes before a marker")
        elif stray:
            break
        code, position = encoded[marker.end() - 1], marker.end()
        out += bytes([0xFF, code])
        if code == _END:
            break
        if code in _ALONE:
            continue
        segment = bytearray(encoded[position : position + int.from_bytes(encoded[position : position + 2])])
        position += len(segment)
        if code in _FRAMES and len(segment) > 7:
            frame, components = code, segment[7]
        elif code == _APP0 and segment.startswith(b"JFIF\0", 2) and len(segment) > 8 and segment[7] != 1:
            faults.append(f"JFIF revision {segment[7]}.{segment[8]:02d}")
            segment[7] = 1
        elif code == _APP14 and segment.startswith(b"Adobe", 2) and len(segment) > 13:
            adobe = len(out) + 13
        out += segment
        if code == _SCAN and len(segment) >= 6:
            if frame in _SEQUENTIAL_FRAMES and bytes(segment[-3:]) != _WHOLE_SPECTRUM:
                out[-3:] = _WHOLE_SPECTRUM
                faults.append("scan parameters of another kind of JPEG")
            end = _END_OF_SCAN.search(encoded, position)
            until = len(encoded) if end is None else end.start()
            out += encoded[position:until]
            position = until
    if adobe is not None and (meant := {3: (0, 1), 4: (0, 2)}.get(components)) and out[adobe] not in meant:
        faults.append(f"Adobe's colour transform {out[adobe]}")
        out[adobe] = meant[-1]
    return bytes(out) + encoded[position:], faults

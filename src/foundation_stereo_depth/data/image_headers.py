"""What an image file states beside its pixels: its largest value, how the camera was turned, further images in it."""

import io
import math
import re
from typing import Any

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_HEADERS_END = 2**17
"""Bytes in which the headers of a JPEG are searched: an APP segment has at most 2^16, and Exif is among the first."""

_ORIENTATION, _MAX_SAMPLE_VALUE = 0x0112, 0x0119
"""TIFF tags; Exif is a TIFF without pixels."""
_MP_ENTRIES = 0xB002
"""The table of the images of a file in MPF, the format of several images in a JPEG (CIPA DC-007)."""
_MOST_IMAGES = 16
_QUARTER_TURNS = (5, 6, 7, 8)

# Netpbm's formats: white space and comments stand between the numbers.
_BETWEEN = rb"(?:\s|#[^\n]*\n)+"
_NETPBM = re.compile(rb"P[2356]" + _BETWEEN + rb"\d+" + _BETWEEN + rb"\d+" + _BETWEEN + rb"(\d{1,5})\s")
_PAM = re.compile(rb"^MAXVAL\s+(\d{1,5})\s", re.MULTILINE)
_PAM_HEADER_END = 4096


def largest_value(encoded: bytes) -> int | None:
    """Return which value is white, where the file states it; None where white is the largest that its type holds.

    PGM, PPM and PAM state it in their header (maxval). PNG states how many bits are significant (sBIT), and TIFF the
    largest value (MaxSampleValue), which some programs set to the largest that occurs: it is rounded up to whole bits.
    """
    if encoded[:1] == b"P" and encoded[1:2].isdigit():
        found = _PAM.search(encoded[:_PAM_HEADER_END]) if encoded.startswith(b"P7") else _NETPBM.match(encoded)
        return int(found[1]) if found is not None else None
    if encoded.startswith(_PNG):
        bits = _significant_bits(encoded)
        return None if bits is None else 2**bits - 1
    if encoded.startswith(_TIFF):
        value = _tiff_tags(encoded).get(_MAX_SAMPLE_VALUE)
        value = max(value) if isinstance(value, tuple) else value
        return 2 ** math.ceil(math.log2(value + 1)) - 1 if isinstance(value, int) and value > 0 else None
    return None


def was_turned(encoded: bytes) -> bool:
    """Return True where Exif says that the camera stood on its side: orientations 5 to 8, a quarter turn."""
    if encoded.startswith(_JPEG):
        if b"Exif\0\0" not in encoded[:_HEADERS_END]:
            return False
    elif encoded.startswith(_PNG):
        if b"eXIf" not in encoded:
            return False
    elif encoded.startswith(_TIFF):
        return _tiff_tags(encoded).get(_ORIENTATION) in _QUARTER_TURNS
    elif encoded[8:16] != b"WEBPVP8X":
        return False
    image = _open(encoded)
    return image is not None and _exif(image).get(_ORIENTATION) in _QUARTER_TURNS


def find_jpegs(encoded: bytes) -> list[bytes]:
    """Return the images of a JPEG file, each as a file: one, or those that its index in MPF lists (.mpo).

    The first is the left view where a camera with two lenses wrote them (CIPA DC-007, 5.2.3.3).
    """
    if b"MPF\0" not in encoded[:_HEADERS_END]:
        return [encoded]
    image = _open(encoded)
    entries = getattr(image, "mpinfo", {}).get(_MP_ENTRIES, ())
    base = encoded.index(b"MPF\0") + 4  # offsets count from the header of the index
    parts: list[bytes] = []
    for number, entry in enumerate(entries[:_MOST_IMAGES]):  # each one is copied
        first = base + entry["DataOffset"] if number else 0
        parts.append(encoded[first : first + entry["Size"]] if number else encoded)
    return [part for part in parts if part.startswith(_JPEG) and not _is_gain_map(part)] or [encoded]


def _is_gain_map(jpeg: bytes) -> bool:
    """Return True for what telephones keep beside a photograph for bright screens (ISO 21496-1, and Apple's own)."""
    return any(name in jpeg[:_HEADERS_END] for name in (b"hdrgm:", b"urn:iso:std:iso:ts:21496", b"hdrgainmap"))


def is_tiff(encoded: bytes) -> bool:
    """Return True for a TIFF, and for the formats that are TIFFs with another suffix."""
    return encoded.startswith(_TIFF)


def may_hold_several(encoded: bytes) -> bool:
    """Return True for a file, not a JPEG, that may hold several images: TIFF, animated PNG or WebP, GIF."""
    return (
        encoded.startswith((*_TIFF, b"GIF8"))
        or (encoded.startswith(_PNG) and b"acTL" in encoded[:_PAM_HEADER_END])
        or (encoded[8:16] == b"WEBPVP8X" and b"ANIM" in encoded[:_PAM_HEADER_END])
    )


def _significant_bits(png: bytes) -> int | None:
    """Return the bits that a 16-bit PNG calls significant, for the channel that has most; None where it does not."""
    place = png.find(b"sBIT", 0, _PAM_HEADER_END)
    if place < 4 or png[24:25] != b"\x10":
        return None
    bits = png[place + 4 : place + 4 + int.from_bytes(png[place - 4 : place])]
    return max(bits[:3]) if 0 < len(bits) <= 4 and 0 < max(bits[:3]) < 16 else None


def _tiff_tags(encoded: bytes) -> dict[int, Any]:
    image = _open(encoded)
    return {} if image is None else dict(getattr(image, "tag_v2", {}))


def _exif(image: Any) -> dict[int, Any]:
    try:
        return dict(image.getexif())
    except Exception:  # damaged Exif: Pillow raises anything, and the pixels are none the worse for it
        return {}


def _open(encoded: bytes) -> Any:
    """Return the image opened by Pillow, not decoded; None where it cannot read the headers: OpenCV decides on it."""
    from PIL import Image  # noqa: PLC0415 (only few files need it)

    try:
        return Image.open(io.BytesIO(encoded))
    except Exception:
        return None

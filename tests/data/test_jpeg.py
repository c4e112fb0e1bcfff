import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from foundation_stereo_depth import log
from foundation_stereo_depth.data.codecs import read_rgb
from foundation_stereo_depth.errors import DataError

IMAGE = cv2.resize(np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8), (128, 96))


def encode(**flags: int) -> bytes:
    named = {"restart": cv2.IMWRITE_JPEG_RST_INTERVAL, "progressive": cv2.IMWRITE_JPEG_PROGRESSIVE}
    return cv2.imencode(".jpg", IMAGE, [number for name, value in flags.items() for number in (named[name], value)])[
        1
    ].tobytes()


def scan_at(encoded: bytes) -> int:
    """Return the position of the last byte of the scan header."""
    start = encoded.index(b"\xff\xda")
    return start + 1 + int.from_bytes(encoded[start + 2 : start + 4])


def changed(encoded: bytes, position: int, value: int) -> bytes:
    return encoded[:position] + bytes([value]) + encoded[position + 1 :]


def insert_before(encoded: bytes, marker: bytes, stray: bytes, *, every: bool = False) -> bytes:
    first = encoded.index(b"\xff\xda") if marker[1] >= 0xD0 and marker != b"\xff\xda" else 0
    places = [found.start() for found in re.finditer(re.escape(marker), encoded) if found.start() >= first]
    for place in reversed(places if every else places[:1]):
        encoded = encoded[:place] + stray + encoded[place:]
    return encoded


def with_odd_scan(encoded: bytes) -> bytes:
    return changed(encoded, scan_at(encoded) - 1, 0)


def with_odd_revision(encoded: bytes) -> bytes:
    return changed(encoded, encoded.index(b"JFIF\0") + 5, 2)


def with_adobe(encoded: bytes) -> bytes:
    """Replace the JFIF segment by Adobe's, with a colour transform that no one defined."""
    end = 4 + int.from_bytes(encoded[4:6])
    return encoded[:2] + b"\xff\xee\x00\x0eAdobe\0\x64\0\0\0\0\x07" + encoded[end:]


HARMLESS: dict[str, Callable[[], bytes]] = {
    "scan header": lambda: with_odd_scan(encode()),
    "JFIF revision": lambda: with_odd_revision(encode()),
    "both": lambda: with_odd_revision(with_odd_scan(encode())),
    "Adobe transform": lambda: with_adobe(encode()),
    "before DHT": lambda: insert_before(encode(), b"\xff\xc4", b"\0\0\0"),
    "before SOS": lambda: insert_before(encode(), b"\xff\xda", b"\x01\x02"),
    "before EOI": lambda: encode()[:-2] + b"\x5a" * 14 + b"\xff\xd9",
    "before one RST": lambda: insert_before(encode(restart=5), b"\xff\xd3", b"\x11\x22\x33"),
    "before each RST2": lambda: insert_before(encode(restart=3), b"\xff\xd2", b"\x11" * 4, every=True),
    "before RST, and the scan header": lambda: with_odd_scan(
        insert_before(encode(restart=5), b"\xff\xd1", b"\x42" * 5)
    ),
    "progressive, between scans": lambda: insert_before(encode(progressive=1), b"\xff\xd9", b"\x42" * 15),
}


@pytest.mark.parametrize("fault", HARMLESS)
def test_jpeg_with_a_harmless_fault_has_the_pixels_of_a_plain_one(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoded = HARMLESS[fault]()
    plain = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)  # as OpenCV reads it
    assert np.array_equal(plain, cv2.imdecode(np.frombuffer(with_same_scans(fault), np.uint8), cv2.IMREAD_COLOR_RGB))
    log.configure()
    for name in ("one.jpg", "two.jpg"):
        (tmp_path / name).write_bytes(encoded)
        np.testing.assert_array_equal(read_rgb(tmp_path / name), plain)
    error = capsys.readouterr().err
    assert error.count("warning:") == 1
    assert re.search(r"one\.jpg: .*; every pixel is there, so it is read", error)


def with_same_scans(fault: str) -> bytes:
    """Return the plain file, encoded as the one with the fault was."""
    restart = 3 if "each" in fault else 5 if "RST" in fault else None
    return encode(progressive=1) if "progressive" in fault else encode() if restart is None else encode(restart=restart)


def zeroed(encoded: bytes, first: float, last: float) -> bytes:
    a, b = (int(len(encoded) * share) for share in (first, last))
    return encoded[:a] + bytes(b - a) + encoded[b:]


DAMAGED: dict[str, Callable[[], bytes]] = {
    "cut": lambda: with_odd_scan(encode())[:-900],
    "cut at its end": lambda: with_odd_revision(encode())[:-2],
    "zeros at its end": lambda: zeroed(with_odd_scan(encode()), 0.7, 1.0),
    "zeros within": lambda: zeroed(with_odd_revision(encode()), 0.5, 0.7),
    "foreign data": lambda: with_odd_scan(encode())[:1500] + encode(progressive=1)[900:2400] + encode()[3000:],
    "stray bytes, and cut": lambda: insert_before(encode(restart=5), b"\xff\xd3", b"\x11\x22")[:-900],
    "stray bytes, then zeros": lambda: zeroed(insert_before(encode(restart=5), b"\xff\xd0", b"\x11\x22"), 0.6, 0.9),
    "hundreds of stray bytes": lambda: encode()[:-2] + b"\x5a" * 300 + b"\xff\xd9",
    "a restart lost": lambda: encode(restart=5).replace(b"\xff\xd3", b"", 1),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_jpeg_is_refused_whatever_harmless_fault_it_has_too(damage: str, tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(DAMAGED[damage]())
    with pytest.raises(DataError, match=r"x\.jpg: is damaged"):
        read_rgb(tmp_path / "x.jpg")


def test_jpeg_of_12_bits_is_not_called_damaged(tmp_path: Path) -> None:
    encoded = encode()
    (tmp_path / "x.jpg").write_bytes(changed(encoded, encoded.index(b"\xff\xc0") + 4, 12))
    with pytest.raises(DataError, match=r"x\.jpg: Unsupported JPEG data precision 12; save it as a usual JPEG"):
        read_rgb(tmp_path / "x.jpg")

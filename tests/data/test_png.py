"""The PNG reader for many files: OpenCV's pixels from any plain PNG, and nothing from any other."""

import functools
import struct
import tracemalloc
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import write_fsd_sample
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from foundation_stereo_depth.data import loops, png, sample
from foundation_stereo_depth.data.codecs import read_fsd_code, read_rgb
from foundation_stereo_depth.data.fsd import open_fsd
from foundation_stereo_depth.data.loader import open_files
from foundation_stereo_depth.data.loops import Loops, average_boxes, compile_loops, undo_filters
from foundation_stereo_depth.data.png import decode_plain_png
from foundation_stereo_depth.data.sample import resize_image
from foundation_stereo_depth.errors import DataError
from foundation_stereo_depth.options.training import DataOptions

PLAIN_LOOPS = Loops(undo_filters, average_boxes)
"""The same functions, not compiled."""


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    compile_loops()


def use(loops: Loops | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (png, sample):
        monkeypatch.setattr(module, "compiled_loops", lambda: loops)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_of(filtered: bytes, height: int, width: int, encoding: bytes = b"\x08\x02\0\0\0", extra: bytes = b"") -> bytes:
    header = struct.pack(">2I", width, height) + encoding
    packed = zlib.compress(filtered)
    data = b"".join(chunk(b"IDAT", packed[i : i + 999]) for i in range(0, len(packed), 999))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + data + chunk(b"IEND", b"")


def join(*chunks: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND", b"")


def filtered_noise(height: int, width: int, seed: int, kinds: tuple[int, ...] = (0, 1, 2, 3, 4)) -> bytes:
    """Rows that any decoder has to add up; every difference of every size occurs."""
    random = np.random.default_rng(seed)
    rows = random.integers(0, 256, (height, 1 + 3 * width), dtype=np.uint8)
    rows[:, 0] = random.choice(kinds, height)
    return rows.tobytes()


def by_opencv(encoded: bytes) -> np.ndarray | None:
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
    return None if image is None else image[..., ::-1]


@pytest.mark.parametrize("kind", range(5))
def test_each_filter_is_undone(kind: int) -> None:
    encoded = png_of(filtered_noise(70, 90, kind, (kind,)), 70, 90)
    np.testing.assert_array_equal(decode_plain_png(encoded), by_opencv(encoded))


@settings(max_examples=60, derandomize=True, deadline=None)
@given(height=st.integers(1, 140), width=st.integers(1, 150), seed=st.integers(0, 999))
def test_any_filters_at_any_size_give_the_pixels_of_opencv(height: int, width: int, seed: int) -> None:
    encoded = png_of(filtered_noise(height, width, seed), height, width)
    np.testing.assert_array_equal(decode_plain_png(encoded), by_opencv(encoded))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (9, 1), (64, 3), (65, 3), (12, 17)])
def test_loops_give_the_same_bytes_compiled_and_interpreted(
    height: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = png_of(filtered_noise(height, width, 1), height, width)
    image = np.random.default_rng(0).integers(0, 256, (3 * height, 2 * width, 3), dtype=np.uint8)
    compiled = decode_plain_png(encoded), resize_image(image, height, width)
    use(PLAIN_LOOPS, monkeypatch)
    for expected, found in zip(compiled, (decode_plain_png(encoded), resize_image(image, height, width)), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_png_of_other_writers_is_decoded(tmp_path: Path) -> None:
    rows, columns = np.mgrid[:143, :217]
    code = np.stack([rows // 100, rows, (rows * 3 + columns * 7) % 255], axis=-1).astype(np.uint8)
    Image.fromarray(code).save(tmp_path / "pil.png")
    Image.fromarray(code).save(tmp_path / "best.png", optimize=True, compress_level=9)
    for level in (0, 9):
        cv2.imwrite(str(tmp_path / f"opencv{level}.png"), code[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, level])
    for path in tmp_path.iterdir():
        np.testing.assert_array_equal(decode_plain_png(path.read_bytes()), code)


def test_png_that_is_not_plain_is_left_to_opencv(tmp_path: Path) -> None:
    plain = filtered_noise(4, 5, 0)
    header, packed = chunk(b"IHDR", struct.pack(">2I", 5, 4) + b"\x08\x02\0\0\0"), zlib.compress(plain)
    # CINFO 0 promises that nothing refers back by more than 256 bytes; the check bits make the two bytes divide by 31.
    small_window = b"\x08\x1d" + zlib.compress(filtered_noise(40, 100, 0))[2:]
    others = {
        "transparent colour": png_of(plain, 4, 5, extra=chunk(b"tRNS", bytes(6))),
        "interlaced": png_of(plain, 4, 5, b"\x08\x02\0\0\x01"),
        "16 bits": png_of(plain, 4, 5, b"\x10\x02\0\0\0"),
        "two headers": png_of(plain, 4, 5, extra=chunk(b"IHDR", struct.pack(">2I", 5, 4) + b"\x08\x02\0\0\0")),
        "a filter that there is none of": png_of(bytes([5]) + plain[1:], 4, 5),
        "a row too few": png_of(plain[:-16], 4, 5),
        "a byte too many": png_of(plain + b"\0", 4, 5),
        "no size": png_of(b"", 0, 5),
        "a side that OpenCV refuses": png_of(bytes(4 * (10**6 + 1)), 10**6 + 1, 1),
        "a part in between": join(
            header, chunk(b"IDAT", packed[:9]), chunk(b"tEXt", b"a\0b"), chunk(b"IDAT", packed[9:])
        ),
        "a part before the header": join(chunk(b"tEXt", b"a\0b"), header, chunk(b"IDAT", packed)),
        "a part that must be understood": join(header, chunk(b"ABCD", b""), chunk(b"IDAT", packed)),
        "a background of no colour": join(header, chunk(b"bKGD", b""), chunk(b"IDAT", packed)),
        "no data": join(header),
        "empty data": join(header, chunk(b"IDAT", b"")),
        "a window smaller than what is referred to": join(
            chunk(b"IHDR", struct.pack(">2I", 100, 40) + b"\x08\x02\0\0\0"), chunk(b"IDAT", small_window)
        ),
        "nothing": b"",
        "JPEG": cv2.imencode(".jpg", np.zeros((4, 5, 3), np.uint8))[1].tobytes(),
    }
    for mode in ("L", "P", "RGBA", "LA"):
        Image.new(mode, (5, 4)).save(tmp_path / f"{mode}.png")
        others[mode] = (tmp_path / f"{mode}.png").read_bytes()
    assert [name for name, encoded in others.items() if decode_plain_png(encoded) is not None] == []
    with pytest.raises(DataError, match=r"L\.png: a FoundationStereo disparity map is an 8-bit RGB PNG"):
        read_fsd_code(tmp_path / "L.png")


def test_damaged_png_is_not_decoded() -> None:
    encoded = png_of(filtered_noise(9, 31, 3), 9, 31, extra=chunk(b"tEXt", b"Comment\0ignored"))
    whole = by_opencv(encoded)
    random = np.random.default_rng(0)
    survivors = list[int]()
    for _ in range(1000):
        damaged = bytearray(encoded)
        at = int(random.integers(len(damaged)))
        damaged[at] ^= 1 << int(random.integers(8))
        image = decode_plain_png(bytes(damaged))
        assert image is None or np.array_equal(image, whole)
        if image is not None:
            survivors.append(at)
    assert survivors == []
    assert all(decode_plain_png(encoded[:length]) is None for length in range(len(encoded)))
    assert np.array_equal(decode_plain_png(encoded + b"more"), whole)


def test_header_of_a_huge_image_takes_no_memory() -> None:
    encoded = png_of(filtered_noise(4, 5, 0), 2**15, 2**15)
    tracemalloc.start()
    assert decode_plain_png(encoded) is None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


@pytest.mark.parametrize("boxes", [(3, 4), (1, 2), (2, 1), (2, 2), (4, 4), (5, 3), (1, 16), (16, 1), (16, 16), (17, 2)])
def test_boxes_are_averaged_as_opencv_averages_them(boxes: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise about every level of grey, so that every sum and every tie occurs."""
    random = np.random.default_rng(0)
    level = np.repeat(np.repeat(random.integers(0, 256, (60, 80, 3)), boxes[0], axis=0), boxes[1], axis=1)
    image = (level + random.integers(-3, 4, level.shape)).clip(0, 255).astype(np.uint8)
    averaged = resize_image(image, 60, 80)
    use(None, monkeypatch)
    np.testing.assert_array_equal(averaged, resize_image(image, 60, 80))


def test_sample_is_the_same_before_and_after_compiling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_fsd_sample(tmp_path, "s", "0", 72, 96, seed=0)
    dataset = open_fsd(tmp_path)
    after = dataset.read(0, (24, 24))
    use(None, monkeypatch)
    before = dataset.read(0, (24, 24))
    for name in ("left", "right", "disparity_px"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))


@pytest.mark.parametrize("samples", [6, 7])
def test_loops_are_compiled_only_where_many_samples_are_decoded(
    fsd_tree: Path, monkeypatch: pytest.MonkeyPatch, samples: int
) -> None:
    called: list[int] = []
    monkeypatch.setattr("foundation_stereo_depth.data.loader.compile_loops", lambda: called.append(1))
    monkeypatch.setattr("foundation_stereo_depth.data.loader.COMPILE_FROM_SAMPLES", samples)
    reader = open_files(DataOptions(height=32, width=32), fsd_tree, pin_memory=False).train.reader
    reader.read(0)
    assert called == ([1] if samples == 6 else [])


def test_unused_loops_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "_compile", functools.cache(lambda: pytest.fail("compiled")))
    assert loops.compiled_loops() is None


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize("fault", ["flipped", "cut", "no size", "no pixels"])
def test_a_damaged_png_is_refused_in_one_line(fault: str, capfd: pytest.CaptureFixture[str]) -> None:
    encoded = bytearray(cv2.imencode(".png", np.zeros((8, 12), np.uint16))[1].tobytes())
    if fault == "flipped":
        encoded[-20] ^= 1
    elif fault == "cut":
        del encoded[-20:]
    elif fault == "no size":
        encoded[16:20] = bytes(4)
        encoded[29:33] = struct.pack(">I", zlib.crc32(encoded[12:29]))
    else:
        encoded = bytearray(encoded[:33] + chunk(b"IEND", b""))
    Path("a.png").write_bytes(encoded)
    with pytest.raises(DataError, match=r"^a\.png: is damaged: "):
        read_rgb(Path("a.png"))
    assert capfd.readouterr().err == ""


def test_what_does_not_change_the_pixels_of_a_png_is_not_unpacked(capfd: pytest.CaptureFixture[str]) -> None:
    image = np.random.default_rng(0).integers(0, 2**16, (8, 12), dtype=np.uint16)
    encoded = cv2.imencode(".png", image)[1].tobytes()
    text = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(20_000_000)))
    Path("a.png").write_bytes(encoded[:33] + text + chunk(b"iCCP", b"odd") + encoded[33:])
    Path("b.png").write_bytes(encoded)
    assert np.array_equal(read_rgb(Path("a.png")), read_rgb(Path("b.png")))
    assert capfd.readouterr().err == ""

"""The PNG reader for many files: OpenCV's pixels from any plain PNG, and nothing from any other."""

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

from foundation_stereo_depth.data import loops as loops_module
from foundation_stereo_depth.data.codecs import read_fsd_code
from foundation_stereo_depth.data.fsd import find_samples, read_fsd_sample
from foundation_stereo_depth.data.loader import open_files
from foundation_stereo_depth.data.loops import Loops, average_boxes, compiled_loops, loops_for_many, undo_filters
from foundation_stereo_depth.data.png import decode_plain_png
from foundation_stereo_depth.data.sample import resize_image
from foundation_stereo_depth.errors import DataError
from foundation_stereo_depth.options.training import DataOptions

PLAIN_LOOPS = Loops(undo_filters, average_boxes)
"""The same functions, not compiled."""


@pytest.fixture(scope="module")
def loops() -> Loops:
    return compiled_loops()


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
    picture = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
    return None if picture is None else picture[..., ::-1]


@pytest.mark.parametrize("kind", range(5))
def test_each_filter_is_undone(kind: int, loops: Loops) -> None:
    encoded = png_of(filtered_noise(70, 90, kind, (kind,)), 70, 90)
    np.testing.assert_array_equal(decode_plain_png(encoded, loops), by_opencv(encoded))


@settings(max_examples=150, deadline=None)
@given(height=st.integers(1, 140), width=st.integers(1, 150), seed=st.integers(0, 999))
def test_any_filters_at_any_size_give_the_pixels_of_opencv(height: int, width: int, seed: int) -> None:
    encoded = png_of(filtered_noise(height, width, seed), height, width)
    np.testing.assert_array_equal(decode_plain_png(encoded, compiled_loops()), by_opencv(encoded))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (9, 1), (64, 3), (65, 3), (12, 17)])
def test_compiled_or_not_the_loops_do_the_same(height: int, width: int, loops: Loops) -> None:
    encoded = png_of(filtered_noise(height, width, 1), height, width)
    np.testing.assert_array_equal(decode_plain_png(encoded, PLAIN_LOOPS), decode_plain_png(encoded, loops))
    picture = np.random.default_rng(0).integers(0, 256, (3 * height, 2 * width, 3), dtype=np.uint8)
    np.testing.assert_array_equal(
        resize_image(picture, height, width, PLAIN_LOOPS), resize_image(picture, height, width, loops)
    )


def test_maps_by_other_writers_are_read(tmp_path: Path, loops: Loops) -> None:
    rows, columns = np.mgrid[:143, :217]
    code = np.stack([rows // 100, rows, (rows * 3 + columns * 7) % 255], axis=-1).astype(np.uint8)
    Image.fromarray(code).save(tmp_path / "pil.png")
    Image.fromarray(code).save(tmp_path / "best.png", optimize=True, compress_level=9)
    for level in (0, 9):
        cv2.imwrite(str(tmp_path / f"opencv{level}.png"), code[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, level])
    for path in tmp_path.iterdir():
        np.testing.assert_array_equal(decode_plain_png(path.read_bytes(), loops), code)


def test_what_is_not_plain_is_left_to_opencv(tmp_path: Path, loops: Loops) -> None:
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
        "no picture": join(header),
        "an empty picture": join(header, chunk(b"IDAT", b"")),
        "a window smaller than what is referred to": join(
            chunk(b"IHDR", struct.pack(">2I", 100, 40) + b"\x08\x02\0\0\0"), chunk(b"IDAT", small_window)
        ),
        "nothing": b"",
        "JPEG": cv2.imencode(".jpg", np.zeros((4, 5, 3), np.uint8))[1].tobytes(),
    }
    for mode in ("L", "P", "RGBA", "LA"):
        Image.new(mode, (5, 4)).save(tmp_path / f"{mode}.png")
        others[mode] = (tmp_path / f"{mode}.png").read_bytes()
    assert [name for name, encoded in others.items() if decode_plain_png(encoded, loops) is not None] == []
    with pytest.raises(DataError, match=r"L\.png: a FoundationStereo disparity map is an 8-bit RGB PNG"):
        read_fsd_code(tmp_path / "L.png", loops)


def test_no_damage_comes_through(loops: Loops) -> None:
    encoded = png_of(filtered_noise(9, 31, 3), 9, 31, extra=chunk(b"tEXt", b"Comment\0of no consequence"))
    whole = by_opencv(encoded)
    random = np.random.default_rng(0)
    survivors = list[int]()
    for _ in range(1000):
        damaged = bytearray(encoded)
        at = int(random.integers(len(damaged)))
        damaged[at] ^= 1 << int(random.integers(8))
        picture = decode_plain_png(bytes(damaged), loops)
        assert picture is None or np.array_equal(picture, whole)
        if picture is not None:
            survivors.append(at)
    assert survivors == []
    assert all(decode_plain_png(encoded[:length], loops) is None for length in range(len(encoded)))
    assert np.array_equal(decode_plain_png(encoded + b"more", loops), whole)


def test_a_promise_of_gigabytes_takes_no_memory(loops: Loops) -> None:
    encoded = png_of(filtered_noise(4, 5, 0), 2**15, 2**15)
    tracemalloc.start()
    assert decode_plain_png(encoded, loops) is None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


@pytest.mark.parametrize("boxes", [(3, 4), (1, 2), (2, 1), (2, 2), (4, 4), (5, 3), (1, 16), (16, 1), (16, 16), (17, 2)])
def test_boxes_are_averaged_as_opencv_averages_them(boxes: tuple[int, int], loops: Loops) -> None:
    """Noise about every level of grey, so that every sum and every tie occurs."""
    random = np.random.default_rng(0)
    level = np.repeat(np.repeat(random.integers(0, 256, (60, 80, 3)), boxes[0], axis=0), boxes[1], axis=1)
    picture = (level + random.integers(-3, 4, level.shape)).clip(0, 255).astype(np.uint8)
    np.testing.assert_array_equal(resize_image(picture, 60, 80, loops), resize_image(picture, 60, 80))


def test_a_sample_is_the_same_before_and_after_the_loops_are_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_fsd_sample(tmp_path, "s", "0", 72, 96, seed=0)
    paths = find_samples(tmp_path).paths(0)
    monkeypatch.setattr(loops_module, "FIRST_SAMPLES", 10**9)
    assert loops_for_many() is None
    before = read_fsd_sample(paths, (24, 24), loops_for_many())
    monkeypatch.setattr(loops_module, "FIRST_SAMPLES", 0)
    assert loops_for_many() is compiled_loops()
    after = read_fsd_sample(paths, (24, 24), loops_for_many())
    for name in ("left", "right", "disparity_px"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))


def test_measuring_threads_neither_counts_samples_nor_compiles(fsd_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds of compiling in a measurement of a tenth of a second would say that threads are of no use."""
    reader = open_files(DataOptions(height=32, width=32), fsd_tree, pin_memory=False).train.reader
    monkeypatch.setattr(loops_module, "FIRST_SAMPLES", 0)
    monkeypatch.setattr(loops_module, "_compiled_loops", lambda: pytest.fail("compiled"))
    reader.rehearse(0)
    with pytest.raises(pytest.fail.Exception, match="compiled"):
        reader.read(0)

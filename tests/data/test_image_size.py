import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from foundation_stereo_depth.data.codecs import read_disparity, read_rgb, read_rgb_images
from foundation_stereo_depth.data.image_size import check_pixels, count_pixels, is_image
from foundation_stereo_depth.errors import DataError

IMAGE = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)
SIDE = 20_000


def encoded_by_opencv(suffix: str) -> bytes:
    image = IMAGE.astype(np.float32) if suffix in (".pfm", ".hdr") else IMAGE
    image = image[..., 0] if suffix in (".pgm", ".pbm") else image
    return cv2.imencode(suffix, image)[1].tobytes()


def encoded_by_pillow(kind: str, images: int = 1, **options: object) -> bytes:
    file = io.BytesIO()
    first, *others = (Image.fromarray(np.roll(IMAGE, n)) for n in range(images))
    more = {"save_all": True, "append_images": others} if others else {}
    first.save(file, kind, **more, **options)
    return file.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, *more: bytes) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0))
    return b"".join((b"\x89PNG\r\n\x1a\n", header, *more, png_chunk(b"IDAT", b"x"), png_chunk(b"IEND", b"")))


def tiff_of(width: int, height: int, order: str = "<", big: bool = False) -> bytes:
    mark, number = (b"II", order + "HHQ") if order == "<" else (b"MM", order + "HHQ")
    if big:
        header = mark + struct.pack(order + "HHHQ", 43, 8, 0, 16) + struct.pack(order + "Q", 2)
        entries = [struct.pack(number + "Q", tag, 16, 1, side) for tag, side in ((256, width), (257, height))]
        return header + b"".join(entries) + bytes(8)
    header = mark + struct.pack(order + "HI", 42, 8) + struct.pack(order + "H", 2)
    entries = [struct.pack(order + "HHII", tag, 4, 1, side) for tag, side in ((256, width), (257, height))]
    return header + b"".join(entries) + bytes(4)


def webp_of(kind: bytes, body: bytes) -> bytes:
    chunk = kind + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def npy_of(shape: tuple[int, ...], descr: str = "<f4") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue()


BOMBS = {
    "png": png_of(SIDE, SIDE),
    "png of frames": png_of(8000, 8000, *(png_chunk(b"fcTL", bytes(26)) for _ in range(3))),
    "bmp": b"BM" + bytes(12) + struct.pack("<Iii", 40, SIDE, -SIDE) + bytes(40),
    "old bmp": b"BM" + bytes(12) + struct.pack("<IHH", 12, SIDE, SIDE) + bytes(40),
    "tiff": tiff_of(SIDE, SIDE),
    "tiff of a Mac": tiff_of(SIDE, SIDE, ">"),
    "big tiff": tiff_of(SIDE, SIDE, big=True),
    "webp": webp_of(b"VP8 ", bytes(6) + struct.pack("<HH", 16000, 16000)),
    "lossless webp": webp_of(b"VP8L", b"\x2f" + struct.pack("<I", 15999 | 15999 << 14)),
    "extended webp": webp_of(b"VP8X", bytes(4) + (SIDE - 1).to_bytes(3, "little") * 2),
    "pgm": b"P5\n# a comment 1 1\n20000 20000\n255\n",
    "pbm": b"P1 20000 20000\n",
    "ppm": b"P620000\t20000 255\n",
    "pfm": b"Pf\n20000 20000\n-1\n",
    "pam": b"P7\nWIDTH 20000\nHEIGHT 20000\nDEPTH 3\nMAXVAL 255\nENDHDR\n",
    "hdr": b"#?RADIANCE\n-Y 1 +X 1\nFORMAT=32-bit_rle_rgbe\n\n-Y 20000 +X 20000\n",
}


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tiff", ".webp", ".ppm", ".pgm", ".pfm", ".pam", ".hdr"])
def test_the_size_in_the_header_is_the_size_that_is_decoded(suffix: str) -> None:
    assert count_pixels(encoded_by_opencv(suffix)) == IMAGE.shape[0] * IMAGE.shape[1]


@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("TIFF", {}), ("TIFF", {"big_tiff": True}), ("WEBP", {}), ("WEBP", {"lossless": True})],
)
def test_pixels_of_all_images_in_a_file_are_counted(kind: str, options: dict) -> None:
    assert count_pixels(encoded_by_pillow(kind, 3, **options)) == 3 * IMAGE.shape[0] * IMAGE.shape[1]
    assert count_pixels(encoded_by_pillow(kind, 1, **options)) == IMAGE.shape[0] * IMAGE.shape[1]


@pytest.mark.parametrize("name", BOMBS)
def test_an_image_too_large_to_decode_is_refused_by_its_header(tmp_path: Path, name: str) -> None:
    assert is_image(BOMBS[name])
    with pytest.raises(
        DataError, match=r"bomb: its header gives \d{3},000,000 pixels, and at most 50,000,000 are read"
    ):
        check_pixels(tmp_path / "bomb", BOMBS[name])
    (tmp_path / "bomb.png").write_bytes(BOMBS[name])
    for read in (read_rgb, read_disparity):
        with pytest.raises(DataError, match="pixels"):
            read(tmp_path / "bomb.png")


@pytest.mark.parametrize("shape", [(SIDE, SIDE), (4, 10**9), (10**18, 10**18)])
def test_a_numpy_file_that_says_more_than_it_holds_is_refused(tmp_path: Path, shape: tuple[int, int]) -> None:
    (tmp_path / "x.npy").write_bytes(npy_of(shape))
    with pytest.raises(DataError, match="its numbers are said to end behind the end of the file"):
        read_disparity(tmp_path / "x.npy")


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_a_part_that_ends_behind_the_file_is_damage(tmp_path: Path, suffix: str) -> None:
    encoded = bytearray(encoded_by_opencv(suffix))
    at = encoded.index(b"IDAT" if suffix == ".png" else b"VP8") + (-4 if suffix == ".png" else 7)
    encoded[at] = 0x7F
    with pytest.raises(DataError, match="is said to end behind the end of the file"):
        check_pixels(tmp_path / "x", bytes(encoded))


def test_a_tiff_whose_pages_form_a_circle_is_refused(tmp_path: Path) -> None:
    encoded = bytearray(tiff_of(4, 4))
    encoded[-4:] = struct.pack("<I", 8)
    with pytest.raises(DataError, match="its list of pages has no end"):
        check_pixels(tmp_path / "x", bytes(encoded))


def test_a_jpeg_of_a_thousand_scans_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="more than 200 scans"):
        check_pixels(tmp_path / "x", encoded_by_opencv(".jpg") + b"\xff\xda\0\x02" * 1000)


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"#?", b"\0\0\0\x0cjP  ", b"v/1\x01", b"text"])
def test_other_content_is_not_decoded(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.png").write_bytes(content)
    assert not is_image(content)
    with pytest.raises(DataError, match=r"x\.png"):
        read_rgb(tmp_path / "x.png")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tiff", ".webp", ".ppm", ".pam", ".hdr"])
def test_truncated_headers_end_in_one_error(tmp_path: Path, suffix: str) -> None:
    encoded = encoded_by_opencv(suffix)
    for length in range(min(len(encoded), 120)):
        (tmp_path / "x.png").write_bytes(encoded[:length])
        with pytest.raises(DataError):
            read_rgb(tmp_path / "x.png")


def test_a_tiff_that_begins_beyond_64_bits_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    path.write_bytes(b"II" + struct.pack("<HHHQ", 43, 8, 0, 2**64 - 1) + bytes(64))
    with pytest.raises(DataError, match=r"x\.tif: its header is truncated"):
        read_rgb(path)


def test_a_view_may_have_half_of_the_pixels_of_a_file_of_both(tmp_path: Path) -> None:
    path = tmp_path / "wide.pgm"
    path.write_bytes(b"P5 8000 4000 255\n")
    with pytest.raises(DataError, match=r"gives 32,000,000 pixels, and at most 25,000,000 are read.*shrink both views"):
        read_rgb(path)
    with pytest.raises(DataError, match="not a complete image"):  # decoded, since it may hold both views
        read_rgb_images(path)

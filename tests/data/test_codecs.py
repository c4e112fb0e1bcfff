import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation_stereo_depth.data.codecs import (
    FSD_LARGEST_PX,
    KITTI_STEPS_PER_PX,
    decode_fsd_disparity,
    decode_whole_steps,
    encode_fsd_disparity,
    encode_npy,
    encode_pfm,
    encode_ply,
    encode_png16,
    encode_whole_steps,
    read_fsd_disparity,
    read_pfm,
    read_png16,
    read_rgb,
    write_rgb,
)
from foundation_stereo_depth.errors import DataError


def test_image_with_a_header_of_impossible_size_is_refused(tmp_path: Path) -> None:
    write_rgb(tmp_path / "x.jpg", np.zeros((24, 32, 3), np.uint8))
    encoded = bytearray((tmp_path / "x.jpg").read_bytes())
    size = encoded.index(b"\xff\xc0") + 5  # of the frame header, which has no checksum
    encoded[size] |= 0x80
    encoded[size + 2] |= 0x80
    (tmp_path / "x.jpg").write_bytes(encoded)
    with pytest.raises(DataError, match=r"x\.jpg: its header gives 1,075,577,600 pixels"):
        read_rgb(tmp_path / "x.jpg")


GOLDEN = Path(__file__).parents[1] / "golden"

# 300 px is 300,000 steps = 4 * 255^2 + 156 * 255 + 120.
GOLDEN_CODES = {
    (0, 0, 0): np.nan,
    (0, 0, 1): 0.001,
    (0, 0, 254): 0.254,
    (0, 1, 0): 0.255,
    (1, 0, 0): 65.025,
    (4, 156, 120): 300.0,
    (254, 254, 254): 16581.374,
}


def test_golden_codes_decode_and_encode() -> None:
    codes = np.array([list(GOLDEN_CODES)], np.uint8)
    values = np.array([list(GOLDEN_CODES.values())], np.float32)
    np.testing.assert_allclose(decode_fsd_disparity(codes), values, rtol=1e-7)
    # float32 steps by 0.002 px above 16384 px, so the very last code does not come back.
    np.testing.assert_array_equal(encode_fsd_disparity(values[:, :-1]), codes[:, :-1])


def test_golden_file_decodes() -> None:
    # Written by PIL from the codes above, one row, R first: it settles the order of channels in a file.
    disparity_px = read_fsd_disparity_of_any_width(GOLDEN / "fsd_disparity.png")
    np.testing.assert_allclose(disparity_px, [list(GOLDEN_CODES.values())], rtol=1e-7)


def read_fsd_disparity_of_any_width(path: Path) -> np.ndarray:
    return decode_fsd_disparity(read_rgb(path))


def test_base_256_or_exchanged_channels_would_show() -> None:
    code = np.array([[[4, 156, 120]]], np.uint8)
    digits = code.astype(int)[0, 0]
    assert decode_fsd_disparity(code)[0, 0] == 300.0
    assert (digits[0] * 65536 + digits[1] * 256 + digits[2]) / 1000 == pytest.approx(302.2, abs=0.01)
    assert decode_fsd_disparity(code[..., ::-1])[0, 0] == pytest.approx(7842.8, abs=0.1)


@given(st.integers(1, 16_384_000))
def test_every_step_survives_the_round_trip(steps: int) -> None:
    disparity_px = np.array([[steps / 1000]], np.float32)
    decoded = decode_fsd_disparity(encode_fsd_disparity(disparity_px))
    assert decoded[0, 0] == np.float32(steps) / np.float32(1000)


@pytest.mark.parametrize("value", [-0.001, FSD_LARGEST_PX + 0.01])
def test_disparities_beyond_the_code_are_refused(value: float) -> None:
    with pytest.raises(DataError, match="the FSD code holds"):
        encode_fsd_disparity(np.array([[value]], np.float32))


def test_rgb_stays_rgb(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (37, 61, 3), dtype=np.uint8)
    write_rgb(tmp_path / "a.png", image)
    np.testing.assert_array_equal(read_rgb(tmp_path / "a.png"), image)


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (5, 7), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "grey.png"), grey)
    np.testing.assert_array_equal(read_rgb(tmp_path / "grey.png"), np.repeat(grey[..., None], 3, axis=2))


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.98])
def test_error_names_a_truncated_image(tmp_path: Path, suffix: str, kept: float) -> None:
    path = tmp_path / f"truncated{suffix}"
    write_rgb(path, np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    complete = path.read_bytes()
    path.write_bytes(complete[: int(len(complete) * kept)])
    with pytest.raises(DataError, match=f"truncated{suffix}.*(not a complete image|is damaged)"):
        read_rgb(path)


@pytest.mark.parametrize("hole", [slice(1000, 3000), slice(2000, None), slice(-2, None)])
def test_a_jpeg_of_which_a_part_is_zeros_is_named(tmp_path: Path, hole: slice) -> None:
    """As power cuts and interrupted copies leave them; OpenCV and Pillow accept them."""
    path = tmp_path / "holed.jpg"
    write_rgb(path, np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8))
    encoded = bytearray(path.read_bytes())
    encoded[hole] = bytes(len(encoded[hole]))
    path.write_bytes(encoded)
    with pytest.raises(DataError, match=r"holed\.jpg: is damaged"):
        read_rgb(path)


def test_a_jpeg_is_decoded_as_opencv_does(tmp_path: Path) -> None:
    image = cv2.resize(np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8), (131, 93))
    for name, flags in {"usual": [], "progressive": [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]}.items():
        path = tmp_path / f"{name}.jpg"
        cv2.imwrite(str(path), image, flags)
        np.testing.assert_array_equal(read_rgb(path), cv2.imread(str(path), cv2.IMREAD_COLOR_RGB))


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(DataError, match=r"pipe\.png: is not a regular file"):
        read_rgb(tmp_path / "pipe.png")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.png: cannot be read \(No such file"):
        read_rgb(tmp_path / "nowhere.png")


def test_a_grey_disparity_map_is_refused(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "grey.png"), np.zeros((4, 4), np.uint8))
    with pytest.raises(DataError, match=r"8-bit RGB PNG, but this one has shape \(4, 4\)"):
        read_fsd_disparity(tmp_path / "grey.png")


def test_a_16_bit_disparity_map_is_refused(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "deep.png"), np.zeros((4, 4, 3), np.uint16))
    with pytest.raises(DataError, match="uint16"):
        read_fsd_disparity(tmp_path / "deep.png")


def test_disparity_wider_than_the_image_is_refused(tmp_path: Path) -> None:
    write_rgb(tmp_path / "d.png", encode_fsd_disparity(np.full((2, 60), 61.0, np.float32)))
    with pytest.raises(DataError, match=r"disparity of 61.0 px in an image 60 px wide"):
        read_fsd_disparity(tmp_path / "d.png")


def test_16_bit_images_are_scaled_to_8(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "deep.png"), np.array([[[0, 0x1234, 0xFFFF]]], np.uint16))
    np.testing.assert_array_equal(read_rgb(tmp_path / "deep.png"), [[[0xFF, 0x12, 0]]])
    cv2.imwrite(str(tmp_path / "deep_grey.png"), np.array([[0x8000]], np.uint16))
    np.testing.assert_array_equal(read_rgb(tmp_path / "deep_grey.png"), [[[0x80] * 3]])


# KITTI: 256 steps to a pixel, 0 unknown; what is known never becomes 0.
KITTI_CODES = {np.nan: 0, 0.0: 0, -1.0: 0, 0.001: 1, 1 / 256: 1, 1.0: 256, 37.25: 9536, 255.99609375: 65535}


def test_golden_kitti_codes(tmp_path: Path) -> None:
    values = np.array([list(KITTI_CODES)], np.float32)
    code = encode_whole_steps(values, KITTI_STEPS_PER_PX)
    np.testing.assert_array_equal(code, [list(KITTI_CODES.values())])
    (tmp_path / "d.png").write_bytes(encode_png16(code))
    # As anybody else reads it.
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "d.png"), cv2.IMREAD_UNCHANGED), code)
    back = decode_whole_steps(read_png16(tmp_path / "d.png"), KITTI_STEPS_PER_PX)
    np.testing.assert_array_equal(back, [[np.nan] * 3 + [1 / 256, 1 / 256, 1.0, 37.25, 255.99609375]])


def test_a_value_beyond_16_bits_is_refused() -> None:
    with pytest.raises(DataError, match=r"holds values up to 255\.996 here, not 256\.000; write pfm or npy"):
        encode_whole_steps(np.array([[256.0]], np.float32), KITTI_STEPS_PER_PX)


def test_an_8_bit_png_is_no_map(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "d.png"), np.zeros((2, 2), np.uint8))
    with pytest.raises(DataError, match="is not a 16-bit grey PNG"):
        read_png16(tmp_path / "d.png")


def test_golden_pfm(tmp_path: Path) -> None:
    # Bottom row first; 1.0 is 0x3f800000, infinity 0x7f800000.
    golden = b"Pf\n2 2\n-1\n" + bytes.fromhex("00004040 00008040 0000803f 0000807f")
    values = np.array([[1.0, np.nan], [3.0, 4.0]], np.float32)
    assert encode_pfm(values) == golden
    (tmp_path / "d.pfm").write_bytes(golden)
    np.testing.assert_array_equal(read_pfm(tmp_path / "d.pfm"), values)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "d.pfm"), cv2.IMREAD_UNCHANGED)[1], [3.0, 4.0])


def test_a_big_endian_pfm_is_read(tmp_path: Path) -> None:
    (tmp_path / "d.pfm").write_bytes(b"Pf\n3 1\n1.0\n" + np.array([1, 2, np.inf], ">f4").tobytes())
    np.testing.assert_array_equal(read_pfm(tmp_path / "d.pfm"), [[1, 2, np.nan]])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PF\n1 1\n-1\n" + bytes(12), "does not begin as a grey PFM"),
        (b"Pf\n2 2\n-1\n1234", "16 bytes of values, not 4"),
    ],
)
def test_damaged_pfm_files_are_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "d.pfm").write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_pfm(tmp_path / "d.pfm")


def test_npy_keeps_everything(tmp_path: Path) -> None:
    values = np.array([[1.5, np.nan]], np.float32)
    (tmp_path / "d.npy").write_bytes(encode_npy(values))
    np.testing.assert_array_equal(np.load(tmp_path / "d.npy"), values)


def test_golden_ply() -> None:
    cloud = encode_ply(np.array([[1, 2, 3]], np.float32), np.array([[10, 20, 30]], np.uint8))
    header = (
        "ply\nformat binary_little_endian 1.0\n"
        "comment metres; x right, y down, z forward from the left camera\nelement vertex 1\n"
        "property float x\nproperty float y\nproperty float z\n"
        "property uchar red\nproperty uchar green\nproperty uchar blue\nend_header\n"
    )
    assert cloud == header.encode() + bytes.fromhex("0000803f 00000040 00004040 0a141e")


@pytest.mark.parametrize("scale", ["-.-e", "1.2.3"])
def test_a_pfm_whose_scale_is_no_number_is_refused(tmp_path: Path, scale: str) -> None:
    path = tmp_path / "a.pfm"
    path.write_bytes(f"Pf\n2 2\n{scale}\n".encode() + bytes(16))
    with pytest.raises(DataError, match="its scale is no number"):
        read_pfm(path)

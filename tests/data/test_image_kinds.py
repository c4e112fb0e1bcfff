"""Which value is white, which way the camera was held, how many views a file holds, and which files are images."""

import io
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import shifted_pair
from PIL import Image, TiffImagePlugin
from PIL.PngImagePlugin import PngInfo

from foundation_stereo_depth import log
from foundation_stereo_depth.cli import predict_command
from foundation_stereo_depth.data.codecs import (
    encode_fsd_disparity,
    encode_npy,
    read_disparity,
    read_fsd_code,
    read_rgb,
    read_rgb_pair,
    write_rgb,
)
from foundation_stereo_depth.data.fsd import open_fsd
from foundation_stereo_depth.data.pairs import find_pairs
from foundation_stereo_depth.errors import DataError

LEVELS = np.array([[0, 64, 128, 255]], np.uint8)
LEFT, RIGHT = shifted_pair(40, 64, 4)


def netpbm(kind: str, white: int, values: np.ndarray) -> bytes:
    """Return a file of Netpbm, with a comment in its header; grey values are repeated for colour formats."""
    colour = kind in ("P3", "P6")
    samples = np.repeat(values, 3) if colour else values.ravel()
    size = f"{values.shape[1]} {values.shape[0]}"
    if kind == "P7":
        sides = f"WIDTH {values.shape[1]}\nHEIGHT {values.shape[0]}\n"
        head = f"P7\n{sides}DEPTH 1\nMAXVAL {white}\nTUPLTYPE GRAYSCALE\nENDHDR\n"
    else:
        head = f"{kind}\n# by a camera\n{size}\n{white}\n"
    if kind in ("P2", "P3"):
        return (head + " ".join(map(str, samples)) + "\n").encode()
    return head.encode() + samples.astype(">u2" if white > 255 else "u1").tobytes()


@pytest.mark.parametrize("kind", ["P2", "P3", "P5", "P6", "P7"])
@pytest.mark.parametrize("white", [15, 100, 255, 511, 1023, 4095, 10000, 16383, 65535])
def test_netpbm_values_are_scaled_by_maxval(kind: str, white: int) -> None:
    values = np.rint(LEVELS / 255 * white).astype(int)
    Path("x.ppm").write_bytes(netpbm(kind, white, values))
    found = read_rgb(Path("x.ppm"))
    assert found.shape == (1, 4, 3)
    np.testing.assert_allclose(found[..., 1], LEVELS, atol=1 + 255 / white)
    assert found[0, -1].tolist() == [255] * 3
    assert found[0, 0].tolist() == [0] * 3


def test_netpbm_value_above_maxval_is_refused() -> None:
    Path("x.pgm").write_bytes(netpbm("P5", 1023, np.array([[0, 1024]])))
    with pytest.raises(DataError, match=r"x\.pgm: has a value of 1024, but its header says that the largest is 1023"):
        read_rgb(Path("x.pgm"))


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("white", [1023, 4095])
def test_dark_16_bit_images_are_warned_of_once(suffix: str, white: int, capsys: pytest.CaptureFixture[str]) -> None:
    log.configure()
    for name in ("a", "b"):
        cv2.imwrite(name + suffix, np.array([[0, white]], np.uint16))
        read_rgb(Path(name + suffix))
    error = capsys.readouterr().err
    assert error.count("warning:") == 1
    assert f"a{suffix}: its values end at {white} of 65535, and nothing in it says which one is white" in error
    cv2.imwrite("bright" + suffix, np.array([[0, 40000]], np.uint16))
    log.configure()
    assert read_rgb(Path("bright" + suffix))[0, 1, 0] == 40000 >> 8
    assert capsys.readouterr().err == ""


def test_16_bit_files_that_state_their_white_are_scaled_by_it(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure()
    values = Image.fromarray(np.array([[0, 512, 1020]], np.uint16))
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[281] = 1020  # MaxSampleValue, as programs write it that have looked for the largest
    values.save("x.tiff", tiffinfo=tags)
    info = PngInfo()
    info.add(b"sBIT", b"\x0a")
    values.save("x.png", pnginfo=info)
    for name in ("x.tiff", "x.png"):
        np.testing.assert_array_equal(
            read_rgb(Path(name))[0, :, 0], [0, round(512 * 255 / 1023), round(1020 * 255 / 1023)]
        )
    assert capsys.readouterr().err == ""


def test_16_bit_colour_tiff_keeps_its_channels() -> None:
    values = np.random.default_rng(0).integers(0, 65536, (5, 7, 3), dtype=np.uint16)
    cv2.imwrite("x.tiff", values[..., ::-1])
    np.testing.assert_array_equal(read_rgb(Path("x.tiff")), values >> 8)


@pytest.mark.parametrize("name", ["x.tiff", "x.pfm", "x.exr"])
def test_floating_point_images_are_named(name: str) -> None:
    if name == "x.exr":
        Path(name).write_bytes(b"v/1\x01")
    else:
        cv2.imwrite(name, np.ones((4, 6), np.float32))
    with pytest.raises(DataError, match=rf"{name}: (has values of type float32|is an image of floating-point values)"):
        read_rgb(Path(name))


def jpeg_with(orientation: int | None, image: np.ndarray = LEFT) -> bytes:
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(image).save(file, "jpeg", quality=95, exif=exif)
    return file.getvalue()


@pytest.mark.parametrize(("both", "warned"), [((6, 6), True), ((8, 5), True), ((6, 1), False), ((3, 3), False)])
def test_a_pair_taken_on_its_side_is_warned_of_once(
    both: tuple[int, int], warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    log.configure()
    for name, orientation in zip(("l.jpg", "r.jpg"), both, strict=True):
        Path(name).write_bytes(jpeg_with(orientation))
    for _ in range(2):
        assert read_rgb_pair(Path("l.jpg"), Path("r.jpg"))[0].shape == LEFT.shape
    error = capsys.readouterr().err
    assert error.count("warning:") == int(warned)
    assert ("l.jpg: the Exif orientation says that the camera stood on its side, in both views" in error) == warned


@pytest.mark.parametrize("kind", ["png", "tiff", "webp"])
def test_orientation_is_found_in_other_kinds_of_files(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    log.configure()
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("l", "r"):
        Image.fromarray(LEFT).save(f"{name}.{kind}", exif=exif)
    read_rgb_pair(Path(f"l.{kind}"), Path(f"r.{kind}"))
    assert "Exif orientation" in capsys.readouterr().err


def save_several(name: str, images: list[np.ndarray], kind: str) -> None:
    first, *rest = map(Image.fromarray, images)
    first.save(name, kind, save_all=True, append_images=rest)


@pytest.mark.parametrize(("name", "kind"), [("both.mpo", "mpo"), ("BOTH.JPG", "mpo"), ("both.tif", "tiff")])
def test_a_file_of_both_views_gives_left_and_right(name: str, kind: str) -> None:
    save_several(name, [LEFT, RIGHT], kind)
    (pair,) = find_pairs(name, None)
    for found, meant in ((pair.left, LEFT), (pair.right, RIGHT)):
        assert np.abs(found.astype(int) - meant).mean() < 12  # what JPEG loses; the other view is at 60 or so
    write_rgb(Path("right.png"), RIGHT)
    with pytest.raises(DataError, match="holds 2 images of one size; a file that holds both views is given alone"):
        list(find_pairs(name, "right.png"))


def test_smaller_images_in_a_file_are_no_views() -> None:
    save_several("photo.jpg", [LEFT, LEFT[::2, ::2]], "mpo")  # as telephones keep a preview or a gain map
    assert read_rgb(Path("photo.jpg")).shape == LEFT.shape
    save_several("pages.tif", [LEFT[::2, ::2], LEFT], "tiff")  # a thumbnail before the image
    np.testing.assert_array_equal(read_rgb(Path("pages.tif")), LEFT)
    Path("raw.dng").write_bytes(Path("pages.tif").read_bytes())
    with pytest.raises(DataError, match=r"raw\.dng: is a raw photograph"):
        read_rgb(Path("raw.dng"))
    save_several("three.tif", [LEFT] * 3, "tiff")
    with pytest.raises(DataError, match=r"three\.tif: holds 3 images of one size; which of them are left and right"):
        list(find_pairs("three.tif", None))


def test_a_damaged_second_view_is_named() -> None:
    save_several("both.mpo", [LEFT, RIGHT], "mpo")
    encoded = Path("both.mpo").read_bytes()
    Path("both.mpo").write_bytes(encoded[:-400] + bytes(400))
    with pytest.raises(DataError, match=r"both\.mpo: is damaged"):
        list(find_pairs("both.mpo", None))


@pytest.mark.parametrize("name", ["one.png", "*.png", "folder"])
def test_one_view_alone_is_not_split(name: str) -> None:
    Path("folder").mkdir()
    write_rgb(Path("one.png"), LEFT)
    write_rgb(Path("folder/one.png"), LEFT)
    with pytest.raises(DataError, match=r"one\.png: is 64x40, too narrow for two views side by side; name the right"):
        list(find_pairs(name, None))
    (pair,) = find_pairs(name, None, side_by_side=True)
    np.testing.assert_array_equal(pair.right, LEFT[:, 32:])
    with pytest.raises(DataError, match="--side-by-side means that the first holds both views"):
        find_pairs(name, name, side_by_side=True)


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("x.heic", b"\0\0\0\x18ftypheic", "a HEIC photograph"),
        ("x.jpg", b"\0\0\0\x18ftypmif1", "a HEIC photograph"),
        ("x.npy", encode_npy(np.zeros((4, 6), np.float32)), "a NumPy file"),
        ("x.svo2", b"\x89MCAP0\r\n", "a ZED recording"),
        ("x.SVO", b"?", "a ZED recording"),
        ("x.png", b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        ("x.png", b"<!DOCTYPE html><html>", "a web page"),
        ("x.dng", b"?", "a raw photograph"),
        ("x.bag", b"#ROSBAG V2.0\n", "a ROS bag"),
        ("x.jpg", b"\0\0\0\x20ftypisom", "a video"),
    ],
)
def test_other_kinds_of_files_get_their_name(name: str, content: bytes, kind: str) -> None:
    Path(name).write_bytes(content + bytes(200))
    with pytest.raises(DataError, match=f"{name}: is {kind}"):
        list(find_pairs(name, None))


def test_folder_of_other_kinds_says_which() -> None:
    for folder, name in (("phone", "IMG_1.HEIC"), ("clips", "a.MTS")):
        Path(folder).mkdir()
        Path(folder, name).write_bytes(b"?")
    with pytest.raises(DataError, match=r"phone: a folder without images .*; IMG_1\.HEIC is a HEIC photograph"):
        find_pairs("phone", None)
    with pytest.raises(DataError, match=r"clips: a folder without images .*; a\.MTS is a video; videos are named one"):
        find_pairs("clips", None)
    with pytest.raises(DataError, match="streams and pipelines are for foundation-stereo-live-view"):
        find_pairs("rtsp://camera/1", "rtsp://camera/2")


def test_globs_and_folders_take_images_alone_in_any_capitals() -> None:
    for name in ("0.JPG", "1.Png", "._0.JPG", ".hidden.png"):
        Path("l").mkdir(exist_ok=True)
        Path("l", name).write_bytes(b"?")
    Path("l/Thumbs.db").write_bytes(b"?")
    Path("l/.thumbnails").mkdir()
    Path("l/.thumbnails/0.png").write_bytes(b"?")
    for named in ("l", "l/*", "l/**/*"):
        assert [path.name for (path,) in find_pairs(named, None).files.values()] == ["0.JPG", "1.Png"], named
    with pytest.raises(DataError, match=r"l/\*\.jpg: matches no file, but l/\*\.JPG does"):
        find_pairs("l/*.jpg", None)
    assert list(find_pairs("l/.hid*.png", None).files.values()) == [(Path("l/.hidden.png"),)]


def test_fsd_frames_in_capitals_are_samples_and_hidden_files_are_not(fsd_tree: Path) -> None:
    data = fsd_tree / "scene_1/dataset/data"
    for part, suffix in (("left/rgb", ".PNG"), ("right/rgb", ".Png"), ("left/disparity", ".PNG")):
        (data / part / "0000.png").rename(data / part / f"0000{suffix}")
        (data / part / "._0001.png").write_bytes(b"Mac OS X")
    dataset = open_fsd(fsd_tree)
    assert len(dataset) == 6
    assert not dataset.incomplete
    i = list(dataset.names).index("scene_1/0000")
    assert [path.suffix for path in dataset.paths(i)] == [".PNG", ".Png", ".PNG"]
    assert dataset.read(i).left.shape == (48, 64, 3)


def test_one_image_for_both_views_is_refused() -> None:
    write_rgb(Path("a.png"), LEFT)
    for left, right in (("a.png", "a.png"), ("a.png", "./a.png"), ("*.png", "*.png")):
        with pytest.raises(DataError, match="are the same file; name the right view"):
            find_pairs(left, right)


@pytest.mark.parametrize(
    "names", [("left0.png", "left1.png"), ("right_01.png", "right_02.png"), ("left/a.png", "left/b.png")]
)
def test_an_unquoted_glob_is_recognised_by_its_names(names: tuple[str, str]) -> None:
    Path("left").mkdir()
    for name in names:
        write_rgb(Path(name), LEFT)
    with pytest.raises(DataError, match=r"are both (left|right) views by their names; put each glob in quotes"):
        find_pairs(*names)


def test_unquoted_glob_of_many_files_gets_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        write_rgb(Path(f"l{number}.png"), LEFT)
    with pytest.raises(SystemExit) as ended:
        predict_command(["l0.png", "l1.png", "l2.png", "-o", "out"])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "1 file more than it takes, l2.png first; put each glob in quotes" in error
    assert error.count("\n") == 1


def test_truth_saved_in_8_bits_is_refused() -> None:
    disparity_px = np.full((8, 64), 20, np.uint8)
    cv2.imwrite("grey.png", disparity_px)
    with pytest.raises(DataError, match=r"grey\.png: is grey of 8 bits; KITTI's disparity has 16 bits"):
        read_disparity(Path("grey.png"))
    cv2.imwrite("rgb.png", np.repeat(disparity_px[..., None], 3, axis=2))
    for read in (read_disparity, read_fsd_code):
        with pytest.raises(DataError, match=r"rgb\.png: its three channels are equal, so it is a grey image"):
            read(Path("rgb.png"))
    write_rgb(Path("unknown.png"), encode_fsd_disparity(np.full((8, 64), np.nan, np.float32)))
    assert np.isnan(read_disparity(Path("unknown.png"))).all()


def test_packed_tiff_of_12_bits_is_read_at_its_brightness() -> None:
    values = [0, 2048, 4095, 1024]
    bits = "".join(f"{value:012b}" for value in values)
    data = int(bits, 2).to_bytes(6)
    entries = [(256, 4), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, len(data))]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", tag, 4, 1, n) for tag, n in entries)
    Path("x.tif").write_bytes(b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory + bytes(4))
    np.testing.assert_allclose(read_rgb(Path("x.tif"))[0, :, 0], [0, 128, 255, 64], atol=1)


@pytest.mark.parametrize("order", [(0, 2, 1), (1, 0, 2), (2, 1, 0), (1, 2, 0)])
def test_exchanged_channels_of_a_disparity_map_are_refused(order: tuple[int, int, int]) -> None:
    rows, columns = np.mgrid[:40, :1280].astype(np.float32)
    disparity_px = 30 + 0.02 * columns + 0.05 * rows + 3 * (columns // 200 % 2)
    write_rgb(Path("right.png"), code := encode_fsd_disparity(disparity_px))
    np.testing.assert_array_equal(read_fsd_code(Path("right.png")), code)
    write_rgb(Path("wrong.png"), np.ascontiguousarray(code[..., order]))
    with pytest.raises(DataError, match=r"wrong\.png: (its channels seem to be exchanged|holds a disparity of)"):
        read_disparity(Path("wrong.png"))

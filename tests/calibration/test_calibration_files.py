import gzip
import json
import os
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from foundation_stereo_depth.calibration.files import read_calibration, save_calibration
from foundation_stereo_depth.calibration.rig import RigCalibration
from foundation_stereo_depth.errors import CalibrationError
from foundation_stereo_depth.stereo.geometry import depth_from_disparity

GOLDEN = Path(__file__).parents[1] / "golden/calibration"

# The rig that all golden files of unrectified eyes describe.
LEFT = np.array([[500.0, 0, 318], [0, 498, 243], [0, 0, 1]])
RIGHT = np.array([[505.0, 0, 325], [0, 503, 238], [0, 0, 1]])
LEFT_LENS, RIGHT_LENS = [0.1, -0.2, 0.001, -0.0005, 0.05], [0.08, -0.15, -0.0008, 0.0006, 0.02]
TURN, SHIFT_M = np.array([0.01, -0.02, 0.005]), np.array([-0.12, 0.001, -0.002])
POINT_M = np.array([[[0.2, -0.1, 2.0]]])

LENS_14 = (
    [3.0, -1.2, 0.0004, -0.0003, 0.8, 2.9, -0.9, 0.7, 0.001, -0.0002, 0.0005, 0.0001, 0.002, -0.003],
    [2.8, -1.1, -0.0002, 0.0006, 0.7, 2.7, -0.8, 0.6, -0.001, 0.0003, 0.0004, -0.0001, -0.001, 0.002],
)
LENS_4 = (LEFT_LENS[:4], RIGHT_LENS[:4])
FISHEYE = ([0.05, -0.02, 0.01, -0.004], [0.04, -0.01, 0.006, -0.002])


def rectified_pixels(rig: RigCalibration, lenses: tuple[list[float], list[float]], fisheye: bool) -> np.ndarray:
    """Where the point stands in each raw eye by the numbers above, carried into the rectified eyes by the rig's."""
    optics = cv2.fisheye if fisheye else cv2
    still = np.zeros(3)
    left, _ = optics.projectPoints(POINT_M, still, still, LEFT, np.array(lenses[0]))
    right, _ = optics.projectPoints(POINT_M, TURN, SHIFT_M, RIGHT, np.array(lenses[1]))
    given = rig.rectified
    eyes = (
        (left, rig.left_matrix, rig.left_distortion, given.left_rotation, given.left_projection),
        (right, rig.right_matrix, rig.right_distortion, given.right_rotation, given.right_projection),
    )
    return np.array([
        optics.undistortPoints(raw.reshape(1, 1, 2), matrix, lens, R=turn, P=projection).ravel()
        for raw, matrix, lens, turn, projection in eyes
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("file", "lenses", "settings"),
    [
        ("ours.npz", (LEFT_LENS, RIGHT_LENS), {}),
        ("mtxL_mm.npz", (LEFT_LENS, RIGHT_LENS), {"unit": "mm", "image_size": (640, 480)}),
        ("K1.npz", (LEFT_LENS, RIGHT_LENS), {}),
        ("cameraMatrix1.npz", (LEFT_LENS, RIGHT_LENS), {}),
        ("opencv.yml", (LEFT_LENS, RIGHT_LENS), {}),
        ("opencv.xml", (LEFT_LENS, RIGHT_LENS), {}),
        ("opencv_pair", (LEFT_LENS, RIGHT_LENS), {"unit": "cm", "image_size": (640, 480)}),
        ("opencv_pair/intrinsics.yml", (LEFT_LENS, RIGHT_LENS), {"unit": "cm", "image_size": (640, 480)}),
        ("opencv_pair/extrinsics.yml", (LEFT_LENS, RIGHT_LENS), {"unit": "cm", "image_size": (640, 480)}),
        ("ros", (LEFT_LENS, RIGHT_LENS), {}),
        ("ros/left.yaml", (LEFT_LENS, RIGHT_LENS), {}),
        ("ros/right.yaml", (LEFT_LENS, RIGHT_LENS), {}),
        ("kalibr_radtan.yaml", LENS_4, {}),
        ("kalibr_equidistant.yaml", FISHEYE, {}),
        ("zed.conf", (LEFT_LENS, RIGHT_LENS), {"image_size": (672, 376)}),
        ("depthai.json", LENS_14, {}),
    ],
)
def test_a_known_point_gets_its_depth_from_every_format(file: str, lenses: tuple, settings: dict) -> None:
    rig = read_calibration(GOLDEN / file, **settings)
    left, right = rectified_pixels(rig, lenses, fisheye=lenses is FISHEYE)
    assert left[1] == pytest.approx(right[1], abs=1e-3)  # one row
    depth_m = depth_from_disparity(float(left[0] - right[0]), rig.stereo_calibration)
    assert depth_m == pytest.approx((rig.rectified.left_rotation @ POINT_M.ravel())[2], rel=1e-5)
    assert rig.stereo_calibration.baseline_m == pytest.approx(np.linalg.norm(SHIFT_M), rel=1e-6)


@pytest.mark.parametrize(
    ("file", "settings", "offset_px"),
    [("middlebury_calib.txt", {}, -20.0), ("K.txt", {"image_size": (640, 480)}, 0.0), ("stereodemo.json", {}, -20.0)],
)
def test_a_known_pixel_gets_its_depth_from_rectified_formats(file: str, settings: dict, offset_px: float) -> None:
    calibration = read_calibration(GOLDEN / file, **settings).stereo_calibration
    assert calibration.offset_px == offset_px
    # Z = B f / (d + doffs) = 0.12 m * 500 px / 30 px
    assert depth_from_disparity(30.0 + offset_px, calibration) == pytest.approx(2.0)
    assert (calibration.width, calibration.height) == (640, 480)


def test_p1_and_p2_alone_describe_a_rectified_rig(tmp_path: Path) -> None:
    left = np.array([[500.0, 0, 330, 0], [0, 480, 240, 0], [0, 0, 1, 0]])
    right = np.array([[500.0, 0, 320, -50], [0, 480, 240, 0], [0, 0, 1, 0]])
    np.savez(tmp_path / "rig.npz", P1=left, P2=right, image_size=[640, 480])
    rig = read_calibration(tmp_path / "rig.npz").stereo_calibration
    # Z = f B / (d - (cx_left - cx_right)) = 500 * 0.1 / (35 - 10) = 2 m; at half the width the same point has half d.
    assert (rig.width, rig.height, rig.offset_px) == (640, 480, 10.0)
    assert depth_from_disparity(35.0, rig) == pytest.approx(2.0)
    assert depth_from_disparity(17.5, rig.resized(480, 320)) == pytest.approx(2.0)


def test_a_real_rig_is_read_and_written_back(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "calibration/usb_rig_640x480.npz"
    rig = read_calibration(path)
    assert rig.stereo_calibration.baseline_m == pytest.approx(0.0715, abs=5e-5)
    assert rig.stereo_calibration.focal_px * rig.stereo_calibration.baseline_m == pytest.approx(34.945, abs=1e-3)
    save_calibration(tmp_path / "again.npz", rig, {"stereo_rms": 0.5})
    with np.load(path) as old, np.load(tmp_path / "again.npz") as new:
        for key in ("image_size", "mtx_l", "dist_l", "mtx_r", "dist_r", "R", "T", "R1", "R2", "P1", "P2", "Q"):
            assert old[key].shape == new[key].shape, key
            np.testing.assert_allclose(new[key], old[key], rtol=1e-9, atol=1e-12, err_msg=key)
        assert new["stereo_rms"] == 0.5


def test_a_real_stereodemo_file_is_read(shared_data: Path) -> None:
    rig = read_calibration(shared_data / "oak-d/stereodemo_calibration.json").stereo_calibration
    assert (rig.baseline_m, rig.focal_px, rig.offset_px) == (0.075, pytest.approx(451.03, abs=0.01), 0.0)


def edited(tmp_path: Path, file: str, old: str, new: str) -> Path:
    text = (GOLDEN / file).read_text()
    assert old in text
    (tmp_path / Path(file).name).write_text(text.replace(old, new))
    return tmp_path / Path(file).name


def npz(tmp_path: Path, leave: tuple[str, ...] = (), **changes) -> Path:
    with np.load(GOLDEN / "ours.npz") as golden:
        arrays = {key: golden[key] for key in golden} | changes
    np.savez(tmp_path / "rig.npz", **{key: value for key, value in arrays.items() if key not in leave})
    return tmp_path / "rig.npz"


NO_RECTIFICATION = ("R1", "R2", "P1", "P2", "Q")


@pytest.mark.parametrize(
    ("leave", "changes", "said"),
    [
        ((), {"R": np.diag([1.0, 1.0, -1.0])}, r"R is no rotation: R R' differs from the identity by 0, its determ"),
        ((), {"R": 1.01 * np.eye(3)}, "R is no rotation: R R' differs from the identity by 0.02"),
        ((), {"R1": 1.01 * np.eye(3)}, "R1 is no rotation"),
        ((), {"R": np.eye(2)}, r"R has the shape \(2, 2\), where 3x3 is needed"),
        ((), {"T": -SHIFT_M}, "left and right are exchanged; swap the two cameras"),
        ((), {"T": [0.001, -0.12, 0.0]}, "one camera is above the other; only rigs side by side work"),
        ((), {"T": [0.01, 0.0, 0.12]}, "one camera is behind the other"),
        (NO_RECTIFICATION, {"T": 1000 * SHIFT_M}, "a baseline of 120 m, where 0.01 to 2.0 are plausible: is its unit"),
        (NO_RECTIFICATION, {"T": SHIFT_M / 100}, "a baseline of 0.0012 m, where"),
        ((), {"T": SHIFT_M * np.nan}, "T, the right camera's position, is not finite"),
        ((), {"T": 2 * SHIFT_M}, "P2 says a baseline of 0.12 m, T one of 0.24 m; are they in two units"),
        ((), {"R": cv2.Rodrigues(2 * TURN)[0]}, "R1 and R2 do not rectify a rig with this R and T"),
        ((), {"P1": np.diag([400.0, 400, 1])[:, [0, 1, 2, 2]]}, "P1 and P2 differ in focal length or row"),
        ((), {"P1": np.zeros((3, 4))}, "P1 is no projection"),
        ((), {"image_size": [480, 640]}, "principal point .* does not lie in 480x640 images .* width before height"),
        ((), {"image_size": [300, 225]}, "principal point .* are these numbers of larger images"),
        (
            (),
            {"image_size": [1280, 960]},
            "lies at 0.2. of the width .* of 1280x960; are these numbers of smaller images",
        ),
        (
            (),
            {"mtx_l": LEFT + np.eye(3)[[1, 2, 0]] * 9},
            r"the left camera's matrix is not \(fx 0 cx; 0 fy",
        ),
        ((), {"image_size": [0, 480]}, "an image size of 0x480 px"),
        ((), {"mtx_l": np.diag([0.5, 0.5, 1])}, "belong to no usual left camera; are they in px"),
        ((), {"mtx_r": RIGHT * np.nan}, "the right camera's numbers are not all finite"),
        ((), {"dist_l": [0.1, 0.2, 0.3]}, "3 distortion coefficients of the left camera; radtan takes 0, 4, 5, 8, 12"),
        ((), {"distortion_model": "thin"}, "has the distortion model thin; known are"),
        ((), {"K1": LEFT}, "holds both mtx_l and K1, which mean the same"),
        ((*NO_RECTIFICATION, "mtx_r", "T"), {}, "lacks mtx_r, T; is it the calibration of a stereo rig"),
        (("image_size",), {}, "does not say how large the images were .* --calibration-size"),
        ((), {"mtx_l": "text"}, "mtx_l is not made of numbers"),
        ((), {"image_size": np.array([{"code": "to run"}], dtype=object)}, "is not an NPZ of plain numbers"),
    ],
)
def test_each_check_gets_its_line(tmp_path: Path, leave: tuple, changes: dict, said: str) -> None:
    path = npz(tmp_path, leave, **changes)
    with pytest.raises(CalibrationError, match=said) as caught:
        read_calibration(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("opencv.yml", "rows: 3", "rows: 30", "holds a matrix of 30x3 with 9 numbers"),
        ("opencv.yml", "M2:", "elsewhere:", "lacks mtx_r"),
        ("ros/left.yaml", "image_width: 640", "image_width: 320", "a camera_info of one camera; the other one's file"),
        ("kalibr_radtan.yaml", "T_cn_cnm1", "T_cam_imu", "lacks T_cn_cnm1"),
        ("kalibr_radtan.yaml", "pinhole", "omni", "cam0 has the camera model omni; only pinhole"),
        ("kalibr_radtan.yaml", "cam0:\n", "cam0: [\n", "is damaged"),
        ("kalibr_radtan.yaml", "cam1:", "cam2:", "lacks cam1"),
        ("zed.conf", "[STEREO]", "[ELSE]", "lacks baseline"),
        ("zed.conf", "fx=505", "fx=wide", "fx is not made of numbers, but 'wide'"),
        ("zed.conf", "k1=0.1\n", "", "lacks k1"),
        ("zed.conf", "[LEFT_CAM_VGA]\n", "[LEFT_CAM_VGA]\nno value\n", "is damaged"),
        ("depthai.json", '"toCameraSocket": 0', '"toCameraSocket": 5', "does not say how cameras 1 and 2 stand"),
        (
            "depthai.json",
            '"rightCameraSocket": 2',
            '"rightCameraSocket": 3',
            r"has the cameras \[0, 1, 2\], but not both",
        ),
        ("depthai.json", '"version": 7', '"version": ', "is damaged"),
        ("middlebury_calib.txt", "doffs=20", "doffs=2", "doffs is 2, but cam1 and cam0 say 20 px"),
        ("middlebury_calib.txt", "width=640\n", "", "does not say how large the images were"),
        ("stereodemo.json", '"fx"', '"f"', "lacks fx"),
        ("stereodemo.json", '"width": 640', f'"width": {"9" * 400}', "is damaged|width is"),
        ("kalibr_radtan.yaml", "cam0:\n", "made: 2001-99-99\ncam0:\n", "is damaged"),
        ("stereodemo.json", '"fx"', f'"deep": {"[" * 5000}{"]" * 5000}, "fx"', "is damaged"),
        ("stereodemo.json", '"width": 640', '"width": "wide"', "width is not made of numbers"),
        ("K.txt", "0.12", "0.12 7", "is no calibration of a known kind: NPZ, OpenCV YAML/XML/JSON, ROS"),
        ("K.txt", "0.12", "x", "the baseline is not made of numbers"),
    ],
)
def test_damaged_files_get_one_line(tmp_path: Path, file: str, old: str, new: str, said: str) -> None:
    path = edited(tmp_path, file, old, new)
    size = None if file == "middlebury_calib.txt" else (672, 376)
    with pytest.raises(CalibrationError, match=said) as caught:
        read_calibration(path, image_size=size)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("lens", "model", "expected"),
    [
        ("k1=3\nk2=-1.2\np1=0.001\np2=-0.002\nk3=0.8\nk4=2.9\nk5=-0.9\nk6=0.7\n", "radtan", 8),
        ("k1=0.05\nk2=-0.02\nk3=0.01\nk4=-0.004\n", "equidistant", 4),
    ],
)
def test_a_zed_file_with_one_lens_for_all_sizes(tmp_path: Path, lens: str, model: str, expected: int) -> None:
    eyes = "".join(
        f"[{eye}_CAM_FHD1200]\nfx=740\nfy=740\ncx=960\ncy=600\n[{eye}_DISTO]\n{lens}" for eye in ("LEFT", "RIGHT")
    )
    stereo = "[STEREO]\nBaseline=120\nTY=0.5\nTZ=-0.5\nRX_FHD1200=0\nCV_FHD1200=0\nRZ_FHD1200=0\n"
    (tmp_path / "zed.conf").write_text(eyes + stereo)
    rig = read_calibration(tmp_path / "zed.conf")
    assert (rig.width, rig.height, rig.distortion_model) == (1920, 1200, model)
    assert len(rig.left_distortion) == len(rig.right_distortion) == expected
    assert rig.left_distortion[0] != 0
    np.testing.assert_allclose(rig.translation_m, [-0.12, 0.0005, -0.0005])


def test_flipped_bits_of_a_packed_rig_are_one_line_or_nothing(tmp_path: Path) -> None:
    arrays = dict(np.load(GOLDEN / "ours.npz"))
    np.savez_compressed(tmp_path / "rig.npz", **arrays)
    whole, random = (tmp_path / "rig.npz").read_bytes(), np.random.default_rng(0)
    refused = 0
    for at in random.integers(0, len(whole), 300):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << random.integers(0, 8)
        (tmp_path / "flipped.npz").write_bytes(flipped)
        try:
            read_calibration(tmp_path / "flipped.npz")
        except CalibrationError:
            refused += 1
    assert refused > 150


@pytest.mark.parametrize("width", ["null", "NaN", "1e400", "640.5", '"wide"'])
def test_a_width_that_is_none_is_one_line(tmp_path: Path, width: str) -> None:
    path = edited(tmp_path, "stereodemo.json", '"width": 640', f'"width": {width}')
    with pytest.raises(CalibrationError, match="width"):
        read_calibration(path)


def test_a_zed_file_holds_several_sizes() -> None:
    with pytest.raises(
        CalibrationError, match=r"a calibration for each of 1280x720, 672x376, .*--calibration-size chooses one"
    ):
        read_calibration(GOLDEN / "zed.conf")
    with pytest.raises(CalibrationError, match="but none for 640x480"):
        read_calibration(GOLDEN / "zed.conf", image_size=(640, 480))


def test_a_size_that_the_file_contradicts_is_refused(tmp_path: Path) -> None:
    path = npz(tmp_path)
    assert read_calibration(path, image_size=(640, 480)).width == 640
    with pytest.raises(CalibrationError, match="made for images of 640x480; leave --calibration-size out"):
        read_calibration(path, image_size=(320, 240))


def test_spaces_around_the_names_of_a_middlebury_file(tmp_path: Path) -> None:
    path = edited(tmp_path, "middlebury_calib.txt", "=", " = ")
    assert read_calibration(path).stereo_calibration.offset_px == -20


def test_a_given_unit_wins_over_the_format(tmp_path: Path) -> None:
    path = edited(tmp_path, "stereodemo.json", "0.12", "120")
    with pytest.raises(CalibrationError, match="--calibration-unit"):
        read_calibration(path)
    assert read_calibration(path, unit="mm").stereo_calibration.baseline_m == pytest.approx(0.12)


def test_what_is_no_calibration_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"none\.npz: cannot be read \(No such file"):
        read_calibration(tmp_path / "none.npz")
    for content, said in [
        (b"PK torn", "is not an NPZ"),
        (b"\xff\xfe\x00", "is neither text nor an NPZ"),
        (b"", "is no calibration of a known kind"),
        (json.dumps({"a": 1}).encode(), "is no calibration of a known kind"),
    ]:
        (tmp_path / "rig").write_bytes(content)
        with pytest.raises(CalibrationError, match=said):
            read_calibration(tmp_path / "rig")
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    with pytest.raises(CalibrationError, match="holds none of the names that a rig's calibration has"):
        read_calibration(tmp_path / "other.npz")
    with pytest.raises(CalibrationError, match="a folder has to hold one pair of files"):
        read_calibration(tmp_path)


def test_two_ros_files_have_to_agree(tmp_path: Path) -> None:
    for eye in ("left", "right"):
        (tmp_path / f"{eye}.yaml").write_text((GOLDEN / f"ros/{eye}.yaml").read_text())
    edited(tmp_path, "ros/right.yaml", "image_width: 640", "image_width: 320")
    with pytest.raises(CalibrationError, match="the two files differ in image_width: 640 and 320"):
        read_calibration(tmp_path)
    edited(tmp_path, "ros/right.yaml", "plumb_bob", "equidistant")
    with pytest.raises(CalibrationError, match="distortion models radtan and equidistant"):
        read_calibration(tmp_path / "left.yaml")
    (tmp_path / "right.yaml").write_text((GOLDEN / "ros/left.yaml").read_text())
    with pytest.raises(CalibrationError, match="so the baseline is not in these files"):
        read_calibration(tmp_path)


# ------------------------------------------------------------------------------------- what the field's files look like
WIDE = np.array([-0.02, 0.005, -0.01, 0.002])


def wide_rig(
    width: int, height: int, focal_px: float, lens: np.ndarray, model: str, *, turn: tuple = (0.0, 0.01, 0.0)
) -> dict:
    matrix = np.array([[focal_px, 0, width / 2 + 3], [0, focal_px, height / 2 - 2], [0, 0, 1]])
    return {
        "image_size": [width, height], "mtx_l": matrix, "mtx_r": matrix, "dist_l": lens, "dist_r": lens,
        "R": cv2.Rodrigues(np.array(turn))[0], "T": [-0.1, 0.001, 0.0], "distortion_model": model,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("width", "height", "focal_px", "lens", "model"),
    [
        (848, 800, 285.0, WIDE, "equidistant"),
        (1280, 960, 330.0, WIDE, "equidistant"),
        (640, 480, 150.0, np.zeros(4), "equidistant"),
        (1280, 800, 400.0, np.array([-0.05, 0.002, 0.0, 0.0, 0.0]), "radtan"),
    ],
)
def test_a_wide_lens_is_rectified_by_angles(tmp_path: Path, *, width, height, focal_px, lens, model) -> None:
    np.savez(tmp_path / "rig.npz", **wide_rig(width, height, focal_px, lens, model))
    rig = read_calibration(tmp_path / "rig.npz")
    found = rig.stereo_calibration
    assert 0.4 * focal_px <= found.focal_px <= max(1.05 * focal_px, 0.32 * width)
    assert 2 * np.arctan(width / 2 / found.focal_px) < np.radians(120)
    assert 0.1 * width <= found.cx_left_px <= 0.9 * width
    assert 0.1 * height <= found.cy_px <= 0.9 * height
    assert found.baseline_m == pytest.approx(np.hypot(0.1, 0.001))
    # A point ahead keeps its row and gets its depth, through the lens's own model.
    optics, point = cv2.fisheye if model == "equidistant" else cv2, np.array([[[0.3, -0.2, 1.5]]])
    raw, still = wide_rig(width, height, focal_px, lens, model), np.zeros(3)
    pixels = []
    for rotation, shift, turn, projection in (
        (still, still, rig.rectified.left_rotation, rig.rectified.left_projection),
        (cv2.Rodrigues(raw["R"])[0], np.array(raw["T"]), rig.rectified.right_rotation, rig.rectified.right_projection),
    ):
        seen, _ = optics.projectPoints(point, rotation, shift, raw["mtx_l"], lens)
        pixels.append(optics.undistortPoints(seen.reshape(1, 1, 2), raw["mtx_l"], lens, R=turn, P=projection).ravel())
    assert pixels[0][1] == pytest.approx(pixels[1][1], abs=0.02)
    depth_m = depth_from_disparity(float(pixels[0][0] - pixels[1][0]), found)
    assert depth_m == pytest.approx((rig.rectified.left_rotation @ point.ravel())[2], rel=2e-3)


def test_cameras_that_look_apart_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "rig.npz", **wide_rig(640, 480, 500.0, np.zeros(5), "radtan", turn=(0.0, 1.4, 0.0)))
    with pytest.raises(CalibrationError, match=r"no rectification shows what both cameras see|one camera is behind"):
        _ = read_calibration(tmp_path / "rig.npz").rectified


def test_a_given_rectification_that_is_noise_is_refused(tmp_path: Path) -> None:
    noise = np.array([[37.0, 0, 1721, 0], [0, 37.0, 240, 0], [0, 0, 1, 0]])
    right = noise.copy()
    right[0, 3] = noise[0, 0] * -np.linalg.norm(SHIFT_M)
    with pytest.raises(CalibrationError, match=r"P1 has a focal length of 37 px .* leave R1, R2, P1, P2 out"):
        read_calibration(npz(tmp_path, P1=noise, P2=right))


@pytest.mark.parametrize("scale", [0.5, 0.625, 0.75, 1.25, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("which", ["matrices", "projections"])
def test_numbers_of_another_image_size_are_refused(tmp_path: Path, scale: float, which: str) -> None:
    if which == "projections" and 0.7 < scale < 1.4:
        pytest.skip("a rectified principal point may lie there")
    factors = np.diag([scale, scale, 1])
    with np.load(GOLDEN / "ours.npz") as ours:
        names = ("mtx_l", "mtx_r") if which == "matrices" else ("P1", "P2")
        changed = {name: factors @ ours[name] for name in names}
    leave = NO_RECTIFICATION if which == "matrices" else ()
    with pytest.raises(CalibrationError, match=f"of {'smaller' if scale < 1 else 'larger'} images"):
        read_calibration(npz(tmp_path, leave, **changed))


def test_toed_in_cameras_keep_their_off_centre_projections(tmp_path: Path) -> None:
    turn = cv2.Rodrigues(np.array([0.0, 0.2, 0.0]))[0]
    rig = read_calibration(npz(tmp_path, NO_RECTIFICATION, R=turn, T=[-0.12, 0.0, 0.015]))
    save_calibration(tmp_path / "again.npz", rig)
    again = read_calibration(tmp_path / "again.npz")
    np.testing.assert_allclose(again.rectified.left_projection, rig.rectified.left_projection)


def test_projections_relative_to_a_third_camera(tmp_path: Path) -> None:
    """KITTI's P2 and P3: T = K2^-1 p2 - K1^-1 p1; and the right camera as the reference."""
    matrix = np.array([[721.5, 0, 609.6], [0, 721.5, 172.9], [0, 0, 1.0]])
    for first_px_m, second_px_m in ((44.86, -339.5), (384.36, 0.0)):
        left, right = (np.column_stack([matrix, [column, 0, 0]]) for column in (first_px_m, second_px_m))
        np.savez(tmp_path / "rig.npz", P1=left, P2=right, image_size=[1242, 375])
        rig = read_calibration(tmp_path / "rig.npz")
        assert rig.stereo_calibration.baseline_m == pytest.approx(384.36 / 721.5)
        assert rig.rectified.left_projection[0, 3] == 0


def test_projections_and_rotations_stand_in_for_r_and_t(tmp_path: Path) -> None:
    complete = read_calibration(npz(tmp_path))
    derived = read_calibration(npz(tmp_path, ("R", "T", "Q")))
    np.testing.assert_allclose(derived.rotation, complete.rotation, atol=1e-9)
    np.testing.assert_allclose(derived.translation_m, complete.translation_m, atol=1e-9)
    with pytest.raises(CalibrationError, match="lacks T;"):
        read_calibration(npz(tmp_path, (*NO_RECTIFICATION, "T")))


@pytest.mark.parametrize(("unit", "baseline", "expected_m"), [("mm", 4.3, 0.0043), ("m", 3.2, 3.2), ("cm", 320, 3.2)])
def test_a_unit_that_the_user_names_is_believed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, unit, baseline: float, expected_m: float
) -> None:
    path = npz(tmp_path, NO_RECTIFICATION, T=[-baseline, 0, 0], R=np.eye(3))
    assert read_calibration(path, unit=unit).stereo_calibration.baseline_m == pytest.approx(expected_m)
    assert f"--calibration-unit {unit} says so" in caplog.text
    with pytest.raises(CalibrationError, match="--calibration-unit"):
        read_calibration(path)


@pytest.mark.parametrize(
    "header", ["%YAML:1.0\n---\n", "%YAML:1.0 # for other readers\n\n", "%YAML 1.2\n---\n", "---\n"]
)
def test_a_kalibr_file_is_one_whatever_its_first_line(tmp_path: Path, header: str) -> None:
    (tmp_path / "chain.yaml").write_text(header + (GOLDEN / "kalibr_radtan.yaml").read_text())
    plain = read_calibration(GOLDEN / "kalibr_radtan.yaml")
    np.testing.assert_array_equal(read_calibration(tmp_path / "chain.yaml").translation_m, plain.translation_m)


@pytest.mark.parametrize("name", ["T_cam_imu", "T_imu_cam"])
def test_poses_to_the_imu_give_the_pose_of_the_pair(tmp_path: Path, name: str) -> None:
    import yaml

    chain = yaml.safe_load((GOLDEN / "kalibr_radtan.yaml").read_text())
    pose = np.array(chain["cam1"].pop("T_cn_cnm1"))
    left = np.eye(4)
    left[:3, :3], left[:3, 3] = cv2.Rodrigues(np.array([0.3, 1.2, -0.4]))[0], [0.02, -0.05, 0.4]
    for camera, to_camera in (("cam0", left), ("cam1", pose @ left)):
        chain[camera][name] = (to_camera if name == "T_cam_imu" else np.linalg.inv(to_camera)).tolist()
    (tmp_path / "chain.yaml").write_text("%YAML:1.0\n" + yaml.safe_dump(chain))
    rig = read_calibration(tmp_path / "chain.yaml")
    np.testing.assert_allclose(rig.translation_m, pose[:3, 3], atol=1e-12)
    np.testing.assert_allclose(rig.rotation, pose[:3, :3], atol=1e-12)


def as_message(side: str, letters: str) -> str:
    import yaml

    info = yaml.safe_load((GOLDEN / f"ros/{side}.yaml").read_text())
    names = ("distortion_coefficients", "camera_matrix", "rectification_matrix", "projection_matrix")
    message = {"header": {"frame_id": side}, "height": info["image_height"], "width": info["image_width"]}
    message["distortion_model"] = info["distortion_model"]
    message |= {letter: info[name]["data"] for letter, name in zip(letters, names, strict=True)}
    return yaml.safe_dump(message) + "---\n"


def as_opencv(side: str) -> str:
    import yaml

    info = yaml.safe_load((GOLDEN / f"ros/{side}.yaml").read_text())
    storage = cv2.FileStorage("x.yml", cv2.FILE_STORAGE_WRITE | cv2.FILE_STORAGE_MEMORY)
    for name, value in info.items():
        matrix = isinstance(value, dict)
        storage.write(name, np.array(value["data"], float).reshape(value["rows"], value["cols"]) if matrix else value)
    return storage.releaseAndGetString()


SPELLINGS = {
    "rostopic": lambda side: as_message(side, "DKRP").encode(),
    "ros2 topic": lambda side: as_message(side, "dkrp").encode(),
    "OpenCV": lambda side: as_opencv(side).encode(),
    "UTF-16": lambda side: (GOLDEN / f"ros/{side}.yaml").read_text().encode("utf-16"),
    "gzip": lambda side: gzip.compress((GOLDEN / f"ros/{side}.yaml").read_bytes()),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("names", ["{side}.yaml", "{Side}.yaml", "cam_{SIDE}.yml", "{side}/camera_info.yaml"])
def test_camera_info_in_every_spelling_and_naming(tmp_path: Path, spelling: str, names: str) -> None:
    for side in ("left", "right"):
        path = tmp_path / names.format(side=side, Side=side.title(), SIDE=side.upper())
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(SPELLINGS[spelling](side))
    expected = read_calibration(GOLDEN / "ros").stereo_calibration
    assert read_calibration(tmp_path).stereo_calibration == expected
    assert read_calibration(path).stereo_calibration == expected


def test_a_camera_info_without_distortion_or_calibration(tmp_path: Path) -> None:
    for side in ("left", "right"):
        text = as_message(side, "DKRP").replace("plumb_bob", "''")
        start = text.index("D:\n")
        (tmp_path / f"{side}.yaml").write_text(text[:start] + "D: []\n" + text[text.index("K:\n") :])
    assert len(read_calibration(tmp_path).left_distortion) == 0
    for side in ("left", "right"):
        text = as_message(side, "DKRP")
        (tmp_path / f"{side}.yaml").write_text(re.sub(r"^- -?[\d.e-]+$", "- 0.0", text, flags=re.MULTILINE))
    with pytest.raises(CalibrationError, match="is all zeros: this camera was not calibrated"):
        read_calibration(tmp_path)


@pytest.mark.parametrize("not_set", [-1, 255])
def test_depthai_sockets_that_are_not_set(tmp_path: Path, not_set: int) -> None:
    device = json.loads((GOLDEN / "depthai.json").read_text())
    device["stereoRectificationData"] |= {"leftCameraSocket": not_set, "rightCameraSocket": not_set}
    (tmp_path / "rig.json").write_text(json.dumps(device))
    expected = read_calibration(GOLDEN / "depthai.json")
    np.testing.assert_allclose(read_calibration(tmp_path / "rig.json").translation_m, expected.translation_m)
    # Two cameras on other sockets, whose translation was never measured: the pair that the extrinsics join.
    camera = {socket: dict(each) for socket, each in device["cameraData"]}[2]
    join = {"rotationMatrix": np.eye(3).tolist(), "translation": dict.fromkeys("xyz", 0.0)}
    right = camera | {"extrinsics": join | {"toCameraSocket": -1}}
    left = camera | {"extrinsics": join | {"toCameraSocket": 3, "specTranslation": {"x": -6.2, "y": 0.0, "z": 0.0}}}
    device["cameraData"] = [[3, right], [5, left]]
    (tmp_path / "rig.json").write_text(json.dumps(device))
    np.testing.assert_allclose(read_calibration(tmp_path / "rig.json").translation_m, [-0.062, 0, 0], atol=1e-12)


def test_a_calibration_is_a_regular_file_of_plausible_size(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CalibrationError, match="is not a regular file"):
        read_calibration(tmp_path / "pipe")
    with pytest.raises(CalibrationError, match="is not a regular file"):
        read_calibration(Path("/dev/zero"))
    (tmp_path / "large.yaml").write_bytes(b"\n" * 2_000_000)
    with pytest.raises(CalibrationError, match="which no calibration has"):
        read_calibration(tmp_path / "large.yaml")
    np.savez_compressed(tmp_path / "bomb.npz", mtx_l=np.zeros(2_000_000))
    with pytest.raises(CalibrationError, match="which no matrix of a calibration has"):
        read_calibration(tmp_path / "bomb.npz")

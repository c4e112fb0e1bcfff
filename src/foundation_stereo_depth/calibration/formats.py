"""What other programs call a calibration -> a rig. Which of them wrote a file is for `calibration_files` to find out.

Every reader takes `metres`, how many metres a unit of length is (None: as the format defines it, or metres where it
does not say), and `size`, the width and height of the pictures in px where the file does not say.
"""

import configparser
import re
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float

from foundation_stereo_depth.calibration.rig import DistortionModel, Rectification, RigCalibration, rectified_already
from foundation_stereo_depth.errors import CalibrationError

Size = tuple[int, int] | None

METRES = {"m": 1.0, "cm": 0.01, "mm": 0.001}
"""Metres in one of each unit."""

_MODELS: dict[str, DistortionModel] = {
    "none": "radtan",
    "radtan": "radtan",
    "plumb_bob": "radtan",
    "rational_polynomial": "radtan",
    "equidistant": "equidistant",
    "fisheye": "equidistant",
}
_ZED_SIZES = {
    "2k": (2208, 1242),
    "fhd": (1920, 1080),
    "fhd1200": (1920, 1200),
    "hd": (1280, 720),
    "svga": (960, 600),
    "vga": (672, 376),
}
_DEPTHAI_LEFT, _DEPTHAI_RIGHT = 1, 2
"""Sockets B and C: the pair of every OAK camera, where its file does not say."""
_DEPTHAI_FISHEYE = 1
_FISHEYE_COEFFICIENTS = 4


def from_ros(infos: Sequence[Any], metres: float | None) -> RigCalibration:
    """The rig of a pair of ROS camera_info files, left and right: P_right[0, 3] is -f B.

    R and T follow from the rectification, which both files hold.
    """
    left, right = (_mapping(info) for info in infos)
    for name in ("image_width", "image_height"):
        if number(left, name) != number(right, name):
            raise CalibrationError(f"the two files differ in {name}: {left[name]} and {right[name]}")
    given = Rectification(
        left_rotation=_ros_matrix(left, "rectification_matrix", (3, 3)),
        right_rotation=_ros_matrix(right, "rectification_matrix", (3, 3)),
        left_projection=_ros_matrix(left, "projection_matrix", (3, 4)),
        right_projection=in_metres(_ros_matrix(right, "projection_matrix", (3, 4)), metres or 1.0),
    )
    if not given.right_projection[:, 3].any():
        raise CalibrationError("the right camera's projection_matrix[0, 3] is 0, so the baseline is not in these files")
    return RigCalibration(
        width=whole(left, "image_width"),
        height=whole(left, "image_height"),
        left_matrix=_ros_matrix(left, "camera_matrix", (3, 3)),
        left_distortion=_ros_matrix(left, "distortion_coefficients", (-1,)),
        right_matrix=_ros_matrix(right, "camera_matrix", (3, 3)),
        right_distortion=_ros_matrix(right, "distortion_coefficients", (-1,)),
        distortion_model=_one_model(left, right),
        rotation=given.right_rotation.T @ given.left_rotation,
        translation_m=given.right_rotation.T @ given.translation_m,
        rectification=given,
    )


def from_kalibr(said: Any, metres: float | None) -> RigCalibration:
    """The rig of a Kalibr camchain: cam0 is the left eye, cam1 the right one, T_cn_cnm1 takes cam0 to cam1."""
    chain = _mapping(said)
    left, right = (_mapping(entry(chain, eye)) for eye in ("cam0", "cam1"))
    for eye, camera in (("cam0", left), ("cam1", right)):
        if entry(camera, "camera_model") != "pinhole":
            raise CalibrationError(
                f"{eye} has the camera model {camera['camera_model']}; only pinhole can be rectified"
            )
    width, height = size_in(left, "resolution")
    if (width, height) != size_in(right, "resolution"):
        raise CalibrationError("cam0 and cam1 have different resolutions; both eyes need one size")
    pose = numbers(right, "T_cn_cnm1", (4, 4))
    return RigCalibration(
        width=width,
        height=height,
        left_matrix=_camera(*numbers(left, "intrinsics", (4,))),
        left_distortion=numbers(left, "distortion_coeffs", (-1,)),
        right_matrix=_camera(*numbers(right, "intrinsics", (4,))),
        right_distortion=numbers(right, "distortion_coeffs", (-1,)),
        distortion_model=_one_model(left, right),
        rotation=pose[:3, :3],
        translation_m=pose[:3, 3] * (metres or 1.0),
    )


def from_zed(text: str, metres: float | None, size: Size) -> RigCalibration:
    """The rig of a Stereolabs .conf, which holds one calibration for each size that the camera has, in millimetres.

    T is (-Baseline, TY, TZ), and RX, CV, RZ turn as R does: so Stereolabs' zed-opencv-calibration writes what OpenCV's
    stereoCalibrate gave it. Where a camera's own section has no lens, the one for all sizes is in LEFT_DISTO or
    RIGHT_DISTO.
    """
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.read_string(text)
    sections = {name.lower(): dict(parser[name]) for name in parser.sections()}
    held = {name: each for name, each in _ZED_SIZES.items() if f"left_cam_{name}" in sections}
    if size is None and len(held) == 1:
        size = next(iter(held.values()))
    if size not in held.values():
        sizes = ", ".join(f"{width}x{height}" for width, height in held.values())
        raise CalibrationError(
            f"holds a calibration for each of {sizes}, which do not scale to one another"
            + ("" if size is None else f", but none for {size[0]}x{size[1]}")
            + "; --calibration-size says which one"
        )
    assert size is not None
    suffix = next(name for name, each in held.items() if each == size)
    stereo = sections.get("stereo", {})
    cameras = [sections.get(f"{eye}_cam_{suffix}", {}) for eye in ("left", "right")]
    lenses = [
        _zed_lens(camera if "k1" in camera else sections.get(f"{eye}_disto", {}))
        for eye, camera in zip(("left", "right"), cameras, strict=True)
    ]
    if len(lenses[0]) != len(lenses[1]):
        raise CalibrationError("its two cameras have different lens models; both eyes need one")
    # Older cameras have one turn for all sizes, without the suffix.
    turn = [number(stereo, f"{name}_{suffix}", number(stereo, name, 0)) for name in ("rx", "cv", "rz")]
    shift = [number(stereo, f"{name}_{suffix}", number(stereo, name, 0)) for name in ("ty", "tz")]
    matrices = [_camera(*(number(camera, name) for name in ("fx", "fy", "cx", "cy"))) for camera in cameras]
    return RigCalibration(
        width=size[0],
        height=size[1],
        left_matrix=matrices[0],
        left_distortion=lenses[0],
        right_matrix=matrices[1],
        right_distortion=lenses[1],
        distortion_model="equidistant" if len(lenses[0]) == _FISHEYE_COEFFICIENTS else "radtan",
        rotation=np.asarray(cv2.Rodrigues(np.array(turn))[0]),
        translation_m=np.array([-number(stereo, "baseline"), *shift]) * (metres or METRES["mm"]),
    )


def _zed_lens(section: Mapping[str, Any]) -> Float[np.ndarray, " coefficients"]:
    """OpenCV's eight coefficients of a rational lens, or the four of a fisheye, by the rule of Stereolabs' tool."""
    number(section, "k1")  # without it the file says nothing of the lens
    k1, k2, p1, p2, k3, k4, k5, k6 = (
        number(section, name, 0) for name in ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")
    )
    if k4 and not (p1 or p2 or k5 or k6):
        return np.array([k1, k2, k3, k4])
    return np.array([k1, k2, p1, p2, k3, k4, k5, k6] if k4 or k5 or k6 else [k1, k2, p1, p2, k3])


def from_depthai(said: Any, metres: float | None) -> RigCalibration:
    """The rig of a DepthAI (OAK) device's JSON: its left and right cameras, in centimetres."""
    device = _mapping(said)
    cameras = {
        whole({"a socket": socket}, "a socket"): _mapping(camera) for socket, camera in _pairs(device, "cameraData")
    }
    pair = _mapping(device.get("stereoRectificationData", {}))
    from_socket = whole(pair, "leftCameraSocket", _DEPTHAI_LEFT)
    to_socket = whole(pair, "rightCameraSocket", _DEPTHAI_RIGHT)
    if not {from_socket, to_socket} <= set(cameras):
        raise CalibrationError(
            f"has the cameras {sorted(cameras)}, but not both of the pair {from_socket}, {to_socket}"
        )
    left, right = cameras[from_socket], cameras[to_socket]
    size = (whole(left, "width"), whole(left, "height"))
    if size != (number(right, "width"), number(right, "height")):
        raise CalibrationError("its two cameras were calibrated at different sizes; both eyes need one size")
    fisheye = [number(camera, "cameraType") == _DEPTHAI_FISHEYE for camera in (left, right)]
    if fisheye[0] != fisheye[1]:
        raise CalibrationError("its two cameras have different lens models; both eyes need one")
    coefficients = 4 if fisheye[0] else 14
    pose = _between(_poses(cameras), from_socket, to_socket)
    return RigCalibration(
        width=size[0],
        height=size[1],
        left_matrix=numbers(left, "intrinsicMatrix", (3, 3)),
        left_distortion=numbers(left, "distortionCoeff", (-1,))[:coefficients],
        right_matrix=numbers(right, "intrinsicMatrix", (3, 3)),
        right_distortion=numbers(right, "distortionCoeff", (-1,))[:coefficients],
        distortion_model="equidistant" if fisheye[0] else "radtan",
        rotation=pose[:3, :3],
        translation_m=pose[:3, 3] * (metres or METRES["cm"]),
    )


def from_middlebury(text: str, metres: float | None, size: Size) -> RigCalibration:
    """The rig of a Middlebury calib.txt, rectified already, in millimetres: Z = B f / (d + doffs)."""
    lines = {key.strip(): value for key, is_, value in (line.partition("=") for line in text.splitlines()) if is_}
    cameras: list[np.ndarray] = []
    for eye in ("cam0", "cam1"):
        values = re.sub(r"[\[\];,]", " ", entry(lines, eye)).split()
        cameras.append(numbers({eye: values}, eye, (3, 3)))
    width, height = size_of(lines, size)
    offset_px = cameras[1][0, 2] - cameras[0][0, 2]
    if abs(number(lines, "doffs", offset_px) - offset_px) > 0.01:
        raise CalibrationError(f"doffs is {lines['doffs'].strip()}, but cam1 and cam0 say {offset_px:.4g} px")
    return rectified_already(
        width=width,
        height=height,
        left=cameras[0],
        right=cameras[1],
        translation_m=_beside(number(lines, "baseline") * (metres or METRES["mm"])),
    )


def from_k_txt(text: str, metres: float | None, size: Size) -> RigCalibration:
    """The rig of FoundationStereo's K.txt, rectified already: nine numbers of a camera matrix, then the baseline, m."""
    values = text.split()
    width, height = size_of({}, size)
    matrix = numbers({"the camera matrix": values[:9]}, "the camera matrix", (3, 3))
    baseline_m = number({"the baseline": values[9]}, "the baseline") * (metres or 1.0)
    return rectified_already(width=width, height=height, left=matrix, right=matrix, translation_m=_beside(baseline_m))


def from_stereodemo(said: Any, metres: float | None) -> RigCalibration:
    """The rig of stereodemo's JSON, rectified already, in metres."""
    fx, fy, cx0, cx1, cy = (number(said, name) for name in ("fx", "fy", "cx0", "cx1", "cy"))
    return rectified_already(
        width=whole(said, "width"),
        height=whole(said, "height"),
        left=_camera(fx, fy, cx0, cy),
        right=_camera(fx, fy, cx1, cy),
        translation_m=_beside(number(said, "baseline_meters") * (metres or 1.0)),
    )


def _camera(fx: float, fy: float, cx: float, cy: float) -> Float[np.ndarray, "3 3"]:
    return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])


def _beside(baseline_m: float) -> Float[np.ndarray, "3"]:
    """T of a rectified rig."""
    return np.array([-baseline_m, 0.0, 0.0])


def size_of(found: Mapping[str, Any], size: Size) -> tuple[int, int]:
    """Width and height, px: as the file says them, else as was given beside it."""
    said = None
    if "image_size" in found:
        said = size_in(found, "image_size")
    elif "width" in found and "height" in found:
        said = whole(found, "width"), whole(found, "height")
    if said is not None:
        if size not in (None, said):
            raise CalibrationError(
                f"says that it was made for pictures of {said[0]}x{said[1]}; leave --calibration-size out"
            )
        return said
    if size is None:
        raise CalibrationError(
            "does not say how large the pictures were that it was made for; --calibration-size, 640x480 say, does"
        )
    return size


def in_metres(projection: Float[np.ndarray, "3 4"], metres: float) -> Float[np.ndarray, "3 4"]:
    """The projection with its f B, the only length in it, in px m."""
    return projection * np.array([1.0, 1.0, 1.0, metres])


def model_of(name: str) -> DistortionModel:
    """OpenCV's model behind a name that ROS, Kalibr or we have for it."""
    if name not in _MODELS:
        raise CalibrationError(f"has the distortion model {name}; known are {', '.join(_MODELS)}")
    return _MODELS[name]


def _one_model(left: Mapping[str, Any], right: Mapping[str, Any]) -> DistortionModel:
    models: list[DistortionModel] = [
        model_of(str(camera.get("distortion_model", "plumb_bob"))) for camera in (left, right)
    ]
    if models[0] != models[1]:
        raise CalibrationError(f"its two cameras have the distortion models {models[0]} and {models[1]}; both need one")
    return models[0]


def _poses(cameras: Mapping[int, Mapping[str, Any]]) -> dict[tuple[int, int], np.ndarray]:
    """(from, to) -> 4x4 pose, for every pair of sockets that a DepthAI file relates directly, both ways."""
    poses: dict[tuple[int, int], np.ndarray] = {}
    for socket, camera in cameras.items():
        extrinsics = _mapping(entry(camera, "extrinsics"))
        to_socket = whole(extrinsics, "toCameraSocket")
        if to_socket in cameras:
            shift = _mapping(entry(extrinsics, "translation"))
            pose = np.eye(4)
            pose[:3, :3] = numbers(extrinsics, "rotationMatrix", (3, 3))
            pose[:3, 3] = [number(shift, axis) for axis in "xyz"]
            poses[socket, to_socket], poses[to_socket, socket] = pose, np.linalg.inv(pose)
    return poses


def _between(poses: Mapping[tuple[int, int], np.ndarray], start: int, end: int) -> Float[np.ndarray, "4 4"]:
    """The pose that takes one socket's axes to another's, by way of the sockets between them."""
    reached = {start: np.eye(4)}
    while end not in reached:
        steps = [step for step in poses if step[0] in reached and step[1] not in reached]
        if not steps:
            raise CalibrationError(f"does not say how cameras {start} and {end} stand to each other")
        near, far = steps[0]
        reached[far] = poses[near, far] @ reached[near]
    return reached[end]


def _pairs(mapping: Mapping[str, Any], name: str) -> list[tuple[Any, Any]]:
    """Names with values, as DepthAI writes them: in lists of two."""
    found = entry(mapping, name)
    if not isinstance(found, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in found):
        raise CalibrationError(f"has {str(found)[:40]!r} under {name}, where pairs should stand; is it damaged?")
    return [(pair[0], pair[1]) for pair in found]


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise CalibrationError(f"has {str(value)[:40]!r} where names with values should stand; is it damaged?")
    return value


def entry(mapping: Mapping[str, Any], name: str) -> Any:
    """What stands under a name.

    Raises:
        CalibrationError: nothing does.
    """
    if name not in mapping:
        raise CalibrationError(f"lacks {name}; is it the calibration of a stereo rig?")
    return mapping[name]


def whole(mapping: Mapping[str, Any], name: str, default: float | None = None) -> int:
    """The whole number under a name.

    Raises:
        CalibrationError: nothing stands there, or no whole number.
    """
    value = number(mapping, name, default)
    if not value.is_integer():
        raise CalibrationError(f"{name} is {value:g}, and has to be a whole number")
    return int(value)


def size_in(mapping: Mapping[str, Any], name: str) -> tuple[int, int]:
    """Width and height, px, that stand under a name.

    Raises:
        CalibrationError: nothing stands there, or no two whole numbers.
    """
    width, height = numbers(mapping, name, (2,))
    return whole({name: width}, name), whole({name: height}, name)


def numbers(mapping: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
    """The numbers under a name, float64, in a shape that they fill.

    Raises:
        CalibrationError: nothing stands there, no numbers, or numbers of another shape.
    """
    found = entry(mapping, name)
    try:
        values = np.array(found, np.float64)
    except (TypeError, ValueError) as error:
        raise CalibrationError(f"{name} is not made of numbers, but {str(found)[:40]!r}") from error
    turned = values.ndim > 1 and min(values.shape) > 1 and values.shape != shape
    if -1 not in shape and (values.size != np.prod(shape) or turned):
        wanted = "x".join(map(str, shape)) or "one number"
        raise CalibrationError(f"{name} has the shape {values.shape}, where {wanted} is needed")
    return values.reshape(shape)


def number(mapping: Mapping[str, Any], name: str, default: float | None = None) -> float:
    """The number under a name, or the default where nothing stands there.

    Raises:
        CalibrationError: no number stands there, and there is no default.
    """
    if name not in mapping and default is not None:
        return float(default)
    return float(numbers(mapping, name, ()))


def _ros_matrix(info: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
    return numbers({name: entry(_mapping(entry(info, name)), "data")}, name, shape)

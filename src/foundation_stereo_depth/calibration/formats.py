"""One reader per calibration format: parsed values -> a rig. `calibration.files` finds out which format a file has.

Every reader takes `metres`, how many metres a unit of length is (None: as the format defines it, or metres where it
does not say), and `size`, the width and height of the images in px where the file does not say.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float

from foundation_stereo_depth.calibration.rig import DistortionModel, Rectification, RigCalibration, create_rectified_rig
from foundation_stereo_depth.errors import CalibrationError

Size = tuple[int, int] | None

METRES = {"m": 1.0, "cm": 0.01, "mm": 0.001}
"""Metres in one of each unit."""

_MODELS: dict[str, DistortionModel] = {
    "none": "radtan",
    "": "radtan",
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
_ROS_NAMES = {
    "image_width": ("image_width", "width"),
    "image_height": ("image_height", "height"),
    "camera_matrix": ("camera_matrix", "K", "k"),
    "distortion_coefficients": ("distortion_coefficients", "D", "d"),
    "rectification_matrix": ("rectification_matrix", "R", "r"),
    "projection_matrix": ("projection_matrix", "P", "p"),
    "distortion_model": ("distortion_model",),
}
"""Names in a camera_info file, and in the message as rostopic echo and ros2 topic echo print it."""
_DEPTHAI_NOT_SET = (-1, 255)
_DEPTHAI_FISHEYE = 1
_FISHEYE_COEFFICIENTS = 4


def is_camera_info(values: Any) -> bool:
    """True for the values of a ROS camera_info, as a file or as a printed message."""
    return isinstance(values, Mapping) and {"camera_matrix", "projection_matrix"} <= set(_camera_info(values))


def from_ros(infos: Sequence[Any], metres: float | None) -> RigCalibration:
    """Return the rig of a pair of ROS camera_info, left and right: P_right[0, 3] is -f B.

    R and T follow from the rectification, which both hold.
    """
    left, right = (_camera_info(_mapping(info)) for info in infos)
    for name in ("image_width", "image_height"):
        if number(left, name) != number(right, name):
            raise CalibrationError(f"the two files differ in {name}: {left[name]} and {right[name]}")
    left_matrix, right_matrix = (_ros_matrix(info, "camera_matrix", (3, 3)) for info in (left, right))
    given = Rectification(
        left_rotation=_ros_matrix(left, "rectification_matrix", (3, 3)),
        right_rotation=_ros_matrix(right, "rectification_matrix", (3, 3)),
        left_projection=in_metres(_ros_matrix(left, "projection_matrix", (3, 4)), metres or 1.0),
        right_projection=in_metres(_ros_matrix(right, "projection_matrix", (3, 4)), metres or 1.0),
    ).relative_to_left()
    if not given.right_projection[:, 3].any():
        raise CalibrationError("the right camera's projection_matrix[0, 3] is 0, so the baseline is not in these files")
    return RigCalibration(
        width=whole(left, "image_width"),
        height=whole(left, "image_height"),
        left_matrix=left_matrix,
        left_distortion=_ros_distortion(left),
        right_matrix=right_matrix,
        right_distortion=_ros_distortion(right),
        distortion_model=_one_model(left, right),
        rotation=given.right_rotation.T @ given.left_rotation,
        translation_m=given.right_rotation.T @ given.translation_m,
        rectification=given,
    )


def _camera_info(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries by the names of a camera_info file, whichever generation of the message they come from."""
    return {
        name: next(info[spelled] for spelled in spellings if spelled in info)
        for name, spellings in _ROS_NAMES.items()
        if any(spelled in info for spelled in spellings)
    }


def _ros_matrix(info: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
    """Return a matrix that stands as rows, cols, data, as a flat list (of a message), or as OpenCV's own."""
    found = entry(info, name)
    values = numbers({name: entry(found, "data") if isinstance(found, Mapping) else found}, name, (-1,))
    if values.size and not values.any() and -1 not in shape:
        what = "this camera was not calibrated"
        if name in ("rectification_matrix", "projection_matrix"):
            what = "the cameras were not calibrated as a pair"
        raise CalibrationError(f"{name} is all zeros: {what}")
    return numbers({name: values}, name, shape)


def _ros_distortion(info: Mapping[str, Any]) -> Float[np.ndarray, " N"]:
    """Return the coefficients; none where the message has an empty list."""
    return _ros_matrix(info, "distortion_coefficients", (-1,)) if "distortion_coefficients" in info else np.zeros(0)


def from_kalibr(values: Any, metres: float | None) -> RigCalibration:
    """Return the rig of a Kalibr camchain: cam0 is the left camera, cam1 the right one, T_cn_cnm1 takes cam0 to cam1.

    Where it lacks T_cn_cnm1, the pose follows from both cameras' to the IMU: Kalibr's T_cam_imu (IMU to camera), or
    OpenVINS' T_imu_cam (camera to IMU).
    """
    chain = _mapping(values)
    left, right = (_mapping(entry(chain, name)) for name in ("cam0", "cam1"))
    for name, camera in (("cam0", left), ("cam1", right)):
        if camera.get("camera_model", "pinhole") != "pinhole":
            raise CalibrationError(
                f"{name} has the camera model {camera['camera_model']}; only pinhole can be rectified"
            )
    width, height = size_in(left, "resolution")
    if (width, height) != size_in(right, "resolution"):
        raise CalibrationError("cam0 and cam1 have different resolutions; both cameras need one size")
    pose = _kalibr_pose(left, right)
    return RigCalibration(
        width=width,
        height=height,
        left_matrix=_camera(*numbers(left, "intrinsics", (4,))),
        left_distortion=_kalibr_distortion(left),
        right_matrix=_camera(*numbers(right, "intrinsics", (4,))),
        right_distortion=_kalibr_distortion(right),
        distortion_model=_one_model(left, right),
        rotation=pose[:3, :3],
        translation_m=pose[:3, 3] * (metres or 1.0),
    )


def _kalibr_distortion(camera: Mapping[str, Any]) -> Float[np.ndarray, " N"]:
    if str(camera.get("distortion_model", "")).lower() == "none":
        return np.zeros(0)
    return numbers(camera, "distortion_coeffs", (-1,))


def _kalibr_pose(left: Mapping[str, Any], right: Mapping[str, Any]) -> Float[np.ndarray, "4 4"]:
    """Return what takes a point from the left camera's axes to the right one's."""
    if "T_cn_cnm1" in right:
        return numbers(right, "T_cn_cnm1", (4, 4))
    if "T_cam_imu" in left and "T_cam_imu" in right:
        return numbers(right, "T_cam_imu", (4, 4)) @ np.linalg.inv(numbers(left, "T_cam_imu", (4, 4)))
    if "T_imu_cam" in left and "T_imu_cam" in right:
        return np.linalg.inv(numbers(right, "T_imu_cam", (4, 4))) @ numbers(left, "T_imu_cam", (4, 4))
    raise CalibrationError("lacks T_cn_cnm1 (or both cameras' T_cam_imu or T_imu_cam), the pose of cam1 to cam0")


def _ini_sections(text: str) -> dict[str, dict[str, str]]:
    """Return section -> entries, all names in lower case.

    Python's own reader takes a time of the length squared for lines that are no entries.
    """
    sections: dict[str, dict[str, str]] = {}
    entries: dict[str, str] = {}
    for number, line in enumerate(map(str.strip, text.splitlines()), start=1):
        if not line or line[0] in "#;":
            continue
        if line[0] == "[" and line[-1] == "]":
            entries = sections.setdefault(line[1:-1].strip().lower(), {})
            continue
        name, equals, value = line.partition("=")
        if not equals:
            raise CalibrationError(f"is damaged: line {number} is neither a section nor an entry")
        entries[name.strip().lower()] = value.strip()
    return sections


def from_zed(text: str, metres: float | None, size: Size) -> RigCalibration:
    """Return the rig of a Stereolabs .conf, which holds a calibration for each size of the camera, in millimetres.

    T is (-Baseline, TY, TZ), and RX, CV, RZ turn as R does: so Stereolabs' zed-opencv-calibration writes what OpenCV's
    stereoCalibrate gave it. Where a camera's own section has no lens, the one for all sizes is in LEFT_DISTO or
    RIGHT_DISTO.
    """
    sections = _ini_sections(text)
    held = {name: each for name, each in _ZED_SIZES.items() if f"left_cam_{name}" in sections}
    if size is None and len(held) == 1:
        size = next(iter(held.values()))
    if size not in held.values():
        sizes = ", ".join(f"{width}x{height}" for width, height in held.values())
        raise CalibrationError(
            f"holds a calibration for each of {sizes}, which do not scale to one another"
            + ("" if size is None else f", but none for {size[0]}x{size[1]}")
            + "; --calibration-size chooses one"
        )
    assert size is not None
    suffix = next(name for name, each in held.items() if each == size)
    stereo = sections.get("stereo", {})
    cameras = [sections.get(f"{side}_cam_{suffix}", {}) for side in ("left", "right")]
    lenses = [
        _zed_lens(camera if "k1" in camera else sections.get(f"{side}_disto", {}))
        for side, camera in zip(("left", "right"), cameras, strict=True)
    ]
    if len(lenses[0]) != len(lenses[1]):
        raise CalibrationError("its two cameras have different lens models; both cameras need one")
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
    """Return the eight coefficients of a rational lens, or the four of a fisheye, by the rule of Stereolabs' tool."""
    number(section, "k1")  # without it the file says nothing of the lens
    k1, k2, p1, p2, k3, k4, k5, k6 = (
        number(section, name, 0) for name in ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")
    )
    if k4 and not (p1 or p2 or k5 or k6):
        return np.array([k1, k2, k3, k4])
    return np.array([k1, k2, p1, p2, k3, k4, k5, k6] if k4 or k5 or k6 else [k1, k2, p1, p2, k3])


def from_depthai(values: Any, metres: float | None) -> RigCalibration:
    """Return the rig of a DepthAI (OAK) device's JSON: its left and right cameras, in centimetres.

    Boards that were never rectified have no pair of sockets (-1 or 255), and some no measured translation: then the
    pair is the two cameras that the extrinsics join, and the translation that of the board's design.
    """
    device = _mapping(values)
    cameras = {
        whole({"a socket": socket}, "a socket"): _mapping(camera) for socket, camera in _pairs(device, "cameraData")
    }
    poses = _poses(cameras)
    from_socket, to_socket = _depthai_pair(_mapping(device.get("stereoRectificationData", {})), cameras, poses)
    left, right = cameras[from_socket], cameras[to_socket]
    size = (whole(left, "width"), whole(left, "height"))
    if size != (number(right, "width"), number(right, "height")):
        raise CalibrationError("its two cameras were calibrated at different sizes; both cameras need one size")
    fisheye = [number(camera, "cameraType", 0) == _DEPTHAI_FISHEYE for camera in (left, right)]
    if fisheye[0] != fisheye[1]:
        raise CalibrationError("its two cameras have different lens models; both cameras need one")
    coefficients = 4 if fisheye[0] else 14
    pose = _between(poses, from_socket, to_socket)
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


def _depthai_pair(
    pair: Mapping[str, Any], cameras: Mapping[int, Any], poses: Mapping[tuple[int, int], Any]
) -> tuple[int, int]:
    """Return the sockets of the left and the right camera."""
    named = [whole(pair, name, -1) for name in ("leftCameraSocket", "rightCameraSocket")]
    set_to = [socket for socket in named if socket not in _DEPTHAI_NOT_SET]
    if set_to and not set(named) <= set(cameras):
        raise CalibrationError(f"has the cameras {sorted(cameras)}, but not both of the pair {named[0]}, {named[1]}")
    if set_to:
        return named[0], named[1]
    if {_DEPTHAI_LEFT, _DEPTHAI_RIGHT} <= set(cameras):
        return _DEPTHAI_LEFT, _DEPTHAI_RIGHT
    joined = sorted({tuple(sorted(step)) for step in poses})
    if len(joined) != 1:
        raise CalibrationError(
            f"has the cameras {sorted(cameras)} and does not say which two are the pair: leftCameraSocket and "
            "rightCameraSocket are not set"
        )
    first, second = joined[0]
    # The right camera of a pair lies in the direction of x: the left one's origin has x < 0 in its axes.
    return (first, second) if poses[first, second][0, 3] < 0 else (second, first)


def from_middlebury(text: str, metres: float | None, size: Size) -> RigCalibration:
    """Return the rig of a Middlebury calib.txt, rectified already, in millimetres: Z = B f / (d + doffs)."""
    lines = {key.strip(): value for key, is_, value in (line.partition("=") for line in text.splitlines()) if is_}
    cameras: list[np.ndarray] = []
    for name in ("cam0", "cam1"):
        values = re.sub(r"[\[\];,]", " ", entry(lines, name)).split()
        cameras.append(numbers({name: values}, name, (3, 3)))
    width, height = size_of(lines, size)
    offset_px = cameras[1][0, 2] - cameras[0][0, 2]
    if abs(number(lines, "doffs", offset_px) - offset_px) > 0.01:
        raise CalibrationError(f"doffs is {lines['doffs'].strip()}, but cam1 and cam0 say {offset_px:.4g} px")
    return create_rectified_rig(
        width=width,
        height=height,
        left=cameras[0],
        right=cameras[1],
        translation_m=_beside(number(lines, "baseline") * (metres or METRES["mm"])),
    )


def from_k_txt(text: str, metres: float | None, size: Size) -> RigCalibration:
    """Return the rig of FoundationStereo's K.txt, rectified already: the nine numbers of K, then the baseline, m."""
    values = text.split()
    width, height = size_of({}, size)
    matrix = numbers({"the camera matrix": values[:9]}, "the camera matrix", (3, 3))
    baseline_m = number({"the baseline": values[9]}, "the baseline") * (metres or 1.0)
    return create_rectified_rig(
        width=width, height=height, left=matrix, right=matrix, translation_m=_beside(baseline_m)
    )


def from_stereodemo(values: Any, metres: float | None) -> RigCalibration:
    """Return the rig of stereodemo's JSON, rectified already, in metres."""
    fx, fy, cx0, cx1, cy = (number(values, name) for name in ("fx", "fy", "cx0", "cx1", "cy"))
    return create_rectified_rig(
        width=whole(values, "width"),
        height=whole(values, "height"),
        left=_camera(fx, fy, cx0, cy),
        right=_camera(fx, fy, cx1, cy),
        translation_m=_beside(number(values, "baseline_meters") * (metres or 1.0)),
    )


def _camera(fx: float, fy: float, cx: float, cy: float) -> Float[np.ndarray, "3 3"]:
    return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])


def _beside(baseline_m: float) -> Float[np.ndarray, "3"]:
    """T of a rectified rig."""
    return np.array([-baseline_m, 0.0, 0.0])


def size_of(found: Mapping[str, Any], size: Size) -> tuple[int, int]:
    """Return width and height, px: as the file says them, else as was given beside it.

    Raises:
        CalibrationError: the two contradict each other, or there is neither.
    """
    stated = None
    if "image_size" in found:
        stated = size_in(found, "image_size")
    elif "width" in found and "height" in found:
        stated = whole(found, "width"), whole(found, "height")
    if stated is not None:
        if size not in (None, stated):
            raise CalibrationError(
                f"states that it was made for images of {stated[0]}x{stated[1]}; leave --calibration-size out"
            )
        return stated
    if size is None:
        raise CalibrationError(
            "does not say how large the images were that it was made for; give --calibration-size, such as 640x480"
        )
    return size


def in_metres(projection: Float[np.ndarray, "3 4"], metres: float) -> Float[np.ndarray, "3 4"]:
    """Return the projection with its f B, the only length in it, in px m."""
    return projection * np.array([1.0, 1.0, 1.0, metres])


def model_of(name: str) -> DistortionModel:
    """Return OpenCV's model of a name that ROS, Kalibr or we have for it."""
    if name.lower() not in _MODELS:
        raise CalibrationError(f"has the distortion model {name}; known are {', '.join(filter(None, _MODELS))}")
    return _MODELS[name.lower()]


def _one_model(left: Mapping[str, Any], right: Mapping[str, Any]) -> DistortionModel:
    models: list[DistortionModel] = [
        model_of(str(camera.get("distortion_model", "plumb_bob"))) for camera in (left, right)
    ]
    if models[0] != models[1]:
        raise CalibrationError(f"its two cameras have the distortion models {models[0]} and {models[1]}; both need one")
    return models[0]


def _poses(cameras: Mapping[int, Mapping[str, Any]]) -> dict[tuple[int, int], np.ndarray]:
    """Return (from, to) -> 4x4 pose for every two sockets that a DepthAI file relates directly, both ways."""
    poses: dict[tuple[int, int], np.ndarray] = {}
    for socket, camera in cameras.items():
        extrinsics = _mapping(entry(camera, "extrinsics"))
        to_socket = whole(extrinsics, "toCameraSocket", -1)
        if to_socket in cameras and to_socket != socket:
            pose = np.eye(4)
            pose[:3, :3] = numbers(extrinsics, "rotationMatrix", (3, 3))
            pose[:3, 3] = _depthai_translation(extrinsics)
            poses[socket, to_socket], poses[to_socket, socket] = pose, np.linalg.inv(pose)
    return poses


def _depthai_translation(extrinsics: Mapping[str, Any]) -> Float[np.ndarray, "3"]:
    """Return the measured translation, or where that is not set (all zeros) the one of the board's design."""
    measured = _mapping(entry(extrinsics, "translation"))
    shift = np.array([number(measured, axis) for axis in "xyz"])
    if not shift.any() and "specTranslation" in extrinsics:
        designed = _mapping(extrinsics["specTranslation"])
        shift = np.array([number(designed, axis, 0) for axis in "xyz"])
    return shift


def _between(poses: Mapping[tuple[int, int], np.ndarray], start: int, end: int) -> Float[np.ndarray, "4 4"]:
    """Return the pose that takes one socket's axes to another's, by way of the sockets between them."""
    reached = {start: np.eye(4)}
    while end not in reached:
        steps = [step for step in poses if step[0] in reached and step[1] not in reached]
        if not steps:
            raise CalibrationError(f"does not say how cameras {start} and {end} stand to each other")
        near, far = steps[0]
        reached[far] = poses[near, far] @ reached[near]
    return reached[end]


def _pairs(mapping: Mapping[str, Any], name: str) -> list[tuple[Any, Any]]:
    """Return names with values, as DepthAI writes them: in lists of two."""
    found = entry(mapping, name)
    if not isinstance(found, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in found):
        raise CalibrationError(f"has {str(found)[:40]!r} under {name}, where pairs should stand; is it damaged?")
    return [(pair[0], pair[1]) for pair in found]


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise CalibrationError(f"has {str(value)[:40]!r} where names with values should stand; is it damaged?")
    return value


def entry(mapping: Mapping[str, Any], name: str) -> Any:
    """Return what stands under a name.

    Raises:
        CalibrationError: nothing does.
    """
    if name not in mapping:
        raise CalibrationError(f"lacks {name}; is it the calibration of a stereo rig?")
    return mapping[name]


def whole(mapping: Mapping[str, Any], name: str, default: float | None = None) -> int:
    """Return the whole number under a name.

    Raises:
        CalibrationError: nothing stands there, or no whole number.
    """
    value = number(mapping, name, default)
    if not value.is_integer():
        raise CalibrationError(f"{name} is {value:g}, and has to be a whole number")
    return int(value)


def size_in(mapping: Mapping[str, Any], name: str) -> tuple[int, int]:
    """Return width and height, px, that stand under a name.

    Raises:
        CalibrationError: nothing stands there, or no two whole numbers.
    """
    width, height = numbers(mapping, name, (2,))
    return whole({name: width}, name), whole({name: height}, name)


def numbers(mapping: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
    """Return the numbers under a name, float64, in a shape that they fill.

    Raises:
        CalibrationError: nothing stands there, no numbers, or numbers of another shape.
    """
    found = entry(mapping, name)
    try:
        values = np.array(found, np.float64)
    except (TypeError, ValueError) as error:
        raise CalibrationError(f"{name} is not made of numbers, but {str(found)[:40]!r}") from error
    transposed = values.ndim > 1 and min(values.shape) > 1 and values.shape != shape
    if -1 not in shape and (values.size != np.prod(shape) or transposed):
        wanted = "x".join(map(str, shape)) or "one number"
        raise CalibrationError(f"{name} has the shape {values.shape}, where {wanted} is needed")
    return values.reshape(shape)


def number(mapping: Mapping[str, Any], name: str, default: float | None = None) -> float:
    """Return the number under a name, or the default where nothing stands there.

    Raises:
        CalibrationError: no number stands there, and there is no default.
    """
    if name not in mapping and default is not None:
        return float(default)
    return float(numbers(mapping, name, ()))

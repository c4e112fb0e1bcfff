"""Calibration files: whichever format a rig comes with -> one RigCalibration in metres; and our own NPZ.

What a file is shows in its content, never in its name.
"""

import configparser
import json
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import yaml
from jaxtyping import Float

from foundation_stereo_depth.calibration import formats
from foundation_stereo_depth.calibration.formats import METRES, Size, entry, in_metres, model_of, numbers, size_of
from foundation_stereo_depth.calibration.rig import Rectification, RigCalibration, rectified_already
from foundation_stereo_depth.errors import CalibrationError
from foundation_stereo_depth.files import write_atomically

Unit = Literal["auto", "m", "cm", "mm"]

_NPZ_BEGINS = b"PK"
_TWO_FILES = (("intrinsic", "extrinsic"), ("left", "right"))
"""Words in the names of two files that make one calibration: OpenCV's and ROS's."""
_TEXT_SUFFIXES = (".yml", ".yaml", ".xml")
_K_TXT_NUMBERS = 10
_KNOWN = (
    "NPZ, OpenCV YAML/XML, ROS camera_info, Kalibr camchain, ZED .conf, DepthAI JSON, Middlebury calib.txt, "
    "FoundationStereo K.txt, stereodemo JSON"
)

# How other programs call what stereoCalibrate returns: lower case, without underscores. Our own name stands first.
_NAMES = {
    "mtx_l": ("mtxl", "mtxleft", "k1", "m1", "kl", "kleft", "cameramatrix1", "cameramatrixl", "cameramatrixleft"),
    "mtx_r": ("mtxr", "mtxright", "k2", "m2", "kr", "kright", "cameramatrix2", "cameramatrixr", "cameramatrixright"),
    "dist_l": ("distl", "distleft", "d1", "dl", "dleft", "distcoeffs1", "distcoeffsl", "distcoeffsleft"),
    "dist_r": ("distr", "distright", "d2", "dr", "dright", "distcoeffs2", "distcoeffsr", "distcoeffsright"),
    "R": ("r", "rot", "rotation", "rotationmatrix"),
    "T": ("t", "trans", "translation", "translationvector"),
    "R1": ("r1",),
    "R2": ("r2",),
    "P1": ("p1",),
    "P2": ("p2",),
    "image_size": ("imagesize", "imgsize", "framesize", "size"),
    "width": ("imagewidth", "width"),
    "height": ("imageheight", "height"),
    "distortion_model": ("distortionmodel",),
}


def read_calibration(path: Path, *, unit: Unit = "auto", image_size: tuple[int, int] | None = None) -> RigCalibration:
    """The rig that a calibration file describes, in metres and px.

    Args:
        path: the file; of a calibration in two files the folder that holds them, or either of them.
        unit: of the lengths in it; auto takes what its format defines, or metres where that says nothing.
        image_size: width and height of the pictures it was made for, px, where it does not say, or says several.

    Raises:
        CalibrationError: it cannot be read, lacks something, or describes no usable rig; the message names it.
    """
    metres = None if unit == "auto" else METRES[unit]
    try:
        content = _files(path)
        if content[0].startswith(_NPZ_BEGINS):
            return _from_entries(_npz_entries(path), metres, image_size)
        return _from_texts(path, _texts(content), metres, image_size)
    except OSError as error:
        raise CalibrationError(f"{error.filename or path}: cannot be read ({error.strerror})") from error
    except (json.JSONDecodeError, yaml.YAMLError, configparser.Error) as error:
        raise CalibrationError(f"{path}: is damaged: {error}") from error
    except CalibrationError as error:
        raise CalibrationError(f"{path}: {error}") from error
    except (ValueError, OverflowError, RecursionError, np.linalg.LinAlgError) as error:  # of numbers that are none
        raise CalibrationError(f"{path}: is damaged: {error}") from error


def save_calibration(
    path: Path, calibration: RigCalibration, figures: Mapping[str, float | int | str] | None = None
) -> None:
    """Writes our NPZ: the rig in metres and px, its rectification, and figures on how it was made.

    Args:
        path: the file to make or replace, complete or not at all; its folder exists.
        calibration: the rig.
        figures: more keys, such as `stereo_rms`.
    """
    rectified = calibration.rectified
    arrays: dict[str, Any] = {
        "image_size": np.array([calibration.width, calibration.height]),
        "mtx_l": calibration.left_matrix,
        "dist_l": calibration.left_distortion[None],
        "mtx_r": calibration.right_matrix,
        "dist_r": calibration.right_distortion[None],
        "distortion_model": np.array(calibration.distortion_model),
        "R": calibration.rotation,
        "T": calibration.translation_m[:, None],
        "R1": rectified.left_rotation,
        "R2": rectified.right_rotation,
        "P1": rectified.left_projection,
        "P2": rectified.right_projection,
        "Q": rectified.disparity_to_depth,
    }
    arrays |= {key: np.array(value) for key, value in (figures or {}).items()}
    write_atomically(path, lambda file: np.savez(file, **arrays), durable=True)


def _files(path: Path) -> list[bytes]:
    """The content of the calibration's one or two files; of two, intrinsics or the left eye first."""
    if path.is_dir():
        return [file.read_bytes() for file in _pair_in(path)]
    return [path.read_bytes()]


def _pair_in(folder: Path) -> list[Path]:
    for words in _TWO_FILES:
        found = [sorted(f for f in folder.iterdir() if f.suffix in _TEXT_SUFFIXES and word in f.stem) for word in words]
        if all(len(files) == 1 for files in found):
            return [files[0] for files in found]
    raise CalibrationError(
        "a folder has to hold one pair of files, *intrinsic* and *extrinsic*, or *left* and *right* "
        f"({', '.join(_TEXT_SUFFIXES)}); name the calibration's file instead"
    )


def _partner(path: Path) -> tuple[Path, bool] | None:
    """The file that makes a calibration whole together with this one, and whether it comes first."""
    for first, second in _TWO_FILES:
        for own, other in ((first, second), (second, first)):
            partner = path.with_name(path.name.replace(own, other))
            if own in path.name and partner.is_file():
                return partner, own == second
    return None


def _texts(contents: list[bytes]) -> list[str]:
    try:
        return [content.decode("utf-8-sig") for content in contents]
    except UnicodeDecodeError as error:
        raise CalibrationError(f"is neither text nor an NPZ; known are {_KNOWN}") from error


def _from_texts(path: Path, texts: list[str], metres: float | None, size: Size) -> RigCalibration:
    text = texts[0]
    if text.lstrip().startswith("{"):
        said = json.loads(text)
        if "cameraData" in said:
            return formats.from_depthai(said, metres)
        if "baseline_meters" in said:
            return formats.from_stereodemo(said, metres)
    if text.startswith("%YAML") or "opencv-matrix" in text or "opencv_storage" in text:
        entries = _opencv_entries(texts)
        if len(texts) == 1 and not ({"mtx_l", "R", "T"} <= set(entries)) and (partner := _partner(path)) is not None:
            entries |= _opencv_entries(_texts([partner[0].read_bytes()]))
        return _from_entries(entries, metres, size)
    if re.search(r"^\s*projection_matrix\s*:", text, re.MULTILINE):
        return formats.from_ros(_ros_pair(path, texts), metres)
    if re.search(r"^cam0\s*:", text, re.MULTILINE):
        return formats.from_kalibr(yaml.safe_load(text), metres)
    if re.search(r"^\s*\[(LEFT|RIGHT)_CAM_", text, re.MULTILINE | re.IGNORECASE):
        return formats.from_zed(text, metres, size)
    if re.search(r"^cam0\s*=", text, re.MULTILINE):
        return formats.from_middlebury(text, metres, size)
    if len(text.split()) == _K_TXT_NUMBERS:
        return formats.from_k_txt(text, metres, size)
    raise CalibrationError(f"is no calibration of a known kind: {_KNOWN}")


def _ros_pair(path: Path, texts: list[str]) -> list[Any]:
    """The camera_info of the left and the right eye."""
    if len(texts) == 1:
        partner = _partner(path)
        if partner is None:
            raise CalibrationError(
                "is a camera_info of one eye; the other one's file has to lie beside it, named the same but for "
                "left and right"
            )
        other, comes_first = partner
        both = [*_texts([other.read_bytes()]), *texts] if comes_first else [*texts, *_texts([other.read_bytes()])]
        texts = both
    return [yaml.safe_load(text) for text in texts]


def _npz_entries(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return _known({key: arrays[key] for key in arrays if _our_name(key) is not None})
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, NotImplementedError, RuntimeError) as error:
        if isinstance(error, CalibrationError):
            raise
        raise CalibrationError(f"is not an NPZ of plain numbers ({error})") from error


def _opencv_entries(texts: list[str]) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for text in texts:
        try:
            storage = cv2.FileStorage(text, cv2.FILE_STORAGE_READ | cv2.FILE_STORAGE_MEMORY)
            root = storage.root()
            entries |= {key: _node(root.getNode(key)) for key in root.keys() if _our_name(key) is not None}  # noqa: SIM118
            storage.release()
        except (cv2.error, SystemError) as error:
            raise CalibrationError(
                "OpenCV cannot read it; is it damaged, or YAML, XML or JSON of another kind?"
            ) from error
    return _known(entries)


def _node(node: Any) -> Any:
    if node.isMap():
        return np.asarray(node.mat())
    if node.isSeq():
        return [_node(node.at(index)) for index in range(node.size())]
    return node.string() if node.isString() else node.real()


def _our_name(key: str) -> str | None:
    word = key.lower().replace("_", "")
    return next((name for name, words in _NAMES.items() if word in words), None)


def _known(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Entries that describe a rig, by our names for them, whatever another program calls them."""
    found: dict[str, Any] = {}
    called: dict[str, str] = {}
    for key, value in entries.items():
        name = _our_name(key)
        if name is None:
            continue
        if name in found:
            raise CalibrationError(f"holds both {called[name]} and {key}, which mean the same; leave one out")
        found[name], called[name] = value, key
    return found


def _from_entries(found: Mapping[str, Any], metres: float | None, size: Size) -> RigCalibration:
    """The rig of what stereoCalibrate and stereoRectify return; or of P1 and P2 alone, if pictures are rectified."""
    metres = 1.0 if metres is None else metres
    if not found:
        raise CalibrationError("holds none of the names that a rig's calibration has, such as mtx_l or P1")
    rectification = _rectification(found, metres)
    if rectification is not None and not {"mtx_l", "mtx_r", "R", "T"} & set(found):
        width, height = size_of(found, size)
        return rectified_already(
            width=width,
            height=height,
            left=rectification.left_projection[:, :3],
            right=rectification.right_projection[:, :3],
            translation_m=rectification.translation_m,
        )
    missing = [name for name in ("mtx_l", "dist_l", "mtx_r", "dist_r", "R", "T") if name not in found]
    if missing:
        raise CalibrationError(f"lacks {', '.join(missing)}; is it the calibration of a stereo rig?")
    width, height = size_of(found, size)
    return RigCalibration(
        width=width,
        height=height,
        left_matrix=numbers(found, "mtx_l", (3, 3)),
        left_distortion=numbers(found, "dist_l", (-1,)),
        right_matrix=numbers(found, "mtx_r", (3, 3)),
        right_distortion=numbers(found, "dist_r", (-1,)),
        distortion_model=model_of(str(found.get("distortion_model", "radtan"))),
        rotation=_rotation(found),
        translation_m=numbers(found, "T", (3,)) * metres,
        rectification=rectification if {"R1", "R2"} <= set(found) else None,
    )


def _rectification(found: Mapping[str, Any], metres: float) -> Rectification | None:
    if not {"P1", "P2"} <= set(found):
        return None
    return Rectification(
        left_rotation=numbers(found, "R1", (3, 3)) if "R1" in found else np.eye(3),
        right_rotation=numbers(found, "R2", (3, 3)) if "R2" in found else np.eye(3),
        left_projection=numbers(found, "P1", (3, 4)),
        right_projection=in_metres(numbers(found, "P2", (3, 4)), metres),
    )


def _rotation(found: Mapping[str, Any]) -> Float[np.ndarray, "3 3"]:
    """R, which some programs keep as a rotation vector."""
    if np.size(entry(found, "R")) == 3:
        return np.asarray(cv2.Rodrigues(numbers(found, "R", (3,)))[0])
    return numbers(found, "R", (3, 3))

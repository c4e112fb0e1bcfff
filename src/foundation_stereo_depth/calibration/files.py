"""Calibration files: whichever format a rig comes with -> one RigCalibration in metres; and our own NPZ.

The format is found in the content, never in the name.
"""

import io
import logging
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from jaxtyping import Float

from foundation_stereo_depth.calibration import formats
from foundation_stereo_depth.calibration.formats import (
    METRES,
    Size,
    entry,
    in_metres,
    is_camera_info,
    model_of,
    numbers,
    size_of,
)
from foundation_stereo_depth.calibration.rig import (
    Rectification,
    RigCalibration,
    create_rectified_rig,
    implausible_baseline,
)
from foundation_stereo_depth.calibration.settings import RigSettings, settings_of_values
from foundation_stereo_depth.calibration.text import (
    LARGEST_FILE_BYTES,
    check_size,
    decode_text,
    parse_json,
    parse_opencv_xml,
    parse_yaml,
)
from foundation_stereo_depth.errors import CalibrationError
from foundation_stereo_depth.files import open_zip, read_regular_file, write_atomically
from foundation_stereo_depth.options.inference import CalibrationFileOptions

logger = logging.getLogger(__name__)

Unit = Literal["auto", "m", "cm", "mm"]

_NPZ_BEGINS = b"PK"
_TWO_FILES = (("intrinsic", "extrinsic"), ("left", "right"))
"""Words, in any case, in the names of two files that make one calibration: OpenCV's and ROS's."""
_TEXT_SUFFIXES = (".yml", ".yaml", ".xml", ".json", ".yml.gz", ".yaml.gz", ".xml.gz", ".json.gz")
_LARGEST_NPZ_BYTES = 64_000_000
"""Some programs keep the corners of all boards beside the calibration."""
_K_TXT_NUMBERS = 10
_KNOWN = (
    "NPZ, OpenCV YAML/XML/JSON, ROS camera_info, Kalibr camchain, ZED .conf, DepthAI JSON, Middlebury calib.txt, "
    "FoundationStereo K.txt, stereodemo JSON"
)

# Other programs' names for what stereoCalibrate returns: lower case, without underscores. Our own name stands first.
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
    "settings_l": ("settingsl",),
    "settings_r": ("settingsr",),
}


def read_calibration(path: Path, *, unit: Unit = "auto", image_size: tuple[int, int] | None = None) -> RigCalibration:
    """Return the rig that a calibration file describes, in metres and px.

    Args:
        path: the file; of a calibration in two files the folder that holds them, or either of them.
        unit: of the lengths in it; auto takes what its format defines, or metres where that says nothing.
        image_size: width and height of the images it was made for, px, where it does not say, or says several.

    Raises:
        CalibrationError: it cannot be read, lacks something, or describes no usable rig; the message names it.
    """
    try:
        rig = _read(path, None if unit == "auto" else METRES[unit], image_size)
        _check_baseline(path, rig, unit)
    except OSError as error:
        raise CalibrationError(f"{error.filename or path}: cannot be read ({error.strerror})") from error
    except CalibrationError as error:
        named = str(error).startswith(f"{path}: ")
        raise CalibrationError(str(error) if named else f"{path}: {error}") from error
    except Exception as error:  # of odd numbers, at any step: what a file holds is somebody else's
        raise CalibrationError(f"{path}: is damaged: {error}") from error
    return rig


def read_calibration_of(options: CalibrationFileOptions) -> RigCalibration | None:
    """Return the rig whose file the options name; None where they name none.

    Raises:
        CalibrationError: as `read_calibration`.
    """
    if options.calibration is None:
        return None
    return read_calibration(
        options.calibration, unit=options.calibration_unit, image_size=options.calibration_image_size
    )


def calibration_beside(source: str | Path) -> Path:
    """Return where the calibration of a recording or of a snapshot's image is kept, whether it is there or not.

    >>> str(calibration_beside("captures/raw.mkv"))
    'captures/raw.calibration.npz'
    """
    return Path(source).with_suffix(".calibration.npz")


def find_calibration_beside(source: str | Path) -> Path | None:
    """Return the calibration that a recording or a snapshot's image carries; None where there is none.

    Args:
        source: as the user names it: a file; of anything else nothing is carried.
    """
    path = Path(source)
    if not path.is_file():
        return None
    beside = calibration_beside(path)
    return beside if beside.is_file() else None


def save_calibration(
    path: Path, calibration: RigCalibration, figures: Mapping[str, float | int | str] | None = None
) -> None:
    """Write our NPZ: the rig in metres and px, its rectification, and figures on how it was made.

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
    if calibration.settings is not None:
        arrays["settings_l"], arrays["settings_r"] = (np.array(each.values()) for each in calibration.settings)
    arrays |= {key: np.array(value) for key, value in (figures or {}).items()}
    write_atomically(path, lambda file: np.savez(file, **arrays), durable=True)


def _check_baseline(path: Path, rig: RigCalibration, unit: Unit) -> None:
    """Check that the baseline is plausible; where the user named the unit it is believed, with a warning."""
    odd = implausible_baseline(rig)
    if odd is None:
        return
    if unit == "auto":
        raise CalibrationError(
            f"{odd}: is its unit another? --calibration-unit mm (or cm, m) says which; or was the size of the board's "
            "squares left out when it was made?"
        )
    logger.warning("%s: %s; taken as it is, since --calibration-unit %s says so", path, odd, unit)


def _read(path: Path, metres: float | None, size: Size) -> RigCalibration:
    files = _pair_in(path) if path.is_dir() else [path]
    contents = [_read_bytes(file) for file in files]
    if contents[0].startswith(_NPZ_BEGINS):
        return _from_entries(_npz_entries(contents[0]), metres, size)
    return _from_texts(path, [_decode(content) for content in contents], metres, size)


def _read_bytes(path: Path) -> bytes:
    content = read_regular_file(path, at_most_bytes=_LARGEST_NPZ_BYTES, error_type=CalibrationError)
    if not content.startswith(_NPZ_BEGINS):
        check_size(len(content))
    return content


def _decode(content: bytes) -> str:
    try:
        return decode_text(content)
    except CalibrationError as error:
        raise CalibrationError(f"{error}; known are {_KNOWN}") from error


def _pair_in(folder: Path) -> list[Path]:
    """Return the two files of a calibration in a folder, intrinsics or the left camera's first.

    They are named so (`Left.yaml`, `Right.yaml`), or stand alone in folders named so (`left/camera_info.yaml`).
    """
    texts = sorted(file for file in folder.iterdir() if _is_text_file(file))
    below = sorted(file for sub in folder.iterdir() if sub.is_dir() for file in sub.iterdir() if _is_text_file(file))
    for words in _TWO_FILES:
        for candidates in ([(file.name, file) for file in texts], [(file.parent.name, file) for file in below]):
            found = [[file for name, file in candidates if word in name.lower()] for word in words]
            if all(len(files) == 1 for files in found) and found[0] != found[1]:
                return [files[0] for files in found]
    raise CalibrationError(
        "a folder has to hold one pair of files, *intrinsic* and *extrinsic*, or *left* and *right* "
        f"({', '.join(_TEXT_SUFFIXES[:4])}); name the calibration's file instead"
    )


def _is_text_file(path: Path) -> bool:
    name = path.name.lower()
    return name.endswith(_TEXT_SUFFIXES) and not name.startswith(".") and path.is_file()


def _partner(path: Path) -> tuple[Path, bool] | None:
    """Return the file that completes a calibration in two files, and whether it comes first; None without one."""
    for first, second in _TWO_FILES:
        for own, other in ((first, second), (second, first)):
            beside = path.parent.iterdir() if own in path.name.lower() else ()
            wanted = path.name.lower().replace(own, other)
            for file in beside:
                if file.name.lower() == wanted and file.is_file():
                    return file, own == second
            folder = path.parent.resolve()
            if own in folder.name.lower():
                wanted = folder.name.lower().replace(own, other)
                for sibling in folder.parent.iterdir():
                    if sibling.name.lower() == wanted and (file := sibling / path.name).is_file():
                        return file, own == second
    return None


def _from_texts(path: Path, texts: list[str], metres: float | None, size: Size) -> RigCalibration:
    """Return the rig of one or two texts, whichever format they have."""
    text = texts[0]
    if re.search(r"^[ \t]*\[(LEFT|RIGHT)_CAM_", text, re.MULTILINE | re.IGNORECASE):
        return formats.from_zed(text, metres, size)
    if re.search(r"^[ \t]*cam0[ \t]*=", text, re.MULTILINE):
        return formats.from_middlebury(text, metres, size)
    if len(text.split(maxsplit=_K_TXT_NUMBERS)) == _K_TXT_NUMBERS and ":" not in text:
        return formats.from_k_txt(text, metres, size)
    values = [_parse(each) for each in texts]
    if readers := [read for fits, read in _FORMATS if fits(values[0])]:
        return readers[0](values[0], metres)
    if is_camera_info(values[0]):
        return formats.from_ros(_with_partner(path, values), metres)
    if not isinstance(values[0], Mapping):
        raise CalibrationError(f"is no calibration of a known kind: {_KNOWN}")
    entries = [dict(each) for each in values if isinstance(each, Mapping)]
    known = _known(*entries)
    if len(texts) == 1 and not {"mtx_l", "R", "T"} <= set(known) and (partner := _partner(path)) is not None:
        other = _parse(_decode(_read_bytes(partner[0])))
        if isinstance(other, Mapping) and not is_camera_info(other):
            known = _known(*entries, other)
    if not known:
        raise CalibrationError(f"is no calibration of a known kind: {_KNOWN}")
    return _from_entries(known, metres, size)


def _parse(text: str) -> Any:
    """Return the values of JSON, XML or YAML; of several YAML documents, as rostopic echo prints them, the first."""
    begins = text.lstrip()[:1]
    if begins == "<":
        return parse_opencv_xml(text)
    if begins in ("{", "["):
        return parse_json(text)
    documents = parse_yaml(text)
    return documents[0] if documents else None


_FORMATS: Sequence[tuple[Callable[[Any], bool], Callable[[Any, float | None], RigCalibration]]] = (
    (lambda values: isinstance(values, Mapping) and "cameraData" in values, formats.from_depthai),
    (lambda values: isinstance(values, Mapping) and "baseline_meters" in values, formats.from_stereodemo),
    (lambda values: isinstance(values, Mapping) and "cam0" in values, formats.from_kalibr),
)
"""(what is found in the content, its reader), of the formats that are one file."""


def _with_partner(path: Path, values: list[Any]) -> list[Any]:
    """Return the camera_info of the left and of the right camera."""
    if len(values) == 2:
        return values
    partner = _partner(path)
    if partner is None:
        raise CalibrationError(
            "is a camera_info of one camera; the other one's file has to lie beside it, named the same but for left "
            "and right"
        )
    other, comes_first = partner
    parsed = _parse(_decode(_read_bytes(other)))
    return [parsed, *values] if comes_first else [*values, parsed]


def _npz_entries(content: bytes) -> dict[str, Any]:
    try:
        open_zip(content, at_most_bytes=4 * _LARGEST_NPZ_BYTES)
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            ours = _known({key: key for key in arrays.files})
            for name in ours.values():
                _check_member(arrays.zip.getinfo(f"{name}.npy"))
            return {name: arrays[key] for name, key in ours.items()}
    except CalibrationError:
        raise
    except Exception as error:  # of NumPy and of Python's reader, for what a foreign file holds
        raise CalibrationError(f"is not an NPZ of plain numbers ({error})") from error


def _check_member(member: zipfile.ZipInfo) -> None:
    """Check that an array says it is small, before it is unpacked; numpy takes its header's word for the memory."""
    if member.file_size > LARGEST_FILE_BYTES:
        raise CalibrationError(
            f"{member.filename} has {member.file_size:,} bytes, which no matrix of a calibration has"
        )


def _our_name(key: Any) -> str | None:
    word = str(key).lower().replace("_", "")
    return next((name for name, words in _NAMES.items() if word in words), None)


def _known(*sources: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the entries that describe a rig by our names for them, whatever other programs call them."""
    found: dict[str, Any] = {}
    called: dict[str, Any] = {}
    for entries in sources:
        for key, value in entries.items():
            name = _our_name(key)
            if name is None:
                continue
            if name in found and called[name] != key:
                raise CalibrationError(f"holds both {called[name]} and {key}, which mean the same; leave one out")
            found[name], called[name] = value, key
    return found


def _from_entries(found: Mapping[str, Any], metres: float | None, size: Size) -> RigCalibration:
    """Return the rig of what stereoCalibrate and stereoRectify return.

    P1 and P2 alone suffice where images are rectified; with R1, R2 and the cameras they stand in for R and T.
    """
    metres = 1.0 if metres is None else metres
    if not found:
        raise CalibrationError("holds none of the names that a rig's calibration has, such as mtx_l or P1")
    rectification = _rectification(found, metres)
    if rectification is not None and not {"mtx_l", "mtx_r", "R", "T"} & set(found):
        width, height = size_of(found, size)
        return create_rectified_rig(
            width=width,
            height=height,
            left=rectification.left_projection[:, :3],
            right=rectification.right_projection[:, :3],
            translation_m=rectification.translation_m,
        )
    poses = () if rectification is not None else ("R", "T")
    missing = [name for name in ("mtx_l", "dist_l", "mtx_r", "dist_r", *poses) if name not in found]
    if missing:
        raise CalibrationError(f"lacks {', '.join(missing)}; is it the calibration of a stereo rig?")
    width, height = size_of(found, size)
    rotation, translation_m = _pose(found, rectification, metres)
    return RigCalibration(
        width=width,
        height=height,
        left_matrix=numbers(found, "mtx_l", (3, 3)),
        left_distortion=numbers(found, "dist_l", (-1,)),
        right_matrix=numbers(found, "mtx_r", (3, 3)),
        right_distortion=numbers(found, "dist_r", (-1,)),
        distortion_model=model_of(str(found.get("distortion_model", "radtan"))),
        rotation=rotation,
        translation_m=translation_m,
        rectification=rectification if {"R1", "R2"} <= set(found) or "T" not in found else None,
        settings=_settings(found),
    )


def _settings(found: Mapping[str, Any]) -> RigSettings | None:
    if not {"settings_l", "settings_r"} <= set(found):
        return None
    left, right = (settings_of_values(numbers(found, name, (-1,)).tolist()) for name in ("settings_l", "settings_r"))
    return left, right


def _rectification(found: Mapping[str, Any], metres: float) -> Rectification | None:
    if not {"P1", "P2"} <= set(found):
        return None
    return Rectification(
        left_rotation=numbers(found, "R1", (3, 3)) if "R1" in found else np.eye(3),
        right_rotation=numbers(found, "R2", (3, 3)) if "R2" in found else np.eye(3),
        left_projection=in_metres(numbers(found, "P1", (3, 4)), metres),
        right_projection=in_metres(numbers(found, "P2", (3, 4)), metres),
    ).relative_to_left()


def _pose(
    found: Mapping[str, Any], rectification: Rectification | None, metres: float
) -> tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, "3"]]:
    """Return R and T as given, else as the rectification has them: R = R2' R1, T = R2' (K2^-1 p2 - K1^-1 p1)."""
    if "T" in found and "R" in found:
        return _rotation(found), numbers(found, "T", (3,)) * metres
    if rectification is None:
        raise CalibrationError(f"lacks {'T' if 'R' in found else 'R'}; is it the calibration of a stereo rig?")
    rotation = _rotation(found) if "R" in found else rectification.right_rotation.T @ rectification.left_rotation
    if "T" in found:
        return rotation, numbers(found, "T", (3,)) * metres
    return rotation, rectification.right_rotation.T @ rectification.translation_m


def _rotation(found: Mapping[str, Any]) -> Float[np.ndarray, "3 3"]:
    """Return R, which some programs keep as a rotation vector."""
    if np.size(entry(found, "R")) == 3:
        return np.asarray(cv2.Rodrigues(numbers(found, "R", (3,)))[0])
    return numbers(found, "R", (3, 3))

"""Calibration files: every format that rigs come with -> one RigCalibration in metres; and our own NPZ."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from foundation_stereo_depth.calibration import Rectification, RigCalibration, rectified_already
from foundation_stereo_depth.errors import CalibrationError
from foundation_stereo_depth.files import write_whole

Unit = Literal["m", "cm", "mm"]
METRES = {"m": 1.0, "cm": 0.01, "mm": 0.001}
"""Metres in one of each unit."""


def read_calibration(
    path: Path, *, unit: Unit | None = None, image_size: tuple[int, int] | None = None
) -> RigCalibration:
    """The rig that a calibration file describes, in metres and px.

    Args:
        path: the file; of two files the folder they are in, or either of them.
        unit: of lengths in it; None takes what its format says, or metres where it says nothing.
        image_size: width and height of the pictures it was made for, px, where it does not say.

    Raises:
        CalibrationError: it cannot be read, lacks something, or describes no usable rig; the message names it.
    """
    try:
        return _from_arrays(_read_npz(path), 1.0 if unit is None else METRES[unit], image_size)
    except CalibrationError as error:
        raise CalibrationError(f"{path}: {error}") from error
    except OSError as error:
        raise CalibrationError(f"{path}: cannot be read ({error.strerror})") from error


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
    write_whole(path, lambda file: np.savez(file, **arrays), durable=True)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as entry:
            return {key: entry[key] for key in entry}
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        raise CalibrationError(f"is not an NPZ of plain numbers ({error})") from error


def _from_arrays(arrays: Mapping[str, Any], metres: float, image_size: tuple[int, int] | None) -> RigCalibration:
    size = arrays.get("image_size", image_size)
    if size is None:
        raise CalibrationError("does not say its picture size; --calibration-size WIDTHxHEIGHT does")
    width, height = int(size[0]), int(size[1])
    projections = [_array(arrays, key, (3, 4)) for key in ("P1", "P2")] if "P1" in arrays else None
    if projections is not None:
        projections[1][0, 3] *= metres
    if "mtx_l" not in arrays and projections is not None:
        left, right = projections
        baseline_m = float(-right[0, 3] / right[0, 0])
        return rectified_already(
            width=width, height=height, left=left[:, :3], right=right[:, :3], baseline_m=baseline_m
        )
    return RigCalibration(
        width=width,
        height=height,
        left_matrix=_array(arrays, "mtx_l", (3, 3)),
        left_distortion=np.asarray(arrays["dist_l"], np.float64).ravel(),
        right_matrix=_array(arrays, "mtx_r", (3, 3)),
        right_distortion=np.asarray(arrays["dist_r"], np.float64).ravel(),
        rotation=_array(arrays, "R", (3, 3)),
        translation_m=np.asarray(arrays["T"], np.float64).ravel() * metres,
        rectification=None
        if projections is None
        else Rectification(
            left_rotation=_array(arrays, "R1", (3, 3)),
            right_rotation=_array(arrays, "R2", (3, 3)),
            left_projection=projections[0],
            right_projection=projections[1],
        ),
    )


def _array(arrays: Mapping[str, Any], key: str, shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
    if key not in arrays:
        raise CalibrationError(f"lacks {key}; is it the calibration of a stereo rig?")
    values = np.array(arrays[key], np.float64)
    if values.shape != shape:
        raise CalibrationError(f"{key} has the shape {values.shape}, where {shape} is needed")
    return values

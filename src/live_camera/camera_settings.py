"""The settings of a rig's cameras: focus, exposure, gain and white balance, locked, read back, kept and compared.

A calibration holds for one focus: a lens that moves changes focal length and distortion. Colours that are alike in both
views are matched better. Drivers refuse, round and forget settings, so everything is read back.
"""

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from foundation_stereo_depth.calibration.settings import (
    CameraSettings,
    RigSettings,
    settings_from_json,
    settings_to_json,
)
from foundation_stereo_depth.errors import CalibrationError
from foundation_stereo_depth.files import read_regular_file, write_atomically
from live_camera.camera import Camera
from live_camera.options import CameraOptions

logger = logging.getLogger(__name__)

SETTLING_S = 1.5
"""Automatic exposure, white balance and focus settle in about this time before they are locked."""
_DARKEST, _BRIGHTEST = 30.0, 225.0
"""Mean brightness, of 255, between which the calibration's exposure is used in today's light."""
_FOCUS_TOLERANCE = 0.5
_SETTINGS_FILE = "camera_settings.json"
_LARGEST_BYTES = 10_000


def lock_settings(
    cameras: Sequence[Camera], options: CameraOptions, calibrated: Sequence[CameraSettings | None]
) -> list[CameraSettings]:
    """Lock the settings of the cameras as the options say; return what each reports afterwards.

    Args:
        cameras: one or two devices, the left one first.
        options: which settings to lock.
        calibrated: settings of each camera while it was calibrated; None where they are unknown.
    """
    automatic = options.focus == "auto" and options.exposure == "auto" and options.white_balance == "auto"
    if not automatic and not _let_settle(cameras):
        return [camera.read_settings() for camera in cameras]
    for camera, known in zip(cameras, calibrated, strict=True):
        _lock_focus(camera, options, known)
    _lock_colours(cameras, options, calibrated[0])
    settings = [camera.read_settings() for camera in cameras]
    for camera, found, known in zip(cameras, settings, calibrated, strict=True):
        logger.info("%s: %s", camera.role, found)
        if warning := compare_focus(camera.role, found, known, automatic=options.focus == "auto"):
            logger.warning(warning)
    return settings


def compare_focus(
    role: str, found: CameraSettings, calibrated: CameraSettings | None, *, automatic: bool
) -> str | None:
    """Return one line where a camera's focus is not the one at which it was calibrated; else None."""
    if calibrated is None or calibrated.focus is None:
        return None
    was = f"{role}: was calibrated at focus {calibrated.focus:g}"
    if found.focus is None:
        return f"{was}, and reports no focus now; is it another camera?"
    if automatic:
        return f"{was}; with --focus auto the lens moves, and the calibration holds at that focus alone"
    if abs(found.focus - calibrated.focus) > _FOCUS_TOLERANCE:
        return f"{was}, and is at {found.focus:g}: depth is wrong; use that focus, or calibrate again"
    return None


def _lock_focus(camera: Camera, options: CameraOptions, calibrated: CameraSettings | None) -> None:
    if options.focus == "auto":
        return
    wanted = options.focus if options.focus != "lock" else None if calibrated is None else calibrated.focus
    camera.lock({cv2.CAP_PROP_FOCUS: wanted})
    if camera.read_setting(cv2.CAP_PROP_FOCUS) is None:
        logger.info("%s: has no focus control; its lens is fixed, or turned by hand", camera.role)


def _lock_colours(cameras: Sequence[Camera], options: CameraOptions, calibrated: CameraSettings | None) -> None:
    """Lock all cameras to one exposure, gain and white balance: given, the calibration's, or chosen by the left one."""
    known = calibrated or CameraSettings()
    given = {
        cv2.CAP_PROP_EXPOSURE: (options.exposure, known.exposure),
        cv2.CAP_PROP_GAIN: ("lock" if options.exposure == "lock" else "auto", known.gain),
        cv2.CAP_PROP_WB_TEMPERATURE: (options.white_balance, known.white_balance),
    }
    values = {
        name: (kept if value == "lock" else float(value)) for name, (value, kept) in given.items() if value != "auto"
    }
    _lock_alike(cameras, values)
    if options.exposure != "lock" or known.exposure is None or _is_exposed(cameras[0]):
        return
    logger.info("the calibration's exposure does not fit the light; the left camera chooses another one")
    chosen: dict[int, float | None] = {cv2.CAP_PROP_EXPOSURE: None, cv2.CAP_PROP_GAIN: None}
    for camera in cameras:
        camera.unlock(chosen)
    _let_settle(cameras)
    _lock_alike(cameras, chosen)


def _lock_alike(cameras: Sequence[Camera], values: dict[int, float | None]) -> None:
    """Lock all cameras to the same values; None takes the left one's present value."""
    present = {name: cameras[0].read_setting(name) if value is None else value for name, value in values.items()}
    for camera in cameras:
        camera.lock({name: value for name, value in present.items() if value is not None})


def _is_exposed(camera: Camera) -> bool:
    """Return whether an image taken now is neither too dark nor too bright."""
    _let_settle([camera])
    frame = camera.retrieve()
    return frame is None or _DARKEST <= float(np.mean(frame)) <= _BRIGHTEST


def _let_settle(cameras: Sequence[Camera]) -> bool:
    """Grab frames while automatic settings settle; return False where a camera gives none."""
    until_s = time.monotonic() + SETTLING_S
    while time.monotonic() < until_s:
        for camera in cameras:
            if camera.grab() is None:  # the rig's thread waits for it
                logger.warning(
                    "%s: gave no frame at first, so focus, exposure and white balance of both cameras stay automatic; "
                    "restart to lock them",
                    camera.role,
                )
                return False
    return True


def write_settings(folder: Path, settings: RigSettings) -> None:
    """Keep the settings of both cameras beside the images that were taken with them, as `camera_settings.json`."""
    text = json.dumps(settings_to_json(settings), indent=2)
    write_atomically(folder / _SETTINGS_FILE, lambda file: file.write(text.encode()), durable=False)


def read_settings_beside(image: Path) -> RigSettings | None:
    """Return the settings that `write_settings` kept in an image's folder; None where it kept none.

    Raises:
        CalibrationError: the file is damaged.
    """
    path = image.parent / _SETTINGS_FILE
    if not path.is_file():
        return None
    content = read_regular_file(path, at_most_bytes=_LARGEST_BYTES, error_type=CalibrationError)
    try:
        return settings_from_json(json.loads(content))
    except (ValueError, RecursionError, CalibrationError) as error:
        raise CalibrationError(f"{path}: {error}; delete it if the settings do not matter") from error

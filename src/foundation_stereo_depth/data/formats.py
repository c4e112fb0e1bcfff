"""File encodings: bytes <-> RGB pictures, bytes <-> disparity in px. Every order of channels is settled here."""

from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from foundation_stereo_depth.errors import DataError

FSD_BASE = 255
"""Digits of the FSD code run from 0 to 254: its encoder works in base 255."""
FSD_STEP_PX = 0.001
"""One step of the FSD code."""
FSD_LARGEST_PX = (FSD_BASE**3 - 1) * FSD_STEP_PX
"""The largest disparity that three digits hold: 16581.374 px."""


def read_rgb(path: Path) -> UInt8[np.ndarray, "H W 3"]:
    """The picture in RGB; grey pictures get three equal channels, 16-bit ones are scaled to 8.

    Raises:
        DataError: the file is missing, or is not a picture that can be decoded whole.
    """
    # An EXIF orientation is ignored: a rotated eye would no longer be rectified, and disparity maps carry none.
    bgr = _decode(path, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)


def read_fsd_disparity(path: Path) -> Float[np.ndarray, "H W"]:
    """The disparity of an FSD PNG in px of its own resolution, float32, NaN where unknown.

    Raises:
        DataError: the file is missing, cannot be decoded, is not 8-bit RGB, or holds a disparity larger than the
            picture is wide.
    """
    encoded = _decode(path, cv2.IMREAD_UNCHANGED)
    if encoded.ndim != 3 or encoded.shape[2] != 3 or encoded.dtype != np.uint8:
        raise DataError(
            f"{path}: a FoundationStereo disparity map is an 8-bit RGB PNG, but this one has shape {encoded.shape} "
            f"and type {encoded.dtype}; was it converted to grey or to depth?"
        )
    disparity_px = decode_fsd_disparity(np.asarray(encoded[..., ::-1], dtype=np.uint8))
    width = disparity_px.shape[1]
    if (largest := float(np.nanmax(disparity_px, initial=0.0))) > width:
        raise DataError(
            f"{path}: holds a disparity of {largest:.1f} px in a picture {width} px wide; "
            "were its red and blue channels exchanged, or the map resized?"
        )
    return disparity_px


def decode_fsd_disparity(code: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "H W"]:
    """disparity_px = (R * 255 * 255 + G * 255 + B) / 1000, float32; code 0 is unknown and becomes NaN.

    Source: the decoder published with the FoundationStereo data set. The largest code has 24 bits, so the sum is exact
    in float32.
    """
    digits = code.astype(np.float32)
    steps = (digits[..., 0] * FSD_BASE + digits[..., 1]) * FSD_BASE + digits[..., 2]
    return np.where(steps > 0, steps / np.float32(1 / FSD_STEP_PX), np.float32(np.nan))


def encode_fsd_disparity(disparity_px: Float[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """The FSD code, RGB, of a disparity map; NaN becomes code 0. The inverse of the decoder up to 16384 px.

    Raises:
        DataError: a disparity is below 0 or above what the code can hold.
    """
    unknown = np.isnan(disparity_px)
    steps = np.rint(np.where(unknown, 0, disparity_px).astype(np.float64) / FSD_STEP_PX).astype(np.int64)
    if steps.min(initial=0) < 0 or steps.max(initial=0) >= FSD_BASE**3:
        raise DataError(f"the FSD code holds disparities from 0 to {FSD_LARGEST_PX} px, not {disparity_px[~unknown]}")
    return np.stack([steps // FSD_BASE**2, steps // FSD_BASE % FSD_BASE, steps % FSD_BASE], axis=-1).astype(np.uint8)


def write_rgb(path: Path, image: UInt8[np.ndarray, "H W 3"]) -> None:
    """Writes an RGB picture; the suffix chooses the encoding."""
    encoded = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1]
    path.write_bytes(encoded.tobytes())


def _decode(path: Path, mode: int) -> np.ndarray:
    # Reading the bytes ourselves tells a missing file from a damaged one, and takes any character in a path.
    try:
        encoded = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    picture = None if not encoded else cv2.imdecode(np.frombuffer(encoded, np.uint8), mode)
    if picture is None:
        raise DataError(f"{path}: {len(encoded)} bytes that are not a whole picture; is the file damaged?")
    return picture

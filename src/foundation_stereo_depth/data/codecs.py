"""File encodings: bytes <-> RGB images, bytes <-> disparity in px. The order of channels is handled here alone."""

import io
import itertools
import logging
import os
import re
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from jaxtyping import Float, UInt8, UInt16

from foundation_stereo_depth.data import image_headers
from foundation_stereo_depth.data.file_kinds import describe_other_kind
from foundation_stereo_depth.data.image_size import (
    LARGEST_FILE_BYTES,
    LARGEST_PIXELS,
    LARGEST_VIEW_PIXELS,
    check_pixels,
    is_image,
)
from foundation_stereo_depth.data.jpeg import decode_despite_harmless_faults
from foundation_stereo_depth.data.png import DamagedPngError, decode_plain_png, keep_pixels
from foundation_stereo_depth.errors import DataError
from foundation_stereo_depth.files import read_regular_file, write_atomically
from foundation_stereo_depth.log import QUIET_FFMPEG, warn_once

logger = logging.getLogger(__name__)

FSD_BASE = 255
"""Digits of the FSD code run from 0 to 254: its encoder works in base 255."""
FSD_STEP_PX = 0.001
"""One step of the FSD code."""
FSD_LARGEST_PX = (FSD_BASE**3 - 1) * FSD_STEP_PX
"""The largest disparity that three digits hold: 16581.374 px."""

_FSD_WEIGHTS = np.array([FSD_BASE**2, FSD_BASE, 1], np.float32)
_ORDER_ROWS, _ORDER_PIXELS = 8, 64
"""Rows that are compared in all orders of the channels, and how many pixels have to differ from the next in them."""
_ORDER_RATIO = 16
"""Roughness of a map in its own order over that in the smoothest one. Exchanged digits make it 255 times as rough."""

KITTI_STEPS_PER_PX = 256
"""KITTI keeps disparity as 16-bit whole numbers of 1/256 px; 0 is unknown."""
_LARGEST_CODE = 2**16 - 1
_JPEG_BEGINS = b"\xff\xd8\xff"
_DARK_16_BITS = 2**14
"""16-bit images seldom stay below a quarter of their range; those of cameras of 10, 12 or 14 bits do, if not scaled."""

Image = UInt8[np.ndarray, "H W 3"]
RightImage = UInt8[np.ndarray, "HR WR 3"]
"""Of a pair whose sizes are not known to be equal."""


_silencing = threading.Lock()
_silenced: list[int] = []
"""OpenCV's level of logging before it was silenced, once for each context that it still is silenced in."""


@contextmanager
def silence_opencv() -> Generator[None]:
    """Keep OpenCV from writing to standard error, in all threads; the caller reports what failed."""
    os.environ.setdefault(*QUIET_FFMPEG)
    opencv_logging = cv2.utils.logging
    with _silencing:
        _silenced.append(opencv_logging.setLogLevel(opencv_logging.LOG_LEVEL_SILENT))
    try:
        yield
    finally:
        with _silencing:
            if len(_silenced) == 1:
                opencv_logging.setLogLevel(_silenced[0])
                _silenced.clear()
            else:  # the first one has the level from before
                _silenced.pop()


def read_rgb(path: Path) -> Image:
    """Return the image in RGB; grey images get three equal channels, more than 8 bits are scaled to 8.

    Raises:
        DataError: the file is missing, is not an image that can be decoded completely, or holds several of one size.
    """
    return _single(path, _decode_images(path, _bytes(path)))


def read_rgb_pair(left: Path, right: Path) -> tuple[Image, RightImage]:
    """Return both views of a pair as `read_rgb` does; warn, once in a run, where Exif would turn both of them.

    Raises:
        DataError: as `read_rgb`.
    """
    encoded = _bytes(left), _bytes(right)
    if all(image_headers.was_turned(each) for each in encoded):
        _warn_of_turned_camera(left, "in both views")
    return _single(left, _decode_images(left, encoded[0])), _single(right, _decode_images(right, encoded[1]))


def read_rgb_images(path: Path) -> list[Image]:
    """Return the images of one size that a file holds: one, or both views of an MPO or of a TIFF of two pages.

    Raises:
        DataError: the file is missing, or is not an image that can be decoded completely.
    """
    encoded = _bytes(path, LARGEST_PIXELS)
    if image_headers.was_turned(encoded):
        _warn_of_turned_camera(path, "in this file of both views")
    return _decode_images(path, encoded)


def check_image_file(path: Path) -> None:
    """Check that a file, to be decoded by another library, can be read and holds no more pixels than images do.

    Raises:
        DataError: it does not.
    """
    _bytes(path)


def read_fsd_disparity(path: Path) -> Float[np.ndarray, "H W"]:
    """Return the disparity of an FSD PNG in px of its own resolution, float32, NaN where unknown.

    Raises:
        DataError: the file is missing, cannot be decoded, is not 8-bit RGB, or holds a disparity larger than the
            image is wide.
    """
    code = read_fsd_code(path)
    return check_largest_disparity(path, decode_fsd_disparity(code), code.shape[1])


def read_disparity(path: Path) -> Float[np.ndarray, "H W"]:
    """Return a disparity map in px of its own resolution, float32, NaN where unknown, whatever its encoding.

    `.pfm`, `.npy` (2-D numbers), `.png` of 16 bits (KITTI: 1/256 px, 0 is unknown) or of 8-bit RGB (FSD).

    Raises:
        DataError: the file is missing, damaged or of none of these kinds, or holds a disparity larger than the map is
            wide.
    """
    suffix = path.suffix.lower()
    if suffix == ".pfm":
        disparity_px = read_pfm(path)
    elif suffix == ".npy":
        disparity_px = read_npy(path)
    else:
        encoded = _bytes(path)
        code = _decode(path, encoded, cv2.IMREAD_UNCHANGED)
        if code.ndim == 2 and code.dtype == np.uint16:
            disparity_px = decode_whole_steps(code.astype(np.uint16, copy=False), KITTI_STEPS_PER_PX)
        elif code.ndim == 2 and code.dtype == np.uint8:
            raise DataError(
                f"{path}: is grey of 8 bits; KITTI's disparity has 16 bits (1/256 px), FoundationStereo's is an 8-bit "
                "RGB PNG. Converting to 8 bits loses the values; get the original file"
            )
        else:
            disparity_px = decode_fsd_disparity(_check_fsd_code(path, code))
    return check_largest_disparity(path, disparity_px, disparity_px.shape[1])


def read_fsd_code(path: Path) -> UInt8[np.ndarray, "H W 3"]:
    """Return the three digits of each pixel of an FSD PNG.

    Raises:
        DataError: the file is missing, cannot be decoded, or is not 8-bit RGB.
    """
    encoded = _bytes(path)
    code = decode_plain_png(encoded)
    if code is None:
        return _check_fsd_code(path, _decode(path, encoded, cv2.IMREAD_UNCHANGED))
    return _check_channels(path, code)


def _check_fsd_code(path: Path, encoded: np.ndarray) -> UInt8[np.ndarray, "H W 3"]:
    """Return what OpenCV decoded, in RGB; raises DataError where it is not 8-bit RGB."""
    if encoded.ndim != 3 or encoded.shape[2] != 3 or encoded.dtype != np.uint8:
        raise DataError(
            f"{path}: a FoundationStereo disparity map is an 8-bit RGB PNG, but this one has shape {encoded.shape} "
            f"and type {encoded.dtype}; was it converted to grey or to depth?"
        )
    return _check_channels(path, np.asarray(encoded[..., ::-1], dtype=np.uint8))


def _check_channels(path: Path, code: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W 3"]:
    """Return the code unchanged.

    Raises:
        DataError: it is grey (a map of 8 bits, or a drawing, saved as RGB), or its channels are in another order.
    """
    if _has_equal_channels(code[::16, ::16]) and _has_equal_channels(code) and code.any():
        raise _grey(path)
    rows = code[:: max(1, len(code) // _ORDER_ROWS)].astype(np.float32)
    known = np.asarray(rows.any(axis=2))
    both_known = known[:, 1:] & known[:, :-1]
    changes = np.diff(rows, axis=1)[both_known]
    changes = changes[changes.any(axis=1)]
    if len(changes) < _ORDER_PIXELS:
        return code
    # Surfaces are smooth, and the last digit changes fastest. Only in the right order does it have the least weight.
    roughness = {
        order: float(np.median(np.abs(changes[:, order] @ _FSD_WEIGHTS))) for order in itertools.permutations(range(3))
    }
    smoothest = min(roughness, key=lambda order: roughness[order])
    if roughness[0, 1, 2] > _ORDER_RATIO * max(roughness[smoothest], 1):
        raise DataError(
            f"{path}: its channels seem to be exchanged: as {''.join('RGB'[i] for i in smoothest)} it would be smooth; "
            "write it again as RGB"
        )
    return code


def _has_equal_channels(code: UInt8[np.ndarray, "H W 3"]) -> bool:
    return bool(((code[..., 0] == code[..., 1]) & (code[..., 1] == code[..., 2])).all())


def _grey(path: Path) -> DataError:
    return DataError(
        f"{path}: its three channels are equal, so it is a grey image, not FoundationStereo's code of disparity (nor "
        "KITTI's, which has one channel of 16 bits); get the original file"
    )


def check_largest_disparity(
    path: Path, disparity_px: Float[np.ndarray, "*shape"], width: int
) -> Float[np.ndarray, "*shape"]:
    """Return the disparity, px of the file's own resolution, unchanged.

    Raises:
        DataError: one is larger than the file is wide.
    """
    if (largest := float(np.nanmax(disparity_px, initial=0.0))) > width:
        raise DataError(
            f"{path}: holds a disparity of {largest:.1f} px in an image {width} px wide; "
            "were its red and blue channels swapped, or the map resized?"
        )
    return disparity_px


def decode_fsd_disparity(code: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "H W"]:
    """Return disparity_px = (R * 255 * 255 + G * 255 + B) / 1000, float32; code 0 is unknown and becomes NaN.

    Source: the decoder published with the FoundationStereo data set. The largest code has 24 bits, so the sum is exact
    in float32.
    """
    steps = code.astype(np.float32) @ np.array([FSD_BASE**2, FSD_BASE, 1], np.float32)
    steps[steps == 0] = np.nan
    steps /= np.float32(1 / FSD_STEP_PX)
    return steps


def encode_fsd_disparity(disparity_px: Float[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """Return the FSD code, RGB, of a disparity map; NaN becomes code 0. The inverse of the decoder up to 16384 px.

    Raises:
        DataError: a disparity is below 0 or above what the code can hold.
    """
    unknown = np.isnan(disparity_px)
    steps = np.rint(np.where(unknown, 0, disparity_px).astype(np.float64) / FSD_STEP_PX).astype(np.int64)
    if steps.min(initial=0) < 0 or steps.max(initial=0) >= FSD_BASE**3:
        raise DataError(f"the FSD code holds disparities from 0 to {FSD_LARGEST_PX} px, not {disparity_px[~unknown]}")
    return np.stack([steps // FSD_BASE**2, steps // FSD_BASE % FSD_BASE, steps % FSD_BASE], axis=-1).astype(np.uint8)


def write_rgb(path: Path, image: UInt8[np.ndarray, "H W 3"]) -> None:
    """Write an RGB image, completely or not at all; the suffix chooses the encoding."""
    encoded = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1]
    write_atomically(path, lambda file: file.write(encoded.tobytes()), durable=False)


def encode_whole_steps(values: Float[np.ndarray, "H W"], steps_per_unit: float) -> UInt16[np.ndarray, "H W"]:
    """Return values as 16-bit whole numbers of 1/steps_per_unit; 0 is what is unknown (NaN) or not above 0.

    A value that is known never becomes 0, as in KITTI's own tools: the smallest code is 1.

    Raises:
        DataError: a value is beyond what 16 bits hold.
    """
    known = values > 0  # NaN compares false
    steps = np.rint(np.where(known, values, 0).astype(np.float64) * steps_per_unit)
    if (largest := steps.max(initial=0)) > _LARGEST_CODE:
        raise DataError(
            f"a 16-bit PNG holds values up to {_LARGEST_CODE / steps_per_unit:.3f} here, not "
            f"{largest / steps_per_unit:.3f}; write pfm or npy instead"
        )
    return np.where(known, np.maximum(steps, 1), 0).astype(np.uint16)


def decode_whole_steps(code: UInt16[np.ndarray, "H W"], steps_per_unit: float) -> Float[np.ndarray, "H W"]:
    """Return the values of 16-bit whole numbers of 1/steps_per_unit, float32; 0 is unknown and becomes NaN."""
    return np.where(code > 0, code.astype(np.float32) / np.float32(steps_per_unit), np.float32(np.nan))


def encode_png16(code: UInt16[np.ndarray, "H W"]) -> bytes:
    """Return the bytes of a 16-bit grey PNG."""
    return cv2.imencode(".png", code)[1].tobytes()


def read_png16(path: Path) -> UInt16[np.ndarray, "H W"]:
    """Return the codes in a 16-bit grey PNG.

    Raises:
        DataError: the file is missing, cannot be decoded, or is of another kind.
    """
    code = _decode(path, _bytes(path), cv2.IMREAD_UNCHANGED)
    if code.ndim != 2 or code.dtype != np.uint16:
        raise DataError(f"{path}: is not a 16-bit grey PNG, but has shape {code.shape} and type {code.dtype}")
    return code.astype(np.uint16, copy=False)


def encode_pfm(values: Float[np.ndarray, "H W"]) -> bytes:
    """Return the bytes of a grey PFM: rows from the bottom up, float32, little endian (scale -1); unknown is infinity.

    Source: the format of the Middlebury stereo benchmark, whose files mark unknown disparity so.
    """
    height, width = values.shape
    known = np.where(np.isfinite(values), values, np.inf)
    return f"Pf\n{width} {height}\n-1\n".encode() + np.ascontiguousarray(known[::-1], "<f4").tobytes()


def read_pfm(path: Path) -> Float[np.ndarray, "H W"]:
    """Return the values of a grey PFM, float32, top row first; infinity is unknown and becomes NaN.

    Raises:
        DataError: the file is missing, not a grey PFM, or truncated.
    """
    encoded = _bytes(path)
    header = re.match(rb"Pf\s+(\d{1,9})\s+(\d{1,9})\s+([-+.\deE]+)\s", encoded)
    if header is None:
        raise DataError(f"{path}: does not begin as a grey PFM does (Pf, width, height, scale)")
    width, height = int(header[1]), int(header[2])
    try:
        scale = float(header[3])
    except ValueError as error:
        raise DataError(f"{path}: its scale is no number") from error
    body = encoded[header.end() :]
    if len(body) != 4 * width * height:
        raise DataError(f"{path}: {width}x{height} needs {4 * width * height} bytes of values, not {len(body)}")
    values = np.frombuffer(body, "<f4" if scale < 0 else ">f4").reshape(height, width)[::-1].astype(np.float32)
    return np.where(np.isfinite(values), values, np.float32(np.nan))


def read_npy(path: Path) -> Float[np.ndarray, "H W"]:
    """Return the numbers of a 2-D NumPy file, float32; what is not finite becomes NaN.

    Raises:
        DataError: the file is missing, damaged, or holds anything but a 2-D array of numbers.
    """
    try:
        values = np.load(io.BytesIO(_bytes(path)), allow_pickle=False)
    except Exception as error:  # of a foreign header
        raise DataError(f"{path}: is not a NumPy file of numbers ({error})") from error
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind not in "fiu" or not values.size:
        kind = f"shape {values.shape} and type {values.dtype}" if isinstance(values, np.ndarray) else "several arrays"
        raise DataError(f"{path}: a disparity map is a 2-D array of numbers, but this file has {kind}")
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    return np.where(np.isfinite(values), values, np.float32(np.nan))


def encode_npy(values: Float[np.ndarray, "H W"]) -> bytes:
    """Return the bytes of a NumPy file, float32; unknown is NaN."""
    file = io.BytesIO()
    np.save(file, values.astype(np.float32, copy=False), allow_pickle=False)
    return file.getvalue()


def encode_ply(points_m: Float[np.ndarray, "N 3"], colours: UInt8[np.ndarray, "N 3"]) -> bytes:
    """Return the bytes of a point cloud: binary little-endian PLY, float x y z in metres, uchar red green blue."""
    vertices = np.empty(len(points_m), _PLY_VERTEX)
    for column, name in enumerate("xyz"):
        vertices[name] = points_m[:, column]
    for column, name in enumerate(("red", "green", "blue")):
        vertices[name] = colours[:, column]
    words = {"<f4": "float", "u1": "uchar"}
    header = [
        "ply",
        "format binary_little_endian 1.0",
        "comment metres; x right, y down, z forward from the left camera",
        f"element vertex {len(vertices)}",
        *(f"property {words[kind]} {name}" for name, kind in _PLY_VERTEX),
        "end_header\n",
    ]
    return "\n".join(header).encode() + vertices.tobytes()


_PLY_VERTEX = [*((name, "<f4") for name in "xyz"), *((name, "u1") for name in ("red", "green", "blue"))]


def _single(path: Path, images: list[Image]) -> Image:
    if len(images) > 1:
        raise DataError(
            f"{path}: holds {len(images)} images of one size; a file that holds both views is given alone, without a "
            "right image"
        )
    return images[0]


def _decode_images(path: Path, encoded: bytes) -> list[Image]:
    """Return the images of a file that are as large as its largest one, in RGB."""
    if encoded.startswith(_JPEG_BEGINS):
        images = [_decode_jpeg(path, part) for part in image_headers.find_jpegs(encoded)]
    else:
        if image_headers.is_tiff(encoded) and (kind := describe_other_kind(path.name)) is not None:
            raise DataError(f"{path}: is {kind}")  # raw photographs are TIFFs whose first page is a thumbnail
        # An EXIF orientation is ignored: a rotated view would no longer be rectified, and disparity maps carry none.
        # OpenCV decodes TIFFs of 16 bits right as BGR only.
        mode = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
        if is_image(encoded) and image_headers.may_hold_several(encoded):
            decoded = _decode_several(path, encoded, mode)
        else:
            decoded = [_decode(path, encoded, mode)]
        images = [np.asarray(cv2.cvtColor(_to_8_bits(path, each, encoded), cv2.COLOR_BGR2RGB)) for each in decoded]
    largest = max((image.shape for image in images), key=lambda shape: shape[0] * shape[1])  # others are thumbnails
    return [image.astype(np.uint8, copy=False) for image in images if image.shape == largest]


def _to_8_bits(path: Path, image: np.ndarray, encoded: bytes) -> np.ndarray:
    """Return an image of 8 bits: scaled so that the value which the file calls white becomes 255.

    Raises:
        DataError: it has values above that, or is neither of 8 nor of 16 bits.
    """
    if image.dtype.name not in ("uint8", "uint16"):
        raise DataError(f"{path}: has values of type {image.dtype}; save it as an image of 8 or 16 bits")
    full = int(np.iinfo(image.dtype).max)
    deep, netpbm = full > 255, encoded[:1] == b"P"  # of 8 bits only Netpbm's formats may have another white
    largest = image_headers.largest_value(encoded) if deep or netpbm else None
    # OpenCV scales the text formats of 8 bits itself.
    white = full if largest is None or (not deep and encoded[1:2] in b"23") else largest
    highest = int(image.max(initial=0))
    if netpbm and highest > white:
        raise DataError(f"{path}: has a value of {highest}, but its header says that the largest is {white}")
    if white == full or highest > white:  # a PNG or TIFF whose values fill 16 bits has been scaled to them already
        if deep and highest < _DARK_16_BITS:
            warn_once(
                logger,
                "16 bits",
                f"{path}: its values end at {highest} of 65535, and nothing in it says which one is white, so it is "
                "dark; if the camera has 10 or 12 bits, scale them to 16, or save PGM, whose maxval says so",
            )
        return (image >> 8).astype(np.uint8) if deep else image
    scaled = np.rint(np.arange(full + 1) * (255 / white)).clip(0, 255).astype(np.uint8)
    return scaled[image]


def _warn_of_turned_camera(path: Path, where: str) -> None:
    warn_once(
        logger,
        "orientation",
        f"{path}: the Exif orientation says that the camera stood on its side, {where}; pixels are taken as they are "
        "stored. If the views were side by side only after turning, turn all images (jpegtran, ImageMagick "
        "-auto-orient) before",
    )


def _decode_jpeg(path: Path, encoded: bytes) -> Image:
    # OpenCV accepts a JPEG whose end is zeros, as power cuts and interrupted copies leave them. This decoder is the
    # same library, but strict; the pixels are the same.
    try:
        return _decode_strictly(path, encoded)
    except DataError:
        raise
    except (ValueError, MemoryError) as error:
        try:
            image, faults = decode_despite_harmless_faults(encoded, lambda corrected: _decode_strictly(path, corrected))
        except (ValueError, MemoryError) as found:
            raise _undecodable(path, found) from error
        warn_once(logger, "jpeg", f"{path}: {', '.join(dict.fromkeys(faults))}; every pixel is there, so it is read")
        return image


def _decode_strictly(path: Path, encoded: bytes) -> Image:
    height, width = (int(size) for size in simplejpeg.decode_jpeg_header(encoded, strict=True)[:2])
    if height * width > LARGEST_PIXELS:
        raise DataError(f"{path}: its header gives a size of {width}x{height}; is the file damaged?")
    return np.asarray(simplejpeg.decode_jpeg(encoded, "RGB", strict=True), np.uint8)


def _undecodable(path: Path, error: Exception) -> DataError:
    if isinstance(error, DataError):
        return error
    if str(error).startswith("Unsupported"):
        return DataError(f"{path}: {error}; save it as a usual JPEG of 8 bits, or as PNG")
    return DataError(f"{path}: is damaged ({error})")


def _decode_several(path: Path, encoded: bytes, mode: int) -> list[np.ndarray]:
    try:
        with silence_opencv():
            complete, images = cv2.imdecodemulti(np.frombuffer(encoded, np.uint8), mode)
    except cv2.error:
        complete, images = False, ()
    return list(images) if complete and images else [_decode(path, encoded, mode)]


def _decode(path: Path, encoded: bytes, mode: int) -> np.ndarray:
    try:
        encoded = keep_pixels(encoded)
    except DamagedPngError as error:
        raise DataError(f"{path}: is damaged: {error}") from error
    try:
        with silence_opencv():
            image = None if not is_image(encoded) else cv2.imdecode(np.frombuffer(encoded, np.uint8), mode)
    except cv2.error as error:  # a size too large for the memory, from a damaged header
        raise DataError(f"{path}: cannot be decoded ({error.err}); is the file damaged?") from error
    if image is None:
        raise DataError(f"{path}: {_explain_undecodable(path, encoded, mode)}")
    return image


def _explain_undecodable(path: Path, encoded: bytes, mode: int) -> str:
    if (kind := describe_other_kind(path.name, encoded)) is not None:
        return f"is {kind}"
    if mode != cv2.IMREAD_UNCHANGED and is_image(encoded):
        try:
            with silence_opencv():
                stored = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
        except cv2.error:
            stored = None
        if stored is not None:
            return f"has values of type {stored.dtype}; save it as an image of 8 or 16 bits"
    return f"{len(encoded)} bytes that are not a complete image; is the file damaged?"


def _bytes(path: Path, at_most_pixels: int = LARGEST_VIEW_PIXELS) -> bytes:
    # Reading the bytes here tells a missing file from a damaged one, and accepts any character in a path.
    encoded = read_regular_file(path, at_most_bytes=LARGEST_FILE_BYTES, error_type=DataError)
    check_pixels(path, encoded, at_most_pixels)
    return encoded

"""What a Python user passes as a view of a pair -> RGB with 8 bits."""

from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from foundation_stereo_depth.data.codecs import read_rgb
from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.options.fields import expand_home

View = np.ndarray | Path | str
"""The path of an image file, or an array: [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]; of bytes, of 16 bits, or of
floats from 0 to 1."""
ChannelOrder = Literal["rgb", "bgr"]
"""Of arrays: RGB as from PIL, Matplotlib and imageio, or BGR as from `cv2.imread`."""


def as_rgb(view: View, side: str, order: ChannelOrder = "rgb") -> UInt8[np.ndarray, "H W 3"]:
    """Return a view as RGB with 8 bits; an array that is so already is returned itself.

    Args:
        view: a file, or an array.
        side: left or right, for messages.
        order: of the channels of an array; files are read as they say.

    Raises:
        UserError: the array is no image, or `order` is unknown.
        DataError: the file is missing or damaged.
    """
    if isinstance(view, str | Path):
        return read_rgb(Path(expand_home(str(view))))
    if order not in ("rgb", "bgr"):
        raise UserError(f"order={order!r}: has to be 'rgb' or 'bgr'")
    image = _with_channels(np.asarray(view), side)
    image = _to_bytes(image, side)
    if image.shape[2] == 1:
        return np.repeat(image, 3, axis=2)
    image = image[..., :3]  # without opacity
    return image if order == "rgb" else np.ascontiguousarray(image[..., ::-1])


def _with_channels(image: np.ndarray, side: str) -> np.ndarray:
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim == 3 and image.shape[2] in (1, 3, 4) and image.size:
        return image
    advice = "a path, or an array of shape [H, W] or [H, W, 3], is wanted"
    if image.ndim == 3 and image.shape[0] in (1, 3, 4):
        advice = "channels come last: image.transpose(1, 2, 0)"
    elif image.ndim == 4:
        advice = "it is a batch; give one image at a time, or use Predictor.batch"
    raise UserError(f"the {side} view has the shape {image.shape}; {advice}")


def _to_bytes(image: np.ndarray, side: str) -> np.ndarray:
    if image.dtype == np.uint8:
        return image
    if image.dtype == np.uint16:
        return (image >> 8).astype(np.uint8)  # as files of 16 bits are read
    if not np.issubdtype(image.dtype, np.floating):
        raise UserError(
            f"the {side} view has values of type {image.dtype}; uint8, uint16 or floats from 0 to 1 are wanted"
        )
    low, high = float(image.min()), float(image.max())
    if not (low >= 0 and high <= 1):  # also NaN
        hint = "; divide it by 255" if 1 < high <= 255 and low >= 0 else ""
        raise UserError(f"the {side} view holds floats from {low:g} to {high:g}; they have to be from 0 to 1{hint}")
    return np.rint(image * 255).astype(np.uint8)

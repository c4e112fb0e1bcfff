"""The heavy steps of augmentation: OpenCV does them on a CPU, PyTorch on every other device.

Both take the same numbers and give the same images up to rounding, which tests hold them to (JPEG itself leaves more
open than that); what the numbers are is settled elsewhere (pipeline.py). docs/experiments/data.md has its measurements.
"""

import functools
import math

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from foundation_stereo_depth.data.augment.jpeg import compressed
from foundation_stereo_depth.data.memory import BatchMemory

Images = Float[Tensor, "N 3 H W"]

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, section 2.5.1: the weights of R, G and B in luminance
_LEVELS = np.arange(256, dtype=np.float32) / 255


@functools.cache
def _memory() -> BatchMemory:
    return BatchMemory()


def room(*shape: int, device: torch.device) -> Float[Tensor, "..."]:
    """Floats that may hold anything; on a CPU in memory that is used again, as fresh pages cost more than the sums."""
    if device.type != "cpu":
        return torch.empty(shape, device=device)
    return torch.from_numpy(_memory().take(4 * int(np.prod(shape))).view(np.float32).reshape(shape))


def recolour(
    images_u8: UInt8[Tensor, "N 3 H W"],
    exponent: Float[Tensor, " N"],
    matrix: Float[Tensor, "N 3 3"],
    pivot: Float[Tensor, " N"],
    into: Images,
) -> None:
    """Writes matrix @ v + pivot * m, where v is the image in 0..1 to the power of `exponent`.

    And m is the mean luminance of the image in 0..1, to the same power.
    """
    if not images_u8.is_cpu:
        into.copy_(_recoloured(images_u8, exponent, matrix, pivot))
        return
    # Interleaved, as a batch from files is; planar images are copied.
    interleaved = images_u8.permute(0, 2, 3, 1).contiguous().numpy()
    values = room(*interleaved.shape[1:], device=images_u8.device).numpy()
    rows = np.empty((3, 4))
    numbers = exponent.tolist(), matrix.numpy(), pivot.tolist()
    for image, power, colours, share, planes in zip(interleaved, *numbers, into.numpy(), strict=True):
        luminance = sum(weight * mean for weight, mean in zip(LUMA, cv2.mean(image), strict=False)) / 255
        # A byte has but 256 levels: their powers are looked up.
        cv2.LUT(image, _LEVELS**power, dst=values)
        rows[:, :3], rows[:, 3] = colours, share * luminance**power
        for c in range(3):
            cv2.transform(values, rows[c : c + 1], dst=planes[c])


def _recoloured(
    images_u8: UInt8[Tensor, "N 3 H W"],
    exponent: Float[Tensor, " N"],
    matrix: Float[Tensor, "N 3 3"],
    pivot: Float[Tensor, " N"],
) -> Images:
    # Colour planes one after the other: sums, products and samplings over whole planes are what vectorises best.
    images = images_u8.contiguous().to(torch.float32).div_(255)
    luminance = images.mean(dim=(2, 3)) @ torch.tensor(LUMA, device=images.device)
    offset = (pivot * luminance**exponent)[:, None, None].expand(-1, 3, 1)
    values = images.pow_(exponent[:, None, None, None]).flatten(2)
    return torch.baddbmm(offset, matrix, values).view(images.shape)


def blur(images: Images, chosen: Bool[Tensor, " N"], weights: Float[Tensor, "N K"]) -> None:
    """Blurs the chosen images in place by one column and one row of weights; borders are mirrored."""
    if not images.is_cpu:
        _blur(images, chosen, weights)
        return
    columns = weights.numpy()
    for i in chosen.nonzero().flatten().tolist():
        for plane in images[i].numpy():
            cv2.sepFilter2D(plane, -1, columns[i], columns[i], dst=plane, borderType=cv2.BORDER_REFLECT_101)


def _blur(images: Images, chosen: Bool[Tensor, " N"], weights: Float[Tensor, "N K"]) -> None:
    at = chosen.nonzero().flatten()
    if len(at) == 0:
        return
    radius = weights.shape[1] // 2
    repeated = weights[at].repeat_interleave(3, dim=0)
    planes = F.pad(images[at], (radius,) * 4, mode="reflect").flatten(0, 1)[None]
    planes = F.conv2d(planes, repeated[:, None, :, None], groups=len(repeated))
    planes = F.conv2d(planes, repeated[:, None, None, :], groups=len(repeated))
    images.index_copy_(0, at, planes[0].unflatten(0, (-1, 3)))


def add_noise(
    images: Images, bank: Float[Tensor, " bank"], start: Int64[Tensor, " N"], std: Float[Tensor, " N"]
) -> None:
    """Adds to each image the stretch of the bank that begins at `start`, times `std`, in place."""
    if not images.is_cpu:
        _add_noise(images, bank, start, std)
        return
    size = images[0].numel()
    for image, first, times in zip(images, start.tolist(), std.tolist(), strict=True):
        image.add_(bank[first : first + size].view(image.shape), alpha=times)


def _add_noise(
    images: Images, bank: Float[Tensor, " bank"], start: Int64[Tensor, " N"], std: Float[Tensor, " N"]
) -> None:
    # Every stretch as a row of an overlapping view: picking rows copies memory and computes no addresses.
    stretches = bank.unfold(0, images[0].numel(), 1).index_select(0, start)
    images.addcmul_(stretches.view(images.shape), std[:, None, None, None])


def compress(images: Images, chosen: Bool[Tensor, " N"], quality: Float[Tensor, " N"]) -> None:
    """Turns the chosen images into what comes back from a JPEG file of that quality, a whole number, in place."""
    if not images.is_cpu:
        _compress(images, chosen, quality)
        return
    for i in chosen.nonzero().flatten().tolist():
        red, green, blue = images[i].numpy()
        image = cv2.convertScaleAbs(cv2.merge([blue, green, red]), alpha=255)
        encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(quality[i])])[1]
        back = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
        assert back is not None, "OpenCV reads what it has just written"
        for bytes_of, plane in zip(cv2.split(back), (blue, green, red), strict=True):
            np.multiply(bytes_of, np.float32(1 / 255), out=plane)


def _compress(images: Images, chosen: Bool[Tensor, " N"], quality: Float[Tensor, " N"]) -> None:
    at = chosen.nonzero().flatten()
    if len(at) > 0:
        images.index_copy_(0, at, compressed(images[at], quality[at]))


def replace_patches(
    images: Images,
    chosen: Bool[Tensor, " N"],
    foreign: Bool[Tensor, " N"],
    centre_px: Float[Tensor, "N n 2"],
    half_px: Float[Tensor, "N n 2"],
) -> None:
    """Replaces patches of the chosen images, in place, by what stands elsewhere in them (foreign) or their mean colour.

    Args:
        images: to be changed.
        chosen: which.
        foreign: by what.
        centre_px: of each patch, y and x.
        half_px: half the height and half the width of each patch.
    """
    if not images.is_cpu:
        images.copy_(_with_patches_replaced(images, chosen, foreign, centre_px, half_px))
        return
    H, W = images.shape[2:]
    first, until = centre_px - half_px, centre_px + half_px
    for i in chosen.nonzero().flatten().tolist():
        image = images[i].numpy()
        patches = [
            (slice(max(0, math.floor(y) + 1), math.ceil(y_end)), slice(max(0, math.floor(x) + 1), math.ceil(x_end)))
            for (y, x), (y_end, x_end) in zip(first[i].tolist(), until[i].tolist(), strict=True)
        ]
        if foreign[i]:
            # All is read before any is written: what comes from elsewhere is what stood there at first.
            where = [(np.arange(H)[y] - H // 3, np.arange(W)[x] - W // 3) for y, x in patches]
            contents = [image[:, y[:, None] % H, x % W] for y, x in where]
        else:
            contents = [images[i].mean(dim=(1, 2)).numpy()[:, None, None]] * len(patches)
        for (y, x), content in zip(patches, contents, strict=True):
            image[:, y, x] = content


def _with_patches_replaced(
    images: Images,
    chosen: Bool[Tensor, " N"],
    foreign: Bool[Tensor, " N"],
    centre_px: Float[Tensor, "N n 2"],
    half_px: Float[Tensor, "N n 2"],
) -> Images:
    H, W = images.shape[2:]
    y, x = torch.arange(H, device=images.device)[:, None], torch.arange(W, device=images.device)
    (at_y, at_x), (half_y, half_x) = (of_patch[..., None, None].unbind(2) for of_patch in (centre_px, half_px))
    inside = (((y - at_y).abs() < half_y) & ((x - at_x).abs() < half_x)).any(dim=1, keepdim=True)
    elsewhere = images.roll((H // 3, W // 3), dims=(2, 3))
    content = torch.where(foreign[:, None, None, None], elsewhere, images.mean(dim=(2, 3), keepdim=True))
    return torch.where(inside & chosen[:, None, None, None], content, images)

"""Asymmetric augmentation: two cheap webcams differ in colour, focus, noise and height.

Tensor arithmetic on the training device. Each view of each sample has random numbers of its own, from the sample's key.
"""

import functools
import math
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from foundation_stereo_depth.data.augment.kernels import (
    LUMA,
    Images,
    add_noise,
    blur,
    compress,
    recolour,
    replace_patches,
    room,
)
from foundation_stereo_depth.data.batch import StereoBatch
from foundation_stereo_depth.data.random import Keys, Range, chance, uniforms
from foundation_stereo_depth.options.training import AugmentOptions

_NOISE_BANK = 2**19  # numbers beyond the first image's own; more would not stay in a processor's cache
_ERASED_PATCHES = 2
_WORST_QUALITY, _BEST_QUALITY = 50, 95  # of JPEG
_LIGHTS = (3, 4)  # rows and columns of an image's random light


def as_pair(batch: StereoBatch) -> Float[Tensor, "B 6 H W"]:
    """Return the batch as a network takes it: left RGB, right RGB, 0..1, nothing changed."""
    # Planes one after the other: a third of the time that interleaved bytes take.
    return torch.cat([batch.left.contiguous(), batch.right.contiguous()], dim=1).to(torch.float32).div_(255)


def flipped(batch: StereoBatch, keys: Keys, options: AugmentOptions) -> StereoBatch:
    """Return the batch with some samples turned upside down, both views and the disparity; rows stay on rows."""
    if not options.augment or options.flip_prob <= 0:
        return batch
    turned = chance(keys, "flip", 1, 1, 1, probability=options.flip_prob)
    left, right, disparity_px = (
        torch.where(turned, values.flip(2), values) for values in (batch.left, batch.right, batch.disparity_px)
    )
    return replace(batch, left=left, right=right, disparity_px=disparity_px)


def augmented_pair(batch: StereoBatch, keys: Keys, options: AugmentOptions) -> Float[Tensor, "B 6 H W"]:
    """Return the batch as a network takes it, each view changed on its own; the disparity stays true.

    Only the right view moves (vertically, by less than a pixel or so): the truth belongs to the left one.
    """
    if not options.augment:
        return as_pair(batch)
    changes = _drawn(keys, options)
    B, _, H, W = batch.left.shape
    pair = room(B, 6, H, W, device=batch.left.device)
    # One pair after the other stays in a processor's cache; every other device wants all at once.
    at_once = 1 if pair.is_cpu else B
    for first in range(0, B, at_once):
        some = slice(first, first + at_once)
        _change(pair[some], batch.left[some], batch.right[some], changes.of(some), options)
    return pair


@dataclass(frozen=True, kw_only=True)
class _Changes:
    """What is to happen to each sample, as drawn; where there are two of something, they are the left and right view.

    Attributes:
        exponent: of brightness (gamma).
        colours, pivot: of `recolour`.
        lights: a few factors over each image.
        blurred, blur_weights: which views are, and by which row of weights.
        noise_start, noise_std: which stretch of the bank is added, times what.
        compressed, quality: whether both are sent as JPEG, and how well, a whole number.
        offset_px: a few vertical offsets over the right image.
        erased, foreign: whether patches are replaced, and if so by other content or by the mean colour.
        patch_centre, patch_half: of each patch, y and x, share of height and of width; the size of the width alone.
    """

    exponent: Float[Tensor, "B 2"]
    colours: Float[Tensor, "B 2 3 3"]
    pivot: Float[Tensor, "B 2"]
    lights: Float[Tensor, "B 2 h w"]
    blurred: Bool[Tensor, "B 2"]
    blur_weights: Float[Tensor, "B 2 K"]
    noise_start: Int64[Tensor, "B 2"]
    noise_std: Float[Tensor, "B 2"]
    compressed: Bool[Tensor, " B"]
    quality: Float[Tensor, " B"]
    offset_px: Float[Tensor, "B 3 3"]
    erased: Bool[Tensor, " B"]
    foreign: Bool[Tensor, " B"]
    patch_centre: Float[Tensor, "B n 2"]
    patch_half: Float[Tensor, "B n 2"]

    def of(self, some: slice) -> "_Changes":
        """Return those of some samples."""
        return _Changes(**{field.name: getattr(self, field.name)[some] for field in fields(self)})


def _drawn(keys: Keys, options: AugmentOptions) -> _Changes:
    gamma, turn = math.log1p(options.gamma_jitter), 2 * math.pi * options.hue_jitter
    n = _ERASED_PATCHES
    drawn = uniforms(
        keys,
        {
            "gamma": Range((2,), -gamma, gamma),
            "brightness": _around_one(2, jitter=options.brightness_jitter),
            "contrast": _around_one(2, jitter=options.contrast_jitter),
            "saturation": _around_one(2, jitter=options.saturation_jitter),
            "hue": Range((2,), -turn, turn),
            "lighting": _around_one(2, *_LIGHTS, jitter=options.lighting_jitter),
            "blur": Range((2,)),
            # A sigma of 0 would divide by zero; at 0.1 px the neighbours' weight is already below 1e-20.
            "blur sigma": Range((2,), 0.1, max(0.1, options.blur_sigma_max)),
            "noise": Range((2,)),
            "noise level": Range((2,)),
            "noise of each": Range((2,), 0.5, 1.0),
            "jpeg": Range((1,)),
            "jpeg quality": Range((1,), _WORST_QUALITY, _BEST_QUALITY),
            "vertical reach": Range((1, 1), 0, options.vertical_offset_max_px),
            "vertical field": Range((3, 3), -1, 1),
            "erase": Range((1,)),
            "erase foreign": Range((1,)),
            "erase centre": Range((n, 2)),
            "erase size": Range((n, 2), 0.05 * options.erase_size_max, 0.5 * options.erase_size_max),
        },
    )
    colours, pivot = _colour_maps(*(drawn[name] for name in ("brightness", "contrast", "saturation", "hue")))
    radius = options.blur_kernel_size // 2
    distance_px = torch.arange(-radius, radius + 1, device=keys.device)
    weights = torch.exp(-0.5 * (distance_px / drawn["blur sigma"][:, :, None]) ** 2)
    return _Changes(
        exponent=drawn["gamma"].exp(),
        colours=colours,
        pivot=pivot,
        lights=drawn["lighting"],
        blurred=drawn["blur"] < options.blur_prob,
        blur_weights=weights / weights.sum(dim=2, keepdim=True),
        # Of 24 bits of fraction: some stretches come up 3 % more often than others, and noise does not mind.
        noise_start=(drawn["noise"] * (_NOISE_BANK + 1)).to(torch.int64),
        # Few rooms are dark: most views have little noise, some have much.
        noise_std=options.noise_std_max * drawn["noise level"] ** 3 * drawn["noise of each"],
        compressed=drawn["jpeg"][:, 0] < options.jpeg_prob,
        quality=drawn["jpeg quality"][:, 0].round(),
        offset_px=drawn["vertical field"] * drawn["vertical reach"],
        erased=drawn["erase"][:, 0] < options.erase_prob,
        foreign=drawn["erase foreign"][:, 0] < 0.5,
        patch_centre=drawn["erase centre"],
        patch_half=drawn["erase size"],
    )


def _change(
    pair: Float[Tensor, "N 6 H W"],
    left: UInt8[Tensor, "N 3 H W"],
    right: UInt8[Tensor, "N 3 H W"],
    changes: _Changes,
    options: AugmentOptions,
) -> None:
    """Write some samples to `pair`, augmented."""
    images = pair.view(-1, 3, *pair.shape[2:])  # left, right, left, right
    of_left, of_right = images[0::2], images[1::2]
    for view, (images_u8, into) in enumerate(((left, of_left), (right, of_right))):
        recolour(images_u8, changes.exponent[:, view], changes.colours[:, view], changes.pivot[:, view], into)
    if options.vertical_offset_max_px > 0:
        _move_vertically(of_right, changes.offset_px, options.vertical_offset_max_px)
    if options.lighting_jitter > 0:
        images.mul_(_spread_over_image(changes.lights.flatten(0, 1), images.shape[2:], corners=False))
    if options.blur_prob > 0 and options.blur_sigma_max > 0:
        blur(images, changes.blurred.flatten(), changes.blur_weights.flatten(0, 1))
    if options.noise_std_max > 0:
        bank = _noise_bank(images[0].numel(), images.device)
        add_noise(images, bank, changes.noise_start.flatten(), changes.noise_std.flatten())
    images.clamp_(0, 1)
    if options.jpeg_prob > 0:
        compress(images, changes.compressed.repeat_interleave(2), changes.quality.repeat_interleave(2))
    if options.erase_prob > 0 and options.erase_size_max > 0:
        # What one view shows and the other does not.
        size_px = torch.tensor(images.shape[2:], device=images.device)
        centre_px, half_px = changes.patch_centre * size_px, changes.patch_half * size_px[1]
        replace_patches(of_right, changes.erased, changes.foreign, centre_px, half_px)


def _around_one(*shape: int, jitter: float) -> Range:
    return Range(shape, 1 - jitter, 1 + jitter)


def _colour_maps(
    brightness: Float[Tensor, "B 2"],
    contrast: Float[Tensor, "B 2"],
    saturation: Float[Tensor, "B 2"],
    angle: Float[Tensor, "B 2"],
) -> tuple[Float[Tensor, "B 2 3 3"], Float[Tensor, "B 2"]]:
    """All four as one matrix for RGB, and the share of the mean luminance to be added to each channel.

    Saturation and hue leave grey alone, so contrast's pivot (the mean luminance) passes through them unchanged.
    """
    kept, to_luma, along, across = _colour_constants(brightness.device)
    saturation, angle = saturation[..., None, None], angle[..., None, None]
    saturate = saturation * kept + (1 - saturation) * to_luma
    # Rotation of RGB about the grey axis, (1, 1, 1) / sqrt 3 (Rodrigues' formula).
    turn = angle.cos() * (kept - along) + along + angle.sin() * across
    return (contrast * brightness)[..., None, None] * (turn @ saturate), (1 - contrast) * brightness


@functools.cache
def _colour_constants(device: torch.device) -> tuple[Float[Tensor, "3 3"], ...]:
    """Return matrices on RGB: one, luminance in every channel, projection on grey, and a quarter turn about grey."""
    along = torch.full((3, 3), 1 / 3)
    across = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    return tuple(matrix.to(device) for matrix in (torch.eye(3), torch.tensor(LUMA).expand(3, 3), along, across))


@functools.lru_cache(maxsize=32)
def _linear_weights(few: int, many: int, corners: bool, device: torch.device) -> Float[Tensor, "few many"]:
    """What each of a few values is worth at each of many places, as linear interpolation has it."""
    return F.interpolate(torch.eye(few)[None], size=many, mode="linear", align_corners=corners)[0].to(device)


def _spread_over_image(few: Float[Tensor, "N h w"], size: torch.Size, *, corners: bool) -> Float[Tensor, "N 1 H W"]:
    """Return a smooth field over each image between a few values; bilinear, the outer ones in the corners or inside."""
    rows, columns = (
        _linear_weights(of_few, many, corners, few.device) for of_few, many in zip(few.shape[1:], size, strict=True)
    )
    return (rows.T @ few @ columns)[:, None]


@functools.cache
def _noise_bank(size: int, device: torch.device) -> Float[Tensor, " bank"]:
    """Standard normal numbers, the same in every process; new ones for each pixel cost ten times more."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(_NOISE_BANK + size, generator=generator).to(device)


def _move_vertically(right: Images, offset_px: Float[Tensor, "N 3 3"], largest_px: float) -> None:
    """Move the content up or down by a smooth field of at most `largest_px`, in place; linear between rows.

    A value at row y + offset is the one at y plus so much of each step between rows that lies on the way.
    """
    H = right.shape[2]
    field_px = _spread_over_image(offset_px, right.shape[2:], corners=True)
    steps = room(*right[:, :, 1:].shape, device=right.device)
    torch.sub(right[:, :, 1:], right[:, :, :-1], out=steps)
    for k in range(min(math.ceil(largest_px), H - 1)):
        down, up = (field_px.clamp(k, k + 1), field_px.clamp(-k - 1, -k))
        if k > 0:
            down, up = down - k, up + k
        right[:, :, : H - 1 - k].addcmul_(steps[:, :, k:], down[:, :, : H - 1 - k])
        right[:, :, k + 1 :].addcmul_(steps[:, :, : H - 1 - k], up[:, :, k + 1 :])

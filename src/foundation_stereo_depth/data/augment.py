"""Asymmetric augmentation: two cheap webcams never agree on colour, focus, noise or height.

Batched tensor arithmetic on the training device. Each eye of each sample draws for itself, from the sample's key.
"""

import functools
import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from foundation_stereo_depth.data.dataset import StereoBatch
from foundation_stereo_depth.data.draws import Keys, chance, uniform, whole
from foundation_stereo_depth.data.jpeg import compressed
from foundation_stereo_depth.options import AugmentOptions

Images = Float[Tensor, "N 3 H W"]

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, section 2.5.1: the weights of R, G and B in luminance
_NOISE_BANK = 2**21  # numbers beyond the first picture's own
_ERASED_PATCHES = 2
_WORST_QUALITY, _BEST_QUALITY = 50, 95  # of JPEG
_LIGHTS = (3, 4)  # rows and columns of a picture's drawn light


def as_pair(batch: StereoBatch) -> Float[Tensor, "B 6 H W"]:
    """The batch as a network takes it: left RGB, right RGB, 0..1, nothing changed."""
    # Planes one after the other: a third of the time that interleaved bytes take.
    return torch.cat([batch.left.contiguous(), batch.right.contiguous()], dim=1).to(torch.float32).div_(255)


def flipped(batch: StereoBatch, keys: Keys, options: AugmentOptions) -> StereoBatch:
    """The batch with some samples turned upside down, both views and the disparity; rows stay on rows."""
    if not options.augment or options.flip_prob <= 0:
        return batch
    turned = chance(keys, "flip", 1, 1, 1, probability=options.flip_prob)
    left, right, disparity_px = (
        torch.where(turned, values.flip(2), values) for values in (batch.left, batch.right, batch.disparity_px)
    )
    return replace(batch, left=left, right=right, disparity_px=disparity_px)


def augmented_pair(batch: StereoBatch, keys: Keys, options: AugmentOptions) -> Float[Tensor, "B 6 H W"]:
    """The batch as a network takes it, each eye changed on its own; the disparity stays true.

    Only the right view moves (vertically, by less than a pixel or so): the truth belongs to the left one.
    """
    if not options.augment:
        return as_pair(batch)
    B = len(keys)
    # Colour planes one after the other: sums, products and samplings over whole planes are what vectorises best.
    right = batch.right.contiguous().to(torch.float32)
    if options.vertical_offset_max_px > 0:
        right = _vertically_offset(right, keys, options.vertical_offset_max_px)
    images = torch.cat([batch.left.contiguous().to(torch.float32), right]).div_(255)
    if options.gamma_jitter > 0:
        reach = math.log1p(options.gamma_jitter)
        images = images.pow_(_per_image(keys, "gamma", -reach, reach).exp())
    images = _colour_jittered(images, keys, options)
    if options.lighting_jitter > 0:
        images = images.mul_(_lighting(images, keys, options.lighting_jitter))
    if options.blur_prob > 0 and options.blur_sigma_max > 0:
        images = _blurred(images, keys, options)
    if options.noise_std_max > 0:
        images = images.add_(_noise(images, keys, options.noise_std_max))
    images = images.clamp_(0, 1)
    if options.jpeg_prob > 0:
        images = _compressed(images, keys, options)
    left, right = images[:B], images[B:]
    if options.erase_prob > 0 and options.erase_size_max > 0:
        right = _erased(right, keys, options)
    return torch.cat([left, right], dim=1)


def _per_image(keys: Keys, purpose: str, low: float, high: float) -> Float[Tensor, "N 1 1 1"]:
    """One number per image: the left ones first, then the right ones, as `images` is laid out."""
    return uniform(keys, purpose, 2, low=low, high=high).T.reshape(-1, 1, 1, 1)


def _colour_jittered(images: Images, keys: Keys, options: AugmentOptions) -> Images:
    """Brightness, contrast, saturation and hue: together one affine map of RGB per image.

    Saturation and hue leave grey alone, so contrast's pivot (the mean luminance) passes through them unchanged.
    """
    luma = torch.tensor(_LUMA, device=images.device)
    brightness, contrast, saturation = (
        _per_image(keys, purpose, 1 - jitter, 1 + jitter).reshape(-1, 1, 1)
        for purpose, jitter in (
            ("brightness", options.brightness_jitter),
            ("contrast", options.contrast_jitter),
            ("saturation", options.saturation_jitter),
        )
    )
    turn = 2 * math.pi * options.hue_jitter
    angle = _per_image(keys, "hue", -turn, turn).reshape(-1, 1, 1)

    saturate = saturation * torch.eye(3, device=images.device) + (1 - saturation) * luma.expand(3, 3)
    matrix = contrast * brightness * (_hue_turn(angle) @ saturate)
    pivot = (images.mean(dim=(2, 3), keepdim=False) @ luma).reshape(-1, 1, 1) * brightness
    offset = ((1 - contrast) * pivot).expand(-1, 3, 1)
    return torch.baddbmm(offset, matrix, images.flatten(2)).view(images.shape)


def _lighting(images: Images, keys: Keys, jitter: float) -> Float[Tensor, "N 1 H W"]:
    """A smooth factor over each image, between a few drawn ones."""
    drawn = uniform(keys, "lighting", 2, *_LIGHTS, low=1 - jitter, high=1 + jitter)
    return F.interpolate(drawn.transpose(0, 1).reshape(-1, 1, *_LIGHTS), size=images.shape[2:], mode="bilinear")


def _hue_turn(angle: Float[Tensor, "N 1 1"]) -> Float[Tensor, "N 3 3"]:
    """Rotation of RGB about the grey axis by `angle`, rad (Rodrigues' formula with the axis (1, 1, 1) / sqrt 3)."""
    device = angle.device
    along = torch.full((3, 3), 1 / 3, device=device)
    across = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]], device=device) / math.sqrt(3)
    return angle.cos() * (torch.eye(3, device=device) - along) + along + angle.sin() * across


def _blurred(images: Images, keys: Keys, options: AugmentOptions) -> Images:
    """A Gaussian blur of the images that draw one; two passes of one row and one column of weights."""
    chosen = (_per_image(keys, "blur", 0, 1).flatten() < options.blur_prob).nonzero().flatten()
    if len(chosen) == 0:
        return images
    # A sigma of 0 would divide by zero; at 0.1 px the neighbours' weight is already below 1e-20.
    sigma_px = _per_image(keys, "blur sigma", 0.1, max(0.1, options.blur_sigma_max)).flatten()[chosen]
    radius = options.blur_kernel_size // 2
    distance_px = torch.arange(-radius, radius + 1, device=images.device)
    weights = torch.exp(-0.5 * (distance_px / sigma_px[:, None]) ** 2)
    weights = (weights / weights.sum(dim=1, keepdim=True)).repeat_interleave(3, dim=0)
    planes = F.pad(images[chosen], (radius,) * 4, mode="reflect").flatten(0, 1)[None]
    planes = F.conv2d(planes, weights[:, None, :, None], groups=len(weights))
    planes = F.conv2d(planes, weights[:, None, None, :], groups=len(weights))
    return images.index_copy(0, chosen, planes[0].unflatten(0, (-1, 3)))


@functools.cache
def _noise_bank(size: int, device: torch.device) -> Float[Tensor, " bank"]:
    """Standard normal numbers, the same in every process; drawing them anew for each pixel costs ten times more."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(_NOISE_BANK + size, generator=generator).to(device)


def _noise(images: Images, keys: Keys, std_max: float) -> Images:
    """Sensor noise: a stretch of the bank from a drawn place, times a drawn standard deviation."""
    size = images[0].numel()
    # Every stretch of the bank as a row of an overlapping view: picking rows copies memory and computes no addresses.
    stretches = _noise_bank(size, images.device).unfold(0, size, 1)
    start = whole(keys, "noise", 2, below=len(stretches)).T.flatten()
    return stretches.index_select(0, start).view(images.shape) * _per_image(keys, "noise std", 0, std_max)


def _compressed(images: Images, keys: Keys, options: AugmentOptions) -> Images:
    """JPEG and back, both eyes of a pair at one quality."""
    drawn = chance(keys, "jpeg", 1, probability=options.jpeg_prob)
    quality = uniform(keys, "jpeg quality", 1, low=_WORST_QUALITY, high=_BEST_QUALITY)
    chosen = drawn.T.expand(2, -1).flatten().nonzero().flatten()
    if len(chosen) == 0:
        return images
    return images.index_copy(0, chosen, compressed(images[chosen], quality.T.expand(2, -1).flatten()[chosen]))


def _vertically_offset(right: Images, keys: Keys, largest_px: float) -> Images:
    """The right view, its content moved up or down by a smooth field of at most `largest_px`."""
    B, _, H, W = right.shape
    reach_px = uniform(keys, "vertical reach", 1, 1, 1, high=largest_px)
    coarse = uniform(keys, "vertical field", 1, 3, 3, low=-1.0, high=1.0) * reach_px
    offset_px = F.interpolate(coarse, size=(H, W), mode="bilinear", align_corners=True)[:, 0]
    y = torch.arange(H, device=right.device)[:, None] + offset_px
    x = torch.arange(W, device=right.device).expand(B, H, W)
    grid = torch.stack([x / (W - 1), y / (H - 1)], dim=-1) * 2 - 1
    return F.grid_sample(right, grid, mode="bilinear", padding_mode="border", align_corners=True)


def _erased(right: Images, keys: Keys, options: AugmentOptions) -> Images:
    """The right view with patches of mean colour or of other content: what one eye sees and the other does not."""
    H, W = right.shape[2:]
    y = torch.arange(H, device=right.device)[:, None]
    x = torch.arange(W, device=right.device)
    n = _ERASED_PATCHES
    half_px = uniform(keys, "erase size", n, 2, 1, 1, low=0.1, high=1.0) * (options.erase_size_max * W / 2)
    at_y, at_x = uniform(keys, "erase y", n, 1, 1) * H, uniform(keys, "erase x", n, 1, 1) * W
    inside = ((y - at_y).abs() < half_px[:, :, 0]) & ((x - at_x).abs() < half_px[:, :, 1])
    wanted = chance(keys, "erase", 1, 1, 1, probability=options.erase_prob)
    foreign = chance(keys, "erase foreign", 1, 1, 1, probability=0.5)
    content = torch.where(foreign, right.roll((H // 3, W // 3), dims=(2, 3)), right.mean(dim=(2, 3), keepdim=True))
    return torch.where(inside.any(dim=1, keepdim=True) & wanted, content, right)

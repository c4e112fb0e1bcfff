"""The straightforward data path, one sample after the other, as the reference for benchmarks of the package's own.

It is neither tuned nor slowed down: PIL decodes, PyTorch resizes floats, NumPy saves and loads, torchvision augments
each view.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import ColorJitter, GaussianBlur

from foundation_stereo_depth.data.fsd import SamplePaths
from foundation_stereo_depth.options.training import AugmentOptions

KEYS = ("left", "right", "disparity")


def fill(paths: SamplePaths, entry: Path, height: int, width: int) -> None:
    """Read three files, resize them and write an entry."""
    left, right = (resized_image(path, height, width) for path in (paths.left, paths.right))
    np.savez(entry, left=left, right=right, disparity=resized_disparity(paths.disparity, height, width))


def resized_image(path: Path, height: int, width: int) -> np.ndarray:
    floats = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1).float() / 255
    resized = F.interpolate(floats[None], (height, width), mode="bilinear", align_corners=False)[0]
    return (resized * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def resized_disparity(path: Path, height: int, width: int) -> np.ndarray:
    code = np.array(Image.open(path).convert("RGB")).astype(np.float64)
    disparity_px = (code[..., 0] * 255 * 255 + code[..., 1] * 255 + code[..., 2]) / 1000
    known = torch.from_numpy(np.where(disparity_px > 0, disparity_px, np.nan))
    resized = F.interpolate(known[None, None], (height, width), mode="nearest")[0, 0]
    return (resized.numpy() * width / code.shape[1]).astype(np.float16)


def batch(entries: list[Path]) -> list[Tensor]:
    """Return left, right and disparity of several entries."""
    samples = [load(entry) for entry in entries]
    return [torch.from_numpy(np.stack(arrays)) for arrays in zip(*samples, strict=True)]


def load(entry: Path) -> list[np.ndarray]:
    with np.load(entry) as arrays:
        return [arrays[key] for key in KEYS]


def augmented(view: np.ndarray, options: AugmentOptions) -> Tensor:
    """Return one view, 0..1, with colour jitter, noise and sometimes blur."""
    floats = torch.from_numpy(view).permute(2, 0, 1).float() / 255
    jitter = ColorJitter(
        options.brightness_jitter, options.contrast_jitter, options.saturation_jitter, options.hue_jitter
    )
    floats = jitter(floats)
    if float(torch.rand(())) < options.blur_prob:
        floats = GaussianBlur(options.blur_kernel_size, (0.1, options.blur_sigma_max))(floats)
    noise = torch.randn_like(floats) * (float(torch.rand(())) * options.noise_std_max)
    return (floats + noise).clamp(0, 1)


def augmented_batch(entries: list[Path], options: AugmentOptions) -> list[Tensor]:
    """Return both views stacked in the channels, and the disparity, of several entries."""
    pairs, disparities = [], []
    for entry in entries:
        left, right, disparity = load(entry)
        pairs.append(torch.cat([augmented(left, options), augmented(right, options)]))
        disparities.append(torch.from_numpy(disparity).float())
    return [torch.stack(pairs), torch.stack(disparities)]

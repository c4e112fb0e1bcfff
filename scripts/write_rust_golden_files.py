"""Write the golden files of the Rust trainer's tests: `uv run python scripts/write_rust_golden_files.py`.

All files are small: random inputs, and what this package's functions return for them.
"""

import json
import math
import shutil
import tempfile
from pathlib import Path

import cv2
import numpy as np
import safetensors.torch
import torch
from torch import nn

from foundation_stereo_depth.checkpoint import Checkpoint, Progress, inference_header, save_safetensors
from foundation_stereo_depth.data.augment.pipeline import augmented_pair, flipped
from foundation_stereo_depth.data.batch import StereoBatch, training_plan
from foundation_stereo_depth.data.cache import SampleCache
from foundation_stereo_depth.data.codecs import encode_fsd_disparity, read_rgb
from foundation_stereo_depth.data.fsd import open_fsd
from foundation_stereo_depth.data.random import sample_keys, uniform
from foundation_stereo_depth.data.sample import SampleNames, resize_image
from foundation_stereo_depth.data.split import fingerprint, split_samples, take_spread
from foundation_stereo_depth.metrics import disparity_errors
from foundation_stereo_depth.model import StereoPrediction, create_network
from foundation_stereo_depth.options.training import AugmentOptions, LossOptions, ModelOptions, OptimizerOptions
from foundation_stereo_depth.training.loss import loss_terms, weighted_loss
from foundation_stereo_depth.training.state import TrainingState, learning_rate_at
from foundation_stereo_depth.uncertainty import error_ratio_counts, fitted_scale, likelihood_figures, likelihood_sums

FOLDER = Path(__file__).parents[1] / "tests/golden/rust"
SMALL = ModelOptions(base_channels=8, depth=3)
DEEP = ModelOptions(base_channels=4, depth=5)
"""It has as many named weights as the default network: 65."""


def main() -> None:
    """Write all files."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    write_random_numbers()
    write_splits()
    write_entries()
    network = create_perturbed_network(SMALL)
    save_network(network, SMALL, "network.safetensors")
    write_forward(network)
    write_gradients()
    write_steps()
    write_augmented()
    write_metrics()
    sizes = {path.name: path.stat().st_size for path in sorted(FOLDER.iterdir()) if path.is_file()}
    print(json.dumps(sizes, indent=2), sum(sizes.values()))


def write_random_numbers() -> None:
    """Write random numbers of keys, the order of an epoch, and noise."""
    keys = sample_keys(3, 7, torch.tensor([0, 1, 12345]))
    numbers = {
        "uniform": uniform(keys, "gamma", 4).tolist(),
        "uniform_in_range": uniform(keys, "vertical field", 3, low=-0.4, high=1.7).tolist(),
        "negative_epoch": uniform(sample_keys(0, -1, torch.tensor([5])), "blur", 2).tolist(),
        "plan": [batch.tolist() for batch in training_plan(37, 8, seed=5, epoch=2)],
        "normal": torch.randn(2**10 + 5, generator=torch.Generator().manual_seed(0)).tolist(),
    }
    write_json("random.json", numbers)


def write_splits() -> None:
    """Write divisions of samples with odd names."""
    scenes = tuple(sorted(f"scene {i:02d}" if i % 3 else f"räume-{i}" for i in range(12)))
    frames = [(s, stem) for s in range(12) for stem in sorted(f"{10**4 * s + f:04d}" for f in range(5 + s % 4))]
    names = SampleNames.from_pairs(scenes, frames)
    cases = []
    for at_most in (None, 40, 7):
        taken = take_spread(names, at_most)
        for fraction in (0.0, 0.1, 0.3, 0.05, 0.9):
            split = split_samples(names, taken, fraction)
            cases.append(
                {
                    "max_samples": at_most,
                    "val_fraction": fraction,
                    "fingerprint": fingerprint(names.some(taken)),
                    "train": split.train.tolist(),
                    "validation": split.validation.tolist(),
                    "by": split.by,
                }
            )
    listed = [[scene, [stem for at, stem in frames if at == s]] for s, scene in enumerate(scenes)]
    write_json("splits.json", {"names": listed, "cases": cases})


def write_entries() -> None:
    """Write one sample as PNG files, and the cache entries made of it at four sizes."""
    random = np.random.default_rng(1)
    height, width = 96, 128
    coarse = random.integers(0, 256, (2, 24, 32, 3), np.uint8)
    views = [cv2.resize(view, (width, height), interpolation=cv2.INTER_CUBIC) for view in coarse]
    disparity_px = random.uniform(0.001, 90, (height, width))
    disparity_px[random.uniform(size=disparity_px.shape) < 0.2] = np.nan
    code = encode_fsd_disparity(disparity_px)
    for part, image in zip(("left", "right", "disparity"), (*views, code), strict=True):
        assert cv2.imwrite(str(FOLDER / f"entry_{part}.png"), image[..., ::-1])
    jpeg = FOLDER / "entry_left.jpg"
    # As smooth as photographs are in colour: decoders differ in how they enlarge the colour planes.
    smooth = cv2.resize(coarse[0, :6, :8], (width, height), interpolation=cv2.INTER_CUBIC)
    assert cv2.imwrite(str(jpeg), smooth[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
    averaged = resize_image(read_rgb(jpeg), 32, 32)
    assert cv2.imwrite(str(FOLDER / "entry_left_jpeg_32x32.png"), averaged[..., ::-1])
    source = np.array([[1, 2], [3, 4], [5, 6]], np.int64)
    with tempfile.TemporaryDirectory() as root:
        for part, inside in (("left", "left/rgb"), ("right", "right/rgb"), ("disparity", "left/disparity")):
            folder = Path(root) / "scene/dataset/data" / inside
            folder.mkdir(parents=True)
            shutil.copy(FOLDER / f"entry_{part}.png", folder / "0000.png")
        dataset = open_fsd(Path(root))
        for height, width in ((32, 32), (48, 64), (40, 36), (120, 48)):
            cache = SampleCache(root=FOLDER, height=height, width=width)
            (FOLDER / "entries").mkdir(exist_ok=True)
            cache.write("entries", f"{height}x{width}", dataset.read(0, (height, width)), source)
    (FOLDER / "cache.json").unlink(missing_ok=True)


def create_perturbed_network(options: ModelOptions) -> nn.Module:
    """Return a network without ones and zeros among its weights: initial norms and biases would hide mistakes."""
    network = create_network(options)
    with torch.no_grad():
        for name, weights in network.named_parameters():
            if "norm" in name or name.endswith("bias"):
                weights.add_(torch.randn_like(weights), alpha=0.2)
            if name == "head.weight":
                weights.copy_(0.01 * torch.randn_like(weights))
    return network


def save_network(network: nn.Module, options: ModelOptions, name: str) -> None:
    """Write a network with its header."""
    model = {"model": options.model, "base_channels": options.base_channels, "depth": options.depth}
    checkpoint = Checkpoint(
        model=model,
        weights=network.state_dict(),
        uncertainty={"distribution": "laplace", "scale": 1.0},
        metrics={},
        run_id="golden",
        progress=Progress(),
        options={"data": {"height": 240, "width": 320}, "augment": {"jpeg_prob": 0.2}},
    )
    save_safetensors(FOLDER / name, checkpoint.weights, inference_header(checkpoint))


def enlarge(small: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return bytes [B, C, h, w], each repeated over 4x4 pixels, cropped to a size, as 0..1."""
    return small.repeat_interleave(4, 2).repeat_interleave(4, 3)[..., :height, :width].float() / 255


def mean_loss(prediction: StereoPrediction, truth_px: torch.Tensor, options: LossOptions) -> torch.Tensor:
    """Return the loss per valid pixel that training minimises."""
    loss = weighted_loss(loss_terms(prediction, truth_px, options), options)
    return loss.total / loss.valid


def write_forward(network: nn.Module) -> None:
    """Write predictions at three sizes, some pixels of each."""
    small = torch.randint(0, 256, (1, 6, 60, 80), dtype=torch.uint8)
    tensors = {"small": small}
    for height, width in ((240, 320), (61, 87), (48, 64)):
        with torch.no_grad():
            prediction = network(enlarge(small, height, width))
        tensors[f"disparity_px.{height}x{width}"] = prediction.disparity_px[..., ::4, ::3].contiguous()
        tensors[f"log_variance.{height}x{width}"] = prediction.log_variance[..., ::4, ::3].contiguous()
    safetensors.torch.save_file(tensors, FOLDER / "forward.safetensors")


def write_gradients() -> None:
    """Write gradients of the loss at a size with odd halves, of a network with as many named weights as the default."""
    network = create_perturbed_network(DEEP)
    save_network(network, DEEP, "deep.safetensors")
    small = torch.randint(0, 256, (2, 6, 20, 24), dtype=torch.uint8)
    truth_px = 60 * torch.rand(2, 1, 75, 91)
    truth_px[torch.rand_like(truth_px) < 0.3] = math.nan
    tensors = {"small": small, "truth_px": truth_px}
    for distribution in ("laplace", "gaussian"):
        network.zero_grad()
        prediction = network(enlarge(small, 75, 91))
        loss = mean_loss(prediction, truth_px, LossOptions(loss=distribution))
        loss.backward()
        tensors[f"loss.{distribution}"] = loss.detach().reshape(1)
        for name, weights in network.named_parameters():
            assert weights.grad is not None
            tensors[f"{distribution}.{name}"] = weights.grad.clone()
    safetensors.torch.save_file(tensors, FOLDER / "gradients.safetensors")


def write_steps() -> None:
    """Write the losses of twenty steps on given batches, and the averaged weights after them."""
    torch.manual_seed(2)
    network = create_network(SMALL)
    save_network(network, SMALL, "steps_first.safetensors")
    options = OptimizerOptions(learning_rate=2e-3, epochs=1, batch_size=2)
    height, width, count, total = 48, 64, 4, 20
    coarse = torch.randint(0, 256, (count, 6, 12, 16), dtype=torch.uint8)
    truth_px = (2 + 20 * torch.rand(count, 1, 12, 16)).half().float().repeat_interleave(4, 2).repeat_interleave(4, 3)
    truth_px[torch.rand_like(truth_px) < 0.2] = math.nan
    state = TrainingState.create(network, options, "golden")
    losses, norms, rates = [], [], []
    for step in range(total):
        indices = [(2 * step) % count, (2 * step + 1) % count]
        prediction = network(enlarge(coarse[indices], height, width))
        loss = mean_loss(prediction, truth_px[indices], LossOptions())
        loss.backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), options.clip_norm)
        rates.append(learning_rate_at(step, total, options))
        state.change_weights(rates[-1])
        losses.append(float(loss.detach()))
        norms.append(float(norm))
    kept = ("stem.convolution.weight", "down.1.0.norm.weight", "head.weight", "head.bias")
    averaged = {f"average.{name}": state.evaluated.state_dict()[name] for name in kept}
    tensors = {"small": coarse, "truth_px": truth_px}
    safetensors.torch.save_file({**tensors, **averaged}, FOLDER / "steps.safetensors")
    write_json("steps.json", {"losses": losses, "norms": norms, "rates": rates})


def write_augmented() -> None:
    """Write an augmented batch; without JPEG compression, which the Rust trainer lacks."""
    torch.manual_seed(4)
    height, width, count = 48, 64, 3
    coarse = torch.randint(0, 256, (count, 6, 12, 16), dtype=torch.uint8)
    full = coarse.repeat_interleave(4, 2).repeat_interleave(4, 3)
    left, right = (part.contiguous(memory_format=torch.channels_last) for part in (full[:, :3], full[:, 3:]))
    disparity_px = torch.arange(count * height * width).reshape(count, 1, height, width).float()
    indices = torch.tensor([0, 5, 9])
    batch = StereoBatch(left=left, right=right, disparity_px=disparity_px, indices=indices)
    cases = {
        "user": AugmentOptions(
            jpeg_prob=0, lighting_jitter=0, erase_prob=0, vertical_offset_max_px=0, blur_prob=1.0, noise_std_max=0.1
        ),
        "all": AugmentOptions(jpeg_prob=0, blur_prob=0.6, erase_prob=0.8, vertical_offset_max_px=2.5, flip_prob=0.5),
        "default": AugmentOptions(jpeg_prob=0),
    }
    tensors = {"small": coarse}
    for name, options in cases.items():
        keys = sample_keys(6, 3, indices)
        turned = flipped(batch, keys, options)
        tensors[name] = augmented_pair(turned, keys, options)[..., ::3, ::2].clone()
        tensors[f"{name}.disparity_px"] = turned.disparity_px[:, 0, ::12, 0].clone()
    safetensors.torch.save_file(tensors, FOLDER / "augmented.safetensors")


def write_metrics() -> None:
    """Write counts, figures and the fitted scale of a prediction."""
    torch.manual_seed(3)
    truth_px = 40 * torch.rand(2, 1, 24, 32)
    truth_px[torch.rand_like(truth_px) < 0.3] = math.nan
    disparity_px = torch.where(truth_px > 0, truth_px, 5.0) + 2 * torch.randn(2, 1, 24, 32)
    log_variance = torch.randn(2, 1, 24, 32)
    ratios = error_ratio_counts(disparity_px, log_variance, truth_px)
    prediction = StereoPrediction(disparity_px, log_variance)
    write_json(
        "metrics.json",
        {
            "counts": disparity_errors(disparity_px, truth_px).counts.tolist(),
            "figures": disparity_errors(disparity_px, truth_px).figures(),
            "likelihood": {
                name: likelihood_figures(likelihood_sums(disparity_px, log_variance, truth_px, name))
                for name in ("laplace", "gaussian")
            },
            "scales": {name: fitted_scale(ratios, name) for name in ("laplace", "gaussian")},
            "loss": float(mean_loss(prediction, truth_px, LossOptions())),
        },
    )
    tensors = {"truth_px": truth_px, "disparity_px": disparity_px, "log_variance": log_variance}
    safetensors.torch.save_file(tensors, FOLDER / "metrics.safetensors")


def write_json(name: str, content: object) -> None:
    """Write JSON on one line."""
    (FOLDER / name).write_text(json.dumps(content) + "\n")


if __name__ == "__main__":
    main()

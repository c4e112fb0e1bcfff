"""Write a pool of synthetic pairs, augmented and matched, so that training on a CPU repeats neither.

Scenes are rendered at 640x480. Each is stored resized to 320x240, and to 160x120, in the folder `small`; of some, two
crops of 320x240 are stored at full size, matched before they are cropped, so that one network is trained at all scales.
At 160x120 the network chooses between two matches; at the others it refines what the given weights predict at half the
size, and at 320x240 sometimes chooses too. Some scenes are floating primitives before a plain background, and with
`--images` nearly half are of photographs (`cutout_scenes.py`). All are recorded as cameras do it: with lens shading
and sheen that both views have in the same place, noise and its removal. On a real white wall these are what a matcher
finds, at a disparity that is too small. Entries are kept where the matches are about as good as on real pairs: the
others are harder, and what a network learns from them makes it worse on real pairs. Shards of 48 entries, 88 MB each;
stop it when there are enough.

    uv run python recipes/bake_pool.py pool --seed 101
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from cutout_scenes import SceneImages, render_cutouts

from foundation_stereo_depth.checkpoint import read_trained
from foundation_stereo_depth.data.augment.pipeline import augmented_pair
from foundation_stereo_depth.data.batch import StereoBatch
from foundation_stereo_depth.data.random import sample_keys
from foundation_stereo_depth.data.synthetic import scenes
from foundation_stereo_depth.data.synthetic.primitives import empty_scene
from foundation_stereo_depth.data.synthetic.scenes import Views, render_scenes
from foundation_stereo_depth.inference.backends import NetworkOutput
from foundation_stereo_depth.inference.coarse_to_fine import Run, predict_coarse_to_fine
from foundation_stereo_depth.inference.torch_backend import TorchBackend
from foundation_stereo_depth.network_facts import DEFAULT_WEIGHTS
from foundation_stereo_depth.options.training import AugmentOptions
from foundation_stereo_depth.stereo.prior import two_prior_planes

HEIGHT, WIDTH = 240, 320
KINDS = (0.25, 0.55, 0.2)  # floating primitives, rooms, repetition
PLAIN = 1 / 6  # fraction of the scenes whose background is plain
CUTOUTS, BEFORE_SCENES = 0.45, 0.3  # fractions of the scenes, if there are images; of those, before other scenes
CROPPED = 0.5  # fraction of the scenes that are cropped too
UNREFINED = 0.15  # fraction of the scenes stored at 320x240 with two matches too
PER_SHARD = 48
SMALL = "small"  # folder of the entries of 160x120
GRID_PX = 16  # crops start on this grid, as the squares of the prior do
# The matcher has to be right about as often as on real pairs, so the two views differ little.
AUGMENTATION = AugmentOptions(
    brightness_jitter=0.08,
    contrast_jitter=0.08,
    saturation_jitter=0.1,
    hue_jitter=0.01,
    gamma_jitter=0.08,
    lighting_jitter=0.05,
    noise_std_max=0.05,
    blur_prob=0.5,
    blur_sigma_max=0.8,
    erase_prob=0.15,
    erase_size_max=0.08,
    vertical_offset_max_px=0.5,
    jpeg_prob=0.2,
)
LARGEST_BEST_PX, LARGEST_INTERPOLATED_PX, LARGEST_BAD_1 = 1.3, 4.0, 0.35
Entry = dict[str, np.ndarray]


def render(seed: int, index: int, plain: float, images: SceneImages | None) -> Views:
    """Return a scene of 640x480; with the probability `plain`, primitives before a plain background."""
    rng = np.random.default_rng((seed, index, 4))
    if images is not None and rng.random() < CUTOUTS:
        behind = render(seed, index, 2 * plain, None) if rng.random() < BEFORE_SCENES else None
        return render_cutouts(images, seed, index, behind)
    if np.random.default_rng((seed, index, 1)).random() < plain:
        return render_plain(seed, index)
    return render_scenes(seed, range(index, index + 1), 2 * HEIGHT, 2 * WIDTH, 1, epoch=0, kinds=KINDS)


def render_plain(seed: int, index: int) -> Views:
    """Return floating primitives before a background that is plain, or nearly so, as a quarter of themselves are."""
    rng, scene, size = np.random.default_rng((seed, index, 2)), empty_scene(), (2 * HEIGHT, 2 * WIDTH)
    scenes._draw_floating(seed, 0, index, *size, scene, int(rng.integers(3, 40)))
    for k, primitive in enumerate(scene.primitives):
        if k > 0 and rng.random() > 0.25:
            continue
        contrast = np.exp(rng.uniform(np.log(0.003), np.log(0.05)))
        for name in ("red_c", "green_c", "blue_c"):
            primitive[name] = contrast
        if k == 0:
            grey = rng.uniform(0.15, 0.97)
            for name in ("red", "green", "blue"):
                primitive[name] = np.clip(grey + rng.uniform(-0.08, 0.08), 0.02, 0.98)
    colours = np.empty((2, 1, *size, 3), np.uint8)
    views = Views(colours[0], colours[1], np.empty((1, *size), np.float32))
    scenes._render(scene, 0.0, scenes.packed_textures(), views.left[0], views.right[0], views.disparity_px[0])
    return views


def record(left: np.ndarray, right: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Return both views with what cameras add to them in the same place, whatever the disparity there is."""
    height, width = left.shape[:2]
    views = [view.astype(np.float32) for view in (left, right)]
    if rng.random() < 0.7:
        strength, centre = rng.uniform(0, 0.6), rng.uniform(-0.08, 0.08, 2)
        shadings = [
            lens_shading(height, width, strength * rng.uniform(0.9, 1.1), centre + rng.uniform(-0.03, 0.03, 2))
            for _ in views
        ]
        views = [view * shading[..., None] for view, shading in zip(views, shadings, strict=True)]
    if rng.random() < 0.4:  # sheen and flare: behind the surface, or at no depth at all
        few = rng.uniform(-1, 1, (rng.integers(2, 5), rng.integers(2, 6))).astype(np.float32) * rng.uniform(0, 0.15)
        light = cv2.resize(few, (width, height), interpolation=cv2.INTER_CUBIC)
        move = np.array([[1, 0, -rng.uniform(-2, 8)], [0, 1, 0]], np.float32)
        moved = cv2.warpAffine(light, move, (width, height), borderMode=cv2.BORDER_REPLICATE)
        views = [view * (np.float32(1) + factor[..., None]) for view, factor in zip(views, (light, moved), strict=True)]
    is_grey = rng.random() < 0.12
    if is_grey:
        to_grey = np.array([0.299, 0.587, 0.114], np.float32)
        views = [np.repeat((view @ to_grey)[..., None], 3, axis=2) for view in views]
    if rng.random() < 0.5:
        std, strength, removal = 8 * rng.random() ** 2, rng.uniform(0.5, 3.0), rng.integers(3)
        noise = rng.standard_normal((2, height, width, 1 if is_grey else 3), np.float32)
        views = [(view + of_view * np.float32(std)).clip(0, 255) for view, of_view in zip(views, noise, strict=True)]
        if removal == 0:
            views = [cv2.bilateralFilter(view, 5, max(strength * std, 1e-3), 2.0) for view in views]
        elif removal == 1:
            views = [cv2.medianBlur(view.round().astype(np.uint8), 3) for view in views]
    return [np.asarray(view).round().clip(0, 255).astype(np.uint8) for view in views]


def lens_shading(height: int, width: int, strength: float, centre: np.ndarray) -> np.ndarray:
    """Return a factor for each pixel that falls with the squared distance from the centre, by `strength` in corners."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    right, down = x / width - 0.5 - centre[0], (y / height - 0.5 - centre[1]) * height / width
    return np.asarray(1 - strength * (right**2 + down**2) / 0.39, np.float32)


def make_entries(scene: Views, seed: int, index: int, run: Run) -> Iterator[tuple[str, Entry]]:
    """Yield those entries of one scene of 640x480 that resemble real pairs, and their folder in the pool."""
    rng = np.random.default_rng((seed, index))
    disparity_px = scene.disparity_px[0]
    left, right = record(scene.left[0], scene.right[0], np.random.default_rng((seed, index, 3)))
    pair = augment(*(halved(view) for view in (left, right)), seed, index)
    half_px = disparity_px[1::2, 1::2] / 2
    priors = compute_priors(run, pair)
    small = np.concatenate([halved(view).transpose(2, 0, 1) for view in views_of(pair)])
    candidates = [
        ("", 1.0, compact(pair, half_px, priors[WIDTH])),
        (SMALL, 0.5, compact(small, disparity_px[2::4, 2::4] / 4, priors[WIDTH // 2])),
    ]
    if rng.random() < UNREFINED:
        candidates.append(("", 1.0, compact(pair, half_px, two_prior_planes(*views_of(pair)))))
    if rng.random() < CROPPED:
        sigma_px = rng.uniform(0.15, 0.7)
        soft = [np.asarray(cv2.GaussianBlur(view, (5, 5), sigma_px)) for view in (left, right)]
        pair = augment(*soft, seed + 77, index)
        planes = compute_priors(run, pair)[2 * WIDTH]
        rows, columns = (left.shape[0] - HEIGHT) // GRID_PX + 1, (left.shape[1] - WIDTH) // GRID_PX + 1
        for first, last in ((0, columns // 2 + 1), (columns // 2, columns)):
            y, x = int(rng.integers(rows)) * GRID_PX, int(rng.integers(first, last)) * GRID_PX
            cut = (..., slice(y, y + HEIGHT), slice(x, x + WIDTH))
            candidates.append(("", 2.0, compact(pair[cut], disparity_px[cut], planes[cut])))
    for folder, per_px, entry in candidates:
        if resembles_real_pairs(entry, per_px):
            yield folder, entry


def halved(view: np.ndarray) -> np.ndarray:
    """Return the view at half its size."""
    return np.asarray(cv2.resize(view, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA))


def augment(left: np.ndarray, right: np.ndarray, seed: int, index: int) -> np.ndarray:
    """Return the augmented pair as bytes, [6, H, W]."""
    left_planes, right_planes = (
        torch.from_numpy(np.ascontiguousarray(v.transpose(2, 0, 1)))[None] for v in (left, right)
    )
    batch = StereoBatch(
        left=left_planes,
        right=right_planes,
        disparity_px=torch.ones(1, 1, *left.shape[:2]),
        indices=torch.tensor([index]),
    )
    pair = augmented_pair(batch, sample_keys(5000 + seed, 0, batch.indices), AUGMENTATION)
    return pair.mul(255).round_().clamp_(0, 255).to(torch.uint8)[0].numpy()


def views_of(pair: np.ndarray) -> list[np.ndarray]:
    """Return both views, [H, W, 3], of a pair of bytes, [6, H, W]."""
    return [np.ascontiguousarray(view.transpose(1, 2, 0)) for view in (pair[:3], pair[3:])]


def compute_priors(run: Run, pair: np.ndarray) -> dict[int, np.ndarray]:
    """Return the prior of a pair of bytes, [6, H, W], at each size at which a network predicts it, by the width."""
    pairs, priors = np.stack(views_of(pair))[None], dict[int, np.ndarray]()

    def run_below(size: np.ndarray, prior: np.ndarray | None) -> NetworkOutput:
        assert prior is not None
        priors[size.shape[3]] = prior[0]
        if size.shape != pairs.shape:
            return run(size, prior)
        nothing = np.zeros((1, *size.shape[2:4]), np.float32)  # what is predicted at the full size is not used
        return nothing, nothing

    predict_coarse_to_fine(run_below, pairs, 1.0)
    return priors


def compact(pair: np.ndarray, disparity_px: np.ndarray, planes: np.ndarray) -> Entry:
    """Return what training needs, in 25 bytes a pixel; `learn_on.py` rebuilds the prior from it."""
    return {
        "left": pair[:3].copy(),
        "truth": disparity_px.astype(np.float16),
        "first": np.round(planes[0] * 16).astype(np.uint16),
        "around": np.round(planes[1:3] * 16).astype(np.int16),
        "unlike": np.round(planes[[4, 5, 6, 7, 8, 12, 15]] * 127).clip(-127, 127).astype(np.int8),
        "others": planes[[10, 13]].astype(np.float16),
        "matched": planes[3].astype(np.uint8),
        "trust": np.round(planes[11] * 255).clip(0, 255).astype(np.uint8),
        "support": np.round(planes[14] * 255).clip(0, 255).astype(np.uint8),
    }


def resembles_real_pairs(entry: Entry, per_px: float) -> bool:
    """Return True where the matches are about as good as on real pairs.

    There, at 320x240, the best of the three disparities at each pixel has an EPE of 0.2 to 0.8 px, and of the first
    match either a seventh of the pixels is wrong by more than 1 px (textured scenes), or it is worse than the
    interpolation (walls).

    Args:
        entry: of the pool.
        per_px: px of the pair that was matched in a px of 320x240.
    """
    first_px = entry["first"].astype(np.float32) / 16
    others_px = first_px + entry["others"].astype(np.float32)
    errors_px = np.abs(np.stack([first_px, *others_px]) - entry["truth"].astype(np.float32))
    first_epe_px, _, interpolated_epe_px = errors_px.mean(axis=(1, 2))
    return bool(
        errors_px.min(axis=0).mean() < LARGEST_BEST_PX * per_px
        and interpolated_epe_px < LARGEST_INTERPOLATED_PX * per_px
        and ((errors_px[0] > 1).mean() < LARGEST_BAD_1 or interpolated_epe_px < first_epe_px)
    )


def main() -> None:
    """Write the pool that the flags describe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pool", type=Path)
    parser.add_argument("--seed", type=int, required=True, help="of the scenes; another one for each process")
    parser.add_argument("--shards", type=int, default=100)
    parser.add_argument("--plain", type=float, default=PLAIN, help="fraction of scenes with a plain background")
    parser.add_argument("--weights", type=Path, default=DEFAULT_WEIGHTS, help="whose coarse prediction is refined")
    parser.add_argument("--images", type=Path, help="folder of the folders photographs and cutouts")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    run = TorchBackend(read_trained(arguments.weights).network(), device="cpu", precision="fp32", compile=False)
    images = SceneImages.read(arguments.images) if arguments.images else None
    pending: dict[str, list[Entry]] = {"": [], SMALL: []}
    written = dict.fromkeys(pending, 0)
    began_s, index = time.perf_counter(), 0
    (arguments.pool / SMALL).mkdir(parents=True, exist_ok=True)
    while written[""] < arguments.shards:
        scene = render(arguments.seed, index, arguments.plain, images)
        for folder, entry in make_entries(scene, arguments.seed, index, run):
            pending[folder].append(entry)
        index += 1
        for folder, entries in pending.items():
            if len(entries) >= PER_SHARD:
                path = arguments.pool / folder / f"{arguments.seed}-{written[folder]:05d}.npz"
                save_shard(path, entries[:PER_SHARD])
                del entries[:PER_SHARD]
                written[folder] += 1
                print(f"{path}: {index} scenes, {time.perf_counter() - began_s:.0f} s", flush=True)


def save_shard(path: Path, entries: list[Entry]) -> None:
    """Write a shard under another name, then rename it: training may list the folder meanwhile."""
    unfinished = path.with_name("." + path.name)
    np.savez(unfinished, **{name: np.stack([entry[name] for entry in entries]) for name in entries[0]})
    unfinished.rename(path)


if __name__ == "__main__":
    main()

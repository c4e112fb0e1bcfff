import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image

from foundation_stereo_depth.data.augment import kernels, pipeline
from foundation_stereo_depth.data.augment.jpeg import compressed
from foundation_stereo_depth.data.augment.pipeline import as_pair, augmented_pair, flipped
from foundation_stereo_depth.data.batch import StereoBatch
from foundation_stereo_depth.data.random import sample_keys
from foundation_stereo_depth.options.training import AugmentOptions

NOTHING = AugmentOptions(
    brightness_jitter=0, contrast_jitter=0, saturation_jitter=0, hue_jitter=0, gamma_jitter=0, lighting_jitter=0,
    blur_prob=0, noise_std_max=0, jpeg_prob=0, erase_prob=0, vertical_offset_max_px=0,
)  # fmt: skip


def batch_of(B: int = 2, H: int = 37, W: int = 61, colour: float | None = None) -> StereoBatch:
    generator = torch.Generator().manual_seed(0)
    eyes = torch.randint(0, 256, (2, B, 3, H, W), generator=generator, dtype=torch.uint8)
    if colour is not None:
        eyes = torch.full_like(eyes, int(colour))
    return StereoBatch(left=eyes[0], right=eyes[1], disparity_px=torch.ones(B, 1, H, W), indices=torch.arange(B))


def keys_of(B: int, epoch: int = 0) -> torch.Tensor:
    return sample_keys(0, epoch, torch.arange(B))


def test_no_augmentation_only_scales() -> None:
    batch = batch_of()
    assert torch.equal(augmented_pair(batch, keys_of(2), AugmentOptions(augment=False)), as_pair(batch))
    assert as_pair(batch)[1, 4, 5, 6] == batch.right[1, 1, 5, 6] / 255


def test_jitters_of_zero_change_nothing() -> None:
    batch = batch_of()
    torch.testing.assert_close(augmented_pair(batch, keys_of(2), NOTHING), as_pair(batch), atol=1e-5, rtol=0)


def test_the_batch_itself_is_left_alone() -> None:
    batch, untouched = batch_of(), batch_of()
    augmented_pair(batch, keys_of(2), AugmentOptions())
    assert torch.equal(batch.left, untouched.left)
    assert torch.equal(batch.right, untouched.right)


def test_a_sample_is_changed_the_same_way_in_any_batch() -> None:
    batch, options = batch_of(B=6), AugmentOptions(blur_prob=0.5)
    together = augmented_pair(batch, keys_of(6), options)
    for i in range(6):
        fields = {n: getattr(batch, n)[i : i + 1] for n in ("left", "right", "disparity_px", "indices")}
        alone = augmented_pair(dataclasses.replace(batch, **fields), keys_of(6)[i : i + 1], options)
        torch.testing.assert_close(alone[0], together[i], atol=1e-6, rtol=0)


def test_other_devices_do_a_whole_batch_at_once_and_get_the_same(monkeypatch) -> None:
    """The steps as another device has them, forced upon this one; JPEG is compared elsewhere."""
    batch, options = batch_of(B=5), AugmentOptions(blur_prob=0.5, erase_prob=0.7, jpeg_prob=0)
    expected = augmented_pair(batch, keys_of(5), options)
    monkeypatch.setattr(pipeline, "recolour", lambda *of: of[-1].copy_(kernels._recoloured(*of[:-1])))
    monkeypatch.setattr(pipeline, "blur", kernels._blur)
    monkeypatch.setattr(pipeline, "add_noise", kernels._add_noise)
    monkeypatch.setattr(pipeline, "replace_patches", lambda *of: of[0].copy_(kernels._with_patches_replaced(*of)))
    pair = torch.empty_like(expected)
    pipeline._change(pair, batch.left, batch.right, pipeline._drawn(keys_of(5), options), options)
    torch.testing.assert_close(pair, expected, atol=1e-5, rtol=0)


def test_epochs_and_eyes_draw_for_themselves() -> None:
    batch = batch_of(colour=128)
    options = dataclasses.replace(NOTHING, brightness_jitter=0.25)
    first, second = (augmented_pair(batch, keys_of(2, epoch), options) for epoch in (0, 1))
    levels = torch.stack([first, second]).view(2, 2, 2, 3, -1).mean(dim=(-1, -2)).flatten()
    assert len(levels.unique()) == 8


@pytest.mark.parametrize(
    ("change", "low", "high"),
    [
        ({"brightness_jitter": 0.25}, 0.75 * 0.5, 1.25 * 0.5),
        ({"lighting_jitter": 0.25}, 0.75 * 0.5, 1.25 * 0.5),
        ({"gamma_jitter": 0.5}, 0.5**1.5, 0.5 ** (1 / 1.5)),
        ({"contrast_jitter": 0.9}, 0.5, 0.5),
        ({"saturation_jitter": 0.9, "hue_jitter": 0.5}, 0.5, 0.5),
    ],
)
def test_grey_goes_where_the_formula_sends_it(change: dict, low: float, high: float) -> None:
    batch = batch_of(B=200, H=4, W=4, colour=127.5)
    pair = augmented_pair(batch, keys_of(200), dataclasses.replace(NOTHING, **change)) * 127.5 / 127
    assert low - 2e-3 <= pair.min()
    assert pair.max() <= high + 2e-3
    if high > low:
        assert pair.min() < low + 0.1 * (high - low)
        assert pair.max() > high - 0.1 * (high - low)


def test_a_half_turn_of_hue_reaches_every_colour_and_keeps_luma_close() -> None:
    batch = batch_of(B=200, H=4, W=4)
    red = torch.tensor([140, 100, 100], dtype=torch.uint8).view(1, 3, 1, 1).expand(200, 3, 4, 4)
    pair = augmented_pair(
        dataclasses.replace(batch, left=red), keys_of(200), dataclasses.replace(NOTHING, hue_jitter=0.5)
    )
    strongest = pair[:, :3, 0, 0].argmax(dim=1)
    assert strongest.unique().tolist() == [0, 1, 2]
    torch.testing.assert_close(pair[:, :3, 0, 0].mean(dim=1), torch.full((200,), 340 / 3 / 255), atol=1e-3, rtol=0)


def test_contrast_pivots_on_the_mean_luminance() -> None:
    batch = batch_of(B=50)
    pair = augmented_pair(batch, keys_of(50), dataclasses.replace(NOTHING, contrast_jitter=0.2))
    luma = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    before, after = ((p[:, :3] * luma).sum(1).mean((1, 2)) for p in (as_pair(batch), pair))
    torch.testing.assert_close(before, after, atol=0.01, rtol=0)  # clamping moves it a little


def test_noise_has_the_drawn_strength_and_no_mean() -> None:
    batch = batch_of(B=40, colour=128)
    noise = augmented_pair(batch, keys_of(40), dataclasses.replace(NOTHING, noise_std_max=0.03)) - 128 / 255
    std = noise.view(40, 2, -1).std(dim=-1).flatten()
    assert std.max() < 0.031
    assert std.max() > 0.025
    assert std.min() < 0.005
    assert abs(float(noise.mean())) < 1e-3
    assert std.median() < 0.2 * 0.03  # few rooms are dark
    left, right = std.view(40, 2).T  # each view by itself
    assert (left > 3 * right).sum() >= 5
    assert (right > 3 * left).sum() >= 5
    assert abs(float(torch.corrcoef(torch.stack([left, right]))[0, 1])) < 0.5


def test_blur_smooths_and_keeps_the_mean() -> None:
    batch = batch_of(B=20)
    pair = augmented_pair(batch, keys_of(20), dataclasses.replace(NOTHING, blur_prob=1.0, blur_sigma_max=2.0))
    before = as_pair(batch)
    assert (pair.flatten(2).std(-1) < before.flatten(2).std(-1) + 1e-6).all()
    assert abs(float(pair.mean() - before.mean())) < 2e-3
    unblurred = augmented_pair(batch, keys_of(20), dataclasses.replace(NOTHING, blur_prob=0.3))
    changed = (unblurred - before).abs().view(20, 2, -1).amax(-1) > 1e-3
    assert 0.1 < changed.float().mean() < 0.5
    assert (changed[:, 0] & ~changed[:, 1]).any()  # each view by itself
    assert (changed[:, 1] & ~changed[:, 0]).any()


def test_half_of_the_pairs_come_as_jpeg_files_of_one_quality() -> None:
    batch = batch_of(B=40, colour=128)
    batch.left[:, :, :, ::7] = batch.right[:, :, :, ::7] = 200
    pair = augmented_pair(batch, keys_of(40), dataclasses.replace(NOTHING, jpeg_prob=0.5))
    changed = (pair - as_pair(batch)).abs().amax(dim=(1, 2, 3)) > 0.01
    assert 10 < changed.sum() < 30
    assert torch.equal(pair[:, :3], pair[:, 3:])


@pytest.mark.parametrize("quality", [30, 60, 95])
def test_jpeg_changes_a_picture_as_libjpeg_does(quality: int) -> None:
    rows, columns = np.indices((50, 70))
    rgb = np.stack([rows * 5, columns * 3, 128 + 100 * np.sin(rows * columns / 90)], axis=-1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "jpeg", quality=quality, subsampling="4:2:0")
    theirs = np.asarray(Image.open(file), np.float32)
    image = torch.from_numpy(rgb).permute(2, 0, 1)[None] / 255
    ours = compressed(image, torch.tensor([float(quality)]))[0].permute(1, 2, 0).numpy() * 255
    assert np.abs(ours - theirs).mean() < 0.35 * np.abs(theirs - rgb).mean()


def test_only_the_right_view_is_moved_and_erased() -> None:
    batch = batch_of(B=20)
    moved = dataclasses.replace(NOTHING, vertical_offset_max_px=2.0, erase_prob=1.0, erase_size_max=0.5)
    pair, before = augmented_pair(batch, keys_of(20), moved), as_pair(batch)
    torch.testing.assert_close(pair[:, :3], before[:, :3], atol=1e-5, rtol=0)
    assert ((pair[:, 3:] - before[:, 3:]).abs().amax((1, 2, 3)) > 0.1).all()


def test_the_vertical_offset_is_vertical_and_bounded() -> None:
    rows = torch.arange(37).mul(6).to(torch.uint8).view(1, 1, 37, 1).expand(30, 3, 37, 61)
    batch = dataclasses.replace(batch_of(B=30), right=rows)
    pair = augmented_pair(batch, keys_of(30), dataclasses.replace(NOTHING, vertical_offset_max_px=0.7))
    offset_px = (pair[:, 3:, 2:-2] * 255 - rows[:, :, 2:-2].float()) / 6
    assert offset_px.abs().max() <= 0.701
    assert offset_px.abs().max() > 0.4
    columns = torch.arange(61).mul(4).to(torch.uint8).view(1, 1, 1, 61).expand(30, 3, 37, 61)
    pair = augmented_pair(
        dataclasses.replace(batch, right=columns), keys_of(30), dataclasses.replace(NOTHING, vertical_offset_max_px=0.7)
    )
    torch.testing.assert_close(pair[:, 3:] * 255, columns.float(), atol=0.01, rtol=0)


def test_turned_upside_down_are_both_views_and_the_disparity() -> None:
    batch = batch_of(B=64)
    turned = flipped(batch, keys_of(64), dataclasses.replace(NOTHING, flip_prob=0.5))
    same = (turned.left == batch.left).flatten(1).all(dim=1)
    assert 16 < same.sum() < 48
    for name in ("left", "right", "disparity_px"):
        before, after = getattr(batch, name), getattr(turned, name)
        assert torch.equal(after[same], before[same])
        assert torch.equal(after[~same], before[~same].flip(2))
    assert flipped(batch, keys_of(64), NOTHING) is batch

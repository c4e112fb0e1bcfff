import numpy as np

from foundation_stereo_depth.data.sample import StereoSample, resize_image, resize_sample
from foundation_stereo_depth.stereo.disparity import valid_mask


def test_shrinking_averages_areas() -> None:
    image = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    expected = image.reshape(4, 3, 5, 4, 3).astype(float).mean(axis=(1, 3))
    assert np.abs(resize_image(image, 4, 5) - expected).max() <= 0.51


def test_the_same_size_changes_nothing() -> None:
    image = np.random.default_rng(0).integers(0, 256, (37, 61, 3), dtype=np.uint8)
    assert resize_image(image, 37, 61) is image


def test_growing_and_mixed_sizes_come_out_right() -> None:
    image = np.full((10, 20, 3), 77, np.uint8)
    for height, width in [(30, 60), (5, 60), (30, 7)]:
        resized = resize_image(image, height, width)
        assert resized.shape == (height, width, 3)
        assert (resized == 77).all()


def test_an_axis_that_shrinks_is_averaged_whatever_the_other_one_does() -> None:
    """KITTI's shape to 640x480: fine stripes become grey, and a ramp stays where it was."""
    stripes = np.zeros((375, 1242, 3), np.uint8)
    stripes[:, ::2] = 255
    assert resize_image(stripes, 480, 640)[:, 5:-5].std() < 5
    ramp = np.repeat(np.tile(np.arange(1242) / 1242 * 255, (375, 1))[..., None], 3, axis=2).round().astype(np.uint8)
    centres = (np.arange(640) + 0.5) / 640 * 1242 - 0.5
    assert np.abs(resize_image(ramp, 480, 640)[240, :, 0] - centres / 1242 * 255).mean() < 0.35


def test_images_and_disparity_stay_aligned_and_in_correspondence() -> None:
    """A smooth ramp in x: the right view's colour at x - d must still be the left one's at x, at the new size."""
    width, shift_px = 1280, 32
    x = np.arange(width + shift_px) / (width + shift_px) * 255
    left = np.repeat(np.tile(x[:width], (720, 1))[..., None], 3, axis=2).astype(np.uint8)
    right = np.repeat(np.tile(x[shift_px:], (720, 1))[..., None], 3, axis=2).astype(np.uint8)
    small = resize_sample(
        StereoSample(left=left, right=right, disparity_px=np.full((720, 1280), shift_px, np.float32)), 240, 320
    )
    assert (small.disparity_px == 8).all()
    assert valid_mask(small.disparity_px).all()
    difference = small.left[:, 8:].astype(int) - small.right[:, :-8].astype(int)
    assert np.abs(difference).max() <= 1

"""What OpenCV does on a CPU is what PyTorch does elsewhere."""

import math

import pytest
import torch
from torch.nn import functional as F

from foundation_stereo_depth.data.augment import kernels

N, H, W = 3, 37, 61


def byte_images(interleaved: bool) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    made = torch.randint(0, 256, (N, 3, H, W), generator=generator, dtype=torch.uint8)
    return made.contiguous(memory_format=torch.channels_last) if interleaved else made


def images() -> torch.Tensor:
    return torch.rand(N, 3, H, W, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("interleaved", [True, False])
def test_recolouring_agrees(interleaved: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    exponent, pivot = torch.tensor([0.5, 1.0, 1.2]), torch.tensor([-0.2, 0.0, 0.2])
    matrix = torch.randn(N, 3, 3, generator=generator)
    both = torch.empty(2 * N, 3, H, W)
    into = both[1::2]  # every other image, as the right views of a batch are
    kernels.recolour(byte_images(interleaved), exponent, matrix, pivot, into)
    torch.testing.assert_close(
        into, kernels._recoloured(byte_images(interleaved), exponent, matrix, pivot), atol=2e-6, rtol=0
    )


def test_recolouring_is_the_formula() -> None:
    image = byte_images(True)[:1]
    values = (image[0].double() / 255) ** 0.7
    luma = torch.tensor(kernels.LUMA, dtype=torch.float64)
    mean = float((image[0].double() / 255).mean(dim=(1, 2)) @ luma) ** 0.7
    matrix = torch.randn(1, 3, 3, generator=torch.Generator().manual_seed(3))
    into = torch.empty(1, 3, H, W)
    kernels.recolour(image, torch.tensor([0.7]), matrix, torch.tensor([0.3]), into)
    expected = torch.einsum("ij,jhw->ihw", matrix[0].double(), values) + 0.3 * mean
    torch.testing.assert_close(into[0].double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [1, 3, 5, 31])
def test_blurring_agrees_and_leaves_the_others_alone(size: int) -> None:
    weights = torch.rand(N, size, generator=torch.Generator().manual_seed(2))
    weights = weights / weights.sum(dim=1, keepdim=True)  # lopsided: rows and columns must not be mirrored
    for chosen in ([True, False, True], [False, False, False]):
        ours, other = images(), images()
        kernels.blur(ours, torch.tensor(chosen), weights)
        kernels._blur(other, torch.tensor(chosen), weights)
        torch.testing.assert_close(ours, other, atol=2e-6, rtol=0)
        assert torch.equal(ours[1], images()[1])


def test_noise_is_the_stretch_that_was_asked_for() -> None:
    bank = torch.randn(5000 + 3 * H * W, generator=torch.Generator().manual_seed(2))
    start, std = torch.tensor([0, 1234, 5000]), torch.tensor([0.0, 0.5, 2.0])
    ours, other = images(), images()
    kernels.add_noise(ours, bank, start, std)
    kernels._add_noise(other, bank, start, std)
    torch.testing.assert_close(ours, other, atol=1e-6, rtol=0)
    torch.testing.assert_close(ours[1], images()[1] + 0.5 * bank[1234 : 1234 + 3 * H * W].view(3, H, W))


@pytest.mark.parametrize("quality", [50.0, 95.0])
def test_jpeg_agrees_but_for_what_its_libraries_leave_open(quality: float) -> None:
    smooth = F.interpolate(images()[:, :, ::6, ::6], size=(H, W), mode="bilinear")
    ours, other = smooth.clone(), smooth.clone()
    chosen, qualities = torch.tensor([True, False, True]), torch.full((N,), quality)
    kernels.compress(ours, chosen, qualities)
    kernels._compress(other, chosen, qualities)
    changed = (other - smooth)[chosen].abs().mean()
    assert (ours - other)[chosen].abs().mean() < 0.4 * changed
    assert (ours - smooth)[chosen].abs().mean() > 0.6 * changed
    assert torch.equal(ours[1], smooth[1])


@pytest.mark.parametrize("foreign", [[False] * N, [True] * N])
def test_patches_agree(foreign: list[bool]) -> None:
    generator = torch.Generator().manual_seed(4)
    # Over every border, over each other, and some of no size at all.
    centre_px = torch.rand(N, 4, 2, generator=generator) * torch.tensor([H, W])
    centre_px[0] = torch.tensor([[0.0, 0.0], [H - 0.01, W - 0.01], [5.0, 7.0], [6.5, 8.5]])
    half_px = torch.rand(N, 4, 2, generator=generator) * 12
    half_px[2, 0] = 0.0
    chosen = torch.tensor([True, False, True])
    ours = images()
    kernels.replace_patches(ours, chosen, torch.tensor(foreign), centre_px, half_px)
    expected = kernels._with_patches_replaced(images(), chosen, torch.tensor(foreign), centre_px, half_px)
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)
    assert torch.equal(ours[1], images()[1])
    assert 0.05 < float((ours[0] != images()[0]).float().mean()) < 0.9


@pytest.mark.parametrize("largest_px", [0.7, 1.0, 3.4, 50.0])
def test_moving_is_bilinear_sampling(largest_px: float) -> None:
    from foundation_stereo_depth.data.augment.pipeline import _move_vertically

    drawn = torch.rand(N, 3, 3, generator=torch.Generator().manual_seed(5)) * 2 - 1
    coarse = drawn * largest_px
    moved = images()
    _move_vertically(moved, coarse, largest_px)
    offset_px = F.interpolate(coarse[:, None], size=(H, W), mode="bilinear", align_corners=True)[:, 0]
    y = torch.arange(H)[:, None] + offset_px
    x = torch.arange(W).expand(N, H, W)
    grid = torch.stack([x / (W - 1), y / (H - 1)], dim=-1) * 2 - 1
    expected = F.grid_sample(images(), grid, mode="bilinear", padding_mode="border", align_corners=True)
    torch.testing.assert_close(moved, expected, atol=1e-4 * math.ceil(largest_px), rtol=0)


def test_memory_for_floats_comes_back_but_never_while_it_is_in_use() -> None:
    cpu = torch.device("cpu")
    first = kernels.room(2, 3, 5, device=cpu)
    view = first[1]
    place = first.data_ptr()
    del first
    assert kernels.room(2, 3, 5, device=cpu).data_ptr() != place
    del view
    assert place in {kernels.room(2, 3, 5, device=cpu).data_ptr() for _ in range(2)}

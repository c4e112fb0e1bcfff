import torch

from foundation_stereo_depth.data.random import chance, sample_keys, uniform, whole


def test_the_first_numbers_of_splitmix64() -> None:
    # Seed 0's first outputs, as published with SplitMix64: 0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4.
    from foundation_stereo_depth.data.random import _GOLDEN_GAMMA, _mixed

    state = torch.tensor([1, 2]) * _GOLDEN_GAMMA
    assert [value % 2**64 for value in _mixed(state).tolist()] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


def test_a_sample_draws_the_same_in_any_batch() -> None:
    keys = sample_keys(3, 7, torch.arange(100))
    together = uniform(keys, "x", 2, 3)
    assert together.shape == (100, 2, 3)
    for rows in (slice(0, 1), slice(41, 60), slice(99, 100)):
        assert torch.equal(uniform(keys[rows], "x", 2, 3), together[rows])


def test_seed_epoch_index_and_purpose_all_count() -> None:
    draws = [
        uniform(sample_keys(seed, epoch, torch.tensor([index])), purpose, 64)
        for seed, epoch, index, purpose in [
            (0, 0, 0, "a"), (1, 0, 0, "a"), (0, 1, 0, "a"), (0, 0, 1, "a"), (0, 0, 0, "b"), (0, -1, 0, "a"),
        ]
    ]  # fmt: skip
    distinct = torch.cat(draws)
    assert len(distinct.unique(dim=0)) == len(distinct)


def test_draws_are_uniform_and_uncorrelated() -> None:
    numbers = uniform(sample_keys(0, 0, torch.arange(1000)), "x", 100)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = torch.histc(numbers, bins=50, min=0, max=1)
    # Chi squared with 49 degrees of freedom exceeds 98 once in 25,000 cases.
    assert ((counts - 2000) ** 2 / 2000).sum() < 98
    centred = numbers - 0.5
    for shifted in (centred.roll(1, dims=0), centred.roll(1, dims=1)):
        assert abs(float((centred * shifted).mean()) * 12) < 0.02


def test_uniform_bernoulli_and_integer_draws() -> None:
    keys = sample_keys(0, 0, torch.arange(2000))
    numbers = uniform(keys, "x", low=-3.0, high=5.0)
    assert numbers.shape == (2000,)
    assert -3 <= numbers.min() < -2.9
    assert 4.9 < numbers.max() < 5
    assert 0.25 < chance(keys, "c", probability=0.3).float().mean() < 0.35
    assert whole(keys, "w", below=7).unique().tolist() == list(range(7))

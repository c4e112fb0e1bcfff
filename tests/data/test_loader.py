from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_fsd_sample

from foundation_stereo_depth.data.batch import training_plan, validation_plan
from foundation_stereo_depth.data.loader import open_files
from foundation_stereo_depth.errors import DataError
from foundation_stereo_depth.options.training import DataOptions


def options_for(tmp_path: Path, **changes) -> DataOptions:
    return DataOptions(**{"height": 48, "width": 64, "val_fraction": 0.0, "num_workers": 2} | changes)


def all_batches(source, batch_size: int = 4) -> list:
    return list(source.batches(validation_plan(len(source), batch_size), epoch=0))


def test_an_epoch_visits_every_sample_once_and_fills_its_last_batch() -> None:
    plan = training_plan(10, 4, seed=0, epoch=0)
    order = np.concatenate(plan)
    assert [len(batch) for batch in plan] == [4, 4, 4]
    assert sorted(order[:10].tolist()) == list(range(10))
    assert order[10:].tolist() == order[:2].tolist()


def test_epochs_and_seeds_differ_and_repeat() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return np.concatenate(training_plan(100, 10, seed=seed, epoch=epoch)).tolist()

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_processes_divide_the_same_batches(world_size: int) -> None:
    alone = training_plan(50, 8, seed=5, epoch=2)
    parts = [training_plan(50, 8, seed=5, epoch=2, rank=rank, world_size=world_size) for rank in range(world_size)]
    for step, batch in enumerate(alone):
        assert np.concatenate([part[step] for part in parts]).tolist() == batch.tolist()
    seen = np.concatenate([i for r in range(world_size) for i in validation_plan(50, 8, rank=r, world_size=world_size)])
    assert sorted(seen.tolist()) == list(range(50))


def test_fewer_samples_than_a_batch_are_repeated() -> None:
    assert [len(batch) for batch in training_plan(3, 8, seed=0, epoch=0)] == [8]


def test_batches_hold_what_the_files_hold(tmp_path: Path, fsd_tree: Path) -> None:
    data = open_files(options_for(tmp_path), fsd_tree, pin_memory=False)
    batches = all_batches(data.train)
    assert [len(batch.indices) for batch in batches] == [4, 2]
    left = torch.cat([batch.left for batch in batches])
    assert left.shape == (6, 3, 48, 64)
    assert left.dtype == torch.uint8
    assert batches[0].left.is_contiguous(memory_format=torch.channels_last)
    # scene_1 has the batch's own size: nothing was resampled, so the pair is still an exact shift.
    batch, row = batches[0], 2
    shift = int(batch.disparity_px[row].nan_to_num().max())
    assert torch.equal(batch.left[row, :, :, shift:], batch.right[row, :, :, :-shift])
    assert data.train.name(2) == "scene_1/0000"


def test_batches_do_not_depend_on_the_number_of_threads(tmp_path: Path, fsd_tree: Path) -> None:
    several = [
        all_batches(open_files(options_for(tmp_path, num_workers=n), fsd_tree, pin_memory=False).train)
        for n in (0, 1, 4)
    ]
    for other in several[1:]:
        for a, b in zip(several[0], other, strict=True):
            assert torch.equal(a.left, b.left)
            assert torch.equal(a.disparity_px.nan_to_num(-1), b.disparity_px.nan_to_num(-1))


def test_the_first_epoch_fills_the_cache_and_the_second_reads_the_same_from_it(tmp_path: Path, fsd_tree: Path) -> None:
    options = options_for(tmp_path, cache_root=tmp_path / "cache")
    first, second = (all_batches(open_files(options, fsd_tree, pin_memory=False).train, 6)[0] for _ in range(2))
    assert (first.counts.cache_hits, first.counts.cache_misses) == (0, 6)
    assert (second.counts.cache_hits, second.counts.cache_misses) == (6, 0)
    assert torch.equal(first.disparity_px.nan_to_num(-1), second.disparity_px.nan_to_num(-1))
    assert torch.equal(first.right, second.right)


def test_cache_alone_is_a_data_set(tmp_path: Path, fsd_tree: Path) -> None:
    options = options_for(tmp_path, cache_root=tmp_path / "cache")
    from_files = open_files(options, fsd_tree, pin_memory=False)
    expected = all_batches(from_files.train, 6)[0]
    from_cache = open_files(options, None, pin_memory=False)
    assert torch.equal(all_batches(from_cache.train, 6)[0].left, expected.left)
    assert from_cache.facts["dataset_fingerprint"] == from_files.facts["dataset_fingerprint"]


def test_damaged_entry_is_rebuilt(tmp_path: Path, fsd_tree: Path) -> None:
    options = options_for(tmp_path, cache_root=tmp_path / "cache")
    source = open_files(options, fsd_tree, pin_memory=False).train
    expected = all_batches(source, 6)[0]
    entry = tmp_path / "cache/scene_0/0001.npz"
    entry.write_bytes(entry.read_bytes()[:-50])
    again = all_batches(source, 6)[0]
    assert [Path(path).name for path in again.counts.rebuilt] == ["0001.npz"]
    assert torch.equal(again.left, expected.left)
    assert all_batches(source, 6)[0].counts.cache_hits == 6


def test_required_cache_fails_on_a_miss_and_on_damage(tmp_path: Path, fsd_tree: Path) -> None:
    cache_root = tmp_path / "cache"
    with pytest.raises(DataError, match=r"--require-cache: 6 of 6 samples have no entry in .*cache \(scene_0/0000, "):
        all_batches(
            open_files(
                options_for(tmp_path, cache_root=cache_root, require_cache=True), fsd_tree, pin_memory=False
            ).train
        )
    all_batches(open_files(options_for(tmp_path, cache_root=cache_root), fsd_tree, pin_memory=False).train)
    (cache_root / "scene_2/0000.npz").write_bytes(b"")
    with pytest.raises(DataError, match=r"scene_2/0000.npz: is damaged"):
        all_batches(
            open_files(
                options_for(tmp_path, cache_root=cache_root, require_cache=True), fsd_tree, pin_memory=False
            ).train
        )


def test_unreadable_sample_stops_unless_skipped(tmp_path: Path, fsd_tree: Path) -> None:
    bad = fsd_tree / "scene_1/dataset/data/left/rgb/0001.png"
    bad.write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"0001\.png: 12 bytes that are not a complete image"):
        all_batches(open_files(options_for(tmp_path), fsd_tree, pin_memory=False).train)
    batch = all_batches(open_files(options_for(tmp_path, skip_bad=True), fsd_tree, pin_memory=False).train, 6)[0]
    assert len(batch.counts.bad) == 1
    assert batch.counts.bad[0].startswith(str(bad))
    assert batch.disparity_px[3].isnan().all()
    assert not batch.disparity_px[2].isnan().all()
    assert torch.equal(batch.left[3], batch.left[0])  # its images are those of a good sample
    assert batch.left[3].any()


def test_max_samples_limits_the_samples(tmp_path: Path, fsd_tree: Path) -> None:
    write_fsd_sample(fsd_tree, "scene_9", "0", 48, 64, seed=3)
    data = open_files(options_for(tmp_path, max_samples=3), fsd_tree, pin_memory=False)
    assert len(data.train) == 3
    assert data.facts["train_samples"] == 3


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_epoch_resumed_in_its_middle_keeps_its_order(tmp_path: Path, fsd_tree: Path, workers: int) -> None:
    source = open_files(options_for(tmp_path, num_workers=workers), fsd_tree, pin_memory=False).train
    plan = training_plan(len(source), 2, seed=3, epoch=1)
    all_indices = [batch.indices.tolist() for batch in source.batches(plan, 1)]
    assert all_indices == [batch.tolist() for batch in plan]
    for done in range(len(plan)):
        assert [batch.indices.tolist() for batch in source.batches(plan[done:], 1)] == all_indices[done:]

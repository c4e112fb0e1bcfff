import os
from pathlib import Path

import numpy as np
import pytest
from conftest import write_fsd_sample

from foundation_stereo_depth.data.fsd import (
    find_samples,
    fingerprint,
    read_fsd_sample,
    split_samples,
    take_spread,
)
from foundation_stereo_depth.data.sample import SampleNames, resize_sample
from foundation_stereo_depth.errors import DataError


def test_a_scene_that_may_not_be_entered_is_said(fsd_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As another user would meet it; the tests may run as root."""
    real, said = os.stat, list[str]()

    def refusing(path, *rest, **more):
        if "scene_1" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *rest, **more)

    monkeypatch.setattr(os, "stat", refusing)
    assert len(find_samples(fsd_tree, tell=said.append)) == 4
    assert said == [f"{fsd_tree}/scene_1: cannot be entered (Permission denied), and is left out"]


def names_of(scenes: int, frames: int) -> SampleNames:
    return SampleNames.from_pairs(
        tuple(f"s{scene:04d}" for scene in range(scenes)),
        ((scene, f"{frame:04d}") for scene in range(scenes) for frame in range(frames)),
    )


def test_samples_are_found_sorted_and_paired_by_stem(tmp_path: Path) -> None:
    for scene, stem, suffix in [
        ("b", "0002", ".jpeg"),
        ("a b", "0010", ".jpg"),
        ("a b", "0009", ".png"),
        ("ü", "x", ".png"),
    ]:
        write_fsd_sample(tmp_path, scene, stem, 32, 40, seed=0, suffix=suffix)
    index = find_samples(tmp_path)
    assert list(index.names) == ["a b/0009", "a b/0010", "b/0002", "ü/x"]
    assert index.incomplete == ()
    assert [index.paths(i).left.name for i in range(4)] == ["0009.png", "0010.jpg", "0002.jpeg", "x.png"]
    assert all(path.is_file() for i in range(len(index)) for path in index.paths(i))


def test_the_eyes_may_have_different_suffixes(tmp_path: Path) -> None:
    write_fsd_sample(tmp_path, "s", "0", 32, 40, seed=0, suffix=".png")
    right = tmp_path / "s/dataset/data/right/rgb/0.png"
    right.rename(right.with_suffix(".jpeg"))
    assert find_samples(tmp_path).paths(0).right.name == "0.jpeg"


def test_incomplete_frames_are_counted_and_named(fsd_tree: Path) -> None:
    (fsd_tree / "scene_0/dataset/data/right/rgb/0001.png").unlink()
    (fsd_tree / "scene_1/dataset/data/left/disparity/0000.png").unlink()
    (fsd_tree / "scene_1/dataset/data/left/rgb/0000.png").unlink()
    index = find_samples(fsd_tree)
    assert len(index) == 4
    assert [str(frame) for frame in index.incomplete] == [
        "scene_0/0001 (no right picture)",
        "scene_1/0000 (no left picture, no disparity map)",
    ]


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda _: None, "no such folder; --dataset-root names the folder"),
        (lambda root: root.mkdir(), "holds no <scene>/dataset/data folder"),
        (lambda root: (root / "dataset/data/left/rgb").mkdir(parents=True), "did you mean"),
        (lambda root: (root / "s/dataset/data/left/rgb").mkdir(parents=True), "none of its 1 scenes"),
    ],
)
def test_a_folder_without_samples_is_refused(tmp_path: Path, prepare, said: str) -> None:
    prepare(tmp_path / "root")
    with pytest.raises(DataError, match=said):
        find_samples(tmp_path / "root")


def test_a_sample_is_read_at_its_native_size(fsd_tree: Path) -> None:
    expected_px = write_fsd_sample(fsd_tree, "scene_0", "0000", 37, 61, seed=0)
    sample = read_fsd_sample(find_samples(fsd_tree).paths(0))
    assert sample.left.shape == sample.right.shape == (37, 61, 3)
    np.testing.assert_array_equal(sample.disparity_px, expected_px)
    shift = int(np.nanmax(expected_px))
    np.testing.assert_array_equal(sample.left[:, shift:], sample.right[:, :-shift])


def test_a_sample_read_at_another_size_is_the_one_resized_afterwards(fsd_tree: Path) -> None:
    index = find_samples(fsd_tree)
    for i in range(len(index)):
        for height, width in [(32, 40), (100, 70), (48, 64)]:
            resized = resize_sample(read_fsd_sample(index.paths(i)), height, width)
            read = read_fsd_sample(index.paths(i), (height, width))
            for expected, found in zip(vars(resized).values(), vars(read).values(), strict=True):
                assert found.dtype == expected.dtype
                np.testing.assert_array_equal(found, expected)


def test_eyes_of_different_size_are_refused(fsd_tree: Path) -> None:
    other = fsd_tree / "scene_1/dataset/data/right/rgb/0000.png"
    other.replace(fsd_tree / "scene_0/dataset/data/right/rgb/0000.png")
    with pytest.raises(DataError, match=r"0000.png: is 64x48, but .* is 61x37"):
        read_fsd_sample(find_samples(fsd_tree).paths(0))


def test_the_split_keeps_whole_scenes_apart() -> None:
    names = names_of(scenes=20, frames=30)
    split = split_samples(names, np.arange(600), 0.1)
    train, validation = ({names.scene(int(i)) for i in part} for part in split[:2])
    assert len(validation) == 2
    assert not train & validation
    assert len(split.train) + len(split.validation) == 600
    assert split.by == "scene: 2 of 20 scenes validate"


def test_the_split_depends_on_names_alone() -> None:
    names = names_of(scenes=20, frames=3)
    kept = {names.scene(int(i)) for i in split_samples(names, np.arange(60), 0.1).validation}
    some = np.array([i for i in range(60) if names.scene(i) in kept or i % 2])
    assert kept == {names.scene(int(i)) for i in split_samples(names, some, 0.1).validation}


def test_too_few_scenes_are_split_by_frame_and_said_so() -> None:
    split = split_samples(names_of(scenes=3, frames=10), np.arange(30), 0.1)
    assert (len(split.train), len(split.validation)) == (27, 3)
    assert "3 scenes are too few" in split.by


def test_no_validation_share_repeats_the_training_samples() -> None:
    split = split_samples(names_of(1, 4), np.arange(4), 0.0)
    assert split.train.tolist() == split.validation.tolist() == [0, 1, 2, 3]


def test_a_single_sample_cannot_be_split() -> None:
    with pytest.raises(DataError, match="use --val-fraction 0"):
        split_samples(names_of(1, 1), np.arange(1), 0.1)


def test_at_most_so_many_samples_are_spread_over_the_scenes() -> None:
    names = names_of(scenes=10, frames=100)
    taken = take_spread(names, 200)
    assert len(taken) == len(set(taken.tolist())) == 200
    assert (np.diff(taken) > 0).all()
    assert len({names.scene(int(i)) for i in taken}) == 10
    assert set(take_spread(names, 100).tolist()) < set(taken.tolist())
    assert len(take_spread(names, None)) == len(take_spread(names, 5000)) == 1000


def test_the_fingerprint_tells_lists_apart() -> None:
    assert fingerprint(["ab", "c"]) != fingerprint(["a", "bc"]) != fingerprint(["ab", "c", ""])
    assert fingerprint(["ab", "c"]) == fingerprint(["ab", "c"])


def test_a_million_names_stay_compact() -> None:
    names = names_of(scenes=1000, frames=1000)
    assert len(names) == 1_000_000
    assert names.scene_of.nbytes + names.stems.nbytes + names.stem_ends.nbytes <= 16_000_000
    assert names.name(999_999) == "s0999/0999"


def test_the_real_sample_is_read(shared_data: Path) -> None:
    index = find_samples(shared_data / "fsd-sample")
    assert len(index) == 7
    largest_px = {}
    for i in range(len(index)):
        sample = read_fsd_sample(index.paths(i))
        largest_px[index.names.scene(i)] = float(np.nanmax(sample.disparity_px))
    assert largest_px["middlebury_aloe"] == pytest.approx(105.5, abs=0.05)
    assert max(largest_px.values()) == largest_px["middlebury_aloe"]

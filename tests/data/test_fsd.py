import os
from pathlib import Path

import numpy as np
import pytest
from conftest import write_fsd_sample

from foundation_stereo_depth.data.fsd import open_fsd
from foundation_stereo_depth.data.sample import SampleNames, resize_sample
from foundation_stereo_depth.data.split import fingerprint, split_samples, take_spread
from foundation_stereo_depth.errors import DataError


def test_scene_that_may_not_be_entered_is_logged(
    fsd_tree: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As another user would meet it; the tests may run as root."""
    real = os.stat

    def refusing(path, *rest, **more):
        if "scene_1" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *rest, **more)

    monkeypatch.setattr(os, "stat", refusing)
    assert len(open_fsd(fsd_tree)) == 4
    assert caplog.messages == [f"{fsd_tree}/scene_1: cannot be entered (Permission denied), and is left out"]


def names_of(scenes: int, frames: int) -> SampleNames:
    return SampleNames.from_pairs(
        tuple(f"s{scene:04d}" for scene in range(scenes)),
        ((scene, f"{frame:04d}") for scene in range(scenes) for frame in range(frames)),
    )


def test_samples_are_sorted_and_paired_by_stem(tmp_path: Path) -> None:
    for scene, stem, suffix in [
        ("b", "0002", ".jpeg"),
        ("a b", "0010", ".jpg"),
        ("a b", "0009", ".png"),
        ("ü", "x", ".png"),
    ]:
        write_fsd_sample(tmp_path, scene, stem, 32, 40, seed=0, suffix=suffix)
    index = open_fsd(tmp_path)
    assert list(index.names) == ["a b/0009", "a b/0010", "b/0002", "ü/x"]
    assert index.incomplete == ()
    assert [index.paths(i).left.name for i in range(4)] == ["0009.png", "0010.jpg", "0002.jpeg", "x.png"]
    assert all(path.is_file() for i in range(len(index)) for path in index.paths(i))


def test_views_may_have_different_suffixes(tmp_path: Path) -> None:
    write_fsd_sample(tmp_path, "s", "0", 32, 40, seed=0, suffix=".png")
    right = tmp_path / "s/dataset/data/right/rgb/0.png"
    right.rename(right.with_suffix(".jpeg"))
    assert open_fsd(tmp_path).paths(0).right.name == "0.jpeg"


def test_incomplete_frames_are_listed_with_what_they_lack(fsd_tree: Path) -> None:
    (fsd_tree / "scene_0/dataset/data/right/rgb/0001.png").unlink()
    (fsd_tree / "scene_1/dataset/data/left/disparity/0000.png").unlink()
    (fsd_tree / "scene_1/dataset/data/left/rgb/0000.png").unlink()
    index = open_fsd(fsd_tree)
    assert len(index) == 4
    assert [str(frame) for frame in index.incomplete] == [
        "scene_0/0001 (no right image)",
        "scene_1/0000 (no left image, no disparity map)",
    ]


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda _: None, "no such folder; --dataset-root names the folder"),
        (lambda root: root.mkdir(), "holds no <scene>/dataset/data folder"),
        (lambda root: (root / "dataset/data/left/rgb").mkdir(parents=True), "did you mean"),
        (lambda root: (root / "s/dataset/data/left/rgb").mkdir(parents=True), "none of its 1 scenes"),
    ],
)
def test_folder_without_samples_is_refused(tmp_path: Path, prepare, message: str) -> None:
    prepare(tmp_path / "root")
    with pytest.raises(DataError, match=message):
        open_fsd(tmp_path / "root")


def test_sample_is_read_at_its_native_size(fsd_tree: Path) -> None:
    expected_px = write_fsd_sample(fsd_tree, "scene_0", "0000", 37, 61, seed=0)
    sample = open_fsd(fsd_tree).read(0)
    assert sample.left.shape == sample.right.shape == (37, 61, 3)
    np.testing.assert_array_equal(sample.disparity_px, expected_px)
    shift = int(np.nanmax(expected_px))
    np.testing.assert_array_equal(sample.left[:, shift:], sample.right[:, :-shift])


def test_sample_read_at_another_size_equals_resize_sample(fsd_tree: Path) -> None:
    index = open_fsd(fsd_tree)
    for i in range(len(index)):
        for height, width in [(32, 40), (100, 70), (48, 64)]:
            resized = resize_sample(index.read(i), height, width)
            read = index.read(i, (height, width))
            for part in ("left", "right", "disparity_px"):
                expected, found = getattr(resized, part), getattr(read, part)
                assert found.dtype == expected.dtype
                np.testing.assert_array_equal(found, expected)


def test_views_of_different_size_are_refused(fsd_tree: Path) -> None:
    other = fsd_tree / "scene_1/dataset/data/right/rgb/0000.png"
    other.replace(fsd_tree / "scene_0/dataset/data/right/rgb/0000.png")
    with pytest.raises(DataError, match=r"0000.png: is 64x48, but .* is 61x37"):
        open_fsd(fsd_tree).read(0)


def test_split_keeps_entire_scenes_apart() -> None:
    names = names_of(scenes=20, frames=30)
    split = split_samples(names, np.arange(600), 0.1)
    train, validation = ({names.scene(int(i)) for i in part} for part in split[:2])
    assert len(validation) == 2
    assert not train & validation
    assert len(split.train) + len(split.validation) == 600
    assert split.by == "scene: 2 of 20 scenes validate"


def test_split_depends_on_names_alone() -> None:
    names = names_of(scenes=20, frames=3)
    kept = {names.scene(int(i)) for i in split_samples(names, np.arange(60), 0.1).validation}
    some = np.array([i for i in range(60) if names.scene(i) in kept or i % 2])
    assert kept == {names.scene(int(i)) for i in split_samples(names, some, 0.1).validation}


def test_split_of_few_scenes_is_by_frame() -> None:
    split = split_samples(names_of(scenes=3, frames=10), np.arange(30), 0.1)
    assert (len(split.train), len(split.validation)) == (27, 3)
    assert "3 scenes are too few" in split.by


def test_split_without_validation_fraction_repeats_the_training_samples() -> None:
    split = split_samples(names_of(1, 4), np.arange(4), 0.0)
    assert split.train.tolist() == split.validation.tolist() == [0, 1, 2, 3]


def test_split_of_a_single_sample_is_refused() -> None:
    with pytest.raises(DataError, match="use --val-fraction 0"):
        split_samples(names_of(1, 1), np.arange(1), 0.1)


def test_take_spread_takes_from_all_scenes() -> None:
    names = names_of(scenes=10, frames=100)
    taken = take_spread(names, 200)
    assert len(taken) == len(set(taken.tolist())) == 200
    assert (np.diff(taken) > 0).all()
    assert len({names.scene(int(i)) for i in taken}) == 10
    assert set(take_spread(names, 100).tolist()) < set(taken.tolist())
    assert len(take_spread(names, None)) == len(take_spread(names, 5000)) == 1000


def test_fingerprint_differs_for_different_lists() -> None:
    assert fingerprint(["ab", "c"]) != fingerprint(["a", "bc"]) != fingerprint(["ab", "c", ""])
    assert fingerprint(["ab", "c"]) == fingerprint(["ab", "c"])


def test_names_take_sixteen_bytes_each_and_four_letters() -> None:
    names = names_of(scenes=100, frames=200)
    assert names.scene_of.nbytes + names.stems.nbytes + names.stem_ends.nbytes <= 16 * len(names)
    assert names.name(19_999) == "s0099/0199"


def test_real_fsd_sample_is_read(shared_data: Path) -> None:
    index = open_fsd(shared_data / "fsd-sample")
    assert len(index) == 7
    largest_px = {}
    for i in range(len(index)):
        sample = index.read(i)
        largest_px[index.names.scene(i)] = float(np.nanmax(sample.disparity_px))
    assert largest_px["middlebury_aloe"] == pytest.approx(105.5, abs=0.05)
    assert max(largest_px.values()) == largest_px["middlebury_aloe"]


def test_stems_of_three_digits_and_scenes_shorter_than_their_names_are_read(tmp_path: Path) -> None:
    for frame in range(3):
        write_fsd_sample(tmp_path, "kitchen_realistic_900_1", f"{frame:03d}", 32, 40, seed=frame)
    dataset = open_fsd(tmp_path)
    assert list(dataset.names) == [f"kitchen_realistic_900_1/{frame:03d}" for frame in range(3)]
    assert dataset.read(2).left.shape == (32, 40, 3)
    assert dataset.incomplete == ()


@pytest.mark.parametrize("above", ["archive_1", "mnt/disk/fsd"])
def test_scenes_of_extracted_archives_lie_deeper(tmp_path: Path, above: str) -> None:
    """Each archive in a folder of its own; or archives whose paths begin with a slash."""
    write_fsd_sample(tmp_path, f"{above}/scene", "0000", 32, 40, seed=0)
    write_fsd_sample(tmp_path, f"{Path(above).parent / 'other'}/scene", "0000", 32, 40, seed=1)
    dataset = open_fsd(tmp_path)
    flat = above.replace("/", "--")
    assert f"{flat}--scene/0000" in list(dataset.names)
    assert len(dataset) == 2
    assert all(path.is_file() for i in range(2) for path in dataset.paths(i))
    (tmp_path / above / "scene/dataset/data/right/rgb/0000.png").unlink()
    assert [frame.name for frame in open_fsd(tmp_path).incomplete] == [f"{above}/scene/0000"]


def test_deeper_folders_are_not_searched_beside_scenes(fsd_tree: Path) -> None:
    write_fsd_sample(fsd_tree, "archive/scene", "0000", 32, 40, seed=0)
    assert len(open_fsd(fsd_tree)) == 6


def test_deeper_scenes_that_flatten_to_one_name_are_refused(tmp_path: Path) -> None:
    for folder in ("a--b/c", "a/b--c"):
        write_fsd_sample(tmp_path, folder, "0", 32, 40, seed=0)
    with pytest.raises(DataError, match="would both be called a--b--c; rename one"):
        open_fsd(tmp_path)

"""One interface for every data set: opened by name, read at any size, cached, mixed, trained and evaluated on."""

import io
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from benchmark_trees import TREES
from conftest import write_fsd_sample

from foundation_stereo_depth.cli import cache_command
from foundation_stereo_depth.data.batch import ReadCounts, StereoBatch, validation_plan
from foundation_stereo_depth.data.codecs import (
    KITTI_STEPS_PER_PX,
    encode_fsd_disparity,
    encode_npy,
    encode_pfm,
    encode_png16,
    encode_whole_steps,
    write_rgb,
)
from foundation_stereo_depth.data.dataset import DATASET_SOURCES, StereoDataset, open_dataset, open_mixture
from foundation_stereo_depth.data.loader import FileData, open_files
from foundation_stereo_depth.data.sample import SampleNames
from foundation_stereo_depth.data.split import split_samples
from foundation_stereo_depth.data.synthetic.torch_scenes import SCENES_STAMP
from foundation_stereo_depth.data.torchvision_datasets import BENCHMARKS
from foundation_stereo_depth.errors import DataError, UserError
from foundation_stereo_depth.options.datasets import DATASET_NAMES, DatasetSource
from foundation_stereo_depth.options.training import DataOptions

H, W = 40, 56

ENCODERS: dict[str, Callable[[np.ndarray], bytes]] = {
    "pfm": encode_pfm,
    "npy": encode_npy,
    "kitti.png": lambda values: encode_png16(encode_whole_steps(values, KITTI_STEPS_PER_PX)),
    "fsd.png": lambda values: cv2.imencode(".png", encode_fsd_disparity(values)[..., ::-1])[1].tobytes(),
}


def write_pair(root: Path, name: str, encoding: str = "pfm", layout: tuple[str, str, str] | None = None) -> np.ndarray:
    """Write noise and a plane of disparities with one unknown pixel; return the disparities."""
    random = np.random.default_rng(len(name))
    disparity_px = np.float32(2) + np.arange(W, dtype=np.float32) * np.float32(0.125) + np.zeros((H, 1), np.float32)
    disparity_px[3, 4] = np.nan
    left, right, truth = (root / folder for folder in layout or ("left", "right", "disparity"))
    for folder in (left, right, truth):
        folder.mkdir(parents=True, exist_ok=True)
    write_rgb(left / f"{name}.png", random.integers(0, 256, (H, W, 3), dtype=np.uint8))
    write_rgb(right / f"{name}.png", random.integers(0, 256, (H, W, 3), dtype=np.uint8))
    (truth / f"{name}.{encoding.rpartition('.')[2]}").write_bytes(ENCODERS[encoding](disparity_px))
    return disparity_px


def options(**changes) -> DataOptions:
    return DataOptions(**{"height": 48, "width": 64, "val_fraction": 0.0, "num_workers": 0} | changes)


def read_epoch(data: FileData, epoch: int = 0) -> tuple[StereoBatch, ReadCounts]:
    (batch,) = data.train.batches(validation_plan(len(data.train), len(data.train)), epoch)
    return batch, batch.counts


def test_every_name_that_the_flag_takes_can_be_opened() -> None:
    assert set(DATASET_NAMES) == set(DATASET_SOURCES) | set(BENCHMARKS)


@pytest.mark.parametrize("name", [*TREES, "fsd", "folders", pytest.param("synthetic", marks=pytest.mark.slow)])
def test_every_data_set_is_read_resized_cached_and_loaded(name: str, tmp_path: Path, request) -> None:
    root = tmp_path / "root"
    if name == "fsd":
        write_fsd_sample(root, "s", "0", 40, 56, seed=0)
    elif name == "folders":
        write_pair(root, "a")
    elif name == "synthetic":
        request.getfixturevalue("compiled_renderer")
        root = Path("2")
    else:
        TREES[name](root)
    dataset = open_dataset(name, root)
    assert isinstance(dataset, StereoDataset)
    assert len(dataset) == len(dataset.names) == len(list(dataset.names)) > 0
    sample = dataset.read(0, (48, 64))
    assert sample.left.shape == sample.right.shape == (48, 64, 3)
    assert sample.disparity_px.shape == (48, 64)
    assert dataset.stamp(0).shape == (3, 2)

    flags = ["--dataset", name, "--dataset-root", str(root), "--cache-root", "cache", "--height", "48", "--width", "64"]
    assert cache_command(flags) == 0
    data = open_files(options(dataset=name, cache_root=Path("cache")), root, pin_memory=False)
    batch, counts = read_epoch(data)
    assert (counts.cache_hits, counts.cache_misses) == (len(dataset), 0)
    np.testing.assert_array_equal(batch.left[0].permute(1, 2, 0).numpy(), sample.left)
    alone, _ = read_epoch(open_files(options(cache_root=Path("cache")), None, pin_memory=False))
    order = [data.train.reader.names.name(i) for i in range(len(dataset))]
    assert sorted(order) == sorted(
        open_files(options(cache_root=Path("cache")), None, pin_memory=False).train.reader.names
    )
    assert alone.left.shape == batch.left.shape


def test_resized_sample_keeps_disparity_and_mask_in_proportion(tmp_path: Path) -> None:
    TREES["kitti2015"](tmp_path)
    dataset = open_dataset("kitti2015", tmp_path)
    native, resized = dataset.read(1), dataset.read(1, (12, 18))
    assert native.non_occluded is not None
    assert resized.non_occluded is not None
    np.testing.assert_array_equal(resized.non_occluded, native.non_occluded.repeat(2, 0).repeat(2, 1))
    np.testing.assert_allclose(resized.disparity_px, 2 * native.disparity_px.repeat(2, 0).repeat(2, 1))


def test_only_middlebury_is_downloaded(tmp_path: Path) -> None:
    for name in ("eth3d", "fsd"):
        with pytest.raises(UserError, match="downloads only middlebury2014"):
            open_dataset(name, tmp_path, download=True)


# ------------------------------------------------------------------------------------------------------ folders


@pytest.mark.parametrize("encoding", ENCODERS)
def test_folders_read_every_encoding_of_disparity(tmp_path: Path, encoding: str) -> None:
    expected_px = write_pair(tmp_path, "a", encoding)
    dataset = open_dataset("folders", tmp_path)
    assert list(dataset.names) == ["pairs/a"]
    np.testing.assert_allclose(dataset.read(0).disparity_px, expected_px, atol=0.5 / KITTI_STEPS_PER_PX)


def test_folders_of_kitti_and_scenes_below_a_root_are_found(tmp_path: Path) -> None:
    write_pair(tmp_path / "training", "000000_10", "kitti.png", ("image_2", "image_3", "disp_occ_0"))
    write_pair(tmp_path / "room", "b", "npy")
    write_pair(tmp_path / "room", "a", "pfm")
    (tmp_path / "training/image_2/000000_11.png").write_bytes(b"a second frame without truth")
    (tmp_path / "room/left/._a.png").write_bytes(b"macOS")
    dataset = open_dataset("folders", tmp_path)
    assert list(dataset.names) == ["room/a", "room/b", "training/000000_10"]
    assert [str(frame) for frame in dataset.incomplete] == ["training/000000_11 (no right image, no disparity map)"]


def saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npy", saved(np.array([{}], object)), "is not a NumPy file of numbers"),
        ("a.npy", saved(np.zeros((2, 3, 4))), r"2-D array of numbers, but this file has shape \(2, 3, 4\)"),
        ("a.npy", saved(np.full((H, W), W + 1.0)), r"holds a disparity of 57.0 px in an image 56 px wide"),
        ("a.npy", saved(-np.ones((H, W))), "has no disparity above 0 px; is its sign reversed"),
        ("a.npy", saved(np.ones((H, W + 1))), "has parts of the sizes"),
        ("a.npy", b"", "is not a NumPy file"),
        ("a.pfm", encode_pfm(np.full((H, W), 70.0, np.float32)), "holds a disparity of 70.0 px"),
        ("a.png", cv2.imencode(".png", np.zeros((H, W), np.uint8))[1].tobytes(), "8-bit RGB PNG"),
    ],
)
def test_folders_refuse_other_disparity_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    write_pair(tmp_path, "a", "pfm")
    (tmp_path / "disparity/a.pfm").unlink()
    (tmp_path / "disparity" / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_dataset("folders", tmp_path).read(0)


def test_folders_without_pairs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        open_dataset("folders", tmp_path / "none")
    with pytest.raises(DataError, match="holds no folders left, right, disparity or image_2"):
        open_dataset("folders", tmp_path)
    write_pair(tmp_path, "a")
    (tmp_path / "right/a.png").unlink()
    with pytest.raises(DataError, match=r"holds no complete pair; for example pairs/a \(no right image\)"):
        open_dataset("folders", tmp_path)
    write_pair(tmp_path, "a", "npy")
    with pytest.raises(DataError, match="beside it has the same name"):
        open_dataset("folders", tmp_path)


# ---------------------------------------------------------------------------------------------------- synthetic


def test_synthetic_scenes_are_numbered_and_stamped_with_their_version() -> None:
    dataset = open_dataset("synthetic", Path("101"))
    assert len(dataset) == 101
    assert dataset.names.name(100) == "made-up-00001/00"
    np.testing.assert_array_equal(dataset.stamp(3), SCENES_STAMP)
    for count in ("0", "-1", "many", "1.5"):
        with pytest.raises(DataError, match="has to be a number of scenes"):
            open_dataset("synthetic", Path(count))


# ------------------------------------------------------------------------------------------------------ mixtures


@pytest.fixture
def two_roots(tmp_path: Path, fsd_tree: Path) -> tuple[str, str]:
    for name in "abcd":
        write_pair(tmp_path / "mine", name)
    return f"fsd={fsd_tree}", f"folders={tmp_path / 'mine'}"


def test_single_root_keeps_its_names_with_and_without_a_name(fsd_tree: Path) -> None:
    plain = open_files(options(), fsd_tree, pin_memory=False)
    named = open_files(options(), (f"fsd={fsd_tree}",), pin_memory=False)
    assert plain.train.name(0) == named.train.name(0) == "scene_0/0000"
    assert plain.facts == named.facts
    assert plain.facts["dataset"] == str(fsd_tree)


def test_mixture_holds_all_samples_under_names_of_their_own(two_roots: tuple[str, str]) -> None:
    first, other = (open_files(options(), roots, pin_memory=False) for roots in (two_roots, two_roots[::-1]))
    names = [first.train.name(i) for i in range(len(first.train))]
    assert names == [
        *(f"folders-mine@@pairs/{name}" for name in "abcd"),
        *(f"fsd-fsd@@scene_{scene}/000{frame}" for scene in range(3) for frame in range(2)),
    ]
    assert first.facts["dataset_fingerprint"] == other.facts["dataset_fingerprint"], "the order of flags is no matter"
    batch, _ = read_epoch(first)
    alone, _ = read_epoch(open_files(options(), two_roots[0:1], pin_memory=False))
    np.testing.assert_array_equal(batch.left[4:].numpy(), alone.left.numpy())


def test_mixture_is_cached_without_collisions(two_roots: tuple[str, str]) -> None:
    flags = [word for root in two_roots for word in ("--dataset-root", root)]
    assert cache_command([*flags, "--cache-root", "cache", "--height", "48", "--width", "64"]) == 0
    data = open_files(options(cache_root=Path("cache")), two_roots, pin_memory=False)
    assert read_epoch(data)[1].cache_hits == 10
    alone = open_files(options(cache_root=Path("cache")), None, pin_memory=False)
    assert alone.facts["dataset_fingerprint"] == data.facts["dataset_fingerprint"]


def test_mixture_of_folders_with_one_name_is_refused(tmp_path: Path) -> None:
    for parent in "xy":
        write_pair(tmp_path / parent / "mine", "a")
    sources = [DatasetSource(name="folders", root=tmp_path / parent / "mine") for parent in "xy"]
    with pytest.raises(DataError, match="samples of both would be called folders-mine"):
        open_mixture(sources)


def test_split_of_a_mixture_is_that_of_its_parts() -> None:
    def names(prefix: str, scenes: int) -> SampleNames:
        return SampleNames.from_pairs(
            tuple(f"{prefix}s{scene:02d}" for scene in range(scenes)),
            ((scene, f"{frame:02d}") for scene in range(scenes) for frame in range(4)),
        )

    alone = [names("", 20), names("", 2)]
    mixed = SampleNames.from_pairs(
        (*(f"a@@{scene}" for scene in alone[0].scenes), *(f"b@@{scene}" for scene in alone[1].scenes)),
        [(scene, f"{frame:02d}") for scene in range(22) for frame in range(4)],
    )
    expected = [split_samples(part, np.arange(len(part)), 0.1).validation for part in alone]
    split = split_samples(mixed, np.arange(len(mixed)), 0.1)
    assert split.validation.tolist() == [*expected[0].tolist(), *(expected[1] + 80).tolist()]
    assert split.by.startswith("a: scene: 2 of 20 scenes validate; b: frame: 2 scenes are too few")


@pytest.mark.parametrize(("weight", "per_epoch"), [("0.5", 2), ("1", 4), ("2", 8), ("1.5", 6)])
def test_weight_sets_how_often_an_epoch_visits_a_data_set(
    two_roots: tuple[str, str], weight: str, per_epoch: int
) -> None:
    roots = (two_roots[0], two_roots[1].replace("folders=", f"folders:{weight}="))
    train = open_files(options(), roots, pin_memory=False).train
    assert len(train) == 6 + per_epoch
    visits = dict.fromkeys((name for name in train.reader.names), 0)
    for epoch in range(4):
        indices = [int(i) for batch in train.batches(validation_plan(len(train), 3), epoch) for i in batch.indices]
        assert len(set(indices)) == len(indices) == len(train), "each visit draws its own augmentation"
        for index in indices:
            visits[train.name(index)] += 1
    assert {count for name, count in visits.items() if name.startswith("fsd")} == {4}
    assert {count for name, count in visits.items() if name.startswith("folders")} == {per_epoch}


def test_weights_make_another_run(two_roots: tuple[str, str]) -> None:
    plain = open_files(options(), two_roots, pin_memory=False)
    weighted = open_files(options(), (two_roots[0].replace("fsd=", "fsd:2="), two_roots[1]), pin_memory=False)
    assert plain.facts["dataset_fingerprint"] != weighted.facts["dataset_fingerprint"]
    assert len(plain.validation) == len(weighted.validation) == 10

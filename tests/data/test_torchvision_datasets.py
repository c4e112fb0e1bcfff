"""Each benchmark's reader on a small tree of the layout that its authors publish."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from benchmark_trees import TREES, H, W, eth3d, instereo2k, kitti2015, pfm, truth

from foundation_stereo_depth.data.torchvision_datasets import BENCHMARKS, open_benchmark
from foundation_stereo_depth.errors import DataError

OF_OCCLUSION = {"eth3d", "kitti2015", "sintel"}


def test_every_benchmark_has_a_tree() -> None:
    assert set(TREES) == set(BENCHMARKS)


@pytest.mark.parametrize("name", TREES)
def test_each_pair_is_read_with_its_own_truth(name: str, tmp_path: Path) -> None:
    TREES[name](tmp_path)
    benchmark = open_benchmark(name, tmp_path)
    assert len(benchmark) == (4 if name == "crestereo" else 2)
    assert len({benchmark.names.name(i) for i in range(len(benchmark))}) == len(benchmark)
    for i in range(len(benchmark)):
        scene = benchmark.read(i)
        number = int(scene.left[0, 0, 0]) // 10
        assert np.abs(scene.left.astype(int) - 10 * number).max() <= 1
        assert (scene.right == scene.left + 1).all()
        expected_px = truth(number, np.nan if name != "sceneflow" else 10.0 * (number + 1))
        tolerance = 0.02 if name in ("crestereo", "instereo2k", "fallingthings") else 1e-3
        np.testing.assert_allclose(scene.disparity_px, expected_px, atol=tolerance)
        assert scene.disparity_px.dtype == np.float32
        if name in OF_OCCLUSION:
            assert scene.non_occluded is not None
            assert not scene.non_occluded[:, -1].any()
            assert scene.non_occluded[:, 1:-1].all()
        elif name == "kitti2012":
            assert scene.non_occluded is not None
            assert scene.non_occluded.all()
        else:
            assert scene.non_occluded is None


def test_root_may_be_the_folder_itself(tmp_path: Path) -> None:
    eth3d(tmp_path)
    assert len(open_benchmark("eth3d", tmp_path / "ETH3D")) == 2


@pytest.mark.parametrize("name", TREES)
def test_folder_of_another_layout_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"does not hold {name} as torchvision"):
        open_benchmark(name, tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        open_benchmark(name, tmp_path / "nowhere")


def test_missing_truth_is_not_shifted_to_the_next_scene(tmp_path: Path) -> None:
    eth3d(tmp_path)
    (tmp_path / "ETH3D/two_view_training_gt/delivery_area_1l/disp0GT.pfm").unlink()
    with pytest.raises(DataError, match="has 2 pairs of images but 1 disparity maps"):
        open_benchmark("eth3d", tmp_path)


def test_missing_truth_and_missing_images_of_equal_number_are_refused(tmp_path: Path) -> None:
    """The counts are equal, and every truth in between would be the next scene's."""
    instereo2k(tmp_path)
    scenes = tmp_path / "InStereo2k/test"
    shutil.copytree(scenes / "001", scenes / "002")
    assert len(open_benchmark("instereo2k", tmp_path)) == 3
    for lost in ("000/left_disp.png", "000/right_disp.png", "002/left.png", "002/right.png"):
        (scenes / lost).unlink()
    with pytest.raises(DataError, match=r"test/001/left\.png would be paired with .* and the truth test/002/left_disp"):
        open_benchmark("instereo2k", tmp_path)


def test_missing_truth_of_kitti_2015_leaves_its_pair_out(tmp_path: Path) -> None:
    kitti2015(tmp_path)
    for folder in ("disp_occ_0", "disp_occ_1"):
        (tmp_path / f"Kitti2015/training/{folder}/000000_10.png").unlink()
    benchmark = open_benchmark("kitti2015", tmp_path)
    assert [benchmark.names.name(i) for i in range(len(benchmark))] == ["training--image_2/000001_10"]
    assert benchmark.read(0).left[0, 0, 0] == 10


@pytest.mark.parametrize("name", ["kitti2012", "kitti2015", "instereo2k", "crestereo"])
def test_truth_converted_to_8_bits_is_refused(name: str, tmp_path: Path) -> None:
    TREES[name](tmp_path)
    benchmark = open_benchmark(name, tmp_path)
    paths = [Path(str(path)) for path, _ in benchmark._opened.disparities]
    for path in paths:
        cv2.imwrite(str(path), (cv2.imread(str(path), cv2.IMREAD_UNCHANGED) / 256).astype(np.uint8))
    with pytest.raises(DataError, match="its values have 8 bits, but the disparity of this data set has 16"):
        benchmark.read(0)


def test_kitti_2015_without_disp_noc_has_no_occlusion_mask(tmp_path: Path) -> None:
    kitti2015(tmp_path)
    (tmp_path / "Kitti2015/training/disp_noc_0/000000_10.png").unlink()
    assert open_benchmark("kitti2015", tmp_path).read(0).non_occluded is None


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # torchvision leaves the right view's file open
@pytest.mark.parametrize("kept", [0, 4, 45])
def test_error_names_a_damaged_image(tmp_path: Path, kept: int) -> None:
    eth3d(tmp_path)
    truncated = tmp_path / "ETH3D/two_view_training/terrains_1s/im1.png"
    truncated.write_bytes(truncated.read_bytes()[:kept])
    with pytest.raises(DataError, match=r"terrains_1s/im(0 cannot be read|1.png: is damaged)"):
        open_benchmark("eth3d", tmp_path).read(1)


def test_parts_of_different_size_are_refused(tmp_path: Path) -> None:
    eth3d(tmp_path)
    pfm(tmp_path / "ETH3D/two_view_training_gt/terrains_1s/disp0GT.pfm", np.ones((H + 1, W)))
    with pytest.raises(DataError, match="has parts of the sizes"):
        open_benchmark("eth3d", tmp_path).read(1)

import os
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import write_fsd_sample

from foundation_stereo_depth.data import scan as scanning
from foundation_stereo_depth.data.fsd import FsdDataset, open_fsd
from foundation_stereo_depth.data.loader import open_files
from foundation_stereo_depth.errors import DataError
from foundation_stereo_depth.options.training import DataOptions


@pytest.fixture(autouse=True)
def keep_every_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "_KEEP_FROM_SAMPLES", 0)


@pytest.fixture
def scanned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The scenes that were scanned, as they are."""
    scenes: list[str] = []
    scan_scene = scanning._scan_scene
    monkeypatch.setattr(scanning, "_scan_scene", lambda *a: scenes.append(a[1]) or scan_scene(*a))
    return scenes


def grown_old(root: Path) -> Path:
    """The tree, as if its folders had last changed an hour ago."""
    hour_ago_s = time.time() - 3600
    for folder, _, _ in os.walk(root):
        os.utime(folder, (hour_ago_s, hour_ago_s))
    return root


@pytest.fixture
def settled(fsd_tree: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # A folder's second time is set by the file system alone; the clock of the scan can be moved instead.
    time_ns = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: time_ns() + 10 * 10**9)
    return fsd_tree


def same(a: FsdDataset, b: FsdDataset) -> bool:
    return list(a.names) == list(b.names) and a.incomplete == b.incomplete and np.array_equal(a.suffixes, b.suffixes)


def test_a_kept_scan_is_used_again(settled: Path, scanned: list[str]) -> None:
    (settled / "scene_1/dataset/data/right/rgb/0001.png").unlink()
    first = open_fsd(settled, Path("kept"))
    assert scanned == ["scene_0", "scene_1", "scene_2"]
    assert len(list(Path("kept").iterdir())) == 1
    again = open_fsd(settled, Path("kept"))
    assert len(scanned) == 3
    assert same(first, again)
    assert again.names.name(2) == "scene_1/0000"
    assert [str(frame) for frame in again.incomplete] == ["scene_1/0001 (no right image)"]


@pytest.mark.parametrize("change", ["add", "remove", "rename", "disparity"])
def test_a_change_in_a_scene_scans_that_scene_again(settled: Path, scanned: list[str], change: str) -> None:
    open_fsd(settled, Path("kept"))
    scanned.clear()
    data = settled / "scene_1/dataset/data"
    if change == "add":
        write_fsd_sample(settled, "scene_1", "0007", 48, 64, seed=1)
    elif change == "remove":
        (data / "left/rgb/0000.png").unlink()
    elif change == "rename":
        (data / "right/rgb/0000.png").rename(data / "right/rgb/0009.png")
    else:
        (data / "left/disparity/0000.png").unlink()
    again = open_fsd(settled, Path("kept"))
    assert scanned == ["scene_1"]
    assert same(again, open_fsd(settled))


def test_scenes_that_come_and_go_are_noticed(settled: Path, scanned: list[str]) -> None:
    open_fsd(settled, Path("kept"))
    scanned.clear()
    write_fsd_sample(settled, "scene_9", "0000", 48, 64, seed=1)
    (settled / "scene_0").rename(settled.parent / "gone")
    again = open_fsd(settled, Path("kept"))
    assert scanned == ["scene_9"]
    assert again.names.scenes == ("scene_1", "scene_2", "scene_9")
    scanned.clear()
    assert same(open_fsd(settled, Path("kept")), again)
    assert scanned == []


def test_folders_that_changed_a_moment_before_are_not_trusted(fsd_tree: Path, scanned: list[str]) -> None:
    grown_old(fsd_tree)  # which sets the first of their two times only
    for _ in range(2):
        open_fsd(fsd_tree, Path("kept"))
    assert len(scanned) == 6


def test_two_data_sets_may_share_a_folder(settled: Path, scanned: list[str], tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_fsd_sample(other, "scene_0", "0042", 48, 64, seed=1)
    for _ in range(2):
        assert len(open_fsd(settled, Path("kept"))) == 6
        assert list(open_fsd(other, Path("kept")).names) == ["scene_0/0042"]
    assert len(scanned) == 4


def test_a_damaged_scan_is_repeated(settled: Path, scanned: list[str]) -> None:
    """It is but a shortcut, which a power cut may tear."""
    names = list(open_fsd(settled, Path("kept")).names)
    (file,) = Path("kept").iterdir()
    whole = file.read_bytes()
    for damaged in (b"", whole[:200], whole[:-30], b"PK" * 100):
        scanned.clear()
        file.write_bytes(damaged)
        assert list(open_fsd(settled, Path("kept")).names) == names
        assert len(scanned) == 3
        open_fsd(settled, Path("kept"))
        assert len(scanned) == 3, "it was kept again"


def test_a_scan_with_one_flipped_bit_is_used_unchanged_or_made_again(settled: Path, scanned: list[str]) -> None:
    names = list(open_fsd(settled, Path("kept")).names)
    (file,) = Path("kept").iterdir()
    complete = file.read_bytes()
    rng = np.random.default_rng(0)
    for at in rng.choice(len(complete), 60, replace=False):
        flipped = bytearray(complete)
        flipped[at] ^= 1 << int(rng.integers(8))
        file.write_bytes(flipped)
        again = open_fsd(settled, Path("kept"))
        assert list(again.names) == names, at
        assert again.paths(0).left.exists()


def test_a_kept_scan_of_impossible_content_is_made_again(settled: Path, scanned: list[str]) -> None:
    names = list(open_fsd(settled, Path("kept")).names)
    (file,) = Path("kept").iterdir()
    with np.load(file) as kept:
        arrays = dict(kept)
    for key, value in [
        ("lengths", np.zeros_like(arrays["lengths"])),
        ("lengths", -arrays["lengths"]),
        ("frames", arrays["frames"] * 2**60),
        ("suffixes", arrays["suffixes"] + np.uint8(9)),
        ("stems", np.full_like(arrays["stems"], ord("/"))),
        ("stems", np.full_like(arrays["stems"], 255)),
        ("times_ns", arrays["times_ns"][:, :3]),
        ("header", np.frombuffer(b"[" * 100_000, np.uint8)),
    ]:
        np.savez(file, **{**arrays, key: value})
        scanned.clear()
        assert list(open_fsd(settled, Path("kept")).names) == names
        assert len(scanned) == 3, key


def test_another_version_is_scanned_again(settled: Path, scanned: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    open_fsd(settled, Path("kept"))
    monkeypatch.setattr(scanning, "_FORMAT", 1)
    for _ in range(2):
        open_fsd(settled, Path("kept"))
    assert len(scanned) == 6


def test_scan_that_cannot_be_kept_is_logged(settled: Path, caplog: pytest.LogCaptureFixture) -> None:
    Path("kept").write_text("a file where a folder should be")
    assert len(open_fsd(settled, Path("kept"))) == 6
    (message,) = caplog.messages
    assert message.endswith("so the data set is scanned again at the next start")


def test_a_small_scan_is_not_kept(settled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "_KEEP_FROM_SAMPLES", 7)
    open_fsd(settled, Path("kept"))
    assert not Path("kept").exists()


def test_training_keeps_the_scan_beside_the_cache(settled: Path, scanned: list[str]) -> None:
    options = DataOptions(cache_root=Path("cache"), height=48, width=64, num_workers=0)
    for _ in range(2):
        open_files(options, settled, pin_memory=False)
    assert len(scanned) == 3
    assert [path.name for path in Path("cache").glob("index-*")]


def test_a_required_cache_that_is_not_there_is_not_made(settled: Path) -> None:
    options = DataOptions(cache_root=Path("cache"), require_cache=True, height=48, width=64, num_workers=0)
    with pytest.raises(DataError, match="6 of 6 samples have no entry in cache"):
        open_files(options, settled, pin_memory=False)
    assert not Path("cache").exists()


def test_a_long_scan_shows_a_bar(
    settled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    open_fsd(settled)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(scanning, "_BAR_AFTER_S", -1.0)
    assert len(open_fsd(settled)) == 6
    assert "scanning" in capsys.readouterr().err

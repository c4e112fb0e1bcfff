"""What can happen to a cache: each fault, how often it is tried, and that nothing is lost, wrong or passed over."""

import contextlib
import errno
import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import write_fsd_sample

from foundation_stereo_depth.checkpoint import load_checkpoint
from foundation_stereo_depth.cli import cache_command, train_command
from foundation_stereo_depth.data.batch import ReadCounts, StereoBatch, validation_plan
from foundation_stereo_depth.data.build_cache import build_cache
from foundation_stereo_depth.data.cache import DamagedEntryError, RefusedEntryError, open_cache
from foundation_stereo_depth.data.fsd import open_fsd
from foundation_stereo_depth.data.loader import open_files
from foundation_stereo_depth.data.sample import StereoSample
from foundation_stereo_depth.errors import DataError
from foundation_stereo_depth.options.training import CacheBuildOptions, DataOptions
from foundation_stereo_depth.training.train import train

SIZE = {"height": 48, "width": 64}


def build(dataset: Path, root: Path, **changes) -> dict[str, int]:
    return dict(build_cache(CacheBuildOptions(dataset_root=dataset, cache_root=root, **SIZE, **changes)).counts)


class Warnings(logging.Handler):
    """Collects the warnings of the loader."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def epoch(dataset: Path | None, root: Path | None, **changes) -> tuple[StereoBatch, ReadCounts, list[str]]:
    """Return one batch of all samples, what reading it met, and the warnings that were logged."""
    warnings = Warnings()
    logger = logging.getLogger("foundation_stereo_depth.data.loader")
    logger.addHandler(warnings)
    try:
        options = DataOptions(**{"cache_root": root, "val_fraction": 0.0, "num_workers": 2, **SIZE} | changes)
        source = open_files(options, dataset, pin_memory=False).train
        (batch,) = source.batches(validation_plan(len(source), len(source)), epoch=0)
    finally:
        logger.removeHandler(warnings)
    return batch, batch.counts, warnings.lines


def same_pixels(a: StereoBatch, b: StereoBatch) -> bool:
    return (
        np.array_equal(a.left, b.left)
        and np.array_equal(a.right, b.right)
        and np.array_equal(a.disparity_px, b.disparity_px, equal_nan=True)
    )


# ---------------------------------------------------------------------------------------- killed, and two at a time


def written_by(folder: Path, *tasks: str) -> dict[str, dict[str, int]]:
    dataset = folder / "small"
    for scene in range(3):
        for frame in range(4):
            write_fsd_sample(dataset, f"scene_{scene}", f"{frame:04d}", 60, 80, seed=10 * scene + frame)
    program = [sys.executable, Path(__file__).parents[1] / "cache_writers.py", dataset, folder, "0", *tasks]
    answer = subprocess.run(program, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr[-5000:]
    return json.loads(answer.stdout)


@pytest.fixture(scope="module")
def writers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, int]]:
    """One process for all of them: importing takes longer than twenty kills."""
    tasks = ("kill:build:6", "kill:train:4", "meet:build+build:2", "meet:build+train:2")
    return written_by(tmp_path_factory.mktemp("writers"), *tasks)


@pytest.mark.parametrize("task", ["kill:build:6", "kill:train:4"])
def test_reader_never_sees_part_of_an_entry_of_a_killed_writer(writers: dict[str, dict[str, int]], task: str) -> None:
    met = writers[task]
    assert met["kills"] == int(task.split(":")[2])
    assert met["reads"] > met["missing"]
    assert (met["half"], met["wrong"], met["left_over"], met["unfinished"]) == (0, 0, 0, 0)


@pytest.mark.parametrize("task", ["meet:build+build:2", "meet:build+train:2"])
def test_two_writers_fill_one_cache(writers: dict[str, dict[str, int]], task: str) -> None:
    met = writers[task]
    assert met["trials"] == 2
    assert (met["half"], met["wrong"], met["failed"], met["left_over"], met["unfinished"]) == (0, 0, 0, 0, 0)


@pytest.mark.slow
def test_killed_writers_and_concurrent_writers_leave_no_damaged_entry(tmp_path: Path) -> None:
    tasks = ("kill:build:120", "kill:train:120", "meet:build+build:20", "meet:build+train:20")
    met = written_by(tmp_path, *tasks)
    print(json.dumps(met))
    assert sum(counts.get("kills", 0) for counts in met.values()) == 240
    assert sum(counts.get("cut", 0) for counts in met.values()) > 20, "too few kills met a writer in the act"
    for counts in met.values():
        for fault in ("half", "wrong", "left_over", "unfinished", "failed"):
            assert counts.get(fault, 0) == 0, met


def test_training_removes_what_a_killed_writer_left_where_it_writes(fsd_tree: Path) -> None:
    from foundation_stereo_depth.files import TEMPORARY_PREFIX, _machine

    build(fsd_tree, Path("cache"))
    left = [Path(f"cache/scene_{scene}/{TEMPORARY_PREFIX}{_machine()}-0123456789ab") for scene in (0, 1)]
    for path in left:
        path.write_bytes(b"half")
    Path("cache/scene_1/0001.npz").unlink()
    _, met, warned = epoch(fsd_tree, Path("cache"))
    assert (met.cache_hits, met.cache_misses, warned) == (5, 1, [])
    assert [path.exists() for path in left] == [True, False], "where every entry is there, nobody looks"


@pytest.mark.slow
def test_the_training_command_survives_twelve_kills(tmp_path: Path) -> None:
    (met,) = written_by(tmp_path, "command:-:12").values()
    print(json.dumps(met))
    assert met["kills"] == 12
    assert met["resumed"] >= 3
    assert met["reads"] > 0
    assert (met["half"], met["wrong"], met["left_over"], met["unfinished"]) == (0, 0, 0, 0)


# ------------------------------------------------------------------------------------- full, read-only, forbidden


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A disk of its own in memory; skips where this user may not mount one."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter, which tmp_path is not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """As a user who may not write everywhere; another user than root is one already."""
    user = os.geteuid()
    os.seteuid(65534 if user == 0 else user)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_full_disk_ends_the_build_and_not_the_training(
    tmp_path: Path, fsd_tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Disks of five sizes, so that the end comes in different places: within pixels, a header, a folder."""
    expected, _, _ = epoch(fsd_tree, tmp_path / "whole")
    for size_kb in (40, 60, 64, 100, 120):
        with small_disk(tmp_path / f"disk-{size_kb}", f"{size_kb}k") as disk:
            flags = ["--dataset-root", str(fsd_tree), "--cache-root", str(disk / "cache"), "--height", "48"]
            assert cache_command([*flags, "--width", "64"]) == 2
            error = capsys.readouterr().err.splitlines()[-1]
            assert f"{disk / 'cache'}: the disk is full (No space left on device): up to " in error
            assert " are still to be written and need " in error
            entries = list(disk.rglob("*.npz"))
            assert 0 < len(entries) < 6
            assert {p.suffix for p in disk.rglob("*") if p.is_file()} == {".npz", ".json"}, "nothing half is left"

            batch, met, warned = epoch(fsd_tree, disk / "cache")
            assert same_pixels(batch, expected)
            assert met.cache_hits >= len(entries)
            assert met.cache_hits + met.cache_misses == 6
            assert met.unwritten > 0
            assert len(warned) == 1
            assert re.search(
                r"(left on device|of the disk is free)\): training continues from the data set itself", warned[0]
            )


def test_a_disk_that_a_checkpoint_fills_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--epochs", "1", "--procedural-samples", "2", "--procedural-val-samples", "1", "--batch-size", "1"]
    flags += ["--height", "32", "--width", "32", "--base-channels", "8", "--depth", "2", "--warmup-fraction", "0"]
    flags += ["--mlflow-tracking-uri", f"sqlite:///{tmp_path}/mlflow.db"]
    with small_disk(tmp_path / "disk", "300k") as disk:
        assert train_command([*flags, "--output-dir", str(disk / "run")]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert re.fullmatch(rf"foundation-stereo-depth: {disk}/run/best\.\w+: No space left on device", error)
        assert [path.name for path in disk.rglob(".*")] == []


def test_training_leaves_disk_space_for_checkpoints(fsd_tree: Path, monkeypatch) -> None:
    """A build takes all there is, training stops at a hundredth of the disk."""
    usage, free = shutil.disk_usage(fsd_tree), [101]

    def usage_of(path: Path):
        return usage._replace(total=10_000, free=free[0])

    monkeypatch.setattr(shutil, "disk_usage", usage_of)
    assert epoch(fsd_tree, Path("cache"), max_samples=3)[1].unwritten == 0
    free[0] = 99
    _, met, warned = epoch(fsd_tree, Path("cache"))
    assert (met.cache_hits, met.unwritten) == (3, 3)
    assert len(warned) == 1
    assert "less than 1% of the disk is free" in warned[0]
    assert build(fsd_tree, Path("cache")) == {"found": 3, "missing": 3}


@pytest.mark.parametrize("filled", [True, False])
def test_a_read_only_disk_ends_the_build_and_not_the_training(tmp_path: Path, fsd_tree: Path, filled: bool) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        root = disk / "cache"
        if filled:
            build(fsd_tree, root)
            (root / "scene_0/0000.npz").unlink()
            (root / "scene_2/0001.npz").write_bytes(b"damaged")
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        expected, _, _ = epoch(fsd_tree, tmp_path / "whole")
        batch, met, warned = epoch(fsd_tree, root)
        assert same_pixels(batch, expected)
        assert (met.cache_hits, met.cache_misses, met.unwritten) == ((4, 2, 2) if filled else (0, 6, 6))
        assert len(warned) == 1
        assert "Read-only file system" in warned[0]
        with pytest.raises(OSError, match="Read-only file system") as refused:
            build(fsd_tree, root)
        assert str(root) in refused.value.filename
        if filled:
            with pytest.raises(DataError, match=r"is damaged|have no entry"):
                epoch(fsd_tree, root, require_cache=True)


def test_a_damaged_entry_that_cannot_be_rebuilt_is_named(tmp_path: Path, fsd_tree: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        build(fsd_tree, disk / "cache")
        (disk / "cache/scene_2/0001.npz").write_bytes(b"damaged")
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        _, met, warned = epoch(fsd_tree, disk / "cache")
    assert (met.cache_hits, met.unwritten) == (5, 1)
    assert re.search(r"scene_2/0001\.npz: Read-only file system, and what is there is damaged", warned[0])


def test_a_cache_beside_a_disk_s_own_folder_is_a_cache(fsd_tree: Path, open_folder: Path) -> None:
    dataset, disk = shutil.copytree(fsd_tree, open_folder / "fsd"), open_folder / "disk"
    (disk / "lost+found").mkdir(parents=True, mode=0o700)
    (disk / "pictures").mkdir()
    disk.chmod(0o777)
    with as_nobody():
        assert build(dataset, disk)["missing"] == 6
        assert epoch(None, disk)[1].cache_hits == 6
    with pytest.raises(DataError, match=r"was made at 64x48"):
        open_cache(disk, 24, 32)


def test_entries_of_another_program_and_size_are_left_alone(fsd_tree: Path) -> None:
    build(fsd_tree, Path("cache"))
    Path("cache/cache.json").unlink()
    Path("cache/scene_0/0000.npz").write_bytes(b"damaged, so that another one has to tell")
    before = {path: path.read_bytes() for path in Path("cache").rglob("*.npz")}
    with pytest.raises(DataError, match=r"is of 64x48, but 40x32 is asked for; name another --cache-root"):
        epoch(fsd_tree, Path("cache"), height=32, width=40)
    with pytest.raises(DataError, match=r"is of 64x48, but 40x32 is asked for; name another --cache-root"):
        open_cache(Path("cache"), 32, 40)
    assert before == {path: path.read_bytes() for path in Path("cache").rglob("*.npz")}
    assert epoch(fsd_tree, Path("cache"))[1].cache_hits == 5


def test_bad_samples_are_passed_over_and_missing_entries_are_not(fsd_tree: Path) -> None:
    build(fsd_tree, Path("cache"))
    Path("cache/scene_0/0000.npz").write_bytes(b"damaged")
    assert len(epoch(fsd_tree, Path("cache"), require_cache=True, skip_bad=True)[1].bad) == 1
    Path("cache/scene_0/0000.npz").unlink()
    with pytest.raises(DataError, match=r"1 of 6 samples have no entry in cache \(scene_0/0000\)"):
        epoch(fsd_tree, Path("cache"), require_cache=True, skip_bad=True)


def test_a_complete_read_only_cache_is_verified(tmp_path: Path, fsd_tree: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        build(fsd_tree, disk / "cache")
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        assert build(fsd_tree, disk / "cache") == {"found": 6}
        _, met, warned = epoch(fsd_tree, disk / "cache", require_cache=True)
        assert (met.cache_hits, warned) == (6, [])


def test_a_forbidden_cache_ends_the_build_and_not_the_training(
    fsd_tree: Path, open_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(open_folder))
    monkeypatch.chdir(open_folder)
    dataset, root = shutil.copytree(fsd_tree, open_folder / "fsd"), open_folder / "cache"
    expected, _, _ = epoch(dataset, None)
    root.mkdir(mode=0o555)
    flags = ["--dataset-root", str(dataset), "--cache-root", str(root), "--height", "48", "--width", "64"]
    with as_nobody():
        batch, met, warned = epoch(dataset, root)
        assert cache_command(flags) == 2
    assert np.array_equal(batch.left, expected.left)
    assert (met.cache_misses, met.unwritten) == (6, 6)
    assert len(warned) == 1
    assert "Permission denied" in warned[0]
    assert f"foundation-stereo-cache: {root}" in capsys.readouterr().err.splitlines()[-1]
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EIO])
def test_training_warns_once_and_counts_entries_that_cannot_be_written(
    number: int, fsd_tree: Path, tiny_options, monkeypatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*arguments, **named):
        raise OSError(number, os.strerror(number), "cache/entry")

    monkeypatch.setattr("foundation_stereo_depth.data.cache.write_atomically", refuse)
    if number != errno.ENOSPC:  # a whole run takes two seconds; once will do
        _, met, warned = epoch(fsd_tree, Path("cache"))
        assert (met.cache_misses, met.unwritten, len(warned)) == (6, 6, 1)
        return
    caplog.set_level(logging.INFO)
    train(tiny_options(dataset_root=fsd_tree, cache_root=Path("cache"), val_fraction=0.34))
    out = "\n".join([*caplog.messages, ""])
    assert out.count("the cache cannot be written (cache/entry: No space left on device)") == 1
    # Each epoch reads 4 samples to train on and 2 to validate on.
    assert out.count("; 6 samples could not be written to the cache\n") == 2
    history = load_checkpoint(Path("out/last.pt")).training["history"]
    assert [metrics["data/cache_unwritten"] for metrics in history] == [6, 6]
    assert not list(Path("cache").rglob("*.npz"))


def test_training_warns_of_files_that_have_changed_since_caching(tmp_path: Path, fsd_tree: Path) -> None:
    root = tmp_path / "cache"
    build(fsd_tree, root)
    assert epoch(fsd_tree, root)[2] == []
    write_fsd_sample(fsd_tree, "scene_1", "0001", 48, 64, seed=5)
    batch, met, warned = epoch(fsd_tree, root)
    assert met.cache_hits == 6
    assert warned == [
        "1 of 6 cache entries that were checked were made of files that have changed since, and are used as they are; "
        "foundation-stereo-cache rebuilds all such entries"
    ]
    build(fsd_tree, root)
    again, _, warned = epoch(fsd_tree, root)
    assert warned == []
    assert not same_pixels(again, batch)


def test_stamp_of_a_damaged_entry_is_right_or_refused(tmp_path: Path) -> None:
    """Bytes changed, cut, moved, added at random: an entry is damaged, says nothing of its files, or says the truth."""
    cache = open_cache(tmp_path, 48, 64)
    stamp = np.arange(6, dtype=np.int64).reshape(3, 2) * 10**9
    cache.write("s", "0", sample_of(), stamp)
    path = cache.path("s", "0")
    whole, random = path.read_bytes(), np.random.default_rng(0)
    directory = whole.index(b"source.npy") - 30  # from here on is what `source` looks at
    met = Counter[str]()
    for trial in range(400):
        damaged = bytearray(whole)
        at = int(random.integers(directory, len(whole)))
        if trial % 4 == 0:
            damaged[at] ^= 1 << int(random.integers(8))
        elif trial % 4 == 1:
            del damaged[at:]
        elif trial % 4 == 2:
            damaged[at : at + int(random.integers(9))] = random.bytes(int(random.integers(9)))
        else:
            damaged[at:at] = damaged[-int(random.integers(1, 99)) :]
        path.write_bytes(damaged)
        try:
            found = cache.source("s", "0")
        except DamagedEntryError as error:
            met["damaged" if str(path) in str(error) else "damaged and unnamed"] += 1
        else:
            met["silent" if found is None else "true"] += 1
            assert found is None or np.array_equal(found, stamp)
    assert set(met) == {"damaged", "silent", "true"}
    assert min(met.values()) > 3, met


@pytest.mark.parametrize("shape", [(2**40, 2), (2, 3), (6,), ()])
def test_another_programs_source_is_left_alone(tmp_path: Path, shape: tuple[int, ...]) -> None:
    cache = open_cache(tmp_path, 48, 64)
    cache.write("s", "0", sample_of())
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<i8", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(cache.path("s", "0"), "a") as archive:
        archive.writestr("source.npy", header.getvalue() + bytes(48))
    assert cache.source("s", "0") is None
    with zipfile.ZipFile(cache.path("s", "0"), "a", zipfile.ZIP_DEFLATED) as archive, pytest.warns(match="Duplicate"):
        archive.writestr("source.npy", bytes(2**24))  # a bomb
    assert cache.source("s", "0") is None


def test_damaged_entries_that_training_rebuilds_are_named(
    fsd_tree: Path, tiny_options, caplog: pytest.LogCaptureFixture
) -> None:
    build(fsd_tree, Path("cache"))
    for name in ("scene_0/0001", "scene_1/0000"):  # of which one trains, or both
        Path(f"cache/{name}.npz").write_bytes(b"damaged")
    train(tiny_options(dataset_root=fsd_tree, cache_root=Path("cache"), val_fraction=0.34, epochs=1, **SIZE))
    named = sorted(Path("out/rebuilt_entries.txt").read_text().split())
    assert named == ["cache/scene_0/0001.npz", "cache/scene_1/0000.npz"]
    assert caplog.text.count("cache entries were damaged and have been rebuilt, listed in out/rebuilt_entries") == 1
    assert build(fsd_tree, Path("cache")) == {"found": 6}


# ---------------------------------------------------------------------------------------------- hostile names

HOSTILE = [
    "a scene", " leading", "trailing ", "-rf", "--help", "..x", "...", ".hidden", ".incomplete-", "*", "?", "[a]",
    ".incomplete-01234567-0123456789ab", "%s%d%n", "$HOME", "`id`", ";ls", "a\\b", "C:", "con", "new\nline", "tab\t",
    "'", '"', "\x01", "日本語", "é", "e\u0301", "🎥", "\u202eright-to-left", "Room", "room", "ROOM", "left",
    "x" * 255, "é" * 127, "dataset", "0000.npz", "cache_faults.txt.d",
]  # fmt: skip
HOSTILE_STEMS = [" ", "a b", "é" * 125, "x" * 251, "0.npz", "new\nline", "left", "A", "a"]


def tree_of(root: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(root.rglob("*"))}


def test_hostile_names_stay_inside_the_cache(tmp_path: Path) -> None:
    """39 scene names and 9 frame names: each is cached, found again, and nothing appears anywhere else."""
    dataset, root = tmp_path / "fsd", tmp_path / "inside/cache"
    for seed, scene in enumerate(HOSTILE):
        write_fsd_sample(dataset, scene, "0000", 48, 64, seed=seed)
    for seed, stem in enumerate(HOSTILE_STEMS):
        write_fsd_sample(dataset, "scene", stem, 48, 64, seed=100 + seed)
    samples = len(HOSTILE) + len(HOSTILE_STEMS)
    around = tree_of(tmp_path)
    assert build(dataset, root) == {"missing": samples}
    assert build(dataset, root) == {"found": samples}
    outside = {name: data for name, data in tree_of(tmp_path).items() if not name.startswith(str(root.parent))}
    assert outside == around
    assert len(list(root.glob("*/*.npz"))) == samples
    assert sorted(open_cache(root, 48, 64).names()) == sorted(open_fsd(dataset).names)
    from_cache, met, _ = epoch(None, root)
    from_files, _, _ = epoch(dataset, None)
    assert met.cache_hits == samples
    assert np.array_equal(from_cache.left, from_files.left)
    assert cache_command(["--verify", "--cache-root", str(root), "--height", "48", "--width", "64"]) == 0


@pytest.mark.parametrize("scene", ["..", ".", "", "../..", "a/b", "/tmp", "a/..", "cache.json"])
def test_names_that_lead_out_of_the_cache_are_refused(tmp_path: Path, scene: str) -> None:
    root = tmp_path / "inside/cache"
    cache = open_cache(root, 48, 64)
    with pytest.raises(RefusedEntryError, match="no entry can be written for"):
        cache.write(scene, "0", sample_of())
    if scene != "cache.json":
        with pytest.raises(RefusedEntryError):
            cache.write("scene", f"{scene}/0", sample_of())
    assert list(tmp_path.iterdir()) == []


def sample_of() -> StereoSample:
    pictures = np.zeros((2, 48, 64, 3), np.uint8)
    return StereoSample(left=pictures[0], right=pictures[1], disparity_px=np.ones((48, 64), np.float32))


def test_a_scene_that_is_a_link_is_never_written_to(
    tmp_path: Path, fsd_tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, elsewhere = tmp_path / "cache", tmp_path / "elsewhere"
    build(fsd_tree, root)
    (root / "scene_0").rename(elsewhere)
    (root / "scene_0").symlink_to(elsewhere)
    assert epoch(fsd_tree, root)[1].cache_hits == 6, "what is there is read"
    (elsewhere / "0000.npz").unlink()
    before = tree_of(elsewhere)
    flags = ["--dataset-root", str(fsd_tree), "--cache-root", str(root), "--height", "48", "--width", "64"]
    assert cache_command(flags) == 2
    assert "scene_0: is a link that may lead out of the cache" in capsys.readouterr().err.splitlines()[-1]
    _, met, warned = epoch(fsd_tree, root)
    assert (met.cache_hits, met.unwritten, len(warned)) == (5, 1, 1)
    assert "scene_0: is a link" in warned[0]
    assert tree_of(elsewhere) == before


def test_an_entry_that_is_a_link_is_replaced_and_its_target_stays(tmp_path: Path, fsd_tree: Path) -> None:
    root, target = tmp_path / "cache", tmp_path / "precious"
    build(fsd_tree, root)
    target.write_bytes(b"precious")
    for name in ("scene_0/0000.npz", "scene_1/0001.npz", "cache_faults.txt"):
        (root / name).unlink(missing_ok=True)
        (root / name).symlink_to(target)
    _, met, _ = epoch(fsd_tree, root)
    assert len(met.rebuilt) == 2
    (root / "scene_0/0000.npz").unlink()
    (root / "scene_0/0000.npz").symlink_to(target)
    assert build(fsd_tree, root) == {"found": 5, "damaged": 1}
    assert target.read_bytes() == b"precious"
    assert not (root / "scene_0/0000.npz").is_symlink()


def test_a_scene_of_the_data_set_may_be_a_link(tmp_path: Path, fsd_tree: Path) -> None:
    (fsd_tree / "scene_0").rename(tmp_path / "elsewhere")
    (fsd_tree / "scene_0").symlink_to(tmp_path / "elsewhere")
    around = tree_of(tmp_path / "elsewhere")
    assert build(fsd_tree, tmp_path / "cache") == {"missing": 6}
    assert tree_of(tmp_path / "elsewhere") == around


@pytest.mark.parametrize("other", ["ROOM", "Room", "ｒoom"])
def test_names_that_differ_in_case_are_refused_on_a_disk_that_ignores_case(tmp_path: Path, other: str) -> None:
    dataset, root = tmp_path / "fsd", tmp_path / "cache"
    for seed, scene in enumerate(("room", other)):
        write_fsd_sample(dataset, scene, "0", 48, 64, seed=seed)
    assert build(dataset, root) == {"missing": 2}, "this disk is case-sensitive"
    # What a disk that does not would answer.
    shutil.copy(root / "cache.json", root / "CACHE.JSON")
    if other.isascii():
        for refused in (build, epoch):
            with pytest.raises(DataError, match=r"this disk ignores case, so R\w+/0 and room/0 would be one entry"):
                refused(dataset, root)
    else:
        assert build(dataset, root) == {"found": 2}


def test_names_that_are_not_text_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_fsd_sample(tmp_path / "fsd", "scene", "0", 48, 64, seed=0)
    flags = ["--dataset-root", "fsd", "--cache-root", "cache"]
    pictures = tmp_path / "fsd/scene/dataset/data"
    for part in ("left/rgb", "right/rgb", "left/disparity"):
        shutil.copy(pictures / part / "0.png", os.fsdecode(os.fsencode(pictures / part) + b"/\xff.png"))
    assert cache_command(flags) == 2
    assert "'\\udcff': a name of a scene or frame that is not UTF-8" in capsys.readouterr().err
    for part in ("left/rgb", "right/rgb", "left/disparity"):
        Path(os.fsdecode(os.fsencode(pictures / part) + b"/\xff.png")).unlink()
    (tmp_path / "fsd/scene").rename(os.fsdecode(os.fsencode(tmp_path / "fsd") + b"/\xe9"))
    assert cache_command(flags) == 2
    assert "that is not UTF-8" in capsys.readouterr().err
    assert not Path("cache").exists()


@pytest.mark.parametrize("where", ["cache_faults.txt", "cache.json"])
def test_a_scene_named_like_a_file_of_ours_gets_one_line(
    tmp_path: Path, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_fsd_sample(tmp_path / "fsd", where, "0", 48, 64, seed=0)
    flags = ["--dataset-root", "fsd", "--cache-root", "cache", "--height", "48", "--width", "64"]
    statuses = [cache_command(flags) for _ in range(2)]
    assert 2 in statuses
    assert "Traceback" not in capsys.readouterr().err
    assert len(list(Path("cache").rglob("*.npz"))) == (where != "cache.json")

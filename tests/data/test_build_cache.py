import errno
import io
import logging
import os
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import write_fsd_sample

from foundation_stereo_depth.cli import cache_command
from foundation_stereo_depth.data import build_cache as module
from foundation_stereo_depth.data.build_cache import build_cache
from foundation_stereo_depth.data.cache import SampleCache, open_cache
from foundation_stereo_depth.data.synthetic import dataset as synthetic
from foundation_stereo_depth.data.synthetic.torch_scenes import SCENES_STAMP, scene_names
from foundation_stereo_depth.errors import DataError, UserError
from foundation_stereo_depth.files import TEMPORARY_PREFIX
from foundation_stereo_depth.options.training import CacheBuildOptions

ENTRY_BYTES = 8 * 48 * 64


def options_for(fsd_tree: Path, **changes) -> CacheBuildOptions:
    return CacheBuildOptions(
        **{"dataset_root": fsd_tree, "cache_root": Path("cache"), "height": 48, "width": 64} | changes
    )


def flags_for(fsd_tree: Path, *more: str) -> list[str]:
    return ["--dataset-root", str(fsd_tree), "--cache-root", "cache", "--height", "48", "--width", "64", *more]


def contents(root: Path = Path("cache")) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.npz")}


def counts(report: module.CacheReport) -> tuple[int, int, int, int, int]:
    kinds = report.counts
    return tuple(kinds[kind] for kind in ("found", "missing", "damaged", "changed", "bad"))


def test_report_counts_what_was_done(fsd_tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = build_cache(options_for(fsd_tree))
    assert counts(report) == (0, 6, 0, 0, 0)
    assert 6 * ENTRY_BYTES < report.size < 6 * (ENTRY_BYTES + module._HEADERS_BYTES)
    assert report.size == sum(map(len, contents().values()))
    out = capsys.readouterr().out
    assert re.search(r"; \d+ entries/s with \d+ threads? in 00:0\d\n", out)
    assert not Path("cache/cache_faults.txt").exists()

    bits = bytearray(Path("cache/scene_0/0000.npz").read_bytes())
    bits[len(bits) // 2] ^= 4
    Path("cache/scene_0/0000.npz").write_bytes(bits)
    Path("cache/scene_0/0001.npz").unlink()
    write_fsd_sample(fsd_tree, "scene_1", "0001", 48, 64, seed=99)
    (fsd_tree / "scene_2/dataset/data/left/rgb/0001.png").write_bytes(b"?")
    report = build_cache(options_for(fsd_tree, skip_bad=True))
    assert counts(report) == (2, 1, 1, 1, 1)
    out = capsys.readouterr().out
    assert "cache: 3 entries written (76.9kB; 1 of them in place of damaged ones, 1 in place of ones whose" in out
    assert "2 found, 1 samples bad" in out
    assert "cache/cache_faults.txt lists the damaged, changed and bad ones" in out
    named = sorted(Path("cache/cache_faults.txt").read_text().splitlines())
    assert [line.split(":")[0] for line in named] == ["bad", "changed, rebuilt", "damaged, rebuilt"]
    for line, name in zip(
        named, ("left/rgb/0001.png", "cache/scene_1/0001.npz", "cache/scene_0/0000.npz"), strict=True
    ):
        assert name in line

    (fsd_tree / "scene_2/dataset/data/left/rgb/0001.png").unlink()
    assert counts(build_cache(options_for(fsd_tree))) == (5, 0, 0, 0, 0)
    assert not Path("cache/cache_faults.txt").exists(), "it is of the last build alone"


@pytest.mark.parametrize("part", ["left/rgb", "right/rgb", "left/disparity"])
@pytest.mark.parametrize("what", ["size", "time"])
def test_files_that_changed_after_caching_are_detected(
    fsd_tree: Path, part: str, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    build_cache(options_for(fsd_tree))
    before = contents()
    path = fsd_tree / f"scene_1/dataset/data/{part}/0001.png"
    facts = path.stat()
    if what == "size":
        path.write_bytes(path.read_bytes() + b"\0")  # behind a picture's end, which decoders do not mind
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    else:
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns - 1))
    assert cache_command([*flags_for(fsd_tree), "--verify"]) == 1
    assert "changed: cache/scene_1/0001.npz: its files have changed since it was made" in capsys.readouterr().out
    assert contents() == before
    assert counts(build_cache(options_for(fsd_tree))) == (5, 0, 0, 1, 0)
    assert counts(build_cache(options_for(fsd_tree))) == (6, 0, 0, 0, 0)
    assert cache_command([*flags_for(fsd_tree), "--verify"]) == 0


def test_changed_image_reaches_the_cache(fsd_tree: Path) -> None:
    build_cache(options_for(fsd_tree))
    write_fsd_sample(fsd_tree, "scene_1", "0000", 48, 64, seed=77)
    build_cache(options_for(fsd_tree))
    fresh = options_for(fsd_tree, cache_root=Path("fresh"))
    build_cache(fresh)
    assert contents() == contents(Path("fresh"))


def test_overwrite_rebuilds_every_entry(fsd_tree: Path) -> None:
    build_cache(options_for(fsd_tree))
    entry = Path("cache/scene_0/0000.npz")
    with np.load(entry) as whole:
        arrays = dict(whole)
    np.savez(entry, **arrays | {"left": arrays["right"]})  # whole, but not what the files say
    assert counts(build_cache(options_for(fsd_tree))) == (6, 0, 0, 0, 0)
    assert counts(build_cache(options_for(fsd_tree, overwrite=True))) == (0, 6, 0, 0, 0)
    with np.load(entry) as again:
        np.testing.assert_array_equal(again["left"], arrays["left"])


def test_verify_lists_damaged_entries_and_writes_nothing(fsd_tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_cache(options_for(fsd_tree))
    flags = ["--verify", "--cache-root", "cache", "--height", "48", "--width", "64"]
    assert cache_command(flags) == 0
    assert (
        "cache: 6 of 6 entries are valid, 0 damaged, 0 made of files that have changed; 154kB read"
        in capsys.readouterr().out
    )
    Path("cache/scene_0/0000.npz").write_bytes(b"")
    bits = bytearray(Path("cache/scene_2/0001.npz").read_bytes())
    bits[1000] ^= 128
    Path("cache/scene_2/0001.npz").write_bytes(bits)
    before = contents()
    assert cache_command(flags) == 1
    out = capsys.readouterr().out
    assert "damaged: cache/scene_0/0000.npz: " in out
    assert "damaged: cache/scene_2/0001.npz: " in out
    assert "cache: 4 of 6 entries are valid, 2 damaged" in out
    assert contents() == before
    assert sorted(path.name for path in Path("cache").iterdir()) == ["cache.json", "scene_0", "scene_1", "scene_2"]


def test_verification_against_a_data_set(
    fsd_tree: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    build_cache(options_for(fsd_tree))
    flags = ["--verify", "--cache-root", "cache", "--height", "48", "--width", "64"]
    shutil.rmtree(fsd_tree / "scene_0")
    Path("cache/scene_1/0000.npz").unlink()
    Path("cache/scene_2/0000.npz").write_bytes(b"")
    next(fsd_tree.glob("scene_2/dataset/data/left/rgb/0001.*")).write_bytes(b"changed")
    monkeypatch.setenv("FOUNDATION_STEREO_ROOT", str(fsd_tree))
    capsys.readouterr()
    assert cache_command(flags) == 1
    out = capsys.readouterr().out
    assert "cache: 3 of 5 entries are valid, 1 damaged, 1 made of files that have changed" in out
    assert f"{fsd_tree}: 1 of 4 samples have no entry; 2 entries have no sample" in out


def test_verification_reads_a_cache_of_another_program(fsd_tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("cache/s").mkdir(parents=True)
    pictures, disparity_px = np.zeros((2, 48, 64, 3), np.uint8), np.zeros((48, 64), np.float16)
    for frame in range(2):
        np.savez(f"cache/s/{frame}.npz", left=pictures[0], right=pictures[1], disparity=disparity_px)
    flags = ["--verify", "--cache-root", "cache", "--height", "48", "--width", "64"]
    assert cache_command(flags) == 0
    assert "cache: 2 of 2 entries are valid" in capsys.readouterr().out
    assert not Path("cache/cache.json").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--verify"], "--verify: needs --cache-root"),
        (["--verify", "--cache-root", "nowhere"], "nowhere: no such folder"),
        (["--verify", "--overwrite"], "give one of them"),
        (["--shard", "0/4"], "--shard 0/4: has to be I/N with I from 1 to N"),
        (["--shard", "5/4"], "has to be I/N"),
        (["--shard", "1"], "has to be I/N"),
        (["--shard", "1/4/2"], "has to be I/N"),
        (["--shard=-1/4"], "has to be I/N"),
        (["--shard", "a/b"], "has to be I/N"),
    ],
)
def test_mistakes_get_one_line(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cache_command(flags) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("nowhere").exists()


def test_a_shard_of_very_many_is_found_at_once(fsd_tree: Path) -> None:
    assert build_cache(options_for(fsd_tree, shard="1/100000000")).written == 1
    assert build_cache(options_for(fsd_tree, shard="7/100000000")).written == 0


def test_a_complete_build_removes_fault_lists_of_earlier_shards(fsd_tree: Path) -> None:
    build_cache(options_for(fsd_tree))
    for name in ("cache_faults.txt", "cache_faults_1_of_2.txt", "cache_faults_2_of_2.txt"):
        Path("cache", name).write_text("old")
    build_cache(options_for(fsd_tree, shard="1/2"))
    assert sorted(path.name for path in Path("cache").glob("*.txt")) == ["cache_faults.txt", "cache_faults_2_of_2.txt"]
    build_cache(options_for(fsd_tree))
    assert not list(Path("cache").glob("*.txt"))


def test_damaged_entries_are_listed_where_the_build_stops(fsd_tree: Path) -> None:
    build_cache(options_for(fsd_tree))
    for entry in list(Path("cache").glob("scene_*/*.npz"))[:5]:
        entry.write_bytes(b"")
    for picture in fsd_tree.glob("scene_2/dataset/data/left/rgb/0001.*"):
        picture.write_bytes(b"?")
    with pytest.raises(DataError):
        build_cache(options_for(fsd_tree, overwrite=False, workers=4))
    report = Path("cache/cache_faults.txt").read_text()
    assert (
        report.count("damaged, rebuilt") == sum(entry.stat().st_size > 0 for entry in Path("cache").glob("*/*.npz")) - 1
    )


@pytest.mark.parametrize("parts", [1, 2, 4, 7])
def test_shards_divide_the_samples_without_meeting(fsd_tree: Path, parts: int) -> None:
    written = [build_cache(options_for(fsd_tree, shard=f"{part}/{parts}")).written for part in range(1, parts + 1)]
    assert sum(written) == 6
    assert max(written) - min(written) <= 1
    assert len(contents()) == 6


def test_torchrun_divides_the_samples(fsd_tree: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    (fsd_tree / "scene_0/dataset/data/left/rgb/0000.png").write_bytes(b"?")
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        assert build_cache(options_for(fsd_tree, skip_bad=True)).counts.total() == 3
    assert len(contents()) == 5
    out = capsys.readouterr().out
    assert "part 1/2: cache: 2 entries written" in out
    assert "part 2/2: cache: 3 entries written" in out
    assert Path("cache/cache_faults_1_of_2.txt").read_text().startswith("bad: ")
    with pytest.raises(UserError, match="--shard 1/2: torchrun divides the samples already"):
        build_cache(options_for(fsd_tree, shard="1/2"))


def test_max_samples_selects_those_of_training(fsd_tree: Path) -> None:
    from foundation_stereo_depth.data.loader import open_files
    from foundation_stereo_depth.options.training import DataOptions

    build_cache(options_for(fsd_tree, max_samples=3))
    data = DataOptions(cache_root=Path("cache"), height=48, width=64, max_samples=3, val_fraction=0.0)
    source = open_files(data, fsd_tree, pin_memory=False).train
    assert {f"{source.name(i)}.npz" for i in range(3)} == set(contents())


def test_interrupt_reports_and_leaves_no_partial_files(
    fsd_tree: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write, done = SampleCache.write, []

    def interrupted(*arguments, **named):
        if len(done) == 3:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)  # this is a worker; the main thread has to hear of it before the rest is written
        done.append(arguments)
        return write(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(SampleCache, "write", interrupted)
        assert cache_command(flags_for(fsd_tree, "--workers", "1")) == 130
    captured = capsys.readouterr()
    assert re.search(r"cache: [3-5] entries written", captured.out)
    assert captured.err.endswith("foundation-stereo-cache: interrupted\n")
    assert not list(Path("cache").rglob(f"{TEMPORARY_PREFIX}*"))
    assert cache_command(flags_for(fsd_tree, "--verify")) == 0
    assert build_cache(options_for(fsd_tree)).counts["found"] == len(done)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_stops_the_build_with_one_line(
    fsd_tree: Path, number: int, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save, saved = np.savez, []

    def full(file, **arrays):
        if isinstance(file, io.BytesIO):  # the reader's layout, in memory
            return save(file, **arrays)
        saved.append(file)
        if len(saved) > 2:
            file.write(b"half")
            raise OSError(number, os.strerror(number))
        return save(file, **arrays)

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        assert cache_command(flags_for(fsd_tree, "--workers", "1")) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "cache: the disk is full (" in error
    assert re.search(r"up to 4 entries are still to be written and need 104kB, but [\d.]+\wB are free", error)
    assert len(contents()) == 2
    assert not list(Path("cache").rglob(f"{TEMPORARY_PREFIX}*"))
    assert counts(build_cache(options_for(fsd_tree))) == (2, 4, 0, 0, 0)


def test_what_a_killed_writer_left_is_removed_and_logged(fsd_tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    from foundation_stereo_depth.files import _machine

    build_cache(options_for(fsd_tree))
    left = Path(f"cache/scene_1/{TEMPORARY_PREFIX}{_machine()}-0123456789ab")
    left.write_bytes(b"half")
    caplog.set_level(logging.INFO)
    build_cache(options_for(fsd_tree))
    assert not left.exists()
    assert "cache: removed 1 temporary files of processes that have ended" in caplog.messages


def test_a_second_builder_may_list_faults_in_the_same_file(fsd_tree: Path, monkeypatch) -> None:
    build_cache(options_for(fsd_tree))
    Path("cache/scene_0/0000.npz").write_bytes(b"")
    write = SampleCache.write

    def beside_another(*arguments, **named):
        Path("cache/cache_faults.txt").write_text("bad: somebody else's\n")
        return write(*arguments, **named)

    monkeypatch.setattr(SampleCache, "write", beside_another)
    assert counts(build_cache(options_for(fsd_tree))) == (5, 0, 1, 0, 0)
    assert [line.split(":")[0] for line in Path("cache/cache_faults.txt").read_text().splitlines()] == [
        "bad",
        "damaged, rebuilt",
    ]


def test_another_format_version_is_refused_with_the_way_out(fsd_tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_cache(options_for(fsd_tree))
    manifest = Path("cache/cache.json")
    manifest.write_text(manifest.read_text().replace('"format_version": 1', '"format_version": 2'))
    assert cache_command(flags_for(fsd_tree)) == 2
    error = capsys.readouterr().err
    assert "was made at 64x48, format 2, but 64x48, format 1 is asked for; name another --cache-root" in error


def test_two_builders_of_different_sizes_do_not_mix(fsd_tree: Path) -> None:
    slow = open_cache(Path("cache"), 48, 80)  # looked while there was nothing
    build_cache(options_for(fsd_tree))
    Path("cache/scene_0/0000.npz").unlink()
    Path("cache/scene_0/0001.npz").unlink()
    Path("cache/scene_0").rmdir()
    sample = open_cache(Path("cache"), 48, 64).read("scene_1", "0000")
    assert sample is not None
    with pytest.raises(UserError, match="was made at 64x48"):
        slow.write("scene_0", "0000", sample)


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_renderer")
def test_pool_of_synthetic_scenes_is_reproducible(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--height", "48", "--width", "64", "--cache-root"]
    assert cache_command(["--procedural-samples", "1", *flags, str(tmp_path / "first")]) == 0
    assert cache_command(["--procedural-samples", "2", *flags, str(tmp_path / "second")]) == 0
    assert "2 entries written" in capsys.readouterr().out
    entries = [tmp_path / pool / "made-up-00000" / "00.npz" for pool in ("first", "second")]
    assert entries[0].read_bytes() == entries[1].read_bytes()
    assert cache_command(["--procedural-samples", "2", *flags, str(tmp_path / "first")]) == 0
    assert "1 entries written" in capsys.readouterr().out
    both = ["--procedural-samples", "5", "--dataset-root", "x", *flags, "y"]
    assert cache_command(both) == 2
    assert "both name what to cache" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_renderer")
def test_scenes_of_another_version_are_rebuilt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--procedural-samples", "2", "--height", "48", "--width", "64", "--cache-root", "pool"]
    with monkeypatch.context() as earlier:
        earlier.setattr(synthetic, "SCENES_STAMP", SCENES_STAMP + 1)
        assert cache_command(flags) == 0
    before = contents(Path("pool"))
    assert cache_command(flags) == 0
    assert "2 entries written" in (out := capsys.readouterr().out)
    assert "2 in place of ones whose files have changed" in out
    assert contents(Path("pool")) != before
    assert cache_command(flags) == 0
    assert "2 found" in capsys.readouterr().out


def test_names_of_a_pool_stay_when_it_grows() -> None:
    few, many = scene_names(150), scene_names(1000)
    assert [few.name(i) for i in range(150)] == [many.name(i) for i in range(150)]
    assert many.name(999) == "made-up-00009/99"

import json
import os
from pathlib import Path

import numpy as np
import pytest

from foundation_stereo_depth.data import cache as cache_module
from foundation_stereo_depth.data.cache import DamagedEntryError, open_cache
from foundation_stereo_depth.data.sample import StereoSample
from foundation_stereo_depth.errors import DataError


def sample_of(height: int = 48, width: int = 64, seed: int = 0) -> StereoSample:
    random = np.random.default_rng(seed)
    left, right = random.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    disparity_px = random.uniform(0.1, 60, (height, width)).astype(np.float32)
    disparity_px[:, :5] = np.nan
    return StereoSample(left=left, right=right, disparity_px=disparity_px)


def test_an_entry_is_what_was_written_with_disparity_in_float16(tmp_path: Path) -> None:
    cache = open_cache(tmp_path / "cache", 48, 64)
    assert cache.read("s", "0") is None
    written, sample = cache.write("s", "0", sample_of()), sample_of()
    read = cache.read("s", "0")
    assert read is not None
    for part in ("left", "right", "disparity_px"):
        np.testing.assert_array_equal(getattr(read, part), getattr(written, part))
        np.testing.assert_allclose(getattr(read, part), getattr(sample, part), rtol=5e-4)
    assert read.disparity_px.dtype == np.float16


def test_the_layout_is_the_documented_one(tmp_path: Path) -> None:
    open_cache(tmp_path, 48, 64).write("a scene", "0001", sample_of())
    with np.load(tmp_path / "a scene/0001.npz") as entry:
        assert {key: (entry[key].dtype.name, entry[key].shape) for key in entry} == {
            "left": ("uint8", (48, 64, 3)),
            "right": ("uint8", (48, 64, 3)),
            "disparity": ("float16", (48, 64)),
        }
    manifest = json.loads((tmp_path / "cache.json").read_text())
    assert (manifest["format_version"], manifest["height"], manifest["width"]) == (1, 48, 64)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["0001.npz", "a scene", "cache.json"]


def test_another_size_is_refused(tmp_path: Path) -> None:
    open_cache(tmp_path, 48, 64).write("s", "0", sample_of())
    open_cache(tmp_path, 48, 64)
    with pytest.raises(DataError, match="was made at 64x48, format 1, but 80x48, format 1 is asked for"):
        open_cache(tmp_path, 48, 80)


@pytest.mark.parametrize("text", ["", "[]", '{"height": 48}', "not json", "[" * 90_000])
def test_a_foreign_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "cache.json").write_text(text)
    with pytest.raises(DataError, match="is not a manifest of this program"):
        open_cache(tmp_path, 48, 64)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such pipes")
def test_a_manifest_that_is_a_pipe_or_without_end_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "cache.json")
    with pytest.raises(DataError, match="is not a regular file"):
        open_cache(tmp_path, 48, 64)
    (tmp_path / "cache.json").unlink()
    with (tmp_path / "cache.json").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(DataError, match="has more than 100,000 bytes"):
        open_cache(tmp_path, 48, 64)


def test_a_cache_of_another_program_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    sample = sample_of()
    disparity = np.nan_to_num(sample.disparity_px).astype(np.float16)
    np.savez_compressed(tmp_path / "s/0.npz", left=sample.left, right=sample.right, disparity=disparity)
    cache = open_cache(tmp_path, 48, 64)
    read = cache.read("s", "0")
    assert read is not None
    np.testing.assert_array_equal(read.disparity_px, disparity)
    assert not (tmp_path / "cache.json").exists()
    assert list(cache.names()) == ["s/0"]


def test_damage_is_noticed_and_named(tmp_path: Path) -> None:
    cache = open_cache(tmp_path, 48, 64)
    cache.write("s", "0", sample_of())
    path, whole = cache.path("s", "0"), cache.path("s", "0").read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (b"", whole[:100], whole[: len(whole) // 2], whole[:-1], bytes(flipped), b"PK" + bytes(500)):
        path.write_bytes(damaged)
        with pytest.raises(DamagedEntryError, match=r"0\.npz"):
            cache.read("s", "0")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"disparity": None}, "lacks disparity"),
        ({"disparity": np.zeros((48, 64), np.float32)}, r"holds disparity <f4 \(48, 64\), not <f2 \(48, 64\)"),
        ({"left": np.zeros((48, 60, 3), np.uint8)}, r"holds left \|u1 \(48, 60, 3\), not \|u1 \(48, 64, 3\)"),
        ({"right": np.array([{"code": "to run"}], dtype=object)}, r"holds right \|O \(1,\), not \|u1"),
    ],
)
def test_entries_of_another_kind_are_refused(tmp_path: Path, change: dict, said: str) -> None:
    cache = open_cache(tmp_path, 48, 64)
    sample = cache.write("s", "0", sample_of())
    arrays = {"left": sample.left, "right": sample.right, "disparity": sample.disparity_px} | change
    np.savez(cache.path("s", "0"), **{key: array for key, array in arrays.items() if array is not None})
    with pytest.raises(DamagedEntryError, match=said):
        cache.read("s", "0")


def test_a_damaged_deflated_entry_of_another_program_is_not_reported_as_a_size(tmp_path: Path) -> None:
    (tmp_path / "scene").mkdir()
    sample = sample_of()
    for name in ("a", "b"):
        np.savez_compressed(
            tmp_path / f"scene/{name}.npz", left=sample.left, right=sample.right, disparity=sample.disparity_px
        )
        content = bytearray((tmp_path / f"scene/{name}.npz").read_bytes())
        content[40:380] = bytes(range(1, 171)) * 2
        (tmp_path / f"scene/{name}.npz").write_bytes(content)
    with pytest.raises(DataError, match="delete it"):
        open_cache(tmp_path, 48, 64).read("scene", "a")


def test_of_two_programs_that_create_a_cache_the_first_one_sets_its_size(tmp_path: Path, monkeypatch) -> None:
    first, second = open_cache(tmp_path, 48, 64), open_cache(tmp_path, 24, 32)
    begin = cache_module._first_entries

    def while_the_other_begins(root: Path, at_most: int) -> list[str]:
        monkeypatch.setattr(cache_module, "_first_entries", begin)
        first.make_root()
        return begin(root, at_most)

    monkeypatch.setattr(cache_module, "_first_entries", while_the_other_begins)
    with pytest.raises(DataError, match="was made at 64x48"):
        second.make_root()
    first.make_root()


def test_an_empty_cache_has_no_names(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="fill it with foundation-stereo-cache"):
        open_cache(tmp_path, 48, 64).names()


def test_a_pipe_among_the_entries_of_another_program_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "c/scene").mkdir(parents=True)
    os.mkfifo(tmp_path / "c/scene/0.npz")
    cache = cache_module.SampleCache(root=tmp_path / "c", height=32, width=48)
    cache_module._check_foreign_size(cache)
    with pytest.raises(DamagedEntryError, match="is not a regular file; delete it"):
        cache.source("scene", "0")

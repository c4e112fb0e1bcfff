"""The NPZ cache: samples at the network's size on a fast disk, written once and read in every later epoch.

    <cache_root>/cache.json                  format version, height, width, resampling
    <cache_root>/<scene>/<stem>.npz          stored, not deflated: left, right uint8 [H,W,3]; disparity float16 [H,W];
                                             source int64 [3,2]: sizes and times of the files that it was made of

A folder of such entries without `cache.json`, made by another program, is read as it is.
"""

import contextlib
import errno
import functools
import io
import json
import os
import shutil
import tokenize
import unicodedata
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Int64

from foundation_stereo_depth.data.image_size import LARGEST_FILE_BYTES
from foundation_stereo_depth.data.npz import Kind, NpzError, NpzReader
from foundation_stereo_depth.data.sample import SampleNames, SourceStamp, StereoSample
from foundation_stereo_depth.errors import DataError
from foundation_stereo_depth.files import open_regular_file, read_regular_file, remove_abandoned, write_atomically

CACHE_FORMAT = 1
MANIFEST = "cache.json"
ENTRY_SUFFIX = ".npz"

_LARGEST_MANIFEST_BYTES = 100_000
_SOURCE_KEY = "source"
_SOURCE_BYTES = 3 * 2 * 8
_PROBED_ENTRIES = 16
"""Entries of another program that are opened until one of them gives its size."""
_RESAMPLING = "images by area average, disparity by nearest sample at the pixel centre"


def _stamp_header() -> bytes:
    """Return what NumPy writes before the six numbers of a SourceStamp."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<i8", "fortran_order": False, "shape": (3, 2)})
    return file.getvalue()


_SOURCE_HEADER = _stamp_header()


class DamagedEntryError(DataError):
    """An entry is there but cannot be used; where its source is at hand it can be rebuilt."""


class MissingEntryError(DataError):
    """There is no entry, and samples are read from entries only."""


class RefusedEntryError(DataError):
    """An entry would have to be written outside the cache's own folder."""


@dataclass(frozen=True, kw_only=True)
class SampleCache:
    """The entries below one root, all of one size. Made by `open_cache`."""

    root: Path
    height: int
    width: int

    def path(self, scene: str, stem: str) -> Path:
        """Return the file of a sample's entry."""
        return self.root / scene / (stem + ENTRY_SUFFIX)

    @functools.cached_property
    def reader(self) -> NpzReader:
        """Return what reads entries of this size."""
        image = Kind(dtype=np.dtype(np.uint8), shape=(self.height, self.width, 3))
        disparity = Kind(dtype=np.dtype(np.float16), shape=(self.height, self.width))
        stamp = Kind(dtype=np.dtype("<i8"), shape=(3, 2))
        return NpzReader({"left": image, "right": image, "disparity": disparity}, {_SOURCE_KEY: stamp})

    @functools.cached_property
    def _cleaned_folders(self) -> set[Path]:
        """Return the folders from which this process has removed what killed writers left."""
        return set()

    def empty_sample(self) -> StereoSample:
        """Return arrays for one entry, uninitialised."""
        size = (self.height, self.width)
        return StereoSample(
            left=np.empty((*size, 3), np.uint8),
            right=np.empty((*size, 3), np.uint8),
            disparity_px=np.empty(size, np.float16),
        )

    def read(self, scene: str, stem: str, into: StereoSample | None = None) -> StereoSample | None:
        """Return the cached sample, its checksums verified; None where there is no entry.

        Args:
            scene: the sample's scene.
            stem: its frame.
            into: arrays of the entries' size and types to read into and return, in place of new ones.

        Raises:
            DamagedEntryError: the entry is not a complete NPZ of the expected keys, types and size.
        """
        sample = self.empty_sample() if into is None else into
        # A path as text: making a pathlib.Path takes longer than the checksums.
        path = f"{self.root}/{scene}/{stem}{ENTRY_SUFFIX}"
        try:
            self.reader.read(path, {"left": sample.left, "right": sample.right, "disparity": sample.disparity_px})
        except FileNotFoundError:
            return None
        except NpzError as error:
            raise DamagedEntryError(f"{path}: {error}; delete it to have it rebuilt") from error
        return sample

    def source(self, scene: str, stem: str) -> SourceStamp | None:
        """Return the stamp of the files that the entry was made of; None without an entry, or without a stamp in it.

        Raises:
            DamagedEntryError: the entry is not a complete NPZ.
        """
        path = self.path(scene, stem)
        try:
            with (
                open_regular_file(path, at_most_bytes=LARGEST_FILE_BYTES, error_type=DamagedEntryError) as opened,
                zipfile.ZipFile(opened) as entry,
            ):
                members = {member.filename: member for member in entry.infolist()}
                member = members.get(f"{_SOURCE_KEY}.npy")
                # Whatever else another program keeps under this key is not read, however large its header says it is.
                if member is None or member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
                    return None
                with entry.open(member) as file:
                    array = file.read(len(_SOURCE_HEADER) + _SOURCE_BYTES + 1)
        except DamagedEntryError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise DamagedEntryError(f"{error}; delete it to have it rebuilt") from error
        except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError) as error:
            raise DamagedEntryError(f"{path}: is damaged ({error}); delete it to have it rebuilt") from error
        if not array.startswith(_SOURCE_HEADER) or len(array) != len(_SOURCE_HEADER) + _SOURCE_BYTES:
            return None
        return np.frombuffer(array, "<i8", offset=len(_SOURCE_HEADER)).reshape(3, 2).astype(np.int64)

    def write(
        self,
        scene: str,
        stem: str,
        sample: StereoSample,
        source: SourceStamp | None = None,
        *,
        leave_free: float = 0.0,
        compress: bool = False,
    ) -> StereoSample:
        """Create or replace an entry; return the sample as a later `read` will.

        Disparity is rounded to float16, a relative error of at most 0.05 %.

        Args:
            scene: the sample's scene.
            stem: its frame.
            sample: at the cache's size.
            source: stamp of its files, kept with it, so that `foundation-stereo-cache` notices when they change.
            leave_free: the disk counts as full when no more than this fraction of it is free.
            compress: deflate it: smaller, and slower to read.

        Raises:
            RefusedEntryError: it would have to be written outside the cache.
            OSError: the disk is full, read-only, forbidden; `filename` names the entry.
        """
        path = self.path(scene, stem)
        for part in (scene, stem + ENTRY_SUFFIX):
            if Path(part).name != part or part in ("", os.curdir, os.pardir, MANIFEST):
                raise RefusedEntryError(f"{self.root}: no entry can be written for {scene}/{stem}; rename its folder")
        self._make_folder(path.parent)
        disk = shutil.disk_usage(path.parent)
        if disk.free < leave_free * disk.total:
            raise OSError(errno.ENOSPC, f"less than {leave_free:.0%} of the disk is free", str(path))
        rounded = as_cached(sample)
        arrays = {"left": rounded.left, "right": rounded.right, "disparity": rounded.disparity_px}
        if source is not None:
            arrays[_SOURCE_KEY] = source.astype("<i8")
        # Not forced to the disk: an entry truncated by a power cut fails its checksum and is rebuilt.
        write_atomically(path, lambda file: _write_npz(file, arrays, compress=compress), durable=False)
        return rounded

    def remove_abandoned(self) -> int:
        """Remove what killed writers left, and return how many files."""
        if not self.root.exists():
            return 0
        inside = (entry.path for entry in _folders(self.root) if not entry.is_symlink())
        return sum(remove_abandoned(Path(folder)) for folder in (self.root, *inside))

    def names(self) -> SampleNames:
        """Return every sample that has an entry.

        Raises:
            DataError: there is none.
        """
        if not self.root.is_dir():
            raise DataError(f"{self.root}: no such folder; --cache-root names the folder of the entries")
        scenes = tuple(sorted(entry.name for entry in _folders(self.root)))
        frames = [
            (position, stem)
            for position, scene in enumerate(scenes)
            for stem in sorted(
                entry.name.removesuffix(ENTRY_SUFFIX)
                for entry in os.scandir(self.root / scene)
                if entry.name.endswith(ENTRY_SUFFIX)
            )
        ]
        if not frames:
            raise DataError(f"{self.root}: holds no <scene>/<stem>{ENTRY_SUFFIX}; fill it with foundation-stereo-cache")
        return SampleNames.from_pairs(scenes, frames)

    def find_missing(self, names: SampleNames, positions: Int64[np.ndarray, " n"]) -> list[int]:
        """Return those of the positions whose sample has no entry; one look at each scene's folder."""
        entries: dict[str, set[str]] = {}
        missing: list[int] = []
        for i in positions.tolist():
            scene = names.scene(i)
            if scene not in entries:
                entries[scene] = self._entries_of(scene)
            if names.stem(i) + ENTRY_SUFFIX not in entries[scene]:
                missing.append(i)
        return missing

    def _entries_of(self, scene: str) -> set[str]:
        try:
            with os.scandir(self.root / scene) as inside:
                return {entry.name for entry in inside}
        except FileNotFoundError:
            return set()

    def check_case_collisions(self, names: SampleNames) -> None:
        """Check that no two samples share an entry, as `Room` and `room` do on a disk that ignores case.

        Raises:
            DataError: two do.
        """
        manifest = self.root / MANIFEST
        if not manifest.exists() or not manifest.with_name(MANIFEST.upper()).exists():
            return  # this disk is case-sensitive
        seen: dict[str, str] = {}
        for name in names:
            folded = unicodedata.normalize("NFC", name).casefold()
            if folded in seen:
                raise DataError(
                    f"{self.root}: this disk ignores case, so {seen[folded]} and {name} would be one entry; rename one "
                    "of them, or choose a --cache-root on a case-sensitive disk"
                )
            seen[folded] = name

    def make_root(self) -> None:
        """Create the cache's folder and its manifest, where there is nothing yet.

        Raises:
            DataError: another program did so first, with another size.
            OSError: the disk is full, read-only, forbidden.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        manifest = self.root / MANIFEST
        if not manifest.exists() and not _first_entries(self.root, 1):
            remove_abandoned(self.root)
            text = json.dumps(_manifest_of(self), indent=2) + "\n"
            with contextlib.suppress(FileExistsError):  # another program was first
                write_atomically(manifest, lambda file: file.write(text.encode()), durable=True, replace=False)
        _check_manifest(self)

    def _make_folder(self, folder: Path) -> None:
        if folder.is_symlink():
            raise RefusedEntryError(f"{folder}: is a link that may lead out of the cache; replace it by a folder")
        if not folder.is_dir():
            self.make_root()
            folder.mkdir(exist_ok=True)
        if folder not in self._cleaned_folders:
            # Where a writer was killed an entry is missing, so its next writer comes here: training too.
            self._cleaned_folders.add(folder)
            remove_abandoned(folder)


def _write_npz(file: BinaryIO, arrays: Mapping[str, np.ndarray], *, compress: bool) -> None:
    """Write arrays as np.savez does; deflated, except the stamp, which `SampleCache.source` reads by itself."""
    if not compress:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
        return
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            encoded = io.BytesIO()
            np.lib.format.write_array(encoded, array, allow_pickle=False)
            how = zipfile.ZIP_STORED if name == _SOURCE_KEY else zipfile.ZIP_DEFLATED
            archive.writestr(f"{name}.npy", encoded.getvalue(), compress_type=how)


def as_cached(sample: StereoSample) -> StereoSample:
    """Return the sample as a cache returns it: hits and misses must give the same losses."""
    return StereoSample(left=sample.left, right=sample.right, disparity_px=sample.disparity_px.astype(np.float16))


def open_cache(root: Path, height: int, width: int) -> SampleCache:
    """Return the cache at `root`, where there may be nothing yet: its first entry creates the folder and manifest.

    Raises:
        DataError: the cache was made with another size or format version, or a file is where its folder should be.
    """
    existing = next(path for path in (root.absolute(), *root.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise DataError(f"--cache-root {root}: {existing} is a file, not a folder; name the folder of the entries")
    cache = SampleCache(root=root, height=height, width=width)
    _check_manifest(cache)
    return cache


def _manifest_of(cache: SampleCache) -> dict[str, str | int]:
    return {
        "format_version": CACHE_FORMAT,
        "height": cache.height,
        "width": cache.width,
        "resampling": _RESAMPLING,
    }


def _folders(root: Path) -> list[os.DirEntry[str]]:
    """Return the folders that may hold entries: all but `lost+found`, which only the system may enter."""
    with os.scandir(root) as inside:
        return [entry for entry in inside if entry.is_dir() and entry.name != "lost+found"]


def _first_entries(root: Path, at_most: int) -> list[str]:
    """Return the paths of any `at_most` entries."""
    found: list[str] = []
    for folder in _folders(root):
        with os.scandir(folder.path) as inside:
            for entry in inside:
                if entry.name.endswith(ENTRY_SUFFIX):
                    found.append(entry.path)
                if len(found) == at_most:
                    return found
    return found


def _check_foreign_size(cache: SampleCache) -> None:
    """Refuse entries of another program that have another size; damaged ones are skipped."""
    for path in _first_entries(cache.root, _PROBED_ENTRIES) if cache.root.is_dir() else ():
        try:
            with (
                open_regular_file(Path(path), at_most_bytes=LARGEST_FILE_BYTES, error_type=DataError) as opened,
                zipfile.ZipFile(opened) as entry,
                entry.open("left.npy") as file,
            ):
                np.lib.format.read_magic(file)
                height, width, _ = np.lib.format.read_array_header_1_0(file)[0]
        except (
            zipfile.BadZipFile, zlib.error, tokenize.TokenError, SyntaxError, KeyError, ValueError, EOFError, OSError,
            NotImplementedError, RuntimeError,
        ):  # fmt: skip
            continue
        if (height, width) != (cache.height, cache.width):
            raise DataError(
                f"{path}: is of {width}x{height}, but {cache.width}x{cache.height} is asked for; name another "
                "--cache-root, or use its --height and --width"
            )
        return


def _check_manifest(cache: SampleCache) -> None:
    manifest = cache.root / MANIFEST
    if not manifest.exists():
        _check_foreign_size(cache)
        return
    try:
        found = json.loads(read_regular_file(manifest, at_most_bytes=_LARGEST_MANIFEST_BYTES, error_type=DataError))
        made = {key: found[key] for key in ("format_version", "height", "width")}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{manifest}: is not a manifest of this program; name another --cache-root") from error
    wanted = _manifest_of(cache)
    if made != {key: wanted[key] for key in made}:
        raise DataError(
            f"{cache.root}: was made at {made['width']}x{made['height']}, format {made['format_version']}, but "
            f"{cache.width}x{cache.height}, format {CACHE_FORMAT} is asked for; name another --cache-root, or use its "
            "--height and --width"
        )

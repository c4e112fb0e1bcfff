"""The NPZ cache: samples at the network's size on a fast disk, written once and read ever after.

    <cache_root>/cache.json                  format version, height, width, resampling
    <cache_root>/<scene>/<stem>.npz          stored, not deflated: left, right uint8 [H,W,3]; disparity float16 [H,W]

A folder of such entries without `cache.json`, made by another program, is read as it is.
"""

import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foundation_stereo_depth.data.npz import Kind, NpzError, NpzReader
from foundation_stereo_depth.data.sample import SampleNames, StereoSample
from foundation_stereo_depth.errors import DataError
from foundation_stereo_depth.files import write_whole

CACHE_FORMAT = 1
MANIFEST = "cache.json"
ENTRY_SUFFIX = ".npz"

_RESAMPLING = "images by area average, disparity by nearest sample at the pixel centre"


class DamagedEntryError(DataError):
    """An entry is there but cannot be used; with its source at hand it can be made anew."""


@dataclass(frozen=True, kw_only=True)
class SampleCache:
    """The entries below one root, all of one size. Made by `open_cache`."""

    root: Path
    height: int
    width: int

    def path(self, scene: str, stem: str) -> Path:
        """Where the entry of a sample lies."""
        return self.root / scene / (stem + ENTRY_SUFFIX)

    @functools.cached_property
    def reader(self) -> NpzReader:
        """Reads entries; it learns what they have in common."""
        picture = Kind(dtype=np.dtype(np.uint8), shape=(self.height, self.width, 3))
        disparity = Kind(dtype=np.dtype(np.float16), shape=(self.height, self.width))
        return NpzReader({"left": picture, "right": picture, "disparity": disparity})

    def empty_sample(self) -> StereoSample:
        """Room for one entry."""
        size = (self.height, self.width)
        return StereoSample(
            left=np.empty((*size, 3), np.uint8),
            right=np.empty((*size, 3), np.uint8),
            disparity_px=np.empty(size, np.float16),
        )

    def read(self, scene: str, stem: str, into: StereoSample | None = None) -> StereoSample | None:
        """The cached sample, its checksums verified; None where there is no entry.

        Args:
            scene: the sample's scene.
            stem: its frame.
            into: arrays of the entries' size and types to read to, and to return, in place of new ones.

        Raises:
            DamagedEntryError: the entry is not a whole NPZ of the expected keys, types and size.
        """
        sample = self.empty_sample() if into is None else into
        # A path as text: pathlib takes longer to make one than the checksums take.
        path = f"{self.root}/{scene}/{stem}{ENTRY_SUFFIX}"
        try:
            self.reader.read(path, {"left": sample.left, "right": sample.right, "disparity": sample.disparity_px})
        except FileNotFoundError:
            return None
        except NpzError as error:
            raise DamagedEntryError(f"{path}: {error}; delete it to have it made anew") from error
        return sample

    def write(self, scene: str, stem: str, sample: StereoSample) -> StereoSample:
        """Makes or replaces an entry; returns the sample as a later `read` will.

        Disparity is rounded to float16, a relative error of at most 0.05 %.
        """
        path = self.path(scene, stem)
        path.parent.mkdir(parents=True, exist_ok=True)
        rounded = StereoSample(
            left=sample.left, right=sample.right, disparity_px=sample.disparity_px.astype(np.float16)
        )
        # Not forced to the disk: an entry torn by a power cut fails its checksum and is made anew.
        write_whole(
            path,
            lambda file: np.savez(file, left=rounded.left, right=rounded.right, disparity=rounded.disparity_px),
            durable=False,
        )
        return rounded

    def names(self) -> SampleNames:
        """Every sample that has an entry.

        Raises:
            DataError: there is none.
        """
        scenes = tuple(sorted(entry.name for entry in os.scandir(self.root) if entry.is_dir()))
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


def open_cache(root: Path, height: int, width: int) -> SampleCache:
    """The cache at `root`, made with its manifest where there is nothing yet.

    Raises:
        DataError: the cache was made with another size or format version.
    """
    wanted = {"format_version": CACHE_FORMAT, "height": height, "width": width, "resampling": _RESAMPLING}
    manifest = root / MANIFEST
    root.mkdir(parents=True, exist_ok=True)
    if manifest.exists():
        try:
            found = json.loads(manifest.read_text())
            made = {key: found[key] for key in ("format_version", "height", "width")}
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{manifest}: is not a manifest of this program; name another --cache-root") from error
        if made != {key: wanted[key] for key in made}:
            raise DataError(
                f"{root}: was made at {made['width']}x{made['height']}, format {made['format_version']}, but "
                f"{width}x{height}, format {CACHE_FORMAT} is asked for; name another --cache-root, or use its --height "
                "and --width"
            )
    elif not any(path.is_dir() for path in root.iterdir()):
        text = json.dumps(wanted, indent=2) + "\n"
        write_whole(manifest, lambda file: file.write(text.encode()), durable=True)
    return SampleCache(root=root, height=height, width=width)

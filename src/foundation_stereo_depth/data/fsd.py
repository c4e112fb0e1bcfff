"""The FoundationStereo data set: any subset of its scenes is a data set.

    <root>/<scene>/dataset/data/{left/rgb,right/rgb}/NNNN.{jpg,jpeg,png}   and   left/disparity/NNNN.png

Scenes may also lie deeper, as a folder of several extracted archives has them; see `_find_scenes`. Frames are paired by
name, never by rewriting paths, and everything is sorted, so that the same tree gives the same samples on every machine.
"""

import logging
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from foundation_stereo_depth.data.codecs import (
    check_largest_disparity,
    decode_fsd_disparity,
    read_fsd_code,
    read_rgb_pair,
)
from foundation_stereo_depth.data.sample import (
    Incomplete,
    SampleNames,
    SourceStamp,
    StereoSample,
    encode_name,
    flatten_folder,
    resize_image,
    stamp_files,
)
from foundation_stereo_depth.data.scan import (
    DATA,
    DISPARITY,
    DISPARITY_SUFFIXES,
    IMAGE_SUFFIXES,
    LEFT,
    RIGHT,
    scan_scenes,
)
from foundation_stereo_depth.errors import DataError
from foundation_stereo_depth.stereo.disparity import resize_disparity

logger = logging.getLogger(__name__)

_DEEPEST_SCENE = 4
"""Folders between the root and a scene: archives with absolute paths unpack into as many."""


class SamplePaths(NamedTuple):
    """The three files of one sample."""

    left: Path
    right: Path
    disparity: Path


@dataclass(frozen=True, kw_only=True)
class FsdDataset:
    """Every complete sample below `root`, sorted by scene and frame.

    Attributes:
        names: scene and frame of each sample.
        folders: of each scene in `names.scenes`, relative to the root.
        suffixes: for each sample, the positions in IMAGE_SUFFIXES of its left and right image, and the position in
            DISPARITY_SUFFIXES of its disparity map.
        incomplete: frames that were left out, with what they lack.
    """

    root: Path
    names: SampleNames
    folders: tuple[str, ...]
    suffixes: UInt8[np.ndarray, "N 3"]
    incomplete: tuple[Incomplete, ...]

    def __len__(self) -> int:
        return len(self.names)

    def paths(self, i: int) -> SamplePaths:
        """Return the files of sample i."""
        scene, stem = self.root / self.folders[int(self.names.scene_of[i])], self.names.stem(i)
        left, right, disparity = (int(position) for position in self.suffixes[i])
        return SamplePaths(
            left=scene / LEFT / (stem + IMAGE_SUFFIXES[left]),
            right=scene / RIGHT / (stem + IMAGE_SUFFIXES[right]),
            disparity=scene / DISPARITY / (stem + DISPARITY_SUFFIXES[disparity]),
        )

    def read(self, i: int, size: tuple[int, int] | None = None) -> StereoSample:
        """Read sample i at its native size, or at another (height, width).

        The result at another size is `resize_sample`'s, but no more of the disparity is decoded than is kept.

        Raises:
            DataError: a file cannot be decoded, or the three differ in size.
        """
        paths = self.paths(i)
        left, right = read_rgb_pair(paths.left, paths.right)
        code = read_fsd_code(paths.disparity)
        for path, array in ((paths.right, right), (paths.disparity, code)):
            if array.shape[:2] != left.shape[:2]:
                raise DataError(f"{path}: is {_size(array)}, but {paths.left} is {_size(left)}; they must match")

        def decode(sampled: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w"]:
            return check_largest_disparity(paths.disparity, decode_fsd_disparity(sampled), code.shape[1])

        height, width = left.shape[:2] if size is None else size
        return StereoSample(
            left=resize_image(left, height, width),
            right=resize_image(right, height, width),
            disparity_px=resize_disparity(code, height, width, decode),
        )

    def stamp(self, i: int) -> SourceStamp:
        """Return sizes and times of the files of sample i."""
        return stamp_files(self.paths(i))


def open_fsd(root: Path, keep_in: Path | None = None) -> FsdDataset:
    """Return the data set of whatever subset of FSD's scenes lies below `root`.

    Args:
        root: the folder.
        keep_in: a folder that keeps a large scan: the next start scans only where files were added or removed.

    Raises:
        DataError: `root` is no folder, or holds no complete sample.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; --dataset-root names the folder that holds the scenes")
    folders = _find_scenes(root)
    if not folders:
        hint = f"; did you mean {root.parent}?" if (root / DATA).is_dir() else ""
        raise DataError(f"{root}: holds no <scene>/dataset/data folder{hint}")
    scenes = tuple(flatten_folder(folder) for folder in folders)
    for scene in scenes:
        encode_name(scene)
    if len(set(scenes)) < len(scenes):
        raise DataError(f"{root}: two of its folders would both be called {max(scenes, key=scenes.count)}; rename one")
    scans = scan_scenes(root, folders, keep_in)
    incomplete = tuple(frame for one in scans for frame in one.incomplete)
    counts = [len(one.lengths) for one in scans]
    if not sum(counts):
        example = f"; for example {incomplete[0]}" if incomplete else ""
        raise DataError(f"{root}: none of its {len(scenes)} scenes holds a complete sample{example}")
    return FsdDataset(
        root=root,
        names=SampleNames(
            scenes=scenes,
            scene_of=np.repeat(np.arange(len(scenes), dtype=np.uint32), counts),
            stems=np.concatenate([one.stems for one in scans]),
            stem_ends=np.cumsum(np.concatenate([one.lengths for one in scans]), dtype=np.int64),
        ),
        folders=folders,
        suffixes=np.concatenate([one.suffixes for one in scans]),
        incomplete=incomplete,
    )


def holds_scene(root: Path) -> bool:
    """Return True for a folder with a scene in it; the first one found suffices."""
    if not root.is_dir():
        return False
    with os.scandir(root) as inside:
        return any(_is_scene(entry.path) for entry in inside) or bool(_find_scenes(root))


def _find_scenes(root: Path) -> tuple[str, ...]:
    """Return the folders of the scenes, relative to `root`, sorted.

    Deeper folders are searched only where there is no scene directly below `root`: a folder of several extracted
    archives, or archives with absolute paths, whose leading slash extraction leaves out (`root/mnt/disk/<scene>`).
    """
    level = sorted(entry.name for entry in os.scandir(root))
    for _ in range(_DEEPEST_SCENE):
        scenes = tuple(folder for folder in level if _is_scene(f"{root}/{folder}"))
        if scenes:
            return scenes
        level = sorted(inner for folder in level for inner in _inner_folders(root, folder))
    return ()


def _inner_folders(root: Path, folder: str) -> list[str]:
    try:
        with os.scandir(root / folder) as inside:
            return [f"{folder}/{entry.name}" for entry in inside if entry.is_dir()]
    except NotADirectoryError:
        return []
    except OSError as error:
        logger.warning("%s: cannot be entered (%s), and is left out", root / folder, error.strerror)
        return []


def _is_scene(folder: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(f"{folder}/{DATA}").st_mode)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        logger.warning("%s: cannot be entered (%s), and is left out", folder, error.strerror)
        return False


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"

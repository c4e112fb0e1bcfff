"""Plain folders of pairs with their disparity, one or several of them below a root.

    left/NAME.png   right/NAME.png   disparity/NAME.{pfm,npy,png}        also image_2, image_3, disp_occ_0 (KITTI 2015)
                                                                         and colored_0, colored_1, disp_occ (KITTI 2012)

Files of one NAME belong together. The three folders lie in the root itself or in folders of it, which then are the
scenes. Disparity is the left view's, positive, in px; `codecs.read_disparity` says which encodings are read.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from foundation_stereo_depth.data.codecs import read_disparity, read_rgb_pair
from foundation_stereo_depth.data.file_kinds import IMAGE_SUFFIXES, has_suffix
from foundation_stereo_depth.data.sample import (
    Incomplete,
    SampleNames,
    SourceStamp,
    StereoSample,
    check_sample,
    resize_sample,
    stamp_files,
)
from foundation_stereo_depth.errors import DataError

DISPARITY_SUFFIXES = (".pfm", ".npy", ".png")
LAYOUTS = (
    ("left", "right", "disparity"),
    ("image_2", "image_3", "disp_occ_0"),
    ("colored_0", "colored_1", "disp_occ"),
)
ROOT_SCENE = "pairs"
"""The scene's name where the three folders lie in the root itself, so that a moved root keeps its names."""
_PARTS = ("left image", "right image", "disparity map")


class _Frame(NamedTuple):
    left: Path
    right: Path
    disparity: Path


@dataclass(frozen=True, kw_only=True)
class FolderDataset:
    """Every complete pair, sorted by scene and name.

    Attributes:
        names: scene and name of each pair.
        frames: the three files of each pair.
        incomplete: names that lack a file.
    """

    names: SampleNames
    frames: tuple[_Frame, ...]
    incomplete: tuple[Incomplete, ...]

    def __len__(self) -> int:
        return len(self.frames)

    def read(self, i: int, size: tuple[int, int] | None = None) -> StereoSample:
        """Read pair i at its native size, or at another (height, width).

        Raises:
            DataError: a file cannot be decoded, or the three differ in size.
        """
        frame = self.frames[i]
        left, right = read_rgb_pair(frame.left, frame.right)
        sample = check_sample(str(frame.left), left, right, read_disparity(frame.disparity))
        return sample if size is None else resize_sample(sample, *size)

    def stamp(self, i: int) -> SourceStamp:
        """Return sizes and times of the files of pair i."""
        return stamp_files(self.frames[i])


def open_folders(root: Path) -> FolderDataset:
    """Return the pairs below `root`.

    Raises:
        DataError: `root` is no folder, holds none of LAYOUTS or no complete pair, or two files claim one name.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; --dataset-root names the folder that holds left, right and disparity")
    scenes = {ROOT_SCENE: root} if _find_layout(root) else {folder.name: folder for folder in sorted(root.iterdir())}
    layouts = {scene: (folder, layout) for scene, folder in scenes.items() if (layout := _find_layout(folder))}
    if not layouts:
        raise DataError(f"{root}: holds no folders {' or '.join(', '.join(layout) for layout in LAYOUTS)}")
    frames: list[tuple[int, str, _Frame]] = []
    incomplete: list[Incomplete] = []
    for position, (scene, (folder, layout)) in enumerate(layouts.items()):
        suffixes = (IMAGE_SUFFIXES, IMAGE_SUFFIXES, DISPARITY_SUFFIXES)
        parts = [_list_files(folder / name, allowed) for name, allowed in zip(layout, suffixes, strict=True)]
        for stem in sorted(set().union(*parts)):
            missing = tuple(what for what, part in zip(_PARTS, parts, strict=True) if stem not in part)
            if missing:
                incomplete.append(Incomplete(name=f"{scene}/{stem}", missing=missing))
            else:
                frames.append((position, stem, _Frame(*(part[stem] for part in parts))))
    if not frames:
        raise DataError(
            f"{root}: holds no complete pair; for example {incomplete[0]}" if incomplete else f"{root}: empty"
        )
    return FolderDataset(
        names=SampleNames.from_pairs(tuple(layouts), ((position, stem) for position, stem, _ in frames)),
        frames=tuple(frame for *_, frame in frames),
        incomplete=tuple(incomplete),
    )


def _find_layout(folder: Path) -> tuple[str, str, str] | None:
    return next((layout for layout in LAYOUTS if all((folder / name).is_dir() for name in layout)), None)


def _list_files(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Return name -> file.

    Raises:
        DataError: two files have one name.
    """
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if not has_suffix(path.name, suffixes):
            continue
        if path.stem in files:
            raise DataError(f"{path}: {files[path.stem].name} beside it has the same name; remove one of them")
        files[path.stem] = path
    return files

"""Ten public benchmarks as data sets, read by torchvision.datasets.

torchvision reads them as their authors publish them; what it gets wrong or leaves out is corrected here, each with its
reason. Nothing is downloaded unless asked.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torchvision import datasets

from foundation_stereo_depth.data.codecs import check_image_file
from foundation_stereo_depth.data.image_size import LARGEST_FILE_BYTES
from foundation_stereo_depth.data.sample import (
    Incomplete,
    SampleNames,
    SourceStamp,
    StereoSample,
    check_sample,
    flatten_folder,
    resize_sample,
    stamp_files,
)
from foundation_stereo_depth.errors import DataError, UserError
from foundation_stereo_depth.files import open_regular_file

_WORD = re.compile(r"[^\W\d_]+|\d+")


def open_benchmark(name: str, root: Path, *, download: bool = False) -> "TorchvisionDataset":
    """Return the benchmark that `--dataset` calls `name`, below `root`.

    Args:
        name: a key of BENCHMARKS.
        root: is, or holds, the folder that torchvision names.
        download: fetch what is not there; only middlebury2014 can.

    Raises:
        DataError: it is not there, or not laid out as its authors publish it.
        UserError: it cannot be downloaded.
    """
    folder, reader = BENCHMARKS[name]
    if root.name == folder:
        root = root.parent
    if not root.is_dir() and not download:
        raise DataError(f"{root}: no such folder; --dataset-root names the folder that holds {folder}")
    try:
        opened = reader(root, download)
    except (FileNotFoundError, ValueError) as error:
        raise DataError(
            f"{root / folder}: does not hold {name} as torchvision.datasets documents it ({error})"
        ) from error
    except (OSError, RuntimeError) as error:  # no network; an incomplete download
        raise UserError(f"{root / folder}: {name} cannot be downloaded ({error})") from error
    pairs, maps = len(opened.images), len(opened.disparities)
    if pairs != maps:
        # torchvision pairs by position in sorted lists: after the first gap every truth would be another scene's.
        raise DataError(f"{root / folder}: has {pairs} pairs of images but {maps} disparity maps; is it complete?")
    _check_partners(root / folder, opened)
    return TorchvisionDataset(root / folder, opened)


def _check_partners(folder: Path, opened: "_Opened") -> None:
    """Check that each right image and truth differ in name from the left image as those of all other scenes do.

    Raises:
        DataError: they do not: with one file missing here and another there, the counts may still be equal.
    """
    usual: tuple[dict[str, int], ...] | None = None
    for (left, right), (truth, _) in zip(opened.images, opened.disparities, strict=True):
        changes = tuple(_count_changed_words(left, other) for other in (right, truth))
        usual = usual or changes
        if changes != usual:
            raise DataError(
                f"{folder}: {Path(left).relative_to(folder)} would be paired with {Path(right).relative_to(folder)} "
                f"and the truth {Path(truth).relative_to(folder)}; is a file missing before it?"
            )


def _count_changed_words(first: str, second: str) -> dict[str, int]:
    """Return word -> how many more times the second path has it than the first (below 0: fewer)."""
    counts = Counter(_WORD.findall(second))
    counts.subtract(_WORD.findall(first))
    return {word: count for word, count in counts.items() if count}


class TorchvisionDataset:
    """A benchmark that torchvision reads, scene by scene."""

    incomplete: tuple[Incomplete, ...] = ()

    def __init__(self, folder: Path, opened: "_Opened") -> None:
        self._folder, self._opened = folder, opened
        paths = [Path(left).relative_to(folder).with_suffix("") for left, _ in opened.images]
        scenes = tuple(sorted({flatten_folder(path.parent.as_posix()) for path in paths}))
        position_of = {scene: position for position, scene in enumerate(scenes)}
        self.names = SampleNames.from_pairs(
            scenes, ((position_of[flatten_folder(path.parent.as_posix())], path.name) for path in paths)
        )

    def __len__(self) -> int:
        return len(self._opened.images)

    def read(self, i: int, size: tuple[int, int] | None = None) -> StereoSample:
        """Read scene i at its native size, or at another (height, width).

        Raises:
            DataError: it cannot be read, or its parts differ in size.
        """
        name = f"{self._folder}: {self.names.name(i)}"
        if self._opened.has_16_bits:
            _check_16_bits(Path(str(self._opened.disparities[i][0])))
        for path in (*self._opened.images[i], self._opened.disparities[i][0]):
            check_image_file(Path(path))  # Pillow would decode it whatever its size
        try:
            with np.errstate(divide="ignore"):  # Falling Things: a depth of 0 becomes an infinite, invalid disparity
                left, right, disparity, *masks = self._opened.dataset[i]
            views = [np.array(view, dtype=np.uint8) for view in (left, right)]  # only now are they decoded
        except Exception as error:  # Pillow and torchvision raise anything for damaged files, even a bare Exception
            raise DataError(f"{name} cannot be read ({error})") from error
        disparity_px = np.asarray(disparity, dtype=np.float32)[0]
        non_occluded = self._opened.non_occluded(masks[0] if masks else None, disparity_px.shape)
        sample = check_sample(name, views[0], views[1], disparity_px, non_occluded)
        return sample if size is None else resize_sample(sample, *size)

    def stamp(self, i: int) -> SourceStamp:
        """Return sizes and times of the files of scene i."""
        return stamp_files(Path(path) for path in (*self._opened.images[i], self._opened.disparities[i][0]))


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """One of torchvision's data sets, with its private lists of files.

    Attributes:
        dataset: item i is (left, right, disparity [1,H,W]), or that and a mask.
        images, disparities: the files of item i, left and right.
        masks_occlusion: the mask, where there is one, marks the pixels that are not occluded.
        visible_only: the truth covers pixels that both views see, and no others.
        has_16_bits: the truth is in PNGs of 16 bits.
    """

    dataset: Any
    images: list[tuple[str, str]]
    disparities: list[tuple[str, str | None]]
    masks_occlusion: bool = False
    visible_only: bool = False
    has_16_bits: bool = False

    def non_occluded(self, mask: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray | None:
        if self.visible_only:
            return np.ones(shape, dtype=bool)
        return mask if self.masks_occlusion else None


def _check_16_bits(path: Path) -> None:
    """Check that a PNG has 16 bits a value; torchvision would divide values of 8 bits by 256 as well.

    Raises:
        DataError: it has fewer.
    """
    with open_regular_file(path, at_most_bytes=LARGEST_FILE_BYTES, error_type=DataError) as file:
        head = file.read(25)  # its last byte is the bit depth (PNG specification, 11.2.1)
    if head.startswith(b"\x89PNG") and len(head) == 25 and head[24] < 16:
        raise DataError(
            f"{path}: its values have {head[24]} bits, but the disparity of this data set has 16; converting loses "
            "them, so get the original file"
        )


def _opened(dataset: Any, **facts: bool) -> _Opened:
    return _Opened(dataset=dataset, images=dataset._images, disparities=dataset._disparities, **facts)


class _ETH3D(datasets.ETH3DStereo):
    """With the three values of the mask: 255 seen by both views, 128 by the left one alone, 0 no truth.

    torchvision treats everything above 0 as visible.
    """

    def _read_disparity(self, file_path: str | None) -> Any:
        if file_path is None:  # the right view's
            return None, None
        disparity_px, _ = super()._read_disparity(file_path)
        mask_path = Path(file_path).with_name("mask0nocc.png")
        check_image_file(mask_path)
        with Image.open(mask_path) as mask:
            return disparity_px, np.asarray(mask.convert("L")) == 255


class _Kitti2015(datasets.Kitti2015Stereo):
    """With images paired to their truth by name, and the truth of visible pixels where it is there.

    The archive holds two frames per scene and truth for the first alone; torchvision pairs by position and so gives
    most images the truth of another scene (pytorch/vision, issue 7128).
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        known = {Path(str(left)).name for left, _ in self._disparities}
        self._images = [pair for pair in self._images if Path(pair[0]).name in known]

    def _read_disparity(self, file_path: str) -> Any:
        disparity_px, _ = super()._read_disparity(file_path)
        path = Path(file_path)
        visible = path.parent.with_name(path.parent.name.replace("occ", "noc")) / path.name
        if not visible.is_file():
            return disparity_px, None
        with Image.open(visible) as code:
            return disparity_px, np.asarray(code) > 0


class _InStereo2k(datasets.InStereo2k):
    """With disparity in hundredths of a pixel, as its authors say; torchvision divides by 1024 (issue 7129)."""

    def _read_disparity(self, file_path: str) -> Any:
        with Image.open(file_path) as code:
            return np.asarray(code, dtype=np.float32)[None] / 100, None


def _middlebury2014(root: Path, download: bool) -> _Opened:
    return _opened(datasets.Middlebury2014Stereo(root, download=download))


def _sceneflow(root: Path, download: bool) -> _Opened:  # noqa: ARG001
    """FlyingThings3D, final pass; its TEST half where it is there, which is what the field reports."""
    opened = _opened(datasets.SceneFlowStereo(root, variant="FlyingThings3D", pass_name="final"))
    tested = [i for i, (left, _) in enumerate(opened.images) if "TEST" in Path(left).relative_to(root).parts]
    if tested and len(opened.images) == len(opened.disparities):
        opened.dataset._images = [opened.images[i] for i in tested]
        opened.dataset._disparities = [opened.disparities[i] for i in tested]
        return _opened(opened.dataset)
    return opened


def _falling_things(root: Path, download: bool) -> _Opened:  # noqa: ARG001
    """Return those of its two variants that are there."""
    there = [variant for variant in ("single", "mixed") if (root / "FallingThings" / variant).is_dir()]
    return _opened(datasets.FallingThingsStereo(root, variant="both" if len(there) == 2 else (there or ["single"])[0]))


BENCHMARKS: dict[str, tuple[str, Callable[[Path, bool], _Opened]]] = {
    "middlebury2014": ("Middlebury2014", _middlebury2014),
    "eth3d": ("ETH3D", lambda root, _: _opened(_ETH3D(root), masks_occlusion=True)),
    # What torchvision reads of KITTI 2012 is disp_noc: pixels that both views see.
    "kitti2012": (
        "Kitti2012",
        lambda root, _: _opened(datasets.Kitti2012Stereo(root), visible_only=True, has_16_bits=True),
    ),
    "kitti2015": ("Kitti2015", lambda root, _: _opened(_Kitti2015(root), masks_occlusion=True, has_16_bits=True)),
    "sceneflow": ("SceneFlow", _sceneflow),
    "sintel": ("Sintel", lambda root, _: _opened(datasets.SintelStereo(root), masks_occlusion=True)),
    "fallingthings": ("FallingThings", _falling_things),
    "instereo2k": ("InStereo2k", lambda root, _: _opened(_InStereo2k(root, split="test"), has_16_bits=True)),
    "crestereo": ("CREStereo", lambda root, _: _opened(datasets.CREStereo(root), has_16_bits=True)),
    "carla": ("carla-highres", lambda root, _: _opened(datasets.CarlaStereo(root))),
}
"""Name -> the folder that torchvision looks for, and what opens it."""

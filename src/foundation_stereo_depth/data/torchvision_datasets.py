"""The field's benchmarks, scene by scene at their native size, by way of torchvision.datasets.

torchvision reads them as their authors publish them, and we add what it gets wrong or leaves out, each with its
reason below. Nothing is downloaded unless asked.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool
from PIL import Image
from torchvision import datasets

from foundation_stereo_depth.data.fsd import find_samples, read_fsd_sample
from foundation_stereo_depth.data.sample import SampleNames, StereoSample
from foundation_stereo_depth.errors import DataError, UserError
from foundation_stereo_depth.stereo.disparity import valid_mask

_WORD = re.compile(r"[^\W\d_]+|\d+")


@dataclass(frozen=True, kw_only=True)
class BenchmarkScene:
    """One pair with its truth, and which of its left pixels the right eye sees too, where the benchmark says so."""

    name: str
    sample: StereoSample
    non_occluded: Bool[np.ndarray, "H W"] | None


@runtime_checkable
class Benchmark(Protocol):
    """Scenes by position."""

    def __len__(self) -> int: ...

    def name(self, i: int) -> str:
        """What messages and tables call scene i."""
        ...

    def read(self, i: int) -> BenchmarkScene:
        """Scene i at its native size; raises DataError where it cannot be read."""
        ...


def open_benchmark(name: str, root: Path, *, download: bool = False) -> Benchmark:
    """The benchmark that `--dataset` calls `name`, below `root`.

    Args:
        name: "fsd" or a key of BENCHMARKS.
        root: holds the scenes of FSD; of another benchmark it is, or holds, the folder that torchvision names.
        download: fetch what is not there; only middlebury2014 can.

    Raises:
        DataError: it is not there, or not laid out as its authors publish it.
        UserError: it cannot be downloaded.
    """
    if download and name != "middlebury2014":
        raise UserError(f"--download: torchvision downloads only middlebury2014; get {name} from its authors")
    if name == "fsd":
        return FsdScenes(root)
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
    except (OSError, RuntimeError) as error:  # no network; a download that is not whole
        raise UserError(f"{root / folder}: {name} cannot be downloaded ({error})") from error
    pairs, maps = len(opened.images), len(opened.disparities)
    if pairs != maps:
        # torchvision pairs by position in sorted lists: from the first gap on, every truth would be another scene's.
        raise DataError(f"{root / folder}: has {pairs} pairs of pictures but {maps} disparity maps; is it complete?")
    _check_partners(root / folder, opened)
    return _Torchvision(root / folder, opened)


def _check_partners(folder: Path, opened: "_Opened") -> None:
    """Lets pass where each picture's partner and truth differ from it in name as those of all other scenes do.

    Raises:
        DataError: somewhere they do not: with a file lacking here and another there, counts may be right all the same.
    """
    usual: tuple[dict[str, int], ...] | None = None
    for (left, right), (truth, _) in zip(opened.images, opened.disparities, strict=True):
        changes = tuple(_changes_of_words(left, other) for other in (right, truth))
        usual = usual or changes
        if changes != usual:
            raise DataError(
                f"{folder}: {Path(left).relative_to(folder)} would be paired with {Path(right).relative_to(folder)} "
                f"and the truth {Path(truth).relative_to(folder)}; is a file missing before it?"
            )


def _changes_of_words(first: str, second: str) -> dict[str, int]:
    """Which words of one path the other has more often, or less often (below 0)."""
    counts = Counter(_WORD.findall(second))
    counts.subtract(_WORD.findall(first))
    return {word: count for word, count in counts.items() if count}


class FsdScenes:
    """FoundationStereo's own layout. It has no occlusion masks."""

    def __init__(self, root: Path) -> None:
        self._index = find_samples(root)

    @property
    def names(self) -> SampleNames:
        """Of every scene, by position."""
        return self._index.names

    def __len__(self) -> int:
        return len(self._index)

    def name(self, i: int) -> str:
        """`<scene>/<stem>`."""
        return self._index.names.name(i)

    def read(self, i: int) -> BenchmarkScene:
        """Frame i; raises DataError where it cannot be read."""
        return BenchmarkScene(name=self.name(i), sample=read_fsd_sample(self._index.paths(i)), non_occluded=None)


class _Torchvision:
    """A benchmark that torchvision reads."""

    def __init__(self, folder: Path, opened: "_Opened") -> None:
        self._folder, self._opened = folder, opened

    def __len__(self) -> int:
        return len(self._opened.images)

    def name(self, i: int) -> str:
        """The left picture's path within the benchmark, without suffix."""
        return Path(self._opened.images[i][0]).relative_to(self._folder).with_suffix("").as_posix()

    def read(self, i: int) -> BenchmarkScene:
        try:
            with np.errstate(divide="ignore"):  # Falling Things: a depth of 0 becomes an infinite, invalid disparity
                left, right, disparity, *masks = self._opened.dataset[i]
            views = [np.array(view, dtype=np.uint8) for view in (left, right)]  # only now are they decoded
        except Exception as error:  # Pillow and torchvision say of torn files whatever comes, even a bare Exception
            raise DataError(f"{self._folder}: {self.name(i)} cannot be read ({error})") from error
        disparity_px = np.asarray(disparity, dtype=np.float32)[0]
        sizes = {array.shape[:2] for array in (*views, disparity_px)}
        if len(sizes) > 1:
            raise DataError(f"{self._folder}: {self.name(i)} has parts of the sizes {sorted(sizes)}; they must match")
        sample = StereoSample(
            left=views[0], right=views[1], disparity_px=np.where(valid_mask(disparity_px), disparity_px, np.nan)
        )
        non_occluded = self._opened.non_occluded(masks[0] if masks else None, disparity_px.shape)
        return BenchmarkScene(name=self.name(i), sample=sample, non_occluded=non_occluded)


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """One of torchvision's data sets, with its lists of files, which torchvision keeps to itself.

    Attributes:
        dataset: item i is (left, right, disparity [1,H,W]), or that and a mask.
        images, disparities: the files of item i, left and right.
        masks_occlusion: the mask, where there is one, says which pixels are not occluded.
        sees_all: the truth covers visible pixels only.
    """

    dataset: Any
    images: list[tuple[str, str]]
    disparities: list[tuple[str, str | None]]
    masks_occlusion: bool = False
    sees_all: bool = False

    def non_occluded(self, mask: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray | None:
        if self.sees_all:
            return np.ones(shape, dtype=bool)
        return mask if self.masks_occlusion else None


def _opened(dataset: Any, **facts: bool) -> _Opened:
    return _Opened(dataset=dataset, images=dataset._images, disparities=dataset._disparities, **facts)


class _ETH3D(datasets.ETH3DStereo):
    """With the mask's three values told apart: 255 both eyes see it, 128 the left one alone, 0 no truth.

    torchvision takes everything above 0 for visible.
    """

    def _read_disparity(self, file_path: str | None) -> Any:
        if file_path is None:  # the right eye's
            return None, None
        disparity_px, _ = super()._read_disparity(file_path)
        with Image.open(Path(file_path).with_name("mask0nocc.png")) as mask:
            return disparity_px, np.asarray(mask.convert("L")) == 255


class _Kitti2015(datasets.Kitti2015Stereo):
    """With pictures paired to their truth by name, and the truth of visible pixels where it is there.

    The archive holds two frames per scene and truth for the first alone; torchvision pairs by position and so gives
    most pictures the truth of another scene (pytorch/vision, issue 7128).
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
    """Those of its two variants that are there."""
    there = [variant for variant in ("single", "mixed") if (root / "FallingThings" / variant).is_dir()]
    return _opened(datasets.FallingThingsStereo(root, variant="both" if len(there) == 2 else (there or ["single"])[0]))


BENCHMARKS: dict[str, tuple[str, Callable[[Path, bool], _Opened]]] = {
    "middlebury2014": ("Middlebury2014", _middlebury2014),
    "eth3d": ("ETH3D", lambda root, _: _opened(_ETH3D(root), masks_occlusion=True)),
    # What torchvision reads of KITTI 2012 is disp_noc: pixels that both eyes see.
    "kitti2012": ("Kitti2012", lambda root, _: _opened(datasets.Kitti2012Stereo(root), sees_all=True)),
    "kitti2015": ("Kitti2015", lambda root, _: _opened(_Kitti2015(root), masks_occlusion=True)),
    "sceneflow": ("SceneFlow", _sceneflow),
    "sintel": ("Sintel", lambda root, _: _opened(datasets.SintelStereo(root), masks_occlusion=True)),
    "fallingthings": ("FallingThings", _falling_things),
    "instereo2k": ("InStereo2k", lambda root, _: _opened(_InStereo2k(root, split="test"))),
    "crestereo": ("CREStereo", lambda root, _: _opened(datasets.CREStereo(root))),
    "carla": ("carla-highres", lambda root, _: _opened(datasets.CarlaStereo(root))),
}
"""Name -> the folder that torchvision looks for, and what opens it."""

"""A stereo pair with its disparity, in NumPy, and how it is resized; compact names of a million of them."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8, UInt32

from foundation_stereo_depth.data.loops import LARGEST_BOX, compiled_loops
from foundation_stereo_depth.errors import DataError
from foundation_stereo_depth.stereo.disparity import nearest_indices, resize_disparity, valid_mask

SourceStamp = Int64[np.ndarray, "3 2"]
"""Size in bytes and time of the last change in ns of the left image, the right one, and the disparity map."""


@dataclass(frozen=True, kw_only=True)
class StereoSample:
    """A rectified pair.

    Attributes:
        left, right: RGB, of one size.
        disparity_px: of the left view, px of this size, NaN where unknown.
        non_occluded: which pixels of the left view the right one sees too, where the data set says so.
    """

    left: UInt8[np.ndarray, "H W 3"]
    right: UInt8[np.ndarray, "H W 3"]
    disparity_px: Float[np.ndarray, "H W"]
    non_occluded: Bool[np.ndarray, "H W"] | None = None


@dataclass(frozen=True, kw_only=True)
class Incomplete:
    """A frame that lacks a view or its disparity map, and so is no sample."""

    name: str
    missing: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name} (no {', no '.join(self.missing)})"


def encode_name(name: str) -> bytes:
    """Return the name of a scene or frame in UTF-8.

    Raises:
        DataError: it is not text: Python keeps bytes that are not UTF-8 as half of a character.
    """
    try:
        return name.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{name!a}: a name of a scene or frame that is not UTF-8; rename it") from error


def flatten_folder(folder: str) -> str:
    """Return a folder's relative path as one name: a scene is one folder of a cache, however deep its files lie.

    >>> flatten_folder("kitchen_archive/kitchen")
    'kitchen_archive--kitchen'
    """
    return folder.replace("/", "--")


def stamp_files(paths: Iterable[Path]) -> SourceStamp:
    """Return sizes and times of the last change of a sample's three files; to be taken before they are read.

    Raises:
        DataError: one is missing or forbidden.
    """
    try:
        facts = [path.stat() for path in paths]
    except OSError as error:
        raise DataError(f"{error.filename}: {error.strerror}") from error
    return np.array([(fact.st_size, fact.st_mtime_ns) for fact in facts], np.int64)


@dataclass(frozen=True, kw_only=True)
class SampleNames:
    """Names `<scene>/<stem>` of any number of samples, in flat arrays.

    A million names take some ten megabytes, and no Python object per name exists whose reference count a reader
    would have to touch.

    Attributes:
        scenes: scene names.
        scene_of: for each sample, the position of its scene in `scenes`.
        stems: all frame names in UTF-8, one after the other.
        stem_ends: where each of them ends.
    """

    scenes: tuple[str, ...]
    scene_of: UInt32[np.ndarray, " N"]
    stems: UInt8[np.ndarray, " bytes"]
    stem_ends: Int64[np.ndarray, " N"]

    @classmethod
    def from_pairs(cls, scenes: tuple[str, ...], frames: Iterable[tuple[int, str]]) -> "SampleNames":
        """Build names from pairs of (position of the scene, frame name).

        Raises:
            DataError: a name is not text.
        """
        for name in scenes:
            encode_name(name)
        # Growing arrays, not lists: a million Python objects would take ten times the memory of the result.
        scene_of, stem_ends, stems = array("I"), array("q"), bytearray()
        for scene, stem in frames:
            scene_of.append(scene)
            stems += encode_name(stem)
            stem_ends.append(len(stems))
        return cls(
            scenes=scenes,
            scene_of=np.array(scene_of, np.uint32),
            stems=np.frombuffer(bytes(stems), np.uint8),
            stem_ends=np.array(stem_ends, np.int64),
        )

    def __len__(self) -> int:
        return len(self.scene_of)

    def __iter__(self) -> Iterator[str]:
        return self.some(np.arange(len(self), dtype=np.int64))

    def some(self, positions: Int64[np.ndarray, " n"]) -> Iterator[str]:
        """Yield `<scene>/<stem>` of each position; ten times faster than `name` for many of them."""
        stems = self.stems.tobytes()
        for first in range(0, len(positions), 4096):
            part = positions[first : first + 4096]
            scenes, ends = self.scene_of[part].tolist(), self.stem_ends[part].tolist()
            starts = np.where(part > 0, self.stem_ends[part - 1], 0).tolist()
            for scene, start, end in zip(scenes, starts, ends, strict=True):
                yield f"{self.scenes[scene]}/{stems[start:end].decode()}"

    def scene(self, i: int) -> str:
        """Return the scene that sample i belongs to."""
        return self.scenes[int(self.scene_of[i])]

    def stem(self, i: int) -> str:
        """Return the frame name of sample i, without suffix."""
        start = int(self.stem_ends[i - 1]) if i > 0 else 0
        return self.stems[start : int(self.stem_ends[i])].tobytes().decode()

    def name(self, i: int) -> str:
        """Return `<scene>/<stem>`, by which messages and the cache name sample i."""
        return f"{self.scene(i)}/{self.stem(i)}"


def join_names(parts: Sequence[tuple[str, SampleNames]]) -> SampleNames:
    """Return the names of several data sets one after the other, each scene's behind the prefix of its data set."""
    first_scenes = np.cumsum([0, *(len(names.scenes) for _, names in parts[:-1])])
    first_bytes = np.cumsum([0, *(len(names.stems) for _, names in parts[:-1])])
    return SampleNames(
        scenes=tuple(prefix + scene for prefix, names in parts for scene in names.scenes),
        scene_of=np.concatenate(
            [names.scene_of + np.uint32(first) for (_, names), first in zip(parts, first_scenes, strict=True)]
        ),
        stems=np.concatenate([names.stems for _, names in parts]),
        stem_ends=np.concatenate(
            [names.stem_ends + first for (_, names), first in zip(parts, first_bytes, strict=True)]
        ),
    )


def resize_image(image: UInt8[np.ndarray, "H W 3"], height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    """Return the image at another size: area averaging where it shrinks, linear interpolation where it grows.

    The compiled loop gives the same bytes, faster, where the size is divided by whole numbers.
    """
    loops = compiled_loops()
    if loops is not None and (boxes := _find_boxes(image, height, width)):
        averaged = np.empty((height, width, 3), np.uint8)
        loops.average_boxes(image.reshape(len(image), -1), averaged, *boxes)
        return averaged
    # One after the other: OpenCV's area mode averages only where no axis grows.
    smaller = (min(width, image.shape[1]), min(height, image.shape[0]))
    for size, mode in ((smaller, cv2.INTER_AREA), ((width, height), cv2.INTER_LINEAR)):
        if image.shape[1::-1] != size:
            image = np.asarray(cv2.resize(image, size, interpolation=mode), np.uint8)
    return image


def _find_boxes(image: UInt8[np.ndarray, "H W 3"], height: int, width: int) -> tuple[int, int] | None:
    """Return rows and columns of the boxes whose means are the resized image; None if it does not consist of boxes."""
    boxes = image.shape[0] // height, image.shape[1] // width
    divided = boxes[0] * height == image.shape[0] and boxes[1] * width == image.shape[1]
    # Halving both sides is OpenCV's fastest, and rounds halves up as no other box does.
    return boxes if divided and boxes not in ((1, 1), (2, 2)) and max(boxes) <= LARGEST_BOX else None


def resize_sample(sample: StereoSample, height: int, width: int) -> StereoSample:
    """Return the sample stretched to another size, whatever its aspect ratio.

    Stretching keeps rows on rows, so the pair stays rectified, and nothing of the scene is cut off. Disparity follows
    the width alone. FSD's own 16:9 becomes 4:3 this way (x by 1/4, y by 1/3), and so does every other aspect ratio.
    """
    mask = sample.non_occluded
    if mask is not None:
        rows, columns = nearest_indices(mask.shape[0], height), nearest_indices(mask.shape[1], width)
        mask = mask[rows[:, None], columns]
    return StereoSample(
        left=resize_image(sample.left, height, width),
        right=resize_image(sample.right, height, width),
        disparity_px=resize_disparity(sample.disparity_px, height, width),
        non_occluded=mask,
    )


def check_sample(
    name: str,
    left: UInt8[np.ndarray, "H W 3"],
    right: UInt8[np.ndarray, "h w 3"],
    disparity_px: Float[np.ndarray, "i j"],
    non_occluded: Bool[np.ndarray, "k l"] | None = None,
) -> StereoSample:
    """Return the sample of a file-based data set, with NaN where its disparity is not valid.

    Raises:
        DataError: its parts differ in size, or no disparity map of a left view can look like this one.
    """
    sizes = {array.shape[:2] for array in (left, right, disparity_px)}
    if len(sizes) > 1:
        raise DataError(f"{name}: has parts of the sizes {sorted(sizes)} (height, width); they must match")
    valid = valid_mask(disparity_px)
    if (known := disparity_px[np.isfinite(disparity_px)]).size and not valid.any() and known.min() < 0:
        raise DataError(f"{name}: has no disparity above 0 px; is its sign reversed, or is it the right view's?")
    return StereoSample(
        left=left, right=right, disparity_px=np.where(valid, disparity_px, np.nan), non_occluded=non_occluded
    )

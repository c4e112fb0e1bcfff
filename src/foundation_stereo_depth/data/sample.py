"""One stereo pair with its disparity, in NumPy, and its resizing; and the names of a million of them."""

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, Int64, UInt8, UInt32

from foundation_stereo_depth.data.loops import LARGEST_BOX, Loops
from foundation_stereo_depth.errors import DataError
from foundation_stereo_depth.stereo.disparity import resize_disparity

SourceStamp = Int64[np.ndarray, "3 2"]
"""Size in bytes and time of the last change in ns of the left picture, the right one, and the disparity map."""


@dataclass(frozen=True, kw_only=True)
class StereoSample:
    """Two rectified views of one size and the left view's disparity in px of that size, NaN where unknown."""

    left: UInt8[np.ndarray, "H W 3"]
    right: UInt8[np.ndarray, "H W 3"]
    disparity_px: Float[np.ndarray, "H W"]


def as_utf8(name: str) -> bytes:
    """The name as bytes.

    Raises:
        DataError: it is not text: Python keeps bytes that are not UTF-8 as half of a character.
    """
    try:
        return name.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{name!a}: a name of a scene or frame that is not UTF-8; rename it") from error


@dataclass(frozen=True, kw_only=True)
class SampleNames:
    """Names `<scene>/<stem>` of any number of samples, sorted, in flat arrays.

    A million names take some ten megabytes, and no Python object per name exists whose reference count a reader
    would have to touch.

    Attributes:
        scenes: scene names, sorted.
        scene_of: for each sample, the position of its scene in `scenes`.
        stems: all frame names in UTF-8, one after the other; `stem_ends` says where each ends.
    """

    scenes: tuple[str, ...]
    scene_of: UInt32[np.ndarray, " N"]
    stems: UInt8[np.ndarray, " bytes"]
    stem_ends: Int64[np.ndarray, " N"]

    @classmethod
    def from_pairs(cls, scenes: tuple[str, ...], frames: Iterable[tuple[int, str]]) -> "SampleNames":
        """From (position of the scene, frame name) in sorted order.

        Raises:
            DataError: a name is not text.
        """
        for name in scenes:
            as_utf8(name)
        # Numbers and bytes that grow, rather than lists: a million objects each would outweigh the result ten times.
        scene_of, stem_ends, stems = array("I"), array("q"), bytearray()
        for scene, stem in frames:
            scene_of.append(scene)
            stems += as_utf8(stem)
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
        """`<scene>/<stem>` of each position; for many of them ten times quicker than `name`."""
        stems = self.stems.tobytes()
        for first in range(0, len(positions), 4096):
            part = positions[first : first + 4096]
            scenes, ends = self.scene_of[part].tolist(), self.stem_ends[part].tolist()
            starts = np.where(part > 0, self.stem_ends[part - 1], 0).tolist()
            for scene, start, end in zip(scenes, starts, ends, strict=True):
                yield f"{self.scenes[scene]}/{stems[start:end].decode()}"

    def scene(self, i: int) -> str:
        """The scene that sample i belongs to."""
        return self.scenes[int(self.scene_of[i])]

    def stem(self, i: int) -> str:
        """The frame name of sample i, without suffix."""
        start = int(self.stem_ends[i - 1]) if i > 0 else 0
        return self.stems[start : int(self.stem_ends[i])].tobytes().decode()

    def name(self, i: int) -> str:
        """`<scene>/<stem>`: how messages and the cache call sample i."""
        return f"{self.scene(i)}/{self.stem(i)}"


def resize_image(
    image: UInt8[np.ndarray, "H W 3"], height: int, width: int, loops: Loops | None = None
) -> UInt8[np.ndarray, "h w 3"]:
    """The picture at another size: area averaging where it shrinks, linear interpolation where it grows.

    With compiled loops it is the same, and quicker where the size is divided by whole numbers.
    """
    if loops is not None and (boxes := _in_boxes(image, height, width)):
        averaged = np.empty((height, width, 3), np.uint8)
        loops.average_boxes(image.reshape(len(image), -1), averaged, *boxes)
        return averaged
    # One after the other: OpenCV's area mode averages only where no axis grows.
    smaller = (min(width, image.shape[1]), min(height, image.shape[0]))
    for size, mode in ((smaller, cv2.INTER_AREA), ((width, height), cv2.INTER_LINEAR)):
        if image.shape[1::-1] != size:
            image = np.asarray(cv2.resize(image, size, interpolation=mode), np.uint8)
    return image


def _in_boxes(image: UInt8[np.ndarray, "H W 3"], height: int, width: int) -> tuple[int, int] | None:
    """Rows and columns of the boxes whose means the resized picture consists of; None if it does not."""
    boxes = image.shape[0] // height, image.shape[1] // width
    whole = boxes[0] * height == image.shape[0] and boxes[1] * width == image.shape[1]
    # Halving both sides is OpenCV's quickest, and rounds halves up as no other box does.
    return boxes if whole and boxes not in ((1, 1), (2, 2)) and max(boxes) <= LARGEST_BOX else None


def resize_sample(sample: StereoSample, height: int, width: int) -> StereoSample:
    """The sample at another size, stretched to it whatever its aspect ratio.

    Stretching keeps rows on rows, so the pair stays rectified, and nothing of the scene is cut away. Disparity follows
    the width alone. FSD's own 16:9 becomes 4:3 this way (x by 1/4, y by 1/3), and so does every other aspect ratio.
    """
    return StereoSample(
        left=resize_image(sample.left, height, width),
        right=resize_image(sample.right, height, width),
        disparity_px=resize_disparity(sample.disparity_px, height, width),
    )

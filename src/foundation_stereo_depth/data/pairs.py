"""Pairs of images without truth: two files, two folders, two globs, two videos, or both views side by side."""

import math
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from foundation_stereo_depth.data.codecs import Image, read_rgb_images, read_rgb_pair
from foundation_stereo_depth.data.file_kinds import IMAGE_SUFFIXES, is_hidden, is_image, is_video, name_other_kinds
from foundation_stereo_depth.data.prefetch import prefetch
from foundation_stereo_depth.data.videos import read_frame_count, read_frames
from foundation_stereo_depth.errors import DataError

SideBySide = UInt8[np.ndarray, "H W_both 3"]
_APART = 0.75
"""Frames of one number may be apart by this share of the time that one lasts: clocks count in milliseconds."""
_BLACK_BELOW = 16
_SMALLEST_PX = 32
"""Height and width of the smallest views whose disparity means something."""
_FLATTEST = 2.0
"""Standard deviation, of 255 levels, of a view that shows one colour: the noise of a covered lens stays below it."""
_NARROWEST = 2.0
"""Width by height of two square views side by side. Views of cameras are wider, so a narrower image is one view."""


@dataclass(frozen=True, kw_only=True)
class NamedPair:
    """A rectified pair, RGB, and the name under which its results are written."""

    name: str
    left: Image
    right: Image


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Pairs in order, read when they are asked for.

    Attributes:
        left, right: what the user named; `right` is None where both views stand side by side in `left`.
        count: how many pairs; None where only reading will tell, as with videos.
        files: the files of each pair under its name; empty for videos.
        side_by_side: the user says that both views stand side by side in `left`, however narrow it is.
        workers: threads that read image files ahead, each up to two pairs; 0 reads a pair when it is asked for.
    """

    left: str
    right: str | None
    count: int | None
    files: dict[str, tuple[Path, ...]]
    side_by_side: bool = False
    workers: int = 0

    @property
    def stated_count(self) -> int | None:
        """How many pairs there are, or of videos as many as they state; None where they state nothing."""
        if self.count is not None:
            return self.count
        stated = [read_frame_count(Path(video)) for video in (self.left, self.right) if video is not None]
        known = [frames for frames in stated if frames is not None]
        return min(known, default=None)

    def without(self, names: Collection[str]) -> "Pairs":
        """Return the pairs of other names."""
        files = {name: paths for name, paths in self.files.items() if name not in names}
        return replace(self, count=len(files), files=files)

    def __iter__(self) -> Iterator[NamedPair]:
        if self.files:
            for name, (left, right) in zip(self.files, prefetch(self.files, self.read, self.workers), strict=True):
                yield NamedPair(name=name, left=left, right=right)
            return
        paths = [Path(video) for video in (self.left, self.right) if video is not None]
        for number, frames in enumerate(zip_longest(*(read_frames(path) for path in paths))):
            present = [frame for frame in frames if frame is not None]
            if len(present) < len(paths):
                longer, shorter = paths if frames[1] is None else reversed(paths)
                raise DataError(
                    f"{longer}: continues after {shorter} ends at frame {number}; if they began together, and no frame "
                    "is missing in between, cut it to that length"
                )
            if abs(present[0].at_s - present[-1].at_s) > _APART * min(frame.lasts_s for frame in present):
                late = paths[0] if present[0].at_s > present[1].at_s else paths[1]
                raise DataError(
                    f"{late}: lacks a frame before frame {number}: from there on the views are "
                    f"{abs(present[0].at_s - present[1].at_s):.3f} s apart; pairs before it are good"
                )
            images = [frame.image for frame in present]
            views = self._check_size(paths[0], images) if len(images) == 2 else self._split(paths[0], images[0])
            yield NamedPair(name=f"{paths[0].stem}_{number:06d}", left=views[0], right=views[1])

    def read(self, name: str) -> tuple[Image, Image]:
        """Return the left and the right view, RGB, of the image files of one name.

        Raises:
            DataError: they cannot be read, differ in size, or do not hold two views.
        """
        paths = self.files[name]
        if len(paths) == 2:
            return self._check_size(paths[0], list(read_rgb_pair(*paths)))
        images = read_rgb_images(paths[0])
        if len(images) > 2:
            raise DataError(f"{paths[0]}: holds {len(images)} images of one size; which of them are left and right?")
        return (images[0], images[1]) if len(images) == 2 else self._split(paths[0], images[0])

    def _check_size(self, path: Path, images: list[np.ndarray]) -> tuple[Image, Image]:
        left, right = images
        if left.shape != right.shape:
            raise DataError(
                f"{path}: is {left.shape[1]}x{left.shape[0]}, but its right view is {right.shape[1]}x{right.shape[0]}; "
                "a rectified pair has one size"
            )
        return left, right

    def _split(self, path: Path, both: SideBySide) -> tuple[Image, Image]:
        height, width = both.shape[:2]
        if width < _NARROWEST * height and not self.side_by_side:
            raise DataError(
                f"{path}: is {width}x{height}, too narrow for two views side by side; name the right view too, or add "
                "--side-by-side if it holds both"
            )
        return split_side_by_side(both, str(path))


def check_views(pair: NamedPair) -> None:
    """Check that two views can be of one scene.

    Raises:
        DataError: they are one image, or too small to match.
    """
    height, width = pair.left.shape[:2]
    if min(height, width) < _SMALLEST_PX:
        raise DataError(f"{pair.name}: is {width}x{height} px; views of less than {_SMALLEST_PX} px cannot be matched")
    if np.array_equal(pair.left, pair.right) and describe_emptiness(pair) is None:
        raise DataError(f"{pair.name}: left and right are the same image; was it copied, or named twice?")


def describe_emptiness(pair: NamedPair) -> str | None:
    """Return one line where a view shows nothing but one colour, such as that of a covered lens; else None."""
    for side, view in (("left", pair.left), ("right", pair.right)):
        # Of each channel, by OpenCV: NumPy would take eight bytes of memory for each byte of the image.
        means, deviations = (np.asarray(each) for each in cv2.meanStdDev(view))
        if math.sqrt(float(np.mean(deviations**2) + np.var(means))) < _FLATTEST:
            shade = "black" if means.mean() < _BLACK_BELOW else "of one colour"
            return f"{pair.name}: the {side} view is {shade}, so nothing can be matched; was the lens covered?"
    return None


def split_side_by_side(both: SideBySide, source: str) -> tuple[Image, Image]:
    """Return the left and the right half of an image, for the views of a camera with two lenses.

    Raises:
        DataError: its width is odd.
    """
    width = both.shape[1]
    if width % 2:
        raise DataError(f"{source}: is {width} px wide, so it does not hold two views of one width side by side")
    return np.ascontiguousarray(both[:, : width // 2]), np.ascontiguousarray(both[:, width // 2 :])


def find_pairs(left: str, right: str | None, *, side_by_side: bool = False) -> Pairs:
    """Return the pairs that two arguments name: files, folders, globs or videos; one argument means side by side.

    Folders pair files of the same name (without suffix). Globs pair what their wildcards stand for: `a/*/im0.png` and
    `a/*/im1.png` pair scene by scene, `left*.jpg` and `right*.jpg` number by number.

    Args:
        left: of the left views, or of both.
        right: of the right views; None where `left` has both.
        side_by_side: the user says so, and an image narrower than two square views is split as well.

    Raises:
        DataError: nothing is there, an image lacks its partner, or both arguments name the same files.
    """
    found = [_matches(text) for text in (left, right) if text is not None]
    if right is not None and side_by_side:
        raise DataError(
            f"{left} and {right}: --side-by-side means that the first holds both views; leave the other out"
        )
    videos = [is_video(text) and Path(text).is_file() for text in (left, right) if text is not None]
    _check_distinct(left, right, found)
    if all(videos):
        return Pairs(left=left, right=right, count=None, files={}, side_by_side=side_by_side)
    if any(videos):
        raise DataError(f"{left} and {right}: one is a video, the other is not")
    if right is not None and len(found[0]) == len(found[1]) == 1 and not (_is_many(left) or _is_many(right)):
        found[1] = {
            next(iter(found[0])): next(iter(found[1].values()))
        }  # two single files pair whatever they are called
    partnerless = sorted(set(found[0]) ^ set(found[-1]))
    if partnerless:
        lonely = partnerless[0]
        path = found[0].get(lonely) or found[-1][lonely]
        raise DataError(
            f"{path}: has no partner in {right if lonely in found[0] else left} ({len(partnerless)} such files); "
            "folders pair equal names, globs in quotes pair what their * stand for"
        )
    files = {name: tuple(side[name] for side in found) for name in sorted(found[0])}
    return Pairs(left=left, right=right, count=len(files), files=files, side_by_side=side_by_side)


def _check_distinct(left: str, right: str | None, found: list[dict[str, Path]]) -> None:
    if right is None:
        return
    if sorted((path.is_dir(), path.is_file()) for path in (Path(left), Path(right))) == [(False, True), (True, False)]:
        raise DataError(f"{left} and {right}: one is a folder and the other a file; name the file in the folder")
    same = {path.resolve() for path in found[0].values()} & {path.resolve() for path in found[1].values()}
    if same and (len(found[0]) == 1 or len(same) == len(found[0])):
        raise DataError(
            f"{left} and {right}: are the same {'file' if len(same) == 1 else 'files'}; name the right view, or, if "
            "both views stand side by side in it, give it once"
        )
    if len(found[0]) == len(found[1]) == 1:
        _check_sides(*(next(iter(side.values())) for side in found))


def _check_sides(left: Path, right: Path) -> None:
    """Check that two files of one folder are not of the same side by their names, as an unquoted glob leaves them.

    Raises:
        DataError: they are.
    """
    sides = [_side_in_name(path) for path in (left, right)]
    if left.resolve().parent == right.resolve().parent and sides[0] == sides[1] is not None:
        raise DataError(
            f"{left} and {right}: are both {sides[0]} views by their names; put each glob in quotes, as in "
            "'left*.png' 'right*.png', so that the shell does not expand it"
        )


def _side_in_name(path: Path) -> str | None:
    """Return the side that `left/0001.png` or `right_01.png` is of; None for names with other words."""
    words = ("".join(filter(str.isalpha, path.stem)).lower(), path.parent.name.lower())
    return next((word for word in words if word in ("left", "right")), None)


def _matches(text: str) -> dict[str, Path]:
    """Return name of the pair -> file, for a file, a folder or a glob."""
    path = Path(text)
    if not text.strip():
        raise DataError("the name of an image, folder, glob or video is empty")
    if path.is_file():
        return {path.stem: path}
    if path.is_dir():
        named: dict[str, Path] = {}
        files = sorted(path.iterdir())
        for file in files:
            if is_image(file.name):
                _add(named, file.stem, file)
        if not named:
            other = name_other_kinds(file.name for file in files) or _name_video(files)
            raise DataError(
                f"{text}: a folder without images ({', '.join(IMAGE_SUFFIXES)})" + (f"; {other}" if other else "")
            )
        return named
    if "://" in text or " ! " in text:
        raise DataError(f"{text}: streams and pipelines are for foundation-stereo-live-view; name images or a video")
    if not re.search(r"[*?]", text):
        raise DataError(f"{text}: no such file or folder")
    return _match_glob(text)


def _match_glob(text: str) -> dict[str, Path]:
    """Return what the wildcards stand for -> file; of several kinds of files the images."""
    path = Path(text)
    pattern = re.compile("".join(_as_regex(part) for part in re.split(r"(\*\*/|\*|\?)", path.as_posix())))
    anchor = Path(path.anchor)
    relative = path.relative_to(anchor) if path.anchor else path
    # Of what pathlib takes for wildcards only * and ? are meant; folders may well have brackets in their names.
    wanted = relative.as_posix().replace("[", "[[]")
    matches: dict[Path, str] = {}
    for file in sorted((anchor if path.anchor else Path()).glob(wanted)):
        match = pattern.fullmatch(file.as_posix())
        if match is not None and file.is_file() and not _hides(file, path):
            matches[file] = _name_of(match.groups(), file)
    if not matches:
        raise DataError(f"{text}: matches no file{_suggest_capitals(path)}")
    images = [file for file in matches if is_image(file.name)]
    if not images and (other := _name_video(matches)):
        raise DataError(f"{text}: {other}")
    named: dict[str, Path] = {}
    for file in images or matches:  # where none has the suffix of an image, the user means what the pattern says
        _add(named, matches[file], file)
    return named


def _name_of(parts: tuple[str | None, ...], file: Path) -> str:
    """Return what the wildcards of a glob stand for as a name, without the suffix of the file and bare separators."""
    name = "_".join(part.strip("/").replace("/", "_") for part in parts if part).removesuffix(file.suffix)
    return name.strip("_-. ") or "pair"


def _suggest_capitals(pattern: Path) -> str:
    """Return a hint where the pattern would match with its suffix in capitals, or in small letters."""
    other = pattern.with_suffix(pattern.suffix.swapcase())
    anchor = Path(other.anchor)
    found = next(anchor.glob(str(other.relative_to(anchor)).replace("[", "[[]")), None)
    return "" if found is None or other == pattern else f", but {other} does"


def _hides(file: Path, pattern: Path) -> bool:
    """Return True where a wildcard stands for a name that begins with a dot."""
    return any(is_hidden(part) for part in set(file.parts) - set(pattern.parts)) and not is_hidden(pattern.name)


def _name_video(files: Iterable[Path]) -> str | None:
    video = next((file for file in files if is_video(file.name)), None)
    return None if video is None else f"{video.name} is a video; videos are named one at a time"


def _add(named: dict[str, Path], name: str, file: Path) -> None:
    if name in named:
        raise DataError(f"{file}: would have the same name as {named[name]}, {name}; which of the two is meant?")
    named[name] = file


def _as_regex(part: str) -> str:
    return {"**/": "((?:.*/)?)", "*": "([^/]*)", "?": "([^/])"}.get(part, re.escape(part))


def _is_many(text: str) -> bool:
    return not Path(text).is_file()

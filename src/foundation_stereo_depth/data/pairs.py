"""Pairs of images without truth: two files, two folders, two globs, two videos, or both views side by side."""

import math
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from foundation_stereo_depth.data.codecs import read_rgb
from foundation_stereo_depth.errors import DataError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
VIDEO_SUFFIXES = (".mp4", ".mkv", ".avi", ".mov", ".webm", ".m4v", ".mpg", ".mpeg")

Image = UInt8[np.ndarray, "H W 3"]

_APART = 0.75
"""Frames of one number may be apart by this share of the time that one lasts: clocks count in milliseconds."""
_MISSING_FRAMES, _MISSING_SHARE = 2, 0.05
"""Some containers only estimate how many frames they hold; more than this are missing."""


@dataclass(frozen=True, kw_only=True)
class NamedPair:
    """A rectified pair, RGB, and the name under which its results are written."""

    name: str
    left: UInt8[np.ndarray, "H W 3"]
    right: UInt8[np.ndarray, "H W 3"]


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Pairs in order, read when they are asked for.

    Attributes:
        left, right: what the user named; `right` is None where both views stand side by side in `left`.
        count: how many pairs; None where only reading will tell, as with videos.
        files: the files of each pair under its name; empty for videos.
    """

    left: str
    right: str | None
    count: int | None
    files: dict[str, tuple[Path, ...]]

    def without(self, names: Collection[str]) -> "Pairs":
        """Return the pairs of other names."""
        files = {name: paths for name, paths in self.files.items() if name not in names}
        return replace(self, count=len(files), files=files)

    def __iter__(self) -> Iterator[NamedPair]:
        if self.files:
            for name, paths in self.files.items():
                yield _pair(name, [read_rgb(path) for path in paths], str(paths[0]))
            return
        paths = [Path(video) for video in (self.left, self.right) if video is not None]
        for number, frames in enumerate(zip_longest(*(_frames(path) for path in paths))):
            present = [frame for frame in frames if frame is not None]
            if len(present) < len(paths):
                longer, shorter = paths if frames[1] is None else reversed(paths)
                raise DataError(
                    f"{longer}: continues after {shorter} ends at frame {number}; if they began together, and no frame "
                    "is missing in between, cut it to that length"
                )
            if abs(present[0].at_s - present[-1].at_s) > _APART * present[0].lasts_s:
                late = paths[0] if present[0].at_s > present[1].at_s else paths[1]
                raise DataError(
                    f"{late}: lacks a frame before frame {number}: from there on the views are "
                    f"{abs(present[0].at_s - present[1].at_s):.3f} s apart; pairs before it are good"
                )
            yield _pair(f"{paths[0].stem}_{number:06d}", [frame.image for frame in present], str(paths[0]))


def find_pairs(left: str, right: str | None) -> Pairs:
    """Return the pairs that two arguments name: files, folders, globs or videos; one argument means side by side.

    Folders pair files of the same name (without suffix). Globs pair what their wildcards stand for: `a/*/im0.png` and
    `a/*/im1.png` pair scene by scene, `left*.jpg` and `right*.jpg` number by number.

    Raises:
        DataError: nothing is there, or an image lacks its partner.
    """
    found = [_matches(text) for text in (left, right) if text is not None]
    videos = [_is_video(text) for text in (left, right) if text is not None]
    if all(videos):
        return Pairs(left=left, right=right, count=None, files={})
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
    return Pairs(left=left, right=right, count=len(files), files=files)


def read_fps(video: Path) -> float:
    """Return the nominal frames per second of a video; 30 where it states none."""
    capture = cv2.VideoCapture(str(video))
    try:
        fps = capture.get(cv2.CAP_PROP_FPS)
    finally:
        capture.release()
    return fps if 0 < fps < math.inf else 30.0


def _matches(text: str) -> dict[str, Path]:
    """Return name of the pair -> file, for a file, a folder or a glob."""
    path = Path(text)
    if not text.strip():
        raise DataError("the name of an image, folder, glob or video is empty")
    if path.is_file():
        return {path.stem: path}
    if path.is_dir():
        named: dict[str, Path] = {}
        for file in sorted(path.iterdir()):
            # macOS puts a ._ beside each file on disks of others.
            if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith("._"):
                _add(named, file.stem, file)
        if not named:
            raise DataError(f"{text}: a folder without images ({', '.join(IMAGE_SUFFIXES)})")
        return named
    if not re.search(r"[*?]", text):
        raise DataError(f"{text}: no such file or folder")
    pattern = re.compile("".join(_as_regex(part) for part in re.split(r"(\*\*/|\*|\?)", path.as_posix())))
    anchor = Path(path.anchor)
    relative = path.relative_to(anchor) if path.anchor else path
    named = {}
    # Of what pathlib takes for wildcards only * and ? are meant; folders may well have brackets in their names.
    wanted = relative.as_posix().replace("[", "[[]")
    for file in sorted((anchor if path.anchor else Path()).glob(wanted)):
        match = pattern.fullmatch(file.as_posix())
        if match is not None and file.is_file():
            _add(named, _name_of(match.groups(), file), file)
    if not named:
        raise DataError(f"{text}: matches no file")
    return named


def _name_of(parts: tuple[str | None, ...], file: Path) -> str:
    """Return what the wildcards of a glob stand for as a name, without the suffix of the file and bare separators."""
    name = "_".join(part.strip("/").replace("/", "_") for part in parts if part).removesuffix(file.suffix)
    return name.strip("_-. ") or "pair"


def _add(named: dict[str, Path], name: str, file: Path) -> None:
    if name in named:
        raise DataError(f"{file}: would have the same name as {named[name]}, {name}; which of the two is meant?")
    named[name] = file


def _as_regex(part: str) -> str:
    return {"**/": "((?:.*/)?)", "*": "([^/]*)", "?": "([^/])"}.get(part, re.escape(part))


def _is_many(text: str) -> bool:
    return not Path(text).is_file()


def _is_video(text: str) -> bool:
    return Path(text).is_file() and Path(text).suffix.lower() in VIDEO_SUFFIXES


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """One frame of a video: when it is shown, counted from the first one, and for how long, s; RGB."""

    image: Image
    at_s: float
    lasts_s: float


def _frames(path: Path) -> Iterator[_Frame]:
    capture = cv2.VideoCapture(str(path))
    try:
        number, first_s = 0, 0.0
        promised, rate = capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)
        lasts_s = 1 / rate if 0 < rate < math.inf else math.inf  # without a rate nothing is said of time
        while capture.grab():
            at_s = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            first_s = first_s if number else at_s
            retrieved, bgr = capture.retrieve()
            if not retrieved:
                raise DataError(f"{path}: frame {number} cannot be decoded")
            image = np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)
            yield _Frame(image=image, at_s=at_s - first_s, lasts_s=lasts_s)
            number += 1
        if number == 0:
            raise DataError(f"{path}: is not a video that can be decoded")
        if promised - number > max(_MISSING_FRAMES, _MISSING_SHARE * promised):
            raise DataError(f"{path}: only {number} of {promised:.0f} frames can be decoded; is it damaged, or cut?")
    finally:
        capture.release()


def _pair(name: str, images: list[Image], source: str) -> NamedPair:
    if len(images) == 2:
        left, right = images
    else:
        width = images[0].shape[1]
        if width % 2:
            raise DataError(f"{source}: is {width} px wide, so it does not hold two views of one width side by side")
        left, right = images[0][:, : width // 2], images[0][:, width // 2 :]
    if left.shape != right.shape:
        raise DataError(
            f"{source}: is {left.shape[1]}x{left.shape[0]}, but its right view is {right.shape[1]}x{right.shape[0]}; a "
            "rectified pair has one size"
        )
    return NamedPair(name=name, left=left, right=right)

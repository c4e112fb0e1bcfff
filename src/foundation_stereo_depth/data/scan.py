"""Scanning the scenes of a FoundationStereo tree and keeping what was found: a million samples are 3,000,000 files.

    <root>/<scene>/dataset/data/{left/rgb,right/rgb}/NNNN.{jpg,jpeg,png}   and   left/disparity/NNNN.png

A folder's own times change whenever a file in it comes, goes or is renamed. So a kept scan is held against the times
of three folders a scene, and only scenes where something happened are scanned again.
"""

import hashlib
import json
import os
import time
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int32, UInt8
from tqdm import tqdm

from foundation_stereo_depth.data.sample import as_utf8
from foundation_stereo_depth.files import write_atomically

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
"""In order of preference, should one frame come in several."""
DISPARITY_SUFFIX = ".png"

DATA = Path("dataset/data")
LEFT, RIGHT, DISPARITY = DATA / "left/rgb", DATA / "right/rgb", DATA / "left/disparity"

_FORMAT = 1
_WORTH_KEEPING = 20_000
"""Samples from which on a scan is kept; fewer are scanned in a fraction of a second."""
_BAR_AFTER_S = 1.0
_SETTLED_NS = 2 * 10**9
"""A folder that changed so shortly before its scan may change again within one tick of the file system's clock, which
nobody could see (FAT's ticks are two seconds; others' are shorter)."""

_WHAT_DAMAGE_RAISES = (
    OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Incomplete:
    """A frame that lacks an eye or its disparity map."""

    name: str
    missing: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name} (no {', no '.join(self.missing)})"


@dataclass(frozen=True, kw_only=True)
class SceneScan:
    """The frames of one scene, sorted by name.

    Attributes:
        times_ns: when the three folders last changed, and when they were scanned.
        stems: names of the complete frames in UTF-8, one after the other.
        lengths: of each name, bytes.
        suffixes: for each frame, the positions in IMAGE_SUFFIXES of its left and right picture.
        incomplete: frames that were left out.
    """

    times_ns: tuple[int, ...]
    stems: UInt8[np.ndarray, " bytes"]
    lengths: Int32[np.ndarray, " frames"]
    suffixes: UInt8[np.ndarray, "frames 2"]
    incomplete: tuple[Incomplete, ...]


def scan(root: Path, scenes: Sequence[str], keep_in: Path | None) -> tuple[list[SceneScan], str]:
    """The frames of each scene, and what the user should know of keeping them, or "".

    Args:
        root: the data set.
        scenes: folders in it.
        keep_in: a folder that keeps a large scan until the next time; None keeps nothing.
    """
    kept = None if keep_in is None else _kept_file(root, keep_in)
    known = {} if kept is None else _load(kept, root)
    scans: list[SceneScan] = []
    fresh = 0
    for scene in _shown(scenes):
        times_ns = _times_ns(root / scene)
        found = known.get(scene)
        if found is None or found.times_ns[:-1] != times_ns or max(times_ns) + _SETTLED_NS > found.times_ns[-1]:
            found = _scan_scene(root, scene, times_ns)
            fresh += 1
        scans.append(found)
    large = sum(len(found.lengths) for found in scans) >= _WORTH_KEEPING
    if kept is not None and large and (fresh or len(scans) != len(known)):
        try:
            _save(kept, root, scenes, scans)
        except OSError as error:
            return scans, f"{kept}: {error.strerror}; so the data set is scanned again at the next start"
    return scans, ""


def _shown(scenes: Sequence[str]) -> Iterator[str]:
    """The scenes, with a bar once they have taken a second: a bar is a thread, which small scans should not leave."""
    began_s = time.monotonic()
    for done, scene in enumerate(scenes):
        yield scene
        if time.monotonic() - began_s > _BAR_AFTER_S:
            rest = scenes[done + 1 :]
            yield from tqdm(
                rest,
                desc="scanning",
                unit="scene",
                initial=done + 1,
                total=len(scenes),
                dynamic_ncols=True,
                leave=False,
            )
            return


def _scan_scene(root: Path, scene: str, times_ns: tuple[int, ...]) -> SceneScan:
    scanned_at_ns = time.time_ns()
    left = _frames(root / scene / LEFT, IMAGE_SUFFIXES)
    right = _frames(root / scene / RIGHT, IMAGE_SUFFIXES)
    disparity = _frames(root / scene / DISPARITY, (DISPARITY_SUFFIX,))
    complete = sorted(left.keys() & right.keys() & disparity.keys())
    parts = {"left picture": left, "right picture": right, "disparity map": disparity}
    incomplete = [
        Incomplete(name=f"{scene}/{stem}", missing=tuple(part for part, found in parts.items() if stem not in found))
        for stem in sorted((left.keys() | right.keys() | disparity.keys()) - set(complete))
    ]
    stems = [as_utf8(stem) for stem in complete]
    return SceneScan(
        times_ns=(*times_ns, scanned_at_ns),
        stems=np.frombuffer(b"".join(stems), np.uint8),
        lengths=np.fromiter(map(len, stems), np.int32, len(stems)),
        suffixes=np.array([(left[stem], right[stem]) for stem in complete], np.uint8).reshape(-1, 2),
        incomplete=tuple(incomplete),
    )


def _frames(folder: Path, suffixes: tuple[str, ...]) -> dict[str, int]:
    """Frame name -> position of its suffix; the preferred suffix where a frame has several."""
    try:
        names = os.listdir(folder)  # noqa: PTH208 (a Path for each of a million files costs more than the scan)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    position_of = {suffix: position for position, suffix in enumerate(suffixes)}
    frames: dict[str, int] = {}
    for name in names:
        stem, dot, suffix = name.rpartition(".")
        position = position_of.get(dot + suffix)
        if position is not None and stem and frames.get(stem, position) >= position:
            frames[stem] = position
    return frames


def _times_ns(scene: Path) -> tuple[int, ...]:
    """When the names in a scene's folders last changed; of the two times, the second cannot be set back by a copy."""
    times: list[int] = []
    for part in (LEFT, RIGHT, DISPARITY):
        try:
            facts = os.stat(f"{scene}/{part}")  # noqa: PTH116 (as above)
        except (FileNotFoundError, NotADirectoryError):
            times += (0, 0)
        else:
            times += (facts.st_mtime_ns, facts.st_ctime_ns)
    return tuple(times)


def _kept_file(root: Path, keep_in: Path) -> Path:
    digest = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:12]
    return keep_in / f"index-{digest}.npz"


def _save(path: Path, root: Path, scenes: Sequence[str], scans: Sequence[SceneScan]) -> None:
    header = {
        "format_version": _FORMAT,
        "root": str(root.resolve()),
        "scenes": list(scenes),
        "incomplete": [[(frame.name, frame.missing) for frame in scan.incomplete] for scan in scans],
    }
    arrays = {
        "header": np.frombuffer(json.dumps(header).encode(), np.uint8),
        "times_ns": np.array([scan.times_ns for scan in scans], np.int64),
        "frames": np.array([len(scan.lengths) for scan in scans], np.int64),
        "stems": np.concatenate([scan.stems for scan in scans]),
        "lengths": np.concatenate([scan.lengths for scan in scans]),
        "suffixes": np.concatenate([scan.suffixes for scan in scans]),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: np.savez(file, **arrays), durable=False)  # pyright: ignore[reportArgumentType]


def _load(path: Path, root: Path) -> dict[str, SceneScan]:
    """Scene -> its scan, as it was kept; empty where nothing is, what another version kept, or what is damaged."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            header = json.loads(kept["header"].tobytes())
            if header["format_version"] != _FORMAT or header["root"] != str(root.resolve()):
                return {}
            lengths = kept["lengths"]
            until = np.cumsum(kept["frames"])[:-1]
            stems_until = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])[until]
            parts = zip(
                header["scenes"],
                kept["times_ns"].tolist(),
                np.split(kept["stems"], stems_until),
                np.split(lengths, until),
                np.split(kept["suffixes"], until),
                header["incomplete"],
                strict=True,
            )
            return {
                scene: SceneScan(
                    times_ns=tuple(times_ns),
                    stems=stems,
                    lengths=of_each,
                    suffixes=suffixes,
                    incomplete=tuple(Incomplete(name=name, missing=tuple(missing)) for name, missing in incomplete),
                )
                for scene, times_ns, stems, of_each, suffixes, incomplete in parts
            }
    except _WHAT_DAMAGE_RAISES:  # a shortcut that a power cut tore, or that is another user's: scanned anew
        return {}

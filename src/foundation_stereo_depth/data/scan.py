"""Scan the scenes of a FoundationStereo tree and keep the result: a million samples are three million files.

    <root>/<scene>/dataset/data/{left/rgb,right/rgb}/NNNN.{jpg,jpeg,png}   and   left/disparity/NNNN.png

Suffixes may be written in capitals, as cameras do; names that begin with a dot are no frames.

A folder's own times change whenever a file in it is added, removed or renamed. So a kept scan is compared with the
times of three folders per scene, and only scenes where they have changed are scanned again.
"""

import hashlib
import io
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int32, UInt8
from tqdm import tqdm

from foundation_stereo_depth.data.file_kinds import all_capitals, is_hidden
from foundation_stereo_depth.data.sample import Incomplete, encode_name
from foundation_stereo_depth.errors import DataError
from foundation_stereo_depth.files import open_zip, read_regular_file, write_atomically

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = tuple(variant for suffix in (".jpg", ".jpeg", ".png") for variant in all_capitals(suffix))
"""In order of preference, should one frame come in several."""
DISPARITY_SUFFIXES = tuple(all_capitals(".png"))

DATA = Path("dataset/data")
LEFT, RIGHT, DISPARITY = DATA / "left/rgb", DATA / "right/rgb", DATA / "left/disparity"

_FORMAT = 2
_KEEP_FROM_SAMPLES = 20_000
"""Fewer samples are scanned in a fraction of a second."""
_LARGEST_KEPT_BYTES = 2 * 10**8
"""A million samples take some ten megabytes."""
_TIMES = 7
"""Two times of each of three folders, and when they were scanned."""
_BAR_AFTER_S = 1.0
_SETTLED_NS = 2 * 10**9
"""A folder that changed so shortly before its scan may change again within one tick of the file system's clock without
a change of its time (FAT's ticks are two seconds; others' are shorter)."""


@dataclass(frozen=True, kw_only=True)
class SceneScan:
    """The frames of one scene, sorted by name.

    Attributes:
        times_ns: when the three folders last changed, and when they were scanned.
        stems: names of the complete frames in UTF-8, one after the other.
        lengths: of each name, bytes.
        suffixes: for each frame, the positions in IMAGE_SUFFIXES of its left and right image, and the position in
            DISPARITY_SUFFIXES of its disparity map.
        incomplete: frames that were left out.
    """

    times_ns: tuple[int, ...]
    stems: UInt8[np.ndarray, " bytes"]
    lengths: Int32[np.ndarray, " frames"]
    suffixes: UInt8[np.ndarray, "frames 3"]
    incomplete: tuple[Incomplete, ...]


def scan_scenes(root: Path, scenes: Sequence[str], keep_in: Path | None) -> list[SceneScan]:
    """Return the frames of each scene.

    Args:
        root: the data set.
        scenes: folders in it.
        keep_in: a folder that keeps a large scan until the next time; None keeps nothing.
    """
    kept = None if keep_in is None else _kept_file(root, keep_in)
    known = {} if kept is None else _load(kept, root)
    scans: list[SceneScan] = []
    fresh = 0
    for scene in _show_progress(scenes):
        times_ns = _times_ns(root / scene)
        found = known.get(scene)
        if found is None or found.times_ns[:-1] != times_ns or max(times_ns) + _SETTLED_NS > found.times_ns[-1]:
            found = _scan_scene(root, scene, times_ns)
            fresh += 1
        scans.append(found)
    large = sum(len(found.lengths) for found in scans) >= _KEEP_FROM_SAMPLES
    if kept is not None and large and (fresh or len(scans) != len(known)):
        try:
            _save(kept, root, scenes, scans)
        except OSError as error:
            logger.warning("%s: %s; so the data set is scanned again at the next start", kept, error.strerror)
    return scans


def _show_progress(scenes: Sequence[str]) -> Iterator[str]:
    """Yield the scenes, with a bar once they have taken a second: a bar starts a thread, which small scans avoid."""
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
    disparity = _frames(root / scene / DISPARITY, DISPARITY_SUFFIXES)
    complete = sorted(left.keys() & right.keys() & disparity.keys())
    parts = {"left image": left, "right image": right, "disparity map": disparity}
    incomplete = [
        Incomplete(name=f"{scene}/{stem}", missing=tuple(part for part, found in parts.items() if stem not in found))
        for stem in sorted((left.keys() | right.keys() | disparity.keys()) - set(complete))
    ]
    stems = [encode_name(stem) for stem in complete]
    return SceneScan(
        times_ns=(*times_ns, scanned_at_ns),
        stems=np.frombuffer(b"".join(stems), np.uint8),
        lengths=np.fromiter(map(len, stems), np.int32, len(stems)),
        suffixes=np.array([(left[stem], right[stem], disparity[stem]) for stem in complete], np.uint8).reshape(-1, 3),
        incomplete=tuple(incomplete),
    )


def _frames(folder: Path, suffixes: tuple[str, ...]) -> dict[str, int]:
    """Return frame name -> position of its suffix; the preferred suffix where a frame has several."""
    try:
        names = os.listdir(folder)  # noqa: PTH208 (a Path for each of a million files costs more than the scan)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    position_of = {suffix: position for position, suffix in enumerate(suffixes)}
    frames: dict[str, int] = {}
    for name in names:
        stem, dot, suffix = name.rpartition(".")
        position = position_of.get(dot + suffix)
        if position is not None and stem and not is_hidden(name) and frames.get(stem, position) >= position:
            frames[stem] = position
    return frames


def _times_ns(scene: Path) -> tuple[int, ...]:
    """Return when the names in a scene's folders last changed; the second of two times survives copying tools."""
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
    """Return scene -> its kept scan; nothing where the file is absent, damaged, or of another version or root.

    It is a shortcut: whatever is wrong with it, the data set is scanned again.
    """
    try:
        encoded = read_regular_file(path, at_most_bytes=_LARGEST_KEPT_BYTES, error_type=DataError)
        open_zip(encoded, at_most_bytes=len(encoded))
        with np.load(io.BytesIO(encoded), allow_pickle=False) as kept:
            return _parse_kept(dict(kept), root)
    except Exception as error:  # truncated by a power cut, or written by another program
        logger.debug("%s: is not used (%s)", path, error)
        return {}


def _parse_kept(arrays: dict[str, np.ndarray], root: Path) -> dict[str, SceneScan]:
    header = json.loads(arrays["header"].tobytes())
    if header["format_version"] != _FORMAT or header["root"] != str(root.resolve()):
        return {}
    scenes = header["scenes"]
    frames = _checked(arrays["frames"], np.int64, (len(scenes),))
    samples = int(frames.sum())
    lengths = _checked(arrays["lengths"], np.int32, (samples,))
    stems = _checked(arrays["stems"], np.uint8, (int(lengths.sum(dtype=np.int64)),))
    suffixes = _checked(arrays["suffixes"], np.uint8, (samples, 3))
    times_ns = _checked(arrays["times_ns"], np.int64, (len(scenes), _TIMES))
    names = stems.tobytes().decode()
    if "/" in names or "\0" in names or lengths.min(initial=1) < 1 or frames.min(initial=0) < 0:
        raise ValueError("its names are none of frames")
    if (suffixes >= (len(IMAGE_SUFFIXES), len(IMAGE_SUFFIXES), len(DISPARITY_SUFFIXES))).any():
        raise ValueError("its suffixes are unknown")
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    if ((stems[starts[:-1]] & 0xC0) == 0x80).any():
        raise ValueError("a name of it begins within a character")
    until = np.cumsum(frames)[:-1]
    parts = zip(
        scenes,
        times_ns.tolist(),
        np.split(stems, starts[until]),
        np.split(lengths, until),
        np.split(suffixes, until),
        header["incomplete"],
        strict=True,
    )
    return {
        str(scene): SceneScan(
            times_ns=tuple(times),
            stems=stems_of,
            lengths=lengths_of,
            suffixes=suffixes_of,
            incomplete=tuple(
                Incomplete(name=str(name), missing=tuple(map(str, missing))) for name, missing in left_out
            ),
        )
        for scene, times, stems_of, lengths_of, suffixes_of, left_out in parts
    }


def _checked(array: np.ndarray, dtype: type[np.generic], shape: tuple[int, ...]) -> np.ndarray:
    if array.dtype != dtype or array.shape != shape:
        raise ValueError(f"holds {array.dtype} {array.shape}, not {np.dtype(dtype)} {shape}")
    return array

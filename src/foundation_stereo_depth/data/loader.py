"""Files -> batches: samples from a cache, from the data set, or from both, and what reading them meets."""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8

from foundation_stereo_depth.data.batch import Positions, ReadCounts, StereoBatch
from foundation_stereo_depth.data.cache import (
    DamagedEntryError,
    MissingEntryError,
    RefusedEntryError,
    SampleCache,
    as_cached,
    open_cache,
)
from foundation_stereo_depth.data.fsd import (
    FsdIndex,
    Split,
    find_samples,
    fingerprint,
    read_fsd_sample,
    source_stamp,
    split_samples,
    take_spread,
)
from foundation_stereo_depth.data.loops import Loops, loops_for_many
from foundation_stereo_depth.data.memory import BatchMemory, keep_freed_memory
from foundation_stereo_depth.data.read_ahead import pick_workers, read_ahead
from foundation_stereo_depth.data.sample import SampleNames, SourceStamp, StereoSample
from foundation_stereo_depth.errors import DataError
from foundation_stereo_depth.options.training import DataOptions

_LOOKED_AT = 32
"""Cache entries whose files are looked at when training starts: a second at worst, on a disk that has to seek."""
_LEFT_FREE = 0.01
"""Share of the cache's disk that training leaves free: checkpoints may have to go to the same one."""


class Once:
    """Tells the first line that it is given, whichever thread comes first, and no other."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell, self._first = tell, threading.Lock()

    def __call__(self, line: str) -> None:
        """Tells the line, if it is the first."""
        if self._first.acquire(blocking=False):
            self._tell(line)


def tell_on_stderr(line: str) -> None:
    """One line on standard error."""
    print(line, file=sys.stderr)


@dataclass(frozen=True, kw_only=True)
class FileReader:
    """Samples at the network's size: from the cache, else from their files, or both as the other's fallback.

    Attributes:
        names: every sample that may be asked for.
        index: the files behind them; None where only the cache is at hand.
        cache: where entries are read and written; None without a cache.
        require_cache: a sample without a usable entry is an error.
        warn: is told once when entries cannot be written.
    """

    names: SampleNames
    index: FsdIndex | None
    cache: SampleCache | None
    require_cache: bool
    height: int
    width: int
    warn: Once = field(default_factory=lambda: Once(tell_on_stderr))

    def read(self, i: int, place: StereoSample | None = None) -> tuple[StereoSample, ReadCounts]:
        """Sample i; `place` itself where it was read from the cache straight into that.

        Raises:
            DataError: it cannot be had; the message names the file.
        """
        rebuilt: tuple[str, ...] = ()
        scene, stem = self.names.scene(i), self.names.stem(i)
        if self.cache is not None:
            try:
                cached = self.cache.read(scene, stem, place)
            except DamagedEntryError:
                if self.require_cache or self.index is None:
                    raise
                cached, rebuilt = None, (str(self.cache.path(scene, stem)),)
            if cached is not None:
                return cached, ReadCounts(cache_hits=1)
            if self.require_cache or self.index is None:
                raise MissingEntryError(
                    f"{self.cache.path(scene, stem)}: no such entry, and --require-cache allows no other source; fill "
                    "the cache with foundation-stereo-cache"
                )
        sample, source = self.from_files(i, loops_for_many())
        if self.cache is None:
            return sample, ReadCounts()
        try:
            written = self.cache.write(scene, stem, sample, source, leave_free=_LEFT_FREE)
        except (OSError, RefusedEntryError) as error:
            # Full, read-only, forbidden: the epoch does not need the entry, only later ones would gain from it.
            reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
            reason += ", and what is there is damaged" if rebuilt else ""
            self.warn(
                f"the cache cannot be written ({reason}): training goes on from the data set itself, and "
                "data/cache_unwritten counts such samples"
            )
            return as_cached(sample), ReadCounts(cache_misses=1, unwritten=1)
        return written, ReadCounts(cache_misses=1, rebuilt=rebuilt)

    def rehearse(self, i: int) -> None:
        """Does the work of reading sample i, changes nothing, and leaves complaints to whoever reads it in earnest."""
        with contextlib.suppress(DataError):
            cached = None
            if self.cache is not None:
                cached = self.cache.read(self.names.scene(i), self.names.stem(i))
            if cached is None and self.index is not None:
                self.from_files(i)

    def from_files(self, i: int, loops: Loops | None = None) -> tuple[StereoSample, SourceStamp]:
        """Sample i from its own files, faster with compiled loops, and what they were.

        Raises:
            DataError: a file cannot be read.
        """
        assert self.index is not None, "a reader has a cache, files, or both"
        paths = self.index.paths(i)
        source = source_stamp(paths)
        return read_fsd_sample(paths, (self.height, self.width), loops), source


def _some_of(taken: Positions, at_most: int) -> list[int]:
    """Positions in random order, others at each start."""
    return np.random.default_rng().choice(taken, min(at_most, len(taken)), replace=False).tolist()


def _outdated(reader: FileReader, taken: Positions) -> int:
    """How many of a few entries, other ones at each start, were made of other files than there are now.

    Looking at the files of every entry would cost what the cache is there to save.
    """
    assert reader.cache is not None
    assert reader.index is not None
    outdated = 0
    for i in _some_of(taken, _LOOKED_AT):
        # What is damaged or missing is met, and told, when it is read.
        with contextlib.suppress(DataError):
            made_of = reader.cache.source(reader.names.scene(i), reader.names.stem(i))
            now = source_stamp(reader.index.paths(i))
            outdated += made_of is not None and not np.array_equal(made_of, now)
    return outdated


@dataclass(frozen=True, kw_only=True)
class FileSource:
    """Batches of some of a reader's samples."""

    reader: FileReader
    positions: Positions
    workers: int
    skip_bad: bool
    pin_memory: bool = False
    memory: BatchMemory = field(default_factory=BatchMemory)

    def __len__(self) -> int:
        return len(self.positions)

    def name(self, index: int) -> str:
        """`<scene>/<stem>`."""
        return self.reader.names.name(int(self.positions[index]))

    def batches(self, plan: Sequence[Positions], epoch: int) -> Iterator[StereoBatch]:  # noqa: ARG002 (files stay)
        """One batch per entry of `plan`, in order, read ahead by threads."""
        return read_ahead(plan, self._read_batch, self.workers)

    def _read_batch(self, indices: Positions) -> StereoBatch:
        room = self._room(len(indices))
        counts, unread = ReadCounts(), list[int]()
        for row, index in enumerate(indices):
            place = StereoSample(left=room.left[row], right=room.right[row], disparity_px=room.disparity_px[row])
            try:
                sample, met = self.reader.read(int(self.positions[index]), place)
            except DataError as error:
                # A sample that is not there is none that is bad: the cache is not the one that was meant.
                if not self.skip_bad or isinstance(error, MissingEntryError):
                    raise
                sample, met = place, ReadCounts(bad=(str(error),))
                unread.append(row)
            if sample is not place:
                place.left[...], place.right[...] = sample.left, sample.right
                place.disparity_px[...] = sample.disparity_px
            counts = counts.plus(met)
        if unread:
            # All unknown: such a sample keeps its place in the batch and adds nothing to loss or metrics. It shows what
            # a good one shows, since a black pair would weigh in where a network normalises over the batch.
            good = next((row for row in range(len(indices)) if row not in unread), None)
            room.left[unread], room.right[unread] = (0, 0) if good is None else (room.left[good], room.right[good])
            room.disparity_px[unread] = np.nan
        # [B,H,W,3] seen as [B,3,H,W] is what torch calls channels_last: nothing is copied.
        batch = StereoBatch(
            left=torch.from_numpy(room.left).permute(0, 3, 1, 2),
            right=torch.from_numpy(room.right).permute(0, 3, 1, 2),
            disparity_px=torch.from_numpy(room.disparity_px)[:, None],
            indices=torch.from_numpy(np.asarray(indices, np.int64)),
            counts=counts,
        )
        return batch.pinned() if self.pin_memory else batch

    def _room(self, B: int) -> "_Room":
        H, W = self.reader.height, self.reader.width
        # What a cache holds is float16, and so stays small until it is on the device.
        disparity = np.dtype(np.float32 if self.reader.cache is None else np.float16)
        picture_bytes, disparity_bytes = B * H * W * 3, B * H * W * disparity.itemsize
        block = self.memory.take(2 * picture_bytes + disparity_bytes)
        left, right, disparity_px = np.split(block, [picture_bytes, 2 * picture_bytes])
        return _Room(left.reshape(B, H, W, 3), right.reshape(B, H, W, 3), disparity_px.view(disparity).reshape(B, H, W))


class _Room(NamedTuple):
    """Arrays for a batch, as samples are laid out."""

    left: UInt8[np.ndarray, "B H W 3"]
    right: UInt8[np.ndarray, "B H W 3"]
    disparity_px: Float[np.ndarray, "B H W"]


class FileData(NamedTuple):
    """Both halves of a data set on disk, with what a run records about it."""

    train: FileSource
    validation: FileSource
    facts: dict[str, str | int]
    split: Split
    incomplete: tuple[str, ...]
    reading: str


def open_files(
    options: DataOptions,
    dataset_root: Path | None,
    *,
    pin_memory: bool,
    tell: Callable[[str], None] = tell_on_stderr,
) -> FileData:
    """The data set at `dataset_root`, or the one that a cache alone holds.

    Args:
        options: where it is, and how much of it is wanted.
        dataset_root: the FoundationStereo folder; None reads a cache alone.
        pin_memory: put batches into page-locked memory.
        tell: says to the user that the cache is out of date, or, once, that it cannot be written.

    Raises:
        DataError: nothing usable is there.
    """
    cache = None if options.cache_root is None else open_cache(options.cache_root, options.height, options.width)
    # A folder that the user takes for a whole cache, and that is not there, is not made.
    keep_in = options.cache_root if cache is None or cache.root.is_dir() or not options.require_cache else None
    index = None if dataset_root is None else find_samples(dataset_root, keep_in, tell)
    if index is not None:
        keep_freed_memory()
        names, incomplete = index.names, tuple(str(frame) for frame in index.incomplete)
    else:
        assert cache is not None, "called with a data set, a cache, or both"
        names, incomplete = cache.names(), ()
    if cache is not None and index is not None:
        if not options.require_cache:
            with contextlib.suppress(OSError):  # which reading will meet again, and tell
                cache.make_root()
        cache.refuse_twins(names)
    taken = take_spread(names, options.max_samples)
    split = split_samples(names, taken, options.val_fraction)
    reader = FileReader(
        names=names,
        index=index,
        cache=cache,
        require_cache=options.require_cache,
        height=options.height,
        width=options.width,
        warn=Once(tell),
    )
    if cache is not None and index is not None and (outdated := _outdated(reader, taken)):
        tell(
            f"{outdated} of {min(_LOOKED_AT, len(taken))} cache entries that were looked at were made of files that "
            "have changed, and are used as they are; foundation-stereo-cache makes all such entries anew"
        )
    if options.num_workers == "auto":
        workers, why = pick_workers(reader.rehearse, _some_of(taken, 4096))
    else:
        workers, why = options.num_workers, "as --num-workers says"

    def source(positions: Positions) -> FileSource:
        return FileSource(
            reader=reader, positions=positions, workers=workers, skip_bad=options.skip_bad, pin_memory=pin_memory
        )

    facts: dict[str, str | int] = {
        "dataset": str(dataset_root or options.cache_root),
        "dataset_fingerprint": fingerprint(names.some(taken)),
        "train_samples": len(split.train),
        "validation_samples": len(split.validation),
        "split_by": split.by,
        "incomplete_samples": len(incomplete),
        "reading_threads": workers,
    }
    reading = f"reading with {workers} thread{'' if workers == 1 else 's'} ({why})"
    return FileData(source(split.train), source(split.validation), facts, split, incomplete, reading)

"""Samples -> batches: what an epoch visits in which order, and threads that read ahead of the trainer.

The order and every random draw follow from (seed, epoch, index) alone. Threads rather than processes: decoding and
file reading release Python's lock, nothing is copied or pickled, and a worker cannot be left behind.
"""

import contextlib
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from foundation_stereo_depth.data.cache import DamagedEntryError, RefusedEntryError, SampleCache, as_cached, open_cache
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
from foundation_stereo_depth.data.sample import SampleNames, SourceStamp, StereoSample, resize_sample
from foundation_stereo_depth.errors import DataError
from foundation_stereo_depth.options import DataOptions

Task = TypeVar("Task")
Result = TypeVar("Result")
Positions = Int64[np.ndarray, " _"]

_LOOKED_AT = 32
"""Cache entries whose files are looked at when training starts: a second at worst, on a disk that has to seek."""
_LEFT_FREE = 0.01
"""Share of the cache's disk that training leaves free: checkpoints may have to go to the same one."""
VALIDATION_EPOCH = -1
"""The epoch whose draws validation uses, always the same."""


class ReadCounts(NamedTuple):
    """What reading cost and what it met; counts of two stretches add up field by field.

    Attributes:
        cache_hits, cache_misses: samples that were read from the cache, and from their own files though there is one.
        rebuilt: entries that were damaged and made anew.
        bad: samples that could not be read, with the reason.
        unwritten: misses that could not be written to the cache, so that the next epoch will miss them again.
    """

    cache_hits: int = 0
    cache_misses: int = 0
    rebuilt: tuple[str, ...] = ()
    bad: tuple[str, ...] = ()
    unwritten: int = 0

    def plus(self, other: "ReadCounts") -> "ReadCounts":
        """The counts of both."""
        return ReadCounts(
            self.cache_hits + other.cache_hits,
            self.cache_misses + other.cache_misses,
            self.rebuilt + other.rebuilt,
            self.bad + other.bad,
            self.unwritten + other.unwritten,
        )


@dataclass(frozen=True, kw_only=True)
class StereoBatch:
    """A batch as it travels to the device: bytes for pictures, no float yet.

    Attributes:
        left, right: RGB.
        disparity_px: of the left view, at this size; NaN or 0 where unknown.
        indices: the sample's position in its source, from which its random draws follow.
        counts: what reading it met.
    """

    left: UInt8[Tensor, "B 3 H W"]
    right: UInt8[Tensor, "B 3 H W"]
    disparity_px: Float[Tensor, "B 1 H W"]
    indices: Int64[Tensor, " B"]
    counts: ReadCounts = ReadCounts()

    def to(self, device: torch.device) -> "StereoBatch":
        """The batch on a device, without waiting where the memory is pinned."""
        if self.left.device == device:
            return self
        left, right, disparity_px, indices = (
            tensor.to(device, non_blocking=True) for tensor in (self.left, self.right, self.disparity_px, self.indices)
        )
        return replace(self, left=left, right=right, disparity_px=disparity_px, indices=indices)

    def pinned(self) -> "StereoBatch":
        """The batch in page-locked memory, from which a GPU copies without waiting."""
        return replace(
            self,
            left=self.left.pin_memory(),
            right=self.right.pin_memory(),
            disparity_px=self.disparity_px.pin_memory(),
        )


@runtime_checkable
class Source(Protocol):
    """Anything that yields batches of samples by position."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What messages call the sample."""
        ...

    def batches(self, plan: Sequence[Positions], epoch: int) -> Iterator[StereoBatch]:
        """One batch per entry of `plan`, in that order."""
        ...


def training_plan(
    length: int, batch_size: int, *, seed: int, epoch: int, rank: int = 0, world_size: int = 1
) -> list[Positions]:
    """The batches of one epoch for one process: shuffled positions, the same for any number of processes.

    `batch_size` counts the samples of all processes together; each takes its part of every batch. The last batch is
    filled up from the beginning of the epoch's order, so that all batches have one size.
    """
    order = np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(length)
    steps = -(-length // batch_size)
    order = np.resize(order, steps * batch_size).reshape(steps, batch_size)
    part = batch_size // world_size
    return list(order[:, rank * part : (rank + 1) * part])


def validation_plan(length: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> list[Positions]:
    """Every position exactly once over all processes, in order; the last batch may be smaller."""
    mine = np.arange(rank, length, world_size)
    return [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]


def read_ahead(tasks: Iterable[Task], read: Callable[[Task], Result], workers: int) -> Iterator[Result]:
    """read(task) for each task, in order; `workers` threads keep up to two results each in stock. 0 reads in place."""
    if workers == 0:
        yield from map(read, tasks)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="read-ahead")
    stock: deque[Future[Result]] = deque()
    try:
        for task in tasks:
            stock.append(pool.submit(read, task))
            if len(stock) > 2 * workers:
                yield stock.popleft().result()
        while stock:
            yield stock.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def one_ahead(items: Iterable[Result]) -> Iterator[Result]:
    """The same items, each made by a thread while the one before it is in use."""
    iterator = iter(items)
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, iterator, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, iterator, None)
            yield item


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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

    def read(self, i: int) -> tuple[StereoSample, ReadCounts]:
        """Sample i.

        Raises:
            DataError: it cannot be had; the message names the file.
        """
        rebuilt: tuple[str, ...] = ()
        scene, stem = self.names.scene(i), self.names.stem(i)
        if self.cache is not None:
            try:
                cached = self.cache.read(scene, stem)
            except DamagedEntryError:
                if self.require_cache or self.index is None:
                    raise
                cached, rebuilt = None, (str(self.cache.path(scene, stem)),)
            if cached is not None:
                return cached, ReadCounts(cache_hits=1)
            if self.require_cache or self.index is None:
                raise DataError(
                    f"{self.cache.path(scene, stem)}: no such entry, and --require-cache allows no other source; fill "
                    "the cache with foundation-stereo-cache"
                )
        sample, source = self.from_files(i)
        if self.cache is None:
            return sample, ReadCounts()
        try:
            written = self.cache.write(scene, stem, sample, source, leave_free=_LEFT_FREE)
        except (OSError, RefusedEntryError) as error:
            # Full, read-only, forbidden: the epoch does not need the entry, only later ones would gain from it.
            reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
            self.warn(
                f"the cache cannot be written ({reason}): training goes on from the data set itself, and "
                "data/cache_unwritten counts such samples"
            )
            return as_cached(sample), ReadCounts(cache_misses=1, unwritten=1)
        return written, ReadCounts(cache_misses=1, rebuilt=rebuilt)

    def from_files(self, i: int) -> tuple[StereoSample, SourceStamp]:
        """Sample i from its own files, and what they were.

        Raises:
            DataError: a file cannot be read.
        """
        assert self.index is not None, "a reader has a cache, files, or both"
        paths = self.index.paths(i)
        source = source_stamp(paths)
        return resize_sample(read_fsd_sample(paths), self.height, self.width), source


def _outdated(reader: FileReader, taken: Positions) -> int:
    """How many of a few entries, other ones at each start, were made of other files than there are now.

    Looking at the files of every entry would cost what the cache is there to save.
    """
    assert reader.cache is not None
    assert reader.index is not None
    outdated = 0
    for i in np.random.default_rng().choice(taken, min(_LOOKED_AT, len(taken)), replace=False).tolist():
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

    def __len__(self) -> int:
        return len(self.positions)

    def name(self, index: int) -> str:
        """`<scene>/<stem>`."""
        return self.reader.names.name(int(self.positions[index]))

    def batches(self, plan: Sequence[Positions], epoch: int) -> Iterator[StereoBatch]:  # noqa: ARG002 (files stay)
        """One batch per entry of `plan`, in order, read ahead by threads."""
        return read_ahead(plan, self._read_batch, self.workers)

    def _read_batch(self, indices: Positions) -> StereoBatch:
        shape = (len(indices), self.reader.height, self.reader.width)
        left, right = np.zeros((*shape, 3), np.uint8), np.zeros((*shape, 3), np.uint8)
        disparity_px = np.full(shape, np.nan, np.float32)
        counts = ReadCounts()
        for row, index in enumerate(indices):
            try:
                sample, met = self.reader.read(int(self.positions[index]))
            except DataError as error:
                if not self.skip_bad:
                    raise
                # All unknown: the sample keeps its place in the batch and adds nothing to loss or metrics.
                counts = counts.plus(ReadCounts(bad=(str(error),)))
                continue
            left[row], right[row], disparity_px[row] = sample.left, sample.right, sample.disparity_px
            counts = counts.plus(met)
        # [B,H,W,3] seen as [B,3,H,W] is what torch calls channels_last: nothing is copied.
        batch = StereoBatch(
            left=torch.from_numpy(left).permute(0, 3, 1, 2),
            right=torch.from_numpy(right).permute(0, 3, 1, 2),
            disparity_px=torch.from_numpy(disparity_px)[:, None],
            indices=torch.from_numpy(np.asarray(indices, np.int64)),
            counts=counts,
        )
        return batch.pinned() if self.pin_memory else batch


class FileData(NamedTuple):
    """Both halves of a data set on disk, with what a run records about it."""

    train: FileSource
    validation: FileSource
    facts: dict[str, str | int]
    split: Split
    incomplete: tuple[str, ...]


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
    index = None if dataset_root is None else find_samples(dataset_root)
    if index is not None:
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
    # One core is left to the trainer; more than 8 threads only wait for Python's lock.
    workers = min(8, max(1, available_cores() - 1)) if options.num_workers == "auto" else options.num_workers

    def source(positions: Positions) -> FileSource:
        return FileSource(
            reader=reader, positions=positions, workers=workers, skip_bad=options.skip_bad, pin_memory=pin_memory
        )

    facts: dict[str, str | int] = {
        "dataset": str(dataset_root or options.cache_root),
        "dataset_fingerprint": fingerprint(names.name(int(i)) for i in taken),
        "train_samples": len(split.train),
        "validation_samples": len(split.validation),
        "split_by": split.by,
        "incomplete_samples": len(incomplete),
        "reading_threads": workers,
    }
    return FileData(source(split.train), source(split.validation), facts, split, incomplete)

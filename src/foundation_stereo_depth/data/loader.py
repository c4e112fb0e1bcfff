"""Files -> batches: samples from a cache, from a data set, or from both, and what reading them met."""

import contextlib
import itertools
import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
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
from foundation_stereo_depth.data.dataset import MixedDataset, StereoDataset, open_mixture
from foundation_stereo_depth.data.loops import COMPILE_FROM_SAMPLES, compile_loops
from foundation_stereo_depth.data.memory import BatchMemory, keep_freed_memory
from foundation_stereo_depth.data.prefetch import default_workers, prefetch
from foundation_stereo_depth.data.sample import SampleNames, SourceStamp, StereoSample
from foundation_stereo_depth.data.split import Split, fingerprint, rank_by_name, split_samples, take_spread
from foundation_stereo_depth.errors import DataError
from foundation_stereo_depth.options.datasets import DatasetRoots, DatasetSource, parse_dataset_sources
from foundation_stereo_depth.options.training import DataOptions

logger = logging.getLogger(__name__)

_PROBED_STAMPS = 32
"""Cache entries whose files are checked when training starts: a second at worst, on a disk that has to seek."""
_NAMED_MISSING = 3
_LEFT_FREE = 0.01
"""Fraction of the cache's disk that training leaves free: checkpoints may have to go to the same one."""


@dataclass(frozen=True, kw_only=True)
class FileReader:
    """Samples at the network's size: from the cache, else from the data set, or from one of them alone.

    Attributes:
        names: every sample that may be asked for.
        dataset: where they come from; None where only the cache is at hand.
        cache: where entries are read and written; None without a cache.
        require_cache: a sample without a usable entry is an error.
        height, width: of the samples.
        compile_loops: there are so many samples that decoding them by compiled loops pays.
    """

    names: SampleNames
    dataset: StereoDataset | None
    cache: SampleCache | None
    require_cache: bool
    height: int
    width: int
    compile_loops: bool = False
    _unwarned: threading.Lock = field(default_factory=threading.Lock)

    def read(self, i: int, into: StereoSample | None = None) -> tuple[StereoSample, ReadCounts]:
        """Return sample i; `into` itself where it was read from the cache straight into that.

        Raises:
            DataError: it cannot be read; the message names the file.
        """
        rebuilt: tuple[str, ...] = ()
        scene, stem = self.names.scene(i), self.names.stem(i)
        if self.cache is not None:
            try:
                cached = self.cache.read(scene, stem, into)
            except DamagedEntryError:
                if self.require_cache or self.dataset is None:
                    raise
                cached, rebuilt = None, (str(self.cache.path(scene, stem)),)
            if cached is not None:
                return cached, ReadCounts(cache_hits=1)
            if self.require_cache or self.dataset is None:
                raise MissingEntryError(
                    f"{self.cache.path(scene, stem)}: no such entry, and --require-cache allows no other source; fill "
                    "the cache with foundation-stereo-cache"
                )
        sample, stamp = self.read_source(i)
        if self.cache is None:
            return sample, ReadCounts()
        try:
            written = self.cache.write(scene, stem, sample, stamp, leave_free=_LEFT_FREE)
        except (OSError, RefusedEntryError) as error:
            # Full, read-only, forbidden: this epoch does not need the entry, only later ones would gain from it.
            self._warn_once(error, damaged=bool(rebuilt))
            return as_cached(sample), ReadCounts(cache_misses=1, unwritten=1)
        return written, ReadCounts(cache_misses=1, rebuilt=rebuilt)

    def read_source(self, i: int) -> tuple[StereoSample, SourceStamp]:
        """Return sample i from the data set itself, and the stamp of its files.

        Raises:
            DataError: a file cannot be read.
        """
        assert self.dataset is not None, "a reader has a cache, a data set, or both"
        if self.compile_loops:
            compile_loops()
        stamp = self.dataset.stamp(i)
        return self.dataset.read(i, (self.height, self.width)), stamp

    def count_outdated(self, positions: Sequence[int]) -> int:
        """Return how many of the entries were made of other files than there are now."""
        assert self.cache is not None
        assert self.dataset is not None
        outdated = 0
        for i in positions:
            # A damaged or missing entry is met, and reported, when it is read.
            with contextlib.suppress(DataError):
                made_of = self.cache.source(self.names.scene(i), self.names.stem(i))
                outdated += made_of is not None and not np.array_equal(made_of, self.dataset.stamp(i))
        return outdated

    def _warn_once(self, error: OSError | RefusedEntryError, *, damaged: bool) -> None:
        """Warn, whichever thread comes first, that entries cannot be written."""
        if self._unwarned.acquire(blocking=False):
            reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
            logger.warning(
                "the cache cannot be written (%s%s): training continues from the data set itself, and "
                "data/cache_unwritten counts such samples",
                reason,
                ", and what is there is damaged" if damaged else "",
            )


class Rotation(NamedTuple):
    """The samples that epochs take from one data set: `per_epoch` of `length` in turn, from where the last one ended.

    With a weight of 1 both are equal, and every epoch visits every sample once.
    """

    first: int
    length: int
    per_epoch: int

    def indices(self, epoch: int) -> Positions:
        """Return those of one epoch."""
        return self.first + (epoch * self.per_epoch + np.arange(self.per_epoch, dtype=np.int64)) % self.length


@dataclass(frozen=True, kw_only=True)
class FileSource:
    """Batches of some of a reader's samples.

    Attributes:
        reader: reads one sample.
        positions: of the samples in the reader; a sample that is visited more than once an epoch stands there as often.
        rotations: which of `positions` an epoch visits; nothing for all of them.
        workers: threads that read; 0 reads in place.
        skip_bad: an unreadable sample is counted, and its disparity all unknown, in place of an error.
        pin_memory: put batches into page-locked memory.
    """

    reader: FileReader
    positions: Positions
    rotations: tuple[Rotation, ...] = ()
    workers: int
    skip_bad: bool
    pin_memory: bool = False
    memory: BatchMemory = field(default_factory=BatchMemory)

    def __len__(self) -> int:
        return sum(rotation.per_epoch for rotation in self.rotations) or len(self.positions)

    def name(self, index: int) -> str:
        """Return `<scene>/<stem>`."""
        return self.reader.names.name(int(self.positions[index]))

    def batches(self, plan: Sequence[Positions], epoch: int) -> Iterator[StereoBatch]:
        """Yield one batch per entry of `plan`, in order, read ahead by threads."""
        if self.rotations:
            visited = np.concatenate([rotation.indices(epoch) for rotation in self.rotations])
            plan = [visited[batch] for batch in plan]
        return prefetch(plan, self._read_batch, self.workers)

    def _read_batch(self, indices: Positions) -> StereoBatch:
        buffers = self._take_buffers(len(indices))
        counts, unread = ReadCounts(), list[int]()
        for row, index in enumerate(indices):
            into = StereoSample(
                left=buffers.left[row], right=buffers.right[row], disparity_px=buffers.disparity_px[row]
            )
            try:
                sample, met = self.reader.read(int(self.positions[index]), into)
            except DataError as error:
                # A missing entry is no bad sample: the cache is not the one that was meant.
                if not self.skip_bad or isinstance(error, MissingEntryError):
                    raise
                sample, met = into, ReadCounts(bad=(str(error),))
                unread.append(row)
            if sample is not into:
                into.left[...], into.right[...] = sample.left, sample.right
                into.disparity_px[...] = sample.disparity_px
            counts = counts.plus(met)
        if unread:
            # Disparity all unknown adds nothing to loss or metrics. The images are a good sample's, since black ones
            # would count where a network normalises over the batch.
            good = next((row for row in range(len(indices)) if row not in unread), None)
            for view in (buffers.left, buffers.right):
                view[unread] = 0 if good is None else view[good]
            buffers.disparity_px[unread] = np.nan
        # [B,H,W,3] seen as [B,3,H,W] is what torch calls channels_last: nothing is copied.
        batch = StereoBatch(
            left=torch.from_numpy(buffers.left).permute(0, 3, 1, 2),
            right=torch.from_numpy(buffers.right).permute(0, 3, 1, 2),
            disparity_px=torch.from_numpy(buffers.disparity_px)[:, None],
            indices=torch.from_numpy(np.asarray(indices, np.int64)),
            counts=counts,
        )
        return batch.pinned() if self.pin_memory else batch

    def _take_buffers(self, B: int) -> "_Buffers":
        H, W = self.reader.height, self.reader.width
        # What a cache holds is float16, and so stays small until it is on the device.
        disparity = np.dtype(np.float32 if self.reader.cache is None else np.float16)
        image_bytes, disparity_bytes = B * H * W * 3, B * H * W * disparity.itemsize
        block = self.memory.take(2 * image_bytes + disparity_bytes)
        left, right, disparity_px = np.split(block, [image_bytes, 2 * image_bytes])
        return _Buffers(
            left.reshape(B, H, W, 3), right.reshape(B, H, W, 3), disparity_px.view(disparity).reshape(B, H, W)
        )


class _Buffers(NamedTuple):
    """Arrays for a batch, as samples are laid out."""

    left: UInt8[np.ndarray, "B H W 3"]
    right: UInt8[np.ndarray, "B H W 3"]
    disparity_px: Float[np.ndarray, "B H W"]


class FileData(NamedTuple):
    """Training and validation samples on disk, with what a run records about them."""

    train: FileSource
    validation: FileSource
    facts: dict[str, str | int]
    split: Split
    incomplete: tuple[str, ...]


def open_files(options: DataOptions, dataset_root: DatasetRoots, *, pin_memory: bool) -> FileData:
    """Return the data that `dataset_root` names, or that a cache alone holds.

    Args:
        options: layout, size, cache, and how much of the data is wanted.
        dataset_root: one folder, or texts `[NAME[:WEIGHT]=]PATH`; None reads a cache alone.
        pin_memory: put batches into page-locked memory.

    Raises:
        DataError: nothing usable is there.
    """
    cache = None if options.cache_root is None else open_cache(options.cache_root, options.height, options.width)
    sources = parse_dataset_sources(dataset_root, options.dataset)
    dataset = _open_sources(options, sources, cache)
    if dataset is not None:
        names, incomplete = dataset.names, tuple(str(frame) for frame in dataset.incomplete)
    else:
        assert cache is not None, "called with a data set, a cache, or both"
        names, incomplete = cache.names(), ()
    taken = take_spread(names, options.max_samples)
    split = split_samples(names, taken, options.val_fraction)
    reader = FileReader(
        names=names,
        dataset=dataset.parts[0] if dataset is not None and len(dataset.parts) == 1 else dataset,
        cache=cache,
        require_cache=options.require_cache,
        height=options.height,
        width=options.width,
        compile_loops=len(taken) >= COMPILE_FROM_SAMPLES,
    )
    if cache is not None and dataset is not None:
        if options.require_cache:
            _check_complete(cache, names, taken)
        _warn_outdated(reader, taken)
    workers = default_workers() if options.num_workers == "auto" else options.num_workers
    train, rotations = _weight_positions(split.train, dataset)

    def source(positions: Positions, rotations: tuple[Rotation, ...] = ()) -> FileSource:
        return FileSource(
            reader=reader,
            positions=positions,
            rotations=rotations,
            workers=workers,
            skip_bad=options.skip_bad,
            pin_memory=pin_memory,
        )

    facts: dict[str, str | int] = {
        "dataset": _describe(sources) or str(options.cache_root),
        "dataset_fingerprint": fingerprint(itertools.chain(names.some(taken), _weight_labels(dataset))),
        "train_samples": len(split.train),
        "validation_samples": len(split.validation),
        "split_by": split.by,
        "incomplete_samples": len(incomplete),
        "reading_threads": workers,
    }
    return FileData(source(train, rotations), source(split.validation), facts, split, incomplete)


def _open_sources(
    options: DataOptions, sources: tuple[DatasetSource, ...], cache: SampleCache | None
) -> MixedDataset | None:
    """Return the data set of all sources, its cache created; None without sources."""
    if not sources:
        return None
    # A folder that the user takes for a complete cache, and that is not there, is not created.
    may_create = cache is None or cache.root.is_dir() or not options.require_cache
    dataset = open_mixture(sources, options.cache_root if may_create else None)
    keep_freed_memory()
    if cache is not None:
        if not options.require_cache:
            with contextlib.suppress(OSError):  # which reading will meet again, and report
                cache.make_root()
        cache.check_case_collisions(dataset.names)
    return dataset


def _check_complete(cache: SampleCache, names: SampleNames, taken: Positions) -> None:
    """Check that each sample has an entry, before training has begun.

    Raises:
        MissingEntryError: some have none.
    """
    if missing := cache.find_missing(names, taken):
        first = ", ".join(names.name(i) for i in missing[:_NAMED_MISSING])
        more = ", ..." if len(missing) > _NAMED_MISSING else ""
        raise MissingEntryError(
            f"--require-cache: {len(missing):,} of {len(taken):,} samples have no entry in {cache.root} "
            f"({first}{more}); fill it with foundation-stereo-cache, or leave --require-cache out"
        )


def _warn_outdated(reader: FileReader, taken: Positions) -> None:
    """Warn where some of a few entries, others at each start, are outdated; checking all costs what caching saves."""
    probed = np.random.default_rng().choice(taken, min(_PROBED_STAMPS, len(taken)), replace=False).tolist()
    if outdated := reader.count_outdated(probed):
        logger.warning(
            "%d of %d cache entries that were checked were made of files that have changed since, and are used as they "
            "are; foundation-stereo-cache rebuilds all such entries",
            outdated,
            len(probed),
        )


def _weight_positions(train: Positions, dataset: MixedDataset | None) -> tuple[Positions, tuple[Rotation, ...]]:
    """Return the training positions, repeated by the weights of their data sets, and what an epoch visits of them."""
    if dataset is None or all(weight == 1 for weight in dataset.weights):
        return train, ()
    positions: list[Positions] = []
    rotations: list[Rotation] = []
    first = 0
    for part, weight in enumerate(dataset.weights):
        mine = train[(train >= dataset.first[part]) & (train < dataset.first[part + 1])]
        if not len(mine):
            continue
        repeats, per_epoch = -(-weight // 1), max(1, round(weight * len(mine)))
        if repeats * len(mine) != per_epoch:  # in an order in which every epoch's part is spread over all scenes
            mine = mine[rank_by_name(dataset.names.some(mine))]
        positions.append(np.tile(mine, int(repeats)))
        rotations.append(Rotation(first, len(positions[-1]), per_epoch))
        first += len(positions[-1])
    return np.concatenate(positions), tuple(rotations)


def _weight_labels(dataset: MixedDataset | None) -> list[str]:
    """Return what tells a weighted data set from the same samples without weights; nothing where all weights are 1."""
    weights = () if dataset is None else dataset.weights
    return [f"weights {weights}"] if any(weight != 1 for weight in weights) else []


def _describe(sources: tuple[DatasetSource, ...]) -> str:
    """Return how a run records its data sets: one folder alone by its path."""
    if len(sources) == 1 and sources[0].weight == 1:
        return str(sources[0].root)
    return ", ".join(f"{source.name}:{source.weight:g}={source.root}" for source in sources)

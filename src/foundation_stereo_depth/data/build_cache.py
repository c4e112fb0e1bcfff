"""Fill a cache before training, in parallel, resuming an interrupted build; and verify one."""

import errno
import logging
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from tqdm import tqdm

from foundation_stereo_depth.data.batch import Positions
from foundation_stereo_depth.data.cache import DamagedEntryError, SampleCache, open_cache
from foundation_stereo_depth.data.dataset import MixedDataset, find_dataset_root, open_mixture
from foundation_stereo_depth.data.loader import FileReader
from foundation_stereo_depth.data.loops import COMPILE_FROM_SAMPLES
from foundation_stereo_depth.data.memory import keep_freed_memory
from foundation_stereo_depth.data.prefetch import available_cores, prefetch
from foundation_stereo_depth.data.sample import SourceStamp
from foundation_stereo_depth.data.split import take_spread
from foundation_stereo_depth.device import Processes, number_of_torchrun
from foundation_stereo_depth.errors import DataError, UserError
from foundation_stereo_depth.log import count_of
from foundation_stereo_depth.options.datasets import DatasetSource, parse_dataset_sources
from foundation_stereo_depth.options.training import CacheBuildOptions

logger = logging.getLogger(__name__)

FAULTS = "cache_faults"
"""The file in the cache's folder that lists what a build found damaged, changed or bad: cache_faults.txt."""
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_HEADERS_BYTES = 1500
"""What an entry takes beside its pixels: names, shapes, checksums."""


class Outcome(NamedTuple):
    """What became of one sample.

    Attributes:
        kind: `found`: its entry is valid; `missing`: there is none; `damaged`: there is one, but it is corrupt;
            `changed`: its files are no longer those that it was made of; `bad`: its files cannot be read.
        size: of the entry that was written (or read, when verifying), bytes.
        fault: which file is damaged, changed or bad, and why.
    """

    kind: Literal["found", "missing", "damaged", "changed", "bad"]
    size: int = 0
    fault: str = ""


@dataclass(kw_only=True)
class CacheReport:
    """What was written to a cache, or found in one.

    Attributes:
        counts: samples by the kind of their outcome.
        size: of all entries that were written (or read, when verifying), bytes.
        elapsed_s: wall time.
        workers: threads.
    """

    counts: Counter[str] = field(default_factory=Counter[str])
    size: int = 0
    elapsed_s: float = 0.0
    workers: int = 1

    @property
    def written(self) -> int:
        """Return how many entries a build wrote."""
        return self.counts["missing"] + self.counts["damaged"] + self.counts["changed"]

    @property
    def speed(self) -> str:
        """Return rate and duration in words."""
        rate = self.counts.total() / max(self.elapsed_s, 1e-9)
        threads = f"{self.workers} thread{'s' if self.workers > 1 else ''}"
        return f"{rate:,.0f} entries/s with {threads} in {tqdm.format_interval(self.elapsed_s)}"


def build_cache(options: CacheBuildOptions) -> CacheReport:
    """Fill the cache from its data sets, and print what was done, at the end or where the build has to stop.

    Valid entries are kept; those that are damaged, or whose files have changed, are rebuilt.

    Raises:
        UserError: no data set or no cache is named, or the disk is full.
        DataError: a sample cannot be read and `--skip-bad` is off, or the cache is of another size.
        OSError: the cache is read-only or forbidden.
    """
    sources = _find_sources(options)
    if not sources or options.cache_root is None:
        raise UserError(
            "needs --dataset-root, the folder to read, or --procedural-samples, and --cache-root, the folder to fill"
        )
    cache = open_cache(options.cache_root, options.height, options.width)
    part = _find_part(options)
    dataset = open_mixture(sources, cache.root)
    if dataset.incomplete:
        frames = count_of(len(dataset.incomplete), "frame")
        part.log(f"{frames} left out that lack a file, the first: {dataset.incomplete[0]}")
    taken = part.select(take_spread(dataset.names, options.max_samples))
    report = CacheReport(workers=part.count_workers(options.workers))
    keep_freed_memory()
    faults = _FaultList(cache.root / f"{FAULTS}{part.suffix}.txt")
    try:
        cache.make_root()
        cache.check_case_collisions(dataset.names)
        faults.clear(everything=part.parts == 1)
        if removed := cache.remove_abandoned():
            part.log(f"{cache.root}: removed {removed} temporary files of processes that have ended")
        part.log(
            f"{cache.root}: {len(taken):,} samples of {cache.width}x{cache.height} take "
            f"{_format_need(len(taken), cache)} when all are there; {_format_free(cache.root)} are free"
        )
        fill = _make_filler(cache, dataset, options, len(taken))
        try:
            _run(report, taken, fill, faults.add, part=part, verb="caching")
        finally:
            print(part.name + _describe_build(cache, report) + faults.hint)
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        left = len(taken) - report.counts.total()
        raise UserError(
            f"{cache.root}: the disk is full ({error.strerror}): up to {left:,} entries are still to be written and "
            f"need {_format_need(left, cache)}, but {_format_free(cache.root)} are free; free some space and start "
            "again, what is written is kept; or take fewer by --max-samples"
        ) from error
    return report


def verify_cache(options: CacheBuildOptions) -> CacheReport:
    """Read every entry of the cache, whatever program made it, print the damaged ones, and write nothing.

    Where a data set is named, entries whose files have changed since are printed too, and how many samples have no
    entry, and how many entries no sample.

    Raises:
        UserError: no cache is named.
        DataError: there is no entry, or the cache is of another size.
    """
    if options.cache_root is None:
        raise UserError("--verify: needs --cache-root, the folder to check")
    cache = open_cache(options.cache_root, options.height, options.width)
    names = cache.names()
    sources = _find_sources(options)
    dataset = open_mixture(sources) if sources else None
    position_of = {} if dataset is None else {name: i for i, name in enumerate(dataset.names)}

    def check(i: int) -> Outcome:
        scene, stem, position = names.scene(i), names.stem(i), position_of.get(names.name(i))
        try:
            now = None if dataset is None or position is None else dataset.stamp(position)
        except DataError as error:  # files that were removed since they were listed
            return Outcome("changed", fault=f"{cache.path(scene, stem)}: {error}")
        outcome = _check_entry(cache, scene, stem, now)
        if outcome.kind == "missing":
            return Outcome("damaged", fault=f"{cache.path(scene, stem)}: was removed while the cache was verified")
        return outcome._replace(size=cache.path(scene, stem).stat().st_size)

    part = _find_part(options)
    report = CacheReport(workers=part.count_workers(options.workers))
    taken = part.select(take_spread(names, options.max_samples))
    try:
        # A result, on standard output: `write` only keeps it from mixing with the bar.
        _run(
            report,
            taken,
            check,
            lambda outcome: tqdm.write(f"{outcome.kind}: {outcome.fault}"),
            part=part,
            verb="verifying",
        )
    finally:
        counts = report.counts
        print(
            f"{part.name}{cache.root}: {counts['found']:,} of {len(taken):,} entries are valid, {counts['damaged']:,} "
            f"damaged, {counts['changed']:,} made of files that have changed; {_format_bytes(report.size)} read, "
            f"{report.speed}"
        )
    if position_of and part.reports:
        without = sum(name not in position_of for name in names)
        lacking = len(position_of) - (len(names) - without)
        print(
            f"{part.name}{', '.join(str(source.root) for source in sources)}: {lacking:,} of {len(position_of):,} "
            f"samples have no entry; {without:,} entries have no sample"
        )
    return report


def _find_sources(options: CacheBuildOptions) -> tuple[DatasetSource, ...]:
    """Return the data sets that the options or the environment name; nothing where they name none."""
    if options.procedural_samples is not None:
        return (DatasetSource(name="synthetic", root=Path(str(options.procedural_samples))),)
    roots = options.dataset_root or (find_dataset_root(None) if options.dataset == "fsd" else None)
    return parse_dataset_sources(roots, options.dataset)


def _check_entry(cache: SampleCache, scene: str, stem: str, now: SourceStamp | None) -> Outcome:
    """Return the state of one entry; `now` is the stamp of its files, where there are any."""
    path = cache.path(scene, stem)
    try:
        if cache.read(scene, stem) is None:
            return Outcome("missing")
        made_of = cache.source(scene, stem)
    except DamagedEntryError as error:
        return Outcome("damaged", fault=str(error))
    if now is not None and made_of is not None and not np.array_equal(now, made_of):
        return Outcome("changed", fault=f"{path}: its files have changed since it was made")
    return Outcome("found")


def _make_filler(
    cache: SampleCache, dataset: MixedDataset, options: CacheBuildOptions, samples: int
) -> Callable[[int], Outcome]:
    """Return a function that brings the entry of one sample up to date and returns what had to be done."""
    reader = FileReader(
        names=dataset.names,
        dataset=dataset,
        cache=cache,
        require_cache=False,
        height=options.height,
        width=options.width,
        compile_loops=samples >= COMPILE_FROM_SAMPLES,
    )

    def fill(i: int) -> Outcome:
        scene, stem = dataset.names.scene(i), dataset.names.stem(i)
        outcome = Outcome("missing")
        try:
            if not options.overwrite:
                outcome = _check_entry(cache, scene, stem, dataset.stamp(i))
                if outcome.kind == "found":
                    return outcome
            sample, stamp = reader.read_source(i)
        except DataError as error:
            if not options.skip_bad:
                raise
            return Outcome("bad", fault=str(error))
        cache.write(scene, stem, sample, stamp, compress=options.compress)
        return outcome._replace(size=cache.path(scene, stem).stat().st_size)

    return fill


def _run(
    report: CacheReport,
    taken: Positions,
    do: Callable[[int], Outcome],
    fault: Callable[[Outcome], None],
    *,
    part: "_Part",
    verb: str,
) -> None:
    """Apply `do` to each sample, in parallel, and count the outcomes in `report`."""
    began_s = time.perf_counter()
    lock = threading.Lock()

    def counted(i: int) -> Outcome:
        # Counted here, in the thread: when one sample ends the build, results of others may never be collected.
        outcome = do(i)
        with lock:
            report.counts[outcome.kind] += 1
            report.size += outcome.size
            if outcome.fault:
                fault(outcome)
        return outcome

    bar = tqdm(
        total=len(taken), unit="entry", desc=verb, dynamic_ncols=True, disable=part.number > 1 and part.by_torchrun
    )
    try:
        with bar:
            for _ in prefetch(taken.tolist(), counted, report.workers):
                bar.set_postfix_str(_format_bytes(report.size), refresh=False)
                bar.update()
    finally:
        report.elapsed_s = time.perf_counter() - began_s


class _FaultList:
    """A file that lists every fault as it is met; there is no file before the first."""

    def __init__(self, path: Path) -> None:
        self._path, self._lines = path, 0

    def clear(self, *, everything: bool) -> None:
        """Remove the list of an earlier build, or with `everything` those of all parts too."""
        for path in list(self._path.parent.glob(f"{FAULTS}*.txt")) if everything else [self._path]:
            try:
                path.unlink()
            except OSError as error:
                # Where nothing can be written, writing the first entry will report why.
                if error.errno not in (errno.ENOENT, errno.EROFS, errno.EACCES, errno.EPERM):
                    raise

    def add(self, outcome: Outcome) -> None:
        """Append one; what was damaged or changed has been rebuilt."""
        done = "" if outcome.kind == "bad" else ", rebuilt"
        # Opened for each line: faults are rare, and a build that is killed leaves the list complete.
        with open(self._path, "a", encoding="utf-8", opener=_open_without_links) as file:
            file.write(f"{outcome.kind}{done}: {' '.join(outcome.fault.split())}\n")
        self._lines += 1

    @property
    def hint(self) -> str:
        """Return where the list is; nothing where it is empty."""
        return f"; {self._path} lists the damaged, changed and bad ones" if self._lines else ""


def _open_without_links(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


@dataclass(frozen=True, kw_only=True)
class _Part:
    """The part of the samples that this process takes: number `number`, from 1, of `parts`."""

    number: int
    parts: int
    by_torchrun: bool

    def select(self, taken: Positions) -> Positions:
        """Return this part of `taken`: neighbours in the order of names, so that machines work in separate folders."""
        each, more = divmod(len(taken), self.parts)  # the first so many parts have one more
        begin = (self.number - 1) * each + min(self.number - 1, more)
        return taken[begin : begin + each + (self.number <= more)]

    def count_workers(self, asked: int | Literal["auto"]) -> int:
        """Return the threads of this process."""
        if asked != "auto":
            return asked
        sharing = number_of_torchrun("LOCAL_WORLD_SIZE", 1, least=1) if self.by_torchrun else 1
        return max(1, available_cores() // sharing)

    @property
    def name(self) -> str:
        """Return what begins its lines."""
        return f"part {self.number}/{self.parts}: " if self.parts > 1 else ""

    @property
    def suffix(self) -> str:
        """Return what ends the names of its files."""
        return f"_{self.number}_of_{self.parts}" if self.parts > 1 else ""

    @property
    def reports(self) -> bool:
        """Return whether it reports what concerns all parts; of several processes of torchrun only the first does."""
        return self.number == 1 or not self.by_torchrun

    def log(self, line: str) -> None:
        """Log for the user, once for all processes of torchrun."""
        if self.reports:
            logger.info("%s%s", self.name, line)


def _find_part(options: CacheBuildOptions) -> _Part:
    shard, processes = options.part(), Processes.from_environment()
    if processes.world_size == 1:
        number, parts = shard or (1, 1)
        return _Part(number=number, parts=parts, by_torchrun=False)
    if shard is not None:
        raise UserError(f"--shard {options.shard}: torchrun divides the samples already; leave one of them out")
    return _Part(number=processes.rank + 1, parts=processes.world_size, by_torchrun=True)


def _describe_build(cache: SampleCache, report: CacheReport) -> str:
    counts = report.counts
    return (
        f"{cache.root}: {report.written:,} entries written ({_format_bytes(report.size)}; {counts['damaged']:,} of "
        f"them in place of damaged ones, {counts['changed']:,} in place of ones whose files have changed), "
        f"{counts['found']:,} found, {counts['bad']:,} samples bad; {report.speed}"
    )


def _format_need(entries: int, cache: SampleCache) -> str:
    return _format_bytes(entries * (8 * cache.height * cache.width + _HEADERS_BYTES))


def _format_free(folder: Path) -> str:
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return _format_bytes(shutil.disk_usage(there).free)


def _format_bytes(size: int) -> str:
    """Return bytes in a readable unit: 461GB."""
    return tqdm.format_sizeof(size, "B")

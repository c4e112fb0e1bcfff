"""Filling a cache beforehand, in parallel, going on where it was interrupted; and checking one."""

import errno
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
from foundation_stereo_depth.data.fsd import FsdIndex, find_dataset_root, find_samples, source_stamp, take_spread
from foundation_stereo_depth.data.loader import FileReader
from foundation_stereo_depth.data.loops import loops_for_many
from foundation_stereo_depth.data.memory import keep_freed_memory
from foundation_stereo_depth.data.read_ahead import available_cores, read_ahead
from foundation_stereo_depth.data.sample import SampleNames, SourceStamp
from foundation_stereo_depth.data.synthetic.torch_scenes import SCENES_STAMP, scene_names, scene_sample
from foundation_stereo_depth.device import Processes
from foundation_stereo_depth.errors import DataError, UserError
from foundation_stereo_depth.options.training import CacheBuildOptions

FAULTS = "cache_faults"
"""The file in the cache's folder that names what a build found damaged, changed or bad: cache_faults.txt."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_HEADERS_BYTES = 1500
"""What an entry takes beside its pixels: names, shapes, checksums."""


class Outcome(NamedTuple):
    """What became of one sample.

    Attributes:
        kind: `found`: its entry is whole; `missing`: there is none; `damaged`: there is one, but it is not whole;
            `changed`: its files are no longer those that it was made of; `bad`: its files cannot be read.
        size: of the entry that was written (or read, when verifying), bytes.
        fault: which file is damaged, changed or bad, and why.
    """

    kind: Literal["found", "missing", "damaged", "changed", "bad"]
    size: int = 0
    fault: str = ""


@dataclass(kw_only=True)
class CacheReport:
    """What was done to a cache, or found out about one.

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
        """Entries that a build wrote."""
        return self.counts["missing"] + self.counts["damaged"] + self.counts["changed"]

    @property
    def speed(self) -> str:
        """Rate and duration in words."""
        rate = self.counts.total() / max(self.elapsed_s, 1e-9)
        threads = f"{self.workers} thread{'s' if self.workers > 1 else ''}"
        return f"{rate:,.0f} entries/s with {threads} in {tqdm.format_interval(self.elapsed_s)}"


def build_cache(options: CacheBuildOptions) -> CacheReport:
    """Fills the cache from the data set, and says at the end, or where it has to stop, what was done.

    Entries that are there are read and kept; those that are damaged, or whose files have changed, are made anew.

    Raises:
        UserError: no data set or no cache is named, or the disk is full.
        DataError: a sample cannot be read and `--skip-bad` is off, or the cache is of another size.
        OSError: the cache is read-only or forbidden.
    """
    made_up = options.procedural_samples
    root = None if made_up is not None else find_dataset_root(options.dataset_root)
    if (root is None and made_up is None) or options.cache_root is None:
        raise UserError(
            "needs --dataset-root, the folder to read, or --procedural-samples, and --cache-root, the folder to fill"
        )
    cache = open_cache(options.cache_root, options.height, options.width)
    part = _part_of(options)
    if root is None:
        names, fill = _scene_filler(cache, options)
    else:
        index = find_samples(root, cache.root, print)
        names, fill = index.names, _filler(cache, index, options)
        if index.incomplete:
            part.say(f"{len(index.incomplete)} frames lack a part and are left out, the first: {index.incomplete[0]}")
    taken = part.of(take_spread(names, options.max_samples))
    report = CacheReport(workers=part.workers(options.workers))
    keep_freed_memory()
    faults = _FaultList(cache.root / f"{FAULTS}{part.suffix}.txt")
    try:
        cache.make_root()
        cache.refuse_twins(names)
        faults.clear(everything=part.parts == 1)
        if removed := cache.remove_abandoned():
            part.say(f"{cache.root}: removed {removed} temporary files whose writers are gone")
        part.say(
            f"{cache.root}: {len(taken):,} samples of {cache.width}x{cache.height} take {_room_for(len(taken), cache)}"
            f" when all are there; {_free(cache.root)} are free"
        )
        try:
            _run(report, taken, fill, faults.add, part=part, verb="caching")
        finally:
            print(part.name + _built(cache, report) + faults.words)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        left = len(taken) - report.counts.total()
        raise UserError(
            f"{cache.root}: the disk is full ({error.strerror}): up to {left:,} entries are still to be written and "
            f"need {_room_for(left, cache)}, but {_free(cache.root)} are free; make room and start again, what is "
            "written is kept; or take fewer by --max-samples"
        ) from error
    return report


def verify_cache(options: CacheBuildOptions) -> CacheReport:
    """Reads every entry of the cache, whatever program made it, names the damaged ones, and writes nothing.

    Where a data set is named, entries whose files have changed since are named too, and it is said how many samples
    have no entry, and how many entries no sample.

    Raises:
        UserError: no cache is named.
        DataError: there is no entry, or the cache is of another size.
    """
    if options.cache_root is None:
        raise UserError("--verify: needs --cache-root, the folder to check")
    cache = open_cache(options.cache_root, options.height, options.width)
    names = cache.names()
    root = find_dataset_root(options.dataset_root)
    index = None if root is None else find_samples(root)
    position_of = {} if index is None else {name: i for i, name in enumerate(index.names)}

    def check(i: int) -> Outcome:
        scene, stem, position = names.scene(i), names.stem(i), position_of.get(names.name(i))
        try:
            now = None if index is None or position is None else source_stamp(index.paths(position))
        except DataError as error:  # files that went away since they were listed
            return Outcome("changed", fault=f"{cache.path(scene, stem)}: {error}")
        outcome = _looked_at(cache, scene, stem, now)
        if outcome.kind == "missing":
            return Outcome("damaged", fault=f"{cache.path(scene, stem)}: went away while the cache was verified")
        return outcome._replace(size=cache.path(scene, stem).stat().st_size)

    part = _part_of(options)
    report = CacheReport(workers=part.workers(options.workers))
    taken = part.of(take_spread(names, options.max_samples))
    try:
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
            f"{part.name}{cache.root}: {counts['found']:,} of {len(taken):,} entries are whole, {counts['damaged']:,} "
            f"damaged, {counts['changed']:,} made of files that have changed; {_words(report.size)} read, "
            f"{report.speed}"
        )
    if position_of:
        without = sum(name not in position_of for name in names)
        lacking = len(position_of) - (len(names) - without)
        part.say(
            f"{root}: {lacking:,} of {len(position_of):,} samples have no entry; {without:,} entries have no sample"
        )
    return report


def _looked_at(cache: SampleCache, scene: str, stem: str, now: SourceStamp | None) -> Outcome:
    """How things stand with one entry, whose files are `now`, where that is known."""
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


def _filler(cache: SampleCache, index: FsdIndex, options: CacheBuildOptions) -> Callable[[int], Outcome]:
    """What brings the entry of a sample up to date, and says what had to be done."""
    reader = FileReader(
        names=index.names,
        index=index,
        cache=cache,
        require_cache=False,
        height=options.height,
        width=options.width,
    )

    def fill(i: int) -> Outcome:
        scene, stem = index.names.scene(i), index.names.stem(i)
        outcome = Outcome("missing")
        try:
            if not options.overwrite:
                outcome = _looked_at(cache, scene, stem, source_stamp(index.paths(i)))
                if outcome.kind == "found":
                    return outcome
            sample, source = reader.from_files(i, loops_for_many())
        except DataError as error:
            if not options.skip_bad:
                raise
            return Outcome("bad", fault=str(error))
        cache.write(scene, stem, sample, source)
        return outcome._replace(size=cache.path(scene, stem).stat().st_size)

    return fill


def _scene_filler(cache: SampleCache, options: CacheBuildOptions) -> tuple[SampleNames, Callable[[int], Outcome]]:
    """The names of made-up scenes, and what brings the entry of one up to date."""
    assert options.procedural_samples is not None
    names = scene_names(options.procedural_samples)

    def fill(i: int) -> Outcome:
        scene, stem = names.scene(i), names.stem(i)
        outcome = Outcome("missing") if options.overwrite else _looked_at(cache, scene, stem, SCENES_STAMP)
        if outcome.kind == "found":
            return outcome
        cache.write(scene, stem, scene_sample(i, options.height, options.width), SCENES_STAMP)
        return outcome._replace(size=cache.path(scene, stem).stat().st_size)

    return names, fill


def _run(
    report: CacheReport,
    taken: Positions,
    do: Callable[[int], Outcome],
    fault: Callable[[Outcome], None],
    *,
    part: "_Part",
    verb: str,
) -> None:
    """Does something to each sample, in parallel, and adds up what becomes of them in `report`."""
    began_s = time.perf_counter()
    lock = threading.Lock()

    def counted(i: int) -> Outcome:
        # Counted where it happens: when one sample ends the build, others may be done that nobody will ask for.
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
            for _ in read_ahead(taken.tolist(), counted, report.workers):
                bar.set_postfix_str(_words(report.size), refresh=False)
                bar.update()
    finally:
        report.elapsed_s = time.perf_counter() - began_s


class _FaultList:
    """A file that names every fault as it is met; there is none before the first."""

    def __init__(self, path: Path) -> None:
        self._path, self._lines = path, 0

    def clear(self, *, everything: bool) -> None:
        """Forgets those of an earlier build, or `everything` that builds of parts left too."""
        for path in list(self._path.parent.glob(f"{FAULTS}*.txt")) if everything else [self._path]:
            try:
                path.unlink()
            except OSError as error:
                # Where nothing can be written the list is still true, and whoever has to write says why not.
                if error.errno not in (errno.ENOENT, errno.EROFS, errno.EACCES, errno.EPERM):
                    raise

    def add(self, outcome: Outcome) -> None:
        """One more; what was damaged or changed has been made anew."""
        done = "" if outcome.kind == "bad" else ", made anew"
        # Opened for each line: faults are rare, and a build that is killed leaves the list whole.
        with open(self._path, "a", encoding="utf-8", opener=_not_through_links) as file:
            file.write(f"{outcome.kind}{done}: {' '.join(outcome.fault.split())}\n")
        self._lines += 1

    @property
    def words(self) -> str:
        """Where they are to be found."""
        return f"; {self._path} names the damaged, changed and bad ones" if self._lines else ""


def _not_through_links(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


@dataclass(frozen=True, kw_only=True)
class _Part:
    """The part of the samples that this process takes: number `number`, from 1, of `parts`."""

    number: int
    parts: int
    by_torchrun: bool

    def of(self, taken: Positions) -> Positions:
        """This part of `taken`: neighbours in the order of names, so that machines work in folders of their own."""
        each, more = divmod(len(taken), self.parts)  # the first so many parts have one more
        begin = (self.number - 1) * each + min(self.number - 1, more)
        return taken[begin : begin + each + (self.number <= more)]

    def workers(self, asked: int | Literal["auto"]) -> int:
        """Threads of this process."""
        if asked != "auto":
            return asked
        sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if self.by_torchrun else 1
        return max(1, available_cores() // sharing)

    @property
    def name(self) -> str:
        """What begins its lines."""
        return f"part {self.number}/{self.parts}: " if self.parts > 1 else ""

    @property
    def suffix(self) -> str:
        """What ends the names of its files."""
        return f"_{self.number}_of_{self.parts}" if self.parts > 1 else ""

    def say(self, line: str) -> None:
        """Tells the user; of several processes that torchrun started, only the first does."""
        if self.number == 1 or not self.by_torchrun:
            print(self.name + line)


def _part_of(options: CacheBuildOptions) -> _Part:
    shard, processes = options.part(), Processes.from_environment()
    if processes.world_size == 1:
        number, parts = shard or (1, 1)
        return _Part(number=number, parts=parts, by_torchrun=False)
    if shard is not None:
        raise UserError(f"--shard {options.shard}: torchrun divides the samples already; leave one of them out")
    return _Part(number=processes.rank + 1, parts=processes.world_size, by_torchrun=True)


def _built(cache: SampleCache, report: CacheReport) -> str:
    counts = report.counts
    return (
        f"{cache.root}: {report.written:,} entries written ({_words(report.size)}; {counts['damaged']:,} of them in "
        f"place of damaged ones, {counts['changed']:,} in place of ones whose files have changed), "
        f"{counts['found']:,} found, {counts['bad']:,} samples bad; {report.speed}"
    )


def _room_for(entries: int, cache: SampleCache) -> str:
    return _words(entries * (8 * cache.height * cache.width + _HEADERS_BYTES))


def _free(folder: Path) -> str:
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return _words(shutil.disk_usage(there).free)


def _words(size: int) -> str:
    """Bytes as people say them: 461GB."""
    return tqdm.format_sizeof(size, "B")

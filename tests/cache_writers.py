"""A program for the tests: writers of a cache that are killed, or work side by side, while the cache is read.

    python cache_writers.py <data set> <folder of caches> <seed> kill:build:10 meet:build+train:3 command:-:5 ...

`kill:<writer>:<trials>` kills a writer at random moments, `meet:<writer>+<writer>:<trials>` lets two fill one cache.
`command:-:<trials>` kills the whole training command and resumes it.
Everything heavy is imported once; each writer is a fork of this process, and starts at once. Prints one JSON line: the
counts of each task.
"""

import json
import math
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np

from foundation_stereo_depth.data.batch import validation_plan
from foundation_stereo_depth.data.build_cache import build_cache
from foundation_stereo_depth.data.cache import DamagedEntryError, SampleCache, open_cache
from foundation_stereo_depth.data.fsd import open_fsd
from foundation_stereo_depth.data.loader import open_files
from foundation_stereo_depth.files import TEMPORARY_PREFIX
from foundation_stereo_depth.options.training import CacheBuildOptions, DataOptions

HEIGHT, WIDTH = 240, 320  # entries of 2.5 MB of small images: most of a writer's time goes into writing


def build(dataset: Path, root: Path, *, overwrite: bool = False) -> None:
    build_cache(
        CacheBuildOptions(
            dataset_root=dataset, cache_root=root, height=HEIGHT, width=WIDTH, workers=2, overwrite=overwrite
        )
    )


def read_through(dataset: Path, root: Path) -> None:
    """What an epoch of training does to a cache."""
    options = DataOptions(cache_root=root, height=HEIGHT, width=WIDTH, val_fraction=0.0, num_workers=2)
    source = open_files(options, dataset, pin_memory=False).train
    met = [batch.counts for batch in source.batches(validation_plan(len(source), 2), epoch=0)]
    assert not any(counts.unwritten or counts.bad or counts.rebuilt for counts in met), met


def forked(work: Callable[[], None]) -> int:
    """The process id of a fork of this process that does the work, silently, and ends with status 0 if it could."""
    child = os.fork()
    if child:
        return child
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def status_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Watch:
    """Reads entries, and holds them against what they have to be."""

    def __init__(self, cache: SampleCache, dataset: Path, expected: SampleCache) -> None:
        names = open_fsd(dataset).names
        self._cache = cache
        self._expected = {}
        for i in range(len(names)):
            name = names.scene(i), names.stem(i)
            self._expected[name] = expected.read(*name)
        self.reads = self.missing = self.half = self.wrong = 0

    def look(self, until_s: float = 0.0) -> int:
        """Reads every entry once, or again and again until a moment; returns how many were there at last."""
        while True:
            there = 0
            for name, expected in self._expected.items():
                try:
                    found = self._cache.read(*name)
                except DamagedEntryError as error:
                    print(error, file=sys.stderr)
                    self.half += 1
                    continue
                self.reads += 1
                if found is None:
                    self.missing += 1
                    continue
                there += 1
                self.wrong += any(
                    not np.array_equal(getattr(found, part), getattr(expected, part), equal_nan=part == "disparity_px")
                    for part in ("left", "right", "disparity_px")
                )
                if time.perf_counter() > until_s > 0:
                    return there
            if time.perf_counter() > until_s:
                return there


def temporaries(root: Path) -> set[Path]:
    return set(root.rglob(f"{TEMPORARY_PREFIX}*"))


def kill(who: str, dataset: Path, root: Path, trials: int, chance: random.Random) -> dict[str, int]:
    """Kills a writer at a random moment, so many times, reading all the while; then lets one finish."""
    reference = root.with_name(root.name + "-expected")
    assert status_of(forked(lambda: build(dataset, reference))) == 0
    cache = open_cache(root, HEIGHT, WIDTH)
    watch = Watch(cache, dataset, open_cache(reference, HEIGHT, WIDTH))
    samples = len(list(reference.rglob("*.npz")))

    whole_s = math.inf
    for _ in range(3):
        began_s = time.perf_counter()
        assert status_of(forked(lambda: build(dataset, root, overwrite=True))) == 0
        whole_s = min(whole_s, time.perf_counter() - began_s)
    kills = cut = 0
    while kills < trials:
        before = temporaries(root)
        # Entries are made for the first time, or in place of older ones.
        overwrite = who == "build" and chance.random() < 0.5
        there = sorted(root.rglob("*.npz"))
        for path in [] if overwrite else chance.sample(there, k=min(len(there), chance.randint(1, samples // 3))):
            path.unlink()
        if who == "build":
            child = forked(lambda overwrite=overwrite: build(dataset, root, overwrite=overwrite))
        else:
            child = forked(lambda: read_through(dataset, root))
        watch.look(until_s=time.perf_counter() + chance.uniform(0, 1.5 * whole_s))
        os.kill(child, signal.SIGKILL)
        died = status_of(child) == -signal.SIGKILL
        kills += died
        cut += bool(temporaries(root) - before)
        watch.look()
        if kills % 5 == 0 or not died:  # the build goes on from whatever was left
            assert status_of(forked(lambda: build(dataset, root))) == 0
            assert not temporaries(root)
            assert watch.look() == samples
    assert status_of(forked(lambda: build(dataset, root))) == 0
    return {
        "kills": kills,
        "cut": cut,
        "reads": watch.reads,
        "missing": watch.missing,
        "half": watch.half,
        "wrong": watch.wrong,
        "left_over": len(temporaries(root)),
        "unfinished": samples - watch.look(),
    }


def meet(who: str, dataset: Path, root: Path, trials: int, chance: random.Random) -> dict[str, int]:
    """Two writers fill one cache at a time, so many times, while it is read."""
    reference = root.with_name(root.name + "-expected")
    assert status_of(forked(lambda: build(dataset, reference))) == 0
    watch = Watch(open_cache(root, HEIGHT, WIDTH), dataset, open_cache(reference, HEIGHT, WIDTH))
    samples = len(list(reference.rglob("*.npz")))
    failed = left_over = unfinished = 0
    for _ in range(trials):
        for path in sorted(root.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        children = []
        for name in who.split("+"):
            work = {"build": build, "train": read_through}[name]
            children.append(forked(lambda work=work: work(dataset, root)))
            time.sleep(chance.uniform(0, 0.02))
        watch.look()
        failed += sum(status_of(child) != 0 for child in children)
        left_over += len(temporaries(root))
        unfinished += watch.look() != samples
    counts = {"reads": watch.reads, "half": watch.half, "wrong": watch.wrong}
    return counts | {"trials": trials, "failed": failed, "left_over": left_over, "unfinished": unfinished}


def command(_: str, dataset: Path, root: Path, trials: int, chance: random.Random) -> dict[str, int]:
    """Kills the training command, reading through the cache, at random moments, resumes it, and lets it finish."""
    import foundation_stereo_depth.training.train  # noqa: F401 (once, before the forks)
    from foundation_stereo_depth.checkpoint import load_checkpoint
    from foundation_stereo_depth.cli import train_command

    run, reference = root.with_name("run"), root.with_name(root.name + "-expected")
    assert status_of(forked(lambda: build(dataset, reference))) == 0
    cache = open_cache(root, HEIGHT, WIDTH)
    watch = Watch(cache, dataset, open_cache(reference, HEIGHT, WIDTH))
    samples = len(list(reference.rglob("*.npz")))
    where = ["--dataset-root", dataset, "--cache-root", root, "--output-dir", run, "--val-fraction", "0.34"]
    tiny = ["--base-channels", "4", "--depth", "1", "--batch-size", "2", "--device", "cpu", "--num-workers", "2"]
    tracking = ["--mlflow-tracking-uri", f"sqlite:///{root.with_name('mlflow.db')}"]

    def train(epochs: int) -> int:
        last = run / "last.pt"
        flags = ["--resume", last] if last.exists() else [*where, *tiny]
        flags = [*flags, *tracking, "--epochs", epochs]

        def work() -> None:
            assert train_command([str(flag) for flag in flags]) == 0

        return forked(work)

    def epochs_done() -> int:
        return len(load_checkpoint(run / "last.pt").training["history"]) if (run / "last.pt").exists() else 0

    kills = cut = resumed = 0
    while kills < trials:
        for path in chance.sample(there := sorted(root.rglob("*.npz")), k=len(there) // 2):
            path.unlink()
        before, entries = epochs_done(), len(list(root.rglob("*.npz")))
        left = temporaries(root) | temporaries(run)
        child = train(before + 1000)
        # Half of them while the cache is being filled, half of them when epochs are being saved.
        filling = chance.random() < 0.5
        while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if len(list(root.rglob("*.npz"))) > entries if filling else epochs_done() > before:
                break
            watch.look()
            time.sleep(0.05)  # it needs the processor more than its watcher does
        watch.look(until_s=time.perf_counter() + chance.uniform(0, 0.5 if filling else 2))
        os.kill(child, signal.SIGKILL)
        assert status_of(child) == -signal.SIGKILL, "it ended by itself"
        kills += 1
        cut += bool((temporaries(root) | temporaries(run)) - left)
        watch.look()
        resumed += before > 0
        print(f"kill {kills}: {before} epochs before, {epochs_done()} after", file=sys.stderr)
        assert epochs_done() >= before  # and last.pt can be read
    target = epochs_done() + 2
    assert status_of(train(target)) == 0
    assert epochs_done() == target
    for name in ("last.pt", "best.pt"):
        load_checkpoint(run / name)
    return {
        "kills": kills,
        "cut": cut,
        "resumed": resumed,
        "epochs": target,
        "reads": watch.reads,
        "half": watch.half,
        "wrong": watch.wrong,
        "left_over": len(temporaries(root) | temporaries(run)),
        "unfinished": samples - watch.look(),
    }


if __name__ == "__main__":
    dataset, folder, seed, *tasks = sys.argv[1:]
    counts = {}
    for task in tasks:
        how, who, trials = task.split(":")
        run = {"kill": kill, "meet": meet, "command": command}[how]
        counts[task] = run(who, Path(dataset), Path(folder) / f"{how}-{who}", int(trials), random.Random(int(seed)))
    print(json.dumps(counts))

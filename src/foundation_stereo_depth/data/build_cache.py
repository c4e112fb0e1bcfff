"""Filling a cache beforehand, in parallel, going on where it was interrupted."""

import time

from tqdm import tqdm

from foundation_stereo_depth.data.cache import open_cache
from foundation_stereo_depth.data.dataset import FileReader, ReadCounts, available_cores, read_ahead
from foundation_stereo_depth.data.fsd import find_samples, named_dataset_root, take_spread
from foundation_stereo_depth.errors import DataError, UserError
from foundation_stereo_depth.options import CacheBuildOptions


def build_cache(options: CacheBuildOptions) -> ReadCounts:
    """Fills the cache from the data set, and says at the end what was done.

    Entries that are there are read and kept, damaged ones are made anew.

    Raises:
        UserError: no data set or no cache is named.
        DataError: a sample cannot be read and `--skip-bad` is off, or the cache is of another size.
    """
    root = named_dataset_root(options.dataset_root)
    if root is None or options.cache_root is None:
        raise UserError("needs --dataset-root, the folder to read, and --cache-root, the folder to fill")
    index = find_samples(root)
    taken = take_spread(index.names, options.max_samples)
    cache = open_cache(options.cache_root, options.height, options.width)
    reader = FileReader(
        names=index.names,
        index=index,
        cache=cache,
        require_cache=False,
        height=options.height,
        width=options.width,
    )
    workers = available_cores() if options.workers == "auto" else options.workers

    def fill(position: int) -> ReadCounts:
        try:
            return reader.read(position)[1]
        except DataError as error:
            if not options.skip_bad:
                raise
            return ReadCounts(bad=(str(error),))

    if index.incomplete:
        print(f"{len(index.incomplete)} frames lack a part and are left out, the first: {index.incomplete[0]}")
    began_s = time.perf_counter()
    found = written = 0
    rebuilt: list[str] = []
    bad: list[str] = []
    for counts in tqdm(
        read_ahead(taken.tolist(), fill, workers), total=len(taken), unit="sample", desc="caching", dynamic_ncols=True
    ):
        found += counts.cache_hits
        written += counts.cache_misses
        rebuilt += counts.rebuilt
        bad += counts.bad
    rate = len(taken) / (time.perf_counter() - began_s)
    print(
        f"{options.cache_root}: {written} entries written ({len(rebuilt)} of them in place of damaged ones), {found} "
        f"found, {len(bad)} samples bad; {rate:.0f} samples/s with {workers} threads"
    )
    for line in bad:
        print(f"bad: {line}")
    return ReadCounts(cache_hits=found, cache_misses=written, rebuilt=tuple(rebuilt), bad=tuple(bad))

"""Reuse memory: new pages from the system cost a reader more time than the bytes that it reads."""

import mmap
import weakref
from collections import defaultdict, deque

import numpy as np
from jaxtyping import UInt8

from foundation_stereo_depth.errors import UserError

_LARGEST_KEPT = 2**25 - 2**16
"""Bytes; the C library does not adapt to blocks above 32 MiB."""


def keep_freed_memory() -> None:
    """Make the C library keep the memory of one image for the next one, up to 64 MiB for each thread.

    GNU's gives large blocks back to the system as soon as they are freed, and fresh ones cost a page fault for every
    4 KiB: a fifth of the time that decoding a FoundationStereo sample took. The largest block that was ever freed
    sets what it keeps (mallopt(3), M_MMAP_THRESHOLD). With other libraries nothing happens.
    """
    np.empty(_LARGEST_KEPT, np.uint8)


class BatchMemory:
    """A pool of blocks, returned to it with the last array or tensor on them. Any number of threads may share one."""

    def __init__(self) -> None:
        self._free: defaultdict[int, deque[mmap.mmap]] = defaultdict(deque)

    def take(self, size_bytes: int) -> UInt8[np.ndarray, " size_bytes"]:
        """Return a block of so many bytes, uninitialised."""
        free = self._free[size_bytes]
        try:
            block = free.pop()
        except IndexError:
            try:
                block = mmap.mmap(-1, size_bytes)
            except (OSError, OverflowError) as error:
                raise UserError(f"no memory for a batch of {size_bytes:,} bytes; lower --batch-size") from error
            if hasattr(mmap, "MADV_HUGEPAGE"):
                block.madvise(mmap.MADV_HUGEPAGE)
        # Views of this array, and tensors on them, keep it alive, since the block below it is no array.
        array = np.frombuffer(block, np.uint8)
        weakref.finalize(array, free.append, block).atexit = False
        return array

"""How many threads compute, and how those of OpenMP wait. Imports nothing heavy: it has to run before torch does."""

import os
import sys

_SPIN_COUNT = "1000"
"""Rounds of a loop, about a microsecond; libgomp's own choice is up to minutes."""
_VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")


def limit_spinning() -> None:
    """Let waiting threads of GNU's OpenMP sleep soon, unless the user's environment says how they wait.

    They spin by default, each on a core that other threads and programs need. libgomp reads the variable when it is
    loaded, which importing torch does; later calls change nothing.
    """
    if not any(name in os.environ for name in _VARIABLES):
        os.environ["GOMP_SPINCOUNT"] = _SPIN_COUNT


def count_threads() -> int:
    """Return how many threads one computation takes: `OMP_NUM_THREADS`, else one for each core that may be used."""
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    import psutil  # noqa: PLC0415 (only inference needs it)

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(psutil.cpu_count(logical=False) or usable, usable)


def use_threads(count: int) -> None:
    """Have PyTorch, OpenVINO, onnxruntime and OpenCV compute with so many threads; those of them that start later.

    Args:
        count: threads of each.
    """
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(count)
    os.environ["OPENCV_FOR_THREADS_NUM"] = str(count)
    if "torch" in sys.modules:  # it has read the variables already
        sys.modules["torch"].set_num_threads(count)
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(count)

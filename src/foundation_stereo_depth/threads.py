"""Threads that compute: how many, and how they wait. Imports nothing heavy: it has to run before torch is imported."""

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

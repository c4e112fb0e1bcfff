"""How the loops of this package become machine code."""

import functools
import hashlib
import inspect
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
import numba.core.config

Function = TypeVar("Function", bound=Callable[..., Any])

_njit: Any = numba.njit
_NEEDED_BYTES = 2**26
"""Free space on the disk; the machine code has a few MB."""


def compiled(function: Function) -> Function:
    """Compile a function that other compiled ones call, at its first call; it releases Python's lock while it runs.

    No `fastmath`: results do not depend on how a compiler reorders sums. Division by zero gives inf or NaN, as in
    numpy, since a check for it would keep loops from being vectorised.
    """
    # Without wrappers, each of which would hold a copy of all that the function calls: Python never calls these.
    wrappers = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return _njit(nogil=True, error_model="numpy", **wrappers)(inspect.unwrap(function))


def compiled_once(function: Function) -> Function:
    """Compile a function that is called from Python, and keep the machine code on disk for later processes.

    numba checks the date of the one file that holds the function, not those of functions it calls; so the folder's
    name has a hash of all sources of this package, and code of other sources is never found there.
    """
    folder = _cache_folder()
    if folder is None:
        return _njit(nogil=True, error_model="numpy")(inspect.unwrap(function))
    config: Any = numba.core.config
    before = config.CACHE_DIR
    config.CACHE_DIR = str(folder)  # which numba looks up now, once for each function
    try:
        return _njit(nogil=True, error_model="numpy", cache=True)(inspect.unwrap(function))
    finally:
        config.CACHE_DIR = before


def has_machine_code() -> bool:
    """Return whether an earlier process has kept machine code of these sources."""
    folder = _cache_folder()
    return folder is not None and any(folder.rglob("*.nbc"))


@functools.cache
def _cache_folder() -> Path | None:
    """Return a folder for machine code, or None where none can be written or the disk is nearly full."""
    digest = hashlib.sha256(numba.__version__.encode() + sys.version.encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    above = os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(above) / "foundation-stereo-depth" / digest.hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK) or shutil.disk_usage(folder).free < _NEEDED_BYTES:
            return None
    except OSError:
        return None
    return folder

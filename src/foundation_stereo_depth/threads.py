"""How threads of OpenMP wait for one another. Imports nothing heavy: it has to run before torch is imported."""

import os

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

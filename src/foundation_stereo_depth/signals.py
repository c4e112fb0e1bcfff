"""The signals that ask a command to stop, and what a closed terminal means for what is written to it."""

import contextlib
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from types import FrameType

_GRACE_S = 5.0
"""An interrupted command has this time to close its files, in which it ignores further signals."""


def stop_signals() -> list[signal.Signals]:
    """Return the signals that ask this process to stop: Ctrl-C, termination, and a closed terminal or connection.

    The last is left out where the process was started to survive it, as `nohup` does, and on Windows.
    """
    asked = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        asked.append(signal.SIGHUP)
    return asked


@contextmanager
def one_interrupt(numbers: Sequence[signal.Signals]) -> Generator[None]:
    """Raise KeyboardInterrupt for the first of these signals; those that follow must not interrupt the cleaning up.

    A closed terminal often sends several, and Ctrl-C is pressed more than once. Ctrl-C ends the process at once where
    cleaning up takes longer than some seconds. After an interrupt this also holds for the rest of the process, whose
    end takes a moment.

    Args:
        numbers: the signals; others keep their handlers, and so do all outside of the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    first_s: float | None = None

    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 (what signal.signal calls)
        nonlocal first_s
        detach_lost_terminal()
        if first_s is None:
            first_s = time.monotonic()
            raise KeyboardInterrupt
        if number == signal.SIGINT and time.monotonic() - first_s > _GRACE_S:
            os._exit(128 + number)

    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        if first_s is None:
            for number, handler in before.items():
                signal.signal(number, handler)


def detach_lost_terminal() -> None:
    """Discard what is written to a terminal that was closed, where every write fails."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # it is no file of the system
            descriptor = stream.fileno()
            if stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
                os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)

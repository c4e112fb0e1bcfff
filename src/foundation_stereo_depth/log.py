"""Logging: every module has its own logger; one handler writes all of them to standard error, above progress bars.

Standard output is left to results, so that it can be piped.
"""

import io
import logging
import os
import sys
from typing import Any

_TOPIC = "once_per_run"
"""The attribute of records by which `warn_once` marks them."""


def is_first_process() -> bool:
    """Return True unless torchrun started this process as another than its first; only the first one prints."""
    return os.environ.get("RANK", "0") == "0"


def count_of(number: int, noun: str) -> str:
    """Return a number of things in words.

    >>> count_of(1, "pair"), count_of(2500, "pair")
    ('1 pair', '2,500 pairs')
    """
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def configure(level: int = logging.INFO) -> None:
    """Send the records of both packages to standard error; of several torchrun processes only the first one writes.

    Args:
        level: the lowest level that is written; `logging.DEBUG` for `--verbose`, `logging.WARNING` for `--quiet`.
    """
    os.environ.setdefault(*QUIET_FFMPEG)
    handler = _TqdmHandler()
    handler.setFormatter(_OneLineFormatter())
    handler.addFilter(_FirstProcessFilter())
    handler.addFilter(_OnceFilter())
    for package in ("foundation_stereo_depth", "live_camera"):
        logger = logging.getLogger(package)
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False


def warn_once(logger: logging.Logger, topic: str, message: str) -> None:
    """Log a warning of which a run needs one alone: later ones on the same topic are not written."""
    logger.warning(message, extra={_TOPIC: topic})


def prepare_streams() -> None:
    """Open the standard streams that are closed, and keep a full disk behind standard error from ending the work.

    The first files to be opened would take the numbers of closed streams, and get what libraries print.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
            stream = open(number, "r" if number == 0 else "w", closefd=False)  # noqa: SIM115 (until the process ends)
            setattr(sys, name, stream)
    if sys.stderr is sys.__stderr__ and sys.stderr is not None:
        raw = io.BufferedWriter(_UnfailingFile(sys.stderr.fileno(), "w", closefd=False))
        sys.stderr = io.TextIOWrapper(raw, sys.stderr.encoding, "backslashreplace", line_buffering=True)


class _UnfailingFile(io.FileIO):
    """Drops what cannot be written."""

    def write(self, text: Any, /) -> int:
        try:
            return super().write(text) or 0
        except OSError:
            return memoryview(text).nbytes


QUIET_FFMPEG = ("OPENCV_FFMPEG_LOGLEVEL", "-8")
"""OpenCV reads it once in a process, when the first video is opened."""


class _TqdmHandler(logging.Handler):
    """Writes above the progress bars that are shown, and finds standard error at the time of writing."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            from tqdm import tqdm  # noqa: PLC0415 (a tenth of what `--help` takes)

            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:
            self.handleError(record)


class _OneLineFormatter(logging.Formatter):
    """`warning: ...` for what a person should act on; information stands alone."""

    def format(self, record: logging.LogRecord) -> str:
        message = super().format(record)
        return message if record.levelno == logging.INFO else f"{record.levelname.lower()}: {message}"


class _FirstProcessFilter(logging.Filter):
    """Drops the records of all processes that torchrun started but the first."""

    def filter(self, record: logging.LogRecord) -> bool:  # noqa: ARG002 (what logging calls)
        return is_first_process()


class _OnceFilter(logging.Filter):
    """Drops a record of `warn_once` where another one on its topic was written: in this run, since `configure`."""

    def __init__(self) -> None:
        super().__init__()
        self._first: dict[str, logging.LogRecord] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        topic = getattr(record, _TOPIC, None)
        return topic is None or self._first.setdefault(topic, record) is record

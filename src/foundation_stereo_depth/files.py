"""Files that are complete or absent, whatever happens while they are written."""

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

TEMPORARY_PREFIX = ".incomplete-"
"""Begins the name of a file that is being written; one that outlives its writer may be deleted."""


def write_whole(path: Path, write: Callable[[BinaryIO], object], *, durable: bool) -> None:
    """Calls `write` on a new file in the folder of `path`, then renames it to `path`.

    A reader sees the old file or the new one, never a part. On any failure the temporary file is removed and the old
    one stays.

    Args:
        path: the file to make or replace; its folder exists.
        write: writes the bytes.
        durable: survive a power cut as well: the bytes reach the disk before the name does.
    """
    # The temporary name does not contain the final one, which may be as long as the file system allows.
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(6)}")
    try:
        with temporary.open("xb") as file:
            write(file)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable and os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

"""The SQLite file of MLflow's runs: created complete or not at all, and checked before MLflow opens it.

MLflow creates its tables by dozens of migrations in place, which takes seconds. A process that ends meanwhile would
leave a file that no later one can open, and two at a time would collide.
"""

import contextlib
import sqlite3
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.files import exclusive_lock, write_atomically

_QUIET_S = 5.0
"""A database that another program is creating changes several times a second."""
_UPGRADE_PREFIX = "_alembic_tmp_"
"""An upgrade copies each table to one of this prefix, and renames that to replace the old one."""
_ROWS_IN = ("experiments", "runs", f"{_UPGRADE_PREFIX}experiments", f"{_UPGRADE_PREFIX}runs")
_LOCKED_S = 20.0
"""How long a locked database is waited for, as MLflow does itself."""


class DamagedDatabaseError(UserError):
    """The file is no database, or parts of it are lost."""


def ensure_database(path: Path, create: Callable[[Path], object]) -> None:
    """Return once `path` is a complete database, which is created where there is none.

    Args:
        path: the file; its folder exists.
        create: creates a complete database at another path.

    Raises:
        UserError: it is damaged, or was left incomplete by a process that ended; the message says what to do.
        OSError: it cannot be written.
    """
    while not is_complete(path):
        if _written_lately(path):  # by `mlflow ui`, say
            time.sleep(0.2)
        elif _size(path) > 0:
            raise UserError(
                f"{path}: is incomplete, since the program that created it was ended; it holds no run: delete it and "
                "start again"
            )
        else:
            with exclusive_lock(path.with_name(f".{path.name}.lock"), wait=True):
                if _size(path) == 0:
                    _create(path, create)


def is_complete(path: Path) -> bool:
    """Return True for a database that holds MLflow's first row, which it writes after its last table.

    Raises:
        DamagedDatabaseError: the file is no database.
        UserError: it is locked, half upgraded, or cannot be read.
    """
    if _size(path) == 0:
        return False
    try:
        base = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=_LOCKED_S)
        try:
            tables = {name for (name,) in base.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            filled = [name for name in _ROWS_IN if name in tables and _has_rows(base, name)]
        finally:
            base.close()
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise UserError(
                f"{path}: is locked by another program for more than {_LOCKED_S:.0f} s; try again when that has ended"
            ) from error
        raise UserError(f"{path}: cannot be read ({error})") from error
    except sqlite3.DatabaseError as error:
        raise DamagedDatabaseError(
            f"{path}: is damaged ({error}); move it away and start again: --resume with a last.pt records that run "
            "again"
        ) from error
    if filled and any(table.startswith(_UPGRADE_PREFIX) for table in tables):
        raise UserError(
            f"{path}: is being upgraded by MLflow, or an upgrade was ended before it was done; wait, or put back "
            "the copy that was made before, or move the file away: --resume with a last.pt records that run again"
        )
    if filled == ["runs"]:
        raise DamagedDatabaseError(
            f"{path}: is damaged (its experiments are lost, its runs are not); put back a copy, or move it away and "
            "start again: --resume with a last.pt records that run again"
        )
    return bool(filled)


def _has_rows(base: sqlite3.Connection, table: str) -> bool:
    return base.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone() is not None


def _create(path: Path, create: Callable[[Path], object]) -> None:
    with tempfile.TemporaryDirectory(prefix="foundation-stereo-") as folder:
        complete = Path(folder) / path.name
        create(complete)
        encoded = complete.read_bytes()
    # An empty file, which a program left that ended before its first write, is replaced; a new one of others stays.
    with contextlib.suppress(FileExistsError):
        write_atomically(path, lambda file: file.write(encoded), durable=True, replace=path.exists())


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _written_lately(path: Path) -> bool:
    times_s = [file.stat().st_mtime for file in (path, Path(f"{path}-journal")) if file.exists()]
    return bool(times_s) and abs(time.time() - max(times_s)) < _QUIET_S

"""Reading and writing files: reads are bounded; a written file is complete or absent, whatever happens meanwhile."""

import contextlib
import errno
import functools
import hashlib
import io
import os
import platform
import re
import secrets
import stat
import sys
import time
import zipfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, cast

from foundation_stereo_depth.errors import UserError

if sys.platform != "win32":
    import fcntl

TEMPORARY_PREFIX = ".incomplete-"
"""Begins the name of a file that is being written: `.incomplete-<machine>-<random>`."""
_TEMPORARY = re.compile(rf"{re.escape(TEMPORARY_PREFIX)}([0-9a-f]{{8}})-[0-9a-f]{{12}}")
_ABANDONED_AFTER_S = 24 * 3600
"""The age at which a temporary file of another machine counts as abandoned; a write takes seconds."""

_OPEN_WITHOUT_WAITING = (
    os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
)
"""Opening a pipe would wait for a writer otherwise."""
_GROWTH_BYTES = 2**20
"""By which a file may grow while it is read."""
_MOST_MEMBERS = 100_000
"""Of a ZIP archive."""


@contextmanager
def open_regular_file(path: Path, *, at_most_bytes: int, error_type: type[UserError]) -> Generator[io.BufferedReader]:
    """Open a regular file for reading: pipes and devices may have no end.

    Raises:
        UserError: of the given type: it is missing, no regular file, cannot be read, or is larger than that.
    """
    try:
        with os.fdopen(os.open(path, _OPEN_WITHOUT_WAITING), "rb") as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise error_type(f"{path}: is not a regular file")
            if facts.st_size > at_most_bytes:
                raise _too_large(path, at_most_bytes, error_type)
            yield file
    except OSError as error:
        raise error_type(f"{path}: cannot be read ({error.strerror or error})") from error


def read_regular_file(path: Path, *, at_most_bytes: int, error_type: type[UserError]) -> bytes:
    """Return the content of a regular file.

    Raises:
        UserError: as `open_regular_file`.
    """
    with open_regular_file(path, at_most_bytes=at_most_bytes, error_type=error_type) as file:
        # Files of the system (/proc) give a size of 0; memory for all that is asked for would be taken at once.
        most = min(at_most_bytes, os.fstat(file.fileno()).st_size + _GROWTH_BYTES)
        content = cast(bytes | None, file.read(most + 1))
    if content is None:  # of the system's files some give what there will be, and would be waited for
        raise error_type(f"{path}: cannot be read (it has nothing at present)")
    if len(content) > most:
        raise _too_large(path, at_most_bytes, error_type)
    return content


def _too_large(path: Path, at_most_bytes: int, error_type: type[UserError]) -> UserError:
    return error_type(f"{path}: has more than {at_most_bytes:,} bytes, which no file of its kind has")


def name_for_opencv(path: Path | str, error_type: type[UserError]) -> str:
    """Return a name as OpenCV's videos take it, which end the process where it is not UTF-8.

    Raises:
        UserError: of the given type: it is not.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise error_type(f"{path}: its name is not UTF-8, as OpenCV needs it; rename it, or its folder") from None
    return str(path)


def text_for_opencv(text: str) -> str:
    """Return a text to draw, with a question mark for each byte of a file's name that is not UTF-8."""
    return text.encode("utf-8", "replace").decode()


class ArchiveError(ValueError):
    """A ZIP archive is damaged, or unpacks to more than it may; the message follows the file's name."""


def open_zip(encoded: bytes | io.BufferedIOBase, *, at_most_bytes: int) -> zipfile.ZipFile:
    """Return the ZIP archive in these bytes, the checksum of each member verified.

    Args:
        encoded: the archive, or the file of it.
        at_most_bytes: that all members together may unpack to.

    Raises:
        ArchiveError: it is damaged, encrypted, packed in a way that is not stored or deflated, or unpacks to more.
    """
    file = io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded
    if _count(file, b"PK\1\2") > _MOST_MEMBERS:  # each becomes an object when the archive is opened
        raise ArchiveError(f"has more than {_MOST_MEMBERS:,} members")
    try:
        archive = zipfile.ZipFile(cast(IO[bytes], file))
        fault = _fault_of(archive, at_most_bytes)
    except Exception as error:  # of Python's reader, for a directory that makes no sense
        raise ArchiveError(f"is a damaged archive ({error})") from error
    if fault is not None:
        raise ArchiveError(fault)
    return archive


def _count(file: io.BufferedIOBase, mark: bytes) -> int:
    """Return how often a mark, which does not overlap itself, is in a file."""
    file.seek(0)
    count, before = 0, b""
    while part := file.read(_GROWTH_BYTES):
        part = before + part
        count += part.count(mark)
        before = part[1 - len(mark) :]
    return count


def _fault_of(archive: zipfile.ZipFile, at_most_bytes: int) -> str | None:
    members = archive.infolist()
    if len({member.filename.lower() for member in members}) < len(members):
        return "has two members of one name"
    if any(member.flag_bits & 1 for member in members):
        return "is encrypted"
    if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in members):
        return "is packed in a way that is neither stored nor deflated"
    if (size := sum(member.file_size for member in members)) > at_most_bytes:
        return f"would unpack to {size:,} bytes, where {at_most_bytes:,} are the most"
    damaged = archive.testzip()
    return None if damaged is None else f"is damaged; its {damaged} has another checksum"


def write_atomically(path: Path, write: Callable[[BinaryIO], object], *, durable: bool, replace: bool = True) -> None:
    """Call `write` on a new file in the folder of `path`, then renames it to `path`.

    A reader sees the old file or the new one, never a part. After a failure the temporary file is removed and the old
    one stays. A symbolic link at `path` is replaced, and its target stays as it is.

    Args:
        path: the file to create or replace; its folder exists.
        write: writes the bytes.
        durable: survive a power cut as well: the bytes reach the disk before the name does.
        replace: replace an existing file; else of two writers the first one's file stays, where the disk has hard
            links (others cannot guarantee that).

    Raises:
        FileExistsError: the file exists and is not to be replaced.
        OSError: the disk is full, read-only, forbidden; `filename` is `path`.
    """
    try:
        with _temporary_file(path.parent) as temporary:
            with temporary.open("wb") as file:
                write(file)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            if replace:
                temporary.replace(path)
            else:
                _rename_unless_there(temporary, path)
    except OSError as error:
        if error.errno is not None:
            # A full disk names no file at all, and the temporary name would not help the user.
            error.filename, error.filename2 = str(path), None
        raise
    if durable and os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def describe_replacement(beginning: bytes) -> str | None:
    """Return what a file is that stands in place of the wanted one, and what to do; None for everything else.

    Args:
        beginning: the first bytes of the file, some hundred.
    """
    text = beginning.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(b"version https://git-lfs.github.com/spec"):
        return "is a Git LFS pointer, not the file itself; `git lfs pull` fetches that"
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml", b"<!--")):
        return "is a web page, which a server sent in place of the file (a login, an error); download the file again"
    if text.startswith((b'{"error', b'{"message', b'{"detail')):
        return "is a server's error message; download the file again"
    if beginning.startswith(b"\x1f\x8b"):
        return "is compressed by gzip; unpack it first"
    return None


class LockedError(Exception):
    """Another process holds the lock."""


@contextmanager
def exclusive_lock(path: Path, *, wait: bool) -> Generator[None]:
    """Hold the lock on `path`, a file that exists only meanwhile, until this context ends.

    The system releases it when the process ends, however that ends. On Windows, and on disks without locks, nothing is
    locked.

    Args:
        path: the file to lock; its folder exists.
        wait: wait for another process that holds it.

    Raises:
        LockedError: another process holds it, and `wait` is False.
        OSError: the file cannot be created.
    """
    if sys.platform == "win32":
        yield
        return
    while True:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(descriptor)
            raise LockedError(path) from None
        except OSError:  # a disk without locks
            pass
        # A process that held the lock before has removed the file; then another process may have created it again.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                break
        os.close(descriptor)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def remove_abandoned(folder: Path) -> int:
    """Remove the temporary files in `folder` whose writers have ended; return how many.

    A writer holds a lock on its file, which the system releases when the writer ends, however it ends. So a file of
    this machine that can be locked has no writer. Locks of another machine cannot always be seen on a network disk: its
    files are removed when they are a day old.
    """
    removed = 0
    for entry in os.scandir(folder):
        named = _TEMPORARY.fullmatch(entry.name)
        if named is None or not entry.is_file(follow_symlinks=False):
            continue
        # A file that disappears meanwhile was finished, or removed by another process; another user's may stay.
        with contextlib.suppress(OSError):
            old = time.time() - entry.stat(follow_symlinks=False).st_mtime > _ABANDONED_AFTER_S
            removed += (old or named[1] == _machine()) and _remove_unless_locked(Path(entry.path), old=old)
    return removed


def _rename_unless_there(temporary: Path, path: Path) -> None:
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        raise
    except OSError:  # a disk without hard links
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        temporary.replace(path)
    else:
        temporary.unlink()


@contextmanager
def _temporary_file(folder: Path) -> Generator[Path]:
    """Create an empty file, locked until this context ends and removed after an error."""
    while True:
        # The temporary name does not contain the final one, which may be as long as the file system allows.
        temporary = folder / f"{TEMPORARY_PREFIX}{_machine()}-{secrets.token_hex(6)}"
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        if sys.platform == "win32":
            break
        # Some network disks have no locks. Then no other process can lock the file either, and it is kept for a day.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink > 0:
            break
        os.close(descriptor)  # it was removed as abandoned between its creation and its locking
    try:
        if sys.platform == "win32":  # where an open file can neither be renamed nor removed by others
            os.close(descriptor)
        yield temporary
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        if sys.platform != "win32":
            os.close(descriptor)


def _remove_unless_locked(temporary: Path, *, old: bool) -> bool:
    if sys.platform == "win32":
        if old:
            temporary.unlink()
        return old
    descriptor = os.open(temporary, os.O_RDWR | os.O_NOFOLLOW)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            if not old:  # a disk without locks, where the age decides
                return False
        temporary.unlink()
    finally:
        os.close(descriptor)
    return True


@functools.cache
def _machine() -> str:
    """Return eight hex digits that identify this machine since it was started; host names may repeat in a network."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    if boot.exists():
        return boot.read_text()[:8]
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]

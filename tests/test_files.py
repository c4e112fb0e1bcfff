import errno
import fcntl
import os
import time
from pathlib import Path
from unittest import mock

import pytest

from foundation_stereo_depth.errors import CheckpointError
from foundation_stereo_depth.files import (
    _machine,
    read_regular_file,
    remove_abandoned,
    text_for_opencv,
    write_atomically,
)


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_appears_complete(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / ("n" * 255)
    for content in (b"old", b"new"):
        write_atomically(path, lambda file, content=content: file.write(content), durable=durable)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(file) -> None:
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail, durable=True)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_names_the_file(tmp_path: Path) -> None:
    def full(file) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device: '.*/name'"):
        write_atomically(tmp_path / "name", full, durable=False)
    with pytest.raises(FileNotFoundError, match=r"No such file or directory: '.*/nowhere/name'"):
        write_atomically(tmp_path / "nowhere/name", full, durable=False)


def test_a_link_is_replaced_and_what_it_points_to_stays(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"precious")
    link.symlink_to(target)
    write_atomically(link, lambda file: file.write(b"new"), durable=False)
    assert (target.read_bytes(), link.read_bytes(), link.is_symlink()) == (b"precious", b"new", False)


def test_only_files_whose_writer_is_gone_are_abandoned(tmp_path: Path) -> None:
    def meanwhile(file) -> None:
        assert remove_abandoned(tmp_path) == 0, "its writer lives"
        file.write(b"whole")

    write_atomically(tmp_path / "name", meanwhile, durable=False)
    assert (tmp_path / "name").read_bytes() == b"whole"

    a_day_ago = time.time() - 25 * 3600
    names = {
        f".incomplete-{_machine()}-0123456789ab": True,  # no process holds it
        ".incomplete-01234567-000000000000": False,  # another machine may be writing it now
        ".incomplete-01234567-ffffffffffff": True,  # but not for a day
        ".incomplete-room": False,  # somebody's own
        f".incomplete-{_machine()}-0123456789ab.npz": False,
        f".incomplete-{_machine()}-0123456789abc": False,
    }
    for name in names:
        (tmp_path / name).write_bytes(b"half")
    os.utime(tmp_path / ".incomplete-01234567-ffffffffffff", (a_day_ago, a_day_ago))
    (tmp_path / f".incomplete-{_machine()}-aaaaaaaaaaaa").mkdir()
    (tmp_path / f".incomplete-{_machine()}-bbbbbbbbbbbb").symlink_to(tmp_path / "name")
    before = {path.name for path in tmp_path.iterdir()}
    assert remove_abandoned(tmp_path) == 2
    assert before - {path.name for path in tmp_path.iterdir()} == {name for name, goes in names.items() if goes}


def test_a_writer_whose_new_file_is_taken_for_abandoned_takes_another(tmp_path: Path, monkeypatch) -> None:
    lock, locked = fcntl.flock, []

    def late(descriptor: int, how: int) -> None:
        if not locked:
            locked.append(descriptor)
            assert remove_abandoned(tmp_path) == 1
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    write_atomically(tmp_path / "name", lambda file: file.write(b"whole"), durable=False)
    assert [path.name for path in tmp_path.iterdir()] == ["name"]
    assert (tmp_path / "name").read_bytes() == b"whole"


def test_a_disk_without_locks_keeps_young_files(tmp_path: Path, monkeypatch) -> None:
    def unsupported(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    young, old = (tmp_path / f".incomplete-{_machine()}-{digit * 12}" for digit in "ab")
    for path in (young, old):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    write_atomically(tmp_path / "name", lambda file: file.write(b"whole"), durable=False)
    assert remove_abandoned(tmp_path) == 1
    assert {path.name for path in tmp_path.iterdir()} == {young.name, "name"}


def test_only_regular_files_of_bounded_size_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**40)
    assert read_regular_file(tmp_path / "file", at_most_bytes=5, error_type=CheckpointError) == b"12345"
    for path, message in [
        (tmp_path / "pipe", "is not a regular file"),
        (Path("/dev/zero"), "is not a regular file"),
        (tmp_path, "directory|regular"),
        (tmp_path / "none", r"cannot be read \(No such file"),
        (tmp_path / "sparse", "has more than 5 bytes"),
        (Path("/proc/self/maps"), "has more than 5 bytes"),
    ]:
        with pytest.raises(CheckpointError, match=f"{path}: .*({message})"):
            read_regular_file(path, at_most_bytes=5, error_type=CheckpointError)


def test_a_file_that_has_nothing_at_present_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file").write_bytes(b"")
    nothing = mock.MagicMock()  # as /proc/kmsg
    nothing.__enter__.return_value.read.return_value = None
    nothing.__enter__.return_value.fileno.side_effect = lambda: os.open("file", os.O_RDONLY)
    monkeypatch.setattr(os, "fdopen", lambda *_: nothing)
    with pytest.raises(CheckpointError, match="file: cannot be read"):
        read_regular_file(Path("file"), at_most_bytes=10, error_type=CheckpointError)


def test_text_with_bytes_that_are_no_utf8_can_be_drawn() -> None:
    assert text_for_opencv(os.fsdecode(b"a\xff.png")) == "a?.png"

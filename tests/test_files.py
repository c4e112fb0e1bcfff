from pathlib import Path

import pytest

from foundation_stereo_depth.files import write_whole


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_appears_whole(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / ("n" * 255)
    for content in (b"old", b"new"):
        write_whole(path, lambda file, content=content: file.write(content), durable=durable)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(file) -> None:
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(path, fail, durable=True)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import shifted_pair

from foundation_stereo_depth.data.codecs import write_rgb
from foundation_stereo_depth.data.pairs import NamedPair, find_pairs
from foundation_stereo_depth.errors import DataError


def image_file(path: str, seed: int = 0, width: int = 24) -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_rgb(Path(path), np.random.default_rng(seed).integers(0, 256, (10, width, 3), dtype=np.uint8))
    return Path(path)


def names(left: str, right: str | None) -> list[str]:
    return list(find_pairs(left, right).files)


def test_two_files_pair_whatever_they_are_called() -> None:
    image_file("a/im0.png", 1)
    image_file("b/other.png", 2)
    (pair,) = find_pairs("a/im0.png", "b/other.png")
    assert pair.name == "im0"
    assert not np.array_equal(pair.left, pair.right)


def test_folders_pair_equal_names() -> None:
    for name in ("0010", "0002"):
        image_file(f"left/{name}.jpg")
        image_file(f"right/{name}.png")
    Path("left/notes.txt").write_text("no image")
    assert names("left", "right") == ["0002", "0010"]


def test_globs_pair_what_their_wildcards_stand_for() -> None:
    for scene in ("art", "left_turn"):
        for eye in ("im0", "im1"):
            image_file(f"data/{scene}/{eye}.png")
    for number in (1, 2):
        image_file(f"rig/left{number:02d}.jpg")
        image_file(f"rig/right{number:02d}.jpg")
    assert names("data/*/im0.png", "data/*/im1.png") == ["art", "left_turn"]
    assert names("rig/left*.jpg", "rig/right*.jpg") == ["01", "02"]
    assert names("rig/left?1.jpg", "rig/right?1.jpg") == ["0"]
    assert names("rig/left*", "rig/right*") == ["01", "02"]  # without the suffix
    assert names(str(Path("data/**/im0.png").absolute()), str(Path("data/**/im1.png").absolute())) == [
        "art",
        "left_turn",
    ]


def test_a_partnerless_eye_is_named() -> None:
    image_file("left/0001.png")
    image_file("left/0002.png")
    image_file("right/0001.png")
    with pytest.raises(DataError, match=r"left/0002\.png: has no partner in right \(1 such files\)"):
        find_pairs("left", "right")


def test_two_files_of_one_name_are_not_guessed_between() -> None:
    image_file("left/0001.png")
    image_file("left/0001.jpg")
    with pytest.raises(DataError, match="would have the same name as"):
        find_pairs("left", None)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("nowhere.png", "no such file or folder"),
        ("no/*.png", "matches no file"),
        ("empty", "a folder without images"),
    ],
)
def test_missing_input_is_refused(named: str, message: str) -> None:
    Path("empty").mkdir()
    with pytest.raises(DataError, match=message):
        find_pairs(named, named)


def test_side_by_side_image_is_split() -> None:
    left, right = shifted_pair(20, 30, 4)
    write_rgb(Path("both.png"), np.concatenate([left, right], axis=1))
    (pair,) = find_pairs("both.png", None)
    np.testing.assert_array_equal(pair.left, left)
    np.testing.assert_array_equal(pair.right, right)
    image_file("odd.png", width=25)
    with pytest.raises(DataError, match=r"odd\.png: is 25 px wide"):
        list(find_pairs("odd.png", None))


def test_views_of_unequal_size_are_refused() -> None:
    image_file("a.png")
    image_file("b.png", width=26)
    with pytest.raises(DataError, match=r"a\.png: is 24x10, but its right view is 26x10"):
        list(find_pairs("a.png", "b.png"))


def video(path: str, frames: list[np.ndarray]) -> None:
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(path, cv2.VideoWriter.fourcc(*"MJPG"), 10, (width, height))
    assert writer.isOpened()
    for frame in frames:
        writer.write(frame[..., ::-1])
    writer.release()


def test_videos_are_read_frame_by_frame() -> None:
    views = [shifted_pair(48, 64, shift_px, seed=shift_px) for shift_px in (2, 3, 4)]
    video("left.avi", [left for left, _ in views])
    video("right.avi", [right for _, right in views])
    video("both.avi", [np.concatenate(pair, axis=1) for pair in views])
    two, one = list(find_pairs("left.avi", "right.avi")), list(find_pairs("both.avi", None))
    assert [pair.name for pair in two] == ["left_000000", "left_000001", "left_000002"]
    assert find_pairs("both.avi", None).count is None
    for pairs in (two, one):
        for pair, (left, right) in zip(pairs, views, strict=True):
            for found, meant in ((pair.left, left), (pair.right, right)):
                assert np.abs(found.astype(int) - meant).mean() < 12  # what JPEG loses; another frame is at 60 or so


def test_videos_of_unequal_length_are_refused() -> None:
    frames = [shifted_pair(48, 64, 2)[0]] * 3
    video("left.avi", frames)
    video("right.avi", frames[:2])
    with pytest.raises(DataError, match=r"left\.avi: continues after right\.avi ends at frame 2"):
        list(find_pairs("left.avi", "right.avi"))
    with pytest.raises(DataError, match=r"left\.avi: continues after right\.avi ends at frame 2"):
        list(find_pairs("right.avi", "left.avi"))


def test_a_frame_that_one_video_lacks_ends_the_pairs_before_it() -> None:
    random = np.random.default_rng(0)
    frames = [random.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(20)]
    video("left.avi", frames)
    video("right.avi", frames)
    content = bytearray(Path("right.avi").read_bytes())
    # Each frame is a chunk 00dc of its own; the tenth is made to be none.
    chunks = [match.start() for match in re.finditer(b"00dc", content)]
    size = int.from_bytes(content[chunks[9] + 4 : chunks[9] + 8], "little")
    content[chunks[9] + 8 : chunks[9] + 8 + size] = bytes(size)
    Path("right.avi").write_bytes(content)
    read: list[NamedPair] = []
    with pytest.raises(DataError, match=r"right\.avi"):
        read.extend(find_pairs("left.avi", "right.avi"))
    assert 8 <= len(read) <= 10
    assert all(np.array_equal(pair.left, pair.right) for pair in read), "each is of one time"


def test_truncated_video_is_refused_after_its_pairs() -> None:
    video("both.avi", [np.zeros((48, 64, 3), np.uint8) + 10 * number for number in range(20)])
    content = Path("both.avi").read_bytes()
    Path("both.avi").write_bytes(content[: len(content) * 6 // 10])
    read: list[NamedPair] = []
    with pytest.raises(
        DataError, match=r"both\.avi: decoding ended after \d+ frames, at \d\.\d of \d\.\d s; is it damaged"
    ):
        read.extend(find_pairs("both.avi", None, side_by_side=True))
    assert len(read) < 18


def test_brackets_in_a_folder_are_no_wildcards() -> None:
    for eye in ("L [1]", "R [1]"):
        Path(eye).mkdir()
        image_file(f"{eye}/0.png")
    pairs = find_pairs("L [1]/*.png", "R [1]/*.png")
    assert pairs.files == {"0": (Path("L [1]/0.png"), Path("R [1]/0.png"))}


def test_what_macos_puts_beside_files_is_no_image() -> None:
    for eye in ("l", "r"):
        Path(eye).mkdir()
        image_file(f"{eye}/0.png")
        Path(eye, "._0.png").write_bytes(b"Mac OS X")
    assert list(find_pairs("l", "r").files) == ["0"]


def test_an_empty_name_is_not_the_folder_one_is_in() -> None:
    image_file("a.png")
    with pytest.raises(DataError, match="is empty"):
        find_pairs("", "")


def test_a_video_beside_an_image_or_damaged_is_refused() -> None:
    Path("broken.mp4").write_bytes(b"no video")
    image_file("a.png")
    with pytest.raises(DataError, match="one is a video, the other is not"):
        find_pairs("broken.mp4", "a.png")
    with pytest.raises(DataError, match=r"broken\.mp4: is not a video that can be decoded"):
        list(find_pairs("broken.mp4", None))


@pytest.mark.parametrize("named", [("a.png", "."), (".", "a.png")])
def test_a_folder_is_no_partner_of_a_file(named: tuple[str, str]) -> None:
    image_file("a.png")
    with pytest.raises(DataError, match="one is a folder and the other a file"):
        find_pairs(*named)

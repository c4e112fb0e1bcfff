"""Text of calibration files becomes plain values, as OpenCV reads them, and hostile text is refused within a second."""

import gzip
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from foundation_stereo_depth.calibration.files import read_calibration
from foundation_stereo_depth.calibration.text import (
    LARGEST_FILE_BYTES,
    decode_text,
    parse_json,
    parse_opencv_xml,
    parse_yaml,
)
from foundation_stereo_depth.errors import CalibrationError

MATRIX = np.array([[700.25, 0, 320.5], [0, 701e-7, 240], [0, -1e300, 1]])


def written_by_opencv(suffix: str) -> str:
    storage = cv2.FileStorage(f"x{suffix}", cv2.FILE_STORAGE_WRITE | cv2.FILE_STORAGE_MEMORY)
    storage.write("M1", MATRIX)
    storage.write("bytes", np.array([[1, 2, 255]], np.uint8))
    storage.write("points", np.arange(12, dtype=np.float32).reshape(3, 2, 2))
    storage.write("image_width", 640)
    storage.write("camera", "left")
    storage.startWriteStruct("image_size", cv2.FileNode_SEQ)
    for value in (640, 480):
        storage.write("", value)
    storage.endWriteStruct()
    return storage.releaseAndGetString()


@pytest.mark.parametrize(
    ("suffix", "parse"),
    [(".yml", lambda text: parse_yaml(text)[0]), (".xml", parse_opencv_xml), (".json", parse_json)],
)
def test_what_opencv_wrote_comes_back(suffix, parse) -> None:
    entries = parse(written_by_opencv(suffix))
    np.testing.assert_array_equal(entries["M1"], MATRIX)
    np.testing.assert_array_equal(entries["bytes"], [[1, 2, 255]])
    assert entries["points"].shape == (3, 4)  # two channels stand side by side
    assert entries["camera"] == "left"
    assert int(entries["image_width"]) == 640
    assert [int(value) for value in entries["image_size"]] == [640, 480]


def test_every_yaml_header_is_passed_over() -> None:
    for header in ("", "%YAML:1.0\n---\n", "%YAML 1.2\n---\n", "%YAML:1.0 # a comment\n\n", "---\n", "\n%YAML:1.0\n"):
        assert parse_yaml(f"{header}a: [1, 2.5e+02, .Inf]\n") == [{"a": [1, 250.0, float("inf")]}]


def test_documents_of_one_file_are_told_apart_and_empty_ones_dropped() -> None:
    assert parse_yaml("a: 1\n---\n---\nb: 2\n---\n") == [{"a": 1}, {"b": 2}]


def test_infinite_and_missing_numbers_of_opencv_are_read() -> None:
    (entries,) = parse_yaml("M: !!opencv-matrix\n  rows: 1\n  cols: 3\n  dt: d\n  data: [ .Inf, -.Inf, .Nan ]\n")
    np.testing.assert_array_equal(entries["M"], [[np.inf, -np.inf, np.nan]])


MATRICES = {
    "no cols": {"rows": 3, "dt": "d", "data": [1, 2, 3]},
    "negative cols": {"rows": 3, "cols": -3, "dt": "d", "data": [1, 2, 3]},
    "zero rows": {"rows": 0, "cols": 3, "dt": "d", "data": []},
    "enormous": {"rows": 10**9, "cols": 10**9, "dt": "d", "data": [1]},
    "fractional rows": {"rows": 1.5, "cols": 1, "dt": "d", "data": [1]},
    "too few numbers": {"rows": 3, "cols": 3, "dt": "d", "data": [1]},
    "no data": {"rows": 1, "cols": 1, "dt": "d"},
    "text": {"rows": 1, "cols": 1, "dt": "d", "data": ["a"]},
    "a list": {"rows": 1, "cols": 1, "dt": "d", "data": [[1]]},
    "a type of a hundred channels": {"rows": 1, "cols": 1, "dt": "100d", "data": [1]},
    "an unknown type": {"rows": 1, "cols": 1, "dt": "q", "data": [1]},
    "a hundred sizes": {"sizes": [1] * 100, "dt": "d", "data": [1]},
}


@pytest.mark.parametrize("entries", MATRICES.values(), ids=MATRICES)
def test_an_impossible_matrix_is_refused_in_every_spelling(entries: dict) -> None:
    import json

    as_json = json.dumps({"M": {"type_id": "opencv-matrix"} | entries})
    as_yaml = "M: !!opencv-matrix\n" + "".join(f"   {name}: {json.dumps(value)}\n" for name, value in entries.items())
    tags = "".join(
        f"<{name}>{' '.join(map(str, value)) if isinstance(value, list) else value}</{name}>"
        for name, value in entries.items()
    )
    as_xml = f"<opencv_storage><M type_id='opencv-matrix'>{tags}</M></opencv_storage>"
    for parse, text in ((parse_json, as_json), (parse_yaml, as_yaml), (parse_opencv_xml, as_xml)):
        if entries is MATRICES["a list"] and parse is parse_opencv_xml:
            continue  # XML has no lists within data
        with pytest.raises(CalibrationError, match="matrix"):
            parse(text)


HOSTILE = {
    "empty lines": "\n" * 999_990 + "x: [",
    "nested lists": "[" * 100_000,
    "nested dashes": "- " * 100_000,
    "nested braces": "{" * 500_000,
    "aliases": "a: &a [1, 1]\nb: [*a, *a]\n",
    "a matrix of many dimensions": "T: !!opencv-nd-matrix\n   sizes: [ 1, 1 ]\n   dt: d\n   data: [ 1. ]\n",
    "a list as a key": "? [a]\n: 1\n",
    "a date that is none": "a: 2001-99-99\n",
    "control characters": "a: \x07\n",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_yaml_is_refused_soon(text: str) -> None:
    began_s = time.thread_time()
    with pytest.raises(CalibrationError):
        parse_yaml(text)
    assert time.thread_time() - began_s < 3


def test_a_tag_that_would_run_code_is_only_a_value() -> None:
    assert parse_yaml("a: !!python/object/apply:os.system ['exit 1']\nb: !other {c: 1}\n") == [
        {"a": ["exit 1"], "b": {"c": 1}}
    ]


@pytest.mark.parametrize("text", ["{" * 100_000, "[" * 100_000, '{"a": ' + "9" * 5000 + "}", "{", ""])
def test_hostile_json_is_refused(text: str) -> None:
    with pytest.raises(CalibrationError):
        parse_json(text)


@pytest.mark.parametrize(
    "text",
    [
        '<!DOCTYPE a [<!ENTITY b "c">]><opencv_storage>&b;</opencv_storage>',
        "<opencv_storage>" + "<a>" * 1000 + "</a>" * 1000 + "</opencv_storage>",
        "<opencv_storage><a></opencv_storage>",
        "",
    ],
)
def test_hostile_xml_is_refused(text: str) -> None:
    with pytest.raises(CalibrationError):
        parse_opencv_xml(text)


def test_text_is_decoded_from_utf_16_gzip_and_with_a_mark() -> None:
    text = "größe: 1\n"
    for content in (text.encode(), text.encode("utf-8-sig"), text.encode("utf-16"), gzip.compress(text.encode())):
        assert decode_text(content) == text


@pytest.mark.parametrize(
    "content",
    [
        b"\x00\xff\xfe\x80",
        b" " * (LARGEST_FILE_BYTES + 1),
        gzip.compress(b" " * 100_000_000),
        gzip.compress(b"a: 1")[:-6],
        b"\x1f\x8b",
    ],
    ids=["bytes", "too large", "too large once unpacked", "cut gzip", "empty gzip"],
)
def test_what_is_no_text_is_refused(content: bytes) -> None:
    with pytest.raises(CalibrationError):
        decode_text(content)


HOSTILE = {
    "comments that never end": b"<opencv_storage>" + b"<!--" * 200_000,
    "a number to the base of 60": b"mtx_l: 1" + b":1" * 400_000,
    "many values": b"[" + b"a," * 400_000 + b"]",
    "lines of a ZED file that are no entries": b"[LEFT_CAM_HD]\n" + b"x\n" * 400_000,
    "spaces in a ZED file": b"[LEFT_CAM_HD]\nx" + b" " * 900_000 + b"y",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_texts_that_take_a_time_of_their_length_squared_are_refused_soon(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.txt").write_bytes(HOSTILE[name])
    began_s = time.thread_time()
    with pytest.raises(CalibrationError, match=r"x\.txt: "):
        read_calibration(tmp_path / "x.txt")
    assert time.thread_time() - began_s < 10


def test_an_npz_with_one_matrix_under_many_names_is_not_unpacked(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", **{"_" * n + "R": np.zeros(100_000) for n in range(60)})
    with pytest.raises(CalibrationError, match="which mean the same"):
        read_calibration(tmp_path / "x.npz")

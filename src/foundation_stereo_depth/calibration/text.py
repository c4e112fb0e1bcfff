"""Text of calibration files -> plain Python values, of any origin: bounded in size, depth and time.

OpenCV's own `cv2.FileStorage` is no parser for foreign files: matrices without cols, with negative or with a hundred
sizes overwrite its memory. So its YAML, XML and JSON are read here, by PyYAML, xml.etree and json, and every matrix is
checked before it becomes an array.
"""

import gzip
import io
import json
import re
import zlib
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

import numpy as np
import yaml
from jaxtyping import Float64

from foundation_stereo_depth.errors import CalibrationError

LARGEST_FILE_BYTES = 1_000_000
_DEEPEST = 30
_MOST_YAML_EVENTS = 100_000
_LONGEST_NUMBER = 100
_LARGEST_SIDE = 1000
"""Rows or columns of a matrix in a calibration."""
_GZIP_BEGINS = b"\x1f\x8b"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_YAML_DIRECTIVE = re.compile(r"\A\s*%YAML[^\n]*\n")
_MATRIX, _ND_MATRIX = "opencv-matrix", "opencv-nd-matrix"
_TYPES = "ucwsifdhbHIU"
"""OpenCV's letters for the types of a matrix; all are read as numbers."""


def decode_text(content: bytes) -> str:
    """Return the text of a file: UTF-8, with or without its mark, or UTF-16 with its mark; gzip is undone.

    Raises:
        CalibrationError: it is no text, or larger than any calibration.
    """
    if content.startswith(_GZIP_BEGINS):
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
                content = file.read(LARGEST_FILE_BYTES + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise CalibrationError(f"is a damaged gzip file ({error})") from error
    check_size(len(content))
    try:
        if content.startswith(_UTF16_MARKS):
            return content.decode("utf-16")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CalibrationError("is neither text nor an NPZ") from error


def check_size(size_bytes: int) -> None:
    """Check that a file is no larger than calibrations are.

    Raises:
        CalibrationError: it is larger.
    """
    if size_bytes > LARGEST_FILE_BYTES:
        raise CalibrationError(f"has more than {LARGEST_FILE_BYTES:,} bytes, which no calibration has")


def parse_yaml(text: str) -> list[Any]:
    """Return the documents of a YAML file as plain values; OpenCV's matrices are arrays.

    Any first line that begins with %YAML is passed over: OpenCV writes `%YAML:1.0`, which YAML itself does not allow.
    Tags that are not OpenCV's are ignored. Aliases are refused, since a few lines of them unfold into gigabytes.

    Raises:
        CalibrationError: it is no YAML, nests too deeply, or holds an alias or an impossible matrix.
    """
    text = _YAML_DIRECTIVE.sub("", text, count=1)
    try:
        _check_events(text)
        return [document for document in yaml.load_all(text, Loader=_Loader) if document is not None]
    except yaml.YAMLError as error:
        raise CalibrationError(f"is damaged: {' '.join(str(error).split())[:200]}") from error
    except (ValueError, TypeError, RecursionError) as error:  # a date or number that is none, a list as a key
        if isinstance(error, CalibrationError):
            raise
        raise CalibrationError(f"is damaged: {error}") from error


def parse_json(text: str) -> Any:
    """Return the value of a JSON file; OpenCV's matrices in it are arrays.

    Raises:
        CalibrationError: it is no JSON, or holds an impossible matrix.
    """
    try:
        return _replace_matrices(json.loads(text), depth=0)
    except CalibrationError:
        raise
    except (ValueError, RecursionError) as error:  # no JSON, or a whole number of thousands of digits
        raise CalibrationError(f"is damaged: {error}") from error


def parse_opencv_xml(text: str) -> dict[str, Any]:
    """Return the entries of an XML file that cv2.FileStorage wrote; matrices are arrays.

    Raises:
        CalibrationError: it is no XML, declares entities, or holds an impossible matrix.
    """
    if "<!" in _without_comments(text):
        raise CalibrationError("declares a document type or entities, which no calibration needs")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise CalibrationError(f"is damaged: {error}") from error
    return {child.tag: _xml_value(child, depth=0) for child in root}


def _without_comments(text: str) -> str:
    # Not by a regular expression: for comments that never end it takes a time of the text's length squared.
    first, *others = text.split("<!--")
    return first + "".join(other.partition("-->")[2] if "-->" in other else f"<!{other}" for other in others)


class _Loader(yaml.CSafeLoader if hasattr(yaml, "CSafeLoader") else yaml.SafeLoader):  # type: ignore[misc]
    """Builds plain values whatever the tags, and arrays of OpenCV's matrices."""


def _construct_matrix(loader: Any, node: Any) -> Float64[np.ndarray, "rows cols"]:
    return _matrix(loader.construct_mapping(node, deep=True))


def _construct_plain(loader: Any, suffix: str, node: Any) -> Any:
    if suffix.endswith("-nd-matrix"):
        raise CalibrationError("holds a matrix of more than two dimensions, which no calibration needs")
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_scalar(node)


def _construct_number(loader: Any, node: Any) -> Any:
    # Numbers to the base of 60, as 1:30:00, take a time of their length squared.
    if len(node.value) > _LONGEST_NUMBER:
        raise CalibrationError(f"holds a number of {len(node.value):,} characters, which no calibration does")
    return getattr(loader, f"construct_yaml_{node.tag.rpartition(':')[2]}")(node)


for _tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float"):
    _Loader.add_constructor(_tag, _construct_number)
for _tag in (f"tag:yaml.org,2002:{_MATRIX}", f"!{_MATRIX}"):
    _Loader.add_constructor(_tag, _construct_matrix)
for _prefix in ("tag:yaml.org,2002:python", "tag:yaml.org,2002:opencv", "!"):
    _Loader.add_multi_constructor(_prefix, _construct_plain)


def _check_events(text: str) -> None:
    depth = 0
    for number, event in enumerate(yaml.parse(text, Loader=_Loader)):
        if number > _MOST_YAML_EVENTS:
            raise CalibrationError(f"holds more than {_MOST_YAML_EVENTS:,} values, which no calibration does")
        if isinstance(event, yaml.AliasEvent):
            raise CalibrationError("holds a YAML alias (*name), which no calibration needs; write the value out")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise CalibrationError(f"nests more than {_DEEPEST} levels deep, which no calibration does")


def _replace_matrices(value: Any, depth: int) -> Any:
    if depth > _DEEPEST:
        raise CalibrationError(f"nests more than {_DEEPEST} levels deep, which no calibration does")
    if isinstance(value, list):
        return [_replace_matrices(each, depth + 1) for each in value]
    if not isinstance(value, dict):
        return value
    kind = value.get("type_id")
    if kind == _MATRIX:
        return _matrix(value)
    if kind == _ND_MATRIX:
        raise CalibrationError("holds a matrix of more than two dimensions, which no calibration needs")
    return {key: _replace_matrices(each, depth + 1) for key, each in value.items()}


def _xml_value(element: ElementTree.Element, depth: int) -> Any:
    if depth > _DEEPEST:
        raise CalibrationError(f"nests more than {_DEEPEST} levels deep, which no calibration does")
    kind = element.get("type_id", "")
    if kind == _MATRIX:
        return _matrix({child.tag: _words(child.text) if child.tag == "data" else child.text for child in element})
    if kind == _ND_MATRIX:
        raise CalibrationError("holds a matrix of more than two dimensions, which no calibration needs")
    if len(element) == 0:
        words = _words(element.text)
        return words[0] if len(words) == 1 else words
    if all(child.tag == "_" for child in element):
        return [_xml_value(child, depth + 1) for child in element]
    return {child.tag: _xml_value(child, depth + 1) for child in element}


def _words(text: str | None) -> list[str]:
    return [word.strip('"') for word in (text or "").split()]


def _matrix(entries: Mapping[Any, Any]) -> Float64[np.ndarray, "rows cols"]:
    """Return the matrix of OpenCV's rows, cols, dt and data; every number is checked before it is believed."""
    if "sizes" in entries:
        raise CalibrationError("holds a matrix of more than two dimensions, which no calibration needs")
    rows, cols = (_side(entries, name) for name in ("rows", "cols"))
    channels = _channels(entries)
    data = entries.get("data")
    if not isinstance(data, list) or len(data) != rows * cols * channels:
        found = f"{len(data)} numbers" if isinstance(data, list) else "no list of numbers"
        raise CalibrationError(f"holds a matrix of {rows}x{cols} with {found}")
    try:
        return np.array([_number(value) for value in data], np.float64).reshape(rows, cols * channels)
    except (TypeError, ValueError, OverflowError) as error:
        raise CalibrationError(f"holds a matrix with something else than numbers ({error})") from error


def _number(value: Any) -> float:
    if isinstance(value, bool | list | dict):
        raise ValueError(f"{value!s:.20}")  # noqa: TRY004 (a file of that kind is no caller's mistake)
    # OpenCV spells what is no number as YAML 1.1 does: .Inf, -.Inf, .Nan.
    return float(value.replace(".Inf", "inf").replace(".Nan", "nan") if isinstance(value, str) else value)


def _side(entries: Mapping[Any, Any], name: str) -> int:
    try:
        side = int(entries[name])
    except (KeyError, TypeError, ValueError, OverflowError):
        raise CalibrationError(f"holds a matrix without a whole number of {name}") from None
    if not 1 <= side <= _LARGEST_SIDE or isinstance(entries[name], float):
        raise CalibrationError(f"holds a matrix of {side} {name}, but has to hold 1 to {_LARGEST_SIDE}")
    return side


def _channels(entries: Mapping[Any, Any]) -> int:
    spelled = re.fullmatch(rf"(\d{{0,2}})([{_TYPES}])", str(entries.get("dt", "d")).strip().strip('"'))
    if spelled is None or spelled[1] == "0":
        raise CalibrationError(f"holds a matrix of the unknown type {str(entries.get('dt'))[:20]}")
    return int(spelled[1] or 1)

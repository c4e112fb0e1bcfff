import io
import os
import struct
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zlib_ng import zlib_ng

from foundation_stereo_depth.data import npz
from foundation_stereo_depth.data.npz import Kind, NpzError, NpzReader

HEIGHT, WIDTH = 5, 7  # small, so that every byte of a file can be tried
KINDS = {
    "left": Kind(dtype=np.dtype(np.uint8), shape=(HEIGHT, WIDTH, 3)),
    "right": Kind(dtype=np.dtype(np.uint8), shape=(HEIGHT, WIDTH, 3)),
    "disparity": Kind(dtype=np.dtype(np.float16), shape=(HEIGHT, WIDTH)),
}
EXTRAS = {"source": Kind(dtype=np.dtype("<i8"), shape=(3, 2))}
Arrays = dict[str, np.ndarray]


def make_reader() -> NpzReader:
    return NpzReader(KINDS, EXTRAS)


def arrays_of(seed: int = 0) -> Arrays:
    """Return what is read of a file."""
    random = np.random.default_rng(seed)
    left, right = random.integers(0, 256, (2, HEIGHT, WIDTH, 3), dtype=np.uint8)
    return {"left": left, "right": right, "disparity": random.uniform(0, 60, (HEIGHT, WIDTH)).astype(np.float16)}


def stored(arrays: Arrays) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def read(encoded: bytes, path: Path, reader: NpzReader | None = None) -> Arrays:
    path.write_bytes(encoded)
    into = {key: np.full(kind.shape, 7, kind.dtype) for key, kind in KINDS.items()}
    (reader or make_reader()).read(path, into)
    return into


def same(a: Arrays, b: Arrays) -> bool:
    return all(a[key].tobytes() == b[key].tobytes() for key in KINDS)


def stamped(arrays: Arrays) -> bytes:
    return stored(arrays | {"source": np.arange(6).reshape(3, 2) * 10**9})


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED, **settings: object) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method, **settings) as archive:
        for name, body in members.items():
            archive.writestr(name, body)
    return file.getvalue()


def npy(array: np.ndarray, version: tuple[int, int] = (1, 0)) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=version)
    return file.getvalue()


def members_of(arrays: Arrays) -> dict[str, bytes]:
    return {f"{key}.npy": npy(array) for key, array in arrays.items()}


# ------------------------------------------------------------------------------------------------- what is legal


def deflated(arrays: Arrays) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def with_comment(arrays: Arrays) -> bytes:
    file = io.BytesIO(stored(arrays))
    with zipfile.ZipFile(file, "a") as archive:
        archive.comment = b"made by another program"
    return file.getvalue()


def with_another_header(arrays: Arrays) -> bytes:
    header = b"{'descr':'|u1','fortran_order':False,'shape':(%d,%d,3)}\n" % (HEIGHT, WIDTH)
    left = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + arrays["left"].tobytes()
    return zipped(members_of(arrays) | {"left.npy": left})


def with_data_descriptors(arrays: Arrays) -> bytes:
    class Pipe(io.RawIOBase):
        """A stream that cannot go back, so that sizes and checksums follow the data."""

        def __init__(self) -> None:
            self.written = bytearray()

        def write(self, data: bytes) -> int:
            self.written += bytes(data)
            return len(bytes(data))

        def writable(self) -> bool:
            return True

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w") as archive:
        for name, body in members_of(arrays).items():
            archive.writestr(name, body)
    return bytes(pipe.written)


def with_zip64(arrays: Arrays) -> bytes:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zipfile, "ZIP64_LIMIT", 0)
        return zipped(members_of(arrays))


def dated(arrays: Arrays) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, body in members_of(arrays).items():
            archive.writestr(zipfile.ZipInfo(name, (2026, 11, 22, 18, 0, 0)), body)
    return file.getvalue()


LEGAL: dict[str, Callable[[Arrays], bytes]] = {
    "as NumPy stores": stored,
    "with a stamp": stamped,
    "keys in another order": lambda a: stored({key: a[key] for key in ("disparity", "right", "left")}),
    "more members": lambda a: stored(a | {"depth": np.ones(5), "name": np.array("x")}),
    "another member first": lambda a: stored({"a": np.arange(3)} | a),
    "zip without NumPy's extra field": lambda a: zipped(members_of(a)),
    "dated": dated,
    "deflated": deflated,
    "Fortran order": lambda a: stored({key: np.asfortranarray(array) for key, array in a.items()}),
    "big endian": lambda a: stored(a | {"disparity": a["disparity"].astype(">f2")}),
    "NPY version 2": lambda a: zipped({f"{k}.npy": npy(array, (2, 0)) for k, array in a.items()}),
    "another header": with_another_header,
    "a comment": with_comment,
    "data descriptors": with_data_descriptors,
    "ZIP64": with_zip64,
}


@pytest.mark.parametrize("variant", LEGAL)
def test_every_legal_variant_is_read_as_numpy_reads_it(tmp_path: Path, variant: str) -> None:
    reader = make_reader()
    for seed in range(2):
        encoded = LEGAL[variant](arrays_of(seed))
        with np.load(io.BytesIO(encoded), allow_pickle=False) as expected:
            assert same(
                read(encoded, tmp_path / "0.npz", reader), {k: expected[k].astype(KINDS[k].dtype) for k in KINDS}
            )


def test_what_numpy_stores_is_read_without_the_general_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    general: list[bool] = []
    read_any = npz._read_any
    monkeypatch.setattr(npz, "_read_any", lambda *a: general.append(True) or read_any(*a))
    fast = set()
    for variant, make in LEGAL.items():
        general.clear()
        read(make(arrays_of()), tmp_path / "0.npz")
        fast |= set() if general else {variant}
    assert fast == {"as NumPy stores", "with a stamp"}


def test_reader_is_shared_by_threads(tmp_path: Path) -> None:
    expected = [arrays_of(seed) for seed in range(40)]
    for i, arrays in enumerate(expected):
        (tmp_path / f"{i}.npz").write_bytes(list(LEGAL.values())[i % 5](arrays))
    reader = make_reader()

    def read_one(i: int) -> bool:
        into = {key: np.empty(kind.shape, kind.dtype) for key, kind in KINDS.items()}
        reader.read(tmp_path / f"{i}.npz", into)
        return same(into, expected[i])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read_one, list(range(40)) * 5))


# ----------------------------------------------------------------------------------------------- what is damaged


def outcome(encoded: bytes, path: Path, whole: Arrays, reader: NpzReader) -> str:
    """Read or refused; never anything else, and never other numbers."""
    try:
        found = read(encoded, path, reader)
    except NpzError:
        return "refused"
    assert same(found, whole)
    return "read"


@pytest.mark.parametrize("variant", ["as NumPy stores", "with a stamp", "deflated"])
def test_every_truncation_is_refused(tmp_path: Path, variant: str) -> None:
    whole = arrays_of()
    encoded = LEGAL[variant](whole)
    reader = make_reader()
    read(encoded, tmp_path / "0.npz", reader)
    for length in range(0, len(encoded), 2 if variant == "as NumPy stores" else 7):
        assert outcome(encoded[:length], tmp_path / "0.npz", whole, reader) == "refused", length


@pytest.mark.parametrize(
    "variant", ["as NumPy stores", "with a stamp", "deflated", "another member first", "a comment"]
)
def test_flipped_bits_are_refused_or_change_nothing(tmp_path: Path, variant: str) -> None:
    """200 trials for each of five cases: 1,000 in all."""
    whole = arrays_of()
    encoded = LEGAL[variant](whole)
    random, reader = np.random.default_rng(0), make_reader()
    outcomes = []
    for bit in random.integers(0, 8 * len(encoded), 200):
        flipped = bytearray(encoded)
        flipped[bit // 8] ^= 1 << (bit % 8)
        outcomes.append(outcome(bytes(flipped), tmp_path / "0.npz", whole, reader))
    assert outcomes.count("refused") > 50


def test_a_flipped_bit_in_any_byte_outside_the_arrays_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    """A bit of every byte of every header, directory and end record: 754 trials."""
    whole = arrays_of()
    encoded = stored(whole)
    body = {key: (encoded.index(array.tobytes()), array.nbytes) for key, array in whole.items()}
    inside = {i for start, length in body.values() for i in range(start, start + length)}
    reader = make_reader()
    read(encoded, tmp_path / "0.npz", reader)
    trials = 0
    for position in sorted(set(range(len(encoded))) - inside):
        flipped = bytearray(encoded)
        flipped[position] ^= 1 << (position * 5 % 8)
        outcome(bytes(flipped), tmp_path / "0.npz", whole, reader)
        trials += 1
    assert trials == 754


@settings(
    max_examples=150, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    variant=st.sampled_from(sorted(LEGAL)),
    edits=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 8), st.binary(max_size=8)), min_size=1, max_size=4),
)
def test_edited_files_are_refused_or_read_unchanged(
    tmp_path: Path, variant: str, edits: list[tuple[int, int, bytes]]
) -> None:
    whole = arrays_of()
    encoded = LEGAL[variant](whole)
    for place, cut, put in edits:
        at = place % (len(encoded) + 1)
        encoded = encoded[:at] + put + encoded[at + cut :]
    outcome(encoded, tmp_path / "0.npz", whole, make_reader())


@settings(
    max_examples=150, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(header=st.one_of(st.binary(max_size=200), st.text("{}()[]'<>|=,: -_descrfotnhapTuFls0123456789", max_size=120)))
def test_hostile_header_with_a_right_checksum_is_refused(tmp_path: Path, header: bytes | str) -> None:
    """Checksums do not stop an attacker: the header itself has to be refused."""
    text = header if isinstance(header, bytes) else header.encode()
    left = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + arrays_of()["left"].tobytes()
    with pytest.raises(NpzError):
        read(zipped(members_of(arrays_of()) | {"left.npy": left}), tmp_path / "0.npz")


@settings(
    max_examples=200, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(encoded=st.binary(max_size=400))
def test_noise_is_refused(tmp_path: Path, encoded: bytes) -> None:
    with pytest.raises(NpzError):
        read(encoded, tmp_path / "0.npz")


# --------------------------------------------------------------------------------------------- hostile


def header_of(descr: str, shape: str) -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def lying_about_sizes(arrays: Arrays) -> bytes:
    """The directory promises four gigabytes for a member that is not there."""
    encoded = bytearray(stored(arrays))
    at = encoded.index(b"PK\1\2")
    encoded[at + 20 : at + 28] = struct.pack("<2I", 2**32 - 2, 2**32 - 2)
    return bytes(encoded)


HOSTILE: dict[str, Callable[[Arrays], bytes]] = {
    "a bomb": lambda a: zipped(members_of(a) | {"left.npy": bytes(60_000_000)}, zipfile.ZIP_DEFLATED, compresslevel=9),
    "a bomb behind a right header": lambda a: zipped(
        members_of(a) | {"left.npy": npy(a["left"]) + bytes(60_000_000)}, zipfile.ZIP_DEFLATED, compresslevel=9
    ),
    "a bomb of another method": lambda a: zipped(
        members_of(a) | {"left.npy": npy(a["left"]) + bytes(50_000_000)}, zipfile.ZIP_BZIP2
    ),
    "terabytes": lambda a: zipped(members_of(a) | {"left.npy": header_of("|u1", "(1000000, 1000000, 3)")}),
    "an endless number": lambda a: zipped(members_of(a) | {"left.npy": header_of("|u1", f"({'9' * 98},)")}),
    "a pickle": lambda a: stored(a | {"left": np.array([{"code": "to run"}], dtype=object)}),
    "code": lambda a: zipped(members_of(a) | {"left.npy": header_of("|u1' + exit() + '", "(1,)")}),
    "lies about sizes": lying_about_sizes,
    "another type": lambda a: stored(a | {"left": a["left"].astype(np.float64)}),
    "another shape": lambda a: stored(a | {"disparity": a["disparity"][:-1]}),
    "a part": lambda a: stored({"left": a["left"]}),
    "thousands of members": lambda _: zipped({f"{i}": b"" for i in range(3_000)}),
    "much more than it should be": lambda a: stored(a | {"more": np.zeros(2_000_000)}),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_file_is_refused_before_memory_is_taken(tmp_path: Path, kind: str) -> None:
    encoded = HOSTILE[kind](arrays_of())
    path = tmp_path / "0.npz"
    path.write_bytes(encoded)
    into = {key: np.empty(kind.shape, kind.dtype) for key, kind in KINDS.items()}
    tracemalloc.start()
    with pytest.raises(NpzError):
        make_reader().read(path, into)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < len(encoded) + 16 * 2**20


def test_file_of_a_terabyte_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "0.npz"
    path.write_bytes(stored(arrays_of()))
    os.truncate(path, 10**12)
    with pytest.raises(NpzError, match="where such arrays never need"):
        make_reader().read(path, arrays_of())


def test_the_last_of_two_members_of_one_name_is_read(tmp_path: Path) -> None:
    """Python's reader takes the last of two; so does ours."""
    first, last = arrays_of(0), arrays_of(1)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile's own, of duplicate names
        for name, body in [*members_of(first).items(), *members_of(last).items()]:
            archive.writestr(name, body)
    assert same(read(file.getvalue(), tmp_path / "0.npz"), last)


def test_missing_file_and_folder_raise_different_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        make_reader().read(tmp_path / "none.npz", arrays_of())
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(NpzError, match="cannot be read"):
        make_reader().read(tmp_path / "folder.npz", arrays_of())


def test_checksums_are_zips() -> None:
    assert zlib_ng.crc32(b"123456789") == 0xCBF43926  # the check value of CRC-32/ISO-HDLC in its catalogue

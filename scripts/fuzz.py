"""Feed every reader of foreign files with damaged ones: each has to be read, or refused by one UserError.

    scripts/fuzz                              # one minute per kind
    scripts/fuzz onnx images --seconds 3600   # hours, before a release
    scripts/fuzz images --seed 7              # other damage

Each kind runs in a process of its own, which may end any way it likes: it is started again. Whatever is neither read
nor refused, takes more than ten seconds or two gigabytes, or ends the process, is kept in fuzz-findings/. Exit status 1
where there is any.
"""

# ruff: noqa: PLC0415, ARG001 (each kind imports what it reads with, in its own process; not each one needs its folder)

import argparse
import io
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

LIMIT_S = 10
LIMIT_BYTES = 2 * 10**9
READ, REFUSED, NOT_USED = "read", "refused", "not used"
"""The last is of what is only a shortcut: the scan that is kept of a data set."""
FINDINGS = Path("fuzz-findings")
GOLDEN = Path(__file__).parent.parent / "tests/golden"
_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**40, 2**62, 2**64 - 1)
_WORDS = (b"-1", b"0", b"1e999", b"nan", b".inf", b"99999999999", b"", b"[[]]", b"null", b'"a"', b"&a", b"*a", b"\xff")

Seed = tuple[str, bytes]
"""Name of the file, content."""


def damage(rng: np.random.Generator, content: bytes, others: list[bytes]) -> bytes:
    """Return content with one to four faults; members of archives are packed again with right checksums, mostly."""
    if content.startswith(b"PK\3\4") and rng.random() < 0.6:
        return _repack(rng, content, others)
    if content.startswith(b"\x89PNG") and rng.random() < 0.6:
        return _resum(_damage_bytes(rng, content, others))
    return _damage_bytes(rng, content, others)


def _damage_bytes(rng: np.random.Generator, content: bytes, others: list[bytes]) -> bytes:
    damaged = bytearray(content)
    for _ in range(int(rng.integers(1, 5))):
        # Headers stand in front, and matter most.
        end = len(damaged) if rng.random() < 0.5 else min(len(damaged), 400)
        at = int(rng.integers(end + 1))
        length = int(rng.choice((1, 2, 4, 8)))
        fault = rng.integers(8)
        if fault == 0 and at < len(damaged):
            damaged[at] ^= 1 << int(rng.integers(8))
        elif fault == 1:
            number = int(rng.choice(_NUMBERS, shuffle=False)) if rng.random() < 0.9 else int(rng.integers(2**63))
            damaged[at : at + length] = (number % 256**length).to_bytes(length, rng.choice(("little", "big")))
        elif fault == 2:
            del damaged[at : at + int(rng.integers(1, 64))]
        elif fault == 3:
            damaged[at:at] = damaged[at : at + int(rng.integers(1, 4096))]
        elif fault == 4:
            damaged = damaged[: max(1, at)]
        elif fault == 5:
            damaged[at:at] = rng.bytes(int(rng.integers(1, 16)))
        elif fault == 6:
            other = others[int(rng.integers(len(others)))]
            damaged[at:] = other[min(at, len(other)) :]
        else:
            _replace_word(rng, damaged)
    return bytes(damaged)


def _replace_word(rng: np.random.Generator, damaged: bytearray) -> None:
    places = [i for i, byte in enumerate(damaged[:5000]) if byte in b"0123456789"]
    if places:
        at = places[int(rng.integers(len(places)))]
        damaged[at : at + int(rng.integers(1, 4))] = _WORDS[int(rng.integers(len(_WORDS)))]


def _repack(rng: np.random.Generator, content: bytes, others: list[bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(packed, "w") as target:
        members = archive.infolist()
        chosen = int(rng.integers(len(members)))
        for number, member in enumerate(members):
            body = archive.read(member)
            target.writestr(member.filename, _damage_bytes(rng, body, others) if number == chosen else body)
    return packed.getvalue()


def _resum(png: bytes) -> bytes:
    """Return a PNG whose checksums are right again, as far as its chunks can be followed."""
    mended, at = bytearray(png), 8
    while at + 12 <= len(mended):
        end = at + 8 + int.from_bytes(mended[at : at + 4])
        if end + 4 > len(mended):
            break
        mended[end : end + 4] = zlib.crc32(mended[at + 4 : end]).to_bytes(4)
        at = end + 4
    return bytes(mended)


def checkpoints(folder: Path) -> tuple[list[Seed], Callable[[Path], object]]:
    """Return .pt of both formats and .safetensors, and what predict and --resume do with one."""
    import torch

    from foundation_stereo_depth.checkpoint import load_checkpoint, read_trained
    from foundation_stereo_depth.errors import CheckpointError

    release = GOLDEN / "release_0_1_0"
    ours = [(path.name, path.read_bytes()) for path in (release / "unet_last.pt", release / "unet_last.safetensors")]
    weights = load_checkpoint(release / "unet_last.pt").weights
    for name, new in (("bare.pt", True), ("old.pt", False)):
        file = io.BytesIO()
        torch.save(weights, file, _use_new_zipfile_serialization=new)
        ours.append((name, file.getvalue()))

    def read(path: Path) -> None:
        try:
            load_checkpoint(path)
        except CheckpointError:
            read_trained(path, log_warning=False).network()

    return ours, read


def calibrations(folder: Path) -> tuple[list[Seed], Callable[[Path], object]]:
    """Return one calibration of each format, and their reader."""
    from foundation_stereo_depth.calibration.files import read_calibration

    files = [path for path in sorted((GOLDEN / "calibration").rglob("*")) if path.is_file()]
    return [(path.name, path.read_bytes()) for path in files], read_calibration


def images(folder: Path) -> tuple[list[Seed], Callable[[Path], object]]:
    """Return one image of each kind, and what reads it as an image and as a disparity map."""
    import cv2

    from foundation_stereo_depth.data.codecs import encode_npy, encode_pfm, read_disparity, read_rgb
    from foundation_stereo_depth.errors import DataError

    rgb = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    seeds = [(f"x{s}", cv2.imencode(s, rgb)[1].tobytes()) for s in (".png", ".jpg", ".bmp", ".tif", ".webp", ".ppm")]
    progressive = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]
    grey = rgb[..., 0]
    seeds += [
        ("progressive.jpg", cv2.imencode(".jpg", rgb, progressive)[1].tobytes()),
        ("x.pgm", cv2.imencode(".pgm", grey)[1].tobytes()),
        ("x16.png", cv2.imencode(".png", grey.astype(np.uint16) * 256)[1].tobytes()),
        ("x16.tif", cv2.imencode(".tif", grey.astype(np.uint16) * 256)[1].tobytes()),
        ("x.pfm", encode_pfm(grey.astype(np.float32) / 10)),
        ("x.npy", encode_npy(grey.astype(np.float32) / 10)),
    ]

    def read(path: Path) -> None:
        try:
            read_disparity(path)
        except DataError:
            read_rgb(path)

    return seeds, read


def cache_entries(folder: Path) -> tuple[list[Seed], Callable[[Path], object]]:
    """Return entries, stored and deflated, and their reader; what is read has to be as it was written."""
    from foundation_stereo_depth.data.cache import open_cache
    from foundation_stereo_depth.data.sample import StereoSample

    height, width = 24, 32
    rng = np.random.default_rng(0)
    left, right = rng.integers(0, 255, (2, height, width, 3), dtype=np.uint8)
    sample = StereoSample(left=left, right=right, disparity_px=rng.random((height, width)).astype(np.float16))
    cache = open_cache(folder / "cache", height, width)
    cache.write("scene", "x", sample, np.arange(6).reshape(3, 2))
    deflated = io.BytesIO()
    np.savez_compressed(deflated, left=left, right=right, disparity=sample.disparity_px)
    seeds = [("x.npz", cache.path("scene", "x").read_bytes()), ("y.npz", deflated.getvalue())]

    def read(path: Path) -> None:
        path.replace(cache.path("scene", "x"))
        cache.source("scene", "x")
        cache.read("scene", "x")

    return seeds, read


def scans(folder: Path) -> tuple[list[Seed], Callable[[Path], object]]:
    """Return a kept scan of a data set, and its reader, which takes it or scans again."""
    from foundation_stereo_depth.data import scan

    root = folder / "data"
    for scene in ("a", "b"):
        for part, suffix in ((scan.LEFT, ".png"), (scan.RIGHT, ".jpg"), (scan.DISPARITY, ".png")):
            (root / scene / part).mkdir(parents=True)
            for stem in ("0000", "ünïcode", "0001"):
                (root / scene / part / f"{stem}{suffix}").touch()
    scan._KEEP_FROM_SAMPLES = 0
    scan.scan_scenes(root, ("a", "b"), folder / "kept")
    (kept,) = (folder / "kept").iterdir()
    seeds = [("index.npz", kept.read_bytes())]

    def read(path: Path) -> str:
        path.replace(kept)
        result = READ if scan._load(kept, root) else NOT_USED
        scan.scan_scenes(root, ("a", "b"), folder / "kept")
        return result

    return seeds, read


def onnx(folder: Path) -> tuple[list[Seed], Callable[[Path], object]]:
    """Return a network of a few operators, and what opens and runs it by onnxruntime."""
    from foundation_stereo_depth.inference.backends import OnnxRuntimeBackend

    return _onnx_by(OnnxRuntimeBackend)


def openvino(folder: Path) -> tuple[list[Seed], Callable[[Path], object]]:
    """Return the same by OpenVINO."""
    from foundation_stereo_depth.inference.backends import OpenVinoBackend

    return _onnx_by(OpenVinoBackend)


def _onnx_by(backend_class: Any) -> tuple[list[Seed], Callable[[Path], object]]:
    import importlib
    import json

    from foundation_stereo_depth.checkpoint import CHECKPOINT_FORMAT, CHECKPOINT_KIND, SAFETENSORS_KEY
    from foundation_stereo_depth.inference.backends import _with_facts

    library = importlib.import_module("onnx")
    make, number, weights = library.helper, library.TensorProto.FLOAT, np.full((1, 6, 3, 3), 0.1, np.float32)
    outputs = ["disparity_px", "log_variance"]
    graph = make.make_graph(
        [
            make.make_node("Conv", ["pair", "w"], ["a"], pads=[1, 1, 1, 1]),
            make.make_node("Softplus", ["a"], [outputs[0]]),
            make.make_node("Clip", ["a", "low", "high"], [outputs[1]]),
        ],
        "network",
        [make.make_tensor_value_info("pair", number, ["B", 6, 32, 48])],
        [make.make_tensor_value_info(name, number, ["B", 1, 32, 48]) for name in outputs],
        [
            library.numpy_helper.from_array(np.array(v, np.float32), n)
            for v, n in ((weights, "w"), (-9, "low"), (9, "high"))
        ],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=8)
    header = {
        "kind": CHECKPOINT_KIND,
        "format_version": CHECKPOINT_FORMAT,
        "model": {"model": "unet", "base_channels": 8, "depth": 2},
        "uncertainty": {"distribution": "laplace", "scale": 1.0},
        "height": 32,
        "width": 48,
    }
    make.set_model_props(model, {SAFETENSORS_KEY: json.dumps(header)})
    pairs = np.random.default_rng(0).integers(0, 255, (1, 2, 32, 48, 3), dtype=np.uint8)

    def read(path: Path) -> None:
        backend, _ = _with_facts(backend_class(path, device="cpu"), path)
        size = backend.fixed_size or (32, 48)
        if max(size) <= 4096:
            backend(np.resize(pairs, (1, 2, *size, 3)))

    return [("x.onnx", model.SerializeToString())], read


KINDS = {
    each.__name__.replace("_", "-"): each
    for each in (checkpoints, calibrations, images, cache_entries, scans, onnx, openvino)
}


def work(kind: str, seed: int, folder: Path, cases: int) -> None:
    """Try damaged files of one kind until the process is ended; write the result of each to standard output."""
    from foundation_stereo_depth.errors import UserError

    rng = np.random.default_rng(seed)
    seeds, read = KINDS[kind](folder)
    others = [content for _, content in seeds]
    for name, content in seeds:  # what is undamaged has to be read
        (folder / name).write_bytes(content)
        if kind != "calibrations":  # some of its files are halves
            read(folder / name)
    for case in range(cases):
        name, content = seeds[case % len(seeds)]
        path = folder / f"case-{name}"
        damaged = damage(rng, content, others)
        path.write_bytes(damaged)
        (folder / "newest").write_bytes(damaged)
        print(name, end=" ", flush=True)
        signal.setitimer(signal.ITIMER_REAL, LIMIT_S)  # without a handler it ends the process
        try:
            result = NOT_USED if read(path) == NOT_USED else READ
        except UserError as error:
            result = REFUSED if len(str(error)) < 10**5 else "long message"
        except BaseException:
            print(traceback.format_exc(), file=sys.stderr)
            result = "traceback"
        signal.setitimer(signal.ITIMER_REAL, 0)
        if 1000 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > LIMIT_BYTES:
            result = "memory"
        print(result, flush=True)
        if result not in (READ, REFUSED, NOT_USED):
            return


def fuzz(kind: str, seconds: float, seed: int) -> Counter[str]:
    """Run workers of one kind for a time; return how many files had which result, and keep those that are findings."""
    counts: Counter[str] = Counter()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with tempfile.TemporaryDirectory() as text:
            folder = Path(text)
            (folder / "work").mkdir()
            command = [sys.executable, "-W", "ignore", __file__, "--worker", kind, "--seed", str(seed)]
            with (folder / "out").open("w+") as out, (folder / "err").open("w+") as err:
                worker = subprocess.Popen([*command, "--folder", str(folder / "work")], stdout=out, stderr=err)
                try:
                    worker.wait(max(0.0, until - time.monotonic()))
                    ended = True
                except subprocess.TimeoutExpired:
                    worker.kill()
                    worker.wait()
                    ended = False
                out.seek(0), err.seek(0)
                lines, errors = [line.split(" ", 1) for line in out.read().splitlines()], err.read()
            results = Counter(line[1] for line in lines if len(line) == 2 and line[1])
            counts += results
            found = [result for result in results if result not in (READ, REFUSED, NOT_USED)]
            if ended and not found and worker.returncode != 0:
                found = [f"ended with {worker.returncode}"]
                counts += Counter(found)
            if found:
                FINDINGS.mkdir(exist_ok=True)
                kept = FINDINGS / f"{kind}-{seed}-{sum(results.values())}-{lines[-1][0] if lines else 'start'}"
                newest = folder / "work/newest"
                kept.write_bytes(newest.read_bytes() if newest.exists() else b"")
                reason = [line for line in errors.splitlines() if line.strip()][-1:]
                print(f"{kept}: {found[0]} {reason[0][:200] if reason else ''}", flush=True)
        seed += 1
    return counts


def main() -> int:
    """Fuzz the kinds that are asked for; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", help=f"of {', '.join(KINDS)}; none: all")
    parser.add_argument("--seconds", type=float, default=60, help="for each kind (default 60)")
    parser.add_argument("--seed", type=int, default=0, help="other seeds are other damage (default 0)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if unknown := set(asked.kinds) - KINDS.keys():
        parser.error(f"no kind {', '.join(unknown)}; there are {', '.join(KINDS)}")
    if asked.worker:
        work(asked.worker, asked.seed, asked.folder, cases=20_000)
        return 0
    wrong = 0
    for kind in asked.kinds or KINDS:
        counts = fuzz(kind, asked.seconds, asked.seed)
        wrong += sum(count for result, count in counts.items() if result not in (READ, REFUSED, NOT_USED))
        print(
            f"{kind}: {sum(counts.values())} files; {', '.join(f'{n} {result}' for result, n in counts.most_common())}"
        )
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())

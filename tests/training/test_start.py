"""What a run refuses or warns of before its first step."""

import logging
import os
import re
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
import torch

from foundation_stereo_depth.checkpoint import load_checkpoint, save_checkpoint
from foundation_stereo_depth.cli import cache_command, predict_command, train_command
from foundation_stereo_depth.data.build_cache import build_cache
from foundation_stereo_depth.data.cache import MissingEntryError, open_cache
from foundation_stereo_depth.data.synthetic.source import SceneSource
from foundation_stereo_depth.device import check_compiler
from foundation_stereo_depth.errors import DataError, UserError
from foundation_stereo_depth.inference.predictor import Predictor
from foundation_stereo_depth.options import command_line
from foundation_stereo_depth.options.training import CacheBuildOptions, TrainOptions
from foundation_stereo_depth.training import train as train_module
from foundation_stereo_depth.training.setup import open_data, resolve
from foundation_stereo_depth.training.train import train

CPU = torch.device("cpu")


def build(tree: Path, **changes: object) -> None:
    flags = {"dataset_root": tree, "cache_root": Path("cache"), "height": 32, "width": 48, "workers": 1} | changes
    build_cache(CacheBuildOptions(**flags))


def test_a_required_cache_that_lacks_entries_opens_no_run(
    tiny_tree: Path, tiny_options: Callable[..., TrainOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tiny_tree)
    for name in ("scene_0/0001", "scene_2/0000"):
        Path(f"cache/{name}.npz").unlink()
    shutil.rmtree("cache/scene_1")
    monkeypatch.setattr(train_module, "Record", lambda *_: pytest.fail("opened a run"))
    options = tiny_options(cache_root=Path("cache"), require_cache=True)
    message = (
        r"--require-cache: 5 of 9 samples have no entry in cache \(scene_0/0001, scene_1/0000, scene_1/0001, \.\.\.\); "
        "fill it with foundation-stereo-cache"
    )
    with pytest.raises(MissingEntryError, match=message):
        train(options)
    with pytest.raises(MissingEntryError, match="9 of 9 samples have no entry in nothing"):
        train(tiny_options(cache_root=Path("nothing"), require_cache=True))
    build(tiny_tree)
    assert len(open_data(options, CPU).train) == 6


def test_a_file_in_place_of_the_cache_gets_one_line(tiny_tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("")
    for root in ("file", "file/cache"):
        with pytest.raises(DataError, match=rf"--cache-root {root}: .*file is a file, not a folder"):
            open_cache(Path(root), 32, 48)
        for run, flags in ((train_command, []), (cache_command, []), (cache_command, ["--verify"])):
            assert run(["--dataset-root", str(tiny_tree), "--cache-root", root, *flags]) == 2
            assert "is a file, not a folder" in capsys.readouterr().err.splitlines()[-1]


def test_a_compressed_cache_is_smaller_and_reads_the_same(tiny_tree: Path) -> None:
    build(tiny_tree)
    build(tiny_tree, cache_root=Path("small"), compress=True)
    plain, small = (open_cache(Path(root), 32, 48) for root in ("cache", "small"))
    entries = sorted(path.relative_to("cache") for path in Path("cache").rglob("*.npz"))
    assert len(entries) == 9
    for entry in entries:
        assert (Path("small") / entry).stat().st_size < 0.9 * (Path("cache") / entry).stat().st_size
        one, other = (cache.read(entry.parent.name, entry.stem) for cache in (plain, small))
        assert one is not None
        assert other is not None
        assert (one.left == other.left).all()
        assert one.disparity_px.tobytes() == other.disparity_px.tobytes()
        stamp = small.source(entry.parent.name, entry.stem)
        assert stamp is not None
        assert (stamp == plain.source(entry.parent.name, entry.stem)).all()
    assert cache_command(["--verify", "--cache-root", "small", "--height", "32", "--width", "48"]) == 0


def test_a_batch_of_more_than_all_samples_is_warned_of_once(
    tiny_options: Callable[..., TrainOptions], caplog: pytest.LogCaptureFixture
) -> None:
    train(tiny_options(epochs=1, batch_size=8, cache_root=None))
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert warnings[0].startswith("--batch-size 8: there are only 6 training samples")


def test_resuming_a_finished_run_says_so_and_tags_the_best_epoch(
    own_run: Path, tracking_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    train(*resolve({"resume": str(own_run), "mlflow_tracking_uri": tracking_uri}))
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [
        "the run has finished its 1 epoch, so nothing is trained; --epochs with a larger number continues it"
    ]
    saved = load_checkpoint(own_run / "last.pt")
    tags = mlflow.MlflowClient(tracking_uri).get_run(saved.run_id).data.tags
    assert tags["best_epoch"] == "1"
    assert float(tags["best_validation/epe_px"]) == pytest.approx(saved.metrics["validation/epe_px"], rel=1e-3)


@pytest.mark.parametrize(
    ("flags", "warning"),
    [
        ({"depth": 3, "model": "guided"}, "--depth: no effect with --model guided, whose depth is fixed"),
        ({"depth": 3}, None),
        ({"region_weight": 1.0}, "--region-weight: no effect with --model unet, whose loss has no such term"),
        ({"compile_mode": "max-autotune"}, "--compile-mode: no effect without --compile"),
        (
            {"augment": False, "blur_prob": 0.5, "hue_jitter": 0.1},
            "--blur-prob --hue-jitter: no effect with --no-augment",
        ),
        ({"dataset_root": ("x",), "procedural_samples": 9}, "--procedural-samples: no effect with a data set"),
        ({"val_fraction": 0.2}, "--val-fraction: no effect without a data set"),
        (
            {"model": "guided", "procedural_half_size": 0.5},
            "--procedural-half-size: no effect with --model guided, which trains at full size",
        ),
    ],
)
def test_flags_without_effect_are_named(flags: dict, warning: str | None, caplog: pytest.LogCaptureFixture) -> None:
    resolve(flags)
    assert len(caplog.messages) == (warning is not None)
    assert warning is None or caplog.messages[0].startswith(warning)


@pytest.mark.parametrize(
    ("changed", "heights"),
    [
        ({}, [48, 48, 48, 96, 96]),
        ({"procedural_half_size": 0.0}, [96] * 5),
        ({"procedural_half_size": 1.0}, [48] * 5),
        ({"model": "guided"}, [96] * 5),
        ({"height": 64, "width": 64}, [64] * 5),
    ],
)
def test_a_unet_begins_with_synthetic_scenes_of_half_the_size(changed: dict, heights: list[int]) -> None:
    flags = {"epochs": 5, "height": 96, "width": 128, "procedural_samples": 4, "dataset": "fsd"} | changed
    options = command_line.build_options(TrainOptions, flags)
    data = open_data(options, CPU)
    sources = [data.training_source(epoch) for epoch in range(5)]
    assert [source.height for source in sources if isinstance(source, SceneSource)] == heights
    assert {len(source) for source in sources} == {4}
    assert isinstance(data.validation, SceneSource)
    assert data.validation.height == flags["height"]


def test_a_data_set_is_never_halved(tiny_options) -> None:
    data = open_data(tiny_options(height=96, width=128, epochs=5), CPU)
    assert all(data.training_source(epoch) is data.train for epoch in range(5))


def test_runs_that_began_with_version_0_1_0_keep_adamw_and_their_size(own_run: Path) -> None:
    checkpoint = load_checkpoint(own_run / "last.pt")
    for group, name in (("optimizer", "optimizer"), ("data", "procedural_half_size")):
        del checkpoint.options[group][name]
    save_checkpoint(own_run / "last.pt", checkpoint)
    options, _ = resolve({"resume": str(own_run)})
    assert (options.optimizer.optimizer, options.data.procedural_half_size) == ("adamw", 0.0)


def compiler(name: str, lines: str) -> Path:
    path = Path(name).absolute()
    path.write_text(f"#!/bin/sh\n{lines}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.mark.skipif(os.name != "posix", reason="compilers are found in another way there")
def test_compiling_without_a_compiler_gets_one_line(
    tiny_checkpoint: Path, tiny: Callable[..., dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = compiler("no-headers", 'echo "fatal error: Python.h: No such file or directory" >&2; exit 1')
    for value, message in (
        (
            "/bin/false",
            r"needs a working C\+\+ compiler, and /bin/false fails \(exit status 1\); install g\+\+, set \$CXX",
        ),
        ("/nowhere/g++", r"/nowhere/g\+\+ fails \(No such file or directory\)"),
        (str(headers), "the headers of Python are missing"),
    ):
        monkeypatch.setenv("CXX", value)
        with pytest.raises(UserError, match=rf"--compile: {message}.* leave --compile out|--compile: .*{message}"):
            Predictor.open(tiny_checkpoint, device="cpu", compile=True)
        with pytest.raises(UserError, match="--compile: "):
            train(resolve(tiny(compile=True))[0])
        check_compiler(CPU, "eager")
    assert not Path("out").exists()
    monkeypatch.setenv("CXX", f"{compiler('good', 'cat > /dev/null; exit 0')} -O2")  # with flags of its own
    check_compiler(CPU)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match="--compile: needs Triton for cuda, which is not installed"):
        check_compiler(torch.device("cuda"))


@pytest.mark.parametrize(
    ("flags", "messages"),
    [
        (
            ["--baseline-m", "75", "--focal-px", "450"],
            ["--baseline-m 75: .*in millimetres, that would be --baseline-m 0.075"],
        ),
        (["--baseline-m", "0.001", "--focal-px", "450"], ["--baseline-m 0.001: the cameras would be 0.001 m apart"]),
        (["--baseline-m", "0.075", "--focal-px", "4"], ["--focal-px 4: .*in pixels of these images"]),
        (["--baseline-m", "0.075", "--focal-px", "60"], []),
    ],
)
def test_numbers_in_another_unit_are_warned_of_once(
    flags: list[str], messages: list[str], tiny_checkpoint: Path, tiny_tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    views = [str(tiny_tree / f"scene_0/dataset/data/{view}/rgb") for view in ("left", "right")]
    asked = ["--checkpoint", str(tiny_checkpoint), "-o", "out", "--write", "depth", "--device", "cpu"]
    assert predict_command([*views, *asked, *flags]) == 0  # three pairs
    warnings = [line for line in capsys.readouterr().err.splitlines() if "-px" in line or "-m " in line]
    assert len(warnings) == len(messages)
    for line, message in zip(warnings, messages, strict=True):
        assert re.search(message, line)

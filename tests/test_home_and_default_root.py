"""The home folder in flags and variables, the default data set, GPU numbers, and other names of flags."""

import logging
import shutil
from pathlib import Path

import pytest
import torch
from conftest import write_fsd_sample

from foundation_stereo_depth.cli import cache_command
from foundation_stereo_depth.data.dataset import DEFAULT_ROOT, find_dataset_root
from foundation_stereo_depth.device import Processes, pick_device, pick_precision
from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.options import command_line
from foundation_stereo_depth.options.datasets import parse_dataset_sources
from foundation_stereo_depth.options.inference import InferenceOptions, PredictOptions
from foundation_stereo_depth.options.training import RuntimeOptions, TrainOptions
from foundation_stereo_depth.training.setup import resolve
from live_camera.options import LiveViewOptions


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def parsed(options: type, *argv: str) -> command_line.Explicit:
    inputs = {"left": "", "right": ""} if options is PredictOptions else None
    return command_line.parse_explicit(command_line.create_parser("test", options, "A test.", inputs), argv)


def test_a_leading_tilde_is_the_home_folder_in_every_flag(home: Path) -> None:
    train = parsed(TrainOptions, "--output-dir=~/runs", "--resume=~/last.pt", "--initial-weights=~/a~b.pt")
    assert train == {"output_dir": home / "runs", "resume": f"{home}/last.pt", "initial_weights": home / "a~b.pt"}
    predict = parsed(PredictOptions, "~/left/*.png", "~/right/*.png", "-o", "~/out")
    assert predict == {"left": f"{home}/left/*.png", "right": f"{home}/right/*.png", "output": home / "out"}
    live = parsed(LiveViewOptions, "--left=~/l.mp4", "--record=~/raw.mkv", "--checkpoint=~/best.pt")
    assert live == {"left": f"{home}/l.mp4", "record": home / "raw.mkv", "checkpoint": home / "best.pt"}
    sources = parse_dataset_sources(("~/fsd", "kitti2015:4=~/kitti"), "fsd")
    assert [source.root for source in sources] == [home / "fsd", home / "kitti"]
    assert parsed(TrainOptions, "--run-name=~no-user-of-this-name") == {"run_name": "~no-user-of-this-name"}


def test_the_variable_is_expanded_and_wins_over_the_default_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_fsd_sample(home / DEFAULT_ROOT[2:], "scene_0", "0000", 32, 48, seed=0)
    for value, root in (("~/fsd", home / "fsd"), ("", None)):
        monkeypatch.setenv("FOUNDATION_STEREO_ROOT", value)
        assert find_dataset_root(None) == root
    assert find_dataset_root(Path("named")) == Path("named")


def test_the_default_folder_is_used_where_it_holds_a_scene(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("FOUNDATION_STEREO_ROOT")
    caplog.set_level(logging.INFO, "foundation_stereo_depth")
    root = home / "Reference/OffTopic/Datasets/FoundationStereo"
    assert find_dataset_root(None) is None
    root.mkdir(parents=True)
    (root / "readme.txt").write_text("no scene yet")
    assert resolve({})[0].data.dataset_root is None
    assert caplog.messages == []
    write_fsd_sample(root, "scene_0", "0000", 32, 48, seed=0)
    assert resolve({})[0].data.dataset_root == root
    assert caplog.messages == [
        f"data set: {root} (the default; --dataset-root or $FOUNDATION_STEREO_ROOT names another)"
    ]
    flags = ["--cache-root", "cache", "--height", "32", "--width", "48", "--workers", "1"]
    assert cache_command(flags) == 0
    assert Path("cache/scene_0/0000.npz").exists()
    shutil.move(root / "scene_0", root / "archive/scene_0")  # a folder deeper
    assert find_dataset_root(None) == root


def test_gpus_have_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    for options in (RuntimeOptions, InferenceOptions):
        assert options(device="cuda:1").device == "cuda:1"
        for wrong in ("cuda:", "cuda:-1", "cpu:0", "gpu", "cuda:1x"):
            with pytest.raises(UserError, match=f"--device {wrong}: has to be auto, cpu, cuda, cuda:N or mps"):
                options(device=wrong)
    alone, chosen = Processes.single(), []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"--device cuda:1: torch .* finds none on this machine, only cpu"):
        pick_device("cuda:1", alone)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert pick_device("cuda:1", alone) == torch.device("cuda", 1)
    assert pick_device("cuda", alone) == torch.device("cuda", 0)
    assert chosen == [1, 0]
    with pytest.raises(UserError, match="--device cuda:2: torch finds 2 GPUs, cuda:0 to cuda:1"):
        pick_device("cuda:2", alone)
    with pytest.raises(UserError, match="torchrun gives each process a GPU of its own"):
        pick_device("cuda:1", Processes(rank=0, local_rank=0, world_size=2))


@pytest.mark.parametrize(
    ("able", "gains"),
    [
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": False}, False),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": True}, True),
        ({"cpu_name": "AMD EPYC 9R14", "avx512_bf16": True}, True),
        ({"cpu_name": "AMD EPYC 7R13"}, False),
        ({}, False),
    ],
)
def test_a_cpu_computes_in_bf16_where_it_gains(able: dict, gains: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert pick_precision("auto", torch.device("cpu")) == (torch.bfloat16 if gains else torch.float32)
    assert pick_precision("bf16", torch.device("cpu")) == torch.bfloat16


def test_flags_have_other_names() -> None:
    assert parsed(TrainOptions, "--lr", "0.5", "--mlflow-experiment", "x") == {
        "learning_rate": 0.5,
        "experiment_name": "x",
    }
    for word, file in (("last", "last.pt"), ("last.pt", "last.pt"), ("best.pt", "best.pt"), ("auto", "best.pt")):
        explicit = parsed(PredictOptions, "a", "--run-id", "abc", "--checkpoint-name", word)
        assert command_line.build_options(PredictOptions, explicit).network.run_file == file

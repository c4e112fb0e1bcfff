import dataclasses
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import shifted_pair

from foundation_stereo_depth.cli import cache_command, train_command
from foundation_stereo_depth.data.codecs import write_rgb
from foundation_stereo_depth.options.fields import flag_of
from foundation_stereo_depth.options.training import TrainOptions

# Command -> its package, its function, and a flag that its help shows.
COMMANDS = {
    "foundation-stereo-depth": ("foundation_stereo_depth", "train_command", "--height N"),
    "foundation-stereo-cache": ("foundation_stereo_depth", "cache_command", "--height N"),
    "foundation-stereo-evaluate": ("foundation_stereo_depth", "evaluate_command", "--height N"),
    "foundation-stereo-predict": ("foundation_stereo_depth", "predict_command", "--height N"),
    "foundation-stereo-export": ("foundation_stereo_depth", "export_command", "--height N"),
    "foundation-stereo-calibrate": ("live_camera", "calibrate_command", "--images TEXT [TEXT"),
    "foundation-stereo-list-cameras": ("live_camera", "list_cameras_command", "--preview"),
    "foundation-stereo-demo": ("live_camera", "demo_command", "--no-open"),
    "foundation-stereo-live-view": ("live_camera", "live_view_command", "--watch-checkpoint"),
}


def run_python(code: str, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=False)


def test_a_closed_pipe_ends_the_command_without_a_traceback() -> None:
    code = (
        "import sys; from foundation_stereo_depth.options.command_line import run_command\n"
        "sys.exit(run_command('x', {}, lambda: [print('much') for _ in range(100_000)] and 0))"
    )
    piped = f"{sys.executable} -c {shlex.quote(code)} | head -1; echo ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", piped], capture_output=True, text=True, check=True)
    assert (ended.stdout, ended.stderr) == ("much\n1\n", "")


def test_file_names_that_cannot_be_encoded_are_printed_escaped() -> None:
    code = (
        "from foundation_stereo_depth.options.command_line import run_command\n"
        "run_command('x', {}, lambda: print('a\\udce9b') or 0)"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert ended.stdout == "a\\udce9b\n"


@pytest.mark.parametrize(("package", "function", "flag"), COMMANDS.values())
def test_help_imports_nothing_heavy(package: str, function: str, flag: str) -> None:
    code = (
        f"import sys\nfrom {package}.cli import {function}\n"
        f"try: {function}(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'mlflow', 'numpy', 'cv2', 'matplotlib', 'torchvision', 'onnx', 'onnxruntime', 'openvino'}\n"
        "heavy &= set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    ended = run_python(code)
    assert ended.returncode == 0, ended.stderr
    assert flag in ended.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_help_takes_little_time(command: str) -> None:
    script = Path(sys.executable).with_name(command)

    def cpu_time_s() -> float:  # of the child alone: it does not depend on what else the machine does
        before = os.times()
        subprocess.run([script, "--help"], capture_output=True, check=True)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert min(cpu_time_s() for _ in range(3)) < 0.3


def test_help_shows_the_default_of_every_flag_that_has_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train_command(["--help"])
    shown = "".join(capsys.readouterr().out.split())  # without spaces: lines are wrapped at hyphens too
    for group in dataclasses.fields(TrainOptions):
        for field in dataclasses.fields(type(getattr(TrainOptions(), group.name))):
            text = "".join(field.metadata["help"].split())
            before, _, shown = shown.partition(text)  # flags come in the order of the fields
            assert flag_of(field.name) in before[-200:], field.name
            if field.default is not None:
                default = ("on" if field.default else "off") if isinstance(field.default, bool) else field.default
                assert shown.startswith(f"[{default}]"), field.name


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--batch-size", "0"], "--batch-size is 0, but has to be at least 1"),
        (["--dataset-root", "nowhere"], "nowhere: no such folder"),
        (["--require-cache"], "--require-cache: needs a --cache-root"),
        (["--resume", "nowhere/last.pt"], "nowhere/last.pt: cannot be read"),
        (["--resume", "0123456789abcdef"], "neither a file, nor a run with a checkpoint"),
        (["--device", "mps"], "--device mps: torch"),
        (["--mlflow-tracking-uri", "gopher://x"], "--mlflow-tracking-uri gopher://x"),
    ],
)
def test_a_user_error_prints_one_line_and_exits_with_2(
    argv: list[str], message: str, tracking_uri: str, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = argv if "--mlflow-tracking-uri" in argv else ["--mlflow-tracking-uri", tracking_uri, *argv]
    assert train_command(flags) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("no data set")]
    assert len(lines) == 1
    assert lines[0].startswith("foundation-stereo-depth: ")
    assert message in lines[0]


@pytest.mark.parametrize("command", ["train_command", "evaluate_command"])
def test_a_missing_data_set_is_reported_before_pytorch_is_imported(command: str) -> None:
    code = (
        f"import sys; from foundation_stereo_depth.cli import {command}; "
        f"sys.exit({command}(['--dataset-root', 'nowhere']) != 2 or 'torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        ("train_command", "--initial-weights"),
        ("evaluate_command", "--checkpoint"),
        ("export_command", "--checkpoint"),
    ],
)
def test_a_missing_network_is_reported_before_pytorch_is_imported(command: str, flag: str) -> None:
    code = (
        f"import sys; from foundation_stereo_depth.cli import {command}; "
        f"sys.exit({command}(['{flag}', 'nowhere.pt']) != 2 or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "nowhere.pt: cannot be read (No such file or directory)" in done.stderr


def test_a_cache_is_filled_and_filled_again(fsd_tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--dataset-root", str(fsd_tree), "--cache-root", "cache", "--height", "48", "--width", "64"]
    assert cache_command(flags) == 0
    out = "".join(capsys.readouterr())
    assert "cache: 6 samples of 64x48 take 156kB when all are there; " in out
    assert "cache: 6 entries written (154kB; 0 of them in place of damaged ones, 0 in place of ones whose files " in out
    assert "0 found, 0 samples bad" in out
    Path("cache/scene_1/0000.npz").write_bytes(b"truncated")
    Path("cache/scene_2/0001.npz").unlink()
    assert cache_command(flags) == 0
    out = "".join(capsys.readouterr())
    assert (
        "cache: 2 entries written (51.2kB; 1 of them in place of damaged ones, 0 in place of ones whose files " in out
    )
    assert "4 found" in out
    assert cache_command([*flags, "--height", "50"]) == 2
    assert "was made at 64x48" in capsys.readouterr().err


def test_a_bad_sample_stops_the_cache_unless_skipped(fsd_tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (fsd_tree / "scene_0/dataset/data/left/rgb/0000.png").write_bytes(b"")
    flags = ["--dataset-root", str(fsd_tree), "--cache-root", "cache", "--height", "48", "--width", "64"]
    assert cache_command(flags) == 2
    assert "0000.png: 0 bytes that are not a complete image" in capsys.readouterr().err
    assert cache_command([*flags, "--skip-bad", "--workers", "1"]) == 0
    out = "".join(capsys.readouterr())
    assert "1 samples bad" in out
    assert "cache/cache_faults.txt lists the damaged, changed and bad ones" in out
    assert Path("cache/cache_faults.txt").read_text().startswith("bad: ")


def test_a_cache_needs_both_folders(capsys: pytest.CaptureFixture[str]) -> None:
    assert cache_command(["--cache-root", "cache"]) == 2
    assert "needs --dataset-root" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_forbidden_folder_gets_one_line(fsd_tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("locked").mkdir(mode=0o500)
    assert cache_command(["--dataset-root", str(fsd_tree), "--cache-root", "locked/cache"]) == 2
    assert "Permission denied" in capsys.readouterr().err


STREAMS = "import sys; from foundation_stereo_depth.cli import predict_command; sys.exit(predict_command(sys.argv[1:]))"


@pytest.mark.parametrize(("streams", "status"), [("<&- >&- 2>&-", 0), (">/dev/full", 2), ("2>/dev/full", 0)])
def test_streams_that_are_closed_or_full_neither_end_the_work_nor_make_a_traceback(streams: str, status: int) -> None:
    for name, view in zip(("l.png", "r.png"), shifted_pair(48, 64, 4), strict=True):
        write_rgb(Path(name), view)
    command = [sys.executable, "-c", STREAMS, "l.png", "r.png", "--method", "sgbm", "-o", "out"]
    ended = subprocess.run(
        ["bash", "-c", f"{shlex.join(command)} {streams}"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == status
    assert "Traceback" not in ended.stderr
    assert any(Path("out").iterdir())

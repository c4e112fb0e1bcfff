"""Defaults from foundation-stereo.toml: where it is found, what it may hold, and that flags win."""

import logging
import tomllib
from pathlib import Path

import pytest

from foundation_stereo_depth.cli import cache_command, train_command
from foundation_stereo_depth.options import command_line, settings
from foundation_stereo_depth.options.inference import PredictOptions
from foundation_stereo_depth.options.training import TrainOptions
from foundation_stereo_depth.training.setup import resolve
from live_camera.options import CalibrateOptions, LiveViewOptions


def write(text: str, folder: str = ".") -> Path:
    path = Path(folder) / "foundation-stereo.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def parsed(command: str, options: type, *argv: str) -> command_line.Explicit:
    inputs = {"left": "", "right": ""} if options is PredictOptions else None
    return command_line.parse_explicit(command_line.create_parser(command, options, "A test.", inputs), argv)


def train_options(*argv: str) -> TrainOptions:
    return command_line.build_options(TrainOptions, parsed("foundation-stereo-depth", TrainOptions, *argv))


def test_flags_win_over_the_folder_and_the_folder_over_the_user() -> None:
    write('batch-size = 4\nseed = 5\ndevice = "cpu"\nlr = 0.5', "config")  # XDG_CONFIG_HOME of the tests
    write("batch-size = 16\nseed = 6\naugment = false\n[depth]\nepochs = 3\n[predict]\nbatch-size = 2")
    options = train_options("--seed", "7")
    assert (options.optimizer.batch_size, options.runtime.seed, options.runtime.device) == (16, 7, "cpu")
    assert (options.augment.augment, options.optimizer.epochs, options.optimizer.learning_rate) == (False, 3, 0.5)
    predict = command_line.build_options(PredictOptions, parsed("foundation-stereo-predict", PredictOptions, "a.png"))
    assert predict.inference.batch_size == 2


def test_each_default_is_logged_with_its_source(caplog: pytest.LogCaptureFixture) -> None:
    write("batch-size = 16\nseed = 6\nnum-workers = 0")
    explicit = parsed("foundation-stereo-depth", TrainOptions, "--seed", "7")
    assert {key: explicit[key] for key in explicit if key != command_line._SETTINGS} == {"seed": 7}
    logging.getLogger("foundation_stereo_depth").propagate = True
    caplog.set_level(logging.INFO, "foundation_stereo_depth")
    command_line.run_command("x", explicit, lambda: 0)
    lines = command_line._settings_of(explicit).lines
    assert lines == (f"defaults from {Path('foundation-stereo.toml').absolute()}: --batch-size 16, --num-workers 0",)


def test_the_line_is_printed_by_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    write('dataset-root = "nowhere"')
    assert cache_command(["--cache-root", "cache"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("foundation-stereo.toml: --dataset-root nowhere")
    assert "nowhere: no such folder" in second


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batchsize = 4", "batchsize is no flag of any command"),
        ("[depth]\nbatchsize = 4", "batchsize is no flag of foundation-stereo-depth"),
        ("[depht]\nbatch-size = 4", "[depht] is no command"),
        ("batch-size = 0", "--batch-size is 0"),
        ('batch-size = "many"', "foundation-stereo.toml: argument --batch-size: invalid whole number value: 'many'"),
        ("batch-size = 1979-05-27", "batch-size has to be a text, a number"),
        ("augment = 'yes'", "foundation-stereo.toml: argument --augment/--no-augment: ignored explicit argument"),
        ("batch-size 4", "is not TOML"),
        (f"batch-size = {'[' * 40_000}", "is not TOML"),
        ("#" * 200_000, "has more than 100,000 bytes"),
        ('model = "resnet"', "--model: resnet: has to be one of unet, "),
    ],
)
def test_a_mistake_in_the_file_gets_one_line(text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    write(text)
    try:
        status = train_command([])
    except SystemExit as stopped:
        status = stopped.code
    error = capsys.readouterr().err
    assert status == 2
    assert message in error.splitlines()[-1]
    assert "Traceback" not in error


def test_keys_of_other_commands_are_left_to_them() -> None:
    write('side-by-side = "0"\nmin-confidence = 0.7\nverbose = false')
    assert train_options() == TrainOptions()
    live = command_line.build_options(LiveViewOptions, parsed("foundation-stereo-live-view", LiveViewOptions))
    assert (live.source.side_by_side, live.show.min_confidence) == ("0", 0.7)


def test_a_flag_replaces_what_it_excludes() -> None:
    write('checkpoint = "a.pt"\nleft = "0"\nright = "2"')
    explicit = parsed("foundation-stereo-live-view", LiveViewOptions, "--run-id", "abc", "--side-by-side", "1")
    live = command_line.build_options(LiveViewOptions, explicit)
    assert (live.matcher.checkpoint, live.matcher.run_id) == (None, "abc")
    assert (live.source.left, live.source.side_by_side) == (None, "1")


def test_lists_and_home_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write('dataset-root = ["fsd=~/a", "eth3d=/b"]\ncache-root = "~/cache"\n[calibrate]\nimages = ["l*.png", "r*.png"]')
    data = train_options().data
    assert (data.dataset_root, data.cache_root) == (("fsd=~/a", "eth3d=/b"), tmp_path / "home/cache")
    calibrate = command_line.build_options(CalibrateOptions, parsed("foundation-stereo-calibrate", CalibrateOptions))
    assert calibrate.views.images == ("l*.png", "r*.png")


def test_a_run_takes_them_and_a_resumed_one_keeps_its_own() -> None:
    write("flip-prob = 0.5\nprocedural-samples = 12")
    options, _ = resolve(parsed("foundation-stereo-depth", TrainOptions))
    assert (options.augment.flip_prob, options.data.procedural_samples) == (0.5, 12)
    saved = Path(__file__).parents[1] / "golden/release_0_1_0/unet_last.pt"
    resumed, checkpoint = resolve(parsed("foundation-stereo-depth", TrainOptions, "--resume", str(saved)))
    assert checkpoint is not None
    assert resumed.data.procedural_samples == checkpoint.options["data"]["procedural_samples"] != 12
    assert resumed.augment.flip_prob == checkpoint.options["augment"]["flip_prob"] != 0.5


def test_every_command_may_have_a_table() -> None:
    scripts = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["scripts"]
    commands = {name.removeprefix("foundation-stereo-") for name in scripts if name != "foundation-stereo"}
    assert set(settings.OPTIONS_OF_COMMANDS) == commands
    assert {"--watch-checkpoint", "--square-mm", "--preview", "--lr", "--no-augment"} <= settings._all_flags()
    write("[train]\nseed = 3")
    assert train_options().runtime.seed == 3

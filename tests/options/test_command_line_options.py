import dataclasses
from pathlib import Path

import pytest

from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.options import command_line
from foundation_stereo_depth.options.fields import split_words
from foundation_stereo_depth.options.inference import ExportOptions, PredictOptions
from foundation_stereo_depth.options.training import AugmentOptions, CacheOptions, DataOptions, TrainOptions


def parsed(*argv: str) -> command_line.Explicit:
    return command_line.parse_explicit(command_line.create_parser("test", TrainOptions, "A test."), argv)


def test_only_what_was_typed_is_explicit() -> None:
    assert parsed("--workers", "2") == parsed("--num-workers", "2")
    assert parsed("--epochs", "5", "--no-augment", "--dataset-root", "x", "--num-workers", "auto") == {
        "epochs": 5,
        "augment": False,
        "dataset_root": ("x",),
        "num_workers": "auto",
    }


def test_typed_values_replace_defaults_and_those_of_a_saved_run() -> None:
    saved = command_line.build_options(TrainOptions, {"epochs": 7, "seed": 3})
    again = command_line.build_options(TrainOptions, {"epochs": 9}, base=saved)
    assert (again.optimizer.epochs, again.runtime.seed) == (9, 3)
    assert again.data == DataOptions()


def test_flags_are_unique_over_all_groups() -> None:
    for options in (TrainOptions, CacheOptions, PredictOptions, ExportOptions):
        names = [
            f.name for g in dataclasses.fields(options) for f in dataclasses.fields(type(getattr(options(), g.name)))
        ]
        assert len(names) == len(set(names))


def test_plain_values_come_back_as_the_same_options() -> None:
    options = command_line.build_options(
        TrainOptions, {"cache_root": Path("a/b"), "num_workers": 3, "erase_prob": 0.25}
    )
    plain = command_line.options_to_dict(options)
    assert plain["data"]["cache_root"] == str(Path("a/b"))
    assert command_line.options_from_dict(TrainOptions, plain) == options


def test_options_of_another_version_are_refused() -> None:
    plain = command_line.options_to_dict(TrainOptions())
    plain["data"]["left_out_since"] = 1
    with pytest.raises(UserError, match="unknown options left_out_since"):
        command_line.options_from_dict(TrainOptions, plain)


def test_conflicts_name_only_fixed_options_with_another_value() -> None:
    saved = TrainOptions()
    asked = {"seed": 1, "width": 320, "epochs": 9, "device": "cpu", "learning_rate": 0.5}
    assert command_line.find_fixed_conflicts(asked, saved) == [
        "--learning-rate 0.5 (the run has 0.002)",
        "--seed 1 (the run has 0)",
    ]


@pytest.mark.parametrize("value", [-0.1, 0.91, float("nan")])
def test_numbers_out_of_range_are_refused(value: float) -> None:
    with pytest.raises(UserError, match=r"--val-fraction is .*, but has to be from 0.0 to 0.9"):
        DataOptions(val_fraction=value)


def test_an_even_blur_kernel_is_refused() -> None:
    with pytest.raises(UserError, match="--blur-kernel-size is 4"):
        AugmentOptions(blur_kernel_size=4)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--epochs", "many"], "invalid whole number value: 'many'"),
        (["--epoch", "5"], "unknown argument --epoch; did you mean --epochs?"),
        (["--model", "resnet"], "--model: resnet: has to be one of unet, "),
        (["--model", "fusd"], "did you mean fused?"),
        (["--num-workers", "some"], "invalid whole number value: 'some'"),
        (["--cache-root", ""], "--cache-root: invalid path value: ''"),
    ],
)
def test_a_mistyped_flag_gets_one_line(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parsed(*argv)
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert message in error
    assert error.count("\n") == 1


def test_inputs_precede_the_flags_and_only_the_first_is_required() -> None:
    parser = command_line.create_parser(
        "test", PredictOptions, "A test.", inputs={"left": "left view", "right": "right view"}
    )
    assert parser.format_usage() == "usage: test LEFT [RIGHT] [flags]\n"
    assert command_line.parse_explicit(parser, ["a", "-o", "out"]) == {
        "left": "a",
        "right": None,
        "output": Path("out"),
    }
    explicit = command_line.parse_explicit(parser, ["a", "b", "--output", "out"])
    assert explicit == {"left": "a", "right": "b", "output": Path("out")}
    assert command_line.build_options(PredictOptions, explicit).output.output == Path("out")


def test_split_words_returns_each_word_once_in_order() -> None:
    assert split_words("figure, depth,,figure") == ("figure", "depth")


def test_a_renamed_option_is_read_under_its_old_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_line, "RENAMED_OPTIONS", {"OptimizerOptions": {"lr": "learning_rate"}})
    plain = command_line.options_to_dict(TrainOptions())
    plain["optimizer"]["lr"] = 0.25
    del plain["optimizer"]["learning_rate"]
    assert command_line.options_from_dict(TrainOptions, plain).optimizer.learning_rate == 0.25


def test_a_removed_option_is_accepted_only_with_a_value_that_means_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    removed = {"DataOptions": {"mirror": (False,), "prefetch": None}}
    monkeypatch.setattr(command_line, "REMOVED_OPTIONS", removed)
    plain = command_line.options_to_dict(TrainOptions())
    plain["data"] |= {"mirror": False, "prefetch": 7}
    assert command_line.options_from_dict(TrainOptions, plain) == TrainOptions()
    plain["data"]["mirror"] = True
    with pytest.raises(UserError, match="--mirror is True, an option that this version no longer has"):
        command_line.options_from_dict(TrainOptions, plain)


def test_every_renamed_option_has_its_new_name() -> None:
    for options in (TrainOptions, CacheOptions, PredictOptions, ExportOptions):
        for group in (type(getattr(options(), field.name)) for field in dataclasses.fields(options)):
            names = {field.name for field in dataclasses.fields(group)}
            renamed = command_line.RENAMED_OPTIONS.get(group.__name__, {})
            assert set(renamed.values()) <= names
            assert not names & (set(renamed) | set(command_line.REMOVED_OPTIONS.get(group.__name__, {})))


def test_a_word_in_place_of_a_path_stays_a_word() -> None:
    for value in ("default", Path("network.pt"), None):
        options = command_line.build_options(TrainOptions, {"initial_weights": value})
        plain = command_line.options_to_dict(options)
        assert command_line.options_from_dict(TrainOptions, plain).optimizer.initial_weights == value
    assert parsed("--initial-weights", "default") == {"initial_weights": "default"}
    assert parsed("--initial-weights", "a.pt") == {"initial_weights": Path("a.pt")}


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "out"
    file.touch()

    def run() -> int:
        (file / "maps").mkdir(parents=True)
        return 0

    assert command_line.run_command("test", {}, run) == 2
    assert capsys.readouterr().err == f"test: {file}: is a file, where a folder is needed\n"

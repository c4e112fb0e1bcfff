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
    assert parsed("--epochs", "5", "--no-augment", "--dataset-root", "x", "--num-workers", "auto") == {
        "epochs": 5,
        "augment": False,
        "dataset_root": Path("x"),
        "num_workers": "auto",
    }


def test_build_lays_typed_values_over_defaults_and_over_a_saved_run() -> None:
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


def test_knobs_of_another_version_are_refused() -> None:
    plain = command_line.options_to_dict(TrainOptions())
    plain["data"]["left_out_since"] = 1
    with pytest.raises(UserError, match="unknown options left_out_since"):
        command_line.options_from_dict(TrainOptions, plain)


def test_conflicts_name_only_fixed_knobs_with_another_value() -> None:
    saved = TrainOptions()
    asked = {"seed": 1, "width": 320, "epochs": 9, "device": "cpu", "learning_rate": 0.5}
    assert command_line.find_fixed_conflicts(asked, saved) == [
        "--learning-rate 0.5 (the run has 0.001)",
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
    ("argv", "said"),
    [
        (["--epochs", "many"], "invalid whole number value: 'many'"),
        (["--epoch", "5"], "unrecognized arguments: --epoch 5"),
        (["--model", "resnet"], "invalid choice: 'resnet'"),
        (["--num-workers", "some"], "invalid whole number value: 'some'"),
        (["--cache-root", ""], "--cache-root: invalid path value: ''"),
    ],
)
def test_a_mistyped_flag_gets_one_line(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parsed(*argv)
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert said in error
    assert error.count("\n") == 1


def test_inputs_stand_before_the_flags_and_only_the_first_is_needed() -> None:
    parser = command_line.create_parser(
        "test", PredictOptions, "A test.", inputs={"left": "one eye", "right": "the other"}
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


def test_words_are_taken_once_each_in_their_order() -> None:
    assert split_words("picture, depth,,picture") == ("picture", "depth")

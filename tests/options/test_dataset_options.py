from pathlib import Path

import pytest

from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.options import command_line
from foundation_stereo_depth.options.datasets import parse_dataset_sources
from foundation_stereo_depth.options.training import TrainOptions


def parse(*argv: str) -> TrainOptions:
    parser = command_line.create_parser("test", TrainOptions, "A test.")
    return command_line.build_options(TrainOptions, command_line.parse_explicit(parser, argv))


@pytest.mark.parametrize(
    ("text", "name", "root", "weight"),
    [
        ("/data/fsd", "eth3d", "/data/fsd", 1.0),
        ("fsd=/data/a=b", "fsd", "/data/a=b", 1.0),
        ("/data/fsd=2", "eth3d", "/data/fsd=2", 1.0),
        ("other=/data", "eth3d", "other=/data", 1.0),
        ("kitti2015:0.25=/data", "kitti2015", "/data", 0.25),
        ("synthetic=800", "synthetic", "800", 1.0),
    ],
)
def test_root_is_split_only_at_a_known_name(text: str, name: str, root: str, weight: float) -> None:
    (source,) = parse_dataset_sources((text,), "eth3d")
    assert (source.name, source.root, source.weight) == (name, Path(root), weight)


@pytest.mark.parametrize("text", ["fsd:0=/a", "fsd:-1=/a", "fsd:x=/a", "fsd:nan=/a", "fsd:101=/a", "fsd:=/a"])
def test_weight_that_is_no_positive_number_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="the weight has to be a number above 0"):
        parse("--dataset-root", text)


@pytest.mark.parametrize("text", ["", " ", "fsd="])
def test_empty_root_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="names no folder"):
        parse("--dataset-root", text)


def test_repeated_roots_come_back_from_a_checkpoint() -> None:
    options = parse("--dataset-root", "fsd=a", "--dataset-root", "eth3d:2=b")
    assert options.data.dataset_root == ("fsd=a", "eth3d:2=b")
    assert command_line.options_from_dict(TrainOptions, command_line.options_to_dict(options)) == options


def test_root_of_an_older_checkpoint_is_one_folder() -> None:
    plain = command_line.options_to_dict(TrainOptions())
    plain["data"]["dataset_root"] = "/data/fsd"
    del plain["data"]["dataset"]
    data = command_line.options_from_dict(TrainOptions, plain).data
    assert [source.root for source in parse_dataset_sources(data.dataset_root, data.dataset)] == [Path("/data/fsd")]

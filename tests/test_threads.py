import os

import cv2
import pytest
import torch

import foundation_stereo_depth
from foundation_stereo_depth.threads import count_threads, limit_spinning, use_threads

VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that whatever the test sets is undone
        monkeypatch.delenv(name)


def test_spinning_is_limited_where_the_environment_does_not_say() -> None:
    limit_spinning()
    assert os.environ["GOMP_SPINCOUNT"] == "1000"


def test_spinning_is_limited_before_a_name_of_the_package_imports_torch() -> None:
    assert "GOMP_SPINCOUNT" not in os.environ
    assert foundation_stereo_depth.Predictor
    assert os.environ["GOMP_SPINCOUNT"] == "1000"


@pytest.mark.parametrize("name", VARIABLES)
def test_the_variables_of_the_user_are_respected(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "7")
    limit_spinning()
    assert os.environ[name] == "7"
    assert [other for other in VARIABLES if other in os.environ] == [name]


@pytest.mark.parametrize(("value", "expected"), [("3", 3), ("3,2", 3)])
def test_threads_of_a_computation_are_those_that_the_user_asks_for(
    monkeypatch: pytest.MonkeyPatch, value: str, expected: int
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert count_threads() == expected


@pytest.mark.parametrize("value", ["", "0", "many"])
def test_threads_of_a_computation_are_at_most_the_cores(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert 1 <= count_threads() <= (os.cpu_count() or 1)


def test_number_of_threads_is_set_for_what_is_loaded_and_for_what_will_be(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"):
        monkeypatch.setenv(name, "1")
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(cv2, "setNumThreads", asked.append)
    use_threads(3)
    assert asked == [3, 3]
    assert os.environ["OMP_NUM_THREADS"] == "3"

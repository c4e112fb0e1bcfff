import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from foundation_stereo_depth.data.demo_pair import read_demo_pair
from foundation_stereo_depth.errors import CheckpointError, UserError
from foundation_stereo_depth.inference import backends
from foundation_stereo_depth.inference.backends import OnnxRuntimeBackend, hash_file, prefers_installed_onnx
from foundation_stereo_depth.inference.predictor import Predictor
from foundation_stereo_depth.network_facts import DEFAULT_ONNX, DEFAULT_WEIGHTS, SAFETENSORS_KEY, WEIGHTS_HASH
from foundation_stereo_depth.options.inference import InferenceOptions

COMMANDS_WITHOUT_TORCH = """
import sys
from foundation_stereo_depth import Predictor
from foundation_stereo_depth.cli import predict_command
from live_camera.cli import demo_command, live_view_command

assert Predictor
assert demo_command(["--no-open", "-o", "demo.png"]) == 0
assert predict_command(["left.png", "right.png", "-o", "out"]) == 0
live = ["--left", "left*.png", "--right", "right*.png", "--headless", "--frames", "1"]
assert live_view_command(live) == 0
assert "torch" not in sys.modules
"""


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_system_has_gpu", lambda: False)


def test_installed_onnx_belongs_to_the_installed_weights() -> None:
    header = json.loads(OnnxRuntimeBackend(DEFAULT_ONNX, device="cpu").metadata[SAFETENSORS_KEY])
    assert header[WEIGHTS_HASH] == hash_file(DEFAULT_WEIGHTS), "run scripts/export_installed.py"
    assert DEFAULT_ONNX.stat().st_size < 2e6


def test_commands_run_the_installed_network_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    from foundation_stereo_depth.data.codecs import write_rgb

    pair = read_demo_pair()
    for name, view in (("left", pair.left), ("right", pair.right)):
        write_rgb(Path(f"{name}.png"), view)
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS_WITHOUT_TORCH], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert Path("demo.png").is_file()
    assert Path("out/left_disparity.png").is_file()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, True),
        ({"device": "cpu"}, True),
        ({"backend": "openvino"}, True),
        ({"backend": "torch"}, False),
        ({"precision": "fp32"}, False),
        ({"compile": True}, False),
        ({"device": "cuda"}, False),
    ],
)
def test_rule_by_which_the_installed_network_runs_in_8_bits(
    no_gpu: None, options: dict[str, object], expected: bool
) -> None:
    assert prefers_installed_onnx(InferenceOptions(**options)) is expected  # pyright: ignore[reportArgumentType]


def test_torch_runs_the_installed_network_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_has_gpu", lambda: True)
    assert not prefers_installed_onnx(InferenceOptions())
    assert prefers_installed_onnx(InferenceOptions(device="cpu"))


def test_torch_runs_the_installed_network_where_nothing_runs_onnx(
    no_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "_is_installed", lambda _: False)
    assert not prefers_installed_onnx(InferenceOptions())


def test_precision_and_a_runtime_of_8_bits_exclude_each_other() -> None:
    with pytest.raises(
        UserError, match=r"--backend openvino --precision fp32: the installed \.onnx file computes in 8"
    ):
        prefers_installed_onnx(InferenceOptions(backend="openvino", precision="fp32"))


def test_onnx_of_other_weights_is_not_run(
    no_gpu: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(backends, "hash_file", lambda _: "of other weights")
    with caplog.at_level(logging.WARNING):
        assert "torch" in Predictor.open().description
    assert "belongs to other weights than default.safetensors" in caplog.text
    with pytest.raises(CheckpointError, match="belongs to other weights"):
        Predictor.open(backend="onnxruntime")


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_installed_network_predicts_in_8_bits_what_torch_does(backend: str) -> None:
    pair = read_demo_pair()
    quantised = Predictor.open(backend=backend)(pair.left, pair.right)  # pyright: ignore[reportArgumentType]
    exact = Predictor.open(backend="torch", precision="fp32", device="cpu")(pair.left, pair.right)
    assert quantised.sigma_px is not None
    assert exact.sigma_px is not None
    difference_px = np.abs(quantised.disparity_px - exact.disparity_px)
    # Where the network is uncertain, a step of 8 bits may choose the other candidate.
    assert np.median(difference_px) < 0.1
    assert (difference_px / exact.sigma_px).mean() < 0.15
    assert np.abs(np.log(quantised.sigma_px / exact.sigma_px)).mean() < 0.15

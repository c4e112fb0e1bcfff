import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from conftest import shifted_pair

from foundation_stereo_depth.checkpoint import (
    SAFETENSORS_KEY,
    NetworkFacts,
    TrainedNetwork,
    inference_header,
    load_checkpoint,
    read_trained,
)
from foundation_stereo_depth.cli import export_command
from foundation_stereo_depth.errors import CheckpointError, UserError
from foundation_stereo_depth.inference import backends, export
from foundation_stereo_depth.inference.backends import NetworkOutput, OnnxRuntimeBackend
from foundation_stereo_depth.inference.predictor import Predictor
from foundation_stereo_depth.inference.torch_backend import TorchBackend
from foundation_stereo_depth.model import create_network
from foundation_stereo_depth.options import command_line
from foundation_stereo_depth.options.inference import ExportFileOptions, ExportOptions
from foundation_stereo_depth.options.training import ModelOptions


def exported(checkpoint: Path, name: str = "net.onnx", **flags: object) -> Path:
    asked = {"checkpoint": checkpoint, "output": Path(name)} | flags
    return export.export_network(command_line.build_options(ExportOptions, asked))


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported network of any size, made once; its weights are beside it."""
    path = tmp_path_factory.mktemp("exported") / "net.onnx"
    torch.manual_seed(0)
    facts = facts_of_tiny()
    trained = TrainedNetwork(facts=facts, weights=create_network(facts.model).state_dict())
    torch.save(trained.weights, path.with_suffix(".weights"))
    options = ExportFileOptions()
    encoded = export._onnx(export._exported(trained, options), facts.header, 48, 64, options)
    export.write_checked(path, encoded, trained, [(48, 64), export._ODD_SIZE], options)
    return path


def facts_of_tiny() -> NetworkFacts:
    header = {
        "kind": "foundation-stereo-depth checkpoint",
        "format_version": 1,
        "model": {"model": "unet", "base_channels": 8, "depth": 2},
        "uncertainty": {"distribution": "gaussian", "scale": 1.5},
        "height": 48,
        "width": 64,
    }
    return NetworkFacts.from_header(header, Path("tiny"))


def trained_network(dynamic: Path) -> TrainedNetwork:
    """The network that was exported."""
    weights = torch.load(dynamic.with_suffix(".weights"), weights_only=True)
    return TrainedNetwork(facts=facts_of_tiny(), weights=weights)


def write_checked(dynamic: Path, **flags: object) -> None:
    """Verify the exported bytes once more, with other options, and write net.onnx."""
    options = command_line.build_options(ExportOptions, flags).file
    export.write_checked(Path("net.onnx"), dynamic.read_bytes(), trained_network(dynamic), [(48, 64)], options)


def torch_predictor(dynamic: Path) -> Predictor:
    network = trained_network(dynamic).network()
    return Predictor(TorchBackend(network, device="cpu", precision="fp32", compile=False), facts_of_tiny())


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_exported_network_predicts_what_torch_does(dynamic: Path, backend) -> None:
    pairs = [shifted_pair(37, 61, 3), shifted_pair(70, 90, 5)]
    predictor = Predictor.open(dynamic, backend=backend, device="cpu", precision="fp32")
    assert predictor.facts == facts_of_tiny()
    for ours, theirs in zip(torch_predictor(dynamic).batch(pairs), predictor.batch(pairs), strict=True):
        np.testing.assert_allclose(theirs.disparity_px, ours.disparity_px, atol=2e-3)
        np.testing.assert_allclose(theirs.sigma_px, ours.sigma_px, rtol=1e-3)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (37, 61), (33, 200)])
def test_exported_network_takes_any_size(dynamic: Path, backend, height: int, width: int) -> None:
    pair = shifted_pair(height, width, 3)
    predictor = Predictor.open(dynamic, backend=backend, device="cpu", precision="fp32", height=height, width=width)
    ours = torch_predictor(dynamic)
    ours.height, ours.width = height, width
    np.testing.assert_allclose(predictor(*pair).disparity_px, ours(*pair).disparity_px, atol=2e-3)


def test_onnx_names_inputs_outputs_and_has_the_header(dynamic: Path) -> None:
    model = onnx.load(dynamic)
    onnx.checker.check_model(model)
    assert [value.name for value in model.graph.output] == ["disparity_px", "log_variance"]
    shape = [size.dim_param or size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim]
    assert (model.graph.input[0].name, shape) == ("pair", ["B", 6, "H", "W"])
    header = next(json.loads(entry.value) for entry in model.metadata_props if entry.key == SAFETENSORS_KEY)
    assert header == facts_of_tiny().header
    assert model.opset_import[0].version == 20


def test_fixed_size_is_kept(tiny_checkpoint: Path) -> None:
    path = exported(tiny_checkpoint, dynamic_size=False, height=40, width=72)
    predictor = Predictor.open(path, backend="onnxruntime")
    assert (predictor.height, predictor.width) == (40, 72)
    assert predictor(*shifted_pair(50, 70, 2)).disparity_px.shape == (50, 70)
    openvino = Predictor.open(path, backend="openvino", precision="fp32")
    assert (openvino.height, openvino.width) == (40, 72)
    with pytest.raises(UserError, match="was exported for 72x40 alone"):
        Predictor.open(path, width=64)


def test_half_stores_16_bit_weights_and_predicts_closely(tiny_checkpoint: Path) -> None:
    path = exported(tiny_checkpoint, half=True)
    stored = {tensor.data_type for tensor in onnx.load(path).graph.initializer if len(tensor.dims) == 4}
    assert stored == {onnx.TensorProto.FLOAT16}
    pair = shifted_pair(48, 64, 3)
    half, full = (
        Predictor.open(file, device="cpu", precision=precision)(*pair)
        for file, precision in ((path, "auto"), (tiny_checkpoint, "fp32"))
    )
    np.testing.assert_allclose(half.disparity_px, full.disparity_px, atol=0.1)


@pytest.mark.parametrize("half", [False, True])
def test_exported_safetensors_predict_the_same(tiny_checkpoint: Path, half: bool) -> None:
    path = exported(tiny_checkpoint, "new/net.safetensors", half=half)
    again = read_trained(path)
    assert again.facts.header == inference_header(load_checkpoint(tiny_checkpoint))
    first, second = (
        Predictor.open(file, device="cpu", precision="fp32")(*shifted_pair(48, 64, 3))
        for file in (tiny_checkpoint, path)
    )
    np.testing.assert_allclose(first.disparity_px, second.disparity_px, atol=0.1 if half else 0)


@pytest.fixture
def few_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer synthetic scenes: enough to tell right from wrong."""
    monkeypatch.setattr(export, "_SCORED_PAIRS", 4)
    monkeypatch.setattr(export, "_CALIBRATION_PAIRS", range(4, 12))


@pytest.mark.slow
@pytest.mark.usefixtures("few_pairs")
def test_int8_is_smaller_and_about_as_accurate(tiny_checkpoint: Path, dynamic: Path, capsys) -> None:
    path = exported(tiny_checkpoint, "8.onnx", int8=True)
    assert path.stat().st_size < dynamic.stat().st_size  # of a network of the same shape
    assert re.search(
        r"64x48: EPE .* px on 4 synthetic scenes, PyTorch's .* px; .* apart .* in the mean; .*, 87x61: EPE ",
        capsys.readouterr().out,
    )
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    convolutions = kinds.count("Conv")
    assert kinds.count("QuantizeLinear") >= convolutions - 2 > 0
    pair = shifted_pair(48, 64, 3)
    full_px = Predictor.open(tiny_checkpoint, device="cpu", precision="fp32")(*pair).disparity_px
    for backend in ("onnxruntime", "openvino"):
        quantized_px = Predictor.open(path, backend=backend, device="cpu")(*pair).disparity_px
        assert 0 < np.abs(quantized_px - full_px).mean() < 0.5


@pytest.mark.usefixtures("few_pairs")
def test_int8_that_costs_too_much_accuracy_is_not_written(dynamic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = OnnxRuntimeBackend.__call__

    def off(self: OnnxRuntimeBackend, pairs: np.ndarray) -> NetworkOutput:
        disparity_px, log_variance = right(self, pairs)
        return disparity_px - 2 * disparity_px.mean(), log_variance

    def without_uncertainty(self: OnnxRuntimeBackend, pairs: np.ndarray) -> NetworkOutput:
        disparity_px, log_variance = right(self, pairs)
        return disparity_px, log_variance * np.float32("nan")

    for wrong, message in (
        (off, "64x48: EPE .*; leave --int8"),
        (without_uncertainty, ".* log-variances nan in the mean"),
    ):
        monkeypatch.setattr(OnnxRuntimeBackend, "__call__", wrong)
        with pytest.raises(UserError, match=r"net\.onnx: not written, since 8 bits cost too much: " + message):
            write_checked(dynamic, int8=True)
    assert not list(Path().glob("*.onnx"))


def test_int8_excludes_safetensors_and_half(tiny_checkpoint: Path) -> None:
    with pytest.raises(UserError, match=r"--int8: is for \.onnx files"):
        exported(tiny_checkpoint, "net.safetensors", int8=True)
    with pytest.raises(UserError, match="--half --int8: weights have either 16 bits or 8"):
        exported(tiny_checkpoint, int8=True, half=True)


@pytest.mark.parametrize("shape", [["B", "C", 32, 32], [7]])
def test_foreign_onnx_of_any_shape_is_rejected(tmp_path: Path, shape: list) -> None:
    from onnx import TensorProto, helper

    value_in, value_out = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y"))
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "foreign", [value_in], [value_out])
    path = tmp_path / "foreign.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    for backend in ("onnxruntime", "openvino"):
        with pytest.raises(
            CheckpointError, match=r"foreign\.onnx: takes x and returns y, where an export of this program takes pair"
        ):
            Predictor.open(path, backend=backend, device="cpu")


def test_export_with_another_prior_is_rejected(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    shapes = {"pair": 6, "prior": 9, "disparity_px": 1, "log_variance": 1}
    values = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, planes, 32, 32])
        for name, planes in shapes.items()
    }
    nodes = [
        helper.make_node("ReduceMean", [a], [b], axes=[1])
        for a, b in (("pair", "disparity_px"), ("prior", "log_variance"))
    ]
    graph = helper.make_graph(
        nodes, "old", [values["pair"], values["prior"]], [values["disparity_px"], values["log_variance"]]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, {SAFETENSORS_KEY: json.dumps(facts_of_tiny().header)})
    path = tmp_path / "old.onnx"
    onnx.save(model, path)
    for backend in ("onnxruntime", "openvino"):
        with pytest.raises(
            CheckpointError, match=r"old\.onnx: was exported by another version .* export its checkpoint again"
        ):
            Predictor.open(path, backend=backend, device="cpu")


@pytest.mark.parametrize("wrong", [1.0, float("nan")])
def test_export_that_predicts_something_else_is_not_written(
    dynamic: Path, monkeypatch: pytest.MonkeyPatch, wrong: float
) -> None:
    right = OnnxRuntimeBackend.__call__

    def off(self: OnnxRuntimeBackend, pairs: np.ndarray) -> NetworkOutput:
        disparity_px, log_variance = right(self, pairs)
        return disparity_px + np.float32(wrong), log_variance

    monkeypatch.setattr(OnnxRuntimeBackend, "__call__", off)
    with pytest.raises(UserError, match=r"net\.onnx: not written, since the exported network is not .* px"):
        write_checked(dynamic, dynamic_size=False)
    assert not list(Path().glob("*.onnx"))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.99])
def test_truncated_onnx_is_rejected(dynamic: Path, tmp_path: Path, backend, kept: float) -> None:
    complete = dynamic.read_bytes()
    (tmp_path / "truncated.onnx").write_bytes(complete[: int(len(complete) * kept)])
    with pytest.raises(CheckpointError, match=r"truncated\.onnx: (is not a complete ONNX|was not written by)"):
        Predictor.open(tmp_path / "truncated.onnx", backend=backend)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_onnx_without_our_header_is_rejected(dynamic: Path, tmp_path: Path, backend) -> None:
    model = onnx.load(dynamic)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(CheckpointError, match=r"foreign\.onnx: was not written by foundation-stereo-export"):
        Predictor.open(tmp_path / "foreign.onnx", backend=backend)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"backend": "torch"}, "--backend torch: needs a .pt or .safetensors file"),
        ({"compile": True}, "--compile: needs a .pt"),
        ({"backend": "onnxruntime", "precision": "bf16"}, "export with --half instead"),
        ({"backend": "onnxruntime", "device": "mps"}, "--device mps: this onnxruntime only has"),
        ({"backend": "openvino", "device": "cuda"}, "--device cuda: OpenVINO runs on the CPU"),
    ],
)
def test_what_a_backend_lacks_is_named(dynamic: Path, flags: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Predictor.open(dynamic, **flags)


def test_missing_package_is_named(dynamic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="onnxruntime is not installed; `uv sync --extra onnx` adds it"):
        Predictor.open(dynamic, backend="onnxruntime")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["-o", "x"], "--output (-o) x: has to end in"),
        (["-o", "net.tflite"], "has to end in .onnx or .safetensors"),
        (["--checkpoint", "x.pt", "-o", "net.onnx"], "x.pt: cannot be read"),
        (["-o", "net.onnx", "--checkpoint", "x.pt", "--run-id", "abc"], "both name a network"),
    ],
)
def test_user_error_gets_one_line(argv: list[str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert export_command(argv) == 2
    error = capfd.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_command_overwrites_only_with_the_flag(tiny_checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> None:
    flags = ["--checkpoint", str(tiny_checkpoint), "-o", "net.safetensors"]
    assert export_command(flags) == 0
    assert export_command(flags) == 2
    assert "net.safetensors: exists; --overwrite" in capfd.readouterr().err
    assert export_command([*flags, "--overwrite"]) == 0


def test_inputs_of_openvino_are_found_beside_the_names_that_it_adds() -> None:
    for names, expected in (({"pad", "pair"}, "pair"), ({"pad_1", "prior"}, "prior"), ({"b", "a"}, "a"), (set(), "")):
        assert backends._onnx_name(SimpleNamespace(get_names=lambda names=names: names)) == expected


@pytest.mark.slow
@pytest.mark.parametrize("model", ["guided", "fused"])
def test_a_network_with_a_prior_runs_at_a_fixed_size_in_every_backend(tmp_path: Path, model: str) -> None:
    torch.manual_seed(0)
    weights = create_network(ModelOptions(model=model, base_channels=4)).state_dict()
    torch.save(weights, tmp_path / "bare.pt")
    path = exported(tmp_path / "bare.pt", dynamic_size=False, height=48, width=64)
    pair = shifted_pair(48, 64, 3)
    of_any_size = Predictor.open(
        tmp_path / "bare.pt", device="cpu", height=48, width=64, precision="fp32", enlarge=False
    )
    expected = of_any_size(*pair)
    for backend, precision in (("onnxruntime", "auto"), ("openvino", "fp32")):
        predictor = Predictor.open(path, device="cpu", backend=backend, precision=precision)
        for found in [*predictor.batch([pair, pair]), predictor(*pair)]:
            np.testing.assert_allclose(found.disparity_px, expected.disparity_px, atol=2e-3)

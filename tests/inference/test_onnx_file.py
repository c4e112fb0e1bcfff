"""Foreign .onnx files are refused before a runtime opens them."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from foundation_stereo_depth.errors import CheckpointError
from foundation_stereo_depth.inference.backends import OnnxRuntimeBackend
from foundation_stereo_depth.inference.onnx_file import check_onnx

PATH = Path("x.onnx")
FLOAT = TensorProto.FLOAT


def outputs_of(shape: list[Any]) -> dict[str, list[Any]]:
    return {"disparity_px": shape, "log_variance": shape}


def network(
    *,
    inputs: dict[str, list[Any]] | None = None,
    outputs: dict[str, list[Any]] | None = None,
    weight: float = 0.1,
    nodes: list[onnx.NodeProto] | None = None,
    kind: int = FLOAT,
) -> onnx.ModelProto:
    inputs = inputs or {"pair": ["B", 6, 32, 48]}
    outputs = outputs or outputs_of(["B", 1, 32, 48])
    weights = np.full((1, 6, 1, 1), 0.1, np.float32)
    weights[0, 3] = weight
    made = nodes or [helper.make_node("Conv", [next(iter(inputs)), "w"], [name]) for name in outputs]
    graph = helper.make_graph(
        made,
        "network",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(weights, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def endless_loop() -> onnx.ModelProto:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"])],
        "body",
        [
            helper.make_tensor_value_info(name, kind, [])
            for name, kind in (("i", TensorProto.INT64), ("go", TensorProto.BOOL))
        ],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, [])],
    )
    model = network()
    model.graph.node.insert(0, helper.make_node("Loop", ["", "true"], [], body=body))
    return model


def test_a_network_of_this_shape_is_accepted() -> None:
    check_onnx(PATH, network().SerializeToString())
    check_onnx(PATH, network(inputs={"pair": ["B", 6, "H", "W"], "prior": ["B", 11, "H", "W"]}).SerializeToString())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (network(inputs={"image": [1, 3, 32, 48]}), "takes image and returns disparity_px and log_variance, where"),
        (network(inputs={"pair": [1, 6, 32, 48], "more": [1]}), "takes pair and more"),
        (network(outputs={"disparity_px": [1, 1, 32, 48]}), "returns disparity_px, where an export"),
        (network(inputs={"pair": [1, 3, 32, 48]}), r"its pair has the shape \[1, 3, 32, 48\]"),
        (network(inputs={"pair": [1, 6, 48]}), r"its pair has the shape \[1, 6, 48\]"),
        (network(inputs={"pair": []}), r"its pair has the shape \[\]"),
        (
            network(outputs=outputs_of([1, 32, 48])),
            "its disparity_px has the shape",
        ),
        (network(outputs=outputs_of([1, 1, 64, 48])), "its disparity_px has the"),
        (network(kind=TensorProto.UINT8), "its pair is not an array of 32-bit numbers"),
        (network(weight=float("nan")), r"its weights are not finite \(NaN or infinity in w\)"),
        (network(weight=float("inf")), "its weights are not finite"),
        (endless_loop(), r"contains control flow \(Loop\)"),
        (
            network(nodes=[helper.make_node("Magic", ["pair"], ["disparity_px"], domain="my")]),
            "Magic of another program",
        ),
    ],
)
def test_other_networks_are_refused(model: onnx.ModelProto, message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"x\.onnx: .*{message}"):
        check_onnx(PATH, model.SerializeToString())


def test_weights_in_another_file_are_refused() -> None:
    model = network()
    weights = model.graph.initializer[0]
    weights.data_location = TensorProto.EXTERNAL
    entry = weights.external_data.add()
    entry.key, entry.value = "location", "../secret"
    with pytest.raises(CheckpointError, match="keeps weights in another file"):
        check_onnx(PATH, model.SerializeToString())


def test_weights_that_are_not_as_large_as_their_shape_are_refused() -> None:
    model = network()
    model.graph.initializer[0].dims[0] = 10**9
    with pytest.raises(CheckpointError, match="w is not as large as its shape says"):
        check_onnx(PATH, model.SerializeToString())


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    complete = network().SerializeToString()
    for length in range(0, len(complete), 7):
        (tmp_path / "x.onnx").write_bytes(complete[:length])
        with pytest.raises(CheckpointError, match=r"x\.onnx: "):
            OnnxRuntimeBackend(tmp_path / "x.onnx", device="cpu")


def test_a_network_that_fails_or_returns_another_shape_ends_in_one_error(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    pairs = np.zeros((1, 2, 32, 48, 3), np.uint8)
    free = outputs_of(["B", "one", "h", "w"])
    for operator, message in (
        ("Identity", "returns an array of"),
        ("NonsenseOperator", "contains NonsenseOperator, which no"),
    ):
        nodes = [helper.make_node(operator, ["pair"], [name]) for name in free]
        path.write_bytes(network(inputs={"pair": ["B", 6, "H", "W"]}, outputs=free, nodes=nodes).SerializeToString())
        with pytest.raises(CheckpointError, match=message):
            OnnxRuntimeBackend(path, device="cpu")(pairs)

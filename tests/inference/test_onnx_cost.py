"""What a foreign .onnx file takes is known before a runtime opens it: sizes are as ONNX's evaluator has them."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from foundation_stereo_depth.errors import CheckpointError
from foundation_stereo_depth.inference import onnx_cost, onnx_file
from foundation_stereo_depth.inference.onnx_cost import Array, Node, UnknownCostError, check_cost
from foundation_stereo_depth.inference.onnx_file import check_onnx

IMAGE = np.random.default_rng(0).random((1, 6, 7, 10), np.float32)
WEIGHTS = np.ones((4, 6, 3, 2), np.float32)


def whole(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


CALLS: list[tuple[str, list[np.ndarray], dict[str, Any]]] = [
    ("Add", [IMAGE, np.ones((6, 1, 1), np.float32)], {}),
    ("Cast", [IMAGE], {"to": TensorProto.DOUBLE}),
    ("Concat", [IMAGE, IMAGE[:, :2]], {"axis": 1}),
    ("Conv", [IMAGE, WEIGHTS], {"strides": [2, 3], "pads": [1, 0, 2, 1], "dilations": [2, 1]}),
    ("Conv", [IMAGE, np.ones((6, 1, 3, 3), np.float32)], {"group": 6, "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("ConvTranspose", [IMAGE, np.ones((6, 2, 3, 3), np.float32)], {"strides": [2, 2], "output_padding": [1, 1]}),
    ("DepthToSpace", [np.concatenate([IMAGE, IMAGE], 1)], {"blocksize": 2}),
    ("Exp", [IMAGE], {}),
    ("Gather", [IMAGE, whole(3, 1)], {"axis": 3}),
    ("MaxPool", [IMAGE], {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ("MaxPool", [IMAGE], {"kernel_shape": [2, 2], "strides": [2, 3], "ceil_mode": 1}),
    ("Pad", [IMAGE, whole(0, 0, 1, 2, 0, 0, 3, 0)], {}),
    ("ReduceMean", [IMAGE, whole(1, -1)], {"keepdims": 0}),
    ("ReduceMax", [IMAGE, whole(1)], {}),
    ("Reshape", [IMAGE, whole(0, 3, -1)], {}),
    ("Resize", [IMAGE, np.zeros(0, np.float32), np.array([1, 1, 1.5, 2.3], np.float32)], {"mode": "nearest"}),
    ("Shape", [IMAGE], {"start": 2}),
    ("Slice", [IMAGE, whole(-1, 1), whole(-100, 9), whole(2, 3), whole(-2, 3)], {}),
    ("Squeeze", [IMAGE, whole(0)], {}),
    ("Transpose", [IMAGE], {"perm": [0, 3, 1, 2]}),
    ("Unsqueeze", [IMAGE, whole(-1, 1)], {}),
    ("Where", [IMAGE > 0.5, IMAGE, np.zeros(1, np.float32)], {}),
]


def array_of(values: np.ndarray) -> Array:
    return Array(shape=values.shape, numbers=values if values.size <= 64 else None)


@pytest.mark.parametrize(("operator", "inputs", "attributes"), CALLS)
def test_sizes_are_those_of_the_reference_evaluator(
    operator: str, inputs: list[np.ndarray], attributes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"i{number}" for number in range(len(inputs))]
    node = helper.make_node(operator, names, ["out"], **attributes)
    values = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(i.dtype), i.shape) for n, i in
              zip(names, inputs, strict=True)]  # fmt: skip
    graph = helper.make_graph([node], "x", values, [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=8)
    (wanted,) = ReferenceEvaluator(model).run(["out"], dict(zip(names, inputs, strict=True)))

    found: list[Array] = []
    rule = onnx_cost._RULES[operator]
    monkeypatch.setitem(onnx_cost._RULES, operator, lambda call: (found.extend(rule(call)[0]), rule(call))[1])
    plain = {k: v.encode() if isinstance(v, str) else v for k, v in attributes.items()}
    arrays = dict(zip(names, map(array_of, inputs), strict=True))
    check_cost([Node(operator=operator, inputs=names, outputs=["out"], attributes=plain)], arrays, ["out"])
    assert found[0].shape == wanted.shape
    if found[0].numbers is not None:
        np.testing.assert_array_equal(found[0].numbers, wanted)


def network(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray]) -> bytes:
    """Return a network whose outputs are what a convolution of the pair is, and that also contains other nodes."""
    outputs = ["disparity_px", "log_variance"]
    weights = {"w": np.full((1, 6, 1, 1), 0.1, np.float32)} | constants
    graph = helper.make_graph(
        [*nodes, *(helper.make_node("Conv", ["pair", "w"], [name]) for name in outputs)],
        "x",
        [helper.make_tensor_value_info("pair", TensorProto.FLOAT, ["B", 6, 32, 48])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", 1, 32, 48]) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=8)
    return model.SerializeToString()


HUGE = whole(10**6, 10**6)
node = helper.make_node
BOMBS: dict[str, tuple[list[onnx.NodeProto], dict[str, np.ndarray]]] = {
    "ConstantOfShape": ([node("ConstantOfShape", ["s"], ["x"])], {"s": HUGE}),
    "Expand": ([node("Expand", ["w", "s"], ["x"])], {"s": HUGE}),
    "Tile": ([node("Tile", ["pair", "s"], ["x"])], {"s": whole(1, 1, 10**5, 10**5)}),
    "Range": ([node("Range", ["a", "b", "c"], ["x"])], {"a": whole(0)[0], "b": whole(10**12)[0], "c": whole(1)[0]}),
    "RandomNormal": ([node("RandomNormal", [], ["x"], shape=[10**5, 10**5])], {}),
    "Pad": ([node("Pad", ["pair", "s"], ["x"])], {"s": whole(0, 0, 10**5, 0, 0, 0, 0, 10**5)}),
    "Resize": ([node("Resize", ["pair", "", "s"], ["x"])], {"s": np.array([1, 1, 1e4, 1e4], np.float32)}),
    "broadcast": (
        [node("Add", ["a", "b"], ["x"])],
        {"a": np.ones((1, 10**5), np.float32), "b": np.ones((10**5, 1), np.float32)},
    ),
    "doubled again and again": (
        [node("Concat", [f"x{i}" if i else "pair"] * 2, [f"x{i + 1}"], axis=1) for i in range(40)],
        {},
    ),
    "large strides": (
        [node("ConvTranspose", ["pair", "k"], ["x"], strides=[2000, 2000])],
        {"k": np.ones((6, 1, 1, 1), np.float32)},
    ),
    "paddings of a pool": ([node("MaxPool", ["pair"], ["x"], kernel_shape=[1, 1], pads=[10**5] * 4)], {}),
    "many convolutions": (
        [
            node("Conv", [f"x{i}" if i else "pair", "k" if i else "k0"], [f"x{i + 1}"], pads=[1] * 4)
            for i in range(1000)
        ],
        {"k0": np.ones((400, 6, 3, 3), np.float32), "k": np.ones((400, 400, 3, 3), np.float32)},
    ),
    "sizes from the images": (
        [node("Cast", ["pair"], ["x"], to=TensorProto.INT64), node("Reshape", ["x", "x"], ["y"])],
        {},
    ),
    "one array computed twice": ([node("Relu", ["pair"], ["x"])] * 2, {}),
    "an array that is not there": ([node("Relu", ["nothing"], ["x"])], {}),
}


@pytest.mark.parametrize("name", BOMBS)
def test_networks_that_would_take_much_memory_or_time_are_refused(name: str) -> None:
    encoded = network(*BOMBS[name])
    began_s = time.thread_time()
    with pytest.raises(CheckpointError, match=r"x\.onnx: (contains|needs|takes|its|computes)"):
        check_onnx(Path("x.onnx"), encoded)
    assert time.thread_time() - began_s < 5


def test_memory_of_results_that_are_no_longer_needed_is_used_again() -> None:
    wide = node("Conv", ["pair", "k"], ["x0"])
    chain = [node("Relu", [f"x{i}"], [f"x{i + 1}"]) for i in range(1000)]
    # Each result takes 3 MB: together, three times what is allowed.
    check_onnx(Path("x.onnx"), network([wide, *chain], {"k": np.ones((500, 6, 1, 1), np.float32)}))


def test_messages_of_many_fields_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "_MOST_FIELDS", 1000)
    check_onnx(Path("x.onnx"), network([], {}))
    with pytest.raises(CheckpointError, match="too many fields"):
        check_onnx(Path("x.onnx"), network([], {}) + b"\x08\x01" * 1000)


def test_an_operator_that_is_not_known_is_refused() -> None:
    with pytest.raises(UnknownCostError, match="contains Loop, which"):
        check_cost([Node(operator="Loop", inputs=[], outputs=["x"])], {}, ["x"])

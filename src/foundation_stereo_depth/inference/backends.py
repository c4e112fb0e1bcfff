"""Backends that run a network, torch, onnxruntime or OpenVINO, behind one call on batches at the network's size."""

import ctypes
import hashlib
import importlib
import importlib.util
import json
import logging
import platform
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from foundation_stereo_depth.errors import CheckpointError, UserError
from foundation_stereo_depth.files import describe_replacement, read_regular_file
from foundation_stereo_depth.inference.onnx_file import (
    LARGEST_ONNX_BYTES,
    ONNX_INPUT,
    ONNX_OUTPUTS,
    ONNX_PRIOR,
    check_onnx,
)
from foundation_stereo_depth.network_facts import (
    DEFAULT_ONNX,
    DEFAULT_WEIGHTS,
    SAFETENSORS_KEY,
    WEIGHTS_HASH,
    NetworkFacts,
)
from foundation_stereo_depth.options.inference import DeviceName, InferenceOptions, PrecisionName
from foundation_stereo_depth.stereo.prior import PRIORS, priors_of
from foundation_stereo_depth.threads import count_threads

OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "Failed to allocate memory",
    "bad_alloc",
)
"""Words in an error for lack of memory; a CPU's has no type of its own."""

logger = logging.getLogger(__name__)

NetworkOutput = tuple[Float32[np.ndarray, "B H W"], Float32[np.ndarray, "B H W"]]
"""Disparity at the network's size, in px of that size, and log-variance, the natural logarithm of px^2."""


@runtime_checkable
class Backend(Protocol):
    """Runs one network.

    Attributes:
        description: backend, precision and device, for messages.
        fixed_size: the only height and width it takes, px; None where it takes any.
    """

    description: str
    fixed_size: tuple[int, int] | None

    def __call__(
        self, pairs: UInt8[np.ndarray, "B 2 H W 3"], prior: Float32[np.ndarray, "B planes H W"] | None = None
    ) -> NetworkOutput:
        """Return the prediction for left and right RGB bytes, by their prior; None computes what the network takes."""
        ...


def open_backend(path: Path, options: InferenceOptions, *, few_pairs: bool = False) -> tuple[Backend, NetworkFacts]:
    """Return a backend for the network in a `.pt`, `.safetensors` or `.onnx` file, and the facts in the file.

    The installed network has two files: its weights for PyTorch, and the same network in 8 bits; `path` names the first
    one, and the second is taken where `prefers_installed_onnx`.

    Args:
        path: the file.
        options: backend, device and precision.
        few_pairs: auto takes the runtime of .onnx files that starts sooner, rather than the one that runs faster.

    Raises:
        CheckpointError: the file cannot be used.
        UserError: the backend does not run such a file, is not installed, or lacks the device or precision.
    """
    if path == DEFAULT_WEIGHTS and prefers_installed_onnx(options):
        opened = _open_onnx(DEFAULT_ONNX, options, few_pairs)
        if opened[1].header.get(WEIGHTS_HASH) == hash_file(path):
            return opened
        problem = (
            f"{DEFAULT_ONNX}: belongs to other weights than {path.name}; scripts/export_installed.py makes it again"
        )
        if options.backend != "auto":
            raise CheckpointError(problem)
        logger.warning("%s; PyTorch runs the network", problem)
    if path.suffix == ".onnx":
        return _open_onnx(path, options, few_pairs)
    if options.backend not in ("auto", "torch"):
        raise UserError(
            f"--backend {options.backend}: runs .onnx files, not {path}; foundation-stereo-export converts it to one"
        )
    # PyTorch takes seconds to import.
    from foundation_stereo_depth.checkpoint import read_trained  # noqa: PLC0415
    from foundation_stereo_depth.inference.torch_backend import TorchBackend  # noqa: PLC0415

    trained = read_trained(path)
    backend = TorchBackend(
        trained.network(), device=options.device, precision=options.precision, compile=options.compile
    )
    return backend, trained.facts


def prefers_installed_onnx(options: InferenceOptions) -> bool:
    """Return True where the installed network runs from its 8-bit .onnx file, rather than by PyTorch.

    With `--backend auto` it does on CPUs, unless a precision or torch.compile is asked for: it takes half of PyTorch's
    time or less, and PyTorch need not be imported (docs/results.md).

    Raises:
        UserError: a runtime of .onnx files is named together with a precision.
    """
    if options.backend in ("onnxruntime", "openvino"):
        if options.precision != "auto":
            raise UserError(
                f"--backend {options.backend} --precision {options.precision}: the installed .onnx file computes in 8 "
                "bits; leave --precision out, or export the network by foundation-stereo-export and name that file"
            )
        return True
    if options.backend == "torch" or options.precision != "auto" or options.compile:
        return False
    runs_onnx = DEFAULT_ONNX.is_file() and any(map(_is_installed, ("openvino", "onnxruntime")))
    return runs_onnx and (options.device == "cpu" or (options.device == "auto" and not _has_gpu()))


def _has_gpu() -> bool:
    """Return True where PyTorch finds a GPU; it is imported only where the system has one."""
    if not _system_has_gpu() or not _is_installed("torch"):
        return False
    from foundation_stereo_depth.device import has_gpu  # noqa: PLC0415

    return has_gpu()


def _system_has_gpu() -> bool:
    """Return True where there is a GPU that PyTorch has builds for: NVIDIA's by its driver, AMD's on Linux, Apple's."""
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    if Path("/dev/kfd").exists():
        return True
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int()
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, by which the installed .onnx names the weights that it was exported from."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _open_onnx(path: Path, options: InferenceOptions, few_pairs: bool) -> tuple[Backend, NetworkFacts]:
    backend, device, precision = options.backend, options.device, options.precision
    if backend == "torch" or options.compile:
        asked = "--compile" if options.compile else "--backend torch"
        raise UserError(f"{asked}: needs a .pt or .safetensors file, not {path}")
    if backend == "openvino" or (backend == "auto" and device in ("auto", "cpu") and _prefers_openvino(few_pairs)):
        return _with_facts(OpenVinoBackend(path, device=device, precision=precision), path)
    return _with_facts(OnnxRuntimeBackend(path, device=device, precision=precision), path)


class OnnxRuntimeBackend:
    """Runs an exported network by onnxruntime, on CUDA where its GPU build is installed."""

    def __init__(self, path: Path, *, device: DeviceName = "auto", precision: PrecisionName = "auto") -> None:
        runtime = _optional("onnxruntime", "onnx")
        runtime.disable_telemetry_events()  # which its builds for Windows send
        if precision == "bf16":
            raise UserError(
                "--precision bf16: onnxruntime computes in the exported precision; export with --half instead"
            )
        has_cuda = "CUDAExecutionProvider" in runtime.get_available_providers()
        kind, _, number = device.partition(":")
        if kind == "mps" or (kind == "cuda" and not has_cuda):
            raise UserError(f"--device {device}: this onnxruntime only has {runtime.get_available_providers()}")
        on_cuda = has_cuda and device != "cpu"
        settings = runtime.SessionOptions()
        settings.log_severity_level = 3  # errors, which are raised as well
        settings.intra_op_num_threads = count_threads()
        # Its idle threads would spin, on the cores that the matcher and the camera need.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        encoded = _read(path)
        self._path = path
        try:
            self._session: Any = runtime.InferenceSession(
                encoded,
                settings,
                providers=[
                    *([("CUDAExecutionProvider", {"device_id": int(number or 0)})] if on_cuda else []),
                    "CPUExecutionProvider",
                ],
                enable_fallback=0,  # which prints to standard output, and fails again
            )
            self.metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        except Exception as error:  # its exceptions have no common base
            raise CheckpointError(f"{path}: is not a complete ONNX file that onnxruntime runs ({error})") from error
        shapes = {value.name: list(value.shape) for value in self._session.get_inputs()}
        self.fixed_size, self.planes = _fixed(shapes), _planes(shapes)
        self.description = f"onnxruntime on {'cuda' if on_cuda else 'cpu'}"

    def __call__(
        self, pairs: UInt8[np.ndarray, "B 2 H W 3"], prior: Float32[np.ndarray, "B planes H W"] | None = None
    ) -> NetworkOutput:
        """Return the prediction for left and right RGB bytes, by their prior; None computes what the network takes."""
        inputs = inputs_of(pairs, self.planes.get(ONNX_PRIOR) or 0, prior)
        return _run(self._path, pairs, lambda: self._session.run(list(ONNX_OUTPUTS), inputs))


class OpenVinoBackend:
    """Runs an exported network by OpenVINO on the CPU, in bf16 where the CPU has instructions for it."""

    def __init__(self, path: Path, *, device: DeviceName = "auto", precision: PrecisionName = "auto") -> None:
        openvino = import_openvino()
        if device not in ("auto", "cpu"):
            raise UserError(f"--device {device}: OpenVINO runs on the CPU here")
        core = openvino.Core()
        encoded = _read(path)
        self._path = path
        hints = {"fp32": {"INFERENCE_PRECISION_HINT": "f32"}, "bf16": {"INFERENCE_PRECISION_HINT": "bf16"}}
        threads = {"INFERENCE_NUM_THREADS": count_threads()}
        config = {"PERFORMANCE_HINT": "LATENCY"} | threads | hints.get(precision, {})
        try:
            self._model: Any = core.read_model(encoded)
            self.metadata = _metadata(self._model)
            self._compile = partial(core.compile_model, device_name="CPU", config=config)
        except Exception as error:  # of a foreign file
            raise CheckpointError(f"{path}: is not a complete ONNX file that OpenVINO runs ({error})") from error
        partial_shapes = {_onnx_name(value): value.get_partial_shape() for value in self._model.inputs}
        shapes = {
            name: [size.get_length() if size.is_static else None for size in shape] if shape.rank.is_static else []
            for name, shape in partial_shapes.items()
        }
        self.fixed_size, self.planes = _fixed(shapes), _planes(shapes)
        self._by_size: dict[tuple[int, ...], Any] = {}
        is_int8 = any(node.get_type_name() == "FakeQuantize" for node in self._model.get_ops())
        inferred = core.get_property("CPU", "INFERENCE_PRECISION_HINT").get_type_name()
        computed_in = "8 bits" if is_int8 else hints.get(precision, {}).get("INFERENCE_PRECISION_HINT", inferred)
        self.description = f"OpenVINO, {computed_in} on cpu"

    def __call__(
        self, pairs: UInt8[np.ndarray, "B 2 H W 3"], prior: Float32[np.ndarray, "B planes H W"] | None = None
    ) -> NetworkOutput:
        """Return the prediction for left and right RGB bytes, by their prior; None computes what the network takes."""
        inputs = inputs_of(pairs, self.planes.get(ONNX_PRIOR) or 0, prior)

        def run() -> list[np.ndarray]:
            # Pair by pair: compiling for another batch costs half a second of a processor, and gains no time on CPUs.
            each = [
                self._run_one({name: planes[i : i + 1] for name, planes in inputs.items()}) for i in range(len(pairs))
            ]
            return [np.concatenate(of_pairs) for of_pairs in zip(*each, strict=True)]

        return _run(self._path, pairs, run)

    def _run_one(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Return the outputs for one pair, by a model that is compiled for its size at the first call.

        Compiled for one size it takes half the time of a model for any size.
        """
        size = inputs[ONNX_INPUT].shape
        if size not in self._by_size:
            model = self._model.clone()
            model.reshape({name: list(planes.shape) for name, planes in inputs.items()})
            self._by_size[size] = self._compile(model)
        outputs = self._by_size[size](inputs, share_inputs=True)
        return [np.array(outputs[name]) for name in ONNX_OUTPUTS]


def _with_facts(backend: OnnxRuntimeBackend | OpenVinoBackend, path: Path) -> tuple[Backend, NetworkFacts]:
    text = backend.metadata.get(SAFETENSORS_KEY)
    if text is None:
        raise CheckpointError(f"{path}: was not written by foundation-stereo-export")
    if ONNX_PRIOR in backend.planes and backend.planes[ONNX_PRIOR] not in PRIORS:
        raise CheckpointError(f"{path}: was exported by another version of this program; export its checkpoint again")
    try:
        return backend, NetworkFacts.from_header(json.loads(text), path)
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: its header is not JSON ({error})") from error


def _onnx_name(value: Any) -> str:
    """Return the name that an input has in the ONNX file; OpenVINO adds those of operations that change nothing."""
    names: set[str] = value.get_names()
    return next((name for name in (ONNX_INPUT, ONNX_PRIOR) if name in names), min(names, default=""))


def _metadata(model: Any) -> dict[str, str]:
    """Return the metadata of an ONNX file, which OpenVINO stores in its runtime information."""
    info = model.get_rt_info()
    if "framework" not in info:
        return {}
    framework: dict[str, Any] = info["framework"]
    return {key: str(value.value) for key, value in framework.items()}


def inputs_of(
    pairs: UInt8[np.ndarray, "B 2 H W 3"],
    prior_planes: int,
    prior: Float32[np.ndarray, "B planes H W"] | None = None,
) -> dict[str, np.ndarray]:
    """Return the inputs, by name, of an exported network.

    Args:
        pairs: left and right RGB bytes.
        prior_planes: of the prior that it takes; 0 where it takes none.
        prior: of the pairs; None computes it.
    """
    B, _, H, W, _ = pairs.shape
    planes = np.empty((B, 6, H, W), np.float32)
    for view, colours in zip(pairs.reshape(-1, H, W, 3), planes.reshape(-1, 3, H, W), strict=True):
        # A quarter of the time that NumPy's strided conversion takes.
        for colour, plane in zip(cv2.split(view), colours, strict=True):
            np.multiply(colour, np.float32(1 / 255), out=plane)
    if not prior_planes:
        return {ONNX_INPUT: planes}
    return {ONNX_INPUT: planes, ONNX_PRIOR: priors_of(pairs, prior_planes) if prior is None else prior}


def _fixed(shapes: dict[str, list[Any]]) -> tuple[int, int] | None:
    """Return height and width of the pair, [B 6 H W], where they are numbers."""
    shape = shapes.get(ONNX_INPUT, [])
    height, width = shape[2:] if len(shape) == 4 else (None, None)
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def _planes(shapes: dict[str, list[Any]]) -> dict[str, int | None]:
    """Return the number of planes of each input, None where it is not a number: the file may be of any origin."""
    return {name: shape[1] if len(shape) > 1 and isinstance(shape[1], int) else None for name, shape in shapes.items()}


def _prefers_openvino(few_pairs: bool) -> bool:
    """Return True where OpenVINO is installed on an x86 CPU: onnxruntime takes 1.5 to 2 times as long for a pair there.

    That holds for Intel's and for AMD's (docs/results.md); on other CPUs the two have not been compared. OpenVINO takes
    0.8 s of a processor longer to start, as much as it gains over some thirty pairs, so not for few ones.
    """
    if few_pairs and _is_installed("onnxruntime"):
        return False
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return _is_installed("openvino") and (is_x86 or not _is_installed("onnxruntime"))


def import_openvino() -> Any:
    """Return the package without its telemetry; every use of OpenVINO here imports it by this function.

    Importing it would look up an analytics host and write an identifier of the user into the home folder. Where
    openvino_telemetry cannot be imported, OpenVINO takes its own stub of it.

    Raises:
        UserError: it is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # pyright: ignore[reportArgumentType] (documented by Python)
    return _optional("openvino", "openvino")


def _optional(module: str, extra: str) -> Any:
    """Return an optional module.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(f"{module} is not installed; `uv sync --extra {extra}` adds it") from error


def _run(path: Path, pairs: np.ndarray, run: Callable[[], Sequence[np.ndarray]]) -> NetworkOutput:
    """Return what a network of any origin predicts, of the shapes of a prediction.

    Raises:
        CheckpointError: it cannot be run, or returns something else.
        RuntimeError: the memory does not suffice.
    """
    try:
        outputs = run()
    except Exception as error:  # the runtimes' own, for what a foreign file holds
        if any(words in str(error) for words in OUT_OF_MEMORY):
            raise RuntimeError(str(error)) from error
        raise CheckpointError(f"{path}: its network cannot be run ({error})") from error
    wanted = (len(pairs), 1, *pairs.shape[2:4])
    if wrong := [output.shape for output in outputs if output.shape != wanted or output.dtype != np.float32]:
        raise CheckpointError(f"{path}: its network returns an array of {wrong[0]}, not {wanted}")
    disparity_px, log_variance = (output[:, 0] for output in outputs)
    return disparity_px, log_variance


def _read(path: Path) -> bytes:
    encoded = read_regular_file(path, at_most_bytes=LARGEST_ONNX_BYTES, error_type=CheckpointError)
    if foreign := describe_replacement(encoded[:512]):
        raise CheckpointError(f"{path}: {foreign}")
    check_onnx(path, encoded)
    return encoded

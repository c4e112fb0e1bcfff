"""The table of all commands."""

import importlib
from dataclasses import dataclass
from typing import Any

PROGRAM = "foundation-stereo"


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command: where its function and its options are, as `module:name`, and what it does.

    They are named rather than imported: parsing has to be fast, and this package does not import `live_camera`.
    """

    function: str
    options: str
    script: str
    summary: str


_CLI, _IMPORT, _CAMERA_CLI = "foundation_stereo_depth.cli", "foundation_stereo_depth.import_rust_run", "live_camera.cli"
_TRAINING, _INFERENCE = "foundation_stereo_depth.options.training", "foundation_stereo_depth.options.inference"
_CAMERA_OPTIONS = "live_camera.options"

COMMANDS: dict[str, Command] = {
    name: Command(function=function, options=options, script=script, summary=summary)
    for name, function, options, script, summary in (
        (
            "demo", f"{_CAMERA_CLI}:demo_command", f"{_CAMERA_OPTIONS}:DemoOptions",
            "foundation-stereo-demo", "depth of an installed pair, as a figure",
        ),
        (
            "list-cameras", f"{_CAMERA_CLI}:list_cameras_command", f"{_CAMERA_OPTIONS}:ListCamerasOptions",
            "foundation-stereo-list-cameras", "the cameras of this machine",
        ),
        (
            "live-view", f"{_CAMERA_CLI}:live_view_command", f"{_CAMERA_OPTIONS}:LiveViewOptions",
            "foundation-stereo-live-view", "depth from two cameras, live",
        ),
        (
            "calibrate", f"{_CAMERA_CLI}:calibrate_command", f"{_CAMERA_OPTIONS}:CalibrateOptions",
            "foundation-stereo-calibrate", "calibrate two cameras by a board",
        ),
        (
            "predict", f"{_CLI}:predict_command", f"{_INFERENCE}:PredictOptions",
            "foundation-stereo-predict", "disparity and depth of images and videos",
        ),
        (
            "train", f"{_CLI}:train_command", f"{_TRAINING}:TrainOptions",
            "foundation-stereo-depth", "train a network",
        ),
        (
            "cache", f"{_CLI}:cache_command", f"{_TRAINING}:CacheOptions",
            "foundation-stereo-cache", "fill or verify a cache of samples",
        ),
        (
            "evaluate", f"{_CLI}:evaluate_command", f"{_INFERENCE}:EvaluateOptions",
            "foundation-stereo-evaluate", "accuracy and latency on a benchmark",
        ),
        (
            "export", f"{_CLI}:export_command", f"{_INFERENCE}:ExportOptions",
            "foundation-stereo-export", "a network as ONNX or safetensors",
        ),
        (
            "import-rust", f"{_IMPORT}:import_rust_command", f"{_IMPORT}:ImportRustOptions",
            "foundation-stereo-import-rust", "copy a run of the Rust trainer into MLflow",
        ),
    )
}  # fmt: skip


def load(address: str) -> Any:
    """Return what `module:name` names."""
    module, name = address.split(":")
    return getattr(importlib.import_module(module), name)

"""The table of all commands."""

import importlib
from dataclasses import dataclass
from typing import Any

from foundation_stereo_depth.options.settings import OPTIONS_OF_COMMANDS, SYNONYMS

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

COMMANDS: dict[str, Command] = {
    name: Command(
        function=function,
        options=OPTIONS_OF_COMMANDS[SYNONYMS.get(name, name)],
        script=f"{PROGRAM}-{SYNONYMS.get(name, name)}",
        summary=summary,
    )
    for name, function, summary in (
        ("demo", f"{_CAMERA_CLI}:demo_command", "depth of an installed pair, as a figure"),
        ("list-cameras", f"{_CAMERA_CLI}:list_cameras_command", "the cameras of this machine"),
        ("live-view", f"{_CAMERA_CLI}:live_view_command", "depth from two cameras, live"),
        ("calibrate", f"{_CAMERA_CLI}:calibrate_command", "calibrate two cameras by a board"),
        ("predict", f"{_CLI}:predict_command", "disparity and depth of images and videos"),
        ("train", f"{_CLI}:train_command", "train a network"),
        ("cache", f"{_CLI}:cache_command", "fill or verify a cache of samples"),
        ("evaluate", f"{_CLI}:evaluate_command", "accuracy and latency on a benchmark"),
        ("export", f"{_CLI}:export_command", "a network as ONNX or safetensors"),
        ("import-rust", f"{_IMPORT}:import_rust_command", "copy a run of the Rust trainer into MLflow"),
    )
}


def load(address: str) -> Any:
    """Return what `module:name` names."""
    module, name = address.split(":")
    return getattr(importlib.import_module(module), name)

"""Train, evaluate and use stereo depth networks with per-pixel uncertainty.

    from foundation_stereo_depth import Predictor, StereoCalibration

    match = Predictor.open()(left, right)  # uint8 RGB, rectified
    depth_m = match.depth_m(StereoCalibration.centred(height=480, width=640, focal_px=560.0, baseline_m=0.06))

Importing this package imports nothing heavy: the names below are loaded when they are first used.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

from foundation_stereo_depth.threads import limit_spinning

if TYPE_CHECKING:
    from foundation_stereo_depth.inference.predictor import Predictor, open_network
    from foundation_stereo_depth.stereo.geometry import StereoCalibration
    from foundation_stereo_depth.stereo.match import StereoMatch

# Since 1.29 onnxruntime writes an identifier into the home folder and sends what is run, from the moment that anything
# imports it; this is its own switch.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
__all__ = ["Predictor", "StereoCalibration", "StereoMatch", "__version__", "open_network"]

_HOMES = {
    "Predictor": "inference.predictor",
    "StereoCalibration": "stereo.geometry",
    "StereoMatch": "stereo.match",
    "open_network": "inference.predictor",
}


def __getattr__(name: str) -> Any:
    """Import one of the public names from the module that defines it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    limit_spinning()  # the module may import torch
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

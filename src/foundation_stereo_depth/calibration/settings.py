"""The settings of a camera that a calibration depends on, or that its images were taken with."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foundation_stereo_depth.errors import CalibrationError


@dataclass(frozen=True, kw_only=True)
class CameraSettings:
    """Settings of one camera as it reported them, in the units of its driver; None where it has no such control.

    Attributes:
        focus: position of the lens; another one changes focal length and distortion.
        exposure, gain: of the sensor.
        white_balance: colour temperature, kelvin.
    """

    focus: float | None = None
    exposure: float | None = None
    gain: float | None = None
    white_balance: float | None = None

    def values(self) -> list[float]:
        """Return focus, exposure, gain and white balance; NaN where there is none."""
        return [math.nan if value is None else value for value in dataclasses.astuple(self)]

    def __str__(self) -> str:
        """Return the settings that are known, such as `focus 30, gain 8`."""
        known = [
            f"{name.replace('_', ' ')} {value:g}"
            for name, value in dataclasses.asdict(self).items()
            if value is not None
        ]
        return ", ".join(known) or "none"


RigSettings = tuple[CameraSettings, CameraSettings]
"""Of the left and of the right camera."""


def settings_of_values(values: Sequence[float]) -> CameraSettings:
    """Return the settings of what `CameraSettings.values` returned.

    Raises:
        CalibrationError: these are not four numbers.
    """
    names = [field.name for field in dataclasses.fields(CameraSettings)]
    if len(values) != len(names):
        raise CalibrationError(f"camera settings are {len(values)} numbers, where {len(names)} are needed: {names}")
    return CameraSettings(
        **{name: float(value) if math.isfinite(value) else None for name, value in zip(names, values, strict=True)}
    )


def settings_to_json(settings: RigSettings) -> dict[str, Any]:
    """Return the settings of both cameras as plain values."""
    return {side: dataclasses.asdict(each) for side, each in zip(("left", "right"), settings, strict=True)}


def settings_from_json(values: Any) -> RigSettings:
    """Return the settings of both cameras from what `settings_to_json` returned.

    Raises:
        CalibrationError: it is something else.
    """
    names = {field.name for field in dataclasses.fields(CameraSettings)}
    found: list[CameraSettings] = []
    for side in ("left", "right"):
        each = values.get(side) if isinstance(values, Mapping) else None
        if not isinstance(each, Mapping) or set(each) != names:
            raise CalibrationError(f"camera settings need {side} with {', '.join(sorted(names))}")
        if any(isinstance(value, bool) or not isinstance(value, int | float | None) for value in each.values()):
            raise CalibrationError(f"camera settings of the {side} camera are no numbers")
        found.append(CameraSettings(**each))
    return found[0], found[1]

"""The rig's calibration, as the cameras' side sees it: read from every format, written as our own.

Its home is in `foundation_stereo_depth`, where `foundation-stereo-predict`, which never sees the cameras, reads
the same files by the same rules.
"""

from foundation_stereo_depth.calibration import RigCalibration
from foundation_stereo_depth.calibration_files import Unit, read_calibration, save_calibration

__all__ = ["RigCalibration", "Unit", "read_calibration", "save_calibration"]

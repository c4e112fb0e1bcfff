"""The errors that a user can correct. Every other exception is a bug of this program and keeps its traceback.

    ValueError
    └── UserError            one line: what was asked, what was found, what to do next
        ├── DataError        a data set, an image, a disparity map or a cache entry is missing or damaged
        ├── CameraError      a camera, a stream or a recording is missing, or not as requested
        ├── CalibrationError a rig's calibration is missing, damaged, or describes no usable rig
        ├── CheckpointError  a checkpoint is missing, damaged, foreign, or does not fit the options
        └── NotFiniteError   training ran into NaN or infinity

Commands print the line on standard error and end with exit status 2; see `options.command_line.run_command`.
"""


class UserError(ValueError):
    """A request of the user cannot be carried out as given."""


class DataError(UserError):
    """A file or folder of the data set, or of its cache, is missing or damaged; the message names it."""


class CameraError(UserError):
    """A camera, a stream or a recording cannot be used as requested; the message names it."""


class CalibrationError(UserError):
    """A rig's calibration cannot be read, or describes no rig that can measure depth; the message says why."""


class CheckpointError(UserError):
    """A checkpoint cannot be read, or does not fit the options; the message names it."""


class NotFiniteError(UserError):
    """The loss or its gradient is NaN or infinite; the message names the step, the samples and what is saved."""

"""The errors that a user can mend. Everything else that is raised is our own mistake and keeps its traceback.

    ValueError
    └── UserError            one line: what was asked, what was found, what to do next
        ├── DataError        a data set, a picture, a disparity map or a cache entry is not as it should be
        ├── CameraError      a camera, a stream or a recording is not there, or not as it was asked for
        ├── CalibrationError a rig's calibration is missing, damaged, or describes no usable rig
        ├── CheckpointError  a checkpoint is missing, damaged, foreign, or does not fit the options
        └── NotFiniteError   training ran into NaN or infinity

Commands print the line on standard error and end with exit status 2; see `options.command_line.run_command`.
"""


class UserError(ValueError):
    """Something the user asked for cannot be done as asked."""


class DataError(UserError):
    """A file or folder of the data set, or of its cache, is not as it should be; the message names it."""


class CameraError(UserError):
    """A camera, a stream or a recording cannot be used as asked; the message names it."""


class CalibrationError(UserError):
    """A rig's calibration cannot be read, or describes no rig that depth could come from; the message says why."""


class CheckpointError(UserError):
    """A checkpoint cannot be read, or does not fit what was asked; the message names it."""


class NotFiniteError(UserError):
    """The loss or its gradient is NaN or infinite; the message names the step, the samples and what is saved."""

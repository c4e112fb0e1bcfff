"""Every knob of `foundation-stereo-calibrate` on one page."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.knobs import Group, knob, two_numbers
from live_camera.options import CameraOptions, SourceOptions

_FEWEST_ACROSS = 3


@dataclass(frozen=True, kw_only=True)
class BoardOptions(Group):
    """board: flat and stiff, with a white border"""

    pattern: Literal["chessboard", "charuco"] = knob("chessboard", "charuco may be seen in part, chessboard only whole")
    corners: str = knob("9x6", "inner corners across and down; 9x6 has 10x7 squares")
    square_mm: float | None = knob(None, "side of one square, mm, as measured on the board", minimum=0.1)
    marker_mm: float | None = knob(None, "charuco: side of one marker, mm", minimum=0.1)
    dictionary: str = knob("4X4_50", "charuco: OpenCV's name of the markers' dictionary")

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.inner_corners) < _FEWEST_ACROSS:
            raise UserError(f"--corners {self.corners}: a board has at least {_FEWEST_ACROSS}x{_FEWEST_ACROSS} of them")

    @property
    def inner_corners(self) -> tuple[int, int]:
        """Columns and rows."""
        return two_numbers("--corners", self.corners)


@dataclass(frozen=True, kw_only=True)
class ViewOptions(Group):
    """pairs of pictures of the board"""

    images: tuple[str, str] | None = knob(
        None, "pictures that are there already: a glob in quotes for each eye, 'left*.jpg' 'right*.jpg', or two folders"
    )
    views: int = knob(20, "live: so many pairs are collected", minimum=6, maximum=200)
    headless: bool = knob(False, "live: no window; what is missing stands beside the progress bar")


@dataclass(frozen=True, kw_only=True)
class CalibrationResultOptions(Group):
    """results: the calibration, and beside it a report, the coverage, and a rectified pair to look at"""

    output: Path = knob(Path("calibration/stereo_calib.npz"), "file to write, .npz", short="-o")
    overwrite: bool = knob(False, "replace the file if it is there")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output.suffix != ".npz":
            raise UserError(f"--output {self.output}: a calibration is an .npz file")


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions:
    """All knobs of `foundation-stereo-calibrate`."""

    board: BoardOptions = BoardOptions()
    views: ViewOptions = ViewOptions()
    source: SourceOptions = SourceOptions()
    camera: CameraOptions = CameraOptions()
    result: CalibrationResultOptions = CalibrationResultOptions()

"""Every option of the live commands on one page, in the manner of `foundation_stereo_depth.options.training`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.options.fields import OptionGroup, option, parse_two_numbers
from foundation_stereo_depth.options.inference import CalibrationFileOptions, InferenceOptions

_FEWEST_ACROSS = 3
"""Inner corners of a board, in either direction."""
DEFAULT_CALIBRATION = Path("calibration/stereo_calib.npz")
"""Where the calibration is looked for when none is named."""


@dataclass(frozen=True, kw_only=True)
class SourceOptions(OptionGroup):
    """eyes: cameras, network streams, videos, or pictures"""

    left: str | None = option(
        None,
        "device index, stable path (/dev/v4l/by-path/...), stream (rtsp://..., http://...), video, or glob of pictures "
        "in quotes",
    )
    right: str | None = option(None, "the same for the right eye")
    side_by_side: str | None = option(None, "one device, stream, video or glob with both eyes side by side, left first")
    swap: bool = option(False, "exchange the eyes: --left is what the right camera sees")
    upside_down: Literal["none", "left", "right", "both"] = option("none", "eyes that are mounted upside down")
    loop: bool = option(False, "play videos and pictures again and again")
    max_skew_ms: float = option(50.0, "drop pairs whose eyes are further apart in time, ms", minimum=0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        for flag, eye in (("--left", self.left), ("--right", self.right), ("--side-by-side", self.side_by_side)):
            if eye is not None and not eye.strip():
                raise UserError(f"{flag}: is empty; foundation-stereo-list-cameras shows what is there")
            if eye is not None and eye.startswith("file:"):
                raise UserError(f"{flag} {eye}: a file goes by its path alone, without file://")
        two = self.left is not None or self.right is not None
        if two and self.side_by_side is not None:
            raise UserError("--side-by-side names both eyes already; leave out --left and --right")
        if two and (self.left is None or self.right is None):
            given, missing = ("--left", "--right") if self.right is None else ("--right", "--left")
            raise UserError(f"{given} without {missing}; one device with both eyes goes by --side-by-side")

    @property
    def named(self) -> bool:
        """True where eyes are named at all."""
        return self.left is not None or self.side_by_side is not None

    def needs_eyes(self) -> None:
        """Lets pass where eyes are named.

        Raises:
            UserError: none are.
        """
        if not self.named:
            raise UserError(
                "needs --left and --right, or --side-by-side; foundation-stereo-list-cameras shows what is there"
            )


@dataclass(frozen=True, kw_only=True)
class CameraOptions(OptionGroup):
    """cameras: what is asked of both; what they answer is compared, and differences are said"""

    width: int | None = option(None, "of one eye's picture, px; else the calibration's, else the camera's", minimum=32)
    height: int | None = option(None, "of its picture, px; else the calibration's, else the camera's", minimum=32)
    fps: float | None = option(None, "pictures a second; for videos and pictures the rate of playing", minimum=0.01)
    fourcc: str = option("MJPG", "pixel format; two uncompressed streams seldom fit one USB port")
    exposure: Literal["lock", "auto"] | float = option(
        "lock", "lock: both keep the value that the left camera chose; auto; or a value, in the driver's own unit"
    )
    white_balance: Literal["lock", "auto"] | float = option("lock", "the same for the colour temperature, kelvin")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.fourcc) != 4:
            raise UserError(f"--fourcc {self.fourcc}: has four letters, such as MJPG or YUYV")
        if (self.width is None) != (self.height is None):
            raise UserError("--width and --height belong together; give both or none")


@dataclass(frozen=True, kw_only=True)
class RigOptions(CalibrationFileOptions):
    """calibration: of the rig, in any format that docs/formats.md lists; without one there is no depth"""

    calibration: Path | None = option(
        None,
        "the rig's calibration file; of one in two files the folder that holds them, or either of them; else "
        f"{DEFAULT_CALIBRATION}, if it is there",
    )
    rectify: bool = option(True, "rectify by the calibration; off for eyes that are rectified by it already")


@dataclass(frozen=True, kw_only=True)
class MatcherOptions(OptionGroup):
    """network: a file, a run, or the classical matcher"""

    method: Literal["network", "sgbm"] = option("network", "sgbm: OpenCV's semi-global matcher, which needs no network")
    checkpoint: Path | None = option(
        None,
        "file that holds the network: .pt, .safetensors or .onnx; default, as where none is named: the one that is "
        "installed with the program",
    )
    run_id: str | None = option(None, "MLflow run whose network to use, in place of --checkpoint")
    weights: Literal["auto", "best", "last"] = option(
        "auto", "which checkpoint of the run; auto takes the last where it is watched, else the best"
    )
    watch_checkpoint: bool = option(False, "take over the file whenever training replaces it")
    mlflow_tracking_uri: str | None = option(
        None, "where MLflow keeps its runs: a database or a server; else $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db"
    )
    network_height: int | None = option(
        None, "height that the matcher works at, px; else the network's own", minimum=32, maximum=4096
    )
    network_width: int | None = option(
        None, "width that the matcher works at, px; else the network's own; sgbm: at most 640", minimum=32, maximum=4096
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        named = [flag for flag, value in (("--checkpoint", self.checkpoint), ("--run-id", self.run_id)) if value]
        if len(named) == 2:
            raise UserError("--checkpoint and --run-id both name a network; give one of them")
        if self.method == "sgbm" and (named or self.watch_checkpoint):
            raise UserError(f"--method sgbm takes no network; leave {(*named, '--watch-checkpoint')[0]} out")
        if self.watch_checkpoint and not named:
            raise UserError("--watch-checkpoint: which one? give the --run-id of the run, or a --checkpoint")
        if self.weights != "auto" and self.run_id is None:
            raise UserError(f"--weights {self.weights}: chooses among the checkpoints of a run; give --run-id")
        if self.mlflow_tracking_uri is not None and self.run_id is None:
            raise UserError(f"--mlflow-tracking-uri {self.mlflow_tracking_uri}: is where a run is kept; give --run-id")


@dataclass(frozen=True, kw_only=True)
class ShowOptions(OptionGroup):
    """view"""

    headless: bool = option(False, "no windows, for machines without a display")
    frames: int | None = option(None, "end after so many pairs", minimum=1)
    record: Path | None = option(
        None, "record the raw pairs from the start, side by side: .avi (MJPG), .mp4, or .mkv (without loss)"
    )
    save_dir: Path = option(Path("captures"), "folder for what the keys s and r write")
    min_confidence: float = option(
        0.5, "the key c hides pixels whose P(|error| < 1 px) is lower", minimum=0.0, maximum=1.0
    )
    rerun: bool = option(False, "also show points in 3-D; `uv sync --extra rerun`")


@dataclass(frozen=True, kw_only=True)
class LiveViewOptions:
    """All options of `foundation-stereo-live-view`."""

    source: SourceOptions = SourceOptions()
    camera: CameraOptions = CameraOptions()
    rig: RigOptions = RigOptions()
    matcher: MatcherOptions = MatcherOptions()
    show: ShowOptions = ShowOptions()
    inference: InferenceOptions = InferenceOptions()


@dataclass(frozen=True, kw_only=True)
class ListingOptions(OptionGroup):
    """cameras"""

    preview: bool = option(False, "save one picture of each, camera_<index>.png, to tell left from right")
    probe: bool = option(True, "ask each camera for common sizes; off where another program is using it")


@dataclass(frozen=True, kw_only=True)
class ListCamerasOptions:
    """All options of `foundation-stereo-list-cameras`."""

    listing: ListingOptions = ListingOptions()


@dataclass(frozen=True, kw_only=True)
class BoardOptions(OptionGroup):
    """board: flat and stiff, with a white border"""

    pattern: Literal["chessboard", "charuco"] = option(
        "chessboard", "charuco may be seen in part, chessboard only whole"
    )
    corners: str = option("9x6", "inner corners across and down; 9x6 has 10x7 squares")
    square_mm: float | None = option(None, "side of one square, mm, as measured on the board", minimum=0.1)
    marker_mm: float | None = option(None, "charuco: side of one marker, mm", minimum=0.1)
    dictionary: str = option("4X4_50", "charuco: OpenCV's name of the markers' dictionary")

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.inner_corners) < _FEWEST_ACROSS:
            raise UserError(f"--corners {self.corners}: a board has at least {_FEWEST_ACROSS}x{_FEWEST_ACROSS} of them")

    @property
    def inner_corners(self) -> tuple[int, int]:
        """Columns and rows."""
        return parse_two_numbers("--corners", self.corners)


@dataclass(frozen=True, kw_only=True)
class ViewOptions(OptionGroup):
    """pairs of pictures of the board"""

    images: tuple[str, str] | None = option(
        None, "pictures that are there already: a glob in quotes for each eye, 'left*.jpg' 'right*.jpg', or two folders"
    )
    views: int = option(20, "live: so many pairs are collected", minimum=6, maximum=200)
    headless: bool = option(False, "live: no window; what is missing stands beside the progress bar")


@dataclass(frozen=True, kw_only=True)
class CalibrationResultOptions(OptionGroup):
    """results: the calibration, and beside it a report, the coverage, and a rectified pair to look at"""

    output: Path = option(Path("calibration/stereo_calib.npz"), "file to write, .npz", short="-o")
    overwrite: bool = option(False, "replace the file if it is there")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output.suffix != ".npz":
            raise UserError(f"--output {self.output}: a calibration is an .npz file")


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions:
    """All options of `foundation-stereo-calibrate`."""

    board: BoardOptions = BoardOptions()
    views: ViewOptions = ViewOptions()
    source: SourceOptions = SourceOptions()
    camera: CameraOptions = CameraOptions()
    result: CalibrationResultOptions = CalibrationResultOptions()

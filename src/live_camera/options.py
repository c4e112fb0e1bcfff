"""Every knob of the live commands on one page, in the manner of `foundation_stereo_depth.options`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.inference_options import CalibrationFileOptions, InferenceOptions
from foundation_stereo_depth.knobs import Group, knob

DEFAULT_CALIBRATION = Path("calibration/stereo_calib.npz")
"""Where the calibration is looked for when none is named."""


@dataclass(frozen=True, kw_only=True)
class SourceOptions(Group):
    """eyes: cameras, network streams, videos, or pictures"""

    left: str | None = knob(
        None,
        "device index, stable path (/dev/v4l/by-path/...), stream (rtsp://..., http://...), video, or glob of pictures "
        "in quotes",
    )
    right: str | None = knob(None, "the same for the right eye")
    side_by_side: str | None = knob(None, "one device, stream, video or glob with both eyes side by side, left first")
    swap: bool = knob(False, "exchange the eyes: --left is what the right camera sees")
    upside_down: Literal["none", "left", "right", "both"] = knob("none", "eyes that are mounted upside down")
    loop: bool = knob(False, "play videos and pictures again and again")
    max_skew_ms: float = knob(50.0, "drop pairs whose eyes are further apart in time, ms", minimum=0.0)

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
class CameraOptions(Group):
    """cameras: what is asked of both; what they answer is compared, and differences are said"""

    width: int | None = knob(None, "of one eye's picture, px; else the calibration's, else the camera's", minimum=32)
    height: int | None = knob(None, "of its picture, px; else the calibration's, else the camera's", minimum=32)
    fps: float | None = knob(None, "pictures a second; for videos and pictures the rate of playing", minimum=0.01)
    fourcc: str = knob("MJPG", "pixel format; two uncompressed streams seldom fit one USB port")
    exposure: Literal["lock", "auto"] | float = knob(
        "lock", "lock: both keep the value that the left camera chose; auto; or a value, in the driver's own unit"
    )
    white_balance: Literal["lock", "auto"] | float = knob("lock", "the same for the colour temperature, kelvin")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.fourcc) != 4:
            raise UserError(f"--fourcc {self.fourcc}: has four letters, such as MJPG or YUYV")
        if (self.width is None) != (self.height is None):
            raise UserError("--width and --height belong together; give both or none")


@dataclass(frozen=True, kw_only=True)
class RigOptions(CalibrationFileOptions):
    """calibration: of the rig, in any format that docs/formats.md lists; without one there is no depth"""

    calibration: Path | None = knob(
        None,
        "the rig's calibration file; of one in two files the folder that holds them, or either of them; else "
        f"{DEFAULT_CALIBRATION}, if it is there",
    )
    rectify: bool = knob(True, "rectify by the calibration; off for eyes that are rectified by it already")


@dataclass(frozen=True, kw_only=True)
class MatcherOptions(Group):
    """network: a file, a run, or the classical matcher"""

    method: Literal["network", "sgbm"] = knob("network", "sgbm: OpenCV's semi-global matcher, which needs no network")
    checkpoint: Path | None = knob(
        None,
        "file that holds the network: .pt, .safetensors or .onnx; default, as where none is named: the one that is "
        "installed with the program",
    )
    run_id: str | None = knob(None, "MLflow run whose network to use, in place of --checkpoint")
    weights: Literal["auto", "best", "last"] = knob(
        "auto", "which checkpoint of the run; auto takes the last where it is watched, else the best"
    )
    watch_checkpoint: bool = knob(False, "take over the file whenever training replaces it")
    mlflow_tracking_uri: str | None = knob(
        None, "where MLflow keeps its runs: a database or a server; else $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db"
    )
    network_height: int | None = knob(
        None, "height that the matcher works at, px; else the network's own", minimum=32, maximum=4096
    )
    network_width: int | None = knob(
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
class ShowOptions(Group):
    """view"""

    headless: bool = knob(False, "no windows, for machines without a display")
    frames: int | None = knob(None, "end after so many pairs", minimum=1)
    record: Path | None = knob(
        None, "record the raw pairs from the start, side by side: .avi (MJPG), .mp4, or .mkv (without loss)"
    )
    save_dir: Path = knob(Path("captures"), "folder for what the keys s and r write")
    min_confidence: float = knob(
        0.5, "the key c hides pixels whose P(|error| < 1 px) is lower", minimum=0.0, maximum=1.0
    )
    rerun: bool = knob(False, "also show points in 3-D; `uv sync --extra rerun`")


@dataclass(frozen=True, kw_only=True)
class LiveViewOptions:
    """All knobs of `foundation-stereo-live-view`."""

    source: SourceOptions = SourceOptions()
    camera: CameraOptions = CameraOptions()
    rig: RigOptions = RigOptions()
    matcher: MatcherOptions = MatcherOptions()
    show: ShowOptions = ShowOptions()
    inference: InferenceOptions = InferenceOptions()


@dataclass(frozen=True, kw_only=True)
class ListingOptions(Group):
    """cameras"""

    preview: bool = knob(False, "save one picture of each, camera_<index>.png, to tell left from right")
    probe: bool = knob(True, "ask each camera for common sizes; off where another program is using it")


@dataclass(frozen=True, kw_only=True)
class ListCamerasOptions:
    """All knobs of `foundation-stereo-list-cameras`."""

    listing: ListingOptions = ListingOptions()

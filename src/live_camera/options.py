"""The options of the camera commands, grouped as `--help` shows them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.options.fields import OptionGroup, option, parse_two_numbers
from foundation_stereo_depth.options.inference import (
    METHOD_HELP,
    CalibrationFileOptions,
    ColourMapName,
    InferenceOptions,
    MethodName,
    NetworkSourceOptions,
    check_depth_range,
    check_no_network,
    check_size,
    size_for,
)

_MIN_CORNERS = 3
"""Inner corners of a board, in either direction."""
DEFAULT_CALIBRATION = Path("calibration/stereo_calib.npz")
"""Read where no calibration is named, if it exists."""
DEFAULT_DEMO = Path("foundation_stereo_demo.png")


@dataclass(frozen=True, kw_only=True)
class SourceOptions(OptionGroup):
    """source: cameras, network streams, videos, or images"""

    left: str | None = option(
        None,
        "left camera: device index, stable path (/dev/v4l/by-path/...), stream (rtsp://..., http://...), GStreamer "
        "pipeline in quotes, video, or a glob of images in quotes",
    )
    right: str | None = option(None, "the same for the right camera")
    side_by_side: str | None = option(
        None, "one device, stream, video or glob whose frames hold both views side by side, left first"
    )
    swap: bool = option(False, "swap the views: --left is the right camera")
    upside_down: Literal["none", "left", "right", "both"] = option(
        "none", "cameras that are mounted upside down; named before --swap"
    )
    loop: bool = option(False, "play videos and images again and again")
    max_skew_ms: float = option(50.0, "drop pairs whose frames are further apart in time, ms", minimum=0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        for flag, address in (("--left", self.left), ("--right", self.right), ("--side-by-side", self.side_by_side)):
            if address is not None and not address.strip():
                raise UserError(f"{flag}: is empty; foundation-stereo-list-cameras lists the cameras")
            if address is not None and address.startswith("file:"):
                raise UserError(f"{flag} {address}: give a file by its path alone, without file://")
        two = self.left is not None or self.right is not None
        if two and self.side_by_side is not None:
            raise UserError("--side-by-side gives both views already; leave out --left and --right")
        if two and (self.left is None or self.right is None):
            given, missing = ("--left", "--right") if self.right is None else ("--right", "--left")
            raise UserError(f"{given} without {missing}; for one device with both views use --side-by-side")

    @property
    def given(self) -> bool:
        """True where a source is given at all."""
        return self.left is not None or self.side_by_side is not None

    def check_given(self) -> None:
        """Check that a source is given.

        Raises:
            UserError: none is.
        """
        if not self.given:
            raise UserError(
                "needs --left and --right, or --side-by-side; foundation-stereo-list-cameras lists the cameras"
            )


@dataclass(frozen=True, kw_only=True)
class CameraOptions(OptionGroup):
    """cameras: settings requested of both; settings that a camera does not accept are reported"""

    camera_width: int | None = option(
        None, "frame width of one camera, px; else the calibration's, else the camera's", minimum=32
    )
    camera_height: int | None = option(None, "frame height, px; else the calibration's, else the camera's", minimum=32)
    fps: float | None = option(
        None,
        "frames per second; for videos and images the playback rate, else a video's own, 1 for images",
        minimum=0.01,
    )
    fourcc: str = option("MJPG", "pixel format; two uncompressed streams seldom fit one USB port")
    focus: Literal["lock", "auto"] | float = option(
        "lock",
        "lock: autofocus off, each camera at the calibration's focus, else at its present one; auto; or a value, in "
        "the driver's own unit",
    )
    exposure: Literal["lock", "auto"] | float = option(
        "lock",
        "exposure and gain; lock: both cameras keep the calibration's, or what the left one chooses where that is "
        "missing, too dark or too bright; auto; or a value, in the driver's own unit",
    )
    white_balance: Literal["lock", "auto"] | float = option("lock", "the same for the colour temperature, kelvin")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.fourcc) != 4:
            raise UserError(f"--fourcc {self.fourcc}: needs four letters, such as MJPG or YUYV")
        if (self.camera_width is None) != (self.camera_height is None):
            raise UserError("--camera-width and --camera-height belong together; give both or none")


@dataclass(frozen=True, kw_only=True)
class RigOptions(CalibrationFileOptions):
    """calibration: of the rig, in any format that docs/formats.md lists; without one there is no depth"""

    calibration: Path | None = option(
        None,
        "the rig's calibration file; of one in two files the folder that holds them, or either of them; else "
        f"{DEFAULT_CALIBRATION}, if it exists",
    )


@dataclass(frozen=True, kw_only=True)
class MatcherOptions(NetworkSourceOptions):
    """network: a file, a run, or the classical matcher; else the newest run kept here, else the installed network"""

    weights: Literal["auto", "best", "last", "best.pt", "last.pt"] = option(
        "auto",
        "which checkpoint of the run; auto takes the last with --watch-checkpoint, else the best",
        aliases=("--checkpoint-name",),
    )
    method: MethodName = option("network", METHOD_HELP)
    watch_checkpoint: bool = option(False, "load the file again whenever training replaces it")
    size: str | None = option(
        None,
        "size at which the matcher runs, as 640x480; auto takes 640x480 where the cameras give at least 384 px of "
        "width and this machine keeps up with them, which is measured at the start, else 320x240",
        metavar="auto|WxH",
    )
    network_height: int | None = option(
        None, "height at which the matcher runs, px; else the network's own", minimum=32, maximum=4096
    )
    network_width: int | None = option(
        None, "width at which the matcher runs, px; else the network's own; sgbm: at most 640", minimum=32, maximum=4096
    )

    @property
    def fixed_size(self) -> tuple[int | None, int | None]:
        """The height and width that flags name, px; None where none does."""
        return (self.network_height, self.network_width) if self.size in (None, "auto") else size_for(self.size, 0)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size(self.size, network_width=self.network_width, network_height=self.network_height)
        if self.method == "sgbm":
            check_no_network(checkpoint=self.checkpoint, run_id=self.run_id, watch_checkpoint=self.watch_checkpoint)
            if self.size == "auto":
                raise UserError("--size auto: is for networks; name a size, as in --size 640x480")
        if self.watch_checkpoint and self.unnamed:
            raise UserError("--watch-checkpoint: needs the --run-id of a run, or a --checkpoint, to watch")

    @property
    def unnamed(self) -> bool:
        """True where no network is named."""
        return self.checkpoint is None and self.run_id is None


@dataclass(frozen=True, kw_only=True)
class ShowOptions(OptionGroup):
    """view"""

    headless: bool = option(False, "no windows, for machines without a display")
    save_depth: Path | None = option(
        None,
        "write the depth of each pair, with times and the calibration: a folder, as NPY in metres; or .mkv, a lossless "
        "16-bit video in mm",
    )
    json: bool = option(False, "print one JSON line a second: rates, and depth in the middle of the image")
    frames: int | None = option(None, "stop after this many pairs", minimum=1)
    record: Path | None = option(
        None, "record the raw pairs from the start, side by side: .avi (MJPG), .mp4, or .mkv (without loss)"
    )
    save_dir: Path = option(Path("captures"), "folder for the snapshots (key s) and recordings (key r)")
    min_confidence: float = option(
        0.5, "the key c hides pixels whose confidence, P(|error| < 1 px), is lower", minimum=0.0, maximum=1.0
    )
    temporal_fusion: bool = option(
        False,
        "average disparity over time where nothing moves, by its predicted variance (key t): less flicker",
    )
    forgetting: float = option(
        0.9,
        "with --temporal-fusion: share of what is known that is kept per frame; 0.9 averages ten",
        minimum=0.0,
        maximum=0.99,
    )
    depth_range: tuple[float, float] | None = option(
        None, "nearest and farthest depth of the colours, metres; else those of the first image; the keys change it"
    )
    colormap: ColourMapName = option("turbo", "colours of depth and disparity")
    contours: bool = option(False, "draw contours of depth into the left view, one each 0.5 m; the key d changes it")
    cpu_threads: int | None = option(
        None, "processor threads of the matcher; else $OMP_NUM_THREADS, else one per core", minimum=1, maximum=1024
    )
    serve: str | None = option(
        None, "also show the view in web browsers: PORT, for this machine alone, or HOST:PORT (0.0.0.0:8080 for all)"
    )
    rerun: bool = option(False, "also show a point cloud in 3-D; needs `uv sync --extra rerun`")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_depth_range(self.depth_range)
        if self.serve is not None:
            parse_address(self.serve)


def parse_address(text: str) -> tuple[str, int]:
    """Return host and port of `--serve`; the host of a port alone is this machine.

    >>> parse_address("8080")
    ('127.0.0.1', 8080)

    Raises:
        UserError: it has another form.
    """
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdecimal() and int(port) <= 65535) or (":" in text and not host):
        raise UserError(f"--serve {text}: has to be a port, or a host and a port, as in 8080 or 0.0.0.0:8080")
    return host.strip("[]") or "127.0.0.1", int(port)


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
class DemoFileOptions(OptionGroup):
    """figure"""

    output: Path | None = option(
        None, "file to write, .png; else foundation_stereo_demo.png, which is replaced if it exists", short="-o"
    )
    open: bool = option(True, "open the figure where there is a display")
    method: MethodName = option("network", METHOD_HELP)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output is not None and self.output.suffix.lower() != ".png":
            raise UserError(f"--output {self.output}: has to end in .png")


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """All options of `foundation-stereo-demo`."""

    file: DemoFileOptions = DemoFileOptions()


@dataclass(frozen=True, kw_only=True)
class ListingOptions(OptionGroup):
    """cameras"""

    preview: bool = option(False, "save one frame of each, camera_<index>.png, to tell left from right")
    probe: bool = option(True, "request the common sizes of each camera; off where another program is using it")


@dataclass(frozen=True, kw_only=True)
class ListCamerasOptions:
    """All options of `foundation-stereo-list-cameras`."""

    listing: ListingOptions = ListingOptions()


@dataclass(frozen=True, kw_only=True)
class BoardOptions(OptionGroup):
    """board: flat and stiff, with a white border"""

    pattern: Literal["chessboard", "charuco", "circles"] = option(
        "chessboard", "charuco may be partly visible, the others not; circles: OpenCV's asymmetric grid"
    )
    corners: str = option(
        "9x6", "inner corners across and down; 9x6 has 10x7 squares; circles: per row, and rows: 4x11"
    )
    square_mm: float | None = option(
        None,
        "side of one square, mm, as measured on the board; circles: half the distance of two neighbours in a row",
        minimum=0.1,
    )
    marker_mm: float | None = option(None, "charuco: side of one marker, mm", minimum=0.1)
    dictionary: str = option("4X4_50", "charuco: OpenCV's name of the marker dictionary")

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.inner_corners) < _MIN_CORNERS:
            raise UserError(
                f"--corners {self.corners}: a board needs at least {_MIN_CORNERS}x{_MIN_CORNERS} inner corners"
            )

    @property
    def inner_corners(self) -> tuple[int, int]:
        """Columns and rows."""
        return parse_two_numbers("--corners", self.corners)


@dataclass(frozen=True, kw_only=True)
class ViewOptions(OptionGroup):
    """images of the board"""

    images: tuple[str] | tuple[str, str] | None = option(
        None,
        "existing images: a glob in quotes for each camera, 'left*.jpg' 'right*.jpg', or two folders; one alone for "
        "images of both views side by side",
    )
    views: int = option(20, "live: number of pairs to collect", minimum=3, maximum=200)
    headless: bool = option(False, "live: no window; instructions appear beside the progress bar")
    check: Path | None = option(
        None,
        "measure the board by this calibration instead of making one: the error of its size and its flatness in mm; "
        "by new --images, or live by a few pairs",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images is not None and len(self.images) > 2:
            raise UserError(
                f"--images: takes two globs or folders, not {len(self.images)} files; put each glob in quotes, as in "
                "'left*.jpg' 'right*.jpg', so that the shell does not expand it"
            )


@dataclass(frozen=True, kw_only=True)
class CalibrationResultOptions(OptionGroup):
    """results: the calibration, and beside it a report, the coverage and a rectified pair as images"""

    output: Path = option(DEFAULT_CALIBRATION, "file to write, .npz", short="-o")
    overwrite: bool = option(False, "replace the file if it exists")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output.suffix != ".npz":
            raise UserError(f"--output {self.output}: has to end in .npz")


PaperName = Literal["a4", "letter"]


@dataclass(frozen=True, kw_only=True)
class PrintOptions(OptionGroup):
    """printing"""

    print_board: Path | None = option(
        None,
        "write the board to this file (.pdf, .svg or .png), true to scale with a ruler of 100 mm, and end; without "
        "--square-mm with the largest squares that fit",
    )
    paper: PaperName = option("a4", "of --print-board")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.print_board is not None and self.print_board.suffix.lower() not in (".pdf", ".svg", ".png"):
            raise UserError(f"--print-board {self.print_board}: has to end in .pdf, .svg or .png")


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions:
    """All options of `foundation-stereo-calibrate`."""

    board: BoardOptions = BoardOptions()
    printing: PrintOptions = PrintOptions()
    views: ViewOptions = ViewOptions()
    source: SourceOptions = SourceOptions()
    camera: CameraOptions = CameraOptions()
    result: CalibrationResultOptions = CalibrationResultOptions()

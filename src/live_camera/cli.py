"""The commands of the cameras. Each parses first and imports what is heavy afterwards: `--help` answers at once.

The only file here that reaches for networks, and for MLflow: inside the functions that need them.
"""

import dataclasses
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from foundation_stereo_depth.errors import CameraError, UserError
from foundation_stereo_depth.options import command_line
from live_camera.options import (
    DEFAULT_CALIBRATION,
    CalibrateOptions,
    ListCamerasOptions,
    LiveViewOptions,
    SourceOptions,
)

if TYPE_CHECKING:
    from foundation_stereo_depth.calibration.rig import RigCalibration
    from live_camera.matcher import Matcher
    from live_camera.session import Preparation

_FAR_M = 30.0
"""Hardly any rig of webcams measures anything farther."""
_SGBM_WIDTH_PX, _SGBM_HEIGHT_PX = 640, 480


def list_cameras_command(argv: Sequence[str] | None = None) -> int:
    """`foundation-stereo-list-cameras`: 0 where there are cameras, 1 where there are none."""
    parser = command_line.create_parser(
        "foundation-stereo-list-cameras",
        ListCamerasOptions,
        "List the cameras of this machine: index, name, stable path, backend, and the sizes that they give when asked.",
    )
    explicit = command_line.parse_explicit(parser, argv)

    def run() -> int:
        options = command_line.build_options(ListCamerasOptions, explicit).listing
        from foundation_stereo_depth.data.codecs import write_rgb
        from live_camera.camera import find_cameras, offered_sizes, preview_pictures

        cameras = find_cameras()
        if not cameras:
            print(
                f"{parser.prog}: no camera found; is one plugged in, may you read it (on Linux: group video), and does "
                "no other program or virtual machine hold it?",
                file=sys.stderr,
            )
            return 1
        for camera in cameras:
            print(f"{camera.index}  {camera.name}  {camera.path}  {camera.backend}")
            if options.probe:
                sizes = [f"{size.width}x{size.height} at {size.fps:g}/s" for size in offered_sizes(camera.index)]
                print(f"   {', '.join(sizes) or 'does not open; another program may hold it'}")
        if options.preview:
            for camera, picture in preview_pictures(cameras):
                path = Path(f"camera_{camera.index}.png")
                if picture is not None:
                    write_rgb(path, picture)
                print(f"{path}: {'saved' if picture is not None else 'not saved, the camera gives no picture'}")
        return 0

    return command_line.run_command(parser.prog, explicit, run)


def calibrate_command(argv: Sequence[str] | None = None) -> int:
    """`foundation-stereo-calibrate`: the exit status of calibrating a rig."""
    parser = command_line.create_parser(
        "foundation-stereo-calibrate",
        CalibrateOptions,
        "Calibrate two cameras from pictures of a chessboard or a ChArUco board, or live, and say how far to trust the "
        "result.",
    )
    explicit = command_line.parse_explicit(parser, argv)

    def run() -> int:
        options = command_line.build_options(CalibrateOptions, explicit)
        if options.views.images is None and not options.source.named:
            raise UserError(
                "needs --left and --right (or --side-by-side), the cameras, or --images, pictures of the board that "
                "are there already: 'left*.jpg' 'right*.jpg'"
            )
        if options.views.images is not None and (options.source.named or options.source != SourceOptions()):
            raise UserError("--images takes pictures as they are; leave out what is about cameras and eyes")
        from live_camera.calibrate import calibrate_pictures

        calibrate_pictures(*(options.views.images or _collected(options)), options)
        return 0

    return command_line.run_command(parser.prog, explicit, run)


def _collected(options: CalibrateOptions) -> tuple[str, str]:
    """Globs of the pairs that were collected live, beside where the calibration goes."""
    from live_camera.board import Board
    from live_camera.calibrate import check_free
    from live_camera.collect import collect
    from live_camera.rig import open_rig
    from live_camera.view import OneWindow

    check_free(options)
    board = Board(options.board)
    folder = options.result.output.with_suffix("")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(
            f"{folder}: holds pairs that were collected before; --images '{folder}/left_*.png' '{folder}/right_*.png' "
            "calibrates by them; else move them, or name another --output"
        )
    with ExitStack() as stack:
        window = None if options.views.headless else stack.enter_context(OneWindow("Calibration"))
        rig = open_rig(options.source, options.camera, tell=lambda line: print(line, file=sys.stderr))
        frames = stack.enter_context(rig)
        taken = collect(frames, board, folder, options.views.views, window)
    print(f"{folder}: {taken} pairs collected")
    if taken == 0:
        raise UserError("no pair was collected; the line below the picture says what was missing")
    return f"{folder}/left_*.png", f"{folder}/right_*.png"


def live_view_command(argv: Sequence[str] | None = None) -> int:
    """`foundation-stereo-live-view`: the exit status of a live view."""
    parser = command_line.create_parser(
        "foundation-stereo-live-view",
        LiveViewOptions,
        "Show metric depth of two cameras and how sure the network is of it. Keys: h shows them.",
    )
    explicit = command_line.parse_explicit(parser, argv)

    def run() -> int:
        options = command_line.build_options(LiveViewOptions, explicit)
        options.source.needs_eyes()
        from live_camera.recording import check_recordable
        from live_camera.rig import open_rig
        from live_camera.session import live_view
        from live_camera.view import check_display

        if options.show.record is not None:
            check_recordable(options.show.record)
        if not options.show.headless:
            check_display()
        calibration = _calibration(options)
        camera = options.camera
        if calibration is not None and camera.width is None:
            camera = dataclasses.replace(camera, width=calibration.width, height=calibration.height)
        # Being ended ends as Ctrl-C does: what is recorded by then is closed as a video has to be.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with ExitStack() as stack:
            matcher = _matcher(options, calibration, stack)
            preparation = _preparation(options, calibration, matcher)
            extra_view = None
            if options.show.rerun:
                from live_camera.rerun_view import RerunView

                extra_view = RerunView(options.show)
            rig = open_rig(
                options.source,
                camera,
                realtime=not options.show.headless,
                tell=lambda line: print(line, file=sys.stderr),
            )
            depth = "depth in metres" if preparation.calibration is not None else "no calibration, so disparity only"
            print(f"{matcher.name}; {depth}", file=sys.stderr)
            meter = live_view(rig, preparation, matcher, options.show, extra_view=extra_view)
        print(f"{meter.pairs} pairs shown; {meter.figures(rig)}")
        if meter.pairs == 0:
            raise CameraError("not one pair was shown")
        if meter.recordings_cut:
            raise UserError("a recording is not whole; the line above says why")
        return 0

    return command_line.run_command(parser.prog, explicit, run)


def _calibration(options: LiveViewOptions) -> "RigCalibration | None":
    from foundation_stereo_depth.calibration.files import read_calibration

    path = options.rig.calibration
    if path is None:
        path = DEFAULT_CALIBRATION if DEFAULT_CALIBRATION.is_file() else None
    if path is None:
        return None
    return read_calibration(path, unit=options.rig.calibration_unit, image_size=options.rig.calibration_image_size)


def _preparation(options: LiveViewOptions, calibration: "RigCalibration | None", matcher: "Matcher") -> "Preparation":
    from live_camera.rectify import Rectifier
    from live_camera.session import Preparation

    height, width = matcher.height, matcher.width
    if calibration is None:
        return Preparation(height=height, width=width, rectifier=None, calibration=None)
    if options.rig.rectify:
        rectifier = Rectifier(calibration, height=height, width=width)
        of_pair, rig = rectifier.stereo_calibration, None
    else:
        rectifier, of_pair, rig = None, calibration.stereo_calibration.resized(height, width), calibration
    if of_pair.farthest_m < _FAR_M:
        print(
            f"what is farther than {of_pair.farthest_m:.3g} m cannot be measured: the calibration gives it a disparity "
            "below 0",
            file=sys.stderr,
        )
    return Preparation(height=height, width=width, rectifier=rectifier, calibration=of_pair, rig=rig)


def _matcher(options: LiveViewOptions, calibration: "RigCalibration | None", stack: ExitStack) -> "Matcher":
    """The classical matcher, or a network; a watched one looks after its file as long as the view runs."""
    from live_camera.matcher import BlockMatcher, WatchedMatcher

    asked = options.matcher
    if asked.method == "sgbm":
        native = (calibration.width, calibration.height) if calibration else (_SGBM_WIDTH_PX, _SGBM_HEIGHT_PX)
        width = asked.network_width or min(_SGBM_WIDTH_PX, native[0])
        return BlockMatcher(height=asked.network_height or round(width * native[1] / native[0]), width=width)
    load = _loader(options)
    path = _network_file(options, stack)
    return WatchedMatcher(path, load) if asked.watch_checkpoint else load(path)


def _network_file(options: LiveViewOptions, stack: ExitStack) -> Path:
    asked = options.matcher
    if asked.run_id is None:
        return asked.checkpoint or Path("default")
    from foundation_stereo_depth.tracking import checkpoint_of_run

    weights = asked.weights if asked.weights != "auto" else "last" if asked.watch_checkpoint else "best"
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    path = checkpoint_of_run(asked.mlflow_tracking_uri, asked.run_id, folder, name=f"{weights}.pt", flag="--run-id")
    if asked.watch_checkpoint and folder in path.parents:
        raise UserError(
            f"--watch-checkpoint: the folder in which run {asked.run_id} keeps its checkpoints is not on this machine; "
            "mount it there, or leave --watch-checkpoint out"
        )
    return path


def _loader(options: LiveViewOptions) -> "Callable[[Path], Matcher]":
    """A function that opens a network's file."""
    from foundation_stereo_depth.inference.predictor import Predictor
    from live_camera.matcher import NetworkMatcher

    def one_line(message: Warning | str, *_: object) -> str:
        return f"warning: {message}\n"

    warnings.formatwarning = one_line

    def load(path: Path) -> "Matcher":
        predictor = Predictor.from_checkpoint(
            path,
            device=options.inference.device,
            precision=options.inference.precision,
            backend=options.inference.backend,
            compile=options.inference.compile,
            height=options.matcher.network_height,
            width=options.matcher.network_width,
        )
        step = predictor.facts.header.get("progress", {}).get("step")
        name = predictor.description + (f", step {step}" if step is not None else "")
        return NetworkMatcher(predictor, name=name, height=predictor.height, width=predictor.width)

    return load

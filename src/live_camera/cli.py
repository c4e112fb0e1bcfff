"""The commands of the cameras. Each parses its arguments before it imports what is heavy, so that `--help` is fast.

The only module here that opens networks, inside the functions that need them.
"""

import dataclasses
import logging
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from foundation_stereo_depth.errors import CalibrationError, CameraError, UserError
from foundation_stereo_depth.log import count_of
from foundation_stereo_depth.options import command_line
from foundation_stereo_depth.options.inference import AUTO_SIZES, size_for
from foundation_stereo_depth.threads import use_threads
from live_camera.options import (
    DEFAULT_CALIBRATION,
    DEFAULT_DEMO,
    CalibrateOptions,
    DemoOptions,
    ListCamerasOptions,
    LiveViewOptions,
    MatcherOptions,
    SourceOptions,
)

if TYPE_CHECKING:
    from foundation_stereo_depth.calibration.rig import RigCalibration
    from foundation_stereo_depth.calibration.settings import RigSettings
    from foundation_stereo_depth.data.pairs import Pairs
    from foundation_stereo_depth.options.inference import MethodName
    from foundation_stereo_depth.stereo.match import StereoMatcher
    from live_camera.board import Board
    from live_camera.matcher import Matcher, WatchedMatcher

logger = logging.getLogger(__name__)

_CHECK_PAIRS = 5
"""Collected live for `--check`."""
_SGBM_WIDTH_PX, _SGBM_HEIGHT_PX = 640, 480
_FPS = 30.0
"""Of webcams that are not asked for another rate."""


def demo_command(argv: Sequence[str] | None = None, program: str = "foundation-stereo-demo") -> int:
    """Run `foundation-stereo-demo`; return its exit status."""
    parser = command_line.create_parser(
        program,
        DemoOptions,
        "Match a real pair that is installed with this program, offline; write disparity, uncertainty and depth as "
        "one figure, and open it.",
        examples=(
            "",
            "--no-open -o demo.png",
        ),
    )
    explicit = command_line.parse_explicit(parser, argv)

    def run() -> int:
        options = command_line.build_options(DemoOptions, explicit).file
        if options.output is not None and options.output.exists():
            raise UserError(f"{options.output}: exists; name another file")
        from foundation_stereo_depth.data.demo_pair import read_demo_pair
        from foundation_stereo_depth.files import write_atomically
        from live_camera import demo
        from live_camera.camera import find_cameras

        output = options.output or DEFAULT_DEMO
        pair = read_demo_pair()
        match = _open_demo_matcher(options.method, pair.left.shape[1])(pair.left, pair.right)
        figure = demo.draw_demo(pair, match)
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, lambda file: file.write(figure), durable=False)
        print(f"{output}: left view, disparity, uncertainty, depth")
        print(demo.describe_centre(pair, match))
        if options.open and demo.has_display() and not demo.open_file(output):
            logger.info("no program was found to open %s with", output)
        print(demo.next_steps(find_cameras()))
        return 0

    return command_line.run_command(parser.prog, explicit, run)


def _open_demo_matcher(method: "MethodName", image_width_px: int) -> "StereoMatcher":
    if method == "sgbm":
        from foundation_stereo_depth.stereo import sgbm

        return sgbm.match
    from foundation_stereo_depth.inference.predictor import open_network
    from foundation_stereo_depth.options.inference import size_for

    height, width = size_for("auto", image_width_px)
    predictor = open_network(height=height, width=width, few_pairs=True)
    logger.info("the installed network, %s", predictor.description)
    return predictor


def list_cameras_command(argv: Sequence[str] | None = None, program: str = "foundation-stereo-list-cameras") -> int:
    """Run `foundation-stereo-list-cameras`; return 0 where there are cameras, 1 where there are none."""
    parser = command_line.create_parser(
        program,
        ListCamerasOptions,
        "List the cameras of this machine: index, name, stable path, backend, and the frame sizes that they support.",
        examples=(
            "",
            "--preview",
        ),
    )
    explicit = command_line.parse_explicit(parser, argv)

    def run() -> int:
        options = command_line.build_options(ListCamerasOptions, explicit).listing
        from foundation_stereo_depth.data.codecs import write_rgb
        from live_camera.camera import find_cameras, probe_sizes, read_previews

        cameras = find_cameras()
        if not cameras:
            logger.error(
                "no camera found; is one connected, do you have the permission to read it (on Linux: group video), "
                "and does no other program or virtual machine use it?"
            )
            return 1
        for camera in cameras:
            print(f"{camera.index}  {camera.name}  {camera.path}  {camera.backend}")
            if options.probe:
                sizes = [f"{size.width}x{size.height} at {size.fps:g} fps" for size in probe_sizes(camera.index)]
                print(f"   {', '.join(sizes) or 'does not open; another program may be using it'}")
        if options.preview:
            for camera, frame in read_previews(cameras):
                path = Path(f"camera_{camera.index}.png")
                if frame is None:
                    logger.warning("%s: not saved, camera %d gives no frame", path, camera.index)
                else:
                    write_rgb(path, frame)
                    print(path)
        return 0

    return command_line.run_command(parser.prog, explicit, run)


def calibrate_command(argv: Sequence[str] | None = None, program: str = "foundation-stereo-calibrate") -> int:
    """Run `foundation-stereo-calibrate`; return its exit status."""
    parser = command_line.create_parser(
        program,
        CalibrateOptions,
        "Calibrate two cameras by a chessboard or a ChArUco board, from images or live, and report the accuracy.",
        examples=(
            "--left 0 --right 2 --corners 9x6 --square-mm 25",
            "--images 'left*.jpg' 'right*.jpg' --corners 9x6 --square-mm 25",
            "--print-board board.pdf",
        ),
    )
    explicit = command_line.parse_explicit(parser, argv)

    def run() -> int:
        options = command_line.build_options(CalibrateOptions, explicit)
        if options.printing.print_board is not None:
            return _print_board(options, options.printing.print_board)
        _check_calibrate_options(options)
        from foundation_stereo_depth.calibration.rig import implausible_baseline
        from live_camera.board import Board
        from live_camera.camera_settings import read_settings_beside
        from live_camera.collect import detect_pairs
        from live_camera.report import write_results
        from live_camera.solve import calibrate
        from live_camera.sources import arrange_views

        if options.views.check is not None:
            return _check_calibration(options, options.views.check)
        output, board = options.result.output, Board(options.board)
        images = _find_board_images(options)
        if images is None:
            images = _collect_live(options, board)  # as they were arranged
            found = detect_pairs(images, board)
        else:
            found = detect_pairs(images, board, lambda left, right: arrange_views(left, right, options.source))
        if found.size is None or found.example is None:
            named = images.left if images.right is None else f"{images.left} and {images.right}"
            raise CalibrationError(
                f"no {options.board.pattern} of {options.board.corners} inner corners was found in both views of any "
                f"of {len(found.rejected)} pairs of {named}; are --pattern and --corners right (inner "
                "corners, one less than squares each way), and is the whole board visible?"
            )
        result = calibrate(found.pairs, board, *found.size)
        result.rejected.update(found.rejected)
        first = next((files[0] for files in images.files.values()), None)
        if first is not None and (settings := read_settings_beside(first)) is not None:
            rig = dataclasses.replace(result.calibration, settings=settings)
            result = dataclasses.replace(result, calibration=rig)
        if odd := implausible_baseline(result.calibration):
            logger.warning("%s: is --square-mm the side of one square, measured on the board?", odd)
        print(write_results(result, found.pairs, found.example, options.board, output))
        print(f"\n{output}")
        logger.info("%s written, with a report and two images beside it", output)
        return 0

    return command_line.run_command(parser.prog, explicit, run)


def _print_board(options: CalibrateOptions, path: Path) -> int:
    """Write the board as a page to print."""
    if path.exists() and not options.result.overwrite:
        raise UserError(f"{path}: exists already; give --overwrite, or another name")
    from foundation_stereo_depth.files import write_atomically
    from live_camera.print_board import calibrate_flags, draw_board, encode_page

    paper = options.printing.paper
    page = draw_board(options.board, paper)
    encoded = encode_page(page, path.suffix.lower())
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(encoded), durable=False)
    print(path)
    logger.info(
        "print it on %s at 100 %% (actual size), glue it onto something flat, and measure the line of 100 mm; then: "
        "foundation-stereo calibrate --left 0 --right 2 %s",
        "A4" if paper == "a4" else "Letter", calibrate_flags(page.board),
    )  # fmt: skip
    return 0


def _check_calibrate_options(options: CalibrateOptions) -> None:
    if options.views.images is None and not options.source.given:
        raise UserError(
            "needs --left and --right (or --side-by-side), the cameras, or --images, images of the board: "
            "'left*.jpg' 'right*.jpg'; --print-board board.pdf makes a board to print"
        )
    if options.views.images is not None and (options.source.given or options.source != SourceOptions()):
        raise UserError("--images takes images as they are; leave out --left, --right and other options of the source")
    if options.views.check is None and options.result.output.exists() and not options.result.overwrite:
        raise UserError(f"{options.result.output}: exists already; give --overwrite, or another --output")


def _check_calibration(options: CalibrateOptions, path: Path) -> int:
    """Print how well a calibration measures the board, in existing images or in pairs that are collected now."""
    from foundation_stereo_depth.calibration.files import read_calibration
    from live_camera.board import Board
    from live_camera.check_board import check_board, format_checks
    from live_camera.collect import detect_pairs
    from live_camera.sources import arrange_views

    rig, board = read_calibration(path), Board(options.board)
    images = _find_board_images(options)
    if images is not None:
        found = detect_pairs(images, board, lambda left, right: arrange_views(left, right, options.source))
    else:
        with tempfile.TemporaryDirectory() as folder:
            live = dataclasses.replace(options.result, output=Path(folder, "check.npz"))
            views = dataclasses.replace(options.views, views=min(options.views.views, _CHECK_PAIRS))
            collecting = dataclasses.replace(options, result=live, views=views)
            found = detect_pairs(_collect_live(collecting, board, rig.settings), board)
    if found.size is None or not found.pairs:
        raise CalibrationError(f"the board was not found in both views of any of {len(found.rejected)} pairs")
    if found.size != (rig.height, rig.width):
        raise CalibrationError(
            f"the images are {found.size[1]}x{found.size[0]}, {path} was made at {rig.width}x{rig.height}; "
            "--check needs images of that size"
        )
    print(format_checks([check_board(rig, pair, board) for pair in found.pairs]))
    return 0


def _find_board_images(options: CalibrateOptions) -> "Pairs | None":
    """Return the images that exist already, whichever option names them; None where cameras or videos are named.

    Image files are views of the board, each of them, and not frames of a recording in which it has to be still.
    """
    from foundation_stereo_depth.data.pairs import find_pairs
    from live_camera.rig import find_images

    if options.views.images is None:
        return find_images(options.source)
    left, *right = options.views.images
    return find_pairs(left, *(right or [None]))


def _collect_live(options: CalibrateOptions, board: "Board", calibrated: "RigSettings | None" = None) -> "Pairs":
    """Collect pairs beside the output, with the settings of the cameras; return them.

    Args:
        options: of the command.
        board: the board that is held before the cameras.
        calibrated: settings of the cameras that a calibration to check was made with.
    """
    from foundation_stereo_depth.data.pairs import find_pairs
    from live_camera.camera_settings import write_settings
    from live_camera.collect import collect_pairs
    from live_camera.rig import open_rig
    from live_camera.view import ImageWindow

    folder = options.result.output.with_suffix("")
    if any(folder.glob("*.png")):
        raise UserError(
            f"{folder}: contains pairs collected before; calibrate from them by --images '{folder}/left_*.png' "
            f"'{folder}/right_*.png', or move them, or give another --output"
        )
    with ExitStack() as stack:
        window = None if options.views.headless else stack.enter_context(ImageWindow("Calibration"))
        rig = stack.enter_context(open_rig(options.source, options.camera, calibrated=calibrated))
        if rig.settings is not None:
            folder.mkdir(parents=True, exist_ok=True)
            write_settings(folder, rig.settings)
        collected = collect_pairs(
            rig, board, folder, options.views.views, window, screen=None if window is None else window.screen
        )
    logger.info("%s: %s collected", folder, count_of(collected, "pair"))
    if collected == 0:
        raise UserError(
            "no pair was collected; the text under the images, and beside the progress bar, states what was missing"
        )
    return find_pairs(f"{folder}/left_*.png", f"{folder}/right_*.png")


def live_view_command(argv: Sequence[str] | None = None, program: str = "foundation-stereo-live-view") -> int:
    """Run `foundation-stereo-live-view`; return its exit status."""
    parser = command_line.create_parser(
        program,
        LiveViewOptions,
        "Show metric depth from two cameras, with the network's confidence. The key h lists the keys.",
        examples=(
            "--left 0 --right 2",
            "--left 0 --right 2 --run-id latest --watch-checkpoint",
            "--side-by-side 0 --method sgbm",
            "--left left.mp4 --right right.mp4 --headless --record raw.mkv",
        ),
    )
    explicit = command_line.parse_explicit(parser, argv)

    def run() -> int:
        options = command_line.build_options(LiveViewOptions, explicit)
        options.source.check_given()
        if options.show.cpu_threads is not None:
            use_threads(options.show.cpu_threads)  # before what computes is imported
        from foundation_stereo_depth.data.rectify import create_rectifier, warn_of_near_limit
        from live_camera.recording import check_recordable, unused_path
        from live_camera.rig import open_rig
        from live_camera.session import live_view
        from live_camera.view import RerunView, check_display

        if options.show.record is not None:
            check_recordable(options.show.record)
        if not options.show.headless:
            check_display()
        calibration = _read_calibration(options)
        camera = options.camera
        if calibration is not None and camera.camera_width is None:
            camera = dataclasses.replace(camera, camera_width=calibration.width, camera_height=calibration.height)
        with tempfile.TemporaryDirectory() as downloads:
            matcher = _create_matcher(options, calibration, Path(downloads))
            size = {"height": matcher.height, "width": matcher.width}
            rectify = create_rectifier(calibration, **size, rectify=options.rig.rectify)
            warn_of_near_limit(rectify.stereo_calibration)
            extra_view = (
                RerunView(options.show, unused_path(options.show.save_dir, ".rrd")) if options.show.rerun else None
            )
            known = calibration.settings if calibration is not None else None
            rig = open_rig(options.source, camera, realtime=not options.show.headless, calibrated=known)
            depth = "depth in metres" if calibration is not None else "no calibration, so disparity only"
            logger.info("%s; %s", matcher.description, depth)
            stats = live_view(rig, rectify, matcher, options.show, extra_view=extra_view)
        logger.info("%s shown; %s", count_of(stats.pairs, "pair"), stats.summary(rig))
        for path in stats.written:
            print(path)
        if stats.pairs == 0:
            raise CameraError("not one pair was shown")
        if stats.incomplete_recordings:
            raise UserError("a recording is incomplete; the warning above states the reason")
        return 0

    return command_line.run_command(parser.prog, explicit, run, finishes_files=True)


def _read_calibration(options: LiveViewOptions) -> "RigCalibration | None":
    from foundation_stereo_depth.calibration.files import find_calibration_beside, read_calibration_of

    path = options.rig.calibration
    if path is None and (path := find_calibration_beside(options.source.side_by_side or options.source.left or "")):
        logger.info("%s: the calibration that was kept with the recording", path)
    if path is None:
        path = DEFAULT_CALIBRATION if DEFAULT_CALIBRATION.is_file() else None
    return read_calibration_of(dataclasses.replace(options.rig, calibration=path))


def _create_matcher(
    options: LiveViewOptions, calibration: "RigCalibration | None", downloads: Path
) -> "Matcher | WatchedMatcher":
    """Return the classical matcher, or a network; `downloads` is a folder for the checkpoint of a run."""
    from live_camera.matcher import WatchedMatcher, sgbm_matcher

    source = options.matcher
    if source.method == "sgbm":
        native = (calibration.width, calibration.height) if calibration else (_SGBM_WIDTH_PX, _SGBM_HEIGHT_PX)
        asked_height, asked_width = source.fixed_size
        width = asked_width or min(_SGBM_WIDTH_PX, native[0])
        return sgbm_matcher(height=asked_height or round(width * native[1] / native[0]), width=width)
    from foundation_stereo_depth.inference.predictor import find_network_file

    if source.watch_checkpoint and source.weights == "auto" and source.run_id is not None:
        source = dataclasses.replace(source, weights="last")
    path = find_newest_network(source, downloads) if source.unnamed else find_network_file(source, downloads)
    if source.size == "auto":
        options = _with_size_that_keeps_up(path, options, calibration)
    if not source.watch_checkpoint:
        return load_network(path, options)
    if downloads in path.parents:
        raise UserError(
            f"--watch-checkpoint: the checkpoint folder of run {source.run_id} is not on this machine; mount it at the "
            "same path, or leave --watch-checkpoint out"
        )
    return WatchedMatcher(path, lambda path: load_network(path, options))


def _with_size_that_keeps_up(
    path: Path, options: LiveViewOptions, calibration: "RigCalibration | None"
) -> LiveViewOptions:
    """Return the options with the largest size that the images use and at which the network keeps up with the cameras.

    Where neither a calibration nor a flag states the width of the images, it is taken to be that of a webcam.
    """
    from live_camera.matcher import choose_size

    known_px = options.camera.camera_width if calibration is None else calibration.width
    largest = size_for("auto", known_px or AUTO_SIZES[0][0])
    sizes = [(height, width) for width, height in AUTO_SIZES if (height, width) <= largest]

    def with_size(height: int, width: int) -> LiveViewOptions:
        return dataclasses.replace(options, matcher=dataclasses.replace(options.matcher, size=f"{width}x{height}"))

    (height, width), reason = choose_size(
        lambda height, width: load_network(path, with_size(height, width)).match, sizes, options.camera.fps or _FPS
    )
    logger.info("--size auto: %dx%d (%s)", width, height, reason)
    return with_size(height, width)


def find_newest_network(source: MatcherOptions, downloads: Path) -> Path:
    """Return the best checkpoint of the newest run that is kept here, or else the installed network; log which."""
    from foundation_stereo_depth.inference.predictor import find_network_file

    installed = find_network_file(source, downloads)
    if not Path("mlflow.db").is_file():
        logger.info("no network is named, and no run is kept here: the installed one")
        return installed
    try:
        newest = find_network_file(dataclasses.replace(source, run_id="latest"), downloads)
    except UserError as error:
        logger.info("no network is named: the installed one, since the newest run has none (%s)", error)
        return installed
    logger.info("no network is named: %s of the newest run; --checkpoint default is the installed one", newest)
    return newest


def load_network(path: Path, options: LiveViewOptions) -> "Matcher":
    """Return the network of a file, at the size and with the backend that the options name."""
    from foundation_stereo_depth.inference.predictor import open_network
    from live_camera.matcher import Matcher

    height, width = options.matcher.fixed_size
    scale = options.matcher.disparity_scale
    # Frames of the network's size are not enlarged: four times as many a second count for more.
    predictor = open_network(path, options.inference, height=height, width=width, disparity_scale=scale, enlarge=False)
    step = predictor.facts.header.get("progress", {}).get("step")
    description = predictor.description + (f", step {step}" if step is not None else "")
    if not predictor.facts.predicts_uncertainty:
        description += ", no uncertainty"
    return Matcher(match=predictor, description=description, height=predictor.height, width=predictor.width)

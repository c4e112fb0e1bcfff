"""From pictures of a board to files: the calibration, its report, and pictures to look at."""

from pathlib import Path

from tqdm import tqdm

from foundation_stereo_depth.calibration.files import save_calibration
from foundation_stereo_depth.data.codecs import write_rgb
from foundation_stereo_depth.data.pairs import find_pairs
from foundation_stereo_depth.errors import CalibrationError, UserError
from foundation_stereo_depth.files import write_atomically
from live_camera.board import Board
from live_camera.options import CalibrateOptions
from live_camera.report import Picture, coverage_picture, rectified_picture, report
from live_camera.solve import BoardPair, CalibrationResult, calibrate, pair_views


def calibrate_pictures(left: str, right: str, options: CalibrateOptions) -> CalibrationResult:
    """Calibrates from pictures, and writes and prints what came out.

    Args:
        left: folder or glob of the left eye's pictures of the board.
        right: the same for the right eye.
        options: all options.

    Raises:
        UserError: there are no such pictures, they do not calibrate a rig, or the output is there already.
    """
    check_free(options)
    board = Board(options.board)
    found = find_pairs(left, right)
    pairs: list[BoardPair] = []
    unseen: dict[str, str] = {}
    size: tuple[int, int] | None = None
    shown: tuple[Picture, Picture] | None = None
    for pair in tqdm(
        found, total=found.count, unit="pair", desc="looking for the board", dynamic_ncols=True, leave=False
    ):
        height, width = pair.left.shape[:2]
        size = size or (height, width)
        if (height, width) != size:
            raise CalibrationError(
                f"pair {pair.name} is {width}x{height}, the first is {size[1]}x{size[0]}; calibrate one size at a time"
            )
        views = board.find(pair.left), board.find(pair.right)
        seen = pair_views(board, pair.name, *views)
        if seen is None:
            blind = [eye for eye, view in zip(("left", "right"), views, strict=True) if view is None]
            unseen[pair.name] = (
                f"the board was not found in the {' and the '.join(blind)} eye"
                if blind
                else "the eyes see too few corners in common"
            )
            continue
        pairs.append(seen)
        shown = shown or (pair.left, pair.right)
    if size is None or shown is None:
        raise CalibrationError(
            f"a {options.board.pattern} of {options.board.corners} inner corners was found by both eyes in none of "
            f"{len(unseen)} pairs of {left} and {right}; are --pattern and --corners right (inner corners, one less "
            "than squares each way), and is the whole board in sight?"
        )
    result = calibrate(pairs, board, *size)
    result.left_out.update(unseen)
    _write(result, pairs, shown, board, options)
    return result


def check_free(options: CalibrateOptions) -> None:
    """Lets pass an output that is not there yet.

    Raises:
        UserError: it is, and `--overwrite` is off.
    """
    if options.result.output.exists() and not options.result.overwrite:
        raise UserError(
            f"{options.result.output}: is there already; --overwrite replaces it, another --output leaves it"
        )


def beside(output: Path, what: str) -> Path:
    """The file that lies beside a calibration: `stereo_calib.npz` -> `stereo_calib_<what>`."""
    return output.with_name(f"{output.stem}_{what}")


def _write(
    result: CalibrationResult,
    pairs: list[BoardPair],
    shown: tuple[Picture, Picture],
    board: Board,
    options: CalibrateOptions,
) -> None:
    output, rig = options.result.output, result.calibration
    output.parent.mkdir(parents=True, exist_ok=True)
    rows_px = result.row_errors_px
    figures: dict[str, float | int | str] = {
        "pattern": options.board.pattern,
        "rows": board.rows,
        "cols": board.columns,
        "square_size": (options.board.square_mm or 0) / 1000,
        "pairs": len(result.used),
        "stereo_rms": result.stereo_rms_px,
        "mono_rms_l": result.left_rms_px,
        "mono_rms_r": result.right_rms_px,
        "row_error_mean": float(rows_px.mean()),
        "row_error_max": float(rows_px.max()),
    }
    save_calibration(output, rig, figures)
    used = [pair for pair in pairs if pair.name not in result.left_out]
    views = [pair.left for pair in used], [pair.right for pair in used]
    write_rgb(beside(output, "coverage.png"), coverage_picture(*views, rig.height, rig.width))
    write_rgb(beside(output, "rectified.png"), rectified_picture(rig, *shown))
    text = report(
        result, f"{options.board.pattern} of {options.board.corners} inner corners, {options.board.square_mm} mm"
    )
    write_atomically(beside(output, "report.txt"), lambda file: file.write(f"{text}\n".encode()), durable=False)
    print(text)
    print(f"\n{output}: written, and beside it _report.txt, _coverage.png and _rectified.png")

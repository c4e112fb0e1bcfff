"""The commands of the cameras. Each parses first and imports what is heavy afterwards: `--help` answers at once."""

from collections.abc import Sequence

from foundation_stereo_depth import arguments
from foundation_stereo_depth.errors import UserError, answer
from live_camera.calibrate_options import CalibrateOptions


def calibrate_command(argv: Sequence[str] | None = None) -> int:
    """`foundation-stereo-calibrate`: the exit status of calibrating a rig."""
    parser = arguments.parser_for(
        "foundation-stereo-calibrate",
        CalibrateOptions,
        "Calibrate two cameras from pictures of a chessboard or a ChArUco board, and say how far to trust the result.",
    )
    explicit = arguments.parse_explicit(parser, argv)

    def run() -> int:
        options = arguments.build(CalibrateOptions, explicit)
        if options.views.images is None:
            raise UserError("needs --images, pictures of the board: 'left*.jpg' 'right*.jpg'")
        from live_camera.calibrate_files import calibrate_pictures

        calibrate_pictures(*options.views.images, options)
        return 0

    return answer(parser.prog, run)

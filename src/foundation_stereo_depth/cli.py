"""The commands. Each parses first and imports what is heavy afterwards, so that `--help` answers at once."""

import sys
from collections.abc import Callable, Sequence

from foundation_stereo_depth import arguments
from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.options import CacheOptions, EvaluateOptions, TrainOptions


def train_command(argv: Sequence[str] | None = None) -> int:
    """`foundation-stereo-depth`: the exit status of a training run."""
    parser = arguments.parser_for(
        "foundation-stereo-depth",
        TrainOptions,
        "Train a stereo-disparity network with per-pixel uncertainty, on FoundationStereo data or on made-up scenes. "
        "`uv run mlflow ui` shows the runs.",
    )
    explicit = arguments.parse_explicit(parser, argv)

    def run() -> int:
        arguments.build(TrainOptions, explicit)  # a mistake is told before anything heavy is imported
        from torch import OutOfMemoryError

        from foundation_stereo_depth.record import Stopped
        from foundation_stereo_depth.train import resolve, train

        options, resumed = resolve(explicit)
        try:
            train(options, resumed)
        except Stopped as stopped:
            print(stopped, file=sys.stderr)
            return stopped.exit_status
        except OutOfMemoryError as error:
            raise UserError(
                f"the device ran out of memory with --batch-size {options.optimizer.batch_size} and --base-channels "
                f"{options.model.base_channels} at {options.data.width}x{options.data.height}; lower one of them"
            ) from error
        return 0

    return _answer(parser.prog, run)


def cache_command(argv: Sequence[str] | None = None) -> int:
    """`foundation-stereo-cache`: the exit status of filling a cache."""
    parser = arguments.parser_for(
        "foundation-stereo-cache",
        CacheOptions,
        "Fill a cache of NPZ files from a FoundationStereo folder; what is there already is kept, so an interrupted "
        "build goes on where it was.",
    )
    explicit = arguments.parse_explicit(parser, argv)

    def run() -> int:
        options = arguments.build(CacheOptions, explicit).cache
        from foundation_stereo_depth.data.build_cache import build_cache

        build_cache(options)
        return 0

    return _answer(parser.prog, run)


def evaluate_command(argv: Sequence[str] | None = None) -> int:
    """`foundation-stereo-evaluate`: the exit status of an evaluation."""
    parser = arguments.parser_for(
        "foundation-stereo-evaluate",
        EvaluateOptions,
        "Measure a network, a classical matcher, or both on a benchmark: accuracy, honesty of the uncertainty, "
        "latency. Errors are in px of the size that is scored at.",
    )
    explicit = arguments.parse_explicit(parser, argv)

    def run() -> int:
        options = arguments.build(EvaluateOptions, explicit).evaluation
        from foundation_stereo_depth.benchmark import benchmark

        print(benchmark(options))
        return 0

    return _answer(parser.prog, run)


def _answer(command: str, run: Callable[[], int]) -> int:
    """Runs a command; a mistake that the user can mend becomes one line, everything else keeps its traceback."""
    try:
        return run()
    except UserError as error:
        return _say(command, str(error), 2)
    except KeyboardInterrupt:
        return _say(command, "interrupted", 130)
    except OSError as error:
        if error.filename is None:
            raise
        # The machine refuses a path: full, read-only, forbidden.
        return _say(command, f"{error.filename}: {error.strerror}", 2)


def _say(command: str, message: str, status: int) -> int:
    print(f"{command}: {' '.join(message.split())}", file=sys.stderr)
    return status

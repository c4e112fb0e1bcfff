"""The commands. Each parses first and imports heavy packages afterwards, so that `--help` is fast."""

import logging
from collections.abc import Sequence

from foundation_stereo_depth import log
from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.options import command_line
from foundation_stereo_depth.options.datasets import check_folders
from foundation_stereo_depth.options.inference import EvaluateOptions, ExportOptions, PredictOptions, check_network_file
from foundation_stereo_depth.options.training import CacheOptions, TrainOptions

logger = logging.getLogger(__name__)


def train_command(argv: Sequence[str] | None = None, program: str = "foundation-stereo-depth") -> int:
    """Run `foundation-stereo-depth`; return its exit status."""
    parser = command_line.create_parser(
        program,
        TrainOptions,
        "Train a stereo-disparity network with per-pixel uncertainty, on a stereo data set or on synthetic scenes. "
        "`uv run mlflow ui` shows the runs.",
        examples=(
            "",
            "--dataset-root /data/FSD --model guided --cache-root /ssd/cache",
            "--resume latest",
        ),
    )
    explicit = command_line.parse_explicit(parser, argv)

    def run() -> int:
        requested = command_line.build_options(TrainOptions, explicit)  # reports a mistake before heavy imports
        if requested.tracking.resume is None:
            check_folders(requested.data.dataset_root, requested.data.dataset)
            check_network_file(requested.optimizer.initial_weights)
        from torch import OutOfMemoryError

        from foundation_stereo_depth.device import is_lost_process
        from foundation_stereo_depth.training.run import Stopped
        from foundation_stereo_depth.training.setup import resolve
        from foundation_stereo_depth.training.train import train

        options, resumed = resolve(explicit)
        try:
            folder = train(options, resumed)
        except Stopped as stopped:
            logger.info(stopped)
            return stopped.exit_status
        except OutOfMemoryError as error:
            raise UserError(
                f"the device ran out of memory with --batch-size {options.optimizer.batch_size} and --base-channels "
                f"{options.model.base_channels} at {options.data.width}x{options.data.height}; lower one of them"
            ) from error
        except RuntimeError as error:
            if not is_lost_process(error):
                raise
            raise UserError(
                f"another process of this training was lost ({str(error)[:200]}); restarted by torchrun "
                "--max-restarts, or by hand with --resume, the run continues from its last.pt"
            ) from error
        if log.is_first_process():
            last, best = folder / "last.pt", folder / "best.pt"
            print(f"weights: {best} (lowest validation EPE) and {last}" if best.exists() else f"weights: {last}")
        return 0

    return command_line.run_command(parser.prog, explicit, run)


def cache_command(argv: Sequence[str] | None = None, program: str = "foundation-stereo-cache") -> int:
    """Run `foundation-stereo-cache`; return its exit status, which is 1 where `--verify` finds damaged entries."""
    parser = command_line.create_parser(
        program,
        CacheOptions,
        "Fill a cache of NPZ files from a stereo data set or with synthetic scenes. Valid entries are kept, so an "
        "interrupted build resumes where it was; those that are damaged, or whose files have changed, are rebuilt.",
        examples=(
            "--dataset-root /data/FSD --cache-root /ssd/cache",
            "--verify --cache-root /ssd/cache",
        ),
    )
    explicit = command_line.parse_explicit(parser, argv)

    def run() -> int:
        options = command_line.build_options(CacheOptions, explicit).cache
        from foundation_stereo_depth.data.build_cache import build_cache, verify_cache

        if not options.verify:
            build_cache(options)
            return 0
        report = verify_cache(options)
        return 1 if report.counts["damaged"] or report.counts["changed"] else 0

    return command_line.run_command(parser.prog, explicit, run)


def evaluate_command(argv: Sequence[str] | None = None, program: str = "foundation-stereo-evaluate") -> int:
    """Run `foundation-stereo-evaluate`; return its exit status."""
    parser = command_line.create_parser(
        program,
        EvaluateOptions,
        "Evaluate a network, a classical matcher, or both on a stereo benchmark: accuracy, calibration of the "
        "uncertainty, latency. Errors are in px of the size that is scored at.",
        examples=(
            "--run-id latest --baseline sgbm --dataset-root /data/FSD --split validation",
            "--dataset middlebury2014 --dataset-root /data/middlebury --at-native-size",
            "--method sgbm --dataset-root /data/FSD --json",
        ),
    )
    explicit = command_line.parse_explicit(parser, argv)

    def run() -> int:
        options = command_line.build_options(EvaluateOptions, explicit)
        if options.network.checkpoint != "none":
            check_network_file(options.network.checkpoint)
        if not options.evaluation.download:
            check_folders(options.evaluation.dataset_root, options.evaluation.dataset)
        from foundation_stereo_depth.inference.evaluate import evaluate

        print(evaluate(options))
        return 0

    return command_line.run_command(parser.prog, explicit, run)


def predict_command(argv: Sequence[str] | None = None, program: str = "foundation-stereo-predict") -> int:
    """Run `foundation-stereo-predict`; return its exit status."""
    parser = command_line.create_parser(
        program,
        PredictOptions,
        "Predict disparity, depth and their uncertainty for rectified stereo pairs: images or videos of any size, 8 or "
        "16 bit, grey or colour.",
        inputs={
            "left": "image, folder, video, or glob in quotes, of the left view; without RIGHT, of both side by side",
            "right": "the same for the right view",
        },
        examples=(
            "left.png right.png",
            "'left/*.png' 'right/*.png' --calibration stereo_calib.npz -o out",
            "left.mp4 right.mp4 --write video,depth --focal-px 451 --baseline-m 0.075",
            "both.mp4 --method sgbm --write video",
        ),
    )
    explicit = command_line.parse_explicit(parser, argv)

    def run() -> int:
        options = command_line.build_options(PredictOptions, explicit)
        from foundation_stereo_depth.inference.predict import predict_files

        predict_files(explicit["left"], explicit.get("right"), options)
        return 0

    return command_line.run_command(parser.prog, explicit, run)


def export_command(argv: Sequence[str] | None = None, program: str = "foundation-stereo-export") -> int:
    """Run `foundation-stereo-export`; return its exit status."""
    parser = command_line.create_parser(
        program,
        ExportOptions,
        "Export a trained network to ONNX, verified against PyTorch, or to safetensors. ONNX needs "
        "`uv sync --extra onnx`.",
        examples=(
            "",
            "--checkpoint best.pt -o best.onnx",
            "--run-id latest -o best.safetensors",
        ),
    )
    explicit = command_line.parse_explicit(parser, argv)

    def run() -> int:
        options = command_line.build_options(ExportOptions, explicit)
        check_network_file(options.network.checkpoint)
        from foundation_stereo_depth.inference.export import export_network

        export_network(options)
        return 0

    return command_line.run_command(parser.prog, explicit, run)

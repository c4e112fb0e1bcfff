"""The results of a run: checkpoints and preview figures in its folder, and its record in MLflow."""

import dataclasses
import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from foundation_stereo_depth.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from foundation_stereo_depth.data.batch import StereoBatch
from foundation_stereo_depth.data.dataset import find_dataset_root
from foundation_stereo_depth.device import Processes
from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.files import LockedError, exclusive_lock, remove_abandoned, write_atomically
from foundation_stereo_depth.log import count_of
from foundation_stereo_depth.model import StereoPrediction
from foundation_stereo_depth.options import command_line
from foundation_stereo_depth.options.datasets import parse_dataset_sources
from foundation_stereo_depth.options.training import TrainOptions
from foundation_stereo_depth.tracking import CHECKPOINT_FOLDER_TAG, Tracker, folder_of_run
from foundation_stereo_depth.training.preview import draw_preview
from foundation_stereo_depth.training.restart import RunMarker
from foundation_stereo_depth.training.state import Metrics, TrainingState

logger = logging.getLogger(__name__)

SIGMA_SCALE = "validation/sigma_scale"
"""The factor on the predicted deviation that makes its 68 % interval contain 68 % of the validation pixels."""
_PREVIEWS = "previews"
_EPOCH_IMAGES, _STEP_IMAGES = "validation", "validation_steps"
_EPOCH_METRIC = "train/loss"  # every epoch has it, so it shows which epochs MLflow has


class Record:
    """Writes the results of one run, in the first process alone: in the others every method does nothing.

    A context: leaving it by an exception marks the run FAILED in MLflow.

    Args:
        options: all options.
        run_id: the MLflow run that continues; None starts a new one.
        processes: all of them have to make a record at the same time.

    Attributes:
        run_id: of the MLflow run.
        folder: contains last.pt and best.pt.

    Raises:
        UserError: the folder holds another run, or another process trains into it, or the tracking store cannot be
            reached.
    """

    def __init__(self, options: TrainOptions, run_id: str | None, processes: Processes) -> None:
        self._options = options
        self._saved_at_s = self._validated_at_s = time.monotonic()
        self._marker = RunMarker(options)
        with ExitStack() as lock:
            self._tracker = _open_tracker(options, run_id, lock) if processes.is_first else None
            self.run_id = processes.all_gather("" if self._tracker is None else self._tracker.run_id)[0]
            self.folder = options.tracking.output_dir or folder_of_run(self.run_id)
            if self._tracker is not None:
                if options.tracking.output_dir is None and self.run_id != run_id:
                    _lock_folder(self.folder, lock)  # which only the new id names
                self._marker.write(self.run_id)
                self._previews.mkdir(parents=True, exist_ok=True)
                for folder in (self.folder, self._previews):
                    remove_abandoned(folder)  # checkpoints are large
            self._lock = lock.pop_all()

    def __enter__(self) -> "Record":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._tracker is None:
            return
        stopped = isinstance(error, Stopped | KeyboardInterrupt)
        with self._lock:
            if error is None:
                self._marker.remove()
            self._tracker.finish("FINISHED" if error is None else "KILLED" if stopped else "FAILED")
            self._log_address()

    def start(self, facts: Mapping[str, object], state: TrainingState) -> None:
        """Send the parameters of the run, and everything that MLflow lacks of what was done before a resume."""
        if self._tracker is None:
            return
        plain = command_line.options_to_dict(self._options)
        if not self._tracker.has_parameters:  # a new run, or one whose store was lost as it began
            options = {name: value for group in plain.values() for name, value in group.items() if name != "resume"}
            self._tracker.log_parameters(options | dict(facts))
            counts = {name: facts[name] for name in ("train_samples", "validation_samples", "split_by")}
            self._tracker.log_dataset(
                _dataset_name(self._options),
                source=str(facts["dataset"]),
                fingerprint=str(facts.get("dataset_fingerprint", "synthetic")),
                counts=counts,
            )
        self._tracker.set_tags({CHECKPOINT_FOLDER_TAG: self.folder.resolve()})
        self._log_address()
        if not (state.history or state.validations):
            return
        self._log_best(state)
        self._tracker.log_missing_epochs(_EPOCH_METRIC, [_charted(metrics) for metrics in state.history])
        for validation in state.validations:
            self._tracker.log_samples(validation.samples, _by_samples(validation.metrics))
        # Files go to a store of their own, which may lack other epochs.
        figures = [(self._preview_path(epoch), _EPOCH_IMAGES, epoch) for epoch in range(1, len(state.history) + 1)]
        for validation in state.validations:
            path = self._preview_of_samples(validation.samples)
            figures.append((path, _STEP_IMAGES, validation.samples))
        self._tracker.send_missing_files([path for path, _, _ in figures if path.exists()], _PREVIEWS)
        self._tracker.log_missing_figures(figures)
        self._send_checkpoints(["best.pt", "last.pt"])

    def log_steps(self, samples: int, figures: Metrics) -> None:
        """Send the means over the last steps to MLflow; the step there is the number of samples seen so far."""
        if self._tracker is not None:
            self._tracker.log_samples(samples, {f"train_steps/{name}": value for name, value in figures.items()})

    def is_due(self) -> bool:
        """Return True if last.pt is older than --checkpoint-minutes."""
        return time.monotonic() - self._saved_at_s > 60 * self._options.tracking.checkpoint_minutes

    def is_validation_due(self) -> bool:
        """Return True, in the first process, if --validate-every-minutes have passed since the last validation."""
        minutes = self._options.tracking.validate_every_minutes
        return self._tracker is not None and 0 < 60 * minutes < time.monotonic() - self._validated_at_s

    def save(self, state: TrainingState, name: str = "last.pt") -> None:
        """Write a checkpoint of the present state."""
        if self._tracker is None:
            return
        metrics = state.newest_metrics
        save_checkpoint(
            self.folder / name,
            Checkpoint(
                model=dataclasses.asdict(self._options.model),
                weights=state.evaluated.state_dict(),
                uncertainty={"distribution": self._options.loss.loss, "scale": metrics.get(SIGMA_SCALE, 1.0)},
                metrics=metrics,
                run_id=self.run_id,
                progress=state.progress,
                options=command_line.options_to_dict(self._options),
                training=state.to_plain(),
            ),
        )
        self._saved_at_s = time.monotonic()

    def finish_epoch(
        self, state: TrainingState, is_best: bool, examples: Sequence[tuple[StereoBatch, StereoPrediction]]
    ) -> None:
        """Save the finished epoch, then send it to MLflow: what is on disk cannot be lost by a server."""
        if self._tracker is None:
            return
        metrics, epoch = state.history[-1], len(state.history)
        preview = self._preview_path(epoch)
        self._save_validation(state, is_best, examples, preview, f"validation after epoch {epoch}")
        self._tracker.log_epoch(epoch, _charted(metrics))
        if state.validations:
            self._tracker.log_samples(state.progress.samples, _by_samples(state.validations[-1].metrics))
        self._send_validation(state, is_best, (preview, _EPOCH_IMAGES, epoch))

    def finish_validation(
        self, state: TrainingState, is_best: bool, examples: Sequence[tuple[StereoBatch, StereoPrediction]]
    ) -> None:
        """Save the state after a validation within an epoch, then send the figures of that to MLflow."""
        if self._tracker is None:
            return
        newest = state.validations[-1]
        preview = self._preview_of_samples(newest.samples)
        title = f"validation after {newest.epoch:.2f} epochs, {newest.samples:,} samples"
        self._save_validation(state, is_best, examples, preview, title)
        self._tracker.log_samples(newest.samples, _by_samples(newest.metrics))
        self._send_validation(state, is_best, (preview, _STEP_IMAGES, newest.samples))

    def _save_validation(
        self,
        state: TrainingState,
        is_best: bool,
        examples: Sequence[tuple[StereoBatch, StereoPrediction]],
        preview: Path,
        title: str,
    ) -> None:
        if examples:
            metrics = state.newest_metrics
            epe = f", EPE {metrics['validation/epe_px']:.2f} px" if "validation/epe_px" in metrics else ""
            figure = draw_preview(examples, title=f"{title}{epe}")
            write_atomically(preview, lambda file: figure.savefig(file, dpi=75, format="png"), durable=False)
        # last.pt comes last: a run that resumes from it relies on the best one and the previews until then.
        if is_best:
            self.save(state, "best.pt")
        self.save(state)
        self._validated_at_s = time.monotonic()

    def _send_validation(self, state: TrainingState, is_best: bool, figure: tuple[Path, str, int]) -> None:
        assert self._tracker is not None
        if is_best:
            self._log_best(state)
        self._tracker.send_file(figure[0], _PREVIEWS, link=True)
        self._tracker.log_figure(*figure)
        self._send_checkpoints(["last.pt", *(["best.pt"] if is_best else [])])

    def _log_best(self, state: TrainingState) -> None:
        assert self._tracker is not None
        epe_px, epochs = state.find_best()
        if not math.isfinite(epe_px):
            return
        tags = {"best_epoch": f"{round(epochs, 2):g}", "best_validation/epe_px": f"{epe_px:.4g}"}
        self._tracker.set_tags(tags)
        name = self._options.tracking.run_name or _default_name(self._options)
        file = (self.folder / "best.safetensors").resolve()
        self._tracker.log_best(name, math.ceil(epochs), {"epe_px": epe_px}, {"file": file, **tags})

    def _log_address(self) -> None:
        assert self._tracker is not None
        server = "MLflow" if self._tracker.uri.startswith("http") else "MLflow, once `uv run mlflow ui` runs"
        # The address is last: a terminal that makes it a link would take what follows with it.
        logger.info("%s: %s", server, self._tracker.address)

    def list_bad_samples(self, bad: Sequence[str]) -> None:
        """List the samples that could not be read, if any, on disk and in MLflow."""
        if self._tracker is None or not bad:
            return
        listing = self.folder / "bad_samples.txt"
        listing.write_text("".join(f"{line}\n" for line in bad))
        self._tracker.send_file(listing, "data")
        self._tracker.set_tags({"bad_samples": len(bad)})
        logger.warning(
            "%s skipped, since unreadable; listed in %s; the first: %s",
            count_of(len(bad), "sample"), listing, bad[0],
        )  # fmt: skip

    def list_rebuilt_entries(self, rebuilt: Sequence[str]) -> None:
        """Append the cache entries that this epoch found damaged and rebuilt, if any, to a list."""
        if self._tracker is None or not rebuilt:
            return
        listing = self.folder / "rebuilt_entries.txt"
        with listing.open("a") as file:
            file.writelines(f"{path}\n" for path in rebuilt)
        self._tracker.send_file(listing, "data")
        logger.warning(
            "%d cache entries were damaged and have been rebuilt, listed in %s; the first: %s",
            len(rebuilt), listing, rebuilt[0],
        )  # fmt: skip

    @property
    def _previews(self) -> Path:
        return self.folder / _PREVIEWS

    def _preview_path(self, epoch: int) -> Path:
        return self._previews / f"epoch_{epoch:04d}.png"

    def _preview_of_samples(self, samples: int) -> Path:
        return self._previews / f"samples_{samples:09d}.png"

    def _send_checkpoints(self, names: Sequence[str]) -> None:
        assert self._tracker is not None
        for path in (self.folder / name for name in names):
            if path.exists():
                self._tracker.send_file(path, "checkpoints", link=True)


def _charted(metrics: Metrics) -> Metrics:
    """Return the metrics without the counters that are zero, as most are in most runs."""
    return {name: value for name, value in metrics.items() if value or not name.startswith("data/")}


def _default_name(options: TrainOptions) -> str:
    """Return a run's name from its network, data and size: `guided fsd+kitti2015 320x240`."""
    return f"{options.model.model} {_dataset_name(options)} {options.data.width}x{options.data.height}"


def _dataset_name(options: TrainOptions) -> str:
    sources = parse_dataset_sources(options.data.dataset_root, options.data.dataset)
    names = [source.name for source in sources] or [options.data.dataset if find_dataset_root(None) else "synthetic"]
    return "+".join(dict.fromkeys(names))


def _by_samples(metrics: Metrics) -> Metrics:
    """Return the metrics of a validation by the names of those within epochs."""
    return {name.replace("validation/", "validation_steps/", 1): value for name, value in metrics.items()}


def _open_tracker(options: TrainOptions, run_id: str | None, lock: ExitStack) -> Tracker:
    """Start the MLflow run, or continue it, after checking that its results have a folder to go to, and locking that.

    Raises:
        UserError: the folder holds another run, is in use, or the tracking store cannot be reached.
    """
    tracking = options.tracking
    # Before the run is made in MLflow: a folder that cannot be created leaves no run there.
    folder = tracking.output_dir or folder_of_run(run_id or "")
    folder.mkdir(parents=True, exist_ok=True)
    if tracking.output_dir is not None or run_id is not None:
        _lock_folder(folder, lock)
    if tracking.output_dir is not None and (last := tracking.output_dir / "last.pt").exists():
        found = load_checkpoint(last).run_id
        if found != run_id:
            raise UserError(
                f"--output-dir {tracking.output_dir}: holds the last.pt of another run, {found}; name another "
                f"folder, or resume that run by --resume {last}"
            )
    return Tracker(
        uri=tracking.mlflow_tracking_uri,
        experiment=tracking.experiment_name,
        run_id=run_id,
        run_name=tracking.run_name or _default_name(options),
    )


def _lock_folder(folder: Path, lock: ExitStack) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock.enter_context(exclusive_lock(folder / ".lock", wait=False))
    except LockedError as error:
        raise UserError(
            f"--output-dir {folder}: another process is training into it; wait for its end, or name another folder"
        ) from error


class Stopped(Exception):  # noqa: N818 (no error: the user asked for it)
    """A signal asked training to stop, and it did after saving everything."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_status = 128 + signal_number

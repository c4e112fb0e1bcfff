"""What stays of a run: checkpoints in its folder, preview pictures, and its record in MLflow. One process keeps it."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from foundation_stereo_depth.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from foundation_stereo_depth.data.batch import StereoBatch
from foundation_stereo_depth.device import Processes
from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.files import remove_abandoned, write_atomically
from foundation_stereo_depth.model import StereoPrediction
from foundation_stereo_depth.options import command_line
from foundation_stereo_depth.options.training import TrainOptions
from foundation_stereo_depth.tracking import CHECKPOINT_FOLDER_TAG, Tracker, folder_of_run
from foundation_stereo_depth.training.preview import preview_figure
from foundation_stereo_depth.training.state import Metrics, TrainingState

SIGMA_SCALE = "validation/sigma_scale"
"""The factor on the predicted deviation that makes its 68 % interval hold 68 % of the validation pixels."""
_PREVIEWS = "previews"
_EPOCH_METRIC = "train/loss"  # every epoch has it, so it tells which epochs MLflow has got


def open_record(
    options: TrainOptions, resumed: Checkpoint | None, processes: Processes, tell: Callable[[str], None]
) -> "Record":
    """The record of this run; in all processes but the first, one that keeps nothing."""
    record = Record(options, resumed, tell) if processes.is_first else None
    # What one process has to say of the run the others may have to say as well.
    run_id, folder = processes.all_gather(("", Path()) if record is None else (record.run_id, record.folder))[0]
    return record or _NoRecord(run_id, folder)


class Record:
    """The keeper of one run's results, as a context: leaving it by an exception marks the run FAILED.

    Args:
        options: all options.
        resumed: where the run goes on from, if it does.
        tell: says a line to the user.

    Attributes:
        folder: where last.pt and best.pt are.
    """

    def __init__(self, options: TrainOptions, resumed: Checkpoint | None, tell: Callable[[str], None]) -> None:
        self._options = options
        self._tell = tell
        self._saved_at = time.monotonic()
        tracking = options.tracking
        if tracking.output_dir is not None and (last := tracking.output_dir / "last.pt").exists():
            found = load_checkpoint(last).run_id
            if resumed is None or found != resumed.run_id:
                raise UserError(
                    f"--output-dir {tracking.output_dir}: holds the last.pt of another run, {found}; name another "
                    f"folder, or go on with that run by --resume {last}"
                )
        (tracking.output_dir or folder_of_run("")).mkdir(parents=True, exist_ok=True)  # or MLflow had a run without one
        self._tracker = Tracker(
            uri=tracking.mlflow_tracking_uri,
            experiment=tracking.experiment_name,
            run_id=None if resumed is None else resumed.run_id,
            run_name=tracking.run_name,
            tell=tell,
        )
        self.run_id = self._tracker.run_id
        self.folder = tracking.output_dir or folder_of_run(self.run_id)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / _PREVIEWS).mkdir(exist_ok=True)
        for folder in (self.folder, self.folder / _PREVIEWS):
            remove_abandoned(folder)  # what a training that was killed while it saved has left: checkpoints are large

    def __enter__(self) -> "Record":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stopped = isinstance(error, Stopped | KeyboardInterrupt)
        self._tracker.finish("FINISHED" if error is None else "KILLED" if stopped else "FAILED")

    def start(self, facts: Mapping[str, object], history: Sequence[Metrics]) -> None:
        """Says where things are, and sends what MLflow has not got yet."""
        plain = command_line.options_to_dict(self._options)
        if not self._tracker.has_parameters:  # a new run, or one whose store went away as it began
            options = {name: value for group in plain.values() for name, value in group.items() if name != "resume"}
            self._tracker.record(options | dict(facts))
        self._tracker.tag({CHECKPOINT_FOLDER_TAG: self.folder.resolve()})
        missing = self._tracker.missing_epochs(_EPOCH_METRIC, len(history)) if history else []
        for epoch in missing:
            self._tracker.epoch(epoch, history[epoch - 1])
        if history:  # files go to a store of their own, which may lack others than those of these epochs
            pictures = [self._preview(epoch) for epoch in range(1, len(history) + 1)]
            self._tracker.missing_files([picture for picture in pictures if picture.exists()], _PREVIEWS)
            self._send_checkpoints(["best.pt", "last.pt"])

    def is_due(self) -> bool:
        """True when last.pt is older than --checkpoint-minutes."""
        return time.monotonic() - self._saved_at > 60 * self._options.tracking.checkpoint_minutes

    def save(self, state: TrainingState, name: str = "last.pt") -> None:
        """Writes a checkpoint of this moment."""
        metrics = state.history[-1] if state.history else {}
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
        self._saved_at = time.monotonic()

    def finish_epoch(
        self, state: TrainingState, is_best: bool, example: tuple[StereoBatch, StereoPrediction] | None
    ) -> None:
        """Saves the finished epoch, then tells MLflow of it: what is on disk cannot be lost by a server."""
        # The best first: whoever goes on from last.pt takes for granted that what was best until then is there.
        if is_best:
            self.save(state, "best.pt")
        self.save(state)
        metrics, epoch = state.history[-1], len(state.history)
        self._tracker.epoch(epoch, metrics)
        if example is not None:
            picture = self._preview(epoch)
            epe = f", EPE {metrics['validation/epe_px']:.2f} px" if "validation/epe_px" in metrics else ""
            figure = preview_figure(*example, title=f"validation after epoch {epoch}{epe}")
            write_atomically(picture, lambda file: figure.savefig(file, dpi=75, format="png"), durable=False)
            self._tracker.file(picture, _PREVIEWS)
        self._send_checkpoints(["last.pt", *(["best.pt"] if is_best else [])])

    def weights(self) -> str:
        """Says where they are."""
        last, best = self.folder / "last.pt", self.folder / "best.pt"
        return f"weights: {best} (lowest validation EPE) and {last}" if best.exists() else f"weights: {last}"

    def _preview(self, epoch: int) -> Path:
        return self.folder / _PREVIEWS / f"epoch_{epoch:04d}.png"

    def _send_checkpoints(self, names: Sequence[str]) -> None:
        for path in (self.folder / name for name in names):
            if path.exists():
                self._tracker.file(path, "checkpoints")

    def bad_samples(self, bad: Sequence[str]) -> None:
        """Lists the samples that could not be read, if any, on disk and in MLflow."""
        if not bad:
            return
        listing = self.folder / "bad_samples.txt"
        listing.write_text("".join(f"{line}\n" for line in bad))
        self._tracker.file(listing, "data")
        self._tracker.tag({"bad_samples": len(bad)})
        self._tell(f"{len(bad)} samples could not be read and were left out, listed in {listing}; the first: {bad[0]}")

    def rebuilt_entries(self, rebuilt: Sequence[str]) -> None:
        """Lists the cache entries that this epoch found damaged and made anew, if any, after those of earlier ones."""
        if not rebuilt:
            return
        listing = self.folder / "rebuilt_entries.txt"
        with listing.open("a") as file:
            file.writelines(f"{path}\n" for path in rebuilt)
        self._tracker.file(listing, "data")
        self._tell(
            f"{len(rebuilt)} cache entries were damaged and made anew, listed in {listing}; the first: {rebuilt[0]}"
        )


class _NoRecord(Record):
    """Keeps nothing: in a data-parallel run only the first process writes."""

    def __init__(self, run_id: str, folder: Path) -> None:
        self.run_id, self.folder = run_id, folder

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def start(self, facts: Mapping[str, object], history: Sequence[Metrics]) -> None: ...

    def is_due(self) -> bool:
        return False

    def save(self, state: TrainingState, name: str = "last.pt") -> None: ...

    def finish_epoch(
        self, state: TrainingState, is_best: bool, example: tuple[StereoBatch, StereoPrediction] | None
    ) -> None: ...

    def weights(self) -> str:
        return ""

    def bad_samples(self, bad: Sequence[str]) -> None: ...

    def rebuilt_entries(self, rebuilt: Sequence[str]) -> None: ...


class Stopped(Exception):  # noqa: N818 (it is no error: somebody asked for it)
    """Training was asked to end by a signal, and ended with everything saved."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_status = 128 + signal_number

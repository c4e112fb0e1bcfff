"""`foundation-stereo-import-rust`: copy a run of the Rust trainer, outputs-rs/<run id>, into MLflow."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.options import command_line
from foundation_stereo_depth.options.fields import OptionGroup, option

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

RUST_RUN_TAG = "rust_run_id"
"""The tag of a run in MLflow that names the run of the Rust trainer that it is a copy of."""
_LONGEST_VALUE = 500
_CHECKPOINTS = ("best.safetensors", "best.json", "last.safetensors", "last.json")


@dataclass(frozen=True, kw_only=True)
class ImportOptions(OptionGroup):
    """results"""

    mlflow_tracking_uri: str | None = option(
        None, "where MLflow keeps its runs: a database or a server; else $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db"
    )
    experiment_name: str = option("foundation-stereo-depth", "MLflow experiment")


@dataclass(frozen=True, kw_only=True)
class ImportRustOptions:
    """All options of `foundation-stereo-import-rust`."""

    tracking: ImportOptions = ImportOptions()


@dataclass(frozen=True, kw_only=True)
class RustRun:
    """What a run of the Rust trainer has written so far.

    Attributes:
        folder: its folder, outputs-rs/<run id>.
        config: its options and facts, as in config.json.
        history: for each finished epoch its number from 1, the time it ended in ms since 1970, and its metrics.
    """

    folder: Path
    config: dict[str, Any]
    history: list[dict[str, Any]]

    @property
    def is_finished(self) -> bool:
        """True where all epochs are done."""
        return len(self.history) == self.config["options"]["optimizer"]["epochs"]

    def parameters(self) -> dict[str, Any]:
        """Return options and facts by name, as training in Python records them."""
        groups = {name: group for name, group in self.config["options"].items() if name != "cache"}
        options = {name: value for group in groups.values() for name, value in group.items() if name != "resume"}
        return options | self.config["facts"]


def read_rust_run(folder: Path) -> RustRun:
    """Read a run's config.json and metrics_history.json.

    Raises:
        UserError: they are missing, or not as this version of the Rust trainer writes them.
    """
    config, history = (_read_json(folder / name) for name in ("config.json", "metrics_history.json"))
    try:
        run = RustRun(folder=folder, config=dict(config), history=list(history))
        parts = [run.config["run_id"], run.config["started_ms"], run.is_finished, run.parameters()]
        parts += [(epoch["epoch"], epoch["time_ms"], epoch["metrics"].items()) for epoch in run.history]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{folder}: its JSON files are not as the Rust trainer writes them ({error!r})") from error
    return run


def import_rust_run(folder: Path, options: ImportOptions) -> str:
    """Copy a run into MLflow, and return its id there; what an earlier import has copied is not copied again.

    Raises:
        UserError: the folder holds no run, or MLflow cannot be reached.
    """
    run = read_rust_run(folder)

    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    from foundation_stereo_depth.tracking import tracking_uri

    uri = tracking_uri(options.mlflow_tracking_uri)
    try:
        client = MlflowClient(uri)
        run_id = _run_in_mlflow(client, run, options.experiment_name)
        _log_epochs(client, run, run_id)
        _log_files(client, run, run_id)
        ended_ms = run.history[-1]["time_ms"] if run.history else run.config["started_ms"]
        client.set_terminated(run_id, "FINISHED" if run.is_finished else "KILLED", end_time=ended_ms)
    except (MlflowException, OSError) as error:
        raise UserError(f"--mlflow-tracking-uri {uri}: {str(error).splitlines()[0][:200]}") from error
    return run_id


def _run_in_mlflow(client: "MlflowClient", run: RustRun, experiment_name: str) -> str:
    """Return the id of the run's copy, made where there is none yet."""
    from mlflow.entities import Param

    experiment = client.get_experiment_by_name(experiment_name)
    experiment_id = client.create_experiment(experiment_name) if experiment is None else experiment.experiment_id
    rust_id = run.config["run_id"]
    if copies := client.search_runs([experiment_id], f"tags.{RUST_RUN_TAG} = '{rust_id}'"):
        return copies[0].info.run_id
    tags = {
        RUST_RUN_TAG: rust_id,
        "rust_run_folder": str(run.folder.resolve()),
        "mlflow.source.name": str(run.config.get("program", "foundation-stereo-train")),
        "mlflow.source.type": "LOCAL",
    }
    name = run.config.get("run_name") or f"rust-{rust_id[:8]}"
    created = client.create_run(experiment_id, start_time=run.config["started_ms"], run_name=name, tags=tags)
    parameters = [Param(name, str(value)[:_LONGEST_VALUE]) for name, value in run.parameters().items()]
    client.log_batch(created.info.run_id, params=parameters)
    return created.info.run_id


def _log_epochs(client: "MlflowClient", run: RustRun, run_id: str) -> None:
    from mlflow.entities import Metric

    there = {point.step for point in client.get_metric_history(run_id, "train/loss")}
    for epoch in run.history:
        if epoch["epoch"] not in there:
            metrics = [
                Metric(name, value, epoch["time_ms"], epoch["epoch"])
                for name, value in epoch["metrics"].items()
                if value is not None  # what JSON has instead of NaN
            ]
            client.log_batch(run_id, metrics=metrics)


def _log_files(client: "MlflowClient", run: RustRun, run_id: str) -> None:
    """Copy previews that are not there yet, and the checkpoints as they are now."""
    there = {Path(found.path).name for found in client.list_artifacts(run_id, "previews")}
    previews = [path for path in sorted((run.folder / "previews").glob("epoch_*.png")) if path.name not in there]
    checkpoints = [path for name in _CHECKPOINTS if (path := run.folder / "checkpoints" / name).exists()]
    for path in previews:
        client.log_artifact(run_id, str(path), "previews")
    for path in checkpoints:
        client.log_artifact(run_id, str(path), "checkpoints")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; name the folder of a run, outputs-rs/<run id>") from error
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({error})") from error


def import_rust_command(argv: Sequence[str] | None = None) -> int:
    """Run `foundation-stereo-import-rust`; return its exit status."""
    parser = command_line.create_parser(
        "foundation-stereo-import-rust",
        ImportRustOptions,
        "Copy a run of the Rust trainer (rust-trainer/) into MLflow, so that it stands beside those of Python; again "
        "after more epochs copies what is new.",
        inputs={"folder": "of the run, outputs-rs/<run id>"},
    )
    explicit = command_line.parse_explicit(parser, argv)

    def run() -> int:
        options = command_line.build_options(ImportRustOptions, explicit)
        run_id = import_rust_run(Path(explicit["folder"]), options.tracking)
        print(f"{explicit['folder']}: copied to run {run_id} of experiment {options.tracking.experiment_name}")
        return 0

    return command_line.run_command(parser.prog, explicit, run)

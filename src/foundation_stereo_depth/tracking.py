"""Runs in MLflow: the only file that imports it. Training outlives a server; what was not sent is sent later."""

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

# Nothing is reported to anyone; and a server that went away is given seconds, not its default of minutes.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

import logging

import mlflow
import requests
import sqlalchemy.exc
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking import MlflowClient

from foundation_stereo_depth.checkpoint import load_checkpoint
from foundation_stereo_depth.errors import UserError

CHECKPOINT_FOLDER_TAG = "checkpoint_folder"
"""The tag of a run that names its local folder of checkpoints."""

_UNREACHABLE = (MlflowException, requests.exceptions.RequestException, sqlalchemy.exc.SQLAlchemyError, OSError)
_UNKNOWN = "RESOURCE_DOES_NOT_EXIST"
_REFUSALS = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", _UNKNOWN}
"""Answers that will be the same next time."""
_TRY_AGAIN_AFTER_S = 60.0
"""A server that is away costs training a few seconds so often, and no more."""
_LONGEST_VALUE = 500


class _Outbox:
    """Calls to one store. Whatever cannot be made now waits, in order, for the next; the user is told once per outage.

    Args:
        name: of the store, for the user.
        tell: says a line to the user.
    """

    def __init__(self, name: str, tell: Callable[[str], None]) -> None:
        self._name = name
        self._tell = tell
        self._waiting: dict[object, Callable[[], object]] = {}
        self._tried_s = 0.0
        self.reachable = True

    def __len__(self) -> int:
        return len(self._waiting)

    def send(self, call: Callable[[], object], key: object = None, *, insist: bool = False) -> None:
        """Makes the call, and all that wait before it; of those with one key only the newest waits."""
        self._waiting.pop(key, None)
        self._waiting[object() if key is None else key] = call
        if not self.reachable and not insist and time.monotonic() - self._tried_s < _TRY_AGAIN_AFTER_S:
            return
        while self._waiting:
            first = next(iter(self._waiting))
            try:
                self._waiting[first]()
            except Exception as error:  # each store has errors of its own, and training is worth more than its record
                if isinstance(error, MlflowException) and error.error_code in _REFUSALS:
                    self._tell(f"{self._name} refuses a record of this run, which is left out: {_reason(error)}")
                    del self._waiting[first]
                    continue
                if self.reachable:
                    self._tell(
                        f"{self._name} does not answer ({_reason(error)}); training goes on, checkpoints stay "
                        "on disk, and the records are sent when it answers again"
                    )
                self.reachable, self._tried_s = False, time.monotonic()
                return
            del self._waiting[first]
        if not self.reachable:
            self._tell(f"{self._name} answers again; everything that waited was sent")
        self.reachable = True


class Tracker:
    """One run. Figures and files go to stores of their own, so that one which is away does not hold up the other.

    Args:
        uri: a database (sqlite:///...) or server (http://...); None leaves it to `tracking_uri`.
        experiment: its name; made where it does not exist.
        run_id: the run to go on with; None starts a new one, and so does a run that the store does not know.
        run_name: for a new run.
        tell: says a line to the user.

    Raises:
        UserError: the store cannot be reached at the start.
    """

    def __init__(
        self, *, uri: str | None, experiment: str, run_id: str | None, run_name: str | None, tell: Callable[[str], None]
    ) -> None:
        self._tell = tell
        self.uri = tracking_uri(uri)
        self._figures = _Outbox(f"MLflow at {self.uri}", tell)
        self._files = _Outbox(f"the store of files of MLflow at {self.uri}", tell)
        try:
            self._client = _client(self.uri)
            run = None if run_id is None else _run(self._client, run_id)
            if run is None:
                run = self._client.create_run(
                    _experiment_id(self._client, experiment), run_name=run_name, tags=_source_tags()
                )
                if run_id is not None:
                    tell(f"MLflow at {self.uri} has no run {run_id}: its record goes on as run {run.info.run_id}")
            else:
                self._client.update_run(run.info.run_id, status="RUNNING")
        except _UNREACHABLE as error:
            raise UserError(f"--mlflow-tracking-uri {self.uri}: {_reason(error)}") from error
        self.run_id: str = run.info.run_id
        self.has_parameters = bool(run.data.params)
        self._monitor = SystemMetricsMonitor(self.run_id, sampling_interval=10, resume_logging=run_id is not None)
        self._monitor.start()

    def record(self, facts: Mapping[str, object]) -> None:
        """Parameters of the run, which never change."""
        params = [Param(name, str(value)[:_LONGEST_VALUE]) for name, value in facts.items()]
        self._figures.send(lambda: self._client.log_batch(self.run_id, params=params))

    def tag(self, tags: Mapping[str, object]) -> None:
        """Facts about the run that may change."""
        entries = [RunTag(name, str(value)[:_LONGEST_VALUE]) for name, value in tags.items()]
        self._figures.send(lambda: self._client.log_batch(self.run_id, tags=entries))

    def epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """The metrics of one epoch, counted from 1."""
        now_ms = int(time.time() * 1000)
        entries = [Metric(name, value, now_ms, epoch) for name, value in metrics.items()]
        self._figures.send(lambda: self._client.log_batch(self.run_id, metrics=entries))

    def missing_epochs(self, metric: str, epochs: int) -> list[int]:
        """Those of the epochs 1 to `epochs` whose metrics never reached the run: lost to a kill or an outage."""
        sent = {point.step for point in self._client.get_metric_history(self.run_id, metric)}
        return [epoch for epoch in range(1, epochs + 1) if epoch not in sent]

    def file(self, path: Path, folder: str) -> None:
        """A copy of a local file among the run's artifacts."""

        def send() -> None:
            if path.exists():  # it may have waited for long
                self._client.log_artifact(self.run_id, str(path), folder)

        self._files.send(send, key=(path, folder))

    def missing_files(self, paths: Sequence[Path], folder: str) -> None:
        """Copies of those local files that never reached a folder of the run's artifacts."""

        def send() -> None:
            there = {Path(found.path).name for found in self._client.list_artifacts(self.run_id, folder)}
            for path in paths:
                if path.name not in there and path.exists():
                    self._client.log_artifact(self.run_id, str(path), folder)

        self._files.send(send)

    def finish(self, status: str) -> None:
        """Ends the run as FINISHED, FAILED or KILLED."""
        # The monitor's thread may be inside a request to a server that is gone; it is a daemon and may be left there.
        if self._figures.reachable:
            self._monitor.finish()
        if self._files:
            self._files.send(lambda: None, insist=True)
        self._figures.send(lambda: self._client.set_terminated(self.run_id, status), insist=True)
        if missing := len(self._figures) + len(self._files):
            self._tell(
                f"MLflow at {self.uri} has not got {missing} of this run's records; "
                f"--resume with the last.pt sends them once it is back"
            )


def tracking_uri(named: str | None) -> str:
    """Where runs are kept: as the flag says, else as MLflow's own variable says, else in a database in this folder."""
    return named or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"


def folder_of_run(run_id: str) -> Path:
    """Where a run keeps its checkpoints and pictures, unless it was told otherwise."""
    return Path("runs") / run_id


def checkpoint_of_run(
    uri: str | None, run_id: str, download_to: Path, *, name: str = "last.pt", flag: str = "--resume"
) -> Path:
    """A checkpoint of a run: the newest that is in its local folder, here or where it was, else a copy of the artifact.

    A folder may hold another run's by now, so each is asked whose it is.

    Args:
        uri: a database or server; None leaves it to `tracking_uri`.
        run_id: the run.
        download_to: where a copy would go.
        name: last.pt or best.pt.
        flag: what the user named the run by, for messages.

    Raises:
        UserError: no such run, or it has no such checkpoint.
        CheckpointError: one in its folder is damaged.
    """
    uri = tracking_uri(uri)
    said = f"{flag} {run_id}: neither a file, nor a run with a checkpoint at {uri}"
    database = _database(uri)
    if database is not None and not database.exists():
        raise UserError(f"{said} (there is no such file)")  # looking into it would make one
    try:
        client = _client(uri)
        run = client.get_run(run_id)
        tag = run.data.tags.get(CHECKPOINT_FOLDER_TAG)
        folders = [folder_of_run(run_id)] if tag is None else [Path(tag), folder_of_run(run_id)]
        found = {path: load_checkpoint(path) for folder in folders if (path := folder / name).is_file()}
        own = [path for path, checkpoint in found.items() if checkpoint.run_id == run_id]
        if own:
            return max(own, key=lambda path: found[path].progress.step)
        download_to.mkdir(parents=True, exist_ok=True)
        return Path(client.download_artifacts(run_id, f"checkpoints/{name}", str(download_to)))
    except _UNREACHABLE as error:
        raise UserError(f"{said} ({_reason(error)})") from error


def add_to_run(uri: str | None, run_id: str, metrics: Mapping[str, float], files: Path, folder: str) -> None:
    """Adds metrics and the files of a local folder to a run, whatever its state; the run's status stays as it is.

    Raises:
        UserError: the store cannot be reached, or has no such run.
    """
    now_ms = int(time.time() * 1000)
    uri = tracking_uri(uri)
    try:
        client = _client(uri)
        client.log_batch(run_id, metrics=[Metric(name, value, now_ms, 0) for name, value in metrics.items()])
        client.log_artifacts(run_id, str(files), folder)
    except _UNREACHABLE as error:
        raise UserError(f"--run-id {run_id}: cannot be added to at {uri} ({_reason(error)})") from error


def _database(uri: str) -> Path | None:
    """The file of an SQLite database; None for every other store."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def _client(uri: str) -> MlflowClient:
    for name in ("mlflow", "alembic"):  # first-time migrations speak of themselves at length
        logging.getLogger(name).setLevel(logging.ERROR)
    database = _database(uri)
    if database is not None:
        database.parent.mkdir(parents=True, exist_ok=True)
    mlflow.set_tracking_uri(uri)
    return MlflowClient(uri)


def _run(client: MlflowClient, run_id: str) -> Run | None:
    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == _UNKNOWN:
            return None
        raise


def _experiment_id(client: MlflowClient, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        return client.create_experiment(name)
    if found.lifecycle_stage == "deleted":
        raise UserError(f"--experiment-name {name}: was deleted in MLflow; restore it there, or name another")
    return found.experiment_id


def _source_tags() -> dict[str, str]:
    """The git commit that this program runs from, where there is one; `-dirty` where files were changed."""
    folder = Path(__file__).parent
    tags = {"mlflow.source.name": "foundation-stereo-depth", "mlflow.source.type": "LOCAL"}
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git on this machine
        return tags
    if answer.returncode == 0:
        tags["mlflow.source.git.commit"] = answer.stdout.strip()
    return tags


def _reason(error: Exception) -> str:
    """The first line of an error, without the pages that MLflow adds."""
    text: Any = str(error).strip().splitlines()
    return text[0][:200] if text else type(error).__name__

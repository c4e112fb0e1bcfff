"""Runs in MLflow: the only file that imports it. Training outlives a server; what was not sent is sent later."""

import os
import subprocess
import time
from collections.abc import Callable, Mapping
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
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking import MlflowClient

from foundation_stereo_depth.errors import UserError

CHECKPOINT_FOLDER_TAG = "checkpoint_folder"
"""The tag of a run that names its local folder of checkpoints."""

_UNREACHABLE = (MlflowException, requests.exceptions.RequestException, sqlalchemy.exc.SQLAlchemyError, OSError)
_REFUSALS = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST"}
"""Answers that will be the same next time."""
_TRY_AGAIN_AFTER_S = 60.0
"""A server that is away costs training a few seconds so often, and no more."""
_LONGEST_VALUE = 500


class Tracker:
    """One run. Whatever cannot be sent now waits, in order, for the next call; the user is told once per outage.

    Args:
        uri: a database (sqlite:///...) or server (http://...); None leaves it to `tracking_uri`.
        experiment: its name; made where it does not exist.
        run_id: the run to go on with; None starts a new one.
        run_name: for a new run.
        tell: says a line to the user.

    Raises:
        UserError: the store cannot be reached at the start, or has no such run.
    """

    def __init__(
        self, *, uri: str | None, experiment: str, run_id: str | None, run_name: str | None, tell: Callable[[str], None]
    ) -> None:
        self._tell = tell
        self._backlog: list[Callable[[], object]] = []
        self._reachable = True
        self._tried_s = 0.0
        self.uri = tracking_uri(uri)
        try:
            self._client = _client(self.uri)
            if run_id is None:
                run = self._client.create_run(
                    _experiment_id(self._client, experiment), run_name=run_name, tags=_source_tags()
                )
            else:
                run = self._client.get_run(run_id)
                self._client.update_run(run_id, status="RUNNING")
        except _UNREACHABLE as error:
            raise UserError(f"--mlflow-tracking-uri {self.uri}: {_reason(error)}") from error
        self.run_id: str = run.info.run_id
        self.has_parameters = bool(run.data.params)
        self._monitor = SystemMetricsMonitor(self.run_id, sampling_interval=10, resume_logging=run_id is not None)
        self._monitor.start()

    def record(self, facts: Mapping[str, object]) -> None:
        """Parameters of the run, which never change."""
        params = [Param(name, str(value)[:_LONGEST_VALUE]) for name, value in facts.items()]
        self._send(lambda: self._client.log_batch(self.run_id, params=params))

    def tag(self, tags: Mapping[str, object]) -> None:
        """Facts about the run that may change."""
        entries = [RunTag(name, str(value)[:_LONGEST_VALUE]) for name, value in tags.items()]
        self._send(lambda: self._client.log_batch(self.run_id, tags=entries))

    def epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """The metrics of one epoch, counted from 1."""
        now_ms = int(time.time() * 1000)
        entries = [Metric(name, value, now_ms, epoch) for name, value in metrics.items()]
        self._send(lambda: self._client.log_batch(self.run_id, metrics=entries))

    def missing_epochs(self, metric: str, epochs: int) -> list[int]:
        """Those of the epochs 1 to `epochs` whose metrics never reached the run: lost to a kill or an outage."""
        sent = {point.step for point in self._client.get_metric_history(self.run_id, metric)}
        return [epoch for epoch in range(1, epochs + 1) if epoch not in sent]

    def file(self, path: Path, folder: str) -> None:
        """A copy of a local file among the run's artifacts."""
        self._send(lambda: self._client.log_artifact(self.run_id, str(path), folder))

    def finish(self, status: str) -> None:
        """Ends the run as FINISHED, FAILED or KILLED."""
        # The monitor's thread may be inside a request to a server that is gone; it is a daemon and may be left there.
        if self._reachable:
            self._monitor.finish()
        self._send(lambda: self._client.set_terminated(self.run_id, status), insist=True)
        if self._backlog:
            self._tell(
                f"MLflow at {self.uri} has not got {len(self._backlog)} of this run's records; "
                f"--resume with the last.pt sends them once it is back"
            )

    def _send(self, call: Callable[[], object], *, insist: bool = False) -> None:
        self._backlog.append(call)
        if not self._reachable and not insist and time.monotonic() - self._tried_s < _TRY_AGAIN_AFTER_S:
            return
        while self._backlog:
            try:
                self._backlog[0]()
            except _UNREACHABLE as error:
                if isinstance(error, MlflowException) and error.error_code in _REFUSALS:
                    self._tell(
                        f"MLflow at {self.uri} refuses a record of this run, which is left out: {_reason(error)}"
                    )
                    self._backlog.pop(0)
                    continue
                if self._reachable:
                    self._tell(
                        f"MLflow at {self.uri} does not answer ({_reason(error)}); training goes on, checkpoints stay "
                        "on disk, and the records are sent when it answers again"
                    )
                self._reachable, self._tried_s = False, time.monotonic()
                return
            self._backlog.pop(0)
        if not self._reachable:
            self._tell(f"MLflow at {self.uri} answers again; everything that waited was sent")
        self._reachable = True


def tracking_uri(named: str | None) -> str:
    """Where runs are kept: as the flag says, else as MLflow's own variable says, else in a database in this folder."""
    return named or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"


def checkpoint_of_run(
    uri: str | None, run_id: str, download_to: Path, *, name: str = "last.pt", flag: str = "--resume"
) -> Path:
    """A checkpoint of a run: the newest in its local folder if that is here, else a copy of the artifact.

    Args:
        uri: a database or server; None leaves it to `tracking_uri`.
        run_id: the run.
        download_to: where a copy would go.
        name: last.pt or best.pt.
        flag: what the user named the run by, for messages.

    Raises:
        UserError: no such run, or it has no such checkpoint.
    """
    uri = tracking_uri(uri)
    said = f"{flag} {run_id}: neither a file, nor a run with a checkpoint at {uri}"
    database = _database(uri)
    if database is not None and not database.exists():
        raise UserError(f"{said} (there is no such file)")  # looking into it would make one
    try:
        client = _client(uri)
        run = client.get_run(run_id)
        local = Path(run.data.tags.get(CHECKPOINT_FOLDER_TAG, "")) / name
        if local.is_file():
            return local
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

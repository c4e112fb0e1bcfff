"""Runs in MLflow: the only module that imports it. Training survives the loss of a server; records are sent later."""

import json
import logging
import os
import re
import subprocess
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

# No telemetry; and a server that went away is waited for seconds, not the default of minutes.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

import mlflow
import sqlalchemy
import sqlalchemy.exc
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Param,
    Run,
    RunTag,
)
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking import MlflowClient
from mlflow.utils import request_utils
from PIL import Image
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError

from foundation_stereo_depth.checkpoint import LARGEST_FILE_BYTES, load_checkpoint
from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.files import open_regular_file
from foundation_stereo_depth.options.fields import expand_home
from foundation_stereo_depth.run_database import DamagedDatabaseError, ensure_database, is_complete

logger = logging.getLogger(__name__)

CHECKPOINT_FOLDER_TAG = "checkpoint_folder"
"""The tag of a run that holds the path of its local folder of checkpoints."""

_UNKNOWN, _EXISTS = "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS"
_REFUSALS = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "ENDPOINT_NOT_FOUND", _UNKNOWN}
"""Error codes of requests that would fail again."""
_TRY_AGAIN_AFTER_S = 60.0
"""An unreachable server costs training a few seconds per this time."""
_LONGEST_VALUE = 500
_LOCAL_ARTIFACTS = "./mlruns"
"""MLflow's own default beside a database."""
LATEST = "latest"
"""In place of a run's id: the run that was started last."""
_SHORTEST_PREFIX = 4
_MODEL_PARAMETERS = ("model", "base_channels", "depth", "height", "width", "loss", "parameters")
"""Parameters of a run that describe its network."""
_SEARCHED_RUNS = 1000
_LARGEST_ANSWER_BYTES, _LONGEST_ANSWER_S = 50_000_000, 60.0
"""A page of a thousand runs has some megabytes."""


class _BoundedAdapter(request_utils.TCPKeepAliveHTTPAdapter):
    """Answers of a server that end: MLflow bounds the wait for the next byte alone."""

    def send(self, request: Any, stream: bool = False, *args: Any, **options: Any) -> Any:
        """Return the answer; one that is not asked for in parts has been read, within a size and a time."""
        response = super().send(request, stream, *args, **options)
        if not stream:
            response._content = _read_answer(response.raw)  # pyright: ignore[reportPrivateUsage]
            response._content_consumed = True  # pyright: ignore[reportPrivateUsage]
        return response


def _read_answer(raw: Any) -> bytes:
    """Return the body of an answer.

    Raises:
        UserError: it is larger than any answer of MLflow, or takes longer.
    """
    parts: list[bytes] = []
    size_bytes, until_s = 0, time.monotonic() + _LONGEST_ANSWER_S
    while part := raw.read1(2**16, decode_content=True):
        parts.append(part)
        size_bytes += len(part)
        if size_bytes > _LARGEST_ANSWER_BYTES or time.monotonic() > until_s:
            raise UserError(f"the server's answer does not end ({size_bytes:,} bytes so far); is it an MLflow server?")
    return b"".join(parts)


request_utils.TCPKeepAliveHTTPAdapter = _BoundedAdapter  # which MLflow looks up when it makes its session


class _RetryQueue:
    """Requests to one store: those that fail wait, in order, for the next; each outage is logged once.

    Args:
        name: of the store, for the log.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._waiting: dict[object, Callable[[], object]] = {}
        self._tried_s = 0.0
        self.reachable = True

    def __len__(self) -> int:
        return len(self._waiting)

    def send(self, call: Callable[[], object], key: object = None, *, insist: bool = False) -> None:
        """Make the request, and all that wait before it; of those with the same key only the newest waits."""
        self._waiting.pop(key, None)
        self._waiting[object() if key is None else key] = call
        if not self.reachable and not insist and time.monotonic() - self._tried_s < _TRY_AGAIN_AFTER_S:
            return
        while self._waiting:
            first = next(iter(self._waiting))
            try:
                self._waiting[first]()
            except Exception as error:  # each store has errors of its own, and training must not end by them
                if _is_refusal(error):
                    logger.warning("%s refuses a record of this run, which is left out: %s", self._name, _reason(error))
                    del self._waiting[first]
                    continue
                if self.reachable:
                    logger.warning(
                        "%s cannot be reached (%s); training continues, checkpoints stay on disk, and the records are "
                        "sent when it can be reached again",
                        self._name, _reason(error),
                    )  # fmt: skip
                self.reachable, self._tried_s = False, time.monotonic()
                return
            del self._waiting[first]
        if not self.reachable:
            logger.info("%s can be reached again; all waiting records were sent", self._name)
        self.reachable = True


class Tracker:
    """One run. Metrics and files have a queue each, so that an outage of one store does not delay the other.

    Args:
        uri: a database (sqlite:///...) or server (http://...); None leaves it to `tracking_uri`.
        experiment: its name; created if it does not exist. None leaves it to `experiment_name`.
        run_id: the run to resume; None starts a new one, and so does a run that the store does not know.
        run_name: for a new run.

    Raises:
        UserError: the store cannot be reached at the start.
    """

    def __init__(self, *, uri: str | None, experiment: str | None, run_id: str | None, run_name: str | None) -> None:
        self.uri = tracking_uri(uri)
        self._metrics = _RetryQueue(f"MLflow at {self.uri}")
        self._files = _RetryQueue(f"the artifact store of MLflow at {self.uri}")
        with _one_line(f"--mlflow-tracking-uri {self.uri}: "):
            self._client = _client(self.uri)
            run = None if run_id is None else _run(self._client, run_id)
            if run is None:
                run = self._client.create_run(
                    _experiment_id(self._client, experiment), run_name=run_name, tags=_source_tags()
                )
                if run_id is not None:
                    logger.warning(
                        "MLflow at %s has no run %s: it continues as run %s", self.uri, run_id, run.info.run_id
                    )
            else:
                _check_active(run, self.uri, "--resume")
                self._client.update_run(run.info.run_id, status="RUNNING")
        self.run_id: str = run.info.run_id
        self.address = page_of_run(self.uri, run.info.experiment_id, self.run_id)
        self._artifacts = _local_folder(str(run.info.artifact_uri))
        self._is_new = run_id is None
        self._sent_samples: dict[str, set[int]] = {}
        self.has_parameters = bool(run.data.params)
        self._monitor: SystemMetricsMonitor | None = None
        self._metrics.send(lambda: self._start_monitor(resume=run_id is not None))

    def _start_monitor(self, *, resume: bool) -> None:
        # To resume, it asks the store for its last step.
        self._monitor = SystemMetricsMonitor(self.run_id, sampling_interval=10, resume_logging=resume)
        self._monitor.start()

    def log_parameters(self, parameters: Mapping[str, object]) -> None:
        """Record parameters of the run, which never change."""
        params = [Param(name, str(value)[:_LONGEST_VALUE]) for name, value in parameters.items()]
        self._metrics.send(lambda: self._client.log_batch(self.run_id, params=params))

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Record facts about the run that may change."""
        entries = [RunTag(name, str(value)[:_LONGEST_VALUE]) for name, value in tags.items()]
        self._metrics.send(lambda: self._client.log_batch(self.run_id, tags=entries))

    def log_dataset(self, name: str, *, source: str, fingerprint: str, counts: Mapping[str, object]) -> None:
        """Record what the run is trained on, which its page and the list of runs show.

        Args:
            name: short.
            source: folders, or what else the samples come from.
            fingerprint: of the samples.
            counts: facts about its size.
        """
        dataset = Dataset(
            name=name,
            digest=fingerprint,
            source_type="local",
            source=json.dumps({"uri": source}),
            profile=json.dumps(dict(counts)),
        )
        tagged = DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])
        self._metrics.send(lambda: self._client.log_inputs(self.run_id, [tagged]))

    def log_best(self, name: str, epoch: int, metrics: Mapping[str, float], tags: Mapping[str, object]) -> None:
        """Record the run's best network among its models: figures and the place of its file, which is not copied.

        Args:
            name: of the model.
            epoch: counted from 1, also of one in progress.
            metrics: recorded as `best/*` of the run too.
            tags: facts about the model.
        """
        now_ms = int(time.time() * 1000)
        entries = {f"best/{key}": value for key, value in metrics.items()}

        def send() -> None:
            model_id = self._find_or_create_model(name, epoch)
            self._client.set_logged_model_tags(model_id, {key: str(value) for key, value in tags.items()})
            first = next(iter(entries))
            there = self._client.get_metric_history(self.run_id, first)
            if not any((point.step, point.value) == (epoch, entries[first]) for point in there):
                points = [
                    Metric(key, value, now_ms, epoch, model_id=model_id, run_id=self.run_id)
                    for key, value in entries.items()
                ]
                self._client.log_batch(self.run_id, metrics=points)

        self._metrics.send(send, key="best")

    def _find_or_create_model(self, name: str, epoch: int) -> str:
        run = self._client.get_run(self.run_id)
        if run.outputs is not None and run.outputs.model_outputs:
            return run.outputs.model_outputs[0].model_id
        model = self._client.create_logged_model(
            run.info.experiment_id,
            name=re.sub(r"[^\w+-]", "-", name),
            source_run_id=self.run_id,
            params={key: run.data.params[key] for key in _MODEL_PARAMETERS if key in run.data.params},
        )
        self._client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        self._client.log_outputs(self.run_id, [LoggedModelOutput(model.model_id, epoch)])
        return model.model_id

    def log_epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of one epoch, counted from 1."""
        now_ms = int(time.time() * 1000)
        entries = [Metric(name, value, now_ms, epoch) for name, value in metrics.items()]
        self._metrics.send(lambda: self._client.log_batch(self.run_id, metrics=entries))

    def log_missing_epochs(self, known_by: str, history: Sequence[Mapping[str, float]]) -> None:
        """Record the metrics of finished epochs that never reached the run, because of a kill or an outage.

        Until the store says which it has, all count as missing, and wait with the other records.

        Args:
            known_by: a metric that every recorded epoch has.
            history: the metrics of every finished epoch.
        """
        now_ms = int(time.time() * 1000)

        def send() -> None:
            there = {point.step for point in self._client.get_metric_history(self.run_id, known_by)}
            for epoch, metrics in enumerate(history, start=1):
                if epoch not in there:
                    entries = [Metric(name, value, now_ms, epoch) for name, value in metrics.items()]
                    self._client.log_batch(self.run_id, metrics=entries)

        self._metrics.send(send)

    def log_samples(self, samples: int, metrics: Mapping[str, float]) -> None:
        """Record metrics within an epoch, by the number of samples seen; those that a resumed run has are kept."""
        now_ms = int(time.time() * 1000)
        entries = [Metric(name, value, now_ms, samples) for name, value in metrics.items()]

        def send() -> None:
            first = entries[0].key
            if first not in self._sent_samples:
                history = [] if self._is_new else self._client.get_metric_history(self.run_id, first)
                self._sent_samples[first] = {point.step for point in history}
            if samples not in self._sent_samples[first]:
                self._client.log_batch(self.run_id, metrics=entries)
                self._sent_samples[first].add(samples)

        self._metrics.send(send)

    def log_figure(self, path: Path, name: str, step: int) -> None:
        """Record an image file among the images of the run, which its page shows with a slider for the step."""
        self._files.send(lambda: self._log_image(path, name, step), key=(path, name))

    def log_missing_figures(self, figures: Sequence[tuple[Path, str, int]]) -> None:
        """Record those images, given as for `log_figure`, that the run lacks."""

        def send() -> None:
            names = [
                Path(found.path).name.replace("%", "+") for found in self._client.list_artifacts(self.run_id, "images")
            ]
            for path, name, step in figures:
                if not any(found.startswith(f"{name}+step+{step}+") for found in names):
                    self._log_image(path, name, step)

        self._files.send(send)

    def _log_image(self, path: Path, name: str, step: int) -> None:
        if path.exists():  # it may have waited for long
            with Image.open(path) as image:
                self._client.log_image(self.run_id, image.convert("RGB"), key=name, step=step, synchronous=True)

    def send_file(self, path: Path, folder: str, *, link: bool = False) -> None:
        """Copy a local file to the run's artifacts.

        Args:
            path: the file.
            folder: of the artifacts.
            link: the file is only ever replaced, never changed: on the same disk a link, which takes no space, will do.
        """

        def send() -> None:
            if not path.exists():  # it may have waited for long
                return
            if not link or self._artifacts is None or not _link(path, self._artifacts / folder / path.name):
                self._client.log_artifact(self.run_id, str(path), folder)

        self._files.send(send, key=(path, folder))

    def send_missing_files(self, paths: Sequence[Path], folder: str) -> None:
        """Copy those local files to a folder of the run's artifacts that it lacks."""

        def send() -> None:
            there = {Path(found.path).name for found in self._client.list_artifacts(self.run_id, folder)}
            for path in paths:
                if path.name not in there and path.exists():
                    self._client.log_artifact(self.run_id, str(path), folder)

        self._files.send(send)

    def finish(self, status: str) -> None:
        """End the run as FINISHED, FAILED or KILLED."""
        # The monitor's thread may be inside a request to a server that is gone; it is a daemon and may be left there.
        if self._metrics.reachable and self._monitor is not None:
            self._monitor.finish()
        if self._files:
            self._files.send(lambda: None, insist=True)
        self._metrics.send(lambda: self._client.set_terminated(self.run_id, status), insist=True)
        if missing := len(self._metrics) + len(self._files):
            logger.warning(
                "MLflow at %s lacks %d records of this run; to send them later, use --resume with the last.pt%s",
                self.uri, missing, _first_remove_damaged(self.uri),
            )  # fmt: skip


def _is_refusal(error: Exception) -> bool:
    """Return True for an error that would come again; a damaged database may be replaced by a good one."""
    if not isinstance(error, MlflowException) or error.error_code not in _REFUSALS:
        return False
    cause = error.__cause__
    return not isinstance(cause, DBAPIError) or isinstance(cause, IntegrityError | DataError)


def page_of_run(uri: str, experiment_id: str, run_id: str) -> str:
    """Return the address of a run's page: at a server, or where `mlflow ui` shows it by default."""
    server = uri.rstrip("/") if uri.startswith(("http://", "https://")) else "http://127.0.0.1:5000"
    # MLflow's pages begin with traces; the last part asks for training runs.
    return f"{server}/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"


def _local_folder(artifact_uri: str) -> Path | None:
    """Return the folder of artifacts that are kept on this machine; None for those of a server."""
    path = artifact_uri.removeprefix("file://")
    return Path(unquote(path)) if path.startswith("/") else None


def _link(path: Path, target: Path) -> bool:
    """Give a file a second name, in place of what has that name; return False where the disk does not allow it."""
    temporary = target.with_name(f".linking-{target.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        temporary.hardlink_to(path)
        temporary.replace(target)
    except OSError:  # another disk, or one without links
        return False
    temporary.unlink(missing_ok=True)  # which stays where both names were one file already
    return True


def tracking_uri(named: str | None) -> str:
    """Return the store of runs: the flag's, else that of MLflow's own variable, else a database in this folder."""
    uri = named or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    if _database(uri) is None:
        return expand_home(uri)
    url = sqlalchemy.make_url(uri)
    # Only where it changes something: another spelling of the same URI would be another name in messages and tags.
    home = expand_home(str(url.database))
    return uri if home == url.database else url.set(database=home).render_as_string()


def experiment_name(named: str | None) -> str:
    """Return the experiment of new runs: the flag's, else that of MLflow's own variable, else the program's."""
    return named or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "foundation-stereo-depth"


def folder_of_run(run_id: str) -> Path:
    """Return the default folder of a run's checkpoints and previews."""
    return Path("runs") / run_id


def checkpoint_of_run(
    uri: str | None, run_id: str, download_to: Path, *, name: str = "last.pt", flag: str = "--resume"
) -> Path:
    """Return a checkpoint of a run: the newest in its local folder, here or where it was, else a copy of the artifact.

    A folder may contain another run's checkpoint by now, so the run id in each one is compared.

    Args:
        uri: a database or server; None leaves it to `tracking_uri`.
        run_id: the run.
        download_to: destination of a copy.
        name: last.pt or best.pt.
        flag: the flag that names the run, for messages.

    Raises:
        UserError: no such run, or it has no such checkpoint.
        CheckpointError: one in its folder is damaged.
    """
    uri = tracking_uri(uri)
    problem = f"{flag} {run_id}: neither a file, nor a run with a checkpoint at {uri}"
    database = _database(uri)
    if database is not None and not database.exists():
        raise UserError(f"{problem} (there is no such file)")  # opening it would create one
    with _one_line(f"{problem} (", ")"):
        client = _client(uri)
        run = _find_run(client, run_id, flag)
        if run_id != run.info.run_id:
            logger.info("%s %s: run %s (%s)", flag, run_id, run.info.run_id, run.info.run_name)
        run_id = run.info.run_id
        tag = run.data.tags.get(CHECKPOINT_FOLDER_TAG)
        folders = [folder_of_run(run_id)] if tag is None else [Path(tag), folder_of_run(run_id)]
        found = {path: load_checkpoint(path) for folder in folders if (path := folder / name).is_file()}
        own = [path for path, checkpoint in found.items() if checkpoint.run_id == run_id]
        if own:
            return max(own, key=lambda path: found[path].progress.step)
        kept_at = _local_folder(str(run.info.artifact_uri))
        if kept_at is not None and (artifact := kept_at / "checkpoints" / name).exists():
            with open_regular_file(artifact, at_most_bytes=LARGEST_FILE_BYTES, error_type=UserError):
                pass  # a device or a pipe would be copied without end
        download_to.mkdir(parents=True, exist_ok=True)
        return Path(client.download_artifacts(run_id, f"checkpoints/{name}", str(download_to)))


def check_run(uri: str | None, run_id: str) -> str:
    """Check that results can be added to a run, and return its whole id.

    Args:
        uri: as in `checkpoint_of_run`.
        run_id: an id, the beginning of one, a run's name, or `latest`.

    Raises:
        UserError: the store cannot be reached, has no such run, or the run is deleted.
    """
    uri = tracking_uri(uri)
    with _one_line(f"--run-id {run_id}: cannot be added to at {uri} (", ")"):
        run = _find_run(_client(uri), run_id, "--run-id")
    _check_active(run, uri, "--run-id")
    return run.info.run_id


def add_to_run(uri: str | None, run_id: str, metrics: Mapping[str, float], files: Path, folder: str) -> None:
    """Add metrics and the files of a local folder to a run, whatever its status, which stays the same.

    Raises:
        UserError: the store cannot be reached, or has no such run.
    """
    now_ms = int(time.time() * 1000)
    uri = tracking_uri(uri)
    with _one_line(f"--run-id {run_id}: cannot be added to at {uri} (", ")"):
        client = _client(uri)
        run_id = _find_run(client, run_id, "--run-id").info.run_id
        client.log_batch(run_id, metrics=[Metric(name, value, now_ms, 0) for name, value in metrics.items()])
        client.log_artifacts(run_id, str(files), folder)


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """The metrics of one epoch.

    Attributes:
        epoch: its number, from 1.
        time_ms: when it ended, ms since 1970.
        metrics: finite values by name.
    """

    epoch: int
    time_ms: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A run of another program, as that has recorded it so far.

    Attributes:
        id_tag, id: name and value of the tag that identifies the run, by which its copy is found again.
        name: of a new copy.
        tags, parameters: of a new copy.
        started_ms, ended_ms: ms since 1970.
        status: FINISHED, FAILED or KILLED.
        epochs: their metrics.
        new_files: folder of the artifacts -> files that never change once they are written.
        current_files: folder of the artifacts -> files that the program overwrites.
    """

    id_tag: str
    id: str
    name: str
    tags: Mapping[str, str]
    parameters: Mapping[str, object]
    started_ms: int
    ended_ms: int
    status: str
    epochs: Sequence[EpochRecord]
    new_files: Mapping[str, Sequence[Path]] = field(default_factory=dict[str, Sequence[Path]])
    current_files: Mapping[str, Sequence[Path]] = field(default_factory=dict[str, Sequence[Path]])


def copy_run(uri: str | None, experiment: str | None, record: RunRecord) -> str:
    """Copy a run of another program into MLflow, and return the id of the copy.

    An existing copy gets what it lacks: parameters, metrics and new files; current files replace their older copies.

    Args:
        uri: a database or server; None leaves it to `tracking_uri`.
        experiment: its name; created if it does not exist. None leaves it to `experiment_name`.
        record: the run.

    Raises:
        UserError: the store cannot be reached, or refuses the run.
    """
    uri = tracking_uri(uri)
    with _one_line(f"--mlflow-tracking-uri {uri}: "):
        client = _client(uri)
        copy = _find_or_create_copy(client, _experiment_id(client, experiment), record)
        run_id: str = copy.info.run_id
        if not copy.data.params:
            params = [Param(name, str(value)[:_LONGEST_VALUE]) for name, value in record.parameters.items()]
            client.log_batch(run_id, params=params)
        _log_missing_metrics(client, run_id, record.epochs)
        for folder, paths in record.new_files.items():
            there = {Path(found.path).name for found in client.list_artifacts(run_id, folder)}
            _log_files(client, run_id, folder, [path for path in paths if path.name not in there])
        for folder, paths in record.current_files.items():
            _log_files(client, run_id, folder, paths)
        client.set_terminated(run_id, record.status, end_time=record.ended_ms)
    return run_id


def _find_or_create_copy(client: MlflowClient, experiment_id: str, record: RunRecord) -> Run:
    copies = client.search_runs([experiment_id], f"tags.{record.id_tag} = '{record.id}'")
    if copies:
        return copies[0]
    tags = {**record.tags, record.id_tag: record.id}
    return client.create_run(experiment_id, start_time=record.started_ms, run_name=record.name, tags=tags)


def _log_missing_metrics(client: MlflowClient, run_id: str, epochs: Sequence[EpochRecord]) -> None:
    names = sorted({name for epoch in epochs for name in epoch.metrics})
    there = {(name, point.step) for name in names for point in client.get_metric_history(run_id, name)}
    for epoch in epochs:
        missing = [
            Metric(name, value, epoch.time_ms, epoch.epoch)
            for name, value in epoch.metrics.items()
            if (name, epoch.epoch) not in there
        ]
        if missing:
            client.log_batch(run_id, metrics=missing)


def _log_files(client: MlflowClient, run_id: str, folder: str, paths: Sequence[Path]) -> None:
    for path in paths:
        client.log_artifact(run_id, str(path), folder)


def _database(uri: str) -> Path | None:
    """Return the file of an SQLite database; None for every other store, and for a database in memory."""
    try:
        url = sqlalchemy.make_url(uri)
    except (sqlalchemy.exc.ArgumentError, ValueError):  # a folder, say
        return None
    if url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:"):
        return None
    return Path(expand_home(str(url.database).removeprefix("file:") if "uri" in url.query else str(url.database)))


def _client(uri: str) -> MlflowClient:
    # They log each step of creating a database, and the traceback of each error that they raise as well.
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    database = _database(uri)
    if database is not None:
        database.parent.mkdir(parents=True, exist_ok=True)
        ensure_database(database, _create_database)
    mlflow.set_tracking_uri(uri)
    return MlflowClient(uri)


def _create_database(path: Path) -> None:
    SqlAlchemyStore(f"sqlite:///{path}", _LOCAL_ARTIFACTS).engine.dispose()


def _first_remove_damaged(uri: str) -> str:
    """Return what to do before a run is resumed with this store, as the end of a sentence; empty for nothing."""
    database = _database(uri)
    try:
        if database is not None:
            is_complete(database)
    except DamagedDatabaseError:
        return f", after moving {database} away, which is damaged"
    except UserError:  # it is locked, say
        pass
    return ""


@contextmanager
def _one_line(before: str, after: str = "") -> Generator[None]:
    """Report what fails as a `UserError`: each store has errors of its own, and a server may answer anything."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{before}{_reason(error)}{after}") from error


def _run(client: MlflowClient, run_id: str) -> Run | None:
    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == _UNKNOWN:
            return None
        raise


def _check_active(run: Run, uri: str, flag: str) -> None:
    """Check that a run is not deleted.

    Raises:
        UserError: it is.
    """
    if run.info.lifecycle_stage != "deleted":
        return
    run_id = run.info.run_id
    other = "; or start a new run from its weights by --initial-weights" if flag == "--resume" else ""
    raise UserError(
        f"{flag} {run_id}: this run was deleted in MLflow at {uri}; restore it there, or by `MLFLOW_TRACKING_URI={uri} "
        f"mlflow runs restore --run-id {run_id}`{other}"
    )


def _find_run(client: MlflowClient, text: str, flag: str) -> Run:
    """Return the run that a text names: by its id, as `latest`, by its name, or by the first characters of its id.

    Raises:
        MlflowException: there is no such run.
        UserError: several begin like this.
    """
    if re.fullmatch("[0-9a-f]{32}", text) and (run := _run(client, text)) is not None:
        return run
    newest_first: list[Run] = client.search_runs(
        [experiment.experiment_id for experiment in client.search_experiments()],
        order_by=["attributes.start_time DESC"],
        max_results=_SEARCHED_RUNS,
    )
    if text == LATEST:
        found = [run for run in newest_first if CHECKPOINT_FOLDER_TAG in run.data.tags][:1]
    else:
        found = [run for run in newest_first if run.info.run_name == text][:1]
    if not found and len(text) >= _SHORTEST_PREFIX:
        found = [run for run in newest_first if run.info.run_id.startswith(text)]
    if len(found) > 1:
        raise UserError(
            f"{flag} {text}: begins the ids of {len(found)} runs; {', '.join(r.info.run_id for r in found)}"
        )
    if not found:
        newest = ", ".join(str(run.info.run_name) for run in newest_first[:3]) or "there is none"
        raise MlflowException(f"no run has this id or name; newest: {newest}")
    return found[0]


def _experiment_id(client: MlflowClient, named: str | None) -> str:
    name, given_id = experiment_name(named), os.environ.get("MLFLOW_EXPERIMENT_ID")
    source = "--experiment-name" if named or "MLFLOW_EXPERIMENT_NAME" not in os.environ else "$MLFLOW_EXPERIMENT_NAME"
    if source == "--experiment-name" and not named and given_id:
        source, name = "$MLFLOW_EXPERIMENT_ID", given_id
        try:
            found = client.get_experiment(given_id)
        except MlflowException as error:
            if error.error_code != _UNKNOWN:
                raise
            raise UserError(f"{source} {name}: there is no such experiment") from error
    else:
        found = client.get_experiment_by_name(name)
        if found is None:
            try:
                return client.create_experiment(name)
            except MlflowException as error:
                if error.error_code != _EXISTS:
                    raise
                found = client.get_experiment_by_name(name)  # which another run created meanwhile
                assert found is not None
    if found.lifecycle_stage == "deleted":
        raise UserError(f"{source} {name}: was deleted in MLflow; restore it there, or name another")
    return found.experiment_id


def _source_tags() -> dict[str, str]:
    """Return the git commit that this program runs from, if any; `-dirty` if files were changed."""
    folder = Path(__file__).parent
    tags = {"mlflow.source.name": "foundation-stereo-depth", "mlflow.source.type": "LOCAL"}
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        described = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git on this machine
        return tags
    if described.returncode == 0:
        tags["mlflow.source.git.commit"] = described.stdout.strip()
    return tags


def _reason(error: Exception) -> str:
    """Return the first line of an error, without the pages that MLflow adds; in our own words where they help."""
    if "database is locked" in str(error):
        return (
            "the database is locked by another program; try again when that has ended, or wait longer for it: "
            "sqlite:///mlflow.db?timeout=60"
        )
    if found := re.search(r"found version (\w+), but expected", str(error)):
        return _describe_version(found[1])
    text: Any = str(error).strip().splitlines()
    return text[0][:200] if text else type(error).__name__


def _describe_version(schema: str) -> str:
    """Return what to do about a database of another MLflow version, given the version of its schema."""
    versions = Path(mlflow.__file__).parent / "store/db_migrations/versions"
    if any(versions.glob(f"{schema}_*.py")):
        return (
            f"the database is of an older MLflow than {mlflow.__version__} (schema {schema}); make a copy of it, and "
            "bring it up to date by `mlflow db upgrade` with its URI, or name another database"
        )
    return (
        f"the database is of a newer MLflow than {mlflow.__version__} (schema {schema}), which `mlflow db upgrade` of "
        "that version made; install it, or name another database"
    )

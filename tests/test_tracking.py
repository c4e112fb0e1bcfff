import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest
import requests
from conftest import command_of
from mlflow.exceptions import MlflowException
from mlflow.utils import request_utils

from foundation_stereo_depth import tracking
from foundation_stereo_depth.checkpoint import Checkpoint, Progress, load_checkpoint, save_checkpoint
from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.tracking import Tracker, check_run, checkpoint_of_run


@pytest.fixture
def tracker(tracking_uri: str, caplog: pytest.LogCaptureFixture) -> Iterator[Tracker]:
    caplog.set_level(logging.INFO, "foundation_stereo_depth")
    created = Tracker(uri=tracking_uri, experiment="test", run_id=None, run_name="a name")
    yield created
    created.finish("FINISHED")


def epochs_of(tracker: Tracker) -> list[int]:
    history = mlflow.MlflowClient(tracker.uri).get_metric_history(tracker.run_id, "m")
    return [point.step for point in history]


def files_of(tracker: Tracker, folder: str) -> list[str]:
    found = mlflow.MlflowClient(tracker.uri).list_artifacts(tracker.run_id, folder)
    return [Path(file.path).name for file in found]


def lose_server(tracker: Tracker, monkeypatch: pytest.MonkeyPatch, error: Exception) -> Callable[[], None]:
    """Make requests fail until the returned function is called."""

    def gone(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(tracker._client, "log_batch", gone)
    return lambda: monkeypatch.delattr(tracker._client, "log_batch")


@pytest.mark.parametrize(
    "error", [MlflowException("no answer"), requests.ConnectionError("refused"), ImportError("boto3")]
)
def test_records_of_an_outage_are_sent_when_the_server_returns(
    tracker: Tracker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    tracker.log_epoch(1, {"m": 1.0})
    come_back = lose_server(tracker, monkeypatch, error)
    tracker.log_epoch(2, {"m": 2.0})
    tracker.log_epoch(3, {"m": 3.0})
    assert epochs_of(tracker) == [1]
    assert len(caplog.messages) == 1
    assert "cannot be reached" in caplog.messages[0]
    come_back()
    monkeypatch.setattr(tracking, "_TRY_AGAIN_AFTER_S", 0.0)
    tracker.log_epoch(4, {"m": 4.0})
    assert epochs_of(tracker) == [1, 2, 3, 4]
    assert "can be reached again" in caplog.messages[1]


def test_records_that_were_not_sent_are_reported_at_the_end(
    tracking_uri: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Tracker(uri=tracking_uri, experiment="test", run_id=None, run_name=None)
    lose_server(tracker, monkeypatch, MlflowException("no answer"))
    tracker.log_epoch(1, {"m": 1.0})
    tracker.finish("FINISHED")
    assert "lacks 2 records of this run; to send them later, use --resume with the last.pt" in caplog.messages[-1]


def test_a_refused_record_does_not_delay_the_others(tracker: Tracker, caplog: pytest.LogCaptureFixture) -> None:
    tracker.log_parameters({"p": 1})
    tracker.log_parameters({"p": 2})  # MLflow's parameters never change
    tracker.log_epoch(1, {"m": 1.0})
    assert epochs_of(tracker) == [1]
    assert len(caplog.messages) == 1
    assert "refuses a record of this run, which is left out" in caplog.messages[0]


def test_an_outage_of_the_artifact_store_does_not_delay_metrics(
    tracker: Tracker, caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "gone"):
        (tmp_path / name).write_text(name)

    def refused(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'boto3'")

    monkeypatch.setattr(tracker._client, "log_artifact", refused)
    for name in ("a", "b", "b", "b", "gone"):
        tracker.send_file(tmp_path / name, "data")
    tracker.log_epoch(1, {"m": 1.0})
    assert epochs_of(tracker) == [1]
    assert len(caplog.messages) == 1
    assert "the artifact store of MLflow" in caplog.messages[0]
    assert "boto3" in caplog.messages[0]
    assert len(tracker._files) == 3
    monkeypatch.delattr(tracker._client, "log_artifact")
    monkeypatch.setattr(tracking, "_TRY_AGAIN_AFTER_S", 0.0)
    (tmp_path / "gone").unlink()
    tracker.send_file(tmp_path / "a", "data")
    assert files_of(tracker, "data") == ["a", "b"]
    assert "can be reached again" in caplog.messages[1]


def test_only_files_that_are_missing_are_sent(tracker: Tracker, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text("first")
    tracker.send_file(tmp_path / "a", "data")
    (tmp_path / "a").write_text("second")
    tracker.send_missing_files([tmp_path / "a", tmp_path / "b"], "data")
    assert files_of(tracker, "data") == ["a", "b"]
    there = mlflow.MlflowClient(tracker.uri).download_artifacts(tracker.run_id, "data/a", str(tmp_path / "fetched"))
    assert Path(there).read_text() == "first"


def test_only_epochs_that_are_missing_are_sent(tracker: Tracker) -> None:
    for epoch in (3, 1):
        tracker.log_epoch(epoch, {"m": 1.0})
    tracker.log_missing_epochs("m", [{"m": 1.0}] * 4)
    assert sorted(epochs_of(tracker)) == [1, 2, 3, 4]


def test_all_epochs_count_as_missing_while_the_server_does_not_say_which_it_has(
    tracker: Tracker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker.log_epoch(1, {"m": 1.0})

    def gone(*_: object) -> None:
        raise MlflowException("500")

    monkeypatch.setattr(tracker._client, "get_metric_history", gone)
    tracker.log_missing_epochs("m", [{"m": 1.0}] * 2)
    tracker.log_epoch(3, {"m": 3.0})
    assert [message for message in caplog.messages if "cannot be reached" in message]
    assert epochs_of(tracker) == [1]
    monkeypatch.delattr(tracker._client, "get_metric_history")
    monkeypatch.setattr(tracking, "_TRY_AGAIN_AFTER_S", 0.0)
    tracker.log_epoch(4, {"m": 4.0})
    assert epochs_of(tracker) == [1, 2, 3, 4]


def test_an_unknown_run_is_a_user_error(tracking_uri: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--resume nothing: neither a file, nor a run with a checkpoint"):
        checkpoint_of_run(tracking_uri, "nothing", tmp_path)


def test_looking_for_a_run_creates_no_database(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--resume abc: neither .*mlflow\.db \(there is no such file\)"):
        checkpoint_of_run(f"sqlite:///{tmp_path}/mlflow.db", "abc", tmp_path)
    assert not any(tmp_path.iterdir())


def test_the_newest_checkpoint_of_a_run_is_found_or_downloaded(
    tracker: Tracker, tracking_uri: str, tmp_path: Path
) -> None:
    here, moved, fetched = tmp_path / "here/last.pt", Path("runs") / tracker.run_id / "last.pt", tmp_path / "fetched"

    def found() -> Path:
        return checkpoint_of_run(tracking_uri, tracker.run_id, fetched)

    checkpoint_at(here, tracker.run_id, step=2)
    tracker.send_file(here, "checkpoints")
    assert fetched in found().parents  # the run has no tag that names its folder
    tracker.set_tags({"checkpoint_folder": here.parent})
    assert found() == here
    checkpoint_at(moved, tracker.run_id, step=3)
    assert found() == moved
    checkpoint_at(moved, tracker.run_id, step=1)
    assert found() == here
    moved.unlink()
    checkpoint_at(here, "another run", step=5)
    assert fetched in found().parents
    assert load_checkpoint(found()).progress.step == 2


def test_a_run_is_found_by_latest_by_name_and_by_the_beginning_of_its_id(
    tracker: Tracker, tracking_uri: str, tmp_path: Path
) -> None:
    checkpoint_at(tmp_path / "last.pt", tracker.run_id, step=2)
    tracker.set_tags({"checkpoint_folder": tmp_path})
    newer = Tracker(uri=tracking_uri, experiment="test", run_id=None, run_name="without checkpoints")
    for text in ("latest", "a name", tracker.run_id[:6]):
        assert checkpoint_of_run(tracking_uri, text, tmp_path / "fetched") == tmp_path / "last.pt"
    with pytest.raises(
        UserError, match=r"--resume a nam: neither .* \(no run has this id or name; newest: without check"
    ):
        checkpoint_of_run(tracking_uri, "a nam", tmp_path / "fetched")
    newer.finish("FINISHED")


def test_files_on_another_disk_are_copied(tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    (tmp_path / "a.txt").write_text("a")
    monkeypatch.setattr(Path, "hardlink_to", refuse)
    tracker.send_file(tmp_path / "a.txt", "texts", link=True)
    assert files_of(tracker, "texts") == ["a.txt"]


def checkpoint_at(path: Path, run_id: str, *, step: int) -> None:
    save_checkpoint(
        path,
        Checkpoint(
            model={}, weights={}, uncertainty={}, metrics={}, run_id=run_id, progress=Progress(step=step), options={}
        ),
    )


def test_the_environment_variable_of_mlflow_sets_the_store(tracking_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    tracker = Tracker(uri=None, experiment="test", run_id=None, run_name=None)
    tracker.finish("FINISHED")
    assert tracker.uri == tracking_uri
    assert mlflow.MlflowClient(tracking_uri).get_run(tracker.run_id).info.status == "FINISHED"


@pytest.mark.parametrize(
    ("environment", "named", "expected"),
    [
        ({}, None, "foundation-stereo-depth"),
        ({"MLFLOW_EXPERIMENT_NAME": "mine"}, None, "mine"),
        ({"MLFLOW_EXPERIMENT_NAME": "mine"}, "typed", "typed"),
    ],
)
def test_the_experiment_is_the_flag_then_the_variable(
    tracking_uri: str, monkeypatch: pytest.MonkeyPatch, environment: dict, named: str | None, expected: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    tracker = Tracker(uri=tracking_uri, experiment=named, run_id=None, run_name=None)
    tracker.finish("FINISHED")
    client = mlflow.MlflowClient(tracking_uri)
    found = client.get_run(tracker.run_id).info.experiment_id
    assert client.get_experiment(found).name == expected
    # The platforms that start training may set the id alone.
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", found)
    again = Tracker(uri=tracking_uri, experiment=None, run_id=None, run_name=None)
    again.finish("FINISHED")
    assert client.get_run(again.run_id).info.experiment_id == found


def test_a_deleted_run_is_named_with_the_ways_on(tracking_uri: str) -> None:
    tracker = Tracker(uri=tracking_uri, experiment="to delete", run_id=None, run_name=None)
    tracker.finish("FINISHED")
    client = mlflow.MlflowClient(tracking_uri)
    client.delete_run(tracker.run_id)
    message = rf"{tracker.run_id}: this run was deleted in MLflow at .*mlflow runs restore --run-id {tracker.run_id}`"
    with pytest.raises(UserError, match=rf"--resume {message}; or start a new run .* --initial-weights"):
        Tracker(uri=tracking_uri, experiment=None, run_id=tracker.run_id, run_name=None)
    with pytest.raises(UserError, match=rf"--run-id {message}$"):
        check_run(tracking_uri, tracker.run_id)
    client.restore_run(tracker.run_id)
    client.delete_experiment(client.get_run(tracker.run_id).info.experiment_id)
    with pytest.raises(UserError, match="this run was deleted in MLflow"):
        check_run(tracking_uri, tracker.run_id)


@pytest.mark.parametrize(
    ("uri", "database"),
    [
        ("sqlite:///x.db?timeout=30", "x.db"),
        ("sqlite+pysqlite:///a/x.db", "a/x.db"),
        ("sqlite:////tmp/x.db", "/tmp/x.db"),
        ("sqlite:///file:x.db?uri=true&mode=rw", "x.db"),
        ("sqlite:///~/x.db", "home/x.db"),
        ("sqlite://", None),
        ("http://localhost:5000", None),
        ("postgresql://user:word@host/name", None),
        ("./mlruns", None),
        ("databricks", None),
    ],
)
def test_the_file_of_a_database_is_found_in_any_uri(
    uri: str, database: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "home")
    assert tracking._database(uri) == (None if database is None else Path(database))
    assert tracking.tracking_uri(uri) == uri.replace("~", "home")


def test_options_in_the_uri_of_a_database_are_passed_on(tracking_uri: str, tmp_path: Path) -> None:
    tracker = Tracker(uri=f"{tracking_uri}?timeout=30", experiment="test", run_id=None, run_name=None)
    tracker.finish("FINISHED")
    assert mlflow.MlflowClient(tracking_uri).get_run(tracker.run_id).info.status == "FINISHED"
    with pytest.raises(UserError, match=r"neither .*x\.db\?timeout=30 \(there is no such file\)"):
        checkpoint_of_run(f"sqlite:///{tmp_path}/x.db?timeout=30", "abc", tmp_path)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("(sqlite3.OperationalError) database is locked", "is locked by another program; .*timeout=60"),
        (
            "out-of-date database schema (found version bd07f7e963c5, but expected x).",
            "older MLflow .*mlflow db upgrade",
        ),
        ("out-of-date database schema (found version ffffffffffff, but expected x).", "is of a newer MLflow than"),
    ],
)
def test_what_is_wrong_with_a_database_is_named(error: str, message: str) -> None:
    assert re.search(message, tracking._reason(MlflowException(error)))


def test_telemetry_of_mlflow_is_disabled() -> None:
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


@pytest.mark.slow
def test_training_continues_when_its_server_is_killed(tiny, tracking_uri: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve = [str(Path(sys.executable).with_name("mlflow")), "server", "--port", str(port), "--workers", "1"]
    serve += ["--backend-store-uri", tracking_uri, "--artifacts-destination", "artifacts"]
    server = subprocess.Popen(serve, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        uri = f"http://127.0.0.1:{port}"
        for _ in range(300):
            try:
                requests.get(f"{uri}/health", timeout=1)
                break
            except requests.RequestException:
                time.sleep(0.2)
        flags = tiny(epochs=20, mlflow_tracking_uri=uri)
        training = subprocess.Popen(command_of(flags), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while not Path("out/previews/epoch_0001.png").exists():
            assert training.poll() is None
            time.sleep(0.02)
        os.killpg(server.pid, signal.SIGKILL)
        out, error = training.communicate(timeout=170)
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    assert training.returncode == 0, error
    outages = [line.partition(" cannot be reached") for line in error.splitlines()]
    stores = sorted(store.rpartition("warning: ")[2] for store, found, _ in outages if found)  # each once
    assert stores == [f"MLflow at {uri}", f"the artifact store of MLflow at {uri}"]
    assert "epoch 20/20" in error
    assert "to send them later, use --resume with the last.pt" in error
    assert out.startswith("weights: ")
    assert Path("out/last.pt").exists()


@pytest.mark.parametrize("limit", ["_LARGEST_ANSWER_BYTES", "_LONGEST_ANSWER_S"])
def test_an_answer_that_does_not_end_is_one_line(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless:
        def read1(self, *_: object, **__: object) -> bytes:
            return b"[" * 1000

    monkeypatch.setattr(tracking, limit, 0.01)
    with pytest.raises(UserError, match="answer does not end"):
        tracking._read_answer(Endless())


def test_mlflow_reads_answers_with_a_limit() -> None:
    assert request_utils.TCPKeepAliveHTTPAdapter is tracking._BoundedAdapter

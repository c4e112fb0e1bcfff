import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
import requests
from conftest import command_of
from mlflow.exceptions import MlflowException

from foundation_stereo_depth import tracking
from foundation_stereo_depth.checkpoint import Checkpoint, Progress, load_checkpoint, save_checkpoint
from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.tracking import Tracker, checkpoint_of_run


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def tracker(tracking_uri: str, told: list[str]):
    made = Tracker(uri=tracking_uri, experiment="test", run_id=None, run_name="a name", tell=told.append)
    yield made
    made.finish("FINISHED")


def epochs_of(tracker: Tracker) -> list[int]:
    history = mlflow.MlflowClient(tracker.uri).get_metric_history(tracker.run_id, "m")
    return [point.step for point in history]


def files_of(tracker: Tracker, folder: str) -> list[str]:
    found = mlflow.MlflowClient(tracker.uri).list_artifacts(tracker.run_id, folder)
    return [Path(file.path).name for file in found]


def break_off(tracker: Tracker, monkeypatch: pytest.MonkeyPatch, error: Exception) -> Callable[[], None]:
    """The server is gone until the returned function is called."""

    def gone(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(tracker._client, "log_batch", gone)
    return lambda: monkeypatch.delattr(tracker._client, "log_batch")


@pytest.mark.parametrize(
    "error", [MlflowException("no answer"), requests.ConnectionError("refused"), ImportError("boto3")]
)
def test_what_a_lost_server_missed_is_sent_when_it_is_back(
    tracker: Tracker, told: list[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    tracker.epoch(1, {"m": 1.0})
    come_back = break_off(tracker, monkeypatch, error)
    tracker.epoch(2, {"m": 2.0})
    tracker.epoch(3, {"m": 3.0})
    assert epochs_of(tracker) == [1]
    assert len(told) == 1
    assert "does not answer" in told[0]
    come_back()
    monkeypatch.setattr(tracking, "_TRY_AGAIN_AFTER_S", 0.0)
    tracker.epoch(4, {"m": 4.0})
    assert epochs_of(tracker) == [1, 2, 3, 4]
    assert "answers again" in told[1]


def test_a_server_that_stays_away_is_reported_at_the_end(
    tracking_uri: str, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Tracker(uri=tracking_uri, experiment="test", run_id=None, run_name=None, tell=told.append)
    break_off(tracker, monkeypatch, MlflowException("no answer"))
    tracker.epoch(1, {"m": 1.0})
    tracker.finish("FINISHED")
    assert "has not got 2 of this run's records; --resume with the last.pt sends them" in told[-1]


def test_a_refused_record_does_not_hold_up_the_others(tracker: Tracker, told: list[str]) -> None:
    tracker.record({"p": 1})
    tracker.record({"p": 2})  # MLflow's parameters never change
    tracker.epoch(1, {"m": 1.0})
    assert epochs_of(tracker) == [1]
    assert len(told) == 1
    assert "refuses a record of this run, which is left out" in told[0]


def test_a_store_of_files_that_is_away_does_not_hold_up_the_figures(
    tracker: Tracker, told: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "gone"):
        (tmp_path / name).write_text(name)

    def refused(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'boto3'")

    monkeypatch.setattr(tracker._client, "log_artifact", refused)
    for name in ("a", "b", "b", "b", "gone"):
        tracker.file(tmp_path / name, "data")
    tracker.epoch(1, {"m": 1.0})
    assert epochs_of(tracker) == [1]
    assert len(told) == 1
    assert "the store of files of MLflow" in told[0]
    assert "boto3" in told[0]
    assert len(tracker._files) == 3
    monkeypatch.delattr(tracker._client, "log_artifact")
    monkeypatch.setattr(tracking, "_TRY_AGAIN_AFTER_S", 0.0)
    (tmp_path / "gone").unlink()
    tracker.file(tmp_path / "a", "data")
    assert files_of(tracker, "data") == ["a", "b"]
    assert "answers again" in told[1]


def test_only_files_that_are_missing_are_sent(tracker: Tracker, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text("first")
    tracker.file(tmp_path / "a", "data")
    (tmp_path / "a").write_text("second")
    tracker.missing_files([tmp_path / "a", tmp_path / "b"], "data")
    assert files_of(tracker, "data") == ["a", "b"]
    there = mlflow.MlflowClient(tracker.uri).download_artifacts(tracker.run_id, "data/a", str(tmp_path / "fetched"))
    assert Path(there).read_text() == "first"


def test_missing_epochs_are_found(tracker: Tracker) -> None:
    for epoch in (1, 3):
        tracker.epoch(epoch, {"m": 1.0})
    assert tracker.missing_epochs("m", 4) == [2, 4]


def test_an_unknown_run_is_a_users_mistake(tracking_uri: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--resume nothing: neither a file, nor a run with a checkpoint"):
        checkpoint_of_run(tracking_uri, "nothing", tmp_path)


def test_asking_for_a_run_makes_no_database(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--resume abc: neither .*mlflow\.db \(there is no such file\)"):
        checkpoint_of_run(f"sqlite:///{tmp_path}/mlflow.db", "abc", tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_runs_checkpoint_is_found_here_or_fetched(tracker: Tracker, tracking_uri: str, tmp_path: Path) -> None:
    here, moved, fetched = tmp_path / "here/last.pt", Path("runs") / tracker.run_id / "last.pt", tmp_path / "fetched"

    def found() -> Path:
        return checkpoint_of_run(tracking_uri, tracker.run_id, fetched)

    checkpoint_at(here, tracker.run_id, step=2)
    tracker.file(here, "checkpoints")
    assert fetched in found().parents  # nothing says that its folder is this one
    tracker.tag({"checkpoint_folder": here.parent})
    assert found() == here
    checkpoint_at(moved, tracker.run_id, step=3)
    assert found() == moved
    checkpoint_at(moved, tracker.run_id, step=1)
    assert found() == here
    moved.unlink()
    checkpoint_at(here, "another run", step=5)
    assert fetched in found().parents
    assert load_checkpoint(found()).progress.step == 2


def checkpoint_at(path: Path, run_id: str, *, step: int) -> None:
    save_checkpoint(
        path,
        Checkpoint(
            model={}, weights={}, uncertainty={}, metrics={}, run_id=run_id, progress=Progress(step=step), options={}
        ),
    )


def test_the_standard_variable_of_mlflow_is_heeded(tracking_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    tracker = Tracker(uri=None, experiment="test", run_id=None, run_name=None, tell=print)
    tracker.finish("FINISHED")
    assert tracker.uri == tracking_uri
    assert mlflow.MlflowClient(tracking_uri).get_run(tracker.run_id).info.status == "FINISHED"


def test_no_telemetry_leaves() -> None:
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


@pytest.mark.slow
def test_training_outlives_a_real_server(tiny, tracking_uri: str) -> None:
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
        flags = tiny(epochs=6, mlflow_tracking_uri=uri, procedural_samples=60)
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
    told = [line.partition(" does not answer") for line in out.splitlines()]
    stores = sorted(store for store, said, _ in told if said)  # each once
    assert stores == [f"MLflow at {uri}", f"the store of files of MLflow at {uri}"]
    assert "epoch 6/6" in out
    assert "--resume with the last.pt sends them once it is back" in out
    assert Path("out/last.pt").exists()

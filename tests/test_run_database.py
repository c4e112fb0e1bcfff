import os
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest

from foundation_stereo_depth import run_database, tracking
from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.run_database import ensure_database
from foundation_stereo_depth.tracking import Tracker

PATH = Path("mlflow.db")


def create(path: Path) -> None:
    with sqlite3.connect(path) as base:
        base.execute("CREATE TABLE experiments (id)")
        base.execute("INSERT INTO experiments VALUES (0)")
    base.close()


def create_incomplete(path: Path) -> None:
    with sqlite3.connect(path) as base:
        base.execute("CREATE TABLE _alembic_tmp_metrics (id)")
    base.close()


def unexpected(path: Path) -> None:
    pytest.fail("creates another database")


def test_an_interrupted_creation_leaves_nothing() -> None:
    def interrupted(path: Path) -> None:
        create_incomplete(path)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure_database(PATH, interrupted)
    assert not list(Path().iterdir())
    ensure_database(PATH, create)
    ensure_database(PATH, unexpected)
    assert list(Path().iterdir()) == [PATH]


def test_a_second_process_waits_for_the_first_and_uses_its_database() -> None:
    created = []

    def slowly(path: Path) -> None:
        created.append(path)
        time.sleep(0.3)
        create(path)

    threads = [threading.Thread(target=ensure_database, args=(PATH, slowly)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(created) == 1


@pytest.mark.parametrize("write", [create_incomplete, lambda path: path.touch()])
def test_a_database_that_another_program_is_creating_is_waited_for(
    write: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def finish(_: float) -> None:  # with none of its temporary tables left
        PATH.unlink()
        create(PATH)

    monkeypatch.setattr(run_database.time, "sleep", finish)
    write(PATH)
    ensure_database(PATH, unexpected)


@pytest.mark.parametrize("lost", ["experiments", "runs"])
def test_an_interrupted_upgrade_never_ends_in_the_advice_to_delete_runs(lost: str) -> None:
    with sqlite3.connect(PATH) as base:
        for table in {"experiments", "runs", f"_alembic_tmp_{lost}"} - {lost}:
            base.execute(f"CREATE TABLE {table} (id)")
            base.execute(f"INSERT INTO {table} VALUES (0)")
    base.close()
    os.utime(PATH, (0, 0))
    with pytest.raises(UserError, match=r"an upgrade was ended before it was done; .* put back the copy"):
        ensure_database(PATH, unexpected)


def test_a_database_whose_experiments_are_lost_is_damaged_and_not_incomplete() -> None:
    with sqlite3.connect(PATH) as base:
        base.execute("CREATE TABLE runs (id)")
        base.execute("INSERT INTO runs VALUES (0)")
    base.close()
    os.utime(PATH, (0, 0))
    with pytest.raises(UserError, match="its experiments are lost, its runs are not"):
        ensure_database(PATH, unexpected)


def test_a_database_left_incomplete_is_reported_with_the_way_on() -> None:
    create_incomplete(PATH)
    os.utime(PATH, (0, 0))
    with pytest.raises(UserError, match=r"mlflow\.db: is incomplete.*: delete it and start again"):
        ensure_database(PATH, unexpected)


def test_an_empty_file_becomes_a_database() -> None:
    PATH.touch()
    os.utime(PATH, (0, 0))
    ensure_database(PATH, create)
    ensure_database(PATH, unexpected)


def test_noise_is_reported_with_the_way_on() -> None:
    PATH.write_bytes(bytes(range(256)) * 64)
    with pytest.raises(UserError, match=r"mlflow\.db: is damaged \(file is not a database\); move it away"):
        ensure_database(PATH, unexpected)


def test_a_locked_database_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_database, "_LOCKED_S", 0.1)
    create(PATH)
    holder = sqlite3.connect(PATH)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(UserError, match=r"mlflow\.db: is locked by another program"):
        ensure_database(PATH, unexpected)
    holder.close()


def test_a_database_damaged_during_a_run_is_reported_with_the_way_on_and_nothing_else(
    tracking_uri: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    Tracker(uri=tracking_uri, experiment="test", run_id=None, run_name=None).finish("FINISHED")
    Path("mlflow.db").write_bytes(Path(tracking_uri.removeprefix("sqlite:///")).read_bytes())
    tracker = Tracker(uri=f"sqlite:///{Path.cwd()}/mlflow.db", experiment="test", run_id=None, run_name=None)
    Path("mlflow.db").write_bytes(os.urandom(1 << 20))
    tracker.log_epoch(1, {"m": 1.0})
    tracker.finish("FINISHED")
    reported = [record.message for record in caplog.records if record.name.startswith("foundation_stereo_depth")]
    assert len(reported) == 2
    assert "cannot be reached" in reported[0]
    assert "lacks 2 records of this run" in reported[1]
    assert reported[1].endswith(f"after moving {Path.cwd()}/mlflow.db away, which is damaged")
    assert capfd.readouterr().err == ""


def test_an_experiment_that_another_process_creates_meanwhile_is_used(
    tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = mlflow.MlflowClient(tracking_uri)
    name = "created meanwhile"
    found = client.get_experiment_by_name
    answers = iter([None])
    monkeypatch.setattr(client, "get_experiment_by_name", lambda name: next(answers, found(name)))
    created = client.create_experiment(name)
    assert tracking._experiment_id(client, name) == created

"""Restarts by torchrun, in this process and with real processes; and two processes that train into one folder."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow
import pytest
import torch
import torch.distributed
from conftest import command_of

from foundation_stereo_depth.checkpoint import load_checkpoint
from foundation_stereo_depth.cli import train_command
from foundation_stereo_depth.device import Processes, is_lost_process
from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.files import exclusive_lock
from foundation_stereo_depth.training import run
from foundation_stereo_depth.training.setup import resolve
from foundation_stereo_depth.training.train import train


class ProcessLostError(Exception):
    """What ends a surviving process: its connection to the lost one breaks."""


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set what torchrun sets, for the first start of a job."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a job")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")


def start_and_lose(flags: dict, *, checkpoints: int) -> None:
    """Start training, and end it by an error after so many checkpoints."""
    written = 0
    save = run.save_checkpoint

    def save_or_fail(*arguments: object) -> None:
        nonlocal written
        if written == checkpoints:
            raise ProcessLostError
        written += 1
        save(*arguments)  # pyright: ignore[reportArgumentType]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "save_checkpoint", save_or_fail)
        with pytest.raises(ProcessLostError):
            train(*resolve(flags))


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "last.pt").training["weights"]


def assert_equal_weights(one: Path, other: Path) -> None:
    for name, values in weights_of(one).items():
        assert torch.equal(values, weights_of(other)[name]), name


@pytest.mark.parametrize("output_dir", [Path("out"), None])
@pytest.mark.parametrize("checkpoints", [0, 2])  # before the first last.pt, and after it
def test_a_restarted_job_resumes_its_run_to_the_same_weights(
    checkpoints: int, output_dir: Path | None, *, job: None, tiny: Callable[..., dict], tracking_uri: str, monkeypatch
) -> None:
    flags = tiny(output_dir=output_dir, experiment_name=f"restart {checkpoints} {output_dir}")
    start_and_lose(flags, checkpoints=checkpoints)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    folder = train(*resolve(flags))
    client = mlflow.MlflowClient(tracking_uri)
    experiment = client.get_experiment_by_name(flags["experiment_name"])
    assert experiment is not None
    (record,) = client.search_runs([experiment.experiment_id])
    assert record.info.status == "FINISHED"
    assert folder == (output_dir or Path("runs") / record.info.run_id)
    steps = [point.step for point in client.get_metric_history(record.info.run_id, "train/loss")]
    assert steps == [1, 2]
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT")
    train(*resolve(flags | {"output_dir": Path("whole")}))
    assert_equal_weights(folder, Path("whole"))
    assert not list(folder.parent.rglob(".torchrun-*"))


def test_a_restart_resumes_the_same_options_and_refuses_others(
    own_run: Path, job: None, tiny: Callable[..., dict], monkeypatch
) -> None:
    folder = Path("../finished").resolve()
    own_run.rename(folder)
    content = torch.load(folder / "last.pt", weights_only=True)
    content["options"]["tracking"]["output_dir"] = str(folder)
    torch.save(content, folder / "last.pt")
    flags = tiny(epochs=1, output_dir=folder)
    with pytest.raises(UserError, match=r"holds the last\.pt of another run"):
        train(*resolve(flags))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with pytest.raises(UserError, match=r"holds the last\.pt of another run"):
        train(*resolve(flags | {"seed": 1}))
    train(*resolve(flags))
    assert load_checkpoint(folder / "last.pt").run_id == content["run_id"]


def test_another_job_of_the_same_name_starts_a_new_run(job: None, tiny: Callable[..., dict], monkeypatch) -> None:
    flags = tiny(output_dir=None, epochs=1)
    start_and_lose(flags, checkpoints=0)
    (marker,) = Path("runs").glob(".torchrun-*")
    marked = json.loads(marker.read_text())
    marker.write_text(json.dumps(marked | {"started_s": 0.0}))  # before this torchrun was started
    folder = train(*resolve(flags))
    assert folder != Path("runs") / marked["run_id"]


def test_two_processes_cannot_train_into_one_folder(own_run: Path, tiny: Callable[..., dict], tracking_uri) -> None:
    for flags, folder in (
        (tiny(output_dir=Path("new")), Path("new")),
        ({"resume": "out/last.pt", "mlflow_tracking_uri": tracking_uri}, Path("out")),
    ):
        folder.mkdir(exist_ok=True)
        with (
            exclusive_lock(folder / ".lock", wait=True),
            pytest.raises(UserError, match=f"{folder}: another process is training into it"),
        ):
            train(*resolve(flags))
        train(*resolve(flags))
        assert not (folder / ".lock").exists()


def test_restarted_processes_do_not_read_the_addresses_of_lost_ones(monkeypatch) -> None:
    kept = torch.distributed.HashStore()  # as torchrun keeps its own
    monkeypatch.setattr(torch.distributed, "rendezvous", lambda *_: iter([(kept, 0, 0)]))

    def join(rank: int, delay_s: float) -> torch.distributed.Store:
        time.sleep(delay_s)
        return Processes(rank=rank, local_rank=rank, world_size=2)._store_of_this_start()

    for delays_s in ((0.0, 0.2), (0.2, 0.0), (0.0, 0.2)):
        with ThreadPoolExecutor() as pool:
            stores = list(pool.map(join, range(2), delays_s))
        assert not stores[0].check(["address"])
        stores[1].set("address", "of this start")
        assert stores[0].get("address") == b"of this start"


@pytest.mark.parametrize(
    ("words", "is_lost"),
    [
        ("[../gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:3456", True),
        ("[../gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms for recv operation", True),
        ("The size of tensor a (3) must match the size of tensor b (4)", False),
    ],
)
def test_a_lost_process_is_told_in_one_line(words: str, is_lost: bool, monkeypatch, capsys, tiny) -> None:
    def lose(*_: object) -> None:
        raise RuntimeError(words)

    monkeypatch.setattr("foundation_stereo_depth.training.train.train", lose)
    assert not is_lost_process(RuntimeError(words))  # one process alone has none to lose
    monkeypatch.setenv("WORLD_SIZE", "2")
    if not is_lost:
        with pytest.raises(RuntimeError, match="must match"):
            train_command([])
        return
    assert train_command([]) == 2
    assert "another process of this training was lost" in capsys.readouterr().err


class Job:
    """torchrun with two processes that train."""

    def __init__(self, flags: dict) -> None:
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
        self._log = Path("log").open("wb")  # noqa: SIM115 (it is written to until `close`)
        self._agent = subprocess.Popen(
            [*command, "--max-restarts=1", "--no-python", *command_of(flags)], stdout=self._log, stderr=self._log
        )

    def text(self) -> str:
        return Path("log").read_text(errors="replace")

    def wait_for(self, words: str) -> None:
        while not re.search(words, self.text()):
            assert self._agent.poll() is None, self.text()
            time.sleep(0.02)

    def kill(self, ranks: tuple[int, ...]) -> None:
        children = Path(f"/proc/{self._agent.pid}/task/{self._agent.pid}/children").read_text().split()
        for child in children:
            environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            if any(f"RANK={rank}".encode() in environment for rank in ranks):
                os.kill(int(child), signal.SIGKILL)

    def finish(self) -> int:
        return self._agent.wait(timeout=500)

    def close(self) -> None:
        if self._agent.poll() is None:
            self._agent.terminate()
            self._agent.wait()
        self._log.close()


@pytest.fixture
def two_processes() -> Iterator[Callable[[dict], Job]]:
    """Return a function that starts a job, which is ended with the test."""
    jobs: list[Job] = []

    def start(flags: dict) -> Job:
        jobs.append(Job(flags))
        return jobs[-1]

    yield start
    for started in jobs:
        started.close()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes by /proc")
@pytest.mark.parametrize("ranks", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("output_dir", [Path("out"), None])
def test_torchrun_resumes_to_the_same_weights_whichever_process_is_killed(
    ranks: tuple[int, ...], output_dir: Path | None, tiny, two_processes: Callable[[dict], Job], tracking_uri: str
) -> None:
    flags = tiny(epochs=8, run_name=f"{ranks} {output_dir}", output_dir=output_dir)
    flags = {name: value for name, value in flags.items() if value is not None}
    started = two_processes(flags)
    started.wait_for("epoch 2/8: train loss")
    started.kill(ranks)
    assert started.finish() == 0, started.text()
    assert "torchrun has restarted the processes" in started.text()
    client = mlflow.MlflowClient(tracking_uri)
    experiment = client.get_experiment_by_name("foundation-stereo-depth")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{ranks} {output_dir}'")
    assert [record.info.status for record in runs] == ["FINISHED"]
    assert two_processes(flags | {"output_dir": Path("whole")}).finish() == 0
    assert_equal_weights(output_dir or Path("runs") / runs[0].info.run_id, Path("whole"))

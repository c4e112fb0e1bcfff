"""Restarts by torchrun, whose processes have the command line of their first start and resume what that has saved.

After a process or a machine was lost, or another has joined, torchrun ends the processes and starts all again, perhaps
with other ranks. The run continues from its last.pt, under its id in MLflow.
"""

import hashlib
import json
import logging
import os
import time
from pathlib import Path

import psutil

from foundation_stereo_depth.checkpoint import Checkpoint, load_checkpoint
from foundation_stereo_depth.device import Processes, number_of_torchrun
from foundation_stereo_depth.files import write_atomically
from foundation_stereo_depth.options import command_line
from foundation_stereo_depth.options.training import TrainOptions
from foundation_stereo_depth.tracking import folder_of_run

logger = logging.getLogger(__name__)

_JOB_VARIABLE = "TORCHELASTIC_RUN_ID"
_COUNT_VARIABLE = "TORCHELASTIC_RESTART_COUNT"


def find_earlier_start(
    options: TrainOptions, resumed: Checkpoint | None, processes: Processes
) -> tuple[Checkpoint | None, str | None]:
    """Return the newest checkpoint of this run and its id in MLflow, each None where there is none yet.

    Unless torchrun has restarted the processes, that is the checkpoint of `--resume`. Otherwise it is the last.pt in
    the folder of this run, if its options are those of this command. The processes agree on one: on a machine that came
    back nothing shows a restart, and the folder may be on the disk of one machine.

    Args:
        options: all options.
        resumed: the checkpoint that `--resume` names, if it is given.
        processes: all of them have to call this at the same time.
    """
    run_id = None if resumed is None else resumed.run_id
    marked = next(filter(None, processes.all_gather(RunMarker(options).read())), None)
    counts = processes.all_gather(number_of_torchrun(_COUNT_VARIABLE, 0))
    if marked is None and not any(counts):
        return resumed, run_id
    run_id = run_id or marked
    saved = _own_checkpoint(options, resumed, run_id)
    steps = processes.all_gather(-1 if saved is None else saved.progress.step)
    newest = processes.broadcast_object(saved, source=steps.index(max(steps)))
    if newest is None:
        return None, run_id
    logger.info("torchrun has restarted the processes; run %s resumes from its last.pt", newest.run_id)
    return newest, newest.run_id


def _own_checkpoint(options: TrainOptions, resumed: Checkpoint | None, run_id: str | None) -> Checkpoint | None:
    folder = options.tracking.output_dir or (None if run_id is None else folder_of_run(run_id))
    if folder is None or not (folder / "last.pt").exists():
        return resumed
    saved = load_checkpoint(folder / "last.pt")
    if resumed is None:
        return saved if saved.options == command_line.options_to_dict(options) else None
    same_run = saved.run_id == resumed.run_id
    return saved if same_run and saved.progress.step >= resumed.progress.step else resumed


class RunMarker:
    """A small file that names the run of a torchrun job while it is not finished, for restarts of that job.

    It is in the folder of the run, or in that of all runs where only the id in MLflow names the folder; a run may be
    restarted before its first last.pt. Without torchrun there is none.

    Args:
        options: of the run.
    """

    def __init__(self, options: TrainOptions) -> None:
        job = os.environ.get(_JOB_VARIABLE)
        self._path: Path | None = None
        if job is not None:
            # The name of a job alone may be the same for all.
            identity = json.dumps([job, command_line.options_to_dict(options)], sort_keys=True)
            folder = options.tracking.output_dir or folder_of_run("")
            self._path = folder / f".torchrun-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"

    def read(self) -> str | None:
        """Return the id of the run that this process's torchrun started before; None where there is none."""
        if self._path is None or not self._path.exists():
            return None
        marked = json.loads(self._path.read_text())
        agent_started_s = psutil.Process(os.getppid()).create_time()
        return str(marked["run_id"]) if marked["started_s"] > agent_started_s else None

    def write(self, run_id: str) -> None:
        """Name the run of this job."""
        if self._path is not None:
            encoded = json.dumps({"run_id": run_id, "started_s": time.time()}).encode()
            write_atomically(self._path, lambda file: file.write(encoded), durable=True)

    def remove(self) -> None:
        """Remove the file: the run is finished."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

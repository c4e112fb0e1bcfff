"""Where and in which precision a network runs, and the processes of a data-parallel run."""

import importlib.util
import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store

from foundation_stereo_depth.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Processes:
    """This process among those that train together; `torchrun` sets the environment that names it."""

    rank: int
    local_rank: int
    world_size: int

    @classmethod
    def from_environment(cls) -> "Processes":
        """Return what torchrun set; a single process without it.

        Raises:
            UserError: other programs, or a person, set what torchrun would not.
        """
        world_size = number_of_torchrun("WORLD_SIZE", 1, least=1)
        rank = number_of_torchrun("RANK", 0, most=world_size - 1)
        return cls(rank=rank, local_rank=number_of_torchrun("LOCAL_RANK", 0), world_size=world_size)

    @classmethod
    def single(cls) -> "Processes":
        """Return a process without others."""
        return cls(**_SINGLE)

    @property
    def is_first(self) -> bool:
        """True for the process that writes files, logs, and reports to MLflow."""
        return self.rank == 0

    def join(self, device: torch.device) -> None:
        """Join the process group, if there are several processes; returns once all have joined."""
        if self.world_size > 1:
            torch.distributed.init_process_group(
                "nccl" if device.type == "cuda" else "gloo",
                store=self._store_of_this_start(),
                rank=self.rank,
                world_size=self.world_size,
            )

    def _store_of_this_start(self) -> Store:
        """Return the store by which the processes find one another, with keys of this start alone.

        torchrun keeps its store when it restarts the processes, so that the addresses of lost ones are still in it, and
        it counts restarts for each machine. So the first process proposes a start by a random word of each process, and
        it begins once all have confirmed that theirs is in it.
        """
        rendezvous = torch.distributed.rendezvous  # pyright: ignore[reportPrivateImportUsage]
        store, *_ = next(iter(rendezvous("env://", self.rank, self.world_size)))
        mine = secrets.token_hex(8)
        store.set(f"start/{self.rank}", mine)
        proposed = ""
        for _ in range(round(_JOIN_S / _ASK_EVERY_S)):
            keys = [f"start/{rank}" for rank in range(self.world_size)]
            if self.is_first and store.check(keys):  # `get` would wait for as long as the store likes
                store.set("start/proposed", " ".join(store.get(key).decode() for key in keys))
            if store.check(["start/proposed"]):
                proposed = store.get("start/proposed").decode()
            if proposed.split(" ")[self.rank : self.rank + 1] == [mine]:
                confirmed = [f"start/{proposed}/{rank}" for rank in range(self.world_size)]
                store.set(confirmed[self.rank], "")
                if self.is_first and store.check(confirmed):
                    store.set(f"start/{proposed}/begun", "")
                if store.check([f"start/{proposed}/begun"]):
                    return PrefixStore(proposed, store)
            time.sleep(_ASK_EVERY_S)
        raise UserError(
            f"{self.world_size} processes were to train together, and not all have joined in {_JOIN_S:.0f} s; where "
            "machines may leave and come back, start torchrun with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"
        )

    def leave(self) -> None:
        """Leave the process group."""
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    def all_reduce(self, values: Tensor) -> Tensor:
        """Sum over all processes, in place."""
        if self.world_size > 1:
            torch.distributed.all_reduce(values)
        return values

    def broadcast(self, values: Tensor) -> None:
        """Replace by the values of the first process, in place."""
        if self.world_size > 1:
            torch.distributed.broadcast(values, src=0)

    def broadcast_object(self, value: T, *, source: int) -> T:
        """Return the value of the process `source`."""
        if self.world_size == 1:
            return value
        values = [value]
        torch.distributed.broadcast_object_list(values, src=source)
        return values[0]

    def all_gather(self, value: T) -> list[T]:
        """Return the value of every process, in the order of their ranks."""
        if self.world_size == 1:
            return [value]
        values: list[T | None] = [None] * self.world_size
        torch.distributed.all_gather_object(values, value)
        return values  # pyright: ignore[reportReturnType] (every None has been replaced)


_LOST = re.compile(
    r"connection (closed|reset|refused)|broken pipe|connectFullMesh|socket|timed out|timeout", re.IGNORECASE
)
"""What gloo, NCCL and their store say of a process that does not answer."""


def is_lost_process(error: RuntimeError) -> bool:
    """Return True for what PyTorch raises where another process of a data-parallel run has ended or does not answer."""
    if Processes.from_environment().world_size == 1:
        return False
    return isinstance(error, torch.distributed.DistError) or _LOST.search(str(error)) is not None


_ASK_EVERY_S, _JOIN_S = 0.05, 600.0


def number_of_torchrun(variable: str, default: int, *, least: int = 0, most: int = 2**31) -> int:
    """Return a whole number that torchrun sets in the environment of a process; the default without torchrun.

    Raises:
        UserError: it is none, or out of its range.
    """
    value = os.environ.get(variable, str(default))
    if not (value.isascii() and value.isdigit() and len(value) < 10 and least <= int(value) <= most):
        raise UserError(
            f"{variable}={value}: has to be a whole number from {least} to {most}; torchrun sets it, and without "
            "torchrun it is to be unset"
        )
    return int(value)


_SINGLE = {"rank": 0, "local_rank": 0, "world_size": 1}


def pick_device(name: str, processes: Processes) -> torch.device:
    """Return the device that `--device` names: auto, cpu, cuda, cuda:N or mps; auto takes the fastest there is.

    Raises:
        UserError: it is not there.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    asked, _, number = name.partition(":")
    kind = next(kind for kind, there in present.items() if there) if asked == "auto" else asked
    if not present[kind]:
        there = ", ".join(kind for kind, found in present.items() if found)
        raise UserError(f"--device {name}: torch {torch.__version__} finds none on this machine, only {there}")
    if kind != "cuda":
        return torch.device(kind)
    if number:
        return _numbered_gpu(name, int(number), processes)
    if processes.local_rank >= torch.cuda.device_count():
        raise UserError(
            f"torchrun started process {processes.local_rank} of this machine, which has {torch.cuda.device_count()} "
            "GPUs; use --nproc-per-node of at most that"
        )
    torch.cuda.set_device(processes.local_rank)
    return torch.device("cuda", processes.local_rank)


def has_gpu() -> bool:
    """Return True where `pick_device` takes a GPU for auto."""
    return torch.cuda.is_available() or torch.backends.mps.is_available()


def _numbered_gpu(name: str, number: int, processes: Processes) -> torch.device:
    if processes.world_size > 1:
        raise UserError(f"--device {name}: torchrun gives each process a GPU of its own; use --device cuda")
    if number >= (found := torch.cuda.device_count()):
        raise UserError(f"--device {name}: torch finds {found} GPUs, cuda:0 to cuda:{found - 1}")
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the type that convolutions compute in: fp32, bf16, or for auto bf16 where the device gains from it."""
    if name != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[name]
    if device.type == "cuda":
        gains = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        able = torch.cpu.get_capabilities()
        # Without AMX, Intel's processors take 1.3 times as long in bf16 as in fp32; AMD's gain.
        is_intel = str(able.get("cpu_name", "")).startswith("Intel")
        gains = bool(able.get("amx_bf16") or (able.get("avx512_bf16") and not is_intel))
    else:
        gains = False
    return torch.bfloat16 if gains else torch.float32


def check_compiler(device: torch.device, backend: str = "inductor") -> None:
    """Check that torch.compile can build code for a device here; else its first call ends in pages of traceback.

    Raises:
        UserError: there is no working compiler, or Python's headers or Triton are missing.
    """
    if backend != "inductor" or device.type == "mps" or os.name != "posix":
        return
    leave_out = "or leave --compile out"
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            raise UserError(
                f"--compile: needs Triton for {device.type}, which is not installed; install it, {leave_out}"
            )
        command = os.environ.get("CC") or next(filter(shutil.which, ("gcc", "clang")), "gcc")
    else:
        command = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    variable, language, package = ("CC", "c", "gcc") if device.type == "cuda" else ("CXX", "c++", "g++")
    flags = ["-fsyntax-only", "-x", language, f"-I{sysconfig.get_path('include')}", "-"]
    reason = "it is not there"
    try:
        tried = subprocess.run(
            [*shlex.split(command), *flags], input="#include <Python.h>\n", capture_output=True, text=True, check=False
        )
        reason = next(iter(tried.stderr.strip().splitlines()), f"exit status {tried.returncode}")
        if tried.returncode == 0:
            return
    except OSError as error:
        reason = error.strerror or reason
    if "Python.h" in reason:
        raise UserError(f"--compile: the headers of Python are missing ({reason}); install them, {leave_out}")
    raise UserError(
        f"--compile: needs a working {language.upper()} compiler, and {command} fails ({reason:.100}); install "
        f"{package}, set ${variable}, {leave_out}"
    )


def autocast(device: torch.device, precision: torch.dtype) -> AbstractContextManager[object]:
    """Return a context in which convolutions compute in `precision`."""
    return torch.autocast(device.type, precision, enabled=precision != torch.float32)

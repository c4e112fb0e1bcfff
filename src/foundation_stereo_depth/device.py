"""Where and in which precision a network runs, and the processes of a data-parallel run."""

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed
from torch import Tensor

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
        """Return what torchrun set; a single process without it."""
        return cls(**{name: int(os.environ.get(name.upper(), default)) for name, default in _SINGLE.items()})

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
            torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")

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


_SINGLE = {"rank": 0, "local_rank": 0, "world_size": 1}


def pick_device(name: str, processes: Processes) -> torch.device:
    """Return the device that `--device` names: auto, cpu, cuda or mps; auto takes the fastest there is.

    Raises:
        UserError: it is not there.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    kind = next(kind for kind, there in present.items() if there) if name == "auto" else name
    if not present[kind]:
        there = ", ".join(kind for kind, found in present.items() if found)
        raise UserError(f"--device {kind}: torch {torch.__version__} finds none on this machine, only {there}")
    if kind != "cuda":
        return torch.device(kind)
    if processes.local_rank >= torch.cuda.device_count():
        raise UserError(
            f"torchrun started process {processes.local_rank} of this machine, which has {torch.cuda.device_count()} "
            "GPUs; use --nproc-per-node of at most that"
        )
    torch.cuda.set_device(processes.local_rank)
    return torch.device("cuda", processes.local_rank)


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the type that convolutions compute in: fp32, bf16, or for auto bf16 where the device gains from it."""
    if name != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[name]
    if device.type == "cuda":
        gains = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        able = torch.cpu.get_capabilities()
        gains = bool(able.get("amx_bf16") or able.get("avx512_bf16"))
    else:
        gains = False
    return torch.bfloat16 if gains else torch.float32


def autocast(device: torch.device, precision: torch.dtype) -> AbstractContextManager[object]:
    """Return a context in which convolutions compute in `precision`."""
    return torch.autocast(device.type, precision, enabled=precision != torch.float32)

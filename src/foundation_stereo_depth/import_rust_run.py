"""`foundation-stereo-import-rust`: copy a run of the Rust trainer, outputs-rs/<run id>, into MLflow."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.files import read_regular_file
from foundation_stereo_depth.options import command_line
from foundation_stereo_depth.options.fields import OptionGroup, option
from foundation_stereo_depth.options.training import EXPERIMENT_HELP

if TYPE_CHECKING:
    from foundation_stereo_depth.tracking import RunRecord

RUST_RUN_TAG = "rust_run_id"
"""The tag of a run in MLflow that names the run of the Rust trainer that it is a copy of."""
_LARGEST_JSON_BYTES = 20_000_000
"""A history of ten thousand epochs has a quarter of that."""
_RUN_ID = re.compile("[0-9a-f]{1,64}")
_LAST_MS, _MOST_EPOCHS = 2**53, 2**31
"""MLflow keeps both in 64 bits."""
_CHECKPOINTS = ("best.safetensors", "best.json", "last.safetensors", "last.json")


@dataclass(frozen=True, kw_only=True)
class ImportOptions(OptionGroup):
    """results"""

    mlflow_tracking_uri: str | None = option(
        None, "where MLflow keeps its runs: a database or a server; else $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db"
    )
    experiment_name: str | None = option(None, EXPERIMENT_HELP, aliases=("--mlflow-experiment",))


@dataclass(frozen=True, kw_only=True)
class ImportRustOptions:
    """All options of `foundation-stereo-import-rust`."""

    tracking: ImportOptions = ImportOptions()


@dataclass(frozen=True, kw_only=True)
class RustRun:
    """What a run of the Rust trainer has written so far.

    Attributes:
        folder: its folder, outputs-rs/<run id>.
        config: its options and facts, as in config.json.
        history: for each finished epoch its number from 1, the time it ended in ms since 1970, and its metrics.
    """

    folder: Path
    config: dict[str, Any]
    history: list[dict[str, Any]]

    @property
    def is_finished(self) -> bool:
        """True where all epochs are done."""
        return len(self.history) == self.config["options"]["optimizer"]["epochs"]

    def parameters(self) -> dict[str, Any]:
        """Return options and facts by name, as training in Python records them."""
        groups = {name: group for name, group in self.config["options"].items() if name != "cache"}
        options = {name: value for group in groups.values() for name, value in group.items() if name != "resume"}
        return options | self.config["facts"]


def read_rust_run(folder: Path) -> RustRun:
    """Read a run's config.json and metrics_history.json.

    Raises:
        UserError: they are missing, or not as this version of the Rust trainer writes them.
    """
    config, history = (_read_json(folder / name) for name in ("config.json", "metrics_history.json"))
    try:
        run = RustRun(folder=folder, config=dict(config), history=list(history))
        _check_values(run)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{folder}: its JSON files are not as the Rust trainer writes them ({error!r})") from error
    return run


def _check_values(run: RustRun) -> None:
    """Raise for what no run says: MLflow would take some of it, or refuse it after it began the copy."""
    config, options = run.config, run.config["options"]
    right = {
        "run_id": isinstance(config["run_id"], str) and _RUN_ID.fullmatch(config["run_id"]) is not None,
        "started_ms": _is_count(config["started_ms"], _LAST_MS),
        "run_name": command_line.matches_type(config.get("run_name"), str | None),
        "options": command_line.matches_type(options, dict[str, dict[str, Any]]),
        "epochs": _is_count(options["optimizer"]["epochs"], _MOST_EPOCHS),
        "facts": command_line.matches_type(config["facts"], dict[str, Any]),
    }
    for epoch in run.history:
        right["epoch"] = _is_count(epoch["epoch"], _MOST_EPOCHS) and epoch["epoch"] > 0
        right["time_ms"] = _is_count(epoch["time_ms"], _LAST_MS)
        right["metrics"] = command_line.matches_type(epoch["metrics"], dict[str, float | None])
        if not all(right.values()):
            break
    if odd := [name for name, is_right in right.items() if not is_right]:
        raise ValueError(odd[0])


def _is_count(value: Any, largest: int) -> bool:
    return command_line.matches_type(value, int) and 0 <= value <= largest


def import_rust_run(folder: Path, options: ImportOptions) -> str:
    """Copy a run into MLflow, and return its id there; what an earlier import has copied is not copied again.

    Raises:
        UserError: the folder holds no run, or MLflow cannot be reached.
    """
    run = read_rust_run(folder)

    from foundation_stereo_depth.tracking import copy_run  # after the folder was checked: importing it takes seconds

    return copy_run(options.mlflow_tracking_uri, options.experiment_name, _to_record(run))


def _to_record(run: RustRun) -> "RunRecord":
    from foundation_stereo_depth.tracking import EpochRecord, RunRecord

    config, run_id = run.config, str(run.config["run_id"])
    return RunRecord(
        id_tag=RUST_RUN_TAG,
        id=run_id,
        name=config.get("run_name") or f"rust-{run_id[:8]}",
        tags={
            "rust_run_folder": str(run.folder.resolve()),
            "mlflow.source.name": str(config.get("program", "foundation-stereo-train")),
            "mlflow.source.type": "LOCAL",
        },
        parameters=run.parameters(),
        started_ms=config["started_ms"],
        ended_ms=run.history[-1]["time_ms"] if run.history else config["started_ms"],
        status="FINISHED" if run.is_finished else "KILLED",
        epochs=[
            EpochRecord(
                epoch=epoch["epoch"],
                time_ms=epoch["time_ms"],
                # JSON has null in place of NaN.
                metrics={name: value for name, value in epoch["metrics"].items() if value is not None},
            )
            for epoch in run.history
        ],
        new_files={"previews": _own_files(run.folder, sorted((run.folder / "previews").glob("epoch_*.png")))},
        current_files={"checkpoints": _own_files(run.folder, [run.folder / "checkpoints" / c for c in _CHECKPOINTS])},
    )


def _own_files(folder: Path, paths: Sequence[Path]) -> list[Path]:
    """Return those that are there; they are copied to MLflow, which may be a server that others read.

    Raises:
        UserError: one is a link to a file elsewhere, or is larger than any checkpoint.
    """
    from foundation_stereo_depth.checkpoint import LARGEST_FILE_BYTES

    found = [path for path in paths if path.is_file()]
    for path in found:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{path}: is a link to a file outside {folder}, which is not copied")
        if path.stat().st_size > LARGEST_FILE_BYTES:
            raise UserError(f"{path}: has more than {LARGEST_FILE_BYTES:,} bytes, which no file of its kind has")
    return found


def _read_json(path: Path) -> Any:
    try:
        encoded = read_regular_file(path, at_most_bytes=_LARGEST_JSON_BYTES, error_type=UserError)
    except UserError as error:
        raise UserError(f"{error}; name the folder of a run, outputs-rs/<run id>") from error
    try:
        return json.loads(encoded.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not JSON ({error})") from error


def import_rust_command(argv: Sequence[str] | None = None, program: str = "foundation-stereo-import-rust") -> int:
    """Run `foundation-stereo-import-rust`; return its exit status."""
    parser = command_line.create_parser(
        program,
        ImportRustOptions,
        "Copy a run of the Rust trainer (rust-trainer/) into MLflow, so that it stands beside those of Python; again "
        "after more epochs copies what is new.",
        inputs={"folder": "of the run, outputs-rs/<run id>"},
        examples=("rust-trainer/outputs-rs/RUN_ID",),
    )
    explicit = command_line.parse_explicit(parser, argv)

    def run() -> int:
        options = command_line.build_options(ImportRustOptions, explicit)
        run_id = import_rust_run(Path(explicit["folder"]), options.tracking)
        from foundation_stereo_depth.tracking import experiment_name

        name = experiment_name(options.tracking.experiment_name)
        print(f"{explicit['folder']}: copied to run {run_id} of experiment {name}")
        return 0

    return command_line.run_command(parser.prog, explicit, run)

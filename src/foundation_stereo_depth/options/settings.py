"""`foundation-stereo.toml`: the defaults of flags on one machine or in one folder. Flags win.

Keys are flags without their dashes. Those at the top set the flag of every command that has it; a table named as the
command, such as `[predict]`, sets it for that command alone:

    dataset-root = "~/data/FSD"
    batch-size = 16

    [live-view]
    left = "0"
    right = "2"
"""

import dataclasses
import importlib
import os
import sys
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.options.fields import flag_of

SETTINGS_FILE = "foundation-stereo.toml"
OPTIONS_OF_COMMANDS = {
    "depth": "foundation_stereo_depth.options.training:TrainOptions",
    "cache": "foundation_stereo_depth.options.training:CacheOptions",
    "predict": "foundation_stereo_depth.options.inference:PredictOptions",
    "evaluate": "foundation_stereo_depth.options.inference:EvaluateOptions",
    "export": "foundation_stereo_depth.options.inference:ExportOptions",
    "import-rust": "foundation_stereo_depth.import_rust_run:ImportRustOptions",
    "live-view": "live_camera.options:LiveViewOptions",
    "calibrate": "live_camera.options:CalibrateOptions",
    "list-cameras": "live_camera.options:ListCamerasOptions",
    "demo": "live_camera.options:DemoOptions",
}
"""The tables that a file may have, each called as the command without its prefix, and the command's options.

They are named rather than imported: only a file's keys need them, and this package does not import `live_camera`.
"""
SYNONYMS = {"train": "depth"}
"""`foundation-stereo train` is the command `foundation-stereo-depth`."""

_ALTERNATIVES = (
    ({"checkpoint"}, {"run_id"}),
    ({"dataset_root"}, {"procedural_samples"}),
    ({"left", "right"}, {"side_by_side"}),
    ({"left", "right", "side_by_side"}, {"images"}),
    ({"calibration"}, {"focal_px", "baseline_m"}),
    ({"half"}, {"int8"}),
    ({"overwrite"}, {"skip_existing"}),
)
"""Options that exclude each other: a flag of one side replaces what a file sets on the other."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A default that a file sets.

    Attributes:
        flag: `--batch-size`.
        words: it and its value as on a command line.
        source: the file.
    """

    flag: str
    words: tuple[str, ...]
    source: Path


def settings_files() -> list[Path]:
    """Return the files that there are: the user's first, then the one of the working folder, which wins.

    Raises:
        UserError: a folder of theirs may not be looked into.
    """
    candidates = dict.fromkeys(folder.absolute() / SETTINGS_FILE for folder in (_user_folder(), Path()))
    found: list[Path] = []
    for path in candidates:
        try:
            found += [path] if path.is_file() else []
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    return found


def _user_folder() -> Path:
    """Return the user's configuration folder, as this kind of system has it."""
    if sys.platform == "darwin":
        return Path("~/Library/Application Support").expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("APPDATA") or Path("~/AppData/Roaming").expanduser())
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser())


def read_settings(path: Path, command: str, flags: Mapping[str, bool]) -> list[Setting]:
    """Return what a file sets for a command.

    Args:
        path: the file.
        command: its name, such as foundation-stereo-predict.
        flags: all that the command has, among them `--no-...`; True for those that take several values at once.

    Raises:
        UserError: it cannot be read, is no TOML, or has a key that is no flag.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{path}: is not TOML ({error})") from error
    tables = {name: value for name, value in content.items() if isinstance(value, dict)}
    if unknown := sorted(set(tables) - set(OPTIONS_OF_COMMANDS) - set(SYNONYMS)):
        raise UserError(f"{path}: [{unknown[0]}] is no command; there are {', '.join(OPTIONS_OF_COMMANDS)}")
    for_all = {name: value for name, value in content.items() if name not in tables}
    known = _all_flags() | set(flags)
    if wrong := [name for name in for_all if flag_of(name) not in known]:
        raise UserError(f"{path}: {wrong[0]} is no flag of any command")
    table = command.removeprefix("foundation-stereo").lstrip("- ")
    table = SYNONYMS.get(table, table)
    own = {k: v for name, values in tables.items() if SYNONYMS.get(name, name) == table for k, v in values.items()}
    if wrong := [name for name in own if flag_of(name) not in flags]:
        raise UserError(f"{path}: {wrong[0]} is no flag of {command}")
    merged = {flag_of(name): value for name, value in for_all.items() if flag_of(name) in flags}
    merged |= {flag_of(name): value for name, value in own.items()}
    return [
        Setting(flag=flag, words=words, source=path)
        for flag, value in merged.items()
        if (words := tuple(_words(path, flag, value, flags)))
    ]


def without_replaced(values: dict[str, Any], typed: Collection[str]) -> dict[str, Any]:
    """Return the settings that no typed flag replaces, by itself or because the two exclude each other."""
    replaced = set(typed)
    for one, other in _ALTERNATIVES:
        for chosen, dropped in ((one, other), (other, one)):
            if chosen & set(typed):
                replaced |= dropped
    return {name: value for name, value in values.items() if name not in replaced}


def _words(path: Path, flag: str, value: Any, flags: Mapping[str, bool]) -> Iterator[str]:
    """Yield what the value is on a command line; nothing for a switch that is off."""
    off = f"--no-{flag[2:]}"
    if isinstance(value, bool):
        if value or off in flags:
            yield flag if value else off
    elif isinstance(value, list) and flags[flag]:
        yield from (flag, *map(str, value))
    elif isinstance(value, list):
        for each in value:
            yield from _words(path, flag, each, flags)
    elif isinstance(value, str | int | float):
        yield f"{flag}={value}"
    else:
        raise UserError(f"{path}: {flag[2:]} has to be a text, a number, true, false, or a list of them")


def _all_flags() -> set[str]:
    """Return the flags of all commands."""
    return {"--verbose", "--quiet"}.union(*map(_flags_of_options, OPTIONS_OF_COMMANDS.values()))


def commands_with(flag: str) -> list[str]:
    """Return the names of the commands that have a flag, as `foundation-stereo` takes them."""
    umbrella_names = {command: name for name, command in SYNONYMS.items()}
    return [
        umbrella_names.get(command, command)
        for command, address in OPTIONS_OF_COMMANDS.items()
        if flag in _flags_of_options(address)
    ]


def _flags_of_options(address: str) -> set[str]:
    module, name = address.split(":")
    found: set[str] = set()
    for group in get_type_hints(getattr(importlib.import_module(module), name)).values():
        for field in dataclasses.fields(group):
            found |= {flag_of(field.name), f"--no-{flag_of(field.name)[2:]}", *field.metadata["aliases"]}
    return found

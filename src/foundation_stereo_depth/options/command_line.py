"""Dataclasses of options <-> argparse and <-> plain values in files; the fields define everything.

Only flags that the user typed are in the namespace, so that a resumed run can distinguish them from defaults.
"""

import argparse
import dataclasses
import difflib
import errno
import inspect
import io
import logging
import os
import signal
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from foundation_stereo_depth import log
from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.options import settings as settings_module
from foundation_stereo_depth.options.fields import expand_home, flag_of
from foundation_stereo_depth.signals import one_interrupt, stop_signals
from foundation_stereo_depth.threads import limit_spinning

Options = TypeVar("Options")
Explicit = dict[str, Any]
"""Field name -> value, for the flags that the user typed."""

_VERBOSITY = "verbosity"
_EXAMPLES = "examples:"
_SETTINGS = "settings of files"
"""Under this name, which no flag has, what settings files say travels with what was typed."""

logger = logging.getLogger(__name__)

RENAMED_OPTIONS: dict[str, dict[str, str]] = {
    "CameraOptions": {"width": "camera_width", "height": "camera_height"},
}
"""Options that were renamed: name of their class -> old name -> new name.

Checkpoints of every release are read and the old flags are accepted, so an entry stays here for ever:
`"OptimizerOptions": {"lr": "learning_rate"}`.
"""
REMOVED_OPTIONS: dict[str, dict[str, tuple[Any, ...] | None]] = {}
"""Options that were removed: name of their class -> name -> the values that mean what the program does without it.

Another value is refused: the file would be read as something that it is not. None accepts every value, for options that
changed no result: `"RuntimeOptions": {"cudnn_benchmark": None}`.
"""


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith(_EXAMPLES) else super()._fill_text(text, width, indent)


class _PrintVersion(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        # Not imported: the package names, for types alone, what options are not to see.
        version = sys.modules["foundation_stereo_depth"].__version__
        parser.exit(print_at_once(parser.prog, f"{parser.prog} {version}"))


class _Parser(argparse.ArgumentParser):
    """Prints one line for a mistake, without the usage of fifty flags that argparse prints above it.

    Attributes:
        options: the dataclass of groups that it parses.
        source: begins the line where what is parsed comes from a file.
    """

    options: type[Any]
    source: str = ""

    def print_help(self, file: Any = None) -> None:
        """Print the help; end the command with a status other than 0 where it cannot be printed."""
        assert file is None, "help is what was asked for: it goes to standard output"
        if status := print_at_once(self.prog, self.format_help().removesuffix("\n")):
            self.exit(status)

    def error(self, message: str) -> Any:
        end = " " if message.endswith("?") else "; "
        self.exit(2, f"{self.prog}: {self.source}{message}{end}--help lists every flag\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Raise for a word that the flag does not take; name the nearest one."""
        choices = [str(choice) for choice in action.choices or ()]
        if choices and str(value) not in choices:
            near = difflib.get_close_matches(str(value), choices, n=1)
            end = f"; did you mean {near[0]}?" if near else ""
            raise argparse.ArgumentError(action, f"{value}: has to be one of {', '.join(choices)}{end}")

    @property
    def flags(self) -> dict[str, bool]:
        """Return all flags, aliases and negations among them; True for those that take several values at once."""
        actions = self._option_string_actions.items()
        return {flag: bool(action.nargs) for flag, action in actions if flag not in ("--help", "-h", "--version")}


def create_parser(
    command: str,
    options: type[Any],
    description: str,
    inputs: dict[str, str] | None = None,
    examples: Sequence[str] = (),
) -> _Parser:
    """Return the parser of a command whose options are the groups of `options`.

    Args:
        command: its name.
        options: the dataclass of groups.
        description: what it does.
        inputs: positional arguments: names and their help; only the first is required.
        examples: command lines for the end of `--help`, without the name of the command.
    """
    names = [name.upper() for name in inputs or ()]
    parser = _Parser(
        prog=command,
        usage=" ".join([command, *names[:1], *(f"[{name}]" for name in names[1:]), "[flags]"]),
        description=description,
        epilog="\n".join([_EXAMPLES, *(f"  {command} {line}".rstrip() for line in examples)]) if examples else None,
        formatter_class=_Formatter,
        allow_abbrev=False,
    )
    parser.options = options
    for position, (name, help_text) in enumerate((inputs or {}).items()):
        parser.add_argument(
            name, metavar=name.upper(), nargs="?" if position else None, help=help_text, type=expand_home
        )
    for group_type in _groups(options).values():
        group = parser.add_argument_group(_first_line(group_type))
        hints = get_type_hints(group_type)
        for field in dataclasses.fields(group_type):
            renamed = RENAMED_OPTIONS.get(group_type.__name__, {})
            former = [flag_of(old) for old, new in renamed.items() if new == field.name]
            _add_flag(group, field, hints[field.name], former)
    _add_verbosity(parser)
    return parser


def parse_explicit(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> Explicit:
    """Return the flags that the user typed, without defaults."""
    log.prepare_streams()
    explicit = _values(parser, arguments)
    try:
        settings = _read_settings(parser, explicit)
    except UserError as error:
        parser.error(str(error))
    return explicit | ({_SETTINGS: settings} if settings.values else {})


def default_options(options: type[Options], explicit: Explicit, base: Options | None = None) -> Options:
    """Return the defaults, or `base`, changed by what settings files say.

    Raises:
        UserError: a value is out of its range.
    """
    return _replaced(options() if base is None else base, _settings_of(explicit).values)


def build_options(options: type[Options], explicit: Explicit, base: Options | None = None) -> Options:
    """Return options made of what was typed, over `base`, or over the defaults with those of settings files.

    Raises:
        UserError: a value is out of its range.
    """
    if base is None:
        return _replaced(options(), _settings_of(explicit).values | explicit)
    return _replaced(base, explicit)


def _replaced(base: Options, values: Explicit) -> Options:
    """Return options with other values; names that no group has are left out."""
    groups = {
        name: dataclasses.replace(
            getattr(base, name), **{key: value for key, value in values.items() if key in _names(group)}
        )
        for name, group in _groups(type(base)).items()
    }
    return type(base)(**groups)


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """Defaults that settings files set for a command, by the names of options, and the files' own words."""

    values: Explicit = dataclasses.field(default_factory=dict[str, Any])
    lines: tuple[str, ...] = ()


def _settings_of(explicit: Explicit) -> _Settings:
    return explicit.get(_SETTINGS, _Settings())


def _values(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> Explicit:
    namespace, unknown = parser.parse_known_args(arguments)
    if unknown and any(Path(each).exists() for each in unknown):
        parser.error(
            f"{log.count_of(len(unknown), 'file')} more than it takes, {unknown[0]} first; put each glob in quotes, "
            "as in 'left/*.png', so that the shell does not expand it"
        )
    if unknown:
        parser.error(f"unknown argument {unknown[0]}{_suggest_flag(parser, unknown[0])}")
    typed = vars(namespace)
    return {name: tuple(value) if isinstance(value, list) else value for name, value in typed.items()}


def _suggest_flag(parser: argparse.ArgumentParser, argument: str) -> str:
    """Return which flag was meant, as the end of a message; empty where none is near."""
    typed = argument.split("=", maxsplit=1)[0]
    if not typed.startswith("-"):
        return ""
    known = [flag for flag in parser._option_string_actions if flag.startswith("--")]
    beginning = [flag for flag in known if typed.startswith("--") and flag.startswith(typed)]
    if not beginning and (owners := settings_module.commands_with(typed)):
        return f", a flag of {' and '.join(owners)}"
    near = beginning or difflib.get_close_matches(typed, known, n=1, cutoff=0.7)
    return f"; did you mean {near[0]}?" if near else ""


def _read_settings(parser: argparse.ArgumentParser, explicit: Explicit) -> _Settings:
    """Return what settings files set and the user did not type.

    Raises:
        UserError: a file cannot be read, or sets what is no flag.
    """
    assert isinstance(parser, _Parser)
    settings: dict[str, tuple[settings_module.Setting, Explicit]] = {}
    for path in settings_module.settings_files():
        reader = create_parser(parser.prog, parser.options, "")  # without required inputs
        reader.source = f"{path}: "
        for setting in settings_module.read_settings(path, parser.prog, reader.flags):
            values = _values(reader, setting.words)
            settings |= {name: (setting, {name: value}) for name, value in values.items()}
    values = {name: value for _, each in settings.values() for name, value in each.items()}
    values = settings_module.without_replaced(values, explicit)
    by_file: dict[Path, list[str]] = {}
    for name, (setting, _) in settings.items():
        if name in values:
            by_file.setdefault(setting.source, []).append(" ".join(setting.words).replace("=", " ", 1))
    lines = tuple(f"defaults from {path}: {', '.join(words)}" for path, words in by_file.items())
    return _Settings(values=values, lines=lines)


_LONGEST_LINE = 4000
"""Characters of an error message; a path alone may have hundreds."""


_LEFT_OUT = ("torch", "torchvision", "mlflow", "numba", "matplotlib", "safetensors")
"""Packages that an installation for prediction alone may lack (README.md)."""


def run_command(command: str, explicit: Explicit, run: Callable[[], int], *, finishes_files: bool = False) -> int:
    """Run a command and return its exit status.

    A `UserError` becomes one line on standard error and status 2; other exceptions keep their traceback.

    Args:
        command: its name, for the line.
        explicit: what the user typed; `--verbose` and `--quiet` set what is logged.
        run: does the work; returns the status.
        finishes_files: it has files that are of use only when they are closed, so that termination and a closed
            terminal interrupt it as Ctrl-C does.
    """
    settings = _settings_of(explicit)
    log.configure((settings.values | explicit).get(_VERBOSITY, logging.INFO))
    for line in settings.lines:
        logger.info(line)
    limit_spinning()
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may contain bytes that cannot be encoded
        sys.stdout.reconfigure(errors="backslashreplace")
    numbers = [signal.SIGINT] if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN else []
    try:
        with one_interrupt(stop_signals() if finishes_files else numbers):
            status = run()
        sys.stdout.flush()
    except BrokenPipeError as error:
        return _end_without_output(command, error)
    except UserError as error:
        return _print_error(command, str(error), 2)
    except KeyboardInterrupt:
        return _print_error(command, "interrupted", 130)
    except ModuleNotFoundError as error:
        if error.name not in _LEFT_OUT:
            raise
        return _print_error(command, f"needs {error.name}, which is not installed here; `uv sync` installs it", 2)
    except OSError as error:
        if error.filename is None and error.errno in _FULL:
            return _end_without_output(command, error)
        if error.filename is None:
            raise
        if isinstance(error, NotADirectoryError | FileExistsError):
            path = Path(error.filename)
            file = next((each for each in (path, *path.parents) if each.is_file()), path)
            return _print_error(command, f"{file}: is a file, where a folder is needed", 2)
        # The system refuses a path: full, read-only, forbidden.
        return _print_error(command, f"{error.filename}: {error.strerror}", 2)
    return status


def print_at_once(command: str, text: str) -> int:
    """Print all that a command has to say; return its exit status: 0, or as `run_command` where that fails."""
    try:
        print(text, flush=True)
    except OSError as error:
        return _end_without_output(command, error)
    return 0


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.EBADF)
"""Of a write without a file's name."""


def _end_without_output(command: str, error: OSError) -> int:
    """Return the exit status of a command whose output could not be written; quiet for a reader that has gone."""
    # Else Python would try to write it again when it ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):  # as `head` does
        return 1
    return _print_error(command, f"a write failed ({error.strerror}): is standard output a full disk?", 2)


def _print_error(command: str, message: str, status: int) -> int:
    # The message may quote a stranger's file: bytes that steer a terminal, or megabytes.
    words = " ".join(message.split())
    line = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in words)
    print(f"{command}: {line if len(line) <= _LONGEST_LINE else line[:_LONGEST_LINE] + ' ...'}", file=sys.stderr)
    return status


def options_to_dict(options: Any) -> dict[str, dict[str, Any]]:
    """Return groups of plain values (no Path), for a checkpoint or a table."""
    return {
        group: {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}
        for group, values in dataclasses.asdict(options).items()
    }


def options_from_dict(options: type[Options], plain: dict[str, dict[str, Any]]) -> Options:
    """Return options from `options_to_dict`'s result, perhaps an older version's; missing ones take their defaults.

    Raises:
        UserError: `plain` has an option that this version does not know, or a value of another type or out of range.
    """
    return options(**{name: group_from_dict(group, plain.get(name, {})) for name, group in _groups(options).items()})


def group_from_dict(group: type[Options], plain: dict[str, Any]) -> Options:
    """Return one group of options from values that were read from a file.

    Raises:
        UserError: as `options_from_dict`.
    """
    hints = get_type_hints(group)
    plain = _present_names(group, plain)
    unknown = sorted(set(plain) - set(hints))
    if unknown:
        raise UserError(f"unknown options {', '.join(unknown)}; they come from another version of this program")
    values = {name: _from_plain(value, hints[name]) for name, value in plain.items()}
    for name, value in values.items():
        if not matches_type(value, hints[name]):
            allowed = inspect.formatannotation(hints[name])
            raise UserError(f"{flag_of(name)} is {value!r:.60}, but has to be {allowed}")
    return group(**values)


def _present_names(group: type[Any], plain: dict[str, Any]) -> dict[str, Any]:
    """Return the options under the names that they have in this version, without those that were removed."""
    renamed = RENAMED_OPTIONS.get(group.__name__, {})
    removed = REMOVED_OPTIONS.get(group.__name__, {})
    for name in set(plain) & set(removed):
        harmless = removed[name]
        if harmless is not None and plain[name] not in harmless:
            raise UserError(
                f"{flag_of(name)} is {plain[name]!r:.60}, an option that this version no longer has; use the version "
                "that wrote it"
            )
    return {renamed.get(name, name): value for name, value in plain.items() if name not in removed}


def _from_plain(value: Any, hint: Any) -> Any:
    """Return a text as the Path that it stands for, unless it is one of the words that the option takes."""
    words = [word for kind in _alternatives(hint) if get_origin(kind) is Literal for word in get_args(kind)]
    return Path(value) if isinstance(value, str) and Path in _alternatives(hint) and value not in words else value


def matches_type(value: Any, hint: Any) -> bool:
    """Return True for a value of this type down to its elements; for the types of options and checkpoints."""
    kinds = get_args(hint)
    if get_origin(hint) in (types.UnionType, Union):
        return any(matches_type(value, kind) for kind in kinds)
    if get_origin(hint) is Literal:
        return isinstance(value, str) and value in kinds
    if get_origin(hint) is tuple:
        if isinstance(value, tuple) and kinds[-1] is Ellipsis:
            return all(matches_type(each, kinds[0]) for each in value)
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(matches_type, value, kinds))
    if get_origin(hint) is dict:
        return isinstance(value, dict) and all(
            matches_type(k, kinds[0]) and matches_type(v, kinds[1]) for k, v in value.items()
        )
    if hint is Any:
        return True
    # An int is accepted as a float; a bool is neither, though Python's isinstance says so.
    return isinstance(value, int | float if hint is float else hint) and (hint is bool or not isinstance(value, bool))


def find_fixed_conflicts(explicit: Explicit, saved: Any) -> list[str]:
    """Return the flags typed with another value than the saved run has, though a resumed run may not change them."""
    conflicts: list[str] = []
    for name, group in _groups(type(saved)).items():
        for field in dataclasses.fields(group):
            old = getattr(getattr(saved, name), field.name)
            if field.metadata["fixed"] and field.name in explicit and explicit[field.name] != old:
                conflicts.append(f"{flag_of(field.name)} {explicit[field.name]} (the run has {old})")
    return conflicts


def _add_verbosity(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--version", action=_PrintVersion, nargs=0, default=argparse.SUPPRESS, help="print the version")
    group = parser.add_argument_group("messages, on standard error").add_mutually_exclusive_group()
    for flags, level, help_text in (
        (("-v", "--verbose"), logging.DEBUG, "log details too"),
        (("-q", "--quiet"), logging.WARNING, "log warnings only"),
    ):
        group.add_argument(
            *flags, action="store_const", const=level, dest=_VERBOSITY, default=argparse.SUPPRESS, help=help_text
        )


def _groups(options: type[Any]) -> dict[str, type[Any]]:
    return get_type_hints(options)


def _names(group: type[Any]) -> set[str]:
    return {field.name for field in dataclasses.fields(group)}


def _first_line(group: type[Any]) -> str:
    return (group.__doc__ or "").splitlines()[0]


def _add_flag(group: Any, field: "dataclasses.Field[Any]", hint: Any, former: Sequence[str]) -> None:
    """Add the flag of a field, and without help the flags that it had before."""
    help_text = field.metadata["help"].replace("%", "%%")
    if field.default is not None:
        default = ("on" if field.default else "off") if isinstance(field.default, bool) else field.default
        help_text += f" [{default}]"
    settings: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS, "help": help_text}
    kinds = [each for each in _alternatives(hint) if each is not types.NoneType]
    if hint is bool:
        settings["action"] = argparse.BooleanOptionalAction
    elif get_origin(kinds[0]) is Literal and len(kinds) == 1:
        settings["choices"] = get_args(kinds[0])
    elif several := [each for each in _alternatives(hint) if get_origin(each) is tuple]:
        parts = get_args(several[0])
        if parts[-1] is Ellipsis:  # given several times
            settings |= {"action": "append", "type": _converter(parts[0]), "metavar": field.metadata["metavar"]}
        else:
            parts = max((get_args(each) for each in several), key=len)  # of tuples of several lengths all are taken
            settings |= {"type": _converter(parts[0]), "metavar": tuple(map(_metavar, parts))}
            settings["nargs"] = len(parts) if len(several) == 1 else "+"
    else:
        settings["type"] = _converter(hint)
        settings["metavar"] = field.metadata["metavar"] or _metavar(hint)
    short: str | None = field.metadata["short"]
    flags = [*([] if short is None else [short]), flag_of(field.name), *field.metadata["aliases"]]
    group.add_argument(*flags, **settings)
    if former:
        group.add_argument(*former, **settings | {"help": argparse.SUPPRESS})


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (types.UnionType, Union) else (hint,)


def _converter(hint: Any) -> Any:
    words = [w for h in _alternatives(hint) if get_origin(h) is Literal for w in get_args(h)]
    plain = next(h for h in _alternatives(hint) if h in (int, float, str, Path))

    def convert(text: str) -> Any:
        if plain is Path and not text.strip():  # an unset variable, say, which would mean the current folder
            raise ValueError
        return text if text in words else plain(expand_home(text))

    names: dict[Any, str] = {int: "whole number", float: "number", Path: "path"}
    convert.__name__ = names.get(plain, "text")
    return convert


def _metavar(hint: Any) -> str:
    words = [str(w) for h in _alternatives(hint) if get_origin(h) is Literal for w in get_args(h)]
    letters: dict[Any, str] = {int: "N", float: "X", str: "TEXT", Path: "PATH"}
    return "|".join(words + [letters[h] for h in _alternatives(hint) if h in letters])

"""`foundation-stereo COMMAND`: every command under one name, and completion of its arguments in shells."""

import difflib
import sys
from collections.abc import Sequence

from foundation_stereo_depth import __version__, log
from foundation_stereo_depth.commands import COMMANDS, PROGRAM, load
from foundation_stereo_depth.options.command_line import print_at_once

SHELLS = ("bash", "zsh", "fish")


def main(argv: Sequence[str] | None = None) -> int:
    """Run `foundation-stereo`; return its exit status."""
    log.prepare_streams()
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        return print_at_once(PROGRAM, _help())
    name, *rest = words
    if name == "--version":
        return print_at_once(PROGRAM, f"{PROGRAM} {__version__}")
    if name == "completion":
        return _print_completion(rest)
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, [*COMMANDS, "completion", "--help", "--version"], n=1)
        suggestion = f"did you mean {close[0]}?" if close else "--help lists the commands"
        print(f"{PROGRAM}: no command {name}; {suggestion}", file=sys.stderr)
        return 2
    run = load(COMMANDS[name].function)
    status: int = run(rest, program=f"{PROGRAM} {name}")
    return status


def _help() -> str:
    lines = [f"  {name:14}{command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            f"usage: {PROGRAM} COMMAND [flags]",
            "",
            "Metric depth from two webcams: train, calibrate, predict, view live.",
            "",
            "commands:",
            *lines,
            f"  {'completion':14}print a script that completes arguments in {', '.join(SHELLS)}",
            "",
            f"`{PROGRAM} COMMAND --help` lists the flags of a command, `{PROGRAM} --version` prints the version.",
            "examples:",
            f"  {PROGRAM} demo",
            f"  {PROGRAM} predict left.png right.png",
            f"  {PROGRAM} train --model guided --epochs 5",
            f'  eval "$({PROGRAM} completion bash)"',
        ]
    )


def _print_completion(rest: Sequence[str]) -> int:
    if set(rest) & {"-h", "--help"}:
        shells = ", ".join(SHELLS)
        return print_at_once(
            PROGRAM,
            f"usage: {PROGRAM} completion SHELL\n\nprint a script that completes arguments in SHELL: {shells}\n\n"
            f'example:\n  eval "$({PROGRAM} completion bash)"',
        )
    if len(rest) != 1 or rest[0] not in SHELLS:
        print(f"{PROGRAM}: completion needs the name of a shell: {', '.join(SHELLS)}", file=sys.stderr)
        return 2
    from foundation_stereo_depth.completion import completion_script  # noqa: PLC0415 (it reads all options)

    return print_at_once(PROGRAM, completion_script(rest[0]))

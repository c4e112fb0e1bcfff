"""Scripts that complete commands, flags and their values in bash, zsh and fish, made from the options."""

import argparse
import shlex
from typing import Any

from foundation_stereo_depth.commands import COMMANDS, PROGRAM, load
from foundation_stereo_depth.options.command_line import create_parser

_FUNCTION = "_foundation_stereo"


def completion_script(shell: str) -> str:
    """Return a script for bash, zsh or fish; the first two share one, since zsh can run bash's."""
    flags = {name: _visible_flags(load(command.options)) for name, command in COMMANDS.items()}
    if shell == "fish":
        return "\n".join(_fish_lines(flags))
    zsh = [
        "(( $+functions[compdef] )) || { autoload -U compinit && compinit -i }",  # a bare zsh has not done so
        "autoload -U +X bashcompinit && bashcompinit",
    ]
    zsh = zsh if shell == "zsh" else []
    return "\n".join([*zsh, *_bash_lines(flags)])


def _visible_flags(options: type[Any]) -> list[argparse.Action]:
    parser = create_parser(PROGRAM, options, "")
    return [action for action in parser._actions if action.option_strings and action.help != argparse.SUPPRESS]


def _bash_lines(flags: dict[str, list[argparse.Action]]) -> list[str]:
    scripts = {command.script: name for name, command in COMMANDS.items()}
    return [
        f"{_FUNCTION}() {{",
        '  local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" command="${COMP_WORDS[1]}"',
        '  case "${COMP_WORDS[0]##*/}" in',
        *(f"    {script}) command={name} ;;" for script, name in scripts.items()),
        "    *) if (( COMP_CWORD == 1 )); then",
        f'         COMPREPLY=($(compgen -W "{" ".join([*COMMANDS, "completion"])} --help --version" -- "$word"))',
        "         return",
        "       fi ;;",
        "  esac",
        '  case "$command $before" in',
        *(
            f"    {'|'.join(_quoted(f'{name} {flag}') for flag in action.option_strings)}) "
            f'COMPREPLY=($(compgen -W "{" ".join(map(str, action.choices))}" -- "$word")); return ;;'
            for name, actions in flags.items()
            for action in actions
            if action.choices
        ),
        "  esac",
        '  if [[ "$word" != -* ]]; then COMPREPLY=($(compgen -f -- "$word")); return; fi',
        '  case "$command" in',
        *(
            f'    {name}) COMPREPLY=($(compgen -W "{" ".join(_long(actions))}" -- "$word")) ;;'
            for name, actions in flags.items()
        ),
        "  esac",
        "}",
        f"complete -o filenames -F {_FUNCTION} {' '.join([PROGRAM, *scripts])}",
    ]


def _fish_lines(flags: dict[str, list[argparse.Action]]) -> list[str]:
    lines = [
        f"complete -c {PROGRAM} -f -n __fish_use_subcommand -a {name} -d {shlex.quote(command.summary)}"
        for name, command in COMMANDS.items()
    ]
    for name, actions in flags.items():
        for action in actions:
            values = f" -x -a {shlex.quote(' '.join(map(str, action.choices)))}" if action.choices else ""
            for target, condition in (
                (PROGRAM, f" -n {shlex.quote(f'__fish_seen_subcommand_from {name}')}"),
                (COMMANDS[name].script, ""),
            ):
                lines += [
                    f"complete -c {target}{condition} -l {flag[2:]}{values}"
                    for flag in action.option_strings
                    if flag.startswith("--")
                ]
    return lines


def _long(actions: list[argparse.Action]) -> list[str]:
    return [flag for action in actions for flag in action.option_strings if flag.startswith("--")]


def _quoted(text: str) -> str:
    return f'"{text}"'

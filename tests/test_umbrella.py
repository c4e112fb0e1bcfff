import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from foundation_stereo_depth import __version__
from foundation_stereo_depth.commands import COMMANDS, load
from foundation_stereo_depth.completion import completion_script
from foundation_stereo_depth.umbrella import main

SCRIPTS = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]["scripts"]


def test_every_script_is_a_command_of_the_umbrella() -> None:
    scripts = {command.script: command.function for command in COMMANDS.values()}
    assert scripts | {"foundation-stereo": "foundation_stereo_depth.umbrella:main"} == SCRIPTS


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_examples_and_its_own_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: foundation-stereo {name} ")
    assert f"\nexamples:\n  foundation-stereo {name}" in text
    assert load(COMMANDS[name].options)  # which completion reads


def test_version_help_and_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"foundation-stereo {__version__}\n"
    with pytest.raises(SystemExit):
        main(["predict", "--version"])
    assert capsys.readouterr().out == f"foundation-stereo predict {__version__}\n"
    assert main([]) == 0
    assert "\n  live-view     depth from two cameras, live\n" in capsys.readouterr().out
    assert main(["predcit"]) == 2
    assert capsys.readouterr().err == "foundation-stereo: no command predcit; did you mean predict?\n"
    assert main(["completion", "tcsh"]) == 2
    capsys.readouterr()
    assert main(["completion", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: foundation-stereo completion SHELL\n")


UMBRELLA = "import sys; from foundation_stereo_depth.umbrella import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.parametrize("words", ["--version", "--help", "predict --version", "predict --help", "completion bash"])
def test_output_to_a_full_disk_is_one_line_and_to_a_reader_that_has_gone_is_quiet(words: str) -> None:
    command = shlex.join([sys.executable, "-c", UMBRELLA, *words.split()])
    full = subprocess.run(["bash", "-c", f"{command} > /dev/full"], capture_output=True, text=True, check=False)
    assert full.returncode == 2
    assert full.stderr.endswith(": a write failed (No space left on device): is standard output a full disk?\n")
    assert full.stderr.count("\n") == 1
    gone = f"{{ sleep 0.1; {command}; echo $? >&2; }} | true"
    closed = subprocess.run(["bash", "-c", gone], capture_output=True, text=True, check=False)
    assert closed.stderr == "1\n"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("--dataset-rot", "--dataset-root"), ("--data-root=x", "--dataset-root"), ("--epoch", "--epochs")],
)
def test_a_mistyped_flag_is_answered_by_the_nearest(typed: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", typed])
    assert ended.value.code == 2
    message = f"foundation-stereo train: unknown argument {typed}; did you mean {meant}? --help lists every flag\n"
    assert capsys.readouterr().err == message


def test_a_flag_of_another_command_is_answered_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["predict", "left.png", "right.png", "--epochs", "5"])
    assert "unknown argument --epochs, a flag of train; --help" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "completions"),
    [
        (["foundation-stereo", "pre"], ["predict"]),
        (["foundation-stereo", "train", "--model", "f"], ["fused"]),
        (["foundation-stereo", "train", "--val-"], ["--val-fraction"]),
        (["foundation-stereo-calibrate", "--paper", ""], ["a4", "letter"]),
        (["foundation-stereo-depth", "--val-"], ["--val-fraction"]),
        (["foundation-stereo-predict", "le"], ["left.png"]),
    ],
)
def test_bash_completes_commands_flags_values_and_files(words: list[str], completions: list[str]) -> None:
    Path("left.png").touch()
    quoted = " ".join(f'"{word}"' for word in words)
    code = f"COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _foundation_stereo; echo ${{COMPREPLY[@]}}"
    ended = subprocess.run(
        ["bash", "-c", completion_script("bash") + "\n" + code], capture_output=True, text=True, check=True
    )
    assert ended.stdout.split() == completions


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
@pytest.mark.parametrize(
    ("line", "completions"),
    [
        ("foundation-stereo pre", ["predict"]),
        ("foundation-stereo train --model f", ["fused"]),
        ("foundation-stereo-depth --val-", ["--val-fraction"]),
    ],
)
def test_a_real_fish_completes(line: str, completions: list[str]) -> None:
    code = f'{completion_script("fish")}\ncomplete -C "{line}"'
    ended = subprocess.run(["fish", "--no-config", "-c", code], capture_output=True, text=True, check=True)
    assert [answer.split("\t")[0] for answer in ended.stdout.splitlines()] == completions


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_a_bare_zsh_completes() -> None:
    """Type into an interactive zsh without any configuration, which has not set completion up."""
    Path("completion.zsh").write_text(completion_script("zsh"))
    typed = """
        zmodload zsh/zpty
        zpty shell zsh -f -i
        await() { local read; until [[ $seen == *$1* ]]; do zpty -r shell read || return 1; seen+=$read; done; }
        zpty -w shell 'source ./completion.zsh; foundation-stereo() echo "ran $*"; echo loa""ded'
        await loaded
        zpty -w shell $'foundation-stereo train --model fu\t'
        await 'ran train --model fused'
    """
    ended = subprocess.run(["zsh", "-f", "-c", typed], capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 0, ended.stderr


def test_fish_completes_values_of_a_flag() -> None:
    script = completion_script("fish")
    models = "unet guided fused predecessor"
    line = f"complete -c foundation-stereo -n '__fish_seen_subcommand_from train' -l model -x -a '{models}'"
    assert line in script.splitlines()

import ast
import doctest
import importlib
import pkgutil
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import cv2
import numpy as np
import pytest

import foundation_stereo_depth
import live_camera
from foundation_stereo_depth.commands import COMMANDS, PROGRAM

ROOT = Path(__file__).parent.parent
PACKAGES = (foundation_stereo_depth, live_camera)
MODULES = sorted(
    module.name for package in PACKAGES for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
)
DOCUMENTS = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")})
README = (ROOT / "README.md").read_text()
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]

FORBIDDEN_WORDS = re.compile(
    r"(?<![a-z.])(?:eyes?|made-up|knobs?|doubts?|anew|torn|beforehand|likewise|whoever|nobody|contenders?|twins|outbox|"
    r"lab book|by heart|pictures?)(?![a-z])",
    re.IGNORECASE,
)
"""Words of this project's past that no reader of OpenCV, PyTorch or the stereo literature would know or expect."""
ALLOWED = (
    '"made-up scenes"',  # data set identity in checkpoints
    'f"made-up-{n:05d}"',  # folders of a pool in caches
    "@@made-up-00000",  # one of them, in documents
    '"by_doubt"',  # a key of the JSON of evaluate
    '"picture": "figure"',  # older word of --write
    "`picture`",  # the same, in documents
    "--picture raw.jpg",  # commands as they were run at the time
    "benchmarks/made_up_scenes.py",
)


def test_imports_follow_the_layers() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([linter], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_version_is_the_same_in_package_project_and_changelog() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert foundation_stereo_depth.__version__ == version
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


def test_architecture_page_lists_every_module() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    block = re.search(r"```\n(src/.*?)```", page, re.DOTALL)
    assert block is not None, "docs/architecture.md: no code block that begins with src/"
    listed = list_tree(block.group(1))
    present = {str(path.relative_to(ROOT)) for path in (ROOT / "src").rglob("*.py") if path.name != "__init__.py"}
    to_add, to_remove = sorted(present - listed), sorted(listed - present)
    assert listed == present, f"docs/architecture.md: add {to_add}, remove {to_remove}"


def list_tree(block: str) -> set[str]:
    """Return the paths of the modules in a tree whose folders end in a slash and whose indentation is the depth."""
    folders: list[tuple[int, str]] = []
    modules: set[str] = set()
    for line in block.splitlines():
        name, indentation = line.split()[0], len(line) - len(line.lstrip())
        folders = [folder for folder in folders if folder[0] < indentation]
        if name.endswith("/"):
            folders.append((indentation, name))
        elif name.endswith(".py") and name != "__init__.py":
            modules.add("".join(folder for _, folder in folders) + name)
    return modules


def test_readme_names_every_command() -> None:
    short = {command.script: f"foundation-stereo {name}" for name, command in COMMANDS.items()}
    missing = [
        command
        for command in (*SCRIPTS, "pytest", "mlflow ui")
        if f"uv run {command}" not in README and f"uv run {short.get(command, command)}" not in README
    ]
    assert not missing


def commands_of(text: str) -> list[list[str]]:
    """Return the console commands in the text's code blocks, each as words from the name of the command on."""
    commands = []
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            start = next((i for i, word in enumerate(words) if word in SCRIPTS), None)
            if start is not None:
                commands.append(words[start:])
    return commands


def test_flags_in_readme_exist() -> None:
    commands = commands_of(README)
    scripts = {name: command.script for name, command in COMMANDS.items()}
    named = {scripts[words[1]] if words[0] == PROGRAM else words[0] for words in commands}
    assert named | {PROGRAM} == set(SCRIPTS)
    for words in commands:
        argv = [Path(sys.executable).with_name(words[0]), *(words[1:2] if words[0] == PROGRAM else [])]
        help_text = subprocess.run([*argv, "--help"], capture_output=True, text=True, check=True).stdout
        flags = {word.split("=")[0] for word in words if re.match(r"--[a-z]", word)}
        unknown = {flag for flag in flags if not re.search(rf"{flag}(?![\w-])", help_text)}
        assert not unknown, f"README: {words[0]} has no {unknown}"


def test_python_example_in_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for name in ("left.png", "right.png"):
        cv2.imwrite(str(tmp_path / name), rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    variables: dict[str, object] = {}
    exec(example, variables)
    depth_m = variables["depth_m"]
    assert isinstance(depth_m, np.ndarray)
    assert depth_m.shape == (60, 80)


def test_troubleshooting_quotes_messages_of_the_program() -> None:
    section = README.split("\n## Troubleshooting\n")[1].split("\n## ")[0]
    quoted = re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)
    assert len(quoted) >= 10
    texts = [text for path in (ROOT / "src").rglob("*.py") for text in texts_of(path)]
    for message in quoted:
        pattern = re.compile(".*".join(map(re.escape, message.split("..."))), re.DOTALL)
        assert any(pattern.search(text) for text in texts), f"README: the program has no message {message!r}"


def texts_of(path: Path) -> list[str]:
    """Return the string literals of a module, with an ellipsis for each value in an f-string."""
    texts = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            parts = [
                part.value if isinstance(part, ast.Constant) else "\N{HORIZONTAL ELLIPSIS}" for part in node.values
            ]
            texts.append("".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.append(node.value)
    return texts


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text())
    missing = [link for link in links if not (document.parent / link).exists()]
    assert not missing


def test_examples_in_docstrings_run() -> None:
    results = {name: doctest.testmod(importlib.import_module(name)) for name in MODULES}
    assert not [name for name, result in results.items() if result.failed]
    assert sum(result.attempted for result in results.values()) > 0


def test_code_and_documents_use_standard_words() -> None:
    files = [*DOCUMENTS, *(ROOT / "src").rglob("*.py"), *(ROOT / "recipes").iterdir()]
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match.group(0)}"
        for path in files
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        for match in FORBIDDEN_WORDS.finditer(separate_words(line))
    ]
    assert not found, f"{len(found)} words of the past:\n" + "\n".join(found)


def separate_words(line: str) -> str:
    """Return the line without what is allowed, underscores and capitals within names as spaces."""
    for allowed in ALLOWED:
        line = line.replace(allowed, "")
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", line.replace("_", " "))

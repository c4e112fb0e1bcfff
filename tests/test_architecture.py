import re
import subprocess
import sys
import tomllib
from pathlib import Path

import foundation_stereo_depth

ROOT = Path(__file__).parent.parent


def tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / line for line in listed.stdout.splitlines()]


def test_arrows_point_down() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    answer = subprocess.run([linter], cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout


def test_the_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert foundation_stereo_depth.__version__ == project["version"]
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_readme_map_shows_every_module_and_nothing_else() -> None:
    readme = (ROOT / "README.md").read_text()
    block = re.search(r"```\n(src/.*?)```", readme, re.DOTALL)
    assert block is not None
    shown = set(re.findall(r"([a-z_0-9]+\.py)\b", block.group(1)))
    modules = {path.name for path in (ROOT / "src").rglob("*.py") if path.name != "__init__.py"}
    assert shown == modules


def test_the_readme_names_every_command() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    readme = (ROOT / "README.md").read_text()
    for command in project["scripts"]:
        assert f"uv run {command}" in readme


def test_every_source_module_has_a_test_and_stays_readable() -> None:
    for path in tracked():
        if path.suffix == ".py" and "src" in path.parts:
            assert len(path.read_text().splitlines()) <= 400, path


def test_examples_in_docstrings_run() -> None:
    import doctest
    import importlib
    import pkgutil

    import live_camera

    attempted = 0
    for package in (foundation_stereo_depth, live_camera):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            result = doctest.testmod(importlib.import_module(module.name))
            assert result.failed == 0, module.name
            attempted += result.attempted
    assert attempted > 0

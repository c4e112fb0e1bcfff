"""A minute of `scripts/fuzz`; CONTRIBUTING.md has the command for hours."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts/fuzz.py"


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["checkpoints", "calibrations", "images", "cache-entries", "scans", "onnx", "openvino"]
)
def test_damaged_files_are_read_or_refused(tmp_path: Path, kind: str) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, kind, "--seconds", "10"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{kind}: " in done.stdout

"""Make the installed network's 8-bit ONNX file again, after its weights have changed.

    uv run python scripts/export_installed.py

It is calibrated and checked on synthetic scenes, the same ones every time, and not written where 8 bits cost too much.
"""

from foundation_stereo_depth.inference.export import export_installed
from foundation_stereo_depth.network_facts import DEFAULT_ONNX

if __name__ == "__main__":
    for line in export_installed().split("; "):
        print(line)
    print(f"{DEFAULT_ONNX}: {DEFAULT_ONNX.stat().st_size / 1e6:.2f} MB")

"""Draw one page of everything that foundation-stereo-predict writes, from its files.

uv run foundation-stereo-predict left.png right.png -o out --write disparity,sigma,confidence,depth,figure,cloud \
    --calibration calib.txt
uv run python benchmarks/outputs_page.py out/left -o docs/outputs.jpg
"""

import argparse
from pathlib import Path

import cv2
import numpy as np

_STEPS = {"disparity": 256, "sigma": 256, "confidence": 65535, "depth": 1000}
_LARGEST = {"disparity": None, "sigma": 4.0, "confidence": 1.0, "depth": None}
_UNITS = {"disparity": "px", "sigma": "px", "confidence": "", "depth": "m"}
_WIDTH_PX = 480
_TURN_RAD = 0.25
_POINT = np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3)])


def coloured(stem: Path, what: str) -> np.ndarray:
    """Return a map in colours with its range as title."""
    stored = cv2.imread(f"{stem}_{what}.png", cv2.IMREAD_UNCHANGED)
    if stored is None:
        raise SystemExit(f"{stem}_{what}.png: cannot be read; was it named in --write?")
    values = stored / _STEPS[what]
    known = stored > 0
    least = float(np.percentile(values[known], 2)) if what == "depth" else 0.0
    largest = _LARGEST[what] or float(np.percentile(values[known], 98))
    shares = np.clip((values - least) / (largest - least), 0, 1)
    if what == "depth":  # near is warm, as it is in the map of disparity
        shares = 1 - shares
    image = cv2.applyColorMap((255 * shares).astype(np.uint8), cv2.COLORMAP_TURBO)
    title = f"{what}, {least:.3g} to {largest:.3g} {_UNITS[what]}"
    return titled(np.where(known[..., None], image, 0).astype(np.uint8), title)


def cloud(stem: Path) -> np.ndarray:
    """Return the point cloud, drawn from beside the left camera."""
    content = Path(f"{stem}_cloud.ply").read_bytes()
    header, body = content.split(b"end_header\n", 1)
    points = np.frombuffer(body, _POINT)
    if f"element vertex {len(points)}".encode() not in header:
        raise SystemExit(f"{stem}_cloud.ply: has another layout than this program writes")
    xyz = points["xyz"].astype(np.float64)
    centre = np.median(xyz, axis=0)
    sin, cos = np.sin(_TURN_RAD), np.cos(_TURN_RAD)
    turned = (xyz - centre) @ np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]]).T + centre
    height, width, focal_px = 360, _WIDTH_PX, 0.9 * _WIDTH_PX
    image, order = np.zeros((height, width, 3), np.uint8), np.argsort(-turned[:, 2])
    x, y, z = turned[order].T
    column = (x / z * focal_px + width / 2).astype(int)
    row = (y / z * focal_px + height / 2).astype(int)
    colours = points["rgb"][order][:, ::-1]
    for down, across in ((0, 0), (0, 1), (1, 0), (1, 1)):
        inside = (
            (z > 0) & (row + down >= 0) & (row + down < height) & (column + across >= 0) & (column + across < width)
        )
        image[row[inside] + down, column[inside] + across] = colours[inside]
    return titled(image, f"cloud, {len(points)} points, from the side")


def titled(image: np.ndarray, title: str) -> np.ndarray:
    """Return the image at the page's width, its title above it."""
    height = round(image.shape[0] * _WIDTH_PX / image.shape[1])
    small = cv2.resize(image, (_WIDTH_PX, height), interpolation=cv2.INTER_AREA)
    bar = np.full((28, _WIDTH_PX, 3), 255, np.uint8)
    cv2.putText(bar, title, (6, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([bar, small])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stem", type=Path, help="the folder and the name that the outputs share")
    parser.add_argument("-o", "--output", type=Path, required=True)
    asked = parser.parse_args()
    cells = [coloured(asked.stem, what) for what in _STEPS] + [cloud(asked.stem)]
    blank = np.full_like(cells[0], 255)
    cells = [
        cell[: blank.shape[0]] if len(cell) >= len(blank) else np.vstack([cell, blank[len(cell) :]]) for cell in cells
    ]
    image = titled(cv2.imread(f"{asked.stem}_figure.png"), "figure")
    cells.append(np.vstack([image, blank[len(image) :]]))
    page = np.vstack([np.hstack(cells[i : i + 2]) for i in range(0, len(cells), 2)])
    cv2.imwrite(str(asked.output), page, [cv2.IMWRITE_JPEG_QUALITY, 88])


if __name__ == "__main__":
    main()

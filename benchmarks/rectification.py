"""Compare methods to rectify and shrink raw images at once, and the depth that results: tables.

Methods alternate in one run; fidelity is measured against the mean of 64 Lanczos samples per pixel, on an image and on
a zone plate, which shows aliasing. Depth: block matching on rendered textured planes, seen through the calibration with
its distortion.

    uv run python benchmarks/rectification.py --calibration rig.npz --picture raw.jpg
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import cv2
import numpy as np

from foundation_stereo_depth.calibration.files import read_calibration
from foundation_stereo_depth.calibration.rig import RigCalibration
from foundation_stereo_depth.data.codecs import read_rgb
from foundation_stereo_depth.data.rectify import Rectifier, rectification_maps
from foundation_stereo_depth.stereo import sgbm
from foundation_stereo_depth.stereo.geometry import depth_from_disparity

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from rendered_rig import RenderedRig, noise_texture, plane_at

SIZES = [((480, 640), (240, 320)), ((480, 640), (192, 256)), ((960, 1280), (240, 320))]
DEPTHS_M = (0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--picture", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=40)
    asked = parser.parse_args()
    cv2.setNumThreads(1)
    rig = read_calibration(asked.calibration)
    raw_image = read_rgb(asked.picture)
    for raw, size in SIZES:
        compare(rig, cv2.resize(raw_image, raw[::-1], interpolation=cv2.INTER_AREA), raw, size, asked.rounds)
    depths(rig)


def compare(rig: RigCalibration, raw_image: np.ndarray, raw: tuple, size: tuple, rounds: int) -> None:
    def maps(height: int, width: int, source: tuple) -> list[np.ndarray]:
        x, y = rectification_maps(rig, height, width)[0]
        return [
            ((x + 0.5) * source[1] / rig.width - 0.5).astype(np.float32),
            ((y + 0.5) * source[0] / rig.height - 0.5).astype(np.float32),
        ]

    full, small = (cv2.convertMaps(*maps(*at, at), cv2.CV_16SC2) for at in (raw, size))
    plain, many = maps(*size, raw), maps(8 * size[0], 8 * size[1], raw)
    shrink = raw[1] / size[1]
    ours = Rectifier(rig, height=size[0], width=size[1])

    def area(image: np.ndarray) -> np.ndarray:
        return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)

    methods = {
        "rectify, then area": lambda image: area(cv2.remap(image, *full, cv2.INTER_LINEAR)),
        "Rectifier (both views)": lambda image: ours(image, image)[0],
        "area, then rectify": lambda image: cv2.remap(area(image), *small, cv2.INTER_LINEAR),
        "area, then cubic": lambda image: cv2.remap(area(image), *small, cv2.INTER_CUBIC),
        "blur, then rectify": lambda image: cv2.remap(
            cv2.GaussianBlur(image, (0, 0), 0.3 * shrink), *plain, cv2.INTER_LINEAR
        ),
        "rectify (aliases)": lambda image: cv2.remap(image, *plain, cv2.INTER_LINEAR),
    }
    zones = zone_plate(*raw)
    truths = [area(cv2.remap(image, *many, cv2.INTER_LANCZOS4)) for image in (raw_image, zones)]
    for method in methods.values():
        method(raw_image)
    times_ms: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(rounds):
        for name, method in methods.items():
            began_s = time.perf_counter()
            method(raw_image)
            times_ms[name].append(1000 * (time.perf_counter() - began_s) / (2 if name.startswith("Rectifier") else 1))
    first = times_ms["rectify, then area"]
    print(f"\n{raw[1]}x{raw[0]} -> {size[1]}x{size[0]}           ms a view  ratio (spread)      image dB   zone dB")
    for name, method in methods.items():
        ratios = sorted(t / f for t, f in zip(times_ms[name], first, strict=True))
        spread = f"{statistics.median(ratios):.2f} ({ratios[len(ratios) // 10]:.2f}-{ratios[-len(ratios) // 10]:.2f})"
        fidelity = [cv2.PSNR(method(image), truth) for image, truth in zip((raw_image, zones), truths, strict=True)]
        print(f"{name:28} {statistics.median(times_ms[name]):9.2f}  {spread:18} {fidelity[0]:11.1f} {fidelity[1]:9.1f}")


def zone_plate(height: int, width: int) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    waves = np.cos(np.pi * ((columns - width / 2) ** 2 + (rows - height / 2) ** 2) / width)
    return np.repeat((127.5 + 127.5 * waves)[..., None], 3, axis=2).astype(np.uint8)


def depths(rig: RigCalibration) -> None:
    camera, texture = RenderedRig(rig), noise_texture(900, 1200)
    for height, width in ((rig.height, rig.width), (rig.height // 2, rig.width // 2)):
        rectifier = Rectifier(rig, height=height, width=width)
        stereo = rectifier.stereo_calibration
        rows, columns = np.mgrid[:height, :width]
        across, down = (columns - stereo.cx_left_px) / stereo.focal_px, (rows - stereo.cy_px) / stereo.focal_y_px
        rays = np.stack([across, down, np.ones((height, width))], axis=-1) @ rig.rectified.left_rotation
        print(f"\nblock matching at {width}x{height}    median disparity px   median depth error %   bias %")
        for depth_m in DEPTHS_M:
            wall = plane_at(texture, 2 * depth_m / 1200, (0, 0, depth_m), (0.0, 0.2, 0.0))
            match = sgbm.match(*rectifier(*camera.pair(wall)))
            normal = np.cross(wall.right_m, wall.down_m)
            truth_m = (wall.origin_m @ normal) / (rays @ normal)
            found_m = depth_from_disparity(match.disparity_px, stereo)
            error = (found_m / truth_m - 1)[match.matched & np.isfinite(found_m)]
            disparity_px = np.median(match.disparity_px[match.matched])
            middle, bias = 100 * np.median(np.abs(error)), 100 * np.median(error)
            print(f"{depth_m:6.2f} m {disparity_px:34.1f} {middle:22.2f} {bias:8.2f}")


if __name__ == "__main__":
    main()

"""Make the images of README and docs again, from the weights that are installed now.

    uv run scripts/make_images.py live_view.webp predict.png        # some of them
    uv run scripts/make_images.py --all --dataset-root <FSD folder>  # all: also minutes of training and of evaluation

| file | what it shows | needs |
| --- | --- | --- |
| predict.png | depth and confidence of the pair of the demo | |
| outputs.jpg | everything that predict writes of that pair | |
| live_view.jpg | the windows of the live view on that pair | Xvfb |
| live_view.webp | the same, moving | Xvfb |
| preview.png | the preview of the last epoch of the U-Net, `--epochs 5` on synthetic scenes | minutes |
| mlflow.png | the page of that run | chromium |
| reliability.png, sparsification.png | evaluate's figures | --dataset-root |
| scenes.jpg | synthetic scenes beside real ones | --dataset-root |
"""

import argparse
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageGrab

from foundation_stereo_depth.data.codecs import write_rgb
from foundation_stereo_depth.data.demo_pair import read_demo_pair

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
BIN = Path(sys.executable).parent
SCREEN = 1366, 768
MOVING_VIEW = 560, 400
"""Width and height of the part of the demo's pair that moves over it, px."""
MOVING_FRAMES, FRAME_MS = 24, 120
LARGEST_BYTES = 3_000_000


def run(*command: object, folder: Path | None = None) -> str:
    """Run one of the installed programs, or another; return its standard output."""
    program = shutil.which(str(command[0]), path=str(BIN)) or str(command[0])
    ended = subprocess.run(
        [program, *map(str, command[1:])], cwd=folder, check=True, stdout=subprocess.PIPE, stderr=None, text=True
    )
    return ended.stdout


def write_demo_pair(folder: Path) -> tuple[Path, Path, Path]:
    """Write the pair of the demo and its calibration, as Middlebury's calib.txt; return the three files."""
    pair = read_demo_pair()
    rig = pair.calibration
    left, right, calibration = folder / "left.png", folder / "right.png", folder / "calib.txt"
    write_rgb(left, pair.left)
    write_rgb(right, pair.right)
    cameras = [
        f"cam{number}=[{rig.focal_px} 0 {column}; 0 {rig.focal_px} {rig.cy_px}; 0 0 1]"
        for number, column in enumerate((rig.cx_left_px, rig.cx_right_px))
    ]
    doffs_px, baseline_mm = rig.cx_right_px - rig.cx_left_px, 1000 * rig.baseline_m
    sizes = f"width={rig.width}\nheight={rig.height}\n"
    calibration.write_text("\n".join(cameras) + f"\ndoffs={doffs_px}\nbaseline={baseline_mm}\n{sizes}")
    return left, right, calibration


def make_predict(docs: Path, _: argparse.Namespace) -> None:
    """Make predict.png."""
    with tempfile.TemporaryDirectory() as name:
        left, right, calibration = write_demo_pair(Path(name))
        run("foundation-stereo", "predict", left, right, "-o", name, "--write", "figure", "--calibration", calibration,
            "--no-rectify")  # fmt: skip
        shutil.copyfile(Path(name, "left_figure.png"), docs / "predict.png")


def make_outputs(docs: Path, _: argparse.Namespace) -> None:
    """Make outputs.jpg."""
    with tempfile.TemporaryDirectory() as name:
        left, right, calibration = write_demo_pair(Path(name))
        run("foundation-stereo", "predict", left, right, "-o", name, "--calibration", calibration, "--no-rectify",
            "--write", "disparity,sigma,confidence,depth,figure,cloud")  # fmt: skip
        run(sys.executable, ROOT / "benchmarks/outputs_page.py", Path(name, "left"), "-o", docs / "outputs.jpg")


@contextmanager
def shown_live(folder: Path, sources: list[object]) -> Iterator[Callable[[], Image.Image]]:
    """Show the live view on a screen in memory; yield a function that returns what is on that screen."""
    display = f":{90 + time.time_ns() % 100}"
    # Without -noreset it would end the live view when the program that grabs the screen disconnects.
    screen = subprocess.Popen(["Xvfb", display, "-screen", "0", f"{SCREEN[0]}x{SCREEN[1]}x24", "-noreset"])
    time.sleep(1)
    view = subprocess.Popen(
        [BIN / "foundation-stereo", "live-view", *map(str, sources)],
        cwd=folder,
        env={"DISPLAY": display, "PATH": str(BIN), "HOME": str(folder), "OMP_NUM_THREADS": "2"},
    )

    def grab() -> Image.Image:
        if view.poll() is not None:
            raise SystemExit(f"the live view ended, status {view.returncode}")
        return ImageGrab.grab(xdisplay=display)

    try:
        yield grab
    finally:
        for process in (view, screen):
            process.terminate()
            process.wait()


def frames_of(grab: Callable[[], Image.Image], count: int, longest_s: float) -> list[Image.Image]:
    """Return so many different images of the screen after windows have appeared, cropped to the windows."""
    frames: list[Image.Image] = []
    began_s = time.monotonic()
    while len(frames) < count:
        if time.monotonic() - began_s > longest_s:
            raise SystemExit(f"only {len(frames)} images were shown in {longest_s:.0f} s")
        frame = grab()
        is_new = not frames or np.asarray(frame).tobytes() != np.asarray(frames[-1]).tobytes()
        if is_new and np.asarray(frame).any():
            frames.append(frame)
        time.sleep(0.2)
    lit = np.asarray(frames[-1]).any(axis=2)
    rows, columns = np.flatnonzero(lit.any(axis=1)), np.flatnonzero(lit.any(axis=0))
    box = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    return [frame.crop(box) for frame in frames]


def make_live_view(docs: Path, _: argparse.Namespace) -> None:
    """Make live_view.jpg."""
    with tempfile.TemporaryDirectory() as name:
        left, right, calibration = write_demo_pair(Path(name))
        sources = ["--left", left, "--right", right, "--loop", "--fps", 5, "--no-rectify", "--calibration", calibration]
        with shown_live(Path(name), sources) as grab:
            frames_of(grab, 6, 900)[-1].convert("RGB").save(docs / "live_view.jpg", quality=88)


def make_moving_live_view(docs: Path, _: argparse.Namespace) -> None:
    """Make live_view.webp: a window that moves over the demo's pair, the same in both views, is rectified too."""
    with tempfile.TemporaryDirectory() as name:
        folder, pair = Path(name), read_demo_pair()
        width, height = MOVING_VIEW
        room_x, room_y = pair.left.shape[1] - width, pair.left.shape[0] - height
        for number, turn in enumerate(np.linspace(0, 2 * np.pi, MOVING_FRAMES, endpoint=False)):
            x, y = round(room_x * (0.5 - 0.5 * np.cos(turn))), round(room_y * (0.5 + 0.5 * np.sin(turn)))
            for side, view in (("l", pair.left), ("r", pair.right)):
                write_rgb(
                    folder / f"{side}_{number:02d}.png", np.ascontiguousarray(view[y : y + height, x : x + width])
                )
        _, _, calibration = write_demo_pair(folder)
        moved = re.sub(r"width=\d+\nheight=\d+", f"width={width}\nheight={height}", calibration.read_text())
        calibration.write_text(moved)
        sources: list[object] = ["--left", folder / "l_*.png", "--right", folder / "r_*.png", "--loop", "--fps", 2]
        with shown_live(folder, [*sources, "--no-rectify", "--calibration", calibration]) as grab:
            frames = frames_of(grab, MOVING_FRAMES + 6, 1800)[6:]
        shown = [frame.convert("RGB") for frame in frames]
        path = docs / "live_view.webp"
        shown[0].save(path, save_all=True, append_images=shown[1:], duration=FRAME_MS, loop=0, quality=60, method=4)
        if path.stat().st_size > LARGEST_BYTES:
            raise SystemExit(f"{path}: has {path.stat().st_size:,} bytes; {LARGEST_BYTES:,} are wanted at most")


def make_preview(docs: Path, asked: argparse.Namespace) -> None:
    """Make preview.png, and mlflow.png of the same run."""
    with tempfile.TemporaryDirectory() as name:
        folder = asked.run_folder or Path(name)
        if asked.run_folder is None:
            os.environ["FOUNDATION_STEREO_ROOT"] = ""  # on synthetic scenes
            run("foundation-stereo", "train", "--epochs", 5, folder=folder)
        previews = sorted(folder.rglob("previews/epoch_*.png"))
        with Image.open(previews[-1]) as preview:
            preview.convert("RGB").quantize(256).save(docs / "preview.png", optimize=True)
        if "mlflow.png" in asked.images:
            run_id = previews[-1].parent.parent.name
            with closing(sqlite3.connect(folder / "mlflow.db")) as database:
                found = database.execute("SELECT experiment_id FROM runs WHERE run_uuid = ?", (run_id,)).fetchone()
            address = f"http://127.0.0.1:5000/#/experiments/{found[0]}/runs/{run_id}?workflowType=machine_learning"
            run(ROOT / "scripts/screenshot_mlflow", address, docs / "mlflow.png", folder=folder)


def make_reliability(docs: Path, asked: argparse.Namespace) -> None:
    """Make reliability.png and sparsification.png."""
    with tempfile.TemporaryDirectory() as name:
        run("foundation-stereo", "evaluate", "--baseline", "sgbm", "--dataset-root", asked.dataset_root, "-o", name)
        for image in ("reliability.png", "sparsification.png"):
            shutil.copyfile(Path(name, image), docs / image)


def make_scenes(docs: Path, asked: argparse.Namespace) -> None:
    """Make scenes.jpg."""
    benchmark = ROOT / "benchmarks/made_up_scenes.py"
    run(sys.executable, benchmark, "-o", docs / "scenes.jpg", "--dataset-root", asked.dataset_root)


MAKERS: dict[str, Callable[[Path, argparse.Namespace], None]] = {
    "predict.png": make_predict,
    "outputs.jpg": make_outputs,
    "live_view.jpg": make_live_view,
    "live_view.webp": make_moving_live_view,
    "preview.png": make_preview,
    "mlflow.png": make_preview,
    "reliability.png": make_reliability,
    "sparsification.png": make_reliability,
    "scenes.jpg": make_scenes,
}
OF_DATASET = {"reliability.png", "sparsification.png", "scenes.jpg"}


def main() -> None:
    """Make the images that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*", help=", ".join(MAKERS))
    parser.add_argument("--all", action="store_true", help="make all of them")
    parser.add_argument("--dataset-root", type=Path, help="FSD folder of the figures that need one")
    parser.add_argument(
        "--run-folder", type=Path, help="folder with mlflow.db and runs/ of a training, for preview.png"
    )
    parser.add_argument("-o", "--output", type=Path, default=DOCS, help="folder to write to; else docs")
    asked = parser.parse_args()
    asked.images = list(MAKERS) if asked.all else asked.images
    if unknown := [name for name in asked.images if name not in MAKERS]:
        parser.error(f"{unknown[0]}: is none of {', '.join(MAKERS)}")
    if not asked.images:
        parser.error("name images, or --all")
    if OF_DATASET & set(asked.images) and asked.dataset_root is None:
        parser.error(f"{', '.join(sorted(OF_DATASET & set(asked.images)))}: needs --dataset-root")
    asked.output.mkdir(parents=True, exist_ok=True)
    for make in dict.fromkeys(MAKERS[name] for name in asked.images):
        make(asked.output, asked)
    for name in asked.images:
        print(asked.output / name)


if __name__ == "__main__":
    main()

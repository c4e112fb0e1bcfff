"""What a start on a million samples costs: one JSON line. Makes 3,000,000 names of empty files, and removes them.

    uv run python benchmarks/startup.py --folder /somewhere/with/inodes
    uv run python benchmarks/startup.py --tree /somewhere/with/inodes/fsd       made if it is not there, and left there

The first scan has to keep step with the file system: a bare os.listdir of every folder is timed beside it, both in
child processes of their own, alternating, the names in the kernel's memory. A later start is everything that
`open_files` does before the first batch: the kept scan, the split, the fingerprint.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from training_loop import commit, device_name, ratio, summary

PARTS = (("left/rgb", ".jpg"), ("right/rgb", ".jpg"), ("left/disparity", ".png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--tree", type=Path)
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", choices=CHILDREN)
    asked = parser.parse_args()
    if asked.child is not None:
        print(json.dumps(CHILDREN[asked.child](asked.folder)))
        return
    root = Path(tempfile.mkdtemp(dir=asked.folder))
    try:
        began_s = time.perf_counter()
        tree = asked.tree or root / "fsd"
        if not tree.exists():
            make_tree(tree, asked.scenes, asked.frames)
        (root / "tree").symlink_to(tree.absolute(), target_is_directory=True)
        made_s = time.perf_counter() - began_s
        measured: dict[str, list[dict[str, float]]] = {name: [] for name in CHILDREN}
        for _ in range(asked.rounds):
            shutil.rmtree(root / "cache", ignore_errors=True)
            for name in CHILDREN:
                command = [sys.executable, __file__, "--child", name, "--folder", str(root)]
                answer = subprocess.run(command, capture_output=True, text=True, check=True)
                measured[name].append(json.loads(answer.stdout.splitlines()[-1]))
        kept_bytes = sum(path.stat().st_size for path in (root / "cache").glob("index-*.npz"))
    finally:
        shutil.rmtree(root)
    seconds = {name: [one["s"] for one in of_name] for name, of_name in measured.items()}
    print(
        json.dumps(
            {
                "benchmark": "startup",
                "commit": commit(),
                "device": device_name(),
                "samples": asked.scenes * asked.frames,
                "making_the_tree_s": made_s,
                "s": {name: summary(times) for name, times in seconds.items()},
                "first_start_over_listing": ratio(seconds["first_start"], seconds["listing"]),
                "more_memory_mib": {
                    name: summary([one["mib"] for one in of_name]) for name, of_name in measured.items()
                },
                "kept_scan_mib": kept_bytes / 2**20,
            }
        )
    )


def make_tree(root: Path, scenes: int, frames: int) -> None:
    for scene in range(scenes):
        for part, suffix in PARTS:
            folder = root / f"scene_{scene:04d}/dataset/data" / part
            folder.mkdir(parents=True)
            # One empty file with many names: only names are read, and a link is made sooner than a file.
            first = folder / f"0000{suffix}"
            first.touch()
            for frame in range(1, frames):
                os.link(first, f"{folder}/{frame:04d}{suffix}")


def timed(do: Callable[[], object]) -> dict[str, float]:
    """Seconds, and the MiB by which the process's largest size grew."""
    before, began_s = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    kept = do()
    figures = {
        "s": time.perf_counter() - began_s,
        "mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
    }
    del kept
    return figures


def listing(root: Path) -> dict[str, float]:
    def walk() -> int:
        data = root / "tree"
        return sum(len(os.listdir(data / scene / "dataset/data" / p)) for scene in os.listdir(data) for p, _ in PARTS)  # noqa: PTH208

    return timed(walk)


def start(root: Path) -> dict[str, float]:
    from foundation_stereo_depth.data.loader import open_files
    from foundation_stereo_depth.options.training import DataOptions

    options = DataOptions(cache_root=root / "cache", num_workers=2)
    return timed(lambda: open_files(options, root / "tree", pin_memory=False))


CHILDREN = {"listing": listing, "first_start": start, "later_start": start}

if __name__ == "__main__":
    main()

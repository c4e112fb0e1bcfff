"""Small trees of files in the layouts of the public benchmarks, one function each."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

H, W = 6, 9


def picture(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((H, W, 3), value, np.uint8)).save(path)


def code(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def pfm(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = f"Pf\n{values.shape[1]} {values.shape[0]}\n-1\n".encode()
    path.write_bytes(header + np.flipud(values).astype("<f4").tobytes())


def truth(scene: int, unknown: float) -> np.ndarray:
    """A plane of disparities that tells scenes, rows and columns apart; the first pixel is unknown."""
    disparity_px = 10.0 * (scene + 1) + np.arange(H)[:, None] * 0.5 + np.arange(W) * 0.25
    disparity_px[0, 0] = unknown
    return disparity_px


def mask(visible: int, hidden: int, absent: int) -> np.ndarray:
    """The last column is occluded, the first pixel has no truth."""
    values = np.full((H, W), visible, np.uint8)
    values[:, -1] = hidden
    values[0, 0] = absent
    return values


def middlebury2014(root: Path) -> None:
    for i, scene in enumerate(("Adirondack", "Motorcycle")):
        for kind in ("perfect", "imperfect"):
            folder = root / f"Middlebury2014/train/{scene}-{kind}"
            for eye in (0, 1):
                picture(folder / f"im{eye}.png", 10 * i + eye)
                pfm(folder / f"disp{eye}.pfm", truth(i, np.inf) if kind == "perfect" else np.ones((H, W)))


def eth3d(root: Path) -> None:
    for i, scene in enumerate(("delivery_area_1l", "terrains_1s")):
        for eye in (0, 1):
            picture(root / f"ETH3D/two_view_training/{scene}/im{eye}.png", 10 * i + eye)
        pfm(root / f"ETH3D/two_view_training_gt/{scene}/disp0GT.pfm", truth(i, np.inf))
        code(root / f"ETH3D/two_view_training_gt/{scene}/mask0nocc.png", mask(255, 128, 0))


def kitti2012(root: Path) -> None:
    base = root / "Kitti2012/training"
    for i in range(2):
        for eye in (0, 1):
            for frame in (10, 11):
                picture(base / f"colored_{eye}/{i:06d}_{frame}.png", 10 * i + eye if frame == 10 else 99)
        code(base / f"disp_noc/{i:06d}_10.png", (truth(i, 0) * 256).astype(np.uint16))


def kitti2015(root: Path) -> None:
    base = root / "Kitti2015/training"
    for i in range(2):
        for eye in (0, 1):
            for frame in (10, 11):
                picture(base / f"image_{eye + 2}/{i:06d}_{frame}.png", 10 * i + eye if frame == 10 else 99)
            steps = (truth(i, 0) * 256).astype(np.uint16)
            code(base / f"disp_occ_{eye}/{i:06d}_10.png", steps)
            code(base / f"disp_noc_{eye}/{i:06d}_10.png", np.where(mask(1, 0, 0) > 0, steps, 0).astype(np.uint16))


def sceneflow(root: Path) -> None:
    base = root / "SceneFlow/FlyingThings3D"
    for part in ("TRAIN", "TEST"):
        for i in range(2):
            for eye, side in enumerate(("left", "right")):
                for kind in ("frames_cleanpass", "frames_finalpass"):
                    value = 10 * i + eye if (part, kind) == ("TEST", "frames_finalpass") else 99
                    picture(base / f"{kind}/{part}/A/000{i}/{side}/0006.png", value)
                # Its disparity maps have no unknown pixels; the sign differs between its parts.
                values = -truth(i, 10.0 * (i + 1)) if part == "TEST" else np.ones((H, W))
                pfm(base / f"disparity/{part}/A/000{i}/{side}/0006.pfm", values)


def sintel(root: Path) -> None:
    base = root / "Sintel/training"
    for i, scene in enumerate(("alley_1", "bamboo_2")):
        for kind in ("final", "clean"):
            for eye, side in enumerate(("left", "right")):
                picture(base / f"{kind}_{side}/{scene}/frame_0001.png", 10 * i + eye if kind == "final" else 99)
        steps = np.rint(truth(i, 0) * 2**14).astype(np.int64)  # d = R * 4 + G / 2^6 + B / 2^14
        rgb = np.stack([steps >> 16, steps >> 8 & 255, steps & 255], axis=-1).astype(np.uint8)
        code(base / f"disparities/{scene}/frame_0001.png", rgb)
        code(base / f"occlusions/{scene}/frame_0001.png", mask(0, 255, 0))
        code(base / f"outofframe/{scene}/frame_0001.png", mask(0, 0, 0))


def fallingthings(root: Path) -> None:
    for i, scene in enumerate(("single/002_master_chef_can_16k/kitchen_0", "mixed/kitedemo_1")):
        folder = root / "FallingThings" / scene
        for eye, side in enumerate(("left", "right")):
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((H, W, 3), 10 * i + eye, np.uint8)).save(folder / f"000000.{side}.jpg", quality=100)
            # Tenths of a millimetre; baseline 6 cm: d = 600 fx / depth. A depth of 0 is unknown.
            depth = 600 * 768 / truth(i, 10)
            depth[0, 0] = 0
            code(folder / f"000000.{side}.depth.png", np.rint(depth).astype(np.uint16))
        settings = {"camera_settings": [{"intrinsic_settings": {"fx": 768}}]}
        (folder / "_camera_settings.json").write_text(json.dumps(settings))


def instereo2k(root: Path) -> None:
    for i in range(2):
        folder = root / f"InStereo2k/test/00{i}"
        for eye, side in enumerate(("left", "right")):
            picture(folder / f"{side}.png", 10 * i + eye)
            code(folder / f"{side}_disp.png", np.rint(truth(i, 0) * 100).astype(np.uint16))


def crestereo(root: Path) -> None:
    for i, kind in enumerate(("shapenet", "tree", "reflective", "hole")):
        for eye, side in enumerate(("left", "right")):
            folder = root / f"CREStereo/{kind}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((H, W, 3), 10 * (i % 2) + eye, np.uint8)).save(
                folder / f"a_{side}.jpg", quality=100
            )
            code(folder / f"a_{side}.disp.png", np.rint(truth(i % 2, 0) * 32).astype(np.uint16))


def carla(root: Path) -> None:
    for i in range(2):
        for eye in (0, 1):
            picture(root / f"carla-highres/trainingF/scene{i}/im{eye}.png", 10 * i + eye)
            pfm(root / f"carla-highres/trainingF/scene{i}/disp{eye}GT.pfm", truth(i, np.inf))


TREES: dict[str, Callable[[Path], None]] = {
    make.__name__: make
    for make in (
        middlebury2014, eth3d, kitti2012, kitti2015, sceneflow, sintel, fallingthings, instereo2k, crestereo, carla,
    )
}  # fmt: skip

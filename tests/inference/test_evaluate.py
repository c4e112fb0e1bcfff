import json
import logging
import math
import os
import weakref
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from benchmark_trees import eth3d
from conftest import write_fsd_sample
from rendered_rig import RenderedRig, converging_rig, noise_texture, plane_at

from foundation_stereo_depth.calibration.files import save_calibration
from foundation_stereo_depth.checkpoint import Checkpoint, Progress, load_checkpoint, save_checkpoint
from foundation_stereo_depth.cli import evaluate_command, predict_command
from foundation_stereo_depth.data.codecs import write_rgb
from foundation_stereo_depth.data.fsd import FsdDataset
from foundation_stereo_depth.data.loader import open_files
from foundation_stereo_depth.data.rectify import Rectifier, rectified_rig
from foundation_stereo_depth.data.sample import StereoSample
from foundation_stereo_depth.errors import CheckpointError, UserError
from foundation_stereo_depth.inference import evaluate as evaluate_module
from foundation_stereo_depth.inference.evaluate import evaluate
from foundation_stereo_depth.inference.report import reliability_figure
from foundation_stereo_depth.model import create_network
from foundation_stereo_depth.model.unet import FRESH_SHARE
from foundation_stereo_depth.options import command_line
from foundation_stereo_depth.options.inference import EvaluateOptions
from foundation_stereo_depth.options.training import DataOptions, ModelOptions, TrainOptions
from foundation_stereo_depth.stereo.confidence import RIG_SIGMA_PX
from foundation_stereo_depth.stereo.geometry import disparity_from_depth
from foundation_stereo_depth.training.train import train
from foundation_stereo_depth.uncertainty import UncertaintyCounts, uncertainty_counts

H, W = 48, 64


def write_checkpoint(
    path: Path,
    *,
    bias: float = 0.0,
    scale: float = 1.0,
    distribution: str = "laplace",
    data: dict | None = None,
    trained_on: str | None = None,
) -> Path:
    """Write a network that predicts one disparity everywhere: its last layer has biases but no weights.

    Args:
        data: options of its run about data.
        trained_on: the identity of its run's samples.
    """
    options = ModelOptions(base_channels=4, depth=1)
    weights = create_network(options).state_dict()
    weights["head.weight"] = torch.zeros_like(weights["head.weight"])
    weights["head.bias"] = torch.cat([torch.full((4,), bias), torch.zeros(4)])
    plain = command_line.options_to_dict(TrainOptions())
    plain["data"] |= {"height": H, "width": W} | (data or {})
    save_checkpoint(
        path,
        Checkpoint(
            model={"model": "unet", "base_channels": 4, "depth": 1},
            weights=weights,
            uncertainty={"distribution": distribution, "scale": scale},
            metrics={},
            run_id="",
            progress=Progress(),
            options=plain,
            training={} if trained_on is None else {"data": trained_on},
        ),
    )
    return path


def constant_px(bias: float, width: int) -> float:
    """Return what that network predicts at a width."""
    return FRESH_SHARE * math.exp(2 * bias) * width


def evaluated(**changes) -> dict:
    settings = {"device": "cpu", "precision": "fp32", "json": True, "checkpoint": "none"} | changes
    return json.loads(evaluate(command_line.build_options(EvaluateOptions, settings)))


def test_constant_network_scores_its_distance_from_the_truth(tmp_path: Path) -> None:
    truth_px = write_fsd_sample(tmp_path / "fsd", "s", "0", H, W, seed=1)
    shift_px = float(np.nanmax(truth_px))
    result = evaluated(checkpoint=write_checkpoint(tmp_path / "x.pt"), dataset_root=tmp_path / "fsd")
    (scene,) = result["scenes"]
    assert (scene["name"], scene["height"], scene["width"]) == ("s/0", H, W)
    figures = scene["results"]["network"]
    error_px = abs(constant_px(0.0, W) - shift_px)
    assert figures["epe_px"] == pytest.approx(error_px, abs=1e-4)
    assert figures["rmse_px"] == pytest.approx(error_px, abs=1e-4)
    assert figures["pixels"] == np.isfinite(truth_px).sum()
    # log-variance is 2 log 4 where the last layer's biases are 0.
    b = math.hypot(4, RIG_SIGMA_PX) / math.sqrt(2)
    assert figures["nll_nat"] == pytest.approx(error_px / b + math.log(2 * b), abs=1e-4)
    assert figures["ause_epe_px"] == pytest.approx(figures["ause_epe_random_px"], abs=1e-6)
    assert figures["latency_ms"] > 0
    curves = result["overall"]["network"]["curves"]
    assert set(curves) == {"reliability", "sparsification_epe", "sparsification_bad_1"}
    assert set(curves["sparsification_epe"]) == {"removed", "by_doubt", "by_oracle", "at_random"}
    assert result["settings"]["distribution"] == "laplace"
    assert {"torch", "torchvision", "opencv", "foundation_stereo_depth"} <= set(result["versions"])
    assert "float32" in result["device"]["network"]


def test_sigma_scale_of_the_checkpoint_widens_the_distribution(tmp_path: Path) -> None:
    write_fsd_sample(tmp_path / "fsd", "s", "0", H, W, seed=1)
    plain, wide, gaussian = (
        evaluated(checkpoint=write_checkpoint(tmp_path / f"{name}.pt", **settings), dataset_root=tmp_path / "fsd")[
            "overall"
        ]["network"]
        for name, settings in [("a", {}), ("b", {"scale": 3.0}), ("c", {"distribution": "gaussian"})]
    )
    error_px = plain["epe_px"]
    assert wide["epe_px"] == error_px
    b = math.hypot(12, RIG_SIGMA_PX) / math.sqrt(2)
    assert wide["nll_nat"] == pytest.approx(error_px / b + math.log(2 * b), abs=1e-4)
    variance = 16 + RIG_SIGMA_PX**2
    assert gaussian["nll_nat"] == pytest.approx(
        0.5 * (error_px**2 / variance + math.log(variance) + math.log(2 * math.pi)), abs=1e-4
    )


def test_native_size_scales_disparity_and_sigma_with_the_width_alone(tmp_path: Path) -> None:
    truth_px = write_fsd_sample(tmp_path / "fsd", "s", "0", 3 * H, 2 * W, seed=1)
    result = evaluated(
        checkpoint=write_checkpoint(tmp_path / "x.pt"), dataset_root=tmp_path / "fsd", at_native_size=True
    )
    (scene,) = result["scenes"]
    assert (scene["height"], scene["width"]) == (3 * H, 2 * W)
    figures = scene["results"]["network"]
    error_px = abs(2 * constant_px(0.0, W) - float(np.nanmax(truth_px)))
    assert figures["epe_px"] == pytest.approx(error_px, abs=1e-4)
    b = 2 * math.hypot(4, RIG_SIGMA_PX) / math.sqrt(2)
    assert figures["nll_nat"] == pytest.approx(error_px / b + math.log(2 * b), abs=1e-4)


def test_baseline_is_scored_alone_or_beside_a_network(fsd_tree: Path, tmp_path: Path) -> None:
    alone = evaluated(baseline="sgbm", dataset_root=fsd_tree, height=H, width=W)
    assert set(alone["overall"]) == {"sgbm"}
    assert len(alone["scenes"]) == 6
    figures = alone["overall"]["sgbm"]
    assert 0 < figures["density_percent"] <= 100
    assert "nll_nat" not in figures
    by_method = evaluated(method="sgbm", checkpoint=None, dataset_root=fsd_tree, height=H, width=W)
    assert by_method["overall"]["sgbm"]["epe_px"] == figures["epe_px"]
    both = evaluated(baseline="sgbm", dataset_root=fsd_tree, checkpoint=write_checkpoint(tmp_path / "x.pt"))
    assert set(both["overall"]) == {"network", "sgbm"}
    assert both["overall"]["sgbm"]["epe_px"] == figures["epe_px"]


def test_raw_pairs_are_rectified_before_they_are_scored(caplog: pytest.LogCaptureFixture) -> None:
    rig = converging_rig(height=120, width=160)
    save_calibration(Path("rig.npz"), rig)
    wall = plane_at(noise_texture(600, 800), 1.6 / 800, (0, 0, 0.8))
    raw = RenderedRig(rig).pair(wall)
    stereo = rig.stereo_calibration
    # The wall stands at 0.8 m along the raw left axis; rectified axes are turned against it.
    rows, columns = np.mgrid[:120, :160]
    rays = np.stack([(columns - stereo.cx_left_px), (rows - stereo.cy_px), np.full((120, 160), stereo.focal_px)], -1)
    depth_m = stereo.focal_px * 0.8 / (rays @ rig.rectified.left_rotation)[..., 2]
    truth_px = disparity_from_depth(depth_m, stereo).astype(np.float32)
    for folder, pair in (("raw", raw), ("rectified", Rectifier(rig, height=120, width=160)(*raw))):
        for side, view in zip(("left", "right"), pair, strict=True):
            Path(folder, side).mkdir(parents=True)
            write_rgb(Path(folder, side, "0.png"), view)
        Path(folder, "disparity").mkdir()
        np.save(f"{folder}/disparity/0.npy", truth_px)
    flags = {"dataset": "folders", "baseline": "sgbm", "at_native_size": True, "calibration": Path("rig.npz")}

    def epe_px(root: str, **more: object) -> float:
        caplog.clear()
        return evaluated(dataset_root=Path(root), **flags | more)["overall"]["sgbm"]["epe_px"]

    assert epe_px("raw") < 0.5
    assert not caplog.messages
    assert epe_px("rectified", rectify=False) < 0.5
    assert not caplog.messages
    assert epe_px("raw", rectify=False) > 2
    assert "the first pair: the rows of both views differ by" in caplog.text
    assert epe_px("rectified") > 2
    assert "seem to be rectified already" in caplog.text
    save_calibration(Path("already.npz"), rectified_rig(stereo))
    assert epe_px("rectified", calibration=Path("already.npz")) == epe_px("rectified", rectify=False)


def test_overall_figures_are_means_over_pixels_not_over_scenes(fsd_tree: Path) -> None:
    result = evaluated(baseline="sgbm", dataset_root=fsd_tree, at_native_size=True)
    scenes = [scene["results"]["sgbm"] for scene in result["scenes"]]
    pixels = sum(scene["pixels"] for scene in scenes)
    assert result["overall"]["sgbm"]["pixels"] == pixels
    expected = sum(scene["epe_px"] * scene["pixels"] for scene in scenes) / pixels
    assert result["overall"]["sgbm"]["epe_px"] == pytest.approx(expected)


def test_occluded_pixels_are_scored_apart_where_masks_exist(tmp_path: Path) -> None:
    eth3d(tmp_path)
    result = evaluated(
        checkpoint=write_checkpoint(tmp_path / "x.pt"), dataset="eth3d", dataset_root=tmp_path, at_native_size=True
    )
    figures = result["overall"]["network"]
    parts = [figures["non_occluded"], figures["occluded"]]
    assert [part["pixels"] for part in parts] == [2 * (6 * 8 - 1), 2 * 6]
    assert figures["pixels"] == 2 * (6 * 9 - 1)
    expected = sum(part["epe_px"] * part["pixels"] for part in parts) / figures["pixels"]
    assert figures["epe_px"] == pytest.approx(expected)


def test_max_samples_takes_evenly_spread_scenes(fsd_tree: Path) -> None:
    result = evaluated(baseline="sgbm", dataset_root=fsd_tree, height=H, width=W, max_samples=2)
    assert [scene["name"] for scene in result["scenes"]] == ["scene_0/0001", "scene_2/0000"]


def test_scenes_are_freed_while_others_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for frame in range(5):
        write_fsd_sample(tmp_path / "fsd", "s", str(frame), H, W, seed=frame)
    images, counts = list[weakref.ref](), list[weakref.ref]()
    read, count = FsdDataset.read, evaluate_module.uncertainty_counts

    def watched_read(self: FsdDataset, i: int, size: tuple[int, int] | None = None) -> StereoSample:
        # The scene before this one is still the loop's; of its counts, so are those it added to the sum.
        assert sum(image() is not None for image in images) <= 1
        assert sum(each() is not None for each in counts) <= 2
        sample = read(self, i, size)
        images.append(weakref.ref(sample.left))
        return sample

    def watched_count(*given) -> UncertaintyCounts:
        counted = count(*given)
        counts.append(weakref.ref(counted))
        return counted

    monkeypatch.setattr(FsdDataset, "read", watched_read)
    monkeypatch.setattr(evaluate_module, "uncertainty_counts", watched_count)
    network = write_checkpoint(tmp_path / "x.pt")
    for at_native_size in (True, False):
        result = evaluated(checkpoint=network, dataset_root=tmp_path / "fsd", at_native_size=at_native_size)
        assert len(result["scenes"]) == 5
    assert len(images) == len(counts) == 10


@pytest.fixture
def many_scenes(tmp_path: Path) -> Path:
    """Ten scenes of one frame each."""
    for scene in range(10):
        write_fsd_sample(tmp_path / "fsd", f"scene_{scene}", "0000", H, W, seed=scene)
    return tmp_path / "fsd"


def split_by_training(root: Path, val_fraction: float) -> tuple[list[str], str]:
    """Return what a run validates on, and the identity of its samples, as training itself computes them."""
    files = open_files(DataOptions(val_fraction=val_fraction, num_workers=0), root, pin_memory=False)
    names = [files.validation.name(i) for i in range(len(files.validation))]
    return names, str(files.facts["dataset_fingerprint"])


def test_split_validation_scores_the_validation_scenes_of_the_run(
    many_scenes: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    kept, identity = split_by_training(many_scenes, 0.3)
    network = write_checkpoint(Path("x.pt"), data={"val_fraction": 0.3}, trained_on=identity)
    result = evaluated(checkpoint=network, dataset_root=many_scenes, split="validation")
    assert [scene["name"] for scene in result["scenes"]] == kept
    assert len(kept) == 3
    assert caplog.messages[0] == "validation scenes only, split by scene: 3 of 10 scenes validate"
    one = evaluated(checkpoint=network, dataset_root=many_scenes, split="validation", max_samples=1)
    assert [scene["name"] for scene in one["scenes"]] == kept[1:2]


def test_scenes_that_the_network_was_trained_on_are_warned_of(
    many_scenes: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def warning(**settings) -> str:
        caplog.clear()
        network = write_checkpoint(Path("x.pt"), **settings)
        evaluated(checkpoint=network, dataset_root=many_scenes, max_samples=5)
        return "\n".join(record.message for record in caplog.records if record.levelno == logging.WARNING)

    kept, identity = split_by_training(many_scenes, 0.3)
    known = 5 - sum(name in kept for name in [f"scene_{i}/0000" for i in (1, 3, 5, 7, 9)])
    here = {"dataset_root": os.path.relpath(many_scenes), "val_fraction": 0.3}
    expected = (
        f"the network was trained on {known} of the 5 scenes that it is scored on; --split validation leaves them out"
    )
    assert warning(data=here, trained_on=identity) == expected
    assert warning(data={"val_fraction": 0.3}, trained_on=identity) == expected  # a copy elsewhere
    assert warning(data=here) == expected  # of runs that did not record their samples
    assert "which contains other samples now: it may have been trained on some" in warning(
        data=here, trained_on="others"
    )
    assert warning(data=here | {"val_fraction": 0.0}, trained_on=identity).endswith(
        "on 5 of the 5 scenes that it is scored on"
    )
    assert warning(trained_on="others") == ""


@pytest.mark.parametrize(
    ("file", "settings", "changes", "message"),
    [
        (
            "x.pt",
            {"trained_on": "others"},
            {},
            "the network's run was trained on other samples than .*fsd contains now",
        ),
        ("x.pt", {"data": {"val_fraction": 0.0, "dataset_root": "fsd"}}, {}, "had no validation scenes"),
        ("x.safetensors", {}, {}, "this network's file does not contain its run's options"),
        (None, {}, {"baseline": "sgbm"}, "needs a network, .* --checkpoint is none"),
        ("x.pt", {"trained_on": "others"}, {"dataset": "eth3d"}, "was trained on other samples"),
    ],
)
def test_split_validation_needs_a_known_split(
    fsd_tree: Path, file: str | None, settings: dict, changes: dict, message: str
) -> None:
    write_checkpoint(Path("x.pt"), **settings)
    eth3d(Path())
    root = Path() if "dataset" in changes else fsd_tree
    with pytest.raises(UserError, match=f"--split validation: .*{message}"):
        evaluated(checkpoint=Path(file) if file else "none", dataset_root=root, split="validation", **changes)


def test_table_has_a_line_per_scene_and_method(
    fsd_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_checkpoint(tmp_path / "x.pt")
    flags = ["--baseline", "sgbm", "--checkpoint", str(path), "--dataset-root", str(fsd_tree), "--device", "cpu"]
    assert evaluate_command(flags) == 0
    out = capsys.readouterr().out
    header = out.splitlines()[0].split()
    assert header[:3] == ["scene", "by", "EPE"]
    assert sum(line.startswith("scene_") for line in out.splitlines()) == 12
    assert sum(line.startswith("ALL ") for line in out.splitlines()) == 2
    assert "68 % hold" in out
    assert "6 scenes at 64x48" in out
    assert max(len(line) for line in out.splitlines()) < 250


def test_json_is_the_only_output(fsd_tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [
        "--baseline",
        "sgbm",
        "--checkpoint",
        "none",
        "--dataset-root",
        str(fsd_tree),
        "--json",
        "--height",
        "48",
        "--width",
        "64",
    ]
    assert evaluate_command(flags) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"settings", "versions", "device", "scenes", "overall"}


def test_results_are_added_to_the_run(tiny_options, tracking_uri: str, fsd_tree: Path) -> None:
    train(tiny_options(epochs=1))
    run_id = load_checkpoint(Path("out/best.pt")).run_id
    for weights, named in (("best", run_id), ("last", "latest"), ("last", run_id[:6])):
        result = evaluated(
            run_id=named,
            checkpoint=None,
            weights=weights,
            mlflow_tracking_uri=tracking_uri,
            dataset_root=fsd_tree,
            baseline="sgbm",
        )
        assert result["settings"]["run_id"] == run_id
    client = mlflow.MlflowClient(tracking_uri)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert {"evaluate/fsd/network/epe_px", "evaluate/fsd/network/nll_nat", "evaluate/fsd/sgbm/epe_px"} <= set(
        run.data.metrics
    )
    files = {Path(found.path).name for found in client.list_artifacts(run_id, "evaluate/fsd")}
    assert files == {"results.json", "table.txt", "reliability.png", "sparsification.png"}
    scene = fsd_tree / min(path.name for path in fsd_tree.iterdir()) / "dataset/data"
    views = [str(next((scene / view / "rgb").iterdir())) for view in ("left", "right")]
    assert predict_command([*views, "-o", "predicted", "--run-id", run_id, "--mlflow-tracking-uri", tracking_uri]) == 0
    assert any(Path("predicted").iterdir())


def test_unknown_distribution_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="its error distribution cauchy is unknown"):
        evaluated(checkpoint=write_checkpoint(tmp_path / "y.pt", distribution="cauchy"), dataset_root=tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "--checkpoint none: leaves nothing to evaluate"),
        ({"run_id": "a", "checkpoint": Path("b")}, "both name a network; give one of them"),
        ({"baseline": "sgbm"}, "--dataset fsd: needs --dataset-root or \\$FOUNDATION_STEREO_ROOT"),
        ({"baseline": "sgbm", "dataset": "sintel"}, "--dataset sintel: needs --dataset-root, the folder"),
        ({"baseline": "sgbm", "dataset": "sintel", "dataset_root": Path()}, "does not hold sintel"),
        ({"checkpoint": Path("none.pt"), "dataset_root": Path()}, "none.pt: cannot be read"),
    ],
)
def test_user_errors_name_the_flag(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluated(**options)


def test_scenes_of_which_no_disparity_is_known_are_no_result(tmp_path: Path) -> None:
    for view in ("left", "right", "disparity"):
        (tmp_path / view).mkdir()
    for view in ("left", "right"):
        write_rgb(tmp_path / view / "0.png", noise_texture(H, W))
    np.save(tmp_path / "disparity/0.npy", np.full((H, W), np.nan, np.float32))
    with pytest.raises(UserError, match=rf"{tmp_path}: no disparity is known in the 1 scene that was scored"):
        evaluated(baseline="sgbm", dataset="folders", dataset_root=tmp_path)


def test_unknown_run_is_named(tracking_uri: str, fsd_tree: Path) -> None:
    with pytest.raises(UserError, match="--run-id 0123: neither"):
        evaluated(run_id="0123", checkpoint=None, mlflow_tracking_uri=tracking_uri, dataset_root=fsd_tree)


def test_baseline_on_real_pairs_scores_as_measured(shared_data: Path) -> None:
    figures = evaluated(baseline="sgbm", dataset_root=shared_data / "fsd-sample")["overall"]["sgbm"]
    assert figures["epe_px"] == pytest.approx(1.12, abs=0.03)
    assert figures["bad_1_percent"] == pytest.approx(15.2, abs=0.3)
    assert figures["bad_2_percent"] == pytest.approx(11.1, abs=0.3)
    assert figures["d1_percent"] == pytest.approx(9.3, abs=0.3)


def test_bins_of_hardly_any_pixels_are_not_drawn() -> None:
    log_variance, truth_px = torch.zeros(1, 1, 200, 200), torch.full((1, 1, 200, 200), 5.0)
    disparity_px = truth_px + torch.from_numpy(np.random.default_rng(0).laplace(0, 0.7, (1, 1, 200, 200))).float()
    log_variance[0, 0, 0, 0] = 9.0  # the one pixel of its bin
    counts = uncertainty_counts(disparity_px, log_variance, truth_px, "laplace")
    assert len(counts.reliability_curve().predicted) == 2
    lines = {line.get_label(): line for line in reliability_figure({"network": counts}, "title").axes[0].lines}
    assert len(np.asarray(lines["network"].get_xdata())) == 1

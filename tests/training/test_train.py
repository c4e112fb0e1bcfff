import json
import logging
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from conftest import SYNTHETIC, command_of, shifted_pair, write_fsd_sample

from foundation_stereo_depth import checkpoint, tracking
from foundation_stereo_depth.checkpoint import Checkpoint, load_checkpoint, read_trained
from foundation_stereo_depth.cli import train_command
from foundation_stereo_depth.data.codecs import write_rgb
from foundation_stereo_depth.data.synthetic import torch_scenes
from foundation_stereo_depth.device import Processes
from foundation_stereo_depth.errors import CheckpointError, NotFiniteError, UserError
from foundation_stereo_depth.files import TEMPORARY_PREFIX, _machine
from foundation_stereo_depth.model import create_network
from foundation_stereo_depth.options import command_line
from foundation_stereo_depth.options.training import TrainOptions
from foundation_stereo_depth.tracking import _RetryQueue
from foundation_stereo_depth.training import run, setup, validate
from foundation_stereo_depth.training import train as training
from foundation_stereo_depth.training.loss import heteroscedastic_loss
from foundation_stereo_depth.training.preview import draw_preview
from foundation_stereo_depth.training.run import Stopped
from foundation_stereo_depth.training.setup import resolve
from foundation_stereo_depth.training.state import TrainingState, learning_rate_at
from foundation_stereo_depth.training.train import train

LOSSES = ("train/loss", "train/loss_nll", "train/epe_px", "validation/loss", "validation/loss_nll", "validation/epe_px")
STEPS_PER_EPOCH = 3


@pytest.fixture
def simple_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Render synthetic scenes of six primitives by PyTorch, which compiles nothing first."""
    monkeypatch.setattr(torch_scenes, "PIECES", 6)
    monkeypatch.setattr(setup, "SceneSource", partial(torch_scenes.ProceduralSource, device=torch.device("cpu")))


def history_of(folder: str | Path) -> list[dict[str, float]]:
    """Return the losses of every epoch in a checkpoint."""
    history = load_checkpoint(Path(folder) / "last.pt").training["history"]
    return [{name: epoch[name] for name in LOSSES} for epoch in history]


def run_of(folder: str | Path, uri: str) -> mlflow.entities.Run:
    return mlflow.MlflowClient(uri).get_run(load_checkpoint(Path(folder) / "last.pt").run_id)


def test_a_run_writes_checkpoints_previews_and_its_record(
    tiny_options, tracking_uri: str, simple_scenes, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(run, "draw_preview", draw_preview)
    caplog.set_level(logging.INFO)
    assert train(tiny_options(**SYNTHETIC)) == Path("out")
    assert "training on synthetic scenes" in caplog.messages[0]
    assert caplog.messages[-2].startswith("epoch 2/2: train loss ")
    address = r"MLflow.*: http://127\.0\.0\.1:5000/#/experiments/\d+/runs/[0-9a-f]{32}\?workflowType=machine_learning"
    assert (
        len([message for message in caplog.messages if re.fullmatch(address, message)]) == 2
    )  # at the start and the end
    names = {"best.pt", "best.safetensors", "last.pt", "last.safetensors", "previews"}
    assert {path.name for path in Path("out").iterdir()} == names

    record = run_of("out", tracking_uri)
    assert record.info.status == "FINISHED"
    assert record.info.run_name == "unet synthetic 48x32"
    assert record.data.tags["best_epoch"] in ("1", "2")
    [used] = record.inputs.dataset_inputs
    assert (used.dataset.name, json.loads(used.dataset.profile)["train_samples"]) == ("synthetic", 4)
    [output] = record.outputs.model_outputs
    model = mlflow.MlflowClient(tracking_uri).get_logged_model(output.model_id)
    assert (model.name, model.tags["file"]) == ("unet-synthetic-48x32", str(Path("out/best.safetensors").resolve()))
    assert model.params["base_channels"] == "4"
    assert min(point.value for point in model.metrics) == pytest.approx(
        float(record.data.tags["best_validation/epe_px"]), rel=1e-3
    )
    assert not Path(model.artifact_location.removeprefix("file://")).exists()  # nothing is stored twice
    assert "mean_sigma_px" in str(sorted(record.data.metrics))
    assert not [name for name in record.data.metrics if name.startswith("data/")]  # they are zero
    assert record.data.params["base_channels"] == "4"
    assert record.data.params["dataset"] == "made-up scenes"
    assert record.data.tags["checkpoint_folder"] == str(Path("out").resolve())
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", record.data.tags["mlflow.source.git.commit"])
    expected = {f"{part}/{name}" for part in ("train", "validation") for name in (
        "loss", "loss_nll", "epe_px", "bad_1_percent", "bad_2_percent", "bad_3_percent", "d1_percent",
    )} | {"learning_rate", "speed/samples_per_s", "speed/data_wait_percent"}  # fmt: skip
    assert expected <= set(record.data.metrics)
    client = mlflow.MlflowClient(tracking_uri)
    artifacts = {
        a.path for folder in ("checkpoints", "previews") for a in client.list_artifacts(record.info.run_id, folder)
    }
    assert artifacts == {
        "checkpoints/best.pt", "checkpoints/last.pt", "previews/epoch_0001.png", "previews/epoch_0002.png",
    }  # fmt: skip
    stored = Path(record.info.artifact_uri.removeprefix("file://"))
    assert (stored / "checkpoints/last.pt").samefile("out/last.pt")  # a link, no copy
    images = [Path(a.path).name for a in client.list_artifacts(record.info.run_id, "images")]
    assert sorted(name.split("+timestamp")[0] for name in images if name.endswith(".png")) == [
        "validation+step+1", "validation+step+2",
    ]  # fmt: skip
    steps = [point.step for point in client.get_metric_history(record.info.run_id, "validation/epe_px")]
    assert steps == [1, 2]


def test_the_command_prints_the_weights_on_standard_output_and_logs_the_rest(tiny, capsys) -> None:
    assert train_command(command_of(tiny(epochs=1))[1:]) == 0
    out, error = capsys.readouterr()
    assert out == "weights: out/best.pt (lowest validation EPE) and out/last.pt\n"
    assert "epoch 1/1: train loss" in error


@pytest.mark.parametrize("model", ["unet", "guided"])
def test_terms_of_the_loss_add_up_in_training_and_validation(model: str, tiny_options, tracking_uri) -> None:
    train(tiny_options(epochs=1, model=model, region_weight=0.25))
    [epoch] = load_checkpoint(Path("out/last.pt")).training["history"]
    for part in ("train", "validation"):
        terms = {name.rpartition("_")[2] for name in epoch if name.startswith(f"{part}/loss_")}
        assert terms == ({"nll", "region"} if model == "guided" else {"nll"})
        region = 0.25 * epoch.get(f"{part}/loss_region", 0.0)
        assert epoch[f"{part}/loss"] == pytest.approx(epoch[f"{part}/loss_nll"] + region, rel=1e-6)
    assert run_of("out", tracking_uri).data.metrics["train/loss_nll"] == epoch["train/loss_nll"]


class SlowSource:
    """A source that waits before each batch."""

    def __init__(self, source) -> None:
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def name(self, index: int) -> str:
        return self._source.name(index)

    def batches(self, plan, epoch: int):
        for batch in self._source.batches(plan, epoch):
            time.sleep(0.5)
            yield batch


@pytest.mark.parametrize(("slow", "least", "most"), [("reading", 50, 100), ("augmentation", 0, 50)])
def test_only_waiting_for_data_counts_as_waiting(
    tiny_options, monkeypatch, *, slow: str, least: float, most: float
) -> None:
    if slow == "reading":
        open_data = training.open_data

        def open_slowly(*arguments: object):
            data = open_data(*arguments)
            return data._replace(train=SlowSource(data.train))

        monkeypatch.setattr(training, "open_data", open_slowly)
    else:
        augmented_pair = training.augmented_pair

        def augment_slowly(*arguments: object):
            time.sleep(0.5)
            return augmented_pair(*arguments)

        monkeypatch.setattr(training, "augmented_pair", augment_slowly)
    train(tiny_options(epochs=1))
    [epoch] = load_checkpoint(Path("out/last.pt")).training["history"]
    assert least < epoch["speed/data_wait_percent"] < most


def test_two_runs_with_the_same_seed_are_identical_and_with_another_are_not(tiny_options) -> None:
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(tiny_options(output_dir=Path(folder), seed=seed))
    assert history_of("a") == history_of("b") != history_of("c")


def test_a_network_overfits_one_pair() -> None:
    left, right = shifted_pair(32, 48, 6)
    pair = torch.from_numpy(np.concatenate([left, right], axis=2)).permute(2, 0, 1)[None] / 255
    truth_px = torch.full((1, 1, 32, 48), 6.0)
    options = command_line.build_options(TrainOptions, {"base_channels": 8, "depth": 2})
    torch.manual_seed(0)
    network = create_network(options.model)
    state = TrainingState.create(network, options.optimizer, "one pair")
    errors_px = []
    for _ in range(120):
        prediction = network(pair)
        loss = heteroscedastic_loss(prediction, truth_px, options.loss)
        (loss.total / loss.valid).backward()
        state.change_weights(3e-3)
        errors_px.append((prediction.disparity_px - truth_px).abs().mean().item())
    assert errors_px[-1] < 0.15 * errors_px[0]


@pytest.mark.slow
def test_training_overfits_real_pairs(shared_data: Path, tiny_options) -> None:
    flags = {"height": 96, "width": 128, "epochs": 100, "batch_size": 7, "val_fraction": 0.0, "augment": False}
    train(
        tiny_options(
            **flags, dataset_root=shared_data / "fsd-sample", cache_root=Path("cache"), base_channels=16, depth=4,
            learning_rate=4e-3,
        )
    )  # fmt: skip
    history = history_of("out")
    assert len(list(Path("cache").rglob("*.npz"))) == 7
    assert history[-1]["validation/epe_px"] < 0.4 * history[0]["validation/epe_px"]


def without(flags: dict, name: str) -> dict:
    return {key: value for key, value in flags.items() if key != name}


def test_a_tree_of_scenes_of_several_sizes_trains_through_the_cache(fsd_tree: Path, tiny_options, tracking_uri) -> None:
    train(tiny_options(dataset_root=fsd_tree, cache_root=Path("cache"), val_fraction=0.34))
    record = run_of("out", tracking_uri)
    assert record.data.params["split_by"] == "scene: 1 of 3 scenes validate"
    assert (record.data.params["train_samples"], record.data.params["validation_samples"]) == ("4", "2")
    assert record.data.metrics["data/cache_hits"] == 4
    assert re.fullmatch(r"[0-9a-f]{12}", record.data.params["dataset_fingerprint"])


def test_a_resumed_run_keeps_the_data_set_that_the_environment_named(
    fsd_tree: Path, tiny, monkeypatch, tracking_uri
) -> None:
    monkeypatch.setenv("FOUNDATION_STEREO_ROOT", str(fsd_tree))
    train(*resolve(without(tiny(epochs=1), "dataset_root")))
    assert run_of("out", tracking_uri).data.params["dataset"] == str(fsd_tree)
    # It resumes with those samples where the variable is not set, and with no others.
    monkeypatch.delenv("FOUNDATION_STEREO_ROOT")
    train(*resolve({"resume": "out/last.pt", "epochs": 2}))
    assert len(history_of("out")) == 2
    shutil.rmtree(fsd_tree / "scene_0")
    with pytest.raises(UserError, match="was trained on other samples than are found now"):
        train(*resolve({"resume": "out/last.pt", "epochs": 3}))


def test_a_run_on_synthetic_scenes_resumes_with_them(fsd_tree: Path, tiny, simple_scenes, monkeypatch) -> None:
    train(*resolve(without(tiny(epochs=1) | SYNTHETIC, "dataset_root")))
    monkeypatch.setenv("FOUNDATION_STEREO_ROOT", str(fsd_tree))
    train(*resolve({"resume": "out/last.pt", "epochs": 2}))
    assert load_checkpoint(Path("out/last.pt")).options["data"]["dataset_root"] is None
    with pytest.raises(UserError, match="was trained on other samples than are found now"):
        train(*resolve({"resume": "out/last.pt", "epochs": 3, "dataset_root": fsd_tree}))


def test_bad_samples_are_counted_and_listed(fsd_tree: Path, tiny_options, tracking_uri, caplog) -> None:
    for frame in range(2):
        (fsd_tree / f"scene_{frame}/dataset/data/right/rgb/0000.png").write_bytes(b"?")
    train(tiny_options(dataset_root=fsd_tree, skip_bad=True, val_fraction=0.0))
    assert len(Path("out/bad_samples.txt").read_text().splitlines()) == 2
    assert run_of("out", tracking_uri).data.tags["bad_samples"] == "2"
    assert "2 samples skipped, since unreadable" in caplog.text


def test_a_data_set_without_one_known_pixel_trains_without_nan(tmp_path: Path, tiny_options) -> None:
    write_fsd_sample(tmp_path / "fsd", "s", "0", 48, 64, seed=0)
    write_rgb(tmp_path / "fsd/s/dataset/data/left/disparity/0.png", np.zeros((48, 64, 3), np.uint8))
    train(tiny_options(dataset_root=tmp_path / "fsd", val_fraction=0.0, epochs=1))
    checkpoint = load_checkpoint(Path("out/last.pt"))
    assert checkpoint.training["history"][0]["train/loss"] == 0
    assert all(weight.isfinite().all() for weight in checkpoint.weights.values())


def test_a_resumed_run_has_exactly_the_losses_of_an_uninterrupted_one(tiny, tiny_options, tracking_uri) -> None:
    train(tiny_options(epochs=3, log_steps=2, output_dir=Path("uninterrupted")))

    flags = tiny(epochs=3, log_steps=2, output_dir=Path("parts"))
    for stop_at_step in (2, 6, 8):  # inside epoch 1, at the last step of epoch 2, inside epoch 3
        with pytest.raises(Stopped, match="resume with --resume"):
            stopped_train(stop_at_step, *resolve(flags))
        run_id = load_checkpoint(Path("parts/last.pt")).run_id
        assert load_checkpoint(Path("parts/last.pt")).progress.step == stop_at_step
        assert run_of("parts", tracking_uri).info.status == "KILLED"
        flags = {"resume": "parts/last.pt" if stop_at_step == 2 else run_id, "mlflow_tracking_uri": tracking_uri}
    left_behind = Path(f"parts/{TEMPORARY_PREFIX}{_machine()}-0123456789ab")
    left_behind.write_bytes(b"half a checkpoint, of a process that was killed")
    train(*resolve(flags))
    assert not left_behind.exists()

    assert history_of("parts") == history_of("uninterrupted")
    uninterrupted, parts = (load_checkpoint(Path(folder) / "last.pt") for folder in ("uninterrupted", "parts"))
    assert all(torch.equal(parts.weights[name], weight) for name, weight in uninterrupted.weights.items())
    record = run_of("parts", tracking_uri)
    assert record.info.status == "FINISHED"
    client = mlflow.MlflowClient(tracking_uri)
    points = client.get_metric_history(record.info.run_id, "validation/epe_px")
    assert [point.step for point in points] == [1, 2, 3]
    within = [
        {(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "train_steps/loss_nll")}
        for run in (record, run_of("uninterrupted", tracking_uri))
    ]
    assert within[0] == within[1]
    assert sorted(samples for samples, _ in within[0]) == [4, 6, 10, 12, 16, 18]


def test_a_resumed_run_changes_the_size_as_an_uninterrupted_one(tiny, simple_scenes, caplog) -> None:
    caplog.set_level(logging.INFO)
    changed = SYNTHETIC | {"height": 96, "width": 96, "procedural_samples": 8, "procedural_half_size": 0.5}
    flags = without(tiny(epochs=2) | changed, "dataset_root")
    train(*resolve(flags | {"output_dir": Path("uninterrupted")}))
    lines = [message for message in caplog.messages if message.startswith("epoch ")]
    assert ["train at half the size loss" in line for line in lines] == [True, False]
    for stop_at_step in (2, 6):  # between small scenes, and between large ones
        with pytest.raises(Stopped):
            stopped_train(stop_at_step, *resolve(flags))
        flags = {"resume": "out/last.pt"}
    train(*resolve(flags))
    uninterrupted, parts = (load_checkpoint(Path(folder) / "last.pt") for folder in ("uninterrupted", "out"))
    assert history_of("out") == history_of("uninterrupted")
    assert all(torch.equal(parts.weights[name], weight) for name, weight in uninterrupted.weights.items())


def stopped_train(step: int, *arguments_of_train) -> None:
    """Train, and receive the signal of Ctrl-C in a step."""
    advance = TrainingState.advance

    def advance_and_stop(self: TrainingState, samples: int) -> None:
        advance(self, samples)
        if self.progress.step == step - 1:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingState, "advance", advance_and_stop)
        train(*arguments_of_train)


@pytest.mark.slow
def test_a_killed_process_resumes_from_its_last_epoch(tiny, tracking_uri) -> None:
    flags = tiny(epochs=60)
    process = subprocess.Popen(command_of(flags), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not Path("out/last.pt").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    done = len(history_of("out"))
    assert 1 <= done < 60

    train(*resolve({"resume": "out/last.pt", "mlflow_tracking_uri": tracking_uri, "epochs": done + 1}))
    history = history_of("out")
    assert len(history) == done + 1
    record = run_of("out", tracking_uri)
    steps = {p.step for p in mlflow.MlflowClient(tracking_uri).get_metric_history(record.info.run_id, "train/loss")}
    assert steps == set(range(1, done + 2))


@pytest.mark.slow
def test_ctrl_c_saves_and_logs_how_to_resume(tiny, tracking_uri) -> None:
    process = subprocess.Popen(command_of(tiny(epochs=500)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not Path("out/previews/epoch_0001.png").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    record = run_of("out", tracking_uri)
    assert process.returncode == 130
    assert error.splitlines()[-1].endswith(f"resume with --resume {record.info.run_id}")
    assert f"runs/{record.info.run_id}?workflowType=machine_learning" in error.splitlines()[-2]
    assert "Traceback" not in error
    assert record.info.status == "KILLED"


def test_a_loss_that_is_not_finite_stops_the_run(tiny_options, tracking_uri, monkeypatch) -> None:
    weighted_loss, calls = training.weighted_loss, []

    def diverged(*args):
        calls.append(1)
        loss = weighted_loss(*args)
        return loss._replace(total=loss.total * float("nan")) if len(calls) == STEPS_PER_EPOCH + 2 else loss

    monkeypatch.setattr(training, "weighted_loss", diverged)
    message = r"step 2 of epoch 2, samples .*scene_\d.*, .*scene_\d.*; the last good checkpoint is out/last.pt"
    with pytest.raises(NotFiniteError, match=message):
        train(tiny_options())
    assert run_of("out", tracking_uri).info.status == "FAILED"
    assert len(history_of("out")) == 1


def test_running_out_of_memory_names_the_options(tiny, monkeypatch, capsys) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(training, "augmented_pair", full)
    assert train_command(command_of(tiny())[1:]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.endswith("--batch-size 2 and --base-channels 4 at 48x32; lower one of them")


def test_a_resumed_run_keeps_its_fixed_options(own_run: Path, tracking_uri) -> None:
    resume = {"resume": "out/last.pt", "mlflow_tracking_uri": tracking_uri}
    with pytest.raises(UserError, match=r"cannot change --seed 5 \(the run has 0\); leave that out"):
        resolve(resume | {"seed": 5})
    options, checkpoint = resolve(resume | {"epochs": 4, "seed": 0})
    assert checkpoint is not None
    assert (options.optimizer.epochs, options.model.base_channels) == (4, 4)
    assert options.tracking.output_dir == Path("out")


def test_a_run_starts_from_initial_weights(tiny, tiny_options) -> None:
    train(tiny_options(epochs=1, noise_std_max=0.01, blur_prob=0.1))
    trained = load_checkpoint(Path("out/best.pt")).weights
    flags = tiny(initial_weights=Path("out/best.safetensors"), output_dir=Path("more"), learning_rate=0.0, epochs=1)
    flags.pop("base_channels")
    flags.pop("depth", None)
    options, resumed = resolve(flags | {"blur_prob": 0.2})
    assert resumed is None
    assert options.model.base_channels == 4, "as in the file"
    assert (options.augment.noise_std_max, options.augment.blur_prob) == (0.01, 0.2)
    train(options)
    for name, values in load_checkpoint(Path("more/last.pt")).weights.items():
        torch.testing.assert_close(values, trained[name], rtol=0, atol=0, msg=name)
    # A resumed run does not need the file.
    Path("out/best.safetensors").unlink()
    train(*resolve({"resume": "more/last.pt", "epochs": 2}))
    assert len(history_of("more")) == 2


def test_initial_weights_of_another_network_are_refused(own_run: Path, tiny_options, tiny) -> None:
    with pytest.raises(UserError, match=r"holds a network of --model fused .*, and the flags ask for --model unet "):
        train(tiny_options(initial_weights="default"))
    with pytest.raises(CheckpointError, match=r"missing\.pt: cannot be read"):
        resolve(tiny(initial_weights=Path("missing.pt")))
    with pytest.raises(UserError, match=r"--initial-weights net\.onnx: has to be a \.pt or \.safetensors file"):
        resolve(tiny(initial_weights=Path("net.onnx")))
    flags = {"initial_weights": "default", "depth": 2}  # not an option of the installed network, fused
    assert resolve(flags)[0].model.model == "fused"
    content = torch.load("out/last.pt", weights_only=True)
    name = next(iter(content["weights"]))
    content["weights"][name][0] = float("nan")
    torch.save(content, "nan.pt")
    with pytest.raises(CheckpointError, match=r"nan\.pt: its weights are not finite"):
        resolve(tiny(initial_weights=Path("nan.pt")))


def test_a_checkpoint_with_one_wrong_value_is_read_or_refused_in_one_line(own_run: Path, monkeypatch) -> None:
    """Replace every value, down to single options, by several others: no other error is raised."""
    content = torch.load("out/last.pt", weights_only=True)
    key_paths = [(name,) for name in content]
    for name in ("options", "model", "uncertainty", "progress", "training"):
        key_paths += [(name, inner) for inner in content[name]]
    key_paths += [("options", group, option) for group, options in content["options"].items() for option in options]
    trials, messages = 0, list[str]()
    for keys in key_paths:
        for value in (None, "x", -1, {"a": 1}, torch.zeros(3)) if len(keys) < 3 else (None, [1]):
            damaged = with_value(content, keys, value)
            monkeypatch.setattr(checkpoint, "load_plain", lambda _, damaged=damaged: damaged)
            trials += 1
            try:
                read_trained(Path("out/last.pt")).network()
                options, found = resolve({"resume": "out/last.pt"})
                assert found is not None
                if keys[0] == "training":
                    state = TrainingState.create(
                        create_network(options.model), options.optimizer, content["training"]["data"]
                    )
                    state.restore(found, Processes.from_environment())
            except UserError as error:
                messages.append(str(error))
    assert [line for line in messages if "\n" in line] == []
    assert trials > 200
    assert len(messages) > 0.8 * trials


def with_value(content: dict, keys: tuple, value: object) -> dict:
    """Return a copy with another value under the keys."""
    first, *rest = keys
    return content | {first: with_value(content[first], tuple(rest), value) if rest else value}


def test_a_resumed_run_sends_everything_that_its_store_lacks(tiny_options, tracking_uri, monkeypatch) -> None:
    with monkeypatch.context() as away:
        away.setattr(_RetryQueue, "send", lambda *_, **__: None)
        train(tiny_options(epochs=2))
    assert run_of("out", tracking_uri).data.params == {}
    train(*resolve({"resume": "out/last.pt", "mlflow_tracking_uri": tracking_uri}))
    record, client = run_of("out", tracking_uri), mlflow.MlflowClient(tracking_uri)
    assert record.data.params["base_channels"] == "4"
    assert record.info.status == "FINISHED"
    history = client.get_metric_history(record.info.run_id, "validation/epe_px")
    assert [point.value for point in history] == [epoch["validation/epe_px"] for epoch in history_of("out")]
    for folder, names in (
        ("checkpoints", ["best.pt", "last.pt"]),
        ("previews", ["epoch_0001.png", "epoch_0002.png"]),
    ):
        assert [Path(item.path).name for item in client.list_artifacts(record.info.run_id, folder)] == names


def test_a_resumed_run_sends_the_files_that_the_artifact_store_lacks(tiny_options, tracking_uri, monkeypatch) -> None:
    with monkeypatch.context() as away:
        away.setattr(mlflow.MlflowClient, "log_artifact", _refused)
        away.setattr(tracking, "_link", lambda *_: False)
        train(tiny_options(epochs=1))
    record, client = run_of("out", tracking_uri), mlflow.MlflowClient(tracking_uri)
    assert client.list_artifacts(record.info.run_id) == []
    assert record.info.status == "FINISHED"
    train(*resolve({"resume": "out/last.pt", "mlflow_tracking_uri": tracking_uri}))
    assert [Path(file.path).name for file in client.list_artifacts(record.info.run_id, "previews")] == [
        "epoch_0001.png"
    ]
    assert len(client.list_artifacts(record.info.run_id, "checkpoints")) == 2


def _refused(*_: object) -> None:
    raise PermissionError("the store takes no files")


def test_a_run_whose_store_is_lost_continues_as_another_run(own_run: Path, tiny, tracking_uri, caplog) -> None:
    content = torch.load("out/last.pt", weights_only=True)
    torch.save(content | {"run_id": "0" * 32}, "out/last.pt")  # a run that this store does not know
    train(*resolve({"resume": "out/last.pt", "mlflow_tracking_uri": tracking_uri, "epochs": 2}))
    record = run_of("out", tracking_uri)
    assert f"has no run {'0' * 32}: it continues as run {record.info.run_id}" in caplog.text
    points = mlflow.MlflowClient(tracking_uri).get_metric_history(record.info.run_id, "train/loss")
    assert [point.value for point in points] == [epoch["train/loss"] for epoch in history_of("out")]
    assert record.data.params["base_channels"] == "4"


def test_a_folder_that_cannot_be_created_leaves_no_run(tiny_options, tracking_uri) -> None:
    Path("file").write_text("")
    before = runs_at(tracking_uri)
    with pytest.raises(NotADirectoryError):
        train(tiny_options(output_dir=Path("file/out")))
    assert runs_at(tracking_uri) == before


def runs_at(uri: str) -> int:
    client = mlflow.MlflowClient(uri)
    return len(client.search_runs([experiment.experiment_id for experiment in client.search_experiments()]))


def test_checkpoints_are_saved_within_training_and_validation(tiny_options, monkeypatch) -> None:
    saved = []
    monkeypatch.setattr(run.Record, "save", lambda _, state, *__: saved.append(state.progress))
    train(tiny_options(epochs=1, checkpoint_minutes=0.0))
    steps = [(0, 1), (0, 2), (0, 3)]
    validation = [(0, 3)] * 2  # batches
    assert [(now.epoch, now.step_in_epoch) for now in saved] == [*steps, *validation, (1, 0), (1, 0)]


def test_a_run_killed_between_two_checkpoints_keeps_the_best(tiny_options, monkeypatch) -> None:
    monkeypatch.setattr(run, "save_checkpoint", _once_then_killed := _Once(run.save_checkpoint))
    with pytest.raises(KeyboardInterrupt):
        train(tiny_options(epochs=2, checkpoint_minutes=1e9))
    assert _once_then_killed.written == [Path("out/best.pt")]
    assert load_checkpoint(Path("out/best.pt")).progress.epoch == 1


class _Once:
    """Saves one checkpoint; is interrupted at the second."""

    def __init__(self, save: Callable[[Path, Checkpoint], None]) -> None:
        self._save = save
        self.written: list[Path] = []

    def __call__(self, path: Path, checkpoint: Checkpoint) -> None:
        if self.written:
            raise KeyboardInterrupt
        self._save(path, checkpoint)
        self.written.append(path)


@pytest.mark.parametrize(("option", "value"), [("compile_mode", "fast"), ("compile_backend", "inductr")])
def test_an_unknown_compile_mode_or_backend_is_refused(tiny_options, option: str, value: str) -> None:
    with pytest.raises(UserError, match=f"--{option.replace('_', '-')} {value}.*: torch refuses"):
        train(tiny_options(compile=True, **{option: value}))


def test_a_folder_of_another_run_is_not_overwritten(own_run: Path, tiny_options) -> None:
    before = Path("out/last.pt").read_bytes()
    with pytest.raises(UserError, match=r"--output-dir out: holds the last.pt of another run"):
        train(tiny_options(epochs=1))
    train(tiny_options(epochs=1, output_dir=Path("other")))
    with pytest.raises(UserError, match=r"--output-dir out: holds the last.pt of another run"):
        train(*resolve({"resume": "other/last.pt", "output_dir": Path("out")}))
    assert Path("out/last.pt").read_bytes() == before


def test_a_checkpoint_without_training_state_cannot_be_resumed(own_run: Path, tracking_uri) -> None:
    content = torch.load("out/last.pt", weights_only=True)
    content["training"] = {}
    torch.save(content, "out/last.pt")
    with pytest.raises(CheckpointError, match="cannot be resumed: 'weights'"):
        train(*resolve({"resume": "out/last.pt", "mlflow_tracking_uri": tracking_uri, "epochs": 2}))


def test_best_is_the_epoch_with_the_lowest_validation_error(tiny_options) -> None:
    train(tiny_options(epochs=4, learning_rate=0.05))
    errors_px = [epoch["validation/epe_px"] for epoch in history_of("out")]
    best = load_checkpoint(Path("out/best.pt"))
    assert best.metrics["validation/epe_px"] == min(errors_px)
    assert best.progress.epoch == errors_px.index(min(errors_px)) + 1


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_the_shipped_weights_are_the_evaluated_ones(ema_decay: float, tiny_options) -> None:
    train(tiny_options(ema_decay=ema_decay))
    checkpoint = load_checkpoint(Path("out/last.pt"))
    raw = checkpoint.training["weights"]
    same = all(torch.equal(raw[name], weight) for name, weight in checkpoint.weights.items())
    assert same == (ema_decay == 0)


def test_the_learning_rate_rises_and_falls_once() -> None:
    options = TrainOptions().optimizer
    rates = [learning_rate_at(step, 200, options) for step in range(200)]
    peak = rates.index(max(rates))
    assert peak in (19, 20)
    assert max(rates) == pytest.approx(options.learning_rate)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert 0 < rates[-1] < 0.01 * options.learning_rate


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(tiny, tiny_options) -> None:
    train(tiny_options(epochs=1, output_dir=Path("one")))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "--no-python"]
    ended = subprocess.run(
        [*command, *command_of(tiny(epochs=1, output_dir=Path("two")))],
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("epoch 1/1: train loss") == 1
    assert ended.stdout == "weights: two/best.pt (lowest validation EPE) and two/last.pt\n"
    one, two = history_of("one"), history_of("two")
    for epoch_of_one, epoch_of_two in zip(one, two, strict=True):
        assert epoch_of_two == pytest.approx(epoch_of_one, rel=2e-4)


@pytest.mark.parametrize(
    ("variable", "value"),
    [("RANK", "x"), ("RANK", "-1"), ("RANK", "1"), ("LOCAL_RANK", "1.5"), ("WORLD_SIZE", "0"), ("WORLD_SIZE", "x"),
     ("TORCHELASTIC_RESTART_COUNT", "x")],
)  # fmt: skip
def test_an_environment_that_torchrun_does_not_make_is_named(
    tiny_options, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=f"{variable}={value}: has to be a whole number"):
        train(tiny_options())


def test_a_batch_has_to_divide_over_the_processes(tiny_options, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match="--batch-size 2: has to be a multiple of the 3 processes"):
        train(tiny_options())


@pytest.mark.slow
def test_a_compiled_network_trains(tiny_options) -> None:
    train(tiny_options(compile=True, epochs=1))
    assert all(math.isfinite(value) for value in history_of("out")[0].values())


def test_every_option_of_a_run_is_in_its_checkpoint(tiny_options) -> None:
    options = tiny_options(epochs=1)
    train(options)
    assert command_line.options_from_dict(TrainOptions, load_checkpoint(Path("out/last.pt")).options) == options


class Clock:
    """Makes validations within epochs due at given numbers of samples, as the passing of time does."""

    def __init__(self, patch: pytest.MonkeyPatch, due_at_samples: set[int]) -> None:
        self._due, self._state = set(due_at_samples), None
        add_step = TrainingState.add_step

        def add_and_see(state: TrainingState, *sums: object, **others: object) -> None:
            add_step(state, *sums, **others)  # pyright: ignore
            # The step is counted after this; its last sample decides.
            if state.progress.samples + 2 in self._due:
                state.validation_votes += 1

        patch.setattr(TrainingState, "add_step", add_and_see)


def validations_of(folder: str) -> list[tuple]:
    return [
        (epoch, samples, {name: value for name, value in metrics.items() if name in LOSSES})
        for epoch, samples, metrics in load_checkpoint(Path(folder) / "last.pt").training["validations"]
    ]


def points_by_samples(folder: str, uri: str) -> list[tuple[int, float]]:
    client, run_id = mlflow.MlflowClient(uri), load_checkpoint(Path(folder) / "last.pt").run_id
    return [(point.step, point.value) for point in client.get_metric_history(run_id, "validation_steps/epe_px")]


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_validating_within_an_epoch_changes_no_bit_of_training(ema_decay: float, tiny_options, monkeypatch) -> None:
    train(tiny_options(output_dir=Path("plain"), ema_decay=ema_decay))
    Clock(monkeypatch, {2, 4, 8})
    train(tiny_options(output_dir=Path("within"), ema_decay=ema_decay))
    assert history_of("plain") == history_of("within")
    plain, within = (load_checkpoint(Path(folder) / "last.pt") for folder in ("plain", "within"))
    for name in ("weights", "training"):
        before, after = getattr(plain, name), getattr(within, name)
        before, after = (part.get("weights", part) for part in (before, after))
        assert all(torch.equal(after[key], value) for key, value in before.items())
    assert plain.training["validations"] == []
    epochs = [epoch for epoch, _, _ in validations_of("within")]
    assert epochs == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 2])  # and after epochs, once there are some within


@pytest.mark.parametrize("killed_in", ["validation", "best.pt", "last.pt"])
def test_a_run_killed_in_a_validation_within_an_epoch_resumes_to_the_same_bits(
    killed_in: str, tiny, tiny_options, monkeypatch, tracking_uri
) -> None:
    with monkeypatch.context() as patch:
        Clock(patch, {4, 8})
        train(tiny_options(output_dir=Path("whole")))

    with monkeypatch.context() as patch:
        Clock(patch, {4, 8})
        if killed_in == "validation":
            patch.setattr(training, "evaluate", _kill)
        else:
            save = run.Record.save
            patch.setattr(run.Record, "save", lambda *given: _save_until(save, killed_in, *given))
        with pytest.raises(KeyboardInterrupt):
            train(tiny_options(output_dir=Path("parts")))
    assert load_checkpoint(Path("parts/last.pt")).training["validation_is_pending"]
    with monkeypatch.context() as patch:
        Clock(patch, {8})
        train(*resolve({"resume": "parts/last.pt", "mlflow_tracking_uri": tracking_uri}))

    assert history_of("parts") == history_of("whole")
    assert validations_of("parts") == validations_of("whole")
    assert [samples for _, samples, _ in validations_of("parts")] == [4, 6, 8, 12]
    for name in ("best.pt", "last.pt"):
        whole, parts = (load_checkpoint(Path(folder) / name) for folder in ("whole", "parts"))
        assert parts.progress == whole.progress
        assert all(torch.equal(parts.weights[key], value) for key, value in whole.weights.items())
    assert sorted(points_by_samples("parts", tracking_uri)) == sorted(points_by_samples("whole", tracking_uri))
    tags = [run_of(folder, tracking_uri).data.tags["best_epoch"] for folder in ("parts", "whole")]
    assert tags[0] == tags[1]
    client, run_id = mlflow.MlflowClient(tracking_uri), load_checkpoint(Path("parts/last.pt")).run_id
    images = sorted(Path(image.path).name.split("+timestamp")[0] for image in client.list_artifacts(run_id, "images"))
    assert {name for name in images if "steps" in name} == {"validation_steps+step+4", "validation_steps+step+8"}


def _kill(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def _save_until(save: Callable[..., None], name: str, record: run.Record, state: TrainingState, *names: str) -> None:
    """Save; is killed before it saves `name` once a validation within an epoch is done."""
    if state.validations and (names[0] if names else "last.pt") == name:
        raise KeyboardInterrupt
    save(record, state, *names)


def test_a_run_that_ends_its_first_epoch_late_has_a_best_checkpoint_before(tiny_options, monkeypatch) -> None:
    Clock(monkeypatch, {2})
    monkeypatch.setattr(TrainingState, "finish_epoch", _kill)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_options())
    best = load_checkpoint(Path("out/best.pt"))
    assert best.progress.samples == 2
    assert math.isfinite(best.metrics["validation/epe_px"])
    assert Path("out/previews/samples_000000002.png").exists()


def test_validations_within_epochs_take_the_same_few_samples(tiny_options, monkeypatch) -> None:
    monkeypatch.setattr(validate, "_COMPARED_SAMPLES", 2)
    Clock(monkeypatch, {4})
    train(tiny_options(epochs=1))
    checkpoint = load_checkpoint(Path("out/last.pt"))
    [epoch] = checkpoint.training["history"]
    assert epoch["validation/compared_epe_px"] != epoch["validation/epe_px"]
    assert checkpoint.training["validations"][-1][2]["validation/epe_px"] == epoch["validation/compared_epe_px"]
    compared, other = validate.compared_and_other(5)
    assert (compared.tolist(), other.tolist()) == ([0, 2], [1, 3, 4])


def test_time_makes_a_validation_due(tiny_options, monkeypatch) -> None:
    now_s = [0.0]
    monkeypatch.setattr(run.time, "monotonic", lambda: now_s[0])
    record = run.Record(tiny_options(validate_every_minutes=20.0), None, Processes.from_environment())
    now_s[0] = 1199.0
    assert not record.is_validation_due()
    now_s[0] = 1201.0
    assert record.is_validation_due()
    off = run.Record(
        tiny_options(validate_every_minutes=0.0, output_dir=Path("off")), None, Processes.from_environment()
    )
    now_s[0] = 1e6
    assert not off.is_validation_due()

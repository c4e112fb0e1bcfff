import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
import torch
from conftest import command_of

from foundation_stereo_depth import checkpoint
from foundation_stereo_depth.checkpoint import Checkpoint, load_checkpoint, read_trained
from foundation_stereo_depth.data.synthetic import torch_scenes as procedural
from foundation_stereo_depth.device import Processes
from foundation_stereo_depth.errors import CheckpointError, NotFiniteError, UserError
from foundation_stereo_depth.files import TEMPORARY_PREFIX, _machine
from foundation_stereo_depth.model import create_network
from foundation_stereo_depth.options import command_line
from foundation_stereo_depth.options.training import TrainOptions
from foundation_stereo_depth.tracking import _Outbox
from foundation_stereo_depth.training import run as record
from foundation_stereo_depth.training.run import Stopped
from foundation_stereo_depth.training.setup import resolve
from foundation_stereo_depth.training.state import TrainingState, learning_rate_at
from foundation_stereo_depth.training.train import train

LOSSES = ("train/loss", "train/epe_px", "validation/loss", "validation/epe_px")


@pytest.fixture(autouse=True)
def scenes_of_few_pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which take a fifth of the time; not where a process of its own has to make the same scenes."""
    if "process" not in request.node.name:
        monkeypatch.setattr(procedural, "PIECES", 6)


def history_of(folder: str | Path) -> list[dict[str, float]]:
    """The losses of every epoch that a checkpoint knows of."""
    history = load_checkpoint(Path(folder) / "last.pt").training["history"]
    return [{name: epoch[name] for name in LOSSES} for epoch in history]


def run_of(folder: str | Path, uri: str) -> mlflow.entities.Run:
    return mlflow.MlflowClient(uri).get_run(load_checkpoint(Path(folder) / "last.pt").run_id)


def test_a_run_leaves_checkpoints_pictures_and_a_record(tiny_options, tracking_uri: str, capsys) -> None:
    train(tiny_options())
    out = capsys.readouterr().out
    assert out.startswith(
        "no data set named (--dataset-root, or $FOUNDATION_STEREO_ROOT): training on made-up scenes\n"
    )
    names = {"best.pt", "best.safetensors", "last.pt", "last.safetensors", "previews"}
    assert {path.name for path in Path("out").iterdir()} == names

    run = run_of("out", tracking_uri)
    assert run.info.status == "FINISHED"
    assert run.data.params["base_channels"] == "8"
    assert run.data.params["dataset"] == "made-up scenes"
    assert run.data.tags["checkpoint_folder"] == str(Path("out").resolve())
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", run.data.tags["mlflow.source.git.commit"])
    expected = {f"{part}/{name}" for part in ("train", "validation") for name in (
        "loss", "epe_px", "bad_1_percent", "bad_2_percent", "bad_3_percent", "d1_percent",
    )} | {"learning_rate", "speed/samples_per_s", "speed/data_wait_percent"}  # fmt: skip
    assert expected <= set(run.data.metrics)
    client = mlflow.MlflowClient(tracking_uri)
    artifacts = {
        a.path for folder in ("checkpoints", "previews") for a in client.list_artifacts(run.info.run_id, folder)
    }
    assert artifacts == {
        "checkpoints/best.pt", "checkpoints/last.pt", "previews/epoch_0001.png", "previews/epoch_0002.png",
    }  # fmt: skip
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "validation/epe_px")]
    assert steps == [1, 2]


@pytest.mark.parametrize(("slow", "least", "most"), [("reading", 50, 100), ("augmentation", 0, 50)])
def test_only_waiting_for_data_counts_as_such(tiny_options, monkeypatch, slow: str, least: float, most: float) -> None:
    from foundation_stereo_depth.training import train as module

    train(tiny_options(epochs=1, output_dir=Path("warm")))  # the first scene of a process takes a second
    where, name = {"reading": (procedural, "render_scenes"), "augmentation": (module, "augmented_pair")}[slow]
    right = getattr(where, name)

    def slowly(*arguments: object) -> object:
        time.sleep(1.0)
        return right(*arguments)

    monkeypatch.setattr(where, name, slowly)
    train(tiny_options(epochs=1))
    [epoch] = load_checkpoint(Path("out/last.pt")).training["history"]
    assert least < epoch["speed/data_wait_percent"] < most


def test_two_runs_of_one_seed_are_identical_and_of_another_are_not(tiny_options) -> None:
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(tiny_options(output_dir=Path(folder), seed=seed))
    assert history_of("a") == history_of("b") != history_of("c")


def test_a_network_learns_one_pair_by_heart(tiny_options) -> None:
    flags = {"procedural_samples": 1, "batch_size": 1, "epochs": 1}
    options = tiny_options(**flags, learning_rate=3e-3, base_channels=16, depth=3, augment=False, nll_beta=0.5)
    from foundation_stereo_depth.data.augment.pipeline import as_pair
    from foundation_stereo_depth.data.random import sample_keys
    from foundation_stereo_depth.data.synthetic.torch_scenes import render_scenes
    from foundation_stereo_depth.model import create_network
    from foundation_stereo_depth.training.loss import heteroscedastic_loss

    torch.manual_seed(0)
    indices = torch.tensor([2])  # a deep scene, to which a fresh network's answer is far off
    batch = render_scenes(sample_keys(0, 0, indices), indices, 48, 64)
    network = create_network(options.model)
    state = TrainingState.fresh(network, options.optimizer, "scenes")
    errors_px = []
    for _ in range(250):
        prediction = network(as_pair(batch))
        loss = heteroscedastic_loss(prediction, batch.disparity_px, options.loss)
        (loss.total / loss.valid).backward()
        state.optimizer.param_groups[0]["lr"] = 3e-3
        state.optimizer.step()
        state.optimizer.zero_grad()
        errors_px.append((prediction.disparity_px - batch.disparity_px).abs().mean().item())
    assert errors_px[-1] < 0.15 * errors_px[0]


@pytest.mark.slow
def test_training_on_real_pairs_learns_them_by_heart(shared_data: Path, tiny_options) -> None:
    root = shared_data / "fsd-sample"
    flags = {"height": 96, "width": 128, "epochs": 100, "batch_size": 7, "val_fraction": 0.0, "augment": False}
    train(
        tiny_options(
            **flags, dataset_root=root, cache_root=Path("cache"), base_channels=16, depth=4, learning_rate=4e-3
        )
    )
    history = history_of("out")
    assert len(list(Path("cache").rglob("*.npz"))) == 7
    assert history[-1]["validation/epe_px"] < 0.4 * history[0]["validation/epe_px"]


def test_a_tree_of_scenes_of_several_sizes_trains_through_the_cache(fsd_tree: Path, tiny_options, tracking_uri) -> None:
    train(tiny_options(dataset_root=fsd_tree, cache_root=Path("cache"), val_fraction=0.34))
    run = run_of("out", tracking_uri)
    assert run.data.params["split_by"] == "scene: 1 of 3 scenes validate"
    assert (run.data.params["train_samples"], run.data.params["validation_samples"]) == ("4", "2")
    assert run.data.metrics["data/cache_hits"] == 4
    assert re.fullmatch(r"[0-9a-f]{12}", run.data.params["dataset_fingerprint"])


def test_the_environment_names_the_data_set_of_a_whole_run(fsd_tree: Path, tiny, monkeypatch, tracking_uri) -> None:
    monkeypatch.setenv("FOUNDATION_STEREO_ROOT", str(fsd_tree))
    train(*resolve(tiny(epochs=1)))
    assert run_of("out", tracking_uri).data.params["dataset"] == str(fsd_tree)
    # It goes on with those samples from a shell that knows nothing of them, and with no others.
    monkeypatch.delenv("FOUNDATION_STEREO_ROOT")
    train(*resolve({"resume": "out/last.pt", "epochs": 2}))
    assert len(history_of("out")) == 2
    shutil.rmtree(fsd_tree / "scene_0")
    with pytest.raises(UserError, match="learnt from other samples than there are now"):
        train(*resolve({"resume": "out/last.pt", "epochs": 3}))


def test_a_run_on_made_up_scenes_goes_on_with_them(fsd_tree: Path, tiny, monkeypatch) -> None:
    train(*resolve(tiny(epochs=1)))
    monkeypatch.setenv("FOUNDATION_STEREO_ROOT", str(fsd_tree))
    train(*resolve({"resume": "out/last.pt", "epochs": 2}))
    assert load_checkpoint(Path("out/last.pt")).options["data"]["dataset_root"] is None
    with pytest.raises(UserError, match="learnt from other samples than there are now"):
        train(*resolve({"resume": "out/last.pt", "epochs": 3, "dataset_root": fsd_tree}))


def test_bad_samples_are_counted_and_listed(fsd_tree: Path, tiny_options, tracking_uri, capsys) -> None:
    for frame in range(2):
        (fsd_tree / f"scene_{frame}/dataset/data/right/rgb/0000.png").write_bytes(b"?")
    train(tiny_options(dataset_root=fsd_tree, skip_bad=True, val_fraction=0.0))
    assert len(Path("out/bad_samples.txt").read_text().splitlines()) == 2
    assert run_of("out", tracking_uri).data.tags["bad_samples"] == "2"
    assert "2 samples could not be read and were left out" in capsys.readouterr().out


def test_a_data_set_without_one_known_pixel_trains_without_nan(tmp_path: Path, tiny_options) -> None:
    import numpy as np
    from conftest import write_fsd_sample

    from foundation_stereo_depth.data.codecs import write_rgb

    write_fsd_sample(tmp_path / "fsd", "s", "0", 48, 64, seed=0)
    write_rgb(tmp_path / "fsd/s/dataset/data/left/disparity/0.png", np.zeros((48, 64, 3), np.uint8))
    train(tiny_options(dataset_root=tmp_path / "fsd", val_fraction=0.0, epochs=1))
    checkpoint = load_checkpoint(Path("out/last.pt"))
    assert checkpoint.training["history"][0]["train/loss"] == 0
    assert all(weight.isfinite().all() for weight in checkpoint.weights.values())


def test_a_resumed_run_reports_exactly_the_losses_of_an_uninterrupted_one(tiny, tiny_options, tracking_uri) -> None:
    train(tiny_options(epochs=3, output_dir=Path("whole")))

    flags = tiny(epochs=3, output_dir=Path("parts"))
    for stop_at_step in (2, 6, 8):  # inside epoch 1, at the last step of epoch 2, inside epoch 3
        with pytest.raises(Stopped, match="go on with --resume"):
            stopped_train(stop_at_step, *resolve(flags))
        run_id = load_checkpoint(Path("parts/last.pt")).run_id
        assert load_checkpoint(Path("parts/last.pt")).progress.step == stop_at_step
        assert run_of("parts", tracking_uri).info.status == "KILLED"
        flags = {"resume": "parts/last.pt" if stop_at_step == 2 else run_id, "mlflow_tracking_uri": tracking_uri}
    train(*resolve(flags))

    assert history_of("parts") == history_of("whole")
    whole, parts = (load_checkpoint(Path(folder) / "last.pt") for folder in ("whole", "parts"))
    assert all(torch.equal(parts.weights[name], weight) for name, weight in whole.weights.items())
    run = run_of("parts", tracking_uri)
    assert run.info.status == "FINISHED"
    points = mlflow.MlflowClient(tracking_uri).get_metric_history(run.info.run_id, "validation/epe_px")
    assert [point.step for point in points] == [1, 2, 3]


def stopped_train(step: int, *arguments_of_train) -> None:
    """Trains, and is sent the signal of Ctrl-C after a step."""
    advance = TrainingState.advance

    def advance_and_stop(self: TrainingState, samples: int) -> None:
        advance(self, samples)
        if self.progress.step == step - 1:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingState, "advance", advance_and_stop)
        train(*arguments_of_train)


def test_a_killed_process_goes_on_from_its_last_epoch(tiny, tiny_options, tracking_uri) -> None:
    flags = tiny(epochs=60)
    process = subprocess.Popen(command_of(flags), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not Path("out/previews/epoch_0001.png").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    done = len(history_of("out"))
    assert 1 <= done < 60
    left = Path(f"out/{TEMPORARY_PREFIX}{_machine()}-0123456789ab")
    left.write_bytes(b"half a checkpoint")

    train(*resolve({"resume": "out/last.pt", "mlflow_tracking_uri": tracking_uri, "epochs": done + 1}))
    history = history_of("out")
    assert len(history) == done + 1
    run = run_of("out", tracking_uri)
    steps = {p.step for p in mlflow.MlflowClient(tracking_uri).get_metric_history(run.info.run_id, "train/loss")}
    assert steps == set(range(1, done + 2))
    assert not left.exists()


def test_ctrl_c_saves_and_says_how_to_go_on(tiny, tracking_uri) -> None:
    process = subprocess.Popen(command_of(tiny(epochs=500)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not Path("out/previews/epoch_0001.png").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    run = run_of("out", tracking_uri)
    assert process.returncode == 130
    assert error.splitlines()[-1].endswith(f"go on with --resume {run.info.run_id}")
    assert "Traceback" not in error
    assert run.info.status == "KILLED"


def test_a_loss_that_is_not_finite_stops_the_run(tiny_options, tracking_uri, monkeypatch) -> None:
    from foundation_stereo_depth.training import train as module

    lawful, calls = module.training_loss, []

    def blown_up(*args):
        calls.append(1)
        loss = lawful(*args)
        return loss._replace(total=loss.total * float("nan")) if len(calls) == 5 else loss

    monkeypatch.setattr(module, "training_loss", blown_up)
    said = r"step 2 of epoch 2, samples made-up scene \d+ of seed 0, .*; the last good checkpoint is out/last.pt"
    with pytest.raises(NotFiniteError, match=said):
        train(tiny_options())
    assert run_of("out", tracking_uri).info.status == "FAILED"
    assert len(history_of("out")) == 1


def test_running_out_of_memory_names_the_knobs(tiny, monkeypatch, capsys) -> None:
    from foundation_stereo_depth.cli import train_command
    from foundation_stereo_depth.training import train as module

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(module, "augmented_pair", full)
    assert train_command(command_of(tiny())[1:]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith("--batch-size 4 and --base-channels 8 at 64x48; lower one of them")


def test_a_resumed_run_cannot_become_another(tiny, tiny_options, tracking_uri) -> None:
    train(tiny_options(epochs=1))
    resume = {"resume": "out/last.pt", "mlflow_tracking_uri": tracking_uri}
    with pytest.raises(UserError, match=r"keeps its --seed 5 \(the run has 0\); leave that out"):
        resolve(resume | {"seed": 5})
    options, checkpoint = resolve(resume | {"epochs": 4, "seed": 0})
    assert checkpoint is not None
    assert (options.optimizer.epochs, options.model.base_channels) == (4, 8)
    assert options.tracking.output_dir == Path("out")


def test_a_run_begins_with_given_weights(tiny, tiny_options) -> None:
    train(tiny_options(epochs=1, noise_std_max=0.01, blur_prob=0.1))
    learnt = load_checkpoint(Path("out/best.pt")).weights
    flags = tiny(initial_weights=Path("out/best.safetensors"), output_dir=Path("more"), learning_rate=0.0, epochs=1)
    flags.pop("base_channels")
    flags.pop("depth", None)
    options, resumed = resolve(flags | {"blur_prob": 0.2})
    assert resumed is None
    assert options.model.base_channels == 8, "as the file has it"
    assert (options.augment.noise_std_max, options.augment.blur_prob) == (0.01, 0.2)
    train(options)
    for name, values in load_checkpoint(Path("more/last.pt")).weights.items():
        torch.testing.assert_close(values, learnt[name], rtol=0, atol=0, msg=name)
    # Once it has begun, it needs them no more.
    Path("out/best.safetensors").unlink()
    train(*resolve({"resume": "more/last.pt", "epochs": 2}))
    assert len(history_of("more")) == 2


def test_given_weights_of_another_network_are_refused(tiny_options, tiny) -> None:
    with pytest.raises(UserError, match=r"holds a network of --model guided .*, and the flags ask for --model unet "):
        train(tiny_options(initial_weights=Path("default")))
    with pytest.raises(CheckpointError, match=r"missing\.pt: cannot be read"):
        resolve(tiny(initial_weights=Path("missing.pt")))
    with pytest.raises(UserError, match=r"--initial-weights net\.onnx: has to be a \.pt or \.safetensors file"):
        resolve(tiny(initial_weights=Path("net.onnx")))
    flags = {"initial_weights": Path("default"), "depth": 2}  # which says nothing of this network
    assert resolve(flags)[0].model.model == "guided"
    train(tiny_options(epochs=1))
    content = torch.load("out/last.pt", weights_only=True)
    name = next(iter(content["weights"]))
    content["weights"][name][0] = float("nan")
    torch.save(content, "nan.pt")
    with pytest.raises(CheckpointError, match=r"nan\.pt: holds weights that are not finite"):
        resolve(tiny(initial_weights=Path("nan.pt")))


def test_a_checkpoint_with_one_odd_value_is_refused_in_one_line_or_taken(tiny_options, monkeypatch) -> None:
    """Every value down to single options, each replaced by several others: no other error ever comes out."""
    train(tiny_options(epochs=1))
    content = torch.load("out/last.pt", weights_only=True)
    places = [(name,) for name in content]
    for name in ("options", "model", "uncertainty", "progress", "training"):
        places += [(name, inner) for inner in content[name]]
    places += [("options", group, option) for group, options in content["options"].items() for option in options]
    trials, said = 0, list[str]()
    for place in places:
        for value in (None, "x", -1, {"a": 1}, torch.zeros(3)) if len(place) < 3 else (None, [1]):
            damaged = with_value(content, place, value)
            for module in (checkpoint,):
                monkeypatch.setattr(module, "load_plain", lambda _, damaged=damaged: damaged)
            trials += 1
            try:
                read_trained(Path("out/last.pt")).network()
                options, found = resolve({"resume": "out/last.pt"})
                assert found is not None
                if place[0] == "training":
                    state = TrainingState.fresh(create_network(options.model), options.optimizer, "made-up scenes")
                    state.restore(found, Processes.from_environment())
            except UserError as error:
                said.append(str(error))
    assert [line for line in said if "\n" in line] == []
    assert trials > 200
    assert len(said) > 0.8 * trials


def with_value(content: dict, place: tuple, value: object) -> dict:
    """A copy with another value in one place."""
    first, *rest = place
    return content | {first: with_value(content[first], tuple(rest), value) if rest else value}


def test_a_resumed_run_sends_all_that_its_store_has_not_got(tiny_options, tracking_uri, monkeypatch) -> None:
    with monkeypatch.context() as away:
        away.setattr(_Outbox, "send", lambda *_, **__: None)
        train(tiny_options(epochs=2))
    assert run_of("out", tracking_uri).data.params == {}
    train(*resolve({"resume": "out/last.pt", "mlflow_tracking_uri": tracking_uri}))
    run, client = run_of("out", tracking_uri), mlflow.MlflowClient(tracking_uri)
    assert run.data.params["base_channels"] == "8"
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "validation/epe_px")
    assert [point.value for point in history] == [epoch["validation/epe_px"] for epoch in history_of("out")]
    for folder, names in (
        ("checkpoints", ["best.pt", "last.pt"]),
        ("previews", ["epoch_0001.png", "epoch_0002.png"]),
    ):
        assert [Path(item.path).name for item in client.list_artifacts(run.info.run_id, folder)] == names


def test_a_resumed_run_sends_the_files_that_their_store_has_not_got(tiny_options, tracking_uri, monkeypatch) -> None:
    with monkeypatch.context() as away:
        away.setattr(mlflow.MlflowClient, "log_artifact", _refused)
        train(tiny_options(epochs=1))
    run, client = run_of("out", tracking_uri), mlflow.MlflowClient(tracking_uri)
    assert client.list_artifacts(run.info.run_id) == []
    assert run.info.status == "FINISHED"
    train(*resolve({"resume": "out/last.pt", "mlflow_tracking_uri": tracking_uri}))
    assert [Path(file.path).name for file in client.list_artifacts(run.info.run_id, "previews")] == ["epoch_0001.png"]
    assert len(client.list_artifacts(run.info.run_id, "checkpoints")) == 2


def _refused(*_: object) -> None:
    raise PermissionError("the store takes no files")


def test_a_run_whose_store_is_lost_goes_on_as_another_one(tiny_options, tracking_uri, tmp_path, capsys) -> None:
    train(tiny_options(epochs=1))
    content = torch.load("out/last.pt", weights_only=True)
    torch.save(content | {"run_id": "0" * 32}, "out/last.pt")  # a run that this store never had
    train(*resolve({"resume": "out/last.pt", "mlflow_tracking_uri": tracking_uri, "epochs": 2}))
    run = run_of("out", tracking_uri)
    assert f"has no run {'0' * 32}: its record goes on as run {run.info.run_id}" in capsys.readouterr().out
    points = mlflow.MlflowClient(tracking_uri).get_metric_history(run.info.run_id, "train/loss")
    assert [point.value for point in points] == [epoch["train/loss"] for epoch in history_of("out")]
    assert run.data.params["base_channels"] == "8"


def test_a_folder_that_cannot_be_made_leaves_no_run(tiny_options, tracking_uri) -> None:
    Path("file").write_text("")
    before = runs_at(tracking_uri)
    with pytest.raises(NotADirectoryError):
        train(tiny_options(output_dir=Path("file/out")))
    assert runs_at(tracking_uri) == before


def runs_at(uri: str) -> int:
    client = mlflow.MlflowClient(uri)
    return len(client.search_runs([experiment.experiment_id for experiment in client.search_experiments()]))


def test_validation_that_takes_long_is_saved_within(tiny_options, monkeypatch) -> None:
    saved = []
    monkeypatch.setattr(record.Record, "save", lambda _, state, *__: saved.append(state.progress))
    train(tiny_options(epochs=1, checkpoint_minutes=0.0, procedural_samples=8, procedural_val_samples=8))
    assert [(now.epoch, now.step_in_epoch) for now in saved] == [(0, 1), (0, 2), (0, 2), (0, 2), (1, 0), (1, 0)]


def test_what_was_best_is_there_whenever_the_run_ends(tiny_options, monkeypatch) -> None:
    """Killed between the two checkpoints of an epoch, a run has one that was best, and does the epoch again."""
    monkeypatch.setattr(record, "save_checkpoint", _once_then_killed := _Once(record.save_checkpoint))
    with pytest.raises(KeyboardInterrupt):
        train(tiny_options(epochs=2, checkpoint_minutes=1e9))
    assert _once_then_killed.written == [Path("out/best.pt")]
    assert load_checkpoint(Path("out/best.pt")).progress.epoch == 1


class _Once:
    """Saves one checkpoint; at the second somebody ends the program."""

    def __init__(self, save: Callable[[Path, Checkpoint], None]) -> None:
        self._save = save
        self.written: list[Path] = []

    def __call__(self, path: Path, checkpoint: Checkpoint) -> None:
        if self.written:
            raise KeyboardInterrupt
        self._save(path, checkpoint)
        self.written.append(path)


@pytest.mark.parametrize(("option", "value"), [("compile_mode", "fast"), ("compile_backend", "inductr")])
def test_a_way_of_compiling_that_is_none_is_refused(tiny_options, option: str, value: str) -> None:
    with pytest.raises(UserError, match=f"--{option.replace('_', '-')} {value}.*: torch refuses"):
        train(tiny_options(compile=True, **{option: value}))


def test_a_folder_of_another_run_is_not_overwritten(tiny_options) -> None:
    train(tiny_options(epochs=1))
    before = Path("out/last.pt").read_bytes()
    with pytest.raises(UserError, match=r"--output-dir out: holds the last.pt of another run"):
        train(tiny_options(epochs=1))
    train(tiny_options(epochs=1, output_dir=Path("other")))
    with pytest.raises(UserError, match=r"--output-dir out: holds the last.pt of another run"):
        train(*resolve({"resume": "other/last.pt", "output_dir": Path("out")}))
    assert Path("out/last.pt").read_bytes() == before


def test_a_checkpoint_for_inference_alone_cannot_be_gone_on_from(tiny_options, tracking_uri) -> None:
    train(tiny_options(epochs=1))
    content = torch.load("out/last.pt", weights_only=True)
    content["training"] = {}
    torch.save(content, "out/last.pt")
    with pytest.raises(CheckpointError, match="cannot be gone on from"):
        train(*resolve({"resume": "out/last.pt", "mlflow_tracking_uri": tracking_uri, "epochs": 2}))


def test_best_is_the_epoch_with_the_lowest_validation_error(tiny_options) -> None:
    train(tiny_options(epochs=4, learning_rate=0.02))
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


def test_checkpoints_within_an_epoch(tiny_options, monkeypatch) -> None:
    saved = []
    from foundation_stereo_depth.training.run import Record

    save = Record.save
    monkeypatch.setattr(
        Record, "save", lambda self, state, name="last.pt": (saved.append(state.progress.step), save(self, state, name))
    )
    train(tiny_options(epochs=1, checkpoint_minutes=0.0))
    assert saved[:3] == [1, 2, 3]


def test_the_learning_rate_rises_and_falls_once() -> None:
    options = TrainOptions().optimizer
    rates = [learning_rate_at(step, 200, options) for step in range(200)]
    peak = rates.index(max(rates))
    assert peak in (19, 20)
    assert max(rates) == pytest.approx(options.learning_rate)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert 0 < rates[-1] < 0.01 * options.learning_rate


def test_two_processes_give_the_losses_of_one(tiny, tiny_options) -> None:
    flags = {"epochs": 2, "procedural_samples": 10, "procedural_val_samples": 7}
    train(tiny_options(**flags, output_dir=Path("one")))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "--no-python"]
    answer = subprocess.run(
        [*command, *command_of(tiny(**flags, output_dir=Path("two")))],
        env=environment, capture_output=True, text=True, check=False, timeout=170,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count("training on made-up scenes") == 1
    one, two = history_of("one"), history_of("two")
    for epoch_of_one, epoch_of_two in zip(one, two, strict=True):
        assert epoch_of_two == pytest.approx(epoch_of_one, rel=2e-4)


def test_a_batch_has_to_divide_over_the_processes(tiny_options, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match="--batch-size 4: has to be a multiple of the 3 processes"):
        train(tiny_options())


@pytest.mark.slow
def test_a_compiled_network_trains(tiny_options) -> None:
    train(tiny_options(compile=True, epochs=1))
    assert json.dumps(history_of("out")[0])


def test_every_option_of_a_run_is_in_its_checkpoint(tiny_options) -> None:
    options = tiny_options(epochs=1)
    train(options)
    assert command_line.options_from_dict(TrainOptions, load_checkpoint(Path("out/last.pt")).options) == options

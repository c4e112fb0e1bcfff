//! The program as a user runs it: errors, results, signals, and being killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use foundation_stereo_trainer::checkpoint::ResumeState;
use foundation_stereo_trainer::data::cache::SampleCache;
use foundation_stereo_trainer::data::codecs::encode_png;
use foundation_stereo_trainer::data::random::{Key, UNIT};
use foundation_stereo_trainer::data::sample::Image;
use serde_json::Value;

/// A network and images so small that a run takes a fraction of a second.
const SMALL: [&str; 10] =
    ["--height", "48", "--width", "64", "--base-channels", "4", "--depth", "2", "--num-workers", "1"];

fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_foundation-stereo-train"));
    command.current_dir(folder).args(arguments).env_remove("FOUNDATION_STEREO_ROOT").env("RAYON_NUM_THREADS", "2");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(folder: &Path, arguments: &[&str]) -> Output {
    command(folder, arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn succeed(folder: &Path, arguments: &[&str]) -> String {
    let output = run(folder, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// A tree `data` of scenes with frames of noise, moved by whole pixels.
fn write_tree(folder: &Path, scenes: usize, frames: usize) {
    for (scene, frame) in (0..scenes).flat_map(|scene| (0..frames).map(move |frame| (scene, frame))) {
        let (height, width, shift) = (48usize, 64usize, 2 + (scene + frame) % 6);
        let key = |y: usize, x: usize| Key::new(1, (100 * scene + frame) as i64, y / 2 * 1000 + x / 2);
        let image = |offset: usize| Image {
            height,
            width,
            pixels: (0..height * width)
                .flat_map(|at| {
                    key(at / width, at % width + offset).uniform::<3>("colour", UNIT).map(|value| (255.0 * value) as u8)
                })
                .collect(),
        };
        let steps = 1000 * shift as u32;
        let digits = |known: bool| {
            if known { [(steps / 65025) as u8, (steps / 255 % 255) as u8, (steps % 255) as u8] } else { [0; 3] }
        };
        let disparity =
            Image { height, width, pixels: (0..height * width).flat_map(|at| digits(at % width >= shift)).collect() };
        let data = folder.join(format!("data/scene_{scene}/dataset/data"));
        for (part, image) in [("left/rgb", image(0)), ("right/rgb", image(shift)), ("left/disparity", disparity)] {
            fs::create_dir_all(data.join(part)).unwrap();
            fs::write(data.join(part).join(format!("{frame:04}.png")), encode_png(&image)).unwrap();
        }
    }
}

fn folder_with_tree(scenes: usize, frames: usize) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_tree(folder.path(), scenes, frames);
    folder
}

/// The folder of the only run.
fn run_folder(folder: &Path) -> PathBuf {
    let runs: Vec<PathBuf> =
        fs::read_dir(folder.join("outputs-rs")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(runs.len(), 1);
    runs[0].clone()
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn with<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec!["--dataset-root", "data"];
    arguments.extend(SMALL);
    arguments.extend(more);
    arguments
}

fn kill_after(mut child: Child, delay: Duration) {
    std::thread::sleep(delay);
    child.kill().unwrap(); // SIGKILL
    child.wait().unwrap();
}

#[test]
fn mistakes_get_one_line_and_status_2() {
    let folder = folder_with_tree(1, 2);
    fs::write(folder.path().join("torn.safetensors"), b"\x10\0\0\0\0\0\0\0{\"a\"").unwrap();
    let refused: [(&[&str], &str); 22] = [
        (&[], "no data set named"),
        (&["--dataset-root", "missing"], "no such folder"),
        (&["--dataset-root", ""], "--dataset-root"),
        (&["--dataset-root", "."], "holds no <scene>"),
        (&["--dataset-root", "data/scene_0"], "did you mean data?"),
        (&["--cache-root", "missing"], "no such folder"),
        (&["--dataset-root", "data", "--require-cache"], "needs a --cache-root"),
        (&["--dataset-root", "data", "--epochs", "0"], "--epochs is 0, but has to be at least 1"),
        (&["--dataset-root", "data", "--epochs", "many"], "--epochs"),
        (&["--dataset-root", "data", "--height", "-5"], "--height is -5, but has to be from 32 to 4096"),
        (&["--dataset-root", "data", "--learning-rate", "nan"], "--learning-rate is NaN"),
        (&["--dataset-root", "data", "--blur-kernel-size", "4"], "has to be odd"),
        (&["--dataset-root", "data", "--jpeg-prob", "0.2"], "not in Rust"),
        (&["--dataset-root", "data", "--model", "guided"], "only unet is in Rust"),
        (&["--dataset-root", "data", "--initial-weights", "default"], "not in Rust"),
        (&["--dataset-root", "data", "--initial-weights", "x.pt"], "has to be a .safetensors file"),
        (&["--dataset-root", "data", "--initial-weights", "torn.safetensors"], "not a whole safetensors file"),
        (&["--dataset-root", "data", "--resume", "abc"], "neither a run's folder nor the id of one"),
        (&["--dataset-root", "data", "--val-fraction", "0.9", "--max-samples", "1"], "too few"),
        (&["--build-cache-only", "--dataset-root", "data"], "needs --dataset-root"),
        (&["--build-cache-only", "--dataset-root", "data", "--cache-root", "c", "--shard", "3/2"], "--shard 3/2"),
        (&["--dataset-root", "data", "--what"], "--what"),
    ];
    for (arguments, expected) in refused {
        let output = run(folder.path(), arguments);
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {message}");
        assert_eq!(message.lines().count(), 1, "{arguments:?}: {message}");
        assert!(
            message.starts_with("foundation-stereo-train: ") && message.contains(expected),
            "{arguments:?}: {message}"
        );
    }
    assert!(!folder.path().join("outputs-rs").exists(), "a refused run leaves no folder");
}

#[test]
fn a_damaged_image_is_named_or_left_out() {
    let folder = folder_with_tree(2, 3);
    let bad = folder.path().join("data/scene_1/dataset/data/left/rgb/0001.png");
    let whole = fs::read(&bad).unwrap();
    fs::write(&bad, &whole[..whole.len() / 2]).unwrap();
    let output = run(folder.path(), &with(&["--epochs", "1", "--val-fraction", "0"]));
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text(&output.stderr).contains("scene_1/dataset/data/left/rgb/0001.png: is damaged"),
        "{}",
        text(&output.stderr)
    );
    fs::remove_dir_all(folder.path().join("outputs-rs")).unwrap();
    let printed = succeed(folder.path(), &with(&["--epochs", "1", "--val-fraction", "0", "--skip-bad"]));
    assert!(printed.contains("1 samples could not be read and were left out"), "{printed}");
    let history = json(&run_folder(folder.path()).join("metrics_history.json"));
    assert_eq!(history[0]["metrics"]["data/bad_samples"], 1);
}

#[test]
fn a_run_leaves_all_its_files() {
    let folder = folder_with_tree(3, 4);
    let printed = succeed(folder.path(), &with(&["--epochs", "2", "--batch-size", "1", "--run-name", "small"]));
    let run = run_folder(folder.path());
    assert!(printed.contains("epoch 2/2: train loss ") && printed.contains("weights: outputs-rs/"), "{printed}");
    let config = json(&run.join("config.json"));
    assert_eq!(config["run_name"], "small");
    assert_eq!(config["options"]["optimizer"]["epochs"], 2);
    let history = json(&run.join("metrics_history.json"));
    assert_eq!(history.as_array().unwrap().len(), 2);
    for name in [
        "train/loss",
        "train/epe_px",
        "validation/epe_px",
        "validation/bad_2_percent",
        "validation/sigma_scale",
        "learning_rate",
    ] {
        assert!(history[1]["metrics"][name].is_number(), "{name}");
    }
    let steps = fs::read_to_string(run.join("steps.jsonl")).unwrap();
    assert!(
        steps
            .lines()
            .all(|line| serde_json::from_str::<Value>(line).unwrap()["step"].as_u64().unwrap().is_multiple_of(10))
    );
    let header = json(&run.join("checkpoints/best.json"));
    assert_eq!(header["kind"], "foundation-stereo-depth checkpoint");
    assert_eq!(header["augment"]["jpeg_prob"], 0.0);
    for file in ["best.safetensors", "last.safetensors", "last.json", "last.resume.safetensors"] {
        assert!(run.join("checkpoints").join(file).is_file(), "{file}");
    }
    assert!(run.join("previews/epoch_0002.png").is_file());
}

#[test]
fn a_resumed_run_keeps_what_makes_it_the_same_run() {
    let folder = folder_with_tree(2, 3);
    succeed(folder.path(), &with(&["--epochs", "1"]));
    let run_folder = run_folder(folder.path());
    let id = run_folder.file_name().unwrap().to_str().unwrap();
    let output = run(folder.path(), &["--resume", id, "--batch-size", "3", "--lr", "0.5"]);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains("--batch-size 3 (the run has 8)") && message.contains("--learning-rate 0.5"), "{message}");
    fs::remove_dir_all(folder.path().join("data/scene_1")).unwrap();
    let message = text(&run(folder.path(), &["--resume", id, "--epochs", "2"]).stderr);
    assert!(message.contains("learnt from other samples"), "{message}");
}

#[test]
fn a_termination_signal_saves_and_ends_with_128_and_its_number() {
    let folder = folder_with_tree(2, 8);
    for (signal, status) in [("INT", 130), ("TERM", 143)] {
        let child = command(folder.path(), &with(&["--epochs", "1000000"])).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(900));
        Command::new("kill").args(["-s", signal, &child.id().to_string()]).status().unwrap();
        let output = child.wait_with_output().unwrap();
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{message}");
        assert!(message.contains("stopped after step") && message.contains("--resume"), "{message}");
        let run = run_folder(folder.path());
        assert!(run.join("checkpoints/last.resume.safetensors").is_file());
        fs::remove_dir_all(folder.path().join("outputs-rs")).unwrap();
    }
}

#[test]
fn a_cache_build_that_is_killed_twenty_times_leaves_nothing_torn() {
    let folder = folder_with_tree(4, 12);
    let size = ["--height", "480", "--width", "640"]; // entries of 2.5 MB: most of the time goes into writing
    let mut arguments = vec!["--build-cache-only", "--dataset-root", "data", "--cache-root", "cache", "--overwrite"];
    arguments.extend(size);
    for trial in 0..20 {
        kill_after(command(folder.path(), &arguments).spawn().unwrap(), Duration::from_millis(20 + 13 * trial));
        let Ok(cache) = SampleCache::open(&folder.path().join("cache"), 480, 640) else { panic!("a torn manifest") };
        for (scene, stems) in cache.names().unwrap_or_default() {
            for stem in stems {
                cache.verify(&scene, &stem).unwrap();
            }
        }
    }
    arguments.retain(|argument| *argument != "--overwrite");
    let printed = succeed(folder.path(), &arguments);
    assert!(printed.contains("0 of them in place of damaged ones"), "{printed}");
    let left = Command::new("find").arg(folder.path().join("cache")).args(["-name", ".incomplete-*"]).output().unwrap();
    assert_eq!(text(&left.stdout), "", "temporary files of killed writers are removed");
}

#[test]
fn a_run_that_is_killed_twenty_times_while_it_saves_ends_like_one_that_was_not() {
    let folder = folder_with_tree(3, 8);
    // A checkpoint after every step: most of the time goes into saving.
    let options = with(&["--epochs", "12", "--batch-size", "2", "--checkpoint-minutes", "0"]);
    succeed(folder.path(), &options);
    let uninterrupted = run_folder(folder.path());
    let expected = ResumeState::load(&uninterrupted.join("checkpoints/last.resume.safetensors")).unwrap();
    fs::remove_dir_all(folder.path().join("outputs-rs")).unwrap();

    let mut interruptions = 0;
    for trial in 0..200 {
        let state =
            fs::read_dir(folder.path().join("outputs-rs")).ok().and_then(|mut runs| Some(runs.next()?.unwrap().path()));
        let resumable = state.filter(|run| run.join("checkpoints/last.resume.safetensors").is_file());
        let child = match &resumable {
            Some(run) => command(folder.path(), &["--resume", run.to_str().unwrap()]).spawn().unwrap(),
            None => {
                let _ = fs::remove_dir_all(folder.path().join("outputs-rs"));
                command(folder.path(), &options).spawn().unwrap()
            }
        };
        kill_after(child, Duration::from_millis(60 + 7 * (trial % 11)));
        interruptions += 1;
        if let Some(run) = resumable {
            for name in ["last", "best"].map(|name| run.join(format!("checkpoints/{name}.safetensors"))) {
                if name.exists() {
                    candle_core::safetensors::load(name, &candle_core::Device::Cpu).unwrap();
                }
            }
            let state = ResumeState::load(&run.join("checkpoints/last.resume.safetensors")).unwrap();
            json(&run.join("metrics_history.json"));
            if interruptions >= 20 || state.facts.progress.epoch >= 12 {
                break;
            }
        }
    }
    assert!(interruptions >= 20, "only {interruptions}: the run was over before");
    let run = run_folder(folder.path());
    succeed(folder.path(), &["--resume", run.to_str().unwrap()]);
    let found = ResumeState::load(&run.join("checkpoints/last.resume.safetensors")).unwrap();
    assert_eq!(found.facts.progress, expected.facts.progress);
    for (name, tensor) in &expected.weights {
        let bits = |tensor: &candle_core::Tensor| {
            tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        assert!(bits(tensor) == bits(&found.weights[name]), "{name} differs");
    }
    let comparable = |state: &ResumeState| -> Vec<Value> {
        let epochs = state.facts.history.iter().map(|record| record.metrics.clone());
        epochs
            .map(|mut metrics| {
                metrics.retain(|name, _| !name.starts_with("speed/"));
                Value::Object(metrics)
            })
            .collect()
    };
    assert_eq!(comparable(&found), comparable(&expected));
}

#[test]
#[ignore = "takes minutes; needs STEREO_SHARED_DATA"]
fn seven_scenes_are_overfitted_to_less_than_a_pixel() {
    let Some(shared) = std::env::var_os("STEREO_SHARED_DATA") else { panic!("STEREO_SHARED_DATA is not set") };
    let folder = tempfile::tempdir().unwrap();
    let dataset = Path::new(&shared).join("fsd-sample").display().to_string();
    let options = [
        "--dataset-root",
        &dataset,
        "--cache-root",
        "cache",
        "--val-fraction",
        "0",
        "--no-augment",
        "--epochs",
        "300",
        "--batch-size",
        "7",
        "--base-channels",
        "16",
        "--height",
        "120",
        "--width",
        "160",
        "--lr",
        "0.003",
    ];
    let printed = succeed(folder.path(), &options);
    println!("{}", printed.lines().rev().nth(1).unwrap());
    let history = json(&run_folder(folder.path()).join("metrics_history.json"));
    let epe_px = history.as_array().unwrap().last().unwrap()["metrics"]["validation/epe_px"].as_f64().unwrap();
    assert!(epe_px < 1.0, "{epe_px} px");
}

//! What stays of a run, in outputs-rs/<run id>/: every file appears complete, by a rename.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use crate::checkpoint::{EpochRecord, Metrics, inference_header, save_weights, scale_of};
use crate::data::batch::StereoBatch;
use crate::data::codecs::encode_png;
use crate::errors::{Error, Result};
use crate::files::{DURABLE, QUICK, random_hex, remove_abandoned, write_atomically};
use crate::options::{TrainOptions, to_plain};
use crate::preview::{PredictedMaps, preview};
use crate::training_state::TrainingState;

/// The folder of checkpoints in a run's folder.
pub const CHECKPOINTS: &str = "checkpoints";
/// What a run is resumed from.
pub const LAST_RESUME: &str = "last.resume.safetensors";
const LAST: &str = "last.safetensors";
const BEST: &str = "best.safetensors";
const PREVIEWS: &str = "previews";
const HISTORY: &str = "metrics_history.json";
const STEPS: &str = "steps.jsonl";

/// The keeper of one run's results.
pub struct Record {
    pub run_id: String,
    pub folder: PathBuf,
    options: TrainOptions,
    saved_at: Instant,
    steps: File,
}

impl Record {
    /// Open the folder of a new run, or of one that is resumed after so many steps.
    pub fn open(options: &TrainOptions, resumed: Option<(String, PathBuf, usize)>) -> Result<Self> {
        let (run_id, folder, steps_done) = match resumed {
            Some(resumed) => resumed,
            None => {
                let run_id = random_hex(16).map_err(|error| Error::io("/dev/urandom", error))?;
                let folder = options.tracking.output_dir.join(&run_id);
                (run_id, folder, 0)
            }
        };
        for part in [folder.join(CHECKPOINTS), folder.join(PREVIEWS)] {
            fs::create_dir_all(&part).map_err(|error| Error::io(&part, error))?;
            remove_abandoned(&part)?; // what a training that was killed while it saved has left: checkpoints are large
        }
        remove_abandoned(&folder)?;
        let steps = reopen_steps(&folder.join(STEPS), steps_done)?;
        Ok(Self { run_id, folder, options: options.clone(), saved_at: Instant::now(), steps })
    }

    /// Write config.json: all options, and facts about data, network and machine.
    pub fn write_config(&self, facts: &Map<String, Value>) -> Result<()> {
        let config = json!({
            "run_id": self.run_id,
            "run_name": self.options.tracking.run_name,
            "program": format!("{} {}", crate::options::COMMAND, env!("CARGO_PKG_VERSION")),
            "started_ms": now_ms(),
            "options": to_plain(&self.options),
            "facts": facts,
        });
        self.write_json("config.json", &config)
    }

    /// Write metrics_history.json: every finished epoch, names as in MLflow.
    pub fn write_history(&self, history: &[EpochRecord]) -> Result<()> {
        self.write_json(HISTORY, &json!(history))
    }

    /// Add a line to steps.jsonl.
    pub fn add_step(&mut self, line: &Value) -> Result<()> {
        let path = self.folder.join(STEPS);
        self.steps.write_all(format!("{line}\n").as_bytes()).map_err(|error| Error::io(path, error))
    }

    /// Return true when the last checkpoint is older than --checkpoint-minutes.
    pub fn is_due(&self) -> bool {
        self.saved_at.elapsed()
            > Duration::try_from_secs_f64(60.0 * self.options.tracking.checkpoint_minutes).unwrap_or(Duration::MAX)
    }

    /// Write the last checkpoint, of this moment.
    pub fn save(&mut self, state: &TrainingState) -> Result<()> {
        self.save_weights(state, LAST)?;
        // What a run is resumed from comes last: where it is new, everything beside it is.
        state.to_resume(&self.options, &self.run_id)?.save(&self.checkpoint(LAST_RESUME))?;
        self.saved_at = Instant::now();
        Ok(())
    }

    fn save_weights(&self, state: &TrainingState, name: &str) -> Result<()> {
        let metrics = state.history.last().map(|record| record.metrics.clone()).unwrap_or_default();
        let header = inference_header(&self.options, &metrics, scale_of(&metrics), &self.run_id, state.progress);
        save_weights(&self.checkpoint(name), &state.shipped_weights()?, &header)
    }

    /// Keep a finished epoch: its preview, its metrics, the best checkpoint where it is the best, the last one.
    pub fn finish_epoch(
        &mut self,
        state: &TrainingState,
        is_best: bool,
        example: Option<(StereoBatch, PredictedMaps)>,
    ) -> Result<()> {
        if let Some((batch, predicted)) = example {
            let path = self.folder.join(PREVIEWS).join(format!("epoch_{:04}.png", state.history.len()));
            write_atomically(&path, &[&encode_png(&preview(&batch, &predicted))], QUICK)?;
        }
        self.write_history(&state.history)?;
        // The best first: a resumed run takes for granted that what was best until then is there.
        if is_best {
            self.save_weights(state, BEST)?;
        }
        self.save(state)
    }

    /// List the samples that could not be read, if any.
    pub fn list_bad_samples(&self, bad: &[String]) -> Result<()> {
        let Some(first) = bad.first() else { return Ok(()) };
        let path = self.folder.join("bad_samples.txt");
        let text: String = bad.iter().map(|line| format!("{line}\n")).collect();
        write_atomically(&path, &[text.as_bytes()], QUICK)?;
        println!(
            "{} samples could not be read and were left out, listed in {}; the first: {first}",
            bad.len(),
            path.display()
        );
        Ok(())
    }

    /// List the cache entries that an epoch found damaged and rebuilt, if any, after those of earlier ones.
    pub fn list_rebuilt_entries(&self, rebuilt: &[String]) -> Result<()> {
        let Some(first) = rebuilt.first() else { return Ok(()) };
        let path = self.folder.join("rebuilt_entries.txt");
        let mut text = fs::read_to_string(&path).unwrap_or_default();
        text.extend(rebuilt.iter().map(|line| format!("{line}\n")));
        write_atomically(&path, &[text.as_bytes()], QUICK)?;
        println!(
            "{} cache entries were damaged and rebuilt, listed in {}; the first: {first}",
            rebuilt.len(),
            path.display()
        );
        Ok(())
    }

    /// Return where the weights are, for the user.
    pub fn weights(&self) -> String {
        let (last, best) = (self.checkpoint(LAST), self.checkpoint(BEST));
        if best.exists() {
            format!("weights: {} (lowest validation EPE) and {}", best.display(), last.display())
        } else {
            format!("weights: {}", last.display())
        }
    }

    /// Return where the last checkpoint is, or would be.
    pub fn last(&self) -> PathBuf {
        self.checkpoint(LAST)
    }

    fn checkpoint(&self, name: &str) -> PathBuf {
        self.folder.join(CHECKPOINTS).join(name)
    }

    fn write_json(&self, name: &str, value: &Value) -> Result<()> {
        write_atomically(&self.folder.join(name), &[format!("{value:#}\n").as_bytes()], DURABLE)
    }
}

/// Return steps.jsonl, opened to add to, with the lines of the first so many steps.
fn reopen_steps(path: &Path, steps_done: usize) -> Result<File> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let is_kept = |line: &&str| {
        serde_json::from_str::<Value>(line)
            .is_ok_and(|line| line["step"].as_u64().is_some_and(|step| step <= steps_done as u64))
    };
    let kept: String = text.lines().filter(is_kept).map(|line| format!("{line}\n")).collect();
    write_atomically(path, &[kept.as_bytes()], QUICK)?;
    File::options().append(true).open(path).map_err(|error| Error::io(path, error))
}

/// Return the time in ms since 1970.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis() as u64)
}

/// Return the line that reports a finished epoch, as the Python program prints it.
pub fn epoch_line(epoch: usize, epochs: i64, metrics: &Metrics) -> String {
    let number = |name: &str| metrics.get(name).and_then(Value::as_f64);
    let of = |part: &str| match number(&format!("{part}/epe_px")) {
        None => format!("{part}: no pixel with known disparity"),
        Some(epe_px) => format!(
            "{part} loss {:.3} EPE {epe_px:.2} px bad-3 {:.1} %",
            number(&format!("{part}/loss")).unwrap_or(f64::NAN),
            number(&format!("{part}/bad_3_percent")).unwrap_or(f64::NAN)
        ),
    };
    let unwritten = number("data/cache_unwritten").unwrap_or(0.0);
    let not_kept = if unwritten > 0.0 {
        format!("; {unwritten:.0} samples read could not be kept in the cache")
    } else {
        String::new()
    };
    format!(
        "epoch {}/{epochs}: {}; {}; {:.1} samples/s, {:.1} % waiting for data{not_kept}",
        epoch + 1,
        of("train"),
        of("validation"),
        number("speed/samples_per_s").unwrap_or(0.0),
        number("speed/data_wait_percent").unwrap_or(0.0)
    )
}

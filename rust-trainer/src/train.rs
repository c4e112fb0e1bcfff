//! Training: one function that reads like a recipe, and the few steps it is made of. training/train.py.

use std::time::Instant;

use candle_core::{Device, Tensor};
use indicatif::{ProgressBar, ProgressStyle};
use rayon::prelude::*;
use serde_json::{Map, Value, json};

use crate::checkpoint::{Metrics, SIGMA_SCALE};
use crate::data::augment::{Augmentation, as_pair, true_disparity};
use crate::data::batch::{ReadCounts, StereoBatch, training_plan, validation_plan};
use crate::data::loader::{FileSource, open_files};
use crate::data::random::Key;
use crate::errors::{Error, Result};
use crate::loss::heteroscedastic_loss;
use crate::metrics::DisparityErrors;
use crate::model::unet::{StereoPrediction, UNet};
use crate::optimizer::learning_rate_at;
use crate::options::{Distribution, LossOptions, TrainOptions};
use crate::preview::PredictedMaps;
use crate::record::{Record, epoch_line, now_ms};
use crate::start::{Start, first_weights, pick_device, size_of};
use crate::stop::StopSignals;
use crate::training_state::TrainingState;
use crate::uncertainty::{ErrorRatios, Likelihood};

/// Added to the seed for augmentation, as in the Python program.
const AUGMENTATION_SEED: i64 = 1;
/// Every so many rows and columns a training error is counted: enough to watch.
const WATCHED_EVERY: usize = 2;
/// Steps between lines of steps.jsonl.
const STEPS_PER_LINE: usize = 10;

/// Train a network as the options say; the run's folder has the results.
pub fn train(mut start: Start, stop: &StopSignals) -> Result<()> {
    let device = pick_device(start.options.runtime.device)?;
    let options = start.options.clone();
    let data = open_files(&options.data, options.data.dataset_root.as_deref())?;
    if let Some(first) = data.incomplete.first() {
        println!("{} frames lack a part and are left out, the first: {first}", data.incomplete.len());
    }
    println!("{}", data.summary);
    let identity = data.facts["dataset_fingerprint"].as_str().unwrap_or_default().to_string();
    let mut state =
        TrainingState::fresh(size_of(&options), &first_weights(&start)?, &options.optimizer, identity, &device)?;
    let resumed = match start.resumed.take() {
        None => None,
        Some((saved, folder)) => {
            let run = (saved.facts.run_id.clone(), folder, saved.facts.progress.step);
            state.restore(saved, &device)?;
            Some(run)
        }
    };

    let batch_size = options.optimizer.batch_size as usize;
    let plan_of = |epoch: usize| training_plan(data.train.len(), batch_size, options.runtime.seed, epoch as i64);
    let total_steps = plan_of(0).len() * options.optimizer.epochs as usize;
    let augmentation = Augmentation::new(&options.augment, options.data.height as usize, options.data.width as usize);

    let mut record = Record::open(&options, resumed)?;
    let facts = all_facts(data.facts.clone(), &state, &device);
    record.write_config(&facts)?;
    record.write_history(&state.history)?;
    println!("{}", start_line(&record, &facts, &options, &state));

    for epoch in state.progress.epoch..options.optimizer.epochs as usize {
        let plan = plan_of(epoch);
        let mut bar = Bar::new(epoch, &options, plan.len(), state.progress.step_in_epoch);
        let mut batches = data.train.batches(plan[state.progress.step_in_epoch..].to_vec());
        while let Some(batch) = bar.timed(|| batches.next()) {
            let mut batch = batch?;
            // -------------------------------------------------------------------------------------------- one step
            let keys = keys_of(&batch, &options, epoch);
            augmentation.flip(&mut batch, &keys);
            let pair = augmentation.pair(&batch, &keys, &device)?;
            let prediction = state.network().forward(&pair)?;
            let loss = heteroscedastic_loss(&prediction, &true_disparity(&batch, &device)?, &options.loss)?;
            let total = f64::from(loss.total.to_scalar::<f32>()?);
            let mean = (loss.total / loss.valid.max(1.0))?;
            let rate = learning_rate_at(state.progress.step, total_steps, &options.optimizer);
            let norm = state.step(&mean, rate, options.optimizer.clip_norm)?;
            // -----------------------------------------------------------------------------------------------------
            if !total.is_finite() || !norm.is_finite() {
                return Err(not_finite(&state, &plan, &data.train, &record));
            }
            state.sums = [state.sums[0] + total, state.sums[1] + loss.valid];
            let (errors, likelihood) = watched_figures(&batch, &prediction, options.loss.loss)?;
            state.errors.add(&errors);
            state.likelihood.add(&likelihood);
            state.counts.add(std::mem::take(&mut batch.counts));
            state.advance(batch_size);
            bar.step_done(&state);
            if state.progress.step.is_multiple_of(STEPS_PER_LINE) {
                record.add_step(&step_line(&state, total / loss.valid.max(1.0), norm, &bar))?;
            }
            save_or_stop(&mut record, &state, stop)?;
        }
        drop(batches);
        bar.close();

        let network = UNet::new(state.size, state.shipped_weights()?);
        let seen = evaluate(&network, &data.validation, batch_size, &options.loss, &device, || {
            save_or_stop(&mut record, &state, stop)
        })?;
        let metrics = epoch_metrics(&state, &seen, &bar, &options);
        let (bad, rebuilt) = listed(&state.counts, &seen.counts);
        println!("{}", epoch_line(epoch, options.optimizer.epochs, &metrics));
        let is_best = state.finish_epoch(metrics, now_ms());
        record.finish_epoch(&state, is_best, seen.example)?;
        record.list_bad_samples(&bad)?;
        record.list_rebuilt_entries(&rebuilt)?;
    }
    println!("{}", record.weights());
    Ok(())
}

/// Between two steps: save where that is due, and end where a signal asked for it.
fn save_or_stop(record: &mut Record, state: &TrainingState, stop: &StopSignals) -> Result<()> {
    if stop.requested() {
        record.save(state)?;
        return Err(stop.error(format!(
            "stopped after step {} of epoch {}; resume with --resume {}",
            state.progress.step_in_epoch,
            state.progress.epoch + 1,
            record.folder.display()
        )));
    }
    if record.is_due() {
        record.save(state)?;
    }
    Ok(())
}

fn keys_of(batch: &StereoBatch, options: &TrainOptions, epoch: usize) -> Vec<Key> {
    let seed = options.runtime.seed + AUGMENTATION_SEED;
    batch.indices.iter().map(|&index| Key::new(seed, epoch as i64, index)).collect()
}

/// Return the maps of a prediction in main memory.
fn in_memory(prediction: &StereoPrediction) -> Result<PredictedMaps> {
    let numbers = |tensor: &Tensor| tensor.detach().flatten_all()?.to_vec1::<f32>();
    Ok(PredictedMaps {
        disparity_px: numbers(&prediction.disparity_px)?,
        log_variance: numbers(&prediction.log_variance)?,
    })
}

/// Return the errors and the likelihood at one pixel in four.
fn watched_figures(
    batch: &StereoBatch,
    prediction: &StereoPrediction,
    distribution: Distribution,
) -> Result<(DisparityErrors, Likelihood)> {
    let predicted = in_memory(prediction)?;
    let (mut errors, mut likelihood) = (DisparityErrors::default(), Likelihood::default());
    for (row, truth) in batch.disparity_px.chunks_exact(batch.width).enumerate() {
        if !(row % batch.height).is_multiple_of(WATCHED_EVERY) {
            continue;
        }
        for (column, true_px) in truth.iter().enumerate().step_by(WATCHED_EVERY) {
            let at = row * batch.width + column;
            let (disparity_px, log_variance) = (predicted.disparity_px[at], predicted.log_variance[at]);
            errors.count(disparity_px, true_px.to_f32());
            likelihood.count(disparity_px, log_variance, true_px.to_f32(), distribution);
        }
    }
    Ok((errors, likelihood))
}

/// Sums over validation samples, and the first batch to look at.
struct Evaluation {
    loss_total: f64,
    valid: f64,
    errors: DisparityErrors,
    likelihood: Likelihood,
    ratios: ErrorRatios,
    counts: ReadCounts,
    example: Option<(StereoBatch, PredictedMaps)>,
}

/// Run a network over all samples of a source, unaugmented; `after_batch` may stop it.
fn evaluate(
    network: &UNet,
    source: &FileSource,
    batch_size: usize,
    options: &LossOptions,
    device: &Device,
    mut after_batch: impl FnMut() -> Result<()>,
) -> Result<Evaluation> {
    let mut seen = Evaluation {
        loss_total: 0.0,
        valid: 0.0,
        errors: DisparityErrors::default(),
        likelihood: Likelihood::default(),
        ratios: ErrorRatios::default(),
        counts: ReadCounts::default(),
        example: None,
    };
    for batch in source.batches(validation_plan(source.len(), batch_size)) {
        let mut batch = batch?;
        let prediction = network.forward(&as_pair(&batch, device)?)?;
        let loss = heteroscedastic_loss(&prediction, &true_disparity(&batch, device)?, options)?;
        seen.loss_total += f64::from(loss.total.to_scalar::<f32>()?);
        seen.valid += loss.valid;
        let predicted = in_memory(&prediction)?;
        let (errors, likelihood, ratios) = count_errors(&batch, &predicted, options.loss);
        seen.errors.add(&errors);
        seen.likelihood.add(&likelihood);
        seen.ratios.add(&ratios);
        seen.counts.add(std::mem::take(&mut batch.counts));
        seen.example.get_or_insert((batch, predicted));
        after_batch()?;
    }
    Ok(seen)
}

fn count_errors(
    batch: &StereoBatch,
    predicted: &PredictedMaps,
    distribution: Distribution,
) -> (DisparityErrors, Likelihood, ErrorRatios) {
    let pixels = batch.height * batch.width;
    let parts = predicted
        .disparity_px
        .par_chunks(pixels)
        .zip(predicted.log_variance.par_chunks(pixels))
        .zip(batch.disparity_px.par_chunks(pixels));
    let none = || (DisparityErrors::default(), Likelihood::default(), ErrorRatios::default());
    let counted: Vec<_> = parts
        .map(|((disparity_px, log_variance), truth_px)| {
            let (mut errors, mut likelihood, mut ratios) = none();
            for ((disparity_px, log_variance), true_px) in disparity_px.iter().zip(log_variance).zip(truth_px) {
                errors.count(*disparity_px, true_px.to_f32());
                likelihood.count(*disparity_px, *log_variance, true_px.to_f32(), distribution);
                ratios.count(*disparity_px, *log_variance, true_px.to_f32());
            }
            (errors, likelihood, ratios)
        })
        .collect();
    let (mut errors, mut likelihood, mut ratios) = none();
    for (of_sample, likelihood_of_sample, ratios_of_sample) in &counted {
        errors.add(of_sample);
        likelihood.add(likelihood_of_sample);
        ratios.add(ratios_of_sample);
    }
    (errors, likelihood, ratios)
}

/// Return all metrics of an epoch, named as in MLflow.
fn epoch_metrics(state: &TrainingState, seen: &Evaluation, bar: &Bar, options: &TrainOptions) -> Metrics {
    let mut metrics = state.training_metrics();
    metrics.extend(bar.figures());
    let mean_loss = seen.loss_total / seen.valid.max(1.0);
    metrics.insert("validation/loss".into(), json!(mean_loss));
    metrics.insert("validation/loss_nll".into(), json!(mean_loss)); // the only term of the loss
    metrics.insert(SIGMA_SCALE.into(), json!(seen.ratios.fitted_scale(options.loss.loss)));
    for (name, value) in seen.errors.figures().into_iter().chain(seen.likelihood.figures()) {
        metrics.insert(format!("validation/{name}"), json!(value));
    }
    metrics.insert("data/cache_unwritten".into(), json!(state.counts.unwritten + seen.counts.unwritten));
    metrics
}

/// Return the samples that could not be read, each once, and the entries that were rebuilt.
fn listed(trained: &ReadCounts, validated: &ReadCounts) -> (Vec<String>, Vec<String>) {
    let mut bad = [trained.bad.clone(), validated.bad.clone()].concat();
    bad.sort_unstable();
    bad.dedup();
    (bad, [trained.rebuilt.clone(), validated.rebuilt.clone()].concat())
}

fn step_line(state: &TrainingState, loss: f64, norm: f64, bar: &Bar) -> Value {
    json!({
        "step": state.progress.step,
        "epoch": state.progress.epoch + 1,
        "time_ms": now_ms(),
        "loss": loss,
        "epoch_mean_loss": state.mean_loss(),
        "epoch_mean_epe_px": state.errors.epe_px(),
        "gradient_norm": norm,
        "learning_rate": state.learning_rate,
        "samples_per_s": bar.samples_per_s(),
    })
}

fn not_finite(state: &TrainingState, plan: &[Vec<usize>], source: &FileSource, record: &Record) -> Error {
    let step = state.progress.step_in_epoch;
    let names: Vec<String> = plan[step].iter().map(|&index| source.name(index)).collect();
    let last = record.last();
    let kept = if last.exists() {
        format!("the last good checkpoint is {}", last.display())
    } else {
        "no checkpoint had been saved yet".to_string()
    };
    Error::User(format!(
        "the loss or its gradient is not finite in step {} of epoch {}, samples {}; {kept}; try a lower --learning-rate",
        step + 1,
        state.progress.epoch + 1,
        names.join(", ")
    ))
}

fn all_facts(data: Map<String, Value>, state: &TrainingState, device: &Device) -> Map<String, Value> {
    let parameters: usize = state.variables.values().map(|variable| variable.elem_count()).sum();
    let device_name = match device {
        Device::Cpu => "cpu",
        Device::Cuda(_) => "cuda",
        Device::Metal(_) => "metal",
    };
    let mut facts = data;
    facts.insert("parameters".into(), json!(parameters));
    facts.insert("device_name".into(), json!(device_name));
    facts.insert("computed_in".into(), json!("float32"));
    facts.insert("threads".into(), json!(rayon::current_num_threads()));
    facts.insert("version".into(), json!(env!("CARGO_PKG_VERSION")));
    facts
}

fn start_line(record: &Record, facts: &Map<String, Value>, options: &TrainOptions, state: &TrainingState) -> String {
    let begun =
        if state.progress.step > 0 { format!(", resumed after step {}", state.progress.step) } else { String::new() };
    format!(
        "run {}{begun}: {} of {} parameters, float32 on {}; {} training and {} validation samples of {}x{}; results in {}",
        record.run_id,
        options.model.model,
        facts["parameters"],
        facts["device_name"].as_str().unwrap_or_default(),
        facts["train_samples"],
        facts["validation_samples"],
        options.data.width,
        options.data.height,
        record.folder.display()
    )
}

/// The progress bar of an epoch, and the clock behind its figures.
struct Bar {
    bar: ProgressBar,
    batch_size: usize,
    began: Instant,
    waited_s: f64,
    elapsed_s: f64,
    done: usize,
}

impl Bar {
    fn new(epoch: usize, options: &TrainOptions, steps: usize, first: usize) -> Self {
        let batch_size = options.optimizer.batch_size as usize;
        let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} [{elapsed}<{eta}] {msg}");
        let bar = ProgressBar::new((steps * batch_size) as u64)
            .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
            .with_position((first * batch_size) as u64)
            .with_prefix(format!("epoch {}/{}", epoch + 1, options.optimizer.epochs));
        Self { bar, batch_size, began: Instant::now(), waited_s: 0.0, elapsed_s: 0.0, done: 0 }
    }

    /// Call `next`, and count its time as waiting for data.
    fn timed<T>(&mut self, next: impl FnOnce() -> Option<T>) -> Option<T> {
        let asked = Instant::now();
        let item = next();
        self.waited_s += asked.elapsed().as_secs_f64();
        item
    }

    fn step_done(&mut self, state: &TrainingState) {
        self.done += 1;
        self.bar.inc(self.batch_size as u64);
        self.bar.set_message(format!(
            "loss {:.3}, EPE {:.2} px, waiting {:.0}%",
            state.mean_loss(),
            state.errors.epe_px(),
            100.0 * self.waited_s / self.began.elapsed().as_secs_f64().max(1e-9)
        ));
    }

    fn close(&mut self) {
        self.elapsed_s = self.began.elapsed().as_secs_f64();
        self.bar.finish_and_clear();
    }

    fn samples_per_s(&self) -> f64 {
        (self.done * self.batch_size) as f64 / self.began.elapsed().as_secs_f64().max(1e-9)
    }

    /// Return the speed of the epoch, or of its part since it was resumed.
    fn figures(&self) -> Metrics {
        let elapsed_s = self.elapsed_s.max(1e-9);
        let mut figures = Metrics::new();
        figures.insert("speed/samples_per_s".into(), json!((self.done * self.batch_size) as f64 / elapsed_s));
        figures.insert("speed/data_wait_percent".into(), json!(100.0 * self.waited_s / elapsed_s));
        figures
    }
}

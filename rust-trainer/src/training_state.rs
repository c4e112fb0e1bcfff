//! The state of training: all that one step changes, and so all that a resumed run needs. training/state.py.

use candle_core::{Device, Tensor};
use serde_json::{Value, json};

use crate::checkpoint::{EpochRecord, Metrics, Progress, ResumeFacts, ResumeState};
use crate::data::batch::ReadCounts;
use crate::errors::{Error, Result};
use crate::metrics::DisparityErrors;
use crate::model::unet::{UNet, UNetSize, Weights};
use crate::optimizer::{MovingAverage, Optimizer, Variables, clip_factor, copies, gradient_norm, variables_of};
use crate::options::{OptimizerOptions, TrainOptions, to_plain};
use crate::uncertainty::Likelihood;

/// Everything that changes while training, apart from random numbers, which follow from seed, epoch and index.
pub struct TrainingState {
    pub size: UNetSize,
    pub variables: Variables,
    pub optimizer: Optimizer,
    /// None where no average is kept.
    pub average: Option<MovingAverage>,
    pub progress: Progress,
    /// Loss and valid pixels of the epoch so far.
    pub sums: [f64; 2],
    /// At one training pixel in four of the epoch so far.
    pub errors: DisparityErrors,
    pub likelihood: Likelihood,
    pub counts: ReadCounts,
    /// Identity of the samples.
    pub data: String,
    pub history: Vec<EpochRecord>,
    pub learning_rate: f64,
}

impl TrainingState {
    /// Return the state before the first step.
    pub fn fresh(
        size: UNetSize,
        weights: &Weights,
        options: &OptimizerOptions,
        data: String,
        device: &Device,
    ) -> Result<Self> {
        let variables = variables_of(&on_device(weights, device)?)?;
        let average =
            (options.ema_decay > 0.0).then(|| MovingAverage::new(&variables, options.ema_decay)).transpose()?;
        Ok(Self {
            size,
            optimizer: Optimizer::new(&variables, options)?,
            variables,
            average,
            progress: Progress::default(),
            sums: [0.0; 2],
            errors: DisparityErrors::default(),
            likelihood: Likelihood::default(),
            counts: ReadCounts::default(),
            data,
            history: Vec::new(),
            learning_rate: 0.0,
        })
    }

    /// Return the network that is trained.
    pub fn network(&self) -> UNet {
        UNet::of_variables(self.size, &self.variables)
    }

    /// Return the weights that are evaluated and shipped.
    pub fn shipped_weights(&self) -> Result<Weights> {
        match &self.average {
            Some(average) => Ok(average.weights.clone()),
            None => Ok(copies(&self.variables)?),
        }
    }

    /// Take one step down the gradient of a loss, and return the gradient's norm; nothing changes where that is not finite.
    pub fn step(&mut self, loss: &Tensor, rate: f64, clip_norm: f64) -> Result<f64> {
        let gradients = loss.backward()?;
        let norm = gradient_norm(&self.variables, &gradients)?;
        if !norm.is_finite() {
            return Ok(norm);
        }
        self.optimizer.step(&self.variables, &gradients, clip_factor(norm, clip_norm), rate)?;
        if let Some(average) = &mut self.average {
            average.update(&self.variables)?;
        }
        self.learning_rate = rate;
        Ok(norm)
    }

    /// Count a step that is done.
    pub fn advance(&mut self, samples: usize) {
        self.progress.step_in_epoch += 1;
        self.progress.step += 1;
        self.progress.samples += samples;
    }

    /// Return the mean loss of the epoch so far.
    pub fn mean_loss(&self) -> f64 {
        self.sums[0] / self.sums[1].max(1.0)
    }

    /// Return the training metrics of the epoch so far.
    pub fn training_metrics(&self) -> Metrics {
        let mut metrics = Metrics::new();
        metrics.insert("train/loss".into(), json!(self.mean_loss()));
        metrics.insert("train/loss_nll".into(), json!(self.mean_loss())); // the only term of the loss
        for (name, value) in self.errors.figures().into_iter().chain(self.likelihood.figures()) {
            metrics.insert(format!("train/{name}"), json!(value));
        }
        let bad: std::collections::BTreeSet<&String> = self.counts.bad.iter().collect();
        metrics.insert("learning_rate".into(), json!(self.learning_rate));
        metrics.insert("data/cache_hits".into(), json!(self.counts.cache_hits));
        metrics.insert("data/cache_misses".into(), json!(self.counts.cache_misses));
        metrics.insert("data/cache_rebuilt".into(), json!(self.counts.rebuilt.len()));
        metrics.insert("data/bad_samples".into(), json!(bad.len()));
        metrics
    }

    /// Close the epoch, and return true where its validation EPE is the lowest so far.
    pub fn finish_epoch(&mut self, metrics: Metrics, time_ms: u64) -> bool {
        let epe_px =
            |metrics: &Metrics| metrics.get("validation/epe_px").and_then(Value::as_f64).unwrap_or(f64::INFINITY);
        let best_px = self.history.iter().map(|record| epe_px(&record.metrics)).fold(f64::INFINITY, f64::min);
        let is_best = epe_px(&metrics) < best_px;
        self.history.push(EpochRecord { epoch: self.history.len() + 1, time_ms, metrics });
        self.progress = Progress { epoch: self.progress.epoch + 1, step_in_epoch: 0, ..self.progress };
        self.errors = DisparityErrors::default();
        self.likelihood = Likelihood::default();
        self.sums = [0.0; 2];
        self.counts = ReadCounts::default();
        is_best
    }

    /// Return everything that resuming needs.
    pub fn to_resume(&self, options: &TrainOptions, run_id: &str) -> Result<ResumeState> {
        Ok(ResumeState {
            facts: ResumeFacts {
                format_version: ResumeState::format(),
                run_id: run_id.to_string(),
                options: Value::Object(to_plain(options)),
                data: self.data.clone(),
                progress: self.progress,
                sums: self.sums,
                errors: self.errors.clone(),
                likelihood: self.likelihood.clone(),
                counts: self.counts.clone(),
                history: self.history.clone(),
                learning_rate: self.learning_rate,
                average_updates: self.average.as_ref().map_or(0, |average| average.updates),
            },
            weights: copies(&self.variables)?,
            average: self.average.as_ref().map(|average| average.weights.clone()),
            moments: self.optimizer.moments.clone(),
        })
    }

    /// Become the state that was saved.
    ///
    /// Errors where it learnt from other samples than there are now, or is of another network.
    pub fn restore(&mut self, saved: ResumeState, device: &Device) -> Result<()> {
        let facts = saved.facts;
        if facts.data != self.data {
            return Err(Error::User(format!(
                "--resume: run {} learnt from other samples than there are now; bring them back (--dataset-root, \
                 --cache-root), or start a new run with its weights by --initial-weights",
                facts.run_id
            )));
        }
        let parts = [Some(&saved.weights), saved.average.as_ref(), Some(&saved.moments.0)];
        let shapes = self.size.shapes();
        let fits = |weights: &Weights| {
            weights.len() == shapes.len()
                && weights
                    .iter()
                    .all(|(name, tensor)| shapes.get(name).is_some_and(|shape| tensor.dims() == shape.as_slice()))
        };
        // Muon keeps no squares.
        let has_squares = saved.moments.1.keys().eq(self.optimizer.moments.1.keys())
            && saved
                .moments
                .1
                .iter()
                .all(|(name, tensor)| shapes.get(name).is_some_and(|shape| tensor.dims() == shape.as_slice()));
        if !parts.into_iter().flatten().all(fits) || !has_squares || saved.average.is_some() != self.average.is_some() {
            return Err(Error::User(format!("--resume: the state of run {} does not fit its network", facts.run_id)));
        }
        self.variables = variables_of(&on_device(&saved.weights, device)?)?;
        self.optimizer.moments = (on_device(&saved.moments.0, device)?, on_device(&saved.moments.1, device)?);
        self.optimizer.steps = facts.progress.step;
        if let (Some(average), Some(weights)) = (&mut self.average, &saved.average) {
            average.weights = on_device(weights, device)?;
            average.updates = facts.average_updates;
        }
        (self.progress, self.sums, self.errors) = (facts.progress, facts.sums, facts.errors);
        (self.likelihood, self.counts, self.history) = (facts.likelihood, facts.counts, facts.history);
        self.learning_rate = facts.learning_rate;
        Ok(())
    }
}

fn on_device(weights: &Weights, device: &Device) -> Result<Weights> {
    weights.iter().map(|(name, tensor)| Ok((name.clone(), tensor.to_device(device)?))).collect()
}

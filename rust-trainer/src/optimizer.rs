//! AdamW, clipping, the one-cycle schedule and the moving average of weights, as in training/state.py and PyTorch.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var};

use crate::model::unet::Weights;
use crate::options::OptimizerOptions;

const BETAS: (f64, f64) = (0.9, 0.999);
const EPSILON: f64 = 1e-8;

/// Weights that are learnt, by name.
pub type Variables = BTreeMap<String, Var>;

/// AdamW with the same decay for all weights (Loshchilov and Hutter, ICLR 2019).
#[derive(Clone, Debug)]
pub struct AdamW {
    weight_decay: f64,
    /// Moving averages of each gradient and of its square.
    pub moments: (Weights, Weights),
    /// Steps that were taken.
    pub steps: usize,
}

impl AdamW {
    /// Return the optimizer before its first step.
    pub fn new(variables: &Variables, weight_decay: f64) -> Result<Self> {
        let zeros = || {
            variables.iter().map(|(name, variable)| Ok((name.clone(), variable.zeros_like()?))).collect::<Result<_>>()
        };
        Ok(Self { weight_decay, moments: (zeros()?, zeros()?), steps: 0 })
    }

    /// Change the variables by one step along their gradients, each times `factor`.
    pub fn step(&mut self, variables: &Variables, gradients: &GradStore, factor: f64, rate: f64) -> Result<()> {
        self.steps += 1;
        let steps = self.steps as i32;
        let (first_bias, second_bias) = (1.0 - BETAS.0.powi(steps), 1.0 - BETAS.1.powi(steps));
        for (name, variable) in variables {
            let Some(gradient) = gradients.get(variable) else { continue };
            let gradient = (gradient.detach() * factor)?;
            let first = ((&self.moments.0[name] * BETAS.0)? + (&gradient * (1.0 - BETAS.0))?)?;
            let second = ((&self.moments.1[name] * BETAS.1)? + (gradient.sqr()? * (1.0 - BETAS.1))?)?;
            let deviation = ((second.sqrt()? / second_bias.sqrt())? + EPSILON)?;
            let change = (first.div(&deviation)? * (rate / first_bias))?;
            let decayed = (variable.as_tensor().detach() * (1.0 - rate * self.weight_decay))?;
            variable.set(&(decayed - change)?)?;
            self.moments.0.insert(name.clone(), first);
            self.moments.1.insert(name.clone(), second);
        }
        Ok(())
    }
}

/// Return the norm of all gradients together.
pub fn gradient_norm(variables: &Variables, gradients: &GradStore) -> Result<f64> {
    let mut squared = 0.0;
    for variable in variables.values() {
        if let Some(gradient) = gradients.get(variable) {
            squared += f64::from(gradient.sqr()?.sum_all()?.to_scalar::<f32>()?);
        }
    }
    Ok(squared.sqrt())
}

/// Return what to multiply gradients by, so that their norm is at most `largest`.
pub fn clip_factor(norm: f64, largest: f64) -> f64 {
    (largest / (norm + 1e-6)).min(1.0)
}

/// Return the learning rate of a step: up in a straight line, down along half a cosine to zero.
///
/// After Smith and Topin, "Super-convergence", 2018: one cycle whose height is the peak.
pub fn learning_rate_at(step: usize, total_steps: usize, options: &OptimizerOptions) -> f64 {
    let rising = ((total_steps as f64 * options.warmup_fraction).round_ties_even() as usize).max(1);
    if step < rising {
        return options.learning_rate * (step + 1) as f64 / rising as f64;
    }
    let falling = total_steps.saturating_sub(rising).max(1);
    options.learning_rate * 0.5 * (1.0 + (std::f64::consts::PI * (step - rising) as f64 / falling as f64).cos())
}

/// An exponential moving average of the weights.
#[derive(Clone, Debug)]
pub struct MovingAverage {
    decay: f64,
    pub weights: Weights,
    /// Updates that were taken.
    pub updates: usize,
}

impl MovingAverage {
    /// Return the average before its first update.
    pub fn new(variables: &Variables, decay: f64) -> Result<Self> {
        Ok(Self { decay, weights: copies(variables)?, updates: 0 })
    }

    /// Take the variables into the average; the first update copies them.
    ///
    /// A young average trusts the newest weights more: it would be all beginning otherwise.
    pub fn update(&mut self, variables: &Variables) -> Result<()> {
        if self.updates == 0 {
            self.weights = copies(variables)?;
        } else {
            let decay = ((1 + self.updates) as f64 / (10 + self.updates) as f64).min(self.decay);
            for (name, average) in &mut self.weights {
                let newest = variables[name].as_tensor().detach();
                *average = (&*average + ((newest - &*average)? * (1.0 - decay))?)?;
            }
        }
        self.updates += 1;
        Ok(())
    }
}

/// Return copies of the variables: setting a variable writes into its memory.
pub fn copies(variables: &Variables) -> Result<Weights> {
    variables.iter().map(|(name, variable)| Ok((name.clone(), variable.as_tensor().detach().copy()?))).collect()
}

/// Return variables that begin with these weights.
pub fn variables_of(weights: &Weights) -> Result<Variables> {
    weights.iter().map(|(name, tensor): (&String, &Tensor)| Ok((name.clone(), Var::from_tensor(tensor)?))).collect()
}

//! Muon and AdamW, clipping, the one-cycle schedule and the moving average of weights, as in training/optimizer.py,
//! training/state.py and PyTorch.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var};

use crate::model::unet::Weights;
use crate::options::{Algorithm, OptimizerOptions};

const BETAS: (f64, f64) = (0.9, 0.999);
const EPSILON: f64 = 1e-8;

/// Weights that are learnt, by name.
pub type Variables = BTreeMap<String, Var>;

const MOMENTUM: f64 = 0.95;
/// Of a polynomial that brings every singular value between 0 and 1 near 1 within five iterations (Jordan et al.).
const COEFFICIENTS: (f64, f64, f64) = (3.4445, -4.7750, 2.0315);
const ITERATIONS: usize = 5;
/// Root mean square of AdamW's changes, over its learning rate (Liu et al., arXiv:2502.16982).
const ADAMW_RMS: f64 = 0.2;

/// AdamW (Loshchilov and Hutter, ICLR 2019), and Muon for the kernels of hidden convolutions.
///
/// Muon: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024
/// (<https://kellerjordan.github.io/posts/muon/>), with changes as large as AdamW's.
#[derive(Clone, Debug)]
pub struct Optimizer {
    weight_decay: f64,
    /// Moving averages of each gradient, and of its square where AdamW needs it.
    pub moments: (Weights, Weights),
    /// Steps that were taken.
    pub steps: usize,
}

impl Optimizer {
    /// Return the optimizer before its first step.
    pub fn new(variables: &Variables, options: &OptimizerOptions) -> Result<Self> {
        let mut moments = (Weights::new(), Weights::new());
        for (name, variable) in variables {
            moments.0.insert(name.clone(), variable.zeros_like()?);
            let is_hidden = variable.rank() == 4 && !name.contains("head");
            if options.optimizer == Algorithm::Adamw || !is_hidden {
                moments.1.insert(name.clone(), variable.zeros_like()?);
            }
        }
        Ok(Self { weight_decay: options.weight_decay, moments, steps: 0 })
    }

    /// Change the variables by one step along their gradients, each times `factor`.
    pub fn step(&mut self, variables: &Variables, gradients: &GradStore, factor: f64, rate: f64) -> Result<()> {
        self.steps += 1;
        for (name, variable) in variables {
            let Some(gradient) = gradients.get(variable) else { continue };
            let gradient = (gradient.detach() * factor)?;
            let change = match self.moments.1.get(name) {
                Some(second) => self.adamw_change(name, &gradient, &second.clone())?,
                None => self.muon_change(name, &gradient)?,
            };
            let decayed = (variable.as_tensor().detach() * (1.0 - rate * self.weight_decay))?;
            variable.set(&(decayed - (change * rate)?)?)?;
        }
        Ok(())
    }

    /// Return how AdamW changes a weight, at a learning rate of one.
    fn adamw_change(&mut self, name: &str, gradient: &Tensor, second: &Tensor) -> Result<Tensor> {
        let steps = self.steps as i32;
        let (first_bias, second_bias) = (1.0 - BETAS.0.powi(steps), 1.0 - BETAS.1.powi(steps));
        let first = ((&self.moments.0[name] * BETAS.0)? + (gradient * (1.0 - BETAS.0))?)?;
        let second = ((second * BETAS.1)? + (gradient.sqr()? * (1.0 - BETAS.1))?)?;
        let deviation = ((second.sqrt()? / second_bias.sqrt())? + EPSILON)?;
        let change = (first.div(&deviation)? / first_bias)?;
        self.moments.0.insert(name.into(), first);
        self.moments.1.insert(name.into(), second);
        Ok(change)
    }

    /// Return how Muon changes a kernel, at a learning rate of one.
    fn muon_change(&mut self, name: &str, gradient: &Tensor) -> Result<Tensor> {
        let momentum = ((&self.moments.0[name] * MOMENTUM)? + (gradient * (1.0 - MOMENTUM))?)?;
        let ahead = ((gradient * (1.0 - MOMENTUM))? + (&momentum * MOMENTUM)?)?.flatten_from(1)?;
        self.moments.0.insert(name.into(), momentum);
        let (outputs, inputs) = ahead.dims2()?;
        let scale = ADAMW_RMS * (outputs.max(inputs) as f64).sqrt();
        (orthogonalised(&ahead)? * scale)?.reshape(gradient.shape())
    }
}

/// Return U V^T of a matrix U S V^T, roughly, by Newton-Schulz iterations in its Gram matrix.
pub fn orthogonalised(matrix: &Tensor) -> Result<Tensor> {
    let (rows, columns) = matrix.dims2()?;
    let is_wide = rows <= columns;
    let wide = if is_wide { matrix.clone() } else { matrix.t()?.contiguous()? };
    let norm = f64::from(wide.sqr()?.sum_all()?.to_scalar::<f32>()?).sqrt();
    let wide = (wide / norm.max(1e-7))?;
    let mut gram = wide.matmul(&wide.t()?)?;
    let identity = Tensor::eye(rows.min(columns), gram.dtype(), gram.device())?;
    let mut product = identity.clone();
    let (first, third, fifth) = COEFFICIENTS;
    for _ in 0..ITERATIONS {
        let factor = (((&gram * third)? + (gram.matmul(&gram)? * fifth)?)? + (&identity * first)?)?;
        product = factor.matmul(&product)?;
        gram = factor.matmul(&gram)?.matmul(&factor)?;
    }
    let wide = product.matmul(&wide)?;
    if is_wide { Ok(wide) } else { wide.t()?.contiguous() }
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

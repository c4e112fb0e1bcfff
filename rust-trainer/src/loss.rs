//! The heteroscedastic loss: how unlikely the truth is under the predicted disparity and uncertainty. training/loss.py.

use candle_core::{DType, Result, Tensor};

use crate::model::unet::StereoPrediction;
use crate::options::{Distribution, LossOptions};

/// A loss that merges over batches: add the sums, add the counts, then divide.
pub struct LossSum {
    /// Sum over valid pixels, nats where beta is 0.
    pub total: Tensor,
    /// How many pixels are valid.
    pub valid: f64,
}

/// Return the summed negative log-likelihood on valid pixels of true disparity [B, 1, H, W], NaN or 0 where unknown.
///
/// Each pixel is weighted by its predicted scale to the power beta, held constant: plain likelihood divides the gradient
/// of the disparity by the variance, and starves pixels that are hard at first (Seitzer et al., ICLR 2022, equation 5).
pub fn heteroscedastic_loss(prediction: &StereoPrediction, true_px: &Tensor, options: &LossOptions) -> Result<LossSum> {
    let valid = valid_mask(true_px)?;
    // Where the truth is unknown the prediction itself stands in: no NaN comes up that a mask would have to hide.
    let predicted_px = &prediction.disparity_px;
    let error_px = (predicted_px - valid.where_cond(true_px, &predicted_px.detach())?)?;
    let (log_scale, nll) = match options.loss {
        Distribution::Laplace => laplace_nll(&error_px, &prediction.log_variance)?,
        Distribution::Gaussian => gaussian_nll(&error_px, &prediction.log_variance)?,
    };
    let weight = (log_scale.detach() * options.nll_beta)?.exp()?;
    let weighted = (weight * nll)?;
    let total = valid.where_cond(&weighted, &weighted.zeros_like()?)?.sum_all()?;
    let valid = f64::from(valid.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()?);
    Ok(LossSum { total, valid })
}

/// Return 1 where the disparity is known: finite and above 0; NaN compares false with everything.
pub fn valid_mask(disparity_px: &Tensor) -> Result<Tensor> {
    disparity_px.gt(0f32)? * disparity_px.lt(f32::INFINITY)?
}

/// Return (log of what divides the squared error, -log N(error; 0, variance)), nats.
fn gaussian_nll(error_px: &Tensor, log_variance: &Tensor) -> Result<(Tensor, Tensor)> {
    let squared = (error_px.sqr()? * log_variance.neg()?.exp()?)?;
    let nll = (((squared + log_variance)? + std::f64::consts::TAU.ln())? * 0.5)?;
    Ok((log_variance.clone(), nll))
}

/// Return (log b, -log Laplace(error; 0, b)), nats: |e| / b + log 2 b, where the variance is 2 b^2.
fn laplace_nll(error_px: &Tensor, log_variance: &Tensor) -> Result<(Tensor, Tensor)> {
    let log_b = ((log_variance - std::f64::consts::LN_2)? * 0.5)?;
    let nll = ((error_px.abs()? * log_b.neg()?.exp()?)? + &log_b)?;
    Ok((log_b, (nll + std::f64::consts::LN_2)?))
}

//! How likely the truth is under the prediction, and the scale that validation data put on the predicted standard
//! deviation. uncertainty.py.

use serde::{Deserialize, Serialize};

use crate::metrics::{STEPS_PER_PX, absolute_error, is_valid};
use crate::options::Distribution;

/// Errors are counted by their ratio to the standard deviation, from 2^-16 to 2^16 of it, in steps of 2 %.
const BINS_PER_DOUBLING: usize = 32;
const DOUBLINGS: usize = 16;
const BINS: usize = 2 * DOUBLINGS * BINS_PER_DOUBLING;
const FITTED_SHARE: f64 = 0.68;
/// Half the width of the interval that holds 68 % of Gaussian errors, in standard deviations: the 84 % quantile.
const GAUSSIAN_INTERVAL: f64 = 0.994_457_883_209_753_1;

const NLL_STEPS_PER_NAT: f32 = (1 << 16) as f32;
const LARGEST_NLL: f32 = (1 << 28) as f32;
const LARGEST_SIGMA_PX: f32 = (1 << 15) as f32;

/// Sums over valid pixels; those of batches add up.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Likelihood {
    /// Valid pixels, standard deviation in 2^-20 px, negative log-likelihood in 2^-16 nat.
    pub sums: [i64; 3],
}

impl Likelihood {
    /// Count one pixel, if its truth is known.
    pub fn count(&mut self, disparity_px: f32, log_variance: f32, true_px: f32, distribution: Distribution) {
        if !is_valid(true_px) {
            return;
        }
        let error_px = absolute_error(disparity_px, true_px);
        let nll = match distribution {
            Distribution::Gaussian => {
                0.5 * (error_px * error_px * (-log_variance).exp() + log_variance + std::f32::consts::TAU.ln())
            }
            Distribution::Laplace => {
                let log_b = 0.5 * (log_variance - std::f32::consts::LN_2);
                error_px * (-log_b).exp() + log_b + std::f32::consts::LN_2
            }
        };
        let at_most = |value: f32, largest: f32| if value.is_nan() { largest } else { value.min(largest) };
        let sigma_px = at_most((0.5 * log_variance).exp(), LARGEST_SIGMA_PX);
        self.sums[0] += 1;
        self.sums[1] += (sigma_px * STEPS_PER_PX).round_ties_even() as i64;
        self.sums[2] += (at_most(nll, LARGEST_NLL) * NLL_STEPS_PER_NAT).round_ties_even() as i64;
    }

    /// Add the sums of other pixels.
    pub fn add(&mut self, other: &Self) {
        for (sum, part) in self.sums.iter_mut().zip(other.sums) {
            *sum += part;
        }
    }

    /// Return the mean standard deviation in px and the mean negative log-likelihood in nats; nothing for no pixel.
    pub fn figures(&self) -> Vec<(&'static str, f64)> {
        let [valid, sigma, nll] = self.sums.map(|sum| sum as f64);
        if self.sums[0] == 0 {
            return Vec::new();
        }
        vec![
            ("mean_sigma_px", sigma / f64::from(STEPS_PER_PX) / valid),
            ("nll_nat", nll / f64::from(NLL_STEPS_PER_NAT) / valid),
        ]
    }
}

/// How many valid pixels have which |error| / sigma.
#[derive(Clone, Debug)]
pub struct ErrorRatios {
    counts: Vec<u64>,
}

impl Default for ErrorRatios {
    fn default() -> Self {
        Self { counts: vec![0; BINS] }
    }
}

impl ErrorRatios {
    /// Count one pixel, if its truth is known.
    pub fn count(&mut self, disparity_px: f32, log_variance: f32, true_px: f32) {
        if !is_valid(true_px) {
            return;
        }
        let error_px = absolute_error(disparity_px, true_px).max(1e-9);
        let doublings = (error_px.ln() - 0.5 * log_variance) / std::f32::consts::LN_2;
        let at = (doublings + DOUBLINGS as f32) * BINS_PER_DOUBLING as f32;
        let last = (BINS - 1) as f32;
        self.counts[if at.is_nan() { last } else { at.clamp(0.0, last) } as usize] += 1;
    }

    /// Add the counts of other pixels.
    pub fn add(&mut self, other: &Self) {
        for (sum, count) in self.counts.iter_mut().zip(&other.counts) {
            *sum += count;
        }
    }

    /// Return the factor on the standard deviation with which the 68 % interval holds 68 % of the errors; 1 for none.
    ///
    /// Levi et al., "Evaluating and calibrating uncertainty prediction in regression tasks", Sensors 2022, section 3.2.
    pub fn fitted_scale(&self, distribution: Distribution) -> f64 {
        let total: u64 = self.counts.iter().sum();
        if total == 0 {
            return 1.0;
        }
        let interval = match distribution {
            Distribution::Gaussian => GAUSSIAN_INTERVAL,
            Distribution::Laplace => -(1.0 - FITTED_SHARE).ln() / std::f64::consts::SQRT_2,
        };
        self.doublings_of_share(FITTED_SHARE * total as f64).exp2() / interval
    }

    /// Return log2 of the ratio below which so many pixels lie, linear within a bin.
    fn doublings_of_share(&self, wanted: f64) -> f64 {
        let end_of = |bin: usize| (bin + 1) as f64 / BINS_PER_DOUBLING as f64 - DOUBLINGS as f64;
        let mut below = 0u64;
        for (bin, &count) in self.counts.iter().enumerate() {
            let within = below + count;
            if within as f64 > wanted {
                if bin == 0 {
                    return end_of(0);
                }
                return end_of(bin - 1) + (wanted - below as f64) / count as f64 / BINS_PER_DOUBLING as f64;
            }
            below = within;
        }
        end_of(BINS - 1)
    }
}

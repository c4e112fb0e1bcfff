//! Accuracy of disparity. Everything is a sum or a count of whole numbers, so that figures merge exactly. metrics.py.

use serde::{Deserialize, Serialize};

const BAD_THRESHOLDS_PX: [f32; 4] = [0.5, 1.0, 2.0, 3.0];
/// KITTI 2015: wrong if off by more than 3 px and by more than 5 % of the truth.
const D1_PX: f32 = 3.0;
const D1_SHARE: f32 = 0.05;
/// Errors are summed as whole multiples of this part of a pixel: rounding is then the same however sums are grouped.
pub const STEPS_PER_PX: f32 = (1 << 20) as f32;
/// The same for squared errors, coarser so that a data set's sum stays below 2^63.
const SQUARED_STEPS_PER_PX2: f32 = (1 << 16) as f32;
const LARGEST_PX: f32 = (1 << 15) as f32;
/// 4096 px off is wrong enough; a prediction that is no number counts as off by the largest too.
const LARGEST_SQUARED_PX2: f32 = (1 << 24) as f32;

/// Counts over any number of valid pixels.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct DisparityErrors {
    /// Valid pixels, error in 2^-20 px, squared error in 2^-16 px^2, bad-0.5, bad-1, bad-2, bad-3, D1.
    pub counts: [i64; 8],
}

impl DisparityErrors {
    /// Count one pixel, if its truth is known.
    pub fn count(&mut self, disparity_px: f32, true_px: f32) {
        if !is_valid(true_px) {
            return;
        }
        let error_px = absolute_error(disparity_px, true_px);
        let squared_px2 = (error_px * error_px).min(LARGEST_SQUARED_PX2);
        self.counts[0] += 1;
        self.counts[1] += (error_px * STEPS_PER_PX).round_ties_even() as i64;
        self.counts[2] += (squared_px2 * SQUARED_STEPS_PER_PX2).round_ties_even() as i64;
        for (count, threshold_px) in self.counts[3..].iter_mut().zip(BAD_THRESHOLDS_PX) {
            *count += i64::from(error_px > threshold_px);
        }
        self.counts[7] += i64::from(error_px > (true_px * D1_SHARE).max(D1_PX));
    }

    /// Add the counts of other pixels.
    pub fn add(&mut self, other: &Self) {
        for (sum, count) in self.counts.iter_mut().zip(other.counts) {
            *sum += count;
        }
    }

    /// Return EPE and RMSE in px, bad-N and D1 in percent; nothing where no pixel was valid.
    pub fn figures(&self) -> Vec<(&'static str, f64)> {
        let [valid, error, squared, bad @ ..] = self.counts;
        if valid == 0 {
            return Vec::new();
        }
        let valid = valid as f64;
        let names = ["bad_0.5_percent", "bad_1_percent", "bad_2_percent", "bad_3_percent", "d1_percent"];
        let mut figures = vec![
            ("epe_px", error as f64 / f64::from(STEPS_PER_PX) / valid),
            ("rmse_px", (squared as f64 / f64::from(SQUARED_STEPS_PER_PX2) / valid).sqrt()),
        ];
        figures.extend(names.into_iter().zip(bad.map(|count| 100.0 * count as f64 / valid)));
        figures
    }

    /// Return the mean absolute error in px; NaN where no pixel was valid.
    pub fn epe_px(&self) -> f64 {
        self.counts[1] as f64 / f64::from(STEPS_PER_PX) / self.counts[0] as f64
    }
}

/// Return true where a disparity is known: finite and above 0.
pub fn is_valid(disparity_px: f32) -> bool {
    disparity_px > 0.0 && disparity_px < f32::INFINITY
}

/// Return the absolute error of a pixel with known truth, at most 2^15 px; the largest where the prediction is no number.
pub fn absolute_error(disparity_px: f32, true_px: f32) -> f32 {
    let error_px = (disparity_px - true_px).abs();
    if error_px.is_nan() { LARGEST_PX } else { error_px.min(LARGEST_PX) }
}

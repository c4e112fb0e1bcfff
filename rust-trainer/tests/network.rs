//! The network, its gradients and its optimisation, held to what PyTorch computes: scripts/write_rust_golden_files.py
//! writes the golden files.

use std::collections::{BTreeMap, HashMap};

use candle_core::{Device, Tensor};
use foundation_stereo_trainer::loss::heteroscedastic_loss;
use foundation_stereo_trainer::metrics::DisparityErrors;
use foundation_stereo_trainer::model::unet::{UNet, UNetSize, Weights};
use foundation_stereo_trainer::optimizer::{
    MovingAverage, Optimizer, clip_factor, gradient_norm, learning_rate_at, variables_of,
};
use foundation_stereo_trainer::options::{Distribution, LossOptions, OptimizerOptions};
use foundation_stereo_trainer::uncertainty::{ErrorRatios, Likelihood};

const SMALL: UNetSize = UNetSize { base_channels: 8, depth: 3 };
const DEEP: UNetSize = UNetSize { base_channels: 4, depth: 5 };

fn golden(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/rust").join(name)
}

fn tensors(name: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(golden(name), &Device::Cpu).unwrap()
}

fn weights(name: &str) -> Weights {
    tensors(name).into_iter().collect()
}

fn json(name: &str) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(golden(name)).unwrap()).unwrap()
}

fn numbers(value: &serde_json::Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

/// Bytes [B, C, h, w], each repeated over 4x4 pixels, cut to a size, as 0..1.
fn repeated(small: &Tensor, height: usize, width: usize) -> Tensor {
    let (batch, channels, h, w) = small.dims4().unwrap();
    let blocks =
        small.reshape((batch, channels, h, 1, w, 1)).unwrap().broadcast_as((batch, channels, h, 4, w, 4)).unwrap();
    let full = blocks.reshape((batch, channels, 4 * h, 4 * w)).unwrap().to_dtype(candle_core::DType::F32).unwrap();
    (full.narrow(2, 0, height).unwrap().narrow(3, 0, width).unwrap().contiguous().unwrap() / 255.0).unwrap()
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Every so many rows and columns.
fn strided(tensor: &Tensor, down: usize, across: usize) -> Vec<f32> {
    let (_, _, height, width) = tensor.dims4().unwrap();
    let values = flat(tensor);
    let rows = (0..values.len() / width).filter(|row| row % height % down == 0);
    rows.flat_map(|row| values[row * width..][..width].iter().copied().step_by(across).collect::<Vec<_>>()).collect()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn weights_have_the_names_and_shapes_of_pythons() {
    for (size, file, count) in [(SMALL, "network.safetensors", 41), (DEEP, "deep.safetensors", 65)] {
        let found: BTreeMap<String, Vec<usize>> =
            weights(file).iter().map(|(name, tensor)| (name.clone(), tensor.dims().to_vec())).collect();
        assert_eq!(found, size.shapes());
        assert_eq!(found.len(), count);
    }
}

#[test]
fn predictions_are_pythons_at_even_odd_and_small_sizes() {
    let network = UNet::new(SMALL, weights("network.safetensors"));
    let expected = tensors("forward.safetensors");
    for (height, width) in [(240, 320), (61, 87), (48, 64)] {
        let prediction = network.forward(&repeated(&expected["small"], height, width)).unwrap();
        let of = |name: &str| flat(&expected[&format!("{name}.{height}x{width}")]);
        assert_eq!(prediction.disparity_px.dims(), [1, 1, height, width]);
        let disparity = largest_difference(&strided(&prediction.disparity_px, 4, 3), &of("disparity_px"));
        let log_variance = largest_difference(&strided(&prediction.log_variance, 4, 3), &of("log_variance"));
        println!("{height}x{width}: disparity {disparity:.1e} px, log-variance {log_variance:.1e}");
        assert!(disparity < 1e-4, "{height}x{width}: {disparity} px");
        assert!(log_variance < 1e-4, "{height}x{width}: {log_variance}");
    }
}

#[test]
fn all_65_gradients_are_pytorchs_at_a_size_with_odd_halves() {
    let expected = tensors("gradients.safetensors");
    let truth_px = &expected["truth_px"];
    let pair = repeated(&expected["small"], 75, 91);
    for (name, distribution) in [("laplace", Distribution::Laplace), ("gaussian", Distribution::Gaussian)] {
        let variables = variables_of(&weights("deep.safetensors")).unwrap();
        let prediction = UNet::of_variables(DEEP, &variables).forward(&pair).unwrap();
        let options = LossOptions { loss: distribution, ..LossOptions::default() };
        let loss = heteroscedastic_loss(&prediction, truth_px, &options).unwrap();
        let mean = (loss.total / loss.valid).unwrap();
        let difference = (mean.to_scalar::<f32>().unwrap() - flat(&expected[&format!("loss.{name}")])[0]).abs();
        assert!(difference < 1e-5, "{name}: loss off by {difference}");
        let gradients = mean.backward().unwrap();
        let mut worst = 0f32;
        for (weight, variable) in &variables {
            let expected = flat(&expected[&format!("{name}.{weight}")]);
            let largest = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
            let relative = largest_difference(&flat(gradients.get(variable).unwrap()), &expected) / largest;
            assert!(relative < 1e-3, "{name} {weight}: {relative}");
            worst = worst.max(relative);
        }
        println!("{name}: {} gradients, the worst off by {worst:.1e} of its largest number", variables.len());
        assert_eq!(variables.len(), 65);
    }
}

#[test]
fn twenty_steps_have_pytorchs_losses_norms_and_average() {
    let (given, expected) = (tensors("steps.safetensors"), json("steps.json"));
    let (losses, norms, rates) =
        (numbers(&expected["losses"]), numbers(&expected["norms"]), numbers(&expected["rates"]));
    let options = OptimizerOptions { learning_rate: 2e-3, ..OptimizerOptions::default() };
    let variables = variables_of(&weights("steps_first.safetensors")).unwrap();
    let mut optimizer = Optimizer::new(&variables, &options).unwrap();
    let mut average = MovingAverage::new(&variables, options.ema_decay).unwrap();
    let pairs = repeated(&given["small"], 48, 64);
    for (step, expected_loss) in losses.iter().enumerate() {
        let first = 2 * step % 4;
        let prediction = UNet::of_variables(SMALL, &variables).forward(&pairs.narrow(0, first, 2).unwrap()).unwrap();
        let truth_px = given["truth_px"].narrow(0, first, 2).unwrap();
        let loss = heteroscedastic_loss(&prediction, &truth_px, &LossOptions::default()).unwrap();
        let mean = (loss.total / loss.valid).unwrap();
        let gradients = mean.backward().unwrap();
        let norm = gradient_norm(&variables, &gradients).unwrap();
        let rate = learning_rate_at(step, losses.len(), &options);
        optimizer.step(&variables, &gradients, clip_factor(norm, options.clip_norm), rate).unwrap();
        average.update(&variables).unwrap();
        let mean = f64::from(mean.to_scalar::<f32>().unwrap());
        println!(
            "step {step}: loss {mean:.6} ({:+.1e}), norm {norm:.4} ({:+.1e})",
            mean - expected_loss,
            norm / norms[step] - 1.0
        );
        assert!((mean - expected_loss).abs() < 1e-3, "step {step}: loss {mean}, not {expected_loss}");
        assert!((norm / norms[step] - 1.0).abs() < 5e-3, "step {step}: norm {norm}, not {}", norms[step]);
        assert!((rate - rates[step]).abs() < 1e-9);
    }
    for (name, expected) in given.iter().filter_map(|(name, tensor)| Some((name.strip_prefix("average.")?, tensor))) {
        let difference = largest_difference(&flat(&average.weights[name]), &flat(expected));
        assert!(difference < 1e-3, "average of {name}: off by {difference}");
    }
}

#[test]
fn figures_are_pythons() {
    let (given, expected) = (tensors("metrics.safetensors"), json("metrics.json"));
    let [truth, disparity, log_variance] = ["truth_px", "disparity_px", "log_variance"].map(|name| flat(&given[name]));
    let (mut errors, mut ratios) = (DisparityErrors::default(), ErrorRatios::default());
    for ((&truth, &disparity), &log_variance) in truth.iter().zip(&disparity).zip(&log_variance) {
        errors.count(disparity, truth);
        ratios.count(disparity, log_variance, truth);
    }
    assert_eq!(errors.counts.map(|count| count as f64).to_vec(), numbers(&expected["counts"]));
    for (name, value) in errors.figures() {
        assert!((value - expected["figures"][name].as_f64().unwrap()).abs() < 1e-9, "{name}");
    }
    for (name, distribution) in [("laplace", Distribution::Laplace), ("gaussian", Distribution::Gaussian)] {
        let mut likelihood = Likelihood::default();
        for ((&truth, &disparity), &log_variance) in truth.iter().zip(&disparity).zip(&log_variance) {
            likelihood.count(disparity, log_variance, truth, distribution);
        }
        for (figure, value) in likelihood.figures() {
            let expected = expected["likelihood"][name][figure].as_f64().unwrap();
            assert!((value / expected - 1.0).abs() < 1e-5, "{name} {figure}: {value}, not {expected}");
        }
        let scale = ratios.fitted_scale(distribution);
        assert!((scale - expected["scales"][name].as_f64().unwrap()).abs() < 1e-3, "{name}: {scale}");
    }
}

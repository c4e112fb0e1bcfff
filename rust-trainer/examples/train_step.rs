//! Time training steps on random numbers: `cargo run --release --example train_step -- [batch size] [steps]`.
//!
//! Prints seconds of all cores per sample, as benchmarks/rust_training.py reads them.

use std::time::Instant;

use candle_core::{Device, Tensor};
use foundation_stereo_trainer::loss::heteroscedastic_loss;
use foundation_stereo_trainer::model::unet::{UNet, UNetSize};
use foundation_stereo_trainer::optimizer::{MovingAverage, Optimizer, clip_factor, gradient_norm, variables_of};
use foundation_stereo_trainer::options::{LossOptions, OptimizerOptions};

fn cpu_seconds() -> f64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the call fills what it is given.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 * 1e-6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

fn main() -> candle_core::Result<()> {
    foundation_stereo_trainer::memory::keep_candle_from_spinning();
    foundation_stereo_trainer::memory::keep_freed_memory();
    let numbers: Vec<usize> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let (batch, steps) = (numbers.first().copied().unwrap_or(8), numbers.get(1).copied().unwrap_or(5));
    let size = UNetSize { base_channels: 32, depth: 5 };
    let variables = variables_of(&size.fresh_weights(0)?)?;
    let mut optimizer = Optimizer::new(&variables, &OptimizerOptions::default())?;
    let mut average = MovingAverage::new(&variables, 0.995)?;
    let pair = Tensor::rand(0f32, 1f32, (batch, 6, 240, 320), &Device::Cpu)?;
    let truth_px = Tensor::rand(1f32, 60f32, (batch, 1, 240, 320), &Device::Cpu)?;
    let mut parts = [0f64; 3];
    for step in 0..=steps {
        let mut clock = (cpu_seconds(), 0);
        let mut lap = |parts: &mut [f64; 3]| {
            let now = cpu_seconds();
            if step > 0 {
                parts[clock.1] += now - clock.0;
            }
            clock = (now, clock.1 + 1);
        };
        let began = Instant::now();
        let prediction = UNet::of_variables(size, &variables).forward(&pair)?;
        let loss = heteroscedastic_loss(&prediction, &truth_px, &LossOptions::default())?;
        lap(&mut parts);
        let gradients = (loss.total / loss.valid)?.backward()?;
        lap(&mut parts);
        let norm = gradient_norm(&variables, &gradients)?;
        optimizer.step(&variables, &gradients, clip_factor(norm, 1.0), 1e-3)?;
        average.update(&variables)?;
        lap(&mut parts);
        eprintln!("step {step}: {:.3} s", began.elapsed().as_secs_f64());
    }
    let [forward, backward, update] = parts.map(|seconds| seconds / (steps * batch) as f64);
    println!(
        "{:.4} CPU-s a sample: forward {forward:.4}, backward {backward:.4}, update {update:.4}",
        forward + backward + update
    );
    Ok(())
}

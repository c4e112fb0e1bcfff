//! The network, and the operations that Candle lacks or has only slowly.

mod convolution;
mod group_norm;
mod slices;
pub mod unet;
mod upsample;

pub use convolution::convolve;
pub use group_norm::group_norm_relu;
pub use upsample::upsample_and_join;

//! From files to batches.

pub mod augment;
pub mod batch;
pub mod build_cache;
pub mod cache;
pub mod codecs;
pub mod fsd;
pub mod kernels;
pub mod loader;
pub mod npz;
pub mod prefetch;
pub mod random;
pub mod sample;

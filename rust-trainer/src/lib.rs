//! Training of the stereo U-Net in Candle: the same data, cache, network, loss and checkpoints as the Python program's.

pub mod data;
pub mod errors;
pub mod files;
pub mod options;
pub mod stop;
pub mod model;
pub mod loss;
pub mod metrics;
pub mod optimizer;
pub mod uncertainty;

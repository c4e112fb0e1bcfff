//! Training of the stereo U-Net in Candle: the same data, cache, network, loss and checkpoints as the Python program's.

pub mod checkpoint;
pub mod data;
pub mod errors;
pub mod files;
pub mod loss;
pub mod memory;
pub mod metrics;
pub mod model;
pub mod optimizer;
pub mod options;
pub mod preview;
pub mod record;
pub mod start;
pub mod stop;
pub mod train;
pub mod training_state;
pub mod uncertainty;

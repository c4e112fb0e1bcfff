//! `foundation-stereo-train`: train, or fill a cache. A mistake of the user's gives one line and exit status 2.

use std::process::ExitCode;

use foundation_stereo_trainer::data::build_cache::build_cache;
use foundation_stereo_trainer::errors::{Result, on_one_line};
use foundation_stereo_trainer::memory::{keep_candle_from_spinning, keep_freed_memory};
use foundation_stereo_trainer::options::{COMMAND, parse};
use foundation_stereo_trainer::start::resolve;
use foundation_stereo_trainer::stop::StopSignals;
use foundation_stereo_trainer::train::train;

fn main() -> ExitCode {
    keep_candle_from_spinning();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{COMMAND}: {}", on_one_line(&error.to_string()));
            ExitCode::from(error.exit_status())
        }
    }
}

fn run() -> Result<()> {
    let explicit = parse(std::env::args_os().skip(1))?;
    keep_freed_memory();
    let stop = StopSignals::listen()?;
    if explicit.options.cache.build_cache_only {
        return build_cache(&explicit.options, &stop).map(|_| ());
    }
    train(resolve(&explicit)?, &stop)
}

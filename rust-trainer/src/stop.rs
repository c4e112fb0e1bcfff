//! Ctrl-C and termination: the first asks for an end at a safe point, a second one insists.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::errors::{Error, Result};

/// Which signal asked this process to stop.
#[derive(Clone, Debug, Default)]
pub struct StopSignals {
    number: Arc<AtomicUsize>,
}

impl StopSignals {
    /// Listen to SIGINT and SIGTERM from now on.
    pub fn listen() -> Result<Self> {
        let signals = Self::default();
        let again = Arc::new(AtomicBool::new(false));
        for number in [SIGINT, SIGTERM] {
            // In this order: the first signal finds `again` unset.
            flag::register_conditional_shutdown(number, 128 + number, again.clone())
                .and_then(|_| flag::register(number, again.clone()))
                .and_then(|_| flag::register_usize(number, signals.number.clone(), number as usize))
                .map_err(|error| Error::User(format!("no signal can be listened to ({error})")))?;
        }
        Ok(signals)
    }

    /// Return true once a signal has come.
    pub fn requested(&self) -> bool {
        self.number.load(Ordering::Relaxed) != 0
    }

    /// Return the end of a command that a signal asked for: exit status 128 + its number.
    pub fn error(&self, message: String) -> Error {
        Error::Stopped { message, exit_status: 128 + self.number.load(Ordering::Relaxed) as u8 }
    }
}

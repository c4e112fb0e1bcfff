//! The errors that a user can mend, and how a command answers them: one line on standard error, exit status 2.

use std::io;
use std::path::{Path, PathBuf};

/// What every fallible function of this crate returns.
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something the user asked for cannot be done as asked.
    #[error("{0}")]
    User(String),
    /// A file or folder of the data set is not as it should be; the message names it.
    #[error("{0}")]
    Data(String),
    /// A cache entry is there but cannot be used; with its source at hand it can be rebuilt.
    #[error("{0}")]
    CorruptEntry(String),
    /// There is no cache entry where only entries are read.
    #[error("{0}")]
    MissingEntry(String),
    /// An entry cannot be written without leaving the cache's own folder.
    #[error("{0}")]
    RefusedEntry(String),
    /// The system refuses a path: full, read-only, forbidden.
    #[error("{}: {}", path.display(), system_message(source))]
    Io { path: PathBuf, source: io::Error },
    /// Training was asked to stop by a signal, and everything is saved.
    #[error("{message}")]
    Stopped { message: String, exit_status: u8 },
    /// Candle refuses an operation: a mistake of ours.
    #[error("internal error: {0}")]
    Candle(#[from] candle_core::Error),
}

impl Error {
    /// Return an error of the system about a path.
    pub fn io(path: impl AsRef<Path>, source: io::Error) -> Self {
        Self::Io { path: path.as_ref().to_path_buf(), source }
    }

    /// Return true for errors that `--skip-bad` may leave out: one sample cannot be read.
    pub fn is_bad_sample(&self) -> bool {
        matches!(self, Self::Data(_) | Self::CorruptEntry(_))
    }

    /// Return true where a disk is full.
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Io { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            _ => false,
        }
    }

    /// Return the exit status of a command that ends with this error.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Stopped { exit_status, .. } => *exit_status,
            Self::Candle(_) => 1,
            _ => 2,
        }
    }
}

/// Return the system's own words, without the number that Rust adds.
fn system_message(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_string(),
        None => text,
    }
}

/// Return a message on one line.
pub fn on_one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

//! Files that are complete or absent, whatever happens while they are written.
//!
//! The names and locks are those of the Python program, so that each removes what a killed writer of the other left,
//! and neither removes what the other is writing.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use crate::errors::{Error, Result};

/// Begins the name of a file that is being written: `.incomplete-<machine>-<random>`.
const TEMPORARY_PREFIX: &str = ".incomplete-";
/// A temporary file of another machine is taken for abandoned after a day: a write takes seconds.
const ABANDONED_AFTER: Duration = Duration::from_secs(24 * 3600);

/// How a file comes into place.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// Survive a power cut as well: the bytes reach the disk before the name does.
    pub durable: bool,
    /// Replace what is there already; else the first of two writers wins.
    pub replace: bool,
}

/// Write a file that later runs depend on.
pub const DURABLE: Manner = Manner { durable: true, replace: true };
/// Write a file that can be made again.
pub const QUICK: Manner = Manner { durable: false, replace: true };

/// Write `parts`, one after the other, to a new file in the folder of `path`, then rename it to `path`.
///
/// A reader sees the old file or the new one, never a part. On any failure the temporary file is removed and the old
/// file stays. Where `path` is a symbolic link, the link is replaced.
pub fn write_atomically(path: &Path, parts: &[&[u8]], manner: Manner) -> Result<()> {
    write_parts(path, parts, manner).map_err(|error| Error::io(path, error))
}

fn write_parts(path: &Path, parts: &[&[u8]], manner: Manner) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let (temporary, mut file) = locked_temporary_file(folder)?;
    let written = (|| {
        for part in parts {
            file.write_all(part)?;
        }
        if manner.durable {
            file.sync_all()?;
        }
        if manner.replace { fs::rename(&temporary, path) } else { rename_unless_present(&temporary, path) }
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written?;
    drop(file); // and with it the lock
    if manner.durable {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

fn rename_unless_present(temporary: &Path, path: &Path) -> io::Result<()> {
    match fs::hard_link(temporary, path) {
        Ok(()) => fs::remove_file(temporary),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(error),
        // A disk without hard links.
        Err(_) if path.exists() => Err(io::ErrorKind::AlreadyExists.into()),
        Err(_) => fs::rename(temporary, path),
    }
}

/// Create an empty file that others see to be in use for as long as it is open.
fn locked_temporary_file(folder: &Path) -> io::Result<(PathBuf, File)> {
    loop {
        // The temporary name does not contain the final one, which may be as long as the file system allows.
        let temporary = folder.join(format!("{TEMPORARY_PREFIX}{}-{}", machine(), random_hex(6)?));
        let file = OpenOptions::new().create_new(true).read(true).write(true).mode(0o666).open(&temporary)?;
        // Some network disks have no locks. Then no one else can lock the file either, and it is safe for a day.
        let _ = file.lock();
        if file.metadata()?.nlink() > 0 {
            return Ok((temporary, file));
        } // else it was taken for abandoned between its creation and its lock
    }
}

/// Remove the temporary files in `folder` whose writers are gone, and return how many.
///
/// A writer holds a lock on its file, and the system releases the lock when the writer dies, however it dies. So a
/// file of this machine that can be locked has no writer. The locks of another machine cannot always be seen on a
/// network disk: its files go when they are a day old.
pub fn remove_abandoned(folder: &Path) -> Result<usize> {
    let entries = fs::read_dir(folder).map_err(|error| Error::io(folder, error))?;
    let mut removed = 0;
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(writer) = name.to_str().and_then(machine_of) else { continue };
        let Ok(metadata) = fs::symlink_metadata(entry.path()) else { continue };
        let old = metadata
            .modified()
            .ok()
            .and_then(|changed| SystemTime::now().duration_since(changed).ok())
            .is_some_and(|age| age > ABANDONED_AFTER);
        if metadata.is_file() && (old || writer == machine()) {
            // What goes away in between was finished, or removed by another; what belongs to another user stays.
            removed += usize::from(remove_unless_locked(&entry.path(), old).unwrap_or(false));
        }
    }
    Ok(removed)
}

fn remove_unless_locked(temporary: &Path, old: bool) -> io::Result<bool> {
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOFOLLOW).open(temporary)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(false),
        Err(TryLockError::Error(_)) if old => {} // a disk without locks, where age alone decides
        Err(TryLockError::Error(_)) => return Ok(false),
    }
    fs::remove_file(temporary)?;
    Ok(true)
}

/// Return which machine wrote a temporary file; None for the name of any other file.
fn machine_of(name: &str) -> Option<&str> {
    let (machine, random) = name.strip_prefix(TEMPORARY_PREFIX)?.split_once('-')?;
    let is_hex = |text: &str| text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    (machine.len() == 8 && random.len() == 12 && is_hex(machine) && is_hex(random)).then_some(machine)
}

/// Return eight hex digits of this machine since it was started: names may repeat in a network, boots do not.
fn machine() -> &'static str {
    static MACHINE: OnceLock<String> = OnceLock::new();
    MACHINE.get_or_init(|| {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        if boot.len() >= 8 { boot[..8].to_string() } else { hash_of_host_name() }
    })
}

fn hash_of_host_name() -> String {
    use sha2::Digest;
    let mut name = vec![0u8; 256];
    // SAFETY: the buffer is as long as the call is told.
    unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len()) };
    let end = name.iter().position(|&b| b == 0).unwrap_or(name.len());
    to_hex(&sha2::Sha256::digest(&name[..end]))[..8].to_string()
}

/// Return hexadecimal digits of so many random bytes.
pub fn random_hex(bytes: usize) -> io::Result<String> {
    let mut random = vec![0; bytes];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    Ok(to_hex(&random))
}

/// Return bytes as hexadecimal digits.
pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Return free and total bytes of the disk that holds `folder`.
pub fn disk_space(folder: &Path) -> Result<(u64, u64)> {
    use std::os::unix::ffi::OsStrExt;
    let name = std::ffi::CString::new(folder.as_os_str().as_bytes())
        .map_err(|_| Error::User(format!("{}: a path cannot hold a zero byte", folder.display())))?;
    let mut facts = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: `name` ends with a zero byte, and `facts` is only read where the call filled it.
    let facts = unsafe {
        if libc::statvfs(name.as_ptr(), facts.as_mut_ptr()) != 0 {
            return Err(Error::io(folder, io::Error::last_os_error()));
        }
        facts.assume_init()
    };
    Ok((facts.f_bavail * facts.f_frsize, facts.f_blocks * facts.f_frsize))
}

/// Return a number of bytes as people write it: 461GB.
pub fn format_size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["", "k", "M", "G", "T"] {
        if value < 999.5 {
            return match value {
                v if v < 9.995 => format!("{v:.2}{unit}B"),
                v if v < 99.95 => format!("{v:.1}{unit}B"),
                v => format!("{v:.0}{unit}B"),
            };
        }
        value /= 1000.0;
    }
    format!("{value:.1}PB")
}

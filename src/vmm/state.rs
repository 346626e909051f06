//! The VMM state of a snapshot on disk: `config.json` and `state.json`, and `memory-ranges` where RAM is the VMM's own.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::config::MachineDescription;
use super::restore::{self, RewriteError};
use crate::host::spawn::Invoker;

/// What Cloud Hypervisor writes: the VM's configuration, its devices and vCPUs, its RAM unless that is a file.
const CONFIG: &str = "config.json";
const STATE: &str = "state.json";
const MEMORY: &str = "memory-ranges";

/// A `config.json` has some 3 KiB.
const CONFIG_LIMIT: u64 = 1 << 20;

/// Why VMM state cannot be kept or used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A file or directory.
    #[error("cannot {action} {path:?}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The VMM said that it was done, and a file is missing or empty.
    #[error("the VMM wrote no {path:?}")]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// Longer than any that a VMM writes.
    #[error("{path:?} has more than {CONFIG_LIMIT} bytes")]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// It does not fit.
    #[error(transparent)]
    Rewrite(#[from] RewriteError),
    /// The thread that synced it panicked.
    #[error("syncing the VMM state ended early")]
    Died(#[source] io::Error),
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    move |source| StateError::Io { action, path: path.to_owned(), source }
}

/// A directory at `directory` that the invoking user can write and that no VMM has written to: `vm.snapshot` does not
/// overwrite what an earlier attempt left. What else is in it stays, for a snapshot has its disks and RAM there too.
///
/// # Errors
/// [`StateError::Io`].
pub fn make_directory(directory: &Path, invoker: &Invoker) -> Result<(), StateError> {
    remove_files(directory)?;
    match fs::DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            return Err(io_error("make", directory)(error));
        }
        _ => {}
    }
    give_to_invoker(directory, invoker)
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn remove_files(directory: &Path) -> Result<(), StateError> {
    for name in [CONFIG, STATE, MEMORY] {
        let path = directory.join(name);
        gone(fs::remove_file(&path)).map_err(io_error("remove", &path))?;
    }
    Ok(())
}

/// Removes a directory of VMM state, if it is there.
///
/// # Errors
/// [`StateError::Io`], also if anything else is in it.
pub fn remove(directory: &Path) -> Result<(), StateError> {
    remove_files(directory)?;
    gone(fs::remove_dir(directory)).map_err(io_error("remove", directory))
}

/// Makes a saved VMM state durable; the VMM does not. Blocks.
///
/// # Errors
/// [`StateError::Missing`], [`StateError::Io`].
pub fn sync(directory: &Path) -> Result<(), StateError> {
    for name in [CONFIG, STATE] {
        let path = directory.join(name);
        let length = fs::metadata(&path).map(|metadata| metadata.len());
        if !length.is_ok_and(|length| length > 0) {
            return Err(StateError::Missing { path });
        }
    }
    for name in [CONFIG, STATE, MEMORY] {
        let path = directory.join(name);
        // Disks and RAM of the snapshot are copied there meanwhile, by those who sync them.
        gone(File::open(&path).and_then(|file| file.sync_all())).map_err(io_error("sync", &path))?;
    }
    let parent = directory.parent().unwrap_or(directory);
    for path in [directory, parent] {
        File::open(path).and_then(|file| file.sync_all()).map_err(io_error("sync", path))?;
    }
    Ok(())
}

/// Makes `directory` one that `vm.restore` makes `machine` of: the state of `source` with its configuration rewritten.
/// `source` is only read.
///
/// # Errors
/// [`StateError`].
pub fn prepare_restore(
    source: &Path,
    directory: &Path,
    machine: &MachineDescription,
    invoker: &Invoker,
) -> Result<(), StateError> {
    make_directory(directory, invoker)?;
    let config = restore::rewrite(&read_config(&source.join(CONFIG))?, machine)?;
    let path = directory.join(CONFIG);
    let mut file = create(&path)?;
    file.write_all(&config).map_err(io_error("write", &path))?;
    give_to_invoker(&path, invoker)?;
    let (from, to) = (source.join(STATE), directory.join(STATE));
    let mut original = File::open(&from).map_err(io_error("open", &from))?;
    io::copy(&mut original, &mut create(&to)?).map_err(io_error("copy", &from))?;
    give_to_invoker(&to, invoker)?;
    let memory = source.join(MEMORY);
    if memory.try_exists().map_err(io_error("look at", &memory))? {
        // As large as RAM, and read only.
        let link = directory.join(MEMORY);
        symlink(&memory, &link).map_err(io_error("link", &link))?;
    }
    Ok(())
}

fn read_config(path: &Path) -> Result<Vec<u8>, StateError> {
    use io::Read;
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(CONFIG_LIMIT + 1).read_to_end(&mut bytes))
        .map_err(io_error("read", path))?;
    if bytes.len() as u64 > CONFIG_LIMIT {
        Err(StateError::TooLong { path: path.to_owned() })
    } else {
        Ok(bytes)
    }
}

fn create(path: &Path) -> Result<File, StateError> {
    let flags = OFlags::NOFOLLOW.bits().cast_signed();
    let mut options = fs::OpenOptions::new();
    options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(flags)
        .open(path)
        .map_err(io_error("make", path))
}

/// Under sudo the VMM is another user than nixbox.
fn give_to_invoker(path: &Path, invoker: &Invoker) -> Result<(), StateError> {
    if !invoker.is_other() {
        return Ok(());
    }
    chown(path, Some(invoker.uid()), Some(invoker.gid())).map_err(io_error("give to the invoking user", path))
}

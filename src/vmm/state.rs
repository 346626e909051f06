//! The files that `vm.snapshot` writes and `vm.restore` reads (v51 to v53): `config.json`, `state.json`, and
//! `memory-ranges` where the VMM allocated the RAM itself. All functions here block.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::config::MachineDescription;
use super::restore::{self, RewriteError};
use super::saved::{self, SavedStateError};
use crate::host::spawn::Invoker;
use crate::world::Cpuid;

/// The file with the VM's configuration.
const CONFIG: &str = "config.json";
/// The file with the state of the VM's devices and vCPUs.
const STATE: &str = "state.json";
/// The file with the VM's RAM. It is written only if the VMM allocated the RAM itself.
const MEMORY: &str = "memory-ranges";

/// The longest `config.json` that is read, in bytes. The `config.json` of a VM that nixbox makes has about 3 KiB.
const CONFIG_LIMIT: u64 = 1 << 20;
/// The longest `state.json` that is read, in bytes. Each vCPU takes about 20 KiB of it.
const STATE_LIMIT: u64 = 64 << 20;

/// Why VMM state cannot be kept or used.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("cannot {action} {path:?}")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("the VMM reported a finished snapshot, but {path:?} is missing or empty")]
    Missing { path: PathBuf },
    #[error("{path:?} has more than {limit} bytes, which no file of this kind has")]
    TooLong { path: PathBuf, limit: u64 },
    #[error(transparent)]
    Rewrite(#[from] RewriteError),
    #[error(transparent)]
    Saved(#[from] SavedStateError),
    #[error("syncing the VMM state ended early")]
    Died(#[source] io::Error),
}

pub(super) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    move |source| StateError::Io { action, path: path.to_owned(), source }
}

/// Makes `directory` if it does not exist, gives it to the invoking user, and removes files of VMM state from it,
/// because `vm.snapshot` does not overwrite the files of an earlier attempt. Other files stay, because the disks and
/// RAM of a snapshot lie in the same directory.
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

pub(super) fn gone(result: io::Result<()>) -> io::Result<()> {
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

/// Removes a directory of VMM state, if it exists.
///
/// # Errors
/// [`StateError::Io`], also if the directory contains anything else.
pub fn remove(directory: &Path) -> Result<(), StateError> {
    remove_files(directory)?;
    gone(fs::remove_dir(directory)).map_err(io_error("remove", directory))
}

/// Syncs saved VMM state to the disk, because the VMM does not do that.
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
        // Only the files of VMM state are synced. Disks and RAM may be copied to the same directory meanwhile, and the
        // copy syncs them.
        gone(File::open(&path).and_then(|file| file.sync_all())).map_err(io_error("sync", &path))?;
    }
    let parent = directory.parent().unwrap_or(directory);
    for path in [directory, parent] {
        File::open(path).and_then(|file| file.sync_all()).map_err(io_error("sync", path))?;
    }
    Ok(())
}

/// What CPUID says in the guest whose state is in this directory.
///
/// # Errors
/// [`StateError`].
pub fn cpuid(directory: &Path) -> Result<Option<Cpuid>, StateError> {
    Ok(saved::cpuid(&read(&directory.join(STATE), STATE_LIMIT)?)?)
}

/// What becomes of the shares that a saved VM has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SavedShares {
    /// The machine has the same.
    Kept,
    /// The machine has none, and they are left out of the copies.
    LeftOut,
}

/// Fills `directory` with copies of the state and the configuration in `source`. `vm.restore` from them makes `machine`, whose
/// guest's monotonic clock goes on from where it stood. Nothing in `source` is changed.
///
/// # Errors
/// [`StateError`].
pub fn prepare_restore(
    source: &Path,
    directory: &Path,
    machine: &MachineDescription,
    shares: SavedShares,
    invoker: &Invoker,
) -> Result<(), StateError> {
    make_directory(directory, invoker)?;
    let mut config = read(&source.join(CONFIG), CONFIG_LIMIT)?;
    let mut state = read(&source.join(STATE), STATE_LIMIT)?;
    if shares == SavedShares::LeftOut {
        let (rest, ids) = restore::leave_out_shares(&config)?;
        (config, state) = (rest, saved::without_devices(&state, &ids)?);
    }
    let (config, state) = (restore::rewrite(&config, machine)?, saved::with_continuous_clock(&state)?);
    for (name, bytes) in [(CONFIG, config), (STATE, state)] {
        let path = directory.join(name);
        create(&path)?.write_all(&bytes).map_err(io_error("write", &path))?;
        give_to_invoker(&path, invoker)?;
    }
    let memory = source.join(MEMORY);
    if memory.try_exists().map_err(io_error("look at", &memory))? {
        // The file is linked and not copied, because it is as large as the RAM and the VMM only reads it.
        let link = directory.join(MEMORY);
        symlink(&memory, &link).map_err(io_error("link", &link))?;
    }
    Ok(())
}

fn read(path: &Path, limit: u64) -> Result<Vec<u8>, StateError> {
    use io::Read;
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(limit + 1).read_to_end(&mut bytes))
        .map_err(io_error("read", path))?;
    if bytes.len() as u64 > limit {
        Err(StateError::TooLong { path: path.to_owned(), limit })
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

/// Gives a file to the user that the VMM runs as. Under sudo, nixbox itself runs as another user.
pub(super) fn give_to_invoker(path: &Path, invoker: &Invoker) -> Result<(), StateError> {
    if !invoker.is_other() {
        return Ok(());
    }
    chown(path, Some(invoker.uid()), Some(invoker.gid())).map_err(io_error("give to the invoking user", path))
}

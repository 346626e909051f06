//! The lock of a workspace: one nixbox changes something at a time, and the others say who it is.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fs2::FileExt;
use serde::{Deserialize, Serialize};

use crate::files::{FileError, Folder};
use crate::host::clock::utc;

/// The file of the lock, in the state of a workspace.
pub(super) const LOCK_FILE: &str = "lock";
/// How long a child may keep the lock of a dead nixbox: from its fork to its exec.
const BEQUEST_LIMIT: Duration = Duration::from_secs(2);
/// More than the holder of a lock writes into its file.
const LOCK_LIMIT: u64 = 4096;

/// Why the lock of the workspace was not taken.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("another nixbox is at work in this workspace: {}", describe(.0.as_ref()))]
    Locked(Option<LockHolder>),
    #[error(transparent)]
    File(#[from] FileError),
}

fn describe(holder: Option<&LockHolder>) -> String {
    match holder {
        Some(holder) => {
            let seconds = now_ms().saturating_sub(holder.since_ms) / 1000;
            let since = utc(holder.since_ms);
            format!("process {} runs `{}` since {since}, {seconds} s ago", holder.pid, holder.operation)
        }
        None => "it has not written yet what it runs".to_owned(),
    }
}

/// The process that holds the lock of a workspace, as the lock's file says. The file is for people: the kernel keeps the
/// lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockHolder {
    /// Its process id.
    pub pid: u32,
    /// The command that it runs.
    pub operation: String,
    /// When it took the lock: milliseconds since 1970, UTC.
    pub since_ms: u64,
}

/// An exclusive lock on a workspace. It is released when dropped, and by the kernel when the process ends.
#[derive(Debug)]
pub struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Both results may be dropped: the text in the file has no meaning without the lock, and the lock ends with the
        // handle of the file in any case.
        drop(self.0.set_len(0));
        drop(FileExt::unlock(&self.0));
    }
}

/// Takes the lock of the workspace with this state for an operation, without waiting for another nixbox. A nixbox that was
/// killed while it started a daemon leaves the lock to a child that has not become the daemon yet. This call waits until the
/// child has, so that the daemon can be found afterwards.
///
/// # Errors
/// [`LockError::Locked`] with the process that has the lock.
pub(super) fn lock(state: &Folder, operation: &str) -> Result<Lock, LockError> {
    let path = state.path_of(LOCK_FILE);
    let mut file = match state.file_to_write(LOCK_FILE)? {
        Some(file) => file,
        None => make_lock_file(state)?,
    };
    let deadline = Instant::now() + BEQUEST_LIMIT;
    loop {
        match FileExt::try_lock_exclusive(&file) {
            Ok(()) => break,
            Err(error) if error.raw_os_error() == fs2::lock_contended_error().raw_os_error() => {
                let holder = read_holder(&mut file);
                if holder.as_ref().is_none_or(is_alive) || Instant::now() > deadline {
                    return Err(LockError::Locked(holder));
                }
                // No event reports an exec.
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(error) => return Err(FileError::system("lock", path)(error).into()),
        }
    }
    let holder = LockHolder { pid: std::process::id(), operation: operation.to_owned(), since_ms: now_ms() };
    let written = serde_json::to_vec(&holder)
        .map_err(io::Error::from)
        .and_then(|text| file.set_len(0).and_then(|()| file.write_all(&text)));
    written.map_err(FileError::system("write", path))?;
    Ok(Lock(file))
}

/// The process that is at work in the workspace. This call does not take the lock, which would keep other commands
/// from taking it.
///
/// # Errors
/// If the file of the lock cannot be read.
pub(super) fn holder(state: &Folder) -> Result<Option<LockHolder>, LockError> {
    let Some(mut file) = state.file_to_write(LOCK_FILE)? else {
        return Ok(None);
    };
    let path = state.path_of(LOCK_FILE);
    let inode = file.metadata().map_err(FileError::system("examine", path))?.ino();
    let locks = Path::new("/proc/locks");
    let locks = std::fs::read_to_string(locks).map_err(FileError::system("read", locks))?;
    // `1: FLOCK  ADVISORY  WRITE 1234 08:01:567 0 EOF`: process 1234 holds inode 567 (proc_locks(5)).
    let holder = |line: &str| -> Option<u32> {
        let words: Vec<_> = line.split_whitespace().collect();
        let locked: u64 = words.get(5)?.rsplit(':').next()?.parse().ok()?;
        let pid = words.get(4)?.parse().ok()?;
        (words.get(1) == Some(&"FLOCK") && locked == inode).then_some(pid)
    };
    let pids: Vec<u32> = locks.lines().filter_map(holder).collect();
    if pids.is_empty() {
        return Ok(None);
    }
    // The text in the file outlives its writer, so it counts only if the kernel names the same process.
    Ok(read_holder(&mut file).filter(|holder| pids.contains(&holder.pid)))
}

/// If two processes make the file at once, both open the file of the first.
fn make_lock_file(state: &Folder) -> Result<File, FileError> {
    match state.new_file(LOCK_FILE) {
        Ok(file) => Ok(file),
        Err(error) if error.is(io::ErrorKind::AlreadyExists) => {
            let gone = || {
                FileError::system("open", state.path_of(LOCK_FILE))(io::Error::from(io::ErrorKind::NotFound))
            };
            state.file_to_write(LOCK_FILE)?.ok_or_else(gone)
        }
        Err(error) => Err(error),
    }
}

/// Makes the file of the lock, if it is missing.
pub(super) fn make_file(state: &Folder) -> Result<(), FileError> {
    state.write_new(LOCK_FILE, b"").map(drop)
}

fn is_alive(holder: &LockHolder) -> bool {
    Path::new("/proc").join(holder.pid.to_string()).exists()
}

/// What the holder wrote into the file. It writes right after it took the lock, so an empty file is read a few times more.
fn read_holder(file: &mut File) -> Option<LockHolder> {
    for _ in 0..10 {
        let mut text = Vec::new();
        let read = file.rewind().and_then(|()| file.take(LOCK_LIMIT).read_to_end(&mut text));
        if let (Ok(_), Ok(holder)) = (read, serde_json::from_slice(&text)) {
            return Some(holder);
        }
        // An event for a write to a file would cost more than this.
        std::thread::sleep(Duration::from_millis(5));
    }
    None
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;

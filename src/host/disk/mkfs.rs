//! An empty ext4, made by the system's `mkfs.ext4`.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::Command;

use crate::world::Interrupt;

/// How long it may take: with lazy tables it writes some megabytes, whatever the size.
const LIMIT: Duration = Duration::from_secs(60);
/// How much of its complaint is kept, in bytes.
const COMPLAINT: u64 = 4096;

/// Why there is no empty ext4.
#[derive(Debug, thiserror::Error)]
pub enum MkfsError {
    /// Not installed, or not to be run.
    #[error("cannot run mkfs.ext4, which makes the disks without an image: is e2fsprogs installed?")]
    Start(#[source] std::io::Error),
    /// It could not be waited for.
    #[error("cannot tell how mkfs.ext4 ended")]
    Wait(#[source] std::io::Error),
    /// It failed.
    #[error("mkfs.ext4 of {} ended with {status}: {complaint}", path.display())]
    Failed {
        /// The image.
        path: PathBuf,
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it said.
        complaint: String,
    },
    /// It did not end.
    #[error("mkfs.ext4 of {} did not end within {LIMIT:?}", path.display())]
    TimedOut {
        /// The image.
        path: PathBuf,
    },
    /// Somebody asked to stop.
    #[error("interrupted")]
    Interrupted,
}

/// Makes the file, which has its size already, an empty ext4.
///
/// # Errors
/// See [`MkfsError`]. The program is ended then.
pub(super) async fn ext4(path: &Path, interrupt: &Interrupt) -> Result<(), MkfsError> {
    // Users often have no sbin on their PATH.
    let search = std::env::var("PATH").unwrap_or_default() + ":/usr/local/sbin:/usr/sbin:/sbin";
    let mut child = Command::new("mkfs.ext4")
        // nodiscard: the file is a hole from end to end.
        .args(["-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", "--"])
        .arg(path)
        .env_clear()
        .env("PATH", search)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(MkfsError::Start)?;
    let mut errors = child.stderr.take();
    let ended = async {
        let mut complaint = Vec::new();
        if let Some(errors) = &mut errors {
            errors.take(COMPLAINT).read_to_end(&mut complaint).await.map_err(MkfsError::Wait)?;
        }
        let status = child.wait().await.map_err(MkfsError::Wait)?;
        Ok((status, String::from_utf8_lossy(&complaint).trim().to_owned()))
    };
    let ended = tokio::select! {
        biased;
        () = interrupt.wait() => Err(MkfsError::Interrupted),
        () = tokio::time::sleep(LIMIT) => Err(MkfsError::TimedOut { path: path.to_owned() }),
        ended = ended => ended,
    };
    match ended {
        Ok((status, _)) if status.success() => Ok(()),
        Ok((status, complaint)) => Err(MkfsError::Failed { path: path.to_owned(), status, complaint }),
        Err(error) => {
            child.kill().await.map_err(MkfsError::Wait)?;
            Err(error)
        }
    }
}

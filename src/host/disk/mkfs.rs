//! Makes an empty ext4 with the system's `mkfs.ext4`.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use crate::host::program::{self, ProgramError};
use crate::world::Interrupt;

/// With lazy tables `mkfs.ext4` writes some megabytes, however large the file system is.
const LIMIT: Duration = Duration::from_secs(60);

/// Makes the file, which has its size already, an empty ext4.
///
/// # Errors
/// See [`ProgramError`]. The program has ended then.
pub(super) async fn ext4(path: &Path, interrupt: &Interrupt) -> Result<(), ProgramError> {
    // Many users have no sbin on their PATH.
    let program = program::locate("mkfs.ext4", "e2fsprogs", program::path_directories())?;
    let child = Command::new(&program)
        // nodiscard: the file is a hole from end to end.
        .args(["-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", "--"])
        .arg(path)
        .env_clear()
        .env("PATH", program::SYSTEM_DIRECTORIES.join(":"))
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| ProgramError::Run { action: "start", path: program.clone(), source })?;
    program::finish(child, &program, &[], LIMIT, interrupt).await.map(drop)
}

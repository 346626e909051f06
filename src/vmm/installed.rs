//! Asks the installed Cloud Hypervisor for its version. May use `host` and `world`.

use std::io::ErrorKind;
use std::process::Stdio;
use std::time::Duration;

use super::error::VmmError;
use crate::host::spawn::Program;
use crate::world::capability;

/// How long Cloud Hypervisor may take to print its version.
const VERSION_LIMIT: Duration = Duration::from_secs(10);

/// The version that the program prints.
///
/// # Errors
/// [`VmmError::NoVersion`], or that the version is none that nixbox knows.
pub(super) async fn version_of(program: Program) -> Result<String, VmmError> {
    let path = program.path().to_owned();
    let failed = |source| VmmError::NoVersion { program: path.clone(), source };
    let mut command = tokio::process::Command::from(program.argument("--version").command());
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(VERSION_LIMIT, command.output())
        .await
        .map_err(|_elapsed| failed(ErrorKind::TimedOut.into()))?
        .map_err(failed)?;
    Ok(capability::of_program(&String::from_utf8_lossy(&output.stdout))?.to_owned())
}

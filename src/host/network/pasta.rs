//! The parent of pasta: a process of nixbox's own program with one thread, which waits for pasta's end. Uses no other file of
//! this module.
//!
//! pasta lets nobody read its environment, and so it can bear no mark. Its parent bears the mark. Whenever the parent ends,
//! pasta does.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use tokio::io::AsyncReadExt as _;
use tokio::process::{ChildStderr, Command};
use tokio::signal::unix::{SignalKind, signal};

use crate::host::spawn::entrance;

/// The word for the parent of pasta.
pub(super) const VERB: &str = "pasta";
/// The most that is kept of what pasta says, in bytes.
const SAID_LIMIT: usize = 2000;

/// Why pasta does not run.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum PastaError {
    #[error("cannot {action}")]
    System { action: &'static str, source: io::Error },
    #[error("{program:?} ended ({status}): {said}")]
    Ended { program: PathBuf, status: ExitStatus, said: String },
}

fn failed(action: &'static str) -> impl FnOnce(io::Error) -> PastaError {
    move |source| PastaError::System { action, source }
}

/// Is the parent of pasta: starts pasta, and returns when pasta has ended, or when this process is told to end.
pub(super) fn supervise(program: &OsStr, arguments: &[&OsStr]) -> Result<(), PastaError> {
    // The signals are handled and pasta is started on this thread, which lives as long as this process does.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(failed("wait for pasta"))?.block_on(async {
        let mut told = signal(SignalKind::terminate()).map_err(failed("wait for pasta"))?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        entrance::end_with_parent(command.as_std_mut());
        let mut pasta = command.spawn().map_err(failed("start pasta"))?;
        let stderr = pasta.stderr.take();
        let ended = async {
            let said = match stderr {
                Some(stderr) => said(stderr).await,
                None => String::new(),
            };
            (said, pasta.wait().await)
        };
        let (said, status) = tokio::select! {
            ended = ended => ended,
            _ = told.recv() => return pasta.kill().await.map_err(failed("end pasta")),
        };
        let status = status.map_err(failed("wait for pasta"))?;
        Err(PastaError::Ended { program: Path::new(program).to_owned(), status, said })
    })
}

/// Reads to the end, and returns the beginning as one line. What cannot be read is left out.
pub(super) async fn said(mut stderr: ChildStderr) -> String {
    let (mut said, mut buffer) = (Vec::new(), [0; 512]);
    while let Ok(length @ 1..) = stderr.read(&mut buffer).await {
        said.extend(&buffer[..length.min(SAID_LIMIT.saturating_sub(said.len()))]);
    }
    String::from_utf8_lossy(&said).replace(char::is_control, " ").trim().to_owned()
}

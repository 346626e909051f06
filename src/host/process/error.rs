//! How a process of nixbox's ended, and why one cannot be started, found or ended.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;
use std::{fmt, io};

use super::mark::ProcessMark;
use crate::files::FileError;

/// Why a process of nixbox's cannot be started, found or ended.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// A record, a log, or a file of /proc.
    #[error(transparent)]
    File(#[from] FileError),
    #[error("cannot start {program:?}")]
    Spawn { program: PathBuf, source: io::Error },
    #[error("the {mark} runs already, as process {pid}")]
    Runs { mark: ProcessMark, pid: u32 },
    #[error("the {mark} ended with {exit} while it was started; its log {log:?} ends with: {tail}")]
    Ended { mark: ProcessMark, exit: ProcessExit, log: PathBuf, tail: String },
    #[error("the {mark} does not serve after {limit:?}; its log is {log:?}")]
    NotServing { mark: ProcessMark, limit: Duration, log: PathBuf },
    #[error("cannot {action} process {pid}")]
    Process { action: &'static str, pid: u32, source: io::Error },
    #[error("/proc/{pid}/stat is not in the form that Linux documents")]
    Stat { pid: u32 },
    #[error(
        "process {pid}, the {mark}, is still there {limit:?} after SIGKILL; it hangs in the kernel, see /proc/{pid}/stack"
    )]
    SurvivesKill { mark: ProcessMark, pid: u32, limit: Duration },
    #[error("processes that carry the mark of the {mark} keep appearing")]
    KeepAppearing { mark: ProcessMark },
}

/// How a process ended, as far as can be known: the kernel tells the parent of a process only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessExit {
    /// With this status.
    Status(i32),
    /// By this signal.
    Signal(i32),
    /// Another nixbox started the process.
    Unknown,
}

impl From<ExitStatus> for ProcessExit {
    fn from(status: ExitStatus) -> Self {
        let ended = status.code().map(Self::Status).or_else(|| status.signal().map(Self::Signal));
        ended.unwrap_or(Self::Unknown)
    }
}

impl fmt::Display for ProcessExit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(formatter, "exit status {status}"),
            Self::Signal(signal) => write!(formatter, "signal {signal}"),
            Self::Unknown => formatter.write_str("an exit status that is not known"),
        }
    }
}

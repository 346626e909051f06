//! Reads secret values from their sources: variables, files and commands of the host.
//!
//! All sources of a workspace are read at the same time, each within a time limit of its own. This module prints no
//! value, and overwrites every value in memory when it drops it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};
use tracing::{Instrument as _, debug_span};
use zeroize::Zeroizing;

use super::key::KeyError;
use crate::files::FileError;
use crate::files::shared_paths::SharedPaths;
use crate::world::{Secret, SecretCommand, SecretSource, VariableName, WaitObserver};

/// The most bytes that a value may have.
pub const LONGEST: usize = 1 << 20;

/// The time limit of a command that prints a value. It is long because the command may ask a person.
const COMMAND_LIMIT: Duration = Duration::from_secs(120);

/// The time limit of a file. A file on a network may not answer.
const FILE_LIMIT: Duration = Duration::from_secs(30);

/// How long a person is told nothing about a source that has not answered.
const SOON: Duration = Duration::from_secs(3);

/// How often a person is told after that what is waited for, and for how much longer.
const REMINDER: Duration = Duration::from_secs(10);

/// Why a value could not be read. No message contains any part of a value.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum SourceError {
    #[error("the environment variable {0}, which a credential is read from, is not set")]
    NoVariable(VariableName),
    #[error("cannot read the credential file {path}")]
    File { path: PathBuf, source: io::Error },
    #[error("cannot read the credential file {path}")]
    Open { path: PathBuf, source: FileError },
    #[error("cannot run {program:?}, which prints a credential")]
    Run { program: String, source: io::Error },
    #[error("{program:?}, which prints a credential, ended with {status}")]
    Failed { program: String, status: std::process::ExitStatus },
    #[error("{program:?}, which prints a credential, did not end within {limit:?}")]
    Slow { program: String, limit: Duration },
    #[error("the credential file {path} could not be read within {limit:?}")]
    SlowFile { path: PathBuf, limit: Duration },
    #[error("a credential from {from} is longer than {LONGEST} bytes")]
    TooLong { from: String },
    #[error("the value for the environment variable {0} has a NUL byte in it")]
    Nul(VariableName),
    #[error("cannot prepare the workspace's SSH key")]
    Key(#[from] KeyError),
}

/// The sources that have not answered yet, each with its name and the time at which it is given up.
#[derive(Default)]
pub struct PendingSources {
    pending: Mutex<BTreeMap<usize, (String, Instant)>>,
    shared: SharedPaths,
}

impl PendingSources {
    /// None yet. Files that a guest can replace lie in `shared`.
    #[must_use]
    pub fn new(shared: SharedPaths) -> Self {
        Self { pending: Mutex::default(), shared }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<usize, (String, Instant)>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the value of a source, byte for byte, within the time limit of its kind. The source is pending meanwhile.
    ///
    /// # Errors
    /// Any [`SourceError`].
    pub async fn resolve(&self, source: &SecretSource) -> Result<Secret, SourceError> {
        match source {
            SecretSource::Plain(value) => Ok(value.clone()),
            SecretSource::FromEnv(name) => read_variable(name),
            SecretSource::File(path) => {
                let path = path.as_path();
                let slow = || SourceError::SlowFile { path: path.to_owned(), limit: FILE_LIMIT };
                self.within(
                    format!("the file {}", path.display()),
                    FILE_LIMIT,
                    slow,
                    read_file(path, &self.shared),
                )
                .await
            }
            SecretSource::Command(command) => {
                let program = &command.program;
                let slow = || SourceError::Slow { program: program.clone(), limit: COMMAND_LIMIT };
                self.within(format!("{program:?}"), COMMAND_LIMIT, slow, run_command(command)).await
            }
        }
    }

    async fn within<T>(
        &self,
        name: String,
        limit: Duration,
        slow: impl FnOnce() -> SourceError,
        read: impl Future<Output = Result<T, SourceError>>,
    ) -> Result<T, SourceError> {
        let key = {
            let mut pending = self.lock();
            let key = pending.last_key_value().map_or(0, |(last, _)| last + 1);
            pending.insert(key, (name, Instant::now() + limit));
            key
        };
        let done = timeout(limit, read).await;
        self.lock().remove(&key);
        done.unwrap_or_else(|_elapsed| Err(slow()))
    }

    /// Awaits `all`, which resolves sources. Tells `waits` now and then which of them are pending, and for how much
    /// longer they are waited for.
    pub async fn report_while<T>(&self, waits: &WaitObserver<'_>, all: impl Future<Output = T>) -> T {
        let report = async {
            sleep(SOON).await;
            loop {
                let pending = self.describe();
                if !pending.is_empty() {
                    waits(&format!("waiting for the credentials from {pending}"));
                }
                sleep(REMINDER).await;
            }
        };
        tokio::select! {
            done = all => done,
            () = report => unreachable!("the reports do not end"),
        }
    }

    fn describe(&self) -> String {
        let now = Instant::now();
        let left = |until: &Instant| until.saturating_duration_since(now).as_secs();
        let pending = self.lock();
        let one = |(name, until): &(String, Instant)| format!("{name} (for {} s at most)", left(until));
        pending.values().map(one).collect::<Vec<_>>().join(", ")
    }
}

fn read_variable(name: &VariableName) -> Result<Secret, SourceError> {
    let value = std::env::var_os(name.as_str()).ok_or_else(|| SourceError::NoVariable(name.clone()))?;
    let value = Secret::new(value.into_encoded_bytes());
    if value.expose().len() > LONGEST {
        return Err(SourceError::TooLong { from: format!("the environment variable {name}") });
    }
    Ok(value)
}

/// The first `filled` bytes of a buffer, without a copy of the buffer.
fn first(mut buffer: Zeroizing<Vec<u8>>, filled: usize) -> Secret {
    let mut bytes = std::mem::take(&mut *buffer);
    bytes.truncate(filled);
    Secret::new(bytes)
}

/// Reads a file on another thread, because a file system that does not answer holds up the thread that asks it.
async fn read_file(path: &Path, shared: &SharedPaths) -> Result<Secret, SourceError> {
    let (owned, shared) = (path.to_owned(), shared.clone());
    let read = tokio::task::spawn_blocking(move || read_file_now(&owned, &shared)).await;
    read.map_err(|error| SourceError::File { path: path.to_owned(), source: io::Error::other(error) })?
}

fn read_file_now(path: &Path, shared: &SharedPaths) -> Result<Secret, SourceError> {
    let failed = |source| SourceError::File { path: path.to_owned(), source };
    let mut file =
        shared.open_file(path).map_err(|source| SourceError::Open { path: path.to_owned(), source })?;
    let about = file.metadata().map_err(failed)?;
    // The vector has room for the whole file, because a vector that grows leaves copies of its content behind.
    let room = usize::try_from(about.len()).unwrap_or(LONGEST).min(LONGEST) + 1;
    let mut bytes = Zeroizing::new(vec![0; room]);
    let mut filled = 0;
    while filled < room {
        match file.read(&mut bytes[filled..]).map_err(failed)? {
            0 => return Ok(first(bytes, filled)),
            read => filled += read,
        }
    }
    Err(SourceError::TooLong { from: path.display().to_string() })
}

async fn run_command(secret: &SecretCommand) -> Result<Secret, SourceError> {
    let span = debug_span!("program", path = secret.program);
    run_unobserved(secret).instrument(span).await
}

async fn run_unobserved(secret: &SecretCommand) -> Result<Secret, SourceError> {
    let program = &secret.program;
    let failed = |source| SourceError::Run { program: program.clone(), source };
    let mut command = Command::new(program);
    // The kernel takes arguments as C strings, so `Command` holds a copy of the arguments for as long as it lives.
    command.args(secret.arguments.iter().map(|argument| OsStr::from_bytes(argument.expose())));
    // The program inherits stderr, because it may ask the user there.
    command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(failed)?;
    let mut bytes = Zeroizing::new(vec![0; LONGEST + 1]);
    let mut filled = 0;
    if let Some(mut stdout) = child.stdout.take() {
        loop {
            let read = stdout.read(&mut bytes[filled..]).await.map_err(failed)?;
            filled += read;
            if filled > LONGEST {
                return Err(SourceError::TooLong { from: format!("{program:?}") });
            }
            if read == 0 {
                break;
            }
        }
    }
    let status = child.wait().await.map_err(failed)?;
    if !status.success() {
        return Err(SourceError::Failed { program: program.clone(), status });
    }
    Ok(first(bytes, filled))
}

#[cfg(test)]
mod tests;

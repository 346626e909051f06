//! Daemons that outlive the command that started them, and how a later command finds them again.
//!
//! A daemon is found by its record, `<runtime>/<role>-<generation>.pid`. If the record is missing, torn or stale, because
//! nixbox was killed between the fork and the record, the daemon is found by the mark in its environment ([`mark`]). Both
//! are compared with the live process before anything is done to it ([`identity`]). Between fork and exec a child has no
//! mark yet. No other nixbox looks for it then, because until its exec the child shares the lock of the workspace with
//! the nixbox that forked it.
//!
//! dnsmasq and nft have no record: the network finds and ends them by their marks alone ([`ProcessSearch`]).

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::own_thread::on_own_thread;
use super::spawn::Program;
use super::systemd::scope::ScopeManager;
use crate::files::FileError;
use crate::world::{Generation, WorkspaceId};
use identity::host_boot;

mod error;
mod identity;
mod mark;

pub use error::{ProcessError, ProcessExit};
#[cfg(test)]
pub(super) use identity::LISTINGS;
pub use identity::{Daemon, Identity, generations};
pub(super) use identity::{ProcessSearch, processes_of};
pub(super) use mark::ROLE;
pub use mark::{DaemonRole, ProcessMark};

/// How long the environment of a process may stay unreadable after its exec began. Normally that takes microseconds.
const EXEC_LIMIT: Duration = Duration::from_secs(5);
/// How many logs of earlier generations of a role are kept.
const LOGS_KEPT: usize = 4;
/// A record is some 200 bytes.
const RECORD_LIMIT: u64 = 4096;

/// What a record holds. It is JSON, so that people can read it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PidRecord {
    mark: ProcessMark,
    identity: Identity,
}

/// The daemons of one workspace. Starting and stopping need the lock of the workspace, finding does not.
#[derive(Debug, Clone)]
pub struct Daemons {
    runtime: PathBuf,
    workspace: WorkspaceId,
    scopes: Option<ScopeManager>,
}

impl Daemons {
    /// The daemons whose records and logs are in `runtime`: an existing, absolute directory that only this workspace uses.
    #[must_use]
    pub fn new(runtime: PathBuf, workspace: WorkspaceId) -> Self {
        Self { runtime, workspace, scopes: None }
    }

    /// The same, with every daemon in a scope of its own, if there is a manager of scopes.
    #[must_use]
    pub fn in_scopes_of(self, scopes: Option<ScopeManager>) -> Self {
        Self { scopes, ..self }
    }

    /// The mark of a daemon.
    #[must_use]
    pub fn mark(&self, role: &DaemonRole, generation: Generation) -> ProcessMark {
        ProcessMark { workspace: self.workspace, generation: Some(generation), role: role.clone() }
    }

    /// The path of its record.
    #[must_use]
    pub fn record(&self, role: &DaemonRole, generation: Generation) -> PathBuf {
        self.runtime.join(format!("{role}-{generation}.pid"))
    }

    /// The path of the log of its stdout and stderr.
    #[must_use]
    pub fn log(&self, role: &DaemonRole, generation: Generation) -> PathBuf {
        self.runtime.join(format!("{role}-{generation}.log"))
    }

    /// Starts `program` as a daemon, and returns once it, or its launcher, has been exec'd and recorded. The daemon outlives
    /// this process. The thread of the caller does other things meanwhile; a caller that gives up waits for the record.
    ///
    /// # Errors
    /// Those of [`Self::spawn`].
    pub async fn start(
        &self,
        role: &DaemonRole,
        generation: Generation,
        program: Program,
    ) -> Result<Daemon, ProcessError> {
        let path = program.path().to_owned();
        let (this, role) = (self.clone(), role.clone());
        let spawned = on_own_thread(move || this.spawn(&role, generation, &program)).await;
        spawned.unwrap_or_else(|source| Err(ProcessError::Spawn { program: path, source }))
    }

    /// Does the same, and blocks the thread of the caller.
    ///
    /// # Errors
    /// [`ProcessError::Runs`] if there is one already, and others if it cannot be started or recorded. Then this call
    /// leaves no process behind.
    pub fn spawn(
        &self,
        role: &DaemonRole,
        generation: Generation,
        program: &Program,
    ) -> Result<Daemon, ProcessError> {
        let mark = self.mark(role, generation);
        if let Some(daemon) = self.find(role, generation)? {
            return Err(ProcessError::Runs { mark, pid: daemon.pid() });
        }
        self.forget_old_logs(&role.to_string(), generation)?;
        let log = self.log(role, generation);
        let opened = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(&log)
            .and_then(|file| Ok((file.try_clone()?, file)));
        let (stdout, stderr) = opened.map_err(FileError::system("open", log))?;
        let scope =
            self.scopes.as_ref().map(|manager| manager.scope(self.workspace, generation, &role.to_string()));
        let launched = scope.map(|scope| program.clone().launched(scope.launcher_arguments()));
        let mut command = launched.as_ref().unwrap_or(program).command();
        command.envs(mark.environment()).stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        let mut child = command
            .spawn()
            .map_err(|source| ProcessError::Spawn { program: program.path().to_owned(), source })?;
        match self.adopt(child.id(), role, generation) {
            Ok(Some(daemon)) => Ok(daemon),
            // The process has ended already, or must not go on running without a record.
            other => {
                let taken_back = child.kill().and_then(|()| child.wait());
                let status = taken_back.map_err(|source| ProcessError::Process {
                    action: "take back",
                    pid: child.id(),
                    source,
                })?;
                other.and(Err(self.ended(role, generation, status.into())))
            }
        }
    }

    /// Records the child `pid`, once it has been exec'd; `None` if it has ended. Nobody has waited for the child, so no
    /// other process can have its pid.
    fn adopt(
        &self,
        pid: u32,
        role: &DaemonRole,
        generation: Generation,
    ) -> Result<Option<Daemon>, ProcessError> {
        let (boot, mark) = (host_boot()?, self.mark(role, generation));
        let deadline = Instant::now() + EXEC_LIMIT;
        while let Some(daemon) = Daemon::open_pid(pid, boot)? {
            if daemon.has(&mark)? != Some(false) {
                let record = PidRecord { mark, identity: daemon.identity() };
                write_atomically(&self.record(role, generation), &record)?;
                return Ok(Some(daemon));
            }
            if Instant::now() > deadline {
                return Err(self.not_serving(role, generation, EXEC_LIMIT));
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        Ok(None)
    }

    /// The error for a daemon that ended while it was started.
    pub(crate) fn ended(&self, role: &DaemonRole, generation: Generation, exit: ProcessExit) -> ProcessError {
        let (log, tail) = (self.log(role, generation), self.log_tail(role, generation));
        ProcessError::Ended { mark: self.mark(role, generation), exit, log, tail }
    }

    /// The error for a daemon that did not begin to serve.
    pub(crate) fn not_serving(
        &self,
        role: &DaemonRole,
        generation: Generation,
        limit: Duration,
    ) -> ProcessError {
        ProcessError::NotServing { mark: self.mark(role, generation), limit, log: self.log(role, generation) }
    }

    /// Finds the live daemon of this role and generation, and changes nothing.
    ///
    /// # Errors
    /// [`ProcessError::File`] or [`ProcessError::Process`] if /proc or the record cannot be read.
    pub fn find(&self, role: &DaemonRole, generation: Generation) -> Result<Option<Daemon>, ProcessError> {
        let mark = self.mark(role, generation);
        if let Some(identity) = self.read_record(role, generation)?
            && let Some(daemon) = Daemon::open(identity, &mark)?
        {
            return Ok(Some(daemon));
        }
        Ok(search(&mark).find()?.into_iter().find(Daemon::leads))
    }

    /// All live processes of this role and generation: the daemon, and the processes that it has started.
    ///
    /// # Errors
    /// [`ProcessError::File`] or [`ProcessError::Process`] if /proc cannot be read.
    pub fn family(&self, role: &DaemonRole, generation: Generation) -> Result<Vec<Daemon>, ProcessError> {
        search(&self.mark(role, generation)).find()
    }

    /// Whether a daemon of this generation was started in this boot of the host, and not stopped since. It may have
    /// ended by itself.
    ///
    /// # Errors
    /// [`ProcessError::File`] if the record cannot be read.
    pub fn remembers(&self, role: &DaemonRole, generation: Generation) -> Result<bool, ProcessError> {
        Ok(self.read_record(role, generation)?.is_some())
    }

    /// The identity in the record, if the record is of this role, generation and boot of the host. A record that cannot
    /// be parsed counts as missing, since a power cut can leave one.
    fn read_record(
        &self,
        role: &DaemonRole,
        generation: Generation,
    ) -> Result<Option<Identity>, ProcessError> {
        let path = self.record(role, generation);
        let mut bytes = Vec::new();
        let read = OpenOptions::new()
            .read(true)
            .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
            .open(&path)
            .and_then(|file| file.take(RECORD_LIMIT).read_to_end(&mut bytes));
        match read {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(FileError::system("read", path)(error).into()),
        }
        let (boot, mark) = (host_boot()?, self.mark(role, generation));
        Ok(serde_json::from_slice::<PidRecord>(&bytes)
            .ok()
            .filter(|record| record.mark == mark && record.identity.boot == boot)
            .map(|record| record.identity))
    }

    /// The generations of the live daemons of the workspace, and of the records.
    ///
    /// # Errors
    /// [`ProcessError::File`] if /proc or the runtime directory cannot be read.
    pub fn generations(&self) -> Result<BTreeSet<Generation>, ProcessError> {
        let failed = |error| FileError::system("list", &self.runtime)(error);
        let mut found = identity::generations(self.workspace)?;
        for entry in fs::read_dir(&self.runtime).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let name = name.to_str().map(|name| name.strip_suffix(".new").unwrap_or(name));
            let number = name.and_then(|name| name.strip_suffix(".pid")?.rsplit_once('-')?.1.parse().ok());
            found.extend(number.map(Generation));
        }
        Ok(found)
    }

    /// Ends the daemon with TERM, `grace`, and KILL, then all other processes with its mark, and removes its record. The
    /// log stays.
    ///
    /// # Errors
    /// [`ProcessError::SurvivesKill`], [`ProcessError::KeepAppearing`], or those of [`Daemons::find`]. A process may be left then,
    /// and the record with it.
    pub async fn stop(
        &self,
        role: &DaemonRole,
        generation: Generation,
        grace: Duration,
    ) -> Result<(), ProcessError> {
        let mark = self.mark(role, generation);
        if let Some(daemon) = self.find(role, generation)? {
            // The daemon's children are opened before they begin to die: a process that dies has no environment to be
            // recognized by any more, and still has its sockets.
            let family = search(&mark).find()?;
            daemon.end(&mark, grace).await?;
            for member in family {
                member.end(&mark, Duration::ZERO).await?;
            }
        }
        search(&mark).end(Duration::ZERO).await?;
        let path = self.record(role, generation);
        // The first is what a nixbox left that was killed before it had given a record its name.
        remove(&unnamed(&path))?;
        remove(&path)
    }

    /// The last lines of a daemon's log, for an error message: printable, at most ten, at most 2000 bytes.
    #[must_use]
    pub fn log_tail(&self, role: &DaemonRole, generation: Generation) -> String {
        match tail(&self.log(role, generation)) {
            Ok(text) if text.is_empty() => "(nothing)".to_owned(),
            Ok(text) => text,
            Err(error) => format!("(which cannot be read: {error})"),
        }
    }

    /// The newest log of that name, and its last lines as in [`Daemons::log_tail`]; `None` if none can be read.
    #[must_use]
    pub fn newest_log(&self, name: &str) -> Option<(PathBuf, String)> {
        let newest = self.logs(name).ok()?.into_iter().max()?;
        let path = self.runtime.join(format!("{name}-{newest}.log"));
        let text = tail(&path).ok()?;
        Some((path, text))
    }

    /// The generations that have a log of that name.
    fn logs(&self, name: &str) -> Result<Vec<u64>, ProcessError> {
        let failed = |error| FileError::system("list", &self.runtime)(error);
        let mut generations = Vec::new();
        for entry in fs::read_dir(&self.runtime).map_err(failed)? {
            let file = entry.map_err(failed)?.file_name();
            generations.extend(file.to_str().and_then(|file| {
                file.strip_prefix(name)?.strip_prefix('-')?.strip_suffix(".log")?.parse::<u64>().ok()
            }));
        }
        Ok(generations)
    }

    /// Removes `<name>-<generation>.log` of all but the last few generations before `current`.
    pub(crate) fn forget_old_logs(&self, name: &str, current: Generation) -> Result<(), ProcessError> {
        let mut old = self.logs(name)?;
        old.retain(|generation| *generation < current.0);
        old.sort_unstable();
        let surplus = old.len().saturating_sub(LOGS_KEPT);
        old[..surplus]
            .iter()
            .try_for_each(|generation| remove(&self.runtime.join(format!("{name}-{generation}.log"))))
    }
}

/// All processes with the mark. The owner does not matter: nixbox may run as root, and its daemons as the invoking user.
fn search(mark: &ProcessMark) -> ProcessSearch<'_> {
    ProcessSearch { mark, owners: None }
}

fn remove(path: &Path) -> Result<(), ProcessError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(FileError::system("remove", path)(error).into())
        }
        _ => Ok(()),
    }
}

/// Where a record is written before it has its name.
fn unnamed(record: &Path) -> PathBuf {
    record.with_extension("pid.new")
}

/// Writes a record without a sync: after a power cut the process does not exist.
fn write_atomically(path: &Path, record: &PidRecord) -> Result<(), ProcessError> {
    let new = unnamed(path);
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(&new)?;
        file.write_all(&serde_json::to_vec(record)?)?;
        fs::rename(&new, path)
    };
    Ok(write().map_err(FileError::system("write", path))?)
}

fn tail(path: &Path) -> io::Result<String> {
    let lines = last_lines(path)?;
    Ok(lines[lines.len().saturating_sub(10)..].join(" | "))
}

/// The last lines of a log that are not empty, printable.
fn last_lines(path: &Path) -> io::Result<Vec<String>> {
    const BYTES: u64 = 2000;
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(BYTES)))?;
    let mut bytes = Vec::new();
    file.take(BYTES).read_to_end(&mut bytes)?;
    let text = without_escapes(&String::from_utf8_lossy(&bytes));
    // A program that shows its progress returns to the beginning of its line.
    Ok(text
        .split(['\n', '\r'])
        .map(|line| line.replace(char::is_control, " ").trim().to_owned())
        .filter(|line| !line.is_empty())
        .collect())
}

/// Leaves out the escape sequences of terminals (ECMA-48): colours, movements of the cursor, titles. An init system writes
/// them to the console. A sequence that has no end is left out up to the end of its line.
fn without_escapes(text: &str) -> String {
    const ESCAPE: char = '\u{1b}';
    let mut rest = text.chars().peekable();
    let mut plain = String::with_capacity(text.len());
    while let Some(letter) = rest.next() {
        if letter != ESCAPE {
            plain.push(letter);
            continue;
        }
        let ends: fn(char) -> bool = match rest.next_if(|letter| !letter.is_ascii_control()) {
            Some('[') => |letter| ('@'..='~').contains(&letter),
            Some(']') => |letter| letter == '\u{7}' || letter == ESCAPE,
            _ => continue,
        };
        while let Some(letter) = rest.next_if(|letter| !"\n\r".contains(*letter)) {
            if ends(letter) {
                // A title may end with ESC \.
                rest.next_if(|next| letter == ESCAPE && *next == '\\');
                break;
            }
        }
    }
    plain
}

/// Returns the last line with text of a log, with control characters replaced. Returns `None` if the log cannot be read or
/// has no line with text.
pub(crate) fn last_line(path: &Path) -> Option<String> {
    last_lines(path).ok()?.pop()
}

#[cfg(test)]
mod tests;

//! `nixbox forward --background`, and the process that it leaves.
//!
//! The command reaches the guest, and gives it what it lacks after a reboot, because only the command has the environment of a
//! person. The process connects anew. Its command line is all that tells what it forwards: see `host/forwards.rs`.

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

use super::ports::Listening;
use super::server::ForwardError;
use super::serving::{self, WantedForward};
use crate::cli::equipped::{self, EquippedGuest};
use crate::cli::error::{self, CliError, ExitKind, Outcome, Problem};
use crate::cli::{WorkspaceLocation, success};
use crate::files::FileError;
use crate::host::clock::{HostClock, utc};
use crate::host::forwards::{self, ForwardDaemon, ForwardDaemons, READY, StartedForward};
use crate::host::lifetime::Lifetime;
use crate::host::process::ProcessExit;
use crate::workspace::WorkspaceError;
use crate::world::{Clock, Generation, WorkspaceId};

/// The log of all processes that forward ports of a workspace, in its runtime directory.
pub(in crate::cli) const LOG: &str = "forwards.log";
/// A log that has grown larger is begun anew by the next process. Each process writes a line for each of its ports at most.
const LOG_LIMIT: u64 = 64 << 10;

/// The option by which the guest listens.
const REMOTE: &str = "--remote";

/// Forward ports in the background; nixbox itself starts this
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct DaemonArguments {
    /// The workspace
    workspace: WorkspaceId,
    /// The generation of the VM's RAM, which tells one VM from another
    vm: u64,
    /// When this was asked for, in milliseconds since 1970, UTC
    since_ms: u64,
    /// Forward ports of the VM to this host
    #[arg(long)]
    remote: bool,
    /// The ports
    #[arg(required = true)]
    ports: Vec<String>,
}

/// What a process in the background forwards, by its command line.
#[derive(Debug)]
pub(super) struct DescribedForward {
    /// The generation of the VM's RAM.
    pub(super) vm: Generation,
    /// In milliseconds since 1970, UTC.
    pub(super) since_ms: u64,
    pub(super) wanted: WantedForward,
}

impl DescribedForward {
    /// What the process forwards. `None` if the process has not got to its command line yet, or another version of nixbox has
    /// started it.
    pub(super) fn of(daemon: &ForwardDaemon) -> Option<Self> {
        let words: Option<Vec<&str>> = daemon.words.iter().map(|word| word.to_str()).collect();
        let words = words?;
        let [_, vm, since, rest @ ..] = words.as_slice() else { return None };
        let (listening, ports) = match rest {
            [REMOTE, ports @ ..] => (Listening::Guest, ports),
            ports => (Listening::Host, ports),
        };
        let ports: Vec<String> = ports.iter().map(|port| (*port).to_owned()).collect();
        let wanted = WantedForward::parse(&ports, listening).ok()?;
        Some(Self { vm: Generation(vm.parse().ok()?), since_ms: since.parse().ok()?, wanted })
    }
}

/// What became of the process.
pub(super) enum BackgroundStart {
    /// It serves, and has this id.
    Serves(u32),
    /// It has printed why it cannot serve, and has ended with this exit code.
    Refused(u8),
}

/// Starts the process, and returns when the ports can be used.
///
/// # Errors
/// If the process cannot be started, or was killed.
pub(super) fn start(
    location: &WorkspaceLocation,
    guest: EquippedGuest,
    listening: Listening,
    ports: &[String],
) -> Result<BackgroundStart, Problem> {
    let EquippedGuest { vm, shell, runtime, .. } = guest;
    let workspace = location.workspace()?.id();
    let scopes = Lifetime::of_this_process().map_err(WorkspaceError::File)?.scopes;
    let vm = vm.machine.memory;
    let mut words = vec![workspace.to_string(), vm.to_string(), HostClock.unix_ms().to_string()];
    words.extend((listening == Listening::Guest).then(|| REMOTE.to_owned()));
    words.extend(ports.iter().cloned());
    let started = runtime.block_on(async {
        shell.session.close().await;
        ForwardDaemons::new(workspace).start(scopes.as_ref(), vm, &words).await
    });
    Ok(match started? {
        StartedForward::Serves(pid) => BackgroundStart::Serves(pid),
        StartedForward::Ended(ProcessExit::Status(status)) if status != 0 => {
            BackgroundStart::Refused(u8::try_from(status).unwrap_or(ExitKind::Failed as u8))
        }
        StartedForward::Ended(exit) => return Err(ForwardError::Ended(exit).into()),
    })
}

/// The process itself.
pub(in crate::cli) fn run_daemon(location: &WorkspaceLocation, arguments: &DaemonArguments) -> Outcome {
    let location = WorkspaceLocation { directory: location.directory.clone(), id: Some(arguments.workspace) };
    let listening = if arguments.remote { Listening::Guest } else { Listening::Host };
    let wanted = WantedForward::parse(&arguments.ports, listening)?;
    let guest = equipped::reach_as_it_is(&location)?;
    if guest.vm.machine.memory != Generation(arguments.vm) {
        return Err(ForwardError::VmGone.into());
    }
    let (log, is_ready) = (guest.wiring.runtime.join(LOG), Cell::new(false));
    let ended = serving::serve(&location, guest, &wanted, &write_to_log, || {
        go_into_background(&log)?;
        is_ready.set(true);
        wanted.sentences().for_each(|sentence| write_to_log(&sentence));
        Ok(())
    });
    match ended {
        Ok(()) => write_to_log("stopped"),
        Err(problem) if is_ready.get() => {
            write_to_log(&problem.one_line());
            return Ok(problem.exit() as u8);
        }
        Err(problem) => return Err(problem),
    }
    success()
}

/// Says that the ports can be used, and leaves the terminal: stderr is the log from then on.
fn go_into_background(log: &Path) -> Result<(), Problem> {
    forwards::give_up_capabilities().map_err(ForwardError::Capabilities)?;
    let failed = |action| FileError::system(action, log);
    let file = open_log(log).map_err(failed("open")).map_err(CliError::from)?;
    rustix::stdio::dup2_stderr(&file)
        .map_err(|errno| failed("write")(errno.into()))
        .map_err(CliError::from)?;
    let mut stdout = io::stdout().lock();
    stdout.write_all(READY).and_then(|()| stdout.flush()).map_err(ForwardError::Unasked)?;
    let nothing = OpenOptions::new().write(true).open("/dev/null").map_err(CliError::Stdout)?;
    rustix::stdio::dup2_stdout(&nothing).map_err(|errno| CliError::Stdout(errno.into()))?;
    Ok(())
}

fn open_log(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o600).custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
    let file = options.open(path)?;
    if file.metadata()?.len() > LOG_LIMIT {
        file.set_len(0)?;
    }
    Ok(file)
}

/// Writes a line to stderr, which is the log.
fn write_to_log(text: &str) {
    let (now, pid) = (utc(HostClock.unix_ms()), std::process::id());
    error::print_stderr(&format!("{now} process {pid}: {text}\n"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_has_grown_is_begun_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let length = || path.metadata().unwrap().len();
        open_log(&path).unwrap().write_all(&vec![b'.'; 1 << 16]).unwrap();
        open_log(&path).unwrap().write_all(b"more").unwrap();
        assert_eq!(length(), (1 << 16) + 4);
        open_log(&path).unwrap();
        assert_eq!(length(), 0);
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(directory.path().join("elsewhere"), &path).unwrap();
        open_log(&path).unwrap_err();
    }
}

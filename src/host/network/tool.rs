//! Runs nft, dnsmasq, the legacy iptables and nixbox's own program as a child that works in a network namespace: the only programs that get
//! privileges from nixbox.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::thread::{CapabilitySet, capabilities, configure_capability_in_ambient_set, set_capabilities};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tracing::{Instrument as _, debug_span};

use super::inhabitant::Inhabitant;
use crate::host::confinement::{Confinement, FileAccess};
use crate::host::own_thread::on_own_thread;
use crate::host::process::ProcessMark;
use crate::host::program::{self, ProgramError, SYSTEM_DIRECTORIES};
use crate::host::spawn::entrance::{self, NamespaceEntrance};
use crate::host::systemd::scope::Scope;
use crate::host::{spawn, sudo};
use crate::world::Interrupt;

/// nixbox's own program, also if an upgrade has replaced its file.
pub(in crate::host) const OWN_PROGRAM: &str = "/proc/self/exe";

/// Making a namespace takes milliseconds. On a busy machine, or in software emulation, it takes longer.
pub(super) const LIMIT: Duration = Duration::from_secs(20);

/// How a program comes to be in a network namespace.
#[derive(Debug, Clone)]
pub(super) enum Entrance {
    /// It enters the namespace before its exec.
    Entered(Arc<NamespaceEntrance>),
    /// A thread starts it that is in the namespace.
    Inhabited(Arc<Inhabitant>),
}

/// What to run.
pub(super) struct NetworkTool<'a> {
    pub(super) name: &'static str,
    pub(super) arguments: &'a [&'a str],
    /// The mark by which the process is found again.
    pub(super) mark: Option<&'a ProcessMark>,
    /// The files that it may open; `None` for a program that ends by itself and hears of no guest.
    pub(super) confinement: Option<Confinement>,
    /// The scope of systemd that the process enters first.
    pub(super) scope: Option<Scope>,
    pub(super) input: &'a [u8],
    pub(super) limit: Duration,
    /// The network that it works in; `None` for that of this thread.
    pub(super) inside: Option<Entrance>,
}

/// Where the program is. The directories of PATH are searched first if nixbox is root, or has nothing to give away.
/// Otherwise they are not: every user who may run a nixbox with capabilities could give these to a program of his own.
pub(super) fn locate(name: &'static str) -> Result<PathBuf, ProgramError> {
    let root = rustix::process::getuid().is_root() && rustix::process::geteuid().is_root();
    let ordinary = capabilities(None).is_ok_and(|sets| sets.permitted.is_empty());
    let own = if root || ordinary { program::path_directories() } else { vec![] };
    let package = match name {
        "nft" => "nftables",
        "dnsmasq" => "dnsmasq",
        _ => "iptables",
    };
    program::locate(name, package, own)
}

/// The capabilities that a program gets. The legacy iptables takes a lock in a file that only root may open.
fn rights(name: &str) -> CapabilitySet {
    if name.starts_with("iptables-legacy") {
        sudo::NEEDED.union(CapabilitySet::DAC_OVERRIDE)
    } else {
        sudo::NEEDED
    }
}

/// Hands these capabilities of this thread to the programs that it starts. Root needs none of them.
fn raise_ambient(wanted: CapabilitySet) -> rustix::io::Result<()> {
    let mut sets = capabilities(None)?;
    let permitted = sets.permitted & wanted;
    sets.inheritable |= permitted;
    set_capabilities(None, sets)?;
    permitted.iter().try_for_each(|one| configure_capability_in_ambient_set(one, true))
}

impl NetworkTool<'_> {
    /// Runs the program to its end, and returns what it wrote. The program is killed if it takes longer than its limit,
    /// or if this future is dropped.
    pub(super) async fn run(&self) -> Result<Output, ProgramError> {
        let path = locate(self.name)?;
        program::finish(self.spawn(&path).await?, &path, self.input, self.limit, &Interrupt::new()).await
    }

    async fn spawn(&self, path: &Path) -> Result<Child, ProgramError> {
        // The program with the launchers before it. Each becomes the next one by exec, and the scope is entered first, because
        // a confined process cannot start busctl.
        let mut words: Vec<OsString> = Vec::new();
        if let Some(scope) = &self.scope {
            words.extend([OWN_PROGRAM.into()].into_iter().chain(scope.launcher_arguments()));
        }
        if let Some(confinement) = &self.confinement {
            words.push(OWN_PROGRAM.into());
            words.extend(confinement.clone().may(FileAccess::Execute, path).launcher_words());
        }
        words.push(path.into());
        let mut command = command(Path::new(&words[0]), self.mark);
        command.args(&words[1..]);
        command
            .args(self.arguments)
            // A Ctrl-C at the terminal is for nixbox to handle.
            .process_group(0)
            .stdin(Stdio::piped());
        match &self.inside {
            None => start(command, rights(self.name), path).await,
            Some(Entrance::Entered(namespace)) => {
                entrance::enter(command.as_std_mut(), Arc::clone(namespace), sudo::NEEDED);
                start(command, rights(self.name), path).await
            }
            Some(Entrance::Inhabited(inhabitant)) => {
                let started = inhabitant.run(starting(command, rights(self.name)));
                spawned(started.ok_or_else(|| ProgramError::Thread(path.to_owned()))?, path)
            }
        }
    }
}

/// A command with an environment of its own, whose output is read.
pub(super) fn command(path: &Path, mark: Option<&ProcessMark>) -> Command {
    let mut command = Command::new(path);
    command
        .env_clear()
        .env("PATH", SYSTEM_DIRECTORIES.join(":"))
        .env("LC_ALL", "C")
        .envs(mark.into_iter().flat_map(ProcessMark::environment))
        .current_dir("/")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// A command of nixbox's own program that outlives nixbox. The arguments follow.
pub(in crate::host) fn own_daemon(mark: &ProcessMark, scope: Option<&Scope>) -> Command {
    let mut command = command(Path::new(OWN_PROGRAM), Some(mark));
    if let Some(scope) = scope {
        command.args(scope.launcher_arguments()).arg(OWN_PROGRAM);
    }
    command.kill_on_drop(false);
    spawn::detach(command.as_std_mut());
    command
}

/// Starts a command with these capabilities, as far as nixbox has them.
///
/// Ambient capabilities belong to a thread, and its children inherit them. They are raised in a thread that starts this
/// program and then ends, so that no other program gets them.
pub(in crate::host) async fn start(
    command: Command,
    capabilities: CapabilitySet,
    path: &Path,
) -> Result<Child, ProgramError> {
    let child = on_own_thread(starting(command, capabilities)).await;
    spawned(child.map_err(|_no_thread| ProgramError::Thread(path.to_owned()))?, path)
}

/// Starts a command with these capabilities, on the thread that runs this.
fn starting(mut command: Command, capabilities: CapabilitySet) -> impl FnOnce() -> io::Result<Child> + Send {
    let runtime = tokio::runtime::Handle::current();
    move || {
        let _in_runtime = runtime.enter();
        if !rustix::process::geteuid().is_root() {
            raise_ambient(capabilities).map_err(io::Error::from)?;
        }
        command.spawn()
    }
}

fn spawned(child: io::Result<Child>, path: &Path) -> Result<Child, ProgramError> {
    child.map_err(|source| ProgramError::Run { action: "start", path: path.to_owned(), source })
}

/// Writes this to a process of nixbox's own, and waits until the process has said `ready` and has closed its stdout. A process
/// that takes longer than [`LIMIT`] is killed.
///
/// # Errors
/// What the process wrote to stderr, on one line.
pub(super) async fn until_ready(child: &mut Child, input: &[u8], ready: &[u8]) -> Result<(), String> {
    let span = debug_span!("daemon", pid = child.id());
    until_ready_unobserved(child, input, ready).instrument(span).await
}

async fn until_ready_unobserved(child: &mut Child, input: &[u8], ready: &[u8]) -> Result<(), String> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let mut said = Vec::new();
    let serves = async {
        if let Some(mut stdin) = stdin {
            stdin.write_all(input).await?;
        }
        if let Some(mut stdout) = stdout {
            stdout.read_to_end(&mut said).await?;
        }
        Ok::<_, io::Error>(said == ready)
    };
    match tokio::time::timeout(LIMIT, serves).await {
        Ok(Ok(true)) => return Ok(()),
        Ok(_) => {}
        // A process that has ended meanwhile cannot be killed, and need not be.
        Err(_elapsed) => drop(child.start_kill()),
    }
    let mut reason = Vec::new();
    if let Some(stderr) = stderr {
        // What cannot be read is left out of the message.
        stderr.take(2000).read_to_end(&mut reason).await.ok();
    }
    Err(String::from_utf8_lossy(&reason).replace(char::is_control, " ").trim().to_owned())
}

//! Runs nft and dnsmasq: the only programs that get privileges from nixbox.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use rustix::thread::{CapabilitySet, capabilities, configure_capability_in_ambient_set, set_capabilities};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// Not installed, or not where it would be trusted.
    #[error("{0} is not installed (looked in {1})")]
    Missing(&'static str, String),
    /// It could not be run, spoken to or waited for.
    #[error("cannot {what} {path}")]
    Run {
        /// The verb.
        what: &'static str,
        /// The program.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// It was killed then.
    #[error("{path} did not end within {limit:?}")]
    TimedOut {
        /// The program.
        path: PathBuf,
        /// How long it was given.
        limit: Duration,
    },
    /// It says no.
    #[error("{path} failed ({status}): {stderr}")]
    Failed {
        /// The program.
        path: PathBuf,
        /// Exit status or signal.
        status: std::process::ExitStatus,
        /// What it wrote to stderr, trimmed and at most 2000 bytes of it.
        stderr: String,
    },
    /// The thread that was to start it could not be made, or panicked.
    #[error("cannot start a thread to run {0}")]
    Thread(&'static str),
}

/// What to run.
pub(super) struct NetworkTool<'a> {
    pub(super) name: &'static str,
    pub(super) arguments: &'a [&'a str],
    /// All of its environment.
    pub(super) environment: &'a [(&'static str, String)],
    pub(super) input: &'a [u8],
    pub(super) limit: Duration,
}

/// Where system programs are; users cannot write there.
const TRUSTED: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Where the program is. Root's own PATH is searched first. A user's is not: whoever may run a nixbox with
/// capabilities would give them to any program of his.
pub(super) fn locate(name: &'static str) -> Result<PathBuf, ProgramError> {
    let root = rustix::process::getuid().is_root() && rustix::process::geteuid().is_root();
    let path = std::env::var_os("PATH").filter(|_| root).unwrap_or_default();
    let own = std::env::split_paths(&path).filter(|directory| directory.is_absolute());
    let directories: Vec<PathBuf> = own.chain(TRUSTED.iter().map(PathBuf::from)).collect();
    let found = directories.iter().map(|directory| directory.join(name)).find(|path| path.is_file());
    found.ok_or_else(|| {
        let places: Vec<_> = directories.iter().map(|path| path.display().to_string()).collect();
        ProgramError::Missing(name, places.join(", "))
    })
}

/// Hand what this thread may do of the network to the programs that it starts. Root needs none of it.
fn raise_ambient() -> rustix::io::Result<()> {
    let wanted = CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW | CapabilitySet::NET_BIND_SERVICE;
    let mut sets = capabilities(None)?;
    let ours = sets.permitted & wanted;
    sets.inheritable |= ours;
    set_capabilities(None, sets)?;
    ours.iter().try_for_each(|one| configure_capability_in_ambient_set(one, true))
}

impl NetworkTool<'_> {
    /// Run it to its end and return what it wrote. Ended if it takes longer than its limit, or if this future is
    /// dropped.
    pub(super) async fn run(&self) -> Result<Output, ProgramError> {
        let path = locate(self.name)?;
        let failed = |what, source| ProgramError::Run { what, path: path.clone(), source };
        let mut child = self.spawn(&path)?;
        let input = child.stdin.take();
        let talk = async {
            if let Some(mut input) = input {
                match input.write_all(self.input).await {
                    // It ended without reading; its status and stderr say why.
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                    other => other.map_err(|error| failed("write to", error))?,
                }
            }
            child.wait_with_output().await.map_err(|error| failed("wait for", error))
        };
        let output = tokio::time::timeout(self.limit, talk)
            .await
            .map_err(|_elapsed| ProgramError::TimedOut { path: path.clone(), limit: self.limit })??;
        if output.status.success() {
            return Ok(output);
        }
        let stderr =
            String::from_utf8_lossy(&output.stderr[..output.stderr.len().min(2000)]).trim().to_owned();
        Err(ProgramError::Failed { path, status: output.status, stderr })
    }

    /// Ambient capabilities are a thread's, and are inherited: raised in a thread that does nothing else and ends,
    /// they reach this program alone.
    fn spawn(&self, path: &Path) -> Result<tokio::process::Child, ProgramError> {
        let failed = |what, source| ProgramError::Run { what, path: path.to_owned(), source };
        let mut command = Command::new(path);
        command
            .args(self.arguments)
            .env_clear()
            .env("PATH", TRUSTED.join(":"))
            .env("LC_ALL", "C")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir("/")
            // A Ctrl-C at the terminal is for nixbox to handle.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let runtime = tokio::runtime::Handle::current();
        let start = move || {
            let _in_runtime = runtime.enter();
            if !rustix::process::geteuid().is_root() {
                raise_ambient().map_err(io::Error::from)?;
            }
            command.spawn()
        };
        let thread = std::thread::Builder::new().name("spawn".to_owned()).spawn(start);
        let child = thread.map_err(|_error| ProgramError::Thread(self.name))?.join();
        child.map_err(|_panic| ProgramError::Thread(self.name))?.map_err(|error| failed("start", error))
    }
}

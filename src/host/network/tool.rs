//! Runs nft and dnsmasq: the only programs that get privileges from nixbox.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use rustix::thread::{capabilities, configure_capability_in_ambient_set, set_capabilities};
use tokio::process::Command;

use crate::host::process::ProcessMark;
use crate::host::program::{self, ProgramError, SYSTEM_DIRECTORIES};
use crate::host::sudo;
use crate::world::Interrupt;

/// What to run.
pub(super) struct NetworkTool<'a> {
    pub(super) name: &'static str,
    pub(super) arguments: &'a [&'a str],
    /// The mark by which the process is found again.
    pub(super) mark: Option<&'a ProcessMark>,
    pub(super) input: &'a [u8],
    pub(super) limit: Duration,
}

/// Where the program is. Root's own PATH is searched first. A user's PATH is not: otherwise every user who may run a
/// nixbox with capabilities could give these to a program of his own.
pub(super) fn locate(name: &'static str) -> Result<PathBuf, ProgramError> {
    let root = rustix::process::getuid().is_root() && rustix::process::geteuid().is_root();
    let own = if root { program::path_directories() } else { vec![] };
    program::locate(name, if name == "nft" { "nftables" } else { "dnsmasq" }, own)
}

/// Hands the capabilities of this thread for the network to the programs that it starts. Root needs none of them.
fn raise_ambient() -> rustix::io::Result<()> {
    let mut sets = capabilities(None)?;
    let permitted = sets.permitted & sudo::NEEDED;
    sets.inheritable |= permitted;
    set_capabilities(None, sets)?;
    permitted.iter().try_for_each(|one| configure_capability_in_ambient_set(one, true))
}

impl NetworkTool<'_> {
    /// Runs the program to its end, and returns what it wrote. The program is killed if it takes longer than its limit,
    /// or if this future is dropped.
    pub(super) async fn run(&self) -> Result<Output, ProgramError> {
        let path = locate(self.name)?;
        program::finish(self.spawn(&path)?, &path, self.input, self.limit, &Interrupt::new()).await
    }

    /// Ambient capabilities belong to a thread, and its children inherit them. They are raised in a thread that starts
    /// this program and then ends, so that no other program gets them.
    fn spawn(&self, path: &Path) -> Result<tokio::process::Child, ProgramError> {
        let mut command = Command::new(path);
        command
            .args(self.arguments)
            .env_clear()
            .env("PATH", SYSTEM_DIRECTORIES.join(":"))
            .env("LC_ALL", "C")
            .envs(self.mark.into_iter().flat_map(ProcessMark::environment))
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
        child.map_err(|_panic| ProgramError::Thread(self.name))?.map_err(|source| ProgramError::Run {
            action: "start",
            path: path.to_owned(),
            source,
        })
    }
}

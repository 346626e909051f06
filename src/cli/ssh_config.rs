//! `nixbox ssh-config`, by which other programs reach the guest, and `nixbox ssh-proxy`, which these programs start.
//!
//! [`entry`] writes the entry for ssh, and [`installed`] keeps it in the directory of the user's ssh.

use tokio::io::AsyncWriteExt as _;

use super::command::{OpenWorkspace, block_on};
use super::error::{self, CliError, Outcome, Problem};
use super::{WorkspaceLocation, rebooted, success};
use crate::engine::transition::Interrupt;
use crate::files::{FileError, Folder};
use crate::workspace::Workspace;
use crate::world::WorkspaceId;
use entry::SshEntry;

mod entry;
pub(super) mod installed;

/// The file that ssh reads the guest's host key from: a copy of the pin of the disk that the VM has.
const KNOWN_HOSTS: &str = "known_hosts";

/// Print an entry for ssh_config, by which ssh, scp, rsync, git and editors reach the VM
///
/// The entry stays right when the VM is restored or started anew. It connects through nixbox, because the guest is in a
/// network of its own, and accepts only the guest's host key that nixbox has learned. Without --install the entry is printed.
/// With it the entry is written to ~/.ssh/nixbox, which ~/.ssh/config includes from then on.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: nixbox ssh-config --install && ssh nixbox-demo\n\
    Example: nixbox ssh-config > entry && scp -F entry nixbox-demo:file .")]
pub(super) struct Arguments {
    /// Write the entry to the user's ssh configuration
    #[arg(long)]
    install: bool,
    /// Remove what --install has written for this workspace
    #[arg(long, conflicts_with = "install")]
    uninstall: bool,
}

pub(super) fn run(location: &WorkspaceLocation, arguments: &Arguments) -> Outcome {
    let open = OpenWorkspace::open(location)?;
    let id = open.workspace.id();
    if arguments.uninstall {
        let removed = installed::remove(&installed::home()?, id)?;
        let words = if removed { "the entry was removed" } else { "there was no entry" };
        error::print_stderr(&format!("nixbox: {words}\n"));
        return success();
    }
    let home = installed::home()?;
    let taken = installed::names(&home, id)?;
    let entry = entry_of(open, |name| taken.contains(name))?;
    if arguments.install {
        installed::install(&home, id, &entry.text())?;
        error::print_stderr(&format!("nixbox: `ssh {}` reaches the VM\n", entry.host));
    } else {
        error::print(&entry.text())?;
    }
    success()
}

/// The entry of a workspace: of the VM that runs, or of the configuration if none does.
fn entry_of(open: OpenWorkspace, is_taken: impl Fn(&str) -> bool) -> Result<SshEntry, Problem> {
    let OpenWorkspace { workspace, config, record, .. } = open;
    let spec = match record? {
        Some(record) => record.spec.moved(&record.root, workspace.root()),
        None => config?.vm_spec(),
    };
    let program = std::env::current_exe().map_err(CliError::NoOwnProgram)?;
    let state = std::env::var("XDG_STATE_HOME").ok();
    let known_hosts = workspace.ssh().join(KNOWN_HOSTS);
    let paths = [program, spec.guest.ssh_key.as_path().to_owned(), known_hosts];
    Ok(SshEntry::new(&workspace, &spec.guest.user, paths, state, is_taken)?)
}

/// Connect an ssh to the guest: stdin and stdout are the connection
#[derive(Debug, clap::Args)]
pub(super) struct ProxyArguments {
    /// The workspace
    workspace: WorkspaceId,
}

pub(super) fn run_proxy(location: &WorkspaceLocation, arguments: &ProxyArguments) -> Outcome {
    let location = WorkspaceLocation { directory: location.directory.clone(), id: Some(arguments.workspace) };
    let (open, vm) = OpenWorkspace::of_running_vm(&location)?;
    let ssh = Folder::open(&open.workspace.ssh()).map_err(CliError::from)?;
    let wiring = open.wire_for(&vm)?;
    // This pins the guest's host key. It also reports a guest that does not answer.
    let is_rebooted = block_on(async {
        let connected = wiring.guest.connect(&vm.machine, &Interrupt::new()).await;
        let shell = connected.map_err(CliError::Connect)?;
        wiring.guest.put_clock_right(&shell).await;
        let is_rebooted = rebooted::is_rebooted(&vm, &shell);
        shell.session.close().await;
        Ok(is_rebooted)
    })?;
    if is_rebooted {
        rebooted::equip(&location)?;
    }
    // ssh reads this file only when it has got the first bytes of the connection.
    let pinned = wiring.guest.pin(vm.machine.disk).line().map_err(CliError::Pin)?.unwrap_or_default();
    keep(&ssh, pinned.as_bytes()).map_err(CliError::from)?;
    let runtime = super::command::runtime()?;
    let relayed = runtime.block_on(async {
        let guest = wiring.guest.dial(&vm.machine).await?;
        let (mut from_guest, mut to_guest) = guest.into_split();
        let (mut stdin, mut stdout) = (tokio::io::stdin(), tokio::io::stdout());
        let up = async {
            tokio::io::copy(&mut stdin, &mut to_guest).await?;
            to_guest.shutdown().await?;
            std::future::pending().await
        };
        // The connection ends with what the guest sends.
        let down = async {
            tokio::io::copy(&mut from_guest, &mut stdout).await?;
            stdout.flush().await
        };
        tokio::select! { ended = up => ended, ended = down => ended }
    });
    // A thread may still be blocked in a read of stdin.
    runtime.shutdown_background();
    relayed.map_err(CliError::Relay)?;
    success()
}

fn keep(ssh: &Folder, known_hosts: &[u8]) -> Result<(), FileError> {
    match ssh.read(KNOWN_HOSTS, installed::LONGEST)? {
        Some(same) if same == known_hosts => Ok(()),
        _ => ssh.replace(KNOWN_HOSTS, known_hosts),
    }
}

/// The name of the workspace for people: that of its directory.
fn name_of(workspace: &Workspace) -> String {
    workspace.root().file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

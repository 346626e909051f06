//! `nixbox cp`.

use std::ffi::OsString;

use super::WorkspaceLocation;
use super::equipped::{self, EquippedGuest};
use super::error::{self, ExitKind, Outcome, Problem};
use super::{command, signals, success, wiring};
use crate::guest::shell::Shell;
use location::{CopyRoute, LocationError};
use pack::ToldEntries;
use transfer::{Transfer, TransferError};

mod location;
mod pack;
mod transfer;
mod unpack;

/// Copy files and directories between this host and the VM
///
/// A path in the VM is written vm:PATH; a relative PATH is below the home of the VM's user, and vm:~ is that home. If
/// TARGET is a directory that exists, the sources go into it; otherwise TARGET is the new name of the only source.
/// Directories are copied whole, and DIR/. copies what is in DIR. Permissions and times of files are kept, and everything
/// belongs to the user who receives it. A link that is named is followed, and links in a directory are copied as links.
/// On this host files are replaced whole or not at all, and nothing that the VM sends is written outside of TARGET.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: nixbox cp vm:target/report.html vm:logs .\n\
    Example: tar -c src | nixbox cp - vm:src.tar")]
pub(super) struct Arguments {
    /// The files and directories to copy, or `-` for stdin
    #[arg(required = true, value_name = "SOURCE")]
    sources: Vec<OsString>,
    /// Where to copy them, or `-` to write one file to stdout
    #[arg(value_name = "TARGET")]
    target: OsString,
}

pub(super) fn run(location: &WorkspaceLocation, arguments: &Arguments) -> Outcome {
    let current = std::env::current_dir().map_err(|error| Problem::new(ExitKind::Failed, error))?;
    let direction = CopyRoute::parse(&arguments.sources, &arguments.target, &current)?;
    let EquippedGuest { wiring, vm, shell, runtime } = equipped::reach_for_long(location)?;
    let shared = wiring::shared_paths(&wiring.spec);
    let copied = runtime.block_on(async {
        let interrupted = std::pin::pin!(signals::first()?);
        let mut transfer = Transfer { shell: &shell, shared: &shared, interrupted };
        let copying = copy(&mut transfer, &direction);
        let copied = equipped::while_vm_runs(location, &wiring, &vm, copying).await?;
        let Shell { session, .. } = shell;
        session.close().await;
        Ok::<_, Problem>(copied)
    });
    // A thread may still be blocked in a read of stdin or a write to stdout, which cannot be interrupted.
    runtime.shutdown_timeout(command::LAST_WAIT);
    let left_out = copied?;
    match left_out.first {
        None => success(),
        Some(first) => Err(IncompleteCopy::LeftOut { count: left_out.count, first }.into()),
    }
}

async fn copy(transfer: &mut Transfer<'_>, direction: &CopyRoute) -> Result<ToldEntries, Problem> {
    match direction {
        CopyRoute::StdinToGuest(target) => {
            transfer.stdin_to_guest(tokio::io::stdin(), target).await?;
            Ok(ToldEntries::default())
        }
        CopyRoute::GuestToStdout(source) => {
            transfer.guest_to_stdout(source, std::io::stdout()).await?;
            Ok(ToldEntries::default())
        }
        CopyRoute::ToGuest(sources, target) => Ok(transfer.send_files(sources, target).await?),
        CopyRoute::ToHost(sources, target) => {
            let mut left_out = ToldEntries::default();
            for source in sources {
                let received = transfer.receive(source, target, sources.len() > 1).await?;
                if let Some(words) = received.changed {
                    let shown = source.shown();
                    error::print_stderr(&format!(
                        "nixbox: files of {shown} changed while they were read{words}\n"
                    ));
                }
                tell_links(&source.shown(), &received.unpacked.links_out);
                left_out.merge(received.unpacked.left_out);
            }
            Ok(left_out)
        }
    }
}

/// Says that links were made that lead to other files of this host than they did in the guest.
fn tell_links(source: &str, links: &ToldEntries) {
    if let Some(first) = &links.first {
        error::print_stderr(&format!(
            "nixbox: {} of the links in {source} lead out of it, the first of them {first:?}: they were copied as they are, and \
             mean files of this host now\n",
            links.count
        ));
    }
}

/// Why not all was copied.
#[derive(Debug, thiserror::Error)]
enum IncompleteCopy {
    #[error(
        "{count} devices, sockets and named pipes were not copied, the first of them {first:?}; all else was"
    )]
    LeftOut { count: usize, first: String },
}

impl From<IncompleteCopy> for Problem {
    fn from(error: IncompleteCopy) -> Self {
        Self::new(ExitKind::Failed, error)
    }
}

impl From<LocationError> for Problem {
    fn from(error: LocationError) -> Self {
        Self::new(ExitKind::Usage, error)
    }
}

impl From<TransferError> for Problem {
    fn from(error: TransferError) -> Self {
        let exit = match error {
            TransferError::NotInGuest(_) => ExitKind::NotFound,
            TransferError::Interrupted(_) => ExitKind::Interrupted,
            _ => ExitKind::Failed,
        };
        Self::new(exit, error)
    }
}

//! `nixbox network-namespace`: the child that works in the network namespace of a VM, which nixbox itself starts, and
//! `nixbox guest-connection`, by which ssh reaches the guest.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::command::block_on;
use super::error::{self, CliError, Outcome};
use super::success;
use super::wiring::WiringError;
use super::wiring::place::{self, PlaceError};
use crate::host::network::{child, inside, namespace};
use crate::world::{NamespaceKeeping, WorkspaceId};

/// Prints a reason on one line, because nixbox repeats it.
pub(super) fn run(arguments: &[OsString]) -> Outcome {
    match child::launch(arguments) {
        Ok(()) => success(),
        Err(refused) => {
            error::print_stderr(&format!("{}\n", error::chain(&refused)));
            Ok(inside::REFUSED)
        }
    }
}

/// Connect to the guest, and hand the connection over on stdout
#[derive(Debug, clap::Args)]
pub(super) struct ConnectionArguments {
    /// The workspace
    workspace: WorkspaceId,
    /// The directory for the sockets of the VM
    runtime: PathBuf,
    /// The address and port of the guest
    address: SocketAddr,
    /// How the network namespace is kept: "name" or "holder"
    namespace: NamespaceKeeping,
}

pub(super) fn run_connection(arguments: &ConnectionArguments) -> Outcome {
    let namespace = place::namespace(arguments.workspace, None, Some(arguments.namespace))
        .map_err(PlaceError::from)
        .map_err(WiringError::from)?;
    block_on(async {
        namespace::hand_connection_over(&namespace, &arguments.runtime, arguments.address, std::io::stdout())
            .await
            .map_err(|source| CliError::GuestConnection { address: arguments.address, source }.into())
    })?;
    success()
}

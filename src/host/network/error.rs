//! How the network of a VM fails.

use std::path::PathBuf;

use super::link::LinkError;
use super::namespace::NamespaceError;
use super::nft::RulesError;
use super::pasta_uplink::PastaUplinkError;
use super::uplink::UplinkError;
use crate::files::FileError;
use crate::host::process::ProcessError;
use crate::host::program::ProgramError;
use crate::world::{Failure, Slot};

/// Why the network of a slot cannot be found, built or removed.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("the network of slot {slot}: device")]
    Link { slot: Slot, source: LinkError },
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    #[error("the uplink of the VM")]
    Uplink(#[from] UplinkError),
    #[error("the uplink of the VM")]
    Pasta(#[from] PastaUplinkError),
    #[error("the network of slot {slot}: firewall")]
    Firewall { slot: Slot, source: RulesError },
    #[error("cannot look at the network of this host")]
    Host { source: LinkError },
    #[error("cannot look at the firewalls of this host")]
    Firewalls { source: ProgramError },
    #[error("the network of slot {slot}: DHCP and DNS do not start")]
    Start { slot: Slot, source: ProgramError },
    #[error("the network of slot {slot}: DHCP and DNS daemon, or nft")]
    Process { slot: Slot, source: ProcessError },
    /// A file in the runtime directory.
    #[error(transparent)]
    File(#[from] FileError),
    #[error(
        "{0:?} must be a directory of this user that nobody else may write to, because dnsmasq reads its configuration there"
    )]
    UnsafeDirectory(PathBuf),
    #[error(
        "{0:?} cannot be the runtime directory: a path without line breaks, `#`, quotes and backslashes is needed"
    )]
    OddDirectory(PathBuf),
    #[error(
        "this dnsmasq cannot fill nftables sets, which filtered mode needs: install version 2.87 or later, \
         built with nftset"
    )]
    NoSets,
}

impl From<NetworkError> for Failure {
    fn from(error: NetworkError) -> Self {
        Self::world(error)
    }
}

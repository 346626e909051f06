//! What [`SshGuest`](super::SshGuest) is told of the guests that it reaches, and who is told what happens there.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use russh::keys::PrivateKey;

use crate::guest::channel::{Dial, Limits};
use crate::guest::credentials::Wanted;
use crate::guest::key::KeyError;
use crate::guest::mounts::Mount;
use crate::guest::scripts::GuestScriptNotice;
use crate::guest::settle::Unsettled;
use crate::world::{Generation, GuestScriptPoint, Machine, ReadyTimeout, Slot, UserIds, UserName};

/// Gives the address of the guest's SSH server, by the VM's slot.
pub type Address = dyn Fn(Slot) -> SocketAddr + Send + Sync;

/// Gives the path of the file for the host key of a generation of disks. Its directory exists.
pub type PinPath = dyn Fn(Generation) -> PathBuf + Send + Sync;

/// Is told what a guest was not given when it went on, and why.
pub type UnsettledObserver = dyn Fn(&Unsettled) + Send + Sync;

/// Is told which swap of the guest could not be switched on again, and why.
pub type SwapObserver = dyn Fn(&str) + Send + Sync;

/// Is told of a script in the guest that did not succeed, or that runs again. The operation goes on.
pub type GuestScriptObserver = dyn Fn(&GuestScriptNotice) + Send + Sync;

/// Is told how long a guest has not answered yet, as long as it does not.
pub type WaitingObserver = dyn Fn(&Machine, Duration) + Send + Sync;

/// Is told which numbers the guest's user has.
pub type UserObserver = dyn Fn(UserIds) + Send + Sync;

/// Gives how much a guest has written to its console, in bytes.
pub type ConsoleSize = dyn Fn(&Machine) -> Option<u64> + Send + Sync;

/// The settings for reaching the guests of one workspace, and the credentials and shares that the guests get.
pub struct GuestSettings {
    /// The user to log in as: root, or a user with `sudo` without a password.
    pub user: UserName,
    /// The key that the image accepts for a login, or why it cannot be used. Then no call reaches the guest.
    pub key: std::result::Result<Arc<PrivateKey>, Arc<KeyError>>,
    /// The file for the host key of a generation of disks. The file lies beside the disk images, and is copied and
    /// removed with them.
    pub pin: Arc<PinPath>,
    /// The address of the SSH server: [`address`](super::address), except in the simulator and in tests.
    pub address: Arc<Address>,
    /// Connects to that address.
    pub dial: Arc<Dial>,
    /// The credentials that the guest gets, and the files to wipe.
    pub wanted: Wanted,
    /// The state of the workspace, which keeps fingerprints of the credentials for the search of snapshots.
    pub state: PathBuf,
    /// Whether a guest that cannot be given fresh entropy must not go on.
    pub require_entropy: bool,
    /// Is told why a guest could not be settled, also where an operation goes on without it.
    pub on_unsettled: Arc<UnsettledObserver>,
    /// Is told that a guest that goes on lacks swap that it had.
    pub on_no_swap: Arc<SwapObserver>,
    /// Is told that shares which were gone were mounted anew: what the guest's processes had open there is lost to them.
    pub on_remounted: Arc<dyn Fn() + Send + Sync>,
    /// Is told, each time that the guest is SSH-ready, which numbers its user has.
    pub on_user: Arc<UserObserver>,
    /// Is told that the guest is waited for, several times a second.
    pub on_waiting: Arc<WaitingObserver>,
    /// The shares that the guest mounts.
    pub mounts: Vec<Mount>,
    /// The time limit from the first attempt until a command has run. It includes the boot of the guest, and is longer for
    /// a guest whose console grows.
    pub ready: ReadyTimeout,
    /// The size of the guest's console.
    pub console: Arc<ConsoleSize>,
    /// The scripts that run in the guest, by the point at which they run.
    pub scripts: BTreeMap<GuestScriptPoint, Vec<String>>,
    /// Is told of a script that did not succeed, or that runs again.
    pub on_script: Arc<GuestScriptObserver>,
    /// Limits of single connections.
    pub limits: Limits,
}

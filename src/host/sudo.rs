//! Called through sudo, nixbox goes on as the user who called it, and keeps nothing of root but what the network needs.
//!
//! So the files, daemons and scripts of a workspace are its user's whichever way nixbox was started, and it is the same
//! case as a nixbox whose file has those capabilities. Without `SUDO_UID` a root is a root.

use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::thread::{CapabilitySet, CapabilitySets};

use super::slots::{self, HostSlots, SlotError};
use super::spawn::{self, Invoker, SpawnError};
use crate::world::WorkspaceId;

/// What the network needs: TAP, routes and nftables; the DHCP server's raw and low sockets.
pub const NEEDED: CapabilitySet =
    CapabilitySet::NET_ADMIN.union(CapabilitySet::NET_RAW).union(CapabilitySet::NET_BIND_SERVICE);

/// Why nixbox cannot become the user who called sudo.
#[derive(Debug, thiserror::Error)]
pub enum SudoError {
    /// The user who called sudo is not known, or may not run nixbox.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// The directory for slots is root's to make.
    #[error(transparent)]
    Slots(#[from] SlotError),
    /// The user data base cannot be asked.
    #[error("user {uid}, who called sudo, cannot be looked up")]
    User {
        /// The user.
        uid: u32,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The system says no.
    #[error("cannot {what}")]
    System {
        /// What was to be done.
        what: &'static str,
        /// What the system says.
        #[source]
        source: io::Error,
    },
}

fn failed<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> SudoError {
    move |source| SudoError::System { what, source: source.into() }
}

/// If this process is root by way of sudo: starts itself anew as the user who called it, with [`NEEDED`], and does not
/// return. To be called before there is a second thread. Otherwise sees to it that no program that is started gets
/// capabilities without being given them.
///
/// # Errors
/// If it cannot become that user, or that user may not run nixbox's own program.
pub fn become_invoker() -> Result<(), SudoError> {
    let root = rustix::process::getuid().is_root() && rustix::process::geteuid().is_root();
    let invoker = Invoker::detect()?;
    if !root || invoker.uid() == 0 {
        return rustix::thread::clear_ambient_capability_set()
            .map_err(failed("clear the ambient capabilities"));
    }
    let program = std::env::current_exe().map_err(failed("find nixbox's own program"))?;
    spawn::check_access(&invoker, "nixbox", &program)?;
    HostSlots::new(slots::DIRECTORY, WorkspaceId([0; 16]), "/").ensure()?;
    change_to(&invoker)?;
    let mut command = Command::new(program);
    command.args(std::env::args_os().skip(1));
    for variable in ["SUDO_UID", "SUDO_GID", "SUDO_USER", "SUDO_COMMAND"] {
        command.env_remove(variable);
    }
    let user = nix::unistd::User::from_uid(invoker.uid().into())
        .map_err(|source| SudoError::User { uid: invoker.uid(), source: source.into() })?;
    match user {
        Some(user) => {
            let name: &OsStr = user.name.as_ref();
            command.env("HOME", user.dir).env("USER", name).env("LOGNAME", name)
        }
        None => command.env_remove("HOME"),
    };
    Err(failed("start nixbox anew")(command.exec()))
}

fn change_to(invoker: &Invoker) -> Result<(), SudoError> {
    rustix::thread::set_keep_capabilities(true).map_err(failed("keep capabilities"))?;
    let groups: Vec<_> = invoker.groups().iter().map(|group| nix::unistd::Gid::from_raw(*group)).collect();
    let (uid, gid) = (nix::unistd::Uid::from_raw(invoker.uid()), nix::unistd::Gid::from_raw(invoker.gid()));
    nix::unistd::setgroups(&groups).map_err(failed("take on the user's groups"))?;
    nix::unistd::setresgid(gid, gid, gid).map_err(failed("take on the user's group"))?;
    nix::unistd::setresuid(uid, uid, uid).map_err(failed("become the user who called sudo"))?;
    let sets = CapabilitySets { effective: NEEDED, permitted: NEEDED, inheritable: NEEDED };
    rustix::thread::set_capabilities(None, sets).map_err(failed("give up capabilities"))?;
    for capability in NEEDED.iter() {
        rustix::thread::configure_capability_in_ambient_set(capability, true)
            .map_err(failed("keep capabilities"))?;
    }
    Ok(())
}

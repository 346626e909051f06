//! If nixbox is called through sudo, it becomes the user who called sudo, and keeps only the capabilities of root that
//! the network needs.
//!
//! So the files, daemons and scripts of a workspace belong to its user, however nixbox was started: nixbox through sudo is
//! the same case as a nixbox whose file has those capabilities. Root without `SUDO_UID` stays root.

use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::thread::{CapabilitySet, CapabilitySets};

use super::slots::{self, HostSlots, SlotError};
use super::spawn::{self, Invoker, SpawnError};
use crate::world::WorkspaceId;

/// What the network needs: for TAPs, routes and nftables, and for the raw and low sockets of the DHCP server.
pub const NEEDED: CapabilitySet =
    CapabilitySet::NET_ADMIN.union(CapabilitySet::NET_RAW).union(CapabilitySet::NET_BIND_SERVICE);

/// Why nixbox cannot become the user who called sudo.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum SudoError {
    /// The user who called sudo is not known, or may not run nixbox.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// Only root can make the directory for slots.
    #[error(transparent)]
    Slots(#[from] SlotError),
    #[error("cannot {action}")]
    System { action: &'static str, source: io::Error },
}

fn failed<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> SudoError {
    move |source| SudoError::System { action, source: source.into() }
}

/// If this process is root through sudo, starts nixbox anew as the user who called sudo, with [`NEEDED`], and does not
/// return. Otherwise makes sure that the programs that nixbox starts inherit no capabilities. This has to be called
/// before there is a second thread.
///
/// # Errors
/// If nixbox cannot become that user, or that user may not run nixbox's own program.
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
        .map_err(failed("look up the user who called sudo"))?;
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

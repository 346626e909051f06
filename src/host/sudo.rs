//! If nixbox is called through sudo, it becomes the user who called sudo, and keeps only the capabilities of root that
//! the network needs: those of [`NEEDED`], which are in effect, and those of [`NAMESPACES`], which are not. The latter take
//! effect in a child that makes or enters the network namespace of a VM, and nowhere else.
//!
//! So the files, daemons and scripts of a workspace belong to its user, however nixbox was started. Root without `SUDO_UID`
//! stays root. Without sudo an ordinary user has, and needs, none of these capabilities over the host: those of the user's nft
//! and dnsmasq are over a user namespace.

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

/// What a network namespace needs: to make, enter and mount it, and to give it a name in a directory of root's.
pub const NAMESPACES: CapabilitySet = CapabilitySet::SYS_ADMIN.union(CapabilitySet::DAC_OVERRIDE);

/// Whether this process may give a VM a network namespace of its own.
#[must_use]
pub fn may_make_namespaces() -> bool {
    rustix::thread::capabilities(None).is_ok_and(|sets| sets.permitted.contains(NEEDED.union(NAMESPACES)))
}

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
        rustix::thread::clear_ambient_capability_set().map_err(failed("clear the ambient capabilities"))?;
        return if root { Ok(()) } else { take_effect(false).map_err(failed("lay capabilities aside")) };
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

/// Lets the capabilities of [`NAMESPACES`] that this thread may have take effect, or not.
///
/// # Errors
/// If the kernel refuses, which it does not.
pub fn take_effect(wanted: bool) -> io::Result<()> {
    let sets = rustix::thread::capabilities(None)?;
    let others = sets.effective - NAMESPACES;
    let effective = if wanted { others | (sets.permitted & NAMESPACES) } else { others };
    Ok(rustix::thread::set_capabilities(None, CapabilitySets { effective, ..sets })?)
}

fn change_to(invoker: &Invoker) -> Result<(), SudoError> {
    rustix::thread::set_keep_capabilities(true).map_err(failed("keep capabilities"))?;
    let groups: Vec<_> = invoker.groups().iter().map(|group| nix::unistd::Gid::from_raw(*group)).collect();
    let (uid, gid) = (nix::unistd::Uid::from_raw(invoker.uid()), nix::unistd::Gid::from_raw(invoker.gid()));
    nix::unistd::setgroups(&groups).map_err(failed("take on the user's groups"))?;
    nix::unistd::setresgid(gid, gid, gid).map_err(failed("take on the user's group"))?;
    nix::unistd::setresuid(uid, uid, uid).map_err(failed("become the user who called sudo"))?;
    let kept = NEEDED.union(NAMESPACES);
    // A container may have withheld some from root.
    let permitted = rustix::thread::capabilities(None).map_err(failed("look at capabilities"))?.permitted;
    let kept = kept & (permitted | NEEDED);
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: kept };
    rustix::thread::set_capabilities(None, sets).map_err(failed("give up capabilities"))?;
    for capability in kept.iter() {
        rustix::thread::configure_capability_in_ambient_set(capability, true)
            .map_err(failed("keep capabilities"))?;
    }
    Ok(())
}

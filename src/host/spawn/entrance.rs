//! What a child of nixbox does between fork and exec to start its program in the network of a VM. nixbox itself stays where
//! it is: a process with threads may not enter a user namespace, and the child has one thread.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;

use rustix::process::Signal;
use rustix::thread::{CapabilitySet, CapabilitySets, LinkNameSpaceType, move_into_link_name_space};

/// The network namespace of a VM, and the user namespace that it belongs to, if that is not nixbox's own.
#[derive(Debug)]
pub struct NamespaceEntrance {
    user: Option<OwnedFd>,
    network: OwnedFd,
}

impl NamespaceEntrance {
    /// A network namespace that belongs to the user namespace of nixbox. To enter it, nixbox needs `CAP_SYS_ADMIN`.
    #[must_use]
    pub fn of_network(network: OwnedFd) -> Self {
        Self { user: None, network }
    }

    /// A network namespace that belongs to this user namespace, which the user of nixbox has made. To enter both, nixbox
    /// needs no capability.
    #[must_use]
    pub fn of_user(user: OwnedFd, network: OwnedFd) -> Self {
        Self { user: Some(user), network }
    }

    /// The network namespace.
    #[must_use]
    pub fn network(&self) -> BorrowedFd<'_> {
        self.network.as_fd()
    }

    /// Moves this process, which has one thread, to the user namespace, and gives the program that it becomes these
    /// capabilities there. Makes system calls only.
    fn enter_user(&self, capabilities: CapabilitySet) -> io::Result<()> {
        let Some(user) = &self.user else { return Ok(()) };
        // The process has all capabilities in the namespace from here on, and would lose them with its exec.
        move_into_link_name_space(user.as_fd(), Some(LinkNameSpaceType::User))?;
        let sets = rustix::thread::capabilities(None)?;
        let inheritable = sets.permitted & capabilities;
        rustix::thread::set_capabilities(None, CapabilitySets { inheritable, ..sets })?;
        for capability in inheritable.iter() {
            rustix::thread::configure_capability_in_ambient_set(capability, true)?;
        }
        Ok(())
    }

    /// Moves this process, which has one thread, to the network namespace. Makes system calls only.
    fn enter_network(&self) -> io::Result<()> {
        let sets = rustix::thread::capabilities(None)?;
        let effective = sets.effective | (sets.permitted & CapabilitySet::SYS_ADMIN);
        rustix::thread::set_capabilities(None, CapabilitySets { effective, ..sets })?;
        move_into_link_name_space(self.network(), Some(LinkNameSpaceType::Network))?;
        rustix::thread::set_capabilities(None, sets)?;
        Ok(())
    }
}

/// Lets the program of this command run in the network of a VM, with these capabilities if the network belongs to a user
/// namespace. Otherwise nixbox needs `CAP_SYS_ADMIN` among its permitted capabilities.
#[allow(unsafe_code)]
pub(in crate::host) fn enter(
    command: &mut Command,
    entrance: Arc<NamespaceEntrance>,
    capabilities: CapabilitySet,
) {
    let enter = move || {
        entrance.enter_user(capabilities)?;
        entrance.enter_network()
    };
    // SAFETY: the closure runs in the forked child, where only async-signal-safe calls are sound. It makes system calls
    // through rustix and neither allocates nor locks.
    unsafe { command.pre_exec(enter) };
}

/// Lets the program of this command run in the user namespace of a VM's network, with these capabilities, and in the
/// network of nixbox.
#[allow(unsafe_code)]
pub(in crate::host) fn enter_user_namespace(
    command: &mut Command,
    entrance: Arc<NamespaceEntrance>,
    capabilities: CapabilitySet,
) {
    // SAFETY: as for `enter`.
    unsafe { command.pre_exec(move || entrance.enter_user(capabilities)) };
}

/// Lets the kernel kill the program of this command when this thread ends, however that comes about.
#[allow(unsafe_code)]
pub(in crate::host) fn end_with_parent(command: &mut Command) {
    let parent = rustix::process::getpid();
    let bind = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have ended before the signal was asked for.
        if rustix::process::getppid() == Some(parent) {
            Ok(())
        } else {
            Err(io::ErrorKind::NotConnected.into())
        }
    };
    // SAFETY: as for `enter`; an `io::Error` of a kind does not allocate.
    unsafe { command.pre_exec(bind) };
}

//! Keeps each daemon of a VM in a systemd scope of its own, so that they outlive the unit and the session of the
//! command that started them.
//!
//! A process belongs to the unit of the process that forked it. So the daemons of a VM would belong to the service, the
//! SSH session or the desktop's terminal in which `nixbox up` ran, and systemd would end them with it. A scope is a unit
//! for processes that systemd did not start itself (systemd.scope(5)). nixbox starts each daemon through a launcher
//! (`nixbox scope-daemon`), which enters the scope and then becomes the daemon by exec. So there is no moment in
//! which a daemon serves outside of its scope, and a nixbox that is killed at any point leaves nothing to repair: the
//! launcher has the pid and the mark of the daemon already, and goes on alone. systemd removes a scope with its last process.
//! Scopes are named `nixbox-WORKSPACE-GENERATION-ROLE.scope`. Daemons do not share one, because a process can join a scope
//! that exists only if the scope is delegated (`AttachProcessesToUnit`).
//!
//! | who starts the VM | whose scope |
//! |---|---|
//! | root | the system's |
//! | a user who lingers, also through sudo | that of the user's own manager, which runs from boot to shutdown |
//! | any other user | none: the user's manager ends with the last log-out |
//!
//! The launcher asks systemd by busctl(1), which is part of systemd. If systemd refuses or does not answer, the daemon starts in the unit of its caller, because a VM that ends with a
//! session is of more use than no VM. `up` tries it beforehand and says so ([`scope::rehearse`]).
//!
//! A scope has no limits of its own. What systemd does to it:
//! - When the host shuts down, systemd sends SIGTERM to all processes of the scope. The VMM ends then, which a guest sees
//!   as a power cut. If a service ran `nixbox up`, the scope is ordered before it, so systemd first stops the service,
//!   whose `ExecStop=nixbox down` shuts the guest down.
//! - If the kernel ends a process of it for lack of memory, systemd leaves the others alone (`OOMPolicy=continue`).
//! - A scope that failed is removed too (`CollectMode=inactive-or-failed`).
//!
//! | module | what it does |
//! |---|---|
//! | [`bus`] | asks a manager of systemd to make a scope |
//! | [`mod@unit`] | reads of which unit a process is |
//! | [`scope`] | the launcher, and what it is started with |
//!
//! May use `files`, `world`, `program`, `spawn` and `confinement`.

mod bus;
mod error;
pub mod scope;
pub mod unit;

pub use error::SystemdError;

#[cfg(test)]
mod tests;

//! A whole host in memory: files with a live and a durable copy, VMMs, guests with credentials in RAM, page cache and disk,
//! share daemons, TAPs, firewall tables and slots. It fails, stalls and crashes where a test says.
//!
//! These are fakes and not mocks: no behaviour is scripted for a single test, and as far as `operations` can tell the host
//! behaves like a real one. If a real VMM does something that matters to `operations` and the fakes do not, that is a bug
//! of the fakes. They are always compiled, so that tests, fuzzers and benchmarks share them.
//!
//! Every change passes numbered *points*: one before it, one between any two parts of it, one after it. A [`Fault`] names
//! the point at which something happens. After the program was killed at a point, its calls fail and have no effect,
//! although the code of the test still runs.
//!
//! [`host`] is what tests hold; [`fault`] what can go wrong; [`state`] the host's state and what happens to it without
//! nixbox; [`files`] the file system; [`guest`] what is in RAM and on disks; [`seams`] implement the traits of `world`;
//! [`storage`] the journal's files. [`invariants`] checks the ten invariants of the design.
//!
//! The VMM behaviour that is imitated (measured on v51.1, v52.0, v53.0 and v53.0-246):
//! - Shares die in a restore under v51 and in a resume in place under v52 and v53.
//! - A VMM process that ends takes the share daemons with it that it was connected to; sockets and records stay.
//! - `vm.snapshot` fails on files of an earlier snapshot, and goes on if the nixbox that asked for it has died.
//! - A VM that is resumed without its TAP may be damaged (Cloud Hypervisor issue 8722).

mod fault;
mod files;
mod guest;
mod host;
mod invariants;
mod parts;
mod seams;
mod state;
mod storage;

pub use fault::{CallFault, Counts, Crash, Fault, Loss, RefusedLoads};
pub use files::Survival;
pub use host::{Host, WorkspaceLock};
pub use invariants::Violation;
pub use storage::FakeStorage;

use crate::world::{Generation, WorkspaceId, World};

impl Host {
    /// The world of a workspace on this host, for a VM that is built from the configuration of today.
    #[must_use]
    pub fn world(&self, workspace: WorkspaceId) -> World {
        seams::world(self, workspace, None)
    }

    /// The world of a workspace on this host, for the VM whose built record bears this generation. If there is no such
    /// record the configuration of today describes the VM.
    #[must_use]
    pub fn world_of(&self, workspace: WorkspaceId, built: Generation) -> World {
        seams::world(self, workspace, Some(built))
    }

    /// The journal files of a workspace.
    #[must_use]
    pub fn storage(&self, workspace: WorkspaceId) -> FakeStorage {
        FakeStorage::new(self.clone(), workspace)
    }

    /// Everything of `workspace` that violates the ten invariants, after guests that shut down have done so. Of nixbox's
    /// code only the journal's reader is used.
    #[must_use]
    pub fn violations(&self, workspace: WorkspaceId) -> Vec<Violation> {
        let mut state = self.lock();
        state.pass_time();
        invariants::violations(&state, workspace)
    }
}

//! A whole host in memory: files with a live and a durable copy, processes, TAPs, firewall tables, sockets, VMMs, guests
//! with credentials in RAM, page cache and disk, share daemons. It fails, stalls and crashes when told.
//!
//! Fakes, not mocks: nothing is scripted per test; the host behaves like one, as far as `operations` can tell. What a
//! real VMM was seen to do and the fakes do not show is a bug of the fakes. Always compiled, so that tests, fuzzers and
//! benches share it.
//!
//! Every change passes numbered *points*: before it, in its middle, after it. A [`Fault`] names one. When the program
//! has died at a point, nothing that it still calls has any effect: what runs on is the code, not the program.

mod fault;
mod files;
mod guest;
mod host;
mod invariants;
mod seams;
mod state;
mod storage;

pub use fault::{Counts, Crash, Fault, Wrong};
pub use files::Survival;
pub use host::{Host, WorkspaceLock};
pub use invariants::Violation;
pub use storage::FakeStorage;

use crate::world::{WorkspaceId, World};

impl Host {
    /// The world as a workspace sees it.
    #[must_use]
    pub fn world(&self, workspace: WorkspaceId) -> World {
        seams::world(self, workspace)
    }

    /// A workspace's journal files.
    #[must_use]
    pub fn storage(&self, workspace: WorkspaceId) -> FakeStorage {
        FakeStorage::new(self.clone(), workspace)
    }

    /// Everything of `workspace` that the ten invariants forbid, once what goes on by itself has come to its end. Looks
    /// at the host, and asks no code of nixbox but the reader of the journal.
    #[must_use]
    pub fn violations(&self, workspace: WorkspaceId) -> Vec<Violation> {
        let mut state = self.lock();
        state.pass_time();
        invariants::violations(&state, workspace)
    }
}

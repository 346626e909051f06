//! A whole host in memory: files with a live and a durable copy, processes, TAPs, firewall tables, sockets, VMMs, guests
//! with credentials in RAM, page cache and disk, share daemons. It fails, stalls and crashes when told.
//!
//! Fakes, not mocks: nothing is scripted per test; the host behaves like one, as far as `operations` can tell. What a
//! real VMM was seen to do and the fakes do not show is a bug of the fakes. Always compiled, so that tests, fuzzers and
//! benches share it.
//!
//! Every change passes numbered *points*: before it, in its middle, after it. A [`Fault`] names one. When the program
//! has died at a point, nothing that it still calls has any effect: what runs on is the code, not the program.

mod files;
mod guest;
mod invariants;
mod seams;
mod state;
mod storage;

pub use files::Survival;
pub use invariants::Violation;
pub use seams::Reach;
pub use storage::FakeStorage;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::world::{Failure, Interrupt, Slot, SnapshotId, WorkspaceId, World};
use files::Content;
use state::FakeState;

/// How the program ends at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Crash {
    /// It is killed. The world stays as it is.
    Death,
    /// The power fails: processes, devices and memory are gone, and what was not synced survives in part.
    PowerCut(Survival),
    /// The VMM is killed, and the program goes on.
    VmmKilled,
    /// The VMM hangs, and its guest with it: it lives and never answers again. The program goes on.
    VmmHangs,
    /// The share daemons are killed, and the program goes on.
    SharesKilled,
}

/// How a call goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Wrong {
    /// An error, and nothing was done.
    ErrorBefore,
    /// An error, and all was done.
    ErrorAfter,
    /// No answer, and nothing was done.
    SilentBefore,
    /// No answer, and all was done.
    SilentAfter,
}

/// What happens at a point or call, counted from 0 since the fault was set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Nothing.
    None,
    /// At this point the program ends, or the VMM does.
    CrashAt(u64, Crash),
    /// At this call of a seam something goes wrong, once.
    CallGoesWrong(u64, Wrong),
    /// From this call of a seam on, every call of the same kind goes wrong, for good.
    CallsGoWrong(u64, Wrong),
    /// At this point somebody asks to stop.
    InterruptAt(u64),
    /// This write or sync of the journal's storage fails, and so do all that come after it.
    StorageFails(u64, std::io::ErrorKind),
}

/// Counts what the program did since the fault was set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Points passed.
    pub points: u64,
    /// Seam calls made.
    pub calls: u64,
    /// Writes and syncs of the journal's storage.
    pub writes: u64,
}

/// The host.
#[derive(Clone)]
pub struct Host(Arc<Mutex<FakeState>>);

impl Host {
    /// A host with a VMM of this major version, with shares or without. A VM of another workspace runs on it.
    #[must_use]
    pub fn new(vmm_version: u32, shares: bool) -> Self {
        Self(Arc::new(Mutex::new(FakeState::new(vmm_version, shares))))
    }

    /// Another host, just as this one is now.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self(Arc::new(Mutex::new(self.lock().clone())))
    }

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

    /// Sets what is to happen, and starts counting. A program that died is started again by this.
    pub fn set_fault(&self, fault: Fault, interrupt: Option<Interrupt>) {
        let mut state = self.lock();
        state.fault = fault;
        state.counts = Counts::default();
        state.dead = false;
        state.locks.clear();
        state.wrong_kind = None;
        state.interrupt = interrupt;
    }

    /// Takes the lock of a workspace, unless somebody has it. A program that dies has it no more.
    #[must_use]
    pub fn try_lock(&self, workspace: WorkspaceId) -> Option<WorkspaceLock> {
        let fresh = self.lock().locks.insert(workspace);
        fresh.then(|| WorkspaceLock { host: self.clone(), workspace })
    }

    /// What the program did since the fault was set.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.lock().counts
    }

    /// Whether the program died.
    #[must_use]
    pub fn died(&self) -> bool {
        self.lock().dead
    }

    /// The power fails now.
    pub fn power_cut(&self, survival: Survival) {
        self.lock().power_cut(survival);
    }

    /// Kills a workspace's VMM now.
    pub fn kill_vmm(&self, workspace: WorkspaceId) {
        self.lock().kill_vmm(workspace);
    }

    /// Whether an authenticated command can run in the workspace's guest.
    #[must_use]
    pub fn reach(&self, workspace: WorkspaceId) -> Reach {
        seams::reach(&self.lock(), workspace)
    }

    /// Everything of `workspace` that the ten invariants forbid, once what goes on by itself has come to its end. Looks
    /// at the host, and asks no code of nixbox but the reader of the journal.
    #[must_use]
    pub fn violations(&self, workspace: WorkspaceId) -> Vec<Violation> {
        let mut state = self.lock();
        state.pass_time();
        invariants::violations(&state, workspace)
    }

    /// All that can be seen of the host, but for how far guests have run. Two hosts that look the same are the same.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        self.lock().fingerprint()
    }

    /// The listed snapshots of a workspace, each with a hash over all its files.
    #[must_use]
    pub fn snapshots(&self, workspace: WorkspaceId) -> Vec<(SnapshotId, u64)> {
        self.lock().snapshots(workspace)
    }

    /// What a guest writes to its disk and RAM, and nobody else.
    pub fn guest_works(&self, ticks: u64) {
        let mut state = self.lock();
        for _ in 0..ticks {
            state.tick();
        }
    }

    /// Flips one bit in a file of a listed snapshot, as a failing disk does.
    pub fn damage_snapshot(&self, workspace: WorkspaceId, snapshot: SnapshotId) {
        let mut state = self.lock();
        let directory = state.snapshots_directory(workspace);
        let ino = state
            .files
            .find(directory, &snapshot.to_string())
            .and_then(|snapshot| state.files.find(snapshot, state::RAM));
        if let Some(ino) = ino {
            state.files.write_whole(ino, Content::Torn);
        }
    }

    /// Changes what of the configuration shapes a VM.
    pub fn set_shape(&self, key: &str, value: &str) {
        self.lock().shape.insert(key.to_owned(), value.to_owned());
    }

    /// Takes a feature from the host's processor, as another host would not have it.
    pub fn lose_cpu_feature(&self, feature: &str) {
        self.lock().cpu.remove(feature);
    }

    /// Installs another major version of the VMM. A VM that runs goes on under the one that it has.
    pub fn install_vmm(&self, version: u32) {
        self.lock().version = version;
    }

    /// Leaves room for so many bytes of snapshots. Disk and RAM take one each.
    pub fn set_room(&self, bytes: u64) {
        self.lock().room = bytes;
    }

    /// Says who uses a share in a guest.
    pub fn use_share(&self, user: &str) {
        self.lock().share_users.push(user.to_owned());
    }

    /// Gives a free slot to the neighbour, whose VM never goes down.
    pub fn take_slot(&self, slot: Slot) {
        self.lock().slots.entry(slot).or_insert(state::NEIGHBOUR);
    }

    /// Takes a workspace's journal away, as somebody does who clears up.
    pub fn lose_journal(&self, workspace: WorkspaceId) {
        let mut state = self.lock();
        if let Some(directory) = state.workspace_directory(workspace) {
            state.files.remove(directory, crate::engine::journal::Name::Current.file_name());
        }
    }

    /// The bytes of a workspace's journal.
    #[must_use]
    pub fn journal_bytes(&self, workspace: WorkspaceId) -> Option<Vec<u8>> {
        let state = self.lock();
        let directory = state.workspace_directory(workspace)?;
        match state.files.get(directory, crate::engine::journal::Name::Current.file_name()) {
            Some(Content::Bytes(bytes)) => Some(bytes.clone()),
            _ => None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, FakeState> {
        // A test that panics while it holds the lock has failed already.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Passes a point. An error means that the program has died there or before.
    fn point(&self) -> Result<(), Failure> {
        self.lock().point()
    }
}

/// The lock of a workspace, until it is dropped.
pub struct WorkspaceLock {
    host: Host,
    workspace: WorkspaceId,
}

impl Drop for WorkspaceLock {
    fn drop(&mut self) {
        self.host.lock().locks.remove(&self.workspace);
    }
}

/// What a program meets that has died.
#[derive(Debug, thiserror::Error)]
#[error("the program has died")]
struct Dead;

/// What a call of a VMM that hangs comes to.
#[derive(Debug, thiserror::Error)]
#[error("the VMM does not answer")]
struct Hangs;

/// What a call meets that was made to fail.
#[derive(Debug, thiserror::Error)]
#[error("a fault was set here")]
struct SetFault;

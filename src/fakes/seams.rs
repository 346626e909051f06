//! The traits of `world`, implemented on the fake host for one workspace.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;

use super::fault::{CallFault, FakeError, Fault, Loss};
use super::files::{Content, Ino, ManifestFile};
use super::guest::{DiskImage, FakeHistory, FakeMount, FakeRam, FakeSecret, FakeSpec, SavedState};
use super::host::Host;
use super::state::{
    DISK, FakeState, Key, MANIFEST, NetworkParts, RAM, RamFile, SAVED, ShareDaemons, VmmProcess, disk_name,
    kept_name, record_name,
};
use crate::world::{
    Ability, Backups, BootId, BuiltRecords, Catalog, Clock, Cpuid, Depth, Disk, Equipment, Failure,
    FileRecord, Generation, Guest, GuestAudit, GuestScriptPoint, GuestScriptsOutcome, HashMethod, HookPoint,
    Hooks, HostCpu, Interrupt, KeptDisk, KeptDiskId, Leftovers, ListedSnapshot, Machine, Manifest, Memory,
    Network, NetworkFault, Presence, ReadyTimeout, Receipt, RefusedTraffic, Result, Secret, Settlement,
    Shares, Slot, Slots, SnapshotId, SnapshotState, SourceFiles, UnprovenPlace, Vmm, VmmState, VmmVersion,
    WaitObserver, WorkspaceId, World,
};

mod catalog;
mod files;
mod guest;
mod host;
mod vmm;

fn refused<T>(why: &'static str) -> Result<T> {
    Err(Failure::world(FakeError::Refused(why)))
}

#[derive(Clone)]
struct WorkspaceSeams {
    host: Host,
    workspace: WorkspaceId,
    /// What the VM of this world was built from, or is to be built from.
    spec: FakeSpec,
    /// Whether this program holds the credentials in memory.
    held: Arc<AtomicBool>,
}

/// The world of the VM whose built record bears the generation, or else of the configuration.
pub(super) fn world(host: &Host, workspace: WorkspaceId, built: Option<Generation>) -> World {
    let spec = {
        let mut state = host.lock();
        state.snapshots_directory(workspace);
        built.and_then(|generation| state.built(workspace, generation)).unwrap_or(&state.today).clone()
    };
    let shape = Arc::new(spec.shape.clone());
    let seams = Arc::new(WorkspaceSeams { host: host.clone(), workspace, spec, held: Arc::default() });
    World {
        vmm: seams.clone(),
        slots: seams.clone(),
        network: seams.clone(),
        shares: seams.clone(),
        disk: seams.clone(),
        memory: seams.clone(),
        backups: seams.clone(),
        records: seams.clone(),
        guest: seams.clone(),
        catalog: seams.clone(),
        hooks: seams.clone(),
        cpu: Arc::new({
            let host = host.clone();
            move || {
                let state = host.lock();
                let cpuid = state.leaf_7.map(|ebx| Cpuid::of(&[(7, 0, [0, ebx, 0, 0])]));
                Ok(HostCpu { flags: state.cpu.clone(), cpuid })
            }
        }),
        absolute_shape: shape.clone(),
        shape,
        sources: seams.clone(),
        missing_mounts: Arc::new([]),
        leftovers: seams.clone(),
        clock: seams,
    }
}

/// The kind of the call that settles a guest.
const SETTLE: &str = "guest.settle";
/// The kind of the call that runs scripts in a guest.
const SCRIPTS: &str = "guest.run_scripts";

/// A part of a change, between two points.
type EffectPart<'a> = Box<dyn FnOnce(&mut FakeState) -> Result<()> + Send + 'a>;

impl WorkspaceSeams {
    /// A call that changes nothing. It may go wrong.
    async fn query<T>(
        &self,
        kind: &'static str,
        query: impl FnOnce(&mut FakeState) -> Result<T>,
    ) -> Result<T> {
        match self.call_fault(kind) {
            None => query(&mut self.host.lock()),
            Some(CallFault::ErrorBefore | CallFault::ErrorAfter) => Err(Failure::world(FakeError::FaultSet)),
            Some(CallFault::SilentBefore | CallFault::SilentAfter) => std::future::pending().await,
        }
    }

    /// A call that changes the host in several parts, with a point before each and one after the last. It may go wrong.
    async fn change(&self, kind: &'static str, parts: Vec<EffectPart<'_>>) -> Result<()> {
        let fault = self.call_fault(kind);
        match fault {
            Some(CallFault::ErrorBefore) => return Err(Failure::world(FakeError::FaultSet)),
            Some(CallFault::SilentBefore) => std::future::pending().await,
            _ => {}
        }
        for part in parts {
            self.host.point()?;
            part(&mut self.host.lock())?;
            // The other transitions of the stage run in between.
            tokio::task::yield_now().await;
        }
        self.host.point()?;
        match fault {
            Some(CallFault::ErrorAfter) => Err(Failure::world(FakeError::FaultSet)),
            Some(CallFault::SilentAfter) => std::future::pending().await,
            _ => Ok(()),
        }
    }

    fn call_fault(&self, kind: &'static str) -> Option<CallFault> {
        let mut state = self.host.lock();
        if state.dead {
            return Some(CallFault::ErrorBefore);
        }
        let fault = Self::fault_of_call(&mut state, kind);
        if kind == SETTLE {
            state.settle_failed = fault.is_some();
        }
        if kind == SCRIPTS {
            state.scripts_failed = fault.is_some();
        }
        fault
    }

    fn fault_of_call(state: &mut FakeState, kind: &'static str) -> Option<CallFault> {
        let here = state.counts.calls;
        state.counts.calls += 1;
        match state.fault {
            Fault::CallGoesWrong(at, fault) if at == here => Some(fault),
            Fault::CallsGoWrong(at, fault) => {
                if at == here {
                    state.failing_kind = Some(kind);
                }
                (state.failing_kind == Some(kind)).then_some(fault)
            }
            _ => None,
        }
    }

    fn key(&self, generation: Generation) -> Key {
        (self.workspace, generation)
    }

    fn directory(&self, state: &mut FakeState) -> Ino {
        state.make_workspace_directory(self.workspace)
    }

    fn staging(&self, state: &mut FakeState, id: SnapshotId) -> Result<Ino> {
        let snapshots = state.snapshots_directory(self.workspace);
        match state.files.find(snapshots, &staging_name(id)) {
            Some(ino) => Ok(ino),
            None => refused("there is no staging directory"),
        }
    }

    fn staged_or_listed(&self, state: &mut FakeState, id: SnapshotId) -> Result<Ino> {
        let snapshots = state.snapshots_directory(self.workspace);
        let found = state.files.find(snapshots, &id.to_string());
        match found.or_else(|| state.files.find(snapshots, &staging_name(id))) {
            Some(ino) => Ok(ino),
            None => refused("there is no such snapshot"),
        }
    }

    /// Reads the credentials from their sources unless they are held.
    fn hold(&self, state: &FakeState) -> Result<()> {
        if self.held.load(Ordering::Relaxed) {
            return Ok(());
        }
        Self::works(state, &[Loss::Sources])?;
        self.held.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// An error if something that a call needs has stopped working.
    fn works(state: &FakeState, needed: &[Loss]) -> Result<()> {
        match needed.iter().find(|loss| state.lost.contains(*loss)) {
            Some(Loss::Sources) => refused("the sources of the credentials cannot be read"),
            Some(Loss::Entropy) => refused("the guest refuses fresh entropy"),
            Some(Loss::Clock) => refused("the guest's clock cannot be set"),
            Some(Loss::Root) => refused("nobody can become root in the guest"),
            Some(Loss::Answers) => Err(Failure::WaitedOut(FakeError::NoAnswer.into())),
            Some(Loss::Targets) => refused("the files for the credentials cannot be written"),
            None => Ok(()),
        }
    }

    /// The RAM of a guest that answers.
    fn guest<'s>(&self, state: &'s mut FakeState, machine: &Machine) -> Result<&'s mut FakeRam> {
        let vmm = self.key(machine.vmm);
        state.answers(vmm)?;
        let found = state.vmms.get(&vmm).map_or(VmmState::Never, |vmm| vmm.state);
        match found {
            VmmState::Running if state.is_ssh_ready(self.workspace) => {
                Self::works(state, &[Loss::Answers])?;
                state.ram_mut(self.workspace, machine.memory).ok_or(Failure::Lost)
            }
            VmmState::Never | VmmState::Gone | VmmState::PoweredOff => Err(Failure::Lost),
            _ => refused("the guest does not answer"),
        }
    }
}

fn staging_name(id: SnapshotId) -> String {
    format!(".staging-{id}")
}

fn trash_name(id: SnapshotId) -> String {
    format!(".trash-{id}")
}

fn nothing<'a>() -> EffectPart<'a> {
    Box::new(|_| Ok(()))
}

#[async_trait]
impl Hooks for WorkspaceSeams {
    async fn run(&self, _: HookPoint, interrupt: &Interrupt) -> Result<()> {
        let run = |state: &mut FakeState| {
            interrupt.check()?;
            state.hooks_run += 1;
            Ok(())
        };
        self.change("hooks.run", vec![Box::new(run)]).await
    }
}

#[async_trait]
impl SourceFiles for WorkspaceSeams {
    async fn contents(&self, _: HashMethod, interrupt: &Interrupt) -> Result<BTreeMap<String, [u8; 32]>> {
        interrupt.check()?;
        self.query("sources.contents", |state| Ok(state.contents.clone())).await
    }
}

impl Clock for WorkspaceSeams {
    fn unix_ms(&self) -> u64 {
        let mut state = self.host.lock();
        state.clock_ms += 1;
        state.clock_ms
    }
}

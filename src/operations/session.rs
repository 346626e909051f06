//! One run of nixbox on a workspace: recover, check, run. The owner of a [`Session`] holds the workspace's lock.
//!
//! ```text
//!                   ┌──────────────────────── recover ─────────────────────────┐
//!  command ─► finish the open operation ─► clear away a lost VM ─► sweep, repair ─► check ─► run ─► clear away a lost VM
//!                   │                            │                  │                │       │
//!                   └─ stuck                     └─ stuck           └────────────────┴───────┴─ refused
//! ```
//!
//! Every command that changes something begins with **recover**, and `nixbox recover` is nothing else. Running it twice
//! changes nothing.
//!
//! A session has two worlds. One describes the VM that the journal is about by the VM's built record; the other describes
//! a VM that this session builds by the configuration. So an edit of the configuration changes nothing about a VM that
//! runs: it is snapshotted, rolled over and ended as what it was built as.
//!
//! **Finish the open operation**: an operation that the journal says has not ended is completed or undone by the
//! executor, which reads the direction off its commit point. If it is stuck (an undo failed, or a probe cannot tell
//! whether something was done), the session stops here and the command is refused, because whatever the command did
//! would be built upon a state that nobody knows. Only `down` goes on: it ends the VMM, and a VM that is gone needs
//! nothing given back.
//!
//! **Clear away a lost VM**: the journal may say that there is a VM where none is any more, because the VMM was killed
//! or the host was rebooted since; or the VM may be condemned, because the operation that made it failed after its
//! commit point. What is left of it is removed by a `down` that asks no guest; the guest of a condemned VM is asked to shut
//! down first, as in any `down`, because it may have begun to work. The VM's disk stays. A VM that was to be left running
//! ([`VmCondition::LeftRunning`]) is no lost VM: `down` ends it, and no other operation goes on with it. A VMM that lives
//! but does not answer counts as lost after the time that the VMM seam allows it.
//!
//! **Sweep** removes what bears the mark of this workspace and belongs to neither its VM nor its disk (`sweep.rs`). After
//! it, the network of a VM that runs is looked at and **repaired** (`repair.rs`).
//!
//! **Check** is everything that can be known before the world is touched. A command that cannot be done is refused with
//! a [`Refusal`] that says why, and the workspace is as it was. The disk that a new VM starts from, the snapshot that is
//! restored and the way in which shares survive a snapshot are decided here, and written to the journal as the
//! operation's parameters, so that a recovery uses the same. The credentials are read from their sources here, and held
//! until nixbox ends (`sources.rs`): a source that cannot be read refuses a command that would need it later, when the
//! guest is without credentials or the VM that is to be replaced is down. Bringing a VM down needs none.
//!
//! **Run** is the executor's. An operation that ends as lost, or that rolls back because its VM is gone, leaves a VM to
//! be cleared away, and the session does that at once. What the operation came to is an [`OperationResult`]. An error
//! of the journal ends the session: what was done is on the medium, and the next run goes on from there.
//!
//! Two commands run more than one operation: `restore --replace` brings the VM down first, once it is known that the
//! snapshot can be restored; and `snapshot` deletes older unnamed snapshots once the new one is in the list.

use std::time::Duration;

use serde::Serialize;

use super::compatibility::{self, NotRestorable, SnapshotChoice};
use super::delete::{self, DeletePlan};
use super::down::{self, DownPlan, StopMode};
use super::limits::{LOOK, within};
use super::outcome::{
    LossReason, OperationResult, PassedOver, Recovered, Refusal, RestoreResult, SnapshotRequest,
    SnapshotResult, find_snapshot,
};
use super::plan_snapshot::{examine, plan_snapshot};
use super::restore::{self, RestorePlan};
use super::sources::Sources;
use super::state::{RunningVm, VmCondition, WorkspaceState};
use super::up::{self, UpPlan};
use super::{repair, snapshot, sweep, tables};
use crate::engine::executor::{Ending, Executor, Observer, TransitionFailure};
use crate::engine::journal::{Journal, Storage};
use crate::engine::record;
use crate::engine::transition::{Failure, Interrupt, Operation};
use crate::world::{
    Generation, GuestScriptPoint, KeptDiskId, ListedSnapshot, Manifest, SnapshotId, SnapshotReference,
    VmmState, World,
};

/// After so long without an answer of the VMM a person is told what is waited for.
const SOON: Duration = Duration::from_secs(3);

/// Runs operations on one workspace.
pub struct Session<'a, S> {
    /// The world of the VM that the journal is about, as its built record describes it.
    pub world: &'a World,
    /// The world of a VM that this session builds, as the configuration describes it. It is the same world if the
    /// journal is about no VM.
    pub next: &'a World,
    /// The workspace's journal.
    pub journal: Journal<S>,
    /// A person's request to stop.
    pub interrupt: Interrupt,
    /// Sees what happens.
    pub observer: &'a dyn Observer,
    /// Whether a VM that does not become SSH-ready is left running for a person to look at.
    pub keep: bool,
}

impl<S: Storage> Session<'_, S> {
    /// Ends what an earlier run left open, clears away what is left of a lost VM, sweeps, and repairs the network of a VM that
    /// runs.
    ///
    /// # Errors
    /// If the journal cannot be used, or the state of the workspace cannot be determined.
    pub async fn recover(&mut self) -> Result<Recovered, Refusal> {
        let mut recovered = self.settle().await?;
        if recovered.stuck.is_none()
            && let WorkspaceState::Up(vm) = self.state()?
        {
            recovered.network = repair::repair(self.world, &vm.machine, self.observer).await;
        }
        Ok(recovered)
    }

    /// The same without the repair.
    async fn settle(&mut self) -> Result<Recovered, Refusal> {
        let mut recovered = Recovered::default();
        let open =
            self.journal.open_operation().and_then(|open| Some((open.operation?, open.parameters.clone())));
        if let Some((id, parameters)) = open {
            let operation = tables::table(id, &parameters)?;
            let ending = self.executor().recover(&operation).await?;
            if let Ending::Stuck(failure) = ending {
                recovered.stuck = Some(failure);
                return Ok(recovered);
            }
            recovered.operation = Some((operation.label, ending));
        }
        match self.clear_away().await? {
            None => {}
            Some((_, Ending::Stuck(failure))) => {
                recovered.stuck = Some(failure);
                return Ok(recovered);
            }
            Some((reason, _)) => recovered.cleared = Some(reason),
        }
        let known = !self.journal.history().final_state.is_empty();
        recovered.swept = sweep::sweep(self.world, self.state()?, known).await.map_err(Refusal::Sweep)?;
        Ok(recovered)
    }

    pub(super) async fn recover_first(&mut self) -> Result<(), Refusal> {
        self.recover().await?.stuck.map_or(Ok(()), |failure| Err(Refusal::Stuck(failure)))
    }

    pub(super) fn state(&self) -> Result<WorkspaceState, Refusal> {
        WorkspaceState::of(&self.journal.history().final_state).map_err(Refusal::UnreadableState)
    }

    /// Boots a VM.
    ///
    /// # Errors
    /// If the operation was not begun, or if the journal failed.
    pub async fn up(&mut self) -> Result<OperationResult, Refusal> {
        self.recover_first().await?;
        self.boot(None).await
    }

    /// Boots a VM from a disk that was kept. The workspace's disk is kept in its place when that VM goes down.
    ///
    /// # Errors
    /// If the operation was not begun, or if the journal failed.
    pub async fn up_on(&mut self, wanted: Generation) -> Result<OperationResult, Refusal> {
        self.recover_first().await?;
        match self.state()? {
            WorkspaceState::Up(_) => Err(Refusal::Running),
            WorkspaceState::Down { disk } if disk == Some(wanted) => self.boot(None).await,
            WorkspaceState::Down { .. } => {
                let kept = examine(self.world.disk.kept()).await?;
                let found = kept.into_iter().map(|kept| kept.id).find(|id| id.disk == wanted);
                self.boot(Some(found.ok_or(Refusal::NoSuchDisk(wanted))?)).await
            }
        }
    }

    async fn boot(&mut self, back_to: Option<KeptDiskId>) -> Result<OperationResult, Refusal> {
        match self.state()? {
            WorkspaceState::Up(vm) => {
                already(&vm)?;
                self.equip_rebooted(vm).await
            }
            WorkspaceState::Down { disk } => {
                self.sources().hold(self.next).await?;
                self.world = self.next;
                let (timeout, keep) = (self.world.guest.ready_timeout(), self.keep);
                let scripts = self.world.guest.has_scripts(GuestScriptPoint::AfterUp);
                let shares = self.world.shares.wanted();
                let plan = UpPlan { disk, back_to, shares, timeout, keep, scripts };
                self.run(plan, up::table).await
            }
        }
    }

    /// Brings the VM down. Its disk stays.
    ///
    /// If an earlier operation is stuck, the VMM is ended first. The VM of that operation is lost then, so that a second
    /// recovery does not need the guest and clears away what is left. The network of a VM that is to go is not repaired.
    ///
    /// # Errors
    /// If the operation was not begun, or if the journal failed.
    pub async fn down(&mut self) -> Result<OperationResult, Refusal> {
        let stuck = self.settle().await?.stuck.is_some();
        if stuck {
            sweep::end_vmms(self.world).await.map_err(Refusal::Sweep)?;
            self.settle().await?.stuck.map_or(Ok(()), |failure| Err(Refusal::Stuck(failure)))?;
        }
        match self.state()? {
            WorkspaceState::Up(vm) => self.run(DownPlan { vm, mode: StopMode::Ordinary }, down::table).await,
            WorkspaceState::Down { .. } if stuck => Ok(OperationResult::Done),
            WorkspaceState::Down { .. } => Ok(OperationResult::Already),
        }
    }

    /// Makes a snapshot of the VM, which then runs on or is down. Older unnamed snapshots are deleted then.
    ///
    /// # Errors
    /// If the operation was not begun, or if the journal failed.
    pub async fn snapshot(&mut self, request: SnapshotRequest) -> Result<SnapshotResult, Refusal> {
        self.recover_first().await?;
        let WorkspaceState::Up(vm) = self.state()? else {
            return Err(Refusal::NotRunning);
        };
        already(&vm)?;
        let ended = |report| SnapshotResult {
            report,
            snapshot: None,
            pruned: Vec::new(),
            above_limit: None,
            afterwards: None,
        };
        match self.equip_rebooted(vm).await? {
            OperationResult::Done | OperationResult::Already => {}
            report => return Ok(ended(report)),
        }
        let retention = request.retention;
        let plan = plan_snapshot(self.world, vm, request, self.sources()).await?;
        let mut result = ended(self.run(plan, snapshot::table).await?);
        if matches!(result.report, OperationResult::Done) {
            // The newest: its number is that of the operation that has just ended.
            match self.listed().await {
                Ok(mut listed) => result.snapshot = listed.pop().and_then(|newest| newest.manifest.ok()),
                Err(refusal) => result.afterwards = Some(refusal),
            }
            match self.prune(retention, vm.from, &mut result.pruned).await {
                Ok(above_limit) => result.above_limit = above_limit,
                Err(refusal) => result.afterwards = Some(refusal),
            }
        }
        Ok(result)
    }

    /// Restores a snapshot: the one that is wanted, or the newest that can be. A VM that runs is brought down first if
    /// it is to be replaced, once it is known that the snapshot can be restored. With `force` it is restored in spite of
    /// reasons that are not certain to make that fail.
    ///
    /// # Errors
    /// If the operation was not begun, or if the journal failed.
    pub async fn restore(
        &mut self,
        wanted: Option<&SnapshotReference>,
        replace: bool,
        force: bool,
    ) -> Result<RestoreResult, Refusal> {
        self.recover_first().await?;
        if !replace && matches!(self.state()?, WorkspaceState::Up(_)) {
            return Err(Refusal::Running);
        }
        let SnapshotChoice { chosen, mut passed_over } = self.choose(wanted, &[], force).await?;
        match (chosen, wanted) {
            (Some(manifest), _) => self.bring_back(manifest, passed_over).await,
            (None, Some(_)) if passed_over.len() == 1 => {
                let (id, reason) = passed_over.remove(0);
                Err(Refusal::Unfit(id, reason))
            }
            (None, _) if passed_over.is_empty() => Err(Refusal::NoSnapshot),
            (None, _) => Err(Refusal::NothingFits(PassedOver(passed_over))),
        }
    }

    /// Restores the snapshot that is wanted, or the newest that can be; boots if none can. A snapshot that nobody asked for
    /// and that fails to load is passed over like one that does not fit.
    ///
    /// # Errors
    /// If the operation was not begun, or if the journal failed.
    pub async fn warm_up(&mut self, wanted: Option<&SnapshotReference>) -> Result<RestoreResult, Refusal> {
        self.recover_first().await?;
        if let WorkspaceState::Up(vm) = self.state()? {
            already(&vm)?;
            let (report, condition) = (self.equip_rebooted(vm).await?, vm.condition);
            let (passed_over, former_disk) = (Vec::new(), vm.former_disk);
            return Ok(RestoreResult { report, restored: None, passed_over, condition, former_disk });
        }
        let mut passed_over = Vec::new();
        loop {
            let choice = self.choose(wanted, &passed_over, false).await?;
            passed_over.extend(choice.passed_over);
            let Some(manifest) = choice.chosen else {
                let (report, condition) = (self.boot(None).await?, VmCondition::Good);
                return Ok(RestoreResult {
                    report,
                    restored: None,
                    passed_over,
                    condition,
                    former_disk: None,
                });
            };
            let (id, mut result) = (manifest.id, self.bring_back(manifest, Vec::new()).await?);
            match result.report {
                // Nothing is left of the attempt, and nobody asked for this snapshot.
                OperationResult::RolledBack(failure)
                    if wanted.is_none() && !matches!(failure.failure, Failure::Interrupted) =>
                {
                    passed_over.push((id, NotRestorable::Failed(failure)));
                }
                _ => {
                    result.passed_over = passed_over;
                    return Ok(result);
                }
            }
        }
    }

    /// What is known to be wrong with the VM, if there is one.
    fn condition(&self) -> Result<VmCondition, Refusal> {
        Ok(match self.state()? {
            WorkspaceState::Up(vm) => vm.condition,
            WorkspaceState::Down { .. } => VmCondition::Good,
        })
    }

    /// Chooses among the snapshots that were not passed over before.
    async fn choose(
        &self,
        wanted: Option<&SnapshotReference>,
        before: &[(SnapshotId, NotRestorable)],
        force: bool,
    ) -> Result<SnapshotChoice, Refusal> {
        let mut listed = self.listed().await?;
        listed.retain(|one| !before.iter().any(|(id, _)| *id == one.id));
        if let Some(reference) = wanted {
            let id = find_snapshot(&listed, reference)?;
            listed.retain(|one| one.id == id);
        }
        compatibility::choose(self.next, listed.into_iter().rev(), force, &self.interrupt)
            .await
            .map_err(Refusal::Look)
    }

    async fn bring_back(
        &mut self,
        manifest: Manifest,
        passed_over: Vec<(SnapshotId, NotRestorable)>,
    ) -> Result<RestoreResult, Refusal> {
        self.sources().hold(self.next).await?;
        let mut replaced = false;
        if let WorkspaceState::Up(vm) = self.state()? {
            if self.next.guest.requires_entropy() {
                self.observer.waits(
                    "the VM that runs is brought down; if the restored guest cannot be given fresh entropy, that VM is \
                     lost too, unless [guest] require-entropy is false",
                );
            }
            match self.run(DownPlan { vm, mode: StopMode::Ordinary }, down::table).await? {
                OperationResult::Done | OperationResult::Already => replaced = true,
                report => {
                    let condition = VmCondition::Good;
                    let former_disk = None;
                    return Ok(RestoreResult { report, restored: None, passed_over, condition, former_disk });
                }
            }
        }
        let WorkspaceState::Down { disk } = self.state()? else {
            return Err(Refusal::Running);
        };
        self.world = self.next;
        let Manifest { id: snapshot, slot, boot, shares, .. } = manifest;
        let (timeout, keep) = (self.world.guest.ready_timeout(), self.keep);
        let scripts = self.world.guest.has_scripts(GuestScriptPoint::AfterRestore);
        let plan = RestorePlan { snapshot, slot, boot, shares, former_disk: disk, timeout, keep, scripts };
        let report = match self.run(plan, restore::table).await? {
            OperationResult::RolledBack(failure) if replaced => OperationResult::ReplacedInVain(failure),
            report => report,
        };
        let condition = self.condition()?;
        Ok(RestoreResult { report, restored: Some(manifest), passed_over, condition, former_disk: disk })
    }

    /// Deletes a snapshot.
    ///
    /// # Errors
    /// If the operation was not begun, or if the journal failed.
    pub async fn delete(
        &mut self,
        snapshot: &SnapshotReference,
    ) -> Result<(SnapshotId, OperationResult), Refusal> {
        self.recover_first().await?;
        let id = find_snapshot(&self.listed().await?, snapshot)?;
        Ok((id, self.remove(id).await?))
    }

    pub(super) async fn remove(&mut self, snapshot: SnapshotId) -> Result<OperationResult, Refusal> {
        self.run(DeletePlan { snapshot, state: self.state()? }, delete::table).await
    }

    /// All snapshots in the list, oldest first.
    pub(super) async fn listed(&self) -> Result<Vec<ListedSnapshot>, Refusal> {
        examine(self.world.catalog.list()).await
    }

    /// Clears away what is left of a VM that was lost or condemned.
    async fn clear_away(&mut self) -> Result<Option<(LossReason, Ending)>, Refusal> {
        let WorkspaceState::Up(vm) = self.state()? else {
            return Ok(None);
        };
        let Some(reason) = self.loss(&vm).await? else {
            return Ok(None);
        };
        let mode = match reason {
            LossReason::Condemned => StopMode::WithoutScripts,
            LossReason::Gone | LossReason::PoweredOff | LossReason::Silent => StopMode::ClearAway,
        };
        let plan = DownPlan { vm, mode };
        let parameters = record::encode_payload(&plan).map_err(Refusal::Parameters)?;
        Ok(Some((reason, self.executor().run(&down::table(plan), &parameters).await?)))
    }

    /// Why this VM is lost, if it is. A condemned VM is not asked, because it may not answer.
    async fn loss(&self, vm: &RunningVm) -> Result<Option<LossReason>, Refusal> {
        if vm.condition == VmCondition::Condemned {
            return Ok(Some(LossReason::Condemned));
        }
        let mut found = std::pin::pin!(within(LOOK, self.world.vmm.find(vm.machine.vmm)));
        let state = match tokio::time::timeout(SOON, &mut found).await {
            Ok(state) => state,
            Err(_elapsed) => {
                self.observer.waits("the VMM does not answer: waiting whether it will");
                found.await
            }
        };
        Ok(match state.map_err(Refusal::Look)? {
            state if state.has_system() => None,
            VmmState::Silent => Some(LossReason::Silent),
            VmmState::PoweredOff => Some(LossReason::PoweredOff),
            _ => Some(LossReason::Gone),
        })
    }

    /// Runs an operation with these parameters, and clears away the VM if the operation found it lost.
    pub(super) async fn run<P: Serialize>(
        &mut self,
        plan: P,
        table: fn(P) -> Operation<World>,
    ) -> Result<OperationResult, Refusal> {
        let parameters = record::encode_payload(&plan).map_err(Refusal::Parameters)?;
        let operation = table(plan);
        let ending = self.executor().run(&operation, &parameters).await?;
        let cleared = match ending {
            Ending::Stuck(_) | Ending::Done => None,
            Ending::RolledBack(_) | Ending::Lost(_) => self.clear_away().await?,
        };
        Ok(match (ending, cleared) {
            (Ending::Stuck(failure), _) | (_, Some((_, Ending::Stuck(failure)))) => {
                OperationResult::Stuck(failure)
            }
            (Ending::Done, _) => OperationResult::Done,
            (Ending::Lost(failure), Some(_)) => OperationResult::ClearedAway(failure),
            (Ending::Lost(failure), None) => OperationResult::LeftRunning(failure),
            (Ending::RolledBack(failure), cleared) => {
                let failure =
                    failure.unwrap_or(TransitionFailure { label: operation.label, failure: Failure::Lost });
                if cleared.is_some() {
                    OperationResult::ClearedAway(failure)
                } else {
                    OperationResult::RolledBack(failure)
                }
            }
        })
    }

    pub(super) fn sources(&self) -> Sources<'_> {
        Sources { interrupt: &self.interrupt, observer: self.observer }
    }

    fn executor(&mut self) -> Executor<'_, World, S> {
        let clock = &self.world.clock;
        Executor {
            world: self.world,
            journal: &mut self.journal,
            interrupt: self.interrupt.clone(),
            unix_ms: Box::new(|| clock.unix_ms()),
            observer: self.observer,
        }
    }
}

/// The result for a VM that is there already. A VM that was left running is there, and is not of use.
fn already(vm: &RunningVm) -> Result<OperationResult, Refusal> {
    match vm.condition {
        VmCondition::LeftRunning => Err(Refusal::LeftRunning),
        _ => Ok(OperationResult::Already),
    }
}

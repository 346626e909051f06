//! One run of nixbox on a workspace: recover, check, run. Its owner holds the workspace's lock.

use std::time::Duration;

use super::compatibility::{self, NotRestorable, Reference, SnapshotChoice};
use super::limits::{LOOK, within};
use super::outcome::{
    LossReason, OperationResult, PassedOver, Recovered, Refusal, RestoreResult, SnapshotRequest,
    SnapshotResult,
};
use super::snapshot::ShareStrategy;
use super::{RunningVm, WorkspaceState, delete, down, restore, snapshot, sweep, table, up};
use crate::engine::executor::{Ending, Executor, Observer, TransitionFailure};
use crate::engine::journal::{Journal, Storage};
use crate::engine::record;
use crate::engine::transition::{Failure, Interrupt, Operation};
use crate::world::{Generation, ListedSnapshot, Manifest, SnapshotId, VmmState, World};

/// After so long without an answer a person is told what is waited for.
const SOON: Duration = Duration::from_secs(3);

/// Runs operations on one workspace.
pub struct Session<'a, S> {
    /// Its world.
    pub world: &'a World,
    /// Its journal.
    pub journal: Journal<S>,
    /// A person's request to stop.
    pub interrupt: Interrupt,
    /// Who sees what happens.
    pub observer: &'a dyn Observer,
}

impl<S: Storage> Session<'_, S> {
    /// Ends what an earlier run left open, and clears away what is left of a lost VM. Running it twice changes nothing.
    ///
    /// # Errors
    /// If the journal cannot be used, or the world not be looked at.
    pub async fn recover(&mut self) -> Result<Recovered, Refusal> {
        let mut recovered = Recovered::default();
        let open =
            self.journal.open_operation().and_then(|open| Some((open.operation?, open.parameters.clone())));
        if let Some((id, parameters)) = open {
            let operation = table(id, &parameters)?;
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
            Some((why, _)) => recovered.cleared = Some(why),
        }
        let known = !self.journal.history().final_state.is_empty();
        recovered.swept = sweep::sweep(self.world, self.state()?, known).await.map_err(Refusal::Sweep)?;
        Ok(recovered)
    }

    /// How the workspace stands, by its journal.
    ///
    /// # Errors
    /// If the journal does not say.
    pub fn state(&self) -> Result<WorkspaceState, Refusal> {
        WorkspaceState::of(&self.journal.history().final_state).map_err(Refusal::UnreadableState)
    }

    /// A fresh boot.
    ///
    /// # Errors
    /// If it was not begun, or if the journal failed.
    pub async fn up(&mut self) -> Result<OperationResult, Refusal> {
        self.recover_first().await?;
        self.boot().await
    }

    async fn boot(&mut self) -> Result<OperationResult, Refusal> {
        let disk = match self.state()? {
            WorkspaceState::Up(_) => return Ok(OperationResult::Already),
            WorkspaceState::Down { disk } => disk,
        };
        let plan = up::UpPlan { disk, shares: self.world.shares.wanted() };
        let parameters = record::encode_payload(&plan).map_err(Refusal::Parameters)?;
        self.run(&up::table(plan), &parameters).await
    }

    /// The VM goes, its disk stays.
    ///
    /// # Errors
    /// If it was not begun, or if the journal failed.
    pub async fn down(&mut self) -> Result<OperationResult, Refusal> {
        self.recover_first().await?;
        match self.state()? {
            WorkspaceState::Up(vm) => self.bring_down(vm).await,
            WorkspaceState::Down { .. } => Ok(OperationResult::Already),
        }
    }

    async fn bring_down(&mut self, vm: RunningVm) -> Result<OperationResult, Refusal> {
        let plan = down::DownPlan { vm, ask: true };
        let parameters = record::encode_payload(&plan).map_err(Refusal::Parameters)?;
        self.run(&down::table(plan), &parameters).await
    }

    /// Freezes the VM, which goes on unless it is to stop. Older unnamed snapshots are pruned then.
    ///
    /// # Errors
    /// If it was not begun, or if the journal failed.
    pub async fn snapshot(&mut self, request: SnapshotRequest) -> Result<SnapshotResult, Refusal> {
        self.recover_first().await?;
        let WorkspaceState::Up(vm) = self.state()? else {
            return Err(Refusal::NotRunning);
        };
        let keep = request.keep;
        let plan = self.plan_snapshot(vm, request).await?;
        let parameters = record::encode_payload(&plan).map_err(Refusal::Parameters)?;
        let report = self.run(&snapshot::table(plan), &parameters).await?;
        let mut result = SnapshotResult { report, snapshot: None, pruned: Vec::new(), afterwards: None };
        if matches!(result.report, OperationResult::Done) {
            // The newest: its number is that of the operation that ended just now.
            match self.listings().await {
                Ok(mut listed) => result.snapshot = listed.pop().and_then(|newest| newest.manifest.ok()),
                Err(refusal) => result.afterwards = Some(refusal),
            }
            if let Err(refusal) = self.prune(keep, &mut result.pruned).await {
                result.afterwards = Some(refusal);
            }
        }
        Ok(result)
    }

    /// All that can be known before the guest is touched.
    async fn plan_snapshot(
        &self,
        vm: RunningVm,
        request: SnapshotRequest,
    ) -> Result<snapshot::SnapshotPlan, Refusal> {
        let (world, machine) = (self.world, vm.machine);
        match within(LOOK, world.vmm.find(machine.vmm)).await.map_err(Refusal::Look)? {
            VmmState::Running => {}
            state => return Err(Refusal::NotInOrder(state)),
        }
        if let Some(name) = &request.name {
            let mut listed = self.listings().await?.into_iter().filter_map(|one| one.manifest.ok());
            if listed.any(|one| one.name.as_ref() == Some(name)) {
                return Err(Refusal::NameTaken(name.clone()));
            }
        }
        let (shares, running) = (world.shares.wanted(), Some(machine.vmm));
        let ability = within(LOOK, world.vmm.ability(running)).await.map_err(Refusal::Look)?;
        let version = within(LOOK, world.vmm.version(running)).await.map_err(Refusal::Look)?;
        let strategy = snapshot::strategy(shares, ability);
        if strategy == ShareStrategy::RollOver {
            let installed = within(LOOK, world.vmm.version(None)).await.map_err(Refusal::Look)?;
            if installed.major != version.major {
                return Err(Refusal::VmmReplaced { running: version, installed });
            }
        }
        let origin = compatibility::origin(world, version).map_err(Refusal::Look)?;
        self.check_room(&vm).await?;
        let boot = within(LOOK, world.guest.ready(&machine)).await.map_err(Refusal::Look)?;
        if strategy == ShareStrategy::Detach {
            let users = within(LOOK, world.guest.share_users(&machine)).await.map_err(Refusal::Look)?;
            if !users.is_empty() {
                return Err(Refusal::SharesInUse(users));
            }
        }
        Ok(snapshot::SnapshotPlan {
            vm,
            boot,
            name: request.name,
            shares,
            strategy,
            stop: request.stop,
            origin,
        })
    }

    async fn check_room(&self, vm: &RunningVm) -> Result<(), Refusal> {
        let (world, machine) = (self.world, &vm.machine);
        let memory = within(LOOK, world.memory.weight(machine.memory)).await.map_err(Refusal::Look)?;
        let disk = within(LOOK, world.disk.weight(machine.disk)).await.map_err(Refusal::Look)?;
        let free = within(LOOK, world.catalog.free()).await.map_err(Refusal::Look)?;
        let wanted = memory.saturating_add(disk);
        if wanted > free { Err(Refusal::NoRoom { wanted, free }) } else { Ok(()) }
    }

    /// Deletes the oldest unnamed snapshots but for the last `keep`, and never the one that the VM came from.
    async fn prune(&mut self, keep: Option<u32>, pruned: &mut Vec<SnapshotId>) -> Result<(), Refusal> {
        let Some(keep) = keep else {
            return Ok(());
        };
        let from = match self.state()? {
            WorkspaceState::Up(vm) => vm.from,
            WorkspaceState::Down { .. } => None,
        };
        let listed = self.listings().await?;
        let unnamed =
            listed.iter().rev().filter(|one| one.manifest.as_ref().is_ok_and(|one| one.name.is_none()));
        let old: Vec<SnapshotId> =
            unnamed.map(|one| one.id).skip(keep as usize).filter(|id| Some(*id) != from).collect();
        for id in old.into_iter().rev() {
            match self.remove(id).await? {
                OperationResult::Done => pruned.push(id),
                OperationResult::Stuck(failure) => return Err(Refusal::Stuck(failure)),
                // Somebody asked to stop: what is left is pruned after the next snapshot.
                _ => return Ok(()),
            }
        }
        Ok(())
    }

    /// A snapshot comes back to life: the newest that fits, or the one that is wanted. A VM that runs is brought down
    /// first if it is to be replaced, once it is known that the snapshot fits.
    ///
    /// # Errors
    /// If it was not begun, or if the journal failed.
    pub async fn restore(
        &mut self,
        wanted: Option<&Reference>,
        replace: bool,
    ) -> Result<RestoreResult, Refusal> {
        self.recover_first().await?;
        if !replace && matches!(self.state()?, WorkspaceState::Up(_)) {
            return Err(Refusal::Running);
        }
        let SnapshotChoice { chosen, mut passed_over } = self.choose(wanted).await?;
        match (chosen, wanted) {
            (Some(manifest), _) => self.bring_back(manifest, passed_over).await,
            (None, Some(_)) if passed_over.len() == 1 => {
                let (id, unfit) = passed_over.remove(0);
                Err(Refusal::Unfit(id, unfit))
            }
            (None, _) if passed_over.is_empty() => Err(Refusal::NoSnapshot),
            (None, _) => Err(Refusal::NothingFits(PassedOver(passed_over))),
        }
    }

    /// The snapshot that is wanted, or the newest that fits; a fresh boot where none does.
    ///
    /// # Errors
    /// If it was not begun, or if the journal failed.
    pub async fn warm_up(&mut self, wanted: Option<&Reference>) -> Result<RestoreResult, Refusal> {
        self.recover_first().await?;
        if matches!(self.state()?, WorkspaceState::Up(_)) {
            return Ok(RestoreResult {
                report: OperationResult::Already,
                restored: None,
                passed_over: Vec::new(),
            });
        }
        let SnapshotChoice { chosen, passed_over } = self.choose(wanted).await?;
        match chosen {
            Some(manifest) => self.bring_back(manifest, passed_over).await,
            None => Ok(RestoreResult { report: self.boot().await?, restored: None, passed_over }),
        }
    }

    async fn choose(&self, wanted: Option<&Reference>) -> Result<SnapshotChoice, Refusal> {
        let mut listed = self.listings().await?;
        if let Some(reference) = wanted {
            let id = self.find(&listed, reference)?;
            listed.retain(|one| one.id == id);
        }
        compatibility::choose(self.world, listed.into_iter().rev(), &self.interrupt)
            .await
            .map_err(Refusal::Look)
    }

    async fn bring_back(
        &mut self,
        manifest: Manifest,
        passed_over: Vec<(SnapshotId, NotRestorable)>,
    ) -> Result<RestoreResult, Refusal> {
        let mut replaced = false;
        if let WorkspaceState::Up(vm) = self.state()? {
            match self.bring_down(vm).await? {
                OperationResult::Done | OperationResult::Already => replaced = true,
                report => return Ok(RestoreResult { report, restored: None, passed_over }),
            }
        }
        let WorkspaceState::Down { disk } = self.state()? else {
            return Err(Refusal::Running);
        };
        let plan = restore::RestorePlan {
            snapshot: manifest.id,
            slot: manifest.slot,
            boot: manifest.boot,
            shares: manifest.shares,
            former_disk: disk,
        };
        let parameters = record::encode_payload(&plan).map_err(Refusal::Parameters)?;
        let report = match self.run(&restore::table(plan), &parameters).await? {
            OperationResult::RolledBack(failure) if replaced => OperationResult::ReplacedInVain(failure),
            report => report,
        };
        Ok(RestoreResult { report, restored: Some(manifest), passed_over })
    }

    /// A snapshot leaves the list, and the disk.
    ///
    /// # Errors
    /// If it was not begun, or if the journal failed.
    pub async fn delete(&mut self, snapshot: &Reference) -> Result<(SnapshotId, OperationResult), Refusal> {
        self.recover_first().await?;
        let id = self.find(&self.listings().await?, snapshot)?;
        Ok((id, self.remove(id).await?))
    }

    async fn remove(&mut self, snapshot: SnapshotId) -> Result<OperationResult, Refusal> {
        let plan = delete::DeletePlan { snapshot, state: self.state()? };
        let parameters = record::encode_payload(&plan).map_err(Refusal::Parameters)?;
        self.run(&delete::table(plan), &parameters).await
    }

    /// All that are in the list, oldest first.
    async fn listings(&self) -> Result<Vec<ListedSnapshot>, Refusal> {
        within(LOOK, self.world.catalog.list()).await.map_err(Refusal::Look)
    }

    fn find(&self, listed: &[ListedSnapshot], wanted: &Reference) -> Result<SnapshotId, Refusal> {
        let found = wanted.find(listed).map(|one| one.id);
        found.ok_or_else(|| Refusal::NoSuchSnapshot(wanted.clone()))
    }

    async fn recover_first(&mut self) -> Result<(), Refusal> {
        match self.recover().await?.stuck {
            Some(failure) => Err(Refusal::Stuck(failure)),
            None => Ok(()),
        }
    }

    /// Clears away what is left of a VM that was lost or condemned.
    async fn clear_away(&mut self) -> Result<Option<(LossReason, Ending)>, Refusal> {
        let WorkspaceState::Up(vm) = self.state()? else {
            return Ok(None);
        };
        // One that is condemned is not asked: it may hang.
        let why = if vm.condemned { Some(LossReason::Condemned) } else { self.loss(vm.machine.vmm).await? };
        let Some(why) = why else {
            return Ok(None);
        };
        let plan = down::DownPlan { vm, ask: false };
        let parameters = record::encode_payload(&plan).map_err(Refusal::Parameters)?;
        Ok(Some((why, self.executor().run(&down::table(plan), &parameters).await?)))
    }

    /// Why the VM of this VMM is lost, if it is.
    async fn loss(&self, vmm: Generation) -> Result<Option<LossReason>, Refusal> {
        let mut found = std::pin::pin!(within(LOOK, self.world.vmm.find(vmm)));
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
            _ => Some(LossReason::Gone),
        })
    }

    async fn run(
        &mut self,
        operation: &Operation<World>,
        parameters: &[u8],
    ) -> Result<OperationResult, Refusal> {
        let ending = self.executor().run(operation, parameters).await?;
        // An operation may have found that the VM it was about is gone.
        let cleared = match ending {
            Ending::Stuck(_) | Ending::Done => None,
            Ending::RolledBack(_) | Ending::Lost(_) => self.clear_away().await?,
        };
        Ok(match (ending, cleared) {
            (Ending::Stuck(failure), _) | (_, Some((_, Ending::Stuck(failure)))) => {
                OperationResult::Stuck(failure)
            }
            (Ending::Done, _) => OperationResult::Done,
            (Ending::Lost(failure), _) => OperationResult::ClearedAway(failure),
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

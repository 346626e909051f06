//! One run of nixbox on a workspace: recover, check, run. Its owner holds the workspace's lock.

use std::time::Duration;

use super::snapshot::Care;
use super::{NoTable, Standing, Vm, delete, down, restore, snapshot, table, up};
use crate::engine::executor::{Ending, Executor, Observer, Setback, Stopped};
use crate::engine::journal::{Journal, Storage};
use crate::engine::record::{self, PayloadError};
use crate::engine::transition::{Failure, Interrupt, Operation};
use crate::world::{Manifest, Slot, SnapshotId, SnapshotName, VmmState, World};

/// How long a look at the world may take. Verifying a snapshot reads all of it, and is interruptible.
const LOOK: Duration = Duration::from_secs(60);
const VERIFY: Duration = Duration::from_secs(3600);

/// Looks at the world before an operation begins, within a time limit.
async fn look<T>(limit: Duration, call: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::time::timeout(limit, call).await.unwrap_or(Err(Failure::TimedOut(limit)))
}

/// Runs operations on one workspace.
pub struct Session<'a, S> {
    /// Its world.
    pub world: &'a World,
    /// Its journal.
    pub journal: Journal<S>,
    /// A person's wish to stop.
    pub interrupt: Interrupt,
    /// Who sees what happens.
    pub observer: &'a dyn Observer,
}

/// What an operation came to.
#[derive(Debug)]
pub enum Report {
    /// It was done.
    Done,
    /// There was nothing to do.
    Already,
    /// It failed or was interrupted; all is as it was before.
    RolledBack(Setback),
    /// It got past its commit point, failed then for good, and what was left was cleared away: the workspace is down.
    ClearedAway(Setback),
    /// A person is needed.
    Stuck(Setback),
}

/// What a recovery came to.
#[derive(Debug, Default)]
pub struct Recovered {
    /// The operation that had been left open, and how it ended.
    pub operation: Option<(&'static str, Ending)>,
    /// Whether what was left of a lost VM was cleared away.
    pub cleared: bool,
    /// Why a person is needed.
    pub stuck: Option<Setback>,
}

/// Why an operation was not begun. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// An earlier operation is stuck.
    #[error("an earlier operation is stuck")]
    Stuck(#[source] Setback),
    /// The VM has to be down for it.
    #[error("the VM is running")]
    Running,
    /// The VM has to be up for it.
    #[error("no VM is running")]
    NotRunning,
    /// The VM is there, but not in a state to be worked with.
    #[error("the VM is {0:?}, and has to run")]
    NotInOrder(VmmState),
    /// The name is taken.
    #[error("a snapshot named {0} exists")]
    NameTaken(SnapshotName),
    /// There is none.
    #[error("there is no snapshot {0}")]
    NoSuchSnapshot(String),
    /// It cannot be restored.
    #[error("snapshot {0} does not fit")]
    Unfit(SnapshotId, #[source] Failure),
    /// The guest's address belongs to a slot that another VM has.
    #[error("slot {0}, which the snapshot's guest has its address from, is taken by another VM")]
    SlotTaken(Slot),
    /// Looking at the world failed.
    #[error("cannot look how the workspace stands")]
    Look(#[source] Failure),
    /// The journal failed, before or in the operation.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// The journal's open operation is not one of this nixbox.
    #[error(transparent)]
    NoTable(#[from] NoTable),
    /// The journal's last standing is not one of this nixbox.
    #[error("the journal does not say how the workspace stands")]
    Standing(#[source] PayloadError),
    /// The operation cannot be written down.
    #[error("the operation cannot be written down")]
    Parameters(#[source] PayloadError),
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
            if let Ending::Stuck(setback) = ending {
                recovered.stuck = Some(setback);
                return Ok(recovered);
            }
            recovered.operation = Some((operation.label, ending));
        }
        match self.clear_away().await? {
            None => {}
            Some(Ending::Stuck(setback)) => recovered.stuck = Some(setback),
            Some(_) => recovered.cleared = true,
        }
        Ok(recovered)
    }

    /// How the workspace stands, by its journal.
    ///
    /// # Errors
    /// If the journal does not say.
    pub fn standing(&self) -> Result<Standing, Refusal> {
        Standing::of(&self.journal.history().standing).map_err(Refusal::Standing)
    }

    /// A fresh boot.
    ///
    /// # Errors
    /// If it was not begun, or if the journal failed.
    pub async fn up(&mut self) -> Result<Report, Refusal> {
        self.recover_first().await?;
        let disk = match self.standing()? {
            Standing::Up(_) => return Ok(Report::Already),
            Standing::Down { disk } => disk,
        };
        let plan = up::Plan { disk, shares: self.world.shares.wanted() };
        let parameters = record::encode_payload(&plan).map_err(Refusal::Parameters)?;
        self.run(&up::table(plan), &parameters).await
    }

    /// The VM goes, its disk stays.
    ///
    /// # Errors
    /// If it was not begun, or if the journal failed.
    pub async fn down(&mut self) -> Result<Report, Refusal> {
        self.recover_first().await?;
        let Standing::Up(vm) = self.standing()? else {
            return Ok(Report::Already);
        };
        let plan = down::Plan { vm, ask: true };
        let parameters = record::encode_payload(&plan).map_err(Refusal::Parameters)?;
        self.run(&down::table(plan), &parameters).await
    }

    /// Freezes the VM, which goes on unless `stop`.
    ///
    /// # Errors
    /// If it was not begun, or if the journal failed.
    pub async fn snapshot(&mut self, name: Option<SnapshotName>, stop: bool) -> Result<Report, Refusal> {
        self.recover_first().await?;
        let Standing::Up(vm) = self.standing()? else {
            return Err(Refusal::NotRunning);
        };
        let plan = self.plan_snapshot(vm, name, stop).await?;
        let parameters = record::encode_payload(&plan).map_err(Refusal::Parameters)?;
        self.run(&snapshot::table(plan), &parameters).await
    }

    /// All that can be known before the guest is touched.
    async fn plan_snapshot(
        &self,
        vm: Vm,
        name: Option<SnapshotName>,
        stop: bool,
    ) -> Result<snapshot::Plan, Refusal> {
        let world = self.world;
        match look(LOOK, world.vmm.find(vm.machine.vmm)).await.map_err(Refusal::Look)? {
            VmmState::Running => {}
            state => return Err(Refusal::NotInOrder(state)),
        }
        let listed = look(LOOK, world.catalog.list()).await.map_err(Refusal::Look)?;
        if let Some(name) =
            name.as_ref().filter(|name| listed.iter().any(|one| one.name.as_ref() == Some(name)))
        {
            return Err(Refusal::NameTaken(name.clone()));
        }
        let shares = world.shares.wanted();
        let care: Care =
            snapshot::care(shares, look(LOOK, world.vmm.ability()).await.map_err(Refusal::Look)?);
        let boot = look(LOOK, world.guest.ready(&vm.machine)).await.map_err(Refusal::Look)?;
        Ok(snapshot::Plan { vm, boot, name, shares, care, stop })
    }

    /// A snapshot comes back to life.
    ///
    /// # Errors
    /// If it was not begun, or if the journal failed.
    pub async fn restore(&mut self, snapshot: SnapshotId) -> Result<Report, Refusal> {
        self.recover_first().await?;
        let Standing::Down { disk } = self.standing()? else {
            return Err(Refusal::Running);
        };
        let manifest = self.listed(snapshot).await?;
        let fits = look(VERIFY, self.world.catalog.verify(snapshot, &self.interrupt)).await;
        fits.map_err(|failure| Refusal::Unfit(snapshot, failure))?;
        let slots = &self.world.slots;
        let held = look(LOOK, slots.held()).await.map_err(Refusal::Look)?;
        let free = look(LOOK, slots.free()).await.map_err(Refusal::Look)?;
        if held != Some(manifest.slot) && !free.contains(&manifest.slot) {
            return Err(Refusal::SlotTaken(manifest.slot));
        }
        let plan = restore::Plan {
            snapshot,
            slot: manifest.slot,
            boot: manifest.boot,
            shares: manifest.shares,
            former_disk: disk,
        };
        let parameters = record::encode_payload(&plan).map_err(Refusal::Parameters)?;
        self.run(&restore::table(plan), &parameters).await
    }

    /// A snapshot leaves the list, and the disk.
    ///
    /// # Errors
    /// If it was not begun, or if the journal failed.
    pub async fn delete(&mut self, snapshot: SnapshotId) -> Result<Report, Refusal> {
        self.recover_first().await?;
        self.listed(snapshot).await?;
        let plan = delete::Plan { snapshot, standing: self.standing()? };
        let parameters = record::encode_payload(&plan).map_err(Refusal::Parameters)?;
        self.run(&delete::table(plan), &parameters).await
    }

    async fn listed(&self, snapshot: SnapshotId) -> Result<Manifest, Refusal> {
        let listed = look(LOOK, self.world.catalog.list()).await.map_err(Refusal::Look)?;
        let found = listed.into_iter().find(|manifest| manifest.id == snapshot);
        found.ok_or_else(|| Refusal::NoSuchSnapshot(snapshot.to_string()))
    }

    async fn recover_first(&mut self) -> Result<(), Refusal> {
        match self.recover().await?.stuck {
            Some(setback) => Err(Refusal::Stuck(setback)),
            None => Ok(()),
        }
    }

    /// Clears away what is left of a VM that was lost or condemned.
    async fn clear_away(&mut self) -> Result<Option<Ending>, Refusal> {
        let Standing::Up(vm) = self.standing()? else {
            return Ok(None);
        };
        let state = look(LOOK, self.world.vmm.find(vm.machine.vmm)).await.map_err(Refusal::Look)?;
        if state.has_system() && !vm.condemned {
            return Ok(None);
        }
        let plan = down::Plan { vm, ask: false };
        let parameters = record::encode_payload(&plan).map_err(Refusal::Parameters)?;
        Ok(Some(self.executor().run(&down::table(plan), &parameters).await?))
    }

    async fn run(&mut self, operation: &Operation<World>, parameters: &[u8]) -> Result<Report, Refusal> {
        let ending = self.executor().run(operation, parameters).await?;
        // An operation may have found that the VM it was about is gone.
        let cleared = match ending {
            Ending::Stuck(_) | Ending::Done => None,
            Ending::RolledBack(_) | Ending::Lost(_) => self.clear_away().await?,
        };
        Ok(match (ending, cleared) {
            (Ending::Stuck(setback), _) | (_, Some(Ending::Stuck(setback))) => Report::Stuck(setback),
            (Ending::Done, _) => Report::Done,
            (Ending::Lost(setback), _) => Report::ClearedAway(setback),
            (Ending::RolledBack(setback), cleared) => {
                let setback = setback.unwrap_or(Setback { label: operation.label, failure: Failure::Lost });
                if cleared.is_some() { Report::ClearedAway(setback) } else { Report::RolledBack(setback) }
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

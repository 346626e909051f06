//! What a session does about the guest of a VM that runs: a guest that was rebooted gets its credentials and shares again, also
//! one that was not if a person asks for it, and one whose clock is wrong, because its host was suspended, gets the time.
//!
//! Uses the session and the operation `equip`.

use super::equip::{self, EquipPlan};
use super::limits::{GUEST, LOOK, until_ready, within};
use super::outcome::{OperationResult, Refusal};
use super::plan_snapshot::{must_be_recorded, must_run};
use super::session::Session;
use super::state::{RunningVm, VmCondition, WorkspaceState};
use crate::engine::journal::Storage;
use crate::world::VmmState;

impl<S: Storage> Session<'_, S> {
    /// Gives the guest of the running VM its credentials and shares again, if it was rebooted since it got them.
    ///
    /// # Errors
    /// If the operation was not begun, or if the journal failed.
    pub async fn equip(&mut self) -> Result<OperationResult, Refusal> {
        let vm = self.recovered_vm().await?;
        self.equip_rebooted(vm).await
    }

    /// Gives the guest of this VM, which [`Session::running_vm`] has returned, its credentials and shares anew, as they are
    /// today. What it was given before and is not to have any more is taken from it. If that fails, the next operation that
    /// needs the guest tries it again.
    ///
    /// # Errors
    /// If the operation was not begun, or if the journal failed.
    pub async fn equip_anew(&mut self, vm: RunningVm) -> Result<OperationResult, Refusal> {
        self.equip_rebooted(RunningVm { boot: None, ..vm }).await
    }

    /// Recovers, and returns the VM that runs then, for a change that needs its guest or its record.
    ///
    /// # Errors
    /// If no VM runs, if it is paused or was left running for a person to look at, or if an earlier nixbox built it, which has
    /// not written down what from.
    pub async fn running_vm(&mut self) -> Result<RunningVm, Refusal> {
        let vm = self.recovered_vm().await?;
        must_be_recorded(self.world, &vm.machine).await?;
        must_run(self.world, &vm.machine).await?;
        Ok(vm)
    }

    async fn recovered_vm(&mut self) -> Result<RunningVm, Refusal> {
        self.recover_first().await?;
        match self.state()? {
            WorkspaceState::Up(RunningVm { condition: VmCondition::LeftRunning, .. }) => {
                Err(Refusal::LeftRunning)
            }
            WorkspaceState::Up(vm) => Ok(vm),
            WorkspaceState::Down { .. } => Err(Refusal::NotRunning),
        }
    }

    /// The same for this VM, which the state of the workspace has.
    pub(super) async fn equip_rebooted(&mut self, vm: RunningVm) -> Result<OperationResult, Refusal> {
        let machine = vm.machine;
        if within(LOOK, self.world.vmm.find(machine.vmm)).await.map_err(Refusal::Look)? != VmmState::Running {
            return Ok(OperationResult::Already);
        }
        let limit = until_ready(self.world.guest.ready_timeout());
        let boot = within(limit, self.world.guest.ready(&machine)).await.map_err(Refusal::Guest)?;
        within(GUEST, self.world.guest.keep_time(&machine)).await.map_err(Refusal::Guest)?;
        if vm.boot == Some(boot) {
            return Ok(OperationResult::Already);
        }
        self.sources().hold(self.world).await?;
        self.run(EquipPlan { vm, before: vm.boot, boot }, equip::table).await
    }
}

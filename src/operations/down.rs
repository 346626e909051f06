//! `down`: the guest shuts down, and nothing of the VM is left but its disk.
//!
//! ```text
//! [pre-down scripts] ─► STOP GUEST ─► VMM ∥ network ∥ shares ∥ memory ─► [retire the former disk]
//!   ─► release slot ∥ built record ─► [post-down scripts]
//! ```
//!
//! Before the first stage the session finds out from the journal that there is a VM. The same table clears away what is
//! left of a VM that was lost: then no guest is asked, and neither script runs. A VM that is condemned still has a guest,
//! which may have begun to work: it is asked, without the scripts, for which the VM was never there.
//!
//! **Pre-down scripts** are the user's. A script that fails ends the operation, and the VM runs on.
//!
//! **Stop guest** is the commit point. The guest is asked to shut down by a command; if it does not, the power button
//! is pressed; if that does not help either, the VMM is ended with TERM and then KILL. A guest that does not react is
//! no failure, because ending the VMM always remains. If the VMM cannot be ended, the probe finds that it lives, and
//! the operation rolls back: the VM runs on.
//!
//! After a crash here the probe has to find out whether the killed nixbox had asked the guest already, because a guest
//! that was asked goes down without nixbox. A VMM that is gone means done. A guest that runs is watched: if it ends or
//! stops answering within [`ENDS_OR_ANSWERS`], or does so slowly within [`ENDS`], stopping is done and recovery goes
//! forward; if it answers, nobody had asked, and recovery goes back.
//!
//! **Clear away** ends the VMM and the share daemons and removes the network and the RAM file. **Former disk** retires
//! one of two disks: after a restore, the VM's disk has taken the place of that of the session before, which is kept now
//! as `[snapshot] keep-disks` says, so that `up --disk` can go back to it; the disk that was kept first goes if there are
//! too many. If that restore failed after its commit point, the VM's own disk is removed instead, and the session's is the
//! workspace's again, also if the VM was left running for a while.
//! **Release slot** comes last, so that no other VM takes the slot while its network is there, and the **built record**
//! goes with it, because a recovery needs the record until everything else is gone. A failure in these
//! stages leaves the operation stuck, for there is nothing to fall back to: every later command that changes something
//! tries again. After a crash recovery removes what is left. The **post-down scripts** run once all is gone; one that
//! fails is reported.

use std::time::Duration;

use futures_util::FutureExt;
use serde::{Deserialize, Serialize};

use super::ids;
use super::limits::{GUEST, LONG, LOOK, QUICK, within};
use super::shared::Context;
use super::shared::clear_away::{FormerDisk, clear_away};
use super::shared::hooks::{POST_DOWN, PRE_DOWN};
use super::state::{RunningVm, VmCondition, WorkspaceState};
use crate::engine::record::Ended;
use crate::engine::transition::{AfterCommit, Operation, Probe, Transition, TransitionSpec};
use crate::world::{Machine, Result, VmmState, World};

/// The parameters of `down` in the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DownPlan {
    /// The VM.
    pub vm: RunningVm,
    /// How the VM is ended.
    pub mode: StopMode,
}

/// How a VM is ended. In the journal this is one byte, and older journals have only the first two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub enum StopMode {
    /// No guest is asked: what is left of a lost VM is cleared away.
    ClearAway,
    /// The guest is asked, between the scripts of the user.
    Ordinary,
    /// The guest is asked, and no script runs: the operation that made the VM could not finish it.
    WithoutScripts,
}

/// A byte that no nixbox writes for a [`StopMode`].
#[derive(Debug, thiserror::Error)]
#[error("{0} is no way to end a VM")]
pub struct UnknownStopMode(u8);

impl From<StopMode> for u8 {
    fn from(mode: StopMode) -> Self {
        match mode {
            StopMode::ClearAway => 0,
            StopMode::Ordinary => 1,
            StopMode::WithoutScripts => 2,
        }
    }
}

impl TryFrom<u8> for StopMode {
    type Error = UnknownStopMode;

    fn try_from(byte: u8) -> std::result::Result<Self, UnknownStopMode> {
        Ok(match byte {
            0 => Self::ClearAway,
            1 => Self::Ordinary,
            2 => Self::WithoutScripts,
            unknown => return Err(UnknownStopMode(unknown)),
        })
    }
}

pub(super) fn table(plan: DownPlan) -> Operation<World> {
    let RunningVm { machine, former_disk, from, condition, .. } = plan.vm;
    let (kept, superseded) = match former_disk {
        Some(former) if matches!(condition, VmCondition::Condemned | VmCondition::LeftRunning) => {
            // A VM that did not come from a snapshot has the disk of a session that a person went back to.
            let of_session = from.is_none();
            let own = if of_session { FormerDisk::Kept } else { FormerDisk::Removed };
            (former, Some(own(machine.disk)))
        }
        former => (machine.disk, former.map(FormerDisk::Kept)),
    };
    let scripts = plan.mode == StopMode::Ordinary;
    let final_state = move |ended| match ended {
        Ended::RolledBack => WorkspaceState::Up(plan.vm),
        Ended::Done | Ended::Lost => WorkspaceState::Down { disk: Some(kept) },
    };
    let operation = Operation::new(ids::DOWN, "down", AfterCommit::Stuck, move |_, ended| {
        async move { Ok(final_state(ended).bytes()?) }.boxed()
    })
    .stage_if(scripts, "pre-down scripts", vec![Box::new(PRE_DOWN)])
    .commit(Box::new(StopGuest { machine, ask: plan.mode != StopMode::ClearAway }));
    clear_away(operation, &machine, superseded).stage_if(
        scripts,
        "post-down scripts",
        vec![Box::new(POST_DOWN)],
    )
}

struct StopGuest {
    machine: Machine,
    ask: bool,
}

impl Transition<World> for StopGuest {
    type Intent = Machine;
    type Outcome = ();

    fn spec(&self) -> TransitionSpec {
        TransitionSpec::never_undone(ids::STOP_GUEST, "stop guest", "it is the commit point", LONG)
    }

    async fn prepare(&self, _: &Context<'_>) -> Result<Machine> {
        Ok(self.machine)
    }

    async fn probe(&self, context: &Context<'_>, machine: &Machine) -> Result<Probe<()>> {
        Ok(match context.world.vmm.find(machine.vmm).await? {
            VmmState::Never | VmmState::Gone | VmmState::PoweredOff => Probe::Done(()),
            VmmState::Running if self.ask && shuts_down(context.world, machine).await? => Probe::Done(()),
            _ => Probe::NotDone,
        })
    }

    async fn apply(&self, context: &Context<'_>, machine: &Machine) -> Result<()> {
        let world = context.world;
        if self.ask {
            shut_down(world, machine).await;
        }
        world.vmm.stop(machine.vmm).await
    }
}

/// Asks a guest that runs to shut down, and presses the power button if it does not. Nothing of this is a failure if it
/// does not help or gets no answer: the VMM is ended next.
async fn shut_down(world: &World, machine: &Machine) {
    let state = async || within(LOOK, world.vmm.find(machine.vmm)).await;
    if !matches!(state().await, Ok(VmmState::Running)) {
        return;
    }
    let asked = within(GUEST, world.guest.shut_down(machine)).await;
    if asked.is_err() || !matches!(state().await, Ok(state) if !state.has_system()) {
        within(QUICK, world.vmm.power_button(machine.vmm)).await.ok();
    }
}

/// How long a guest that was asked to shut down may take to end, or to get so far that it answers no more; and how long
/// a guest that was not asked may take to answer.
const ENDS_OR_ANSWERS: Duration = Duration::from_secs(10);
/// How long a guest that does not answer may take to end.
const ENDS: Duration = Duration::from_secs(60);

/// Waits until it is certain whether a running guest is shutting down because a killed nixbox had asked it to. It cannot
/// be told not to, and "the VM runs" would be true for a moment only.
async fn shuts_down(world: &World, machine: &Machine) -> Result<bool> {
    if world.vmm.ends(machine.vmm, ENDS_OR_ANSWERS).await? {
        return Ok(true);
    }
    match tokio::time::timeout(ENDS_OR_ANSWERS, world.guest.equipped(machine)).await {
        Ok(Ok(_)) => Ok(false),
        Ok(Err(_)) | Err(_) => world.vmm.ends(machine.vmm, ENDS).await,
    }
}

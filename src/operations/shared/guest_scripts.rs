//! The scripts of a person that run in the guest: after it was booted or restored, and before a snapshot.
//!
//! A script that fails, takes too long or cannot be reached any more ends neither the VM nor the operation: the guest seam
//! tells a person, and the journal has what became of it. Nothing in the guest tells reliably whether a script ran, because
//! a guest can write anything there. So after a crash the scripts of a guest that was booted or restored run again, and a
//! person is told that they do: each runs at least once. A guest whose scripts did not run may lack what they were to
//! renew. Scripts before a snapshot do not run again, because recovery takes back a snapshot that was not finished.

use std::time::Duration;

use super::machine::Target;
use super::{Context, probe_if_alive};
use crate::engine::transition::{Failure, Probe, Transition, TransitionId, TransitionSpec, within};
use crate::operations::ids;
use crate::operations::limits::{GUEST, GUEST_SCRIPTS, QUICK};
use crate::world::{GuestScriptPoint, GuestScriptsOutcome, Machine, Result, World};

/// For the scripts of a point and the connection to their guest.
const CALL: Duration = GUEST_SCRIPTS.saturating_add(GUEST);

/// Runs the scripts of one point.
pub(in crate::operations) struct RunGuestScripts {
    spec: TransitionSpec,
    point: GuestScriptPoint,
    target: Target,
}

impl RunGuestScripts {
    fn new(id: TransitionId, label: &'static str, point: GuestScriptPoint, target: Target) -> Box<Self> {
        const WHY: &str = "what a script did in the guest is the guest's";
        let spec = TransitionSpec::nothing_to_undo(id, label, WHY, CALL + QUICK);
        Box::new(Self { spec, point, target })
    }

    /// The scripts of a guest that was booted.
    pub(in crate::operations) fn after_up(target: Target) -> Box<Self> {
        Self::new(ids::AFTER_UP, "after-up scripts", GuestScriptPoint::AfterUp, target)
    }

    /// The scripts of a guest that was restored.
    pub(in crate::operations) fn after_restore(target: Target) -> Box<Self> {
        Self::new(ids::AFTER_RESTORE, "after-restore scripts", GuestScriptPoint::AfterRestore, target)
    }

    /// The scripts of a guest that is about to be frozen.
    pub(in crate::operations) fn before_snapshot(target: Target) -> Box<Self> {
        Self::new(ids::BEFORE_SNAPSHOT, "before-snapshot scripts", GuestScriptPoint::BeforeSnapshot, target)
    }
}

impl Transition<World> for RunGuestScripts {
    type Intent = Machine;
    type Outcome = GuestScriptsOutcome;

    fn spec(&self) -> TransitionSpec {
        self.spec
    }

    async fn prepare(&self, context: &Context<'_>) -> Result<Machine> {
        self.target.machine(context)
    }

    async fn probe(&self, context: &Context<'_>, machine: &Machine) -> Result<Probe<GuestScriptsOutcome>> {
        let probe = async {
            context.world.guest.tell_of_rerun(self.point);
            Ok(Probe::NotDone)
        };
        probe_if_alive(context.world, machine.vmm, probe).await
    }

    async fn apply(&self, context: &Context<'_>, machine: &Machine) -> Result<GuestScriptsOutcome> {
        let guest = &context.world.guest;
        match within(CALL, guest.run_scripts(machine, self.point, GUEST_SCRIPTS, &context.interrupt)).await {
            Err(failure @ (Failure::Lost | Failure::Interrupted)) => Err(failure),
            // The seam has told a person why. A guest that does not answer any more must not end its VM here either.
            Err(_) => Ok(GuestScriptsOutcome::Unfinished),
            outcome => outcome,
        }
    }
}

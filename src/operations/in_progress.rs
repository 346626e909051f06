//! The VM of an `up` or a `restore` that has not ended, for commands that use a VM and do not change it: a script of the
//! user on the host may run commands in the guest.
//!
//! Uses the plans of the two operations, and reads a history only.

use super::ids;
use super::restore::RestorePlan;
use super::state::{RunningVm, VmCondition};
use super::up::UpPlan;
use crate::engine::history::{OpenOperation, TransitionStatus};
use crate::engine::record::{self, PayloadError};
use crate::engine::transition::TransitionId;
use crate::world::{BootId, Settlement, Slot};

/// The VM that an operation is making, once its guest is SSH-ready and has its credentials and shares. `None` before that,
/// and for an operation that makes no VM.
///
/// # Errors
/// If the parameters or outcomes in the journal are not what this nixbox writes.
pub fn vm_in_progress(open: &OpenOperation) -> Result<Option<RunningVm>, PayloadError> {
    let outcome = |id: TransitionId| {
        let entries = open.entries().iter();
        let mut done = entries.filter(|entry| entry.id == id && entry.status == TransitionStatus::Done);
        done.next().map(|entry| entry.outcome.as_slice())
    };
    if [ids::INJECT, ids::MOUNT_SHARES].iter().any(|id| outcome(*id).is_none()) {
        return Ok(None);
    }
    let (Some(slot), Some(boot)) = (outcome(ids::CLAIM_SLOT), outcome(ids::READY)) else {
        return Ok(None);
    };
    let (slot, boot): (Slot, BootId) = (record::decode_payload(slot)?, record::decode_payload(boot)?);
    Ok(match open.operation {
        Some(ids::UP) => {
            let plan = UpPlan::of(&open.parameters)?;
            Some(plan.vm(plan.machine(open.generation, slot), Some(boot)))
        }
        Some(ids::RESTORE) => {
            let plan = RestorePlan::of(&open.parameters)?;
            let settlement: Option<Settlement> =
                outcome(ids::SETTLE).map(record::decode_payload).transpose()?;
            let condition = VmCondition::settled(settlement.unwrap_or(Settlement::WHOLE));
            Some(plan.vm(plan.machine(open.generation), condition))
        }
        _ => None,
    })
}

//! The exit codes and hints of commands that were refused before an operation was begun.

use super::{CliError, ExitKind, Problem};
use crate::engine::executor::EngineError;
use crate::engine::transition::Failure;
use crate::operations::Refusal;

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        use ExitKind::{Failed, Interrupted, NotFound, Stuck, Usage};
        let (exit, hint) = match refusal {
            Refusal::Stuck(failure) => return CliError::Stuck(failure).into(),
            Refusal::Engine(EngineError::Journal(error)) => return error.into(),
            Refusal::Look(Failure::Interrupted)
            | Refusal::Guest(Failure::Interrupted)
            | Refusal::Credentials(Failure::Interrupted) => (Interrupted, None),
            Refusal::GuestUnfit(_) => {
                (Failed, Some("nothing was changed; the guest runs on with its credentials"))
            }
            Refusal::NoBackup(_) => (
                Failed,
                Some(
                    "nothing was changed; the backup lies beside the VM's RAM until the guest has its files back",
                ),
            ),
            Refusal::Credentials(_) => (
                Failed,
                Some(
                    "nothing was changed; make that source readable, or take it out of [env] or [credentials] in the \
                     configuration",
                ),
            ),
            Refusal::Running => (
                Failed,
                Some(
                    "`nixbox down` brings the VM down; `nixbox restore --replace` does so before it restores",
                ),
            ),
            Refusal::NameTaken(_) => {
                (Failed, Some("choose another name, or delete that snapshot with `nixbox snapshot delete`"))
            }
            Refusal::NoRoom { .. } => {
                (Failed, Some("nothing was changed; `nixbox snapshot list` shows what could be deleted"))
            }
            Refusal::SharesInUse(_) => (
                Failed,
                Some("nothing was changed; end those programs, or have them leave the shared directories"),
            ),
            Refusal::Unfit(_, ref why) if why.can_be_overridden() => {
                (Failed, Some("nothing was changed; with --force it is tried in spite of that"))
            }
            Refusal::Unfit(..) | Refusal::NothingFits(_) => {
                (Failed, Some("nothing was changed; `nixbox up` boots without a snapshot"))
            }
            Refusal::NoSnapshot => (NotFound, Some("`nixbox snapshot` makes one of a running VM")),
            Refusal::NotRunning => (NotFound, Some("`nixbox up` starts one")),
            Refusal::LeftRunning => {
                (Failed, Some("`nixbox down` ends it, and then `nixbox up` starts another"))
            }
            Refusal::NoSuchDisk(_) => (NotFound, Some("`nixbox status` lists the disks that are kept")),
            Refusal::AmbiguousSnapshot { .. } => (
                Usage,
                Some(
                    "nothing was changed; use a number, and `nixbox snapshot rename NUMBER NAME` gives a snapshot another name",
                ),
            ),
            Refusal::NoSuchSnapshot(_) => (NotFound, Some("`nixbox snapshot list` shows the snapshots")),
            Refusal::NoTable(_) | Refusal::UnreadableState(_) | Refusal::Engine(EngineError::NoPlan(_)) => {
                (Stuck, None)
            }
            _ => (Failed, None),
        };
        Self { hint, ..Self::new(exit, refusal) }
    }
}

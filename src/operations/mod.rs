//! What nixbox does: six operations, each a table of stages in a file of its own.
//!
//! | operation | commit point | before it, recovery goes | after it |
//! |---|---|---|---|
//! | `up` | boot | back: nothing of it is left | forward, to SSH-ready |
//! | `down` | stop guest | back: it runs | forward, until nothing is left |
//! | `snapshot` | commit | back: the VM runs, with all that it had | - |
//! | `restore` | resume | back: nothing of it is left | forward, to SSH-ready |
//! | `equip` | same boot | back: it runs | - |
//! | `delete` | rename to trash | back: it is listed | forward, until it is gone |
//!
//! A [`Session`] runs them: it recovers what an earlier run left open, checks everything that can be known before the
//! world is touched, and runs the operation. Uses the engine and the seams in `world`, and nothing else.
//!
//! # How to read the pictures
//!
//! The head of each operation draws its table. A test draws the same picture from the table itself and compares them.
//!
//! - `─►` leads from a stage to the next, which waits for all transitions of the stage before.
//! - `∥` stands between the transitions of a stage, which run at the same time.
//! - `↶` follows a transition that has an undo. The others before the commit point have nothing to undo.
//! - The commit point is in capitals. Nothing from it on is ever undone.
//! - `[…]` encloses a transition that some variants of the operation do not have.
//!
//! # Which file uses which
//!
//! `limits`, `ids` and `state` lie below everything else; above them `shared`, then the six operations (and
//! `roll_over`, which `snapshot` alone uses), then `in_progress` and `tables`, then `dry_run`, `compatibility`, `sweep`,
//! `outcome`, `sources` and `plan_snapshot`, then `session`, and at the top `rebooted`.

pub mod delete;
pub mod down;
pub mod equip;
pub mod restore;
pub mod snapshot;
pub mod up;

mod compatibility;
mod dry_run;
mod ids;
mod in_progress;
mod limits;
mod outcome;
mod plan_snapshot;
mod prune;
mod rebooted;
mod repair;
mod roll_over;
mod session;
mod shared;
mod sources;
mod state;
mod sweep;
mod tables;

pub use compatibility::{Incompatibility, NotRestorable, fitness};
pub use dry_run::{DryRun, DryRunError, DryRunTransition, dry_run};
pub use in_progress::vm_in_progress;
pub use outcome::{
    LossReason, OperationResult, PassedOver, Recovered, Refusal, RestoreResult, Retention, SnapshotRequest,
    SnapshotResult, find_snapshot,
};
pub use repair::NetworkRepair;
pub use session::Session;
pub use shared::hooks::HookOutcome;
pub use state::{RunningVm, VmCondition, WorkspaceState, described_vm};
pub use sweep::{Swept, end_without_journal};
pub use tables::{NoTable, label, table, tables};

#[cfg(test)]
mod tests;

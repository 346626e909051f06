//! The ids on disk of all operations and transitions: the one list of them.
//!
//! A journal names what it records by these numbers, and a later nixbox has to read it. A number is therefore never
//! changed and never used again for another meaning; a new transition takes the next free number of its group. A test
//! in `operations/tests.rs` holds every number, and the label that goes with it, as they are.

use crate::engine::transition::{OperationId, TransitionId};

pub(super) const UP: OperationId = OperationId(1);
pub(super) const DOWN: OperationId = OperationId(2);
pub(super) const SNAPSHOT: OperationId = OperationId(3);
pub(super) const RESTORE: OperationId = OperationId(4);
pub(super) const DELETE: OperationId = OperationId(5);
pub(super) const EQUIP: OperationId = OperationId(6);

// Shared by several operations.
pub(super) const CLAIM_SLOT: TransitionId = TransitionId(1);
pub(super) const BUILD_NETWORK: TransitionId = TransitionId(2);
pub(super) const START_SHARES: TransitionId = TransitionId(3);
pub(super) const START_VMM: TransitionId = TransitionId(4);
pub(super) const READY: TransitionId = TransitionId(5);
pub(super) const INJECT: TransitionId = TransitionId(6);
pub(super) const MOUNT_SHARES: TransitionId = TransitionId(7);
pub(super) const PRE_UP: TransitionId = TransitionId(8);
pub(super) const POST_UP: TransitionId = TransitionId(9);
pub(super) const PRE_DOWN: TransitionId = TransitionId(10);
pub(super) const POST_DOWN: TransitionId = TransitionId(11);
pub(super) const REMOVE_VMM: TransitionId = TransitionId(12);
pub(super) const REMOVE_NETWORK: TransitionId = TransitionId(13);
pub(super) const REMOVE_SHARES: TransitionId = TransitionId(14);
pub(super) const REMOVE_MEMORY: TransitionId = TransitionId(15);
pub(super) const RELEASE_SLOT: TransitionId = TransitionId(16);
pub(super) const RETIRE_DISK: TransitionId = TransitionId(17);
pub(super) const PURGE: TransitionId = TransitionId(18);
pub(super) const SETTLE: TransitionId = TransitionId(19);

// `up`.
pub(super) const MAKE_DISK: TransitionId = TransitionId(20);
pub(super) const MAKE_MEMORY: TransitionId = TransitionId(21);
pub(super) const BOOT: TransitionId = TransitionId(22);

// `down` and `delete`.
pub(super) const STOP_GUEST: TransitionId = TransitionId(25);
pub(super) const TRASH: TransitionId = TransitionId(26);

// `restore`.
pub(super) const FILL_DISK: TransitionId = TransitionId(30);
pub(super) const FILL_MEMORY: TransitionId = TransitionId(31);
pub(super) const LOAD: TransitionId = TransitionId(32);
pub(super) const RESUME_RESTORED: TransitionId = TransitionId(33);

// `snapshot`.
pub(super) const OPEN_STAGING: TransitionId = TransitionId(40);
pub(super) const WIPE: TransitionId = TransitionId(41);
pub(super) const DETACH: TransitionId = TransitionId(42);
pub(super) const PAUSE: TransitionId = TransitionId(43);
pub(super) const CLONE_DISK: TransitionId = TransitionId(44);
pub(super) const SAVE_STATE: TransitionId = TransitionId(45);
pub(super) const COPY_MEMORY: TransitionId = TransitionId(46);
pub(super) const RESUME_SOURCE: TransitionId = TransitionId(47);
pub(super) const COMMIT: TransitionId = TransitionId(48);
pub(super) const FLUSH: TransitionId = TransitionId(49);

// Shared by several operations, with the first free numbers.
pub(super) const WRITE_RECORD: TransitionId = TransitionId(50);
pub(super) const REMOVE_RECORD: TransitionId = TransitionId(51);
pub(super) const TAKE_DISK: TransitionId = TransitionId(52);
pub(super) const GIVE_BACK: TransitionId = TransitionId(53);

// `equip`.
pub(super) const SAME_BOOT: TransitionId = TransitionId(54);

// The scripts in the guest.
pub(super) const AFTER_UP: TransitionId = TransitionId(55);
pub(super) const AFTER_RESTORE: TransitionId = TransitionId(56);
pub(super) const BEFORE_SNAPSHOT: TransitionId = TransitionId(57);

// `snapshot`, with the first free numbers.
pub(super) const PRECOPY_DISK: TransitionId = TransitionId(58);
pub(super) const PRECOPY_MEMORY: TransitionId = TransitionId(59);

//! How long a transition, and a look at the world outside of a transition, may take.
//!
//! The seams have limits of their own, which are shorter and whose errors say more. These here end a call that a seam
//! would leave without an answer.

use std::time::Duration;

pub(super) use crate::engine::transition::within;
use crate::world::ReadyTimeout;

/// For a look at the world before or after an operation. A VMM may be silent for half of it.
pub(super) const LOOK: Duration = Duration::from_secs(180);
/// For work that the kernel or a daemon does at once, after a look at a VMM that may be silent.
pub(super) const QUICK: Duration = Duration::from_secs(180);
/// For daemons that start, and for guests that answer.
pub(super) const GUEST: Duration = Duration::from_secs(240);
/// For one of the three attempts to load a VM into a new VMM, all of which [`GUEST`] covers. A VMM waits a minute for a share
/// daemon that does not listen.
pub(super) const ATTEMPT: Duration = Duration::from_secs(70);
/// For the first call of a guest that may still be booting, or that was just restored. The seam gives up after the
/// person's time limit, or later while the guest shows that it is at work; the rest is for the VMM that the seam asks then.
pub(super) fn until_ready(timeout: ReadyTimeout) -> Duration {
    timeout.longest() + Duration::from_secs(130)
}
/// For entropy and the time in an undo, which goes on without them.
pub(super) const SETTLES: Duration = Duration::from_secs(60);
/// For the scripts of one point in the guest, all together. What takes longer can go on in the background.
pub(super) const GUEST_SCRIPTS: Duration = Duration::from_secs(600);
/// For copies and hashes of disks and RAM, and for scripts of users. A person can interrupt all of them.
pub(super) const LONG: Duration = Duration::from_secs(3600);

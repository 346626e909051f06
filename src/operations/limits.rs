//! How long things may take.

use std::time::Duration;

/// For things that the kernel or a daemon does at once, after a look at a VMM that may be silent. Above the limits that
/// the seams have themselves, which say more.
pub(super) const QUICK: Duration = Duration::from_secs(180);
/// For daemons that start, and guests that answer.
pub(super) const GUEST: Duration = Duration::from_secs(240);
/// For copies of disks and RAM, and scripts of users. They are interruptible, so this is a last resort.
pub(super) const LONG: Duration = Duration::from_secs(3600);

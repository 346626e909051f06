//! The wall clock of a guest that runs: it stands still while the host is suspended, and is behind then.
//!
//! The greeting of each connection asks the guest for the time ([`super::clock_gap`]), so that a clock that is right costs no round
//! trip. A clock that is off is set as after a restore, unless a time daemon of the guest's own is at work, which would take a jump
//! for a fault of its own. Uses `shell` and `settle`.

use std::time::Duration;

use super::settle::{self, SettleError, Unsettled};
use super::shell::{Rights, Shell};

/// How far the clock may be off before it is set. A guest tells whole seconds, and its clock drifts.
pub const TOLERANCE: Duration = Duration::from_secs(3);
/// The time limit of the script that looks for a time daemon.
const LIMIT: Duration = Duration::from_secs(30);

/// Prints `yes` if one of the common time daemons runs. The kernel cuts their names to 15 bytes.
const TIME_DAEMON: &str = r"
if grep -qsxE 'chronyd|ntpd|openntpd|ntpd-rs|ntp-daemon|systemd-timesyn|timesyncd|ptp4l|phc2sys' /proc/[0-9]*/comm
then echo yes; else echo no; fi
";

/// Sets the guest's clock if it was off when the connection was made, and no time daemon of its own runs.
///
/// # Errors
/// If the guest could not be asked, or its clock could not be set.
pub async fn put_right(shell: &Shell) -> Result<(), Unsettled> {
    if shell.facts.clock_off_by.is_none_or(|off| off <= TOLERANCE) {
        return Ok(());
    }
    let what = "find out whether a time daemon runs in the guest";
    let told = shell.script(what, Rights::User, TIME_DAEMON, &[], LIMIT).await;
    match told.map_err(|error| Unsettled::Clock(SettleError::from(error)))?.trim() {
        "no" => settle::settle(shell).await.map(drop),
        _ => Ok(()),
    }
}

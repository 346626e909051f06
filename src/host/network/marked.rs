//! Looks for the processes of a network among all of the host, by their marks. May use nothing of this module.

use std::time::Duration;

use crate::host::process::{Daemon, ProcessError, ProcessMark, ProcessSearch};

/// How long a process gets after TERM.
pub(super) const GRACE: Duration = Duration::from_secs(2);

/// The processes with this mark, looked for among all of the host. There are several dnsmasqs only while one starts, as
/// dnsmasq forks twice then.
pub(super) fn find(mark: &ProcessMark) -> Result<Vec<Daemon>, ProcessError> {
    ProcessSearch { mark, owners: Some(&owners()) }.find()
}

/// Ends the processes with this mark, looked for among all of the host.
pub(super) async fn end(mark: &ProcessMark) -> Result<(), ProcessError> {
    ProcessSearch { mark, owners: Some(&owners()) }.end(GRACE).await
}

/// The user of nixbox, and `nobody`: dnsmasq becomes that user if root starts it.
pub(super) fn owners() -> [u32; 2] {
    let accounts = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let line = accounts.lines().find_map(|line| line.strip_prefix("nobody:"));
    let nobody = line.and_then(|rest| rest.split(':').nth(1)).and_then(|uid| uid.parse().ok());
    [rustix::process::geteuid().as_raw(), nobody.unwrap_or(65534)]
}

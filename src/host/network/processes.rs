//! The processes of a slot's network: dnsmasq, and an nft that outlives a killed nixbox, which could bring back a table
//! that was just removed. Both are found and ended by their marks: see [`crate::host::process`].

use std::time::Duration;

use crate::host::process::{Daemon, ProcessError, ProcessMark, ProcessSearch};

/// How long dnsmasq and nft get after TERM.
const GRACE: Duration = Duration::from_secs(2);

/// The processes with this mark. There are several dnsmasqs only while one starts, as dnsmasq forks twice then.
pub(super) fn find(mark: &ProcessMark) -> Result<Vec<Daemon>, ProcessError> {
    ProcessSearch { mark, owners: Some(&owners()) }.find()
}

/// Ends the processes with this mark.
pub(super) async fn end(mark: &ProcessMark) -> Result<(), ProcessError> {
    ProcessSearch { mark, owners: Some(&owners()) }.end(GRACE).await
}

/// The user of nixbox, and `nobody`: dnsmasq becomes that user if root starts it.
fn owners() -> [u32; 2] {
    let accounts = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let line = accounts.lines().find_map(|line| line.strip_prefix("nobody:"));
    let nobody = line.and_then(|rest| rest.split(':').nth(1)).and_then(|uid| uid.parse().ok());
    [rustix::process::geteuid().as_raw(), nobody.unwrap_or(65534)]
}

//! A VMM process that lives, and what is asked of it in more than one call.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::client::{ApiClient, ApiError, ApiVmState, Info};
use super::config::FsConfig;
use super::error::VmmError;
use crate::host::process::Daemon;
use crate::host::socket::{self, SocketPath, SocketUse};
use crate::world::VmmState;

/// How long a guest may take to let go of a device.
const UNPLUG_LIMIT: Duration = Duration::from_secs(30);

/// What a VMM writes in ten seconds, in bytes, that is busy with `vm.snapshot` of RAM of its own. It answers nothing else
/// then (seen on v53.0).
const BUSY: u64 = 1 << 20;

/// How long a VMM is waited for that does not answer.
struct Wait {
    patience: Duration,
    until: Instant,
    written: u64,
}

impl Wait {
    fn begun(patience: Duration, now: Instant, written: u64) -> Self {
        Self { patience, until: now + patience, written }
    }

    /// It did not answer once more. `written`: how many bytes it has written by now; who writes is busy, and is given as
    /// long again.
    fn is_over(&mut self, now: Instant, written: u64) -> bool {
        let more = written.saturating_sub(self.written);
        self.written = written;
        if more >= BUSY {
            self.until = now + self.patience;
        }
        now >= self.until
    }
}

/// A VMM that was alive when it was looked for.
pub(super) struct Live {
    /// Its process.
    pub(super) daemon: Daemon,
    /// Its API.
    pub(super) client: ApiClient,
}

impl Live {
    async fn info(&self) -> Result<Option<Info>, VmmError> {
        match self.client.info().await {
            Ok(info) => Ok(Some(info)),
            Err(error) if error.is_no_vm() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) async fn state(&self) -> Result<VmmState, VmmError> {
        Ok(match self.info().await?.map(|info| info.state) {
            None => VmmState::Empty,
            Some(ApiVmState::Created | ApiVmState::Shutdown) => VmmState::Stopped,
            Some(ApiVmState::Running) => VmmState::Running,
            // Stopped in a debugger: no vCPU runs.
            Some(ApiVmState::Paused | ApiVmState::BreakPoint) => VmmState::Paused,
        })
    }

    /// As [`Live::state`], of a VMM that may be busy or hang: [`VmmState::Silent`] if it neither answers nor writes for
    /// this long.
    pub(super) async fn state_or_silence(&self, patience: Duration) -> Result<VmmState, VmmError> {
        let begun = Instant::now();
        let mut wait: Option<Wait> = None;
        loop {
            match self.state().await {
                Err(VmmError::Client(ApiError::TimedOut { .. })) => {}
                answered => return answered,
            }
            let written = self.daemon.written()?;
            let Some(wait) = &mut wait else {
                wait = Some(Wait::begun(patience, begun, written));
                continue;
            };
            if wait.is_over(Instant::now(), written) {
                return Ok(VmmState::Silent);
            }
        }
    }

    /// Ids of the shares that the VM has: in its configuration, or not yet let go of by the guest.
    pub(super) async fn share_ids(&self) -> Result<BTreeSet<String>, VmmError> {
        let Some(info) = self.info().await? else {
            return Ok(BTreeSet::new());
        };
        let configured = info.config.fs.into_iter().flatten().filter_map(|share| share.id);
        Ok(configured.chain(info.device_tree.into_iter().flat_map(BTreeMap::into_keys)).collect())
    }

    pub(super) async fn configured(&self, id: &str) -> Result<bool, VmmError> {
        let shares = self.info().await?.and_then(|info| info.config.fs).unwrap_or_default();
        Ok(shares.iter().any(|share| share.id.as_deref() == Some(id)))
    }

    /// Waits until the guest has let go of all of `devices`: it does so in its own time, and a snapshot before then
    /// would hold them.
    pub(super) async fn let_go_of(&self, devices: &BTreeSet<String>) -> Result<(), VmmError> {
        let deadline = Instant::now() + UNPLUG_LIMIT;
        let mut pause = Duration::from_millis(5);
        loop {
            let left: Vec<String> = self.share_ids().await?.intersection(devices).cloned().collect();
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(VmmError::Held { devices: left, limit: UNPLUG_LIMIT });
            }
            // Asked with a growing pause: the API has no call that waits for it.
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(200));
        }
    }

    /// Waits until the daemons of shares that were let go have ended or listen anew: one that still has its old
    /// connection would be taken for one that serves.
    pub(super) async fn disconnected(&self, shares: &[FsConfig]) -> Result<(), VmmError> {
        let deadline = Instant::now() + UNPLUG_LIMIT;
        for share in shares {
            let socket = SocketPath::new(share.socket().into())?;
            // No event tells of it.
            while socket::usage(&socket)? == SocketUse::Connected {
                if Instant::now() > deadline {
                    let devices = vec![share.id().to_owned()];
                    return Err(VmmError::Held { devices, limit: UNPLUG_LIMIT });
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_writes_is_waited_for() {
        let begun = Instant::now();
        let after = |seconds| begun + Duration::from_secs(seconds);
        let mut wait = Wait::begun(Duration::from_secs(90), begun, 5000);
        assert!(!wait.is_over(after(89), 5000));
        assert!(!wait.is_over(after(90), 5000 + BUSY));
        assert!(!wait.is_over(after(179), 5000 + BUSY));
        // A guest whose VMM hangs may still write a little.
        assert!(wait.is_over(after(180), 4999 + 2 * BUSY));
        let mut idle = Wait::begun(Duration::from_secs(90), begun, 0);
        assert!(idle.is_over(after(90), BUSY - 1));
    }
}

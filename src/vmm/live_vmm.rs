//! A living VMM process, and the queries that take more than one call of its API.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::client::{ApiClient, ApiError, ApiVmState, VmInfo};
use super::config::FsConfig;
use super::error::VmmError;
use crate::host::process::Daemon;
use crate::host::socket::{self, SocketPath, SocketUse};
use crate::world::VmmState;

/// How long a guest may take to release a device, and how long the daemon of a share may take to notice.
const UNPLUG_LIMIT: Duration = Duration::from_secs(30);

/// A VMM that writes this many bytes within the ten seconds of one unanswered call is busy with `vm.snapshot` of RAM
/// that it allocated itself. It answers no other call until that is done (seen on v53.0).
const BUSY: u64 = 1 << 20;

/// Measures how long a VMM has neither answered nor written.
struct SilenceTimer {
    silence_limit: Duration,
    until: Instant,
    written: u64,
}

impl SilenceTimer {
    fn begun(silence_limit: Duration, now: Instant, written: u64) -> Self {
        Self { silence_limit, until: now + silence_limit, written }
    }

    /// Returns whether the time is over. Must be called after each API call without an answer, with the number of bytes
    /// that the process has written in its life. If the VMM has written at least [`BUSY`] bytes since the last call,
    /// the VMM is busy, so the time begins anew.
    fn is_over(&mut self, now: Instant, written: u64) -> bool {
        let more = written.saturating_sub(self.written);
        self.written = written;
        if more >= BUSY {
            self.until = now + self.silence_limit;
        }
        now >= self.until
    }
}

/// How long a VMM may take until its API answers.
pub(super) const START_LIMIT: Duration = Duration::from_secs(30);
/// How long a VMM may live without answering until it counts as lost: longer than the minute without answers in which a
/// VMM whose guest rebooted waits for the share daemons.
pub(super) const SILENCE_LIMIT: Duration = Duration::from_secs(90);
/// The limit for a stand-in, which never waits for share daemons.
pub(super) const SILENCE_LIMIT_WITH_STAND_IN: Duration = Duration::from_secs(10);

/// Removes the API socket and the lock file of v53 and later. Only to be called once the process is known to be dead.
pub(super) async fn remove_sockets(socket: &SocketPath) -> Result<(), VmmError> {
    socket::remove_stale(socket).await?;
    Ok(socket::remove_file(&socket.with_suffix(".lock"))?)
}

/// A VMM process that was alive when it was found.
pub(super) struct LiveVmm {
    pub(super) daemon: Daemon,
    pub(super) client: ApiClient,
}

impl LiveVmm {
    async fn info(&self) -> Result<Option<VmInfo>, VmmError> {
        match self.client.info().await {
            Ok(info) => Ok(Some(info)),
            Err(error) if error.is_missing_vm() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) async fn state(&self) -> Result<VmmState, VmmError> {
        Ok(match self.info().await?.map(|info| info.state) {
            None => VmmState::Empty,
            Some(ApiVmState::Created | ApiVmState::Shutdown) => VmmState::Stopped,
            Some(ApiVmState::Running) => VmmState::Running,
            // At a break point no vCPU runs.
            Some(ApiVmState::Paused | ApiVmState::BreakPoint) => VmmState::Paused,
        })
    }

    /// Like [`LiveVmm::state`], for a VMM that may be starting or busy or may hang. Returns [`VmmState::Silent`] if the VMM neither
    /// answers nor writes for `silence_limit`.
    pub(super) async fn state_or_silence(&self, silence_limit: Duration) -> Result<VmmState, VmmError> {
        let begun = Instant::now();
        let mut timer: Option<SilenceTimer> = None;
        let mut pause = Duration::from_millis(1);
        loop {
            match self.state().await {
                Err(VmmError::Client(ApiError::TimedOut { .. })) => {}
                // The nixbox that started the VMM may have been killed before the VMM listened. No event tells when it does.
                Err(error @ VmmError::Client(ApiError::Connection { .. }))
                    if self.daemon.identity().age() < START_LIMIT =>
                {
                    if tokio::time::timeout(pause, self.daemon.exited()).await.is_ok() {
                        return Err(error);
                    }
                    pause = (pause * 2).min(Duration::from_millis(50));
                    continue;
                }
                answered => return answered,
            }
            let written = self.daemon.written()?;
            let Some(timer) = &mut timer else {
                timer = Some(SilenceTimer::begun(silence_limit, begun, written));
                continue;
            };
            if timer.is_over(Instant::now(), written) {
                return Ok(VmmState::Silent);
            }
        }
    }

    /// The ids of all devices that may be shares: those in the VM's configuration, and those that the guest has not
    /// released yet.
    pub(super) async fn share_ids(&self) -> Result<BTreeSet<String>, VmmError> {
        let Some(info) = self.info().await? else {
            return Ok(BTreeSet::new());
        };
        let configured = info.config.fs.into_iter().flatten().filter_map(|share| share.id);
        Ok(configured.chain(info.device_tree.into_iter().flat_map(BTreeMap::into_keys)).collect())
    }

    pub(super) async fn is_configured(&self, id: &str) -> Result<bool, VmmError> {
        let shares = self.info().await?.and_then(|info| info.config.fs).unwrap_or_default();
        Ok(shares.iter().any(|share| share.id.as_deref() == Some(id)))
    }

    /// Waits until the guest has released all of `devices`. A snapshot that is taken earlier would contain them.
    pub(super) async fn wait_until_unplugged(&self, devices: &BTreeSet<String>) -> Result<(), VmmError> {
        let deadline = Instant::now() + UNPLUG_LIMIT;
        let mut pause = Duration::from_millis(5);
        loop {
            let left: Vec<String> = self.share_ids().await?.intersection(devices).cloned().collect();
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(VmmError::ShareInUse { devices: left, limit: UNPLUG_LIMIT });
            }
            // The state is polled with growing pauses, because the API has no call that waits for this.
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(200));
        }
    }

    /// Waits until each daemon of `shares`, which were unplugged, has ended or listens again. Otherwise nixbox would
    /// mistake a daemon with its old connection for a daemon that serves the new device.
    pub(super) async fn wait_until_disconnected(&self, shares: &[FsConfig]) -> Result<(), VmmError> {
        let deadline = Instant::now() + UNPLUG_LIMIT;
        for share in shares {
            let socket = SocketPath::new(share.socket().into())?;
            // The state is polled, because the kernel reports no event for the socket of another process.
            while socket::usage(&socket)? == SocketUse::Connected {
                if Instant::now() > deadline {
                    let devices = vec![share.id().to_owned()];
                    return Err(VmmError::ShareInUse { devices, limit: UNPLUG_LIMIT });
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::Signal;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::host::process::{DaemonRole, Daemons};
    use crate::host::spawn::{Invoker, Privileges, Program};
    use crate::world::{Generation, WorkspaceId};

    /// A process without a socket, as a VMM is that was started a moment ago. It is killed when the test ends.
    struct StartingVmm {
        live: LiveVmm,
        socket: SocketPath,
        _directory: tempfile::TempDir,
    }

    impl StartingVmm {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let mut id = [0; 16];
            getrandom::fill(&mut id).unwrap();
            let daemons = Daemons::new(directory.path().to_owned(), WorkspaceId(id));
            let program = Program::new("/bin/sleep", Privileges::Invoker(Invoker::detect().unwrap()));
            let daemon = daemons.spawn(&DaemonRole::vmm(), Generation(1), &program.argument("1000")).unwrap();
            let socket = SocketPath::new(directory.path().join("api.sock")).unwrap();
            let live = LiveVmm { daemon, client: ApiClient::new(socket.clone()) };
            Self { live, socket, _directory: directory }
        }
    }

    impl Drop for StartingVmm {
        fn drop(&mut self) {
            self.live.daemon.signal(Signal::KILL).unwrap();
        }
    }

    #[tokio::test]
    async fn a_vmm_that_does_not_listen_yet_is_waited_for() {
        let vmm = StartingVmm::new();
        let refused = vmm.live.state().await.unwrap_err();
        assert!(matches!(refused, VmmError::Client(ApiError::Connection { .. })), "{refused:?}");
        let answer = async {
            let (mut asked, _) =
                tokio::net::UnixListener::bind(vmm.socket.as_path()).unwrap().accept().await.unwrap();
            assert_ne!(asked.read(&mut [0; 4096]).await.unwrap(), 0);
            let body = r#"["VM is not created"]"#;
            let head = format!("HTTP/1.1 404 Not Found\r\nContent-Length: {}\r\n\r\n", body.len());
            asked.write_all((head + body).as_bytes()).await.unwrap();
        };
        // The first look is refused, because nothing listens before the second future was polled.
        let (state, ()) = tokio::join!(vmm.live.state_or_silence(SILENCE_LIMIT), answer);
        assert_eq!(state.unwrap(), VmmState::Empty);
    }

    #[tokio::test]
    async fn a_vmm_that_ends_before_it_listens_is_not_waited_for() {
        let vmm = StartingVmm::new();
        let end = async { vmm.live.daemon.signal(Signal::KILL).unwrap() };
        let (state, ()) = tokio::join!(vmm.live.state_or_silence(SILENCE_LIMIT), end);
        assert!(matches!(state, Err(VmmError::Client(ApiError::Connection { .. }))), "{state:?}");
    }

    #[test]
    fn a_vmm_that_writes_is_given_more_time() {
        let begun = Instant::now();
        let after = |seconds| begun + Duration::from_secs(seconds);
        let mut timer = SilenceTimer::begun(Duration::from_secs(90), begun, 5000);
        assert!(!timer.is_over(after(89), 5000));
        assert!(!timer.is_over(after(90), 5000 + BUSY));
        assert!(!timer.is_over(after(179), 5000 + BUSY));
        // A hanging VMM may still write a few bytes.
        assert!(timer.is_over(after(180), 4999 + 2 * BUSY));
        let mut idle = SilenceTimer::begun(Duration::from_secs(90), begun, 0);
        assert!(idle.is_over(after(90), BUSY - 1));
    }
}

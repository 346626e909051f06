//! [`world::Guest`](crate::world::Guest) over SSH.
//!
//! Connecting takes longer than most calls, so this module keeps a connection for the next call under the same VMM
//! generation. No connection outlives a pause of the VM, because the calls that come before a pause ([`Guest::wipe`],
//! [`Guest::unmount`]) close it. During a call this module asks the VMM four times a second whether it still has the
//! VM, because a guest whose VM is gone stops answering without an error.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use russh::keys::PrivateKey;
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep, timeout};

use super::channel::{ChannelError, Endpoint, Limits, SshSession};
use super::credentials::{Credential, Wanted};
use super::host_key::Pin;
use super::inject::{self, Expected};
use super::key::KeyError;
use super::mounts::{self, Mount};
use super::ready::until_ready;
use super::settle::Unsettled;
use super::shell::{Rights, ScriptError, Shell};
use super::sources::SourceError;
use super::{examine, settle, stale_scripts, wipe};
use crate::world::{
    BootId, Equipment, Failure, Generation, Guest, Interrupt, Machine, ReadyTimeout, Result, Settlement,
    Slot, UserName, Vmm, VmmState, WaitObserver,
};

/// How often the VMM is asked whether it still has the VM.
const WATCH: Duration = Duration::from_millis(250);
/// How long the VMM may take to answer that question.
const WATCH_LIMIT: Duration = Duration::from_secs(10);

/// The time limit of the command that asks the guest to shut down, and of its connection. After that nixbox presses the
/// power button.
const SHUT_DOWN_LIMIT: Duration = Duration::from_secs(10);

/// Gives the address of the guest's SSH server, by the VM's slot.
pub type Address = dyn Fn(Slot) -> SocketAddr + Send + Sync;

/// Gives the path of the file for the host key of a generation of disks. Its directory exists.
pub type PinPath = dyn Fn(Generation) -> PathBuf + Send + Sync;

/// Is told what a guest was not given when it went on, and why.
pub type UnsettledObserver = dyn Fn(&Unsettled) + Send + Sync;

/// Is told how long a guest has not answered yet, as long as it does not.
pub type WaitingObserver = dyn Fn(&Machine, Duration) + Send + Sync;

/// The settings for reaching the guests of one workspace, and the credentials and shares that the guests get.
pub struct GuestSettings {
    /// The user to log in as: root, or a user with `sudo` without a password.
    pub user: UserName,
    /// The key that the image accepts for a login, or why it cannot be used. Then no call reaches the guest.
    pub key: std::result::Result<Arc<PrivateKey>, Arc<KeyError>>,
    /// The file for the host key of a generation of disks. The file lies beside the disk images, and is copied and
    /// removed with them.
    pub pin: Arc<PinPath>,
    /// The address of the SSH server: [`address`], except in the simulator and in tests.
    pub address: Arc<Address>,
    /// The credentials that the guest gets, and the files to wipe.
    pub wanted: Wanted,
    /// Whether a guest that cannot be given fresh entropy must not go on.
    pub require_entropy: bool,
    /// Is told why a guest could not be settled, also where an operation goes on without it.
    pub on_unsettled: Arc<UnsettledObserver>,
    /// Is told that the guest is waited for, several times a second.
    pub on_waiting: Arc<WaitingObserver>,
    /// The shares that the guest mounts.
    pub mounts: Vec<Mount>,
    /// The time limit from the first attempt until a command has run. It includes the boot of the guest.
    pub ready: ReadyTimeout,
    /// Limits of single connections.
    pub limits: Limits,
}

/// The SSH server of the guest in a slot.
#[must_use]
pub fn address(slot: Slot) -> SocketAddr {
    (slot.guest(), 22).into()
}

/// The guest of one workspace.
pub struct SshGuest {
    settings: GuestSettings,
    vmm: Arc<dyn Vmm>,
    /// The last connection, and the VMM generation under which it was made.
    kept: Mutex<Option<(Generation, Arc<Shell>)>>,
    /// All connections that may be in use.
    living: tokio::sync::Mutex<Vec<Weak<Shell>>>,
    /// The content of the files to inject. It is read from its sources once and held as long as this value lives,
    /// because reading it may ask a person, and because a source may be gone when the guest needs its credentials back.
    held: OnceCell<Arc<[Credential]>>,
}

impl SshGuest {
    /// The guest of a workspace with these settings, whose VM runs under `vmm`.
    #[must_use]
    pub fn new(settings: GuestSettings, vmm: Arc<dyn Vmm>) -> Self {
        Self {
            settings,
            vmm,
            kept: Mutex::default(),
            living: tokio::sync::Mutex::default(),
            held: OnceCell::new(),
        }
    }

    /// The pin of the host key of a disk.
    #[must_use]
    pub fn pin(&self, disk: Generation) -> Pin {
        Pin::new((self.settings.pin)(disk))
    }

    /// Waits until a command has run in the guest, and returns the connection that it ran on.
    ///
    /// # Errors
    /// [`Failure::Lost`] if the VM is lost; [`Failure::Interrupted`]; otherwise the error of the last attempt.
    pub async fn connect(&self, machine: &Machine, interrupt: &Interrupt) -> Result<Shell> {
        let since = Instant::now();
        let waiting = || (self.settings.on_waiting)(machine, since.elapsed());
        self.reach(machine, interrupt, waiting).await
    }

    /// Does the same as [`SshGuest::connect`], and calls `waiting` from time to time.
    async fn reach(&self, machine: &Machine, interrupt: &Interrupt, waiting: impl Fn()) -> Result<Shell> {
        let GuestSettings { user, key, address, ready, limits, .. } = &self.settings;
        let key = key.as_ref().map_err(|error| Failure::world(Arc::clone(error)))?;
        let endpoint = Endpoint {
            address: address(machine.slot),
            user: user.clone(),
            key: Arc::clone(key),
            pin: self.pin(machine.disk),
        };
        let endpoint = &endpoint;
        let attempt = async move |limits: Limits| {
            let session = SshSession::open(endpoint, limits).await?;
            Ok(Shell::greet(session, limits.connect).await?)
        };
        let connected =
            async { until_ready(ready.duration(), *limits, interrupt, attempt).await.map_err(failure) };
        self.watching(machine, connected, waiting).await
    }

    /// Runs `act` on a connection, until it ends or the VM is gone. Keeps the connection if `act` succeeds.
    async fn with<T>(&self, machine: &Machine, act: impl AsyncFnOnce(&Shell) -> Result<T>) -> Result<T> {
        let mut used = self.acquire(machine).await?;
        let done = self.while_there(machine, act(&used.shell)).await;
        used.keep = done.is_ok();
        done
    }

    /// Returns the kept connection, or a new one. When this returns, no script of another nixbox runs in the guest.
    /// Scripts of this nixbox run only on connections that are in use.
    async fn acquire(&self, machine: &Machine) -> Result<UsedConnection<'_>> {
        // Without the lock, two calls that connect at once would each kill the scripts of the other.
        let mut living = self.living.lock().await;
        let kept = self.kept().take().filter(|(vmm, shell)| *vmm == machine.vmm && shell.session.lives());
        let shell = match kept {
            Some((_, shell)) => shell,
            None => {
                let shell = self.connect(machine, &Interrupt::new()).await?;
                living.retain(|shell| shell.strong_count() > 0);
                let spared: Vec<_> = living.iter().filter_map(Weak::upgrade).collect();
                let marks: Vec<_> = spared.iter().map(|shell| &shell.mark).collect();
                let ended = async { stale_scripts::end_others(&shell, &marks).await.map_err(Failure::world) };
                self.while_there(machine, ended).await?;
                let shell = Arc::new(shell);
                living.push(Arc::downgrade(&shell));
                shell
            }
        };
        // Other calls may use the same connection at the same time.
        *self.kept() = Some((machine.vmm, Arc::clone(&shell)));
        Ok(UsedConnection { guest: self, shell, keep: false })
    }

    /// Like [`SshGuest::with`], and closes the connection afterwards.
    async fn with_last<T>(&self, machine: &Machine, act: impl AsyncFnOnce(&Shell) -> Result<T>) -> Result<T> {
        let done = self.with(machine, act).await;
        let kept = self.kept().take();
        if let Some(shell) = kept.and_then(|(_, shell)| Arc::into_inner(shell)) {
            shell.session.close().await;
        }
        done
    }

    fn kept(&self) -> MutexGuard<'_, Option<(Generation, Arc<Shell>)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `act`, and returns [`Failure::Lost`] as soon as the VM is gone, or if `act` fails and the VM is gone.
    async fn while_there<T>(&self, machine: &Machine, act: impl Future<Output = Result<T>>) -> Result<T> {
        self.watching(machine, act, || ()).await
    }

    /// The same, and calls `watched` each time that the VM is looked at.
    async fn watching<T>(
        &self,
        machine: &Machine,
        act: impl Future<Output = Result<T>>,
        watched: impl Fn(),
    ) -> Result<T> {
        let watch = async {
            loop {
                sleep(WATCH).await;
                watched();
                if self.is_gone(machine).await {
                    return;
                }
            }
        };
        tokio::select! {
            () = watch => Err(Failure::Lost),
            done = act => match done {
                Err(Failure::World(_) | Failure::WaitedOut(_)) if self.is_gone(machine).await => Err(Failure::Lost),
                done => done,
            },
        }
    }

    /// Whether the VMM says that it has no VM. A VMM that does not answer does not count as gone: its guest may still
    /// run, and each call has a time limit of its own.
    async fn is_gone(&self, machine: &Machine) -> bool {
        let found = timeout(WATCH_LIMIT, self.vmm.find(machine.vmm)).await;
        matches!(found, Ok(Ok(state)) if !state.has_system() && state != VmmState::Silent)
    }

    /// The content of the files to inject, which is read from its sources unless it is held already.
    async fn credentials(&self, waits: &WaitObserver<'_>) -> Result<Arc<[Credential]>> {
        let read = async || Ok(self.settings.wanted.resolve(waits).await?.into());
        let held = self.held.get_or_try_init(read).await;
        held.cloned().map_err(|error: SourceError| Failure::world(error))
    }
}

/// A connection in use. If the call on it fails or is dropped, the connection is not used again, because its script may
/// continue in the guest; the next connection ends that script.
struct UsedConnection<'a> {
    guest: &'a SshGuest,
    shell: Arc<Shell>,
    keep: bool,
}

impl Drop for UsedConnection<'_> {
    fn drop(&mut self) {
        if !self.keep {
            self.guest.kept().take_if(|(_, kept)| Arc::ptr_eq(kept, &self.shell));
        }
    }
}

fn failure(error: ChannelError) -> Failure {
    match error {
        ChannelError::Interrupted => Failure::Interrupted,
        error @ ChannelError::NotReady { .. } => Failure::WaitedOut(error.into()),
        error => Failure::world(error),
    }
}

/// Asks the guest's init system to power off.
const SHUT_DOWN: &str = r#"
for c in poweroff shutdown halt; do
  command -v "$c" > /dev/null || continue
  case $c in shutdown) "$c" -h now ;; halt) "$c" -p ;; *) "$c" ;; esac
  exit
done
echo 'there is no poweroff, shutdown or halt' >&2
exit 127
"#;

#[async_trait]
impl Guest for SshGuest {
    async fn ready(&self, machine: &Machine) -> Result<BootId> {
        self.with(machine, async |shell: &Shell| Ok(shell.facts.boot)).await
    }

    async fn resolve_credentials(&self, interrupt: &Interrupt, waits: &WaitObserver<'_>) -> Result<()> {
        tokio::select! {
            held = self.credentials(waits) => held.map(drop),
            () = interrupt.wait() => Err(Failure::Interrupted),
        }
    }

    async fn examine(&self, machine: &Machine) -> Result<()> {
        let credentials = self.credentials(&|_| ()).await?;
        let overwrite = &self.settings.wanted.overwrite;
        self.with(machine, async |shell: &Shell| {
            examine::examine(shell, &credentials, overwrite, self.settings.require_entropy)
                .await
                .map_err(Failure::world)
        })
        .await
    }

    async fn inject(&self, machine: &Machine) -> Result<()> {
        let credentials = self.credentials(&|_| ()).await?;
        let overwrite = &self.settings.wanted.overwrite;
        let targets = self.settings.wanted.targets();
        self.with(machine, async move |shell: &Shell| {
            wipe::remove_strays(shell, &targets).await.map_err(Failure::world)?;
            inject::inject(shell, &credentials, overwrite).await.map_err(Failure::world)
        })
        .await
    }

    async fn wipe(&self, machine: &Machine) -> Result<()> {
        let targets = self.settings.wanted.targets();
        let list = &self.settings.wanted.wipe;
        self.with_last(machine, async |shell: &Shell| {
            wipe::wipe(shell, &targets, list).await.map_err(Failure::world)
        })
        .await
    }

    async fn mount(&self, machine: &Machine) -> Result<()> {
        let mounts = &self.settings.mounts;
        self.with(machine, async |shell: &Shell| mounts::mount(shell, mounts).await.map_err(Failure::world))
            .await
    }

    async fn share_users(&self, machine: &Machine) -> Result<Vec<String>> {
        let mounts = &self.settings.mounts;
        self.with(machine, async |shell: &Shell| {
            mounts::users_of(shell, mounts).await.map_err(Failure::world)
        })
        .await
    }

    async fn forget_shares(&self, machine: &Machine) -> Result<()> {
        let mounts = &self.settings.mounts;
        self.with(machine, async |shell: &Shell| mounts::forget(shell, mounts).await.map_err(Failure::world))
            .await
    }

    async fn unmount(&self, machine: &Machine) -> Result<()> {
        let mounts = &self.settings.mounts;
        self.with_last(machine, async |shell: &Shell| {
            mounts::unmount(shell, mounts).await.map_err(Failure::world)
        })
        .await
    }

    async fn equipped(&self, machine: &Machine) -> Result<Equipment> {
        let credentials = self.credentials(&|_| ()).await?;
        let expected: Vec<_> = credentials.iter().map(Expected::from).collect();
        let shares = &self.settings.mounts;
        self.with(machine, async |shell: &Shell| {
            let credentials = inject::presence(shell, &expected).await.map_err(Failure::world)?;
            let mounts = mounts::presence(shell, shares).await.map_err(Failure::world)?;
            Ok(Equipment { credentials, mounts })
        })
        .await
    }

    async fn settle(&self, machine: &Machine) -> Result<Settlement> {
        let GuestSettings { require_entropy, on_unsettled, .. } = &self.settings;
        self.with(machine, async |shell: &Shell| {
            let unsettled = match settle::settle(shell).await {
                Ok(_) => return Ok(Settlement::WHOLE),
                Err(unsettled) => unsettled,
            };
            on_unsettled(&unsettled);
            match unsettled {
                Unsettled::Clock(_) => Ok(Settlement { entropy: true, clock: false }),
                Unsettled::Entropy(error) if *require_entropy => Err(Failure::world(error)),
                Unsettled::Entropy(_) => Ok(Settlement { entropy: false, clock: false }),
            }
        })
        .await
    }

    fn requires_entropy(&self) -> bool {
        self.settings.require_entropy
    }

    fn ready_timeout(&self) -> ReadyTimeout {
        self.settings.ready
    }

    async fn shut_down(&self, machine: &Machine) -> Result<()> {
        // Nobody is told of a wait, because this one is for a guest that is to go.
        let connected = timeout(SHUT_DOWN_LIMIT, self.reach(machine, &Interrupt::new(), || ())).await;
        let shell = connected.map_err(|_elapsed| Failure::TimedOut(SHUT_DOWN_LIMIT))??;
        let what = "ask the guest to shut down";
        match shell.script(what, Rights::Root, SHUT_DOWN, &[], SHUT_DOWN_LIMIT).await {
            // The guest shut down before it answered.
            Ok(_)
            | Err(ScriptError::Channel {
                source: ChannelError::Closed | ChannelError::Unsaid | ChannelError::Silent { .. },
                ..
            }) => Ok(()),
            Err(error) => Err(Failure::world(error)),
        }
    }
}

#[cfg(test)]
mod tests;

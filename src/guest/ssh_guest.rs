//! [`world::Guest`](crate::world::Guest) over SSH.
//!
//! Connecting takes longer than most calls, so this module keeps a connection for the next call under the same VMM
//! generation. No connection outlives a pause of the VM, because the calls that come before a pause ([`Guest::wipe`],
//! [`Guest::unmount`]) close it. During a call this module asks the VMM four times a second whether it still has the
//! VM, because a guest whose VM is gone stops answering without an error.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::OnceCell;
use tokio::time::{sleep, timeout};

use super::channel::ChannelError;
use super::credentials::Credential;
use super::host_key::Pin;
use super::inject::{self, Expected};
use super::mounts;
use super::scripts::{self, GuestScriptNotice};
use super::settle::Unsettled;
use super::shell::{Rights, ScriptError, Shell};
use super::sources::SourceError;
use super::{audit, backup, examine, processes, settle, swap, wipe, wiped_values};
use crate::files::Folder;
use crate::files::search::known::{KnownValues, KnownValuesError};
use crate::files::search::value::NamedValue;
use crate::world::{
    BootId, Equipment, Failure, Generation, Guest, GuestAudit, GuestPath, GuestScriptPoint,
    GuestScriptsOutcome, Interrupt, Machine, Presence, ReadyTimeout, Result, Secret, Settlement, Slot,
    UnprovenPlace, Vmm, VmmState, WaitObserver, error_chain,
};

mod connecting;
mod credential_states;
mod kept_connection;
mod relays;
mod settings;

pub use credential_states::{ConfiguredCredential, CredentialStates};
pub use settings::{
    Address, ConsoleSize, GuestScriptObserver, GuestSettings, PinPath, SwapObserver, UnsettledObserver,
    UserObserver, WaitingObserver,
};

/// How often the VMM is asked whether it still has the VM.
const WATCH: Duration = Duration::from_millis(250);
/// How long the VMM may take to answer that question.
const WATCH_LIMIT: Duration = Duration::from_secs(10);

/// The time limit of the command that asks the guest to shut down, and of its connection. After that nixbox presses the
/// power button.
const SHUT_DOWN_LIMIT: Duration = Duration::from_secs(10);

/// How long a new connection for scripts may take, where the earlier one has ended. The guest has been SSH-ready before.
const SCRIPTS_CONNECT_LIMIT: Duration = Duration::from_secs(180);

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

    /// Runs `act`, and returns [`Failure::Lost`] once the VM is gone, or if `act` fails and the VM is gone.
    async fn while_there<T>(&self, machine: &Machine, act: impl Future<Output = Result<T>>) -> Result<T> {
        self.watching(machine, WATCH, act, || ()).await
    }

    /// Does the same, and asks the VMM for the VM at this interval.
    ///
    /// # Errors
    /// [`Failure::Lost`], and the errors of `act`.
    pub async fn until_vm_is_gone<T>(
        &self,
        machine: &Machine,
        interval: Duration,
        act: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        self.watching(machine, interval, act, || ()).await
    }

    /// Does the same, and calls `watched` each time that the VM is looked at.
    async fn watching<T>(
        &self,
        machine: &Machine,
        interval: Duration,
        act: impl Future<Output = Result<T>>,
        watched: impl Fn(),
    ) -> Result<T> {
        let watch = async {
            loop {
                sleep(interval).await;
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

    /// The values that are injected, each with its name.
    ///
    /// # Errors
    /// If a source cannot be read.
    pub async fn values(&self) -> Result<Vec<NamedValue>> {
        let credentials = self.credentials(&|_| ()).await?;
        Ok(credentials.iter().flat_map(|credential| credential.values.clone()).collect())
    }

    /// Hands over the state of the workspace, and the values that snapshots have to be searched for from now on.
    async fn with_values(
        &self,
        act: fn(&Folder, &[NamedValue]) -> Result<(), KnownValuesError>,
    ) -> Result<()> {
        let values = self.values().await?;
        if values.is_empty() {
            return Ok(());
        }
        act(&self.state()?, &values).map_err(Failure::world)
    }

    fn state(&self) -> Result<Folder> {
        Folder::open(&self.settings.state).map_err(Failure::world)
    }

    /// What a wipe takes from the guest besides histories.
    async fn wiped_paths(&self, shell: &Shell) -> Result<Vec<GuestPath>> {
        let known = KnownValues::read(&self.state()?).map_err(Failure::world)?;
        let paths = audit::wiped_paths(shell, known.as_ref(), &self.settings.wanted).await;
        paths.map_err(Failure::world)
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
        let on_user = &self.settings.on_user;
        let (boot, ids) =
            self.with(machine, async |shell: &Shell| Ok((shell.facts.boot, shell.facts.ids))).await?;
        on_user(ids);
        Ok(boot)
    }

    async fn resolve_credentials(&self, interrupt: &Interrupt, waits: &WaitObserver<'_>) -> Result<()> {
        tokio::select! {
            held = self.credentials(waits) => held.map(drop)?,
            () = interrupt.wait() => return Err(Failure::Interrupted),
        }
        // Whether they can be written down is known before a guest is touched.
        self.with_values(KnownValues::examine).await
    }

    async fn examine(&self, machine: &Machine) -> Result<u64> {
        let credentials = self.credentials(&|_| ()).await?;
        let overwrite = &self.settings.wanted.overwrite;
        let targets = self.settings.wanted.targets();
        self.with(machine, async |shell: &Shell| {
            let examined =
                examine::examine(shell, &credentials, overwrite, self.settings.require_entropy).await;
            examined.map_err(Failure::world)?;
            let list = self.wiped_paths(shell).await?;
            backup::measure(shell, &targets, &list).await.map_err(Failure::world)
        })
        .await
    }

    async fn inject(&self, machine: &Machine) -> Result<()> {
        let credentials = self.credentials(&|_| ()).await?;
        self.with_values(KnownValues::remember).await?;
        let overwrite = &self.settings.wanted.overwrite;
        let targets = self.settings.wanted.targets();
        self.with(machine, async move |shell: &Shell| {
            // Before the credentials, so that a guest that has them has its swap too.
            let survey = inject::survey(shell, &credentials, &[swap::LIST]).await.map_err(Failure::world)?;
            if survey.exists(swap::LIST) {
                let stays_off = match swap::switch_on(shell).await {
                    Err(error @ ScriptError::Channel { .. }) => return Err(Failure::world(error)),
                    Err(error) => error_chain(&error),
                    Ok(stays_off) => stays_off,
                };
                if !stays_off.is_empty() {
                    (self.settings.on_no_swap)(&stays_off);
                }
            }
            if inject::has_strays(&survey, &shell.facts.home, &targets) {
                wipe::remove_strays(shell, &targets).await.map_err(Failure::world)?;
            }
            inject::inject(shell, &survey, &credentials, overwrite).await.map_err(Failure::world)
        })
        .await
    }

    async fn back_up(&self, machine: &Machine) -> Result<Option<Secret>> {
        let targets = self.settings.wanted.targets();
        self.with(machine, async |shell: &Shell| {
            let list = self.wiped_paths(shell).await?;
            backup::back_up(shell, &targets, &list).await.map_err(Failure::world)
        })
        .await
    }

    async fn give_back(&self, machine: &Machine, backup: &Secret) -> Result<()> {
        self.with(machine, async |shell: &Shell| {
            backup::give_back(shell, backup).await.map_err(Failure::world)
        })
        .await
    }

    async fn audit(&self, machine: &Machine, backup: Option<&Secret>) -> Result<GuestAudit> {
        let state = self.state()?;
        let mut unproven = match backup {
            Some(backup) => wiped_values::remember(&state, backup).map_err(Failure::world)?,
            None => Vec::new(),
        };
        let known = KnownValues::read(&state).map_err(Failure::world)?;
        let wanted = &self.settings.wanted;
        let found = self.with(machine, async |shell: &Shell| {
            audit::audit(shell, known.as_ref(), wanted).await.map_err(Failure::world)
        });
        let mut audit = match found.await {
            // No wipe depends on it, so the receipt says what is missing.
            Err(Failure::World(error)) => {
                let (place, reason) = (processes::ALL.to_owned(), error_chain(&*error));
                unproven.push(UnprovenPlace { place, reason });
                GuestAudit::default()
            }
            found => found?,
        };
        audit.unproven.splice(0..0, unproven);
        Ok(audit)
    }

    async fn switch_off_swap(&self, machine: &Machine) -> Result<Vec<UnprovenPlace>> {
        let switched =
            self.with(machine, async |shell: &Shell| swap::switch_off(shell).await.map_err(Failure::world));
        match switched.await {
            // What is swapped out is on a disk, which is searched, or in RAM: the receipt says what is not proven.
            Err(Failure::World(error)) => {
                let place = swap::ALL.to_owned();
                Ok(vec![UnprovenPlace { place, reason: error_chain(&*error) }])
            }
            switched => switched,
        }
    }

    async fn wipe(&self, machine: &Machine, backup: Option<&Secret>) -> Result<bool> {
        let targets = self.settings.wanted.targets();
        let list = &self.settings.wanted.wipe;
        self.with_last(machine, async |shell: &Shell| {
            wipe::wipe(shell, &targets, list, backup).await.map_err(Failure::world)
        })
        .await
    }

    async fn mount(&self, machine: &Machine) -> Result<()> {
        let GuestSettings { mounts, on_remounted, .. } = &self.settings;
        self.with(machine, async |shell: &Shell| {
            if mounts::mount(shell, mounts).await.map_err(Failure::world)? {
                on_remounted();
            }
            Ok(())
        })
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
        self.with(machine, async |shell: &Shell| mounts::forget(shell).await.map_err(Failure::world)).await
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
            let survey = inject::survey(shell, &credentials, &[swap::LIST]).await.map_err(Failure::world)?;
            let (home, user) = (&shell.facts.home, shell.facts.ids.uid);
            let mut credentials = inject::presence(&survey, home, user, &expected);
            if credentials == Presence::Whole && survey.exists(swap::LIST) {
                credentials = Presence::Partial;
            }
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

    async fn keep_time(&self, machine: &Machine) -> Result<()> {
        self.with(machine, async |shell: &Shell| {
            self.put_clock_right(shell).await;
            Ok(())
        })
        .await
    }

    fn requires_entropy(&self) -> bool {
        self.settings.require_entropy
    }

    fn ready_timeout(&self) -> ReadyTimeout {
        self.settings.ready
    }

    fn has_scripts(&self, point: GuestScriptPoint) -> bool {
        self.settings.scripts.get(&point).is_some_and(|scripts| !scripts.is_empty())
    }

    async fn run_scripts(
        &self,
        machine: &Machine,
        point: GuestScriptPoint,
        limit: Duration,
        interrupt: &Interrupt,
    ) -> Result<GuestScriptsOutcome> {
        let GuestSettings { scripts, on_script, .. } = &self.settings;
        let Some(scripts) = scripts.get(&point) else { return Ok(GuestScriptsOutcome::Succeeded) };
        let ran = self.with(machine, async |shell: &Shell| {
            scripts::run_all(&shell.session, (point, scripts), limit, interrupt, &**on_script).await
        });
        let most = limit + SCRIPTS_CONNECT_LIMIT;
        match timeout(most, ran).await.unwrap_or(Err(Failure::TimedOut(most))) {
            Err(failure @ (Failure::Lost | Failure::Interrupted)) => Err(failure),
            // A connection breaks, too, when the VM goes.
            Ok(GuestScriptsOutcome::Unfinished) if self.is_gone(machine).await => Err(Failure::Lost),
            Err(source) => {
                on_script(&GuestScriptNotice::Unreachable { point: point.key(), source });
                Ok(GuestScriptsOutcome::Unfinished)
            }
            outcome => outcome,
        }
    }

    fn tell_of_rerun(&self, point: GuestScriptPoint) {
        (self.settings.on_script)(&GuestScriptNotice::Again { point: point.key() });
    }

    async fn shut_down(&self, machine: &Machine) -> Result<()> {
        // Nobody is told of a wait, because this one is for a guest that is to go.
        let connected =
            timeout(SHUT_DOWN_LIMIT, self.reach(machine, self.settings.limits, &Interrupt::new(), || ()))
                .await;
        let shell = connected.map_err(|_elapsed| Failure::TimedOut(SHUT_DOWN_LIMIT))??;
        let what = "ask the guest to shut down";
        match shell.script(what, Rights::Root, SHUT_DOWN, &[], SHUT_DOWN_LIMIT).await {
            // The guest shut down before it answered.
            Ok(_)
            | Err(ScriptError::Channel {
                source: ChannelError::Closed(_) | ChannelError::Unsaid | ChannelError::Silent { .. },
                ..
            }) => Ok(()),
            Err(error) => Err(Failure::world(error)),
        }
    }
}

#[cfg(test)]
mod tests;

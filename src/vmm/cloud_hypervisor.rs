//! [`Vmm`] for Cloud Hypervisor: one process for each generation, with an API socket of its own in the runtime
//! directory.
//!
//! Every call first finds the VMM process by the record that `host` made when it started the process. If no such
//! process is alive, or if the process ends during the call, the VM is lost ([`Failure::Lost`]); any other failure is
//! an error of a living VMM. Because calls are repeated after a crash, each call asks for the state of the VM and does
//! only the missing part of its work.
//!
//! This module relies on these behaviours of the VMM, in addition to the list in [`super`]:
//! - The API socket appears some milliseconds before the VMM listens on it.
//! - Versions before v53 refuse to start if the socket file exists; v53 leaves a lock file beside it. nixbox removes
//!   both files once the process is known to be dead.
//! - When a guest reboots, the VMM makes the VM anew in the same process: it opens kernel, initramfs, disks, RAM and TAP again,
//!   and connects to the share daemons again. It answers no call meanwhile, and ends if it has waited a minute for a daemon
//!   (v53.0, `vm_reboot`, `connect_vhost_user`).
//! - When a guest powers off, the process ends, and reports it before ([`super::events`]).
//! - The VMM keeps the configuration after `vm.create` or `vm.boot` has failed, so nixbox deletes it before the next
//!   attempt.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::boot_files::BootFiles;
use super::client::{ApiClient, ApiError};
use super::config::{FsConfig, MachineDescription, VmConfig};
use super::confined::VmmFiles;
use super::error::{VmmError, text};
use super::installed::version_of;
use super::live_vmm::{LiveVmm, SILENCE_LIMIT, SILENCE_LIMIT_WITH_STAND_IN, START_LIMIT, remove_sockets};
pub use super::settings::{Find, VmmSettings};
use super::state::{self, SavedShares, StateError};
use crate::files::shared_paths::SharedPaths;
use crate::host::process::{DaemonRole, Daemons};
use crate::host::shares;
use crate::host::socket::{self, SocketPath};
use crate::host::spawn::{self, Privileges, Program, StandIn};
use crate::host::systemd::scope::ScopeManager;
use crate::world::{
    Ability, Cpuid, Failure, Generation, Machine, Presence, Result, ShareTag, Slot, SnapshotId, Vmm,
    VmmState, VmmVersion, capability,
};

/// The logs of the events that VMMs report.
const EVENTS: &str = "events";
/// How long a VMM may take to end after SIGTERM before nixbox kills it.
const GRACE: Duration = Duration::from_secs(5);
/// How long a guest may take to shut down after its power button was pressed.
const POWER_OFF_LIMIT: Duration = Duration::from_secs(30);
/// How long to wait for the exit of a VMM whose answer says that it is ending.
const DYING_LIMIT: Duration = Duration::from_secs(10);

/// [`Vmm`] for the Cloud Hypervisor that `NIXBOX_CLOUD_HYPERVISOR` names or that is on PATH.
pub struct CloudHypervisor {
    settings: VmmSettings,
    daemons: Daemons,
    role: DaemonRole,
    /// The version of the installed program.
    installed: OnceCell<String>,
    stand_in: Option<StandIn>,
    /// Where a guest can replace files that the VM boots from.
    shared: SharedPaths,
}

impl CloudHypervisor {
    /// Creates the seam for the VMMs of a workspace. This starts no process.
    #[must_use]
    pub fn new(settings: VmmSettings) -> Self {
        let daemons = Daemons::new(settings.runtime.clone(), settings.workspace);
        Self {
            settings,
            daemons,
            role: DaemonRole::vmm(),
            installed: OnceCell::new(),
            stand_in: None,
            shared: SharedPaths::default(),
        }
    }

    /// Creates the seam like `new`, and puts the VMMs into scopes of this manager, if there is one.
    #[must_use]
    pub fn in_scopes_of(self, scopes: Option<ScopeManager>) -> Self {
        Self { daemons: self.daemons.in_scopes_of(scopes), ..self }
    }

    /// Creates the seam like `new`, and runs `stand_in` instead of Cloud Hypervisor if it is given.
    #[must_use]
    pub fn by(self, stand_in: Option<StandIn>) -> Self {
        Self { stand_in, ..self }
    }

    /// Creates the seam like `new`, for a VM whose guest can replace files in these directories.
    #[must_use]
    pub fn beside(self, shared: SharedPaths) -> Self {
        Self { shared, ..self }
    }

    fn socket(&self, generation: Generation) -> std::result::Result<SocketPath, VmmError> {
        Ok(SocketPath::new(self.settings.runtime.join(format!("vmm-{generation}.sock")))?)
    }

    fn program(&self) -> std::result::Result<Program, VmmError> {
        let privileges = Privileges::Invoker(self.settings.invoker.clone());
        let stand_in = self.stand_in.as_ref();
        Ok(spawn::program("cloud-hypervisor", "NIXBOX_CLOUD_HYPERVISOR", stand_in, privileges)?)
    }

    /// How long the VMM of a generation has been running; `None` if it does not run.
    ///
    /// # Errors
    /// If its process cannot be looked for.
    pub fn runs_for(&self, generation: Generation) -> Result<Option<Duration>> {
        let daemon = self.daemons.find(&self.role, generation).map_err(VmmError::from)?;
        Ok(daemon.map(|daemon| daemon.identity().age()))
    }

    fn find_live(&self, generation: Generation) -> std::result::Result<Option<LiveVmm>, VmmError> {
        let Some(daemon) = self.daemons.find(&self.role, generation)? else {
            return Ok(None);
        };
        Ok(Some(LiveVmm { daemon, client: ApiClient::new(self.socket(generation)?) }))
    }

    /// Runs `act` on the VMM of a generation. Returns [`Failure::Lost`] if the VMM has no living process, or if the
    /// process ended meanwhile.
    async fn with<T>(
        &self,
        generation: Generation,
        act: impl AsyncFnOnce(&LiveVmm) -> std::result::Result<T, VmmError>,
    ) -> Result<T> {
        let live = self.find_live(generation)?.ok_or(Failure::Lost)?;
        let error = match act(&live).await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        if matches!(&error, VmmError::Client(error) if error.is_vmm_ending())
            && let Ok(exit) = tokio::time::timeout(DYING_LIMIT, live.daemon.exited()).await
        {
            exit.map_err(VmmError::from)?;
        }
        match live.daemon.alive().map_err(VmmError::from)? {
            true => Err(error.into()),
            false => Err(Failure::Lost),
        }
    }

    /// The version of a generation's VMM, or of the installed program.
    async fn version_text(&self, of: Option<Generation>) -> Result<String> {
        match of {
            Some(generation) => {
                self.with(generation, async |live| Ok(live.client.ping().await?.build_version)).await
            }
            None => Ok(self
                .installed
                .get_or_try_init(|| async { version_of(self.program()?).await })
                .await?
                .clone()),
        }
    }

    /// Waits until the API answers. Fails if the answer comes from another process than the one that was started, or
    /// from an unsupported version.
    async fn wait_until_answering(
        &self,
        live: &LiveVmm,
        generation: Generation,
    ) -> std::result::Result<(), VmmError> {
        let deadline = Instant::now() + START_LIMIT;
        let mut pause = Duration::from_millis(1);
        loop {
            match live.client.ping().await {
                Ok(ping) if ping.pid == live.daemon.pid() => {
                    return Ok(capability::of(&ping.build_version).map(drop)?);
                }
                Ok(ping) => {
                    let socket = self.socket(generation)?;
                    return Err(VmmError::ForeignProcess {
                        socket,
                        found: ping.pid,
                        wanted: live.daemon.pid(),
                    });
                }
                Err(ApiError::Connection { .. }) if Instant::now() < deadline => {}
                Err(ApiError::Connection { .. }) => {
                    return Err(self.daemons.not_serving(&self.role, generation, START_LIMIT).into());
                }
                Err(error) => return Err(error.into()),
            }
            // No event tells when the VMM listens on its socket, so nixbox repeats the call with growing pauses. The
            // exit of the process ends a pause.
            if let Ok(exit) = tokio::time::timeout(pause, live.daemon.exited()).await {
                return Err(self.daemons.ended(&self.role, generation, exit?).into());
            }
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    fn shares(&self, generation: Generation) -> std::result::Result<Vec<FsConfig>, VmmError> {
        let share = |(index, tag): (usize, &ShareTag)| {
            Ok(FsConfig::new(
                tag.as_str(),
                shares::socket_of(&self.settings.runtime, index, generation)?.as_str(),
            ))
        };
        self.settings.shares.iter().enumerate().map(share).collect()
    }

    fn describe(&self, machine: &Machine) -> std::result::Result<MachineDescription, VmmError> {
        let settings = &self.settings;
        let slot: Option<Slot> = settings.network.then_some(machine.slot);
        Ok(MachineDescription {
            vcpus: settings.vcpus,
            memory: settings.memory,
            memory_file: (settings.memory_file)(machine.memory)
                .map_err(VmmError::Parts)?
                .map(text)
                .transpose()?,
            memory_reserved: (settings.memory_reserved)(machine.memory).map_err(VmmError::Parts)?,
            kernel: text(settings.kernel.clone())?,
            initramfs: settings.initramfs.clone().map(text).transpose()?,
            cmdline: settings.cmdline.clone(),
            disks: (settings.disks)(machine.disk)
                .map_err(VmmError::Parts)?
                .into_iter()
                .map(text)
                .collect::<std::result::Result<_, _>>()?,
            slot,
            shares: if machine.shares { self.shares(machine.vmm)? } else { Vec::new() },
            serial: text(self.serial_log(machine.vmm))?,
        })
    }

    fn boot_files(&self, generation: Generation) -> BootFiles {
        BootFiles {
            directory: self.settings.runtime.join(format!("boot-{generation}.files")),
            shared: self.shared.clone(),
            invoker: self.settings.invoker.clone(),
        }
    }

    fn files<'a>(&'a self, socket: &'a SocketPath, generation: Generation) -> VmmFiles<'a> {
        let settings = &self.settings;
        let (runtime, serial) = (settings.runtime.as_path(), self.serial_log(generation));
        let events = self.events_log(generation);
        let boot = [Some(settings.kernel.as_path()), settings.initramfs.as_deref()];
        VmmFiles { runtime, socket, serial, events, boot, shared: &self.shared }
    }

    /// The machine for a boot, whose files are those that were opened once.
    async fn describe_boot(
        &self,
        machine: &Machine,
        files: &BootFiles,
    ) -> std::result::Result<MachineDescription, VmmError> {
        let (kernel, initramfs) = (self.settings.kernel.clone(), self.settings.initramfs.clone());
        let (kernel, initramfs) = files.clone().taken(kernel, initramfs).await?;
        let initramfs = initramfs.map(text).transpose()?;
        Ok(MachineDescription { kernel: text(kernel)?, initramfs, ..self.describe(machine)? })
    }

    /// The directory that `vm.restore` of a generation reads.
    fn restore_directory(&self, generation: Generation) -> PathBuf {
        self.settings.runtime.join(format!("restore-{generation}"))
    }

    async fn load_into(
        &self,
        live: &LiveVmm,
        machine: &Machine,
        from: SnapshotId,
        shares: SavedShares,
    ) -> std::result::Result<(), VmmError> {
        match live.state().await? {
            VmmState::Paused => return Ok(()),
            state @ (VmmState::Running
            | VmmState::Silent
            | VmmState::Never
            | VmmState::Gone
            | VmmState::PoweredOff) => {
                return Err(VmmError::WrongState { what: "restored", state });
            }
            VmmState::Stopped => live.client.delete().await?,
            VmmState::Empty => {}
        }
        let directory = self.restore_directory(machine.vmm);
        let source = (self.settings.snapshot)(from).map_err(VmmError::Parts)?;
        let mut description = self.describe(machine)?;
        if shares == SavedShares::LeftOut {
            description.shares.clear();
        }
        state::prepare_restore(&source, &directory, &description, shares, &self.settings.invoker)?;
        let restored = live.client.restore(&text(directory.clone())?).await;
        let removed = state::remove(&directory);
        restored?;
        Ok(removed?)
    }
}

#[async_trait]
impl Vmm for CloudHypervisor {
    async fn ability(&self, of: Option<Generation>) -> Result<Ability> {
        let text = self.version_text(of).await?;
        Ok(capability::of(&text).map_err(VmmError::from)?.ability)
    }

    async fn version(&self, of: Option<Generation>) -> Result<VmmVersion> {
        Ok(capability::version(&self.version_text(of).await?).map_err(VmmError::from)?)
    }

    async fn find(&self, generation: Generation) -> Result<VmmState> {
        let silence_limit = if self.stand_in.is_some() { SILENCE_LIMIT_WITH_STAND_IN } else { SILENCE_LIMIT };
        match self.with(generation, async |live| live.state_or_silence(silence_limit).await).await {
            Err(Failure::Lost) => {
                let remembered = self.daemons.remembers(&self.role, generation);
                if !remembered.map_err(VmmError::from)? {
                    return Ok(VmmState::Never);
                }
                let in_order = self.last_events(generation)?.ended_in_order;
                Ok(if in_order { VmmState::PoweredOff } else { VmmState::Gone })
            }
            found => found,
        }
    }

    async fn start(&self, generation: Generation) -> Result<()> {
        if let Some(live) = self.find_live(generation)? {
            return Ok(self.wait_until_answering(&live, generation).await?);
        }
        let socket = self.socket(generation)?;
        remove_sockets(&socket).await?;
        for name in ["serial", EVENTS] {
            self.daemons.forget_old_logs(name, generation).map_err(VmmError::from)?;
        }
        // The report of a VMM of this generation that was started before and has ended.
        socket::remove_file(&self.events_log(generation)).map_err(VmmError::from)?;
        let namespace = self.settings.place.entrance(generation).await.map_err(VmmError::from)?;
        let program = self.program()?.argument("--api-socket").argument(format!("path={socket}"));
        let events = text(self.events_log(generation))?;
        let program = program.argument("--event-monitor").argument(format!("path={events}"));
        let program = self.files(&socket, generation).confine(program, self.settings.places.as_ref());
        let program = program.in_network(namespace);
        let daemon = self.daemons.start(&self.role, generation, program).await.map_err(VmmError::from)?;
        let live = LiveVmm { daemon, client: ApiClient::new(socket) };
        Ok(self.wait_until_answering(&live, generation).await?)
    }

    async fn boot(&self, machine: &Machine) -> Result<()> {
        self.with(machine.vmm, async |live| {
            match live.state().await? {
                VmmState::Running => return Ok(()),
                state @ (VmmState::Paused
                | VmmState::Silent
                | VmmState::Never
                | VmmState::Gone
                | VmmState::PoweredOff) => {
                    return Err(VmmError::WrongState { what: "booted", state });
                }
                VmmState::Stopped => live.client.delete().await?,
                VmmState::Empty => {}
            }
            let capability = capability::of(&live.client.ping().await?.build_version)?;
            let files = self.boot_files(machine.vmm);
            let description = self.describe_boot(machine, &files).await?;
            live.client.create(&VmConfig::new(&description, capability)).await?;
            Ok(live.client.boot().await?)
        })
        .await
    }

    async fn pause(&self, generation: Generation) -> Result<()> {
        self.with(generation, async |live| match live.state().await? {
            VmmState::Paused => Ok(()),
            VmmState::Running => Ok(live.client.pause().await?),
            state => Err(VmmError::WrongState { what: "paused", state }),
        })
        .await
    }

    async fn resume(&self, generation: Generation) -> Result<()> {
        self.with(generation, async |live| match live.state().await? {
            VmmState::Running => Ok(()),
            VmmState::Paused => Ok(live.client.resume().await?),
            state => Err(VmmError::WrongState { what: "resumed", state }),
        })
        .await?;
        // A nixbox that was killed during `load` has left this directory. The VMM has read all of it by now.
        Ok(state::remove(&self.restore_directory(generation)).map_err(VmmError::from)?)
    }

    async fn save(&self, generation: Generation, into: SnapshotId) -> Result<()> {
        self.with(generation, async |live| {
            match live.state().await? {
                VmmState::Paused => {}
                state => {
                    return Err(VmmError::WrongState { what: "saved", state });
                }
            }
            let directory = (self.settings.snapshot)(into).map_err(VmmError::Parts)?;
            state::make_directory(&directory, &self.settings.invoker)?;
            live.client.snapshot(&text(directory.clone())?).await?;
            let synced = tokio::task::spawn_blocking(move || state::sync(&directory)).await;
            Ok(synced.map_err(|error| StateError::Died(error.into()))??)
        })
        .await
    }

    async fn saved_cpuid(&self, of: SnapshotId) -> Result<Option<Cpuid>> {
        let directory = (self.settings.snapshot)(of).map_err(VmmError::Parts)?;
        Ok(state::cpuid(&directory).map_err(VmmError::from)?)
    }

    async fn load(&self, machine: &Machine, from: SnapshotId) -> Result<()> {
        self.with(machine.vmm, async |live| self.load_into(live, machine, from, SavedShares::Kept).await)
            .await
    }

    async fn load_without_shares(&self, machine: &Machine, from: SnapshotId) -> Result<()> {
        self.with(machine.vmm, async |live| self.load_into(live, machine, from, SavedShares::LeftOut).await)
            .await
    }

    async fn power_button(&self, generation: Generation) -> Result<()> {
        let Some(live) = self.find_live(generation)? else {
            return Ok(());
        };
        let pressed = live.client.power_button().await;
        if !live.daemon.alive().map_err(VmmError::from)? {
            return Ok(());
        }
        match live.state().await {
            Ok(
                VmmState::Empty | VmmState::Stopped | VmmState::Never | VmmState::Gone | VmmState::PoweredOff,
            ) => {
                return Ok(());
            }
            Ok(VmmState::Running | VmmState::Paused | VmmState::Silent) => pressed.map_err(VmmError::from)?,
            Err(error) if live.daemon.alive().map_err(VmmError::from)? => return Err(error.into()),
            Err(_the_vmm_has_ended) => return Ok(()),
        }
        // The VMM process ends when its guest powers off.
        match tokio::time::timeout(POWER_OFF_LIMIT, live.daemon.exited()).await {
            Ok(exit) => Ok(exit.map(drop).map_err(VmmError::from)?),
            Err(_elapsed) => Err(Failure::TimedOut(POWER_OFF_LIMIT)),
        }
    }

    async fn ends(&self, generation: Generation, within: Duration) -> Result<bool> {
        let Some(live) = self.find_live(generation)? else {
            return Ok(true);
        };
        match tokio::time::timeout(within, live.daemon.exited()).await {
            Ok(exit) => Ok(exit.map(|_| true).map_err(VmmError::from)?),
            Err(_elapsed) => Ok(false),
        }
    }

    async fn stop(&self, generation: Generation) -> Result<()> {
        self.daemons.stop(&self.role, generation, GRACE).await.map_err(VmmError::from)?;
        remove_sockets(&self.socket(generation)?).await?;
        self.boot_files(generation).remove().map_err(VmmError::from)?;
        Ok(state::remove(&self.restore_directory(generation)).map_err(VmmError::from)?)
    }

    async fn attach_shares(&self, generation: Generation) -> Result<()> {
        self.with(generation, async |live| {
            let attached = live.share_ids().await?;
            for share in self.shares(generation)?.iter().filter(|share| !attached.contains(share.id())) {
                live.client.add_fs(share).await?;
            }
            Ok(())
        })
        .await
    }

    async fn detach_shares(&self, generation: Generation) -> Result<()> {
        self.with(generation, async |live| {
            let ours: BTreeSet<String> =
                self.settings.shares.iter().map(|tag| FsConfig::id_of(tag.as_str())).collect();
            for id in live.share_ids().await?.intersection(&ours) {
                match live.client.remove_device(id).await {
                    Ok(()) => {}
                    // The removal was requested before: the VMM no longer lists the device, but the guest has not
                    // released it yet.
                    Err(ApiError::Refused { .. }) if !live.is_configured(id).await? => {}
                    Err(error) => return Err(error.into()),
                }
            }
            live.wait_until_unplugged(&ours).await?;
            live.wait_until_disconnected(&self.shares(generation)?).await
        })
        .await
    }

    async fn shares_attached(&self, generation: Generation) -> Result<Presence> {
        self.with(generation, async |live| {
            let attached = live.share_ids().await?;
            let wanted = self.settings.shares.iter().map(|tag| FsConfig::id_of(tag.as_str()));
            Ok(match wanted.filter(|id| attached.contains(id)).count() {
                0 => Presence::Absent,
                some if some == self.settings.shares.len() => Presence::Whole,
                _ => Presence::Partial,
            })
        })
        .await
    }
}

mod logs;
#[cfg(test)]
mod tests;

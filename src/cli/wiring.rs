//! Builds the real [`World`] of a workspace: passes the workspace's configuration to the seams of `host`, `vmm`,
//! `guest` and `store`.
//!
//! The values of the configuration have types of `world`, which the layers below accept without a conversion. The
//! wiring makes the runtime directory, and starts no process.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::config::{self, Config, VmSpec};
use crate::files::copy::Progress;
use crate::files::shared_paths::SharedPaths;
use crate::guest::channel::{Dial, Limits};
use crate::guest::key::{self, KeyError};
use crate::guest::mounts::Mount;
use crate::guest::ssh_guest::{self, GuestScriptObserver, SshGuest, SwapObserver, UnsettledObserver};
use crate::host::clock::HostClock;
use crate::host::confinement::FileAccess;
use crate::host::contents::SourceContents;
use crate::host::cpu;
use crate::host::disk::Disks;
use crate::host::hooks::{FailedScriptObserver, NoScripts, ScriptCheck, ShellHooks};
use crate::host::leftovers::HostLeftovers;
use crate::host::lifetime::Lifetime;
use crate::host::memory::RamFiles;
use crate::host::network::{self, HostNetwork, NetworkPlace};
use crate::host::process::Daemons;
use crate::host::shares::Virtiofs;
use crate::host::spawn::{Invoker, SpawnError, StandIn};
use crate::simulator::network::Loopback;
use crate::store::built::RecordFiles;
use crate::store::{LeakSearch, Snapshots};
use crate::vmm::cloud_hypervisor::{CloudHypervisor, VmmSettings};
use crate::vmm::confined::OwnPlaces;
use crate::workspace::{self, Workspace, WorkspaceError, guest_writable};
use crate::world::capability::{self, Capability};
use crate::world::{self, Failure, NamespaceKeeping, ReadyTimeout, ShareTag, VmmChoice, World};

mod boot_line;
mod guest_memory;
mod guest_user;
pub(super) mod place;
mod share_settings;
mod wanted;

use place::PlaceError;

/// Why a workspace's world cannot be built. No operation was begun.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum WiringError {
    #[error(transparent)]
    Workspace(#[from] WorkspaceError),
    #[error(
        "mounts.source {} gives access to {}, where nixbox has {what}: the guest must not reach that",
        source_path.display(), directory.display()
    )]
    SharedPrivate { source_path: PathBuf, what: &'static str, directory: PathBuf },
    #[error(
        "mounts.source {} lies inside a {}, which the guest must not reach: share another directory",
        source_path.display(), workspace::DIRECTORY
    )]
    InsideNixbox { source_path: PathBuf },
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error("the key to log in to the guest with, guest.ssh-key, cannot be used")]
    LoginKey(#[source] KeyError),
    #[error("the workspace's own key cannot be used; `nixbox init` makes one where there is none")]
    OwnKey(#[source] KeyError),
    #[error("nixbox's own program, which the simulator is, cannot be found")]
    NoProgram(#[source] std::io::Error),
}

type Result<T, E = WiringError> = std::result::Result<T, E>;

/// The file with the private key that the workspace's guests are given.
#[must_use]
pub fn own_key(workspace: &Workspace) -> PathBuf {
    workspace.ssh().join("vm_key")
}

/// A guest that does not answer yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SilentGuest {
    /// How long it has not answered.
    pub waited: Duration,
    /// How long it may take.
    pub timeout: ReadyTimeout,
    /// The last line of its serial console.
    pub console: Option<String>,
}

/// Who is told what happens in a world and is no result of a call.
#[derive(Clone)]
pub struct Observers {
    /// Is told which script of the user failed.
    pub failed_script: Arc<FailedScriptObserver>,
    /// Is told of a script in the guest that did not succeed, or that runs again.
    pub guest_script: Arc<GuestScriptObserver>,
    /// Is told that the files of shares do not belong to the guest's user there.
    pub guest_user: Arc<dyn Fn(&str) + Send + Sync>,
    /// Is told what a guest was not given when it went on.
    pub unsettled: Arc<UnsettledObserver>,
    /// Is told that a guest lacks swap that it had.
    pub no_swap: Arc<SwapObserver>,
    /// Is told that the guest's shares were mounted anew.
    pub remounted: Arc<dyn Fn() + Send + Sync>,
    /// Is told, several times a second, that a guest is waited for.
    pub silent_guest: Arc<dyn Fn(SilentGuest) + Send + Sync>,
}

/// A world, and the parts of it that commands use beyond the seams.
pub struct Wiring {
    /// The implementations of all seams.
    pub world: World,
    /// The guest, for running commands in it.
    pub guest: Arc<SshGuest>,
    /// The VMM, for reading its log.
    pub vmm: Arc<CloudHypervisor>,
    /// The RAM.
    pub memory: Arc<RamFiles>,
    /// The snapshots.
    pub snapshots: Arc<Snapshots>,
    /// The directory for sockets, records and logs.
    pub runtime: PathBuf,
    /// Whether the simulator stands in for the VMM.
    pub simulated: bool,
    /// Where the network of the VM is.
    pub place: NetworkPlace,
    /// What the VM was built from, or is to be built from.
    pub spec: VmSpec,
}

impl Wiring {
    /// Makes operations run no script of the configuration.
    pub fn leave_out_scripts(&mut self) {
        self.world.hooks = Arc::new(NoScripts);
    }
}

/// The version of Cloud Hypervisor that the configured simulator imitates; `None` if the VMM is a real one.
#[must_use]
pub fn simulated(vmm: VmmChoice) -> Option<&'static Capability> {
    match vmm {
        VmmChoice::CloudHypervisor => None,
        VmmChoice::Simulator(version) => Some(version.unwrap_or(capability::SIMULATED)),
    }
}

/// The command line by which this program stands in for another program in the simulator.
fn stand_in(words: &[&str]) -> Result<StandIn> {
    let path = std::env::current_exe().map_err(WiringError::NoProgram)?;
    Ok(StandIn { path, words: words.iter().map(|word| (*word).to_owned()).collect() })
}

/// What the VM of a world is, and where its sockets are.
#[derive(Debug, Clone)]
pub struct Description {
    /// What the VM was built from, or is to be built from.
    pub spec: VmSpec,
    /// The directory for sockets, process records and logs. It exists.
    pub runtime: PathBuf,
    /// How the network namespace of the VM is kept, where that is known.
    pub namespace: Option<NamespaceKeeping>,
    /// Whether the guest is given no credentials.
    pub withholds_credentials: bool,
}

impl Description {
    /// A VM that is to be built from this configuration.
    ///
    /// # Errors
    /// If the runtime directory cannot be made.
    pub fn of_config(workspace: &Workspace, config: &Config) -> Result<Self> {
        let runtime = workspace.runtime()?.path().to_owned();
        Ok(Self { spec: config.vm_spec(), runtime, namespace: None, withholds_credentials: false })
    }
}

/// What a world is wired for, and the configuration of today, which has the scripts and the credentials.
#[derive(Debug, Clone, Copy)]
pub enum Purpose<'a> {
    /// Every operation. Keys that cannot be used are errors.
    Any(&'a Config),
    /// To look at the VM that there is, to speak to it, or to end it. None of these needs a credential, so a key that
    /// cannot be used is an error only when it is used; and without a configuration no script runs.
    PresentVm(Option<&'a Config>),
}

impl<'a> Purpose<'a> {
    fn config(self) -> Option<&'a Config> {
        match self {
            Self::Any(config) => Some(config),
            Self::PresentVm(config) => config,
        }
    }
}

/// Builds the world of a workspace for a VM of this description.
///
/// # Errors
/// [`WiringError`]; nothing was changed.
pub fn assemble(
    workspace: &Workspace,
    description: &Description,
    purpose: Purpose<'_>,
    progress: Arc<dyn Progress>,
    observers: Observers,
) -> Result<Wiring> {
    let invoker = Invoker::detect()?;
    let Description { spec, runtime, namespace, .. } = description.clone();
    if let Purpose::Any(_) = purpose {
        // A VM that is there was checked before it was built, and has to be ended whatever lies at these paths now.
        check_apart(&spec, &private_directories(workspace, &runtime))?;
    }
    let version = simulated(spec.vmm);
    let source_progress = Arc::clone(&progress);
    let keep = purpose.config().map(|config| config.snapshot.keep_disks);
    let on_leak = purpose.config().map(|config| config.snapshot.on_leak).unwrap_or_default();
    let leaks = LeakSearch::new(workspace.state().path().to_owned(), on_leak).with_logs(runtime.clone());
    let leaks = Arc::new(leaks);
    let disk = Arc::new(disks(workspace, &spec, keep, &progress, &leaks));
    let memory = Arc::new(guest_memory::of(workspace, &spec, &progress, &leaks)?);
    let catalog = Arc::new(Snapshots { root: workspace.snapshots(), progress, leaks });
    let vmm_stand_in = version
        .map(|version| stand_in(&["simulator", "vmm", "--as-version", &version.to_string()]))
        .transpose()?;
    let share_stand_in = version.map(|_| stand_in(&["simulator", "share"])).transpose()?;
    let scopes = Lifetime::of_this_process().map_err(WorkspaceError::File)?.scopes;
    let place = place::network_place(workspace, version, scopes.clone(), namespace)?;
    let vmm = CloudHypervisor::new(VmmSettings {
        runtime: runtime.clone(),
        workspace: workspace.id(),
        invoker: invoker.clone(),
        place: place.clone(),
        vcpus: NonZeroU32::from(spec.vm.vcpus),
        memory: spec.vm.memory.bytes(),
        kernel: spec.vm.kernel.as_path().to_owned(),
        initramfs: spec.vm.initramfs.as_ref().map(|path| path.as_path().to_owned()),
        cmdline: boot_line::of(&spec, &shared_paths(&spec)),
        // The VM has a network device in every network mode, because nixbox reaches the guest over the network.
        network: true,
        shares: (0..spec.mounts.len()).map(ShareTag::numbered).collect(),
        disks: {
            let disk = Arc::clone(&disk);
            Arc::new(move |generation| Ok(disk.images(generation)?))
        },
        memory_file: {
            let memory = Arc::clone(&memory);
            Arc::new(move |generation| Ok(memory.file(generation)?))
        },
        memory_reserved: {
            let memory = Arc::clone(&memory);
            Arc::new(move |generation| Ok(memory.is_reserved(generation)?))
        },
        snapshot: {
            let catalog = Arc::clone(&catalog);
            Arc::new(move |snapshot| Ok(catalog.directory(snapshot)?))
        },
        places: version.is_none().then(|| vmm_places(workspace, &memory)),
    });
    let vmm = vmm.by(vmm_stand_in).beside(shared_paths(&spec)).in_scopes_of(scopes.clone());
    let vmm = Arc::new(vmm);
    let address = (place::address(version, &runtime), place::dial(&place, &runtime));
    let guest = Arc::new(guest(workspace, description, purpose, &disk, &vmm, address, &observers)?);
    let network: Arc<dyn world::Network> = match version {
        Some(_) => Arc::new(Loopback::new(runtime.clone())),
        None => {
            let network = HostNetwork::new(network::NetworkSettings {
                workspace: workspace.id(),
                owner: invoker.uid(),
                runtime: runtime.clone(),
                policy: spec.network.clone(),
                resolv_conf: "/etc/resolv.conf".into(),
                place: place.clone(),
            });
            Arc::new(network.in_scopes_of(scopes.clone()))
        }
    };
    let slots = place::slots(workspace, version, &place, &runtime);
    let world = World {
        vmm: vmm.clone(),
        slots: Arc::new(slots),
        network,
        shares: {
            let shares = Virtiofs::new(share_settings::of(workspace, &spec, &runtime, invoker));
            Arc::new(shares.by(share_stand_in).in_scopes_of(scopes))
        },
        disk: disk.clone(),
        memory: memory.clone(),
        backups: memory.clone(),
        records: Arc::new(RecordFiles {
            run: workspace.run(),
            root: workspace.root().to_owned(),
            runtime: runtime.clone(),
            namespace: place::keeping(&place),
            spec: spec.clone(),
        }),
        guest: guest.clone(),
        catalog: catalog.clone(),
        cpu: Arc::new(move || cpu::of_this_machine(version.is_none()).map_err(Failure::world)),
        shape: Arc::new(spec.shape(workspace.root())),
        absolute_shape: Arc::new(spec.shape("/".as_ref())),
        sources: Arc::new(SourceContents {
            files: spec.source_files(),
            directory: workspace.state().path().to_owned(),
            progress: source_progress,
        }),
        missing_mounts: missing_mounts(&spec),
        leftovers: Arc::new(HostLeftovers {
            daemons: Daemons::new(runtime.clone(), workspace.id()),
            memory: memory.clone(),
            disk: disk.clone(),
        }),
        hooks: Arc::new(ShellHooks {
            directory: workspace.root().to_owned(),
            scripts: purpose.config().map(|config| config.hooks.by_point()).unwrap_or_default(),
            check: script_check(workspace, purpose.config(), &spec),
            on_failed_script: observers.failed_script,
        }),
        clock: Arc::new(HostClock),
    };
    Ok(Wiring {
        world,
        guest,
        vmm,
        memory,
        snapshots: catalog,
        runtime,
        simulated: version.is_some(),
        place,
        spec,
    })
}

/// Returns the function that decides right before a script is started whether it may run. The guest can write in the shares
/// of the VM that there is, and in those of the configuration.
fn script_check(workspace: &Workspace, config: Option<&Config>, spec: &VmSpec) -> Arc<ScriptCheck> {
    let (root, places) = (workspace.root().to_owned(), workspace.places().clone());
    let config = config.cloned().map(|mut config| {
        config.mounts.extend(spec.mounts.iter().cloned());
        config
    });
    Arc::new(move |point, script| match &config {
        Some(config) => Ok(guest_writable::check_script(&root, &places, config, (point, script))?),
        None => Ok(()),
    })
}

/// The directories of the host that no guest may reach, each with what nixbox has there. A guest that can reach the VMM's
/// socket can attach any file of the host to its VM, and the others decide what nixbox does on the host.
fn private_directories<'a>(workspace: &'a Workspace, runtime: &'a Path) -> [(&'static str, &'a Path); 4] {
    [
        ("the VM's sockets", runtime),
        ("the state of the workspace", workspace.state().path()),
        ("the registry of workspaces", workspace.places().state()),
        ("your configuration", workspace.places().user_config()),
    ]
}

/// Refuses a mount that contains a private directory, or that lies in one. Refuses a mount inside a `.nixbox` too, of which
/// a guest sees two files only.
fn check_apart(spec: &VmSpec, private: &[(&'static str, &Path)]) -> Result<()> {
    for mount in &spec.mounts {
        let source = mount.source.as_path();
        // A missing source is reported by `Config::check_files`.
        let real = std::fs::canonicalize(source).unwrap_or_else(|_| source.to_owned());
        for (what, directory) in private {
            let directory = std::fs::canonicalize(directory).unwrap_or_else(|_| (*directory).to_owned());
            // The state of an earlier nixbox is in `.nixbox`, which a mask hides.
            let masked = directory.ends_with(workspace::DIRECTORY);
            if !masked && (directory.starts_with(&real) || real.starts_with(&directory)) {
                return Err(WiringError::SharedPrivate { source_path: source.to_owned(), what, directory });
            }
        }
        if real.components().any(|part| part.as_os_str() == workspace::DIRECTORY) {
            return Err(WiringError::InsideNixbox { source_path: source.to_owned() });
        }
    }
    Ok(())
}

/// Where a VMM finds and makes the files of its VM.
fn vmm_places(workspace: &Workspace, memory: &Arc<RamFiles>) -> OwnPlaces {
    let (run, snapshots, memory) = (workspace.run(), workspace.snapshots(), Arc::clone(memory));
    Arc::new(move |confinement| {
        let confinement = confinement.may(FileAccess::Write, &run).may(FileAccess::Make, &snapshots);
        let on_tmpfs = memory.directories_on_tmpfs().into_iter();
        on_tmpfs.fold(confinement, |confinement, directory| confinement.may(FileAccess::Write, directory))
    })
}

/// Where the guest of this VM can replace what the configuration names.
#[must_use]
pub fn shared_paths(spec: &VmSpec) -> SharedPaths {
    let writable = spec.mounts.iter().filter(|mount| !mount.readonly);
    SharedPaths::new(writable.map(|mount| mount.source.as_path()))
}

fn missing_mounts(spec: &VmSpec) -> Arc<[PathBuf]> {
    let sources = spec.mounts.iter().map(|mount| mount.source.as_path());
    sources.filter(|source| !source.is_dir()).map(Path::to_owned).collect()
}

fn disks(
    workspace: &Workspace,
    spec: &VmSpec,
    keep: Option<u32>,
    progress: &Arc<dyn Progress>,
    leaks: &Arc<LeakSearch>,
) -> Disks {
    let (run, snapshots) = (workspace.run(), workspace.snapshots());
    let mut disks = Disks::new(run, snapshots, spec.disks.clone(), Arc::clone(progress), Arc::clone(leaks));
    disks.keep = keep;
    disks.beside(shared_paths(spec))
}

fn guest(
    workspace: &Workspace,
    description: &Description,
    purpose: Purpose<'_>,
    disk: &Arc<Disks>,
    vmm: &Arc<CloudHypervisor>,
    (address, dial): (Arc<ssh_guest::Address>, Arc<Dial>),
    observers: &Observers,
) -> Result<SshGuest> {
    let spec = &description.spec;
    let mount = |(index, mount): (usize, &config::MountTable)| Mount {
        tag: ShareTag::numbered(index),
        target: mount.target.clone(),
        readonly: mount.readonly,
    };
    let disk = Arc::clone(disk);
    let settings = ssh_guest::GuestSettings {
        user: spec.guest.user.clone(),
        key: match (key::load(spec.guest.ssh_key.as_path(), &shared_paths(spec)), purpose) {
            (Err(error), Purpose::Any(_)) => return Err(WiringError::LoginKey(error)),
            (loaded, _) => loaded.map(Arc::new).map_err(Arc::new),
        },
        pin: Arc::new(move |generation| disk.host_key(generation)),
        address,
        dial,
        wanted: wanted::wanted(workspace, description, purpose)?,
        state: workspace.state().path().to_owned(),
        require_entropy: spec.guest.require_entropy,
        on_unsettled: Arc::clone(&observers.unsettled),
        on_no_swap: Arc::clone(&observers.no_swap),
        on_remounted: Arc::clone(&observers.remounted),
        on_user: {
            // The simulated guest has the users of this machine.
            let defaulted = purpose.config().is_none_or(|config| config.defaulted.user_ids);
            match simulated(spec.vmm) {
                Some(_) => Arc::new(|_| ()),
                None => guest_user::observer(workspace, spec, defaulted, Arc::clone(&observers.guest_user)),
            }
        },
        on_waiting: {
            let (vmm, timeout) = (Arc::clone(vmm), spec.guest.ready_timeout);
            let tell = Arc::clone(&observers.silent_guest);
            Arc::new(move |machine, waited| {
                tell(SilentGuest { waited, timeout, console: vmm.console_line(machine.vmm) });
            })
        },
        mounts: spec.mounts.iter().enumerate().map(mount).collect(),
        ready: spec.guest.ready_timeout,
        console: {
            let vmm = Arc::clone(vmm);
            Arc::new(move |machine| vmm.console_size(machine.vmm))
        },
        scripts: purpose.config().map(|config| config.guest.scripts.by_point()).unwrap_or_default(),
        on_script: Arc::clone(&observers.guest_script),
        limits: Limits::default(),
    };
    Ok(SshGuest::new(settings, vmm.clone()))
}

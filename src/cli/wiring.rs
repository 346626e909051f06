//! The real [`World`] of a workspace: its configuration, put into the seams of `host`, `vmm`, `guest` and `store`.
//!
//! The words of the configuration become those of each layer here and nowhere else. Starts and makes nothing but the
//! runtime directory.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::config::{self, Config, NetworkMode};
use crate::files::copy::Progress;
use crate::guest::channel::Limits;
use crate::guest::credentials::{FileRule, Source, Wanted};
use crate::guest::key::{self, KeyError};
use crate::guest::mounts::Mount;
use crate::guest::names::{GuestPath, Tag, UserName, VariableName};
use crate::guest::ssh_guest::{self, SettingsError, SshGuest};
use crate::host::clock::HostClock;
use crate::host::disk::{DiskSpec, Disks};
use crate::host::ground::HostGround;
use crate::host::hooks::{Complain, ShellHooks};
use crate::host::leftovers::HostLeftovers;
use crate::host::memory::{self, RamFiles};
use crate::host::network::{self, BadDomain, BadPort, Domain, HostNetwork, Mode, Port};
use crate::host::process::Daemons;
use crate::host::shares::{Share, ShareSettings, Virtiofs};
use crate::host::slots::{self, HostSlots};
use crate::host::spawn::{Invoker, SpawnError, StandIn};
use crate::simulator;
use crate::simulator::network::Loopback;
use crate::store::Snapshots;
use crate::vmm::cloud_hypervisor::{CloudHypervisor, VmmSettings};
use crate::workspace::{Workspace, WorkspaceError};
use crate::world::capability::{self, Capability};
use crate::world::{self, HookPoint, World};

/// A guest in software emulation takes half a minute until it answers.
const READY: Duration = Duration::from_secs(110);

/// The first user of an image, by the custom of every distribution.
const FIRST_USER: u32 = 1000;

/// Why a workspace's world cannot be put together. Nothing was begun.
#[derive(Debug, thiserror::Error)]
pub enum WiringError {
    /// No directory for sockets.
    #[error(transparent)]
    Workspace(#[from] WorkspaceError),
    /// The guest could reach our own sockets.
    #[error(
        "mounts.source {} contains {}, where nixbox has the VM's sockets: the guest must not reach them",
        source_path.display(), runtime.display()
    )]
    SharedRuntime {
        /// The mount's source.
        source_path: PathBuf,
        /// The directory for sockets.
        runtime: PathBuf,
    },
    /// Who runs nixbox is not known.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// The key that the guest lets in.
    #[error("the key to log in to the guest with, guest.ssh-key, cannot be used")]
    LoginKey(#[source] KeyError),
    /// The key that the guest is given.
    #[error("the workspace's own key cannot be used; `nixbox init` makes one where there is none")]
    OwnKey(#[source] KeyError),
    /// The simulator is this program itself.
    #[error("nixbox's own program, which the simulator is, cannot be found")]
    NoProgram(#[source] std::io::Error),
    /// A value that the configuration lets pass and a layer below does not.
    #[error("{key} cannot be used")]
    Value {
        /// In the configuration.
        key: &'static str,
        /// What is wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Values that do not go together.
    #[error("the configuration contradicts itself")]
    Settings(#[from] SettingsError),
}

type Result<T, E = WiringError> = std::result::Result<T, E>;

fn wrong<E: Into<Box<dyn std::error::Error + Send + Sync>>>(key: &'static str) -> impl Fn(E) -> WiringError {
    move |source| WiringError::Value { key, source: source.into() }
}

/// The private key that the workspace's guests are given.
#[must_use]
pub fn own_key(workspace: &Workspace) -> PathBuf {
    workspace.ssh().join("vm_key")
}

/// A world, and what commands need of it beyond its seams.
pub struct Wiring {
    /// The seams.
    pub world: World,
    /// The guest, for commands that are run in it.
    pub guest: Arc<SshGuest>,
    /// The VMM, for its log.
    pub vmm: Arc<CloudHypervisor>,
    /// The RAM.
    pub memory: Arc<RamFiles>,
    /// Where sockets, records and logs are.
    pub runtime: PathBuf,
    /// Whether no VM is a real one.
    pub simulated: bool,
}

/// The version that the configuration's simulator behaves like; `None` if the VMM is a real one.
#[must_use]
pub fn simulated(config: &Config) -> Option<&'static Capability> {
    match config.vmm {
        config::VmmChoice::CloudHypervisor => None,
        config::VmmChoice::Simulator(version) => Some(version.unwrap_or(capability::SIMULATED)),
    }
}

/// This program as a part of the simulator.
fn stand_in(words: &[&str]) -> Result<StandIn> {
    let path = std::env::current_exe().map_err(WiringError::NoProgram)?;
    Ok(StandIn { path, words: words.iter().map(|word| (*word).to_owned()).collect() })
}

/// Puts the world of a workspace together.
///
/// # Errors
/// If it cannot be, with what is wrong; nothing was begun.
pub fn assemble(
    workspace: &Workspace,
    config: &Config,
    progress: Arc<dyn Progress>,
    complain: Arc<Complain>,
) -> Result<Wiring> {
    let invoker = Invoker::detect()?;
    let runtime = workspace.runtime()?.path().to_owned();
    check_apart(config, &runtime)?;
    let version = simulated(config);
    let disk = Arc::new(disks(workspace, config, &progress));
    let memory = Arc::new(ram(workspace, config, &progress));
    let catalog = Arc::new(Snapshots { root: workspace.snapshots(), progress });
    let vmm_stand_in = version
        .map(|version| stand_in(&["simulator", "vmm", "--as-version", &version.to_string()]))
        .transpose()?;
    let share_stand_in = version.map(|_| stand_in(&["simulator", "share"])).transpose()?;
    let vmm = CloudHypervisor::new(VmmSettings {
        runtime: runtime.clone(),
        workspace: workspace.id(),
        invoker: invoker.clone(),
        vcpus: NonZeroU32::from(
            std::num::NonZeroU8::new(config.vm.vcpus).unwrap_or(std::num::NonZeroU8::MIN),
        ),
        memory: config.vm.memory.bytes(),
        kernel: config.vm.kernel.as_path().to_owned(),
        initramfs: config.vm.initramfs.as_ref().map(|path| path.as_path().to_owned()),
        cmdline: config.vm.cmdline.clone(),
        // Also without any way out: nixbox reaches the guest over it.
        network: true,
        shares: (0..config.mounts.len()).map(tag).collect(),
        disks: {
            let disk = Arc::clone(&disk);
            Arc::new(move |generation| Ok(disk.images(generation)?))
        },
        memory_file: {
            let memory = Arc::clone(&memory);
            Arc::new(move |generation| Ok(memory.file(generation)?))
        },
        snapshot: {
            let catalog = Arc::clone(&catalog);
            Arc::new(move |snapshot| Ok(catalog.directory(snapshot)?))
        },
    });
    let vmm = Arc::new(vmm.by(vmm_stand_in));
    let address = address(version, &runtime);
    let guest = Arc::new(guest(workspace, config, &disk, &vmm, address)?);
    let network: Arc<dyn world::Network> = match version {
        Some(_) => Arc::new(Loopback::new(runtime.clone())),
        None => Arc::new(HostNetwork::new(network::NetworkSettings {
            workspace: workspace.id(),
            owner: invoker.uid(),
            runtime: runtime.clone(),
            mode: mode(config)?,
            resolv_conf: "/etc/resolv.conf".into(),
        })),
    };
    let slots = slots_directory(version, &runtime);
    let world = World {
        vmm: vmm.clone(),
        slots: Arc::new(HostSlots::new(slots, workspace.id(), workspace.root())),
        network,
        shares: Arc::new(Virtiofs::new(shares(workspace, config, &runtime, invoker)).by(share_stand_in)),
        disk: disk.clone(),
        memory: memory.clone(),
        guest: guest.clone(),
        catalog,
        ground: Arc::new(HostGround::new(config)),
        leftovers: Arc::new(HostLeftovers {
            daemons: Daemons::new(runtime.clone(), workspace.id()),
            memory: memory.clone(),
            disk: disk.clone(),
        }),
        hooks: Arc::new(ShellHooks {
            directory: workspace.root().to_owned(),
            scripts: scripts(&config.hooks),
            complain,
        }),
        clock: Arc::new(HostClock),
    };
    Ok(Wiring { world, guest, vmm, memory, runtime, simulated: version.is_some() })
}

/// The command lines of each point.
fn scripts(hooks: &config::HooksTable) -> Vec<(HookPoint, Vec<String>)> {
    vec![
        (HookPoint::PreUp, hooks.pre_up.clone()),
        (HookPoint::PostUp, hooks.post_up.clone()),
        (HookPoint::PreDown, hooks.pre_down.clone()),
        (HookPoint::PostDown, hooks.post_down.clone()),
    ]
}

/// Where guests are to be reached.
fn address(version: Option<&'static Capability>, runtime: &Path) -> Arc<ssh_guest::Address> {
    let runtime = runtime.to_owned();
    match version {
        Some(_) => Arc::new(move |slot| simulator::network::address(&runtime, slot)),
        None => Arc::new(ssh_guest::address),
    }
}

/// Slots number TAPs, which are the host's, and root makes the directory. A simulated workspace has slots of its own.
fn slots_directory(version: Option<&'static Capability>, runtime: &Path) -> PathBuf {
    match version {
        Some(_) => runtime.join("slots"),
        None => slots::DIRECTORY.into(),
    }
}

/// A guest that could reach the VMM's socket could have any file of the host put into its VM.
fn check_apart(config: &Config, runtime: &Path) -> Result<()> {
    let runtime = std::fs::canonicalize(runtime).unwrap_or_else(|_| runtime.to_owned());
    for mount in &config.mounts {
        let source = mount.source.as_path();
        // One that is not there is found by those who look for it.
        let real = std::fs::canonicalize(source).unwrap_or_else(|_| source.to_owned());
        if runtime.starts_with(&real) {
            return Err(WiringError::SharedRuntime { source_path: source.to_owned(), runtime });
        }
    }
    Ok(())
}

fn disks(workspace: &Workspace, config: &Config, progress: &Arc<dyn Progress>) -> Disks {
    let spec = |disk: &config::DiskTable| DiskSpec {
        image: disk.image.as_ref().map(|path| path.as_path().to_owned()),
        size: disk.size.map(|size| size.bytes()),
    };
    Disks::new(
        workspace.run(),
        workspace.snapshots(),
        config.disks.iter().map(spec).collect(),
        Arc::clone(progress),
    )
}

fn ram(workspace: &Workspace, config: &Config, progress: &Arc<dyn Progress>) -> RamFiles {
    RamFiles {
        run: workspace.run(),
        snapshots: workspace.snapshots(),
        tmpfs: memory::tmpfs_directories(),
        workspace: workspace.id(),
        size: config.vm.memory.bytes(),
        backing: config.vm.backing,
        // A restore has verified every file of the snapshot just before.
        check: false,
        progress: Arc::clone(progress),
    }
}

fn mode(config: &Config) -> Result<Mode> {
    let network = &config.network;
    Ok(match network.mode {
        NetworkMode::Off => Mode::Off,
        NetworkMode::Open => Mode::Open,
        NetworkMode::Filtered => Mode::Filtered {
            domains: network
                .domains
                .iter()
                .map(|domain| Domain::try_from(domain.as_str()))
                .collect::<Result<_, BadDomain>>()
                .map_err(wrong("network.domains"))?,
            ports: network
                .ports
                .iter()
                .map(|port| Port::try_from(port.get()))
                .collect::<Result<_, BadPort>>()
                .map_err(wrong("network.ports"))?,
        },
    })
}

/// What the guest mounts a share by.
fn tag(index: usize) -> String {
    format!("share{index}")
}

fn shares(workspace: &Workspace, config: &Config, runtime: &Path, invoker: Invoker) -> ShareSettings {
    let in_guest = if config.guest.user.as_str() == "root" { 0 } else { FIRST_USER };
    ShareSettings {
        runtime: runtime.to_owned(),
        workspace: workspace.id(),
        invoker,
        guest: (in_guest, in_guest),
        shares: config
            .mounts
            .iter()
            .enumerate()
            .map(|(index, mount)| Share {
                tag: tag(index),
                source: mount.source.as_path().to_owned(),
                readonly: mount.readonly,
            })
            .collect(),
    }
}

fn guest(
    workspace: &Workspace,
    config: &Config,
    disk: &Arc<Disks>,
    vmm: &Arc<CloudHypervisor>,
    address: Arc<ssh_guest::Address>,
) -> Result<SshGuest> {
    let user = config.guest.user.as_str().to_owned();
    let mount = |(index, mount): (usize, &config::MountTable)| {
        Ok(Mount {
            tag: Tag::try_from(tag(index)).map_err(wrong("mounts"))?,
            target: path(&mount.target, "mounts.target")?,
            readonly: mount.readonly,
        })
    };
    let disk = Arc::clone(disk);
    let settings = ssh_guest::GuestSettings {
        user: UserName::try_from(user).map_err(wrong("guest.user"))?,
        key: Arc::new(key::load(config.guest.ssh_key.as_path()).map_err(WiringError::LoginKey)?),
        pin: Arc::new(move |generation| disk.host_key(generation)),
        address,
        wanted: wanted(workspace, config)?,
        mounts: config.mounts.iter().enumerate().map(mount).collect::<Result<_>>()?,
        ready: READY,
        limits: Limits::default(),
    };
    Ok(SshGuest::new(settings, vmm.clone())?)
}

fn path(path: &config::GuestPath, key: &'static str) -> Result<GuestPath> {
    GuestPath::try_from(path.to_string()).map_err(wrong(key))
}

fn wanted(workspace: &Workspace, config: &Config) -> Result<Wanted> {
    let variable = |(name, source): (&config::VariableName, &config::Source)| {
        Ok((variable_name(name)?, secret(source)?))
    };
    let file = |file: &config::CredentialFile| {
        Ok(FileRule {
            source: Source::File(file.source.as_path().to_owned()),
            target: path(&file.target, "credentials.files.target")?,
            owner: None,
        })
    };
    Ok(Wanted {
        environment: config.env.iter().map(variable).collect::<Result<_>>()?,
        files: config.credentials.files.iter().map(file).collect::<Result<_>>()?,
        key: Some(Arc::new(key::load(&own_key(workspace)).map_err(WiringError::OwnKey)?)),
        wipe: config
            .credentials
            .wipe
            .iter()
            .map(|entry| path(entry, "credentials.wipe"))
            .collect::<Result<_>>()?,
    })
}

fn variable_name(name: &config::VariableName) -> Result<VariableName> {
    VariableName::try_from(name.as_str().to_owned()).map_err(wrong("env"))
}

/// A source in the words of `guest`. It is not asked for its value before that is injected.
fn secret(source: &config::Source) -> Result<Source> {
    use secrecy::ExposeSecret as _;
    Ok(match source {
        config::Source::FromEnv(name) => Source::FromEnv(variable_name(name)?),
        config::Source::File(path) => Source::File(path.as_path().to_owned()),
        config::Source::Command(command) => Source::Command(
            std::iter::once(command.program()).chain(command.arguments()).map(str::to_owned).collect(),
        ),
        config::Source::Plain(text) => crate::guest::credentials::plain(text.expose_secret().to_owned()),
    })
}

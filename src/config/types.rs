//! The configuration as nixbox uses it: a struct of [`crate::world`] values for each table, and the selections of the
//! values that a VM is built from and that shape it.

use std::collections::{BTreeMap, BTreeSet};
use std::num::{NonZeroU8, NonZeroU32};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::world::{
    Backing, ByteSize, DiskSpec, GuestPath, GuestScriptPoint, HookPoint, HostPath, NetworkPolicy, OnLeak,
    PathInShare, ReadyTimeout, RetentionTime, SecretSource, UserIds, UserName, VariableName, VmmChoice,
    WorkspaceName,
};

/// The longest command line of a kernel: `COMMAND_LINE_SIZE` of x86 without the NUL.
pub(super) const LONGEST_CMDLINE: usize = 2047;

/// The facts about this host that decide defaults and limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFacts {
    /// The number of processors that this process may use.
    pub vcpus: u32,
    /// The host's RAM in bytes.
    pub memory: u64,
    /// The invoking user's home, if `HOME` names one.
    pub home: Option<PathBuf>,
}

impl HostFacts {
    /// Collects the facts about the machine that nixbox runs on.
    #[must_use]
    pub fn of_this_machine() -> Self {
        let info = rustix::system::sysinfo();
        Self {
            vcpus: std::thread::available_parallelism()
                .map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX)),
            // `totalram` is as wide as a pointer, so it needs a conversion.
            memory: (info.totalram as u64).saturating_mul(info.mem_unit.into()),
            home: std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute()),
        }
    }
}

/// A workspace's configuration with every default filled in.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Config {
    /// The workspace's name.
    pub name: WorkspaceName,
    /// The VMM.
    pub vmm: VmmChoice,
    /// The VM's processors, memory and boot.
    pub vm: VmTable,
    /// The disks, in the order in which the guest sees them.
    pub disks: Vec<DiskSpec>,
    /// The host's directories that the guest mounts. No two of them have the same target.
    pub mounts: Vec<MountTable>,
    /// What the guest may reach.
    pub network: NetworkPolicy,
    /// The system in the VM, and the scripts that run in it.
    pub guest: ConfiguredGuest,
    /// The environment variables of the guest.
    pub env: BTreeMap<VariableName, SecretSource>,
    /// Files with credentials.
    pub credentials: CredentialsTable,
    /// The user's own scripts.
    pub hooks: HooksTable,
    /// Which snapshots are kept.
    pub snapshot: SnapshotTable,
    /// The values above that are defaults and follow the host.
    #[serde(skip)]
    pub defaulted: Defaulted,
}

/// The values that `config.toml` does not have, and that are decided when a VM is started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Defaulted {
    /// `vm.vcpus`.
    pub vcpus: bool,
    /// `vm.memory`.
    pub memory: bool,
    /// Both `guest.uid` and `guest.gid`.
    pub user_ids: bool,
}

/// `[vm]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct VmTable {
    /// The number of virtual processors: 1 to 254.
    pub vcpus: NonZeroU8,
    /// The RAM: at most the host's, and a multiple of 2 MiB.
    pub memory: ByteSize,
    /// The kernel: a bzImage or a vmlinux.
    pub kernel: HostPath,
    /// The initramfs, if there is one.
    pub initramfs: Option<HostPath>,
    /// The kernel's command line.
    pub cmdline: String,
    /// Where the host keeps the RAM of the VM.
    pub backing: Backing,
}

/// One of `[[mounts]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct MountTable {
    /// The host's directory.
    pub source: HostPath,
    /// The path in the guest.
    pub target: GuestPath,
    /// Whether the guest may only read it.
    pub readonly: bool,
    /// The paths below the source that the guest may only read.
    pub protect: Vec<PathInShare>,
}

/// `[guest]`. A VM is built from its system, and its scripts are those of the configuration whenever they run.
#[derive(Debug, Clone, Serialize)]
pub struct ConfiguredGuest {
    /// The system in the VM.
    #[serde(flatten)]
    pub system: GuestTable,
    /// The scripts that run in it.
    pub scripts: GuestScriptsTable,
}

/// `[guest.scripts]`: command lines for a shell in the guest, run as its user.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct GuestScriptsTable {
    /// Run when a guest that was booted has its credentials and shares.
    pub after_up: Vec<String>,
    /// Run when a guest that was restored has its credentials and shares.
    pub after_restore: Vec<String>,
    /// Run before the wipe of a snapshot.
    pub before_snapshot: Vec<String>,
}

impl GuestScriptsTable {
    /// The scripts by the point at which they run.
    #[must_use]
    pub fn by_point(&self) -> BTreeMap<GuestScriptPoint, Vec<String>> {
        let Self { after_up, after_restore, before_snapshot } = self.clone();
        BTreeMap::from([
            (GuestScriptPoint::AfterUp, after_up),
            (GuestScriptPoint::AfterRestore, after_restore),
            (GuestScriptPoint::BeforeSnapshot, before_snapshot),
        ])
    }
}

/// The keys of `[guest]` that a VM is built from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct GuestTable {
    /// The user that nixbox logs in as.
    pub user: UserName,
    /// The number of that user, which an image gets that has no such user. An older built record does not say.
    #[serde(default = "first_user")]
    pub uid: u32,
    /// The number of the group of that user; without one it is the number of the user. An older built record does not say.
    #[serde(default)]
    pub gid: Option<u32>,
    /// The file with the private key that the image accepts.
    pub ssh_key: HostPath,
    /// Whether a guest that cannot be given fresh entropy after a restore is ended. An older built record does not say.
    #[serde(default = "entropy_is_required")]
    pub require_entropy: bool,
    /// How long the guest may take until it is SSH-ready. An older built record does not say.
    #[serde(default = "default_ready_timeout")]
    pub ready_timeout: ReadyTimeout,
}

impl GuestTable {
    /// The numbers of the user, to whom the files of shares belong in the guest.
    #[must_use]
    pub fn user_ids(&self) -> UserIds {
        match self.user.is_root() {
            true => UserIds { uid: 0, gid: 0 },
            false => UserIds { uid: self.uid, gid: self.gid.unwrap_or(self.uid) },
        }
    }
}

/// The number of the first user of most systems.
pub(super) fn first_user() -> u32 {
    1000
}

fn entropy_is_required() -> bool {
    true
}

fn default_ready_timeout() -> ReadyTimeout {
    ReadyTimeout::DEFAULT
}

/// `[credentials]`.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CredentialsTable {
    /// Files of the host that nixbox copies into the guest. No two of them have the same target.
    pub files: Vec<CredentialFile>,
    /// Files and directories of the guest that nixbox did not put there and removes before a snapshot.
    pub wipe: Vec<GuestPath>,
    /// Files of the guest that nixbox did not write and may overwrite with a credential.
    pub overwrite: Vec<GuestPath>,
    /// Whether the guest gets the workspace's own key, to log in elsewhere with.
    pub outbound_key: bool,
}

/// One of `credentials.files`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CredentialFile {
    /// The path on the host.
    pub source: HostPath,
    /// The path in the guest.
    pub target: GuestPath,
}

/// `[hooks]`: command lines for a shell on the host, run in the workspace.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct HooksTable {
    /// Run before `up` does anything.
    pub pre_up: Vec<String>,
    /// Run when the guest is ready.
    pub post_up: Vec<String>,
    /// Run before the guest is stopped.
    pub pre_down: Vec<String>,
    /// Run when `down` has removed everything that belonged to the VM.
    pub post_down: Vec<String>,
}

/// `[snapshot]`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct SnapshotTable {
    /// How many snapshots without a name are kept; all if the key is absent.
    pub keep: Option<NonZeroU32>,
    /// How long a snapshot without a name is kept; without a limit if the key is absent.
    pub keep_for: Option<RetentionTime>,
    /// What all snapshots together may occupy before those without a name are deleted; without a limit if the key is absent.
    pub keep_size: Option<ByteSize>,
    /// How many disks of earlier sessions are kept when a snapshot's disk takes their place.
    pub keep_disks: u32,
    /// What happens to a snapshot in which a credential was found.
    pub on_leak: OnLeak,
}

impl Default for SnapshotTable {
    fn default() -> Self {
        Self { keep: None, keep_for: None, keep_size: None, keep_disks: 1, on_leak: OnLeak::Redact }
    }
}

impl HooksTable {
    /// The scripts by the point at which they run.
    #[must_use]
    pub fn by_point(&self) -> BTreeMap<HookPoint, Vec<String>> {
        let Self { pre_up, post_up, pre_down, post_down } = self.clone();
        BTreeMap::from([
            (HookPoint::PreUp, pre_up),
            (HookPoint::PostUp, post_up),
            (HookPoint::PreDown, pre_down),
            (HookPoint::PostDown, post_down),
        ])
    }

    /// The same lists, to be changed.
    pub fn by_point_mut(&mut self) -> [(HookPoint, &mut Vec<String>); 4] {
        let Self { pre_up, post_up, pre_down, post_down } = self;
        [
            (HookPoint::PreUp, pre_up),
            (HookPoint::PostUp, post_up),
            (HookPoint::PreDown, pre_down),
            (HookPoint::PostDown, post_down),
        ]
    }
}

/// What a VM is built from: the values of the configuration that nixbox writes down when it builds a VM, and that
/// describe the VM for as long as it lives. A later edit of the configuration waits for the next VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct VmSpec {
    /// The VMM.
    pub vmm: VmmChoice,
    /// The VM's processors, memory and boot.
    pub vm: VmTable,
    /// The disks, in the order in which the guest sees them.
    pub disks: Vec<DiskSpec>,
    /// The shares, in the order of their tags.
    pub mounts: Vec<MountTable>,
    /// What the guest may reach.
    pub network: NetworkPolicy,
    /// The system in the VM.
    pub guest: GuestTable,
}

/// A value of the configuration that differs from what a VM was built from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PendingEdit {
    /// The key, as in `vm.memory`.
    pub key: String,
    /// The value that the VM was built from, as JSON; absent if the key was added since.
    pub built: Option<serde_json::Value>,
    /// The value of the configuration, as JSON; absent if the key was removed since.
    pub configured: Option<serde_json::Value>,
}

impl Config {
    /// The values that a VM is built from.
    ///
    /// The configuration is taken apart here without `..`, so that a new table does not compile until this function says
    /// whether a VM is built from it. The values that are bound to `_` are used as the configuration has them whenever a
    /// command needs them.
    #[must_use]
    pub fn vm_spec(&self) -> VmSpec {
        let Self {
            name: _,
            vmm,
            vm,
            disks,
            mounts,
            network,
            guest: ConfiguredGuest { system: guest, scripts: _ },
            env: _,
            credentials: _,
            hooks: _,
            snapshot: _,
            defaulted: _,
        } = self.clone();
        VmSpec { vmm, vm, disks, mounts, network, guest }
    }
}

impl VmSpec {
    /// The same after the directory `from`, which the workspace was, became the directory `to`.
    #[must_use]
    pub fn moved(mut self, from: &Path, to: &Path) -> Self {
        let Self { vmm: _, vm, disks, mounts, network: _, guest } = &mut self;
        let paths = std::iter::once(&mut vm.kernel)
            .chain(&mut vm.initramfs)
            .chain(disks.iter_mut().filter_map(|disk| disk.image.as_mut()))
            .chain(mounts.iter_mut().map(|mount| &mut mount.source))
            .chain(std::iter::once(&mut guest.ssh_key));
        paths.for_each(|path| path.follow(from, to));
        self
    }

    /// The values that shape a VM, by key. A snapshot can be restored only where these are the same. Paths below `root`,
    /// the directory of the workspace, are relative to it; with `/` as the root all paths are absolute.
    ///
    /// Each table is taken apart here without `..`, so that a new key does not compile until this function says whether
    /// it shapes a VM. A field that is bound to `_` does not shape the VM: the devices, the memory and the boot of the
    /// VM do not depend on the value.
    #[must_use]
    pub fn shape(&self, root: &Path) -> BTreeMap<String, String> {
        let Self { vmm: _, vm, disks, mounts, network: _, guest } = self;
        let VmTable { vcpus, memory, kernel, initramfs, cmdline, backing: _ } = vm;
        let GuestTable { user, uid: _, gid: _, ssh_key: _, require_entropy: _, ready_timeout: _ } = guest;
        let path = |path: &HostPath| match path.as_path().strip_prefix(root) {
            Ok(below) if below.as_os_str().is_empty() => ".".to_owned(),
            Ok(below) if root != Path::new("/") => format!("./{}", below.display()),
            _ => path.as_path().display().to_string(),
        };
        let mut shape = BTreeMap::from([
            ("vm.vcpus".to_owned(), vcpus.to_string()),
            ("vm.memory".to_owned(), memory.to_string()),
            ("vm.kernel".to_owned(), path(kernel)),
            ("vm.cmdline".to_owned(), cmdline.clone()),
            ("guest.user".to_owned(), user.to_string()),
        ]);
        shape.extend(initramfs.iter().map(|initramfs| ("vm.initramfs".to_owned(), path(initramfs))));
        for (n, DiskSpec { image, size }) in disks.iter().enumerate() {
            let image = image.as_ref().map_or_else(|| "empty".to_owned(), path);
            let size = size.map_or_else(|| "as it is".to_owned(), |size| size.to_string());
            shape.insert(format!("disks.{n}"), format!("{image}, {size}"));
        }
        for (n, MountTable { source, target, readonly, protect: _ }) in mounts.iter().enumerate() {
            let access = if *readonly { "read-only" } else { "read-write" };
            shape.insert(format!("mounts.{n}"), format!("{} at {target}, {access}", path(source)));
        }
        shape
    }

    /// The files that the shape names by path, by the same key.
    #[must_use]
    pub fn source_files(&self) -> Vec<(String, PathBuf)> {
        let disks = self.disks.iter().enumerate();
        let images = disks.filter_map(|(n, disk)| Some((format!("disks.{n}"), disk.image.as_ref()?)));
        std::iter::once(("vm.kernel".to_owned(), &self.vm.kernel))
            .chain(self.vm.initramfs.iter().map(|initramfs| ("vm.initramfs".to_owned(), initramfs)))
            .chain(images)
            .map(|(key, path)| (key, path.as_path().to_owned()))
            .collect()
    }

    /// The values of `today` that differ from this one, by key.
    #[must_use]
    pub fn pending_edits(&self, today: &Self) -> Vec<PendingEdit> {
        let (built, today) = (self.by_key(), today.by_key());
        let keys: BTreeSet<&String> = built.keys().chain(today.keys()).collect();
        keys.into_iter()
            .filter(|key| built.get(*key) != today.get(*key))
            .map(|key| PendingEdit {
                key: key.clone(),
                built: built.get(key).cloned(),
                configured: today.get(key).cloned(),
            })
            .collect()
    }

    /// Every value that has no parts of its own, by its key: `vm.memory`, `mounts.0.source`.
    fn by_key(&self) -> BTreeMap<String, serde_json::Value> {
        fn add(key: &str, value: &serde_json::Value, into: &mut BTreeMap<String, serde_json::Value>) {
            let parts: Vec<(String, &serde_json::Value)> = match value {
                serde_json::Value::Object(table) => {
                    table.iter().map(|(name, part)| (name.clone(), part)).collect()
                }
                serde_json::Value::Array(list) => {
                    list.iter().enumerate().map(|(index, part)| (index.to_string(), part)).collect()
                }
                serde_json::Value::Null => return,
                plain => {
                    into.insert(key.to_owned(), plain.clone());
                    return;
                }
            };
            for (name, part) in parts {
                let key = if key.is_empty() { name } else { format!("{key}.{name}") };
                add(&key, part, into);
            }
        }
        let mut by_key = BTreeMap::new();
        // All types here write themselves as JSON: a test does it.
        add("", &serde_json::to_value(self).unwrap_or_default(), &mut by_key);
        by_key
    }
}

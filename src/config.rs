//! `.nixbox/config.toml`: read strictly, checked, and resolved against this host.
//!
//! [`Config::parse`] is total: any text gives a [`Config`] or an error with its place. What a [`Config`] holds needs no
//! further check but for what may change at any time: whether files are there ([`Config::check_files`]). Secrets are
//! kept as where they come from ([`Source`]). Printing a [`Config`], by Debug or as JSON, prints none.

use std::collections::BTreeMap;
use std::num::{NonZeroU16, NonZeroU32};
use std::path::{Path, PathBuf};

use secrecy::SecretString;
use secrecy::zeroize::Zeroizing;
use serde::Serialize;

use crate::files::{FileError, Folder};

mod read;
mod secret;
mod tables;
mod value;

pub use read::Position;
pub use secret::{MASK, SecretCommand, Source};
pub use value::{
    Backing, ByteSize, Domain, GuestPath, HostPath, Name, NetworkMode, UserName, ValueError, VariableName,
    VmmChoice,
};

/// Its name in `.nixbox`.
pub const FILE: &str = "config.toml";
/// The most that is read, in bytes.
const LIMIT: u64 = 256 << 10;

/// Why a configuration is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is not there.
    #[error("there is no {}: `nixbox init` writes one", path.display())]
    Absent {
        /// Where it should be.
        path: PathBuf,
    },
    /// It is not text.
    #[error("{} is not UTF-8 text", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
    },
    /// Not TOML.
    #[error("{at}: {message}")]
    Syntax {
        /// Where.
        at: Position,
        /// What the parser says.
        message: String,
    },
    /// A key that means nothing.
    #[error("{at}: there is no key {key}{}", hint(*.nearest, known))]
    UnknownKey {
        /// Where.
        at: Position,
        /// With the tables it is in.
        key: String,
        /// The one that was meant, perhaps.
        nearest: Option<&'static str>,
        /// All that could stand there.
        known: &'static [&'static str],
    },
    /// A value of another type.
    #[error("{at}: {key} has to be of type {wanted}, and is of type {found}")]
    Type {
        /// Where.
        at: Position,
        /// The key.
        key: String,
        /// As written.
        found: &'static str,
        /// As it should be.
        wanted: &'static str,
    },
    /// A value of the right type that makes no sense.
    #[error("{at}: {key} is wrong")]
    Value {
        /// Where.
        at: Position,
        /// The key.
        key: String,
        /// What is wrong with it.
        #[source]
        source: ValueError,
    },
    /// A key that has to be there.
    #[error("{at}: {key} is missing")]
    Missing {
        /// Where its table begins.
        at: Position,
        /// The key.
        key: String,
    },
    /// Something that goes beyond one value.
    #[error("{at}: {key}: {problem}")]
    Conflict {
        /// Where.
        at: Position,
        /// The key.
        key: String,
        /// What does not go together.
        problem: String,
    },
    /// A file or directory that the configuration names is not there.
    #[error("{key} is {}, and there is no {wanted} there", path.display())]
    NotThere {
        /// The key.
        key: &'static str,
        /// What it names.
        path: PathBuf,
        /// What should be there.
        wanted: &'static str,
    },
}

fn hint(nearest: Option<&str>, known: &[&str]) -> String {
    match nearest {
        Some(nearest) => format!("; did you mean {nearest}?"),
        None => format!("; there are {}", known.join(", ")),
    }
}

type Result<T, E = ConfigError> = std::result::Result<T, E>;

/// What of this host decides defaults and limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFacts {
    /// Processors that this process may use.
    pub vcpus: u32,
    /// Bytes of RAM.
    pub memory: u64,
    /// The invoking user's home, if it is known.
    pub home: Option<PathBuf>,
}

impl HostFacts {
    /// Those of the machine that this runs on.
    #[must_use]
    pub fn of_this_machine() -> Self {
        let info = rustix::system::sysinfo();
        Self {
            vcpus: std::thread::available_parallelism()
                .map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX)),
            // `totalram` is as wide as a pointer, hence the conversion.
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
    pub name: Name,
    /// What runs the VM.
    pub vmm: VmmChoice,
    /// The machine.
    pub vm: VmTable,
    /// Its disks, in the order in which the guest sees them.
    pub disks: Vec<DiskTable>,
    /// The host's directories in the guest. No two have one target.
    pub mounts: Vec<MountTable>,
    /// What the guest may reach.
    pub network: NetworkTable,
    /// The system in the VM.
    pub guest: GuestTable,
    /// What its environment has.
    pub env: BTreeMap<VariableName, Source>,
    /// Files with credentials.
    pub credentials: CredentialsTable,
    /// The user's own scripts.
    pub hooks: HooksTable,
    /// What becomes of snapshots.
    pub snapshot: SnapshotTable,
}

/// `[vm]`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct VmTable {
    /// Virtual processors: 1 to 254.
    pub vcpus: u8,
    /// RAM: at most the host's, a multiple of 2 MiB.
    pub memory: ByteSize,
    /// bzImage or vmlinux.
    pub kernel: HostPath,
    /// The initramfs, if there is one.
    pub initramfs: Option<HostPath>,
    /// The kernel's command line.
    pub cmdline: String,
    /// Where its RAM is on the host.
    pub backing: Backing,
}

/// One of `[[disks]]`: at least one of the two is there.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct DiskTable {
    /// The template.
    pub image: Option<HostPath>,
    /// What it is grown to; a multiple of 4096 bytes.
    pub size: Option<ByteSize>,
}

/// One of `[[mounts]]`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct MountTable {
    /// The host's directory.
    pub source: HostPath,
    /// Where the guest has it.
    pub target: GuestPath,
    /// Whether the guest may only read it.
    pub readonly: bool,
}

/// `[network]`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct NetworkTable {
    /// How much may be reached.
    pub mode: NetworkMode,
    /// In filtered mode: these and what is below them. Sorted, none twice.
    pub domains: Vec<Domain>,
    /// In filtered mode: these ports of them. Sorted, none twice.
    pub ports: Vec<NonZeroU16>,
}

/// `[guest]`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct GuestTable {
    /// Who logs in.
    pub user: UserName,
    /// The private key that the image lets in.
    pub ssh_key: HostPath,
}

/// `[credentials]`.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CredentialsTable {
    /// Files of the host that are put into the guest. No two have one target.
    pub files: Vec<CredentialFile>,
    /// Removed before a snapshot though nixbox did not put them there.
    pub wipe: Vec<GuestPath>,
}

/// One of `credentials.files`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CredentialFile {
    /// On the host.
    pub source: HostPath,
    /// In the guest.
    pub target: GuestPath,
}

/// `[hooks]`: command lines for a shell on the host, run in the workspace.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct HooksTable {
    /// Before anything of `up`.
    pub pre_up: Vec<String>,
    /// When the guest is ready.
    pub post_up: Vec<String>,
    /// Before the guest is stopped.
    pub pre_down: Vec<String>,
    /// When everything is cleared away.
    pub post_down: Vec<String>,
}

/// `[snapshot]`.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct SnapshotTable {
    /// How many unnamed ones are kept; all of them if it is not said.
    pub keep: Option<NonZeroU32>,
}

impl Config {
    /// Reads that of the workspace at `root`, whose `.nixbox` is open.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(nixbox: &Folder, root: &Path, host: &HostFacts) -> Result<Self> {
        let path = nixbox.path_of(FILE);
        let bytes = nixbox.read(FILE, LIMIT)?.ok_or_else(|| ConfigError::Absent { path: path.clone() })?;
        // Values may be written down in it.
        let bytes = Zeroizing::new(bytes);
        let text = std::str::from_utf8(&bytes).map_err(|_| ConfigError::NotText { path: path.clone() })?;
        Self::parse(text, &path, root, host)
    }

    /// The configuration in a text, which is the content of the file `path` of the workspace at `root`.
    ///
    /// # Errors
    /// See [`ConfigError`]; the first by the order of the tables in the documentation.
    pub fn parse(text: &str, path: &Path, root: &Path, host: &HostFacts) -> Result<Self> {
        let text = read::SourceText { path, text };
        let tree = text.parse()?;
        tables::ConfigReader { root, host }.config(text, tree.get_ref())
    }

    /// What of it shapes a VM, by key: a snapshot is of use only where these are the same. What may differ: credentials,
    /// network rules, scripts, where RAM is kept, and the name.
    #[must_use]
    pub fn shape(&self) -> BTreeMap<String, String> {
        let path = |path: &HostPath| path.as_path().display().to_string();
        let mut shape = BTreeMap::from([
            ("vm.vcpus".to_owned(), self.vm.vcpus.to_string()),
            ("vm.memory".to_owned(), self.vm.memory.to_string()),
            ("vm.kernel".to_owned(), path(&self.vm.kernel)),
            ("vm.cmdline".to_owned(), self.vm.cmdline.clone()),
            ("guest.user".to_owned(), self.guest.user.to_string()),
        ]);
        shape.extend(self.vm.initramfs.iter().map(|initramfs| ("vm.initramfs".to_owned(), path(initramfs))));
        for (n, disk) in self.disks.iter().enumerate() {
            let image = disk.image.as_ref().map_or_else(|| "empty".to_owned(), path);
            let size = disk.size.map_or_else(|| "as it is".to_owned(), |size| size.to_string());
            shape.insert(format!("disks.{n}"), format!("{image}, {size}"));
        }
        for (n, mount) in self.mounts.iter().enumerate() {
            let access = if mount.readonly { "read-only" } else { "read-write" };
            let value = format!("{} at {}, {access}", path(&mount.source), mount.target);
            shape.insert(format!("mounts.{n}"), value);
        }
        shape
    }

    /// Makes sure that what the machine needs is there now: kernel, initramfs, templates, sources of mounts.
    ///
    /// # Errors
    /// [`ConfigError::NotThere`] for the first that is not.
    pub fn check_files(&self) -> Result<()> {
        let images = self.disks.iter().filter_map(|disk| disk.image.as_ref());
        let files = std::iter::once(("vm.kernel", &self.vm.kernel))
            .chain(self.vm.initramfs.iter().map(|path| ("vm.initramfs", path)))
            .chain(images.map(|path| ("disks.image", path)));
        for (key, path) in files {
            if !path.as_path().is_file() {
                return Err(ConfigError::NotThere {
                    key,
                    path: path.as_path().to_owned(),
                    wanted: "regular file",
                });
            }
        }
        match self.mounts.iter().find(|mount| !mount.source.as_path().is_dir()) {
            Some(mount) => {
                let path = mount.source.as_path().to_owned();
                Err(ConfigError::NotThere { key: "mounts.source", path, wanted: "directory" })
            }
            None => Ok(()),
        }
    }
}

fn plain(text: &str) -> Source {
    Source::Plain(SecretString::from(text))
}

#[cfg(test)]
mod tests;

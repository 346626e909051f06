//! `.nixbox/config.toml`: read strictly, and checked against this host.
//!
//! [`Config::parse`] is total: any text gives a [`Config`] or an error with its place. The parser makes values of
//! [`crate::world`] directly, so the values in a [`Config`] need no further check. The only exception is the existence
//! of files, which may change at any time ([`Config::check_files`]). A [`Config`] keeps the source of each secret.
//! Printing a [`Config`], by Debug or as JSON, prints no secret.

use std::path::Path;

use secrecy::zeroize::Zeroizing;

use crate::files::Folder;
use crate::world::zeroes_freed_memory;

mod actions;
pub(crate) mod decided;
mod error;
mod keys;
mod read;
mod tables;
mod types;
mod user;

pub use actions::{ActionHash, HostAction, ShownArguments};
pub use decided::{DecidedDefaults, DecidedUser};
use error::Result;
pub use error::{ConfigError, Position};
pub use types::{
    Config, ConfiguredGuest, CredentialFile, CredentialsTable, Defaulted, GuestScriptsTable, GuestTable,
    HooksTable, HostFacts, MountTable, PendingEdit, SnapshotTable, VmSpec, VmTable,
};
pub use user::{USER_DIRECTORY, UserConfig};
#[cfg(test)]
pub(crate) use {keys::all as all_keys, tests::keys_of};

/// The name of the file in `.nixbox`.
pub const FILE: &str = "config.toml";
/// The longest configuration file that is read, in bytes.
pub const LIMIT: u64 = 256 << 10;

impl Config {
    /// Reads the configuration of the workspace at `root`, whose directory `.nixbox` is open, and whose own keys are in the
    /// directory `keys`.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(nixbox: &Folder, root: &Path, keys: &Path, host: &HostFacts) -> Result<Self> {
        let path = nixbox.path_of(FILE);
        let bytes =
            nixbox.read_private(FILE, LIMIT)?.ok_or_else(|| ConfigError::Absent { path: path.clone() })?;
        // The text may contain secrets, so its memory is overwritten when this function returns.
        let bytes = Zeroizing::new(bytes);
        let text = std::str::from_utf8(&bytes).map_err(|_| ConfigError::NotText { path: path.clone() })?;
        Self::parse(text, &path, root, keys, host)
    }

    /// Parses a text, which is the content of the file `path` of the workspace at `root`, whose own keys are in `keys`.
    ///
    /// # Errors
    /// The first [`ConfigError`], in the order in which the tables are read.
    pub fn parse(text: &str, path: &Path, root: &Path, keys: &Path, host: &HostFacts) -> Result<Self> {
        let text = read::SourceText { path, text };
        let tree = text.parse()?;
        tables::ConfigReader { root, keys, host }.config(text, tree.get_ref())
    }

    /// Whether the guest is given anything that a snapshot must not hold.
    #[must_use]
    pub fn gives_credentials(&self) -> bool {
        let CredentialsTable { files, wipe: _, overwrite: _, outbound_key } = &self.credentials;
        !self.env.is_empty() || !files.is_empty() || *outbound_key
    }

    /// What it means for snapshots that the guest's kernel does not zero the memory that it frees; `None` if it does.
    #[must_use]
    pub fn unzeroed_memory(&self) -> Option<&'static str> {
        (!zeroes_freed_memory(&self.vm.cmdline)).then_some(
            "the guest's kernel keeps what programs have freed, so a snapshot may hold a credential in a form that the \
             search does not find: `init_on_free=1` in vm.cmdline zeroes it. It is not the default, because the kernel fills \
             all of vm.memory at boot then, which takes that much of the host's memory (measured: 1,024 MiB instead of 122 \
             MiB)",
        )
    }

    /// Checks that the files that the VM needs exist now: kernel, initramfs, templates, and sources of mounts.
    ///
    /// # Errors
    /// [`ConfigError::NotThere`] for the first file that is missing.
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

#[cfg(test)]
mod tests;

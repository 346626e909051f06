//! The host key of a guest's SSH server: pinned at the first login, and required at every later one.
//!
//! The file is an OpenSSH `known_hosts` with one line under the name [`ALIAS`], so that the system's `ssh` can check
//! the same key (`-o UserKnownHostsFile=FILE -o HostKeyAlias=nixbox -o StrictHostKeyChecking=yes`).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use russh::keys::{HashAlg, PublicKey};
use rustix::fs::{CWD, OFlags, RenameFlags};

/// The host name under which the key stands in the file.
pub const ALIAS: &str = "nixbox";

/// The most bytes that are read of a pin's file. No line with a public key is longer.
const LONGEST: u64 = 16 * 1024;

/// The file that holds the host key of one set of disks. Clones of a `Pin` share a lock, so that two connections that
/// see the key for the first time at once write it once.
#[derive(Debug, Clone)]
pub struct Pin {
    path: PathBuf,
    learning: Arc<Mutex<()>>,
}

/// Why a pin could not be read or written, or why a server's key does not match it.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum PinError {
    #[error("cannot read the pinned host key in {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot keep the guest's host key in {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("{path} is not a host key kept by nixbox: {why}. Remove it if the VM's disk is a new one")]
    Foreign { path: PathBuf, why: &'static str },
    #[error(
        "the guest shows the host key {shown}, but {path} holds {pinned}: something else answers at its address, or its \
         disk was replaced; if you replaced it, remove that file"
    )]
    Changed { path: PathBuf, shown: String, pinned: String },
}

impl Pin {
    /// The pin in the file `path`. The directory of the file must exist, and only the user may write to it.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path, learning: Arc::default() }
    }

    /// The path of the pin's file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The pinned key, if there is one.
    ///
    /// # Errors
    /// [`PinError::Read`], or [`PinError::Foreign`] for a symlink, a file of another user, a file that others may
    /// write, or text that is not exactly one key.
    pub fn load(&self) -> Result<Option<PublicKey>, PinError> {
        let foreign = |why| PinError::Foreign { path: self.path.clone(), why };
        let read = |source| PinError::Read { path: self.path.clone(), source };
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
        let mut file = match OpenOptions::new().read(true).custom_flags(flags.cast_signed()).open(&self.path)
        {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
                return Err(foreign("it is a symbolic link"));
            }
            Err(error) => return Err(read(error)),
        };
        let about = file.metadata().map_err(read)?;
        if !about.is_file() || about.len() > LONGEST {
            return Err(foreign("it is no small regular file"));
        }
        if about.uid() != rustix::process::geteuid().as_raw() || about.mode() & 0o022 != 0 {
            return Err(foreign("others own it or may write to it"));
        }
        let mut text = String::new();
        Read::by_ref(&mut file).take(LONGEST).read_to_string(&mut text).map_err(read)?;
        let line = text.strip_suffix('\n').filter(|line| !line.contains('\n'));
        let key = line.and_then(|line| line.strip_prefix(ALIAS)).and_then(|rest| rest.strip_prefix(' '));
        let key = key.and_then(|key| PublicKey::from_openssh(key).ok());
        key.map(Some).ok_or_else(|| foreign("its content is not one key"))
    }

    /// The line of the file, for a copy that ssh can read; `None` if no key is pinned.
    ///
    /// # Errors
    /// Those of [`Pin::load`].
    pub fn line(&self) -> Result<Option<String>, PinError> {
        Ok(self.load()?.and_then(|key| line_of(&key).ok()))
    }

    /// Compares the key that a server showed with the pinned key. If no key is pinned, pins the shown key.
    ///
    /// # Errors
    /// [`PinError::Changed`] if the shown key is not the pinned key; those of [`Pin::load`]; [`PinError::Write`].
    pub fn learn(&self, shown: &PublicKey) -> Result<(), PinError> {
        let _one_at_a_time = self.learning.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pinned) = self.load()? {
            return self.compare(&pinned, shown);
        }
        self.write(shown).map_err(|source| PinError::Write { path: self.path.clone(), source })
    }

    /// Pins the key of the disks that this pin's disks were cloned from.
    ///
    /// # Errors
    /// The errors of [`Pin::learn`].
    pub fn inherit(&self, from: &Self) -> Result<(), PinError> {
        match from.load()? {
            Some(key) => self.learn(&key),
            None => Ok(()),
        }
    }

    /// Removes the pin, because its disks are removed.
    ///
    /// # Errors
    /// [`PinError::Write`].
    pub fn remove(&self) -> Result<(), PinError> {
        match fs::remove_file(&self.path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(PinError::Write { path: self.path.clone(), source })
            }
            _ => Ok(()),
        }
    }

    /// Checks that `shown` and `pinned` are the same key. Their comments are ignored.
    pub(super) fn compare(&self, pinned: &PublicKey, shown: &PublicKey) -> Result<(), PinError> {
        if pinned.key_data() == shown.key_data() {
            return Ok(());
        }
        let print = |key: &PublicKey| key.fingerprint(HashAlg::Sha256).to_string();
        Err(PinError::Changed { path: self.path.clone(), shown: print(shown), pinned: print(pinned) })
    }

    /// Writes the pin atomically: to a file of another name, which is synced and then renamed without replacing an
    /// existing file.
    fn write(&self, key: &PublicKey) -> io::Result<()> {
        let line = line_of(key)?;
        let mut name = self.path.clone().into_os_string();
        name.push(".new");
        let new = PathBuf::from(name);
        let flags = OFlags::NOFOLLOW.bits().cast_signed();
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600).custom_flags(flags);
        let mut file = options.open(&new)?;
        file.write_all(line.as_bytes())?;
        file.sync_all()?;
        rustix::fs::renameat_with(CWD, &new, CWD, &self.path, RenameFlags::NOREPLACE)?;
        match self.path.parent() {
            Some(directory) => File::open(directory)?.sync_all(),
            None => Ok(()),
        }
    }
}

/// The line of a `known_hosts` for this key.
fn line_of(key: &PublicKey) -> io::Result<String> {
    let mut bare = key.clone();
    bare.set_comment("");
    let text = bare.to_openssh().map_err(io::Error::other)?;
    Ok(format!("{ALIAS} {}\n", text.trim_end()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::guest::key;

    fn fresh() -> PublicKey {
        key::generate().unwrap().public_key().clone()
    }

    #[test]
    fn the_first_key_is_pinned_and_others_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let pin = Pin::new(directory.path().join("host-key"));
        let (first, second) = (fresh(), fresh());
        assert!(pin.load().unwrap().is_none());
        pin.learn(&first).unwrap();
        pin.learn(&first).unwrap();
        assert_eq!(pin.load().unwrap().unwrap().key_data(), first.key_data());
        let text = pin.learn(&second).unwrap_err().to_string();
        for key in [&first, &second] {
            assert!(text.contains(&key.fingerprint(HashAlg::Sha256).to_string()), "{text}");
        }
        assert_eq!(fs::metadata(pin.path()).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);

        let clone = Pin::new(directory.path().join("clone"));
        clone.inherit(&pin).unwrap();
        assert!(matches!(clone.learn(&second), Err(PinError::Changed { .. })));
        pin.remove().unwrap();
        pin.remove().unwrap();
        pin.learn(&second).unwrap();
    }

    #[test]
    fn a_file_that_nixbox_did_not_write_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let pin = Pin::new(directory.path().join("host-key"));
        let line = format!("{ALIAS} {}\n", fresh().to_openssh().unwrap());
        for content in [
            "",
            "\n",
            "nixbox",
            "other ssh-ed25519 AAAA\n",
            &line[..line.len() - 1],
            &format!("{line}{line}"),
        ] {
            fs::write(pin.path(), content).unwrap();
            assert!(matches!(pin.load(), Err(PinError::Foreign { .. })), "{content:?}");
        }
        fs::write(pin.path(), &line).unwrap();
        assert!(pin.load().unwrap().is_some());
        fs::set_permissions(pin.path(), fs::Permissions::from_mode(0o666)).unwrap();
        assert!(matches!(pin.load(), Err(PinError::Foreign { .. })));
        fs::set_permissions(pin.path(), fs::Permissions::from_mode(0o600)).unwrap();
        fs::rename(pin.path(), directory.path().join("real")).unwrap();
        symlink(directory.path().join("real"), pin.path()).unwrap();
        assert!(matches!(pin.learn(&fresh()), Err(PinError::Foreign { .. })));
    }
}

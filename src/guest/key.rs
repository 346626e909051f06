//! SSH keys on the host: the key that nixbox logs in with, and the workspace's own key, which nixbox gives to the
//! guest's user.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use russh::keys::ssh_key::LineEnding;
use russh::keys::ssh_key::private::Ed25519Keypair;
use russh::keys::{self, PrivateKey, ssh_key};
use zeroize::Zeroizing;

use crate::files::FileError;
use crate::files::shared_paths::SharedPaths;

/// The most bytes that are read of a key file. No private key is longer.
const LONGEST: u64 = 64 * 1024;

/// Why a key cannot be made, written or read.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum KeyError {
    #[error("cannot get random bytes for a key")]
    Random(#[source] getrandom::Error),
    #[error("cannot write the key to {path}, which must not exist yet")]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot open the key in {path}")]
    Open { path: PathBuf, source: FileError },
    #[error("cannot read the key in {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("the key in {path} can be read by others, or is not yours: make it yours alone (chmod 600)")]
    Exposed { path: PathBuf },
    #[error("{path} holds no private key that can be used without a passphrase")]
    NotAKey { path: PathBuf, source: keys::Error },
    #[error("cannot encode the key")]
    Encode(#[source] ssh_key::Error),
}

/// Generates an ed25519 key.
///
/// # Errors
/// [`KeyError::Random`].
pub fn generate() -> Result<PrivateKey, KeyError> {
    let mut seed = Zeroizing::new([0_u8; Ed25519Keypair::BYTE_SIZE / 2]);
    getrandom::fill(seed.as_mut_slice()).map_err(KeyError::Random)?;
    let mut key = PrivateKey::from(Ed25519Keypair::from_seed(&seed));
    key.set_comment("nixbox");
    Ok(key)
}

/// The private key in OpenSSH's text format.
///
/// # Errors
/// [`KeyError::Encode`].
pub fn private_text(key: &PrivateKey) -> Result<Zeroizing<String>, KeyError> {
    key.to_openssh(LineEnding::LF).map_err(KeyError::Encode)
}

/// The public key as one line of `authorized_keys`.
///
/// # Errors
/// [`KeyError::Encode`].
pub fn public_text(key: &PrivateKey) -> Result<String, KeyError> {
    let mut line = key.public_key().to_openssh().map_err(KeyError::Encode)?;
    line.push('\n');
    Ok(line)
}

/// Writes the key to `path` (0600) and its public half to `path` with `.pub` added (0644). A file that exists is never
/// overwritten: the function fails instead.
///
/// # Errors
/// [`KeyError::Write`], [`KeyError::Encode`].
pub fn write(key: &PrivateKey, path: &Path) -> Result<(), KeyError> {
    let mut public = path.as_os_str().to_owned();
    public.push(".pub");
    create(path, 0o600, private_text(key)?.as_bytes())?;
    create(Path::new(&public), 0o644, public_text(key)?.as_bytes())
}

fn create(path: &Path, mode: u32, content: &[u8]) -> Result<(), KeyError> {
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(content)?;
        file.sync_all()
    };
    write().map_err(|source| KeyError::Write { path: path.to_owned(), source })
}

/// Reads a private key of any kind that OpenSSH writes, except RSA. The key must have no passphrase, and no other user
/// may be able to read the file.
///
/// # Errors
/// [`KeyError::Open`], [`KeyError::Read`], [`KeyError::Exposed`], [`KeyError::NotAKey`].
pub fn load(path: &Path, shared: &SharedPaths) -> Result<PrivateKey, KeyError> {
    let read = |source| KeyError::Read { path: path.to_owned(), source };
    let opened = shared.open_file(path);
    let file = opened.map_err(|source| KeyError::Open { path: path.to_owned(), source })?;
    let about = file.metadata().map_err(read)?;
    if about.len() > LONGEST {
        return Err(read(io::Error::new(io::ErrorKind::InvalidData, "it is too long for a key")));
    }
    if about.uid() != rustix::process::geteuid().as_raw() || about.mode() & 0o077 != 0 {
        return Err(KeyError::Exposed { path: path.to_owned() });
    }
    // The string has room for the whole file, because a string that grows leaves copies of its content behind.
    let mut text = Zeroizing::new(String::with_capacity(usize::try_from(LONGEST).unwrap_or(0)));
    take_all(file, &mut text).map_err(read)?;
    keys::decode_secret_key(&text, None).map_err(|source| KeyError::NotAKey { path: path.to_owned(), source })
}

fn take_all(file: File, text: &mut String) -> io::Result<()> {
    file.take(LONGEST).read_to_string(text).map(drop)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use super::*;
    use crate::testing::{Need, have};

    #[test]
    fn openssh_and_nixbox_read_each_others_keys() {
        if !have(&[Need::Program("ssh-keygen")]) {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let key = generate().unwrap();
        write(&key, &path).unwrap();
        let told = Command::new("ssh-keygen").arg("-y").arg("-f").arg(&path).output().unwrap();
        assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
        assert_eq!(String::from_utf8(told.stdout).unwrap(), public_text(&key).unwrap());
        assert_eq!(fs::read_to_string(directory.path().join("key.pub")).unwrap(), public_text(&key).unwrap());
        assert_eq!(load(&path, &SharedPaths::default()).unwrap().public_key(), key.public_key());

        let theirs = directory.path().join("theirs");
        let made =
            Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&theirs).status();
        assert!(made.unwrap().success());
        load(&theirs, &SharedPaths::default()).unwrap();
    }

    #[test]
    fn keys_differ_and_are_never_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let (first, second) = (generate().unwrap(), generate().unwrap());
        assert_ne!(first.public_key().key_data(), second.public_key().key_data());
        write(&first, &path).unwrap();
        assert!(matches!(write(&second, &path), Err(KeyError::Write { .. })));
        assert_eq!(load(&path, &SharedPaths::default()).unwrap().public_key(), first.public_key());
    }

    #[test]
    fn exposed_files_and_files_without_a_key_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        write(&generate().unwrap(), &path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(load(&path, &SharedPaths::default()), Err(KeyError::Exposed { .. })));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "no key").unwrap();
        assert!(matches!(load(&path, &SharedPaths::default()), Err(KeyError::NotAKey { .. })));
        assert!(matches!(load(directory.path(), &SharedPaths::default()), Err(KeyError::Open { .. })));
    }
}

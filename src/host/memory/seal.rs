//! Encrypts a file under a key that lies in the kernel alone.
//!
//! The key is random, new for each file, and never written to a disk. It is linked into the user's keyring, which the
//! kernel keeps for as long as the user has a process: the VMM of the VM is one. So the key outlives the nixbox that made
//! it, the session in which that nixbox ran, and no reboot.

use linux_keyutils::{KeyError, KeyPermissionsBuilder, KeyRing, KeyRingIdentifier, Permission};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use zeroize::Zeroizing;

/// The size of a key of ChaCha20-Poly1305.
const KEY: usize = 32;
/// What encryption adds to the size of a file.
pub(super) const OVERHEAD: usize = 16;

/// Why a file could not be encrypted or decrypted. No message contains any of its content.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    #[error(
        "the kernel's keyring cannot be used ({0}), which a backup on disk is encrypted with: containers often forbid it; RAM on \
         tmpfs (vm.backing) needs no encryption"
    )]
    Keyring(KeyError),
    #[error(
        "the key of the backup is no longer in the kernel's keyring of this user, so what is in the backup is lost: remove the \
         backup to go on without it"
    )]
    NoKey,
    #[error("there are no random bytes for a key")]
    Random(#[source] getrandom::Error),
    #[error(
        "the backup was changed since it was written, or is not of this VM: remove it to go on without it"
    )]
    Forged,
}

/// The file's key is used for one message, so that its nonce need not differ from any other.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

fn cipher(key: &[u8]) -> Result<LessSafeKey, SealError> {
    UnboundKey::new(&CHACHA20_POLY1305, key).map(LessSafeKey::new).map_err(|_| SealError::Forged)
}

/// Encrypts `content`, and keeps the key under that name in place of one that has the name.
pub(super) fn seal(name: &str, content: &[u8]) -> Result<Vec<u8>, SealError> {
    let mut key = Zeroizing::new([0; KEY]);
    getrandom::fill(&mut *key).map_err(SealError::Random)?;
    let mut sealed = Vec::with_capacity(content.len() + OVERHEAD);
    sealed.extend_from_slice(content);
    cipher(&*key)?
        .seal_in_place_append_tag(nonce(), Aad::from(name.as_bytes()), &mut sealed)
        .map_err(|_| SealError::Forged)?;
    keep(name, &*key).map_err(SealError::Keyring)?;
    Ok(sealed)
}

/// Decrypts what [`seal`] has encrypted under that name.
pub(super) fn open(name: &str, mut sealed: Zeroizing<Vec<u8>>) -> Result<Zeroizing<Vec<u8>>, SealError> {
    let key = find(name)?;
    let opened = cipher(&*key)?.open_in_place(nonce(), Aad::from(name.as_bytes()), &mut sealed);
    let length = opened.map_err(|_| SealError::Forged)?.len();
    sealed.truncate(length);
    Ok(sealed)
}

/// Links a key into the user's keyring. A process possesses its own keyring and need not possess the user's, so that the
/// permissions of the key are set while the key is in the former.
fn keep(name: &str, key: &[u8]) -> Result<(), KeyError> {
    let own = KeyRing::from_special_id(KeyRingIdentifier::Thread, true)?;
    let of_user = KeyRing::from_special_id(KeyRingIdentifier::User, true)?;
    let key = own.add_key(name, key)?;
    let permissions =
        KeyPermissionsBuilder::builder().posessor(Permission::ALL).user(Permission::ALL).build();
    let linked = key.set_perms(permissions).and_then(|()| of_user.link_key(key));
    own.unlink_key(key)?;
    linked
}

fn find(name: &str) -> Result<Zeroizing<[u8; KEY]>, SealError> {
    let of_user = KeyRing::from_special_id(KeyRingIdentifier::User, true).map_err(SealError::Keyring)?;
    let key = of_user.search(name).map_err(missing)?;
    let mut bytes = Zeroizing::new([0; KEY]);
    match key.read(&mut *bytes).map_err(missing)? {
        KEY => Ok(bytes),
        _ => Err(SealError::NoKey),
    }
}

fn missing(error: KeyError) -> SealError {
    match error {
        KeyError::KeyDoesNotExist | KeyError::KeyExpired | KeyError::KeyRevoked => SealError::NoKey,
        error => SealError::Keyring(error),
    }
}

/// Whether a key can be kept and found.
pub(super) fn examine(name: &str) -> Result<(), SealError> {
    let name = format!("{name} (test)");
    let sealed = seal(&name, b"test")?;
    let opened = open(&name, Zeroizing::new(sealed));
    forget(&name)?;
    opened.map(drop)
}

/// Removes the key of that name, if there is one.
pub(super) fn forget(name: &str) -> Result<(), SealError> {
    let of_user = KeyRing::from_special_id(KeyRingIdentifier::User, true).map_err(SealError::Keyring)?;
    match of_user.search(name).map_err(missing) {
        Ok(key) => of_user.unlink_key(key).map_err(SealError::Keyring),
        Err(SealError::NoKey) => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The name of a key that no other test has.
    fn name(test: &str) -> String {
        format!("nixbox test {} {test}", std::process::id())
    }

    fn there_is_a_keyring() -> bool {
        let there = examine(&name("keyring")).is_ok();
        if !there {
            println!("skipped, for want of the kernel's keyring");
        }
        there
    }

    #[test]
    fn what_was_sealed_is_opened_by_another_thread_and_never_in_the_clear() {
        if !there_is_a_keyring() {
            return;
        }
        let name = name("opened");
        let sealed = seal(&name, b"cat ~/plans").unwrap();
        assert!(!sealed.windows(5).any(|window| window == b"plans"));
        let (of_thread, copy) = (name.clone(), sealed.clone());
        let opened = std::thread::spawn(move || open(&of_thread, Zeroizing::new(copy)).unwrap());
        assert_eq!(opened.join().unwrap().as_slice(), b"cat ~/plans");
        let mut changed = sealed.clone();
        changed[3] ^= 1;
        assert!(matches!(open(&name, Zeroizing::new(changed)), Err(SealError::Forged)));
        forget(&name).unwrap();
        assert!(matches!(open(&name, Zeroizing::new(sealed)), Err(SealError::NoKey)));
        forget(&name).unwrap();
    }

    #[test]
    fn a_second_key_takes_the_place_of_the_first() {
        if !there_is_a_keyring() {
            return;
        }
        let name = name("second");
        let first = seal(&name, b"first").unwrap();
        let second = seal(&name, b"second").unwrap();
        assert!(matches!(open(&name, Zeroizing::new(first)), Err(SealError::Forged)));
        assert_eq!(open(&name, Zeroizing::new(second)).unwrap().as_slice(), b"second");
        forget(&name).unwrap();
    }
}

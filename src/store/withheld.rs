//! The VM whose guest is given no credentials: `withheld-credentials.json` in the state of a workspace.
//!
//! `nixbox credentials wipe` writes the file before it takes the credentials from the guest. Every later operation that gives
//! a guest its credentials reads the file, and gives none. So a nixbox that is killed in between leaves nothing that gives the
//! guest its credentials back, and the next operation takes what is left.
//!
//! The file names the VM by the generation of its RAM, which a VM keeps as long as it lives. A file that an earlier VM has
//! left means nothing to the next VM.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::files::{FileError, Folder};
use crate::world::Generation;

const FILE: &str = "withheld-credentials.json";
/// The format that this nixbox writes and reads.
const FORMAT: u32 = 1;
/// More than the file ever has.
const LIMIT: u64 = 4 << 10;

/// Why it is not known whether a guest is given its credentials.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum WithheldError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(
        "{}, which says whether the guest gets its credentials, cannot be read: remove the file if the guest is to have them",
        path.display()
    )]
    Unreadable { path: PathBuf, source: serde_json::Error },
    #[error("{} has format {found} and this nixbox reads format {FORMAT}: a newer nixbox wrote it", path.display())]
    Newer { path: PathBuf, found: u32 },
}

#[derive(Serialize, Deserialize)]
struct WithheldFile {
    format: u32,
    /// The generation of the RAM of the VM.
    generation: Generation,
}

/// Whether the guest of the VM with this RAM is given no credentials.
///
/// # Errors
/// If the file cannot be read, or nixbox did not write it.
pub fn is_withheld(state: &Folder, vm: Generation) -> Result<bool, WithheldError> {
    let Some(bytes) = state.read(FILE, LIMIT)? else {
        return Ok(false);
    };
    let path = || state.path_of(FILE);
    let file: WithheldFile = serde_json::from_slice(&bytes)
        .map_err(|source| WithheldError::Unreadable { path: path(), source })?;
    if file.format != FORMAT {
        return Err(WithheldError::Newer { path: path(), found: file.format });
    }
    Ok(file.generation == vm)
}

/// From now on the guest of the VM with this RAM is given no credentials. The file is on the medium when this returns.
///
/// # Errors
/// If the file cannot be written.
pub fn withhold(state: &Folder, vm: Generation) -> Result<(), WithheldError> {
    let file = WithheldFile { format: FORMAT, generation: vm };
    let text = serde_json::to_vec(&file)
        .map_err(|source| WithheldError::Unreadable { path: state.path_of(FILE), source })?;
    Ok(state.replace(FILE, &text)?)
}

/// From now on the guest of every VM is given its credentials.
///
/// # Errors
/// If the file cannot be removed.
pub fn no_longer(state: &Folder) -> Result<(), WithheldError> {
    state.remove_file(FILE)?;
    Ok(state.sync()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_vm_is_without_credentials_until_it_is_given_them() {
        let directory = tempfile::tempdir().unwrap();
        let state = Folder::open(directory.path()).unwrap();
        let withheld = |vm| is_withheld(&state, Generation(vm)).unwrap();
        assert!(!withheld(3));
        no_longer(&state).unwrap();
        withhold(&state, Generation(3)).unwrap();
        assert!(withheld(3) && !withheld(4));
        withhold(&state, Generation(4)).unwrap();
        assert!(!withheld(3) && withheld(4));
        no_longer(&state).unwrap();
        assert!(!withheld(4));
        assert!(state.names().unwrap().is_empty());
    }

    #[test]
    fn a_file_that_nixbox_did_not_write_is_an_error_and_stays() {
        let directory = tempfile::tempdir().unwrap();
        let state = Folder::open(directory.path()).unwrap();
        for bad in [
            "",
            "[]",
            "{\"format\": 1}",
            "{\"format\": 2, \"generation\": 3}",
            "{\"format\": 1, \"generation\": -1}",
        ] {
            std::fs::write(directory.path().join(FILE), bad).unwrap();
            assert!(is_withheld(&state, Generation(3)).is_err(), "{bad}");
            assert_eq!(std::fs::read_to_string(directory.path().join(FILE)).unwrap(), bad);
        }
        std::fs::remove_file(directory.path().join(FILE)).unwrap();
        std::os::unix::fs::symlink("/dev/null", directory.path().join(FILE)).unwrap();
        assert!(is_withheld(&state, Generation(3)).is_err());
    }
}

//! What a person has confirmed that the configuration of a workspace does on the host.
//!
//! `nixbox init` knows where a configuration comes from: it wrote the file, or the file was there before.
//!
//! | the configuration | its actions on the host |
//! |---|---|
//! | was written by `nixbox init`, in the `.nixbox` that is there now, and may have been edited by its owner since | need no confirmation |
//! | was there before `nixbox init`, as in a cloned repository | are confirmed by a person, each by its content |
//! | is in another `.nixbox` than the last command saw, or in one that a guest could reach | as before, except for what an earlier command did |
//!
//! So an action counts as confirmed if it was in the list that a person confirmed last, or that the last command obeyed.
//! If a list has changed, only the new actions are asked about.
//!
//! A file that a guest can write and a command of the host uses ([`super::guest_writable`]) is confirmed in all three.
//!
//! The confirmations lie in the state directory of the user, which no guest and no repository can write. They are bound to
//! the inode of `.nixbox`, because a directory that was made anew has other content. May use `config` and `files`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use secrecy::zeroize::Zeroizing;
use serde::{Deserialize, Serialize};

use crate::config::{self, ActionHash, HostAction};
use crate::files::{DirectoryIdentity, FileError, Folder};

use super::Workspace;

/// The format that this nixbox writes, and the only one that it reads.
const FORMAT: u32 = 1;
/// More than the confirmations of the largest configuration take.
const LIMIT: u64 = 4 << 20;

/// Why it is not known what was confirmed.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum ConfirmationError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{} is not what nixbox wrote; if it is removed, the next command asks again", path.display())]
    Unreadable { path: PathBuf, source: serde_json::Error },
    #[error("{} is of format {found}, which a newer nixbox wrote; this nixbox reads format {FORMAT}", path.display())]
    Newer { path: PathBuf, found: u32 },
    #[error("the confirmations cannot be written")]
    Unwritable(#[source] serde_json::Error),
}

/// Where the text of a configuration comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConfigOrigin {
    /// `nixbox init` wrote it on this host, and its owner may have edited it.
    WrittenHere,
    /// It may have been written by anybody.
    Foreign,
}

/// What was confirmed of the configuration of one workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confirmations {
    origin: ConfigOrigin,
    identity: DirectoryIdentity,
    confirmed: BTreeSet<ActionHash>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfirmationsText {
    format: u32,
    origin: ConfigOrigin,
    identity: DirectoryIdentity,
    confirmed: BTreeSet<String>,
}

/// The one key that is read before the text is known to have this nixbox's format.
#[derive(Deserialize)]
struct ConfirmationsHead {
    format: u32,
}

fn file_name(workspace: &Workspace) -> String {
    format!("{}.confirmed.json", workspace.id())
}

impl Confirmations {
    /// Those of a configuration of this origin of which nothing was confirmed yet.
    ///
    /// # Errors
    /// If the directory `.nixbox` cannot be examined.
    pub fn none(origin: ConfigOrigin, workspace: &Workspace) -> Result<Self, ConfirmationError> {
        Ok(Self { origin, identity: workspace.nixbox().identity()?, confirmed: BTreeSet::new() })
    }

    /// Reads the confirmations of a workspace from its `state` directory. If there are none, or they are about another
    /// `.nixbox`, the origin is foreign.
    ///
    /// # Errors
    /// [`ConfirmationError`].
    pub fn load(state: &Folder, workspace: &Workspace) -> Result<Self, ConfirmationError> {
        let mut fresh = Self::none(ConfigOrigin::Foreign, workspace)?;
        let name = file_name(workspace);
        let Some(bytes) = state.read_private(&name, LIMIT)? else {
            return Ok(fresh);
        };
        let path = state.path_of(&name);
        let unreadable = |source| ConfirmationError::Unreadable { path: path.clone(), source };
        let ConfirmationsHead { format } = serde_json::from_slice(&bytes).map_err(unreadable)?;
        if format != FORMAT {
            return Err(ConfirmationError::Newer { path, found: format });
        }
        let text: ConfirmationsText = serde_json::from_slice(&bytes).map_err(unreadable)?;
        fresh.confirmed = text.confirmed.iter().filter_map(|digits| ActionHash::from_hex(digits)).collect();
        if text.identity.is_same_inode(&fresh.identity) {
            fresh.origin = text.origin;
        }
        Ok(fresh)
    }

    /// Writes the confirmations into the `state` directory of the workspace. They are on the medium when this returns.
    ///
    /// # Errors
    /// [`ConfirmationError`]. Then the earlier ones are still there.
    pub fn save(&self, state: &Folder, workspace: &Workspace) -> Result<(), ConfirmationError> {
        let text = ConfirmationsText {
            format: FORMAT,
            origin: self.origin,
            identity: self.identity,
            confirmed: self.confirmed.iter().map(|hash| hash.to_hex()).collect(),
        };
        let text = serde_json::to_vec(&text).map_err(ConfirmationError::Unwritable)?;
        Ok(state.replace(file_name(workspace), &text)?)
    }

    /// Where the configuration comes from.
    #[must_use]
    pub fn origin(&self) -> ConfigOrigin {
        self.origin
    }

    /// The same list for a copy of the workspace with an id of its own. Its configuration was written here if it is the
    /// text of the original, which was.
    ///
    /// # Errors
    /// If a directory or a configuration cannot be read.
    pub fn of_copy(&self, original: &Workspace, copy: &Workspace) -> Result<Self, ConfirmationError> {
        let text = |workspace: &Workspace| {
            let read = workspace.nixbox().read_private(config::FILE, config::LIMIT);
            read.map(|bytes| bytes.map(Zeroizing::new))
        };
        let (there, here) = (text(original)?, text(copy)?);
        let same = there.is_some() && there == here;
        let origin = if same { self.origin } else { ConfigOrigin::Foreign };
        Ok(Self { confirmed: self.confirmed.clone(), ..Self::none(origin, copy)? })
    }

    /// Says that somebody else may have written the configuration since the last command.
    pub fn distrust(&mut self) {
        self.origin = ConfigOrigin::Foreign;
    }

    /// Whether nixbox may do this.
    #[must_use]
    pub fn allow(&self, action: &HostAction) -> bool {
        let written_here = self.origin == ConfigOrigin::WrittenHere && !action.is_guests();
        written_here || self.confirmed.contains(&action.hash())
    }

    /// Confirms these actions, and no others.
    pub fn confirm(&mut self, actions: &[HostAction]) {
        self.confirmed = actions.iter().map(HostAction::hash).collect();
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::workspace::{DIRECTORY, init};

    fn actions(purposes: &[&str]) -> Vec<HostAction> {
        let read = |purpose: &&str| HostAction::ReadFile {
            purpose: (*purpose).to_owned(),
            path: Path::new("/f").to_owned(),
        };
        purposes.iter().map(read).collect()
    }

    fn allowed(confirmations: &Confirmations, purposes: &[&str]) -> Vec<bool> {
        actions(purposes).iter().map(|action| confirmations.allow(action)).collect()
    }

    #[test]
    fn only_the_actions_that_were_confirmed_last_are_allowed_of_foreign_content() {
        let directory = tempfile::tempdir().unwrap();
        let state = Folder::open(directory.path()).unwrap();
        let (workspace, _) = init(directory.path()).unwrap();
        let mut confirmations = Confirmations::load(&state, &workspace).unwrap();
        assert_eq!(confirmations.origin(), ConfigOrigin::Foreign, "nothing is known");
        assert_eq!(allowed(&confirmations, &["a"]), [false]);
        confirmations.confirm(&actions(&["a", "b"]));
        confirmations.save(&state, &workspace).unwrap();
        let mut confirmations = Confirmations::load(&state, &workspace).unwrap();
        assert_eq!(allowed(&confirmations, &["b", "c", "a"]), [true, false, true]);
        confirmations.confirm(&actions(&["c"]));
        assert_eq!(allowed(&confirmations, &["b", "c", "a"]), [false, true, false]);
    }

    #[test]
    fn what_was_written_here_is_foreign_once_its_directory_was_made_anew() {
        let directory = tempfile::tempdir().unwrap();
        let state = tempfile::tempdir().unwrap();
        let state = Folder::open(state.path()).unwrap();
        let (workspace, _) = init(directory.path()).unwrap();
        let mut confirmations = Confirmations::none(ConfigOrigin::WrittenHere, &workspace).unwrap();
        confirmations.confirm(&actions(&["a"]));
        confirmations.save(&state, &workspace).unwrap();
        assert_eq!(allowed(&Confirmations::load(&state, &workspace).unwrap(), &["a", "b"]), [true, true]);
        let nixbox = directory.path().join(DIRECTORY);
        std::fs::rename(&nixbox, directory.path().join("aside")).unwrap();
        let mut copy = std::process::Command::new("cp");
        assert!(copy.arg("-a").arg(directory.path().join("aside")).arg(&nixbox).status().unwrap().success());
        let workspace = Workspace::find(directory.path()).unwrap();
        let confirmations = Confirmations::load(&state, &workspace).unwrap();
        assert_eq!(confirmations.origin(), ConfigOrigin::Foreign);
        assert_eq!(allowed(&confirmations, &["a", "b"]), [true, false]);
    }

    #[test]
    fn confirmations_that_nixbox_did_not_write_are_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let state = Folder::open(directory.path()).unwrap();
        let (workspace, _) = init(directory.path()).unwrap();
        let path = directory.path().join(file_name(&workspace));
        for (text, expected) in [
            ("", "is not what nixbox wrote"),
            ("{\"format\":1,\"origin\":\"elsewhere\"}", "is not what nixbox wrote"),
            ("{\"format\":2,\"more\":1}", "is of format 2"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = Confirmations::load(&state, &workspace).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
        let error = Confirmations::load(&state, &workspace).unwrap_err();
        assert!(matches!(error, ConfirmationError::File(FileError::Writable { .. })), "{error}");
    }
}

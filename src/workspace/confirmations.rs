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
//! The confirmations lie in the state of the workspace, which no guest and no repository can write. They are bound to
//! the inode of `.nixbox`, because a directory that was made anew has other content. May use `config` and `files`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use secrecy::zeroize::Zeroizing;
use serde::{Deserialize, Serialize};

use crate::config::{self, ActionHash, HostAction};
use crate::files::{DirectoryIdentity, FileError, Folder};

use super::{DirectoryGone, Workspace};

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
    #[error(transparent)]
    DirectoryGone(#[from] DirectoryGone),
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

const FILE: &str = "confirmed.json";

/// The `.nixbox` of a workspace, if the confirmations are still there although the state was moved out of it.
fn former(workspace: &Workspace) -> Result<Option<&Folder>, ConfirmationError> {
    let nixbox = workspace.nixbox()?;
    let left = workspace.state_is_apart() && nixbox.examine(FILE)?.is_some();
    Ok(left.then_some(nixbox))
}

impl Confirmations {
    /// Those of a configuration of this origin of which nothing was confirmed yet.
    ///
    /// # Errors
    /// If the directory `.nixbox` cannot be examined.
    pub fn none(origin: ConfigOrigin, workspace: &Workspace) -> Result<Self, ConfirmationError> {
        Ok(Self { origin, identity: workspace.nixbox()?.identity()?, confirmed: BTreeSet::new() })
    }

    /// Reads the confirmations of a workspace from its state. If there are none, or they are about another `.nixbox`, the
    /// origin is foreign.
    ///
    /// # Errors
    /// [`ConfirmationError`].
    pub fn load(workspace: &Workspace) -> Result<Self, ConfirmationError> {
        let state = workspace.state();
        let mut fresh = Self::none(ConfigOrigin::Foreign, workspace)?;
        let (state, bytes) = match state.read_private(FILE, LIMIT)? {
            Some(bytes) => (state, bytes),
            None => match former(workspace)? {
                Some(nixbox) => (nixbox, nixbox.read_private(FILE, LIMIT)?.unwrap_or_default()),
                None => return Ok(fresh),
            },
        };
        let path = state.path_of(FILE);
        let unreadable = |source| ConfirmationError::Unreadable { path: path.clone(), source };
        let ConfirmationsHead { format } = serde_json::from_slice(&bytes).map_err(unreadable)?;
        if format != FORMAT {
            return Err(ConfirmationError::Newer { path, found: format });
        }
        let text: ConfirmationsText = serde_json::from_slice(&bytes).map_err(unreadable)?;
        let same = text.identity.is_same_inode(&fresh.identity);
        if same {
            fresh.origin = text.origin;
        }
        // What lies in `.nixbox` may have come with it. But nobody knows beforehand which inode that will be.
        if same || state.path() != workspace.nixbox()?.path() {
            let confirmed = text.confirmed.iter().filter_map(|digits| ActionHash::from_hex(digits));
            fresh.confirmed = confirmed.collect();
        }
        Ok(fresh)
    }

    /// Writes the confirmations into the state of the workspace. They are on the medium when this returns.
    ///
    /// # Errors
    /// [`ConfirmationError`]. Then the earlier ones are still there.
    pub fn save(&self, workspace: &Workspace) -> Result<(), ConfirmationError> {
        let text = ConfirmationsText {
            format: FORMAT,
            origin: self.origin,
            identity: self.identity,
            confirmed: self.confirmed.iter().map(|hash| hash.to_hex()).collect(),
        };
        let text = serde_json::to_vec(&text).map_err(ConfirmationError::Unwritable)?;
        workspace.state().replace(FILE, &text)?;
        if let Some(nixbox) = former(workspace)? {
            nixbox.remove_file(FILE)?;
        }
        Ok(())
    }

    /// Whether they are still in `.nixbox`, out of which the rest of the state was moved.
    ///
    /// # Errors
    /// If the directory cannot be examined.
    pub fn are_left_behind(workspace: &Workspace) -> Result<bool, ConfirmationError> {
        Ok(former(workspace)?.is_some())
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
            let read = workspace.nixbox()?.read_private(config::FILE, config::LIMIT);
            read.map(|bytes| bytes.map(Zeroizing::new)).map_err(ConfirmationError::from)
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
    use crate::workspace::places::StatePlaces;
    use crate::workspace::{DIRECTORY, init};

    /// A directory with a workspace `w` in it and the state beside that.
    fn workspace() -> (tempfile::TempDir, StatePlaces, Workspace) {
        let directory = tempfile::tempdir().unwrap();
        let places = StatePlaces::below(&std::fs::canonicalize(directory.path()).unwrap());
        let root = directory.path().join("w");
        std::fs::create_dir(&root).unwrap();
        let (workspace, _) = init(&root, &places).unwrap();
        (directory, places, workspace)
    }

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
        let (_directory, _, workspace) = workspace();
        let mut confirmations = Confirmations::load(&workspace).unwrap();
        assert_eq!(confirmations.origin(), ConfigOrigin::Foreign, "nothing is known");
        assert_eq!(allowed(&confirmations, &["a"]), [false]);
        confirmations.confirm(&actions(&["a", "b"]));
        confirmations.save(&workspace).unwrap();
        let mut confirmations = Confirmations::load(&workspace).unwrap();
        assert_eq!(allowed(&confirmations, &["b", "c", "a"]), [true, false, true]);
        confirmations.confirm(&actions(&["c"]));
        assert_eq!(allowed(&confirmations, &["b", "c", "a"]), [false, true, false]);
    }

    #[test]
    fn what_was_written_here_is_foreign_once_its_directory_was_made_anew() {
        let (directory, places, workspace) = workspace();
        let mut confirmations = Confirmations::none(ConfigOrigin::WrittenHere, &workspace).unwrap();
        confirmations.confirm(&actions(&["a"]));
        confirmations.save(&workspace).unwrap();
        assert_eq!(allowed(&Confirmations::load(&workspace).unwrap(), &["a", "b"]), [true, true]);
        let nixbox = workspace.root().join(DIRECTORY);
        std::fs::rename(&nixbox, directory.path().join("aside")).unwrap();
        let mut copy = std::process::Command::new("cp");
        assert!(copy.arg("-a").arg(directory.path().join("aside")).arg(&nixbox).status().unwrap().success());
        let workspace = Workspace::find(workspace.root(), &places).unwrap();
        let confirmations = Confirmations::load(&workspace).unwrap();
        assert_eq!(confirmations.origin(), ConfigOrigin::Foreign);
        assert_eq!(allowed(&confirmations, &["a", "b"]), [true, false]);
    }

    #[test]
    fn confirmations_that_nixbox_did_not_write_are_an_error() {
        let (_directory, _, workspace) = workspace();
        let path = workspace.state().path_of(FILE);
        for (text, expected) in [
            ("", "is not what nixbox wrote"),
            ("{\"format\":1,\"origin\":\"elsewhere\"}", "is not what nixbox wrote"),
            ("{\"format\":2,\"more\":1}", "is of format 2"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = Confirmations::load(&workspace).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
        let error = Confirmations::load(&workspace).unwrap_err();
        assert!(matches!(error, ConfirmationError::File(FileError::Writable { .. })), "{error}");
    }
}

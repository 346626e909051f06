//! The registry: which directory each workspace of this user is on this host.
//!
//! A workspace's id is a file in its directory, so a copy of the directory has the same id, and everything on the host
//! that bears the id belongs to the VM of the original. The registry tells the two apart: it keeps the identity of the
//! directory `.nixbox` on its file system, and the path at which nixbox saw it last.
//!
//! | the directory | is |
//! |---|---|
//! | has the identity in the registry | the workspace, which may have moved |
//! | has another, and a directory with this id stands at the registered path | a copy |
//! | has another, and a VM of this id lives, which was built in the registered one | a copy; at the same path, a replacement |
//! | has another, and neither is so | the workspace, from a backup or another file system: it takes the place |
//!
//! The identity is the inode with its time of birth (statx(2)) and the id of the file system (`f_fsid` of statfs(2)).
//! Device numbers are not part of it, because they change between boots of the host. May use `world`, `files` and `host`.

use std::io;
use std::path::{Path, PathBuf};

use super::Workspace;
use super::entries::Entries;
pub use super::entries::{CopiedWorkspace, RegisteredWorkspace, RegistryError};
use super::identity::{DIRECTORY, read_id};
use super::places::{StatePlaces, moving_name, runtime_bases, runtime_names, state_name, trash_name};
use crate::files::{DirectoryIdentity, FileError, Folder};
use crate::host::process;
use crate::world::WorkspaceId;

/// Whose workspace a directory is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It was registered by this call, or before at the same path.
    Same,
    /// It was moved or renamed since the last command.
    Moved {
        /// Where it was.
        from: PathBuf,
    },
    /// Another directory had its id, and is not there any more.
    TookPlace {
        /// Where that directory was.
        of: PathBuf,
    },
}

/// The registry of one user.
#[derive(Debug)]
pub struct Registry {
    entries: Entries,
    places: StatePlaces,
}

impl Registry {
    /// Opens the registry, and makes it if it is missing.
    ///
    /// # Errors
    /// If it cannot be made, belongs to another user, or may be written by others.
    pub fn open(places: &StatePlaces) -> Result<Self, RegistryError> {
        Ok(Self { entries: Entries::open(places)?, places: places.clone() })
    }

    /// Whose workspace this is, without a change of the registry.
    ///
    /// # Errors
    /// [`RegistryError::Copy`]; otherwise if the entry or a directory cannot be read.
    pub fn examine(&self, workspace: &Workspace) -> Result<Standing, RegistryError> {
        let found = registered(workspace)?;
        match self.entries.read(workspace.id())? {
            None => Ok(Standing::Same),
            Some(entry) => compare(&entry, &found, lives),
        }
    }

    /// Registers the workspace where it is now, and says whether it was moved. The entry is on the medium when this
    /// returns.
    ///
    /// # Errors
    /// Those of [`Registry::examine`], and if the entry cannot be written. Then the earlier entry is still there.
    pub fn follow(&self, workspace: &Workspace) -> Result<Standing, RegistryError> {
        let _lock = self.entries.lock()?;
        let found = registered(workspace)?;
        let entry = self.entries.read(workspace.id())?;
        if entry.is_none() {
            self.forget_gone()?;
        }
        let standing = entry.as_ref().map_or(Ok(Standing::Same), |entry| compare(entry, &found, lives))?;
        // A workspace that is reached through a bind mount stays registered where it is.
        let kept =
            entry.as_ref().filter(|entry| standing == Standing::Same && entry.identity == found.identity);
        let path = kept.map_or_else(|| found.path.clone(), |entry| entry.path.clone());
        let found = RegisteredWorkspace { path, ..found };
        if entry.as_ref() != Some(&found) {
            self.entries.write(&found)?;
        }
        Ok(standing)
    }

    /// Removes the entries of workspaces that are not at their paths and have neither a state nor a process of a VM.
    /// Entries that cannot be read stay.
    fn forget_gone(&self) -> Result<(), RegistryError> {
        for entry in self.list()?.into_iter().flatten() {
            // A path that cannot be looked at may be the workspace's.
            let gone = matches!(identity_at(&entry.path, entry.id), Ok(None));
            let state = entry.state.as_ref().is_some_and(|state| state.exists());
            if gone && !state && !lives(entry.id)? {
                self.entries.remove(entry.id)?;
            }
        }
        Ok(())
    }

    /// All workspaces, in the order of their paths; for each entry that cannot be read, why.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn list(&self) -> Result<Vec<Result<RegisteredWorkspace, RegistryError>>, RegistryError> {
        self.entries.list()
    }

    /// Removes the entry and the state of a workspace whose directory is gone: its snapshots, its disks, its key, its journal
    /// and the logs of its daemons. Returns what was removed. If nixbox is killed in the middle, the entry is still there.
    ///
    /// # Errors
    /// [`RegistryError::NotGone`] or [`RegistryError::Lives`], and nothing was changed then;
    /// [`RegistryError::Unknown`] if the registry has no such workspace.
    pub fn forget(&self, id: WorkspaceId) -> Result<RegisteredWorkspace, RegistryError> {
        let _lock = self.entries.lock()?;
        let entry = self.entries.read(id)?.ok_or(RegistryError::Unknown { id })?;
        if identity_at(&entry.path, id)?.is_some() {
            return Err(RegistryError::NotGone { path: entry.path });
        }
        if lives(id)? {
            return Err(RegistryError::Lives { id });
        }
        for base in runtime_bases().iter().map(PathBuf::as_path).chain([self.places.state()]) {
            remove_runtime(base, id)?;
        }
        if let Some(state) = &entry.state {
            remove_state(state, id)?;
        } else if let Some(parent) = self.places.search(id)? {
            // The directory was removed while its state was moved out of it.
            parent.remove_tree(moving_name(id))?;
        }
        self.entries.remove(id)?;
        Ok(entry)
    }
}

/// Removes the runtime directory of a workspace below a base, which has the logs of its daemons. Whatever is not this user's
/// own directory is left.
fn remove_runtime(base: &Path, id: WorkspaceId) -> Result<(), FileError> {
    let [user, name] = runtime_names(id);
    match Folder::open(&base.join(user)) {
        Ok(folder) if folder.check_private().is_ok() => folder.remove_tree(name),
        Ok(_) => Ok(()),
        Err(error) if error.is(io::ErrorKind::NotFound) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes a state. Its directory gets another name first, so that nothing takes half of it for a state.
fn remove_state(state: &Path, id: WorkspaceId) -> Result<(), FileError> {
    let parent = match Folder::open(state.parent().unwrap_or(state)) {
        Err(error) if error.is(io::ErrorKind::NotFound) => return Ok(()),
        opened => opened?,
    };
    let trash = trash_name(id);
    if parent.examine(state_name(id))?.is_some() {
        parent.remove_tree(&trash)?;
        parent.rename(state_name(id), &trash)?;
        parent.sync()?;
    }
    parent.remove_tree(&trash)
}

/// The workspace as it is now.
fn registered(workspace: &Workspace) -> Result<RegisteredWorkspace, RegistryError> {
    let identity = workspace.nixbox()?.identity()?;
    let state = workspace.state_is_apart().then(|| workspace.state().path().to_owned());
    Ok(RegisteredWorkspace { id: workspace.id(), identity, path: workspace.root().to_owned(), state })
}

/// Whether a process of a VM of the workspace lives on this host.
fn lives(id: WorkspaceId) -> Result<bool, RegistryError> {
    Ok(!process::generations(id)?.is_empty())
}

/// Compares a workspace with its entry, by the table in the head of this module.
fn compare(
    entry: &RegisteredWorkspace,
    found: &RegisteredWorkspace,
    lives: impl Fn(WorkspaceId) -> Result<bool, RegistryError>,
) -> Result<Standing, RegistryError> {
    let copied = || CopiedWorkspace { copy: found.path.clone(), original: entry.path.clone() };
    let there = identity_at(&entry.path, entry.id)?;
    if entry.identity == found.identity {
        // The registered path may lead to the same directory, through a bind mount.
        let moved = entry.path != found.path && there != Some(found.identity);
        return Ok(if moved { Standing::Moved { from: entry.path.clone() } } else { Standing::Same });
    }
    let same_path = entry.path == found.path;
    if same_path && lives(entry.id)? {
        return Err(RegistryError::Replaced { path: found.path.clone() });
    }
    if !same_path && (there.is_some() || lives(entry.id)?) {
        return Err(copied().into());
    }
    // A file system may have another id after a reboot, and a backup may have been restored over the directory.
    Ok(if same_path { Standing::Same } else { Standing::TookPlace { of: entry.path.clone() } })
}

/// Returns the identity of the directory `.nixbox` at a path, or `None` if no `.nixbox` with this id is there.
fn identity_at(path: &Path, id: WorkspaceId) -> Result<Option<DirectoryIdentity>, RegistryError> {
    let nixbox = match Folder::open(&path.join(DIRECTORY)) {
        Ok(nixbox) => nixbox,
        Err(error) if error.is(io::ErrorKind::NotFound) || error.is(io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    };
    match read_id(&nixbox) {
        Ok(Some(there)) if there == id => Ok(Some(nixbox.identity()?)),
        // Whatever stands there is another workspace, or none.
        Ok(_) | Err(_) => Ok(None),
    }
}

#[cfg(test)]
mod tests;

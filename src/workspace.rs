//! A workspace: a directory with `.nixbox/` in it, and its state elsewhere.
//!
//! ```text
//! .nixbox/                  0700, belongs to the invoking user, not a link
//!   config.toml             written by the user
//!   .gitignore              keeps everything but itself and config.toml out of version control
//!   workspace-id            32 hexadecimal digits, made by `init`
//! ```
//!
//! Everything else lies in the state of the workspace, where no share reaches it: [`places`] has the tree. An earlier nixbox
//! kept the state in `.nixbox`; such a workspace is used as it is until [`Workspace::move_state`] moves it ([`relocate`]).
//! [`registry`] tells a workspace from a copy of it.
//!
//! Sockets are in [`Workspace::runtime`], because their paths have to be short. May use `world`, `config`, `files` and
//! `host`.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use secrecy::zeroize::Zeroizing;

use crate::config;
use crate::engine::transition::Interrupt;
use crate::files::copy::Progress;
use crate::files::{FileError, Folder};
use crate::host::lifetime::Lifetime;
use crate::host::process;
use crate::world::WorkspaceId;

pub mod confirmations;
mod entries;
mod error;
pub mod guest_writable;
mod identity;
mod lock;
pub mod places;
pub mod registry;
mod relocate;
mod template;

use entries::{Entries, RegisteredWorkspace, RegistryError};
pub use error::WorkspaceError;
pub use identity::{DIRECTORY, DirectoryGone, IdError};
use identity::{ID_FILE, fresh_id, read_id};
pub use lock::{Lock, LockError, LockHolder};
use places::{DIRECTORIES, SNAPSHOTS, StatePlaces, moving_name, state_name};
use relocate::Move;
pub use relocate::MoveError;
pub use template::CONFIG;

/// More than a file of a key has, in bytes.
const KEY_LIMIT: u64 = 64 << 10;

/// Where the state of a workspace is.
#[derive(Debug)]
enum StateLocation {
    /// In a directory of its own.
    Apart(Folder),
    /// In `.nixbox`, where an earlier nixbox kept it.
    InTree,
    /// On its way out of `.nixbox`, into this directory.
    Moving(Folder),
    /// Nowhere. It would be in this directory.
    Missing(PathBuf),
}

impl StateLocation {
    /// Finds the state of the workspace with this `.nixbox`. The registry decides. If it cannot be read, the usual places
    /// do, so that a VM can be ended.
    fn find(nixbox: Option<&Folder>, id: WorkspaceId, places: &StatePlaces) -> Result<Self, WorkspaceError> {
        let entry = Entries::open(places).and_then(|entries| Ok((entries.read(id)?, entries.path_of(id))));
        if let Ok((Some(entry), path)) = &entry
            && let Some(state) = &entry.state
        {
            return match Folder::open(state) {
                Ok(state) => Ok(Self::Apart(state)),
                Err(error) if error.is(io::ErrorKind::NotFound) => {
                    Err(WorkspaceError::StateGone { path: state.clone(), entry: path.clone() })
                }
                Err(error) => Err(error.into()),
            };
        }
        if let Some(parent) = places.search(id)? {
            if let Some(state) = parent.folder(state_name(id))? {
                return Ok(Self::Apart(state));
            }
            if parent.examine(moving_name(id))?.is_some() {
                return Ok(Self::Moving(parent));
            }
        }
        for name in DIRECTORIES {
            if let Some(nixbox) = nixbox
                && nixbox.examine(name)?.is_some()
            {
                return Ok(Self::InTree);
            }
        }
        // Without an entry the state may be anywhere that only the entry knows.
        entry?;
        Ok(Self::Missing(places.state().join("workspaces").join(state_name(id))))
    }
}

/// A workspace that was found, and whose directories are complete and safe.
#[derive(Debug)]
pub struct Workspace {
    root: PathBuf,
    /// `None` if the directory of the workspace is gone.
    nixbox: Option<Folder>,
    state: Folder,
    id: WorkspaceId,
    places: StatePlaces,
}

impl Workspace {
    /// The nearest workspace at or above `from`.
    ///
    /// # Errors
    /// If there is none, or its `.nixbox` or its state is a link, belongs to another user, can be written by others, or is
    /// incomplete.
    pub fn find(from: &Path, places: &StatePlaces) -> Result<Self, WorkspaceError> {
        Self::open(&Self::root_above(from)?, places)
    }

    fn root_above(from: &Path) -> Result<PathBuf, WorkspaceError> {
        let start = std::fs::canonicalize(from)
            .map_err(|source| WorkspaceError::Start { path: from.to_owned(), source })?;
        for root in start.ancestors() {
            // Whatever has the name ends the search, even a dangling link: further up could be the workspace of another
            // user.
            if std::fs::symlink_metadata(root.join(DIRECTORY)).is_ok() {
                return Ok(root.to_owned());
            }
        }
        Err(WorkspaceError::None { from: start })
    }

    fn open(root: &Path, places: &StatePlaces) -> Result<Self, WorkspaceError> {
        let (nixbox, id) = open_nixbox(root)?;
        let state = match StateLocation::find(Some(&nixbox), id, places)? {
            StateLocation::Apart(state) => state,
            StateLocation::InTree => Folder::open(&root.join(DIRECTORY))?,
            StateLocation::Moving(_) => return Err(WorkspaceError::HalfMoved),
            StateLocation::Missing(path) => return Err(WorkspaceError::Incomplete { path }),
        };
        check_state(&state)?;
        Ok(Self { root: root.to_owned(), nixbox: Some(nixbox), state, id, places: places.clone() })
    }

    /// The workspace with this id, whose directory may be gone.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`] if the registry has no such workspace; otherwise those of [`Workspace::find`].
    pub fn of_id(id: WorkspaceId, places: &StatePlaces) -> Result<Self, WorkspaceError> {
        let entry = Entries::open(places)?.read(id)?.ok_or(RegistryError::Unknown { id })?;
        match open_nixbox(&entry.path) {
            Ok((_, found)) if found == id => return Self::open(&entry.path, places),
            _ => {}
        }
        let StateLocation::Apart(state) = StateLocation::find(None, id, places)? else {
            return Err(DirectoryGone { path: entry.path }.into());
        };
        check_state(&state)?;
        Ok(Self { root: entry.path, nixbox: None, state, id, places: places.clone() })
    }

    /// The path of the workspace.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Its `.nixbox`.
    ///
    /// # Errors
    /// [`DirectoryGone`].
    pub fn nixbox(&self) -> Result<&Folder, DirectoryGone> {
        let gone = || DirectoryGone { path: self.root.clone() };
        self.nixbox.as_ref().ok_or_else(gone)
    }

    /// The directory of its state.
    #[must_use]
    pub fn state(&self) -> &Folder {
        &self.state
    }

    /// Whether the state is in a directory of its own, and not in `.nixbox`, where an earlier nixbox kept it.
    #[must_use]
    pub fn state_is_apart(&self) -> bool {
        self.state.path() != self.root.join(DIRECTORY)
    }

    /// The places of the user's state.
    #[must_use]
    pub fn places(&self) -> &StatePlaces {
        &self.places
    }

    /// The id of the workspace.
    #[must_use]
    pub fn id(&self) -> WorkspaceId {
        self.id
    }

    /// The directory of its journal.
    #[must_use]
    pub fn journal(&self) -> PathBuf {
        self.state.path_of("journal")
    }

    /// The directory of the images and records of the VM that runs.
    #[must_use]
    pub fn run(&self) -> PathBuf {
        self.state.path_of("run")
    }

    /// The directory of its snapshots.
    #[must_use]
    pub fn snapshots(&self) -> PathBuf {
        self.state.path_of(SNAPSHOTS)
    }

    /// The directory of its own key.
    #[must_use]
    pub fn ssh(&self) -> PathBuf {
        self.state.path_of("ssh")
    }

    /// The directory for the sockets of a new VM, which is made if it is missing. Its path is short, and its mode is 0700. The
    /// files in it outlive a login session (see [`crate::host::lifetime`]), so `XDG_RUNTIME_DIR` is not used. A later
    /// command has the path from the built record of the VM.
    ///
    /// # Errors
    /// If the directory cannot be made, or belongs to another user.
    pub fn runtime(&self) -> Result<Folder, WorkspaceError> {
        let bases =
            if !rustix::process::geteuid().is_root() && Lifetime::of_this_process()?.files_end_at_log_out {
                vec![self.places.made_state()?.path().to_owned()]
            } else {
                places::runtime_bases()
            };
        self.runtime_in(&bases)
    }

    /// The runtime directory at this path, which an earlier command wrote down. It is made again if it is missing.
    ///
    /// # Errors
    /// If the directory cannot be made, belongs to another user, or is not one that nixbox makes for this workspace.
    pub fn runtime_at(&self, path: &Path) -> Result<Folder, WorkspaceError> {
        let base = path.parent().and_then(Path::parent).unwrap_or(path).to_owned();
        let folder = self.runtime_in(std::slice::from_ref(&base))?;
        if folder.path() == path {
            Ok(folder)
        } else {
            Err(WorkspaceError::NoRuntime {
                tried: vec![format!("{} is not this workspace's", path.display())],
            })
        }
    }

    fn runtime_in(&self, bases: &[PathBuf]) -> Result<Folder, WorkspaceError> {
        let [name, id] = places::runtime_names(self.id);
        let make = |base: &Path| -> Result<Folder, FileError> {
            let (user, _) = Folder::open(base)?.make_folder(&name)?;
            user.check_private()?;
            let (folder, _) = user.make_folder(&id)?;
            folder.check_private()?;
            Ok(folder)
        };
        let mut tried = Vec::new();
        for base in bases {
            match make(base) {
                Ok(folder) => return Ok(folder),
                Err(error) => tried.push(format!("{}: {error}", base.display())),
            }
        }
        Err(WorkspaceError::NoRuntime { tried })
    }

    /// Takes the lock of the workspace for an operation, without waiting for another nixbox. A nixbox that was killed
    /// while it started a daemon leaves the lock to a child that has not become the daemon yet. This call waits until the
    /// child has, so that the daemon can be found afterwards.
    ///
    /// # Errors
    /// [`LockError::Locked`] with the process that has the lock.
    pub fn lock(&self, operation: &str) -> Result<Lock, LockError> {
        lock::lock(&self.state, operation)
    }

    /// Removes the file of the lock that an earlier nixbox used, after the state was moved.
    ///
    /// # Errors
    /// If the file cannot be removed.
    pub fn remove_former_lock(&self) -> Result<(), FileError> {
        match &self.nixbox {
            Some(nixbox) if self.state_is_apart() => nixbox.remove_file(lock::LOCK_FILE),
            _ => Ok(()),
        }
    }

    /// The process that is at work in the workspace. This call does not take the lock, which would keep other commands
    /// from taking it.
    ///
    /// # Errors
    /// If the file of the lock cannot be read.
    pub fn holder(&self) -> Result<Option<LockHolder>, LockError> {
        lock::holder(&self.state)
    }

    /// Moves the state out of `.nixbox`, and opens the workspace again. The caller holds the lock, and the workspace is down.
    /// Returns `None` if the state is in a directory of its own already.
    ///
    /// # Errors
    /// [`MoveError::NoRoom`], and then nothing was changed. After other errors the next nixbox goes on with the move.
    pub async fn move_state(
        &self,
        progress: &Arc<dyn Progress>,
        interrupt: &Interrupt,
    ) -> Result<Option<Self>, WorkspaceError> {
        if self.state_is_apart() {
            return Ok(None);
        }
        let (from, id) = (&self.state, self.id);
        let parent = self.places.for_new_state()?;
        let moving = Move { from, parent: &parent, id, progress, interrupt };
        moving.check()?;
        moving.run().await?;
        Self::open(&self.root, &self.places).map(Some)
    }
}

/// Goes on with the move of a state that a killed nixbox has begun, if there is one, in the workspace at or above `from`.
///
/// # Errors
/// [`LockError::Locked`] as [`WorkspaceError`]'s source if another nixbox moves it now; otherwise those of
/// [`Workspace::move_state`].
pub async fn finish_move(
    from: &Path,
    places: &StatePlaces,
    progress: &Arc<dyn Progress>,
    interrupt: &Interrupt,
) -> Result<(), WorkspaceError> {
    let (nixbox, id) = open_nixbox(&Workspace::root_above(from)?)?;
    if let StateLocation::Moving(parent) = StateLocation::find(Some(&nixbox), id, places)? {
        let _lock = lock::lock(&nixbox, "move of the state")?;
        Move { from: &nixbox, parent: &parent, id, progress, interrupt }.run().await?;
    }
    Ok(())
}

fn open_nixbox(root: &Path) -> Result<(Folder, WorkspaceId), WorkspaceError> {
    let nixbox = Folder::open(&root.join(DIRECTORY))?;
    nixbox.check_private()?;
    nixbox.check_not_mounted(&Folder::open(root)?)?;
    let path = nixbox.path_of(ID_FILE);
    let id = read_id(&nixbox)?.ok_or(WorkspaceError::Incomplete { path })?;
    Ok((nixbox, id))
}

/// Makes sure that a state is safe and has all its directories.
fn check_state(state: &Folder) -> Result<(), WorkspaceError> {
    state.check_private()?;
    for name in DIRECTORIES {
        let path = state.path_of(name);
        state.folder(name)?.ok_or(WorkspaceError::Incomplete { path })?.check_private()?;
    }
    Ok(())
}

/// Gives a copy of a workspace an id and a state of its own. The configuration stays. The copy gets the key of the
/// original, which the image lets in; the journal, the disks and the snapshots stay with the original. A copy of a workspace
/// whose state was in `.nixbox` has copies of these too: it keeps the snapshots, and what belongs to the original's VM is
/// removed.
///
/// The id is written last, so that the directory counts as a copy until all is done. Before anything is made that bears the
/// id, it is noted in the copy, so that a nixbox that goes on after a kill makes no second state.
///
/// # Errors
/// If something cannot be made or written.
pub fn give_new_id(workspace: &Workspace) -> Result<WorkspaceId, WorkspaceError> {
    let nixbox = workspace.nixbox()?;
    let id = identity::noted_id(nixbox)?;
    if nixbox.folder("ssh")?.is_some() {
        for name in ["journal", "run"] {
            // The directory itself stays: without it this would be no workspace if nixbox were killed here.
            nixbox.make_folder(name)?.0.remove_content()?;
        }
    } else {
        let (state, _) = workspace.places.for_new_state()?.make_folder(state_name(id))?;
        places::complete(&state)?;
        lock::make_file(&state)?;
        let (from, to) = (Folder::open(&workspace.ssh())?, Folder::open(&state.path_of("ssh"))?);
        for name in from.names()? {
            if let Some(bytes) = from.read(&name, KEY_LIMIT)? {
                to.write_new(&name, &Zeroizing::new(bytes))?;
            }
        }
    }
    nixbox.replace(ID_FILE, format!("{id}\n").as_bytes())?;
    nixbox.remove_file(identity::NEXT_ID_FILE)?;
    Ok(id)
}

/// Makes `directory` a workspace: a commented configuration, a `.gitignore`, an id, and a state. What exists already is left
/// as it is. Returns which files were made.
///
/// # Errors
/// If something cannot be made, or exists and is not safe to use.
pub fn init(directory: &Path, places: &StatePlaces) -> Result<(Workspace, Vec<PathBuf>), WorkspaceError> {
    init_with(directory, places, template::CONFIG)
}

/// The same with another configuration.
///
/// # Errors
/// Those of [`init`].
pub fn init_with(
    directory: &Path,
    places: &StatePlaces,
    config: &str,
) -> Result<(Workspace, Vec<PathBuf>), WorkspaceError> {
    let root = std::fs::canonicalize(directory)
        .map_err(|source| WorkspaceError::Start { path: directory.to_owned(), source })?;
    let above = Folder::open(&root)?;
    let (nixbox, _) = above.make_folder(DIRECTORY)?;
    nixbox.check_private()?;
    nixbox.check_not_mounted(&above)?;
    let mut made = Vec::new();
    for (name, content) in [(config::FILE, config), (".gitignore", template::GITIGNORE)] {
        if nixbox.write_new(name, content.as_bytes())? {
            made.push(nixbox.path_of(name));
        }
    }
    let id = match read_id(&nixbox)? {
        Some(id) => id,
        None => {
            let id = known_id(&root, &nixbox, places)?.map_or_else(fresh_id, Ok)?;
            nixbox.write_new(ID_FILE, format!("{id}\n").as_bytes())?;
            made.push(nixbox.path_of(ID_FILE));
            id
        }
    };
    let state = match StateLocation::find(Some(&nixbox), id, places)? {
        StateLocation::Apart(state) => state,
        StateLocation::InTree => Folder::open(nixbox.path())?,
        StateLocation::Moving(_) => return Err(WorkspaceError::HalfMoved),
        StateLocation::Missing(_) if !process::generations(id)?.is_empty() => {
            return Err(WorkspaceError::StateElsewhere { state: places.state().to_owned() });
        }
        StateLocation::Missing(_) => places.for_new_state()?.make_folder(state_name(id))?.0,
    };
    state.check_private()?;
    places::complete(&state)?;
    // The file of the lock is made here, so that a command that is refused does not have to make it.
    lock::make_file(&state)?;
    Ok((Workspace::open(&root, places)?, made))
}

/// The id that the registry has of this directory, whose file with the id was removed, as by `git clean -x`.
///
/// # Errors
/// If the registry or the directory cannot be read.
pub fn known_id(
    root: &Path,
    nixbox: &Folder,
    places: &StatePlaces,
) -> Result<Option<WorkspaceId>, WorkspaceError> {
    let identity = nixbox.identity()?;
    let entries = Entries::open(places)?.list()?;
    let same = |entry: &RegisteredWorkspace| entry.path == root && entry.identity == identity;
    Ok(entries.into_iter().flatten().find(same).map(|entry| entry.id))
}

#[cfg(test)]
mod tests;

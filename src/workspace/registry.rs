//! The registry: which directory each workspace of this user is on this host, `STATE/registry/<id>.json`.
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
//! STATE is `/var/lib/nixbox` for root, and for another user `$XDG_STATE_HOME/nixbox`, which is
//! `~/.local/state/nixbox` if the variable is not set. The home is that of the password database, so that a command
//! finds the registry from every environment; for a user without an entry there it is `$HOME`.
//!
//! The identity is the inode with its time of birth (statx(2)) and the id of the file system (`f_fsid` of statfs(2)).
//! Device numbers are not part of it, because they change between boots of the host. May use `world`, `files` and `host`.

use std::fs::File;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use fs2::FileExt;
use serde::{Deserialize, Serialize};

use super::{DIRECTORY, Workspace, read_id};
use crate::files::{DirectoryIdentity, FileError, Folder};
use crate::host::process::{self, ProcessError};
use crate::world::WorkspaceId;

/// The format that this nixbox writes, and the only one that it reads.
const FORMAT: u32 = 1;
/// More than an entry takes: a path has at most 4096 bytes, each with two digits.
const LIMIT: u64 = 32 << 10;
const LOCK_FILE: &str = "lock";
/// How long another nixbox may hold the lock of the registry: for as long as it takes to write a small file.
const LOCK_LIMIT: Duration = Duration::from_secs(10);

/// Why the registry does not say whose workspace a directory is.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(
        "no directory for nixbox's state: user {0} has no home, and neither HOME nor XDG_STATE_HOME is an absolute path"
    )]
    NoHome(u32),
    #[error("{} is not an entry that nixbox wrote; if it is removed, the next command writes another", path.display())]
    Unreadable { path: PathBuf, source: serde_json::Error },
    #[error("{} is not an entry that nixbox wrote; if it is removed, the next command writes another", path.display())]
    OtherEntry { path: PathBuf },
    #[error("{} has format {found} and this nixbox reads format {FORMAT}: a newer nixbox wrote it", path.display())]
    Newer { path: PathBuf, found: u32 },
    #[error("another nixbox has held {} for {LOCK_LIMIT:?}", path.display())]
    Locked { path: PathBuf },
    #[error("cannot tell whether a VM of the workspace lives")]
    Processes(#[from] ProcessError),
    #[error("an entry of the registry cannot be written")]
    Unwritable(#[source] serde_json::Error),
    /// The VM was built in a directory that had this path before.
    #[error(
        "{} is another directory than the one in which its VM was built, and the VM runs: nothing was changed; `nixbox down` \
         ends the VM", path.display()
    )]
    Replaced { path: PathBuf },
    /// The directory is a copy.
    #[error(transparent)]
    Copy(#[from] CopiedWorkspace),
}

/// The directory has the id of another workspace. Nothing that bears the id belongs to it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} is a copy of the workspace {}: nothing was changed; `nixbox init --new-id` makes the copy a workspace of its own",
    copy.display(), original.display()
)]
pub struct CopiedWorkspace {
    /// The directory of the copy.
    pub copy: PathBuf,
    /// The directory that the registry has.
    pub original: PathBuf,
}

/// A workspace as the registry has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegisteredWorkspace {
    /// Its id.
    pub id: WorkspaceId,
    /// The identity of its `.nixbox`.
    pub identity: DirectoryIdentity,
    /// Where it was seen last.
    pub path: PathBuf,
}

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

/// The text of an entry. The path is in hexadecimal digits, because it may have any bytes.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EntryText {
    format: u32,
    id: String,
    identity: DirectoryIdentity,
    path: String,
}

/// The one key that is read of an entry before it is known to have this nixbox's format.
#[derive(Deserialize)]
struct EntryHead {
    format: u32,
}

/// The registry of the user who runs nixbox.
#[derive(Debug)]
pub struct Registry {
    folder: Folder,
}

/// The directory of everything that nixbox keeps for this user.
fn state_directory() -> Result<PathBuf, RegistryError> {
    let user = rustix::process::geteuid();
    if user.is_root() {
        return Ok("/var/lib/nixbox".into());
    }
    let configured = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    if let Some(state) = configured {
        return Ok(state.join("nixbox"));
    }
    let entry = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(user.as_raw()));
    // A user of a container may have no entry.
    let home =
        entry.ok().flatten().map(|entry| entry.dir).or_else(|| std::env::var_os("HOME").map(PathBuf::from));
    let home = home.filter(|home| home.is_absolute());
    Ok(home.ok_or(RegistryError::NoHome(user.as_raw()))?.join(".local/state/nixbox"))
}

fn file_name(id: WorkspaceId) -> String {
    format!("{id}.json")
}

impl Registry {
    /// Opens the registry of this user, and makes it if it is missing.
    ///
    /// # Errors
    /// If it cannot be made, belongs to another user, or may be written by others.
    pub fn open() -> Result<Self, RegistryError> {
        Self::at(&state_directory()?)
    }

    /// The directory of the registry, in which no guest can write.
    #[must_use]
    pub fn into_folder(self) -> Folder {
        self.folder
    }

    /// The registry in this state directory.
    fn at(state: &Path) -> Result<Self, RegistryError> {
        let above = state.parent().unwrap_or(state);
        std::fs::create_dir_all(above).map_err(FileError::system("make", above))?;
        let (state, _) =
            Folder::open(&std::fs::canonicalize(above).map_err(FileError::system("open", above))?)?
                .make_folder(state.file_name().unwrap_or_default())?;
        state.check_private()?;
        let (folder, _) = state.make_folder("registry")?;
        folder.check_private()?;
        Ok(Self { folder })
    }

    /// Whose workspace this is, without a change of the registry.
    ///
    /// # Errors
    /// [`RegistryError::Copy`]; otherwise if the entry or a directory cannot be read.
    pub fn examine(&self, workspace: &Workspace) -> Result<Standing, RegistryError> {
        let found = RegisteredWorkspace::of(workspace)?;
        match self.read(workspace.id())? {
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
        let _lock = self.lock()?;
        let found = RegisteredWorkspace::of(workspace)?;
        let entry = self.read(workspace.id())?;
        if entry.is_none() {
            self.forget_gone()?;
        }
        let standing = entry.as_ref().map_or(Ok(Standing::Same), |entry| compare(entry, &found, lives))?;
        // A workspace that is reached through a bind mount stays registered where it is.
        let known = entry.is_some_and(|entry| {
            entry == found || standing == Standing::Same && entry.identity == found.identity
        });
        if !known {
            self.write(&found)?;
        }
        Ok(standing)
    }

    /// Removes the entries of workspaces that are not at their paths and have no process of a VM. If one of them was moved,
    /// the next command in it registers it anew. Entries that cannot be read stay.
    fn forget_gone(&self) -> Result<(), RegistryError> {
        for entry in self.list()?.into_iter().flatten() {
            // A path that cannot be looked at may be the workspace's.
            let gone = matches!(identity_at(&entry.path, entry.id), Ok(None));
            if gone && !lives(entry.id)? {
                self.folder.remove_file(file_name(entry.id))?;
            }
        }
        Ok(())
    }

    /// All workspaces, in the order of their paths; for each entry that cannot be read, why.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn list(&self) -> Result<Vec<Result<RegisteredWorkspace, RegistryError>>, RegistryError> {
        let id =
            |name: &std::ffi::OsString| super::parse_id(name.to_str()?.strip_suffix(".json")?.as_bytes());
        let ids: Vec<WorkspaceId> = self.folder.names()?.iter().filter_map(id).collect();
        let mut all: Vec<_> = ids.into_iter().filter_map(|id| self.read(id).transpose()).collect();
        all.sort_by_key(|entry| entry.as_ref().map(|entry| entry.path.clone()).unwrap_or_default());
        Ok(all)
    }

    /// Reads the entry of a workspace. Returns `None` if the registry has no entry of it.
    ///
    /// # Errors
    /// If the entry cannot be read, or is not one that this nixbox reads.
    pub fn read(&self, id: WorkspaceId) -> Result<Option<RegisteredWorkspace>, RegistryError> {
        let name = file_name(id);
        let Some(bytes) = self.folder.read(&name, LIMIT)? else {
            return Ok(None);
        };
        let path = self.folder.path_of(&name);
        let unreadable = |source| RegistryError::Unreadable { path: path.clone(), source };
        let EntryHead { format } = serde_json::from_slice(&bytes).map_err(unreadable)?;
        if format != FORMAT {
            return Err(RegistryError::Newer { path, found: format });
        }
        let text: EntryText = serde_json::from_slice(&bytes).map_err(unreadable)?;
        let place =
            hex::decode(&text.path).ok().map(|bytes| PathBuf::from(std::ffi::OsString::from_vec(bytes)));
        match place.filter(|place| place.is_absolute() && text.id == id.to_string()) {
            Some(place) => Ok(Some(RegisteredWorkspace { id, identity: text.identity, path: place })),
            None => Err(RegistryError::OtherEntry { path }),
        }
    }

    fn write(&self, entry: &RegisteredWorkspace) -> Result<(), RegistryError> {
        let text = EntryText {
            format: FORMAT,
            id: entry.id.to_string(),
            identity: entry.identity,
            path: hex::encode(entry.path.as_os_str().as_bytes()),
        };
        let text = serde_json::to_vec(&text).map_err(RegistryError::Unwritable)?;
        Ok(self.folder.replace(file_name(entry.id), &text)?)
    }

    fn lock(&self) -> Result<File, RegistryError> {
        let path = self.folder.path_of(LOCK_FILE);
        let file = loop {
            if let Some(file) = self.folder.file_to_write(LOCK_FILE)? {
                break file;
            }
            match self.folder.new_file(LOCK_FILE) {
                Ok(file) => break file,
                Err(error) if error.is(io::ErrorKind::AlreadyExists) => {}
                Err(error) => return Err(error.into()),
            }
        };
        let (send, receive) = std::sync::mpsc::channel();
        // A thread of its own waits for the lock, because flock(2) has no time limit.
        let wait = move || {
            // If the limit has passed, nobody receives the lock, and it is released with the file.
            drop(send.send(FileExt::lock_exclusive(&file).map(|()| file)));
        };
        std::thread::Builder::new()
            .name("registry lock".to_owned())
            .spawn(wait)
            .map_err(FileError::system("start a thread to lock", &path))?;
        match receive.recv_timeout(LOCK_LIMIT) {
            Ok(Ok(file)) => Ok(file),
            Ok(Err(error)) => Err(FileError::system("lock", path)(error).into()),
            Err(_) => Err(RegistryError::Locked { path }),
        }
    }
}

impl RegisteredWorkspace {
    /// The workspace as it is now.
    fn of(workspace: &Workspace) -> Result<Self, FileError> {
        let identity = workspace.nixbox().identity()?;
        Ok(Self { id: workspace.id(), identity, path: workspace.root().to_owned() })
    }
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

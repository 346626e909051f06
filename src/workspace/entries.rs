//! The entries of the registry, `STATE/registry/<id>.json`: which directory each workspace of this user is, and where its
//! state is. [`super::registry`] says what the entries decide.
//!
//! An entry is JSON with a format number. Format 1 does not say where the state is, because it was in the workspace then.
//! May use `world`, `files` and `host`.

use std::fs::File;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use fs2::FileExt;
use serde::{Deserialize, Serialize};

use super::identity::{DIRECTORY, DirectoryGone, IdError, parse_id};
use super::places::{PlacesError, SNAPSHOTS, StatePlaces};
use crate::files::{DirectoryIdentity, FileError, Folder};
use crate::host::process::ProcessError;
use crate::world::WorkspaceId;

/// The format that this nixbox writes.
const FORMAT: u32 = 2;
/// The oldest format that this nixbox reads.
const OLDEST: u32 = 1;
/// More than an entry takes: it has two paths of at most 4096 bytes, each byte with two digits.
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
    #[error(transparent)]
    Id(#[from] IdError),
    #[error(transparent)]
    DirectoryGone(#[from] DirectoryGone),
    #[error(transparent)]
    Places(#[from] PlacesError),
    #[error("{} is not an entry that nixbox wrote; if it is removed, the next command writes another", path.display())]
    Unreadable { path: PathBuf, source: serde_json::Error },
    #[error("{} is not an entry that nixbox wrote; if it is removed, the next command writes another", path.display())]
    OtherEntry { path: PathBuf },
    #[error("{} has format {found} and this nixbox reads up to format {FORMAT}: a newer nixbox wrote it", path.display())]
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
    #[error("the workspace {} is there: nothing was removed; remove its directory first", path.display())]
    NotGone { path: PathBuf },
    #[error("the VM of workspace {id} lives: nothing was removed; `nixbox down --id {id}` ends it")]
    Lives { id: WorkspaceId },
    #[error("the registry has no workspace {id}: `nixbox list` shows those that it has")]
    Unknown { id: WorkspaceId },
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
    /// Where its state is; `None` if the state was in the workspace.
    pub state: Option<PathBuf>,
}

impl RegisteredWorkspace {
    /// Where its state is.
    #[must_use]
    pub fn state_directory(&self) -> PathBuf {
        self.state.clone().unwrap_or_else(|| self.path.join(DIRECTORY))
    }

    /// Where its snapshots are.
    #[must_use]
    pub fn snapshots(&self) -> PathBuf {
        self.state_directory().join(SNAPSHOTS)
    }
}

/// The text of an entry. The paths are in hexadecimal digits, because they may have any bytes.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EntryText {
    format: u32,
    id: String,
    identity: DirectoryIdentity,
    path: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    state: Option<String>,
}

/// The one key that is read of an entry before it is known to have a format of this nixbox's.
#[derive(Deserialize)]
struct EntryHead {
    format: u32,
}

fn file_name(id: WorkspaceId) -> String {
    format!("{id}.json")
}

/// A path in the form that an entry has it.
fn encoded(path: &Path) -> String {
    hex::encode(path.as_os_str().as_bytes())
}

fn decoded(digits: &str) -> Option<PathBuf> {
    let bytes = hex::decode(digits).ok()?;
    Some(PathBuf::from(std::ffi::OsString::from_vec(bytes))).filter(|path| path.is_absolute())
}

/// The files of the registry.
#[derive(Debug)]
pub(super) struct Entries {
    folder: Folder,
}

impl Entries {
    /// Opens the registry, and makes it if it is missing.
    pub(super) fn open(places: &StatePlaces) -> Result<Self, RegistryError> {
        Ok(Self { folder: places.registry()? })
    }

    /// All entries, in the order of their paths; for each that cannot be read, why.
    pub(super) fn list(&self) -> Result<Vec<Result<RegisteredWorkspace, RegistryError>>, RegistryError> {
        let id = |name: &std::ffi::OsString| parse_id(name.to_str()?.strip_suffix(".json")?.as_bytes());
        let ids: Vec<WorkspaceId> = self.folder.names()?.iter().filter_map(id).collect();
        let mut all: Vec<_> = ids.into_iter().filter_map(|id| self.read(id).transpose()).collect();
        all.sort_by_key(|entry| entry.as_ref().map(|entry| entry.path.clone()).unwrap_or_default());
        Ok(all)
    }

    /// Reads the entry of a workspace. Returns `None` if the registry has no entry of it.
    pub(super) fn read(&self, id: WorkspaceId) -> Result<Option<RegisteredWorkspace>, RegistryError> {
        let name = file_name(id);
        let Some(bytes) = self.folder.read_private(&name, LIMIT)? else {
            return Ok(None);
        };
        let path = self.folder.path_of(&name);
        let unreadable = |source| RegistryError::Unreadable { path: path.clone(), source };
        let EntryHead { format } = serde_json::from_slice(&bytes).map_err(unreadable)?;
        if !(OLDEST..=FORMAT).contains(&format) {
            return Err(RegistryError::Newer { path, found: format });
        }
        let text: EntryText = serde_json::from_slice(&bytes).map_err(unreadable)?;
        let state = text.state.as_deref().map(decoded);
        match (decoded(&text.path), state) {
            (Some(place), state) if text.id == id.to_string() && state != Some(None) => {
                let state = state.flatten();
                Ok(Some(RegisteredWorkspace { id, identity: text.identity, path: place, state }))
            }
            _ => Err(RegistryError::OtherEntry { path }),
        }
    }

    pub(super) fn write(&self, entry: &RegisteredWorkspace) -> Result<(), RegistryError> {
        let text = EntryText {
            format: FORMAT,
            id: entry.id.to_string(),
            identity: entry.identity,
            path: encoded(&entry.path),
            state: entry.state.as_deref().map(encoded),
        };
        let text = serde_json::to_vec(&text).map_err(RegistryError::Unwritable)?;
        Ok(self.folder.replace(file_name(entry.id), &text)?)
    }

    pub(super) fn remove(&self, id: WorkspaceId) -> Result<(), RegistryError> {
        self.folder.remove_file(file_name(id))?;
        Ok(self.folder.sync()?)
    }

    /// The file of an entry.
    pub(super) fn path_of(&self, id: WorkspaceId) -> PathBuf {
        self.folder.path_of(file_name(id))
    }

    /// Waits for the lock of the registry and takes it.
    pub(super) fn lock(&self) -> Result<File, RegistryError> {
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

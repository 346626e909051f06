//! Where a RAM file lies, decided once per generation and written down before the file is made.
//!
//! On tmpfs it is `<base>/nixbox-<user>/<workspace>/memory-<generation>.img`, all three directories checked: anybody may
//! make directories in `/dev/shm`.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::files::{FileError, Folder};
use crate::world::{Backing, ByteSize, Generation, WorkspaceId};

/// `TMPFS_MAGIC` of linux/magic.h.
const TMPFS: i64 = 0x0102_1994;
/// More than a path and a number take.
const LIMIT: u64 = 16 << 10;

/// Why there is no place for RAM, or why it cannot be told where it is.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// A file or directory of ours.
    #[error(transparent)]
    File(#[from] FileError),
    /// No tmpfs has the room.
    #[error(
        "{} of guest RAM fit on no tmpfs ({}): lower vm.memory, or set vm.backing to \"disk\" or \"vmm\"",
        ByteSize::from_bytes(*size),
        tried.join("; ")
    )]
    NoTmpfs {
        /// In bytes.
        size: u64,
        /// Each directory, and why not there.
        tried: Vec<String>,
    },
    /// The workspace's file system has not the room.
    #[error(
        "{} of guest RAM do not fit into {}, which has {} left: lower vm.memory, or set vm.backing to \"vmm\"",
        ByteSize::from_bytes(*size),
        path.display(),
        ByteSize::from_bytes(*free)
    )]
    NoDisk {
        /// In bytes.
        size: u64,
        /// Where it was to be.
        path: PathBuf,
        /// How many bytes are left there.
        free: u64,
    },
    /// What is written down is not what we write.
    #[error("{} does not say where guest RAM is, as nixbox writes it", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
}

type Result<T, E = PlaceError> = std::result::Result<T, E>;

/// Where the RAM of one generation is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, tag = "on", rename_all = "lowercase")]
pub(super) enum Place {
    /// On tmpfs, below a directory that all users and workspaces share.
    Tmpfs {
        /// That directory.
        base: PathBuf,
        /// In bytes.
        size: u64,
    },
    /// In `.nixbox/run`.
    Disk {
        /// In bytes.
        size: u64,
    },
    /// In the VMM.
    Vmm,
}

fn pointer_name(generation: Generation) -> String {
    format!("memory-{generation}.json")
}

impl Place {
    /// The file's size in bytes.
    pub(super) fn size(&self) -> u64 {
        match self {
            Self::Tmpfs { size, .. } | Self::Disk { size } => *size,
            Self::Vmm => 0,
        }
    }

    /// The place that the configuration asks for, where there is room.
    pub(super) fn choose(run: &Folder, tmpfs: &[PathBuf], size: u64, backing: Backing) -> Result<Self> {
        match backing {
            Backing::Vmm => Ok(Self::Vmm),
            Backing::Disk => {
                let free = run.free_bytes()?;
                let path = || run.path().to_owned();
                if free < size {
                    Err(PlaceError::NoDisk { size, path: path(), free })
                } else {
                    Ok(Self::Disk { size })
                }
            }
            Backing::Auto | Backing::Tmpfs => {
                let mut tried = Vec::new();
                for base in tmpfs {
                    match room(base, size) {
                        Ok(base) => return Ok(Self::Tmpfs { base, size }),
                        Err(why) => tried.push(format!("{}: {why}", base.display())),
                    }
                }
                if backing == Backing::Auto {
                    Ok(Self::Vmm)
                } else {
                    Err(PlaceError::NoTmpfs { size, tried })
                }
            }
        }
    }

    pub(super) fn read(run: &Folder, generation: Generation) -> Result<Option<Self>> {
        let name = pointer_name(generation);
        let Some(bytes) = run.read(&name, LIMIT)? else {
            return Ok(None);
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|source| PlaceError::Unreadable { path: run.path_of(name), source })
    }

    pub(super) fn write(&self, run: &Folder, generation: Generation) -> Result<()> {
        let name = pointer_name(generation);
        let text = serde_json::to_vec(self)
            .map_err(|source| PlaceError::Unreadable { path: run.path_of(&name), source })?;
        Ok(run.replace(name, &text)?)
    }

    /// Also what a process that was killed while it wrote it down has left.
    pub(super) fn forget(run: &Folder, generation: Generation) -> Result<()> {
        let name = pointer_name(generation);
        run.remove_file(format!(".{name}.unfinished"))?;
        run.remove_file(name)?;
        Ok(run.sync()?)
    }
}

/// Whether some tmpfs has the room.
pub(super) fn fits(tmpfs: &[PathBuf], size: u64) -> bool {
    tmpfs.iter().any(|base| room(base, size).is_ok())
}

/// The directory without links on the way to it, if RAM of that size can be put there; if not, why not, for people.
fn room(base: &Path, size: u64) -> std::result::Result<PathBuf, String> {
    // Some hosts have /dev/shm as a link to /run/shm.
    let base = std::fs::canonicalize(base).map_err(|error| error.to_string())?;
    let folder = Folder::open(&base).map_err(|error| error.to_string())?;
    if folder.file_system().map_err(|error| error.to_string())? != TMPFS {
        return Err("not a tmpfs".to_owned());
    }
    let free = folder.free_bytes().map_err(|error| error.to_string())?;
    if free < size {
        return Err(format!("{} left", ByteSize::from_bytes(free)));
    }
    // Makes what is shared by all workspaces, so that a directory we may not write in, or that somebody else has put
    // in our way, leads to the next.
    make_user_directory(&folder).map_err(|error| error.to_string())?;
    Ok(base)
}

fn user_directory() -> String {
    format!("nixbox-{}", rustix::process::geteuid().as_raw())
}

fn make_user_directory(base: &Folder) -> Result<Folder> {
    let (user, _) = base.make_folder(user_directory())?;
    user.check_ours()?;
    Ok(user)
}

/// Makes and opens the workspace's directory below a base.
pub(super) fn make_below(base: &Path, workspace: WorkspaceId) -> Result<Folder> {
    let (folder, _) = make_user_directory(&Folder::open(base)?)?.make_folder(workspace.to_string())?;
    folder.check_ours()?;
    Ok(folder)
}

/// Opens the workspace's directory below a base; `None` if it is not there.
pub(super) fn open_below(base: &Path, workspace: WorkspaceId) -> Result<Option<Folder>> {
    let Some(user) = open_user_directory(base)? else {
        return Ok(None);
    };
    let Some(folder) = user.folder(workspace.to_string())? else {
        return Ok(None);
    };
    folder.check_ours()?;
    Ok(Some(folder))
}

/// Removes the workspace's directory below a base, if nothing is left in it.
pub(super) fn remove_below(base: &Path, workspace: WorkspaceId) -> Result<()> {
    if let Some(user) = open_user_directory(base)? {
        // Another generation's file may be there: then it stays, for that one's remover.
        let _removed_or_still_used = user.remove_empty(workspace.to_string())?;
    }
    Ok(())
}

fn open_user_directory(base: &Path) -> Result<Option<Folder>> {
    let base = match Folder::open(base) {
        Ok(base) => base,
        // A tmpfs of a session that has ended: its files are gone with it.
        Err(error) if error.is(io::ErrorKind::NotFound) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let Some(user) = base.folder(user_directory())? else {
        return Ok(None);
    };
    user.check_ours()?;
    Ok(Some(user))
}

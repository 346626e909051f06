//! Where the RAM of a generation is. This is decided once per generation, and written down before the file is made.
//!
//! On tmpfs the file is `<base>/nixbox-<user>/<workspace>/memory-<generation>.img`. The owner and the mode of the two
//! directories below the base are checked, because every user can make directories in `/dev/shm`.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::{MemoryError, Result};
use crate::files::Folder;
use crate::world::{Backing, ByteSize, Generation, WorkspaceId};

/// `TMPFS_MAGIC` of linux/magic.h.
const TMPFS: i64 = 0x0102_1994;
/// More than a path and a number take.
const LIMIT: u64 = 16 << 10;

/// Where the RAM of one generation is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, tag = "on", rename_all = "lowercase")]
pub(super) enum RamLocation {
    /// In a file on tmpfs, below the directory `base`, which all users and workspaces share.
    Tmpfs { base: PathBuf, size: u64 },
    /// In a file in `.nixbox/run`.
    Disk { size: u64 },
    /// In the VMM, which saves and loads RAM itself.
    Vmm,
}

fn record_name(generation: Generation) -> String {
    format!("memory-{generation}.json")
}

impl RamLocation {
    /// The size of the file in bytes.
    pub(super) fn size(&self) -> u64 {
        match self {
            Self::Tmpfs { size, .. } | Self::Disk { size } => *size,
            Self::Vmm => 0,
        }
    }

    /// The location that the configuration asks for, if there is room.
    pub(super) fn choose(
        run: &Folder,
        tmpfs: &[PathBuf],
        former: &[PathBuf],
        size: u64,
        backing: Backing,
    ) -> Result<Self> {
        match backing {
            Backing::Vmm => Ok(Self::Vmm),
            Backing::Disk => {
                let free = run.free_bytes()?;
                let path = || run.path().to_owned();
                if free < size {
                    Err(MemoryError::NoDisk { size, path: path(), free })
                } else {
                    Ok(Self::Disk { size })
                }
            }
            Backing::Auto | Backing::Tmpfs => {
                let mut tried = Vec::new();
                for base in tmpfs {
                    match check_room(base, former, size) {
                        Ok(base) => return Ok(Self::Tmpfs { base, size }),
                        Err(why) => tried.push(format!("{}: {why}", base.display())),
                    }
                }
                if backing == Backing::Auto {
                    Ok(Self::Vmm)
                } else {
                    Err(MemoryError::NoTmpfs { size, tried })
                }
            }
        }
    }

    pub(super) fn read(run: &Folder, generation: Generation) -> Result<Option<Self>> {
        let name = record_name(generation);
        let Some(bytes) = run.read(&name, LIMIT)? else {
            return Ok(None);
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|source| MemoryError::Unreadable { path: run.path_of(name), source })
    }

    pub(super) fn write(&self, run: &Folder, generation: Generation) -> Result<()> {
        let name = record_name(generation);
        let text = serde_json::to_vec(self)
            .map_err(|source| MemoryError::Unreadable { path: run.path_of(&name), source })?;
        Ok(run.replace(name, &text)?)
    }

    /// Removes the record, and what a process has left that was killed while it wrote the record.
    pub(super) fn forget(run: &Folder, generation: Generation) -> Result<()> {
        let name = record_name(generation);
        run.remove_file(format!(".{name}.unfinished"))?;
        run.remove_file(name)?;
        Ok(run.sync()?)
    }
}

/// Whether RAM of that size can be put on one of these.
pub(super) fn fits(tmpfs: &[PathBuf], former: &[PathBuf], size: u64) -> bool {
    tmpfs.iter().any(|base| check_room(base, former, size).is_ok())
}

/// The directory without links on the way to it, if RAM of that size can be put there; or else the reason, for people.
fn check_room(base: &Path, former: &[PathBuf], size: u64) -> std::result::Result<PathBuf, String> {
    // Some hosts have /dev/shm as a link to /run/shm.
    let base = std::fs::canonicalize(base).map_err(|error| error.to_string())?;
    let folder = Folder::open(&base).map_err(|error| error.to_string())?;
    if folder.file_system().map_err(|error| error.to_string())? != TMPFS {
        return Err("not a tmpfs".to_owned());
    }
    // XDG_RUNTIME_DIR or a link may lead to the file system of /run.
    let device = folder.status().map_err(|error| error.to_string())?.st_dev;
    let same = |path: &&PathBuf| std::fs::metadata(path).is_ok_and(|status| status.dev() == device);
    if let Some(former) = former.iter().find(same) {
        let former = former.display();
        return Err(format!("on the file system of {former}, where the host fails when it is full"));
    }
    let free = folder.free_bytes().map_err(|error| error.to_string())?;
    if free < size {
        return Err(format!("{} left", ByteSize::from_bytes(free)));
    }
    // The user's directory is made here already: if nixbox may not make it, or another user has put something in its
    // place, the next base is tried.
    make_user_directory(&folder).map_err(|error| error.to_string())?;
    Ok(base)
}

fn user_directory() -> String {
    format!("nixbox-{}", rustix::process::geteuid().as_raw())
}

fn make_user_directory(base: &Folder) -> Result<Folder> {
    let (user, _) = base.make_folder(user_directory())?;
    user.check_private()?;
    Ok(user)
}

/// Makes and opens the workspace's directory below a base.
pub(super) fn make_below(base: &Path, workspace: WorkspaceId) -> Result<Folder> {
    let (folder, _) = make_user_directory(&Folder::open(base)?)?.make_folder(workspace.to_string())?;
    folder.check_private()?;
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
    folder.check_private()?;
    Ok(Some(folder))
}

/// Removes the workspace's directory below a base, if nothing is left in it.
pub(super) fn remove_below(base: &Path, workspace: WorkspaceId) -> Result<()> {
    if let Some(user) = open_user_directory(base)? {
        // The file of another generation may be there. Then the directory stays, and goes with that file.
        let _removed_or_still_used = user.remove_empty(workspace.to_string())?;
    }
    Ok(())
}

fn open_user_directory(base: &Path) -> Result<Option<Folder>> {
    let base = match Folder::open(base) {
        Ok(base) => base,
        // The tmpfs belonged to a session that has ended, and its files ended with it.
        Err(error) if error.is(io::ErrorKind::NotFound) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let Some(user) = base.folder(user_directory())? else {
        return Ok(None);
    };
    user.check_private()?;
    Ok(Some(user))
}

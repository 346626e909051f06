//! Where the RAM of a generation may be and is. This is written down before the file is made.
//!
//! On tmpfs the file is `<base>/nixbox-<user>/<workspace>/memory-<generation>.img`. The owner and the mode of the two
//! directories below the base are checked, because every user can make directories in `/dev/shm`.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::{MemoryError, Result, Unsuitable};
use super::promises::TMPFS;
use crate::files::{FileError, Folder};
use crate::world::{Backing, Generation, WorkspaceId};

/// More than a path and a number take.
const LIMIT: u64 = 16 << 10;

/// Where the RAM of one generation is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, tag = "on", rename_all = "lowercase")]
pub(super) enum RamLocation {
    /// In a file on tmpfs, below the directory `base`, which all users and workspaces share.
    Tmpfs { base: PathBuf, size: u64 },
    /// In a file in the state of the workspace.
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

    /// The locations that may be tried for a RAM file of that many bytes, in order of preference.
    pub(super) fn candidates(backing: Backing, tmpfs: &[PathBuf], size: u64) -> Vec<Self> {
        let on_tmpfs = tmpfs.iter().map(|base| Self::Tmpfs { base: base.clone(), size });
        match backing {
            Backing::Auto => on_tmpfs.chain([Self::Vmm]).collect(),
            Backing::Tmpfs => on_tmpfs.collect(),
            Backing::Disk => vec![Self::Disk { size }],
            Backing::Vmm => vec![Self::Vmm],
        }
    }

    /// The same for the RAM of a snapshot, whose VMM state names a file: the VMM cannot keep the RAM itself.
    pub(super) fn candidates_for_file(backing: Backing, tmpfs: &[PathBuf], size: u64) -> Vec<Self> {
        match backing {
            Backing::Tmpfs | Backing::Disk => Self::candidates(backing, tmpfs, size),
            Backing::Auto | Backing::Vmm => {
                [Backing::Tmpfs, Backing::Disk].map(|one| Self::candidates(one, tmpfs, size)).concat()
            }
        }
    }

    /// The path that says to people where it is.
    pub(super) fn base<'a>(&'a self, run: &'a Folder) -> &'a Path {
        match self {
            Self::Tmpfs { base, .. } => base,
            Self::Disk { .. } | Self::Vmm => run.path(),
        }
    }

    /// The location without links on the way to it, if RAM may be put there, whether or not there is room.
    pub(super) fn check(self, former: &[PathBuf]) -> Result<Self, Unsuitable> {
        match self {
            Self::Tmpfs { base, size } => Ok(Self::Tmpfs { base: check_base(&base, former)?, size }),
            other => Ok(other),
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

/// The directory without links on the way to it, if RAM may be put there and the user has a directory there.
fn check_base(base: &Path, former: &[PathBuf]) -> Result<PathBuf, Unsuitable> {
    let folder = suitable_base(base, former)?;
    // The user's directory is made here already: if nixbox may not make it, or another user has put something in its
    // place, the next base is tried.
    make_user_directory(&folder)?;
    Ok(folder.path().to_owned())
}

/// The directory without links on the way to it, if it is on a tmpfs that is not the host's own.
pub(super) fn suitable_base(base: &Path, former: &[PathBuf]) -> Result<Folder, Unsuitable> {
    // Some hosts have /dev/shm as a link to /run/shm.
    let base = std::fs::canonicalize(base).map_err(FileError::system("find", base))?;
    let folder = Folder::open(&base)?;
    if folder.file_system()? != TMPFS {
        return Err(Unsuitable::NoTmpfs);
    }
    // XDG_RUNTIME_DIR or a link may lead to the file system of /run.
    let device = folder.status()?.st_dev;
    let same = |path: &&PathBuf| std::fs::metadata(path).is_ok_and(|status| status.dev() == device);
    if let Some(former) = former.iter().find(same) {
        return Err(Unsuitable::OfTheHost(former.clone()));
    }
    Ok(folder)
}

fn user_directory() -> String {
    format!("nixbox-{}", rustix::process::geteuid().as_raw())
}

fn make_user_directory(base: &Folder) -> Result<Folder, FileError> {
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

//! Moves the state of a workspace out of the workspace, where an earlier nixbox kept it.
//!
//! The move goes forward only, and each action of it is decided by what is on the disk alone, so that the next nixbox goes on
//! where one was killed. The directory `.moving-<id>`, beside the place of the state, is on the disk before the first
//! action and says that the move was begun; its last action renames the directory to `<id>`:
//!
//! | `.moving-<id>` | a directory in the workspace | the same in `.moving-<id>` | action |
//! |---|---|---|---|
//! | there | there | - | rename it, or copy it under another name, sync the copy and rename that |
//! | there | there | there | remove the one in the workspace: it was copied |
//! | there | - | - | make an empty one |
//! | there | none is left | all are there | rename `.moving-<id>` to `<id>` |
//!
//! The [`FILES`] that lie beside the directories are copied after them, and then removed from the workspace. What a person has
//! confirmed is not moved, because a guest could reach it where it was: the person is asked again.
//!
//! The workspace is down and its former lock is held meanwhile. The journal of the workspace cannot keep this move, because
//! the journal is one of the things that are moved.

use std::sync::Arc;

use rustix::fs::FileType;

use super::places::{DIRECTORIES, moving_name, state_name};
use crate::config::decided;
use crate::engine::transition::Interrupt;
use crate::files::copy::{self, CopyError, CopyRequest, NamedFile, Progress};
use crate::files::search::known;
use crate::files::{FileError, Folder, extents};
use crate::host::contents;
use crate::world::WorkspaceId;

/// More levels than the state of a workspace has.
const MAX_DEPTH: usize = 8;

/// The files of the state that go along.
const FILES: [&str; 3] = [known::FILE, decided::FILE, contents::FILE];

/// More than one of these files has, in bytes.
const FILE_LIMIT: u64 = 1 << 20;

/// Why the state of a workspace was not moved.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("the state of the workspace was not copied; the next command that changes something goes on")]
    Copy(#[from] CopyError),
    #[error("{path:?} is neither a file nor a directory: nixbox did not make it")]
    Foreign { path: std::path::PathBuf },
    /// Nothing was changed.
    #[error("{needed} bytes have to be copied, and {} has room for {free}", path.display())]
    NoRoom { path: std::path::PathBuf, needed: u64, free: u64 },
}

type Result<T, E = MoveError> = std::result::Result<T, E>;

/// A move of the state of one workspace.
pub(super) struct Move<'a> {
    /// The directory `.nixbox`.
    pub(super) from: &'a Folder,
    /// The directory in which the state will be.
    pub(super) parent: &'a Folder,
    pub(super) id: WorkspaceId,
    pub(super) progress: &'a Arc<dyn Progress>,
    pub(super) interrupt: &'a Interrupt,
}

impl Move<'_> {
    /// Looks whether the state can be moved to its place.
    pub(super) fn check(&self) -> Result<()> {
        if self.from.identity()?.same_file_system(self.parent.identity()?) {
            return Ok(());
        }
        let mut needed = 0;
        for name in DIRECTORIES {
            needed += self.from.folder(name)?.map_or(Ok(0), |folder| data_below(&folder, 0))?;
        }
        let free = self.parent.free_bytes()?;
        // Directories and the tables of a file system take room too.
        if needed + needed / 50 > free {
            return Err(MoveError::NoRoom { path: self.parent.path().to_owned(), needed, free });
        }
        Ok(())
    }

    /// Begins the move, or goes on with it, and ends it.
    pub(super) async fn run(&self) -> Result<()> {
        let (moving, made) = self.parent.make_folder(moving_name(self.id))?;
        moving.check_private()?;
        if made {
            self.parent.sync()?;
        }
        while self.advance(&moving).await? {}
        Ok(())
    }

    /// Makes the next change. Returns whether it was not the last one.
    async fn advance(&self, moving: &Folder) -> Result<bool> {
        for name in DIRECTORIES {
            match (self.from.folder(name)?, moving.folder(name)?.is_some()) {
                (Some(source), false) => {
                    self.take(&source, moving, name).await?;
                    return Ok(true);
                }
                (Some(_), true) => {
                    self.from.remove_tree(name)?;
                    return Ok(true);
                }
                (None, false) => {
                    moving.make_folder(name)?;
                    moving.sync()?;
                    return Ok(true);
                }
                (None, true) => {}
            }
        }
        for name in FILES {
            let Some(bytes) = self.from.read(name, FILE_LIMIT)? else { continue };
            // A file that is there already was copied.
            if moving.examine(name)?.is_none() {
                moving.replace(name, &bytes)?;
            } else {
                self.from.remove_file(name)?;
                self.from.sync()?;
            }
            return Ok(true);
        }
        self.parent.rename(moving_name(self.id), state_name(self.id))?;
        self.parent.sync()?;
        Ok(false)
    }

    /// Renames a directory of the workspace into `moving`, or copies it if that is on another file system.
    async fn take(&self, source: &Folder, moving: &Folder, name: &str) -> Result<()> {
        if self.from.rename_into(name, moving, name)? {
            moving.sync()?;
            self.from.sync()?;
            return Ok(());
        }
        let unfinished = format!(".{name}.unfinished");
        moving.remove_tree(&unfinished)?;
        self.copy(source, &moving.make_folder(&unfinished)?.0, 0).await?;
        moving.rename(&unfinished, name)?;
        Ok(moving.sync()?)
    }

    async fn copy(&self, source: &Folder, target: &Folder, depth: usize) -> Result<()> {
        for name in source.names()? {
            let path = source.path_of(&name);
            match kind_of(source, &name)? {
                FileType::Directory if depth < MAX_DEPTH => {
                    let Some(inner) = source.folder(&name)? else { continue };
                    Box::pin(self.copy(&inner, &target.make_folder(&name)?.0, depth + 1)).await?;
                }
                FileType::RegularFile => {
                    let Some(file) = source.file(&name)? else { continue };
                    let what = name.to_string_lossy().into_owned();
                    let target_path = target.path_of(&name);
                    let made = NamedFile { file: target.new_file(&name)?, path: target_path.clone() };
                    let source = NamedFile { file, path };
                    let request = CopyRequest {
                        what,
                        source,
                        target: made,
                        reflink: true,
                        smallest_hole: extents::PAGE,
                        hash: None,
                        search: None,
                    };
                    copy::copy(request, Arc::clone(self.progress), self.interrupt).await?;
                    let Some(file) = target.file(&name)? else { continue };
                    copy::sync(NamedFile { file, path: target_path }, self.interrupt).await?;
                }
                _ => return Err(MoveError::Foreign { path }),
            }
        }
        Ok(target.sync()?)
    }
}

/// The kind of an entry.
fn kind_of(folder: &Folder, name: &std::ffi::OsStr) -> Result<FileType> {
    let status = folder.examine(name)?;
    Ok(status.map_or(FileType::Unknown, |status| FileType::from_raw_mode(status.st_mode)))
}

/// How many bytes of data are in the files below a directory. Holes do not count.
fn data_below(folder: &Folder, depth: usize) -> Result<u64> {
    let mut bytes = 0;
    for name in folder.names()? {
        let path = folder.path_of(&name);
        bytes += match kind_of(folder, &name)? {
            FileType::Directory if depth < MAX_DEPTH => {
                folder.folder(&name)?.map_or(Ok(0), |inner| data_below(&inner, depth + 1))?
            }
            FileType::RegularFile => {
                let Some(file) = folder.file(&name)? else { continue };
                extents::data_bytes(&file).map_err(FileError::system("examine", path))?
            }
            _ => return Err(MoveError::Foreign { path }),
        };
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;

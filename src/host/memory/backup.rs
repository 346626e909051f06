//! The backup of what a wipe takes from a guest that runs: a file beside the RAM of the VM.
//!
//! The file is `memory-<generation>.backup`. The record of where the RAM is was on the medium before the VM was built, and
//! says where the backup is too. On tmpfs the file is as volatile as RAM. On disk it is encrypted ([`seal`]). It goes with
//! the RAM.

use std::io::Read;

use async_trait::async_trait;
use zeroize::Zeroizing;

use super::backing::RamLocation;
use super::error::{MemoryError, Result};
use super::{RamFiles, promises, seal};
use crate::files::{FileError, Folder};
use crate::world::{self, Backups, Generation, Presence, Secret};

/// More than the guest makes a backup of.
const MOST: u64 = 128 << 20;

pub(super) fn backup_name(generation: Generation) -> String {
    format!("memory-{generation}.backup")
}

/// Where the backup of a VM is, or is to be.
struct BackupPlace {
    folder: Folder,
    name: String,
    /// The name of its key, if it is encrypted.
    key: Option<String>,
}

impl RamFiles {
    /// `None` if nothing says where the RAM is.
    fn backup_place(&self, of: Generation) -> Result<Option<BackupPlace>> {
        let Some(location) = self.location(of)? else {
            return Ok(None);
        };
        let folder = match location {
            RamLocation::Tmpfs { .. } => self.folder(&location)?,
            RamLocation::Disk { .. } | RamLocation::Vmm => Some(Folder::open(&self.run)?),
        };
        let is_volatile = matches!(location, RamLocation::Tmpfs { .. });
        let key = (!is_volatile).then(|| self.key_name(of));
        Ok(folder.map(|folder| BackupPlace { folder, name: backup_name(of), key }))
    }

    fn key_name(&self, of: Generation) -> String {
        format!("nixbox backup {} {of}", self.workspace)
    }

    fn place_of_whole_ram(&self, of: Generation) -> Result<BackupPlace> {
        self.file(of)?;
        self.backup_place(of)?.ok_or(MemoryError::NotWhole(of))
    }

    /// Removes the backup from a directory, and what was half written of one.
    pub(super) fn clear_backup(&self, folder: &Folder, of: Generation) -> Result<(), FileError> {
        folder.remove_file(format!(".{}.unfinished", backup_name(of)))?;
        folder.remove_file(backup_name(of))
    }

    /// Removes the backup and its key.
    pub(super) fn clear_backup_on_disk(&self, run: &Folder, of: Generation) -> Result<()> {
        if run.examine(backup_name(of))?.is_some() {
            // A key that stays behind opens nothing once its file is gone, and is no reason to keep a VM from going down.
            seal::forget(&self.key_name(of)).ok();
        }
        Ok(self.clear_backup(run, of)?)
    }
}

/// The content of a file. There is memory for all of it from the start, so that no part of it is moved and left behind.
fn read(folder: &Folder, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, FileError> {
    let Some(file) = folder.file(name)? else {
        return Ok(None);
    };
    let path = folder.path_of(name);
    let size = file.metadata().map_err(FileError::system("examine", &path))?.len();
    if size > MOST {
        return Err(FileError::TooLarge { path, limit: MOST });
    }
    let mut content = Zeroizing::new(vec![0; usize::try_from(size).unwrap_or_default()]);
    (&file).read_exact(&mut content).map_err(FileError::system("read", path))?;
    Ok(Some(content))
}

#[async_trait]
impl Backups for RamFiles {
    async fn examine(&self, of: Generation, bytes: u64) -> world::Result<()> {
        let place = self.place_of_whole_ram(of)?;
        if bytes == 0 {
            return Ok(());
        }
        let room = promises::room(&place.folder, &self.directories())?;
        // A backup is written beside one that is there.
        if room.left() < bytes.saturating_mul(2) {
            let path = place.folder.path().to_owned();
            return Err(MemoryError::NoRoomForBackup { path, bytes, room }.into());
        }
        match place.key {
            Some(key) => Ok(seal::examine(&key).map_err(MemoryError::Seal)?),
            None => Ok(()),
        }
    }

    async fn find(&self, of: Generation) -> world::Result<Presence> {
        let Some(place) = self.backup_place(of)? else {
            return Ok(Presence::Absent);
        };
        let found = place.folder.examine(&place.name)?;
        Ok(if found.is_some() { Presence::Whole } else { Presence::Absent })
    }

    async fn write(&self, of: Generation, backup: &Secret) -> world::Result<()> {
        let BackupPlace { folder, name, key } = self.place_of_whole_ram(of)?;
        match key {
            Some(key) => {
                folder.replace(name, &seal::seal(&key, backup.expose()).map_err(MemoryError::Seal)?)?;
            }
            None => folder.replace(name, backup.expose())?,
        }
        Ok(())
    }

    async fn read(&self, of: Generation) -> world::Result<Option<Secret>> {
        let Some(BackupPlace { folder, name, key }) = self.backup_place(of)? else {
            return Ok(None);
        };
        let Some(content) = read(&folder, &name)? else {
            return Ok(None);
        };
        let opened = match key {
            Some(key) => seal::open(&key, content),
            None => Ok(content),
        };
        let lost = |source| MemoryError::BackupLost { path: folder.path_of(&name), source };
        let mut opened = opened.map_err(lost)?;
        Ok(Some(Secret::new(std::mem::take(&mut *opened))))
    }

    async fn remove(&self, of: Generation) -> world::Result<()> {
        let Some(BackupPlace { folder, key, .. }) = self.backup_place(of)? else {
            return Ok(());
        };
        match key {
            Some(_) => self.clear_backup_on_disk(&folder, of)?,
            None => self.clear_backup(&folder, of)?,
        }
        Ok(folder.sync()?)
    }
}

#[cfg(test)]
mod tests;

//! The VM's RAM file, and its copies into and out of snapshots.
//!
//! Where the file lies is decided when it is made, and written down beforehand in `.nixbox/run/memory-<generation>.json`
//! ([`backing`]). So a later command finds it, even if the environment or the configuration has changed since. A file that
//! is being filled has another name until it is whole. In a snapshot the file is [`SNAPSHOT_FILE`].

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;

use crate::files::copy::{self, CopyError, CopyRequest, NamedFile, Progress};
use crate::files::hash::PieceHashes;
use crate::files::{FileError, Folder};
use crate::store;
use crate::world::{
    self, Backing, FileRecord, Generation, Interrupt, Memory, Presence, SnapshotId, WorkspaceId,
};

mod backing;
mod error;

use backing::RamLocation;
use error::Result;
pub use error::{MemoryError, SNAPSHOT_FILE, VMM_FILE};

/// The RAM of one workspace's VM.
pub struct RamFiles {
    /// `.nixbox/run`.
    pub run: PathBuf,
    /// `.nixbox/snapshots`.
    pub snapshots: PathBuf,
    /// Directories on tmpfs where a file may be put, in order of preference: see [`tmpfs_directories`].
    pub tmpfs: Vec<PathBuf>,
    /// Directories where an earlier nixbox put files: see [`former_directories`]. Files are found and removed there, and
    /// no file is made on their file systems.
    pub former: Vec<PathBuf>,
    /// The workspace: directories on tmpfs are shared by all workspaces.
    pub workspace: WorkspaceId,
    /// In bytes.
    pub size: u64,
    /// Where the configuration wants it.
    pub backing: Backing,
    /// Whether to compare a listed snapshot's RAM with its manifest while it is filled in.
    pub check: bool,
    /// Hears how far copies are.
    pub progress: Arc<dyn Progress>,
}

/// Where tmpfs is on hosts, roomiest first. `XDG_RUNTIME_DIR` has a tenth of RAM by default.
#[must_use]
pub fn tmpfs_directories() -> Vec<PathBuf> {
    let of_user = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    std::iter::once(PathBuf::from("/dev/shm")).chain(of_user).collect()
}

/// Where an earlier nixbox put RAM files and this one does not: the daemons of the host fail when `/run` is full.
#[must_use]
pub fn former_directories() -> Vec<PathBuf> {
    vec!["/run".into()]
}

fn file_name(generation: Generation) -> String {
    format!("memory-{generation}.img")
}

fn partial_name(generation: Generation) -> String {
    format!("memory-{generation}.img.partial")
}

impl RamFiles {
    /// The path of a generation's RAM file, for the VMM's configuration; `None` if the VMM keeps RAM itself.
    ///
    /// # Errors
    /// If the file is not there, whole.
    pub fn file(&self, generation: Generation) -> Result<Option<PathBuf>> {
        let location = self.location(generation)?.ok_or(MemoryError::NotWhole(generation))?;
        if location == RamLocation::Vmm {
            return Ok(None);
        }
        let folder = self.folder(&location)?.ok_or(MemoryError::NotWhole(generation))?;
        let name = file_name(generation);
        match folder.file(&name)? {
            Some(file) if size_of(&file, &folder, &name)? == location.size() => {
                Ok(Some(folder.path_of(name)))
            }
            _ => Err(MemoryError::NotWhole(generation)),
        }
    }

    fn location(&self, generation: Generation) -> Result<Option<RamLocation>> {
        RamLocation::read(&Folder::open(&self.run)?, generation)
    }

    /// The directory of a RAM file; `None` if it is not there, or the VMM keeps RAM itself.
    fn folder(&self, location: &RamLocation) -> Result<Option<Folder>> {
        Ok(match location {
            RamLocation::Tmpfs { base, .. } => backing::open_below(base, self.workspace)?,
            RamLocation::Disk { .. } => Some(Folder::open(&self.run)?),
            RamLocation::Vmm => None,
        })
    }

    /// Decides where RAM of that many bytes goes, writes it down, and makes the directory.
    fn settle(&self, generation: Generation, size: u64, backing: Backing) -> Result<Option<Folder>> {
        let run = Folder::open(&self.run)?;
        let location = match RamLocation::read(&run, generation)? {
            Some(location) if location == RamLocation::Vmm || location.size() == size => location,
            earlier => {
                // An attempt with another size left files that cannot be used.
                if earlier.is_some() {
                    self.clear(generation)?;
                }
                let location = RamLocation::choose(&run, &self.tmpfs, &self.former, size, backing)?;
                location.write(&run, generation)?;
                location
            }
        };
        Ok(match &location {
            RamLocation::Tmpfs { base, .. } => Some(backing::make_below(base, self.workspace)?),
            RamLocation::Disk { .. } => Some(run),
            RamLocation::Vmm => None,
        })
    }

    /// The generations that have RAM, or a record of it.
    ///
    /// # Errors
    /// If a directory cannot be read.
    pub fn generations(&self) -> Result<BTreeSet<Generation>> {
        let number = |name: &std::ffi::OsString| {
            let (digits, kind) = name.to_str()?.strip_prefix("memory-")?.split_once('.')?;
            let known = ["json", "img", "img.partial"].contains(&kind);
            digits.parse().ok().filter(|_| known).map(Generation)
        };
        let mut names = Folder::open(&self.run)?.names()?;
        for base in self.tmpfs.iter().chain(&self.former) {
            if let Some(folder) = backing::open_below(base, self.workspace)? {
                names.extend(folder.names()?);
            }
        }
        Ok(names.iter().filter_map(number).collect())
    }

    /// Removes the files and the record of a generation.
    fn clear(&self, generation: Generation) -> Result<()> {
        let run = Folder::open(&self.run)?;
        let bases = match RamLocation::read(&run, generation)? {
            Some(RamLocation::Tmpfs { base, .. }) => vec![base],
            Some(RamLocation::Disk { .. } | RamLocation::Vmm) => vec![],
            // The record is lost, and the file may be on any tmpfs.
            None => self.tmpfs.iter().chain(&self.former).cloned().collect(),
        };
        let remove = |folder: &Folder| {
            folder.remove_file(file_name(generation))?;
            folder.remove_file(partial_name(generation))
        };
        remove(&run)?;
        for base in bases {
            if let Some(folder) = backing::open_below(&base, self.workspace)? {
                remove(&folder)?;
            }
            backing::remove_below(&base, self.workspace)?;
        }
        // The record goes last: without it, a later run would not look for the file there.
        RamLocation::forget(&run, generation)
    }
}

/// Compares the hash of RAM that was filled in with the manifest.
async fn compare(
    from: SnapshotId,
    hashes: PieceHashes,
    record: FileRecord,
    interrupt: &Interrupt,
) -> Result<()> {
    let watched = interrupt.clone();
    let hash = copy::answering(interrupt, move || hashes.finish(&watched)).await?;
    match hash {
        Ok(hash) if hash == record.hash => Ok(()),
        Ok(_) => Err(MemoryError::Damaged(from)),
        Err(_) => Err(CopyError::Interrupted.into()),
    }
}

fn size_of(file: &std::fs::File, folder: &Folder, name: &str) -> Result<u64> {
    Ok(file.metadata().map_err(FileError::system("examine", folder.path_of(name)))?.len())
}

#[async_trait]
impl Memory for RamFiles {
    async fn find(&self, generation: Generation) -> world::Result<Presence> {
        if self.location(generation)?.is_none() {
            let lost = self.generations()?.contains(&generation);
            return Ok(if lost { Presence::Partial } else { Presence::Absent });
        }
        match self.file(generation) {
            Ok(_) => Ok(Presence::Whole),
            Err(MemoryError::NotWhole(_)) => Ok(Presence::Partial),
            Err(error) => Err(error.into()),
        }
    }

    /// The pages that are there; all of RAM if the VMM writes it.
    async fn weight(&self, generation: Generation) -> world::Result<u64> {
        let Some(path) = self.file(generation)? else {
            return Ok(self.size);
        };
        let file = std::fs::File::open(&path).map_err(FileError::system("open", &path))?;
        Ok(copy::data_bytes(&file).map_err(FileError::system("examine", path))?)
    }

    async fn create(&self, generation: Generation) -> world::Result<()> {
        let Some(folder) = self.settle(generation, self.size, self.backing)? else {
            return Ok(());
        };
        let name = file_name(generation);
        let file = match folder.file_to_write(&name)? {
            Some(file) => file,
            None => folder.new_file(&name)?,
        };
        if size_of(&file, &folder, &name)? != self.size {
            file.set_len(self.size).map_err(FileError::system("grow", folder.path_of(&name)))?;
        }
        Ok(folder.sync()?)
    }

    async fn capture(
        &self,
        generation: Generation,
        into: SnapshotId,
        interrupt: &Interrupt,
    ) -> world::Result<()> {
        let not_whole = || MemoryError::NotWhole(generation);
        let location = self.location(generation)?.ok_or_else(not_whole)?;
        let Some(path) = self.file(generation)? else {
            return Ok(());
        };
        let folder = self.folder(&location)?.ok_or_else(not_whole)?;
        let file = folder.file(file_name(generation))?.ok_or_else(not_whole)?;
        let staging = Folder::open(&self.snapshots)?
            .folder(store::staging_name(into))?
            .ok_or(MemoryError::NoSnapshot(into))?;
        staging.remove_file(SNAPSHOT_FILE)?;
        let target = staging.new_file(SNAPSHOT_FILE)?;
        let copying = CopyRequest {
            what: "memory".to_owned(),
            source: NamedFile { file, path },
            target: NamedFile { file: target, path: staging.path_of(SNAPSHOT_FILE) },
            reflink: matches!(location, RamLocation::Disk { .. }),
            // The VM is paused meanwhile. The copy is hashed when the VM runs again.
            hash: false,
        };
        copy::copy(copying, Arc::clone(&self.progress), interrupt).await?;
        Ok(())
    }

    async fn fill(
        &self,
        from: SnapshotId,
        generation: Generation,
        interrupt: &Interrupt,
    ) -> world::Result<()> {
        let snapshots = Folder::open(&self.snapshots)?;
        let snapshot = store::open(&snapshots, from)?.ok_or(MemoryError::NoSnapshot(from))?;
        let Some(file) = snapshot.file(SNAPSHOT_FILE)? else {
            snapshot.file(VMM_FILE)?.ok_or(MemoryError::NoMemory(from))?;
            self.settle(generation, 0, Backing::Vmm)?;
            return Ok(());
        };
        let size = size_of(&file, &snapshot, SNAPSHOT_FILE)?;
        let record = store::record_of(&snapshot, from, SNAPSHOT_FILE)?;
        if record.as_ref().is_some_and(|record| record.size != size) {
            return Err(MemoryError::Damaged(from).into());
        }
        // The VMM state names a file, so there has to be one, even if the configuration has changed since.
        let backing = match self.backing {
            Backing::Vmm | Backing::Auto if backing::fits(&self.tmpfs, &self.former, size) => Backing::Tmpfs,
            Backing::Vmm | Backing::Auto => Backing::Disk,
            chosen => chosen,
        };
        let folder = self.settle(generation, size, backing)?.ok_or(MemoryError::NoMemory(from))?;
        if self.find(generation).await? == Presence::Whole {
            return Ok(());
        }
        let (name, partial) = (file_name(generation), partial_name(generation));
        folder.remove_file(&partial)?;
        folder.remove_file(&name)?;
        let target = NamedFile { file: folder.new_file(&partial)?, path: folder.path_of(&partial) };
        let kept = target.file.try_clone().map_err(FileError::system("open", &target.path))?;
        let copying = CopyRequest {
            what: "memory".to_owned(),
            source: NamedFile { file, path: snapshot.path_of(SNAPSHOT_FILE) },
            target,
            reflink: true,
            hash: self.check && record.is_some(),
        };
        let copied = copy::copy(copying, Arc::clone(&self.progress), interrupt).await?;
        if let (Some(hashes), Some(record)) = (copied.hashes, record) {
            compare(from, hashes, record, interrupt).await?;
        }
        copy::sync(NamedFile { file: kept, path: folder.path_of(&partial) }, interrupt).await?;
        folder.rename(&partial, &name)?;
        Ok(folder.sync()?)
    }

    async fn remove(&self, generation: Generation) -> world::Result<()> {
        Ok(self.clear(generation)?)
    }
}

#[cfg(test)]
mod tests;

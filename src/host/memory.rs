//! The VM's RAM file, and its copies into and out of snapshots.
//!
//! Where it lies is decided when it is made and written down beforehand in `.nixbox/run/memory-<generation>.json`
//! ([`backing`]), so that a later command finds it whatever its environment or the configuration say by then. A file that
//! is filled has another name until it is whole. In a snapshot it is [`SNAPSHOT_FILE`].

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;

use crate::files::copy::{self, CopyError, Copying, Named, Progress};
use crate::files::hash::PieceHashes;
use crate::files::{FileError, Folder};
use crate::store::StoreError;
use crate::world::{
    self, Backing, Failure, FileRecord, Generation, Interrupt, Memory, Presence, SnapshotId, WorkspaceId,
};

mod backing;

use backing::Place;
pub use backing::PlaceError;

/// The RAM file's name in a snapshot.
pub const SNAPSHOT_FILE: &str = "memory.img";
/// What the VMM calls RAM that it writes itself.
pub const VMM_FILE: &str = "memory-ranges";

/// Why RAM could not be made, captured or filled.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// A file or directory of ours.
    #[error(transparent)]
    File(#[from] FileError),
    /// A copy.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// Nowhere to put it, or unreadable where it is.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The snapshot is not readable.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The RAM file of a generation is not there, or not all of it.
    #[error("the RAM file of generation {0} is not there, or not all of it")]
    NotWhole(Generation),
    /// The snapshot is not there.
    #[error("there is no snapshot {0} to take RAM from or to put it into")]
    NoSnapshot(SnapshotId),
    /// The snapshot is there without RAM.
    #[error("snapshot {0} holds no RAM: neither {SNAPSHOT_FILE} nor {VMM_FILE}")]
    NoMemory(SnapshotId),
    /// The snapshot's RAM is not what its manifest says.
    #[error("{SNAPSHOT_FILE} of snapshot {0} is not what its manifest says: the snapshot is damaged")]
    Damaged(SnapshotId),
}

impl From<MemoryError> for Failure {
    fn from(error: MemoryError) -> Self {
        match error {
            MemoryError::Copy(error) => error.into(),
            error => Self::world(error),
        }
    }
}

type Result<T, E = MemoryError> = std::result::Result<T, E>;

/// Where a VM's RAM is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A file of ours, to be mapped shared.
    File(PathBuf),
    /// The VMM's own, which it saves and loads itself.
    Vmm,
}

/// The RAM of one workspace's VM.
pub struct RamFiles {
    /// `.nixbox/run`.
    pub run: PathBuf,
    /// `.nixbox/snapshots`.
    pub snapshots: PathBuf,
    /// Directories on tmpfs where a file may be put, in order of preference: see [`tmpfs_directories`].
    pub tmpfs: Vec<PathBuf>,
    /// Whose RAM it is: directories on tmpfs are shared by all workspaces.
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
    ["/dev/shm", "/run"].into_iter().map(PathBuf::from).chain(of_user).collect()
}

fn file_name(generation: Generation) -> String {
    format!("memory-{generation}.img")
}

fn partial_name(generation: Generation) -> String {
    format!("memory-{generation}.img.partial")
}

impl RamFiles {
    /// Where the RAM of a generation is, for the VMM's configuration.
    ///
    /// # Errors
    /// If it is not there, whole.
    pub fn location(&self, generation: Generation) -> Result<Location> {
        let place = self.placed(generation)?.ok_or(MemoryError::NotWhole(generation))?;
        let Some(folder) = self.folder(&place)? else {
            return if place == Place::Vmm {
                Ok(Location::Vmm)
            } else {
                Err(MemoryError::NotWhole(generation))
            };
        };
        let name = file_name(generation);
        match folder.file(&name)? {
            Some(file) if size_of(&file, &folder, &name)? == place.size() => {
                Ok(Location::File(folder.path_of(name)))
            }
            _ => Err(MemoryError::NotWhole(generation)),
        }
    }

    fn placed(&self, generation: Generation) -> Result<Option<Place>> {
        Ok(Place::read(&Folder::open(&self.run)?, generation)?)
    }

    /// The directory of a place; `None` if it is not there, or the place has none.
    fn folder(&self, place: &Place) -> Result<Option<Folder>> {
        Ok(match place {
            Place::Tmpfs { base, .. } => backing::open_below(base, self.workspace)?,
            Place::Disk { .. } => Some(Folder::open(&self.run)?),
            Place::Vmm => None,
        })
    }

    fn look(&self, generation: Generation) -> Result<Presence> {
        if self.placed(generation)?.is_none() {
            let lost = self.generations()?.contains(&generation);
            return Ok(if lost { Presence::Partial } else { Presence::Absent });
        }
        match self.location(generation) {
            Ok(_) => Ok(Presence::Whole),
            Err(MemoryError::NotWhole(_)) => Ok(Presence::Partial),
            Err(error) => Err(error),
        }
    }

    /// Decides where RAM of that many bytes goes, writes it down, and makes the directory.
    fn settle(&self, generation: Generation, size: u64, backing: Backing) -> Result<Option<Folder>> {
        let run = Folder::open(&self.run)?;
        let place = match Place::read(&run, generation)? {
            Some(place) if place == Place::Vmm || place.size() == size => place,
            // From an attempt with another size: nothing of it is of use.
            Some(_) => {
                self.clear(generation)?;
                self.decide(&run, generation, size, backing)?
            }
            None => self.decide(&run, generation, size, backing)?,
        };
        Ok(match &place {
            Place::Tmpfs { base, .. } => Some(backing::make_below(base, self.workspace)?),
            Place::Disk { .. } => Some(run),
            Place::Vmm => None,
        })
    }

    fn decide(&self, run: &Folder, generation: Generation, size: u64, backing: Backing) -> Result<Place> {
        let place = Place::choose(run, &self.tmpfs, size, backing)?;
        place.write(run, generation)?;
        Ok(place)
    }

    fn make(&self, generation: Generation) -> Result<()> {
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

    async fn save(&self, generation: Generation, into: SnapshotId, interrupt: &Interrupt) -> Result<()> {
        let place = self.placed(generation)?.ok_or(MemoryError::NotWhole(generation))?;
        let path = match self.location(generation)? {
            Location::File(path) => path,
            Location::Vmm => return Ok(()),
        };
        let folder = self.folder(&place)?.ok_or(MemoryError::NotWhole(generation))?;
        let file = folder.file(file_name(generation))?.ok_or(MemoryError::NotWhole(generation))?;
        let staging = Folder::open(&self.snapshots)?
            .folder(crate::store::staging_name(into))?
            .ok_or(MemoryError::NoSnapshot(into))?;
        staging.remove_file(SNAPSHOT_FILE)?;
        let target = staging.new_file(SNAPSHOT_FILE)?;
        let copying = Copying {
            what: "memory".to_owned(),
            source: Named { file, path },
            target: Named { file: target, path: staging.path_of(SNAPSHOT_FILE) },
            reflink: matches!(place, Place::Disk { .. }),
            // A VM is paused for this: what is kept is hashed when it runs again.
            hash: false,
        };
        copy::copy(copying, Arc::clone(&self.progress), interrupt).await.map(drop).map_err(MemoryError::from)
    }

    async fn load(&self, from: SnapshotId, generation: Generation, interrupt: &Interrupt) -> Result<()> {
        let snapshots = Folder::open(&self.snapshots)?;
        let snapshot = crate::store::open(&snapshots, from)?.ok_or(MemoryError::NoSnapshot(from))?;
        let Some(file) = snapshot.file(SNAPSHOT_FILE)? else {
            snapshot.file(VMM_FILE)?.ok_or(MemoryError::NoMemory(from))?;
            self.settle(generation, 0, Backing::Vmm)?;
            return Ok(());
        };
        let size = size_of(&file, &snapshot, SNAPSHOT_FILE)?;
        let record = crate::store::record_of(&snapshot, from, SNAPSHOT_FILE)?;
        if record.as_ref().is_some_and(|record| record.size != size) {
            return Err(MemoryError::Damaged(from));
        }
        // The VMM state names a file, so there has to be one, whatever the configuration has come to say.
        let backing = if self.backing == Backing::Vmm { Backing::Auto } else { self.backing };
        let backing = if backing == Backing::Auto && !backing::fits(&self.tmpfs, size) {
            Backing::Disk
        } else {
            backing
        };
        let folder = self.settle(generation, size, backing)?.ok_or(MemoryError::NoMemory(from))?;
        if self.look(generation)? == Presence::Whole {
            return Ok(());
        }
        let (name, partial) = (file_name(generation), partial_name(generation));
        folder.remove_file(&partial)?;
        folder.remove_file(&name)?;
        let target = Named { file: folder.new_file(&partial)?, path: folder.path_of(&partial) };
        let kept = target.file.try_clone().map_err(FileError::system("open", &target.path))?;
        let copying = Copying {
            what: "memory".to_owned(),
            source: Named { file, path: snapshot.path_of(SNAPSHOT_FILE) },
            target,
            reflink: true,
            hash: self.check && record.is_some(),
        };
        let copied = copy::copy(copying, Arc::clone(&self.progress), interrupt).await?;
        if let (Some(hashes), Some(record)) = (copied.hashes, record) {
            compare(from, hashes, record, interrupt).await?;
        }
        copy::sync(Named { file: kept, path: folder.path_of(&partial) }, interrupt).await?;
        folder.rename(&partial, &name)?;
        Ok(folder.sync()?)
    }

    /// The generations that have RAM, or a record of it.
    ///
    /// # Errors
    /// If a directory cannot be read.
    pub fn generations(&self) -> Result<BTreeSet<Generation>> {
        let number = |name: &std::ffi::OsString| {
            let (digits, kind) = name.to_str()?.strip_prefix("memory-")?.split_once('.')?;
            let ours = ["json", "img", "img.partial"].contains(&kind);
            digits.parse().ok().filter(|_| ours).map(Generation)
        };
        let mut names = Folder::open(&self.run)?.names()?;
        for base in &self.tmpfs {
            if let Some(folder) = backing::open_below(base, self.workspace)? {
                names.extend(folder.names()?);
            }
        }
        Ok(names.iter().filter_map(number).collect())
    }

    /// What capturing it takes: the pages that there are; all of it where the VMM writes it.
    fn capture_bytes(&self, generation: Generation) -> Result<u64> {
        let path = match self.location(generation)? {
            Location::File(path) => path,
            Location::Vmm => return Ok(self.size),
        };
        let failed = FileError::system("examine", path.clone());
        let file = std::fs::File::open(&path).map_err(failed)?;
        Ok(copy::data_bytes(&file).map_err(FileError::system("examine", path))?)
    }

    /// Removes the files of a generation whose record is lost, wherever on tmpfs they are.
    fn clear_lost(&self, generation: Generation) -> Result<()> {
        for base in &self.tmpfs {
            if let Some(folder) = backing::open_below(base, self.workspace)? {
                folder.remove_file(file_name(generation))?;
                folder.remove_file(partial_name(generation))?;
                backing::remove_below(base, self.workspace)?;
            }
        }
        Ok(())
    }

    fn clear(&self, generation: Generation) -> Result<()> {
        let run = Folder::open(&self.run)?;
        let Some(place) = Place::read(&run, generation)? else {
            self.clear_lost(generation)?;
            return Ok(Place::forget(&run, generation)?);
        };
        if let Some(folder) = self.folder(&place)? {
            folder.remove_file(file_name(generation))?;
            folder.remove_file(partial_name(generation))?;
        }
        if let Place::Tmpfs { base, .. } = &place {
            backing::remove_below(base, self.workspace)?;
        }
        // Last: without it nobody would look for the file.
        Ok(Place::forget(&run, generation)?)
    }
}

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
        Ok(self.look(generation)?)
    }

    async fn weight(&self, generation: Generation) -> world::Result<u64> {
        Ok(self.capture_bytes(generation)?)
    }

    async fn create(&self, generation: Generation) -> world::Result<()> {
        Ok(self.make(generation)?)
    }

    async fn capture(
        &self,
        generation: Generation,
        into: SnapshotId,
        interrupt: &Interrupt,
    ) -> world::Result<()> {
        Ok(self.save(generation, into, interrupt).await?)
    }

    async fn fill(
        &self,
        from: SnapshotId,
        generation: Generation,
        interrupt: &Interrupt,
    ) -> world::Result<()> {
        Ok(self.load(from, generation, interrupt).await?)
    }

    async fn remove(&self, generation: Generation) -> world::Result<()> {
        Ok(self.clear(generation)?)
    }
}

#[cfg(test)]
mod tests;

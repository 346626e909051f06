//! The VM's RAM file, and its copies into and out of snapshots.
//!
//! Where the file lies is decided when it is made, and written down beforehand in `run/memory-<generation>.json`
//! ([`backing`]). So a later command finds it, even if the environment or the configuration has changed since. A file that
//! is being filled has another name until it is whole. In a snapshot the file is [`SNAPSHOT_FILE`]. What a wipe takes from
//! the guest lies beside it until the guest has it back ([`backup`]).
//!
//! A file is made only where all RAM files together have room for all that their guests may write ([`promises`]): on
//! tmpfs they are counted by their sizes. On disk the blocks are reserved where the file system can, and counted
//! otherwise.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;

use crate::files::copy::{self, CopyError, CopyRequest, NamedFile, Progress};
use crate::files::{FileError, Folder, extents};
use crate::store::{self, CaptureRequest, LeakSearch};
use crate::world::{self, Backing, Generation, Interrupt, Memory, Presence, SnapshotId, WorkspaceId};

mod backing;
mod backup;
mod error;
mod promises;
mod room;
mod seal;

use backing::RamLocation;
use error::Result;
pub use error::{MemoryError, SNAPSHOT_FILE, Tried, Unsuitable, VMM_FILE};
pub use room::Room;
pub use seal::SealError;

/// The RAM of one workspace's VM.
pub struct RamFiles {
    /// The directory of the VM's images and records.
    pub run: PathBuf,
    /// The directory of the snapshots.
    pub snapshots: PathBuf,
    /// Directories on tmpfs where a file may be put, in order of preference: see [`tmpfs_directories`].
    pub tmpfs: Vec<PathBuf>,
    /// Directories where an earlier nixbox put files: see [`former_directories`]. Files are found and removed there, and
    /// no file is made on their file systems.
    pub former: Vec<PathBuf>,
    /// The same directory of the user's other workspaces, as far as they are known: their RAM files are counted.
    pub others: Vec<PathBuf>,
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
    /// What a copy into a snapshot is searched for.
    pub leaks: Arc<LeakSearch>,
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

/// What the tmpfs of a directory has for RAM files, as a refusal counts it.
///
/// # Errors
/// If no RAM file may be put there.
pub fn room_on_tmpfs(base: &Path) -> Result<Room, Unsuitable> {
    let folder = backing::suitable_base(base, &former_directories())?;
    let bases = tmpfs_directories().into_iter().chain([base.to_owned()]);
    let directories: Vec<Folder> = bases.flat_map(|base| promises::directories_on_tmpfs(&base)).collect();
    Ok(promises::room(&folder, &directories)?)
}

/// A RAM file that was made just now, with its size and nothing in it.
struct NewRamFile {
    folder: Folder,
    file: File,
    path: PathBuf,
    on_disk: bool,
}

impl NewRamFile {
    /// Reserves the blocks that are not in the file yet, if it is on disk.
    fn reserve(&self, size: u64) -> Result<()> {
        if self.on_disk { promises::reserve(&self.file, &self.folder, &self.path, size) } else { Ok(()) }
    }
}

/// What to do if RAM that is empty fits nowhere.
fn advice(backing: Backing) -> &'static str {
    match backing {
        Backing::Disk => "make room there, lower vm.memory, or set vm.backing to \"tmpfs\" or \"vmm\"",
        Backing::Auto | Backing::Tmpfs | Backing::Vmm => {
            "bring another VM down, lower vm.memory, or set vm.backing to \"disk\" or \"vmm\""
        }
    }
}

/// What to do if a snapshot's RAM fits nowhere.
fn advice_for_file(backing: Backing) -> &'static str {
    match backing {
        Backing::Disk => "make room there, or set vm.backing to \"tmpfs\"",
        Backing::Tmpfs => "bring another VM down, or set vm.backing to \"disk\"",
        Backing::Auto | Backing::Vmm => "bring another VM down, or make room in the last of these",
    }
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

    /// Whether blocks are reserved for all of a generation's RAM file, so that it must not get holes.
    ///
    /// # Errors
    /// If the file is not there, whole.
    pub fn is_reserved(&self, generation: Generation) -> Result<bool> {
        let on_disk = matches!(self.location(generation)?, Some(RamLocation::Disk { .. }));
        match self.file(generation)?.filter(|_| on_disk) {
            Some(path) => promises::is_reserved(&path),
            None => Ok(false),
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

    /// Whether the RAM of a generation is whole, and in a file of that size or in the VMM, if that may be.
    fn is_whole(&self, generation: Generation, size: u64, vmm: bool) -> Result<bool> {
        let fits = match self.location(generation)? {
            Some(RamLocation::Vmm) => vmm,
            Some(location) => location.size() == size,
            None => false,
        };
        match self.file(generation) {
            Ok(_) => Ok(fits),
            Err(MemoryError::NotWhole(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Makes a RAM file of that name in the first of these locations that has room for it; `None` if the VMM is to keep
    /// RAM itself. What an attempt left before is removed first, so that it counts no more.
    async fn make(
        &self,
        generation: Generation,
        name: &str,
        locations: Vec<RamLocation>,
        advice: &'static str,
    ) -> Result<Option<NewRamFile>> {
        self.clear(generation)?;
        let run = Folder::open(&self.run)?;
        let size = locations.first().map_or(0, RamLocation::size);
        let mut tried = Vec::new();
        for location in locations {
            let path = location.base(&run).to_owned();
            let location = match location.check(&self.former) {
                Ok(location) => location,
                Err(why) => {
                    tried.push(Tried { path, why });
                    continue;
                }
            };
            location.write(&run, generation)?;
            match self.make_in(&location, name).await {
                Ok(made) => return Ok(made),
                Err(why) => tried.push(Tried { path, why }),
            }
            self.clear(generation)?;
        }
        Err(MemoryError::NoRoom { size, tried, advice })
    }

    /// Makes a RAM file there, if there is room for it beside what other RAM files were promised.
    async fn make_in(&self, location: &RamLocation, name: &str) -> Result<Option<NewRamFile>, Unsuitable> {
        let (base, size) = match location {
            RamLocation::Tmpfs { base, size } => (Folder::open(base)?, *size),
            RamLocation::Disk { size } => (Folder::open(&self.run)?, *size),
            RamLocation::Vmm => return Ok(None),
        };
        let lock = promises::lock(&base).await?;
        let room = promises::room(&base, &self.directories())?;
        if room.left() < size {
            return Err(Unsuitable::Full(room));
        }
        let folder = match location {
            RamLocation::Tmpfs { base, .. } => backing::make_below(base, self.workspace)?,
            RamLocation::Disk { .. } | RamLocation::Vmm => base,
        };
        let file = folder.new_file(name)?;
        let path = folder.path_of(name);
        // From here on the file counts by its size.
        file.set_len(size).map_err(FileError::system("grow", &path))?;
        drop(lock);
        let made = NewRamFile { on_disk: matches!(location, RamLocation::Disk { .. }), folder, file, path };
        made.reserve(size)?;
        Ok(Some(made))
    }

    /// The directories that may hold RAM files, of all workspaces and users, as far as they are known.
    fn directories(&self) -> Vec<Folder> {
        let on_tmpfs = self.tmpfs.iter().chain(&self.former);
        let mut found: Vec<Folder> = on_tmpfs.flat_map(|base| promises::directories_on_tmpfs(base)).collect();
        found.extend(std::iter::once(&self.run).chain(&self.others).filter_map(|run| Folder::open(run).ok()));
        found
    }

    /// The generations that have RAM, or a record of it.
    ///
    /// # Errors
    /// If a directory cannot be read.
    pub fn generations(&self) -> Result<BTreeSet<Generation>> {
        let number = |name: &std::ffi::OsString| {
            let (digits, kind) = name.to_str()?.strip_prefix("memory-")?.split_once('.')?;
            let known = ["json", "img", "img.partial", "backup"].contains(&kind);
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

    /// The workspace's directories on tmpfs, which are made where RAM may be put: a VMM is started before its RAM file is
    /// made, and is confined to directories that are there at its start.
    #[must_use]
    pub fn directories_on_tmpfs(&self) -> Vec<PathBuf> {
        let usable = |base: &PathBuf| {
            let location = RamLocation::Tmpfs { base: base.clone(), size: 0 }.check(&self.former).ok()?;
            let folder = backing::make_below(location.base(&Folder::open(&self.run).ok()?), self.workspace);
            // No RAM file is made where that fails either.
            Some(folder.ok()?.path().to_owned())
        };
        let former = |base: &PathBuf| {
            let folder = backing::open_below(base, self.workspace).ok()??;
            Some(folder.path().to_owned())
        };
        self.tmpfs.iter().filter_map(usable).chain(self.former.iter().filter_map(former)).collect()
    }

    /// The file of a generation and the directory that it lies in; `None` if the VMM has the RAM and captures it.
    fn to_capture(&self, generation: Generation) -> Result<Option<(Folder, CaptureRequest)>> {
        let not_whole = || MemoryError::NotWhole(generation);
        let location = self.location(generation)?.ok_or_else(not_whole)?;
        let Some(path) = self.file(generation)? else {
            return Ok(None);
        };
        let folder = self.folder(&location)?.ok_or_else(not_whole)?;
        let file = folder.file(file_name(generation))?.ok_or_else(not_whole)?;
        let capture = CaptureRequest {
            what: "memory".to_owned(),
            source: NamedFile { file, path },
            name: SNAPSHOT_FILE.to_owned(),
            reflink: matches!(location, RamLocation::Disk { .. }),
            smallest_hole: copy::IMAGE_HOLE,
        };
        Ok(Some((folder, capture)))
    }

    fn staging(&self, id: SnapshotId) -> Result<Folder> {
        let staging = Folder::open(&self.snapshots)?.folder(store::staging_name(id))?;
        staging.ok_or(MemoryError::NoSnapshot(id))
    }

    /// Removes the files and the record of a generation. Directories stay, because a VMM may be confined to them.
    fn clear(&self, generation: Generation) -> Result<()> {
        let run = Folder::open(&self.run)?;
        let bases = match RamLocation::read(&run, generation)? {
            Some(RamLocation::Tmpfs { base, .. }) => vec![base],
            Some(RamLocation::Disk { .. } | RamLocation::Vmm) => vec![],
            // The record is lost, and the file may be on any tmpfs.
            None => self.tmpfs.iter().chain(&self.former).cloned().collect(),
        };
        let remove = |folder: &Folder| {
            self.clear_backup(folder, generation)?;
            folder.remove_file(file_name(generation))?;
            folder.remove_file(partial_name(generation))
        };
        self.clear_backup_on_disk(&run, generation)?;
        remove(&run)?;
        for base in bases {
            if let Some(folder) = backing::open_below(&base, self.workspace)? {
                remove(&folder)?;
            }
        }
        // The record goes last: without it, a later run would not look for the file there.
        RamLocation::forget(&run, generation)
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

    /// The pages that are there; all of RAM if the VMM writes it; nothing if the snapshot shares blocks and the guest was
    /// promised new ones already.
    async fn weight(&self, generation: Generation) -> world::Result<u64> {
        let Some(path) = self.file(generation)? else {
            return Ok(self.size);
        };
        let run = Folder::open(&self.run)?;
        let on_disk = matches!(self.location(generation)?, Some(RamLocation::Disk { .. }));
        if on_disk && promises::covers_reflinks(&run)? && copy::can_share(run.path(), &self.snapshots) {
            return Ok(0);
        }
        let file = std::fs::File::open(&path).map_err(FileError::system("open", &path))?;
        Ok(extents::data_bytes(&file).map_err(FileError::system("examine", path))?)
    }

    async fn promised(&self) -> world::Result<u64> {
        Ok(promises::room(&Folder::open(&self.snapshots)?, &self.directories())?.promised)
    }

    async fn create(&self, generation: Generation) -> world::Result<()> {
        if self.is_whole(generation, self.size, true)? {
            return Ok(());
        }
        let locations = RamLocation::candidates(self.backing, &self.tmpfs, self.size);
        let made = self.make(generation, &file_name(generation), locations, advice(self.backing)).await?;
        if let Some(made) = made {
            made.folder.sync()?;
        }
        Ok(())
    }

    async fn precopy(
        &self,
        generation: Generation,
        into: SnapshotId,
        interrupt: &Interrupt,
    ) -> world::Result<()> {
        let Some((folder, capture)) = self.to_capture(generation)? else {
            return Ok(());
        };
        if capture.reflink && copy::can_share(folder.path(), &self.snapshots) {
            // A clone first writes what is not on the medium, and the VM would be paused for it.
            return Ok(copy::sync(capture.source, interrupt).await?);
        }
        let (staging, progress) = (self.staging(into)?, Arc::clone(&self.progress));
        self.leaks.precopy(into, &staging, capture, progress, interrupt).await
    }

    async fn capture(
        &self,
        generation: Generation,
        into: SnapshotId,
        interrupt: &Interrupt,
    ) -> world::Result<()> {
        let Some((_, capture)) = self.to_capture(generation)? else {
            return Ok(());
        };
        let (staging, progress) = (self.staging(into)?, Arc::clone(&self.progress));
        self.leaks.capture(into, &staging, capture, progress, interrupt).await.map(drop)
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
            if !self.is_whole(generation, 0, true)? {
                self.make(generation, "", vec![RamLocation::Vmm], "").await?;
            }
            return Ok(());
        };
        let size = size_of(&file, &snapshot, SNAPSHOT_FILE)?;
        let record = store::record_of(&snapshot, from, SNAPSHOT_FILE)?;
        if record.as_ref().is_some_and(|record| record.size != size) {
            return Err(MemoryError::Damaged(from).into());
        }
        // The VMM state names a file, so there has to be one, even if the configuration has changed since.
        if self.is_whole(generation, size, false)? {
            return Ok(());
        }
        let (name, partial) = (file_name(generation), partial_name(generation));
        let locations = RamLocation::candidates_for_file(self.backing, &self.tmpfs, size);
        let making = self.make(generation, &partial, locations, advice_for_file(self.backing));
        let made = tokio::select! {
            biased;
            () = interrupt.wait() => return Err(CopyError::Interrupted.into()),
            made = making => made?.ok_or(MemoryError::NoMemory(from))?,
        };
        let target = made.file.try_clone().map_err(FileError::system("open", &made.path))?;
        let copying = CopyRequest {
            what: "memory".to_owned(),
            source: NamedFile { file, path: snapshot.path_of(SNAPSHOT_FILE) },
            target: NamedFile { file: target, path: made.path.clone() },
            reflink: true,
            // A page of zeros that is written to a tmpfs takes memory.
            smallest_hole: extents::PAGE,
            hash: record.as_ref().filter(|_| self.check).map(|record| record.method),
            search: None,
        };
        let copied = copy::copy(copying, Arc::clone(&self.progress), interrupt).await?;
        if let (Some(hash), Some(record)) = (copied.hash, record)
            && hash != record.hash
        {
            return Err(MemoryError::Damaged(from).into());
        }
        // A reflink has put the holes of the snapshot into the place of the reserved blocks.
        made.reserve(size)?;
        let NewRamFile { folder, file, path, .. } = made;
        copy::sync(NamedFile { file, path }, interrupt).await?;
        folder.rename(&partial, &name)?;
        Ok(folder.sync()?)
    }

    async fn remove(&self, generation: Generation) -> world::Result<()> {
        self.clear(generation)?;
        for base in self.tmpfs.iter().chain(&self.former) {
            backing::remove_below(base, self.workspace)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

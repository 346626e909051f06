//! The VM's disk images: `run/disk-<generation>/<n>.img` of a workspace's state.
//!
//! A set of images is made in `disk-<generation>.partial/`, synced, and renamed when it is whole, so that [`Disk::find`]
//! can tell after a crash whether it is. `images.json` in the set says which images belong to it. Templates, and images
//! in snapshots (`disk-<n>.img`), are opened for reading only. `disk/kept.rs` has the disks of earlier sessions.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::files::copy::{self, CopyMethod, CopyRequest, NamedFile, Progress};
use crate::files::shared_paths::SharedPaths;
use crate::files::{FileError, Folder, extents};
use crate::store::{self, CaptureRequest, LeakSearch};
use crate::world::{
    self, ByteSize, Disk, DiskSpec, Generation, HostPath, Interrupt, KeptDisk, KeptDiskId, Presence,
    SnapshotId,
};

mod error;
mod format;
pub mod kept;
mod mkfs;

pub use error::DiskError;

/// The SSH host key of the system on the disks. It is kept with the disks, because a clone of them has the same key.
const HOST_KEY: &str = "host-key";
/// More than the line of a host key takes.
const HOST_KEY_LIMIT: u64 = 16 << 10;
const INVENTORY: &str = "images.json";
/// More than an inventory takes.
const INVENTORY_LIMIT: u64 = 64 << 10;

type Result<T, E = DiskError> = std::result::Result<T, E>;

/// An image in the inventory, with its size in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Image {
    size: u64,
}

/// The disk images of one workspace.
pub struct Disks {
    /// The directory of the VM's images and records.
    pub run: PathBuf,
    /// The directory of the snapshots.
    pub snapshots: PathBuf,
    /// What the configuration asks for.
    pub specs: Vec<DiskSpec>,
    /// How many disks of earlier sessions are kept; `None` if nobody knows, and then all are.
    pub keep: Option<u32>,
    /// Hears how far copies are.
    pub progress: Arc<dyn Progress>,
    /// What a copy into a snapshot is searched for.
    pub leaks: Arc<LeakSearch>,
    shared: SharedPaths,
    methods: Mutex<Vec<CopyMethod>>,
}

/// The name of image `n` in a snapshot.
#[must_use]
pub fn snapshot_file(n: usize) -> String {
    format!("disk-{n}.img")
}

fn image_file(n: usize) -> String {
    format!("{n}.img")
}

/// The number in the name of an image; `None` if nixbox would not have written the name like this.
fn image_number(name: &std::ffi::OsStr, prefix: &str) -> Option<usize> {
    let digits = name.to_str()?.strip_prefix(prefix)?.strip_suffix(".img")?;
    let number: usize = digits.parse().ok()?;
    (number.to_string() == digits).then_some(number)
}

impl Disks {
    /// The disk images of the workspace whose state has these two directories. All disks of earlier sessions are kept.
    #[must_use]
    pub fn new(
        run: PathBuf,
        snapshots: PathBuf,
        specs: Vec<DiskSpec>,
        progress: Arc<dyn Progress>,
        leaks: Arc<LeakSearch>,
    ) -> Self {
        Self {
            run,
            snapshots,
            specs,
            keep: None,
            progress,
            leaks,
            shared: SharedPaths::default(),
            methods: Mutex::default(),
        }
    }

    /// The same, where a guest can replace templates in these directories.
    #[must_use]
    pub fn beside(self, shared: SharedPaths) -> Self {
        Self { shared, ..self }
    }

    /// The paths of the images of a generation in order, for the VMM's configuration.
    ///
    /// # Errors
    /// If an image is missing.
    pub fn images(&self, generation: Generation) -> Result<Vec<PathBuf>> {
        let (folder, images) = self.whole(generation)?;
        Ok((0..images.len()).map(|n| folder.path_of(image_file(n))).collect())
    }

    /// Where the SSH host key of the system on a generation's disks is kept. It is captured, filled and removed with the
    /// disks.
    #[must_use]
    pub fn host_key(&self, generation: Generation) -> PathBuf {
        self.run.join(Self::name(generation)).join(HOST_KEY)
    }

    /// How the copies of this process were made, in order.
    #[must_use]
    pub fn methods(&self) -> Vec<CopyMethod> {
        self.methods.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn name(generation: Generation) -> String {
        format!("disk-{generation}")
    }

    fn partial(generation: Generation) -> String {
        format!("disk-{generation}.partial")
    }

    fn whole(&self, generation: Generation) -> Result<(Folder, Vec<Image>)> {
        let folder = Folder::open(&self.run)?
            .folder(Self::name(generation))?
            .ok_or(DiskError::NotWhole(generation))?;
        let images = inventory(&folder)?.filter(|images| all_there(&folder, images));
        Ok((folder, images.ok_or(DiskError::NotWhole(generation))?))
    }

    /// The generations that have images, whole or not.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn generations(&self) -> Result<BTreeSet<Generation>> {
        let names = Folder::open(&self.run)?.names()?;
        let number = |name: &std::ffi::OsString| {
            let digits = name.to_str()?.strip_prefix("disk-")?;
            digits.strip_suffix(".partial").unwrap_or(digits).parse().ok().map(Generation)
        };
        Ok(names.iter().filter_map(number).collect())
    }

    /// An empty directory to make a set in; `None` if the set is there already.
    fn begin(&self, generation: Generation) -> Result<Option<(Folder, Folder)>> {
        let run = Folder::open(&self.run)?;
        if run.folder(Self::name(generation))?.is_some() {
            // A set that lost a file after its rename is not repaired here, because a VM may run on it.
            return self.whole(generation).map(|_| None);
        }
        remove_set(&run, &Self::partial(generation))?;
        let (folder, _) = run.make_folder(Self::partial(generation))?;
        Ok(Some((run, folder)))
    }

    async fn finish(
        &self,
        generation: Generation,
        (run, folder): (Folder, Folder),
        interrupt: &Interrupt,
    ) -> Result<()> {
        let mut images = Vec::new();
        for n in 0.. {
            let name = image_file(n);
            let Some(file) = folder.file_to_write(&name)? else {
                break;
            };
            let path = folder.path_of(&name);
            let size = file.metadata().map_err(FileError::system("examine", &path))?.len();
            copy::sync(NamedFile { file, path }, interrupt).await?;
            images.push(Image { size });
        }
        let text = serde_json::to_vec(&images)
            .map_err(|source| DiskError::Inventory { path: folder.path_of(INVENTORY), source })?;
        folder.replace(INVENTORY, &text)?;
        run.rename(Self::partial(generation), Self::name(generation))?;
        run.sync()?;
        Ok(())
    }

    async fn clone_image(
        &self,
        n: usize,
        source: NamedFile,
        target: NamedFile,
        interrupt: &Interrupt,
    ) -> Result<()> {
        let copying = CopyRequest {
            what: shown(n),
            source,
            target,
            reflink: true,
            smallest_hole: extents::PAGE,
            hash: None,
            search: None,
        };
        let copied = copy::copy(copying, Arc::clone(&self.progress), interrupt).await?;
        self.copied_by(copied.method);
        Ok(())
    }

    fn copied_by(&self, method: CopyMethod) {
        self.methods.lock().unwrap_or_else(PoisonError::into_inner).push(method);
    }

    fn staging(&self, id: SnapshotId) -> Result<Folder> {
        let staging = Folder::open(&self.snapshots)?.folder(store::staging_name(id))?;
        staging.ok_or(DiskError::NoSnapshot(id))
    }

    async fn make_image(
        &self,
        folder: &Folder,
        n: usize,
        spec: &DiskSpec,
        interrupt: &Interrupt,
    ) -> Result<()> {
        let name = image_file(n);
        let path = folder.path_of(&name);
        let Some(template) = spec.image.as_ref().map(HostPath::as_path) else {
            let size = spec.size.ok_or(DiskError::Nothing(n))?.bytes();
            let file = folder.new_file(&name)?;
            file.set_len(size).map_err(FileError::system("grow", &path))?;
            let made = mkfs::ext4(&path, interrupt).await;
            return made.map_err(|source| DiskError::Mkfs { path, source });
        };
        let path_of_template = || template.to_owned();
        let source = self.shared.open_file(template).map_err(|error| match error {
            FileError::Kind { .. } => DiskError::TemplateKind { path: path_of_template() },
            source => DiskError::Template { path: path_of_template(), source },
        })?;
        let format = format::foreign(&source).map_err(FileError::system("read", template))?;
        if let Some(format::ForeignFormat { name: format, command }) = format {
            return Err(DiskError::Format { path: template.to_owned(), format, command });
        }
        let found = source.metadata().map_err(FileError::system("examine", template))?.len();
        let wanted = spec.size.map_or(found, ByteSize::bytes);
        if wanted < found {
            return Err(DiskError::TooSmall { path: template.to_owned(), found, wanted });
        }
        let file = folder.new_file(&name)?;
        let target = file.try_clone().map_err(FileError::system("open", &path))?;
        let source = NamedFile { file: source, path: template.to_owned() };
        self.clone_image(n, source, NamedFile { file: target, path: path.clone() }, interrupt).await?;
        Ok(file.set_len(wanted).map_err(FileError::system("grow", &path))?)
    }

    /// Makes sure that an image of a listed snapshot has the size that the manifest says. `verify` checks its content.
    fn check_size(&self, snapshot: &Folder, id: SnapshotId, name: &str) -> Result<()> {
        // If the image is missing, the numbers of the images have a gap.
        let file = snapshot.file(name)?.ok_or(DiskError::Damaged { id, name: name.to_owned() })?;
        let size = file.metadata().map_err(FileError::system("examine", snapshot.path_of(name)))?.len();
        match store::record_of(snapshot, id, name)? {
            Some(record) if record.size != size => Err(DiskError::Damaged { id, name: name.to_owned() }),
            _ => Ok(()),
        }
    }
}

/// The name of image `n` for people.
fn shown(n: usize) -> String {
    format!("disk {n}")
}

/// Image `n` of a set.
fn to_capture(folder: &Folder, generation: Generation, n: usize) -> Result<CaptureRequest> {
    let name = image_file(n);
    let file = folder.file(&name)?.ok_or(DiskError::NotWhole(generation))?;
    Ok(CaptureRequest {
        what: shown(n),
        source: NamedFile { file, path: folder.path_of(&name) },
        name: snapshot_file(n),
        reflink: true,
        smallest_hole: extents::PAGE,
    })
}

/// Copies the host key, if there is one.
fn copy_host_key(from: &Folder, to: &Folder) -> Result<()> {
    match from.read(HOST_KEY, HOST_KEY_LIMIT)? {
        Some(bytes) => Ok(to.replace(HOST_KEY, &bytes)?),
        None => Ok(to.remove_file(HOST_KEY)?),
    }
}

fn inventory(folder: &Folder) -> Result<Option<Vec<Image>>> {
    let Some(bytes) = folder.read(INVENTORY, INVENTORY_LIMIT)? else {
        return Ok(None);
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|source| DiskError::Inventory { path: folder.path_of(INVENTORY), source })
}

fn all_there(folder: &Folder, images: &[Image]) -> bool {
    images.iter().enumerate().all(|(n, image)| {
        let file = folder.file(image_file(n)).ok().flatten();
        file.and_then(|file| file.metadata().ok()).is_some_and(|status| status.len() == image.size)
    })
}

/// Gives a directory of images another name; succeeds if it has that name already, or is not there any more. The name is
/// on the medium when this returns.
fn rename_set(run: &Folder, from: &str, to: &str) -> Result<()> {
    if run.folder(from)?.is_some() {
        run.rename(from, to)?;
    }
    Ok(run.sync()?)
}

/// Removes a directory of images, if there is nothing else in it.
fn remove_set(run: &Folder, name: &str) -> Result<()> {
    let Some(folder) = run.folder(name)? else {
        return Ok(());
    };
    // The last three are what guest/host_key.rs and Folder::replace leave when they are killed.
    let known = [
        INVENTORY.to_owned(),
        HOST_KEY.to_owned(),
        format!(".{INVENTORY}.unfinished"),
        format!("{HOST_KEY}.new"),
        format!(".{HOST_KEY}.unfinished"),
    ];
    let made = |entry: &std::ffi::OsString| {
        known.iter().any(|name| entry == name.as_str()) || image_number(entry, "").is_some()
    };
    if let Some(foreign) = folder.names()?.into_iter().find(|entry| !made(entry)) {
        return Err(DiskError::Foreign { folder: folder.path().to_owned(), name: foreign });
    }
    // The inventory goes first, so that a set that is half removed is never taken for a whole one.
    folder.remove_file(INVENTORY)?;
    Ok(run.remove_tree(name)?)
}

#[async_trait]
impl Disk for Disks {
    async fn find(&self, generation: Generation) -> world::Result<Presence> {
        let run = Folder::open(&self.run)?;
        if let Some(folder) = run.folder(Self::name(generation))? {
            let whole = inventory(&folder)?.is_some_and(|images| all_there(&folder, &images));
            return Ok(if whole { Presence::Whole } else { Presence::Partial });
        }
        let begun = run.folder(Self::partial(generation))?.is_some();
        Ok(if begun { Presence::Partial } else { Presence::Absent })
    }

    /// Nothing, if the file system shares blocks.
    async fn weight(&self, generation: Generation) -> world::Result<u64> {
        let (folder, images) = self.whole(generation)?;
        if copy::can_share(folder.path(), &self.snapshots) {
            return Ok(0);
        }
        let mut bytes = 0;
        for n in 0..images.len() {
            let name = image_file(n);
            let file = folder.file(&name)?.ok_or(DiskError::NotWhole(generation))?;
            bytes +=
                extents::data_bytes(&file).map_err(FileError::system("examine", folder.path_of(&name)))?;
        }
        Ok(bytes)
    }

    async fn flush(&self, generation: Generation, interrupt: &Interrupt) -> world::Result<()> {
        let (folder, images) = self.whole(generation)?;
        for n in 0..images.len() {
            let name = image_file(n);
            let file = folder.file(&name)?.ok_or(DiskError::NotWhole(generation))?;
            copy::sync(NamedFile { file, path: folder.path_of(&name) }, interrupt).await?;
        }
        Ok(())
    }

    async fn create(&self, generation: Generation, interrupt: &Interrupt) -> world::Result<()> {
        let Some((run, folder)) = self.begin(generation)? else {
            return Ok(());
        };
        for (n, spec) in self.specs.iter().enumerate() {
            self.make_image(&folder, n, spec, interrupt).await?;
        }
        Ok(self.finish(generation, (run, folder), interrupt).await?)
    }

    async fn precopy(
        &self,
        generation: Generation,
        into: SnapshotId,
        interrupt: &Interrupt,
    ) -> world::Result<()> {
        let (folder, images) = self.whole(generation)?;
        if copy::can_share(folder.path(), &self.snapshots) {
            return Ok(());
        }
        let staging = self.staging(into)?;
        for n in 0..images.len() {
            let (capture, progress) = (to_capture(&folder, generation, n)?, Arc::clone(&self.progress));
            self.leaks.precopy(into, &staging, capture, progress, interrupt).await?;
        }
        Ok(())
    }

    async fn capture(
        &self,
        generation: Generation,
        into: SnapshotId,
        interrupt: &Interrupt,
    ) -> world::Result<()> {
        let (folder, images) = self.whole(generation)?;
        let staging = self.staging(into)?;
        for n in 0..images.len() {
            let (capture, progress) = (to_capture(&folder, generation, n)?, Arc::clone(&self.progress));
            let method = self.leaks.capture(into, &staging, capture, progress, interrupt).await?;
            self.copied_by(method);
        }
        Ok(copy_host_key(&folder, &staging)?)
    }

    async fn fill(
        &self,
        from: SnapshotId,
        generation: Generation,
        interrupt: &Interrupt,
    ) -> world::Result<()> {
        let snapshots = Folder::open(&self.snapshots)?;
        let snapshot = store::open(&snapshots, from)?.ok_or(DiskError::NoSnapshot(from))?;
        let count = snapshot.names()?.iter().filter(|name| image_number(name, "disk-").is_some()).count();
        for n in 0..count {
            self.check_size(&snapshot, from, &snapshot_file(n))?;
        }
        let Some((run, folder)) = self.begin(generation)? else {
            return Ok(());
        };
        for n in 0..count {
            let (name, to) = (snapshot_file(n), image_file(n));
            let file = snapshot.file(&name)?.ok_or(DiskError::NoSnapshot(from))?;
            let source = NamedFile { file, path: snapshot.path_of(&name) };
            let target = NamedFile { file: folder.new_file(&to)?, path: folder.path_of(&to) };
            self.clone_image(n, source, target, interrupt).await?;
        }
        copy_host_key(&snapshot, &folder)?;
        Ok(self.finish(generation, (run, folder), interrupt).await?)
    }

    async fn remove(&self, generation: Generation) -> world::Result<()> {
        let run = Folder::open(&self.run)?;
        remove_set(&run, &Self::name(generation))?;
        Ok(remove_set(&run, &Self::partial(generation))?)
    }

    async fn kept(&self) -> world::Result<Vec<KeptDisk>> {
        Ok(kept::list(&Folder::open(&self.run)?)?)
    }

    async fn keep(&self, kept: KeptDiskId) -> world::Result<()> {
        Ok(rename_set(&Folder::open(&self.run)?, &Self::name(kept.disk), &kept::name(kept))?)
    }

    async fn take(&self, kept: KeptDiskId) -> world::Result<()> {
        let run = Folder::open(&self.run)?;
        rename_set(&run, &kept::name(kept), &Self::name(kept.disk))?;
        self.whole(kept.disk)?;
        Ok(())
    }

    async fn retire(&self, kept: KeptDiskId) -> world::Result<()> {
        self.keep(kept).await?;
        let run = Folder::open(&self.run)?;
        let Some(most) = self.keep else { return Ok(()) };
        let kept = kept::list(&run)?;
        let surplus = kept.len().saturating_sub(usize::try_from(most).unwrap_or(usize::MAX));
        for disk in kept.iter().take(surplus) {
            remove_set(&run, &kept::name(disk.id))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

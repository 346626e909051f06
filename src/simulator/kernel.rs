//! The kernel of the simulated guest: it keeps files in a page cache in RAM and in blocks on the disk.
//!
//! The guest's programs are programs of this machine. They see the guest's files in a directory of this machine, the
//! *view*, which stands for the root of the guest. The view is made from RAM and disk. After a program has run, its
//! changes go from the view to the page cache ([`Kernel::absorb`]) and from there to the disk ([`Kernel::write_back`]).
//! Nothing else survives: the view of a guest that boots or is restored is made from RAM and disk alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::disk::{DiskInode, FileStamp, FileTable, InodeKind, SimulatedDisk};
use super::ram::SimulatedRam;

/// Directories at the top of the view that the kernel makes; programs' changes in them are not kept.
const OWN: [&str; 3] = ["proc", "sys", "bin"];
/// Directories whose files are in RAM and never on the disk.
const VOLATILE: [&str; 4] = ["dev", "run", "tmp", "var/run"];

/// The part of a running system that is only in RAM.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct KernelState {
    /// The boot id, as in `/proc/sys/kernel/random/boot_id`.
    pub(super) boot: String,
    /// By how many nanoseconds the guest's clock is ahead of the host's.
    pub(super) clock: i64,
    /// Whether freed pages are filled with zeros (`init_on_free=1`).
    pub(super) zero_freed: bool,
    /// How often the random pool was reseeded.
    pub(super) reseeded: u64,
    pub(super) files: FileTable,
    pub(super) mounts: Vec<MountedShare>,
    /// Programs that keep bytes in memory, by process id.
    pub(super) kept: BTreeMap<u32, KeepProcess>,
    /// The sequence number of the disk's table that the page cache belongs to.
    disk: u64,
}

/// A mounted share.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct MountedShare {
    pub(super) tag: String,
    /// The mount point, relative to the root.
    pub(super) point: String,
    pub(super) readonly: bool,
    /// The directory of the host that is shown at the mount point.
    pub(super) shown: PathBuf,
}

/// The memory of a `keep` program.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct KeepProcess {
    pages: Vec<u64>,
    size: u64,
}

/// A kernel that runs.
pub(super) struct Kernel {
    pub(super) state: KernelState,
    pub(super) ram: SimulatedRam,
    pub(super) disk: SimulatedDisk,
    /// The directory of this machine that stands for the root.
    view: PathBuf,
    serial: File,
    /// Whether there are changes that the disk's table lacks.
    altered: bool,
}

impl Kernel {
    /// Boots from the disk.
    pub(super) fn boot(
        mut ram: SimulatedRam,
        (disk, files): (SimulatedDisk, FileTable),
        view: &Path,
        serial: File,
        zero_freed: bool,
    ) -> io::Result<Self> {
        ram.start(zero_freed)?;
        let boot = fs::read_to_string("/proc/sys/kernel/random/uuid")?.trim().to_owned();
        let state = KernelState { boot, zero_freed, files, disk: disk.sequence(), ..KernelState::default() };
        let mut kernel = Self { state, ram, disk, view: view.to_owned(), serial, altered: false };
        kernel.print(&format!("simulator: no kernel runs here; boot {}", kernel.state.boot));
        for directory in ["dev/shm", "run", "tmp", "home", "root", "etc", "var", "mnt", "srv", "opt"] {
            for path in [directory.split('/').next().unwrap_or(directory), directory] {
                let made = || DiskInode::new(InodeKind::Directory, 0o755);
                kernel.state.files.entry(path.to_owned()).or_insert_with(made);
            }
        }
        kernel.make_view()?;
        Ok(kernel)
    }

    /// Continues the system that is in RAM. `None` if RAM holds no simulated guest, or one that belongs to another state of
    /// the disk.
    pub(super) fn restore(
        mut ram: SimulatedRam,
        (disk, _): (SimulatedDisk, FileTable),
        view: &Path,
        serial: File,
    ) -> io::Result<Option<Self>> {
        let state = ram.state()?.and_then(|bytes| serde_json::from_slice::<KernelState>(&bytes).ok());
        let Some(state) = state.filter(|state| state.disk == disk.sequence()) else {
            return Ok(None);
        };
        let pages = state.files.values().flat_map(|inode| &inode.pages);
        let pages: Vec<u64> =
            pages.chain(state.kept.values().flat_map(|kept| &kept.pages)).copied().collect();
        ram.adopt(&pages, state.zero_freed);
        let mut kernel = Self { state, ram, disk, view: view.to_owned(), serial, altered: false };
        kernel.print("simulator: continues from RAM");
        kernel.make_view()?;
        Ok(Some(kernel))
    }

    /// Writes a line to the serial console. An error is ignored: the file may have been removed.
    pub(super) fn print(&mut self, line: &str) {
        writeln!(self.serial, "{line}").ok();
    }

    pub(super) fn view(&self) -> &Path {
        &self.view
    }

    /// The directory of a process in the guest's `/proc`.
    pub(super) fn process(&self, id: i32) -> PathBuf {
        self.view.join("proc").join(id.to_string())
    }

    /// Makes the view from RAM and disk.
    fn make_view(&mut self) -> io::Result<()> {
        remove_view(&self.view)?;
        let make = |path: &Path, mode: u32| fs::DirBuilder::new().recursive(true).mode(mode).create(path);
        make(&self.view, 0o700)?;
        for own in ["proc/sys/kernel/random", "proc/sys/vm", "sys", "bin"] {
            make(&self.view.join(own), 0o755)?;
        }
        fs::write(self.view.join("proc/sys/kernel/random/boot_id"), format!("{}\n", self.state.boot))?;
        fs::write(self.view.join("proc/sys/vm/drop_caches"), "")?;
        make(&self.process(1), 0o755)?;
        fs::write(self.process(1).join("cmdline"), "init\0")?;
        let points: BTreeSet<_> = self.state.mounts.iter().map(|mounted| mounted.point.clone()).collect();
        for (path, inode) in &self.state.files {
            let place = self.view.join(path);
            match &inode.kind {
                InodeKind::Directory if points.contains(path) => {}
                InodeKind::Directory => make(&place, 0o700)?,
                InodeKind::Link(target) => symlink(target, &place)?,
                InodeKind::File => fs::write(&place, self.content(inode)?)?,
            }
        }
        // Permissions come last and deepest first: nothing could be made in a directory that is made read-only before.
        let modes: Vec<_> =
            self.state.files.iter().rev().map(|(path, inode)| (path.clone(), inode.mode)).collect();
        for (path, mode) in modes {
            let place = self.view.join(&path);
            let plain =
                self.state.files.get(&path).is_some_and(|inode| !matches!(inode.kind, InodeKind::Link(_)));
            if plain && !points.contains(&path) {
                fs::set_permissions(&place, fs::Permissions::from_mode(mode))?;
            }
            if let (Ok(status), Some(inode)) = (place.symlink_metadata(), self.state.files.get_mut(&path)) {
                inode.stamp = stamp(&status);
            }
        }
        self.show_mounts()
    }

    fn content(&self, inode: &DiskInode) -> io::Result<Vec<u8>> {
        if inode.pages.is_empty() { self.disk.load(inode) } else { self.ram.load(&inode.pages, inode.size) }
    }

    /// Replaces each mount point by a link to the directory that is shown there, and writes `/proc/mounts`.
    pub(super) fn show_mounts(&self) -> io::Result<()> {
        let escaped = |path: &Path| path.to_string_lossy().replace('\\', "\\134").replace(' ', "\\040");
        let mut table = format!("/dev/vda {} ext4 rw,relatime 0 0\n", escaped(&self.view));
        for MountedShare { tag, point, readonly, shown } in &self.state.mounts {
            let place = self.view.join(point);
            let there = fs::read_link(&place).ok();
            if there.as_ref() != Some(shown) {
                match there {
                    Some(_) => fs::remove_file(&place)?,
                    None if place.is_dir() => fs::remove_dir(&place)?,
                    None => {}
                }
                symlink(shown, &place)?;
            }
            let access = if *readonly { "ro" } else { "rw" };
            table.push_str(&format!("{tag} {} virtiofs {access},relatime 0 0\n", escaped(shown)));
        }
        fs::write(self.view.join("proc/mounts"), table)
    }

    /// Takes what programs have changed in the view into the page cache.
    pub(super) fn absorb(&mut self) -> io::Result<()> {
        let mut seen = BTreeMap::new();
        let points: BTreeSet<String> =
            self.state.mounts.iter().map(|mounted| mounted.point.clone()).collect();
        scan(&self.view, "", &points, &mut seen)?;
        let gone: Vec<String> = self
            .state
            .files
            .keys()
            .filter(|path| !seen.contains_key(*path) && !points.contains(*path))
            .cloned()
            .collect();
        for path in gone {
            self.forget(&path, &seen)?;
        }
        for (path, status) in seen {
            let known = self.state.files.get(&path).map(|inode| (inode.stamp, inode.mode));
            if known != Some((stamp(&status), status.mode() & 0o7777)) {
                self.take(&path, &status)?;
            }
        }
        self.drop_caches_if_asked()?;
        self.keep_state()
    }

    /// Removes a file from the page cache that is gone from the view, or gives it its new name if it was renamed.
    fn forget(&mut self, path: &str, seen: &BTreeMap<String, fs::Metadata>) -> io::Result<()> {
        let Some(inode) = self.state.files.remove(path) else {
            return Ok(());
        };
        self.altered = true;
        let same = |status: &fs::Metadata| status.ino() == inode.stamp.0 && inode.stamp.0 != 0;
        let moved = seen.iter().find(|(_, status)| same(status)).map(|(path, _)| path.clone());
        let replaced = match moved {
            Some(new) => self.state.files.insert(new, inode),
            None => Some(inode),
        };
        if let Some(inode) = replaced {
            self.ram.free(&inode.pages)?;
            self.disk.free(&inode.blocks);
        }
        Ok(())
    }

    /// Puts a file that is new or changed into the page cache.
    fn take(&mut self, path: &str, status: &fs::Metadata) -> io::Result<()> {
        let place = self.view.join(path);
        let kind = match status.file_type() {
            kind if kind.is_dir() => InodeKind::Directory,
            kind if kind.is_symlink() => {
                InodeKind::Link(fs::read_link(&place)?.to_string_lossy().into_owned())
            }
            _ => InodeKind::File,
        };
        let content = if kind == InodeKind::File { read(&place)? } else { Vec::new() };
        let old = self.state.files.remove(path);
        let mut inode = DiskInode::new(kind, status.mode() & 0o7777);
        let (old_blocks, old_pages) = old.map(|old| (old.blocks, old.pages)).unwrap_or_default();
        inode.size = content.len() as u64;
        inode.blocks = old_blocks;
        inode.pages = self.ram.store(old_pages, &content)?;
        inode.stamp = stamp(status);
        self.state.files.insert(path.to_owned(), inode);
        Ok(())
    }

    fn drop_caches_if_asked(&mut self) -> io::Result<()> {
        let path = self.view.join("proc/sys/vm/drop_caches");
        if fs::metadata(&path)?.len() == 0 {
            return Ok(());
        }
        fs::write(&path, "")?;
        let clean = |(path, inode): &(&String, &mut DiskInode)| !inode.dirty && !is_volatile(path);
        for (_, inode) in self.state.files.iter_mut().filter(clean) {
            self.ram.free(&std::mem::take(&mut inode.pages))?;
        }
        Ok(())
    }

    /// Writes the kernel's state to RAM.
    pub(super) fn keep_state(&mut self) -> io::Result<()> {
        self.state.disk = self.disk.sequence();
        self.ram.write_state(&serde_json::to_vec(&self.state)?)
    }

    /// Writes what is only in the page cache to the disk.
    pub(super) fn write_back(&mut self) -> io::Result<()> {
        for (path, inode) in self.state.files.iter_mut().filter(|(path, _)| !is_volatile(path)) {
            if !inode.dirty {
                continue;
            }
            let content = self.ram.load(&inode.pages, inode.size)?;
            let blocks = self.disk.store(inode.blocks.clone(), &content);
            inode.blocks =
                blocks.map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))?;
            inode.dirty = false;
            self.altered = true;
        }
        if self.altered {
            let stored = self.state.files.iter().filter(|(path, _)| !is_volatile(path));
            let bare = |inode: &DiskInode| DiskInode { pages: Vec::new(), ..inode.clone() };
            self.disk.commit(&stored.map(|(path, inode)| (path.clone(), bare(inode))).collect())?;
            self.altered = false;
        }
        self.keep_state()
    }

    /// Does with bytes what a kernel does with those of a connection: they are in RAM for a moment, and then in pages that
    /// are free.
    pub(super) fn pass(&mut self, bytes: &[u8]) -> io::Result<()> {
        let pages = self.ram.store(Vec::new(), bytes)?;
        self.ram.free(&pages)
    }

    /// Starts a program that keeps `bytes` in its memory. Returns its process id.
    pub(super) fn keep(&mut self, bytes: &[u8]) -> io::Result<u32> {
        let process = self.state.kept.keys().next_back().map_or(1000, |last| last + 1);
        let kept = KeepProcess { pages: self.ram.store(Vec::new(), bytes)?, size: bytes.len() as u64 };
        self.state.kept.insert(process, kept);
        self.keep_state()?;
        Ok(process)
    }

    /// Ends such a program. Returns the bytes that it kept.
    pub(super) fn end(&mut self, process: u32) -> io::Result<Vec<u8>> {
        let kept = self.state.kept.remove(&process).ok_or(ErrorKind::NotFound)?;
        let bytes = self.ram.load(&kept.pages, kept.size)?;
        self.ram.free(&kept.pages)?;
        self.keep_state()?;
        Ok(bytes)
    }
}

/// Removes a view. Links in it are not followed, so that the host's directories that are shared stay.
pub(super) fn remove_view(view: &Path) -> io::Result<()> {
    match fs::remove_dir_all(view) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn is_volatile(path: &str) -> bool {
    VOLATILE
        .iter()
        .any(|top| path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
}

fn stamp(status: &fs::Metadata) -> FileStamp {
    (status.ino(), status.size(), status.mtime(), status.mtime_nsec(), status.ctime(), status.ctime_nsec())
}

/// The content of a file; nothing if a program has removed the file meanwhile.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    match fs::read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        other => other,
    }
}

/// Collects all that is below a directory, without what is at mount points and what the kernel makes.
fn scan(
    root: &Path,
    below: &str,
    points: &BTreeSet<String>,
    seen: &mut BTreeMap<String, fs::Metadata>,
) -> io::Result<()> {
    let entries = match fs::read_dir(root.join(below)) {
        Err(error) if error.kind() == ErrorKind::NotFound && !below.is_empty() => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let name = entry?.file_name();
        let Some(name) = name.to_str().filter(|name| !below.is_empty() || !OWN.contains(name)) else {
            continue;
        };
        let path = if below.is_empty() { name.to_owned() } else { format!("{below}/{name}") };
        let status = match root.join(&path).symlink_metadata() {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            other => other?,
        };
        if points.contains(&path) {
            continue;
        }
        let kind = status.file_type();
        if kind.is_dir() {
            scan(root, &path, points, seen)?;
        }
        if kind.is_dir() || kind.is_file() || kind.is_symlink() {
            seen.insert(path, status);
        }
    }
    Ok(())
}

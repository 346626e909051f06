//! The root disk of a simulated machine: an image with real bytes in blocks, and a table of files that is replaced whole.
//!
//! The table is in one of two places in turn, with a number and a checksum, so that a machine that ends while it writes
//! finds the one before. A block that is freed keeps its bytes until it is used again or trimmed, as on any disk.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::FallocateFlags;
use serde::{Deserialize, Serialize};

use super::ram::{self, AllocationMap, PAGE};

const MAGIC: &[u8; 16] = b"nixbox-sim-disk1";
/// Each of the two tables, in bytes.
const TABLE: u64 = 1 << 20;
const HEAD: u64 = 16 + 8 + 8 + 4;

/// By path without the leading slash.
pub(super) type FileTable = BTreeMap<String, DiskInode>;

/// What a file, directory or link is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum InodeKind {
    Directory,
    File,
    Link(String),
}

/// One of them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct DiskInode {
    pub(super) kind: InodeKind,
    pub(super) mode: u32,
    pub(super) size: u64,
    /// Of the disk.
    pub(super) blocks: Vec<u64>,
    /// Of RAM, if it is in the page cache.
    #[serde(default)]
    pub(super) pages: Vec<u64>,
    /// Whether the page cache knows more than the disk.
    #[serde(default)]
    pub(super) dirty: bool,
    /// By what a change on the host is noticed.
    #[serde(skip)]
    pub(super) stamp: FileStamp,
}

/// Inode, size, and times of change.
pub(super) type FileStamp = (u64, u64, i64, i64, i64, i64);

impl DiskInode {
    pub(super) fn new(kind: InodeKind, mode: u32) -> Self {
        let stamp = FileStamp::default();
        Self { kind, mode, size: 0, blocks: Vec::new(), pages: Vec::new(), dirty: true, stamp }
    }
}

/// A disk that is open, and locked as the VMM locks it.
pub(super) struct SimulatedDisk {
    file: File,
    sequence: u64,
    map: AllocationMap,
    /// What the table on the disk uses: not to be written over before there is another.
    committed: AllocationMap,
    count: u64,
    /// Without the right image type a VMM refuses writes to sector 0.
    sector_0: bool,
}

impl SimulatedDisk {
    /// Opens an image, and reads its table.
    ///
    /// # Errors
    /// `InvalidData` if no simulated guest's files are in it.
    pub(super) fn open(path: &Path, sector_0: bool) -> io::Result<(Self, FileTable)> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        file.try_lock().map_err(|_| io::Error::other("The file is already locked"))?;
        let count = file.metadata()?.len() / PAGE;
        let tables = [read_table(&file, 0)?, read_table(&file, 1)?];
        let newest = tables.into_iter().flatten().max_by_key(|(sequence, _)| *sequence);
        let (sequence, mut files) = newest.ok_or(ErrorKind::InvalidData)?;
        let map = || AllocationMap::new(count, 2 * TABLE / PAGE);
        let mut disk = Self { file, sequence, map: map(), committed: map(), count, sector_0 };
        for inode in files.values_mut() {
            (inode.dirty, inode.pages) = (false, Vec::new());
            disk.map.mark(&inode.blocks, true);
            disk.committed.mark(&inode.blocks, true);
        }
        Ok((disk, files))
    }

    /// Makes an image of a size, with files in it.
    pub(super) fn make(path: &Path, size: u64, contents: &[(&str, u32, &[u8])]) -> io::Result<()> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        file.set_len(size)?;
        let map = || AllocationMap::new(size / PAGE, 2 * TABLE / PAGE);
        let (map, committed) = (map(), map());
        let mut disk = Self { file, sequence: 0, map, committed, count: size / PAGE, sector_0: true };
        let mut files = FileTable::new();
        for (path, mode, bytes) in contents {
            for (at, _) in path.match_indices('/') {
                files
                    .entry(path[..at].to_owned())
                    .or_insert_with(|| DiskInode::new(InodeKind::Directory, 0o755));
            }
            let mut inode = DiskInode::new(InodeKind::File, *mode);
            inode.size = bytes.len() as u64;
            inode.blocks = disk.store(Vec::new(), bytes)?;
            files.insert((*path).to_owned(), inode);
        }
        disk.commit(&files)
    }

    /// Another may have it now, and this one does not write to it any more.
    pub(super) fn release(&self) {
        // The lock ends with the file in any case.
        self.file.unlock().ok();
    }

    /// Which table is the one that counts.
    pub(super) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Puts bytes into blocks: into `old` as far as they go.
    pub(super) fn store(&mut self, mut old: Vec<u64>, bytes: &[u8]) -> io::Result<Vec<u64>> {
        let chunks: Vec<_> = bytes.chunks(PAGE as usize).collect();
        let surplus = old.split_off(old.len().min(chunks.len()));
        self.map.mark(&surplus, false);
        while old.len() < chunks.len() {
            old.push(self.map.take(|block| !self.committed.is_used(block))?);
        }
        for (block, chunk) in old.iter().zip(chunks) {
            let mut whole = [0; PAGE as usize];
            whole[..chunk.len()].copy_from_slice(chunk);
            self.file.write_all_at(&whole, block * PAGE)?;
        }
        Ok(old)
    }

    pub(super) fn load(&self, inode: &DiskInode) -> io::Result<Vec<u8>> {
        ram::load(&self.file, &inode.blocks, inode.size)
    }

    /// Makes `files` what the disk holds.
    pub(super) fn commit(&mut self, files: &FileTable) -> io::Result<()> {
        let bytes = serde_json::to_vec(files)?;
        if bytes.len() as u64 > TABLE - HEAD {
            return Err(ErrorKind::StorageFull.into());
        }
        let sequence = self.sequence + 1;
        if sequence.is_multiple_of(2) && !self.sector_0 {
            return Err(io::Error::other("the VMM refuses writes to sector 0 of a disk without image_type"));
        }
        let mut table = MAGIC.to_vec();
        table.extend(sequence.to_le_bytes());
        table.extend((bytes.len() as u64).to_le_bytes());
        table.extend(crc32c::crc32c(&bytes).to_le_bytes());
        table.extend(bytes);
        self.file.write_all_at(&table, (sequence % 2) * TABLE)?;
        self.sequence = sequence;
        self.committed = AllocationMap::new(self.count, 2 * TABLE / PAGE);
        for inode in files.values() {
            self.committed.mark(&inode.blocks, true);
        }
        Ok(())
    }

    /// What a removed file was in. Its bytes stay.
    pub(super) fn free(&mut self, blocks: &[u64]) {
        self.map.mark(blocks, false);
    }

    /// Gives free blocks back to the host: their bytes are gone.
    pub(super) fn trim(&mut self) -> io::Result<()> {
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        for (first, count) in self.map.holes() {
            rustix::fs::fallocate(&self.file, how, first * PAGE, count * PAGE)?;
        }
        Ok(())
    }
}

fn read_table(file: &File, which: u64) -> io::Result<Option<(u64, FileTable)>> {
    let mut head = [0; HEAD as usize];
    match file.read_exact_at(&mut head, which * TABLE) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| head[at + byte]));
    let (sequence, length) = (word(16), word(24));
    if head[..16] != *MAGIC || length > TABLE - HEAD {
        return Ok(None);
    }
    let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
    file.read_exact_at(&mut bytes, which * TABLE + HEAD)?;
    if crc32c::crc32c(&bytes).to_le_bytes() != head[32..] {
        return Ok(None);
    }
    Ok(serde_json::from_slice(&bytes).ok().map(|files| (sequence, files)))
}

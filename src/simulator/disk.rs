//! The root disk of a simulated guest: an image file with blocks of 4 KiB, and a table that says which file has which.
//!
//! A new table is written to the two places for it in turn, with a sequence number and a checksum: if the guest ends while
//! it writes, the table before is still whole. A block that is freed keeps its bytes until it is used again or trimmed.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::FallocateFlags;
use serde::{Deserialize, Serialize};

use super::ram::{self, AllocationMap, PAGE};

const MAGIC: &[u8; 16] = b"nixbox-sim-disk1";
/// The size of the place for a table, in bytes. The image begins with two of them.
const TABLE: u64 = 1 << 20;
const HEAD: u64 = 16 + 8 + 8 + 4;

/// Files by path, without the leading slash.
pub(super) type FileTable = BTreeMap<String, DiskInode>;

/// The kind of an inode.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum InodeKind {
    Directory,
    File,
    Link(String),
}

/// A file, directory or link.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct DiskInode {
    pub(super) kind: InodeKind,
    pub(super) mode: u32,
    pub(super) size: u64,
    /// Its blocks on the disk.
    pub(super) blocks: Vec<u64>,
    /// Its pages in RAM, if it is in the page cache.
    #[serde(default)]
    pub(super) pages: Vec<u64>,
    /// Whether the page cache holds a change that the disk lacks.
    #[serde(default)]
    pub(super) dirty: bool,
    /// What the file in the view looked like when it was last read: a change is noticed by a difference.
    #[serde(skip)]
    pub(super) stamp: FileStamp,
}

/// Inode number, size, and times of modification and status change of a file in the view.
pub(super) type FileStamp = (u64, u64, i64, i64, i64, i64);

impl DiskInode {
    pub(super) fn new(kind: InodeKind, mode: u32) -> Self {
        let stamp = FileStamp::default();
        Self { kind, mode, size: 0, blocks: Vec::new(), pages: Vec::new(), dirty: true, stamp }
    }
}

/// A disk image that is open and locked, as a VMM locks it.
pub(super) struct SimulatedDisk {
    file: File,
    sequence: u64,
    map: AllocationMap,
    /// The blocks that the table on the disk refers to. They are not overwritten before there is another table.
    committed: AllocationMap,
    count: u64,
    /// Whether sector 0 can be written: a VMM refuses that for a disk without the right image type.
    sector_0: bool,
}

impl SimulatedDisk {
    /// Opens and locks an image, and reads its newest table.
    ///
    /// # Errors
    /// `InvalidData` if it is not the disk of a simulated guest.
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

    /// Makes an image of `size` bytes with files in it: path, permissions and content of each.
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

    /// Gives up the lock.
    pub(super) fn release(&self) {
        // If this fails the lock ends when the file is closed.
        self.file.unlock().ok();
    }

    /// The sequence number of the newest table.
    pub(super) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Writes bytes into blocks, first into those of `old`. Returns the blocks.
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

    /// Writes a table that holds `files`.
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

    /// Frees the blocks of a removed file. Their bytes stay.
    pub(super) fn free(&mut self, blocks: &[u64]) {
        self.map.mark(blocks, false);
    }

    /// Punches holes into the image where blocks are free: their bytes are gone.
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

//! Where bytes of a disk image may be overwritten without anybody noticing but the programs that read them.
//!
//! The data of a file and free blocks may be, where the file system keeps no checksums of them: ext2 to ext4, xfs, FAT and
//! swap. What such a file system keeps of itself has checksums, and is left alone: superblocks, tables of groups and inodes,
//! directories, blocks of attributes, the log of xfs, and the journal of ext4 as long as a kernel would replay it. btrfs, ZFS,
//! bcachefs, encrypted volumes and whatever is not known here are left alone as a whole, and so is what lies outside of all
//! partitions.
//!
//! An image is written by a guest, so every number in it is checked before it is used.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

/// Why bytes of a snapshot are not overwritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Fixed {
    #[error("which the VMM wrote and reads again")]
    VmmState,
    #[error("where it has the form of a name")]
    Manifest,
    #[error("whose file system is {0}, which checks what it reads")]
    Checked(&'static str),
    #[error("whose file system is not known to nixbox, and may check what it reads")]
    Unknown,
    #[error("outside of all partitions")]
    NoPartition,
    #[error("in a part of the file system that has a checksum")]
    Metadata,
}

/// What lies on a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FileSystem {
    Ext(Ext),
    Xfs(Xfs),
    Plain,
    Other(Fixed),
}

/// The part of the superblock of ext2 to ext4 that says where inodes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ext {
    block: u64,
    groups: u64,
    /// Where the table of groups begins.
    table: u64,
    descriptor: u64,
    /// The bytes of one inode.
    inode: u64,
    /// The bytes of the inodes of one group.
    inodes: u64,
    /// The number of the inode that is the journal.
    journal: Option<u64>,
    wide: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Xfs {
    block: u64,
    inode: u64,
    log: (u64, u64),
}

/// A volume in an image: its first byte, the byte after its last, and what lies on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Volume {
    from: u64,
    to: u64,
    system: FileSystem,
}

/// The file systems of an image.
#[derive(Debug)]
pub(super) struct FileSystems(Vec<Volume>);

/// Bytes of an image at a place; zeros beyond its end.
fn bytes<const N: usize>(image: &File, at: u64) -> io::Result<[u8; N]> {
    let (mut bytes, mut filled) = ([0; N], 0);
    while filled < N {
        let Some(place) = at.checked_add(filled as u64).filter(|place| i64::try_from(*place).is_ok()) else {
            break;
        };
        match image.read_at(&mut bytes[filled..], place)? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(bytes)
}

fn le16(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |bytes| u16::from_le_bytes(*bytes)).into()
}

fn le32(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes)).into()
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

fn be(bytes: &[u8], at: usize, length: usize) -> u64 {
    bytes[at..at + length].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// The length of a sector in the tables of partitions.
const SECTOR: u64 = 512;
/// The most partitions that are read.
const MOST_PARTITIONS: u64 = 256;

impl FileSystems {
    /// Reads what lies on an image.
    pub(super) fn of(image: &File) -> io::Result<Self> {
        let end = image.metadata()?.len();
        let whole = |from, to| Ok::<_, io::Error>(Volume { from, to, system: FileSystem::at(image, from)? });
        let alone = whole(0, end)?;
        if alone.system != FileSystem::Other(Fixed::Unknown) {
            return Ok(Self(vec![alone]));
        }
        let partitions = match gpt(image)? {
            Some(partitions) => partitions,
            None => mbr(image)?,
        };
        if partitions.is_empty() {
            return Ok(Self(vec![alone]));
        }
        partitions.into_iter().map(|(from, to)| whole(from, to.min(end))).collect::<io::Result<_>>().map(Self)
    }

    /// Why so many bytes at a place must not be overwritten; `None` if they may be.
    pub(super) fn fixed(&self, image: &File, at: u64, length: u64) -> io::Result<Option<Fixed>> {
        let to = at.saturating_add(length);
        let Some(volume) = self.0.iter().find(|volume| volume.from <= at && to <= volume.to) else {
            return Ok(Some(Fixed::NoPartition));
        };
        let (from, to) = (at - volume.from, to - volume.from);
        let metadata = match &volume.system {
            FileSystem::Plain => false,
            FileSystem::Other(fixed) => return Ok(Some(*fixed)),
            FileSystem::Ext(ext) => ext.is_metadata(image, volume.from, (from, to))?,
            FileSystem::Xfs(xfs) => xfs.is_metadata(image, volume.from, (from, to))?,
        };
        Ok(metadata.then_some(Fixed::Metadata))
    }
}

fn gpt(image: &File) -> io::Result<Option<Vec<(u64, u64)>>> {
    let header: [u8; 92] = bytes(image, SECTOR)?;
    if !header.starts_with(b"EFI PART") {
        return Ok(None);
    }
    let (table, count, size) = (le64(&header, 72), le32(&header, 80), le32(&header, 84));
    let mut partitions = Vec::new();
    for number in 0..count.min(MOST_PARTITIONS) {
        let entry: [u8; 48] = bytes(image, table.saturating_mul(SECTOR).saturating_add(number * size))?;
        let (first, last) = (le64(&entry, 32), le64(&entry, 40));
        if entry[..16] != [0; 16] && first <= last {
            partitions.push((first.saturating_mul(SECTOR), last.saturating_add(1).saturating_mul(SECTOR)));
        }
    }
    Ok(Some(partitions))
}

fn mbr(image: &File) -> io::Result<Vec<(u64, u64)>> {
    let sector: [u8; 512] = bytes(image, 0)?;
    if sector[510..] != [0x55, 0xaa] {
        return Ok(Vec::new());
    }
    // An extended partition begins with another table, which is no file system that is known here.
    let entries = (0..4).map(|number| &sector[446 + 16 * number..]);
    let entries = entries.filter(|entry| entry[4] != 0);
    Ok(entries.map(|entry| (le32(entry, 8) * SECTOR, (le32(entry, 8) + le32(entry, 12)) * SECTOR)).collect())
}

impl FileSystem {
    fn at(image: &File, from: u64) -> io::Result<Self> {
        let head: [u8; 4096] = bytes(image, from)?;
        let later: [u8; 72] = bytes(image, from.saturating_add(65_536))?;
        let checked = |name| Ok(Self::Other(Fixed::Checked(name)));
        if head.starts_with(b"LUKS\xba\xbe") {
            return checked("encrypted with LUKS");
        }
        if later[64..] == *b"_BHRfS_M" {
            return checked("btrfs");
        }
        if head.starts_with(b"XFSB") {
            return Ok(Xfs::of(&head).map_or(Self::Other(Fixed::Unknown), Self::Xfs));
        }
        if le16(&head, 1024 + 56) == 0xef53 {
            return Ok(Ext::of(&head[1024..]).map_or(Self::Other(Fixed::Unknown), Self::Ext));
        }
        if head[4086..] == *b"SWAPSPACE2" {
            return Ok(Self::Plain);
        }
        let fat = [&head[54..57], &head[82..85]].contains(&&b"FAT"[..]);
        Ok(if fat && head[510..512] == [0x55, 0xaa] { Self::Plain } else { Self::Other(Fixed::Unknown) })
    }
}

impl Ext {
    /// `None` if it is of a kind that is not known here.
    fn of(superblock: &[u8]) -> Option<Self> {
        /// Blocks of files that are compressed or have a tree of hashes, and groups whose table is elsewhere.
        const STRANGE: (u64, u64) = (0x1 | 0x10, 0x8000);
        const WIDE: u64 = 0x80;
        const HAS_JOURNAL: u64 = 4;
        let (incompatible, read_only) = (le32(superblock, 96), le32(superblock, 100));
        if incompatible & STRANGE.0 != 0 || read_only & STRANGE.1 != 0 || le32(superblock, 24) > 6 {
            return None;
        }
        let block = 1024 << le32(superblock, 24);
        let wide = incompatible & WIDE != 0;
        let blocks = le32(superblock, 4) | if wide { le32(superblock, 0x150) << 32 } else { 0 };
        let (first, per_group) = (le32(superblock, 20), le32(superblock, 32));
        let inode = if le32(superblock, 76) == 0 { 128 } else { le16(superblock, 88) };
        let journal = (le32(superblock, 92) & HAS_JOURNAL != 0).then(|| le32(superblock, 0xe0));
        let descriptor = if wide { le16(superblock, 0xfe) } else { 32 };
        if per_group == 0 || !(32..=1024).contains(&descriptor) || blocks < first {
            return None;
        }
        let groups = (blocks - first).div_ceil(per_group);
        let table = (first + 1) * block;
        // A disk of 16 TiB has 131,072 groups.
        (groups <= 1 << 22).then_some(Self {
            block,
            groups,
            table,
            descriptor,
            inode,
            inodes: le32(superblock, 40) * inode,
            // Zero stands for a journal on another device.
            journal: journal.filter(|number| *number != 0 && inode != 0),
            wide,
        })
    }

    fn is_metadata(&self, image: &File, volume: u64, (from, to): (u64, u64)) -> io::Result<bool> {
        if from < self.table + self.groups * self.descriptor {
            return Ok(true);
        }
        for group in 0..self.groups {
            let [blocks_used, inodes_used, inodes] = self.group(image, volume, group)?;
            let parts = [(blocks_used, self.block), (inodes_used, self.block), (inodes, self.inodes)];
            if parts.iter().any(|(start, length)| from < start.saturating_add(*length) && *start < to) {
                return Ok(true);
            }
        }
        // A block of a directory ends with an entry that has its checksum; one of attributes begins with a magic number.
        let mut block = from / self.block * self.block;
        while block < to {
            let (head, tail): ([u8; 4], [u8; 12]) =
                (bytes(image, volume + block)?, bytes(image, volume + block + self.block - 12)?);
            if head == [0, 0, 2, 0xea] || tail[..8] == [0, 0, 0, 0, 12, 0, 0, 0xde] {
                return Ok(true);
            }
            block += self.block;
        }
        self.is_replayed(image, volume, (from, to))
    }

    /// Where a group has its two bitmaps and its inodes.
    fn group(&self, image: &File, volume: u64, group: u64) -> io::Result<[u64; 3]> {
        let descriptor: [u8; 64] = bytes(image, volume + self.table + group * self.descriptor)?;
        let high =
            |at: usize| if self.wide && self.descriptor >= 64 { le32(&descriptor, at) << 32 } else { 0 };
        let block = |low: usize, at: usize| (le32(&descriptor, low) | high(at)).saturating_mul(self.block);
        Ok([block(0, 0x20), block(4, 0x24), block(8, 0x28)])
    }

    /// Whether bytes are in a journal that has checksums and that a kernel would replay: it would stop at a block that does not
    /// have its checksum. If the journal's blocks are not known, any bytes are.
    fn is_replayed(&self, image: &File, volume: u64, (from, to): (u64, u64)) -> io::Result<bool> {
        /// The features of a journal: checksums of transactions, and of blocks in two forms.
        const CHECKSUMS: (u64, u64) = (1, 8 | 16);
        let Some(number) = self.journal else {
            return Ok(false);
        };
        let at = (number - 1) * self.inode;
        let [.., inodes] = self.group(image, volume, at.checked_div(self.inodes).unwrap_or(0))?;
        let inode = volume.saturating_add(inodes).saturating_add(at.checked_rem(self.inodes).unwrap_or(0));
        let extents = Extents::of(&bytes(image, inode.saturating_add(40))?, self.block);
        let Some(first) = extents.first else {
            return Ok(true);
        };
        let journal: [u8; 48] = bytes(image, volume.saturating_add(first))?;
        let (begin, features) = (be(&journal, 28, 4), (be(&journal, 36, 4), be(&journal, 40, 4)));
        let checked = features.0 & CHECKSUMS.0 != 0 || features.1 & CHECKSUMS.1 != 0;
        let within = |(start, end): &(u64, u64)| from < *end && *start < to;
        Ok(begin != 0 && checked && extents.all.is_none_or(|all| all.iter().any(within)))
    }
}

/// Where the blocks of a file are.
struct Extents {
    /// The first byte; `None` if a block that is not the inode says it.
    first: Option<u64>,
    /// The first bytes of all runs of blocks and the bytes after their last; `None` if other blocks list them.
    all: Option<Vec<(u64, u64)>>,
}

impl Extents {
    /// Reads what an inode has of them, for a file system that has blocks of this size.
    fn of(root: &[u8; 60], block: u64) -> Self {
        const MAGIC: u64 = 0xf30a;
        let (magic, count, depth) = (le16(root, 0), le16(root, 2), le16(root, 6));
        if magic != MAGIC {
            return Self { first: Some(le32(root, 0).saturating_mul(block)), all: None };
        }
        if depth != 0 {
            return Self { first: None, all: None };
        }
        let extent = |number: usize| {
            let at = 12 + 12 * number;
            let start = (le32(root, at + 8) | le16(root, at + 6) << 32).saturating_mul(block);
            (start, start.saturating_add(le16(root, at + 4) * block))
        };
        let all: Vec<(u64, u64)> = (0..count.min(4) as usize).map(extent).collect();
        Self { first: all.first().map(|(start, _)| *start), all: Some(all) }
    }
}

impl Xfs {
    /// `None` if a number of it is none that a file system has.
    fn of(superblock: &[u8]) -> Option<Self> {
        let (block, inode) = (be(superblock, 4, 4), be(superblock, 104, 2));
        let (log_start, log_blocks) = (be(superblock, 48, 8), be(superblock, 96, 4));
        let (group_blocks, group_bits) = (be(superblock, 84, 4), u32::from(superblock[124]));
        let sane = |number: u64, most| number.is_power_of_two() && (256..=most).contains(&number);
        if !sane(block, 65_536) || !sane(inode, 2048) || group_bits > 31 {
            return None;
        }
        let within = log_start & ((1 << group_bits) - 1);
        let start = ((log_start >> group_bits) * group_blocks).checked_add(within)?.checked_mul(block)?;
        Some(Self { block, inode, log: (start, start.checked_add(log_blocks * block)?) })
    }

    fn is_metadata(&self, image: &File, volume: u64, (from, to): (u64, u64)) -> io::Result<bool> {
        /// What blocks begin with that describe themselves. Other kinds hold numbers alone.
        const MAGIC: [&[u8; 4]; 10] =
            [b"XFSB", b"XAGF", b"XAGI", b"XAFL", b"XDB3", b"XDD3", b"XDF3", b"XSLM", b"XARM", b"XD2B"];
        /// The kinds of nodes of directories and attributes, after two numbers.
        const NODES: [[u8; 2]; 5] = [[0x3e, 0xbe], [0x3d, 0xf1], [0x3d, 0xff], [0x3b, 0xee], [0xfb, 0xee]];
        if from < self.log.1 && self.log.0 < to {
            return Ok(true);
        }
        let mut inode = from / self.inode * self.inode;
        while inode < to {
            let head: [u8; 2] = bytes(image, volume + inode)?;
            if head == *b"IN" {
                return Ok(true);
            }
            inode += self.inode;
        }
        let mut block = from / self.block * self.block;
        while block < to {
            let head: [u8; 10] = bytes(image, volume + block)?;
            let kind = [head[8], head[9]];
            if MAGIC.iter().any(|magic| head.starts_with(*magic)) || NODES.contains(&kind) {
                return Ok(true);
            }
            block += self.block;
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests;

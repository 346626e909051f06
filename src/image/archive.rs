//! Reads a tar archive from any source: the entries of POSIX (ustar, pax) and GNU tar, one after the other.
//!
//! The archive is hostile. Every header has its checksum verified, every number is parsed into its range, and nothing that
//! the archive declares is allocated before it is compared with a limit. The names are bytes and are not interpreted here:
//! [`super::tree`] decides what a name may be.
//!
//! The crate `tar` parses the single headers. The loop is not its own, because its reader of pax records ends the value of
//! an extended attribute at a line end within the value, and capabilities are binary.

use std::collections::BTreeMap;
use std::io::{self, Read};

use tar::{EntryType, Header};

/// The size of a block of an archive.
const BLOCK: usize = 512;
/// The most bytes of a name, a link or the pax records of one entry. A path has at most 4096 bytes, and an attribute 64 KiB.
const LONGEST_EXTENSION: u64 = 1 << 20;

/// Why an archive cannot be read.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("cannot read the archive")]
    Read(#[source] io::Error),
    #[error("the archive ends in the middle of {0}")]
    Truncated(String),
    #[error("the archive is damaged, or is not a tar archive: the checksum of a header is wrong at byte {0}")]
    Checksum(u64),
    #[error("the archive has a header with {what} that is not a number, at byte {at}")]
    Number { what: &'static str, at: u64 },
    #[error("the archive has {what} of {size} bytes, and more than {LONGEST_EXTENSION} are not accepted")]
    Extension { what: &'static str, size: u64 },
    #[error("the archive has pax records that are not well formed, at byte {0}")]
    Records(u64),
    #[error(
        "{0} is a sparse file in a form of GNU tar, which is not supported: make the archive without --sparse"
    )]
    Sparse(String),
    #[error("{path} is an entry of the unknown type {kind:?}")]
    Kind { path: String, kind: char },
}

/// What an entry of an archive makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file, whose content follows.
    File,
    /// Another name of a file that was made before.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
    /// A character or a block device.
    Device,
}

/// The header of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TarEntry {
    /// The name as it is in the archive.
    pub path: Vec<u8>,
    /// What a link leads to.
    pub link: Vec<u8>,
    /// What the entry makes.
    pub kind: EntryKind,
    /// The permissions, with the setuid, setgid and sticky bits.
    pub mode: u32,
    /// The number of the owner.
    pub uid: u32,
    /// The number of the group.
    pub gid: u32,
    /// The time of the last change, in seconds.
    pub modified: u64,
    /// The extended attributes.
    pub attributes: BTreeMap<Vec<u8>, Vec<u8>>,
    /// How many bytes of content follow.
    pub size: u64,
}

impl TarEntry {
    /// The name for messages.
    #[must_use]
    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&self.path).into_owned()
    }
}

/// Reads the entries of an archive.
#[derive(Debug)]
pub struct TarReader<R> {
    inner: R,
    /// How many bytes were read.
    position: u64,
    /// How much of the present entry's content is still to be read.
    content: u64,
    /// The bytes between the content and the next header.
    padding: u64,
    /// Whether the mark was read that ends an archive.
    marked: bool,
}

/// What extension headers said about the entry that follows them.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    records: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl<R: Read> TarReader<R> {
    /// Reads the archive from `inner`.
    pub fn new(inner: R) -> Self {
        Self { inner, position: 0, content: 0, padding: 0, marked: false }
    }

    /// The next entry; `None` at the end of the archive. What is left of the content of the entry before is passed over.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn next_entry(&mut self) -> Result<Option<TarEntry>, ArchiveError> {
        let mut extensions = Extensions::default();
        loop {
            self.pass_over()?;
            let at = self.position;
            let Some(header) = self.header()? else { return Ok(None) };
            let size = number(header.entry_size(), "a size", at)?;
            self.expect(size);
            match header.entry_type() {
                EntryType::GNULongName => extensions.path = Some(self.text("a name", size)?),
                EntryType::GNULongLink => extensions.link = Some(self.text("a link", size)?),
                EntryType::XHeader => {
                    let records = self.extension("pax records", size)?;
                    extensions.records = parse_records(&records).ok_or(ArchiveError::Records(at))?;
                }
                // Global records have comments, as of git archive; no attribute of a file is taken from them.
                EntryType::XGlobalHeader => drop(self.extension("pax records", size)?),
                _ => return self.entry(&header, extensions, at).map(Some),
            }
        }
    }

    /// The content of the present entry.
    pub fn content(&mut self) -> EntryContent<'_, R> {
        EntryContent(self)
    }

    /// How many bytes were read up to here.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// How many bytes are before the next header.
    pub(super) fn unread(&self) -> u64 {
        self.content + self.padding
    }

    /// The bytes before the next header were passed over in the source itself.
    pub(super) fn forget_unread(&mut self) {
        self.position += self.unread();
        (self.content, self.padding) = (0, 0);
    }

    pub(super) fn inner_mut(&mut self) -> &mut R {
        &mut self.inner
    }

    fn expect(&mut self, size: u64) {
        self.content = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
    }

    fn entry(&mut self, header: &Header, extensions: Extensions, at: u64) -> Result<TarEntry, ArchiveError> {
        let Extensions { path, link, mut records } = extensions;
        let path = records.remove(b"path".as_slice()).or(path);
        let path = path.unwrap_or_else(|| header.path_bytes().into_owned());
        let shown = || String::from_utf8_lossy(&path).into_owned();
        if records.keys().any(|key| key.starts_with(b"GNU.sparse.")) {
            return Err(ArchiveError::Sparse(shown()));
        }
        let mut kind = match header.entry_type() {
            EntryType::Regular | EntryType::Continuous => EntryKind::File,
            EntryType::Link => EntryKind::HardLink,
            EntryType::Symlink => EntryKind::Symlink,
            EntryType::Directory => EntryKind::Directory,
            EntryType::Fifo => EntryKind::Fifo,
            EntryType::Char | EntryType::Block => EntryKind::Device,
            EntryType::GNUSparse => return Err(ArchiveError::Sparse(shown())),
            other => return Err(ArchiveError::Kind { path: shown(), kind: other.as_byte() as char }),
        };
        // Archives older than POSIX mark a directory by the slash alone.
        if kind == EntryKind::File && path.ends_with(b"/") {
            kind = EntryKind::Directory;
        }
        let decimal = |key: &str, what| match records.get(key.as_bytes()) {
            Some(text) => decimal(text).map(Some).ok_or(ArchiveError::Number { what, at }),
            None => Ok(None),
        };
        if let Some(size) = decimal("size", "a size")? {
            self.expect(size);
        }
        let id = |value: Option<u64>, header: io::Result<u64>, what| {
            let value = value.map_or_else(|| number(header, what, at), Ok)?;
            u32::try_from(value).map_err(|_| ArchiveError::Number { what, at })
        };
        let uid = id(decimal("uid", "an owner")?, header.uid(), "an owner")?;
        let gid = id(decimal("gid", "a group")?, header.gid(), "a group")?;
        let modified = records.get(b"mtime".as_slice()).and_then(|text| seconds(text));
        let link = records.remove(b"linkpath".as_slice()).or(link);
        let link =
            link.or_else(|| header.link_name_bytes().map(|link| link.into_owned())).unwrap_or_default();
        let mode = number(header.mode().map(u64::from), "permissions", at)? & 0o7777;
        if kind != EntryKind::File && kind != EntryKind::HardLink && self.content != 0 {
            // POSIX: the size of these is not followed by content in archives of some old tools.
            self.expect(0);
        }
        Ok(TarEntry {
            link,
            kind,
            mode: u32::try_from(mode).unwrap_or_default(),
            uid,
            gid,
            modified: modified.or_else(|| header.mtime().ok()).unwrap_or_default(),
            attributes: attributes(records),
            size: self.content,
            path,
        })
    }

    fn header(&mut self) -> Result<Option<Header>, ArchiveError> {
        let at = self.position;
        let mut block = [0; BLOCK];
        let read = self.fill(&mut block)?;
        // An archive ends with two blocks of zeros; some tools leave them out.
        self.marked = read == BLOCK && block == [0; BLOCK];
        if read == 0 || self.marked {
            return Ok(None);
        }
        if read < BLOCK {
            return Err(ArchiveError::Truncated("a header".to_owned()));
        }
        let header = Header::from_byte_slice(&block).clone();
        let sum: u32 = block[..148].iter().chain(&block[156..]).map(|byte| u32::from(*byte)).sum();
        let declared = header.cksum().map_err(|_| ArchiveError::Checksum(at))?;
        if declared != sum + 8 * u32::from(b' ') {
            return Err(ArchiveError::Checksum(at));
        }
        Ok(Some(header))
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, ArchiveError> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.inner.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ArchiveError::Read(error)),
            }
        }
        self.position += filled as u64;
        Ok(filled)
    }

    fn text(&mut self, what: &'static str, size: u64) -> Result<Vec<u8>, ArchiveError> {
        let mut text = self.extension(what, size)?;
        while text.last() == Some(&0) {
            text.pop();
        }
        Ok(text)
    }

    fn extension(&mut self, what: &'static str, size: u64) -> Result<Vec<u8>, ArchiveError> {
        if size > LONGEST_EXTENSION {
            return Err(ArchiveError::Extension { what, size });
        }
        let mut bytes = Vec::new();
        EntryContent(self).read_to_end(&mut bytes).map_err(read_error)?;
        Ok(bytes)
    }

    fn pass_over(&mut self) -> Result<(), ArchiveError> {
        io::copy(&mut EntryContent(self), &mut io::sink()).map_err(read_error)?;
        let mut padding = [0; BLOCK];
        let wanted = usize::try_from(self.padding).unwrap_or_default();
        self.padding = 0;
        // The last entry of some archives has no padding.
        self.fill(&mut padding[..wanted]).map(drop)
    }

    /// Reads to the end, so that a digest over the whole stream can be compared. Returns whether the archive has the mark at its
    /// end, without which it may have been cut short between two entries.
    ///
    /// # Errors
    /// If the source cannot be read.
    pub fn drain(mut self) -> Result<bool, ArchiveError> {
        io::copy(&mut self.inner, &mut io::sink()).map_err(ArchiveError::Read)?;
        Ok(self.marked)
    }
}

/// The content of an entry. If the archive ends before the content does, the error is [`io::ErrorKind::UnexpectedEof`].
pub struct EntryContent<'a, R>(&'a mut TarReader<R>);

impl<R: Read> Read for EntryContent<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let reader = &mut *self.0;
        let most = usize::try_from(reader.content).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let read = reader.inner.read(&mut buffer[..most])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        reader.content -= read as u64;
        reader.position += read as u64;
        Ok(read)
    }
}

/// The error of a read of content.
fn read_error(error: io::Error) -> ArchiveError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => ArchiveError::Truncated("an entry".to_owned()),
        _ => ArchiveError::Read(error),
    }
}

fn number(value: io::Result<u64>, what: &'static str, at: u64) -> Result<u64, ArchiveError> {
    value.map_err(|_| ArchiveError::Number { what, at })
}

fn decimal(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Whole seconds of a time with a fraction; times before 1970 become 0.
fn seconds(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    if text.starts_with('-') {
        return Some(0);
    }
    text.split('.').next()?.parse().ok()
}

fn attributes(records: BTreeMap<Vec<u8>, Vec<u8>>) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let named =
        |(key, value): (Vec<u8>, Vec<u8>)| Some((key.strip_prefix(b"SCHILY.xattr.")?.to_vec(), value));
    records.into_iter().filter_map(named).collect()
}

/// Parses records of the form `LENGTH KEY=VALUE\n`, in which the length counts the whole record; `None` if one has another
/// form.
fn parse_records(mut text: &[u8]) -> Option<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut records = BTreeMap::new();
    // Some tools fill the rest with zeros.
    while !text.is_empty() && text[0] != 0 {
        let space = text.iter().position(|byte| *byte == b' ')?;
        let length = usize::try_from(decimal(&text[..space])?).ok()?;
        let record = text.get(space + 1..length)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|byte| *byte == b'=')?;
        records.insert(record[..equals].to_vec(), record[equals + 1..].to_vec());
        text = &text[length..];
    }
    Some(records)
}

#[cfg(test)]
pub(in crate::image) mod tests;

//! Where the manifests and the layers of a container image are read from: a directory, or an archive that was made of one.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::archive::{ArchiveError, EntryKind, TarReader};
use crate::files::FileError;

/// The most bytes of a manifest, of an index or of a configuration. The distribution specification has 4 MiB for manifests.
const LARGEST_DOCUMENT: u64 = 8 << 20;

/// Why a part of a container image cannot be read.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error("{0:?} is not the path of a file in a container image")]
    Path(String),
    #[error("the container image has no {0}, which its manifest names")]
    Missing(String),
    #[error("{0} of the container image is larger than {LARGEST_DOCUMENT} bytes")]
    Large(String),
}

/// The parts of a container image, by their paths.
#[derive(Debug)]
pub enum BlobSource {
    /// Files in this directory.
    Directory(PathBuf),
    /// Parts of this archive: where they begin, and their sizes.
    Archive {
        /// The archive, which is not compressed.
        file: File,
        /// Where each file begins, and its size.
        index: BTreeMap<String, (u64, u64)>,
    },
}

impl BlobSource {
    /// Looks at what is in an archive, which is not compressed.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn of_archive(file: File, path: &Path) -> Result<Self, BlobError> {
        let own = file.try_clone().map_err(FileError::system("open", path))?;
        let mut reader = TarReader::new(file);
        let (mut index, mut links) = (BTreeMap::new(), Vec::new());
        while let Some(entry) = reader.next_entry()? {
            let Ok(name) = std::str::from_utf8(&entry.path).map(plain) else { continue };
            match entry.kind {
                EntryKind::File => drop(index.insert(name, (reader.position(), entry.size))),
                // `docker save` of earlier versions has a link for a layer that occurs twice.
                EntryKind::Symlink | EntryKind::HardLink => {
                    links.push((name, entry.kind, String::from_utf8_lossy(&entry.link).into_owned()));
                }
                _ => {}
            }
            reader.seek_past_content().map_err(ArchiveError::Read)?;
        }
        for (name, kind, target) in links {
            let target = if kind == EntryKind::Symlink { beside(&name, &target) } else { plain(&target) };
            if let Some(place) = index.get(&target).copied() {
                index.insert(name, place);
            }
        }
        Ok(Self::Archive { file: own, index })
    }

    /// Whether there is a file of this path.
    #[must_use]
    pub fn has(&self, path: &str) -> bool {
        match self {
            Self::Directory(root) => root.join(path).is_file(),
            Self::Archive { index, .. } => index.contains_key(path),
        }
    }

    /// Opens a part.
    ///
    /// # Errors
    /// [`BlobError`].
    pub fn open(&self, path: &str) -> Result<Box<dyn Read + '_>, BlobError> {
        if path.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
            return Err(BlobError::Path(path.to_owned()));
        }
        match self {
            Self::Directory(root) => {
                let place = root.join(path);
                match File::open(&place) {
                    Ok(file) => Ok(Box::new(file)),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        Err(BlobError::Missing(path.to_owned()))
                    }
                    Err(error) => Err(FileError::system("open", &place)(error).into()),
                }
            }
            Self::Archive { file, index } => {
                let (start, size) =
                    index.get(path).copied().ok_or_else(|| BlobError::Missing(path.to_owned()))?;
                Ok(Box::new(PartReader { file, at: start, end: start.saturating_add(size) }))
            }
        }
    }

    /// Reads a document.
    ///
    /// # Errors
    /// [`BlobError`].
    pub fn document(&self, path: &str) -> Result<Vec<u8>, BlobError> {
        let mut bytes = Vec::new();
        let read = self.open(path)?.take(LARGEST_DOCUMENT + 1).read_to_end(&mut bytes);
        let size = read.map_err(FileError::system("read", path))?;
        if size as u64 > LARGEST_DOCUMENT { Err(BlobError::Large(path.to_owned())) } else { Ok(bytes) }
    }
}

/// The path without `./` before it.
fn plain(path: &str) -> String {
    path.split('/').filter(|part| !part.is_empty() && *part != ".").collect::<Vec<_>>().join("/")
}

/// The path that a link at `path` leads to, within the archive.
fn beside(path: &str, target: &str) -> String {
    let mut parts: Vec<&str> = path.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Reads a part of a file, and leaves the file's own position alone.
struct PartReader<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl Read for PartReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let most = left.min(buffer.len());
        let read = self.file.read_at(&mut buffer[..most], self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

impl TarReader<File> {
    /// Moves to the end of the present entry without reading its content.
    fn seek_past_content(&mut self) -> io::Result<()> {
        let length = self.unread();
        self.inner_mut().seek(SeekFrom::Current(i64::try_from(length).map_err(io::Error::other)?))?;
        self.forget_unread();
        Ok(())
    }
}

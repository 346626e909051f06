//! The contents of an image's files while the image is put together: numbered files in one directory, so that no name of an
//! archive is a name on the host. What is written is counted, so that an archive that unpacks to more than it may is
//! refused before it fills the disk.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::PathBuf;

use super::tree::ContentNumber;
use crate::files::{FileError, Folder};

/// What is left free on the file system of the images.
const RESERVE: u64 = 64 << 20;

/// Why the content of a file cannot be kept.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(
        "the image unpacks to more than {limit} bytes, which its disk holds: give it a larger one with --size"
    )]
    TooLarge { limit: u64 },
    #[error("{} has only {free} bytes left, which is too little for what the image unpacks to", path.display())]
    NoSpace { path: PathBuf, free: u64 },
    #[error("the archive ends in the middle of a file")]
    Truncated,
    #[error("cannot read the archive")]
    Read(#[source] io::Error),
}

/// The files that hold contents.
#[derive(Debug)]
pub struct ContentStore {
    folder: Folder,
    /// The hash of each content.
    hashes: Vec<blake3::Hash>,
    left: u64,
    limit: u64,
    /// How much may be written before the free space is looked at again.
    unchecked: u64,
}

impl ContentStore {
    /// Keeps contents in this directory, `limit` bytes at most.
    #[must_use]
    pub fn new(folder: Folder, limit: u64) -> Self {
        Self { folder, hashes: Vec::new(), left: limit, limit, unchecked: 0 }
    }

    /// The directory.
    #[must_use]
    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// How many bytes were kept.
    #[must_use]
    pub fn kept(&self) -> u64 {
        self.limit - self.left
    }

    /// The name of the file with a content.
    #[must_use]
    pub fn name(number: ContentNumber) -> String {
        number.0.to_string()
    }

    /// Takes `size` bytes from `source` into a file of their own. Returns its number.
    ///
    /// # Errors
    /// [`ContentError`].
    pub fn take(&mut self, source: &mut impl Read, size: u64) -> Result<ContentNumber, ContentError> {
        if size > self.left {
            return Err(ContentError::TooLarge { limit: self.limit });
        }
        let number = ContentNumber(self.hashes.len() as u64);
        let name = Self::name(number);
        let mut file = self.folder.new_file(&name)?;
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; 256 << 10];
        let mut left = size;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            let read = match source.read(&mut buffer[..most]) {
                Ok(0) => return Err(ContentError::Truncated),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(ContentError::Truncated);
                }
                Err(error) => return Err(ContentError::Read(error)),
            };
            self.write(&mut file, &name, &buffer[..read])?;
            hasher.update(&buffer[..read]);
            left -= read as u64;
        }
        self.left -= size;
        self.hashes.push(hasher.finalize());
        Ok(number)
    }

    fn write(&mut self, file: &mut File, name: &str, bytes: &[u8]) -> Result<(), ContentError> {
        if self.unchecked < bytes.len() as u64 {
            let free = self.folder.free_bytes()?;
            if free < RESERVE + bytes.len() as u64 {
                return Err(ContentError::NoSpace { path: self.folder.path().to_owned(), free });
            }
            self.unchecked = ((free - RESERVE) / 4).max(bytes.len() as u64);
        }
        self.unchecked -= bytes.len() as u64;
        Ok(file.write_all(bytes).map_err(FileError::system("write", self.folder.path_of(name)))?)
    }

    /// The hash of a content.
    #[must_use]
    pub fn hash(&self, number: ContentNumber) -> Option<blake3::Hash> {
        self.hashes.get(usize::try_from(number.0).ok()?).copied()
    }

    /// Opens a content.
    ///
    /// # Errors
    /// If the file cannot be opened.
    pub fn open(&self, number: ContentNumber) -> Result<File, FileError> {
        let name = Self::name(number);
        let missing = || {
            FileError::system("open", self.folder.path_of(&name))(io::Error::from(io::ErrorKind::NotFound))
        };
        self.folder.file(&name)?.ok_or_else(missing)
    }
}

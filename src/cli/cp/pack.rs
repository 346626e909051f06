//! Files of this host → an archive for the guest.
//!
//! Directories are walked by handle, and no link in them is followed, because a guest may write them through a share while
//! they are read. The archive is written as it is made, so a file of any size needs little memory.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Stat};
use tar::{Builder, EntryType, Header};

use crate::files::shared_paths::OpenedPath;
use crate::files::{FileError, Folder};
use crate::world::UserIds;

/// How deep a tree may be. Each directory on the way is open while it is read.
const DEEPEST: usize = 256;

/// Why files of the host are not sent.
#[derive(Debug, thiserror::Error)]
pub(super) enum PackError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{} is deeper than {DEEPEST} directories", .0.display())]
    TooDeep(PathBuf),
    #[error("{} became shorter while it was read", .0.display())]
    Shortened(PathBuf),
    #[error("the guest takes no more of what is sent")]
    Send(#[source] io::Error),
}

/// Entries of a copy that a person is told about.
#[derive(Debug, Default)]
pub(super) struct ToldEntries {
    /// How many there are.
    pub(super) count: usize,
    /// The first of them.
    pub(super) first: Option<String>,
}

impl ToldEntries {
    pub(super) fn add(&mut self, path: impl FnOnce() -> String) {
        self.count += 1;
        self.first.get_or_insert_with(path);
    }

    pub(super) fn merge(&mut self, other: Self) {
        self.count += other.count;
        self.first = self.first.take().or(other.first);
    }
}

/// A file or directory of the host, opened, with the name that it gets in the guest.
pub(super) struct PackedSource {
    pub(super) opened: OpenedPath,
    /// The path for messages.
    pub(super) path: PathBuf,
    /// The name in the guest; `None` if it is a directory of which only the content is copied.
    pub(super) name: Option<OsString>,
}

/// Writes an archive of the sources, in which everything belongs to the guest's user.
pub(super) struct Packer<W: Write> {
    archive: Builder<W>,
    owner: UserIds,
    left_out: ToldEntries,
}

impl<W: Write> Packer<W> {
    pub(super) fn new(output: W, owner: UserIds) -> Self {
        Self { archive: Builder::new(output), owner, left_out: ToldEntries::default() }
    }

    /// Writes the sources and the end of the archive.
    pub(super) fn pack(mut self, sources: &[PackedSource]) -> Result<ToldEntries, PackError> {
        for source in sources {
            let PackedSource { opened, path, name } = source;
            let inside = name.as_ref().map(PathBuf::from).unwrap_or_default();
            if opened.is_directory()? {
                let folder = opened.folder()?;
                if name.is_some() {
                    self.directory(&inside, &folder.status()?)?;
                }
                self.content(&folder, &inside, 0)?;
            } else {
                self.file(opened.file()?, path, &inside)?;
            }
        }
        match self.archive.into_inner().and_then(|mut output| output.flush()) {
            // A program that has found the end of an archive may end before it has read what is filled up with zeros. Its exit
            // status says whether it had everything.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(PackError::Send(error)),
            _ => {}
        }
        Ok(self.left_out)
    }

    fn content(&mut self, folder: &Folder, inside: &Path, depth: usize) -> Result<(), PackError> {
        if depth == DEEPEST {
            return Err(PackError::TooDeep(folder.path().to_owned()));
        }
        for name in folder.names()? {
            self.entry(folder, &name, &inside.join(&name), depth)?;
        }
        Ok(())
    }

    fn entry(&mut self, folder: &Folder, name: &OsStr, inside: &Path, depth: usize) -> Result<(), PackError> {
        let path = folder.path_of(name);
        let gone = || FileError::system("read", &path)(io::Error::from(io::ErrorKind::NotFound));
        let status = folder.examine(name)?.ok_or_else(gone)?;
        match FileType::from_raw_mode(status.st_mode) {
            FileType::Directory => {
                let below = folder.folder(name)?.ok_or_else(gone)?;
                self.directory(inside, &status)?;
                self.content(&below, inside, depth + 1)
            }
            FileType::RegularFile => self.file(folder.file(name)?.ok_or_else(gone)?, &path, inside),
            FileType::Symlink => {
                let target = folder.link(name)?;
                let mut header = self.header(EntryType::Symlink, &status);
                self.archive.append_link(&mut header, inside, target).map_err(PackError::Send)
            }
            _ => {
                self.left_out.add(|| path.display().to_string());
                Ok(())
            }
        }
    }

    fn directory(&mut self, inside: &Path, status: &Stat) -> Result<(), PackError> {
        let mut header = self.header(EntryType::Directory, status);
        self.archive.append_data(&mut header, inside, io::empty()).map_err(PackError::Send)
    }

    fn file(&mut self, file: File, path: &Path, inside: &Path) -> Result<(), PackError> {
        let status = rustix::fs::fstat(&file).map_err(FileError::system("examine", path))?;
        let mut header = self.header(EntryType::Regular, &status);
        let size = u64::try_from(status.st_size).unwrap_or_default();
        header.set_size(size);
        let mut content = FileContent { file: file.take(size), left: size, failed: None };
        let written = self.archive.append_data(&mut header, inside, &mut content);
        match content.failed {
            Some(error) => Err(FileError::system("read", path)(error).into()),
            None if written.is_ok() && content.left > 0 => Err(PackError::Shortened(path.to_owned())),
            None => written.map_err(PackError::Send),
        }
    }

    fn header(&self, kind: EntryType, status: &Stat) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(status.st_mode & 0o7777);
        header.set_mtime(u64::try_from(status.st_mtime).unwrap_or_default());
        header.set_uid(self.owner.uid.into());
        header.set_gid(self.owner.gid.into());
        header.set_size(0);
        header
    }
}

/// The content of a file, no more than it had when its header was made. Keeps the error of the file apart from those of the
/// archive.
struct FileContent {
    file: io::Take<File>,
    left: u64,
    failed: Option<io::Error>,
}

impl Read for FileContent {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.file.read(buffer) {
            Ok(read) => {
                self.left -= read as u64;
                Ok(read)
            }
            Err(error) => {
                let kind = error.kind();
                if kind != io::ErrorKind::Interrupted {
                    self.failed = Some(error);
                }
                Err(kind.into())
            }
        }
    }
}

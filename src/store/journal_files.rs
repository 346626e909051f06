//! The journal's files in a directory: [`Storage`] on a real file system.
//!
//! Files are opened relative to the directory, which stays open, and never through a symbolic link. So a user who can
//! write to the directory cannot make nixbox write elsewhere. May use: the engine's storage seam.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FallocateFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::engine::journal::{Name, Storage};

/// A directory with a journal in it.
#[derive(Debug)]
pub struct FileStorage {
    path: PathBuf,
    directory: File,
    open: BTreeMap<Name, File>,
}

impl FileStorage {
    /// Opens the directory, and makes nothing.
    ///
    /// # Errors
    /// If the directory is missing, not a directory, or a symbolic link.
    pub fn new(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = File::from(rustix::fs::open(path, flags, Mode::empty())?);
        Ok(Self { path: path.to_owned(), directory, open: BTreeMap::new() })
    }

    fn file(&mut self, name: Name) -> io::Result<&File> {
        self.file_with(name, OFlags::empty())
    }

    /// The file, opened once. The methods that give its name to another file drop it from `open`.
    fn file_with(&mut self, name: Name, more: OFlags) -> io::Result<&File> {
        if !self.open.contains_key(&name) {
            let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::APPEND | more;
            let file = match self.open_at(name, OFlags::RDWR | flags) {
                // A user without the permission to write can still read.
                Err(Errno::ACCESS | Errno::ROFS) if more.is_empty() => {
                    self.open_at(name, OFlags::RDONLY | flags)?
                }
                opened => opened?,
            };
            // A pipe in its place would block, and a device might do anything.
            if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) != FileType::RegularFile {
                return Err(io::Error::other("it is not a regular file"));
            }
            self.open.insert(name, file);
        }
        self.open.get(&name).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn open_at(&self, name: Name, flags: OFlags) -> Result<File, Errno> {
        let flags = flags | OFlags::NONBLOCK;
        rustix::fs::openat(&self.directory, name.file_name(), flags, Mode::RUSR | Mode::WUSR).map(File::from)
    }
}

impl Storage for FileStorage {
    fn size(&mut self, name: Name) -> io::Result<Option<u64>> {
        match self.file(name) {
            Ok(file) => Ok(Some(file.metadata()?.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn read_at(&mut self, name: Name, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.file(name)?.read_at(buffer, offset)
    }

    fn append(&mut self, name: Name, bytes: &[u8]) -> io::Result<()> {
        self.file_with(name, OFlags::CREATE)?.write_all(bytes)
    }

    fn reserve(&mut self, name: Name, bytes: u64) -> io::Result<()> {
        let file = self.file(name)?;
        let size = file.metadata()?.len();
        match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, size, bytes) {
            // Without a reservation, `append` reports a full file system.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            reserved => Ok(reserved?),
        }
    }

    fn sync(&mut self, name: Name) -> io::Result<()> {
        self.file(name)?.sync_data()
    }

    fn truncate(&mut self, name: Name, size: u64) -> io::Result<()> {
        self.file(name)?.set_len(size)
    }

    fn remove(&mut self, name: Name) -> io::Result<()> {
        self.open.remove(&name);
        match rustix::fs::unlinkat(&self.directory, name.file_name(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn link(&mut self, from: Name, to: Name) -> io::Result<()> {
        self.open.remove(&to);
        let here = &self.directory;
        Ok(rustix::fs::linkat(here, from.file_name(), here, to.file_name(), AtFlags::empty())?)
    }

    fn rename(&mut self, from: Name, to: Name) -> io::Result<()> {
        self.open.remove(&from);
        self.open.remove(&to);
        let here = &self.directory;
        Ok(rustix::fs::renameat(here, from.file_name(), here, to.file_name())?)
    }

    fn sync_names(&mut self) -> io::Result<()> {
        self.directory.sync_all()
    }

    fn path(&self, name: Name) -> String {
        self.path.join(name.file_name()).display().to_string()
    }

    fn salt(&mut self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }
}

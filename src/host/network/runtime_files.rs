//! The files of a network in the runtime directory of its VM.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::error::NetworkError;
use crate::files::FileError;

/// What a file is called until it is whole.
pub(super) const UNNAMED: &str = "network.new";

/// The runtime directory.
pub(super) struct RuntimeFiles<'a> {
    pub(super) directory: &'a Path,
}

impl RuntimeFiles<'_> {
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Writes a file, in place of one that is there: a reader sees the one or the other. A link is not followed.
    pub(super) fn write(&self, name: &str, content: &str) -> Result<(), NetworkError> {
        self.remove(UNNAMED)?;
        let (unnamed, path) = (self.path(UNNAMED), self.path(name));
        let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unnamed);
        let written = opened.and_then(|mut file| file.write_all(content.as_bytes()));
        Ok(written
            .and_then(|()| std::fs::rename(&unnamed, &path))
            .map_err(FileError::system("write", path))?)
    }

    /// The text of a file, up to 4 KiB; `None` if it is not there. A link is not followed.
    pub(super) fn read(&self, name: &str) -> Result<Option<String>, NetworkError> {
        const MOST: u64 = 4096;
        let path = self.path(name);
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
        let opened = OpenOptions::new().read(true).custom_flags(flags).open(&path);
        let mut bytes = Vec::new();
        match opened.and_then(|file| file.take(MOST).read_to_end(&mut bytes)) {
            Ok(_) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(FileError::system("read", path)(error).into()),
        }
    }

    /// Makes a directory for one file that a program makes there, and returns the path of the file.
    pub(super) fn make_directory(&self, name: &str, file: &str) -> Result<PathBuf, NetworkError> {
        self.remove_directory(name, file)?;
        let path = self.path(name);
        std::fs::DirBuilder::new().mode(0o700).create(&path).map_err(FileError::system("make", &path))?;
        Ok(path.join(file))
    }

    /// Removes that directory, if it is there.
    pub(super) fn remove_directory(&self, name: &str, file: &str) -> Result<(), NetworkError> {
        let path = self.path(name);
        match std::fs::remove_file(path.join(file)).and_then(|()| std::fs::remove_dir(&path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => match std::fs::remove_dir(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                other => Ok(other.map_err(FileError::system("remove", path))?),
            },
            other => Ok(other.map_err(FileError::system("remove", path))?),
        }
    }

    /// Removes a file, if it is there.
    pub(super) fn remove(&self, name: &str) -> Result<(), NetworkError> {
        let path = self.path(name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => Ok(other.map_err(FileError::system("remove", path))?),
        }
    }

    /// Refuses a directory that others could change, or whose path a configuration of dnsmasq cannot hold.
    pub(super) fn check(&self) -> Result<(), NetworkError> {
        let path = self.directory;
        let status = path.symlink_metadata().map_err(FileError::system("examine", path))?;
        let own = status.is_dir() && status.uid() == rustix::process::geteuid().as_raw();
        if !own || status.mode() & 0o022 != 0 {
            return Err(NetworkError::UnsafeDirectory(path.to_owned()));
        }
        let odd = |character: char| character.is_control() || "#\"\\".contains(character);
        match path.to_str() {
            Some(text) if !text.contains(odd) && path.is_absolute() => Ok(()),
            _ => Err(NetworkError::OddDirectory(path.to_owned())),
        }
    }
}

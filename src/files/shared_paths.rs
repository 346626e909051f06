//! Opens paths of the host of which a guest may write a part.
//!
//! A guest that can write a directory can put a link there in the place of a file that the configuration names, at any
//! moment. So what lies below the source of a writable share is opened once, from that source, in one call that follows no
//! link and does not leave the source (openat2(2)), and what was opened is used. Links on the way to the source are the
//! host's own, and are followed.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{self, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::{FileError, Folder, Result, beneath, real_path};

/// The most links that are followed, as in the kernel.
const MOST_LINKS: usize = 40;

/// The directories in which guests write.
#[derive(Debug, Clone, Default)]
pub struct SharedPaths {
    sources: Vec<PathBuf>,
}

/// A file or directory that was opened once.
#[derive(Debug)]
pub struct OpenedPath {
    handle: OwnedFd,
    path: PathBuf,
    shared: bool,
}

impl SharedPaths {
    /// Those with these directories as sources of writable shares.
    pub fn new<'a>(sources: impl IntoIterator<Item = &'a Path>) -> Self {
        Self { sources: sources.into_iter().map(real_path).collect() }
    }

    /// Whether no guest writes anywhere.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }

    /// Opens what is at an absolute path, without an effect on it.
    ///
    /// # Errors
    /// [`FileError::SharedLink`] if a guest can have chosen where the path leads; otherwise if there is nothing.
    pub fn open(&self, path: &Path) -> Result<OpenedPath> {
        let failed = |error: Errno| FileError::system("open", path)(error);
        let mut real = PathBuf::from("/");
        let mut rest = parts(path);
        let mut links = 0;
        while let Some(part) = rest.pop_front() {
            if part == ".." {
                real.pop();
                continue;
            }
            if self.sources.contains(&real) {
                let below: PathBuf = std::iter::once(part).chain(rest).collect();
                let handle = open_below(&real, &below).map_err(|error| match error {
                    Errno::LOOP | Errno::XDEV => FileError::SharedLink { path: path.to_owned() },
                    error => failed(error),
                })?;
                return Ok(OpenedPath { handle, path: path.to_owned(), shared: true });
            }
            let next = real.join(part);
            match std::fs::read_link(&next) {
                Ok(_) if links == MOST_LINKS => return Err(failed(Errno::LOOP)),
                Ok(target) => {
                    links += 1;
                    if target.is_absolute() {
                        real = PathBuf::from("/");
                    }
                    for part in parts(&target).into_iter().rev() {
                        rest.push_front(part);
                    }
                }
                // It is no link, or the next call says what is wrong with it.
                Err(_) => real = next,
            }
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let handle = fs::open(&real, flags, Mode::empty()).map_err(failed)?;
        Ok(OpenedPath { handle, path: path.to_owned(), shared: false })
    }

    /// Opens a regular file for reading.
    ///
    /// # Errors
    /// Those of [`SharedPaths::open`], and [`FileError::Kind`].
    pub fn open_file(&self, path: &Path) -> Result<File> {
        self.open(path)?.file()
    }
}

impl OpenedPath {
    /// Whether a guest can put something else at the path.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.shared
    }

    /// The regular file, opened for reading. It is the one that was opened, whatever is at its path now.
    ///
    /// # Errors
    /// [`FileError::Kind`], or if it cannot be read.
    pub fn file(&self) -> Result<File> {
        self.need(FileType::RegularFile, "regular file")?;
        // NONBLOCK has no effect on a regular file.
        File::open(self.by_handle()).map_err(FileError::system("open", &self.path))
    }

    /// The path of the directory without any link in it, as it is now. Who opens that path and finds another path for what
    /// was opened has opened something else.
    ///
    /// # Errors
    /// [`FileError::Kind`], or if the directory was removed.
    pub fn directory(&self) -> Result<PathBuf> {
        self.need(FileType::Directory, "directory")?;
        let failed = FileError::system("examine", &self.path);
        let real = match std::fs::read_link(self.by_handle()) {
            Ok(real) => real,
            Err(error) => return Err(failed(error)),
        };
        let same = std::fs::symlink_metadata(&real).is_ok();
        if same { Ok(real) } else { Err(failed(io::Error::from(io::ErrorKind::NotFound))) }
    }

    /// The directory that was opened, whatever is at its path now.
    ///
    /// # Errors
    /// [`FileError::Kind`], or if it cannot be read.
    pub fn folder(&self) -> Result<Folder> {
        self.need(FileType::Directory, "directory")?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let handle = fs::openat(&self.handle, ".", flags, Mode::empty());
        let handle = handle.map_err(FileError::system("open", &self.path))?;
        Ok(Folder { handle, path: self.path.clone() })
    }

    /// Whether it is a directory.
    ///
    /// # Errors
    /// If the system cannot tell.
    pub fn is_directory(&self) -> Result<bool> {
        let status = fs::fstat(&self.handle).map_err(FileError::system("examine", &self.path))?;
        Ok(FileType::from_raw_mode(status.st_mode) == FileType::Directory)
    }

    fn by_handle(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.handle.as_raw_fd()).into()
    }

    fn need(&self, kind: FileType, wanted: &'static str) -> Result<()> {
        let status = fs::fstat(&self.handle).map_err(FileError::system("examine", &self.path))?;
        if FileType::from_raw_mode(status.st_mode) == kind {
            Ok(())
        } else {
            Err(FileError::Kind { path: self.path.clone(), wanted })
        }
    }
}

/// The names in a path.
fn parts(path: &Path) -> VecDeque<OsString> {
    let named = |part: &Component<'_>| matches!(part, Component::Normal(_) | Component::ParentDir);
    path.components().filter(named).map(|part| part.as_os_str().to_owned()).collect()
}

fn open_below(source: &Path, below: &Path) -> Result<OwnedFd, Errno> {
    let source = fs::open(
        source,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    beneath::open(&source, below, OFlags::PATH)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::symlink;

    use super::*;

    /// `w` is a writable share, and `secret` is beside it.
    fn arena() -> (tempfile::TempDir, PathBuf, SharedPaths) {
        let directory = tempfile::tempdir().unwrap();
        let root = std::fs::canonicalize(directory.path()).unwrap();
        for name in ["w/sub", "elsewhere"] {
            std::fs::create_dir_all(root.join(name)).unwrap();
        }
        for name in ["w/file", "w/sub/file", "elsewhere/file"] {
            std::fs::write(root.join(name), name).unwrap();
        }
        let shared = SharedPaths::new([root.join("w").as_path()]);
        (directory, root, shared)
    }

    fn read(shared: &SharedPaths, path: &Path) -> Result<String> {
        let mut text = String::new();
        shared.open_file(path)?.read_to_string(&mut text).unwrap();
        Ok(text)
    }

    #[test]
    fn what_lies_in_a_share_is_opened_and_links_there_are_not_followed() {
        let (_directory, root, shared) = arena();
        symlink("../elsewhere/file", root.join("w/away")).unwrap();
        symlink("file", root.join("w/within")).unwrap();
        symlink(root.join("elsewhere"), root.join("w/directory")).unwrap();
        symlink("w/directory/file", root.join("through")).unwrap();
        for (path, text) in [("w/file", "w/file"), ("w/sub/file", "w/sub/file"), ("w/sub/../file", "w/file")]
        {
            assert_eq!(read(&shared, &root.join(path)).unwrap(), text, "{path}");
        }
        let refused = ["w/away", "w/within", "w/directory/file", "through", "w/sub/../../elsewhere/file"];
        for path in refused {
            let error = read(&shared, &root.join(path)).unwrap_err();
            assert!(matches!(error, FileError::SharedLink { .. }), "{path}: {error}");
        }
        assert!(matches!(read(&shared, &root.join("w/sub")), Err(FileError::Kind { .. })));
        assert!(read(&shared, &root.join("w/absent")).unwrap_err().is(io::ErrorKind::NotFound));
        // The source itself is not the guest's, nor is what is beside it.
        assert_eq!(read(&shared, &root.join("w/../elsewhere/file")).unwrap(), "elsewhere/file");
        assert_eq!(shared.open(&root.join("w")).unwrap().directory().unwrap(), root.join("w"));
        assert!(!shared.open(&root.join("w")).unwrap().is_shared());
    }

    #[test]
    fn links_of_the_host_are_followed_into_a_share_and_elsewhere() {
        let (_directory, root, shared) = arena();
        symlink("w", root.join("way")).unwrap();
        symlink(root.join("way/sub/file"), root.join("absolute")).unwrap();
        symlink("elsewhere/file", root.join("plain")).unwrap();
        symlink("round", root.join("round")).unwrap();
        for (path, text, is_shared) in [
            ("way/file", "w/file", true),
            ("absolute", "w/sub/file", true),
            ("plain", "elsewhere/file", false),
        ] {
            assert_eq!(read(&shared, &root.join(path)).unwrap(), text);
            assert_eq!(shared.open(&root.join(path)).unwrap().is_shared(), is_shared, "{path}");
        }
        assert!(matches!(read(&shared, &root.join("round")), Err(FileError::System { .. })));
        let all = SharedPaths::default();
        symlink("../elsewhere/file", root.join("w/away")).unwrap();
        assert_eq!(read(&all, &root.join("w/away")).unwrap(), "elsewhere/file", "nothing is shared");
    }

    #[test]
    fn what_was_opened_is_what_is_used() {
        let (_directory, root, shared) = arena();
        let opened = shared.open(&root.join("w/sub/file")).unwrap();
        let directory = shared.open(&root.join("w/sub")).unwrap();
        std::fs::rename(root.join("w/sub"), root.join("w/moved")).unwrap();
        symlink(root.join("elsewhere"), root.join("w/sub")).unwrap();
        let mut text = String::new();
        opened.file().unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "w/sub/file");
        assert_eq!(directory.directory().unwrap(), root.join("w/moved"));
    }
}

//! Takes a directory of the host into a tree: a root file system that was made by debootstrap, or the modules of a kernel.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, FileType, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::archive::{EntryKind, TarEntry};
use super::contents::ContentStore;
use super::layer::LayerError;
use super::tree::ImageTree;
use crate::files::FileError;

/// Why a directory cannot be taken into an image.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Layer(#[from] LayerError),
}

/// The attributes that are taken along.
const ATTRIBUTES: [&str; 2] = ["security.", "user."];
/// More than the value of an attribute takes (XATTR_SIZE_MAX).
const LONGEST_VALUE: usize = 64 << 10;

/// A directory that is taken into a tree.
pub struct DirectorySource<'a> {
    /// The directory on the host.
    pub root: &'a Path,
    /// Where it is in the tree: empty, or a path that ends with a slash.
    pub prefix: &'a str,
    /// Whether a path, relative to the directory, is left out with all that is below it.
    pub without: &'a dyn Fn(&Path) -> bool,
}

impl DirectorySource<'_> {
    /// Adds the directory as the next layer. Links are not followed, and sockets are left out. Of a user without root, files of
    /// that user become files of root.
    ///
    /// # Errors
    /// [`DirectoryError`].
    pub fn add(&self, tree: &mut ImageTree, contents: &mut ContentStore) -> Result<(), DirectoryError> {
        tree.begin_layer();
        let mut linked: BTreeMap<(u64, u64), Vec<u8>> = BTreeMap::new();
        let mut open = vec![PathBuf::new()];
        while let Some(relative) = open.pop() {
            let path = self.root.join(&relative);
            let status = fs::symlink_metadata(&path).map_err(FileError::system("examine", &path))?;
            let Some(mut entry) = self.entry(&relative, &path, &status)? else { continue };
            let inode = (status.dev(), status.ino());
            if !status.is_dir() && status.nlink() > 1 {
                if let Some(first) = linked.get(&inode) {
                    entry.kind = EntryKind::HardLink;
                    entry.link = first.clone();
                } else {
                    linked.insert(inode, entry.path.clone());
                }
            }
            let content = match entry.kind {
                EntryKind::File => {
                    let mut file = open_regular(&path)?;
                    let taken = contents.take(&mut file, entry.size);
                    Some(taken.map_err(|source| LayerError::Content { path: entry.shown(), source })?)
                }
                _ => None,
            };
            tree.apply(&entry, content).map_err(LayerError::Tree)?;
            if status.is_dir() {
                for name in names(&path)?.into_iter().rev() {
                    let below = relative.join(name);
                    if !(self.without)(&below) {
                        open.push(below);
                    }
                }
            }
        }
        Ok(())
    }

    fn entry(
        &self,
        relative: &Path,
        path: &Path,
        status: &Metadata,
    ) -> Result<Option<TarEntry>, DirectoryError> {
        let Some(kind) = kind_of(status.file_type()) else { return Ok(None) };
        let link = match kind {
            EntryKind::Symlink => {
                let target = fs::read_link(path).map_err(FileError::system("read", path))?;
                target.into_os_string().as_bytes().to_vec()
            }
            _ => Vec::new(),
        };
        Ok(Some(TarEntry {
            path: [self.prefix.as_bytes(), relative.as_os_str().as_bytes()].concat(),
            link,
            kind,
            mode: status.mode() & 0o7777,
            uid: of_root(status.uid(), rustix::process::geteuid().as_raw()),
            gid: of_root(status.gid(), rustix::process::getegid().as_raw()),
            modified: u64::try_from(status.mtime()).unwrap_or_default(),
            attributes: if kind == EntryKind::File || kind == EntryKind::Directory {
                attributes(path)?
            } else {
                BTreeMap::new()
            },
            size: if kind == EntryKind::File { status.len() } else { 0 },
        }))
    }
}

fn of_root(owner: u32, own: u32) -> u32 {
    if owner == own { 0 } else { owner }
}

fn kind_of(kind: FileType) -> Option<EntryKind> {
    match () {
        () if kind.is_file() => Some(EntryKind::File),
        () if kind.is_dir() => Some(EntryKind::Directory),
        () if kind.is_symlink() => Some(EntryKind::Symlink),
        () if kind.is_fifo() => Some(EntryKind::Fifo),
        () if kind.is_socket() => None,
        () => Some(EntryKind::Device),
    }
}

fn open_regular(path: &Path) -> Result<File, FileError> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    fs::OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(FileError::system("open", path))
}

fn names(path: &Path) -> Result<Vec<std::ffi::OsString>, FileError> {
    let failed = |error: io::Error| FileError::system("list", path)(error);
    let entries = fs::read_dir(path).map_err(failed)?;
    let mut names =
        entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>().map_err(failed)?;
    names.sort();
    Ok(names)
}

fn attributes(path: &Path) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, FileError> {
    use rustix::fs::{lgetxattr, llistxattr};
    use rustix::io::Errno;
    let mut list = vec![0; LONGEST_VALUE];
    let length = match llistxattr(path, &mut list[..]) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => 0,
        Err(error) => return Err(FileError::system("examine", path)(error)),
    };
    let mut found = BTreeMap::new();
    for name in list[..length].split(|byte| *byte == 0) {
        // The label of SELinux belongs to the host's policy.
        let kept = ATTRIBUTES.iter().any(|space| name.starts_with(space.as_bytes()));
        if !kept || name == b"security.selinux" {
            continue;
        }
        let mut value = vec![0; LONGEST_VALUE];
        let length = lgetxattr(path, OsStr::from_bytes(name), &mut value[..])
            .map_err(FileError::system("examine", path))?;
        value.truncate(length);
        found.insert(name.to_vec(), value);
    }
    Ok(found)
}

//! Copies of the kernel and the initramfs for a boot, where a guest can replace them.
//!
//! The VMM opens these files by their paths. A guest that can write there could put a link to any file of the host in their
//! place after nixbox has looked. So nixbox opens such a file once, following no link, and the VMM gets a copy of what was
//! opened. The VMM reads the copies again when its guest reboots, so they are removed with the VMM. All functions here block.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::state::{StateError, give_to_invoker, gone, io_error};
use crate::files::FileError;
use crate::files::shared_paths::SharedPaths;
use crate::host::spawn::Invoker;

/// Why the files of a boot cannot be used.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum BootFileError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error("copying the files of the boot ended early")]
    Died(#[source] io::Error),
}

const NAMES: [&str; 2] = ["kernel", "initramfs"];

/// What a boot needs to know to copy its files.
#[derive(Debug, Clone)]
pub(super) struct BootFiles {
    /// The directory for the copies. Nothing else is in it.
    pub(super) directory: PathBuf,
    pub(super) shared: SharedPaths,
    pub(super) invoker: Invoker,
}

impl BootFiles {
    /// The paths of the kernel and the initramfs for the VMM. A file that no guest can replace is used where it is.
    pub(super) fn take(
        &self,
        kernel: &Path,
        initramfs: Option<&Path>,
    ) -> Result<(PathBuf, Option<PathBuf>), BootFileError> {
        let [kernel_name, initramfs_name] = NAMES;
        let kernel = self.safe(kernel, kernel_name)?;
        let initramfs = initramfs.map(|path| self.safe(path, initramfs_name)).transpose()?;
        Ok((kernel, initramfs))
    }

    /// The same, on a thread that may block.
    pub(super) async fn taken(
        self,
        kernel: PathBuf,
        initramfs: Option<PathBuf>,
    ) -> Result<(PathBuf, Option<PathBuf>), BootFileError> {
        let taken = tokio::task::spawn_blocking(move || self.take(&kernel, initramfs.as_deref())).await;
        taken.map_err(|error| BootFileError::Died(error.into()))?
    }

    fn safe(&self, path: &Path, name: &str) -> Result<PathBuf, BootFileError> {
        if self.shared.is_empty() {
            return Ok(path.to_owned());
        }
        let opened = self.shared.open(path)?;
        if !opened.is_shared() {
            return Ok(path.to_owned());
        }
        let mut source = opened.file()?;
        super::state::make_directory(&self.directory, &self.invoker)?;
        let copy = self.directory.join(name);
        gone(fs::remove_file(&copy)).map_err(io_error("remove", &copy))?;
        let mut options = OpenOptions::new();
        let mut target =
            options.write(true).create_new(true).mode(0o600).open(&copy).map_err(io_error("make", &copy))?;
        io::copy(&mut source, &mut target).map_err(io_error("write", &copy))?;
        give_to_invoker(&copy, &self.invoker)?;
        Ok(copy)
    }

    /// Removes the copies, if there are any.
    pub(super) fn remove(&self) -> Result<(), StateError> {
        for name in NAMES {
            let copy = self.directory.join(name);
            match fs::remove_file(&copy) {
                Err(error) if !matches!(error.kind(), ErrorKind::NotFound) => {
                    return Err(io_error("remove", &copy)(error));
                }
                _ => {}
            }
        }
        gone(fs::remove_dir(&self.directory)).map_err(io_error("remove", &self.directory))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn files_that_a_guest_can_replace_are_copied_and_links_there_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(directory.path()).unwrap();
        fs::create_dir(root.join("share")).unwrap();
        for name in ["share/vmlinuz", "initramfs", "secret"] {
            fs::write(root.join(name), name).unwrap();
        }
        let files = BootFiles {
            directory: root.join("boot"),
            shared: SharedPaths::new([root.join("share").as_path()]),
            invoker: Invoker::detect().unwrap(),
        };
        let (outside, inside) = (root.join("initramfs"), root.join("share/vmlinuz"));
        assert_eq!(files.take(&outside, None).unwrap(), (outside.clone(), None));
        assert!(!root.join("boot").exists());
        let (kernel, initramfs) = files.take(&inside, Some(&outside)).unwrap();
        assert_eq!(
            (fs::read_to_string(&kernel).unwrap(), initramfs),
            ("share/vmlinuz".into(), Some(outside))
        );
        // A nixbox that was killed has left the copies.
        let (kernel, initramfs) = files.take(&inside, Some(&inside)).unwrap();
        assert_eq!((kernel, initramfs), (root.join("boot/kernel"), Some(root.join("boot/initramfs"))));
        files.remove().unwrap();
        assert!(!root.join("boot").exists());
        files.remove().unwrap();
        fs::remove_file(&inside).unwrap();
        symlink("../secret", &inside).unwrap();
        let error = files.take(&inside, None).unwrap_err();
        assert!(matches!(error, BootFileError::File(FileError::SharedLink { .. })), "{error}");
    }
}

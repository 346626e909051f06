//! What can go wrong with a file. May use `world`.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

use crate::world::Failure;

/// Why something about a file could not be done. Other errors wrap this one for what the system refuses.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("cannot {action} {}", path.display())]
    System { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{} is a symbolic link, and nixbox follows none among its own files: remove it", path.display())]
    Symlink { path: PathBuf },
    #[error("{} is not a {wanted}", path.display())]
    Kind { path: PathBuf, wanted: &'static str },
    #[error("{} is larger than {limit} bytes, so nixbox did not write it", path.display())]
    TooLarge { path: PathBuf, limit: u64 },
    #[error("{} belongs to user {owner}, and nixbox runs as user {user}", path.display())]
    Owner { path: PathBuf, owner: u32, user: u32 },
    #[error("others may write {}: run `chmod go-w` on it once you have looked at what is there", path.display())]
    Writable { path: PathBuf },
    #[error("{} is a mount point, and nixbox uses only what is in the workspace itself: unmount it", path.display())]
    MountPoint { path: PathBuf },
    #[error(
        "{} leads through a link in a directory that the guest can write, and is not followed there: put what it leads to in \
         its place", path.display()
    )]
    SharedLink { path: PathBuf },
    /// The name is empty, `.` or `..`, or has a slash or a NUL in it.
    #[error("{0:?} cannot be the name of a file")]
    Name(OsString),
}

impl FileError {
    /// For `map_err`: the call that failed, as a verb, and its path.
    pub(crate) fn system<S: Into<io::Error>>(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(S) -> Self {
        let path = path.into();
        move |source| Self::System { action, path, source: source.into() }
    }

    /// Whether the system refused with `kind`.
    #[must_use]
    pub fn is(&self, kind: io::ErrorKind) -> bool {
        matches!(self, Self::System { source, .. } if source.kind() == kind)
    }
}

impl From<FileError> for Failure {
    fn from(error: FileError) -> Self {
        Self::world(error)
    }
}

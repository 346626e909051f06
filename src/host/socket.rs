//! The Unix sockets of daemons: paths that fit, whether a socket is in use, and removing what a dead daemon left.
//!
//! Whether a process listens is read from /proc/net/unix. To connect would use up the one connection that virtiofsd
//! serves.

use std::fmt;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::time::Instant;

use crate::files::FileError;

/// The longest path of a Unix socket in bytes: `sun_path` has 108 with its closing NUL (unix(7)).
pub const LONGEST: usize = 107;

/// How long a dying process may keep its sockets.
const RELEASE_LIMIT: Duration = Duration::from_secs(2);

/// Why a socket cannot be used or removed.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("the socket path {path:?} has {length} bytes and Linux allows {LONGEST}; choose a shorter runtime directory", length = path.as_os_str().len())]
    TooLong { path: PathBuf },
    /// The VMM's JSON or /proc/net/unix could not carry the path.
    #[error(
        "{path:?} cannot be the path of a socket: it must be absolute, UTF-8, and without control characters"
    )]
    Unfit { path: PathBuf },
    #[error("the socket {0} is in use by a process that nixbox did not start; see `ss -xlp`")]
    InUse(SocketPath),
    #[error("{path:?} is not a {wanted}, so nixbox did not make it and does not remove it")]
    NotOurs { path: PathBuf, wanted: &'static str },
    #[error(transparent)]
    File(#[from] FileError),
}

/// A path that a Unix socket can have, as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketPath(String);

impl SocketPath {
    /// `path`, if a socket can be there.
    ///
    /// # Errors
    /// [`SocketError::TooLong`], [`SocketError::Unfit`].
    pub fn new(path: PathBuf) -> Result<Self, SocketError> {
        match path.to_str() {
            Some(text) if path.is_absolute() && !text.contains(char::is_control) => {
                if text.len() <= LONGEST {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(SocketError::TooLong { path })
                }
            }
            _ => Err(SocketError::Unfit { path }),
        }
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// As a path.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }

    /// The path with `suffix` appended to its last name.
    #[must_use]
    pub fn with_suffix(&self, suffix: &str) -> PathBuf {
        format!("{}{suffix}", self.0).into()
    }
}

impl fmt::Display for SocketPath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// How a socket is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketUse {
    /// No process has it.
    Unused,
    /// A process listens.
    Listening,
    /// A process has it and does not listen yet.
    Bound,
    /// No process listens any more, and a connection that was accepted before lives.
    Connected,
}

/// How the socket at `path` is used, in this network namespace.
///
/// # Errors
/// [`SocketError::File`] if /proc cannot be read.
pub fn usage(path: &SocketPath) -> Result<SocketUse, SocketError> {
    const TABLE: &str = "/proc/net/unix";
    let table = std::fs::read(TABLE).map_err(FileError::system("read", TABLE))?;
    Ok(usage_in(&table, path))
}

/// Lines are `Num RefCount Protocol Flags Type St Inode Path`; flag 0x10000 (`__SO_ACCEPTCON`) is set while listening.
fn usage_in(table: &[u8], path: &SocketPath) -> SocketUse {
    const LISTENS: u32 = 0x1_0000;
    // `SS_UNCONNECTED` of include/uapi/linux/net.h. An accepted connection has the path of its listener.
    const UNCONNECTED: &str = "01";
    let mut found = SocketUse::Unused;
    for line in table.split(|byte| *byte == b'\n') {
        let Some(head) =
            line.strip_suffix(path.as_str().as_bytes()).and_then(|head| std::str::from_utf8(head).ok())
        else {
            continue;
        };
        // Seven fields stand before the path. Before a longer path with the same end, there are more.
        let fields: Vec<&str> = head.split_whitespace().collect();
        if fields.len() != 7 || !head.ends_with(' ') {
            continue;
        }
        match u32::from_str_radix(fields[3], 16) {
            Ok(flags) if flags & LISTENS != 0 => return SocketUse::Listening,
            _ if fields[5] == UNCONNECTED && found == SocketUse::Unused => found = SocketUse::Bound,
            _ if fields[5] == UNCONNECTED => {}
            _ => found = SocketUse::Connected,
        }
    }
    found
}

/// Makes the socket at `path`, on which nobody listens yet.
///
/// # Errors
/// [`SocketError::File`], also if there is something at the path.
pub fn bind(path: &SocketPath) -> Result<OwnedFd, SocketError> {
    let bound = || {
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(path.as_path())?)?;
        Ok::<_, rustix::io::Errno>(socket)
    };
    Ok(bound().map_err(FileError::system("make", path.as_path()))?)
}

/// Removes the socket file at `path`, if there is one and no process has it. Waits a little for that: a process that
/// dies loses its environment, by which it is found, before it closes its sockets.
///
/// # Errors
/// [`SocketError::InUse`], [`SocketError::NotOurs`], [`SocketError::File`].
pub async fn remove_stale(path: &SocketPath) -> Result<(), SocketError> {
    let deadline = Instant::now() + RELEASE_LIMIT;
    let mut pause = Duration::from_millis(1);
    while usage(path)? != SocketUse::Unused {
        if Instant::now() > deadline {
            return Err(SocketError::InUse(path.clone()));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
    remove_if(path.as_path(), "socket", |kind| kind.is_socket())
}

/// Removes the plain file at `path`, if there is one.
///
/// # Errors
/// [`SocketError::NotOurs`], [`SocketError::File`].
pub fn remove_file(path: &Path) -> Result<(), SocketError> {
    remove_if(path, "plain file", std::fs::FileType::is_file)
}

fn remove_if(
    path: &Path,
    wanted: &'static str,
    is_wanted: impl Fn(&std::fs::FileType) -> bool,
) -> Result<(), SocketError> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(FileError::system("examine", path)(error).into()),
        Ok(metadata) if !is_wanted(&metadata.file_type()) => {
            Err(SocketError::NotOurs { path: path.to_owned(), wanted })
        }
        Ok(_) => match std::fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(FileError::system("remove", path)(error).into())
            }
            _ => Ok(()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};

    fn path(directory: &tempfile::TempDir, name: &str) -> SocketPath {
        SocketPath::new(directory.path().join(name)).unwrap()
    }

    #[test]
    fn the_longest_path_is_that_of_the_kernel() {
        let directory = tempfile::tempdir_in("/tmp").unwrap();
        let fill = LONGEST - directory.path().as_os_str().len() - 1;
        let longest = path(&directory, &"x".repeat(fill));
        UnixListener::bind(longest.as_path()).unwrap();
        let longer = directory.path().join("x".repeat(fill + 1));
        assert!(UnixListener::bind(&longer).is_err());
        assert!(matches!(SocketPath::new(longer), Err(SocketError::TooLong { .. })));
    }

    #[test]
    fn paths_that_would_be_misread_are_refused() {
        use std::os::unix::ffi::OsStringExt;
        let not_text = PathBuf::from(std::ffi::OsString::from_vec(b"/tmp/\xff".to_vec()));
        for bad in ["relative".into(), "/tmp/a\nb".into(), not_text] {
            assert!(matches!(SocketPath::new(bad), Err(SocketError::Unfit { .. })));
        }
    }

    #[tokio::test]
    async fn a_socket_is_listening_then_connected_then_unused() {
        let directory = tempfile::tempdir().unwrap();
        let socket = path(&directory, "a b");
        assert_eq!(usage(&socket).unwrap(), SocketUse::Unused);
        let listener = UnixListener::bind(socket.as_path()).unwrap();
        assert_eq!(usage(&socket).unwrap(), SocketUse::Listening);
        assert!(matches!(remove_stale(&socket).await, Err(SocketError::InUse(_))));
        let client = UnixStream::connect(socket.as_path()).unwrap();
        let (server, _) = listener.accept().unwrap();
        drop(listener);
        assert_eq!(usage(&socket).unwrap(), SocketUse::Connected);
        drop((client, server));
        assert_eq!(usage(&socket).unwrap(), SocketUse::Unused);
        assert!(socket.as_path().exists());
        remove_stale(&socket).await.unwrap();
        assert!(!socket.as_path().exists());
        remove_stale(&socket).await.unwrap();
    }

    #[test]
    fn a_longer_path_with_the_same_end_is_another_socket() {
        let table = b"Num\n0000000000000000: 00000002 00000000 00010000 0001 01 45345 /tmp/x /run/s\n";
        let of = |text: &str| usage_in(table, &SocketPath::new(text.into()).unwrap());
        assert_eq!(of("/run/s"), SocketUse::Unused);
        assert_eq!(of("/tmp/x /run/s"), SocketUse::Listening);
        assert_eq!(of("/tmp/x"), SocketUse::Unused);
    }

    #[tokio::test]
    async fn a_file_that_is_not_a_socket_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let socket = path(&directory, "s");
        std::fs::write(socket.as_path(), "precious").unwrap();
        assert!(matches!(remove_stale(&socket).await, Err(SocketError::NotOurs { .. })));
        assert_eq!(std::fs::read(socket.as_path()).unwrap(), b"precious");
        remove_file(socket.as_path()).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", socket.as_path()).unwrap();
        assert!(matches!(remove_file(socket.as_path()), Err(SocketError::NotOurs { .. })));
        assert!(socket.as_path().is_symlink());
    }
}

//! Tells of share daemons that run whether a guest can reach a `.nixbox` through them.
//!
//! A mask lies on the directory that had the name `.nixbox` when the daemon was started. If the host removes or renames
//! that directory and makes another, the kernel takes the mask away, or the mask stays with the renamed directory. The
//! daemon then serves the new directory, as it is.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{HIDDEN, MASK, MASKS, SOURCE};
use crate::files::FileError;
use crate::host::process::ROLE;

/// The argument of virtiofsd that names the directory.
pub(super) const SHARED_DIRECTORY: &str = "--shared-dir=";
/// Separates the paths of masks in the environment. No path has two slashes in a row there.
const SEPARATOR: &[u8] = b"//";
/// The most bytes of the paths of one share's masks. nixbox reads the beginning of a process's environment only.
const LONGEST: usize = 32 << 10;

type Result<T, E = FileError> = std::result::Result<T, E>;

/// The paths of masks as a value of the environment; `None` if they are too long for one.
pub(super) fn masks_value(paths: &[PathBuf]) -> Option<OsString> {
    let paths: Vec<&[u8]> = paths.iter().map(|path| path.as_os_str().as_bytes()).collect();
    let value = paths.join(SEPARATOR);
    (value.len() <= LONGEST).then(|| OsString::from_vec(value))
}

fn masks_in(value: &[u8]) -> BTreeSet<PathBuf> {
    let mut paths = BTreeSet::new();
    let mut rest = value;
    while let Some(end) = rest.windows(SEPARATOR.len()).position(|window| window == SEPARATOR) {
        paths.insert(OsStr::from_bytes(&rest[..end]).into());
        rest = &rest[end + SEPARATOR.len()..];
    }
    if !rest.is_empty() {
        paths.insert(OsStr::from_bytes(rest).into());
    }
    paths
}

/// A file of a process; `None` if the process is gone, or is another user's.
fn file_of(pid: u32, name: &str) -> Result<Option<Vec<u8>>> {
    let path = PathBuf::from(format!("/proc/{pid}/{name}"));
    match fs::read(&path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => Ok(None),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => Ok(None),
        Err(error) => Err(FileError::system("read", path)(error)),
    }
}

fn variable<'a>(environment: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let mut entries = environment.split(|byte| *byte == 0);
    entries.find_map(|entry| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
}

/// Whether a process is nixbox's own: the supervisor of a share, or one that is about to become a share daemon. It serves
/// nothing, and may not have the masks yet.
fn is_own(pid: u32) -> Result<bool> {
    let line = file_of(pid, "cmdline")?.unwrap_or_default();
    Ok(line.split(|byte| *byte == 0).nth(1) == Some(super::COMMAND.as_bytes()))
}

/// The directory that the command line of a process names as its share.
fn opened_by(pid: u32) -> Result<Option<PathBuf>> {
    let line = file_of(pid, "cmdline")?.unwrap_or_default();
    let mut arguments = line.split(|byte| *byte == 0);
    let opened = arguments.find_map(|argument| argument.strip_prefix(SHARED_DIRECTORY.as_bytes()));
    Ok(opened.map(|opened| OsStr::from_bytes(opened).into()))
}

/// The source of the share of a daemon that opens the directory `opened`, canonical when the daemon was started. Daemons
/// of earlier versions open the source by its path, and their environment does not name it.
fn source_in(environment: &[u8], opened: &Path) -> PathBuf {
    variable(environment, SOURCE).map_or(opened.to_owned(), |source| OsStr::from_bytes(source).into())
}

/// The devices of the masks that a process sees.
fn mask_devices(pid: u32) -> Result<BTreeSet<u64>> {
    let table = file_of(pid, "mountinfo")?.unwrap_or_default();
    // `47 46 0:39 / /srv/.nixbox rw,nosuid - tmpfs nixbox-mask ro`, see proc_pid_mountinfo(5).
    let device = |line: &str| {
        let (mount, file_system) = line.split_once(" - ")?;
        if file_system.split(' ').nth(1)? != MASK {
            return None;
        }
        let (major, minor) = mount.split(' ').nth(2)?.split_once(':')?;
        Some(rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?))
    };
    Ok(String::from_utf8_lossy(&table).lines().filter_map(device).collect())
}

/// Each `.nixbox` that the share daemon `pid` shows as it is: of those that were masked when it was started, and that of
/// `workspace`. Empty if the daemon is gone.
pub(in crate::host) fn exposed(pid: u32, workspace: &Path) -> Result<Vec<PathBuf>> {
    if is_own(pid)? {
        return Ok(Vec::new());
    }
    let (Some(opened), Some(environment)) = (opened_by(pid)?, file_of(pid, "environ")?) else {
        return Ok(Vec::new());
    };
    let source = source_in(&environment, &opened);
    let mut paths = masks_in(variable(&environment, MASKS).unwrap_or_default());
    if let Ok(within) = workspace.strip_prefix(&source) {
        paths.insert(within.join(HIDDEN));
    }
    let masks = mask_devices(pid)?;
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    // The share is the root directory of a virtiofsd that serves, and not that of a daemon that is still starting.
    let served = match opened.strip_prefix("/") {
        Ok(below) if is_same(&root, Path::new("/")) => root.join(below),
        _ => root,
    };
    let mut exposed = Vec::new();
    for path in paths {
        let seen = served.join(&path);
        match fs::symlink_metadata(&seen) {
            Ok(status) if status.is_dir() && !masks.contains(&status.dev()) => {
                exposed.push(source.join(path));
            }
            Ok(_) => {}
            Err(error) if is_missing(&error) => {}
            Err(error) => return Err(FileError::system("examine", seen)(error)),
        }
    }
    Ok(exposed)
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
        || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

fn is_same(one: &Path, other: &Path) -> bool {
    let inode = |path| fs::metadata(path).map(|status| (status.dev(), status.ino())).ok();
    inode(one).is_some_and(|found| Some(found) == inode(other))
}

/// A share daemon of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveShare {
    /// Its process.
    pub pid: u32,
    /// The directory that it serves.
    pub source: PathBuf,
}

/// A share daemon, of any workspace, that serves `directory` or a directory above it. Daemons of other users are found
/// by root only.
///
/// # Errors
/// [`FileError`] if /proc cannot be read.
pub fn share_above(directory: &Path) -> Result<Option<LiveShare>> {
    let failed = |error| FileError::system("list", "/proc")(error);
    for entry in fs::read_dir("/proc").map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        let Some(environment) = file_of(pid, "environ")? else { continue };
        let is_share = variable(&environment, ROLE).is_some_and(|role| role.starts_with(b"share-"));
        if is_share && let Some(opened) = opened_by(pid)? {
            let source = source_in(&environment, &opened);
            if directory.starts_with(&source) {
                return Ok(Some(LiveShare { pid, source }));
            }
        }
    }
    Ok(None)
}

//! A workspace: a directory with `.nixbox/` in it.
//!
//! ```text
//! .nixbox/                  0700, belongs to the invoking user, not a link
//!   config.toml             written by the user
//!   .gitignore              keeps everything but itself and config.toml out of version control
//!   workspace-id            32 hexadecimal digits, made by `init`
//!   lock                    held while something is changed; never removed
//!   journal/                what was done and what is being done
//!   run/                    images and records of the VM that runs
//!   snapshots/  ssh/
//! ```
//!
//! Sockets are in [`Workspace::runtime`], because their paths have to be short. May use `world`, `config`, `files` and
//! `host`.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fs2::FileExt;
use rustix::fs::FileType;
use serde::{Deserialize, Serialize};

use crate::config;
use crate::files::{FileError, Folder};
use crate::host::clock::utc;
use crate::world::WorkspaceId;

pub mod confirmations;
pub mod guest_writable;
pub mod registry;
mod template;

pub use template::CONFIG;

/// The directory that makes a directory a workspace.
pub const DIRECTORY: &str = ".nixbox";
const ID_FILE: &str = "workspace-id";
const LOCK_FILE: &str = "lock";
const DIRECTORIES: [&str; 4] = ["journal", "run", "snapshots", "ssh"];
/// How long a child may keep the lock of a dead nixbox: from its fork to its exec.
const BEQUEST_LIMIT: Duration = Duration::from_secs(2);
/// More than the holder of a lock writes into its file.
const LOCK_LIMIT: u64 = 4096;

/// Why there is no workspace to work in.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum WorkspaceError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("cannot find the directory {}", path.display())]
    Start { path: PathBuf, source: io::Error },
    #[error("neither {} nor a directory above it is a workspace: `nixbox init` makes one", from.display())]
    None { from: PathBuf },
    #[error("{} is missing: `nixbox init` makes what is missing and leaves the rest as it is", path.display())]
    Incomplete { path: PathBuf },
    #[error("{} does not hold 32 hexadecimal digits: it is not what `nixbox init` wrote", path.display())]
    BadId { path: PathBuf },
    #[error("the system gives no random bytes")]
    Random(#[source] getrandom::Error),
    /// Each directory that was tried for sockets, and why none can be there.
    #[error("no directory for sockets can be made: {}", tried.join("; "))]
    NoRuntime { tried: Vec<String> },
}

/// Why the lock of the workspace was not taken.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("another nixbox is at work in this workspace: {}", describe(.0.as_ref()))]
    Locked(Option<LockHolder>),
    #[error(transparent)]
    File(#[from] FileError),
}

fn describe(holder: Option<&LockHolder>) -> String {
    match holder {
        Some(holder) => {
            let seconds = now_ms().saturating_sub(holder.since_ms) / 1000;
            let since = utc(holder.since_ms);
            format!("process {} runs `{}` since {since}, {seconds} s ago", holder.pid, holder.operation)
        }
        None => "it has not written yet what it runs".to_owned(),
    }
}

/// The process that holds the lock of a workspace, as the lock's file says. The file is for people: the kernel keeps the
/// lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockHolder {
    /// Its process id.
    pub pid: u32,
    /// The command that it runs.
    pub operation: String,
    /// When it took the lock: milliseconds since 1970, UTC.
    pub since_ms: u64,
}

/// An exclusive lock on a workspace. It is released when dropped, and by the kernel when the process ends.
#[derive(Debug)]
pub struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Both results may be dropped: the text in the file has no meaning without the lock, and the lock ends with the
        // handle of the file in any case.
        drop(self.0.set_len(0));
        drop(FileExt::unlock(&self.0));
    }
}

/// A workspace that was found, and whose `.nixbox` is complete and safe.
#[derive(Debug)]
pub struct Workspace {
    root: PathBuf,
    nixbox: Folder,
    id: WorkspaceId,
}

impl Workspace {
    /// The nearest workspace at or above `from`.
    ///
    /// # Errors
    /// If there is none, or its `.nixbox` is a link, belongs to another user, can be written by others, or is incomplete.
    pub fn find(from: &Path) -> Result<Self, WorkspaceError> {
        let start = std::fs::canonicalize(from)
            .map_err(|source| WorkspaceError::Start { path: from.to_owned(), source })?;
        for root in start.ancestors() {
            // Whatever has the name ends the search, even a dangling link: further up could be the workspace of another
            // user.
            if std::fs::symlink_metadata(root.join(DIRECTORY)).is_ok() {
                return Self::open(root);
            }
        }
        Err(WorkspaceError::None { from: start })
    }

    fn open(root: &Path) -> Result<Self, WorkspaceError> {
        let nixbox = Folder::open(&root.join(DIRECTORY))?;
        nixbox.check_private()?;
        nixbox.check_not_mounted(&Folder::open(root)?)?;
        for name in DIRECTORIES {
            let path = nixbox.path_of(name);
            nixbox.folder(name)?.ok_or(WorkspaceError::Incomplete { path })?.check_private()?;
        }
        let path = nixbox.path_of(ID_FILE);
        let id = read_id(&nixbox)?.ok_or(WorkspaceError::Incomplete { path })?;
        Ok(Self { root: root.to_owned(), nixbox, id })
    }

    /// The path of the workspace.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Its `.nixbox`.
    #[must_use]
    pub fn nixbox(&self) -> &Folder {
        &self.nixbox
    }

    /// The id of the workspace.
    #[must_use]
    pub fn id(&self) -> WorkspaceId {
        self.id
    }

    /// `.nixbox/journal`.
    #[must_use]
    pub fn journal(&self) -> PathBuf {
        self.nixbox.path_of("journal")
    }

    /// `.nixbox/run`.
    #[must_use]
    pub fn run(&self) -> PathBuf {
        self.nixbox.path_of("run")
    }

    /// `.nixbox/snapshots`.
    #[must_use]
    pub fn snapshots(&self) -> PathBuf {
        self.nixbox.path_of("snapshots")
    }

    /// `.nixbox/ssh`.
    #[must_use]
    pub fn ssh(&self) -> PathBuf {
        self.nixbox.path_of("ssh")
    }

    /// The directory for sockets, which is made if it is missing. Its path is short, and its mode is 0700. The path does
    /// not depend on the environment, because a later command has to find the sockets again. So `XDG_RUNTIME_DIR` is not
    /// used; where it is set, it is `/run/user/<user>`.
    ///
    /// # Errors
    /// If the directory cannot be made, or belongs to another user.
    pub fn runtime(&self) -> Result<Folder, WorkspaceError> {
        let user = rustix::process::geteuid();
        let own = PathBuf::from(format!("/run/user/{user}", user = user.as_raw()));
        // The end of root's session removes /run/user/0, and root's VMs outlive the session.
        let bases =
            if user.is_root() { vec!["/run".into()] } else { vec![own, "/dev/shm".into(), "/tmp".into()] };
        self.runtime_in(&bases)
    }

    /// The runtime directory at this path, which an earlier command wrote down. It is made again if it is missing.
    ///
    /// # Errors
    /// If the directory cannot be made, belongs to another user, or is not one that nixbox makes for this workspace.
    pub fn runtime_at(&self, path: &Path) -> Result<Folder, WorkspaceError> {
        let base = path.parent().and_then(Path::parent).unwrap_or(path).to_owned();
        let folder = self.runtime_in(std::slice::from_ref(&base))?;
        if folder.path() == path {
            Ok(folder)
        } else {
            Err(WorkspaceError::NoRuntime {
                tried: vec![format!("{} is not this workspace's", path.display())],
            })
        }
    }

    fn runtime_in(&self, bases: &[PathBuf]) -> Result<Folder, WorkspaceError> {
        let name = format!("nixbox-{}", rustix::process::geteuid().as_raw());
        // Half of the id is enough to tell workspaces apart, and the path of a socket has at most 108 bytes.
        let id = &self.id.to_string()[..16];
        let make = |base: &Path| -> Result<Folder, FileError> {
            let (user, _) = Folder::open(base)?.make_folder(&name)?;
            user.check_private()?;
            let (folder, _) = user.make_folder(id)?;
            folder.check_private()?;
            Ok(folder)
        };
        let mut tried = Vec::new();
        for base in bases {
            match make(base) {
                Ok(folder) => return Ok(folder),
                Err(error) => tried.push(format!("{}: {error}", base.display())),
            }
        }
        Err(WorkspaceError::NoRuntime { tried })
    }

    /// Takes the lock of the workspace for an operation, without waiting for another nixbox. A nixbox that was killed
    /// while it started a daemon leaves the lock to a child that has not become the daemon yet. This call waits until the
    /// child has, so that the daemon can be found afterwards.
    ///
    /// # Errors
    /// [`LockError::Locked`] with the process that has the lock.
    pub fn lock(&self, operation: &str) -> Result<Lock, LockError> {
        let path = self.nixbox.path_of(LOCK_FILE);
        let mut file = match self.nixbox.file_to_write(LOCK_FILE)? {
            Some(file) => file,
            None => self.make_lock_file()?,
        };
        let deadline = Instant::now() + BEQUEST_LIMIT;
        loop {
            match FileExt::try_lock_exclusive(&file) {
                Ok(()) => break,
                Err(error) if error.raw_os_error() == fs2::lock_contended_error().raw_os_error() => {
                    let holder = read_holder(&mut file);
                    if holder.as_ref().is_none_or(is_alive) || Instant::now() > deadline {
                        return Err(LockError::Locked(holder));
                    }
                    // No event reports an exec.
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(error) => return Err(FileError::system("lock", path)(error).into()),
            }
        }
        let holder =
            LockHolder { pid: std::process::id(), operation: operation.to_owned(), since_ms: now_ms() };
        let written = serde_json::to_vec(&holder)
            .map_err(io::Error::from)
            .and_then(|text| file.set_len(0).and_then(|()| file.write_all(&text)));
        written.map_err(FileError::system("write", path))?;
        Ok(Lock(file))
    }

    /// The process that is at work in the workspace. This call does not take the lock, which would keep other commands
    /// from taking it.
    ///
    /// # Errors
    /// If the file of the lock cannot be read.
    pub fn holder(&self) -> Result<Option<LockHolder>, LockError> {
        let Some(mut file) = self.nixbox.file_to_write(LOCK_FILE)? else {
            return Ok(None);
        };
        let path = self.nixbox.path_of(LOCK_FILE);
        let inode = file.metadata().map_err(FileError::system("examine", path))?.ino();
        let locks = Path::new("/proc/locks");
        let locks = std::fs::read_to_string(locks).map_err(FileError::system("read", locks))?;
        // `1: FLOCK  ADVISORY  WRITE 1234 08:01:567 0 EOF`: process 1234 holds inode 567 (proc_locks(5)).
        let holder = |line: &str| -> Option<u32> {
            let words: Vec<_> = line.split_whitespace().collect();
            let locked: u64 = words.get(5)?.rsplit(':').next()?.parse().ok()?;
            let pid = words.get(4)?.parse().ok()?;
            (words.get(1) == Some(&"FLOCK") && locked == inode).then_some(pid)
        };
        let pids: Vec<u32> = locks.lines().filter_map(holder).collect();
        if pids.is_empty() {
            return Ok(None);
        }
        // The text in the file outlives its writer, so it counts only if the kernel names the same process.
        Ok(read_holder(&mut file).filter(|holder| pids.contains(&holder.pid)))
    }

    /// If two processes make the file at once, both open the file of the first.
    fn make_lock_file(&self) -> Result<File, FileError> {
        match self.nixbox.new_file(LOCK_FILE) {
            Ok(file) => Ok(file),
            Err(error) if error.is(io::ErrorKind::AlreadyExists) => {
                let gone = || {
                    FileError::system("open", self.nixbox.path_of(LOCK_FILE))(io::Error::from(
                        io::ErrorKind::NotFound,
                    ))
                };
                self.nixbox.file_to_write(LOCK_FILE)?.ok_or_else(gone)
            }
            Err(error) => Err(error),
        }
    }
}

fn is_alive(holder: &LockHolder) -> bool {
    Path::new("/proc").join(holder.pid.to_string()).exists()
}

/// What the holder wrote into the file. It writes right after it took the lock, so an empty file is read a few times more.
fn read_holder(file: &mut File) -> Option<LockHolder> {
    for _ in 0..10 {
        let mut text = Vec::new();
        let read = file.rewind().and_then(|()| file.take(LOCK_LIMIT).read_to_end(&mut text));
        if let (Ok(_), Ok(holder)) = (read, serde_json::from_slice(&text)) {
            return Some(holder);
        }
        // An event for a write to a file would cost more than this.
        std::thread::sleep(Duration::from_millis(5));
    }
    None
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Reads the id in a directory `.nixbox`. Returns `None` if the directory has no file for the id.
fn read_id(nixbox: &Folder) -> Result<Option<WorkspaceId>, WorkspaceError> {
    let Some(text) = nixbox.read(ID_FILE, 33)? else {
        return Ok(None);
    };
    parse_id(&text).map(Some).ok_or_else(|| WorkspaceError::BadId { path: nixbox.path_of(ID_FILE) })
}

/// The id in the text of its file: exactly as nixbox writes it, with or without a line break at its end.
fn parse_id(text: &[u8]) -> Option<WorkspaceId> {
    let digits = text.strip_suffix(b"\n").unwrap_or(text);
    let mut id = [0; 16];
    hex::decode_to_slice(digits, &mut id).ok()?;
    let id = WorkspaceId(id);
    (id.to_string().as_bytes() == digits).then_some(id)
}

fn fresh_id() -> Result<WorkspaceId, WorkspaceError> {
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(WorkspaceError::Random)?;
    Ok(WorkspaceId(random))
}

/// Gives a copy of a workspace an id of its own. What the copy has of the original's journal and VM is removed; the
/// configuration, the key and the snapshots stay.
///
/// The id is written last, so that the directory counts as a copy until all is done.
///
/// # Errors
/// If something cannot be removed or written.
pub fn give_new_id(workspace: &Workspace) -> Result<WorkspaceId, WorkspaceError> {
    for name in ["journal", "run"] {
        // The directory itself stays: without it this would be no workspace if nixbox were killed here.
        let folder = workspace.nixbox.make_folder(name)?.0;
        for entry in folder.names()? {
            let status = folder.examine(&entry)?;
            if status.is_some_and(|status| FileType::from_raw_mode(status.st_mode) == FileType::Directory) {
                folder.remove_tree(entry)?;
            } else {
                folder.remove_file(entry)?;
            }
        }
        folder.sync()?;
    }
    let id = fresh_id()?;
    workspace.nixbox.replace(ID_FILE, format!("{id}\n").as_bytes())?;
    Ok(id)
}

/// Makes `directory` a workspace: a commented configuration, a `.gitignore`, an id, and directories. What exists already
/// is left as it is. Returns which files were made.
///
/// # Errors
/// If something cannot be made, or exists and is not safe to use.
pub fn init(directory: &Path) -> Result<(Workspace, Vec<PathBuf>), WorkspaceError> {
    init_with(directory, template::CONFIG)
}

/// The same with another configuration.
///
/// # Errors
/// Those of [`init`].
pub fn init_with(directory: &Path, config: &str) -> Result<(Workspace, Vec<PathBuf>), WorkspaceError> {
    let root = std::fs::canonicalize(directory)
        .map_err(|source| WorkspaceError::Start { path: directory.to_owned(), source })?;
    let above = Folder::open(&root)?;
    let (nixbox, _) = above.make_folder(DIRECTORY)?;
    nixbox.check_private()?;
    nixbox.check_not_mounted(&above)?;
    for name in DIRECTORIES {
        nixbox.make_folder(name)?.0.check_private()?;
    }
    let id = format!("{}\n", fresh_id()?);
    let mut made = Vec::new();
    for (name, content) in
        [(config::FILE, config), (".gitignore", template::GITIGNORE), (ID_FILE, id.as_str())]
    {
        if nixbox.write_new(name, content.as_bytes())? {
            made.push(nixbox.path_of(name));
        }
    }
    // The file of the lock is made here, so that a command that is refused does not have to make it.
    nixbox.write_new(LOCK_FILE, b"")?;
    Ok((Workspace::open(&root)?, made))
}

#[cfg(test)]
mod tests;

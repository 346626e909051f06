//! Makes the ext4 of an image out of its tree, without root.
//!
//! `mke2fs -d` copies a directory, and a user without root can make neither files of other owners nor some attributes. So the
//! directory has the names, the contents and what the user may set, and one script of `debugfs` then sets the rest in the file
//! system. Both are part of e2fsprogs.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, Mode, Timespec, Timestamps, mkfifoat, utimensat};
use tokio::process::Command;
use uuid::Uuid;

use super::contents::ContentStore;
use super::tree::{Attributes, ImageTree, Node, NodeId, NodeKind};
use crate::files::FileError;
use crate::host::program::{self, ProgramError};
use crate::world::Interrupt;

/// How long each program may take. Both write with the speed of the disk.
const LIMIT: Duration = Duration::from_secs(3600);

const REGULAR: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const SYMLINK: u32 = 0o120_000;
const FIFO: u32 = 0o010_000;

/// Why the disk of an image cannot be made.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum FileSystemError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("mke2fs cannot make the disk of the image")]
    Make(#[source] ProgramError),
    #[error("debugfs cannot set the owners of the image's files")]
    Owners(#[source] ProgramError),
    #[error("debugfs did not set the owner or an attribute of a file of the image: {0}")]
    Refused(String),
}

type Result<T, E = FileSystemError> = std::result::Result<T, E>;

/// Where the disk is made, and with what.
pub struct DiskPlan<'a> {
    /// The files of the disk.
    pub tree: &'a ImageTree,
    /// Their contents, which are moved away.
    pub contents: &'a ContentStore,
    /// A directory that holds nothing else, for the copy that `mke2fs` reads.
    pub workplace: &'a Path,
    /// The file of the disk, which has its size already.
    pub disk: &'a Path,
    /// The id of the file system.
    pub id: Uuid,
}

impl DiskPlan<'_> {
    /// Makes the disk.
    ///
    /// # Errors
    /// [`FileSystemError`].
    pub async fn make(&self, interrupt: &Interrupt) -> Result<()> {
        let root = self.workplace.join("root");
        lay_out(self.tree, self.contents, &root)?;
        let own = Owner::of_this_user();
        let script = commands(self.tree, own, &self.workplace.join("attributes"))?;
        make_ext4(&root, self.disk, self.id, interrupt).await.map_err(FileSystemError::Make)?;
        if script.is_empty() {
            return Ok(());
        }
        let file = self.workplace.join("commands");
        fs::write(&file, script).map_err(FileError::system("write", &file))?;
        set_attributes(&file, self.disk, interrupt).await
    }
}

/// Whom the files belong to that this user makes.
#[derive(Debug, Clone, Copy)]
struct Owner {
    uid: u32,
    gid: u32,
}

impl Owner {
    fn of_this_user() -> Self {
        Self { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
    }
}

/// The permissions that a file has while it is copied: those that the copy needs are added, and bits that would mean
/// something on the host are left out.
fn copied_mode(node: &Node) -> u32 {
    let own = if matches!(node.kind, NodeKind::Directory(_)) { 0o700 } else { 0o600 };
    node.attributes.mode & 0o777 | own
}

/// Makes the files of a tree below a directory. The directory is private, and every name in it is made by this function, so no
/// link leads out of it.
fn lay_out(tree: &ImageTree, contents: &ContentStore, root: &Path) -> Result<()> {
    make_directory(root, tree.root())?;
    let mut made: BTreeMap<NodeId, PathBuf> = BTreeMap::new();
    let mut directories = vec![(root.to_owned(), &tree.root().attributes)];
    for (path, id) in tree.paths() {
        let node = tree.node(id);
        let place = root.join(OsStr::from_bytes(path.strip_prefix(b"/").unwrap_or(&path)));
        if let Some(first) = made.get(&id) {
            fs::hard_link(first, &place).map_err(FileError::system("make", &place))?;
            continue;
        }
        match &node.kind {
            NodeKind::Directory(_) => {
                make_directory(&place, node)?;
                directories.push((place, &node.attributes));
                continue;
            }
            NodeKind::File(number, _) => {
                let content = contents.folder().path_of(ContentStore::name(*number));
                fs::rename(&content, &place).map_err(FileError::system("make", &place))?;
                let mode = copied_mode(node);
                if mode != 0o600 {
                    set_mode(&place, mode)?;
                }
            }
            NodeKind::Symlink(target) => {
                symlink(OsStr::from_bytes(target), &place).map_err(FileError::system("make", &place))?;
            }
            NodeKind::Fifo => {
                mkfifoat(CWD, &place, Mode::RUSR | Mode::WUSR).map_err(FileError::system("make", &place))?;
                set_mode(&place, copied_mode(node))?;
            }
        }
        set_time(&place, &node.attributes)?;
        made.insert(id, place);
    }
    // A directory's time changes with what is made in it.
    directories.iter().rev().try_for_each(|(place, attributes)| set_time(place, attributes))
}

fn make_directory(place: &Path, node: &Node) -> Result<()> {
    fs::DirBuilder::new().mode(0o700).create(place).map_err(FileError::system("make", place))?;
    set_mode(place, copied_mode(node))
}

fn set_mode(place: &Path, mode: u32) -> Result<()> {
    Ok(fs::set_permissions(place, Permissions::from_mode(mode))
        .map_err(FileError::system("change", place))?)
}

fn set_time(place: &Path, attributes: &Attributes) -> Result<()> {
    // ext4 has times up to the year 2446.
    let seconds = i64::try_from(attributes.modified.min(1 << 33)).unwrap_or_default();
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(utimensat(CWD, place, &times, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(FileError::system("change", place))?)
}

/// The commands of `debugfs` that give each file what its copy does not have. Values of attributes are written to files in
/// `values`.
fn commands(tree: &ImageTree, own: Owner, values: &Path) -> Result<Vec<u8>> {
    let mut script = Vec::new();
    let mut done = BTreeSet::new();
    let mut count = 0_usize;
    let nodes = tree.paths().into_iter().map(|(path, id)| (path, Some(id), tree.node(id)));
    for (path, id, node) in std::iter::once((b"/".to_vec(), None, tree.root())).chain(nodes) {
        if id.is_some_and(|id| !done.insert(id)) {
            continue;
        }
        let path = quoted(&path);
        for (field, value) in differing(node, own) {
            add_line(&mut script, &[b"sif", &path, field.as_bytes(), value.as_bytes()]);
        }
        for (name, value) in node.attributes.extended.iter().filter(|(name, _)| is_kept(name)) {
            if count == 0 {
                fs::create_dir(values).map_err(FileError::system("make", values))?;
            }
            let file = values.join(count.to_string());
            count += 1;
            fs::write(&file, value).map_err(FileError::system("write", &file))?;
            add_line(
                &mut script,
                &[b"ea_set", b"-f", &quoted(file.as_os_str().as_bytes()), &path, &quoted(name)],
            );
        }
    }
    Ok(script)
}

/// The fields of an inode that the copy of a node does not have, with their values.
fn differing(node: &Node, own: Owner) -> Vec<(&'static str, String)> {
    let Attributes { mode, uid, gid, extended: _, modified: _ } = &node.attributes;
    let kind = match node.kind {
        NodeKind::Directory(_) => DIRECTORY,
        NodeKind::File(..) => REGULAR,
        NodeKind::Symlink(_) => SYMLINK,
        NodeKind::Fifo => FIFO,
    };
    let mut fields = Vec::new();
    if *uid != own.uid {
        fields.push(("uid", uid.to_string()));
    }
    if *gid != own.gid {
        fields.push(("gid", gid.to_string()));
    }
    if kind != SYMLINK && *mode != copied_mode(node) {
        fields.push(("mode", format!("0{:o}", kind | mode)));
    }
    fields
}

fn add_line(script: &mut Vec<u8>, words: &[&[u8]]) {
    script.extend_from_slice(&words.join(&b' '));
    script.push(b'\n');
}

/// A word of a command of `debugfs`: in quotes, which are doubled within it.
fn quoted(text: &[u8]) -> Vec<u8> {
    let mut word = vec![b'"'];
    for byte in text {
        word.push(*byte);
        if *byte == b'"' {
            word.push(*byte);
        }
    }
    word.push(b'"');
    word
}

/// Whether an attribute belongs to the file, and not to how a container's layers are stacked.
fn is_kept(name: &[u8]) -> bool {
    let spaces: [&[u8]; 4] = [b"user.", b"security.", b"trusted.", b"system.posix_acl_"];
    let layers: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];
    let plain = !name.iter().any(|byte| byte.is_ascii_control() || *byte == b'"');
    plain
        && spaces.iter().any(|space| name.starts_with(space))
        && !layers.iter().any(|one| name.starts_with(one))
}

fn program(name: &'static str) -> Result<Command, ProgramError> {
    // Many users have no sbin on their PATH.
    let path = program::locate(name, "e2fsprogs", program::path_directories())?;
    let mut command = Command::new(path);
    command
        .env_clear()
        .env("PATH", program::SYSTEM_DIRECTORIES.join(":"))
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    Ok(command)
}

async fn run(mut command: Command, interrupt: &Interrupt) -> Result<Vec<u8>, ProgramError> {
    let path = PathBuf::from(command.as_std().get_program());
    let child = command.spawn().map_err(|source| ProgramError::Run {
        action: "start",
        path: path.clone(),
        source,
    })?;
    program::finish(child, &path, &[], LIMIT, interrupt).await.map(|output| output.stderr)
}

async fn make_ext4(root: &Path, disk: &Path, id: Uuid, interrupt: &Interrupt) -> Result<(), ProgramError> {
    let mut command = program("mke2fs")?;
    // nodiscard: the file is a hole from end to end. The id and the hash of directories make the disk the same each time.
    let extended = format!("lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0,hash_seed={id}");
    command.args([
        "-q",
        "-F",
        "-t",
        "ext4",
        "-m",
        "0",
        "-L",
        "root",
        "-U",
        &id.to_string(),
        "-E",
        &extended,
        "-d",
    ]);
    command.arg(root).arg("--").arg(disk);
    run(command, interrupt).await.map(drop)
}

async fn set_attributes(commands: &Path, disk: &Path, interrupt: &Interrupt) -> Result<()> {
    let mut command = program("debugfs").map_err(FileSystemError::Owners)?;
    command.arg("-w").arg("-f").arg(commands).arg("--").arg(disk);
    let stderr = run(command, interrupt).await.map_err(FileSystemError::Owners)?;
    // It succeeds whatever a command came to, and names itself first.
    let stderr = String::from_utf8_lossy(&stderr).into_owned();
    match stderr.lines().find(|line| !line.starts_with("debugfs ") && !line.trim().is_empty()) {
        Some(line) => Err(FileSystemError::Refused(line.chars().take(300).collect())),
        None => Ok(()),
    }
}

/// Makes sure that both programs are there.
///
/// # Errors
/// [`FileSystemError::Make`].
pub fn check_programs() -> Result<()> {
    ["mke2fs", "debugfs"].iter().try_for_each(|name| program(name).map(drop)).map_err(FileSystemError::Make)
}

#[cfg(test)]
mod tests;

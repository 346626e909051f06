//! The slots of this host. A claim is a file in [`DIRECTORY`] that has the slot's number as its name, and names the
//! workspace that holds the slot. A VM whose network is a namespace of its own has its claim in a directory of its own, where
//! every slot is free.
//!
//! The TAPs of VMs that an earlier nixbox has built in the host's network are numbered by slots and belong to the host, so all
//! users share one directory: mode 1777, owned by root. The sticky bit keeps users from removing each other's claims. Root
//! makes the directory when it is missing.
//!
//! Why in /run: it is a tmpfs, so claims end with the boot, as TAPs do. With a directory per user, two users could claim
//! one slot. /tmp and /dev/shm are cleaned by age and at log-out while a VM still runs, and every user could own the
//! directory there by making it first. A lock or an abstract socket would end with the process that holds it, and a
//! claim outlives the command that makes it.
//!
//! What a crash leaves: a claim is written into a file without a name (O_TMPFILE), and then linked to its name, which
//! fails if the name exists. A nixbox that is killed before the link leaves nothing. A nixbox that is killed after it
//! leaves a whole claim, which the next run of the workspace finds as its own ([`Slots::held`]). Removing a claim is a
//! single `unlink`. The directory itself gets its name by a rename when its mode is right; a nixbox that is killed before
//! leaves `slots.new`, which the next one uses.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags};
use serde::{Deserialize, Serialize};

use crate::files::FileError;
use crate::world::{Failure, Result, Slot, Slots, WorkspaceId};

/// Where the claims of this host are.
pub const DIRECTORY: &str = "/run/nixbox/slots";

/// More than a claim takes: a path of 4096 bytes, escaped, and the rest.
const MAX_CLAIM: u64 = 32 * 1024;

/// Why a slot cannot be claimed, found or released.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    #[error(
        "cannot use {path} for slot claims; root makes it with: install -d -m 1777 {path} \
         (and a tmpfiles.d line \"d {path} 1777 root root\" for the next boot)"
    )]
    Directory { path: PathBuf, source: io::Error },
    #[error("{path} is not safe for slot claims: {why}; it must be a directory of root's with mode 1777")]
    Unsafe { path: PathBuf, why: &'static str },
    /// A claim cannot be read, written or removed.
    #[error(transparent)]
    File(#[from] FileError),
    #[error("no free slot among {wanted}: {holders}; bring a VM down to free its slot")]
    AllTaken { wanted: String, holders: String },
    /// A workspace has one VM, and so one slot.
    #[error("this workspace holds slot {held} already, which is not a wanted one; run `nixbox down` first")]
    HoldsAnother { held: Slot },
    #[error("slot {slot} is held by {holder}, not by this workspace; nothing was removed")]
    NotOurs { slot: Slot, holder: String },
}

impl From<SlotError> for Failure {
    fn from(error: SlotError) -> Self {
        Self::world(error)
    }
}

/// The content of a claim. Unknown and missing fields are errors, and so is another version.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Claim {
    version: u8,
    /// 32 hexadecimal digits.
    workspace: String,
    /// The path of the workspace, for people.
    directory: String,
}

/// Who holds a slot.
#[derive(Debug, PartialEq, Eq)]
enum SlotHolder {
    Nobody,
    This,
    /// Another workspace or user, or a file that is not a claim of this version. This workspace must not remove it.
    Another(String),
}

/// The claims of this host, seen from one workspace.
#[derive(Debug, Clone)]
pub struct HostSlots {
    directory: PathBuf,
    workspace: WorkspaceId,
    /// For people.
    workspace_path: PathBuf,
    /// The slot that is free first.
    preferred: Option<Slot>,
}

impl HostSlots {
    /// `directory` is [`DIRECTORY`], except in tests. Touches nothing yet.
    #[must_use]
    pub fn new(
        directory: impl Into<PathBuf>,
        workspace: WorkspaceId,
        workspace_path: impl Into<PathBuf>,
    ) -> Self {
        Self {
            directory: directory.into(),
            workspace,
            workspace_path: workspace_path.into(),
            preferred: None,
        }
    }

    /// The same, with one slot as the first of those that are free.
    #[must_use]
    pub fn preferring(self, slot: Slot) -> Self {
        Self { preferred: Some(slot), ..self }
    }

    /// The slot that this workspace holds.
    ///
    /// # Errors
    /// If the directory is not safe, or a claim cannot be read.
    pub fn held_slot(&self) -> Result<Option<Slot>, SlotError> {
        if !self.is_ready()? {
            return Ok(None);
        }
        for slot in Slot::all() {
            if self.holder(slot)? == SlotHolder::This {
                return Ok(Some(slot));
            }
        }
        Ok(None)
    }

    fn path(&self, slot: Slot) -> PathBuf {
        self.directory.join(slot.to_string())
    }

    /// Whether the directory exists. A directory whose claims other users could change is an error.
    fn is_ready(&self) -> Result<bool, SlotError> {
        let path = &self.directory;
        let status = match path.symlink_metadata() {
            Ok(status) => status,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(source) => {
                return Err(SlotError::Directory { path: path.clone(), source });
            }
        };
        let unsafe_because = |why| SlotError::Unsafe { path: path.clone(), why };
        if !status.is_dir() {
            return Err(unsafe_because("it is not a directory"));
        }
        if status.uid() != 0 && status.uid() != rustix::process::geteuid().as_raw() {
            return Err(unsafe_because("it belongs to another user"));
        }
        if status.mode() & 0o022 != 0 && status.mode() & 0o1000 == 0 {
            return Err(unsafe_because("others may write to it and it has no sticky bit"));
        }
        Ok(true)
    }

    /// Makes the directory if it is missing. Below /run only root can.
    ///
    /// # Errors
    /// If the directory cannot be made, or other users could change its claims.
    pub fn ensure(&self) -> Result<(), SlotError> {
        if self.is_ready()? {
            return Ok(());
        }
        let path = &self.directory;
        let failed = |source| SlotError::Directory { path: path.clone(), source };
        let above = path.parent().unwrap_or(path);
        if !above.exists() {
            std::fs::create_dir_all(above).map_err(failed)?;
            // Every user has to enter the directory above, whatever the umask of root is.
            let mode = Mode::from_raw_mode(0o755);
            rustix::fs::chmod(above, mode).map_err(|error| failed(error.into()))?;
        }
        // The umask removes bits from the mode that mkdir asks for. So the directory gets its name when its mode is
        // right, and no nixbox finds a directory in which other users cannot claim.
        let unready = path.with_extension("new");
        match rustix::fs::mkdir(&unready, Mode::from_raw_mode(0o1777)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(failed(error.into())),
        }
        rustix::fs::chmod(&unready, Mode::from_raw_mode(0o1777)).map_err(|error| failed(error.into()))?;
        match rustix::fs::renameat_with(CWD, &unready, CWD, path, RenameFlags::NOREPLACE) {
            // EXIST and NOENT: another nixbox was faster.
            Ok(()) | Err(rustix::io::Errno::EXIST | rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(failed(error.into())),
        }
        if self.is_ready()? {
            return Ok(());
        }
        Err(failed(io::ErrorKind::NotFound.into()))
    }

    fn holder(&self, slot: Slot) -> Result<SlotHolder, SlotError> {
        let path = self.path(slot);
        // NONBLOCK and NOFOLLOW, because another user may have put a FIFO or a link there.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(rustix::io::Errno::NOENT) => return Ok(SlotHolder::Nobody),
            Err(error) => {
                return Ok(SlotHolder::Another(format!("a file that cannot be opened ({error})")));
            }
        };
        let status = file.metadata().map_err(FileError::system("examine", &path))?;
        if !status.is_file() {
            return Ok(SlotHolder::Another("something that is not a file".to_owned()));
        }
        let mut bytes = Vec::new();
        (&file).take(MAX_CLAIM).read_to_end(&mut bytes).map_err(FileError::system("read", &path))?;
        let claim = match serde_json::from_slice::<Claim>(&bytes) {
            Ok(claim) if claim.version == 1 => claim,
            _ => {
                return Ok(SlotHolder::Another("a file that is not a claim of this version".to_owned()));
            }
        };
        // Every user may write any workspace into a claim of his own, so the owner of the file counts too.
        let own = status.uid() == rustix::process::geteuid().as_raw();
        if own && claim.workspace == self.workspace.to_string() {
            return Ok(SlotHolder::This);
        }
        Ok(SlotHolder::Another(format!("workspace {:?} of user {}", claim.directory, status.uid())))
    }

    /// Whether this workspace holds the slot now; false if another holds it.
    fn try_claim(&self, slot: Slot) -> Result<bool, SlotError> {
        let path = self.path(slot);
        let failed = |error: io::Error| FileError::system("write", &path)(error);
        let claim = Claim {
            version: 1,
            workspace: self.workspace.to_string(),
            directory: self.workspace_path.to_string_lossy().into_owned(),
        };
        let bytes = serde_json::to_vec(&claim).map_err(|error| failed(error.into()))?;
        let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::TMPFILE;
        let unnamed = rustix::fs::open(&self.directory, flags, Mode::from_raw_mode(0o644));
        let mut unnamed = File::from(unnamed.map_err(|error| failed(error.into()))?);
        // Every user has to see who holds the slot, whatever the umask is.
        rustix::fs::fchmod(&unnamed, Mode::from_raw_mode(0o644)).map_err(|error| failed(error.into()))?;
        unnamed.write_all(&bytes).map_err(failed)?;
        let origin = format!("/proc/self/fd/{}", unnamed.as_raw_fd());
        match rustix::fs::linkat(CWD, Path::new(&origin), CWD, &path, AtFlags::SYMLINK_FOLLOW) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::EXIST) => Ok(false),
            Err(error) => Err(failed(error.into()).into()),
        }
    }
}

// The files are few, small and in memory, so reading them takes less time than another thread would.
#[async_trait]
impl Slots for HostSlots {
    async fn held(&self) -> Result<Option<Slot>> {
        Ok(self.held_slot()?)
    }

    async fn free(&self) -> Result<Vec<Slot>> {
        let others = Slot::all().filter(|slot| Some(*slot) != self.preferred);
        let all: Vec<Slot> = self.preferred.into_iter().chain(others).collect();
        if !self.is_ready()? {
            return Ok(all);
        }
        let mut free = Vec::new();
        for slot in all {
            if self.holder(slot)? == SlotHolder::Nobody {
                free.push(slot);
            }
        }
        Ok(free)
    }

    async fn claim(&self, wanted: &[Slot]) -> Result<Slot> {
        self.ensure()?;
        match self.held().await? {
            Some(held) if wanted.contains(&held) => return Ok(held),
            Some(held) => return Err(SlotError::HoldsAnother { held }.into()),
            None => {}
        }
        for &slot in wanted {
            if self.try_claim(slot)? {
                return Ok(slot);
            }
        }
        let mut holders = Vec::new();
        for &slot in wanted {
            if let SlotHolder::Another(holder) = self.holder(slot)? {
                holders.push(format!("{slot} is held by {holder}"));
            }
        }
        let wanted = wanted.iter().map(Slot::to_string).collect::<Vec<_>>().join(", ");
        Err(SlotError::AllTaken { wanted, holders: holders.join("; ") }.into())
    }

    async fn release(&self, slot: Slot) -> Result<()> {
        if !self.is_ready()? {
            return Ok(());
        }
        match self.holder(slot)? {
            SlotHolder::Nobody => Ok(()),
            SlotHolder::Another(holder) => Err(SlotError::NotOurs { slot, holder }.into()),
            // No other file can be here by now: only this user and root may unlink the claim.
            SlotHolder::This => {
                let path = self.path(slot);
                Ok(std::fs::remove_file(&path).map_err(FileError::system("remove", path))?)
            }
        }
    }
}

#[cfg(test)]
mod tests;

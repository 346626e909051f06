//! The slots of this host as files: a claim is a file that is named by the slot's number and names the workspace.
//!
//! Slots number TAPs, and TAPs are the host's, so there is one directory for everybody: [`DIRECTORY`], mode 1777 and
//! owned by root. Root makes it when it is missing; where nixbox runs with capabilities instead, it is made once,
//! beside `setcap`, by `d /run/nixbox/slots 1777 root root` in tmpfiles.d. Why there: /run is a tmpfs, so that claims
//! end with the boot like the TAPs do; a directory of the user's own would let two users claim one slot; /tmp and
//! /dev/shm are cleaned by age and at log-out while a VM still runs, and there anybody may come first and own the
//! directory. A lock or an abstract socket would end with the process that holds it, and a claim has to outlive the
//! command. The sticky bit keeps users from removing each other's claims.
//!
//! A claim is written into a file without a name (O_TMPFILE) and then linked to its place, which fails if the place is
//! taken. So there are no half-written claims, nothing is left of a writer that dies, and whoever links first has it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags};
use serde::{Deserialize, Serialize};

use crate::world::{Failure, Result, Slot, Slots, WorkspaceId};

/// Where the claims of this host are.
pub const DIRECTORY: &str = "/run/nixbox/slots";

/// A claim is longer than this only by mistake or malice: a path of 4096 bytes, escaped, and the rest.
const MAX_CLAIM: u64 = 32 * 1024;

/// What went wrong with the claims.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// The directory cannot be made or looked at.
    #[error(
        "cannot use {path} for slot claims; root makes it with: install -d -m 1777 {path} \
         (and a tmpfiles.d line \"d {path} 1777 root root\" for the next boot)"
    )]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// It is a symlink, belongs to another user, or lets users remove each other's claims.
    #[error("{path} is not safe for slot claims: {why}; it must be a directory of root's with mode 1777")]
    Unsafe {
        /// The directory.
        path: PathBuf,
        /// What was found.
        why: &'static str,
    },
    /// A claim cannot be written, read or removed.
    #[error("cannot {what} slot claim {path}")]
    Claim {
        /// The verb.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// All of the wanted slots are taken.
    #[error("no free slot among {wanted}: {holders}; bring a VM down to free its slot")]
    AllTaken {
        /// The slots asked for, as text.
        wanted: String,
        /// Who holds them, as far as it can be told.
        holders: String,
    },
    /// A workspace has one VM, and so one slot.
    #[error(
        "this workspace holds slot {held} already, which is none of those wanted; run `nixbox down` first"
    )]
    HoldsAnother {
        /// The one that it holds.
        held: Slot,
    },
    /// Nothing was removed.
    #[error("slot {slot} is held by {holder}, not by this workspace")]
    NotOurs {
        /// The slot.
        slot: Slot,
        /// Who holds it.
        holder: String,
    },
}

impl From<SlotError> for Failure {
    fn from(error: SlotError) -> Self {
        Self::world(error)
    }
}

/// A claim's content. Unknown and missing fields are errors, and so is another version.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Claim {
    version: u8,
    /// 32 hexadecimal digits.
    workspace: String,
    /// Where the workspace is, for people.
    directory: String,
}

/// Who holds a slot.
#[derive(Debug, PartialEq, Eq)]
enum SlotHolder {
    Nobody,
    Us,
    /// Another workspace or user, or a file that is no claim of this version: never ours to remove.
    Another(String),
}

/// The claims of this host, seen from one workspace.
#[derive(Debug, Clone)]
pub struct HostSlots {
    directory: PathBuf,
    workspace: WorkspaceId,
    /// Of the workspace, for people.
    workspace_path: PathBuf,
}

impl HostSlots {
    /// `directory` is [`DIRECTORY`], but for tests. Touches nothing yet.
    #[must_use]
    pub fn new(
        directory: impl Into<PathBuf>,
        workspace: WorkspaceId,
        workspace_path: impl Into<PathBuf>,
    ) -> Self {
        Self { directory: directory.into(), workspace, workspace_path: workspace_path.into() }
    }

    fn path(&self, slot: Slot) -> PathBuf {
        self.directory.join(slot.to_string())
    }

    /// Whether there is a directory that claims can be trusted in.
    fn look(&self) -> Result<bool, SlotError> {
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

    /// Make the directory where it is missing. Only root can, below /run.
    ///
    /// # Errors
    /// If it cannot be made, or could be tampered with.
    pub fn ensure(&self) -> Result<(), SlotError> {
        if self.look()? {
            return Ok(());
        }
        let path = &self.directory;
        let failed = |source| SlotError::Directory { path: path.clone(), source };
        let above = path.parent().unwrap_or(path);
        if !above.exists() {
            std::fs::create_dir_all(above).map_err(failed)?;
            // Every user enters it, whatever umask root has.
            let mode = Mode::from_raw_mode(0o755);
            rustix::fs::chmod(above, mode).map_err(|error| failed(error.into()))?;
        }
        // The umask takes bits from what mkdir asks for, so it gets its name when its mode is right: nobody ever finds
        // one that other users cannot claim in.
        let unready = path.with_extension("new");
        match rustix::fs::mkdir(&unready, Mode::from_raw_mode(0o1777)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(failed(error.into())),
        }
        rustix::fs::chmod(&unready, Mode::from_raw_mode(0o1777)).map_err(|error| failed(error.into()))?;
        match rustix::fs::renameat_with(CWD, &unready, CWD, path, RenameFlags::NOREPLACE) {
            Ok(()) => {}
            // Another nixbox was faster.
            Err(rustix::io::Errno::EXIST | rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(failed(error.into())),
        }
        if self.look()? {
            return Ok(());
        }
        Err(failed(io::ErrorKind::NotFound.into()))
    }

    fn holder(&self, slot: Slot) -> Result<SlotHolder, SlotError> {
        let path = self.path(slot);
        // Not a FIFO's peer, nor led elsewhere by a link.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(rustix::io::Errno::NOENT) => return Ok(SlotHolder::Nobody),
            Err(error) => {
                return Ok(SlotHolder::Another(format!("a file that cannot be opened ({error})")));
            }
        };
        let failed = |source| SlotError::Claim { what: "read", path: path.clone(), source };
        let status = file.metadata().map_err(failed)?;
        if !status.is_file() {
            return Ok(SlotHolder::Another("something that is not a file".to_owned()));
        }
        let mut bytes = Vec::new();
        (&file).take(MAX_CLAIM).read_to_end(&mut bytes).map_err(failed)?;
        let claim = match serde_json::from_slice::<Claim>(&bytes) {
            Ok(claim) if claim.version == 1 => claim,
            _ => {
                return Ok(SlotHolder::Another("a file that is no claim of this version".to_owned()));
            }
        };
        // Anybody may write any name into a claim; who wrote it is what the kernel says.
        let by_us = status.uid() == rustix::process::geteuid().as_raw();
        if by_us && claim.workspace == self.workspace.to_string() {
            return Ok(SlotHolder::Us);
        }
        Ok(SlotHolder::Another(format!("workspace {:?} of user {}", claim.directory, status.uid())))
    }

    fn held_now(&self) -> Result<Option<Slot>, SlotError> {
        if !self.look()? {
            return Ok(None);
        }
        for slot in Slot::all() {
            if self.holder(slot)? == SlotHolder::Us {
                return Ok(Some(slot));
            }
        }
        Ok(None)
    }

    /// Whether it is ours now: false if somebody has it.
    fn try_claim(&self, slot: Slot) -> Result<bool, SlotError> {
        let path = self.path(slot);
        let failed = |source| SlotError::Claim { what: "write", path: path.clone(), source };
        let claim = Claim {
            version: 1,
            workspace: self.workspace.to_string(),
            directory: self.workspace_path.to_string_lossy().into_owned(),
        };
        let bytes = serde_json::to_vec(&claim).map_err(|error| failed(error.into()))?;
        let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::TMPFILE;
        let unnamed = rustix::fs::open(&self.directory, flags, Mode::from_raw_mode(0o644));
        let mut unnamed = File::from(unnamed.map_err(|error| failed(error.into()))?);
        // Readable for every user, whatever the umask: they have to see who holds it.
        rustix::fs::fchmod(&unnamed, Mode::from_raw_mode(0o644)).map_err(|error| failed(error.into()))?;
        unnamed.write_all(&bytes).map_err(failed)?;
        let origin = format!("/proc/self/fd/{}", unnamed.as_raw_fd());
        match rustix::fs::linkat(CWD, Path::new(&origin), CWD, &path, AtFlags::SYMLINK_FOLLOW) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::EXIST) => Ok(false),
            Err(error) => Err(failed(error.into())),
        }
    }

    fn claim_now(&self, wanted: &[Slot]) -> Result<Slot, SlotError> {
        self.ensure()?;
        match self.held_now()? {
            Some(held) if wanted.contains(&held) => return Ok(held),
            Some(held) => return Err(SlotError::HoldsAnother { held }),
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
        Err(SlotError::AllTaken { wanted, holders: holders.join("; ") })
    }

    fn release_now(&self, slot: Slot) -> Result<(), SlotError> {
        if !self.look()? {
            return Ok(());
        }
        match self.holder(slot)? {
            SlotHolder::Nobody => Ok(()),
            SlotHolder::Another(holder) => Err(SlotError::NotOurs { slot, holder }),
            // Nobody can have put another file here since it was read: only we and root may unlink ours.
            SlotHolder::Us => std::fs::remove_file(self.path(slot)).map_err(|source| SlotError::Claim {
                what: "remove",
                path: self.path(slot),
                source,
            }),
        }
    }
}

// The files are few, small and in memory: reading them takes less than handing them to another thread would.
#[async_trait]
impl Slots for HostSlots {
    async fn held(&self) -> Result<Option<Slot>> {
        Ok(self.held_now()?)
    }

    async fn free(&self) -> Result<Vec<Slot>> {
        if !self.look()? {
            return Ok(Slot::all().collect());
        }
        let mut free = Vec::new();
        for slot in Slot::all() {
            if self.holder(slot)? == SlotHolder::Nobody {
                free.push(slot);
            }
        }
        Ok(free)
    }

    async fn claim(&self, wanted: &[Slot]) -> Result<Slot> {
        Ok(self.claim_now(wanted)?)
    }

    async fn release(&self, slot: Slot) -> Result<()> {
        Ok(self.release_now(slot)?)
    }
}

#[cfg(test)]
mod tests;

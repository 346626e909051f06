//! The processes of a slot's network: dnsmasq, the keeper, the follower, and an nft that outlives a killed nixbox, which
//! could bring back a table that was just removed. They are known by their marks: see [`crate::host::process`].
//!
//! # Why no look costs more on a host with more processes
//!
//! To look for a mark is to read the environment of every process of the host. So each kind of process has a file in the
//! runtime directory, its [`ProcessRecord`], which says where such a process can be:
//!
//! | the file | a process with the mark |
//! |---|---|
//! | is missing | was not started |
//! | holds an identity | is that process, or none |
//! | is empty, or cannot be read as an identity | may be anywhere: nixbox was killed while it started one, so all are looked through |
//!
//! The file is made, empty, before a process is started, and removed when the process has been ended. A person who removes
//! a file hides the process from `find`. Then a second process of that kind cannot begin to serve, because the first has
//! its sockets, and [`ProcessRecord::end_all`] finds the first by its mark. `remove` always looks by the mark.

use super::error::NetworkError;
use super::marked::{self, GRACE, owners};
use super::runtime_files::RuntimeFiles;
use crate::host::process::{Daemon, Identity, ProcessError, ProcessMark, ProcessSearch};
use crate::world::Slot;

/// The kinds of processes that a network has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NetworkProcess {
    Follower,
    Nft,
    Dns,
    Keeper,
}

impl NetworkProcess {
    /// All of them, in the order in which they are ended: first those that change what the others work with.
    pub(super) const ALL: [Self; 4] = [Self::Follower, Self::Nft, Self::Dns, Self::Keeper];

    /// The name of the file in the runtime directory that says which process it is.
    pub(super) fn record(self) -> &'static str {
        match self {
            Self::Follower => "follower.process",
            Self::Nft => "nft.process",
            Self::Dns => "dnsmasq.process",
            Self::Keeper => "keeper.process",
        }
    }
}

/// What nixbox knows about the processes of one kind.
pub(super) struct ProcessRecord<'a> {
    pub(super) files: RuntimeFiles<'a>,
    /// The name of its file.
    pub(super) name: &'static str,
    pub(super) slot: Slot,
    /// A mark without a generation.
    pub(super) mark: ProcessMark,
}

/// What the file of a record says.
enum Written {
    Nothing,
    At(Identity),
    Anywhere,
}

impl ProcessRecord<'_> {
    fn search<T>(
        &self,
        act: impl FnOnce(ProcessSearch<'_>) -> Result<T, ProcessError>,
    ) -> Result<T, NetworkError> {
        let slot = self.slot;
        act(ProcessSearch { mark: &self.mark, owners: Some(&owners()) })
            .map_err(|source| NetworkError::Process { slot, source })
    }

    fn written(&self) -> Result<Written, NetworkError> {
        Ok(match self.files.read(self.name)? {
            None => Written::Nothing,
            Some(text) => serde_json::from_str(&text).map_or(Written::Anywhere, Written::At),
        })
    }

    /// The processes that live.
    pub(super) fn find(&self) -> Result<Vec<Daemon>, NetworkError> {
        match self.written()? {
            Written::Nothing => Ok(Vec::new()),
            Written::At(identity) => self.search(|search| Ok(search.of(identity)?.into_iter().collect())),
            Written::Anywhere => self.search(|search| search.find()),
        }
    }

    /// Says that a process may be there from now on.
    pub(super) fn begin(&self) -> Result<(), NetworkError> {
        self.files.write(self.name, "")
    }

    /// Says that the process is that with this pid, if it is one of this kind.
    pub(super) fn settle(&self, pid: u32) -> Result<(), NetworkError> {
        let Some(found) = self.search(|search| search.at(pid))? else { return Ok(()) };
        let identity = serde_json::to_string(&found.identity()).unwrap_or_default();
        self.files.write(self.name, &identity)
    }

    /// Says that no process is there.
    pub(super) fn forget(&self) -> Result<(), NetworkError> {
        self.files.remove(self.name)
    }

    /// Ends the processes that the file knows of, and waits for their end.
    pub(super) async fn end(&self) -> Result<(), NetworkError> {
        match self.written()? {
            Written::Nothing => return Ok(()),
            Written::Anywhere => return self.end_all().await,
            Written::At(_) => {}
        }
        let slot = self.slot;
        for daemon in self.find()? {
            let ended = daemon.end(&self.mark, GRACE).await;
            ended.map_err(|source| NetworkError::Process { slot, source })?;
        }
        self.forget()
    }

    /// Ends all processes with the mark, whatever the file knows of.
    pub(super) async fn end_all(&self) -> Result<(), NetworkError> {
        let slot = self.slot;
        marked::end(&self.mark).await.map_err(|source| NetworkError::Process { slot, source })?;
        self.forget()
    }
}

//! The storage of a journal on the fake host.

use std::io;

use super::fault::Fault;
use super::files::{Content, Ino};
use super::host::Host;
use super::state::FakeState;
use crate::engine::journal::{Name, Storage};
use crate::world::WorkspaceId;

/// The journal files of a workspace.
pub struct FakeStorage {
    host: Host,
    workspace: WorkspaceId,
}

impl FakeStorage {
    pub(super) fn new(host: Host, workspace: WorkspaceId) -> Self {
        Self { host, workspace }
    }

    /// Makes a change in two halves, and passes a point before, between and after them. A crash between them leaves the first
    /// half, and so does a full disk.
    fn change(
        &mut self,
        first_half: impl FnOnce(&mut FakeState, Ino),
        second_half: impl FnOnce(&mut FakeState, Ino),
    ) -> io::Result<()> {
        let failure = match self.fail_if_set() {
            Err(error) if error.kind() != io::ErrorKind::StorageFull => return Err(error),
            result => result,
        };
        self.point()?;
        let directory = {
            let mut state = self.host.lock();
            let directory = state.make_workspace_directory(self.workspace);
            first_half(&mut state, directory);
            directory
        };
        failure?;
        self.point()?;
        second_half(&mut self.host.lock(), directory);
        self.point()
    }

    fn fail_if_set(&self) -> io::Result<()> {
        let mut state = self.host.lock();
        let here = state.counts.writes;
        state.counts.writes += 1;
        match state.fault {
            Fault::StorageFails(at, kind) if here >= at => Err(io::Error::from(kind)),
            _ => Ok(()),
        }
    }

    /// `NotFound`, as the kernel has it, if there is no such file.
    fn must_be_there(&mut self, name: Name) -> io::Result<()> {
        self.size(name)?.map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn point(&self) -> io::Result<()> {
        self.host.point().map_err(io::Error::other)
    }
}

impl Storage for FakeStorage {
    fn size(&mut self, name: Name) -> io::Result<Option<u64>> {
        let mut state = self.host.lock();
        let directory = state.make_workspace_directory(self.workspace);
        Ok(match state.files.get(directory, name.file_name()) {
            Some(Content::Bytes(bytes)) => Some(bytes.len() as u64),
            _ => None,
        })
    }

    fn read_at(&mut self, name: Name, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut state = self.host.lock();
        let directory = state.make_workspace_directory(self.workspace);
        let Some(Content::Bytes(bytes)) = state.files.get(directory, name.file_name()) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let rest = bytes.get(offset as usize..).unwrap_or_default();
        let size = rest.len().min(buffer.len());
        buffer[..size].copy_from_slice(&rest[..size]);
        Ok(size)
    }

    fn append(&mut self, name: Name, bytes: &[u8]) -> io::Result<()> {
        let (first, second) = bytes.split_at(bytes.len() / 2);
        self.change(
            |state, directory| {
                let ino = state.files.find(directory, name.file_name()).unwrap_or_else(|| {
                    state.files.create(directory, name.file_name(), Content::Bytes(Vec::new()))
                });
                state.files.append(ino, first);
            },
            |state, directory| {
                if let Some(ino) = state.files.find(directory, name.file_name()) {
                    state.files.append(ino, second);
                }
            },
        )
    }

    fn reserve(&mut self, name: Name, _: u64) -> io::Result<()> {
        self.must_be_there(name)?;
        self.fail_if_set()
    }

    fn sync(&mut self, name: Name) -> io::Result<()> {
        self.must_be_there(name)?;
        self.change(
            |_, _| {},
            |state, directory| {
                if let Some(ino) = state.files.find(directory, name.file_name()) {
                    state.files.sync(ino);
                }
            },
        )
    }

    fn truncate(&mut self, name: Name, size: u64) -> io::Result<()> {
        self.must_be_there(name)?;
        self.change(
            |_, _| {},
            |state, directory| {
                if let Some(ino) = state.files.find(directory, name.file_name()) {
                    state.files.cut(ino, size as usize);
                }
            },
        )
    }

    fn remove(&mut self, name: Name) -> io::Result<()> {
        if self.size(name)?.is_none() {
            return Ok(());
        }
        self.change(|_, _| {}, |state, directory| state.files.remove(directory, name.file_name()))
    }

    fn link(&mut self, from: Name, to: Name) -> io::Result<()> {
        self.must_be_there(from)?;
        if self.size(to)?.is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.change(
            |_, _| {},
            |state, directory| state.files.link(directory, from.file_name(), to.file_name()),
        )
    }

    fn rename(&mut self, from: Name, to: Name) -> io::Result<()> {
        self.must_be_there(from)?;
        self.change(
            |_, _| {},
            |state, directory| state.files.rename(directory, from.file_name(), to.file_name()),
        )
    }

    fn sync_names(&mut self) -> io::Result<()> {
        self.change(|_, _| {}, |state, directory| state.files.sync_names(directory))
    }

    fn path(&self, name: Name) -> String {
        format!("{}/{}", self.workspace, name.file_name())
    }

    fn salt(&mut self) -> io::Result<u64> {
        let mut state = self.host.lock();
        state.salts += 1;
        Ok(state.salts.wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }
}

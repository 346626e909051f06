//! The archive that a guest sends → a tree on this host.
//!
//! The archive is hostile, and nothing here relies on the program that makes it: [`TarReader`] parses its headers, and
//! [`IncomingTree`] makes what they say beneath a directory of its own.

use std::ffi::{OsStr, OsString};
use std::io::{self, BufRead, Read};
use std::os::unix::ffi::OsStrExt;

use super::pack::ToldEntries;
use crate::files::incoming::{IncomingError, IncomingTree, KeptAttributes, TreePath};
use crate::guest::shell::STREAM_BEGIN;
use crate::image::archive::{ArchiveError, EntryKind, TarReader};

/// The most bytes that a login shell may print before the output of a script.
const MOST_BEFORE: usize = 1 << 20;

/// Why what a guest sends is not made.
#[derive(Debug, thiserror::Error)]
pub(super) enum UnpackError {
    #[error("cannot read what the guest sends")]
    Archive(#[from] ArchiveError),
    #[error(transparent)]
    Tree(#[from] IncomingError),
    #[error("the guest's shell printed more than {MOST_BEFORE} bytes before the copy began")]
    NoBegin,
    #[error("the guest ended before the copy began")]
    NothingSent,
    #[error("the guest sent {0:?}, which is not below what was asked for")]
    NotAsked(String),
    #[error("what the guest sends ends too early")]
    CutShort,
}

/// What was unpacked, besides files and directories.
#[derive(Debug, Default)]
pub(super) struct Unpacked {
    /// Devices and named pipes.
    pub(super) left_out: ToldEntries,
    /// Links that lead out of what was copied. They were made.
    pub(super) links_out: ToldEntries,
}

/// Reads past what a login shell has printed.
pub(super) fn skip_greeting(source: &mut impl BufRead) -> Result<(), UnpackError> {
    let mut line = Vec::new();
    for byte in source.by_ref().bytes().take(MOST_BEFORE) {
        line.push(byte.map_err(ArchiveError::Read)?);
        if line.ends_with(STREAM_BEGIN) {
            return Ok(());
        }
        if line.len() > STREAM_BEGIN.len() {
            line.remove(0);
        }
    }
    let ended = source.read(&mut [0]).map_err(ArchiveError::Read)? == 0;
    Err(if ended { UnpackError::NothingSent } else { UnpackError::NoBegin })
}

/// Makes the tree of an archive whose paths all begin with the same name, which is not a part of the tree. If `whole` is
/// set, the paths are those of a directory that was archived as `.`.
pub(super) fn unpack(
    source: impl Read,
    tree: &mut IncomingTree,
    whole: bool,
) -> Result<Unpacked, UnpackError> {
    let mut archive = TarReader::new(source);
    let mut unpacked = Unpacked::default();
    let mut top: Option<OsString> = None;
    let mut inside = |bytes: &[u8]| {
        let path = TreePath::parse(bytes)?;
        if whole {
            return Ok(path);
        }
        let not_asked = || UnpackError::NotAsked(String::from_utf8_lossy(bytes).into_owned());
        let (first, below) = path.split_first().ok_or_else(not_asked)?;
        if *top.get_or_insert_with(|| first.clone()) == first { Ok(below) } else { Err(not_asked()) }
    };
    while let Some(entry) = archive.next_entry()? {
        let path = inside(&entry.path)?;
        let attributes = KeptAttributes { mode: entry.mode, modified: entry.modified };
        match entry.kind {
            EntryKind::Directory => tree.directory(&path, attributes)?,
            EntryKind::File => tree.file(&path, attributes, &mut archive.content())?,
            EntryKind::HardLink => tree.hard_link(&path, &inside(&entry.link)?)?,
            EntryKind::Symlink => {
                let target = OsStr::from_bytes(&entry.link);
                if path.leads_out(target) {
                    unpacked.links_out.add(|| path.shown());
                }
                tree.symlink(&path, target)?;
            }
            EntryKind::Fifo | EntryKind::Device => unpacked.left_out.add(|| entry.shown()),
        }
    }
    if !archive.drain()? {
        return Err(UnpackError::CutShort);
    }
    Ok(unpacked)
}

/// Reads what a script sends and writes it to `output`.
pub(super) fn pass_on(mut source: impl BufRead, output: &mut impl io::Write) -> Result<(), PassError> {
    skip_greeting(&mut source).map_err(PassError::Receive)?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = match source.read(&mut buffer) {
            Ok(0) => return output.flush().map_err(PassError::Write),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(PassError::Receive(ArchiveError::Read(error).into())),
        };
        output.write_all(&buffer[..read]).map_err(PassError::Write)?;
    }
}

/// Why a file of the guest is not passed on to stdout.
#[derive(Debug, thiserror::Error)]
pub(super) enum PassError {
    #[error(transparent)]
    Receive(UnpackError),
    #[error("cannot write to stdout")]
    Write(#[source] io::Error),
}

#[cfg(test)]
mod tests;

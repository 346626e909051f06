//! Built records on disk: `run/built-<generation>.json` of the state says what the VM was built from whose RAM bears that
//! generation.
//!
//! A roll-over gives a VM a new VMM and leaves its RAM, so the record of a VM keeps its name for as long as the VM lives.
//! A record is written and synced before anything is made that it describes, and is removed after all of that. `nixbox network
//! reload` replaces it atomically once the network is as the new record says.
//!
//! The file is JSON with a format number. A record with another format, another key, or a value that the configuration
//! would refuse is an error and is never used in part.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::PathBuf;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::config::VmSpec;
use crate::files::{FileError, Folder};
use crate::world::{self, BuiltRecords, Failure, Generation, NamespaceKeeping, Presence};

/// The format that this nixbox writes. It reads format 1 too, which does not say how the network namespace is kept.
const FORMAT: u32 = 2;
/// More than a record of the longest configuration takes.
const LIMIT: u64 = 1 << 20;

/// Why a built record cannot be read or written.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum RecordFileError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{}, which says what the VM was built from, cannot be used", path.display())]
    Unreadable { path: PathBuf, source: serde_json::Error },
    #[error("{} has format {found} and this nixbox reads formats up to {FORMAT}: a newer nixbox wrote it", path.display())]
    Newer { path: PathBuf, found: u32 },
    #[error("{} describes generation {found}, which its name does not", path.display())]
    OtherGeneration { path: PathBuf, found: Generation },
    #[error("a path that the VM is built from is not UTF-8, and cannot be written down")]
    NotText,
    #[error("what the VM is built from cannot be written down")]
    Unwritable(#[source] serde_json::Error),
}

impl From<RecordFileError> for Failure {
    fn from(error: RecordFileError) -> Self {
        Self::world(error)
    }
}

/// What a VM was built from, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuiltRecord {
    format: u32,
    generation: Generation,
    /// The directory of the workspace when the VM was built.
    pub root: PathBuf,
    /// The directory for sockets, process records and logs.
    pub runtime: PathBuf,
    /// How the VM's network namespace is kept; `None` if the VM has none, or if an earlier nixbox wrote the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<NamespaceKeeping>,
    /// The values of the configuration.
    pub spec: VmSpec,
}

impl BuiltRecord {
    /// The generation of the VM's RAM.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.generation
    }
}

/// The one key that is read of a record before it is known to have this nixbox's format.
#[derive(Deserialize)]
struct RecordHead {
    format: u32,
}

fn file_name(generation: Generation) -> String {
    format!("built-{generation}.json")
}

fn unfinished_name(generation: Generation) -> String {
    format!(".{}.unfinished", file_name(generation))
}

/// The generation of a record with this file name, finished or not.
fn generation_of(name: &OsStr) -> Option<Generation> {
    let name = name.to_str()?;
    let name = name.strip_prefix('.').and_then(|name| name.strip_suffix(".unfinished")).unwrap_or(name);
    let digits = name.strip_prefix("built-")?.strip_suffix(".json")?;
    digits.parse().ok().map(Generation)
}

/// Reads the record of the VM whose RAM bears this generation, from the directory `run` of its workspace. Returns `None`
/// if the directory has no such record.
///
/// # Errors
/// If the file cannot be read, or is not a record that this nixbox has written.
pub fn read(run: &Folder, generation: Generation) -> Result<Option<BuiltRecord>, RecordFileError> {
    let name = file_name(generation);
    let Some(bytes) = run.read(&name, LIMIT)? else {
        return Ok(None);
    };
    let path = || run.path_of(&name);
    let unreadable = |source| RecordFileError::Unreadable { path: path(), source };
    let RecordHead { format } = serde_json::from_slice(&bytes).map_err(unreadable)?;
    if !(1..=FORMAT).contains(&format) {
        return Err(RecordFileError::Newer { path: path(), found: format });
    }
    let record: BuiltRecord = serde_json::from_slice(&bytes).map_err(unreadable)?;
    if record.generation != generation {
        return Err(RecordFileError::OtherGeneration { path: path(), found: record.generation });
    }
    Ok(Some(record))
}

/// Reads the record with the highest generation. Returns `None` if the workspace has no record.
///
/// # Errors
/// Those of [`read`], and if the directory cannot be listed.
pub fn newest(run: &Folder) -> Result<Option<BuiltRecord>, RecordFileError> {
    match run.names()?.iter().filter_map(|name| generation_of(name)).max() {
        Some(newest) => read(run, newest),
        None => Ok(None),
    }
}

/// [`BuiltRecords`] of one workspace.
pub struct RecordFiles {
    /// The directory of the VM's images and records.
    pub run: PathBuf,
    /// The directory of the workspace.
    pub root: PathBuf,
    /// The directory for sockets, process records and logs of a VM that is built.
    pub runtime: PathBuf,
    /// How the network namespace of a VM that is built is kept; `None` if the VM has none.
    pub namespace: Option<NamespaceKeeping>,
    /// What a VM is built from.
    pub spec: VmSpec,
}

impl RecordFiles {
    fn folder(&self) -> Result<Folder, RecordFileError> {
        Ok(Folder::open(&self.run)?)
    }

    fn write_file(&self, generation: Generation) -> Result<(), RecordFileError> {
        let (root, runtime, spec) = (self.root.clone(), self.runtime.clone(), self.spec.clone());
        let record =
            BuiltRecord { format: FORMAT, generation, root, runtime, namespace: self.namespace, spec };
        let text = serde_json::to_vec_pretty(&record).map_err(RecordFileError::Unwritable)?;
        // A path that is not UTF-8 has no form in JSON, and would come back as another path.
        if serde_json::from_slice::<BuiltRecord>(&text).ok().as_ref() != Some(&record) {
            return Err(RecordFileError::NotText);
        }
        Ok(self.folder()?.replace(file_name(generation), &text)?)
    }

    fn remove_file(&self, generation: Generation) -> Result<(), RecordFileError> {
        let run = self.folder()?;
        run.remove_file(unfinished_name(generation))?;
        run.remove_file(file_name(generation))?;
        Ok(run.sync()?)
    }
}

#[async_trait]
impl BuiltRecords for RecordFiles {
    async fn find(&self, generation: Generation) -> world::Result<Presence> {
        let run = self.folder()?;
        // An unreadable record is there, and a sweep may remove it.
        let whole = run.examine(file_name(generation)).map_err(RecordFileError::File)?.is_some();
        let unfinished = run.examine(unfinished_name(generation)).map_err(RecordFileError::File)?.is_some();
        Ok(match (whole, unfinished) {
            // A killed writer may have left a file beside the record that it was to replace.
            (true, _) => Presence::Whole,
            (false, false) => Presence::Absent,
            (false, true) => Presence::Partial,
        })
    }

    async fn write(&self, generation: Generation) -> world::Result<()> {
        Ok(self.write_file(generation)?)
    }

    async fn remove(&self, generation: Generation) -> world::Result<()> {
        Ok(self.remove_file(generation)?)
    }

    async fn generations(&self) -> world::Result<BTreeSet<Generation>> {
        let names = self.folder()?.names().map_err(RecordFileError::File)?;
        Ok(names.iter().filter_map(|name| generation_of(name)).collect())
    }
}

#[cfg(test)]
mod tests;

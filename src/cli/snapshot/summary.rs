//! A snapshot in short: for JSON, and for a sentence.

use serde::Serialize;

use crate::cli::receipt;
use crate::host::clock::utc;
use crate::world::Manifest;

/// A snapshot in the form of the JSON output.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct SnapshotSummary {
    pub(super) id: u64,
    pub(super) name: Option<String>,
    pub(super) created: String,
    pub(super) bytes: u64,
    pub(super) slot: u8,
    pub(super) shares: bool,
    pub(super) vmm: String,
    /// What the search for credentials came to: "clean", "redacted", "unproven" or "unsearched".
    pub(super) credentials: &'static str,
}

impl From<&Manifest> for SnapshotSummary {
    fn from(manifest: &Manifest) -> Self {
        Self {
            id: manifest.id.0.0,
            name: manifest.name.as_ref().map(ToString::to_string),
            created: utc(manifest.created_ms),
            bytes: manifest.files.iter().fold(0, |bytes, file| bytes.saturating_add(file.size)),
            slot: manifest.slot.number(),
            shares: manifest.shares,
            vmm: manifest.origin.vmm.to_string(),
            credentials: receipt::verdict(manifest.receipt.as_ref()),
        }
    }
}

/// The number and the name of a snapshot.
pub(in crate::cli) fn snapshot_label(manifest: &Manifest) -> String {
    match &manifest.name {
        Some(name) => format!("snapshot {} ({name})", manifest.id),
        None => format!("snapshot {}", manifest.id),
    }
}

//! `nixbox snapshot diff`: in what two snapshots differ, as far as their manifests say it. No other file of them is read.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::find::{list_snapshots, take_snapshot};
use super::fitness::{self, Fitness};
use super::summary::{SnapshotSummary, snapshot_label};
use crate::cli::age::lapse;
use crate::cli::command::OpenWorkspace;
use crate::cli::error::{self, CliError, Outcome};
use crate::cli::{WorkspaceLocation, completions, success};
use crate::operations::find_snapshot;
use crate::world::{FileRecord, Manifest, SnapshotReference};

/// Compare two snapshots by their manifests: the shape of their VMs, their files, and what was found of credentials
///
/// The shape are the settings that a snapshot has to have in common with the configuration to be restored. Files are compared
/// by the hashes in the manifests, which have one hash for each file: of a file that differs it is not known how much of it
/// does. Nothing is started, and neither disks nor RAM are read. The last lines say whether each snapshot fits this host and
/// the configuration of today, as `nixbox up --snapshot` decides it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: nixbox snapshot diff warm before-upgrade")]
pub(super) struct DiffArguments {
    /// The name or number of one snapshot
    #[arg(add = completions::of_snapshots())]
    from: SnapshotReference,
    /// The name or number of the other snapshot
    #[arg(add = completions::of_snapshots())]
    to: SnapshotReference,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What two manifests say of something that has a content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum ContentComparison {
    Same,
    Different,
    /// The contents are hashed in two ways, or one of them was not hashed.
    Unknown,
    OnlyFrom,
    OnlyTo,
}

/// A setting that shapes a VM, or a circumstance of a snapshot, in which the two differ.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct DifferingKey {
    key: String,
    from: Option<String>,
    to: Option<String>,
    /// How the contents of the file compare that the setting names, if it names one in both.
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<ContentComparison>,
}

/// A file of the two snapshots. Sizes are in bytes.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct ComparedFile {
    name: String,
    from_bytes: Option<u64>,
    to_bytes: Option<u64>,
    content: ContentComparison,
}

/// What two manifests say of each other.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Comparison {
    /// Positive if the second one was made after the first one.
    milliseconds_between: i128,
    differences: Vec<DifferingKey>,
    /// The keys in which the two do not differ.
    same: Vec<String>,
    files: Vec<ComparedFile>,
}

pub(super) fn run(location: &WorkspaceLocation, arguments: &DiffArguments) -> Outcome {
    let open = OpenWorkspace::open(location)?;
    let today = open.wire_today();
    let mut listed = list_snapshots(&open.wire()?)?;
    let (first, second) = (find_snapshot(&listed, &arguments.from)?, find_snapshot(&listed, &arguments.to)?);
    if first == second {
        return Err(CliError::SameSnapshot(first).into());
    }
    let (from, _) = take_snapshot(&mut listed, &first.into())?;
    let (to, _) = take_snapshot(&mut listed, &second.into())?;
    let comparison = Comparison::of(&from, &to);
    let fitness = fitness::of_snapshots(&today, &[&from, &to]);
    if arguments.json {
        let snapshot = |manifest: &Manifest, fitness: Option<&Fitness>| {
            let mut snapshot = serde_json::json!(SnapshotSummary::from(manifest));
            snapshot["fits"] = serde_json::json!(fitness.and_then(|fitness| fitness.fits));
            snapshot["why"] = serde_json::json!(fitness.and_then(|fitness| fitness.why.as_ref()));
            snapshot
        };
        let mut json = serde_json::json!(comparison);
        json["from"] = snapshot(&from, fitness.first());
        json["to"] = snapshot(&to, fitness.last());
        error::print_json(&json)?;
    } else {
        let mut lines = comparison.lines(&from, &to);
        let of_each = [&from, &to].into_iter().zip(&fitness);
        lines.extend(of_each.map(|(one, fitness)| format!("{} {}", snapshot_label(one), fitness.words())));
        error::print(&lines.join("\n"))?;
    }
    success()
}

impl Comparison {
    fn of(from: &Manifest, to: &Manifest) -> Self {
        let (mut differences, mut same) = (Vec::new(), Vec::new());
        let (before, after) = (values(from), values(to));
        let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
        for key in keys {
            let (before, after) = (before.get(key), after.get(key));
            let content = content_of(key, from, to);
            if before == after && matches!(content, None | Some(ContentComparison::Same)) {
                same.push(key.clone());
            } else {
                differences.push(DifferingKey {
                    key: key.clone(),
                    from: before.cloned(),
                    to: after.cloned(),
                    content: content.filter(|_| before.is_some() && after.is_some()),
                });
            }
        }
        differences.extend(processors(from, to));
        let milliseconds_between = i128::from(to.created_ms) - i128::from(from.created_ms);
        Self { milliseconds_between, differences, same, files: files(&from.files, &to.files) }
    }

    fn lines(&self, from: &Manifest, to: &Manifest) -> Vec<String> {
        let milliseconds = u64::try_from(self.milliseconds_between.unsigned_abs()).unwrap_or(u64::MAX);
        let order = if self.milliseconds_between < 0 { "before" } else { "after" };
        let (from, to) = (snapshot_label(from), snapshot_label(to));
        let mut lines = vec![match milliseconds {
            0..1000 => format!("{to} was made at the time of {from}"),
            milliseconds => format!("{to} was made {} {order} {from}", lapse(milliseconds)),
        }];
        lines.extend(self.differences.iter().map(DifferingKey::line));
        if !self.same.is_empty() {
            lines.push(format!("  the same: {}", self.same.join(", ")));
        }
        lines.extend(self.files.iter().map(ComparedFile::line));
        lines
    }
}

impl DifferingKey {
    fn line(&self) -> String {
        let said = |value: &Option<String>| {
            value.as_ref().map_or_else(|| "absent".to_owned(), |value| format!("{value:?}"))
        };
        let values = if self.from == self.to {
            said(&self.from)
        } else {
            format!("{} -> {}", said(&self.from), said(&self.to))
        };
        let content = match self.content {
            Some(ContentComparison::Same) => ", with the same content",
            Some(ContentComparison::Different) => ", with another content",
            Some(ContentComparison::Unknown) => ", whose contents cannot be compared",
            _ => "",
        };
        format!("  {}: {values}{content}", self.key)
    }
}

impl ComparedFile {
    fn line(&self) -> String {
        let bytes = |bytes: Option<u64>| bytes.map_or_else(String::new, |bytes| format!("{bytes} bytes"));
        let size = if self.from_bytes == self.to_bytes {
            bytes(self.from_bytes)
        } else {
            let sizes = [bytes(self.from_bytes), bytes(self.to_bytes)];
            sizes.into_iter().filter(|size| !size.is_empty()).collect::<Vec<_>>().join(" -> ")
        };
        let words = match self.content {
            ContentComparison::Same => "the same",
            ContentComparison::Different => "differs",
            ContentComparison::Unknown => "cannot be compared, because it is hashed in two ways",
            ContentComparison::OnlyFrom => "only in the first",
            ContentComparison::OnlyTo => "only in the second",
        };
        format!("  {} ({size}): {words}", self.name)
    }
}

/// What a manifest says in a few words, by key: the shape of the VM, and the circumstances of the snapshot.
fn values(manifest: &Manifest) -> BTreeMap<String, String> {
    let SnapshotSummary { credentials, shares, vmm, .. } = SnapshotSummary::from(manifest);
    let mut values = manifest.origin.shape.clone();
    let shares = if shares { "attached" } else { "attached after the restore" };
    let slot = format!("{}, guest {}", manifest.slot, manifest.slot.guest());
    values.extend(
        [
            ("VMM", vmm),
            ("slot", slot),
            ("shares", shares.to_owned()),
            ("credentials", credentials.to_owned()),
            ("guest's boot", uuid::Uuid::from_bytes(manifest.boot.0).to_string()),
        ]
        .map(|(key, value)| (key.to_owned(), value)),
    );
    values
}

/// How the contents of the file compare that the value of a key names; `None` if both are of no file.
fn content_of(key: &str, from: &Manifest, to: &Manifest) -> Option<ContentComparison> {
    let hashes = (from.given.contents.get(key), to.given.contents.get(key));
    match hashes {
        (None, None) => None,
        (Some(from_hash), Some(to_hash)) if from.given.method == to.given.method => {
            Some(compare(from_hash, to_hash))
        }
        _ => Some(ContentComparison::Unknown),
    }
}

fn compare(from: &[u8; 32], to: &[u8; 32]) -> ContentComparison {
    if from == to { ContentComparison::Same } else { ContentComparison::Different }
}

/// The features of the processors that only one of the two has: those that the guests were given, if both manifests say it, or
/// else those of the hosts.
fn processors(from: &Manifest, to: &Manifest) -> Option<DifferingKey> {
    let (only_from, only_to): (BTreeSet<String>, BTreeSet<String>) =
        match (&from.given.cpuid, &to.given.cpuid) {
            (Some(before), Some(after)) => (before.missing_from(after), after.missing_from(before)),
            _ => {
                let (before, after) = (&from.origin.cpu, &to.origin.cpu);
                (before.difference(after).cloned().collect(), after.difference(before).cloned().collect())
            }
        };
    let said =
        |only: BTreeSet<String>| (!only.is_empty()).then(|| only.into_iter().collect::<Vec<_>>().join(" "));
    let (from, to) = (said(only_from), said(only_to));
    (from.is_some() || to.is_some()).then(|| DifferingKey {
        key: "processor features".to_owned(),
        from,
        to,
        content: None,
    })
}

/// The files of two manifests, in the order of their names.
fn files(from: &[FileRecord], to: &[FileRecord]) -> Vec<ComparedFile> {
    let by_name = |files: &'_ [FileRecord]| -> BTreeMap<String, FileRecord> {
        files.iter().map(|file| (file.name.clone(), file.clone())).collect()
    };
    let (from, to) = (by_name(from), by_name(to));
    let names: BTreeSet<&String> = from.keys().chain(to.keys()).collect();
    let compared = |name: &String| {
        let (before, after) = (from.get(name), to.get(name));
        let content = match (before, after) {
            (Some(_), None) => ContentComparison::OnlyFrom,
            (None, _) => ContentComparison::OnlyTo,
            (Some(before), Some(after)) if before.method == after.method => {
                compare(&before.hash, &after.hash)
            }
            // The same bytes have one size, however they are hashed.
            (Some(before), Some(after)) if before.size != after.size => ContentComparison::Different,
            _ => ContentComparison::Unknown,
        };
        let size = |file: Option<&FileRecord>| file.map(|file| file.size);
        ComparedFile { name: name.clone(), from_bytes: size(before), to_bytes: size(after), content }
    };
    names.into_iter().map(compared).collect()
}

#[cfg(test)]
mod tests;

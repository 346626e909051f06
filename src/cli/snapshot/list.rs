//! `nixbox snapshot list`.

use indicatif::HumanBytes;
use serde_json::{Value, json};

use super::find::list_snapshots;
use super::fitness::{self, Fitness};
use super::summary::SnapshotSummary;
use crate::cli::age::age;
use crate::cli::command::OpenWorkspace;
use crate::cli::error::{self, Outcome};
use crate::cli::{WorkspaceLocation, success};
use crate::world::{ListedSnapshot, SnapshotLabel, SnapshotNote};

pub(super) fn run(location: &WorkspaceLocation, as_json: bool) -> Outcome {
    let open = OpenWorkspace::open(location)?;
    let today = as_json.then(|| open.wire_today());
    let wiring = open.wire()?;
    let listed = list_snapshots(&wiring)?;
    if let Some(today) = today {
        let manifests: Vec<_> = listed.iter().filter_map(|listing| listing.manifest.as_ref().ok()).collect();
        let mut fitness = fitness::of_snapshots(&today, &manifests).into_iter();
        let mut fitting =
            |listing: &ListedSnapshot| listing.manifest.as_ref().ok().and_then(|_| fitness.next());
        let listed: Vec<_> = listed.iter().map(|listing| in_json(listing, fitting(listing))).collect();
        error::print_json(&listed)?;
    } else if listed.is_empty() {
        error::print_stderr("nixbox: there is no snapshot; `nixbox snapshot` makes one of a running VM\n");
    } else {
        error::print(&table(&listed, wiring.world.clock.unix_ms()))?;
    }
    success()
}

/// A snapshot as JSON, with its fitness unless it is damaged.
fn in_json(listing: &ListedSnapshot, fitness: Option<Fitness>) -> Value {
    let mut one = match &listing.manifest {
        Ok(manifest) => json!(SnapshotSummary::from(manifest)),
        Err(failure) => json!({ "id": listing.id.0.0, "damaged": error::chain(failure) }),
    };
    match &listing.label {
        _ if listing.manifest.is_err() => {}
        Ok(label) => one["note"] = json!(label.note),
        Err(failure) => one["damaged_label"] = error::chain(failure).into(),
    }
    one["occupied_bytes"] = json!(listing.occupied.as_ref().ok());
    if let Err(failure) = &listing.occupied {
        one["unknown_occupied"] = error::chain(failure).into();
    }
    if let Some(Fitness { fits, why }) = fitness {
        (one["fits"], one["why"]) = (json!(fits), json!(why));
    }
    one
}

fn table(listed: &[ListedSnapshot], now: u64) -> String {
    let heads = format!(
        "{:>6}  {:20}  {:>10}  {:>10}  {:>10}  {:11}  {:20}  NOTE",
        "ID", "CREATED", "AGE", "SIZE", "OCCUPIES", "CREDENTIALS", "NAME"
    );
    std::iter::once(heads)
        .chain(listed.iter().map(|listing| row(listing, now)))
        .collect::<Vec<_>>()
        .join("\n")
}

fn row(listing: &ListedSnapshot, now: u64) -> String {
    let manifest = match &listing.manifest {
        Ok(manifest) => manifest,
        Err(failure) => return format!("{:>6}  damaged: {}", listing.id.to_string(), error::chain(failure)),
    };
    let SnapshotSummary { id, name, created, bytes, credentials, .. } = SnapshotSummary::from(manifest);
    let last = match &listing.label {
        Ok(label) => format!("{:20}  {}", name.unwrap_or_default(), beginning(label)),
        Err(failure) => format!("damaged: {}", error::chain(failure)),
    };
    let (age, size) = (age(manifest.created_ms, now), HumanBytes(bytes).to_string());
    let occupied =
        listing.occupied.as_ref().map_or_else(|_| "?".to_owned(), |bytes| HumanBytes(*bytes).to_string());
    let row =
        format!("{id:>6}  {created:20}  {age:>10}  {size:>10}  {occupied:>10}  {credentials:11}  {last}");
    row.trim_end().to_owned()
}

/// As much of a note as a line of the list has room for.
fn beginning(label: &SnapshotLabel) -> String {
    const MOST: usize = 40;
    let note = label.note.as_ref().map_or("", SnapshotNote::as_str);
    match note.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &note[..end]),
        None => note.to_owned(),
    }
}

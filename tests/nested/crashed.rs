//! What the emulation crashed, and nixbox is not to blame for. The one place here that asks nixbox: for its journal.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use serde_json::Value;

use super::outside;
use super::room;

/// What a VMM says of a guest whose processor gave up. The emulated one does so now and then, with no program's help: bare
/// calls see it too (QEMU 10.0, nested SVM).
const TRIPLE_FAULT: &str = "Guest likely triple-faulted";
/// What begins a line about it in the log of a scenario.
pub(super) const EXCUSE: &str = "excuse: ";
/// Where scenarios without a workspace leave the logs of their VMMs when they fail.
pub(super) const KEPT_LOGS: &str = "/run/nixbox-kept";

/// The guests that were booted, by `up`, and then triple-faulted, in VMMs that wrote to their logs since then. One that was
/// restored is none of them: its RAM may have been put together wrongly.
pub(super) fn triple_faults(since: SystemTime) -> Vec<String> {
    let recent =
        |path: &PathBuf| path.metadata().and_then(|file| file.modified()).is_ok_and(|at| at >= since);
    let says = |path: &PathBuf| {
        fs::read(path).is_ok_and(|text| String::from_utf8_lossy(&text).contains(TRIPLE_FAULT))
    };
    let logs = outside::homes().into_iter().flat_map(|home| outside::below(&home));
    logs.filter(|log| recent(log) && says(log) && was_booted(log))
        .map(|log| format!("{EXCUSE}by {log:?} a guest that was booted triple-faulted"))
        .collect()
}

/// Whether the VM with this log was booted, by the journal of its workspace. Of scenarios without a workspace that of
/// generation 1 is, and no other.
fn was_booted(log: &Path) -> bool {
    let name = log.file_name().unwrap().to_str().unwrap();
    let generation = name.strip_prefix("vmm-").and_then(|name| name.strip_suffix(".log"));
    let Some(generation) = generation.and_then(|generation| generation.parse::<u64>().ok()) else {
        return false;
    };
    let directory = log.parent().unwrap();
    if directory == Path::new(KEPT_LOGS) {
        return generation == 1;
    }
    let id = directory.file_name().unwrap().to_str().unwrap();
    let own = |room: &PathBuf| {
        fs::read_to_string(room.join(".nixbox/workspace-id")).is_ok_and(|text| text.starts_with(id))
    };
    let Some(room) = outside::names(Path::new(room::WORK)).into_iter().find(own) else { return false };
    let output = Command::new(room::nixbox()).args(["journal", "--json"]).current_dir(room).output().unwrap();
    let journal: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let operations = journal["operations"].as_array().cloned().unwrap_or_default();
    operations.iter().any(|one| one["generation"] == generation && one["operation"] == "up")
}

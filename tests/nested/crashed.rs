//! Recognizes crashes of the emulation, for which nixbox is not to blame. The one place of these tests that asks nixbox
//! something: the journal says how a VM was started.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use serde_json::Value;

use super::outside;
use super::workspace;

/// What a VMM says of a guest whose processor triple-faulted. The emulated processor does so now and then with any program:
/// bare calls of the VMM see it too (QEMU 10.0, nested SVM).
const TRIPLE_FAULT: &str = "Guest likely triple-faulted";
/// What nixbox says when the guest that it had reached does not answer ARP any more, though its VMM lives. The emulated
/// processor loses interrupts now and then, and a guest whose timer interrupt is lost never goes on.
const NO_ANSWER: &str = "No route to host (os error 113)";
/// What a VMM says of a snapshot whose guest had another TSC frequency than this boot of the emulated host. The emulated processor
/// cannot scale its TSC, and the host's kernel measures the frequency at each boot, so that it differs on a busy machine.
const OTHER_TSC: &str = "Could not set the vCPU state SetTscKhz(Invalid argument";
/// What the guest prints when it has booted.
const BOOTED: &str = "GUEST-READY";
/// What begins a line about it in the log of a scenario.
pub(super) const EXCUSE: &str = "excuse: ";
/// Where scenarios without a workspace leave the logs of their VMMs when they fail.
pub(super) const KEPT_LOGS: &str = "/run/nixbox-kept";

/// The guests that were booted by `up`, and perhaps rolled over since, and triple-faulted since this time. A guest that was
/// restored does not count, because nixbox may have put its RAM together wrongly. A roll-over does not touch the RAM.
pub(super) fn triple_faults(since: SystemTime) -> Vec<String> {
    logs_that_say(TRIPLE_FAULT, since)
        .filter(|log| was_booted(log))
        .map(|log| format!("{EXCUSE}by {log:?} a guest that was booted triple-faulted"))
        .collect()
}

/// The VMMs since this time that could not load a snapshot of another boot of the host, because its TSC has another frequency.
pub(super) fn other_tsc(since: SystemTime) -> Vec<String> {
    logs_that_say(OTHER_TSC, since)
        .map(|log| format!("{EXCUSE}by {log:?} the TSC of this boot of the host has another frequency"))
        .collect()
}

/// The logs in the directories of nixbox that were written since this time and contain this text.
fn logs_that_say(text: &'static str, since: SystemTime) -> impl Iterator<Item = PathBuf> {
    let recent =
        move |path: &PathBuf| path.metadata().and_then(|file| file.modified()).is_ok_and(|at| at >= since);
    let says = move |path: &PathBuf| {
        fs::read(path).is_ok_and(|content| String::from_utf8_lossy(&content).contains(text))
    };
    let logs = outside::homes().into_iter().flat_map(|home| outside::below(&home));
    logs.filter(move |log| recent(log) && says(log))
}

/// The guest of the newest VM since this time, if it was booted by `up`, answered over SSH, and then stood still, as the log of
/// the scenario says. A guest that was restored does not count, for the same reason.
pub(super) fn standstill(since: SystemTime, scenario_log: &str) -> Option<String> {
    let reached = scenario_log.lines().any(|line| line.contains("connect (") && line.contains(NO_ANSWER));
    let started = |path: &PathBuf| {
        let name = path.file_name()?.to_str()?.strip_prefix("vmm-")?.strip_suffix(".log")?;
        name.parse::<u64>().ok()?;
        path.metadata().and_then(|file| file.modified()).ok().filter(|at| *at >= since)
    };
    let logs = outside::homes().into_iter().flat_map(|home| outside::below(&home));
    let (_, newest) = logs.filter_map(|log| started(&log).map(|at| (at, log))).max()?;
    (reached && was_booted(&newest))
        .then(|| format!("{EXCUSE}by {newest:?} a guest that was booted and had answered stood still"))
}

/// The guests that were booted by `up` since this time and whose boot came to no end, if nixbox said that a guest did not
/// answer: the serial log lacks the last line of the boot of the guest that these tests have. A guest that ended its boot and
/// cannot be reached is nixbox's fault.
pub(super) fn unfinished_boots(since: SystemTime, scenario_log: &str) -> Vec<String> {
    if !scenario_log.contains(NO_ANSWER) {
        return Vec::new();
    }
    let unfinished = |log: &PathBuf| {
        let serial = log.with_file_name(log.file_name()?.to_str()?.replacen("vmm-", "serial-", 1));
        let text = fs::read(serial).ok()?;
        (!String::from_utf8_lossy(&text).contains(BOOTED)).then_some(())
    };
    let recent =
        |path: &PathBuf| path.metadata().and_then(|file| file.modified()).is_ok_and(|at| at >= since);
    let logs = outside::homes().into_iter().flat_map(|home| outside::below(&home));
    logs.filter(|log| recent(log) && was_booted(log) && unfinished(log).is_some())
        .map(|log| {
            format!("{EXCUSE}by {log:?} a guest that was booted stood still before its boot had ended")
        })
        .collect()
}

/// Whether the VM with this log was booted or rolled over, as the journal of its workspace says. In a scenario without a workspace, the VM of
/// generation 1 was booted and the others were not.
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
    let own = |workspace: &PathBuf| {
        fs::read_to_string(workspace.join(".nixbox/workspace-id")).is_ok_and(|text| text.starts_with(id))
    };
    // The README's workspace lies one directory deeper than the others.
    let upper = outside::names(Path::new(workspace::WORK));
    let lower: Vec<_> = upper.iter().flat_map(|directory| outside::names(directory)).collect();
    let Some(workspace) = upper.into_iter().chain(lower).find(own) else {
        return false;
    };
    let output = Command::new(workspace::nixbox())
        .args(["journal", "--json"])
        .current_dir(workspace)
        .output()
        .unwrap();
    let journal: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let operations = journal["operations"].as_array().cloned().unwrap_or_default();
    operations.iter().any(|one| {
        one["generation"] == generation && (one["operation"] == "up" || one["operation"] == "snapshot")
    })
}

//! `nixbox logs`. The command only reads, and takes no lock.
//!
//! The VMM and the daemons write their logs to the runtime directory, each to a file of its own with the generation in its
//! name. What forwards ports in the background writes to one file. [`tail`] reads such a file from its end on.

use std::collections::BTreeMap;

use clap::ValueEnum;

use super::command::OpenWorkspace;
use super::error::{self, CliError, Outcome};
use super::forward::background;
use super::{WorkspaceLocation, success};
use crate::files::Folder;
use crate::files::changes::DirectoryChanges;
use tail::LogTail;

mod tail;

/// Show what the VM's console, the VMM and the daemons have written
///
/// Without a name this shows the console of the guest. The logs of the VM that runs are shown, or those of the last one. Control
/// characters are shown as escapes, because the guest may write what a terminal obeys.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: nixbox logs -f\n\
    Example: nixbox logs vmm shares -n 20")]
pub(super) struct Arguments {
    /// Whose logs
    #[arg(value_name = "WHOSE")]
    whose: Vec<LogOwner>,
    /// Go on with what is written from now on, also by the next VM, until Ctrl-C
    #[arg(short, long)]
    follow: bool,
    /// How many lines of each log are shown, counted from its end
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 200)]
    lines: usize,
}

/// Who has written a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum LogOwner {
    /// The guest, on its serial console
    Console,
    /// Cloud Hypervisor
    Vmm,
    /// The daemons of the shares
    Shares,
    /// The DHCP and DNS server of the VM
    Network,
    /// What forwards ports in the background
    Forwards,
}

impl LogOwner {
    /// The label of a log with this file name, and the number in the name by which the newest one is found.
    fn label(self, file: &str) -> Option<(String, u64)> {
        if self == Self::Forwards {
            return (file == background::LOG).then(|| ("forwards".to_owned(), 0));
        }
        let stem = file.strip_suffix(".log")?;
        if self == Self::Network {
            return (stem == "dnsmasq").then(|| ("network".to_owned(), 0));
        }
        let (name, generation) = stem.rsplit_once('-')?;
        let generation = generation.parse().ok()?;
        let label = match self {
            Self::Console if name == "serial" => "console".to_owned(),
            Self::Vmm if name == "vmm" => "vmm".to_owned(),
            Self::Shares => format!("share {}", name.strip_prefix("share-")?.parse::<u32>().ok()?),
            _ => return None,
        };
        Some((label, generation))
    }
}

pub(super) fn run(location: &WorkspaceLocation, arguments: &Arguments) -> Outcome {
    let open = OpenWorkspace::open(location)?;
    let runtime = match &open.record {
        Ok(Some(record)) => open.workspace.runtime_at(&record.runtime)?,
        _ => open.workspace.runtime()?,
    };
    let whose = if arguments.whose.is_empty() { &[LogOwner::Console][..] } else { &arguments.whose };
    let changes =
        arguments.follow.then(|| DirectoryChanges::of(&runtime)).transpose().map_err(CliError::from)?;
    let mut tails: BTreeMap<String, LogTail> = BTreeMap::new();
    loop {
        let logs = newest(&runtime, whose)?;
        let several = whose.len() > 1 || logs.len() > 1;
        for (label, file) in &logs {
            let tail = tails.entry(label.clone()).or_insert_with(|| LogTail::new(arguments.lines));
            let prefix = if several { format!("{label}: ") } else { String::new() };
            tail.advance(&runtime, file, |line| error::print(&format!("{prefix}{line}")))?;
        }
        match &changes {
            Some(changes) => changes.wait().map_err(CliError::Changes)?,
            None if logs.is_empty() => return Err(CliError::NoLog(runtime.path().to_owned()).into()),
            None => return success(),
        }
    }
}

/// The newest file of each log, by its label.
fn newest(runtime: &Folder, whose: &[LogOwner]) -> Result<BTreeMap<String, String>, CliError> {
    let mut newest: BTreeMap<String, (u64, String)> = BTreeMap::new();
    for name in runtime.names()? {
        let Some(file) = name.to_str() else { continue };
        for (label, generation) in whose.iter().filter_map(|owner| owner.label(file)) {
            let entry = newest.entry(label).or_insert_with(|| (generation, file.to_owned()));
            if entry.0 < generation {
                *entry = (generation, file.to_owned());
            }
        }
    }
    Ok(newest.into_iter().map(|(label, (_, file))| (label, file)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_log_of_each_owner_is_shown() {
        let directory = tempfile::tempdir().unwrap();
        let folder = Folder::open(directory.path()).unwrap();
        for name in [
            "serial-9.log",
            "serial-10.log",
            "serial-x.log",
            "serial-3.txt",
            "vmm-2.log",
            "share-0-2.log",
            "share-1-2.log",
            "share-1-10.log",
            "dnsmasq.log",
            "forwards.log",
            "forward-1.log",
            "events-4.log",
            "vmm-2.sock",
        ] {
            std::fs::write(directory.path().join(name), "").unwrap();
        }
        let of = |whose: &[LogOwner]| newest(&folder, whose).unwrap().into_values().collect::<Vec<_>>();
        assert_eq!(of(&[LogOwner::Console]), ["serial-10.log"]);
        assert_eq!(of(&[LogOwner::Vmm, LogOwner::Network]), ["dnsmasq.log", "vmm-2.log"]);
        assert_eq!(of(&[LogOwner::Forwards]), ["forwards.log"]);
        assert_eq!(of(&[LogOwner::Shares]), ["share-0-2.log", "share-1-10.log"]);
    }
}

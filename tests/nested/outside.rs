//! What exists of nixbox on this host, as ip, nft, /proc and the file system show it. Nothing here asks nixbox. What belongs
//! to nixbox is known by the marks that nixbox is documented to leave.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// A process with a mark of nixbox in its environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) workspace: String,
    /// `vmm`, `share-0`, `dhcp-0`
    pub(super) role: String,
    pub(super) uid: u32,
    /// What it may do: effective and permitted capabilities.
    pub(super) capabilities: u64,
}

/// Something of nixbox's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Thing {
    Process(Process),
    /// Its name, and the workspace in its alias.
    Tap(String, String),
    /// The end of an uplink on the host: its name, and the workspace in its alias.
    Uplink(String, String),
    /// The name of a network namespace.
    Namespace(String),
    /// A table of nftables.
    Table(String),
    /// The claim of a slot: its number and content.
    Claim(String, String),
    /// RAM of a guest.
    Memory(PathBuf),
    /// A socket, record or configuration of a daemon.
    Runtime(PathBuf),
}

impl Thing {
    /// Whether it is of this workspace, by its own name or mark.
    fn is_of(&self, workspace: &str) -> bool {
        match self {
            Self::Process(process) => process.workspace == workspace,
            Self::Tap(_, owner) | Self::Uplink(_, owner) => owner == workspace,
            Self::Namespace(text) | Self::Table(text) | Self::Claim(_, text) => text.contains(workspace),
            Self::Memory(path) => path.to_string_lossy().contains(workspace),
            Self::Runtime(path) => path.to_string_lossy().contains(&workspace[..16]),
        }
    }
}

/// Everything that exists of all workspaces.
pub(super) fn everything() -> Vec<Thing> {
    let mut things: Vec<Thing> = processes().into_iter().map(Thing::Process).collect();
    network(&[], &mut things);
    for path in names(Path::new("/run/netns")) {
        let name = path.file_name().unwrap().to_str().unwrap();
        if name.starts_with("nixbox-") {
            network(&["ip", "netns", "exec", name], &mut things);
            things.push(Thing::Namespace(name.to_owned()));
        }
    }
    for path in held_namespaces() {
        network(&["nsenter", &format!("--net={}", path.display())], &mut things);
    }
    for path in below(Path::new("/run/nixbox/slots")) {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        things.push(Thing::Claim(name, fs::read_to_string(path).unwrap()));
    }
    for path in homes().into_iter().flat_map(|home| below(&home)) {
        let name = path.file_name().unwrap().to_str().unwrap();
        if name.ends_with(".img") {
            things.push(Thing::Memory(path));
        } else if !name.ends_with(".log") {
            things.push(Thing::Runtime(path));
        }
    }
    things
}

/// The network namespaces of ordinary users' VMs, each once. They have no name, and live as long as a process in them.
fn held_namespaces() -> Vec<PathBuf> {
    let of = |pid: u32, kind: &str| fs::metadata(format!("/proc/{pid}/ns/{kind}")).ok().map(|it| it.ino());
    let own = of(std::process::id(), "user");
    let mut found = BTreeMap::new();
    // virtiofsd has namespaces of its own, with nothing of nixbox's.
    for process in processes().into_iter().filter(|process| !process.role.starts_with("share-")) {
        if let (Some(user), Some(network)) = (of(process.pid, "user"), of(process.pid, "net"))
            && Some(user) != own
            && Some(network) != of(std::process::id(), "net")
        {
            found.insert(network, PathBuf::from(format!("/proc/{}/ns/net", process.pid)));
        }
    }
    found.into_values().collect()
}

/// What exists in a network: that of the host, or that of a namespace, which the words enter.
fn network(enter: &[&str], things: &mut Vec<Thing>) {
    let output = |words: &[&str]| {
        let words = [enter, words].concat();
        serde_json::from_str::<Value>(&must(words[0], &words[1..])).unwrap()
    };
    for link in output(&["ip", "-j", "link"]).as_array().unwrap() {
        let name = link["ifname"].as_str().unwrap().to_owned();
        if let Some(mark) = link["ifalias"].as_str().and_then(|alias| alias.strip_prefix("nixbox ")) {
            let owner = mark.split(' ').next().unwrap_or_default().to_owned();
            match name.as_str() {
                // Its alias is the mark of the namespace.
                "lo" => {}
                _ if name.starts_with("nixbox-") => things.push(Thing::Uplink(name, owner)),
                _ => things.push(Thing::Tap(name, owner)),
            }
        }
    }
    let tables = output(&["nft", "-j", "list", "tables"]);
    for table in tables["nftables"].as_array().unwrap().iter().filter_map(|object| object.get("table")) {
        let name = table["name"].as_str().unwrap();
        if name.contains("nixbox") {
            things.push(Thing::Table(name.to_owned()));
        }
    }
}

/// Everything that exists of one workspace.
pub(super) fn of(workspace: &str) -> Vec<Thing> {
    everything().into_iter().filter(|thing| thing.is_of(workspace)).collect()
}

/// The roles of a workspace's processes, with the number of processes of each: a daemon may have children.
pub(super) fn roles(workspace: &str) -> BTreeMap<String, usize> {
    let mut roles = BTreeMap::new();
    for process in processes().into_iter().filter(|process| process.workspace == workspace) {
        *roles.entry(process.role).or_default() += 1;
    }
    roles
}

/// All marked processes that live.
pub(super) fn processes() -> Vec<Process> {
    let numbers = names(Path::new("/proc"))
        .into_iter()
        .filter_map(|path| path.file_name().unwrap().to_str().unwrap().parse::<u32>().ok());
    numbers.filter_map(marked).collect()
}

/// `None` for a process that has no mark, or ended while it was looked at.
fn marked(pid: u32) -> Option<Process> {
    let directory = PathBuf::from(format!("/proc/{pid}"));
    let environment = fs::read(directory.join("environ")).ok()?;
    let variable = |name: &str| {
        let entries =
            environment.split(|byte| *byte == 0).filter_map(|entry| std::str::from_utf8(entry).ok());
        entries.filter_map(|entry| entry.strip_prefix(name)?.strip_prefix('=')).next().map(str::to_owned)
    };
    let (workspace, role) = (variable("NIXBOX_WORKSPACE")?, variable("NIXBOX_ROLE")?);
    let status = fs::read_to_string(directory.join("status")).ok()?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        u64::from_str_radix(line.trim(), 16).ok()
    };
    if status.lines().any(|line| line.starts_with("State:\tZ")) {
        return None;
    }
    let capabilities = field("CapEff:")? | field("CapPrm:")?;
    Some(Process { pid, workspace, role, uid: fs::metadata(&directory).ok()?.uid(), capabilities })
}

/// Helps to find out why a scenario failed: where each thread of each process stands, and the end of what each VMM, console
/// and daemon wrote.
pub(super) fn testimony() -> String {
    let mut text = String::new();
    for process in processes() {
        text.push_str(&format!("{process:?}\n"));
        for thread in names(Path::new(&format!("/proc/{}/task", process.pid))) {
            let read = |name: &str| fs::read_to_string(thread.join(name)).unwrap_or_default();
            let (stat, stack) = (read("stat"), read("stack"));
            let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next()).unwrap_or('?');
            let calls: Vec<&str> = stack.lines().filter_map(|line| line.split(' ').nth(1)).take(4).collect();
            text.push_str(&format!(
                "  {} {state} {} {calls:?}\n",
                read("comm").trim(),
                read("syscall").trim()
            ));
        }
    }
    let logs = homes()
        .into_iter()
        .flat_map(|home| below(&home))
        .filter(|path| path.extension().is_some_and(|it| it == "log"));
    for path in logs {
        let bytes = fs::read(&path).unwrap_or_default();
        let tail = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(6000)..]).into_owned();
        text.push_str(&format!("\n{path:?}, {} bytes, ends with:\n{tail}\n", bytes.len()));
    }
    text
}

/// The directories of every user in which nixbox keeps what does not outlive a boot of the host.
pub(super) fn homes() -> Vec<PathBuf> {
    let common = ["/run", "/dev/shm", "/tmp"].map(PathBuf::from);
    let bases = common.into_iter().chain(names(Path::new("/run/user")));
    let all = bases.flat_map(|base| names(&base));
    all.filter(|path| path.file_name().unwrap().to_str().is_some_and(|name| name.starts_with("nixbox-")))
        .collect()
}

/// What is in a directory, if it is there.
pub(super) fn names(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory)
        .map_or_else(|_| Vec::new(), |entries| entries.map(|entry| entry.unwrap().path()).collect())
}

/// Every file below a directory that is no directory.
pub(super) fn below(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in names(directory) {
        if path.symlink_metadata().is_ok_and(|status| status.is_dir()) {
            found.extend(below(&path));
        } else {
            found.push(path);
        }
    }
    found
}

/// Runs a program that has to succeed, and gives its stdout.
pub(super) fn must(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a script that has to succeed, and gives its stdout.
pub(super) fn shell(script: &str) -> String {
    must("bash", &["-euo", "pipefail", "-c", script])
}

/// Removes everything of nixbox by force, so that the failure of one scenario does not make the next one fail.
pub(super) fn sweep() {
    for thing in everything() {
        let removed = match thing {
            Thing::Process(process) => Command::new("kill").arg("-9").arg(process.pid.to_string()).status(),
            Thing::Tap(name, _) | Thing::Uplink(name, _) => {
                Command::new("ip").args(["link", "delete", &name]).status()
            }
            Thing::Namespace(name) => Command::new("ip").args(["netns", "delete", &name]).status(),
            Thing::Table(name) => Command::new("nft").args(["delete", "table", "inet", &name]).status(),
            Thing::Claim(name, _) => Command::new("rm").arg(format!("/run/nixbox/slots/{name}")).status(),
            Thing::Memory(path) | Thing::Runtime(path) => Command::new("rm").arg("-f").arg(path).status(),
        };
        removed.unwrap();
    }
}

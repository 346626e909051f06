//! `nixbox doctor`: lists every requirement of nixbox, whether this host meets it, and what to do. The command changes
//! nothing.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::Serialize;

use super::error::{self, ExitKind, Outcome, Problem};
use super::{WorkspaceLocation, command, preflight, success, wiring};
use crate::config::{Config, HostFacts};
use crate::files::Folder;
use crate::host::lifetime::Lifetime;
use crate::host::shares::daemon_program::{self, DaemonProgramError};
use crate::host::spawn::{Invoker, SpawnError};
use crate::host::{confinement, memory, network, spawn, sudo};
use crate::world::{NetworkMode, NetworkPolicy, capability};

/// How long a program may take to print its version.
const LIMIT: Duration = Duration::from_secs(10);

/// Check what nixbox needs of this host, and say what to do about what is missing
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: nixbox doctor --json | jq '.needs[] | select(.state != \"found\")'")]
pub(super) struct Arguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum CheckState {
    Found,
    /// `up` works without it, but something else is slower or not possible.
    Lacking,
    /// Nothing works without it.
    Missing,
}

#[derive(Debug, Serialize)]
struct Requirement {
    name: &'static str,
    state: CheckState,
    /// What was found: a version, a path or a number.
    found: String,
    /// What to do, or what the check cannot find out.
    advice: Option<String>,
}

#[derive(Debug, Serialize)]
struct Diagnosis {
    /// Whether nothing is missing.
    ready: bool,
    needs: Vec<Requirement>,
}

fn found(name: &'static str, found: impl Into<String>) -> Requirement {
    Requirement { name, state: CheckState::Found, found: found.into(), advice: None }
}

impl Requirement {
    fn advice(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    fn missing(mut self) -> Self {
        self.state = CheckState::Missing;
        self
    }

    fn lacking(mut self) -> Self {
        self.state = CheckState::Lacking;
        self
    }
}

#[derive(Debug, thiserror::Error)]
enum ProgramVersionError {
    #[error("{0} cannot be run")]
    Run(PathBuf, #[source] std::io::Error),
    #[error("{0} did not say its version within {LIMIT:?}")]
    Slow(PathBuf),
    #[error("{0} failed when it was asked for its version")]
    Failed(PathBuf),
}

/// The first line that `program --version` prints.
async fn version(path: &Path) -> Result<String, ProgramVersionError> {
    let asked = tokio::process::Command::new(path)
        .arg("--version")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(LIMIT, asked)
        .await
        .map_err(|_| ProgramVersionError::Slow(path.to_owned()))?
        .map_err(|source| ProgramVersionError::Run(path.to_owned(), source))?;
    if !output.status.success() {
        return Err(ProgramVersionError::Failed(path.to_owned()));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next().unwrap_or_default().trim();
    // Control characters are removed, because the line is printed on a terminal.
    Ok(line.chars().filter(|c| !c.is_control()).take(200).collect())
}

fn kvm() -> Requirement {
    let nested = std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| {
        text.lines()
            .any(|line| line.starts_with("flags") && line.split_whitespace().any(|flag| flag == "hypervisor"))
    });
    match preflight::kvm_problem() {
        Some(problem) => found("kvm", problem).missing().advice(
            "enable virtualization in the firmware, or nested virtualization in the host of this host, then `modprobe kvm_intel` or `kvm_amd`; if it is a matter of rights, join the group that owns /dev/kvm",
        ),
        None if nested => found("kvm", "/dev/kvm opens").advice(
            "this host is itself a VM: whether a kernel boots on its KVM only a boot can tell",
        ),
        None => found("kvm", "/dev/kvm opens")
            .advice("whether a kernel boots on it only a boot can tell"),
    }
}

/// Finds a program that runs as the user who runs nixbox.
fn find(name: &'static str, variable: &'static str) -> Result<PathBuf, SpawnError> {
    spawn::find_program_for(&Invoker::detect()?, name, variable)
}

/// The advice for a program that root may run, but that a user who calls nixbox through sudo may not run.
fn closed_to_users(name: &'static str, path: &Path) -> Option<String> {
    /// The user `nobody`, who stands for every user without rights of its own.
    const NOBODY: u32 = 65534;
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let checked = Invoker::user(NOBODY, NOBODY).and_then(|user| spawn::check_access(&user, name, path));
    checked.err().map(|error| format!("root alone may use it: {}", error::chain(&error)))
}

async fn vmm() -> Requirement {
    const NAME: &str = "cloud-hypervisor";
    let advice = "install Cloud Hypervisor v51.0 or later from https://github.com/cloud-hypervisor/cloud-hypervisor/releases, on PATH or named in NIXBOX_CLOUD_HYPERVISOR";
    let path = match find(NAME, "NIXBOX_CLOUD_HYPERVISOR") {
        Ok(path) => path,
        Err(error) => return found(NAME, error::chain(&error)).missing().advice(advice),
    };
    let text = match version(&path).await {
        Ok(text) => text,
        Err(error) => return found(NAME, error::chain(&error)).missing().advice(advice),
    };
    match capability::of_program(&text).and_then(capability::of) {
        Err(error) => found(NAME, error::chain(&error)).missing().advice(advice),
        Ok(capability) => {
            let shares = match capability.ability {
                ability if !ability.shares_survive_restore => Some(
                    "shares are detached for every snapshot with this version; v52.0 and later keep them",
                ),
                ability if !ability.shares_survive_resume => {
                    Some("with shares, this version is started anew after every snapshot")
                }
                _ => None,
            };
            let advice: Vec<String> =
                closed_to_users(NAME, &path).into_iter().chain(shares.map(str::to_owned)).collect();
            let need = found(NAME, format!("{text}, {}", path.display()));
            if advice.is_empty() { need } else { need.advice(advice.join("; ")) }
        }
    }
}

async fn virtiofsd() -> Requirement {
    const NAME: &str = "virtiofsd";
    let advice = "`cargo install --locked virtiofsd` (as root with `--root /usr/local`, where every user can run it), or your distribution's package, on PATH or named in NIXBOX_VIRTIOFSD; without it only a workspace with `mounts = []` comes up";
    let user = Invoker::detect().map_err(DaemonProgramError::from);
    let sought = match &user {
        Ok(user) => daemon_program::find(user).await,
        Err(error) => return found(NAME, error::chain(error)).lacking(),
    };
    let path = match sought {
        Ok(path) => path,
        Err(error) => return found(NAME, error::chain(&error)).lacking().advice(advice),
    };
    match version(&path).await {
        Ok(text) => {
            let advice = closed_to_users(NAME, &path);
            Requirement { advice, ..found(NAME, format!("{text}, {}", path.display())) }
        }
        Err(error) => found(NAME, error::chain(&error)).lacking().advice(advice),
    }
}

async fn privileged(name: &'static str) -> Requirement {
    let advice = format!("install {name} from your distribution");
    let path = match network::program_path(name) {
        Ok(path) => path,
        Err(error) => return found(name, error::chain(&error)).missing().advice(advice),
    };
    match version(&path).await {
        Ok(text) => found(name, format!("{text}, {}", path.display())),
        Err(error) => found(name, error::chain(&error)).missing().advice(advice),
    }
}

async fn nftset() -> Requirement {
    const NAME: &str = "dnsmasq with nftset";
    match network::fills_sets().await {
        Ok(true) => found(NAME, "yes"),
        Ok(false) => found(NAME, "no")
            .lacking()
            .advice("network.mode = \"filtered\" needs dnsmasq 2.87 or later, built with nftset"),
        Err(error) => {
            found(NAME, error::chain(&error)).lacking().advice("network.mode = \"filtered\" needs it")
        }
    }
}

fn tun() -> Requirement {
    let opened = std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    match opened {
        Ok(_) => found("tun", "/dev/net/tun opens"),
        Err(error) => found("tun", format!("/dev/net/tun: {error}"))
            .missing()
            .advice("`modprobe tun`; in a container the device has to be passed in"),
    }
}

fn forwarding() -> Requirement {
    const NAME: &str = "ip forwarding";
    match std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward") {
        Ok(text) if text.trim() == "1" => found(NAME, "on"),
        Ok(_) if !sudo::may_make_namespaces() => found(NAME, "off, and not needed"),
        Ok(_) => found(NAME, "off").advice("`up` turns it on where the guest may reach anything"),
        Err(error) => found(NAME, error.to_string()).lacking(),
    }
}

/// Checks whether another firewall drops the packets of VMs. An ordinary user's VM has sockets of the user instead.
async fn firewalls(policy: &NetworkPolicy) -> Requirement {
    const NAME: &str = "other firewalls";
    if !sudo::may_make_namespaces() {
        return found(NAME, "treat the guest's connections as those of any program of yours");
    }
    match network::find_obstacle(policy, None).await {
        Ok(None) => found(NAME, "none drops what VMs send"),
        Ok(Some(obstacle)) => {
            found(NAME, obstacle.place()).lacking().advice(format!("to let them pass: {}", obstacle.remedy()))
        }
        Err(error) => found(NAME, error::chain(&error)).lacking(),
    }
}

fn rights() -> Requirement {
    const NAME: &str = "network privileges";
    let own = std::env::current_exe().ok();
    let sets = rustix::thread::capabilities(None);
    match sets {
        Ok(_) if sudo::may_make_namespaces() && !rustix::process::geteuid().is_root() => {
            found(NAME, "root, through sudo")
        }
        Ok(_) if sudo::may_make_namespaces() => {
            let closed = own.and_then(|path| closed_to_users("nixbox", &path));
            let need = found(NAME, "root");
            match closed {
                Some(closed) => need.advice(closed),
                None => need,
            }
        }
        Ok(sets) if sets.permitted.is_empty() => found(NAME, "none, and none is needed"),
        Ok(_) => {
            let program =
                own.map_or_else(|| "$(command -v nixbox)".to_owned(), |path| path.display().to_string());
            found(NAME, "capabilities of nixbox, which it does not need")
                .advice(format!("take them away: sudo setcap -r {program}"))
        }
        Err(error) => found(NAME, error.to_string()).lacking(),
    }
}

/// Tries whether an ordinary user can have the network of a VM.
async fn user_namespaces() -> Requirement {
    const NAME: &str = "user namespaces";
    if sudo::may_make_namespaces() {
        return found(NAME, "not needed by root");
    }
    match network::rehearse().await {
        Ok(()) => found(NAME, "allowed, with a network and a TAP"),
        Err(error) => found(NAME, error::chain(&error)).missing(),
    }
}

/// `off` is whether the configured guest may reach nothing.
async fn pasta(off: bool) -> Requirement {
    const NAME: &str = "pasta";
    if sudo::may_make_namespaces() {
        return found(NAME, "not needed by root");
    }
    let lacks = |problem: String| {
        let need = found(NAME, problem);
        let need = if off { need.lacking() } else { need.missing() };
        need.advice("install passt from your distribution; without it only a guest with network.mode = \"off\" comes up")
    };
    let path = match network::pasta_path() {
        Ok(path) => path,
        Err(error) => return lacks(error::chain(&error)),
    };
    match version(&path).await {
        Ok(text) => found(NAME, format!("{text}, {}", path.display())),
        Err(error) => lacks(error::chain(&error)),
    }
}

fn landlock() -> Requirement {
    const NAME: &str = "landlock";
    if confinement::is_available() {
        found(NAME, "a VMM can open the files of its VM only")
    } else {
        found(NAME, "the kernel has none, or has it turned off").lacking().advice(
            "without it a VMM that its guest has taken over can open your files; a kernel with CONFIG_SECURITY_LANDLOCK, and `landlock` in its `lsm=` parameter, if it has one",
        )
    }
}

/// Checks whether a VM outlives the service or the session in which `nixbox up` runs.
async fn lifetime() -> Requirement {
    const NAME: &str = "lifetime of VMs";
    let lifetime = match Lifetime::of_this_process() {
        Ok(lifetime) => lifetime,
        Err(error) => return found(NAME, error::chain(&error)).lacking(),
    };
    let refused = lifetime.rehearse().await.err().map(|error| error::chain(&error));
    let warnings = lifetime.warnings(refused.as_deref());
    if warnings.is_empty() {
        found(NAME, lifetime.words())
    } else {
        found(NAME, "as long as the unit of `nixbox up`").lacking().advice(warnings.join("; "))
    }
}

/// Checks the file system of the directory in which the workspace is, or would be made.
fn reflink(directory: &Path) -> Requirement {
    const NAME: &str = "reflink";
    const BTRFS: i64 = 0x9123_683E;
    const XFS: i64 = 0x5846_5342;
    let real = std::fs::canonicalize(directory).unwrap_or_else(|_| directory.to_owned());
    match Folder::open(&real).and_then(|folder| folder.file_system()) {
        Ok(BTRFS) => found(NAME, format!("{} is on btrfs", real.display())),
        Ok(XFS) => found(NAME, format!("{} is on XFS", real.display()))
            .advice("an XFS made without reflink=1 copies: `xfs_info` tells"),
        Ok(_) => found(NAME, format!("{} is on neither btrfs nor XFS", real.display()))
            .lacking()
            .advice("disks are copied in full for every snapshot; put the workspace on btrfs or XFS to have them cloned at once"),
        Err(error) => found(NAME, error::chain(&error)).lacking(),
    }
}

fn tmpfs(wanted: u64) -> Requirement {
    const NAME: &str = "room for RAM on tmpfs";
    let gib = |bytes: u64| format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30));
    let advice = "guest RAM is the VMM's own then, and snapshots take longer; bring another VM down, `mount -o remount,size=…` the tmpfs, or vm.backing = \"disk\"";
    let bases = memory::tmpfs_directories().into_iter();
    let rooms = bases.filter_map(|base| Some((memory::room_on_tmpfs(&base).ok()?, base)));
    match rooms.max_by_key(|(room, _)| room.left()) {
        Some((room, path)) => {
            let promised = match room.promised {
                0 => String::new(),
                bytes => format!(", {} of it promised to VMs", gib(bytes)),
            };
            let text =
                format!("{} free in {}{promised}, {} wanted", gib(room.free), path.display(), gib(wanted));
            if room.left() >= wanted { found(NAME, text) } else { found(NAME, text).lacking().advice(advice) }
        }
        None => found(NAME, "there is no tmpfs").lacking().advice(advice),
    }
}

/// Checks whether the kernel of the workspace's guest zeroes the memory that it frees. It makes a difference to snapshots
/// of guests that are given credentials.
fn zeroing(config: &Config) -> Option<Requirement> {
    const NAME: &str = "freed memory of the guest";
    if !config.gives_credentials() {
        return None;
    }
    Some(match config.unzeroed_memory() {
        None => found(NAME, "is zeroed (init_on_free=1)"),
        Some(meaning) => found(NAME, "is not zeroed").advice(meaning),
    })
}

async fn examine(place: &WorkspaceLocation) -> Diagnosis {
    // The doctor also checks a host without a workspace, or with a workspace whose configuration is not valid yet.
    let config = place.workspace().and_then(|workspace| WorkspaceLocation::config(&workspace)).ok();
    let memory = config
        .as_ref()
        .map_or_else(|| HostFacts::of_this_machine().memory / 2, |config| config.vm.memory.bytes());
    if let Some(version) = config.as_ref().and_then(|config| wiring::simulated(config.vmm)) {
        let simulator = found("simulator", version.simulator_version()).advice(
            "this workspace needs no KVM, no root and no program: its VM is simulated, and no sandbox",
        );
        let mut needs = vec![simulator, reflink(&place.directory), tmpfs(memory), lifetime().await];
        needs.extend(config.as_ref().and_then(zeroing));
        return Diagnosis { ready: true, needs };
    }
    let policy = config.as_ref().map(|config| config.network.clone()).unwrap_or_default();
    let off = policy.mode == NetworkMode::Off;
    let mut needs = vec![
        kvm(),
        vmm().await,
        virtiofsd().await,
        privileged("nft").await,
        privileged("dnsmasq").await,
        nftset().await,
        tun(),
        forwarding(),
        firewalls(&policy).await,
        rights(),
        user_namespaces().await,
        pasta(off).await,
        landlock(),
        reflink(&place.directory),
        tmpfs(memory),
        lifetime().await,
    ];
    needs.extend(config.as_ref().and_then(zeroing));
    Diagnosis { ready: needs.iter().all(|need| need.state != CheckState::Missing), needs }
}

pub(super) fn run(place: &WorkspaceLocation, arguments: &Arguments) -> Outcome {
    let diagnosis = command::block_on(async { Ok::<_, Problem>(examine(place).await) })?;
    if arguments.json {
        error::print_json(&diagnosis)?;
    } else {
        let mut lines = Vec::new();
        for need in &diagnosis.needs {
            let mark = match need.state {
                CheckState::Found => "ok     ",
                CheckState::Lacking => "lacking",
                CheckState::Missing => "MISSING",
            };
            lines.push(format!("{mark}  {}: {}", need.name, need.found));
            if let Some(advice) = &need.advice {
                lines.push(format!("         {advice}"));
            }
        }
        error::print(&lines.join("\n"))?;
    }
    if diagnosis.ready { success() } else { Ok(ExitKind::Failed as u8) }
}

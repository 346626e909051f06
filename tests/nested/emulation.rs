//! A nested host as a process: what this machine must have for it, and one run of it from its boot to its end.

use std::collections::VecDeque;
use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nixbox::host::spawn::{self, Invoker};
use rustix::process::{Pid, Signal};

use super::debian;
use super::inside;
use super::scenarios::Scenario;
use super::workspace;

/// The variable that says where the guest of Debian's packages is, in a nested host.
pub(super) const DEBIAN: &str = "NESTED_DEBIAN";

/// What is added to the time of a campaign for the limit of one scenario, which then kills at every event.
const CAMPAIGN_LIMIT: Duration = Duration::from_secs(7200);
/// The size of the disk that is there after a power cut.
const DISK: u64 = 4 << 30;

/// What is added to that for a nested host to boot and to go down.
const BOOT: Duration = Duration::from_secs(120);

const RUNNER: &str = "runner";
const NIXBOX: &str = "nixbox";

/// Programs, each with the Debian package that has it.
const PROGRAMS: [(&str, &str); 19] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("cpio", "cpio"),
    ("dropbear", "dropbear-bin"),
    ("sudo", "sudo"),
    ("modprobe", "kmod"),
    ("ssh", "openssh-client"),
    ("ssh-keygen", "openssh-client"),
    ("nft", "nftables"),
    ("dnsmasq", "dnsmasq-base"),
    ("ip", "iproute2"),
    ("pasta", "passt"),
    ("setpriv", "util-linux"),
    ("script", "bsdutils"),
    ("mkfs.btrfs", "btrfs-progs"),
    ("mkfs.ext4", "e2fsprogs"),
    ("gzip", "gzip"),
    ("curl", "curl"),
    ("timeout", "coreutils"),
];

/// What this machine lacks for a nested host, in words for people.
pub(super) fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("root's rights".to_owned());
    }
    let mut search: Vec<PathBuf> =
        std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
    search.extend(["/usr/sbin", "/sbin"].map(PathBuf::from));
    let there = |program: &str| search.iter().any(|directory| directory.join(program).is_file());
    // Scenarios run these as a user, too, who may not enter every directory of root's PATH.
    let user = Invoker::user(workspace::USER, workspace::USER).unwrap();
    for (program, variable) in
        [("cloud-hypervisor", "NIXBOX_CLOUD_HYPERVISOR"), ("virtiofsd", "NIXBOX_VIRTIOFSD")]
    {
        if let Err(error) = spawn::find_program_for(&user, program, variable) {
            return Some(format!("a {program} that every user may run ({error})"));
        }
    }
    if !cfg!(target_arch = "x86_64") {
        return Some("an x86-64 machine".to_owned());
    }
    let kernels: Vec<String> = fs::read_dir("/boot").map_or_else(
        |_| Vec::new(),
        |entries| {
            let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
            names.filter(|name| name.starts_with("vmlinuz-") && name.ends_with("-amd64")).collect()
        },
    );
    for (wanted, package) in [(true, "linux-image-cloud-amd64"), (false, "linux-image-amd64")] {
        if !kernels.iter().any(|name| name.contains("-cloud-") == wanted) {
            return Some(format!("a kernel ({package})"));
        }
    }
    PROGRAMS
        .iter()
        .find(|(program, _)| !there(program))
        .map(|(program, package)| format!("{program} ({package})"))
}

/// Which part of a scenario a boot of the nested host is for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Part {
    /// All of it.
    Whole,
    /// What comes before the power is cut.
    BeforeCut,
    /// What comes after it.
    AfterCut,
}

/// What a nested host is booted for.
pub(super) trait Errand {
    /// The scenarios that the host does next, on one VM if they share one. With none it goes down.
    fn next(&mut self) -> Vec<&'static Scenario>;
    /// Takes how a scenario ended.
    fn said(&mut self, said: Said);
}

/// What the nested host says of a scenario.
pub(super) struct Said {
    pub(super) name: String,
    pub(super) end: inside::End,
    pub(super) seconds: f64,
    pub(super) log: String,
}

/// How a nested host ended.
pub(super) enum Ended {
    /// Its power was cut, as a scenario asked for.
    Cut,
    /// It did everything that it was asked for, and went down.
    Down,
    /// It ended in any other way. With the last lines that it and its kernel wrote.
    Broken(String),
}

impl fmt::Display for Ended {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cut => formatter.write_str("its power was cut"),
            Self::Down => formatter.write_str("it went down"),
            Self::Broken(last) => write!(formatter, "it broke:\n{last}"),
        }
    }
}

impl Ended {
    /// Whether its kernel panicked, which no program should be able to bring about. Under QEMU 10.0 it does now and then, on a
    /// thread that runs a guest: it faults in its own page fault handler, with the guest's base of GS in a register.
    pub(super) fn crashed(&self) -> bool {
        matches!(self, Self::Broken(last) if last.contains("Kernel panic - not syncing"))
    }
}

/// The directory in which nested hosts are built and run, held by one test runner at a time.
pub(super) struct Emulation {
    directory: PathBuf,
    /// Where the guest of Debian's packages is, if it was made.
    debian: Option<PathBuf>,
    /// The memory of a host, as QEMU reads it.
    memory: &'static str,
    _lock: fs::File,
}

impl Emulation {
    /// Builds the guest, and copies the programs that run in the host: another build may replace them meanwhile.
    pub(super) fn prepare() -> Self {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("nested");
        fs::create_dir_all(&directory).unwrap();
        let lock = fs::File::create(directory.join("lock")).unwrap();
        lock.lock().unwrap();
        let guest = directory.join("guest");
        fs::create_dir_all(&guest).unwrap();
        let key = guest.join("key");
        if key.exists() {
            fs::remove_file(&key).unwrap();
        }
        must(
            Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", "guest", "-f"]).arg(&key),
        );
        let public = guest.join("key.pub");
        let mut make = Command::new(env!("CARGO_BIN_EXE_nixbox"));
        must(make.args(["image", "make-minimal", "--key"]).arg(public).arg(&guest).env_remove("SUDO_UID"));
        for (program, name) in
            [(std::env::current_exe().unwrap(), RUNNER), (env!("CARGO_BIN_EXE_nixbox").into(), NIXBOX)]
        {
            let _bytes = fs::copy(program, directory.join(name)).unwrap();
        }
        Self { directory, debian: None, memory: "6G", _lock: lock }
    }

    /// Makes the guest of Debian's packages, unless one is there that was made by the same recipe. This takes some minutes.
    pub(super) fn add_debian(&mut self) -> Result<(), debian::DebianError> {
        self.debian = Some(debian::guest()?);
        Ok(())
    }

    /// Gives the hosts that are booted from now on more memory: they keep the disk and the snapshots of a large guest in it.
    pub(super) fn enlarge_hosts(&mut self) {
        self.memory = "10G";
    }

    /// Makes a disk that keeps its content over a power cut.
    pub(super) fn disk(&self, name: &str) -> PathBuf {
        let path = self.directory.join(format!("{name}.disk"));
        fs::File::create(&path).unwrap().set_len(DISK).unwrap();
        must(Command::new("mkfs.btrfs").arg("-q").arg(&path));
        path
    }

    /// Boots a host, and lets it do what it was booted for.
    pub(super) fn boot(
        &self,
        name: &str,
        disk: Option<&Path>,
        part: Part,
        errand: &mut impl Errand,
    ) -> Ended {
        let out = self.directory.join(name);
        if out.exists() {
            fs::remove_dir_all(&out).unwrap();
        }
        // No host is left running when this process ends in any way.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(source("host")).args(["-m", self.memory, "-o"]).arg(&out);
        if let Some(disk) = disk {
            command.arg("-d").arg(disk);
        }
        command.arg("--").arg("env");
        for variable in ["NIXBOX_CAMPAIGN", "NIXBOX_SEED", "NIXBOX_CLOUD_HYPERVISOR", "NIXBOX_VIRTIOFSD"] {
            command.args(std::env::var(variable).ok().map(|value| format!("{variable}={value}")));
        }
        let program = self.directory.join(NIXBOX);
        command.arg(format!("{}={}", workspace::PROGRAM, program.display()));
        command.args(self.debian.as_ref().map(|guest| format!("{DEBIAN}={}", guest.display())));
        command.arg(self.directory.join(RUNNER)).args(inside::arguments(&self.directory.join("guest"), part));
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let mut orders = child.stdin.take().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).split(b'\n');
        let pid = Pid::from_child(&child);
        // Not reaped before this thread is joined: the pid stays its own.
        let kill = move || rustix::process::kill_process(pid, Signal::KILL);
        let (heard, hears) = mpsc::channel::<Duration>();
        let watch = std::thread::spawn(move || {
            let mut longest = BOOT;
            loop {
                match hears.recv_timeout(longest + BOOT) {
                    Ok(limit) => longest = limit,
                    Err(mpsc::RecvTimeoutError::Disconnected) => return false,
                    Err(mpsc::RecvTimeoutError::Timeout) => return kill().is_ok(),
                }
            }
        });
        let mut last = VecDeque::new();
        let mut cut = false;
        let mut longest = BOOT;
        for line in lines {
            let line = String::from_utf8_lossy(&line.unwrap()).into_owned();
            match inside::parse(&line) {
                Some(inside::Line::Cut) => {
                    cut = true;
                    kill().unwrap();
                }
                Some(inside::Line::Next) => {
                    let next = errand.next();
                    longest = next.iter().map(|scenario| limit(scenario)).max().unwrap_or(BOOT);
                    heard.send(longest).unwrap();
                    let names: Vec<&str> = next.iter().map(|scenario| scenario.name).collect();
                    // If it has ended meanwhile, its last lines say why.
                    if let Err(error) = writeln!(orders, "{}", names.join(" ")) {
                        last.push_back(format!("it did not take its next order: {error}"));
                    }
                }
                Some(inside::Line::Verdict { name, end, seconds }) => {
                    let log = fs::read(out.join(format!("{name}.log"))).unwrap_or_default();
                    heard.send(longest).unwrap();
                    errand.said(Said { name, end, seconds, log: String::from_utf8_lossy(&log).into_owned() });
                }
                None => {
                    last.push_back(line);
                    if last.len() > 40 {
                        last.pop_front();
                    }
                }
            }
        }
        drop(heard);
        let late = watch.join().unwrap();
        child.wait().unwrap();
        if late {
            last.push_back(format!("killed: no scenario ended within {} s", (longest + BOOT).as_secs()));
        } else if cut {
            return Ended::Cut;
        }
        if fs::read_to_string(out.join("status")).is_ok_and(|status| status.trim() == "0") {
            return Ended::Down;
        }
        let console = fs::read(out.join("console.log")).unwrap_or_default();
        let console = String::from_utf8_lossy(&console).into_owned();
        let tail: Vec<_> = console.lines().rev().take(20).collect();
        last.extend(tail.into_iter().rev().map(str::to_owned));
        Ended::Broken(last.into_iter().collect::<Vec<_>>().join("\n"))
    }
}

/// The time limit of a scenario, here and in the nested host.
pub(super) fn limit(scenario: &Scenario) -> Duration {
    let campaign = std::env::var("NIXBOX_CAMPAIGN").ok();
    campaign.map_or(scenario.limit(), |text| {
        CAMPAIGN_LIMIT + Duration::from_secs(text.parse().expect("NIXBOX_CAMPAIGN: a number of seconds"))
    })
}

pub(super) fn must(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}

pub(super) fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nested").join(name)
}

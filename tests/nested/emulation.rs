//! The nested host as a process: what it needs, its boot, what it says, its end.

use std::collections::VecDeque;
use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, Signal};

use super::inside;
use super::room;
use super::scenarios::Scenario;

/// What one scenario may use, beside a campaign. A last resort: all that it does has limits of its own.
const LIMIT: Duration = Duration::from_secs(900);
/// What one scenario may use in a campaign, beside the time that is asked for: it then kills at every event.
const CAMPAIGN_LIMIT: Duration = Duration::from_secs(7200);
/// What a power cut loses is what has not reached this disk.
const DISK: u64 = 4 << 30;

/// What a nested host may use to boot and to go down, beside that.
const BOOT: Duration = Duration::from_secs(120);

const RUNNER: &str = "runner";
const NIXBOX: &str = "nixbox";

/// Programs, each with the Debian package that has it.
const PROGRAMS: [(&str, &str); 19] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("virtiofsd", "virtiofsd, or from crates.io"),
    ("busybox", "busybox-static"),
    ("cpio", "cpio"),
    ("dropbear", "dropbear-bin"),
    ("sudo", "sudo"),
    ("modprobe", "kmod"),
    ("ssh", "openssh-client"),
    ("nft", "nftables"),
    ("dnsmasq", "dnsmasq-base"),
    ("ip", "iproute2"),
    ("setcap", "libcap2-bin"),
    ("setpriv", "util-linux"),
    ("script", "bsdutils"),
    ("mkfs.btrfs", "btrfs-progs"),
    ("mkfs.ext4", "e2fsprogs"),
    ("gzip", "gzip"),
    ("curl", "curl"),
    ("timeout", "coreutils"),
];

/// What is missing for the nested host on this machine, for people.
pub(super) fn missing() -> Option<String> {
    let mut search: Vec<PathBuf> =
        std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
    search.extend(["/usr/sbin", "/sbin", "/usr/libexec"].map(PathBuf::from));
    let there = |program: &str| search.iter().any(|directory| directory.join(program).is_file());
    if !there("cloud-hypervisor") {
        return Some("a cloud-hypervisor on PATH".to_owned());
    }
    if !cfg!(target_arch = "x86_64") {
        return Some("an x86-64 machine".to_owned());
    }
    if !rustix::process::geteuid().is_root() {
        return Some("root's rights".to_owned());
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
    /// What it does next, together on one VM if they stand on one; nothing ends it.
    fn next(&mut self) -> Vec<&'static Scenario>;
    /// How one ended.
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
    /// Its power was cut, as a scenario asked.
    Cut,
    /// It said what there was to say, and went down.
    Down,
    /// Otherwise: the last lines that it and its kernel said.
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

/// Where it is built and runs; one test runner at a time.
pub(super) struct Emulation {
    directory: PathBuf,
    _lock: fs::File,
}

impl Emulation {
    /// Builds the guest, and puts aside what runs in the host: somebody may build another meanwhile.
    pub(super) fn prepare() -> Self {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("nested");
        fs::create_dir_all(&directory).unwrap();
        let lock = fs::File::create(directory.join("lock")).unwrap();
        lock.lock().unwrap();
        let made = Command::new(source("make-guest")).arg(directory.join("guest")).output().unwrap();
        assert!(made.status.success(), "make-guest: {made:?}");
        for (program, name) in
            [(std::env::current_exe().unwrap(), RUNNER), (env!("CARGO_BIN_EXE_nixbox").into(), NIXBOX)]
        {
            let _bytes = fs::copy(program, directory.join(name)).unwrap();
        }
        Self { directory, _lock: lock }
    }

    /// A new disk that lasts.
    pub(super) fn disk(&self, name: &str) -> PathBuf {
        let path = self.directory.join(format!("{name}.disk"));
        fs::File::create(&path).unwrap().set_len(DISK).unwrap();
        let made = Command::new("mkfs.btrfs").arg("-q").arg(&path).output().unwrap();
        assert!(made.status.success(), "{made:?}");
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
        // Whatever becomes of this process, no host is left running.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(source("host")).arg("-o").arg(&out);
        if let Some(disk) = disk {
            command.arg("-d").arg(disk);
        }
        command.arg("--").arg("env");
        for variable in ["NIXBOX_CAMPAIGN", "NIXBOX_SEED", "NIXBOX_CLOUD_HYPERVISOR", "NIXBOX_VIRTIOFSD"] {
            command.args(std::env::var(variable).ok().map(|value| format!("{variable}={value}")));
        }
        let program = self.directory.join(NIXBOX);
        command.arg(format!("{}={}", room::PROGRAM, program.display()));
        command.arg(self.directory.join(RUNNER)).args(inside::arguments(&self.directory.join("guest"), part));
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let mut orders = child.stdin.take().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).split(b'\n');
        let pid = Pid::from_child(&child);
        // Not reaped before this thread is joined: the pid stays its own.
        let kill = move || rustix::process::kill_process(pid, Signal::KILL);
        let (verdicts, heard_verdict) = mpsc::channel::<()>();
        let watch = std::thread::spawn(move || {
            loop {
                match heard_verdict.recv_timeout(limit() + BOOT) {
                    Ok(()) => {}
                    Err(mpsc::RecvTimeoutError::Disconnected) => return false,
                    Err(mpsc::RecvTimeoutError::Timeout) => return kill().is_ok(),
                }
            }
        });
        let mut last = VecDeque::new();
        let mut cut = false;
        for line in lines {
            let line = String::from_utf8_lossy(&line.unwrap()).into_owned();
            match inside::parse(&line) {
                Some(inside::Line::Cut) => {
                    cut = true;
                    kill().unwrap();
                }
                Some(inside::Line::Next) => {
                    let names: Vec<&str> = errand.next().iter().map(|scenario| scenario.name).collect();
                    // If it has ended meanwhile, its last lines say why.
                    if let Err(error) = writeln!(orders, "{}", names.join(" ")) {
                        last.push_back(format!("it did not take its next order: {error}"));
                    }
                }
                Some(inside::Line::Verdict { name, end, seconds }) => {
                    let log = fs::read(out.join(format!("{name}.log"))).unwrap_or_default();
                    verdicts.send(()).unwrap();
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
        drop(verdicts);
        let late = watch.join().unwrap();
        child.wait().unwrap();
        if late {
            last.push_back(format!("killed: no scenario ended within {} s", (limit() + BOOT).as_secs()));
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

/// For one scenario, here and in the nested host.
pub(super) fn limit() -> Duration {
    let campaign = std::env::var("NIXBOX_CAMPAIGN").ok();
    campaign.map_or(LIMIT, |text| {
        CAMPAIGN_LIMIT + Duration::from_secs(text.parse().expect("NIXBOX_CAMPAIGN: a number of seconds"))
    })
}

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nested").join(name)
}

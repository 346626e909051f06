//! The runner in the nested host. Each scenario is a process of its own, and its output goes to a file that the outer runner
//! shows if the scenario fails. A scenario that leaves anything behind has failed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Instant, SystemTime};

use super::crashed;
use super::emulation::{self, Part};
use super::outside;
use super::scenarios::{self, Run, Scenario};
use super::workspace::{self, Workspace};

/// The disk that keeps its content over a power cut.
const DISK: &str = "/dev/vda";

const INSIDE: &str = "--nested-inside";
const ONE: &str = "--nested-one";

/// The arguments of the inner runner. It is given the names of scenarios on stdin, a line at a time, when it asks.
pub(super) fn arguments(guest: &Path, part: Part) -> [String; 3] {
    let part = match part {
        Part::Whole => "whole",
        Part::BeforeCut => "before",
        Part::AfterCut => "after",
    };
    [INSIDE, guest.to_str().unwrap(), part].map(str::to_owned)
}

/// What the inner runner says to the outer one.
pub(super) enum Line {
    Verdict {
        name: String,
        end: End,
        seconds: f64,
    },
    /// It asks for scenarios.
    Next,
    Cut,
}

/// How a scenario ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Passed,
    Failed,
    /// It failed, and the emulated processor had crashed one of its guests.
    Crashed,
}

pub(super) fn parse(line: &str) -> Option<Line> {
    let words: Vec<&str> = line.strip_prefix("@nested ")?.split_ascii_whitespace().collect();
    match words[..] {
        ["cut"] => Some(Line::Cut),
        ["next"] => Some(Line::Next),
        [verdict, name, seconds] => {
            let end = match verdict {
                "passed" => End::Passed,
                "failed" => End::Failed,
                "crashed" => End::Crashed,
                _ => return None,
            };
            Some(Line::Verdict { name: name.to_owned(), end, seconds: seconds.parse().ok()? })
        }
        _ => None,
    }
}

/// Does what this process was started for, if it was started in the nested host.
pub(super) fn role(arguments: &[String]) -> Option<ExitCode> {
    match arguments {
        [role, guest, part] if role == INSIDE => {
            all(Path::new(guest), part);
            Some(ExitCode::SUCCESS)
        }
        [role, part, name] if role == ONE => {
            one(part, find(name));
            Some(ExitCode::SUCCESS)
        }
        _ => None,
    }
}

fn find(name: &str) -> &'static Scenario {
    scenarios::ALL.iter().find(|scenario| scenario.name == name).expect("a scenario of that name")
}

fn all(guest: &Path, part: &str) {
    furnish(guest, part);
    loop {
        println!("@nested next");
        let mut line = String::new();
        let _bytes = std::io::stdin().read_line(&mut line).unwrap();
        let (sharing, own): (Vec<&Scenario>, Vec<&Scenario>) =
            line.split_whitespace().map(find).partition(|scenario| matches!(scenario.run, Run::SharedVm(_)));
        if sharing.is_empty() && own.is_empty() {
            return;
        }
        own.into_iter().for_each(|scenario| with_its_own(part, scenario));
        if !sharing.is_empty() {
            on_one_vm(part, &sharing);
        }
        outside::sweep();
    }
}

fn with_its_own(part: &str, scenario: &'static Scenario) {
    let (mut end, seconds) = run(part, scenario);
    if part == "before" {
        // The log has to be there when the power goes.
        rustix::fs::sync();
        println!("@nested {}", if end == End::Passed { "cut" } else { "not reached" });
    } else if end == End::Passed && !nothing_left(scenario) {
        end = End::Failed;
    }
    tell(scenario, end, seconds);
}

fn on_one_vm(part: &str, sharing: &[&'static Scenario]) {
    let (since, at) = (Instant::now(), SystemTime::now());
    let up = Workspace::shared_up();
    for scenario in sharing {
        if let Err(why) = &up {
            fs::write(log(scenario.name), format!("the VM that it needs did not come up:\n{why}")).unwrap();
            tell(scenario, failed(scenario, at), since.elapsed().as_secs_f64());
            continue;
        }
        let (end, seconds) = run(part, scenario);
        tell(scenario, end, seconds);
    }
}

/// Makes what the nested host needs beyond the files of this machine.
fn furnish(guest: &Path, part: &str) {
    let work = Path::new(workspace::WORK);
    fs::create_dir_all(work).unwrap();
    if part == "whole" {
        let image = "/run/work.img";
        fs::File::create(image).unwrap().set_len(8 << 30).unwrap();
        outside::must("mkfs.btrfs", &["-q", image]);
        outside::must("mount", &["-o", "loop", image, workspace::WORK]);
    } else {
        outside::must("mount", &[DISK, workspace::WORK]);
    }
    // Every user may have a workspace there.
    fs::set_permissions(work, fs::Permissions::from_mode(0o1777)).unwrap();
    // The state of root's workspaces is there too: on a file system that shares blocks, and that outlives a power cut.
    fs::create_dir_all(workspace::USER_CONFIG).unwrap();
    let text = format!("[state]\ndirectory = {:?}\n", workspace::STATE);
    fs::write(Path::new(workspace::USER_CONFIG).join("config.toml"), text).unwrap();
    let target = Path::new(workspace::GUEST);
    fs::create_dir_all(target).unwrap();
    for name in ["vmlinuz", "initramfs.gz", "key"] {
        fs::copy(guest.join(name), target.join(name)).unwrap();
    }
    // The first run of each of these loads modules and libraries from the machine's file system, slowly.
    outside::must("nft", &["-j", "list", "ruleset"]);
    outside::must("dnsmasq", &["--version"]);
}

fn log(name: &str) -> String {
    format!("/out/{name}.log")
}

/// Runs a scenario until it ends, or its time limit is reached.
fn run(part: &str, scenario: &Scenario) -> (End, f64) {
    let (since, at) = (Instant::now(), SystemTime::now());
    let log = fs::File::create(log(scenario.name)).unwrap();
    let status = Command::new("timeout")
        .args(["--kill-after=10", &emulation::limit(scenario).as_secs().to_string()])
        .arg(std::env::current_exe().unwrap())
        .args([ONE, part, scenario.name])
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .status()
        .unwrap();
    let end = if status.success() { End::Passed } else { failed(scenario, at) };
    (end, since.elapsed().as_secs_f64())
}

/// Adds to the log of a failed scenario, which began then, what can be known of its failure.
fn failed(scenario: &Scenario, begun: SystemTime) -> End {
    let mut crashed = crashed::triple_faults(begun);
    let said = fs::read_to_string(log(scenario.name)).unwrap_or_default();
    crashed.extend(crashed::other_tsc(begun));
    crashed.extend(crashed::standstill(begun, &said));
    crashed.extend(crashed::unfinished_boots(begun, &said));
    add(scenario, &outside::testimony());
    add(scenario, &crashed.join("\n"));
    if crashed.is_empty() { End::Failed } else { End::Crashed }
}

fn nothing_left(scenario: &Scenario) -> bool {
    let left = outside::everything();
    if !left.is_empty() {
        add(scenario, &format!("it left behind: {left:#?}"));
    }
    left.is_empty()
}

/// Adds text to the log of a scenario.
fn add(scenario: &Scenario, text: &str) {
    let mut all = fs::read_to_string(log(scenario.name)).unwrap_or_default();
    all.push_str(&format!("\n{text}\n"));
    fs::write(log(scenario.name), all).unwrap();
}

fn tell(scenario: &Scenario, end: End, seconds: f64) {
    let verdict = match end {
        End::Passed => "passed",
        End::Failed => "failed",
        End::Crashed => "crashed",
    };
    println!("@nested {verdict} {} {seconds:.3}", scenario.name);
}

fn one(part: &str, scenario: &Scenario) {
    match (&scenario.run, part) {
        (Run::Own(run), _) => run(),
        (Run::SharedVm(run), _) => run(&Workspace::shared()),
        (Run::PowerCut { before, .. }, "before") => before(),
        (Run::PowerCut { after, .. }, _) => after(),
    }
}

//! nixbox from end to end, against a real Cloud Hypervisor, a real virtiofsd and a real guest.
//!
//! They need a KVM that works. `host` makes one in software emulation, out of this machine's own Debian packages, and
//! `make-guest` the guest; so the tests run as root on any x86-64 Debian that has a `cloud-hypervisor` on PATH, and touch
//! nothing of it. Where something is missing they are skipped, in one line that says what.
//!
//! ```text
//! main.rs       the test runner on this machine: builds the guest, boots the host, prints what became of each scenario
//! emulation.rs  what has to be there for that; the host as a process
//! inside.rs     the runner in the nested host: each scenario in a process of its own, and whether it left anything
//! room.rs       a workspace of a scenario's own, and nixbox run in it
//! crashed.rs    what the emulation crashed, so that a scenario is tried once more
//! outside.rs    what there is of a workspace, asked of ip, nft, /proc and the file system; never of nixbox
//! scenarios/    what is promised
//! ```
//!
//! `cargo test --features failpoints --test nested -- NAME…` runs those scenarios whose names contain one of the words,
//! `--list` lists them. Without names those run that are not long; with `NIXBOX_NESTED=all` the long ones too.
//! `NIXBOX_CAMPAIGN=SECONDS` makes the random kills go on for that long, and kills at every event instead of at some.
//! With `NIXBOX_NESTED=required` a machine on which they cannot run fails.
//!
//! The emulated processor crashes a guest now and then, or the kernel of the host. A scenario that failed, and in which a
//! guest triple-faulted that was booted and not restored, is run once more in another host, and so is one under which the
//! host's kernel panicked; a line says so each time.

// clippy.toml lets tests unwrap, and does not see that all of this file is one.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod crashed;
mod emulation;
mod inside;
mod outside;
mod room;
mod scenarios;

use std::collections::BTreeMap;
use std::fs;
use std::process::ExitCode;
use std::time::Instant;

use emulation::{Act, Emulation, Ended};
use inside::End;
use scenarios::{Run, Scenario};

/// What became of a scenario.
#[derive(Debug)]
enum Verdict {
    Passed,
    Failed,
    Skipped(&'static str),
}

struct Tally {
    since: Instant,
    passed: usize,
    failed: Vec<(&'static str, String)>,
    skipped: usize,
    filtered: usize,
}

impl Tally {
    fn note(
        &mut self,
        name: &'static str,
        verdict: Verdict,
        seconds: Option<f64>,
        log: impl FnOnce() -> String,
    ) {
        let took = seconds.map(|seconds| format!(" ({seconds:.0} s)")).unwrap_or_default();
        match verdict {
            Verdict::Passed => {
                self.passed += 1;
                println!("test {name} ... ok{took}");
                // What was measured is worth a line of its own, and no verdict.
                log().lines().filter(|line| line.starts_with("FIGURE ")).for_each(|line| println!("{line}"));
            }
            Verdict::Failed => {
                println!("test {name} ... FAILED{took}");
                self.failed.push((name, log()));
            }
            Verdict::Skipped(why) => {
                self.skipped += 1;
                println!("test {name} ... ignored, {why}");
            }
        }
    }

    /// As the test harness of Rust puts it.
    fn end(self) -> ExitCode {
        if !self.failed.is_empty() {
            println!("\nfailures:");
            for (name, log) in &self.failed {
                println!("\n---- {name} ----\n{log}");
            }
            let names: Vec<_> = self.failed.iter().map(|(name, _)| format!("    {name}\n")).collect();
            println!("\nfailures:\n{}", names.concat());
        }
        println!(
            "\ntest result: {}. {} passed; {} failed; {} ignored; 0 measured; {} filtered out; finished in {:.2}s\n",
            if self.failed.is_empty() { "ok" } else { "FAILED" },
            self.passed,
            self.failed.len(),
            self.skipped,
            self.filtered,
            self.since.elapsed().as_secs_f64(),
        );
        if self.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(101) }
    }
}

/// The scenarios that the arguments choose: those whose names contain one of the words. Flags of Rust's own harness that
/// change nothing here are let pass, because `cargo test -- FLAGS` hands them to every test program.
fn chosen(words: &[String]) -> Vec<&'static Scenario> {
    let all = std::env::var("NIXBOX_NESTED").is_ok_and(|text| text == "all");
    let wanted = |scenario: &&Scenario| match words {
        [] => all || !scenario.long,
        words => words.iter().any(|word| scenario.name.contains(word)),
    };
    scenarios::ALL.iter().filter(wanted).collect()
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(code) = inside::role(&arguments) {
        return code;
    }
    let words: Vec<String> =
        arguments.iter().filter(|argument| !argument.starts_with("--")).cloned().collect();
    let chosen = chosen(&words);
    if arguments.iter().any(|argument| argument == "--list") {
        chosen.iter().for_each(|scenario| println!("{}: test", scenario.name));
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} tests", chosen.len());
    let mut tally = Tally {
        since: Instant::now(),
        passed: 0,
        failed: Vec::new(),
        skipped: 0,
        filtered: scenarios::ALL.len() - chosen.len(),
    };
    if chosen.is_empty() {
        return tally.end();
    }
    if let Some(missing) = emulation::missing() {
        println!(
            "nested: skipped, for want of {missing}; as root on Debian with a cloud-hypervisor on PATH, \
             `bash .ci/run` installs all else and runs them"
        );
        tally.skipped = chosen.len();
        let required = std::env::var("NIXBOX_NESTED").is_ok_and(|text| text == "required");
        let code = tally.end();
        return if required { ExitCode::from(101) } else { code };
    }
    run(&chosen, &mut tally);
    tally.end()
}

fn run(chosen: &[&'static Scenario], tally: &mut Tally) {
    let emulation = Emulation::prepare();
    let (can, cannot): (Vec<&Scenario>, Vec<&Scenario>) =
        chosen.iter().partition(|scenario| cfg!(feature = "failpoints") || !scenario.failpoints);
    for scenario in cannot {
        tally.note(scenario.name, Verdict::Skipped("needs --features failpoints"), None, String::new);
    }
    let (in_one, cut): (Vec<&Scenario>, Vec<&Scenario>) =
        can.into_iter().partition(|scenario| !matches!(scenario.run, Run::PowerCut { .. }));
    let mut tries = Tries::default();
    let mut waiting = in_one;
    while !waiting.is_empty() {
        waiting = together(&emulation, &waiting, tally, &mut tries);
    }
    for scenario in cut {
        let since = Instant::now();
        let done = loop {
            match power_cut(&emulation, scenario) {
                Err((why, End::Crashed)) if tries.once_more(scenario) => excuse(scenario, &why),
                done => break done,
            }
        };
        let verdict = if done.is_ok() { Verdict::Passed } else { Verdict::Failed };
        let seconds = since.elapsed().as_secs_f64();
        tally.note(scenario.name, verdict, Some(seconds), || {
            done.err().map(|(why, _)| why).unwrap_or_default()
        });
    }
}

/// How often scenarios were tried again, because the emulation had crashed: each of them at most twice, and all together
/// not more often than an emulation that is any good makes necessary.
#[derive(Default)]
struct Tries(BTreeMap<&'static str, usize>);

impl Tries {
    fn once_more(&mut self, scenario: &Scenario) -> bool {
        let all: usize = self.0.values().sum();
        let own = self.0.entry(scenario.name).or_default();
        *own += 1;
        *own <= 2 && all < 6
    }
}

/// Runs scenarios in one host. Gives those that are to be tried once more: the emulated processor crashed a guest that they
/// had booted, or the host.
fn together(
    emulation: &Emulation,
    scenarios: &[&'static Scenario],
    tally: &mut Tally,
    tries: &mut Tries,
) -> Vec<&'static Scenario> {
    let mut again = Vec::new();
    let mut left = scenarios.to_vec();
    let ended = emulation.boot("all", None, Act::Scenarios(scenarios), |said| {
        let Some(at) = left.iter().position(|scenario| scenario.name == said.name) else { return };
        let scenario = left.remove(at);
        if said.end == End::Crashed && tries.once_more(scenario) {
            excuse(scenario, &said.log);
            again.push(scenario);
            return;
        }
        let verdict = if said.end == End::Passed { Verdict::Passed } else { Verdict::Failed };
        tally.note(scenario.name, verdict, Some(said.seconds), || said.log);
    });
    // The first of those that are left was running.
    if ended.crashed() && left.first().is_some_and(|scenario| tries.once_more(scenario)) {
        excuse(left[0], &host_crashed());
        left.extend(again);
        return left;
    }
    for scenario in left {
        tally.note(scenario.name, Verdict::Failed, None, || {
            format!("the nested host ended before it did: {ended}")
        });
    }
    again
}

fn host_crashed() -> String {
    format!("{}the kernel of the emulated host panicked", crashed::EXCUSE)
}

/// Says that a scenario runs once more, and why.
fn excuse(scenario: &Scenario, log: &str) {
    let why: Vec<&str> = log.lines().filter_map(|line| line.strip_prefix(crashed::EXCUSE)).collect();
    println!("test {} ... once more, for the emulation crashed: {}", scenario.name, why.join("; "));
}

/// One boot up to the cut, and one with the disk of the first.
fn power_cut(emulation: &Emulation, scenario: &'static Scenario) -> Result<(), (String, End)> {
    let disk = emulation.disk(scenario.name);
    let (mut before, mut end) = (String::new(), End::Failed);
    let ended = emulation.boot(scenario.name, Some(&disk), Act::BeforeCut(scenario), |said| {
        (before, end) = (said.log, said.end);
    });
    if ended.crashed() {
        return Err((host_crashed(), End::Crashed));
    }
    if !matches!(ended, Ended::Cut) {
        return Err((format!("before the power cut: {ended}\n{before}"), end));
    }
    let mut after = None;
    let ended =
        emulation.boot(scenario.name, Some(&disk), Act::AfterCut(scenario), |said| after = Some(said));
    fs::remove_file(disk).unwrap();
    if ended.crashed() {
        return Err((host_crashed(), End::Crashed));
    }
    match after {
        Some(said) if said.end == End::Passed => Ok(()),
        Some(said) => Err((format!("after the power cut:\n{}", said.log), said.end)),
        None => Err((format!("after the power cut: {ended}"), End::Failed)),
    }
}

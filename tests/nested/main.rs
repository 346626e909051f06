//! nixbox from end to end, against a real Cloud Hypervisor, a real virtiofsd and a real guest.
//!
//! They need a KVM that works. `host` makes one in software emulation, out of this machine's own Debian packages, and
//! `make-guest` the guest; so the tests run as root on any x86-64 Debian that has a `cloud-hypervisor` on PATH, and touch
//! nothing of it. Where something is missing they are skipped, in one line that says what.
//!
//! ```text
//! main.rs       the test runner on this machine: what is to run, and what became of each scenario
//! lanes.rs      hosts side by side, each taking the next scenario that nobody has
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
mod lanes;
mod outside;
mod room;
mod scenarios;

use std::process::ExitCode;
use std::time::Instant;

use scenarios::Scenario;

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
    lanes::run(&chosen, tally).end()
}

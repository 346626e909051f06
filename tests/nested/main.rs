//! nixbox from end to end, against a real Cloud Hypervisor, a real virtiofsd and a real guest.
//!
//! The tests need a KVM that works. `host` makes one in software emulation, out of this machine's own Debian packages, and
//! `nixbox image make-minimal` makes the guest; so the tests run as root on any x86-64 Debian that has a `cloud-hypervisor`
//! on PATH, and change nothing on it. Where something is missing they are skipped, in one line that says what.
//!
//! ```text
//! main.rs       which scenarios are chosen; each is a test of libtest-mimic, which waits for its verdict
//! scheduler.rs  runs the scenarios in nested hosts, two of them side by side, and gives the verdicts
//! emulation.rs  what this machine must have for that; a nested host as a process
//! debian.rs     the guest that is made of Debian's packages, and kept from one run to the next
//! inside.rs     the runner in the nested host: each scenario in a process of its own, and whether it left anything
//! workspace.rs  a workspace of a scenario's own, and nixbox run in it
//! crashed.rs    crashes of the emulation, after which a scenario is tried once more
//! outside.rs    what exists of a workspace, asked of ip, nft, /proc and the file system; never of nixbox
//! scenarios/    what is promised
//! ```
//!
//! `cargo test --features failpoints --test nested -- NAME…` runs those scenarios whose names contain one of the words,
//! `--list` lists them. Without names those run that are not long; with `NIXBOX_NESTED=all` the long ones too.
//! `NIXBOX_CAMPAIGN=SECONDS` makes the random kills go on for that long, and kills at every event instead of at some.
//! With `NIXBOX_NESTED=required` or `NIXBOX_TESTS=all` the tests fail on a machine on which they cannot run.
//!
//! The emulated processor crashes a guest now and then, or the kernel of the host, or leaves a guest standing still. A
//! scenario that failed, and in which a guest that was booted and not restored triple-faulted, or stopped answering ARP
//! after it had answered over SSH, or stood still before its boot had ended, is run once more in another host, and so is one under which the host's kernel panicked; a
//! line says so each time. So is one in which a snapshot of an earlier boot of the host met another TSC frequency.

// clippy.toml lets tests unwrap, and does not see that all of this file is one.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod crashed;
mod debian;
mod emulation;
mod inside;
mod outside;
mod scenarios;
mod scheduler;
mod workspace;

use std::process::ExitCode;
use std::sync::mpsc;

use clap::Parser;
use libtest_mimic::{Completion, FormatSetting, Trial};
use nixbox::cli::error;
use nixbox::host::systemd::{SystemdError, scope};
use nixbox::host::{confinement, share_view};

use scenarios::Scenario;
use scheduler::{Verdict, Verdicts};

/// What `cargo test` hands to each test program, and any number of names.
#[derive(Debug, Parser)]
struct CommandLine {
    #[command(flatten)]
    harness: libtest_mimic::Arguments,
    /// Further names: the first one is the harness's filter.
    more: Vec<String>,
}

impl CommandLine {
    /// As libtest-mimic takes it, which knows one filter: scenarios that are not wanted are skipped by their names.
    fn harness(self) -> libtest_mimic::Arguments {
        let Self { mut harness, more } = self;
        let names: Vec<String> = harness.filter.take().into_iter().chain(more).collect();
        let all = set_to("NIXBOX_NESTED", "all");
        let named = |name: &str| {
            names.iter().any(|word| if harness.exact { name == word } else { name.contains(word.as_str()) })
        };
        let wanted = |scenario: &&Scenario| match names.is_empty() {
            true => all || !scenario.long,
            false => named(scenario.name),
        };
        let others = scenarios::ALL.iter().filter(|scenario| !wanted(scenario));
        let others: Vec<String> = others.map(|scenario| scenario.name.to_owned()).collect();
        harness.skip.extend(others);
        harness
    }
}

fn set_to(variable: &str, value: &str) -> bool {
    std::env::var(variable).is_ok_and(|text| text == value)
}

/// Whether nothing may be skipped.
fn all_promised() -> bool {
    set_to("NIXBOX_TESTS", "all") || set_to("NIXBOX_NESTED", "required")
}

/// The test of a scenario: it waits for the verdict.
fn trial(scenario: &Scenario, verdict: mpsc::Receiver<Verdict>) -> Trial {
    Trial::ignorable_test(scenario.name, move || match verdict.recv() {
        Ok(Verdict::Passed) => Ok(Completion::Completed),
        Ok(Verdict::Failed(log)) => Err(log.into()),
        Ok(Verdict::Skipped(reason)) => Ok(Completion::ignored_with(reason)),
        Err(mpsc::RecvError) => Err("the scheduler ended before this scenario".into()),
    })
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    // nixbox starts daemons by the program that it runs in, and scenarios use its seams in this one.
    if let Some((command, rest)) = words.split_first()
        && command == share_view::COMMAND
    {
        let rest: Vec<_> = rest.iter().map(Into::into).collect();
        return ExitCode::from(share_view::launch(&rest).unwrap_or_else(|refused| {
            eprintln!("{}", error::chain(&refused));
            share_view::REFUSED
        }));
    }
    if let Some((command, rest)) = words.split_first()
        && command == confinement::COMMAND
    {
        let rest: Vec<_> = rest.iter().map(Into::into).collect();
        eprintln!("{}", error::chain(&confinement::launch(&rest)));
        return ExitCode::from(confinement::REFUSED);
    }
    if let Some((command, rest)) = words.split_first()
        && command == scope::COMMAND
    {
        let rest: Vec<_> = rest.iter().map(Into::into).collect();
        let stays = |error: &SystemdError| eprintln!("{}", error::chain(error));
        let Err(failed) = scope::launch(&rest, stays) else { return ExitCode::SUCCESS };
        eprintln!("{}", error::chain(&failed));
        return ExitCode::from(scope::FAILED);
    }
    if let Some(code) = inside::role(&words) {
        return code;
    }
    let mut harness = CommandLine::parse().harness();
    let mut verdicts = Verdicts::default();
    let mut trials: Vec<Trial> =
        scenarios::ALL.iter().map(|scenario| trial(scenario, verdicts.expect(scenario))).collect();
    let chosen = scenarios::ALL.iter().zip(&trials).filter(|(_, trial)| !harness.is_filtered_out(trial));
    let chosen: Vec<&Scenario> = chosen.map(|(scenario, _)| scenario).collect();
    if harness.list || chosen.is_empty() {
        return libtest_mimic::run(&harness, trials).exit_code();
    }
    if let Some(missing) = emulation::missing() {
        println!(
            "nested: skipped, for want of {missing}; as root on Debian with a cloud-hypervisor on PATH, \
             `bash .ci/run` installs all else and runs them"
        );
        trials = trials.into_iter().map(|trial| trial.with_ignored_flag(true)).collect();
        harness.include_ignored = false;
        harness.format = Some(FormatSetting::Terse);
        let code = libtest_mimic::run(&harness, trials).exit_code();
        return if all_promised() { ExitCode::from(101) } else { code };
    }
    // Each scenario has a thread that waits for its verdict; how many run at a time is for the scheduler to decide.
    harness.test_threads = Some(chosen.len().max(2));
    std::thread::scope(|scope| {
        scope.spawn(|| scheduler::run(&chosen, verdicts));
        libtest_mimic::run(&harness, trials).exit_code()
    })
}

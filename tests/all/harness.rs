//! A workspace on a fake host, and commands of nixbox that run on it as from a shell: one session for each command.

use std::cell::RefCell;
use std::io::Write;
use std::sync::Mutex;

use nixbox::engine::executor::{EngineError, Observer, Unobserved};
use nixbox::engine::journal::{Journal, Storage};
use nixbox::engine::transition::Interrupt;
use nixbox::fakes::{Fault, Host};
use nixbox::operations::{
    OperationResult, Recovered, Refusal, Retention, Session, SnapshotRequest, described_vm,
};
use nixbox::world::{Generation, SnapshotId, SnapshotName, SnapshotReference, WorkspaceId, World};
use proptest::test_runner::{Config, FileFailurePersistence};

pub(crate) const WORKSPACE: WorkspaceId = WorkspaceId([0x11; 16]);

/// Counts the schedules of several tests. Each says how many it ran; the last one to end adds them up, and holds
/// README.md to the sum.
pub(crate) struct Count {
    what: &'static str,
    tests: usize,
    ended: Mutex<Vec<u64>>,
}

impl Count {
    /// The counter of so many tests. `what` is the beginning of the README's row about them.
    pub(crate) const fn new(what: &'static str, tests: usize) -> Self {
        Self { what, tests, ended: Mutex::new(Vec::new()) }
    }

    pub(crate) fn ended(&self, test: &str, schedules: u64) {
        let mut ended = self.ended.lock().unwrap();
        ended.push(schedules);
        tell(&format!("{schedules:>9} {} of {test}", self.what));
        if ended.len() == self.tests {
            let sum: u64 = ended.iter().sum();
            tell(&format!("{sum:>9} {} in all", self.what));
            let promised = promised(self.what);
            assert!(promised.abs_diff(sum) * 20 <= sum, "README.md says {promised} {}, not {sum}", self.what);
        }
    }
}

/// The number that begins the second cell of this row of the README.
fn promised(what: &str) -> u64 {
    let row =
        include_str!("../../README.md").lines().find_map(|line| line.strip_prefix("| ")?.strip_prefix(what));
    let cell = row.and_then(|row| row.split('|').nth(1)).unwrap_or_default();
    let digits: String = cell.trim().chars().take_while(|c| c.is_ascii_digit() || *c == ',').collect();
    digits.replace(',', "").parse().unwrap_or_else(|_| panic!("README.md has no number of {what}"))
}

/// Prints a line that an ordinary test run shows. It does not show what the print macros print unless the test fails.
fn tell(line: &str) {
    std::io::stderr().write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// The configuration for so many random cases. A case that fails is kept in a file to be committed, and every later run
/// tries it first.
pub(crate) fn cases(cases: u32) -> Config {
    let kept =
        FileFailurePersistence::Direct(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/all/regressions.txt"));
    Config { failure_persistence: Some(Box::new(kept)), ..Config::with_cases(cases) }
}

/// One command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    Up,
    /// With `--keep`.
    UpKeep,
    /// On the disk that was kept last.
    UpOnKept,
    Down,
    Snapshot,
    SnapshotNamed,
    SnapshotStop,
    RestoreNewest,
    /// With `--keep`.
    RestoreKeep,
    /// Restores with `--replace`, while a VM runs.
    Replace,
    /// Restores the newest compatible snapshot, or boots.
    UpWarm,
    /// With `keep = 1`.
    SnapshotKeepOne,
    DeleteNewest,
    Recover,
    /// What `nixbox run` does when it finds that the guest was rebooted.
    Equip,
    /// What `nixbox credentials inject` does, and `nixbox credentials wipe`.
    EquipAnew,
    /// No command: the guest reboots by itself.
    GuestReboots,
    /// No command: a person adds scripts for the guest to the configuration.
    GuestScriptsAreAdded,
}

/// The part of a command's result that the tests compare.
#[derive(Debug)]
pub(crate) enum Said {
    Report(OperationResult),
    Recovered(Recovered),
    Refused(Refusal),
    JournalFailed(nixbox::engine::journal::JournalError),
    Locked,
}

impl Said {
    pub(crate) fn done(&self) -> bool {
        matches!(self, Self::Report(OperationResult::Done | OperationResult::Already))
    }

    /// The journal's error that ended it.
    pub(crate) fn journal_error(&self) -> Option<&nixbox::engine::journal::JournalError> {
        match self {
            Self::JournalFailed(error) | Self::Refused(Refusal::Engine(EngineError::Journal(error))) => {
                Some(error)
            }
            _ => None,
        }
    }

    pub(crate) fn stuck(&self) -> bool {
        match self {
            Self::Report(report) => matches!(report, OperationResult::Stuck(_)),
            Self::Refused(refusal) => matches!(refusal, Refusal::Stuck(_)),
            Self::Recovered(recovered) => recovered.stuck.is_some(),
            Self::JournalFailed(_) | Self::Locked => false,
        }
    }
}

thread_local! {
    static RUNTIME: RefCell<tokio::runtime::Runtime> = RefCell::new(
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap(),
    );
}

/// Runs a command to its end, in simulated time, which passes only while everything waits.
pub(crate) fn run(host: &Host, command: Command) -> Said {
    run_with(host, command, Fault::None)
}

/// Runs a command, with a fault set.
pub(crate) fn run_with(host: &Host, command: Command, fault: Fault) -> Said {
    let interrupt = Interrupt::new();
    host.set_fault(fault, Some(interrupt.clone()));
    if command == Command::GuestReboots {
        host.reboot_guest(WORKSPACE);
        return Said::Report(OperationResult::Done);
    }
    if command == Command::GuestScriptsAreAdded {
        host.add_guest_scripts();
        return Said::Report(OperationResult::Done);
    }
    RUNTIME.with_borrow(|runtime| runtime.block_on(session(host, WORKSPACE, command, interrupt, &Unobserved)))
}

/// Runs a command without a fault, and lets somebody see what happens.
pub(crate) fn run_observed(host: &Host, command: Command, observer: &dyn Observer) -> Said {
    host.set_fault(Fault::None, None);
    RUNTIME.with_borrow(|runtime| {
        runtime.block_on(session(host, WORKSPACE, command, Interrupt::new(), observer))
    })
}

/// Runs two commands at the same time, each in a workspace, with a fault set.
pub(crate) fn run_both(host: &Host, commands: [(WorkspaceId, Command); 2], fault: Fault) -> (Said, Said) {
    let interrupt = Interrupt::new();
    host.set_fault(fault, Some(interrupt.clone()));
    let [first, second] = commands
        .map(|(workspace, command)| session(host, workspace, command, interrupt.clone(), &Unobserved));
    RUNTIME.with_borrow(|runtime| runtime.block_on(async { tokio::join!(first, second) }))
}

/// Lets `act` run operations in the workspace, without a fault.
pub(crate) fn in_session<T>(
    host: &Host,
    act: impl AsyncFnOnce(&mut Session<'_, nixbox::fakes::FakeStorage>) -> T,
) -> T {
    host.set_fault(Fault::None, None);
    let _lock = host.try_lock(WORKSPACE).expect("nobody else has the lock");
    let next = host.world(WORKSPACE);
    let now = next.clock.unix_ms();
    let journal = Journal::open(host.storage(WORKSPACE), WORKSPACE, Generation(0), now).unwrap();
    let world = present(host, WORKSPACE, &journal);
    let interrupt = Interrupt::new();
    let mut session =
        Session { world: &world, next: &next, journal, interrupt, observer: &Unobserved, keep: false };
    RUNTIME.with_borrow(|runtime| runtime.block_on(act(&mut session)))
}

/// The world of the VM that the journal is about, as its built record describes it.
fn present<S: Storage>(host: &Host, workspace: WorkspaceId, journal: &Journal<S>) -> World {
    match described_vm(journal.history()).unwrap() {
        Some(built) => host.world_of(workspace, built),
        None => host.world(workspace),
    }
}

async fn session(
    host: &Host,
    workspace: WorkspaceId,
    command: Command,
    interrupt: Interrupt,
    observer: &dyn Observer,
) -> Said {
    let Some(_lock) = host.try_lock(workspace) else {
        return Said::Locked;
    };
    let next = host.world(workspace);
    let storage = host.storage(workspace);
    let journal = match Journal::open(storage, workspace, Generation(0), next.clock.unix_ms()) {
        Ok(journal) => journal,
        Err(error) => return Said::JournalFailed(error),
    };
    let world = present(host, workspace, &journal);
    let mut session = Session { world: &world, next: &next, journal, interrupt, observer, keep: false };
    let newest = || {
        let snapshots = host.snapshots(workspace);
        snapshots.last().map_or(SnapshotId(Generation(0)), |(id, _)| *id)
    };
    let request = |name: Option<&str>, stop| SnapshotRequest {
        name: name.and_then(|name| SnapshotName::try_from(name.to_owned()).ok()),
        stop,
        retention: Retention::default(),
    };
    let report = match command {
        Command::Up => session.up().await,
        Command::UpOnKept => {
            let kept = host.kept_disks(workspace).last().map_or(Generation(0), |kept| kept.disk);
            session.up_on(kept).await
        }
        Command::UpKeep => {
            session.keep = true;
            session.up().await
        }
        Command::RestoreKeep => {
            session.keep = true;
            session.restore(None, false, false).await.map(|warm| warm.report)
        }
        Command::Down => session.down().await,
        Command::Snapshot => session.snapshot(request(None, false)).await.map(|result| result.report),
        Command::SnapshotNamed => {
            session.snapshot(request(Some("warm"), false)).await.map(|result| result.report)
        }
        Command::SnapshotStop => session.snapshot(request(None, true)).await.map(|result| result.report),
        Command::RestoreNewest => session
            .restore(Some(&SnapshotReference::from(newest())), false, false)
            .await
            .map(|warm| warm.report),
        Command::Replace => session.restore(None, true, false).await.map(|warm| warm.report),
        Command::UpWarm => session.warm_up(None).await.map(|warm| warm.report),
        Command::SnapshotKeepOne => {
            let retention = Retention { keep: Some(1), ..Retention::default() };
            let request = SnapshotRequest { retention, ..SnapshotRequest::default() };
            session.snapshot(request).await.map(|result| result.report)
        }
        Command::DeleteNewest => {
            session.delete(&SnapshotReference::from(newest())).await.map(|(_, report)| report)
        }
        Command::Equip => session.equip().await,
        Command::EquipAnew => match session.running_vm().await {
            Ok(vm) => session.equip_anew(vm).await,
            Err(refusal) => Err(refusal),
        },
        Command::Recover | Command::GuestReboots | Command::GuestScriptsAreAdded => {
            return match session.recover().await {
                Ok(recovered) => Said::Recovered(recovered),
                Err(refusal) => Said::Refused(refusal),
            };
        }
    };
    match report {
        Ok(report) => Said::Report(report),
        Err(refusal) => Said::Refused(refusal),
    }
}

/// A host on which these commands have succeeded.
pub(crate) fn host_after(version: u32, shares: bool, commands: &[Command]) -> Host {
    let host = Host::new(version, shares);
    drop(host.world(WORKSPACE));
    for command in commands {
        let said = run(&host, *command);
        assert!(said.done(), "{command:?} on a host without faults: {said:?}");
        host.guest_works(3);
    }
    assert_eq!(host.violations(WORKSPACE), [], "after {commands:?}");
    host
}

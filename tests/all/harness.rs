//! A workspace on a fake host, and nixbox run on it like from a shell: one session a command.

use std::cell::RefCell;

use nixbox::engine::executor::{Stopped, Unobserved};
use nixbox::engine::journal::Journal;
use nixbox::engine::transition::Interrupt;
use nixbox::fakes::{Fault, Host};
use nixbox::operations::{Recovered, Reference, Refusal, Report, Session, Wish};
use nixbox::world::{Generation, SnapshotId, SnapshotName, WorkspaceId};

pub(crate) const WORKSPACE: WorkspaceId = WorkspaceId([0x11; 16]);

/// One command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    Up,
    Down,
    Snapshot,
    SnapshotNamed,
    SnapshotStop,
    RestoreNewest,
    /// Restores over a VM that runs.
    Replace,
    /// Restores the newest that fits, or boots.
    UpWarm,
    /// With `keep = 1`.
    SnapshotKeepOne,
    DeleteNewest,
    Recover,
}

/// What a command printed, as far as it matters.
#[derive(Debug)]
pub(crate) enum Said {
    Report(Report),
    Recovered(Recovered),
    Refused(Refusal),
    JournalFailed(nixbox::engine::journal::JournalError),
    Locked,
}

impl Said {
    pub(crate) fn done(&self) -> bool {
        matches!(self, Self::Report(Report::Done | Report::Already))
    }

    /// The journal's error that ended it.
    pub(crate) fn journal_error(&self) -> Option<&nixbox::engine::journal::JournalError> {
        match self {
            Self::JournalFailed(error) | Self::Refused(Refusal::Stopped(Stopped::Journal(error))) => {
                Some(error)
            }
            _ => None,
        }
    }

    pub(crate) fn stuck(&self) -> bool {
        match self {
            Self::Report(report) => matches!(report, Report::Stuck(_)),
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

/// Runs a command to its end, in a time that passes only when everybody waits.
pub(crate) fn run(host: &Host, command: Command) -> Said {
    run_with(host, command, Fault::None)
}

/// Runs a command, with a fault set.
pub(crate) fn run_with(host: &Host, command: Command, fault: Fault) -> Said {
    let interrupt = Interrupt::new();
    host.set_fault(fault, Some(interrupt.clone()));
    RUNTIME.with_borrow(|runtime| runtime.block_on(session(host, WORKSPACE, command, interrupt)))
}

/// Runs two commands at the same time, each in a workspace, with a fault set.
pub(crate) fn run_both(host: &Host, commands: [(WorkspaceId, Command); 2], fault: Fault) -> (Said, Said) {
    let interrupt = Interrupt::new();
    host.set_fault(fault, Some(interrupt.clone()));
    let [first, second] =
        commands.map(|(workspace, command)| session(host, workspace, command, interrupt.clone()));
    RUNTIME.with_borrow(|runtime| runtime.block_on(async { tokio::join!(first, second) }))
}

/// Lets `act` run operations in the workspace, without a fault.
pub(crate) fn in_session<T>(
    host: &Host,
    act: impl AsyncFnOnce(&mut Session<'_, nixbox::fakes::FakeStorage>) -> T,
) -> T {
    host.set_fault(Fault::None, None);
    let _lock = host.try_lock(WORKSPACE).expect("nobody else has the lock");
    let world = host.world(WORKSPACE);
    let now = world.clock.unix_ms();
    let journal = Journal::open(host.storage(WORKSPACE), WORKSPACE, Generation(0), now).unwrap();
    let interrupt = Interrupt::new();
    let mut session = Session { world: &world, journal, interrupt, observer: &Unobserved };
    RUNTIME.with_borrow(|runtime| runtime.block_on(act(&mut session)))
}

async fn session(host: &Host, workspace: WorkspaceId, command: Command, interrupt: Interrupt) -> Said {
    let Some(_lock) = host.try_lock(workspace) else {
        return Said::Locked;
    };
    let world = host.world(workspace);
    let storage = host.storage(workspace);
    let journal = match Journal::open(storage, workspace, Generation(0), world.clock.unix_ms()) {
        Ok(journal) => journal,
        Err(error) => return Said::JournalFailed(error),
    };
    let mut session = Session { world: &world, journal, interrupt, observer: &Unobserved };
    let newest = || {
        let snapshots = host.snapshots(workspace);
        snapshots.last().map_or(SnapshotId(Generation(0)), |(id, _)| *id)
    };
    let wish = |name: Option<&str>, stop| Wish {
        name: name.and_then(|name| SnapshotName::try_from(name.to_owned()).ok()),
        stop,
        keep: None,
    };
    let report = match command {
        Command::Up => session.up().await,
        Command::Down => session.down().await,
        Command::Snapshot => session.snapshot(wish(None, false)).await.map(|frozen| frozen.report),
        Command::SnapshotNamed => {
            session.snapshot(wish(Some("warm"), false)).await.map(|frozen| frozen.report)
        }
        Command::SnapshotStop => session.snapshot(wish(None, true)).await.map(|frozen| frozen.report),
        Command::RestoreNewest => {
            session.restore(Some(&Reference::from(newest())), false).await.map(|warm| warm.report)
        }
        Command::Replace => session.restore(None, true).await.map(|warm| warm.report),
        Command::UpWarm => session.warm_up(None).await.map(|warm| warm.report),
        Command::SnapshotKeepOne => {
            let wish = Wish { keep: Some(1), ..Wish::default() };
            session.snapshot(wish).await.map(|frozen| frozen.report)
        }
        Command::DeleteNewest => session.delete(&Reference::from(newest())).await.map(|(_, report)| report),
        Command::Recover => {
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

/// A host on which these commands went well.
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

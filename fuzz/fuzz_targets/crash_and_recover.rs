//! Commands on a fake host, with faults and crashes anywhere; after a recovery without faults all invariants hold.

#![no_main]

use std::io::ErrorKind;

use libfuzzer_sys::{arbitrary, fuzz_target};
use nixbox::engine::executor::Unobserved;
use nixbox::engine::journal::Journal;
use nixbox::engine::transition::Interrupt;
use nixbox::fakes::{CallFault, Crash, Fault, Host, Survival};
use nixbox::operations::{Refusal, Retention, Session, SnapshotRequest, described_vm};
use nixbox::world::{Generation, SnapshotId, SnapshotReference, WorkspaceId};

const WORKSPACE: WorkspaceId = WorkspaceId([0x11; 16]);

#[derive(Debug, Clone, Copy, arbitrary::Arbitrary)]
enum Command {
    Up,
    WarmUp,
    Down,
    Snapshot {
        stop: bool,
        keep_one: bool,
    },
    Restore {
        which: u8,
        replace: bool,
    },
    Delete {
        which: u8,
    },
    Recover,
    /// Not of nixbox's: a person adds shares to the configuration, or removes them.
    Edit {
        shares: bool,
    },
}

#[derive(Debug, Clone, Copy, arbitrary::Arbitrary)]
enum End {
    Nothing,
    Death(u8),
    VmmKilled(u8),
    PowerCut(u8, u64),
    PowerCutAndNothingStays(u8),
    Wrong(u8, u8),
    Interrupt(u8),
    Storage(u8, bool),
}

#[derive(Debug, arbitrary::Arbitrary)]
struct Input {
    version: u8,
    shares: bool,
    runs: Vec<(Command, End)>,
}

impl End {
    fn fault(self) -> Fault {
        let wrong = |kind: u8| {
            [CallFault::ErrorBefore, CallFault::ErrorAfter, CallFault::SilentBefore, CallFault::SilentAfter]
                [usize::from(kind % 4)]
        };
        match self {
            Self::Nothing => Fault::None,
            Self::Death(at) => Fault::CrashAt(at.into(), Crash::Death),
            Self::VmmKilled(at) => Fault::CrashAt(at.into(), Crash::VmmKilled),
            Self::PowerCut(at, seed) => Fault::CrashAt(at.into(), Crash::PowerCut(Survival::Some(seed))),
            Self::PowerCutAndNothingStays(at) => {
                Fault::CrashAt(at.into(), Crash::PowerCut(Survival::Nothing))
            }
            Self::Wrong(at, kind) => Fault::CallGoesWrong(at.into(), wrong(kind)),
            Self::Interrupt(at) => Fault::InterruptAt(at.into()),
            Self::Storage(at, full) => {
                let kind = if full { ErrorKind::StorageFull } else { ErrorKind::ReadOnlyFilesystem };
                Fault::StorageFails(at.into(), kind)
            }
        }
    }
}

/// Runs a command. What it says is for other tests; here it has to leave the host in order.
async fn run(host: &Host, command: Command, fault: Fault) {
    let interrupt = Interrupt::new();
    host.set_fault(fault, Some(interrupt.clone()));
    if let Command::Edit { shares } = command {
        return host.set_shares(shares);
    }
    let next = host.world(WORKSPACE);
    let now = next.clock.unix_ms();
    let Ok(journal) = Journal::open(host.storage(WORKSPACE), WORKSPACE, Generation(0), now) else {
        assert_ne!(fault, Fault::None, "a journal that was left by nixbox does not open");
        return;
    };
    let world = match described_vm(journal.history()).expect("the journal names the workspace's state") {
        Some(built) => host.world_of(WORKSPACE, built),
        None => host.world(WORKSPACE),
    };
    let mut session =
        Session { world: &world, next: &next, journal, interrupt, observer: &Unobserved, keep: false };
    let snapshots = host.snapshots(WORKSPACE);
    let pick = |which: u8| {
        let at = usize::from(which) % snapshots.len().max(1);
        SnapshotReference::from(snapshots.get(at).map_or(SnapshotId(Generation(0)), |(id, _)| *id))
    };
    let said: Result<(), Refusal> = match command {
        Command::Up => session.up().await.map(drop),
        Command::Down => session.down().await.map(drop),
        Command::WarmUp => session.warm_up(None).await.map(drop),
        Command::Snapshot { stop, keep_one } => {
            let retention = Retention { keep: keep_one.then_some(1), ..Retention::default() };
            let wish = SnapshotRequest { name: None, stop, retention };
            session.snapshot(wish).await.map(drop)
        }
        Command::Restore { which, replace } => {
            session.restore(Some(&pick(which)), replace, false).await.map(drop)
        }
        Command::Delete { which } => session.delete(&pick(which)).await.map(drop),
        Command::Recover => session.recover().await.map(drop),
        Command::Edit { .. } => Ok(()),
    };
    if fault == Fault::None {
        assert!(!matches!(said, Err(Refusal::Engine(_) | Refusal::NoTable(_))), "{said:?}");
    }
}

fuzz_target!(|input: Input| {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let host = Host::new([51, 52, 53, 54][usize::from(input.version % 4)], input.shares);
        for (command, end) in input.runs.iter().take(8) {
            run(&host, *command, end.fault()).await;
            if !matches!(end, End::Nothing) {
                let looked_at = host.fork();
                run(&looked_at, Command::Recover, Fault::None).await;
                assert_eq!(looked_at.violations(WORKSPACE), [], "{command:?}, {end:?}");
            }
        }
        run(&host, Command::Recover, Fault::None).await;
        assert_eq!(host.violations(WORKSPACE), []);
        let once = host.fingerprint();
        run(&host, Command::Recover, Fault::None).await;
        assert_eq!(once, host.fingerprint(), "recovering twice changed something");
    });
});

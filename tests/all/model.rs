//! Random commands with random faults, against a model without stages: a command that did not finish has either happened
//! or not happened after recovery.

use nixbox::fakes::{CallFault, Crash, Fault, Host, Survival};
use nixbox::operations::{Incompatibility, NotRestorable, OperationResult, Refusal};
use nixbox::world::WorkspaceId;
use proptest::prelude::*;

use crate::harness::{Command, Said, WORKSPACE, cases, run, run_both, run_with};

const OTHER: WorkspaceId = WorkspaceId([0x22; 16]);

/// What a user sees: whether the VM is up, and how many snapshots there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Model {
    up: bool,
    snapshots: usize,
}

impl Model {
    const NEW: Self = Self { up: false, snapshots: 0 };

    fn of(host: &Host, workspace: WorkspaceId) -> Self {
        Self { up: host.is_ssh_ready(workspace), snapshots: host.snapshots(workspace).len() }
    }

    /// The model after a command; `None` if the command is refused.
    fn after(self, command: Command) -> Option<Self> {
        let Self { up, snapshots } = self;
        match command {
            Command::Up => Some(Self { up: true, snapshots }),
            Command::Down => Some(Self { up: false, snapshots }),
            Command::Snapshot if up => Some(Self { up, snapshots: snapshots + 1 }),
            Command::SnapshotStop if up => Some(Self { up: false, snapshots: snapshots + 1 }),
            Command::RestoreNewest if !up && snapshots > 0 => Some(Self { up: true, snapshots }),
            Command::DeleteNewest if snapshots > 0 => Some(Self { up, snapshots: snapshots - 1 }),
            Command::Recover => Some(self),
            _ => None,
        }
    }

    fn without_vm(self) -> Self {
        Self { up: false, ..self }
    }
}

fn command() -> impl Strategy<Value = Command> {
    prop_oneof![
        4 => Just(Command::Up),
        2 => Just(Command::Down),
        4 => Just(Command::Snapshot),
        2 => Just(Command::SnapshotStop),
        4 => Just(Command::RestoreNewest),
        1 => Just(Command::DeleteNewest),
        1 => Just(Command::Recover),
    ]
}

fn crash() -> impl Strategy<Value = Crash> {
    prop_oneof![
        Just(Crash::Death),
        Just(Crash::VmmKilled),
        any::<u64>().prop_map(|seed| Crash::PowerCut(Survival::Some(seed))),
    ]
}

fn wrong() -> impl Strategy<Value = CallFault> {
    prop_oneof![
        Just(CallFault::ErrorBefore),
        Just(CallFault::ErrorAfter),
        Just(CallFault::SilentBefore),
        Just(CallFault::SilentAfter),
    ]
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        3 => Just(Fault::None),
        3 => (0_u64..120, crash()).prop_map(|(point, crash)| Fault::CrashAt(point, crash)),
        1 => (0_u64..60, wrong()).prop_map(|(call, wrong)| Fault::CallGoesWrong(call, wrong)),
        1 => (0_u64..60, wrong()).prop_map(|(call, wrong)| Fault::CallsGoWrong(call, wrong)),
        1 => (0_u64..120).prop_map(Fault::InterruptAt),
        1 => (0_u64..40).prop_map(|write| Fault::StorageFails(write, std::io::ErrorKind::StorageFull)),
    ]
}

/// One command of a history: the edit of the configuration before it, its fault, and those of the recoveries after it.
#[derive(Debug, Clone)]
struct Turn {
    shares: Option<bool>,
    command: Command,
    fault: Fault,
    recoveries: Vec<Fault>,
    work: u64,
}

fn turn() -> impl Strategy<Value = Turn> {
    let shares = prop::option::weighted(0.3, any::<bool>());
    (shares, command(), fault(), prop::collection::vec(fault(), 0..3), 0_u64..20).prop_map(
        |(shares, command, fault, recoveries, work)| Turn { shares, command, fault, recoveries, work },
    )
}

/// Whether this fault ends a VM.
fn kills(fault: Fault) -> bool {
    matches!(fault, Fault::CrashAt(_, Crash::VmmKilled | Crash::PowerCut(_)))
}

/// Plays one turn and returns the new model.
fn play(host: &Host, model: Model, turn: &Turn) -> Result<Model, TestCaseError> {
    if let Some(shares) = turn.shares {
        host.set_shares(shares);
    }
    let said = run_with(host, turn.command, turn.fault);
    // A snapshot of a VM that was built from another configuration is refused, and that is all that an edit changes.
    let unfit = matches!(said, Said::Refused(Refusal::Unfit(_, NotRestorable::Misfits(_))));
    let expected = model.after(turn.command).filter(|_| !unfit);
    let undisturbed = turn.fault == Fault::None;
    if undisturbed {
        match &expected {
            Some(_) => prop_assert!(
                matches!(
                    said,
                    Said::Report(OperationResult::Done | OperationResult::Already) | Said::Recovered(_)
                ),
                "{said:?}"
            ),
            None => prop_assert!(
                matches!(
                    said,
                    Said::Refused(
                        Refusal::Running
                            | Refusal::NotRunning
                            | Refusal::NoSuchSnapshot(_)
                            | Refusal::Unfit(..)
                    )
                ),
                "{said:?}"
            ),
        }
    }
    for fault in &turn.recoveries {
        run_with(host, Command::Recover, *fault);
    }
    let recovered = run(host, Command::Recover);
    prop_assert!(!recovered.stuck(), "{recovered:?}");
    prop_assert_eq!(host.violations(WORKSPACE), []);

    let found = Model::of(host, WORKSPACE);
    let done = expected.unwrap_or(model);
    let mut allowed = vec![done];
    if !undisturbed {
        // A VM that does not become of use is cleared away, whatever made it so.
        allowed.extend([model, done.without_vm()]);
    }
    if std::iter::once(&turn.fault).chain(&turn.recoveries).any(|fault| kills(*fault)) {
        allowed.extend([model.without_vm(), done.without_vm()]);
    }
    // A snapshot rolls the VM over, and loses it if every attempt to load it fails.
    let persists = |fault: &Fault| matches!(fault, Fault::CallsGoWrong(..));
    if turn.command == Command::Snapshot && std::iter::once(&turn.fault).chain(&turn.recoveries).any(persists)
    {
        allowed.push(model.without_vm());
    }
    // A recovery that cannot look into the guest, or not get through to it, takes an unfinished `up` away.
    if turn.recoveries.iter().any(|fault| *fault != Fault::None) {
        allowed.push(done.without_vm());
    }
    prop_assert!(allowed.contains(&found), "{found:?} is not one of {allowed:?}; the command said {said:?}");
    match said {
        Said::Report(OperationResult::Done | OperationResult::Already) => {
            prop_assert_eq!(found.snapshots, done.snapshots)
        }
        Said::Report(OperationResult::RolledBack(_)) => prop_assert_eq!(found.snapshots, model.snapshots),
        _ => {}
    }
    host.guest_works(turn.work);
    Ok(found)
}

proptest! {
    #![proptest_config(cases(3000))]

    #[test]
    fn any_history_is_one_of_whole_commands(
        version in 51_u32..=54,
        shares: bool,
        turns in prop::collection::vec(turn(), 1..12),
    ) {
        let host = Host::new(version, shares);
        drop(host.world(WORKSPACE));
        let mut model = Model::NEW;
        for turn in &turns {
            model = play(&host, model, turn)?;
        }
    }

    #[test]
    fn two_workspaces_never_touch_each_other(
        version in 51_u32..=54,
        turns in prop::collection::vec((command(), command(), fault()), 1..8),
    ) {
        let host = Host::new(version, true);
        let both = [WORKSPACE, OTHER];
        both.iter().for_each(|workspace| drop(host.world(*workspace)));
        for (one, other, fault) in turns {
            let before = both.map(|workspace| Model::of(&host, workspace));
            let commands = [(WORKSPACE, one), (OTHER, other)];
            let said = run_both(&host, commands, fault);
            if fault == Fault::None {
                let after = both.map(|workspace| Model::of(&host, workspace));
                let expected = [
                    before[0].after(one).unwrap_or(before[0]),
                    before[1].after(other).unwrap_or(before[1]),
                ];
                // A slot that another VM has by now is a refusal.
                let taken = |said: &Said| match said {
                    Said::Refused(Refusal::Unfit(_, NotRestorable::Misfits(misfits))) => {
                        matches!(misfits[..], [Incompatibility::Slot(_)])
                    }
                    _ => false,
                };
                let said = [said.0, said.1];
                for (index, said) in said.iter().enumerate() {
                    let expected = if taken(said) { before[index] } else { expected[index] };
                    prop_assert_eq!(after[index], expected, "{:?}", said);
                }
            }
            for workspace in both {
                let commands = [(workspace, Command::Recover), (workspace, Command::Recover)];
                let (first, second) = run_both(&host, commands, Fault::None);
                // One of two in one workspace is refused, or comes after the other.
                prop_assert!(!first.stuck() && !second.stuck(), "{:?}, {:?}", first, second);
            }
            for workspace in both {
                prop_assert_eq!(host.violations(workspace), []);
            }
        }
    }

    #[test]
    fn a_second_run_in_a_workspace_is_refused(one in command(), other in command()) {
        let host = Host::new(53, true);
        drop(host.world(WORKSPACE));
        run(&host, Command::Up);
        let before = Model::of(&host, WORKSPACE);
        let (said, refused) = run_both(&host, [(WORKSPACE, one), (WORKSPACE, other)], Fault::None);
        prop_assert_eq!(host.violations(WORKSPACE), []);
        let first = before.after(one).unwrap_or(before);
        let found = Model::of(&host, WORKSPACE);
        match refused {
            Said::Locked => prop_assert_eq!(found, first, "{:?}", said),
            // The first had nothing to wait for, and was gone by then.
            _ => prop_assert_eq!(found, first.after(other).unwrap_or(first), "{:?}", refused),
        }
    }
}

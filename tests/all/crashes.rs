//! Every crash point there is, and a second crash at every point of the recovery.

use nixbox::fakes::{Crash, Fault, Host, Survival};

use crate::harness::{Command, Count, Said, WORKSPACE, host_after, run, run_with};

use Command::{
    DeleteNewest, Down, Equip, EquipAnew, GuestReboots, GuestScriptsAreAdded, Replace, RestoreNewest,
    Snapshot, SnapshotKeepOne, SnapshotStop, Up, UpOnKept,
};

/// How the first run and the recovery are ended.
const CRASHES: [Crash; 6] = [
    Crash::Death,
    Crash::VmmKilled,
    Crash::VmmHangs,
    Crash::PowerCut(Survival::Nothing),
    Crash::PowerCut(Survival::Everything),
    Crash::PowerCut(Survival::Some(1)),
];
const CRASHES_OF_RECOVERY: [Crash; 3] = [Crash::Death, Crash::VmmHangs, Crash::PowerCut(Survival::Some(2))];

/// A command on a host on which others went well.
pub(crate) struct Scenario {
    /// The major version of the VMM.
    pub(crate) version: u32,
    /// Whether the workspace has shares.
    pub(crate) shares: bool,
    /// What went well before.
    pub(crate) before: &'static [Command],
    pub(crate) command: Command,
}

/// Runs `scenario` with every crash at every point, each recovery with every crash at every point, and then once more
/// to the end. Returns how many schedules that was.
fn every_crash(scenario: &Scenario) -> u64 {
    let before = host_after(scenario.version, scenario.shares, scenario.before);
    let mut schedules = 0;
    for crash in CRASHES {
        for point in 0.. {
            let host = before.fork();
            run_with(&host, scenario.command, Fault::CrashAt(point, crash));
            let (reached, died) = (host.counts().points > point, host.died());
            if !reached {
                break;
            }
            let context = || format!("{:?}, {crash:?} at point {point}", scenario.command);
            schedules += 1;
            let recovered = host.fork();
            check(&before, &recovered, scenario.command, crash, &context());
            works_again(&recovered, &context());
            if died || crash == Crash::VmmHangs {
                schedules += every_crash_of_recovery(&before, &host, scenario, crash, &context());
            }
        }
    }
    schedules
}

fn every_crash_of_recovery(
    before: &Host,
    crashed: &Host,
    scenario: &Scenario,
    first: Crash,
    context: &str,
) -> u64 {
    let mut schedules = 0;
    // After a power cut there is no VMM that could hang.
    let wanted = |crash: &Crash| first == Crash::Death || *crash != Crash::VmmHangs;
    for crash in CRASHES_OF_RECOVERY.into_iter().filter(wanted) {
        for point in 0.. {
            let host = crashed.fork();
            run_with(&host, Command::Recover, Fault::CrashAt(point, crash));
            if host.counts().points <= point {
                break;
            }
            schedules += 1;
            let gravest = if crash == Crash::Death { first } else { crash };
            let context = format!("{context}, then {crash:?} at point {point} of the recovery");
            check(before, &host, scenario.command, gravest, &context);
        }
    }
    schedules
}

/// The run after the last crash: it must bring everything in order, whatever was left.
fn check(before: &Host, host: &Host, command: Command, crash: Crash, context: &str) {
    let ran = host.is_ssh_ready(WORKSPACE);
    let said = run(host, Command::Recover);
    assert!(matches!(&said, Said::Recovered(_)) && !said.stuck(), "{context}: recovery said {said:?}");
    assert_eq!(host.violations(WORKSPACE), [], "{context}; recovery said {said:?}");

    let once = host.fingerprint();
    run(host, Command::Recover);
    assert_eq!(once, host.fingerprint(), "{context}: recovering twice changed something");

    let (had, has) = (before.snapshots(WORKSPACE), host.snapshots(WORKSPACE));
    for snapshot in &has {
        let fresh = !had.iter().any(|(id, _)| *id == snapshot.0);
        assert!(fresh || had.contains(snapshot), "{context}: snapshot {} was changed", snapshot.0);
    }
    let lost = had.iter().filter(|one| !has.contains(one)).count();
    let may_lose = usize::from(matches!(command, DeleteNewest | SnapshotKeepOne));
    assert!(lost <= may_lose, "{context}: snapshots were lost");

    // The disk of a session is never lost but by a newer one that is kept in its place.
    let may_go: Vec<_> = before.kept_disks(WORKSPACE).into_iter().map(|kept| kept.disk).collect();
    let (had, has) = (before.disks(WORKSPACE), host.disks(WORKSPACE));
    let gone: Vec<_> = had.difference(&has).collect();
    let full = host.kept_disks(WORKSPACE).len() == 1;
    assert!(
        gone.is_empty() || full && gone.iter().all(|disk| may_go.contains(disk)),
        "{context}: the disks {gone:?} are gone"
    );

    // Nothing but a power cut or a VMM that is dead or hangs takes a VM that was there away from a snapshot.
    if matches!(command, Snapshot | Equip | EquipAnew) && crash == Crash::Death {
        assert!(host.is_ssh_ready(WORKSPACE), "{context}: the VM is gone");
    }
    // Whether it is written down or not: a guest that has begun to run is past the commit point.
    if matches!(command, Up | UpOnKept | RestoreNewest) && crash == Crash::Death && ran {
        assert!(host.is_ssh_ready(WORKSPACE), "{context}: the commit point was taken back");
    }
}

/// What was recovered is as good as new.
fn works_again(host: &Host, context: &str) {
    let again = if host.is_ssh_ready(WORKSPACE) { Down } else { Up };
    let said = run(host, again);
    assert!(said.done(), "{context}: {again:?} afterwards said {said:?}");
    assert_eq!(host.violations(WORKSPACE), [], "{context}, then {again:?}");
}

macro_rules! scenarios {
    ($($name:ident: $version:literal, $shares:literal, [$($before:ident),*] => $command:ident;)*) => {
        static SCHEDULES: Count = Count::new("crash schedules", [$(stringify!($name)),*].len());
        $(
            #[test]
            fn $name() {
                let scenario = Scenario {
                    version: $version,
                    shares: $shares,
                    before: &[$($before),*],
                    command: $command,
                };
                let schedules = every_crash(&scenario);
                SCHEDULES.ended(stringify!($name), schedules);
                assert!(schedules > 100, "only {schedules} schedules");
            }
        )*
    };
}

scenarios! {
    first_up: 53, true, [] => Up;
    up_on_a_disk_with_guest_scripts: 53, false, [Up, Down, GuestScriptsAreAdded] => Up;
    down: 53, true, [Up] => Down;
    snapshot_in_place: 54, true, [Up] => Snapshot;
    snapshot_detached: 51, true, [Up] => Snapshot;
    snapshot_rolled_over: 53, true, [Up] => Snapshot;
    snapshot_and_stop: 53, true, [Up] => SnapshotStop;
    restore: 53, true, [Up, SnapshotStop] => RestoreNewest;
    restore_detached_with_guest_scripts: 51, true, [Up, Snapshot, Down, GuestScriptsAreAdded] => RestoreNewest;
    replace: 54, true, [Up, Snapshot] => Replace;
    snapshot_and_prune_with_guest_scripts: 54, false, [Up, Snapshot, GuestScriptsAreAdded] => SnapshotKeepOne;
    restored_goes_down: 54, true, [Up, SnapshotStop, RestoreNewest] => Down;
    restored_twice_goes_down: 53, false, [Up, SnapshotStop, RestoreNewest, Down, RestoreNewest] => Down;
    up_on_a_kept_disk: 53, false, [Up, SnapshotStop, RestoreNewest, Down] => UpOnKept;
    kept_disk_goes_down: 53, false, [Up, SnapshotStop, RestoreNewest, Down, UpOnKept] => Down;
    delete: 53, false, [Up, SnapshotStop] => DeleteNewest;
    equip: 53, true, [Up, GuestReboots] => Equip;
    equip_anew: 51, true, [Up] => EquipAnew;
    snapshot_of_a_rebooted_guest: 51, true, [Up, GuestReboots] => Snapshot;
}

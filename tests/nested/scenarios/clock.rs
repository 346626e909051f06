//! What a guest notices of the time that it was frozen: its wall clock is set, and its monotonic clock goes on from where it
//! stood.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::outside;
use crate::workspace::Workspace;

/// How much of its own time a guest may be given between two questions: those of a snapshot and of a restore in emulation.
const OWN: f64 = 60.0;

/// The clock of this host, which is set forward, and back when this value is dropped.
#[derive(Default)]
pub(super) struct HostClock {
    ahead: u64,
}

impl HostClock {
    pub(super) fn forward(&mut self, seconds: u64) {
        set_clock(unix() + seconds);
        self.ahead += seconds;
    }
}

impl Drop for HostClock {
    fn drop(&mut self) {
        set_clock(unix() - self.ahead);
    }
}

fn set_clock(seconds: u64) {
    outside::must("date", &["-s", &format!("@{seconds}")]);
}

pub(super) fn unix() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// The monotonic clock of the guest.
fn uptime(workspace: &Workspace) -> f64 {
    workspace.guest("cut -d ' ' -f 1 /proc/uptime").trim().parse().unwrap()
}

/// Whether a line of the kernel's log compares the TSC with the clock that is used.
pub(super) fn is_about_tsc(line: &str) -> bool {
    line.contains("clocksource:") || line.contains("Marking TSC unstable due to clocksource watchdog")
}

pub(super) fn a_guest_that_was_frozen_notices_no_jump_but_that_of_the_wall_clock() {
    for (source, option) in [("kvm-clock", ""), ("tsc", "clocksource=tsc tsc=reliable")] {
        let workspace = Workspace::new(source);
        workspace.configure(&Workspace::configuration("").replace("quiet", &format!("quiet {option}")));
        workspace.ok(&["up"]);
        let used = workspace.guest("cat /sys/devices/system/clocksource/clocksource0/current_clocksource");
        assert_eq!(used.trim(), source);
        let lines = workspace.guest("sudo -n dmesg").lines().count();
        let frozen = uptime(&workspace);
        // A live snapshot rolls the guest over into another VMM.
        workspace.ok(&["snapshot", "--name", "warm"]);
        let rolled = uptime(&workspace);
        assert!((frozen..frozen + OWN).contains(&rolled), "{source}: {frozen} before, {rolled} after");
        let mut clock = HostClock::default();
        for away in [0, 3600, 30 * 24 * 3600] {
            clock.forward(away);
            workspace.ok(&["restore", "warm", "--replace"]);
            let thawed = uptime(&workspace);
            println!("{source}: frozen at {frozen} s, went on {away} s later at {thawed} s");
            assert!((frozen..frozen + OWN).contains(&thawed), "{source}: {frozen} before, {thawed} after");
            let (early, guest, late) = (unix(), workspace.guest("date +%s"), unix());
            let guest: u64 = guest.trim().parse().unwrap();
            assert!((early..=late).contains(&guest), "{source}: {guest} is not from {early} to {late}");
            let log = workspace.guest(&format!("sudo -n dmesg | tail -n +{}", lines + 1));
            // That its TSC and kvm-clock differ by the time between the moments at which the VMM saves them is of no account: the
            // kernel goes on with the clock that it uses.
            let log: String = log.lines().filter(|line| !is_about_tsc(line)).collect::<Vec<_>>().join("\n");
            for word in ["stall", "watchdog", "soft lockup", "unstable"] {
                assert!(!log.contains(word), "{source}: {word} in {log}");
            }
        }
        workspace.ok(&["down"]);
        workspace.assert_down();
    }
}

pub(super) fn a_guest_whose_host_was_suspended_gets_the_time() {
    let workspace = Workspace::new("suspended");
    workspace.ok(&["up"]);
    let mut clock = HostClock { ahead: 0 };
    for next in [&["run", "--", "true"][..], &["up"], &["run", "--", "true"]] {
        // The guest's clock stands still while its host is suspended, which is as if that of the host went ahead.
        clock.forward(3600);
        workspace.ok(next);
        // A connection that finds the clock right does not set it.
        let (early, guest, late) = (unix(), workspace.guest("date +%s"), unix());
        let guest: u64 = guest.trim().parse().unwrap();
        assert!((early..=late).contains(&guest), "{next:?}: {guest} is not from {early} to {late}");
    }
    workspace.ok(&["down"]);
    workspace.assert_down();
}

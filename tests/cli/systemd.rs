//! VMs outlive the service and the session that ran `nixbox up`, on a real systemd with a real logind.
//!
//! The test boots systemd in namespaces, over an overlay of this system (`host.sh`), and runs `scenario.sh` in it. It needs
//! root, and the packages systemd, libpam-systemd, dbus and dbus-user-session.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use super::skipped;

/// The status of `host.sh` where no such host can be made.
const IMPOSSIBLE: i32 = 77;

/// What the scenario needs and this machine lacks.
fn lacking() -> Option<&'static str> {
    let module = ["/usr/lib", "/usr/lib64", "/usr/lib/x86_64-linux-gnu"]
        .map(|directory| Path::new(directory).join("security/pam_systemd.so"));
    let exists = |path: &str| Path::new(path).exists();
    [
        (rustix::process::geteuid().is_root(), "root's rights"),
        (exists("/usr/lib/systemd/systemd") || exists("/lib/systemd/systemd"), "systemd"),
        (module.iter().any(|path| path.exists()), "pam_systemd"),
        (exists("/usr/bin/dbus-daemon") || exists("/usr/bin/dbus-broker"), "a D-Bus of the system"),
        (exists("/usr/lib/systemd/user/dbus.socket"), "a D-Bus of users"),
    ]
    .into_iter()
    .find_map(|(there, what)| (!there).then_some(what))
}

#[test]
fn vms_outlive_services_and_sessions_and_are_shut_down_with_the_host() {
    const TEST: &str = "vms_outlive_services_and_sessions_and_are_shut_down_with_the_host";
    if let Some(what) = lacking() {
        skipped(TEST, what);
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/systemd");
    let output = Command::new("timeout")
        .args(["--kill-after=5", "120", "sh"])
        .arg(source.join("host.sh"))
        .args([directory.path(), env!("CARGO_BIN_EXE_nixbox").as_ref(), &source.join("scenario.sh")])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(IMPOSSIBLE) {
        skipped(TEST, said.lines().last().unwrap_or("a host made of namespaces"));
        return;
    }
    let log = fs::read_to_string(directory.path().join("found/log"));
    let found = |name: &str| {
        let text = fs::read_to_string(directory.path().join("found").join(name));
        text.unwrap_or_else(|error| panic!("{name}: {error}; {log:?}; {said}"))
    };
    let count = |text: &str, part: &str| text.matches(part).count();

    // The service has ended, and each daemon is in a scope of the system.
    let once = found("once");
    assert!(once.starts_with("ActiveState=inactive\n") && once.ends_with("the guest answers\n"), "{once}");
    // A share has a process that starts its daemon again when the guest reboots.
    for (role, processes) in [("vmm", 1), ("share-0", 2)] {
        assert_eq!(count(&once, &format!("-1-{role}.scope\n")), processes, "{once}");
    }
    assert_eq!(count(&once, "0::/system.slice/nixbox-"), 3, "{once}");
    assert!(found("doctor").contains("lifetime of VMs: until the host shuts down"), "{}", found("doctor"));
    assert_eq!(found("units"), "", "`down` leaves no unit, and none has failed");

    // The session has ended, and the daemons of the user who lingers are in scopes of that user's manager.
    let lingers = found("lingers");
    assert_eq!(count(&lingers, "/user@31001.service/app.slice/nixbox-"), 3, "{lingers}");
    assert_eq!(count(&lingers, "loginctl"), 0, "{lingers}");
    // The daemons of the other user are left in the session's scope, and `up` said what a log-out does.
    let leaves = found("leaves");
    assert_eq!(count(&leaves, "a log-out ends a VM that was started in a desktop session"), 1, "{leaves}");
    assert_eq!((count(&leaves, "0::/"), count(&leaves, "/session-")), (3, 3), "{leaves}");

    // The shutdown of the host stopped the service first, so the guest was still there to be shut down.
    let kept = found("kept");
    assert!(kept.starts_with("the guest answers\n") && kept.contains("the VM is down"), "{kept}");
}

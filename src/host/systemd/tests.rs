//! The launcher with a program in the place of busctl, which writes down how it was called.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::SystemdError;
use super::bus::WantedScope;
use super::scope::{COMMAND, FAILED};

/// Longer than a shell takes to start, on a busy machine too.
const LIMIT: Duration = Duration::from_secs(5);

struct Busctl {
    directory: tempfile::TempDir,
}

impl Busctl {
    /// Makes a program that writes down its arguments and environment, and then runs `script`. `$calls` counts its calls.
    fn that_does(script: &str) -> Self {
        let busctl = Self { directory: tempfile::tempdir().unwrap() };
        let calls = busctl.calls_file();
        let calls = calls.display();
        let text =
            format!("#!/bin/sh\necho \"$*\" $(env) >> '{calls}'\ncalls=$(wc -l < '{calls}')\n{script}\n");
        // Another test may fork while a file is open for writing here, and the kernel runs no such file.
        let mut writer = Command::new("sh")
            .args(["-c", "cat > \"$0\" && chmod 755 \"$0\""])
            .arg(busctl.path())
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        writer.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert!(writer.wait().unwrap().success());
        assert_eq!(busctl.path().metadata().unwrap().permissions().mode() & 0o777, 0o755);
        busctl
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("busctl")
    }

    fn calls_file(&self) -> PathBuf {
        self.directory.path().join("calls")
    }

    fn calls(&self) -> Vec<String> {
        fs::read_to_string(self.calls_file()).unwrap().lines().map(str::to_owned).collect()
    }

    fn enter(&self) -> SystemdError {
        let busctl = self.path();
        WantedScope { busctl: &busctl, user: None, name: "x.scope", ordered_before: Some("a.service") }
            .enter(LIMIT)
            .unwrap_err()
    }
}

/// Runs the launcher with these arguments. Returns the status, stdout, which repeats the input if the launcher became
/// `cat`, and stderr.
fn launch(manager: &str, busctl: &Path, program: &str) -> (Option<i32>, String, String) {
    let mut child = Command::new("/proc/self/exe")
        .args([COMMAND.as_ref(), manager.as_ref(), busctl.as_os_str(), "x.scope".as_ref(), program.as_ref()])
        .env("NIXBOX_ROLE", "marked")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"became").ok();
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn a_daemon_starts_where_systemd_refuses_and_its_log_says_why() {
    let (status, stdout, stderr) = launch("system", Path::new("/nowhere/busctl"), "/bin/cat");
    assert_eq!((status, stdout.as_str()), (Some(0), "became"));
    assert!(stderr.contains("cannot start \"/nowhere/busctl\""), "{stderr}");

    let refuses = Busctl::that_does("echo 'Call failed: for\nthe test' >&2; exit 1");
    for (manager, of_manager) in [("system", "--system "), ("7", "--user ")] {
        let (status, stdout, stderr) = launch(manager, &refuses.path(), "/bin/cat");
        assert_eq!((status, stdout.as_str()), (Some(0), "became"));
        assert!(stderr.contains("does not make x.scope: Call failed: for the test"), "{stderr}");
        let call = refuses.calls().pop().unwrap();
        assert!(call.starts_with(of_manager), "{call}");
        assert_eq!(call.contains("XDG_RUNTIME_DIR=/run/user/7"), manager == "7", "{call}");
        assert!(!call.contains("NIXBOX_ROLE"), "busctl must not be taken for a daemon: {call}");
    }
    assert_eq!(refuses.calls().len(), 2, "a refusal is final");
}

#[test]
fn a_rehearsal_fails_with_the_reason_of_systemd() {
    let refuses = Busctl::that_does("echo no >&2; exit 1");
    let (status, _, stderr) = launch("system", &refuses.path(), "");
    assert_eq!(status, Some(FAILED.into()));
    assert!(stderr.contains("does not make x.scope: no"), "{stderr}");
    for manager in ["", "-1", "systemd"] {
        let (status, stdout, stderr) = launch(manager, &refuses.path(), "/bin/cat");
        assert_eq!((status, stdout.as_str()), (Some(FAILED.into()), ""), "{stderr}");
    }
    assert_eq!(refuses.calls().len(), 1);
}

#[test]
fn a_scope_is_asked_for_until_an_earlier_one_is_gone_and_without_what_an_old_systemd_does_not_know() {
    let old = Busctl::that_does(
        "case $calls in
        1) echo 'Cannot set property OOMPolicy, or unknown property.' ;;
        2 | 3) echo 'Unit x.scope was already loaded or has a fragment file.' ;;
        *) echo 'no more' ;;
        esac >&2; exit 1",
    );
    let error = old.enter();
    assert!(matches!(&error, SystemdError::Refused { text, .. } if text == "no more"), "{error:?}");
    let calls = old.calls();
    let properties: Vec<_> = calls
        .iter()
        .map(|call| call.split_once("ssa(sv)a(sa(sv)) ").unwrap().1.split(" PWD=").next().unwrap())
        .map(|call| call.split_once(" 0").map_or(call, |(call, _)| call))
        .collect();
    let pid = std::process::id();
    let with = |count: usize, policy: &str| {
        format!(
            "x.scope fail {count} Description s VM of nixbox PIDs au 1 {pid} CollectMode s inactive-or-failed {policy}\
             Before as 1 a.service"
        )
    };
    let (new, old) = (with(5, "OOMPolicy s continue "), with(4, ""));
    assert_eq!(properties, [&new, &old, &old, &old]);
}

#[test]
fn a_process_that_stays_outside_or_a_systemd_that_is_silent_is_an_error_in_time() {
    let error = Busctl::that_does("exit 0").enter();
    assert!(matches!(&error, SystemdError::Outside { scope, .. } if scope == "x.scope"), "{error:?}");
    let silent = Busctl::that_does("echo $$ > \"$0.pid\"; exec sleep 1000");
    let error = silent.enter();
    assert!(matches!(error, SystemdError::Silent(LIMIT)), "{error:?}");
    let pid = fs::read_to_string(silent.directory.path().join("busctl.pid")).unwrap();
    assert!(!Path::new("/proc").join(pid.trim()).exists(), "busctl is killed");
    let loaded = Busctl::that_does("echo 'was already loaded' >&2; exit 1").enter();
    assert!(matches!(loaded, SystemdError::Refused { .. } | SystemdError::Silent(_)), "{loaded:?}");
}

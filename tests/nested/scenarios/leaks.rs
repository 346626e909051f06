//! A credential that a program of the guest keeps is in no snapshot.

use std::fs;
use std::path::PathBuf;

use crate::workspace::{TOKEN, Workspace};

/// Another credential of the guest, in two parts, so that no command line of a test holds the whole.
const KEPT: [&str; 2] = ["ghp_nested01234567", "89abcdefGHIJ"];

/// The variable of the environment that the process has which `start` started.
fn environment(workspace: &Workspace, variable: &str) -> String {
    workspace
        .guest(&format!("tr '\\0' '\\n' < /proc/$(cat /tmp/keeper)/environ | sed -n 's/^{variable}=//p'"))
}

fn memory_file(workspace: &Workspace, snapshot: &str) -> PathBuf {
    let listed = workspace.ok(&["snapshot", "inspect", snapshot, "--json"]).json();
    workspace.state_directory("snapshots").join(listed["snapshot"]["id"].to_string()).join("memory.img")
}

fn holds(bytes: &[u8], wanted: &[u8]) -> bool {
    let mut starts = (0..bytes.len().saturating_sub(wanted.len())).filter(|at| bytes[*at] == wanted[0]);
    starts.any(|at| bytes[at..].starts_with(wanted))
}

pub(super) fn a_credential_that_a_process_keeps_is_in_no_snapshot() {
    let workspace = Workspace::new("leaks");
    let kept = KEPT.concat();
    let text =
        Workspace::configuration("").replace("[env]", &format!("[env]\n            KEPT = \"{kept}\""));
    workspace.configure(&text.replace("console=ttyS0", "console=ttyS0 init_on_free=1"));
    workspace.ok(&["up"]);
    // The process has the credentials in its environment; a copy in base64 is on a tmpfs.
    workspace.guest(
        "set -a; . ~/.env; set +a; setsid sleep 100000 < /dev/null > /dev/null 2>&1 &
         echo $! > /tmp/keeper; printf 'user:%s' \"$KEPT\" | base64 > /dev/shm/header",
    );
    assert_eq!(environment(&workspace, "KEPT"), format!("{kept}\n"));
    workspace.ok(&["snapshot", "--name", "redacted"]);
    // The guest that runs on has it all.
    workspace.assert_up();
    assert_eq!(environment(&workspace, "KEPT"), format!("{kept}\n"));
    assert_eq!(environment(&workspace, "TOKEN"), format!("{TOKEN}\n"));

    let image = fs::read(memory_file(&workspace, "redacted")).unwrap();
    assert!(!holds(&image, kept.as_bytes()) && !holds(&image, TOKEN.as_bytes()));
    assert!(holds(&image, b"KEPT=****"), "the process is in the snapshot, without its credential");
    let receipt = &workspace.ok(&["snapshot", "inspect", "redacted", "--json"]).json()["receipt"];
    let found = receipt["found"].as_array().unwrap();
    let of = |value: &str, form: &str| {
        found.iter().any(|found| found["value"] == value && found["place"] == "RAM" && found["form"] == form)
    };
    assert!(of("KEPT", "plain bytes") && of("KEPT", "base64") && of("TOKEN", "plain bytes"), "{receipt}");
    assert_eq!(receipt["zeroes_freed_memory"], true, "{receipt}");
    let held = receipt["processes"].as_array().unwrap();
    let keeper = held.iter().find(|process| process["program"] == "sleep");
    assert!(keeper.is_some_and(|process| process["values"].to_string().contains("KEPT")), "{receipt}");
    let told = workspace.ok(&["snapshot", "inspect", "redacted"]).stdout;
    assert!(told.contains("KEPT") && told.contains("overwritten") && !told.contains(&kept), "{told}");
    workspace.ok(&["snapshot", "verify", "redacted", "--deep"]);

    // The restored process goes on without it, and the guest has the credentials of today.
    workspace.ok(&["restore", "redacted", "--replace"]);
    workspace.assert_up();
    assert_eq!(environment(&workspace, "KEPT"), format!("{}\n", "*".repeat(kept.len())));
    assert_eq!(workspace.guest("echo \"$KEPT\""), format!("{kept}\n"));

    // With "fail" there is no snapshot, and the guest runs on with everything.
    workspace.configure(&format!("{text}\n[snapshot]\non-leak = \"fail\"\n"));
    workspace.guest(
        "set -a; . ~/.env; set +a; setsid sleep 100001 < /dev/null > /dev/null 2>&1 & echo $! > /tmp/keeper",
    );
    let before = workspace.ok(&["snapshot", "list", "--json"]).stdout;
    let said = workspace.run(&["snapshot"]);
    said.failed(1, &["KEPT in RAM", "on-leak"]);
    assert!(!said.stderr.contains(&kept));
    assert_eq!(workspace.ok(&["snapshot", "list", "--json"]).stdout, before);
    workspace.assert_up();
    assert_eq!(environment(&workspace, "KEPT"), format!("{kept}\n"));
    workspace.ok(&["down"]);
    workspace.assert_down();
}

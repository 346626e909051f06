//! What goes wrong on an ordinary day: a share daemon that does not start, a guest that never answers, a session on the wrong
//! disk, and a workspace whose directory is gone.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::outside;
use crate::workspace::{Said, WORK, Workspace};

/// A program that stands before virtiofsd: the daemons of the first share end at once until `failures` of one VMM have.
fn failing_daemon(workspace: &Workspace, failures: usize) -> PathBuf {
    let path = workspace.path.join("virtiofsd");
    let starts = workspace.path.join(format!("starts-{failures}"));
    let real = outside::shell("command -v virtiofsd");
    let text = format!(
        "#!/bin/sh\nstarts={}\nself=$NIXBOX_ROLE-$NIXBOX_GENERATION\ntouch $starts\n\
         before=$(grep -c -x -e \"$self\" $starts)\necho \"$self\" >> $starts\n\
         case $self in share-0-*) [ $before -ge {failures} ] || {{ echo 'no daemon today' >&2; exit 1; }} ;; esac\n\
         exec {} \"$@\"\n",
        starts.display(),
        real.trim()
    );
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

pub(super) fn a_roll_over_that_fails_is_tried_again_and_then_without_shares() {
    let workspace = Workspace::new("again");
    workspace.ok(&["up"]);
    let nonce = workspace.guest("od -An -N16 -tx1 /dev/urandom > /tmp/nonce; cat /tmp/nonce");
    for (failures, name) in [(1, "second"), (2, "third")] {
        let daemon = failing_daemon(&workspace, failures);
        let snapshot =
            workspace.nixbox(&["snapshot", "--name", name]).env("NIXBOX_VIRTIOFSD", daemon).output();
        let said = Said::from(snapshot.unwrap());
        println!("the load succeeds at the {name} attempt: {said:#?}");
        assert_eq!(said.code, Some(0), "{said:?}");
        let starts = fs::read_to_string(workspace.path.join(format!("starts-{failures}"))).unwrap();
        let first_share = starts.lines().filter(|line| line.starts_with("share-0-")).count();
        assert_eq!(first_share, failures + 1, "the daemons did not fail: {starts}");
        assert_eq!(said.stderr.contains("they were mounted anew"), name == "third", "{said:?}");
        // The same guest goes on, with its shares.
        workspace.assert_up();
        assert_eq!(workspace.guest("cat /tmp/nonce"), nonce);
        workspace.guest("echo written > ~/share/written");
    }
    workspace.ok(&["restore", "third", "--replace"]);
    workspace.assert_up();
    assert_eq!(workspace.guest("cat /tmp/nonce"), nonce);
    workspace.ok(&["down"]);
    workspace.assert_down();
}

pub(super) fn a_guest_that_never_answers_is_shut_down_or_kept() {
    let workspace = Workspace::new("mute");
    // The guest's first process is a shell at the console, so no SSH server is ever started.
    let mute = Workspace::configuration("")
        .replace("quiet", "rdinit=/bin/sh")
        .replace("[guest]", "[guest]\nready-timeout = \"20s\"");
    workspace.configure(&mute);
    workspace.run(&["up"]).failed(1, &["the guest did not answer, and its VM was shut down", "--keep"]);
    workspace.assert_down();
    workspace.run(&["up", "--keep"]).failed(1, &["its VM was left running for you to look at"]);
    let status = workspace.status();
    assert_eq!((&status["state"], &status["vm"]["left_running"]), (&"running".into(), &true.into()));
    workspace.run(&["snapshot"]).failed(1, &["`nixbox down`"]);
    workspace.ok(&["down"]);
    workspace.assert_down();
    workspace.configure(&Workspace::configuration(""));
    workspace.ok(&["up"]);
    workspace.assert_up();
    workspace.ok(&["down"]);
    workspace.assert_down();
}

pub(super) fn a_former_disk_is_gone_back_to_and_a_workspace_without_a_directory_is_forgotten() {
    let workspace = Workspace::new("former");
    workspace.ok(&["up"]);
    workspace.ok(&["snapshot"]);
    workspace.guest("echo 'a day of work' > ~/work; sync");
    workspace.ok(&["down"]);
    workspace.ok(&["up", "--snapshot"]);
    workspace.guest("[ ! -e ~/work ]");
    let former = workspace.status()["vm"]["former_disk"].to_string();
    workspace.ok(&["down"]);
    workspace.ok(&["up", "--disk", &former]);
    workspace.assert_up();
    assert_eq!(workspace.guest("cat ~/work"), "a day of work\n");

    let (id, state) = (workspace.id(), workspace.state_directory(""));
    let elsewhere = |arguments: &[&str]| {
        let said = Said::from(workspace.nixbox(arguments).current_dir("/").output().unwrap());
        println!("nixbox {arguments:?}: {said:#?}");
        said
    };
    fs::remove_dir_all(&workspace.path).unwrap();
    elsewhere(&["forget", &id]).failed(1, &["VM"]);
    assert_eq!(elsewhere(&["down", "--id", &id]).code, Some(0));
    assert_eq!(outside::of(&id), []);
    assert_eq!(elsewhere(&["forget", &id]).code, Some(0));
    assert!(!state.exists());
    assert!(!Path::new(WORK).join("former").exists());
}

//! A guest loses nothing of its own by a snapshot.

use std::fs;
use std::process::Stdio;

use crate::workspace::{FILE, Workspace};

/// What was typed in the guest, in two parts, so that no command line of a test holds the whole.
const TYPED: [&str; 2] = ["mysql --password=", "of-the-guest-4713"];

/// The guest has all that it had before the snapshots, and what it has written since comes after it.
#[track_caller]
fn assert_kept(workspace: &Workspace, since: &str) {
    let typed = TYPED.concat();
    let told = workspace.guest(
        "cat ~/.bash_history; echo; cat ~/.config/tool/token ~/linked; readlink ~/linked
         stat -c '%a %u' ~/.bash_history ~/.config/tool; ls -A ~ ~/.config | grep -e nixbox-back -e before-snapshot || true",
    );
    assert_eq!(told, format!("{typed}\nls\n{since}\n{typed}\n{typed}\nreal\n640 1000\n750 1000\n"));
}

pub(super) fn a_guest_that_runs_on_has_the_histories_and_files_that_the_wipe_took() {
    let workspace = Workspace::new("given-back");
    let wipe = "wipe = [\"~/.config/tool\", \"~/linked\"]\n            files =";
    let text = Workspace::configuration("").replace("files =", wipe);
    workspace.configure(&text.replace("console=ttyS0", "console=ttyS0 init_on_free=1"));
    workspace.ok(&["up"]);
    let [begin, end] = TYPED;
    workspace.guest(&format!(
        "typed='{begin}'; typed=$typed'{end}'
         printf '%s\\nls\\n' \"$typed\" > ~/.bash_history; chmod 640 ~/.bash_history
         mkdir -p ~/.config/tool; chmod 750 ~/.config/tool
         echo \"$typed\" > ~/.config/tool/token; echo \"$typed\" > ~/real; ln -s real ~/linked"
    ));
    // A command of a person goes on through a snapshot, whether the VM is rolled over or not.
    let beats = "mkfifo ~/stop; echo begun; read -r word < ~/stop; echo $word; exit 7";
    let running = workspace.nixbox(&["run", beats]).stdout(Stdio::piped()).spawn().unwrap();
    workspace.guest("until [ -p ~/stop ]; do sleep 0.1; done");
    workspace.ok(&["snapshot", "--name", "first"]);
    workspace.assert_up();
    workspace.guest("echo goes-on > ~/stop; rm ~/stop");
    let ended = running.wait_with_output().unwrap();
    assert_eq!((ended.status.code(), ended.stdout.as_slice()), (Some(7), &b"begun\ngoes-on\n"[..]));
    assert_kept(&workspace, "");
    workspace.guest("echo make >> ~/.bash_history");
    // With shares this rolls the VM over once more, or detaches them.
    workspace.ok(&["snapshot", "--name", "second"]);
    workspace.assert_up();
    assert_kept(&workspace, "make\n");

    let typed = TYPED.concat();
    for snapshot in fs::read_dir(workspace.state_directory("snapshots")).unwrap() {
        let snapshot = snapshot.unwrap().path();
        for file in fs::read_dir(&snapshot).into_iter().flatten().map(|entry| entry.unwrap().path()) {
            let bytes = fs::read(&file).unwrap();
            let first = typed.as_bytes()[0];
            let mut starts = (0..bytes.len().saturating_sub(typed.len())).filter(|at| bytes[*at] == first);
            let holds = starts.any(|at| bytes[at..].starts_with(typed.as_bytes()));
            // A page that a process of the guest still had in memory is a known limit; a file on a disk is not.
            println!("{}: {holds}", file.display());
            assert!(!holds || file.ends_with("memory.img"), "{} holds what was typed", file.display());
        }
    }
    // A guest that is restored has nothing of it, and the credentials of today.
    workspace.ok(&["restore", "second", "--replace"]);
    workspace.assert_up();
    let told = workspace.guest(
        "cat ~/.aws/credentials; ls -d ~/.bash_history ~/.config/tool ~/linked ~/real 2> /dev/null || true",
    );
    assert_eq!(told, FILE);
    workspace.ok(&["down"]);
    workspace.assert_down();
}

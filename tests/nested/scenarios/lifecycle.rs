//! VMs come up and go down, alone and beside others, and parts of them die.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};

use super::images;
use crate::outside::{self, must, shell};
use crate::workspace::{self, Said, TOKEN, WORK, Workspace};

/// Runs the quick start of the README. Its other section, which installs nixbox, is left out.
pub(super) fn the_commands_of_the_readme_lead_to_a_shell() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    let (_, section) = readme.split_once("\n## Quick start\n").expect("the section of the README");
    let lines = section.lines().skip_while(|line| !line.starts_with("    "));
    let commands: Vec<&str> = lines.map_while(|line| line.strip_prefix("    ")).collect();
    let shell_line = commands.iter().position(|line| *line == "nixbox shell").expect("nixbox shell");
    let place = Path::new(WORK).join("readme");
    let bin = place.join("bin");
    // What a try left that the emulation has ended.
    if place.exists() {
        fs::remove_dir_all(&place).unwrap();
    }
    fs::create_dir_all(&bin).unwrap();
    std::os::unix::fs::symlink(workspace::nixbox(), bin.join("nixbox")).unwrap();
    let head = format!("set -eu; cd {}; PATH={}:$PATH\n", place.display(), bin.display());
    // No registry can be reached from here.
    let before = commands[..shell_line]
        .join("\n")
        .replace("debian:12", images::layout("readme-image").to_str().unwrap());
    let before = format!("{head}{before}\ntouch note\n");
    println!("{}", shell(&before));
    let workspace = shell(&format!("{head}find . -maxdepth 2 -name .nixbox -printf %h"));
    let inside = format!(
        "{head}cd {workspace}; printf '%s\\n' 'ls workspace' pwd exit | script -qec 'nixbox shell' /dev/null"
    );
    let said = shell(&inside);
    assert!(said.contains("note") && said.contains("/home/user"), "{said}");
    println!("{}", shell(&format!("{head}cd {workspace}; {}", commands[shell_line + 1..].join("\n"))));
    println!("{}", shell(&format!("{head}rm {workspace}/.nixbox/config.toml; nixbox image delete layout")));
    assert_eq!(outside::everything(), []);
}

pub(super) fn down_leaves_only_the_disk() {
    let workspace = Workspace::new("disk");
    workspace.configure(&Workspace::configuration(
        "[guest.scripts]\nafter-up = ['echo \"$PWD $TOKEN\" > ~/ran']\n\
         [hooks]\npost-up = ['\"$NIXBOX\" run -- cat ran > ran']\n",
    ));
    assert_eq!(workspace.ok(&["up", "--json"]).json()["result"], "done");
    workspace.assert_up();
    assert_eq!(fs::read_to_string(workspace.path.join("ran")).unwrap(), format!("/home/user {TOKEN}\n"));
    workspace.guest("echo kept > ~/kept");
    let nonce = workspace.guest("cat /run/nonce");
    assert_eq!(workspace.ok(&["down", "--json"]).json()["result"], "done");
    workspace.assert_down();
    assert_eq!(workspace.ok(&["down", "--json"]).json()["result"], "already");
    workspace.ok(&["up"]);
    workspace.assert_up();
    assert_eq!(workspace.guest("cat ~/kept"), "kept\n");
    assert_ne!(workspace.guest("cat /run/nonce"), nonce, "it is not a fresh boot");
    workspace.ok(&["down"]);
    workspace.assert_down();
    interrupted(&workspace);
}

/// Interrupts `up` before its commit point.
fn interrupted(workspace: &Workspace) {
    let mut up = Up::begin(workspace);
    up.until("claim slot");
    must("kill", &["-INT", &up.child.id().to_string()]);
    up.end().failed(130, &["all is as it was before"]);
    workspace.assert_down();
}

/// An `up` that runs.
struct Up {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStderr>>,
    heard: String,
}

impl Up {
    fn begin(workspace: &Workspace) -> Self {
        let mut child =
            workspace.nixbox(&["up"]).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        Self { child, lines, heard: String::new() }
    }

    /// Until a stage with this name has ended.
    fn until(&mut self, stage: &str) {
        let ended = format!("up: {stage} (");
        while !self.heard.contains(&ended) {
            let line = self.lines.next().unwrap_or_else(|| panic!("it ended: {}", self.heard)).unwrap();
            self.heard.push_str(&line);
            self.heard.push('\n');
        }
    }

    fn end(mut self) -> Said {
        for line in self.lines {
            self.heard.push_str(&line.unwrap());
            self.heard.push('\n');
        }
        let status = self.child.wait().unwrap();
        let said = Said { code: status.code(), signal: None, stdout: String::new(), stderr: self.heard };
        println!("{said:#?}");
        said
    }
}

pub(super) fn two_running_vms_are_independent() {
    let workspaces = [Workspace::new("one"), Workspace::new("two")];
    fs::write(workspaces[1].path.join("share/greeting"), "hello\n").unwrap();
    let mut ups: Vec<Child> =
        workspaces.iter().map(|workspace| workspace.nixbox(&["up"]).spawn().unwrap()).collect();
    for up in &mut ups {
        assert!(up.wait().unwrap().success());
    }
    workspaces.iter().for_each(Workspace::assert_up);
    let [one, two] = workspaces;
    assert_ne!(one.guest("cat /run/nonce"), two.guest("cat /run/nonce"));
    assert_eq!(one.status()["vm"]["address"], two.status()["vm"]["address"], "each in a network of its own");
    one.guest("echo one > ~/share/mine");
    assert!(!two.path.join("share/mine").exists());
    one.ok(&["down"]);
    one.assert_down();
    two.assert_up();
    one.ok(&["up"]);
    one.assert_up();
    two.ok(&["down"]);
    two.assert_down();
    one.assert_up();
    one.ok(&["down"]);
    one.assert_down();
}

fn kill(workspace: &Workspace, role: &str) {
    signal(workspace, role, "-KILL");
}

fn signal(workspace: &Workspace, role: &str, signal: &str) {
    let (id, all) = (workspace.id(), outside::processes());
    let victims: Vec<String> = all
        .into_iter()
        .filter(|process| process.workspace == id && process.role == role)
        .map(|process| process.pid.to_string())
        .collect();
    assert!(!victims.is_empty(), "there is no {role}");
    // When the first of them ends, the others may end too.
    std::process::Command::new("kill").arg(signal).args(victims).output().unwrap();
}

pub(super) fn a_vmm_that_does_not_answer_is_ended() {
    let workspace = Workspace::new("silent");
    workspace.ok(&["up"]);
    workspace.guest("echo kept > ~/kept; sync");
    // After a reboot the VMM waits for the share daemons of the boot before, and does not answer for a minute.
    workspace.guest("sudo -n sh -c '(sleep 1; reboot -f) > /dev/null 2>&1 &'");
    while workspace.state() == "running" {}
    assert_eq!(workspace.state(), "silent");
    workspace.ok(&["down"]);
    workspace.assert_down();

    workspace.ok(&["up"]);
    assert_eq!(workspace.guest("cat ~/kept"), "kept\n");
    signal(&workspace, "vmm", "-STOP");
    assert_eq!(workspace.state(), "silent");
    let recovered = workspace.ok(&["recover"]);
    assert!(recovered.stderr.contains("did not answer any more"), "{recovered:?}");
    workspace.assert_down();
    assert_eq!(workspace.ok(&["recover", "--json"]).json()["result"], "nothing");
}

pub(super) fn a_killed_vmm_or_share_daemon_is_cleared_away() {
    let workspace = Workspace::new("killed");
    // While `up` runs.
    let mut up = Up::begin(&workspace);
    up.until("boot");
    kill(&workspace, "vmm");
    up.end().failed(1, &["cleared away"]);
    workspace.assert_down();
    let mut up = Up::begin(&workspace);
    up.until("boot");
    kill(&workspace, "share-0");
    up.end().failed(1, &["mount", "cleared away"]);
    workspace.assert_down();
    // While no command runs.
    workspace.ok(&["up"]);
    workspace.assert_up();
    kill(&workspace, "vmm");
    assert_eq!(workspace.state(), "lost");
    workspace.run(&["run", "--", "true"]).failed(3, &["nixbox up"]);
    assert_eq!(workspace.ok(&["recover", "--json"]).json()["result"], "recovered");
    workspace.assert_down();
    assert_eq!(workspace.ok(&["recover", "--json"]).json()["result"], "nothing");
    workspace.ok(&["up"]);
    kill(&workspace, "vmm");
    workspace.ok(&["up"]);
    workspace.assert_up();
    workspace.ok(&["down"]);
    workspace.assert_down();
}

pub(super) mod a_reboot_of_the_host_is_recovered {
    use super::{Up, Workspace, must};

    pub(in crate::scenarios) fn before() {
        let workspace = Workspace::new("running");
        workspace.ok(&["up"]);
        workspace.guest("echo kept > ~/kept; sync");
        let other = Workspace::new("starting");
        Up::begin(&other).until("boot");
        // What was written so far is on the medium; what nixbox did not sync afterwards is lost.
        must("sync", &[]);
    }

    pub(in crate::scenarios) fn after() {
        let (workspace, other) = (Workspace::existing("running"), Workspace::existing("starting"));
        assert_eq!(workspace.state(), "lost");
        for workspace in [&workspace, &other] {
            assert_eq!(workspace.ok(&["recover", "--json"]).json()["result"], "recovered");
            workspace.assert_down();
            assert_eq!(workspace.ok(&["recover", "--json"]).json()["result"], "nothing");
        }
        workspace.ok(&["up"]);
        workspace.assert_up();
        assert_eq!(workspace.guest("cat ~/kept"), "kept\n");
        workspace.ok(&["down"]);
        workspace.assert_down();
    }
}

//! From nothing to a VM and back, alone and beside others, and what happens when parts of it die.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};

use crate::outside::{self, must, shell};
use crate::room::{self, Room, Said, WORK};

/// The commands of the README, but for the one that installs nixbox.
pub(super) fn the_readme_leads_from_init_to_a_shell() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    let (_, section) =
        readme.split_once("\n## From nothing to a shell\n").expect("the section of the README");
    let lines = section.lines().skip_while(|line| !line.starts_with("    "));
    let commands: Vec<&str> = lines.map_while(|line| line.strip_prefix("    ")).collect();
    let (installs, commands) = commands.split_first().unwrap();
    assert!(installs.contains("cargo install"), "{installs}");
    let shell_line = commands.iter().position(|line| *line == "nixbox shell").expect("nixbox shell");
    let place = Path::new(WORK).join("readme");
    let bin = place.join("bin");
    fs::create_dir_all(&bin).unwrap();
    std::os::unix::fs::symlink(room::nixbox(), bin.join("nixbox")).unwrap();
    let head = format!(
        "set -eu; cd {}; PATH={}:$PATH; NIXBOX_SOURCE={}\n",
        place.display(),
        bin.display(),
        root.display()
    );
    let before = format!("{head}{}\n", commands[..shell_line].join("\n"));
    println!("{}", shell(&before));
    let workspace = shell(&format!("{head}find . -maxdepth 2 -name .nixbox -printf %h"));
    let inside = format!(
        "{head}cd {workspace}; printf '%s\\n' 'ls workspace' pwd exit | script -qec 'nixbox shell' /dev/null"
    );
    let said = shell(&inside);
    assert!(said.contains("image") && said.contains("/home/user"), "{said}");
    println!("{}", shell(&format!("{head}cd {workspace}; {}", commands[shell_line + 1..].join("\n"))));
    assert_eq!(outside::everything(), []);
}

pub(super) fn down_leaves_nothing_and_the_disk_stays() {
    let room = Room::new("disk");
    assert_eq!(room.ok(&["up", "--json"]).json()["result"], "done");
    room.assert_up();
    room.guest("echo kept > ~/kept");
    let nonce = room.guest("cat /run/nonce");
    assert_eq!(room.ok(&["down", "--json"]).json()["result"], "done");
    room.assert_down();
    assert_eq!(room.ok(&["down", "--json"]).json()["result"], "already");
    room.ok(&["up"]);
    room.assert_up();
    assert_eq!(room.guest("cat ~/kept"), "kept\n");
    assert_ne!(room.guest("cat /run/nonce"), nonce, "it is not a fresh boot");
    room.ok(&["down"]);
    room.assert_down();
    interrupted(&room);
}

/// Ctrl-C before the commit point.
fn interrupted(room: &Room) {
    let mut up = Up::begin(room);
    up.until("claim slot");
    must("kill", &["-INT", &up.child.id().to_string()]);
    up.end().failed(130, &["all is as it was before"]);
    room.assert_down();
}

/// An `up` that is under way.
struct Up {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStderr>>,
    heard: String,
}

impl Up {
    fn begin(room: &Room) -> Self {
        let mut child = room.nixbox(&["up"]).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
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

pub(super) fn two_vms_at_once_do_not_touch_each_other() {
    let rooms = [Room::new("one"), Room::new("two")];
    fs::write(rooms[1].path.join("share/greeting"), "hello\n").unwrap();
    let mut ups: Vec<Child> = rooms.iter().map(|room| room.nixbox(&["up"]).spawn().unwrap()).collect();
    for up in &mut ups {
        assert!(up.wait().unwrap().success());
    }
    rooms.iter().for_each(Room::assert_up);
    let [one, two] = rooms;
    assert_ne!(one.guest("cat /run/nonce"), two.guest("cat /run/nonce"));
    assert_ne!(one.status()["vm"]["slot"], two.status()["vm"]["slot"]);
    one.guest("echo one > ~/share/mine");
    assert!(!two.path.join("share/mine").exists());
    one.ok(&["down"]);
    one.assert_down();
    two.assert_up();
    // The free slot is the first's again.
    one.ok(&["up"]);
    one.assert_up();
    two.ok(&["down"]);
    two.assert_down();
    one.assert_up();
    one.ok(&["down"]);
    one.assert_down();
}

fn kill(room: &Room, role: &str) {
    signal(room, role, "-KILL");
}

fn signal(room: &Room, role: &str, signal: &str) {
    let (id, all) = (room.id(), outside::processes());
    let victims: Vec<String> = all
        .into_iter()
        .filter(|process| process.workspace == id && process.role == role)
        .map(|process| process.pid.to_string())
        .collect();
    assert!(!victims.is_empty(), "there is no {role}");
    // With the first of them the others may be gone.
    std::process::Command::new("kill").arg(signal).args(victims).output().unwrap();
}

pub(super) fn a_vmm_that_does_not_answer_is_ended() {
    let room = Room::new("silent");
    room.ok(&["up"]);
    room.guest("echo kept > ~/kept; sync");
    // The VMM waits for the share daemons of the boot before, and for a minute answers nobody.
    room.guest("sudo -n sh -c '(sleep 1; reboot -f) > /dev/null 2>&1 &'");
    while room.state() == "running" {}
    assert_eq!(room.state(), "silent");
    room.ok(&["down"]);
    room.assert_down();

    room.ok(&["up"]);
    assert_eq!(room.guest("cat ~/kept"), "kept\n");
    signal(&room, "vmm", "-STOP");
    assert_eq!(room.state(), "silent");
    let recovered = room.ok(&["recover"]);
    assert!(recovered.stderr.contains("did not answer any more"), "{recovered:?}");
    room.assert_down();
    assert_eq!(room.ok(&["recover", "--json"]).json()["result"], "nothing");
}

pub(super) fn a_killed_vmm_or_share_daemon_is_noticed_and_cleared_away() {
    let room = Room::new("killed");
    // Under the hands of `up`.
    let mut up = Up::begin(&room);
    up.until("boot");
    kill(&room, "vmm");
    up.end().failed(1, &["cleared away"]);
    room.assert_down();
    let mut up = Up::begin(&room);
    up.until("boot");
    kill(&room, "share-0");
    up.end().failed(1, &["mount", "cleared away"]);
    room.assert_down();
    // In peace.
    room.ok(&["up"]);
    room.assert_up();
    kill(&room, "vmm");
    assert_eq!(room.state(), "lost");
    room.run(&["run", "--", "true"]).failed(3, &["nixbox up"]);
    assert_eq!(room.ok(&["recover", "--json"]).json()["result"], "recovered");
    room.assert_down();
    assert_eq!(room.ok(&["recover", "--json"]).json()["result"], "nothing");
    room.ok(&["up"]);
    kill(&room, "vmm");
    room.ok(&["up"]);
    room.assert_up();
    room.ok(&["down"]);
    room.assert_down();
}

pub(super) mod a_reboot_of_the_host_is_recovered {
    use super::{Room, Up, must};

    pub(in crate::scenarios) fn before() {
        let room = Room::new("running");
        room.ok(&["up"]);
        room.guest("echo kept > ~/kept; sync");
        let other = Room::new("starting");
        Up::begin(&other).until("boot");
        // What was written so far is on the medium; what nixbox did not sync afterwards is lost.
        must("sync", &[]);
    }

    pub(in crate::scenarios) fn after() {
        let (room, other) = (Room::existing("running"), Room::existing("starting"));
        assert_eq!(room.state(), "lost");
        for room in [&room, &other] {
            assert_eq!(room.ok(&["recover", "--json"]).json()["result"], "recovered");
            room.assert_down();
            assert_eq!(room.ok(&["recover", "--json"]).json()["result"], "nothing");
        }
        room.ok(&["up"]);
        room.assert_up();
        assert_eq!(room.guest("cat ~/kept"), "kept\n");
        room.ok(&["down"]);
        room.assert_down();
    }
}

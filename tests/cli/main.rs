//! The program itself, from outside: what it prints, what it exits with, and what it leaves untouched. Needs no KVM.

// clippy.toml lets tests unwrap, and does not see that all of this file is one.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod journal;
mod refused;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use nixbox::workspace::Workspace;

/// A directory of a test's own, and nixbox run in it.
struct Room {
    directory: tempfile::TempDir,
}

impl Room {
    /// An empty directory.
    fn empty() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    /// A workspace with a configuration that nothing is wrong with but that its kernel is an empty file.
    fn workspace() -> Self {
        let room = Self::empty();
        room.ok(&["init"]);
        fs::write(room.path().join("vmlinuz"), "").unwrap();
        room.configure(CONFIG);
        room
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn nixbox(&self) -> PathBuf {
        self.path().join(".nixbox")
    }

    fn configure(&self, text: &str) {
        fs::write(self.nixbox().join("config.toml"), text).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nixbox"));
        command.args(arguments).current_dir(self.path()).env_remove("SUDO_UID").stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Said {
        Said::new(self.command(arguments).output().unwrap())
    }

    fn ok(&self, arguments: &[&str]) -> Said {
        let said = self.run(arguments);
        assert_eq!(said.code, Some(0), "{said:?}");
        said
    }

    /// Everything below the directory: names, kinds, modes, owners, sizes, contents.
    fn listing(&self) -> Vec<String> {
        let mut lines = Vec::new();
        list(self.path(), &mut lines);
        lines.sort();
        lines
    }
}

fn list(directory: &Path, lines: &mut Vec<String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let status = path.symlink_metadata().unwrap();
        let content = if status.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
        lines.push(format!(
            "{} {:o} {} {} {content:?}",
            path.display(),
            status.mode(),
            status.uid(),
            status.ino()
        ));
        if status.is_dir() {
            list(&path, lines);
        }
    }
}

const CONFIG: &str = "mounts = []\n[vm]\nvcpus = 1\nmemory = \"64MiB\"\nkernel = \"vmlinuz\"\n";

/// What a run of nixbox came to.
#[derive(Debug)]
struct Said {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Said {
    fn new(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    fn failed(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        for word in words {
            assert!(self.stderr.contains(word), "no {word:?} in {self:?}");
        }
    }
}

#[test]
fn init_makes_a_workspace_and_overwrites_nothing() {
    let room = Room::empty();
    let said = room.ok(&["init"]);
    for name in ["config.toml", ".gitignore", "workspace-id", "ssh/vm_key"] {
        assert!(said.stdout.contains(name), "{said:?}");
        assert!(room.nixbox().join(name).is_file());
    }
    let key = room.nixbox().join("ssh/vm_key");
    let mode = fs::metadata(&key).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(room.nixbox().join("ssh/vm_key.pub").is_file());
    room.configure("# mine\n");
    let before = room.listing();
    let again = room.ok(&["init"]);
    assert!(again.stdout.contains("nothing was changed"), "{again:?}");
    assert_eq!(room.listing(), before);
}

#[test]
fn what_init_wrote_is_a_configuration_that_is_read() {
    let room = Room::empty();
    room.ok(&["init"]);
    let config = room.ok(&["config", "--json"]).json();
    assert_eq!(config["network"]["mode"], "open");
    let below = room.path().join("a/b");
    fs::create_dir_all(&below).unwrap();
    let said = Said::new(room.command(&["status", "--json"]).current_dir(below).output().unwrap());
    assert_eq!(said.json()["state"], "down");
}

#[test]
fn secrets_are_not_shown() {
    let room = Room::workspace();
    room.configure(&format!("{CONFIG}[env]\nA = \"geheim\"\nB = {{ command = [\"pass\", \"geheim\"] }}\n"));
    for arguments in [vec!["config"], vec!["config", "--json"]] {
        let said = room.ok(&arguments);
        assert!(said.stdout.contains("***"), "{said:?}");
        assert!(!said.stdout.contains("geheim"), "{said:?}");
    }
}

#[test]
fn without_a_workspace_nothing_is_found() {
    let room = Room::empty();
    for command in [
        &["up"][..],
        &["down"],
        &["status"],
        &["config"],
        &["journal"],
        &["recover"],
        &["shell"],
        &["run", "true"],
    ] {
        room.run(command).failed(3, &["nixbox init"]);
    }
    assert_eq!(room.listing(), Vec::<String>::new());
}

#[test]
fn without_a_vm_commands_in_it_find_none() {
    let room = Room::workspace();
    let before = room.listing();
    room.run(&["run", "--", "true"]).failed(3, &["no VM is running", "nixbox up"]);
    room.run(&["shell"]).failed(3, &["no VM is running"]);
    assert_eq!(room.listing(), before);
}

#[test]
fn a_wrong_command_line_is_usage() {
    let room = Room::empty();
    room.run(&["up", "--no-such-flag"]).failed(2, &["--no-such-flag"]);
    room.run(&["no-such-command"]).failed(2, &["no-such-command"]);
    room.run(&["run"]).failed(2, &["COMMAND"]);
}

#[test]
fn every_command_has_help_with_an_example() {
    let room = Room::empty();
    for command in
        ["init", "up", "down", "shell", "run", "status", "config", "demo", "doctor", "recover", "journal"]
    {
        let said = room.ok(&[command, "--help"]);
        assert!(said.stdout.contains("Example: "), "{said:?}");
    }
}

#[test]
fn a_locked_workspace_names_its_holder() {
    let room = Room::workspace();
    let workspace = Workspace::find(room.path()).unwrap();
    let lock = workspace.lock("snapshot").unwrap();
    let pid = std::process::id().to_string();
    for command in ["up", "down", "recover"] {
        room.run(&[command]).failed(5, &[&format!("process {pid} runs `snapshot`")]);
    }
    let status = room.ok(&["status", "--json"]).json();
    assert_eq!(status["holder"]["operation"], "snapshot");
    assert_eq!(status["holder"]["pid"].to_string(), pid);
    drop(lock);
    assert_eq!(room.ok(&["status", "--json"]).json()["holder"], serde_json::Value::Null);
    room.ok(&["recover"]);
}

#[test]
fn down_and_recover_with_nothing_to_do_say_so() {
    let room = Room::workspace();
    assert_eq!(room.ok(&["down", "--json"]).json()["result"], "already");
    assert_eq!(room.ok(&["recover", "--json"]).json()["result"], "nothing");
    let quiet = room.ok(&["down", "--quiet"]);
    assert_eq!((quiet.stdout, quiet.stderr), (String::new(), String::new()));
}

#[test]
fn doctor_names_every_need() {
    let room = Room::empty();
    let said = room.run(&["doctor", "--json"]);
    let diagnosis = said.json();
    let missing = |need: &serde_json::Value| need["state"] == "missing";
    let needs = diagnosis["needs"].as_array().unwrap();
    let ready = !needs.iter().any(missing);
    assert_eq!(diagnosis["ready"], ready);
    assert_eq!(said.code, Some(i32::from(!ready)));
    for name in ["kvm", "cloud-hypervisor", "virtiofsd", "nft", "dnsmasq", "tun", "reflink"] {
        assert!(needs.iter().any(|need| need["name"] == name), "no {name} in {said:?}");
    }
    let without =
        room.command(&["doctor", "--json"]).env("NIXBOX_CLOUD_HYPERVISOR", "/nowhere/vmm").output().unwrap();
    let without = Said::new(without);
    assert_eq!(without.code, Some(1));
    let vmm = without.json()["needs"]
        .as_array()
        .unwrap()
        .iter()
        .find(|need| need["name"] == "cloud-hypervisor")
        .unwrap()
        .clone();
    assert!(missing(&vmm));
    assert!(vmm["advice"].as_str().unwrap().contains("v51.0"));
}

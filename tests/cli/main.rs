//! The built program from outside: what it prints, its exit codes, and what it leaves unchanged. The tests need no KVM.

// clippy.toml lets tests unwrap, and does not see that all of this file is one.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod image;
mod images;
mod journal;
mod named;
mod refused;
mod systemd;
mod users;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use nixbox::workspace::Workspace;
use nixbox::workspace::places::StatePlaces;

/// A temporary directory, and nixbox run in it.
struct TestDirectory {
    directory: tempfile::TempDir,
}

impl TestDirectory {
    /// An empty directory.
    fn empty() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    /// A workspace with a valid configuration, the kernel of which is an empty file.
    fn workspace() -> Self {
        let directory = Self::empty();
        directory.ok(&["init"]);
        fs::write(directory.path().join("vmlinuz"), "").unwrap();
        directory.configure(CONFIG);
        directory
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn nixbox(&self) -> PathBuf {
        self.path().join(".nixbox")
    }

    /// The workspace, as nixbox finds it.
    fn found(&self) -> Workspace {
        Workspace::find(self.path(), &StatePlaces::of_this_user().unwrap()).unwrap()
    }

    /// The directory of its state.
    fn state(&self) -> PathBuf {
        self.found().state().path().to_owned()
    }

    fn configure(&self, text: &str) {
        fs::write(self.nixbox().join("config.toml"), text).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        self.command_in(self.path(), arguments)
    }

    fn command_in(&self, directory: impl AsRef<Path>, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nixbox"));
        command
            .args(arguments)
            .current_dir(directory)
            .env_remove("SUDO_UID")
            .env("NIXBOX_SCOPES", "none")
            .stdin(Stdio::null());
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

impl Drop for TestDirectory {
    fn drop(&mut self) {
        // The state of each workspace that was made here is kept elsewhere. A test may have made a workspace unusable.
        let place = self.path().canonicalize();
        if let (Ok(place), Ok(())) = (place, fs::remove_dir_all(self.path())) {
            let listed = Said::new(self.command_in("/", &["list", "--json"]).output().unwrap()).json();
            for one in listed.as_array().unwrap() {
                if one["directory"].as_str().unwrap().starts_with(place.to_str().unwrap()) {
                    self.command_in("/", &["forget", one["id"].as_str().unwrap()]).output().unwrap();
                }
            }
        }
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

/// How a run of nixbox ended, and what it printed.
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

/// A test that cannot run here says so, past the harness; where `NIXBOX_TESTS=all` promises that nothing is missing, it fails.
fn skipped(test: &str, want: &str) {
    let promised = std::env::var("NIXBOX_TESTS").is_ok_and(|text| text == "all");
    assert!(!promised, "{test} needs {want}, and all was promised to be there");
    let line = format!("{test}: skipped, for want of {want}\n");
    std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes()).unwrap();
}

#[test]
fn init_makes_a_workspace_and_overwrites_nothing() {
    let directory = TestDirectory::empty();
    let said = directory.ok(&["init"]);
    let state = directory.state();
    let own = ["config.toml", ".gitignore", "workspace-id"].map(|name| directory.nixbox().join(name));
    for path in own.iter().chain(&[state.join("ssh/vm_key")]) {
        assert!(said.stdout.contains(path.to_str().unwrap()) && path.is_file(), "{path:?}: {said:?}");
    }
    assert_eq!(fs::read_dir(directory.nixbox()).unwrap().count(), 3);
    let key = state.join("ssh/vm_key");
    let mode = fs::metadata(&key).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(state.join("ssh/vm_key.pub").is_file());
    directory.configure("# mine\n");
    let before = directory.listing();
    let again = directory.ok(&["init"]);
    assert!(again.stdout.contains("nothing was changed"), "{again:?}");
    assert_eq!(directory.listing(), before);
}

#[test]
fn the_configuration_that_init_writes_is_valid() {
    let directory = TestDirectory::empty();
    directory.ok(&["init"]);
    let config = directory.ok(&["config", "--json"]).json();
    assert_eq!(config["network"]["mode"], "open");
    let below = directory.path().join("a/b");
    fs::create_dir_all(&below).unwrap();
    let said = Said::new(directory.command(&["status", "--json"]).current_dir(below).output().unwrap());
    assert_eq!(said.json()["state"], "down");
}

#[test]
fn config_does_not_show_secrets() {
    let directory = TestDirectory::workspace();
    directory
        .configure(&format!("{CONFIG}[env]\nA = \"geheim\"\nB = {{ command = [\"pass\", \"geheim\"] }}\n"));
    for arguments in [vec!["config"], vec!["config", "--json"]] {
        let said = directory.ok(&arguments);
        assert!(said.stdout.contains("***"), "{said:?}");
        assert!(!said.stdout.contains("geheim"), "{said:?}");
    }
}

#[test]
fn commands_outside_of_a_workspace_exit_with_3() {
    let directory = TestDirectory::empty();
    for command in [
        &["up"][..],
        &["down"],
        &["status"],
        &["config"],
        &["journal"],
        &["recover"],
        &["shell"],
        &["run", "true"],
        &["cp", "vm:a", "b"],
        &["forward", "8080"],
    ] {
        directory.run(command).failed(3, &["nixbox init"]);
    }
    assert_eq!(directory.listing(), Vec::<String>::new());
}

#[test]
fn nothing_that_is_printed_acts_on_the_terminal() {
    let directory = TestDirectory::empty();
    let name = "red\u{1b}[31m\u{202e}\u{9b}2J";
    fs::create_dir(directory.path().join(name)).unwrap();
    let shown = "red\\x1b[31m\\u{202e}\\u{9b}2J";
    let said = directory.run(&["-C", name, "status"]);
    said.failed(3, &[shown]);
    assert!(!said.stderr.contains(['\u{1b}', '\u{202e}', '\u{9b}']), "{said:?}");
    let said = directory.ok(&["-C", name, "init"]);
    assert!(said.stdout.contains(shown) && !said.stdout.contains('\u{1b}'), "{said:?}");
    fs::write(directory.path().join(name).join(".nixbox/config.toml"), CONFIG).unwrap();
    let said = directory.ok(&["-C", name, "status", "--json"]);
    assert!(!said.stdout.contains(['\u{1b}', '\u{202e}', '\u{9b}']), "{said:?}");
    assert!(said.json()["workspace"].as_str().unwrap().ends_with(name), "{said:?}");
}

#[test]
fn run_and_shell_without_a_vm_exit_with_3() {
    let directory = TestDirectory::workspace();
    let before = directory.listing();
    directory.run(&["run", "--", "true"]).failed(3, &["no VM is running", "nixbox up"]);
    directory.run(&["shell"]).failed(3, &["no VM is running"]);
    directory.run(&["cp", "vm:a", "b"]).failed(3, &["no VM is running"]);
    directory.run(&["forward", "8080"]).failed(3, &["no VM is running"]);
    assert_eq!(directory.listing(), before);
}

#[test]
fn a_wrong_command_line_exits_with_2() {
    let directory = TestDirectory::empty();
    directory.run(&["up", "--no-such-flag"]).failed(2, &["--no-such-flag"]);
    directory.run(&["no-such-command"]).failed(2, &["no-such-command"]);
    directory.run(&["run"]).failed(2, &["COMMAND"]);
    directory.run(&["cp", "vm:a"]).failed(2, &["TARGET"]);
    directory.run(&["cp", "a", "b"]).failed(2, &["vm:PATH"]);
    directory.run(&["forward", "70000"]).failed(2, &["not a port"]);
}

#[test]
fn every_command_has_help_with_an_example() {
    let directory = TestDirectory::empty();
    for command in [
        "init",
        "image",
        "up",
        "down",
        "shell",
        "run",
        "ssh-config",
        "cp",
        "forward",
        "credentials",
        "network",
        "status",
        "logs",
        "list",
        "forget",
        "config",
        "trust",
        "demo",
        "doctor",
        "recover",
        "journal",
        "completions",
        "man",
    ] {
        let said = directory.ok(&[command, "--help"]);
        assert!(said.stdout.contains("Example: "), "{said:?}");
    }
}

#[test]
fn a_locked_workspace_names_its_holder() {
    let directory = TestDirectory::workspace();
    let workspace = directory.found();
    let lock = workspace.lock("snapshot").unwrap();
    let pid = std::process::id().to_string();
    for command in ["up", "down", "recover"] {
        directory.run(&[command]).failed(5, &[&format!("process {pid} runs `snapshot`")]);
    }
    let status = directory.ok(&["status", "--json"]).json();
    assert_eq!(status["holder"]["operation"], "snapshot");
    assert_eq!(status["holder"]["pid"].to_string(), pid);
    drop(lock);
    assert_eq!(directory.ok(&["status", "--json"]).json()["holder"], serde_json::Value::Null);
    directory.ok(&["recover"]);
}

#[test]
fn down_and_recover_with_nothing_to_do_say_so() {
    let directory = TestDirectory::workspace();
    assert_eq!(directory.ok(&["down", "--json"]).json()["result"], "already");
    assert_eq!(directory.ok(&["recover", "--json"]).json()["result"], "nothing");
    let quiet = directory.ok(&["down", "--quiet"]);
    assert_eq!((quiet.stdout, quiet.stderr), (String::new(), String::new()));
}

#[test]
fn doctor_names_every_need() {
    let directory = TestDirectory::empty();
    let said = directory.run(&["doctor", "--json"]);
    let diagnosis = said.json();
    let missing = |need: &serde_json::Value| need["state"] == "missing";
    let needs = diagnosis["needs"].as_array().unwrap();
    let ready = !needs.iter().any(missing);
    assert_eq!(diagnosis["ready"], ready);
    assert_eq!(said.code, Some(i32::from(!ready)));
    for name in ["kvm", "cloud-hypervisor", "virtiofsd", "nft", "dnsmasq", "tun", "reflink"] {
        assert!(needs.iter().any(|need| need["name"] == name), "no {name} in {said:?}");
    }
    let without = directory
        .command(&["doctor", "--json"])
        .env("NIXBOX_CLOUD_HYPERVISOR", "/nowhere/vmm")
        .output()
        .unwrap();
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

#[test]
fn each_shell_has_its_script_and_each_command_its_manual_page() {
    let directory = TestDirectory::empty();
    for (shell, part) in [
        ("bash", "complete -o nospace"),
        ("zsh", "compdef"),
        ("fish", "complete --keep-order"),
        ("nushell", "export extern \"nixbox snapshot rename\""),
    ] {
        let script = directory.ok(&["completions", shell]).stdout;
        assert!(script.contains(part), "{shell}: {script}");
        // The shell itself says whether it is a script, where it is there. nushell and fish read it with other words.
        if let Ok(mut checked) = Command::new(shell).arg("-n").stdin(Stdio::piped()).spawn() {
            std::io::Write::write_all(checked.stdin.as_mut().unwrap(), script.as_bytes()).unwrap();
            drop(checked.stdin.take());
            assert!(checked.wait().unwrap().success(), "{shell}");
        }
    }
    directory.run(&["completions", "cmd.exe"]).failed(2, &["possible values: bash, zsh, fish, nushell"]);
    let pages = directory.path().join("man1");
    let man = ["man", pages.to_str().unwrap()];
    directory.run(&man).failed(1, &[man[1], "No such file or directory"]);
    fs::create_dir(&pages).unwrap();
    directory.ok(&man);
    for page in ["nixbox.1", "nixbox-up.1", "nixbox-snapshot-rename.1", "nixbox-credentials-wipe.1"] {
        let text = fs::read_to_string(pages.join(page)).unwrap();
        assert!(text.contains(".SH SYNOPSIS"), "{page}: {text}");
    }
    // What is hidden from the help has no page.
    assert!(!pages.join("nixbox-ssh-proxy.1").exists());
}

//! The same requests to the simulator and to Cloud Hypervisor, and the same answers: status codes, error chains, states,
//! and what is left in the file system.
//!
//! What v53.0 answers is written down beside this file, so that the simulator is compared with it everywhere. Where a
//! `cloud-hypervisor` is on PATH it is asked again: the part that needs no KVM always, the part that needs a guest where
//! there is one ([`in_nested_host`]).

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use serde_json::{Value, json};

use crate::room::{LIMIT, names, skipped, tell};

/// What a version answers.
struct Written {
    version: &'static str,
    without_kvm: &'static str,
    with_kvm: &'static str,
}

macro_rules! written {
    ($($version:literal),*) => {
        [$(Written {
            version: $version,
            without_kvm: include_str!(concat!("conformance/", $version, ".txt")),
            with_kvm: include_str!(concat!("conformance/", $version, "-kvm.txt")),
        }),*]
    };
}

const WRITTEN: [Written; 3] = written!["v51.2", "v52.0", "v53.0"];

/// Who is asked: the program on PATH, or the simulator as the version of this number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Real,
    Simulator(&'static str),
}

impl Who {
    fn simulator(written: &Written) -> Self {
        Self::Simulator(&written.version[1..3])
    }

    fn command(self) -> Command {
        match self {
            Self::Real => Command::new("cloud-hypervisor"),
            Self::Simulator(version) => nixbox(&["simulator", "vmm", "--as-version", version]),
        }
    }
}

/// A VMM that is asked.
struct Vmm {
    who: Who,
    directory: tempfile::TempDir,
    process: Child,
    /// What was asked and answered, a line each.
    answers: Vec<String>,
    daemons: Vec<Child>,
}

impl Drop for Vmm {
    fn drop(&mut self) {
        for process in std::iter::once(&mut self.process).chain(&mut self.daemons) {
            // It may have ended.
            process.kill().ok();
            process.wait().unwrap();
        }
    }
}

fn nixbox(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nixbox"));
    command.args(words);
    command
}

impl Vmm {
    fn start(who: Who) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut command = who.command();
        let socket = format!("path={}", directory.path().join("api.sock").display());
        let log = fs::File::create(directory.path().join("log")).unwrap();
        let process =
            command.args(["--api-socket", &socket]).stderr(log).stdin(Stdio::null()).spawn().unwrap();
        let vmm = Self { who, directory, process, answers: Vec::new(), daemons: Vec::new() };
        until("it listens", || UnixStream::connect(vmm.at("api.sock")).is_ok());
        vmm
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn send(&self, method: &str, call: &str, body: &str) -> (u16, String) {
        let mut stream = UnixStream::connect(self.at("api.sock")).unwrap();
        stream.set_read_timeout(Some(LIMIT * 2)).unwrap();
        let length = body.len();
        let kind = "Content-Type: application/json";
        write!(stream, "{method} /api/v1/{call} HTTP/1.1\r\nHost: localhost\r\n{kind}\r\nContent-Length: {length}\r\n\r\n{body}")
            .unwrap();
        let mut answer = Vec::new();
        let mut byte = [0];
        while !answer.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).unwrap();
            answer.push(byte[0]);
        }
        let head = String::from_utf8(answer).unwrap();
        let status = head.split_whitespace().nth(1).unwrap().parse().unwrap();
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().unwrap())
        });
        let mut body = vec![0; length.unwrap_or(0)];
        stream.read_exact(&mut body).unwrap();
        (status, String::from_utf8(body).unwrap())
    }

    /// Asks, and writes down what was answered. Of long answers, what nixbox reads.
    fn ask(&mut self, method: &str, call: &str, body: &str) -> u16 {
        let (status, answer) = self.send(method, call, body);
        let text = match serde_json::from_str::<Value>(&answer) {
            Ok(Value::Array(chain)) => {
                chain.iter().map(|word| word.as_str().unwrap()).collect::<Vec<_>>().join(": ")
            }
            Ok(info) if call == "vm.info" => {
                let ids = |value: &Value| match value {
                    Value::Array(list) => {
                        list.iter().map(|fs| fs["id"].as_str().unwrap().to_owned()).collect()
                    }
                    Value::Object(map) => map.keys().filter(|id| id.starts_with("share-")).cloned().collect(),
                    _ => Vec::new(),
                };
                let (config, tree) = (ids(&info["config"]["fs"]), ids(&info["device_tree"]));
                format!("{} {config:?} {tree:?}", info["state"].as_str().unwrap())
            }
            _ => String::new(),
        };
        let directory = self.directory.path().display().to_string();
        let text = text.replace(&directory, "DIRECTORY");
        let body = body.replace(&directory, "DIRECTORY");
        let shown = if body.len() > 120 { "…".to_owned() } else { body };
        self.answers
            .push(format!("{method} {call} {shown} => {status} {text}").replace("  ", " ").trim().to_owned());
        status
    }

    fn get(&mut self, call: &str) -> u16 {
        self.ask("GET", call, "")
    }

    fn put(&mut self, call: &str, body: Value) -> u16 {
        let body = if body == Value::Null { String::new() } else { body.to_string() };
        self.ask("PUT", call, &body)
    }

    fn plain(&mut self, calls: &[&str]) {
        for call in calls {
            self.put(call, Value::Null);
        }
    }

    fn note(&mut self, text: impl Into<String>) {
        self.answers.push(text.into());
    }

    fn url(&self, name: &str) -> String {
        format!("file://{}", self.at(name).display())
    }

    fn machine(&self) -> Value {
        let path = |name: &str| self.at(name).display().to_string();
        let guest = |name: &str| {
            std::env::var("NIXBOX_TEST_GUEST").map_or_else(|_| path(name), |guest| format!("{guest}/{name}"))
        };
        json!({
            "cpus": {"boot_vcpus": 1, "max_vcpus": 1},
            "memory": {"size": 0, "zones": [{"id": "ram", "size": 256 << 20, "file": path("ram"), "shared": true}]},
            "payload": {"kernel": guest("vmlinuz"), "initramfs": guest("initramfs.gz"), "cmdline": "console=ttyS0 panic=-1 quiet"},
            "disks": [{"id": "disk-0", "path": path("disk"), "image_type": "Raw"}],
            "net": [{"id": "net", "tap": "vm0", "mac": "02:00:00:00:00:01"}],
            "fs": [share("a", &path("a.sock"))],
            "rng": {"src": "/dev/urandom"},
            "serial": {"mode": "File", "file": path("serial")},
            "console": {"mode": "Off"},
        })
    }

    /// What a machine is made of.
    fn make_parts(&self) {
        fs::File::create(self.at("ram")).unwrap().set_len(256 << 20).unwrap();
        fs::create_dir(self.at("shared")).unwrap();
        if self.who == Who::Real {
            fs::File::create(self.at("disk")).unwrap().set_len(64 << 20).unwrap();
            let tap = "ip tuntap add dev vm0 mode tap; ip link set vm0 up";
            assert!(Command::new("sh").args(["-ec", tap]).status().unwrap().success());
        } else {
            fs::write(self.at("tap-vm0"), "").unwrap();
            fs::write(self.at("vmlinuz"), "none").unwrap();
            fs::write(self.at("key"), "").unwrap();
            let made =
                nixbox(&["simulator", "disk", "--key"]).arg(self.at("key")).arg(self.at("disk")).status();
            assert!(made.unwrap().success());
        }
    }

    /// A daemon that serves on a socket, one VMM, once.
    fn serve(&mut self, name: &str) {
        let mut command =
            if self.who == Who::Real { Command::new("virtiofsd") } else { nixbox(&["simulator", "share"]) };
        let socket = self.at(name);
        if socket.exists() {
            fs::remove_file(&socket).unwrap();
        }
        command.arg(format!("--socket-path={}", socket.display()));
        command.arg(format!("--shared-dir={}", self.at("shared").display()));
        if self.who == Who::Real {
            command.arg("--sandbox=none");
        }
        self.daemons.push(command.stderr(Stdio::null()).stdin(Stdio::null()).spawn().unwrap());
        let path = nixbox::host::socket::SocketPath::new(socket.clone()).unwrap();
        // The one before may listen still, on a socket that has no name any more.
        until("a share's daemon listens", || {
            socket.exists()
                && nixbox::host::socket::usage(&path).unwrap() == nixbox::host::socket::Use::Listening
        });
    }
}

fn share(tag: &str, socket: &str) -> Value {
    json!({"id": format!("share-{tag}"), "tag": tag, "socket": socket, "num_queues": 1, "queue_size": 1024})
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let since = Instant::now();
    while !holds() {
        assert!(since.elapsed() < LIMIT * 2, "it never came about that {what}");
        // The programs that are waited for have no other way to tell.
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// All that can be asked without a guest.
fn without_kvm(who: Who) -> Vec<String> {
    let mut vmm = Vmm::start(who);
    let all = ["vm.boot", "vm.pause", "vm.resume", "vm.shutdown", "vm.power-button", "vm.delete"];
    vmm.get("vm.info");
    vmm.plain(&all);
    vmm.put("vm.snapshot", json!({"destination_url": "file:///nope"}));
    vmm.put("vm.restore", json!({"source_url": "file:///nope"}));
    vmm.put("vm.restore", json!({"source_url": "nope"}));
    vmm.plain(&["vm.create", "vm.snapshot", "vm.restore", "vm.add-fs", "vm.remove-device", "vmm.ping"]);
    vmm.ask("PUT", "vm.create", "{");
    vmm.ask("GET", "vm.nope", "");
    vmm.ask("GET", "vm.boot", "");
    let fs = share("a", &vmm.at("a.sock").display().to_string());
    vmm.put("vm.add-fs", fs.clone());
    vmm.put("vm.remove-device", json!({"id": "x"}));
    let mut machine = vmm.machine();
    machine["serial"]["file"] = json!("/nope/serial");
    vmm.put("vm.create", machine.clone());
    vmm.get("vm.info");
    machine["serial"]["file"] = json!(vmm.at("serial").display().to_string());
    machine["fs"] = json!([]);
    fs::write(vmm.at("serial"), "old").unwrap();
    vmm.put("vm.create", machine);
    let serial = fs::read_to_string(vmm.at("serial")).unwrap();
    vmm.note(format!("the serial file holds {serial:?}"));
    vmm.put("vm.create", json!({"payload": {"kernel": "/nope"}}));
    vmm.get("vm.info");
    vmm.plain(&all[1..5]);
    vmm.put("vm.snapshot", json!({"destination_url": vmm.url("")}));
    vmm.put("vm.restore", json!({"source_url": "file:///nope"}));
    vmm.put("vm.add-fs", fs.clone());
    vmm.put("vm.add-fs", fs);
    vmm.put("vm.add-fs", json!({"tag": "a"}));
    vmm.get("vm.info");
    vmm.put("vm.remove-device", json!({"id": "share-a"}));
    vmm.put("vm.remove-device", json!({"id": "share-a"}));
    vmm.plain(&["vm.boot"]);
    vmm.get("vm.info");
    vmm.plain(&["vm.delete", "vm.delete"]);
    vmm.get("vm.info");
    restores_of_nothing(&mut vmm);
    second_on_the_socket(&mut vmm);
    vmm.plain(&["vmm.shutdown"]);
    let status = vmm.process.wait().unwrap();
    vmm.note(format!("it ended with {status}"));
    left(&mut vmm);
    std::mem::take(&mut vmm.answers)
}

fn restores_of_nothing(vmm: &mut Vmm) {
    let state = vmm.at("state");
    fs::create_dir(&state).unwrap();
    vmm.put("vm.restore", json!({"source_url": vmm.url("state")}));
    fs::write(state.join("config.json"), "{").unwrap();
    vmm.put("vm.restore", json!({"source_url": vmm.url("state")}));
    let config = include_str!("../../src/vmm/restore/config-v53.0.json");
    fs::write(state.join("config.json"), config).unwrap();
    vmm.put("vm.restore", json!({"source_url": vmm.url("state")}));
    fs::write(state.join("state.json"), "{}").unwrap();
    vmm.put("vm.restore", json!({"source_url": vmm.url("state")}));
    vmm.get("vm.info");
}

/// Another VMM on the same socket is refused. v52 takes the socket's name away with it.
fn second_on_the_socket(vmm: &mut Vmm) {
    let first = Vmm::start(vmm.who);
    let socket = format!("path={}", first.at("api.sock").display());
    let output = vmm.who.command().args(["--api-socket", &socket]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    vmm.note(format!(
        "a second one: {:?}, {}",
        output.status.code(),
        said.contains("is already in use by another running instance")
    ));
    vmm.note(format!("the socket of the first is there: {}", first.at("api.sock").exists()));
}

fn left(vmm: &mut Vmm) {
    let mut left: Vec<String> = names(vmm.directory.path())
        .iter()
        .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("api.sock"))
        .collect();
    left.sort();
    vmm.note(format!("left: {left:?}"));
}

/// What needs a guest that runs.
fn with_kvm(who: Who) -> Vec<String> {
    let mut vmm = Vmm::start(who);
    vmm.make_parts();
    let machine = vmm.machine();
    let booted = |vmm: &mut Vmm, machine: Value| {
        vmm.put("vm.create", machine);
        vmm.plain(&["vm.boot"]);
    };
    for (pointer, path) in [("/memory/zones/0/file", "/nope/ram"), ("/disks/0/path", "/nope/disk")] {
        let mut broken = machine.clone();
        *broken.pointer_mut(pointer).unwrap() = json!(path);
        broken["fs"] = json!([]);
        booted(&mut vmm, broken);
        vmm.plain(&["vm.delete"]);
    }
    vmm.serve("a.sock");
    booted(&mut vmm, machine);
    let serial = vmm.at("serial");
    let word = if who == Who::Real { "GUEST-READY" } else { "simulator" };
    until("the guest is there", || fs::read_to_string(&serial).is_ok_and(|text| text.contains(word)));
    vmm.get("vm.info");
    vmm.plain(&["vm.boot", "vm.resume"]);
    fs::create_dir(vmm.at("state")).unwrap();
    let destination = json!({"destination_url": vmm.url("state")});
    let source = json!({"source_url": vmm.url("state")});
    vmm.put("vm.snapshot", destination.clone());
    vmm.put("vm.create", json!({"payload": {"kernel": "/nope"}}));
    vmm.put("vm.restore", source.clone());
    devices(&mut vmm);
    vmm.plain(&["vm.pause", "vm.resume", "vm.pause", "vm.pause", "vm.boot"]);
    vmm.get("vm.info");
    // Before v53 a VM that is paused is resumed by a boot.
    vmm.plain(&["vm.pause"]);
    vmm.put("vm.snapshot", json!({"destination_url": "file:///nope"}));
    vmm.put("vm.snapshot", json!({"destination_url": "nope"}));
    vmm.put("vm.snapshot", destination.clone());
    let mut files: Vec<_> = names(&vmm.at("state")).iter().map(|path| crate::room::name(path)).collect();
    files.sort();
    vmm.note(format!("{files:?}"));
    // What is there already is in the way.
    vmm.put("vm.snapshot", destination.clone());
    let removed = fs::remove_file(vmm.at("state/config.json")).is_ok();
    vmm.note(format!("config.json was there: {removed}"));
    vmm.put("vm.snapshot", destination);
    let config = vmm.at("state/config.json").exists();
    vmm.note(format!("config.json is there: {config}"));
    fs::remove_dir_all(vmm.at("state")).unwrap();
    fs::create_dir(vmm.at("state")).unwrap();
    vmm.put("vm.snapshot", json!({"destination_url": vmm.url("state")}));
    // Not resumed: its RAM is to be that of the snapshot.
    vmm.plain(&["vm.shutdown"]);
    vmm.get("vm.info");
    vmm.plain(&["vm.shutdown", "vm.delete"]);
    vmm.get("vm.info");
    restored(&mut vmm, &source);
    std::mem::take(&mut vmm.answers)
}

/// Shares come and go.
fn devices(vmm: &mut Vmm) {
    let b = share("b", &vmm.at("b.sock").display().to_string());
    let mut taken = b.clone();
    taken["id"] = json!("share-a");
    vmm.put("vm.add-fs", taken);
    vmm.serve("b.sock");
    vmm.put("vm.add-fs", b);
    vmm.get("vm.info");
    vmm.put("vm.remove-device", json!({"id": "share-b"}));
    vmm.put("vm.remove-device", json!({"id": "share-b"}));
    vmm.put("vm.remove-device", json!({"id": "nope"}));
    until("the guest lets go of the share", || !vmm.send("GET", "vm.info", "").1.contains("share-b"));
    vmm.get("vm.info");
    let mut daemon = vmm.daemons.pop().unwrap();
    until("its daemon ends with it", || daemon.try_wait().unwrap().is_some());
}

fn restored(vmm: &mut Vmm, source: &Value) {
    vmm.serve("a.sock");
    fs::rename(vmm.at("ram"), vmm.at("ram-x")).unwrap();
    vmm.put("vm.restore", source.clone());
    fs::rename(vmm.at("ram-x"), vmm.at("ram")).unwrap();
    vmm.get("vm.info");
    // Nobody came to it, so that it waits still.
    let mut daemon = vmm.daemons.pop().unwrap();
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    vmm.serve("a.sock");
    vmm.put("vm.restore", source.clone());
    vmm.get("vm.info");
    vmm.put("vm.restore", source.clone());
    vmm.plain(&["vm.resume"]);
    vmm.get("vm.info");
    vmm.plain(&["vmm.shutdown"]);
    let process = &mut vmm.process;
    // Its socket is there then, or is not.
    until("the VMM ends", || process.try_wait().unwrap().is_some());
}

/// Compares with what is written down. `NIXBOX_WRITE_DOWN` names a directory to write the answers to.
fn compare(answers: &[String], written: &str, what: &str) {
    let there = answers.join("\n");
    if let Some(directory) = std::env::var_os("NIXBOX_WRITE_DOWN") {
        let lines = answers.len();
        fs::write(Path::new(&directory).join(format!("{what}-{lines}.txt")), format!("{there}\n")).unwrap();
    }
    if there.trim() != written.trim() {
        for (line, (there, wanted)) in there.lines().zip(written.lines()).enumerate() {
            assert_eq!(there, wanted, "{what}, line {}", line + 1);
        }
        panic!(
            "{what}: {} lines where {} are written down:\n{there}",
            answers.len(),
            written.lines().count()
        );
    }
    tell(&format!("{what}: {} answers as written down", answers.len()));
}

#[test]
fn the_simulator_answers_as_each_version() {
    for written in &WRITTEN {
        compare(
            &without_kvm(Who::simulator(written)),
            written.without_kvm,
            &format!("simulator as {}", written.version),
        );
    }
}

#[test]
fn the_simulator_answers_as_each_version_with_a_guest() {
    for written in &WRITTEN {
        compare(
            &with_kvm(Who::simulator(written)),
            written.with_kvm,
            &format!("simulator as {} with a guest", written.version),
        );
    }
}

/// What is written down of the version on PATH.
fn of_the_real_one() -> Option<&'static Written> {
    let output = Command::new("cloud-hypervisor").arg("--version").output().ok()?;
    let said = String::from_utf8(output.stdout).unwrap();
    let version = said.lines().next()?.strip_prefix("cloud-hypervisor ")?.to_owned();
    WRITTEN.iter().find(|written| written.version == version)
}

#[test]
fn the_real_one_answers_as_written_down() {
    match of_the_real_one() {
        Some(written) => compare(&without_kvm(Who::Real), written.without_kvm, "cloud-hypervisor"),
        None => {
            skipped("the_real_one_answers_as_written_down", "cloud-hypervisor v51.2, v52.0 or v53.0 on PATH")
        }
    }
}

/// Needs a KVM that boots guests, root, and in `NIXBOX_TEST_GUEST` a directory with `vmlinuz` and `initramfs.gz`.
#[test]
fn in_nested_host() {
    if std::env::var_os("NESTED_HOST").is_none() || std::env::var_os("NIXBOX_TEST_GUEST").is_none() {
        tell(
            "conformance with a real guest: not here, but in a nested host with NESTED_HOST and NIXBOX_TEST_GUEST",
        );
        return;
    }
    let written = of_the_real_one().expect("a version whose answers are written down");
    compare(&with_kvm(Who::Real), written.with_kvm, "cloud-hypervisor with a guest");
}

/// Versions before v53 refuse a socket that is there, and have one code for all that is missing.
#[test]
fn older_versions_differ_where_they_do() {
    let directory = tempfile::tempdir().unwrap();
    let socket: &Path = &directory.path().join("api.sock");
    drop(std::os::unix::net::UnixListener::bind(socket).unwrap());
    let start = |version: &str| {
        let argument = format!("path={}", socket.display());
        nixbox(&["simulator", "vmm", "--as-version", version, "--api-socket", &argument])
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    for version in ["51", "52"] {
        assert!(!start(version).wait().unwrap().success());
    }
    let mut process = start("53");
    until("v53 takes the socket over", || UnixStream::connect(socket).is_ok());
    process.kill().unwrap();
    process.wait().unwrap();
    fs::remove_file(socket).unwrap();
    let process = start("52");
    until("v52 listens", || UnixStream::connect(socket).is_ok());
    let vmm = Vmm { who: Who::Simulator("52"), directory, process, answers: Vec::new(), daemons: Vec::new() };
    assert_eq!(vmm.send("GET", "vm.info", "").0, 500);
    assert_eq!(vmm.send("PUT", "vm.boot", "").0, 500);
}

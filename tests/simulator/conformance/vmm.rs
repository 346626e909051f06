//! A VMM, real or simulated, that is asked, and what it is made of.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use serde_json::{Value, json};

use super::Written;
use crate::workspace::LIMIT;

/// Who is asked: the program on PATH, or the simulator as the version of this number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    Real,
    Simulator(&'static str),
}

impl Who {
    pub(super) fn simulator(written: &Written) -> Self {
        Self::Simulator(&written.version[1..3])
    }

    pub(super) fn command(self) -> Command {
        match self {
            Self::Real => Command::new("cloud-hypervisor"),
            Self::Simulator(version) => nixbox(&["simulator", "vmm", "--as-version", version]),
        }
    }
}

/// A VMM that is asked.
pub(super) struct Vmm {
    pub(super) who: Who,
    pub(super) directory: tempfile::TempDir,
    pub(super) process: Child,
    /// What was asked and answered, a line each.
    pub(super) answers: Vec<String>,
    pub(super) daemons: Vec<Child>,
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

pub(super) fn nixbox(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nixbox"));
    command.args(words);
    command
}

impl Vmm {
    pub(super) fn start(who: Who) -> Self {
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

    pub(super) fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(super) fn send(&self, method: &str, call: &str, body: &str) -> (u16, String) {
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
    pub(super) fn ask(&mut self, method: &str, call: &str, body: &str) -> u16 {
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

    pub(super) fn get(&mut self, call: &str) -> u16 {
        self.ask("GET", call, "")
    }

    pub(super) fn put(&mut self, call: &str, body: Value) -> u16 {
        let body = if body == Value::Null { String::new() } else { body.to_string() };
        self.ask("PUT", call, &body)
    }

    pub(super) fn plain(&mut self, calls: &[&str]) {
        for call in calls {
            self.put(call, Value::Null);
        }
    }

    pub(super) fn note(&mut self, text: impl Into<String>) {
        self.answers.push(text.into());
    }

    pub(super) fn url(&self, name: &str) -> String {
        format!("file://{}", self.at(name).display())
    }

    pub(super) fn machine(&self) -> Value {
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
    pub(super) fn make_parts(&self) {
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
    pub(super) fn serve(&mut self, name: &str) {
        let mut command =
            if self.who == Who::Real { Command::new("virtiofsd") } else { nixbox(&["simulator", "share"]) };
        let socket = self.at(name);
        if socket.exists() {
            fs::remove_file(&socket).unwrap();
        }
        command.arg(format!("--shared-dir={}", self.at("shared").display())).stdin(Stdio::null());
        if self.who == Who::Real {
            command.arg(format!("--socket-path={}", socket.display())).arg("--sandbox=none");
        } else {
            let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
            command.arg("--fd=0").stdin(std::os::fd::OwnedFd::from(listener));
        }
        self.daemons.push(command.stderr(Stdio::null()).spawn().unwrap());
        let path = nixbox::host::socket::SocketPath::new(socket.clone()).unwrap();
        // The one before may listen still, on a socket that has no name any more.
        until("a share's daemon listens", || {
            socket.exists()
                && nixbox::host::socket::usage(&path).unwrap() == nixbox::host::socket::SocketUse::Listening
        });
    }
}

pub(super) fn share(tag: &str, socket: &str) -> Value {
    json!({"id": format!("share-{tag}"), "tag": tag, "socket": socket, "num_queues": 1, "queue_size": 1024})
}

pub(super) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let since = Instant::now();
    while !holds() {
        assert!(since.elapsed() < LIMIT * 2, "it never came about that {what}");
        // The programs that are waited for have no other way to tell.
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

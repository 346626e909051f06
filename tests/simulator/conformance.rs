//! The same requests to the simulator and to Cloud Hypervisor, and the same answers: status codes, error chains, states,
//! and what is left in the file system.
//!
//! What each version answers is written down in `conformance/`, so that the simulator is compared with it everywhere. Where
//! one of these is on PATH it is asked again: the part that needs no KVM always, the part that needs a guest where there is
//! one ([`the_real_one_answers_as_written_down_with_a_guest`]).

mod vmm;

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use nixbox::world::capability;
use serde_json::{Value, json};

use crate::workspace::{names, skipped, tell};
use vmm::{Vmm, Who, nixbox, share, until};

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
    let mut files: Vec<_> = names(&vmm.at("state")).iter().map(|path| crate::workspace::name(path)).collect();
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
    // A daemon removes its socket when it ends, and would remove that of the next one if it ended later.
    for mut daemon in std::mem::take(&mut vmm.daemons) {
        until("the daemon of the VM before ends", || daemon.try_wait().unwrap().is_some());
    }
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

/// What is written down of the release that this output of `--version` belongs to: nixbox tells releases apart by their major
/// version, and a suffix (`v53.0-dirty`, a distribution's `v53.0-1~deb13u1`) changes nothing.
fn written_of(output: &str) -> Option<&'static Written> {
    let major = |version| capability::version(version).ok().map(|version| version.major);
    let found = major(capability::of_program(output).ok()?)?;
    WRITTEN.iter().find(|written| major(written.version) == Some(found))
}

/// What is written down of the version on PATH.
fn of_the_real_one() -> Option<&'static Written> {
    let output = Command::new("cloud-hypervisor").arg("--version").output().ok()?;
    written_of(&String::from_utf8(output.stdout).unwrap())
}

#[test]
fn a_version_with_a_suffix_is_compared_with_its_release() {
    for (version, release) in [
        ("v53.0", Some("v53.0")),
        ("v53.0-dirty", Some("v53.0")),
        ("v53.0-1~deb13u1", Some("v53.0")),
        ("v53.1", Some("v53.0")),
        ("v53.0-246-gae44c2971-dirty", Some("v53.0")),
        ("v51.2-rc1", Some("v51.2")),
        ("v52.0.0-2", Some("v52.0")),
        ("v54.0", None),
        ("53", None),
    ] {
        let written = written_of(&format!("cloud-hypervisor {version}\nMigration Protocol Versions: 0\n"));
        assert_eq!(written.map(|written| written.version), release, "{version}");
    }
}

#[test]
fn the_real_one_answers_as_written_down() {
    match of_the_real_one() {
        Some(written) => compare(&without_kvm(Who::Real), written.without_kvm, "cloud-hypervisor"),
        None => skipped("the_real_one_answers_as_written_down", "cloud-hypervisor v51, v52 or v53 on PATH"),
    }
}

/// Needs a KVM that boots guests, root, and in `NIXBOX_TEST_GUEST` a directory with `vmlinuz` and `initramfs.gz`.
#[test]
fn the_real_one_answers_as_written_down_with_a_guest() {
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
fn versions_before_v53_refuse_an_existing_socket() {
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

//! The mission: a guest that is frozen, goes on, and comes back, as often as one likes, without a credential in between.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use serde_json::Value;

use crate::outside;
use crate::room::{FILE, PLAIN, Room, Said, TOKEN};

/// What lives in RAM alone, in a process of the guest, and in an open file.
const BUSY: &str = "
    od -An -N16 -tx1 /dev/urandom | tr -d ' \\n' > /tmp/nonce
    (exec 3>> OPEN; i=0; while :; do i=$((i + 1)); echo $i > /tmp/tick; echo $i >&3; sleep 0.2; done) \
        > /dev/null 2>&1 < /dev/null &
    until [ -s /tmp/tick ]; do sleep 0.1; done
    cat /tmp/nonce";

/// The file that is open all the time: on a share, where this version of the VMM can restore that.
fn open_file() -> &'static str {
    if shares_survive() { "~/share/ticks" } else { "/tmp/ticks" }
}

/// v51 has to have its shares detached for a snapshot.
fn shares_survive() -> bool {
    let vmm = std::env::var("NIXBOX_CLOUD_HYPERVISOR").unwrap_or_else(|_| "cloud-hypervisor".to_owned());
    !outside::must(&vmm, &["--version"]).contains(" v51.")
}

/// A guest that has something to lose.
fn busy(name: &str) -> (Room, String) {
    let room = Room::new(name);
    room.ok(&["up"]);
    let nonce = room.guest(&BUSY.replace("OPEN", open_file()));
    assert_eq!(nonce.len(), 32, "{nonce:?}");
    (room, nonce)
}

/// How far the counter is, once it has been seen to go on, in RAM and through the open file.
fn tick(room: &Room) -> u64 {
    let told = room.guest(
        &"a=$(cat /tmp/tick); b=$(tail -n 1 OPEN)
         until [ \"$(cat /tmp/tick)\" -gt \"$a\" ] && [ \"$(tail -n 1 OPEN)\" != \"$b\" ]; do sleep 0.1; done
         echo $a"
            .replace("OPEN", open_file()),
    );
    told.trim().parse().unwrap()
}

/// Where an open file on a share would not be there afterwards, a snapshot is refused before the guest is touched.
fn refuses_while_a_share_is_in_use(room: &Room) {
    let holder = room.guest("sleep 10000 3>> ~/share/held > /dev/null 2>&1 < /dev/null & echo $!");
    room.run(&["snapshot"]).failed(1, &["in use in the guest", &format!("{} (sleep)", holder.trim())]);
    room.assert_up();
    room.guest(&format!("kill {holder}"));
}

fn snapshots(room: &Room) -> Vec<PathBuf> {
    let entries = fs::read_dir(room.path.join(".nixbox/snapshots")).unwrap();
    let mut listed: Vec<PathBuf> =
        entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect();
    listed.sort();
    listed
}

/// By a program that has never heard of nixbox.
fn hashes(snapshot: &Path) -> String {
    outside::shell(&format!("cd {} && sha256sum *", snapshot.display()))
}

/// Each secret that nixbox gave the guest, as somebody would look for it.
fn secrets() -> [(&'static str, &'static [u8]); 4] {
    [
        ("TOKEN", TOKEN.as_bytes()),
        ("PLAIN", PLAIN.as_bytes()),
        ("COMMAND", b"from a command"),
        ("~/.aws/credentials", FILE.as_bytes()),
    ]
}

/// How often each secret is in a file.
fn found(path: &Path) -> BTreeMap<&'static str, usize> {
    let bytes = fs::read(path).unwrap();
    let mut found = BTreeMap::new();
    for (name, secret) in secrets() {
        // The first byte is looked for alone: most of a RAM file is zeros.
        let starts = (0..bytes.len().saturating_sub(secret.len())).filter(|at| bytes[*at] == secret[0]);
        let count = starts.filter(|at| bytes[*at..].starts_with(secret)).count();
        if count > 0 {
            found.insert(name, count);
        }
    }
    found
}

fn ms(said: &Value, what: &str) -> u64 {
    said["times"][what].as_u64().unwrap_or_else(|| panic!("no {what} in {said}"))
}

pub(super) fn the_requests_workflow() {
    let (room, nonce) = busy("workflow");
    if !shares_survive() {
        refuses_while_a_share_is_in_use(&room);
    }
    let said = room.ok(&["snapshot", "--json"]).json();
    println!("paused for {} ms", ms(&said, "paused_ms"));
    // All of it still runs, with what it had.
    assert_eq!(room.guest("cat /tmp/nonce"), nonce);
    let before = tick(&room);
    room.assert_up();
    let [snapshot] = &snapshots(&room)[..] else { panic!("{:?}", snapshots(&room)) };
    let sums = hashes(snapshot);
    for entry in fs::read_dir(snapshot).unwrap() {
        let path = entry.unwrap().path();
        let found = found(&path);
        let in_ram = path.ends_with("memory.img");
        println!("{}: {found:?}", path.display());
        assert!(in_ram || found.is_empty(), "{} holds {found:?}", path.display());
    }
    room.ok(&["down"]);
    room.assert_down();

    let back = room.nixbox(&["up", "--snapshot", "--json"]).env("NESTED_TOKEN", "of today").output().unwrap();
    let back = Said::from(back);
    assert_eq!(back.code, Some(0), "{back:?}");
    assert_eq!(back.json()["result"], "restored", "{back:?}");
    println!("SSH-ready after {} ms", ms(&back.json(), "ready_ms"));
    assert_eq!(room.guest("cat /tmp/nonce"), nonce, "another guest");
    // The counter goes on from where it was frozen, which was before what was seen of it afterwards.
    let again = tick(&room);
    assert!(again > 0, "{before} {again}");
    assert_eq!(room.guest("echo \"$TOKEN\""), "of today\n");
    assert_eq!(room.guest("cat ~/.aws/credentials"), FILE);
    // To within what a round trip in software emulation allows to be seen from here.
    let (early, guest, late) = (unix(), room.guest("date +%s"), unix());
    let guest: u64 = guest.trim().parse().unwrap();
    assert!((early..=late).contains(&guest), "the guest's clock says {guest}, between {early} and {late}");
    assert_eq!(hashes(snapshot), sums, "a restore changed its snapshot");
    room.ok(&["snapshot", "--delete", snapshot.file_name().unwrap().to_str().unwrap()]);
    assert_eq!(snapshots(&room), [] as [PathBuf; 0]);
    room.ok(&["down"]);
    room.assert_down();
}

fn unix() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

pub(super) fn ten_restores_begin_the_same() {
    let (room, nonce) = busy("ten");
    room.guest("echo frozen > /tmp/mark; echo frozen > ~/mark; sync");
    room.ok(&["snapshot", "--name", "warm", "--stop"]);
    room.assert_down();
    let snapshot = snapshots(&room).remove(0);
    let sums = hashes(&snapshot);
    for round in 1..=10 {
        let command: &[&str] =
            if round == 1 { &["restore", "warm"] } else { &["restore", "warm", "--replace"] };
        room.ok(command);
        let told = room.guest(
            "cat /tmp/nonce; cat /tmp/mark ~/mark; echo changed > /tmp/mark; echo changed > ~/mark; sync",
        );
        assert_eq!(told, format!("{nonce}frozen\nfrozen\n"), "restore {round}");
        assert_eq!(hashes(&snapshot), sums, "restore {round} changed the snapshot");
    }
    room.assert_up();
    room.ok(&["snapshot", "verify", "warm"]);
    room.ok(&["down"]);
    room.assert_down();
}

pub(super) fn five_generations_deep() {
    let (room, nonce) = busy("deep");
    let mut last = tick(&room);
    for generation in 1..=5 {
        room.ok(&["snapshot", "--stop", "--name", &format!("deep-{generation}")]);
        room.ok(&["up", "--snapshot"]);
        assert_eq!(room.guest("cat /tmp/nonce"), nonce, "generation {generation}");
        let now = tick(&room);
        assert!(now >= last, "generation {generation} went back from {last} to {now}");
        last = now;
    }
    room.assert_up();
    assert_eq!(snapshots(&room).len(), 5);
    room.ok(&["down"]);
    room.assert_down();
}

pub(super) fn bad_input_changes_nothing() {
    let (room, _) = busy("bad");
    room.run(&["snapshot", "--name", "a/b"]).failed(2, &["cannot name a snapshot"]);
    room.run(&["snapshot", "--name", ".."]).failed(2, &["cannot name a snapshot"]);
    room.run(&["restore", "nothing"]).failed(1, &["the VM is running"]);
    room.ok(&["snapshot", "--name", "warm"]);
    room.run(&["snapshot", "--name", "warm"]).failed(1, &["a snapshot named warm exists"]);
    room.run(&["restore", "warm"]).failed(1, &["the VM is running", "--replace"]);
    room.run(&["restore", "nothing", "--replace"]).failed(3, &["there is no snapshot nothing"]);
    let whole = snapshots(&room).remove(0);
    let number = whole.file_name().unwrap().to_str().unwrap().to_owned();
    let broken = |damage: &str, words: &str| {
        let kept = whole.with_extension("kept");
        outside::must("cp", &["-a", "--reflink=auto", whole.to_str().unwrap(), kept.to_str().unwrap()]);
        outside::shell(&format!("cd {} && {damage}", whole.display()));
        let said = room.run(&["restore", &number, "--replace"]);
        said.failed(1, &[words, "nothing was changed"]);
        outside::shell(&format!("rm -rf {0} && mv {1} {0}", whole.display(), kept.display()));
    };
    broken("sed -i 's/\"slot\": 0/\"slot\": 1/' manifest.json", "it was changed after nixbox wrote it");
    broken("truncate -s -1 memory.img", "bytes, and its manifest says");
    broken("printf x | dd of=disk-0.img bs=1 seek=4096 conv=notrunc status=none", "its BLAKE3 is another");
    broken("cd .. && mv $OLDPWD elsewhere && ln -s elsewhere $OLDPWD", "symbolic link");
    fs::remove_dir_all(whole.with_file_name("elsewhere")).unwrap();
    // The VM was not touched by any of it, and the snapshot is whole again.
    room.assert_up();
    room.ok(&["snapshot", "verify", "warm"]);
    room.configure(&Room::configuration("[snapshot]\nkeep = 1").replace("192MiB", "194MiB"));
    room.run(&["restore", "warm", "--replace"])
        .failed(1, &["vm.memory was \"192MiB\" and is \"194MiB\" now"]);
    room.configure(&Room::configuration(""));
    room.ok(&["down"]);
    room.run(&["snapshot"]).failed(3, &["no VM is running"]);
    room.assert_down();
}

pub(super) fn a_full_disk_ends_a_capture_and_nothing_else() {
    let (room, nonce) = busy("full");
    // The list of snapshots is on a small file system of its own, large enough when it is looked at beforehand.
    let small = room.path.join(".nixbox/snapshots");
    outside::must("mount", &["-t", "tmpfs", "-o", "size=400m,mode=700", "none", small.to_str().unwrap()]);
    let mut child = room.nixbox(&["snapshot"]).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    // The room was looked at before the wipe. Now there is less all at once: less than RAM needs.
    let wiped = lines.by_ref().map(Result::unwrap).any(|line| line.contains("snapshot: wipe"));
    assert!(wiped, "it never wiped");
    outside::must("mount", &["-o", "remount,size=40m", small.to_str().unwrap()]);
    let said: Vec<String> = lines.map(Result::unwrap).collect();
    let status = child.wait().unwrap();
    let said = said.join("\n");
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("no space left for") && said.contains("bytes are missing"), "{said}");
    assert_eq!(fs::read_dir(&small).unwrap().count(), 0, "something of the capture is left");
    assert_eq!(room.guest("cat /tmp/nonce"), nonce);
    tick(&room);
    room.assert_up();
    // Too little from the beginning.
    outside::must("mount", &["-o", "remount,size=8m", small.to_str().unwrap()]);
    room.run(&["snapshot"]).failed(1, &["are missing"]);
    room.assert_up();
    room.ok(&["down"]);
    outside::must("umount", &[small.to_str().unwrap()]);
    room.assert_down();
}

/// Interrupted in its longest copy: it answers at once, and says what it did; the VM runs on with all that it had.
pub(super) fn an_interrupted_snapshot_leaves_the_vm_as_it_was() {
    let (room, nonce) = busy("interrupted");
    let mut child = room.nixbox(&["snapshot"]).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.by_ref().map(Result::unwrap).any(|line| line.contains("snapshot: pause")));
    let since = Instant::now();
    outside::must("kill", &["-INT", &child.id().to_string()]);
    let said: Vec<String> = lines.map(Result::unwrap).collect();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{said:?}");
    println!("rolled back {:?} after the interrupt", since.elapsed());
    let said = said.join("\n");
    assert!(said.contains("interrupted; rolling back") && said.contains("all is as it was before"), "{said}");
    assert_eq!(snapshots(&room), [] as [PathBuf; 0]);
    assert_eq!(room.guest("cat /tmp/nonce"), nonce);
    tick(&room);
    room.assert_up();
    room.ok(&["down"]);
    room.assert_down();
}

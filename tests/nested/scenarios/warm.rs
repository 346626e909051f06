//! The mission: a guest that is frozen, goes on, and comes back, as often as one likes, without a credential in between.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use serde_json::Value;

use crate::outside;
use crate::workspace::{FILE, PLAIN, Said, TOKEN, Workspace};

/// State that is in RAM alone, in a process of the guest, and in an open file.
const BUSY: &str = "
    od -An -N16 -tx1 /dev/urandom | tr -d ' \\n' > /tmp/nonce
    (exec 3>> OPEN; i=0; while :; do i=$((i + 1)); echo $i > /tmp/tick; echo $i >&3; sleep 0.2; done) \
        > /dev/null 2>&1 < /dev/null &
    until [ -s /tmp/tick ]; do sleep 0.1; done
    cat /tmp/nonce";

/// The file that is open all the time. It is on a share where this version of the VMM can restore an open file of a share.
fn open_file() -> &'static str {
    if shares_survive() { "~/share/ticks" } else { "/tmp/ticks" }
}

/// Whether shares survive a snapshot. With v51 they have to be detached for it.
fn shares_survive() -> bool {
    let vmm = std::env::var("NIXBOX_CLOUD_HYPERVISOR").unwrap_or_else(|_| "cloud-hypervisor".to_owned());
    !outside::must(&vmm, &["--version"]).contains(" v51.")
}

/// A guest with state in RAM, and the nonce that tells it from others.
fn busy(name: &str) -> (Workspace, String) {
    let workspace = Workspace::new(name);
    let nonce = make_busy(&workspace);
    (workspace, nonce)
}

/// Brings the VM up, and gives its guest that state.
fn make_busy(workspace: &Workspace) -> String {
    workspace.ok(&["up"]);
    let nonce = workspace.guest(&BUSY.replace("OPEN", open_file()));
    assert_eq!(nonce.len(), 32, "{nonce:?}");
    nonce
}

/// The value of the counter, after it was seen to go on in RAM and through the open file.
fn tick(workspace: &Workspace) -> u64 {
    let told = workspace.guest(
        &"a=$(cat /tmp/tick); b=$(tail -n 1 OPEN)
         until [ \"$(cat /tmp/tick)\" -gt \"$a\" ] && [ \"$(tail -n 1 OPEN)\" != \"$b\" ]; do sleep 0.1; done
         echo $a"
            .replace("OPEN", open_file()),
    );
    told.trim().parse().unwrap()
}

/// A snapshot that would lose an open file on a share is refused before the guest is touched.
fn refuses_while_a_share_is_in_use(workspace: &Workspace) {
    let holder = workspace.guest("sleep 10000 3>> ~/share/held > /dev/null 2>&1 < /dev/null & echo $!");
    workspace.run(&["snapshot"]).failed(1, &["in use in the guest", &format!("{} (sleep)", holder.trim())]);
    workspace.assert_up();
    workspace.guest(&format!("kill {holder}"));
}

fn snapshots(workspace: &Workspace) -> Vec<PathBuf> {
    let entries = fs::read_dir(workspace.state_directory("snapshots")).unwrap();
    let mut listed: Vec<PathBuf> =
        entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect();
    listed.sort();
    listed
}

/// The hashes of the files, by a program that knows nothing of nixbox.
fn hashes(snapshot: &Path) -> String {
    outside::shell(&format!("cd {} && sha256sum *", snapshot.display()))
}

/// Each secret that nixbox gave the guest, in the form in which it would be found.
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
        // Only where the first byte is found are the others compared: most of a RAM file is zeros.
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

pub(super) fn a_snapshot_without_credentials_brings_back_the_same_guest() {
    let (workspace, nonce) = busy("workflow");
    if !shares_survive() {
        refuses_while_a_share_is_in_use(&workspace);
    }
    let said = workspace.ok(&["snapshot", "--json"]).json();
    println!("paused for {} ms", ms(&said, "paused_ms"));
    // The guest runs on, with everything that it had.
    assert_eq!(workspace.guest("cat /tmp/nonce"), nonce);
    let before = tick(&workspace);
    workspace.assert_up();
    let [snapshot] = &snapshots(&workspace)[..] else { panic!("{:?}", snapshots(&workspace)) };
    let sums = hashes(snapshot);
    for entry in fs::read_dir(snapshot).unwrap() {
        let path = entry.unwrap().path();
        let found = found(&path);
        let in_ram = path.ends_with("memory.img");
        println!("{}: {found:?}", path.display());
        assert!(in_ram || found.is_empty(), "{} holds {found:?}", path.display());
    }
    workspace.ok(&["down"]);
    workspace.assert_down();

    let back =
        workspace.nixbox(&["up", "--snapshot", "--json"]).env("NESTED_TOKEN", "of today").output().unwrap();
    let back = Said::from(back);
    assert_eq!(back.code, Some(0), "{back:?}");
    assert_eq!(back.json()["result"], "restored", "{back:?}");
    println!("SSH-ready after {} ms", ms(&back.json(), "ready_ms"));
    assert_eq!(workspace.guest("cat /tmp/nonce"), nonce, "another guest");
    // The counter goes on from where it was frozen, which may be less than what was seen of it later.
    let again = tick(&workspace);
    assert!(again > 0, "{before} {again}");
    assert_eq!(workspace.guest("echo \"$TOKEN\""), "of today\n");
    assert_eq!(workspace.guest("cat ~/.aws/credentials"), FILE);
    // As exactly as a round trip in software emulation can show.
    let (early, guest, late) = (unix(), workspace.guest("date +%s"), unix());
    let guest: u64 = guest.trim().parse().unwrap();
    assert!((early..=late).contains(&guest), "the guest's clock says {guest}, between {early} and {late}");
    assert_eq!(hashes(snapshot), sums, "a restore changed its snapshot");
    workspace.ok(&["snapshot", "--delete", snapshot.file_name().unwrap().to_str().unwrap()]);
    assert_eq!(snapshots(&workspace), [] as [PathBuf; 0]);
    workspace.ok(&["down"]);
    workspace.assert_down();
}

fn unix() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

pub(super) fn ten_restores_of_a_snapshot_begin_the_same() {
    let (workspace, nonce) = busy("ten");
    workspace.guest("echo frozen > /tmp/mark; echo frozen > ~/mark; sync");
    workspace.ok(&["snapshot", "--name", "warm", "--stop"]);
    workspace.assert_down();
    let snapshot = snapshots(&workspace).remove(0);
    let sums = hashes(&snapshot);
    for round in 1..=10 {
        let command: &[&str] =
            if round == 1 { &["restore", "warm"] } else { &["restore", "warm", "--replace"] };
        workspace.ok(command);
        let told = workspace.guest(
            "cat /tmp/nonce; cat /tmp/mark ~/mark; echo changed > /tmp/mark; echo changed > ~/mark; sync",
        );
        assert_eq!(told, format!("{nonce}frozen\nfrozen\n"), "restore {round}");
        assert_eq!(hashes(&snapshot), sums, "restore {round} changed the snapshot");
    }
    workspace.assert_up();
    workspace.ok(&["snapshot", "verify", "warm"]);
    workspace.ok(&["down"]);
    workspace.assert_down();
}

pub(super) fn snapshots_of_restored_vms_work_five_generations_deep() {
    let (workspace, nonce) = busy("deep");
    let mut last = tick(&workspace);
    for generation in 1..=5 {
        workspace.ok(&["snapshot", "--stop", "--name", &format!("deep-{generation}")]);
        workspace.ok(&["up", "--snapshot"]);
        assert_eq!(workspace.guest("cat /tmp/nonce"), nonce, "generation {generation}");
        let now = tick(&workspace);
        assert!(now >= last, "generation {generation} went back from {last} to {now}");
        last = now;
    }
    workspace.assert_up();
    assert_eq!(snapshots(&workspace).len(), 5);
    workspace.ok(&["down"]);
    workspace.assert_down();
}

pub(super) fn refused_snapshots_and_restores_change_nothing() {
    let (workspace, _) = busy("bad");
    workspace.run(&["snapshot", "--name", "a/b"]).failed(2, &["cannot name a snapshot"]);
    workspace.run(&["snapshot", "--name", ".."]).failed(2, &["cannot name a snapshot"]);
    workspace.run(&["restore", "nothing"]).failed(1, &["the VM is running"]);
    workspace.ok(&["snapshot", "--name", "warm"]);
    workspace.run(&["snapshot", "--name", "warm"]).failed(1, &["a snapshot named warm exists"]);
    workspace.run(&["restore", "warm"]).failed(1, &["the VM is running", "--replace"]);
    workspace.run(&["restore", "nothing", "--replace"]).failed(3, &["there is no snapshot nothing"]);
    let whole = snapshots(&workspace).remove(0);
    let number = whole.file_name().unwrap().to_str().unwrap().to_owned();
    let broken = |damage: &str, words: &str| {
        let kept = whole.with_extension("kept");
        outside::must("cp", &["-a", "--reflink=auto", whole.to_str().unwrap(), kept.to_str().unwrap()]);
        outside::shell(&format!("cd {} && {damage}", whole.display()));
        let said = workspace.run(&["restore", &number, "--replace"]);
        said.failed(1, &[words, "nothing was changed"]);
        outside::shell(&format!("rm -rf {0} && mv {1} {0}", whole.display(), kept.display()));
    };
    broken("sed -i 's/\"slot\": 64/\"slot\": 63/' manifest.json", "it was changed after nixbox wrote it");
    broken("truncate -s -1 memory.img", "bytes, and its manifest says");
    broken("printf x | dd of=disk-0.img bs=1 seek=4096 conv=notrunc status=none", "its BLAKE3 is another");
    broken("cd .. && mv $OLDPWD elsewhere && ln -s elsewhere $OLDPWD", "symbolic link");
    fs::remove_dir_all(whole.with_file_name("elsewhere")).unwrap();
    // Nothing of that touched the VM, and the snapshot is whole again.
    workspace.assert_up();
    workspace.ok(&["snapshot", "verify", "warm"]);
    workspace.configure(&Workspace::configuration("[snapshot]\nkeep = 1").replace("192MiB", "194MiB"));
    workspace
        .run(&["restore", "warm", "--replace"])
        .failed(1, &["vm.memory was \"192MiB\" and is \"194MiB\" now"]);
    workspace.configure(&Workspace::configuration(""));
    workspace.ok(&["down"]);
    workspace.run(&["snapshot"]).failed(3, &["no VM is running"]);
    workspace.assert_down();
}

pub(super) fn a_full_disk_fails_the_snapshot_and_keeps_the_vm() {
    let workspace = Workspace::new("full");
    // The snapshots are on a small file system of their own, which has enough space when it is checked beforehand. It is mounted
    // before the VMM is started, because the VMM is confined to the directories that are there then.
    let small = workspace.state_directory("snapshots");
    outside::must("mount", &["-t", "tmpfs", "-o", "size=400m,mode=700", "none", small.to_str().unwrap()]);
    let nonce = make_busy(&workspace);
    let mut child = workspace.nixbox(&["snapshot"]).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    // The free space was checked before the wipe. Now there is suddenly less than RAM needs.
    let wiped = lines.by_ref().map(Result::unwrap).any(|line| line.contains("snapshot: wipe"));
    assert!(wiped, "it never wiped");
    outside::must("mount", &["-o", "remount,size=40m", small.to_str().unwrap()]);
    let said: Vec<String> = lines.map(Result::unwrap).collect();
    let status = child.wait().unwrap();
    let said = said.join("\n");
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("no space left for") && said.contains("bytes are missing"), "{said}");
    assert_eq!(fs::read_dir(&small).unwrap().count(), 0, "something of the capture is left");
    assert_eq!(workspace.guest("cat /tmp/nonce"), nonce);
    tick(&workspace);
    workspace.assert_up();
    // With too little space from the beginning, the snapshot is refused.
    outside::must("mount", &["-o", "remount,size=8m", small.to_str().unwrap()]);
    workspace.run(&["snapshot"]).failed(1, &["are missing"]);
    workspace.assert_up();
    workspace.ok(&["down"]);
    outside::must("umount", &[small.to_str().unwrap()]);
    workspace.assert_down();
}

/// A snapshot that is interrupted in its longest copy ends at once and says what it did. The VM runs on with all that it had.
pub(super) fn an_interrupted_snapshot_leaves_the_vm_as_it_was() {
    let (workspace, nonce) = busy("interrupted");
    let mut child = workspace.nixbox(&["snapshot"]).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.by_ref().map(Result::unwrap).any(|line| line.contains("snapshot: pause")));
    let since = Instant::now();
    outside::must("kill", &["-INT", &child.id().to_string()]);
    let said: Vec<String> = lines.map(Result::unwrap).collect();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{said:?}");
    println!("rolled back {:?} after the interrupt", since.elapsed());
    let said = said.join("\n");
    assert!(said.contains("interrupted; rolling back") && said.contains("all is as it was before"), "{said}");
    assert_eq!(snapshots(&workspace), [] as [PathBuf; 0]);
    assert_eq!(workspace.guest("cat /tmp/nonce"), nonce);
    tick(&workspace);
    workspace.assert_up();
    workspace.ok(&["down"]);
    workspace.assert_down();
}

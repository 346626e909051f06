//! The seams of VMM, shares and network in one sequence: boot, pause, save, stop, load, resume, with a share in use.

use std::fs;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nixbox::host::confinement::FileAccess;
use nixbox::host::network::{HostNetwork, NetworkPlace, NetworkSettings};
use nixbox::host::shares::{Share, ShareSettings, Virtiofs};
use nixbox::host::spawn::Invoker;
use nixbox::vmm::cloud_hypervisor::{CloudHypervisor, Find, VmmSettings};
use nixbox::world::{
    Failure, Generation, Machine, Network, NetworkMode, Presence, Shares, Slot, SnapshotId, UserIds, Vmm,
    VmmState, WorkspaceId,
};

use crate::crashed::KEPT_LOGS;
use crate::outside::must;
use crate::workspace::{GUEST, USER, WORK};

/// A limit that no guest reaches, in software emulation either.
const LIMIT: Duration = Duration::from_secs(120);
const MEMORY: u64 = 256 << 20;

struct House {
    path: PathBuf,
    vmm: CloudHypervisor,
    shares: Virtiofs,
    network: HostNetwork,
}

/// Says where below a directory the parts of a VM are.
fn parts<Key: 'static, Found: 'static>(
    path: &Path,
    find: impl Fn(&Path, Key) -> Found + Send + Sync + 'static,
) -> Find<Key, Found> {
    let path = path.to_owned();
    Arc::new(move |key| Ok(find(&path, key)))
}

fn house(path: &Path, invoker: Invoker, memory_file: bool) -> House {
    let guest = Path::new(GUEST);
    let source = path.join("shared");
    fs::create_dir_all(&source).unwrap();
    for directory in [path, &source] {
        std::os::unix::fs::chown(directory, Some(invoker.uid()), Some(invoker.gid())).unwrap();
    }
    let workspace = WorkspaceId([u8::from(memory_file); 16]);
    let share = Share { tag: "work".parse().unwrap(), source, readonly: false, protect: Vec::new() };
    let shares = Virtiofs::new(ShareSettings {
        runtime: path.into(),
        workspace,
        root: path.join("elsewhere"),
        invoker: invoker.clone(),
        guest: UserIds { uid: 1000, gid: 1000 },
        shares: vec![share],
    });
    let vmm = CloudHypervisor::new(VmmSettings {
        runtime: path.into(),
        workspace,
        invoker: invoker.clone(),
        vcpus: NonZeroU32::new(1).unwrap(),
        memory: MEMORY,
        kernel: guest.join("vmlinuz"),
        initramfs: Some(guest.join("initramfs.gz")),
        cmdline: "console=ttyS0 panic=-1 quiet".into(),
        place: NetworkPlace::Host,
        network: true,
        shares: vec!["work".parse().unwrap()],
        disks: parts(path, |path, generation| vec![path.join(format!("root-{generation}.img"))]),
        memory_file: parts(path, move |path, generation| {
            memory_file.then(|| path.join(format!("ram-{generation}")))
        }),
        memory_reserved: Arc::new(|_| Ok(false)),
        snapshot: parts(path, |path, snapshot| path.join(format!("state-{snapshot}"))),
        places: Some({
            let path = path.to_owned();
            Arc::new(move |confinement| confinement.may(FileAccess::Make, &path))
        }),
    });
    let network = path.join("network");
    fs::create_dir(&network).unwrap();
    let network = HostNetwork::new(NetworkSettings {
        workspace,
        owner: invoker.uid(),
        runtime: network,
        policy: NetworkMode::Off.into(),
        resolv_conf: "/etc/resolv.conf".into(),
        place: NetworkPlace::Host,
    });
    House { path: path.into(), vmm, shares, network }
}

impl Drop for House {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        fs::create_dir_all(KEPT_LOGS).unwrap();
        for entry in fs::read_dir(&self.path).unwrap().map(Result::unwrap) {
            if entry.path().extension().is_some_and(|extension| extension == "log") {
                let _bytes = fs::copy(entry.path(), Path::new(KEPT_LOGS).join(entry.file_name())).unwrap();
            }
        }
    }
}

impl House {
    fn file(&self, name: &str, size: u64, invoker: &Invoker) {
        let path = self.path.join(name);
        fs::File::create(&path).unwrap().set_len(size).unwrap();
        std::os::unix::fs::chown(path, Some(invoker.uid()), Some(invoker.gid())).unwrap();
    }

    async fn until_printed(&self, generation: Generation, wanted: &str) {
        let log = self.vmm.serial_log(generation);
        let printed = async {
            while !fs::read_to_string(&log).is_ok_and(|text| text.contains(wanted)) {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(LIMIT, printed)
            .await
            .unwrap_or_else(|_| panic!("{:?}", fs::read_to_string(&log)));
    }

    /// Runs a command in the guest, over SSH with the system's own client.
    async fn guest(&self, command: &str) -> String {
        let key = self.path.join("key");
        if !key.exists() {
            fs::copy(Path::new(GUEST).join("key"), &key).unwrap();
            must("chmod", &["600", key.to_str().unwrap()]);
        }
        let options = [
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
            "ConnectTimeout=30",
            // The guest says that it is ready a little before its SSH server listens.
            "ConnectionAttempts=30",
        ];
        let mut ssh = tokio::process::Command::new("ssh");
        ssh.arg("-i").arg(&key).args(options.iter().flat_map(|option| ["-o", option]));
        let output = ssh.arg("root@172.16.0.2").arg(command).kill_on_drop(true).output();
        let output = tokio::time::timeout(LIMIT, output).await.unwrap().unwrap();
        assert!(output.status.success(), "{command}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}

fn machine(generation: u64, memory: u64) -> Machine {
    Machine {
        vmm: Generation(generation),
        disk: Generation(1),
        memory: Generation(memory),
        slot: Slot::try_from(0).unwrap(),
        shares: true,
    }
}

/// The whole sequence, as root or as a user who has only /dev/kvm and a TAP.
async fn round(invoker: Invoker, memory_file: bool) {
    let directory = tempfile::tempdir_in(WORK).unwrap();
    let house = house(directory.path(), invoker.clone(), memory_file);
    let House { vmm, shares, network, .. } = &house;
    println!("{:?}", vmm.ability(None).await.unwrap());
    let slot = Slot::try_from(0).unwrap();
    network.build(slot, Generation(1)).await.unwrap();
    house.file("root-1.img", 64 << 20, &invoker);
    house.file("ram-1", MEMORY, &invoker);

    let first = machine(1, 1);
    assert_eq!(vmm.find(first.vmm).await.unwrap(), VmmState::Never);
    assert!(matches!(vmm.pause(first.vmm).await, Err(Failure::Lost)));
    shares.start(first.vmm).await.unwrap();
    vmm.start(first.vmm).await.unwrap();
    vmm.start(first.vmm).await.unwrap();
    assert_eq!(vmm.find(first.vmm).await.unwrap(), VmmState::Empty);
    vmm.boot(&first).await.unwrap();
    vmm.boot(&first).await.unwrap();
    assert_eq!(vmm.find(first.vmm).await.unwrap(), VmmState::Running);
    assert_eq!(vmm.shares_attached(first.vmm).await.unwrap(), Presence::Whole);
    house.until_printed(first.vmm, "GUEST-READY").await;
    house.guest("mkdir -p /mnt/w && mount -t virtiofs work /mnt/w && echo old > /mnt/w/file").await;
    // Every user of the guest writes as the invoking user here, and the file belongs to the guest's user there.
    let owner = fs::metadata(house.path.join("shared/file")).unwrap();
    use std::os::unix::fs::MetadataExt;
    assert_eq!((owner.uid(), owner.gid()), (invoker.uid(), invoker.gid()));
    assert_eq!(house.guest("stat -c %u:%g /mnt/w/file").await, "1000:1000");
    house.guest("echo gone > /mnt/w/gone; (sleep 1000 < /mnt/w/gone & sleep 1000 < /mnt/w/file &) >/dev/null 2>&1").await;
    let nonce = house.guest("cat /run/nonce").await;

    vmm.pause(first.vmm).await.unwrap();
    vmm.pause(first.vmm).await.unwrap();
    let snapshot = SnapshotId(Generation(2));
    vmm.save(first.vmm, snapshot).await.unwrap();
    // Over what an earlier attempt left.
    vmm.save(first.vmm, snapshot).await.unwrap();
    assert_eq!(house.path.join("state-2/memory-ranges").exists(), !memory_file);
    vmm.stop(first.vmm).await.unwrap();
    shares.stop(first.vmm).await.unwrap();
    assert_eq!(vmm.find(first.vmm).await.unwrap(), VmmState::Never);
    network.remove(slot).await.unwrap();
    let original = fs::read(house.path.join("state-2/config.json")).unwrap();

    // The same guest under another generation, on another TAP of that name, other sockets and another RAM file; and a
    // file that the guest had open is not there any more.
    fs::remove_file(house.path.join("shared/gone")).unwrap();
    network.build(slot, Generation(3)).await.unwrap();
    if memory_file {
        fs::rename(house.path.join("ram-1"), house.path.join("ram-3")).unwrap();
    }
    let second = machine(3, 3);
    shares.start(second.vmm).await.unwrap();
    vmm.start(second.vmm).await.unwrap();
    vmm.load(&second, snapshot).await.unwrap();
    vmm.load(&second, snapshot).await.unwrap();
    assert_eq!(vmm.find(second.vmm).await.unwrap(), VmmState::Paused);
    vmm.resume(second.vmm).await.unwrap();
    vmm.resume(second.vmm).await.unwrap();
    assert_eq!(house.guest("cat /run/nonce").await, nonce);
    assert_eq!(house.guest("cat /mnt/w/file").await, "old");
    assert_eq!(fs::read(house.path.join("state-2/config.json")).unwrap(), original);
    assert!(fs::read_to_string(vmm.serial_log(first.vmm)).unwrap().contains("GUEST-READY"));

    house
        .guest("killall sleep; for i in $(seq 100); do umount /mnt/w && exit 0; sleep 0.1; done; exit 1")
        .await;
    vmm.detach_shares(second.vmm).await.unwrap();
    vmm.detach_shares(second.vmm).await.unwrap();
    assert_eq!(vmm.shares_attached(second.vmm).await.unwrap(), Presence::Absent);
    // The daemon ended with its device.
    shares.start(second.vmm).await.unwrap();
    vmm.attach_shares(second.vmm).await.unwrap();
    vmm.attach_shares(second.vmm).await.unwrap();
    assert_eq!(vmm.shares_attached(second.vmm).await.unwrap(), Presence::Whole);
    house.guest("mount -t virtiofs work /mnt/w && cat /mnt/w/file").await;

    let pid = fs::read_to_string(house.path.join("vmm-3.pid")).unwrap();
    println!("{pid}");
    vmm.stop(second.vmm).await.unwrap();
    shares.stop(second.vmm).await.unwrap();
    network.remove(slot).await.unwrap();
    let mut left: Vec<String> = fs::read_dir(&house.path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.retain(|name| !name.ends_with(".log") && !name.starts_with("ram-") && !name.starts_with("root-"));
    left.sort();
    assert_eq!(left, ["key", "network", "shared", "state-2"]);
}

fn wait(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future);
}

pub(super) fn a_guest_is_saved_and_loaded_as_root_with_a_memory_file() {
    wait(round(Invoker::user(0, 0).unwrap(), true));
}

pub(super) fn a_guest_is_saved_and_loaded_as_a_user_with_memory_of_the_vmm() {
    // A user whom this host does not know: with /dev/kvm and a TAP, and nothing else.
    must("chown", &[&format!("{USER}:{USER}"), "/dev/kvm"]);
    wait(round(Invoker::user(USER, USER).unwrap(), false));
    must("chown", &["0:0", "/dev/kvm"]);
}

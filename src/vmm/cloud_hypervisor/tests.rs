//! Tests with a real Cloud Hypervisor that need no KVM. The tests with KVM and a guest are in
//! `tests/nested/scenarios/seam.rs`.

use std::num::NonZeroU32;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use rustix::process::Signal;

use super::*;
use crate::host::spawn::Invoker;
use crate::testing::{Need, have};
use crate::world::WorkspaceId;

const GENERATION: Generation = Generation(1);

/// The VMMs of a workspace in a directory of its own. VMMs that are still alive are killed when the test ends.
struct TestVmms {
    vmm: CloudHypervisor,
    directory: tempfile::TempDir,
}

impl Drop for TestVmms {
    fn drop(&mut self) {
        if let Some(live) = self.vmm.find_live(GENERATION).unwrap() {
            live.daemon.signal(Signal::KILL).unwrap();
        }
    }
}

fn at(runtime: PathBuf) -> CloudHypervisor {
    let mut id = [0; 16];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom").unwrap(), &mut id).unwrap();
    CloudHypervisor::new(VmmSettings {
        runtime,
        workspace: WorkspaceId(id),
        invoker: Invoker::detect().unwrap(),
        vcpus: NonZeroU32::MIN,
        memory: 64 << 20,
        kernel: "/nowhere/vmlinuz".into(),
        initramfs: None,
        cmdline: String::new(),
        place: crate::host::network::NetworkPlace::Host,
        network: false,
        shares: vec!["work".parse().unwrap()],
        disks: Arc::new(|_| Ok(vec!["/nowhere/disk".into()])),
        memory_file: Arc::new(|_| Ok(None)),
        memory_reserved: Arc::new(|_| Ok(false)),
        snapshot: Arc::new(|_| Ok("/nowhere/state".into())),
        places: None,
    })
}

fn fixture() -> TestVmms {
    let directory = tempfile::tempdir().unwrap();
    TestVmms { vmm: at(directory.path().to_owned()), directory }
}

fn machine() -> Machine {
    Machine {
        vmm: GENERATION,
        disk: GENERATION,
        memory: GENERATION,
        slot: Slot::try_from(0).unwrap(),
        shares: false,
    }
}

#[tokio::test]
async fn start_and_stop_are_idempotent_and_leave_only_the_logs() {
    if !have(&[Need::CloudHypervisor, Need::Root]) {
        return;
    }
    let fixture = fixture();
    let vmm = &fixture.vmm;
    vmm.ability(None).await.unwrap();
    assert_eq!(vmm.find(GENERATION).await.unwrap(), VmmState::Never);
    vmm.start(GENERATION).await.unwrap();
    let pid = vmm.find_live(GENERATION).unwrap().unwrap().daemon.pid();
    vmm.start(GENERATION).await.unwrap();
    assert_eq!(vmm.find_live(GENERATION).unwrap().unwrap().daemon.pid(), pid);
    assert_eq!(vmm.find(GENERATION).await.unwrap(), VmmState::Empty);
    assert_eq!(vmm.shares_attached(GENERATION).await.unwrap(), Presence::Absent);
    vmm.stop(GENERATION).await.unwrap();
    assert_eq!(vmm.find(GENERATION).await.unwrap(), VmmState::Never);
    let mut left: Vec<_> = std::fs::read_dir(fixture.directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["events-1.log", "vmm-1.log"]);
    vmm.stop(GENERATION).await.unwrap();
}

#[tokio::test]
async fn a_killed_vmm_is_lost_and_its_stale_sockets_are_replaced() {
    if !have(&[Need::CloudHypervisor, Need::Root]) {
        return;
    }
    let fixture = fixture();
    let vmm = &fixture.vmm;
    vmm.start(GENERATION).await.unwrap();
    let daemon = vmm.find_live(GENERATION).unwrap().unwrap().daemon;
    daemon.signal(Signal::KILL).unwrap();
    daemon.exited().await.unwrap();
    let socket = vmm.socket(GENERATION).unwrap();
    assert!(socket.as_path().exists());
    assert_eq!(vmm.find(GENERATION).await.unwrap(), VmmState::Gone);
    let snapshot = SnapshotId(GENERATION);
    let calls = [
        vmm.boot(&machine()).await,
        vmm.pause(GENERATION).await,
        vmm.resume(GENERATION).await,
        vmm.save(GENERATION, snapshot).await,
        vmm.load(&machine(), snapshot).await,
        vmm.attach_shares(GENERATION).await,
        vmm.detach_shares(GENERATION).await,
        vmm.shares_attached(GENERATION).await.map(drop),
    ];
    for call in calls {
        assert!(matches!(call, Err(Failure::Lost)), "{call:?}");
    }
    vmm.power_button(GENERATION).await.unwrap();
    vmm.start(GENERATION).await.unwrap();
    assert_eq!(vmm.find(GENERATION).await.unwrap(), VmmState::Empty);
    vmm.stop(GENERATION).await.unwrap();
    assert!(!socket.as_path().exists());
}

/// Waits until each thread of a process has stopped after SIGSTOP. A thread that runs may still answer.
fn await_stop(pid: u32) {
    let is_stopped = |thread: std::io::Result<std::fs::DirEntry>| {
        let stat = std::fs::read_to_string(thread.unwrap().path().join("stat"));
        stat.is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T')))
    };
    while !std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().all(is_stopped) {
        std::thread::yield_now();
    }
}

#[tokio::test]
async fn a_vmm_that_does_not_answer_is_silent_and_can_be_stopped() {
    if !have(&[Need::CloudHypervisor, Need::Root]) {
        return;
    }
    let fixture = fixture();
    let vmm = &fixture.vmm;
    vmm.start(GENERATION).await.unwrap();
    let live = vmm.find_live(GENERATION).unwrap().unwrap();
    live.daemon.signal(Signal::STOP).unwrap();
    await_stop(live.daemon.pid());
    // From here on tokio's clock jumps ahead whenever all futures wait.
    tokio::time::pause();
    let error = vmm.pause(GENERATION).await.unwrap_err().to_string();
    assert_eq!(error, "vm.info was not answered within 10s");
    let begun = Instant::now();
    assert_eq!(vmm.find(GENERATION).await.unwrap(), VmmState::Silent);
    assert!(begun.elapsed() >= SILENCE_LIMIT);
    live.daemon.signal(Signal::CONT).unwrap();
    tokio::time::resume();
    assert_eq!(vmm.find(GENERATION).await.unwrap(), VmmState::Empty);
    live.daemon.signal(Signal::STOP).unwrap();
    vmm.stop(GENERATION).await.unwrap();
    assert_eq!(vmm.find(GENERATION).await.unwrap(), VmmState::Never);
}

#[tokio::test]
async fn a_boot_that_failed_can_be_repeated_and_says_why_it_failed() {
    if !have(&[Need::CloudHypervisor, Need::Root]) {
        return;
    }
    let fixture = fixture();
    let vmm = &fixture.vmm;
    vmm.start(GENERATION).await.unwrap();
    for _ in 0..2 {
        let error = vmm.boot(&machine()).await.unwrap_err().to_string();
        assert!(error.starts_with("vm.boot was refused with") && error.contains("os error 2"), "{error}");
        assert_eq!(vmm.find(GENERATION).await.unwrap(), VmmState::Stopped);
    }
    let error = vmm.pause(GENERATION).await.unwrap_err().to_string();
    assert_eq!(error, "the VM cannot be paused: it is stopped");
    let error = vmm.load(&machine(), SnapshotId(GENERATION)).await.unwrap_err().to_string();
    assert!(error.contains("/nowhere/state/config.json"), "{error}");
    vmm.stop(GENERATION).await.unwrap();
    assert!(!vmm.restore_directory(GENERATION).exists());
}

#[tokio::test]
async fn a_socket_of_a_foreign_process_is_not_removed() {
    let fixture = fixture();
    let socket = fixture.vmm.socket(GENERATION).unwrap();
    let _other = UnixListener::bind(socket.as_path()).unwrap();
    let error = fixture.vmm.start(GENERATION).await.unwrap_err().to_string();
    assert!(error.contains("in use by a process that nixbox did not start"), "{error}");
    assert!(fixture.vmm.stop(GENERATION).await.is_err());
    assert!(socket.as_path().exists());
    assert_eq!(fixture.vmm.find(GENERATION).await.unwrap(), VmmState::Never);
}

#[tokio::test]
async fn a_runtime_directory_with_too_long_a_path_is_an_error_before_anything_is_started() {
    let directory = tempfile::tempdir().unwrap();
    let deep = directory.path().join("d".repeat(100));
    std::fs::create_dir(&deep).unwrap();
    let error = at(deep.clone()).start(GENERATION).await.unwrap_err().to_string();
    assert!(error.contains("choose a shorter runtime directory"), "{error}");
    assert_eq!(std::fs::read_dir(deep).unwrap().count(), 0);
}

#[test]
fn the_last_words_are_the_newest_and_printable() {
    let fixture = fixture();
    let path = |name: &str| fixture.directory.path().join(name);
    assert!(fixture.vmm.last_words().is_empty());
    std::fs::write(path("vmm-9.log"), "of an older one\n").unwrap();
    std::fs::write(path("vmm-12.log"), "first\n\x1b[31mpanic\n").unwrap();
    std::fs::write(path("serial-12.log"), "").unwrap();
    let said = format!("its VMM said last ({}): first | panic", path("vmm-12.log").display());
    assert_eq!(fixture.vmm.last_words(), [said]);
}

#[test]
fn the_version_of_the_installed_program_is_understood() {
    if !have(&[Need::CloudHypervisor]) {
        return;
    }
    let program = spawn::find_program("cloud-hypervisor", "NIXBOX_CLOUD_HYPERVISOR").unwrap();
    let output = std::process::Command::new(program).arg("--version").output().unwrap();
    capability::of(capability::of_program(&String::from_utf8(output.stdout).unwrap()).unwrap()).unwrap();
}

//! Against real processes: `sleep`, and shells that behave badly.

use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::thread::CapabilitySet;
use tokio::time::timeout;

use super::*;
use crate::host::spawn::{Invoker, Privileges};
use crate::testing::{Need, USER, have};

const GENERATION: Generation = Generation(3);
const GRACE: Duration = Duration::from_secs(20);

struct Fixture {
    daemons: Daemons,
    role: DaemonRole,
    directory: tempfile::TempDir,
}

/// Every test has a workspace of its own, because marks are looked for on the whole host.
fn fixture() -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let mut id = [0; 16];
    getrandom::fill(&mut id).unwrap();
    let daemons = Daemons::new(directory.path().to_owned(), WorkspaceId(id));
    Fixture { daemons, role: DaemonRole::share(7), directory }
}

fn sleeper() -> Program {
    Program::new("/bin/sleep", Privileges::Own(CapabilitySet::empty())).argument("1000")
}

fn shell(script: &str) -> Program {
    Program::new("/bin/sh", Privileges::Own(CapabilitySet::empty())).argument("-c").argument(script)
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let mark = self.daemons.mark(&self.role, GENERATION);
        for daemon in search(&mark).find().unwrap() {
            daemon.signal(Signal::KILL).unwrap();
        }
    }
}

/// A process that nixbox did not start.
struct Bystander(std::process::Child);

impl Bystander {
    fn start() -> Self {
        Self(Command::new("sleep").arg("1000").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Fixture {
    fn sleep(&self) -> Daemon {
        self.daemons.spawn(&self.role, GENERATION, &sleeper()).unwrap()
    }

    fn spawn(&self, script: &str) -> Daemon {
        self.daemons.spawn(&self.role, GENERATION, &shell(script)).unwrap()
    }

    fn find(&self) -> Option<Daemon> {
        self.daemons.find(&self.role, GENERATION).unwrap()
    }

    async fn stop(&self, grace: Duration) {
        self.daemons.stop(&self.role, GENERATION, grace).await.unwrap();
        assert!(self.find().is_none());
        assert!(!self.record().exists());
    }

    fn record(&self) -> PathBuf {
        self.daemons.record(&self.role, GENERATION)
    }

    fn rewrite(&self, change: impl FnOnce(&mut PidRecord)) {
        let mut record: PidRecord = serde_json::from_slice(&fs::read(self.record()).unwrap()).unwrap();
        change(&mut record);
        write_atomically(&self.record(), &record).unwrap();
    }

    /// Waits until the script has written this, because a trap is set only when the shell has got that far.
    async fn logged(&self, wanted: &str) {
        let log = self.daemons.log(&self.role, GENERATION);
        let seen = async {
            while !fs::read_to_string(&log).unwrap().contains(wanted) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(GRACE, seen).await.unwrap();
    }
}

#[tokio::test]
async fn a_daemon_is_started_found_and_stopped() {
    let fixture = fixture();
    assert!(fixture.find().is_none());
    let daemon = fixture.spawn("echo out; echo err >&2; sleep 1000; :");
    fixture.logged("err").await;
    assert_eq!(fixture.find().unwrap().identity(), daemon.identity());
    let again = fixture.daemons.spawn(&fixture.role, GENERATION, &sleeper());
    assert!(matches!(again, Err(ProcessError::Runs { pid, .. }) if pid == daemon.pid()));
    assert!(fixture.daemons.find(&fixture.role, Generation(4)).unwrap().is_none());
    assert_eq!(fixture.daemons.log_tail(&fixture.role, GENERATION), "out | err");
    let log = fs::metadata(fixture.daemons.log(&fixture.role, GENERATION)).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&log) & 0o777, 0o600);
    fixture.stop(GRACE).await;
    assert!(!daemon.alive().unwrap());
    // Its child is reaped too: no zombie is left of it.
    assert!(!Path::new(&format!("/proc/{}", daemon.pid())).exists());
    fixture.stop(GRACE).await;
}

#[tokio::test]
async fn only_processes_of_the_wanted_owners_are_found_and_ended() {
    if !have(&[Need::Root]) {
        return;
    }
    let fixture = fixture();
    let user = Privileges::Invoker(Invoker::user(USER, USER).unwrap());
    let program = Program::new("/bin/sleep", user).argument("1000");
    let daemon = fixture.daemons.spawn(&fixture.role, GENERATION, &program).unwrap();
    // Without a generation, as the network looks for its processes.
    let mark = ProcessMark { generation: None, ..fixture.daemons.mark(&fixture.role, GENERATION) };
    let found = |owners| ProcessSearch { mark: &mark, owners }.find().unwrap().len();
    assert_eq!([found(None), found(Some(&[USER])), found(Some(&[0]))], [1, 1, 0]);
    ProcessSearch { mark: &mark, owners: Some(&[0]) }.end(GRACE).await.unwrap();
    assert!(daemon.alive().unwrap());
    ProcessSearch { mark: &mark, owners: Some(&[0, USER]) }.end(GRACE).await.unwrap();
    assert!(!daemon.alive().unwrap());
}

#[tokio::test]
async fn a_record_with_another_start_time_matches_no_process() {
    let fixture = fixture();
    let mut bystander = Bystander::start();
    let daemon = fixture.sleep();
    // The daemon's own pid with another start time: found again by its mark alone.
    fixture.rewrite(|record| record.identity.start += 1);
    assert_eq!(fixture.find().unwrap().identity(), daemon.identity());
    // As after the daemon's death, its pid taken by somebody else.
    fixture.stop(GRACE).await;
    for start in [0, Daemon::open_pid(bystander.0.id(), 0).unwrap().unwrap().identity().start] {
        let identity = Identity { pid: bystander.0.id(), start, boot: host_boot().unwrap() };
        let mark = fixture.daemons.mark(&fixture.role, GENERATION);
        write_atomically(&fixture.record(), &PidRecord { mark, identity }).unwrap();
        assert!(fixture.find().is_none(), "found a process without the mark");
        fixture.stop(GRACE).await;
    }
    assert!(bystander.0.try_wait().unwrap().is_none(), "somebody else's process was ended");
}

#[tokio::test]
async fn a_daemon_without_a_usable_record_is_found_by_its_mark() {
    let fixture = fixture();
    let daemon = fixture.sleep();
    let whole = fs::read(fixture.record()).unwrap();
    fs::remove_file(fixture.record()).unwrap();
    assert_eq!(fixture.find().unwrap().identity(), daemon.identity());
    let torn = [&b""[..], &whole[..whole.len() / 2], b"\0\0\0\0", &[b'['; 100_000]];
    for bytes in torn {
        fs::write(fixture.record(), bytes).unwrap();
        assert_eq!(fixture.find().unwrap().identity(), daemon.identity());
    }
    fixture.rewrite_whole(&whole, |record| record.identity.boot ^= 1);
    assert_eq!(fixture.find().unwrap().identity(), daemon.identity());
    fixture.rewrite_whole(&whole, |record| record.mark.generation = Some(Generation(99)));
    assert_eq!(fixture.find().unwrap().identity(), daemon.identity());
    fs::remove_file(fixture.record()).unwrap();
    fixture.stop(GRACE).await;
    assert!(!daemon.alive().unwrap());
}

impl Fixture {
    fn rewrite_whole(&self, whole: &[u8], change: impl FnOnce(&mut PidRecord)) {
        fs::write(self.record(), whole).unwrap();
        self.rewrite(change);
    }
}

/// Another process starts a daemon as nixbox does, and is killed before it writes the record. The test binary takes the
/// place of nixbox.
#[tokio::test]
async fn a_daemon_outlives_a_nixbox_killed_between_spawn_and_record() {
    let fixture = fixture();
    let mark = fixture.daemons.mark(&fixture.role, GENERATION);
    let mut nixbox = Command::new(std::env::current_exe().unwrap());
    nixbox.args(["--exact", "host::process::tests::spawn_without_record"]);
    nixbox.env("TEST_RUNTIME", fixture.directory.path()).envs(mark.environment()).process_group(0);
    let mut nixbox = nixbox.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let daemon = timeout(GRACE, async {
        loop {
            match fixture.daemons.find(&fixture.role, GENERATION).unwrap() {
                // The stand-in for nixbox carries the mark as well, and so does its child before the exec.
                Some(daemon)
                    if fs::read(format!("/proc/{}/cmdline", daemon.pid()))
                        .unwrap()
                        .ends_with(b"sleep\x001000\0") =>
                {
                    return daemon;
                }
                _ => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        }
    })
    .await
    .unwrap();
    let group = rustix::process::Pid::from_raw(i32::try_from(nixbox.id()).unwrap()).unwrap();
    rustix::process::kill_process_group(group, Signal::KILL).unwrap();
    nixbox.wait().unwrap();
    assert!(!fixture.record().exists());
    assert!(daemon.alive().unwrap());
    assert_eq!(fixture.find().unwrap().identity(), daemon.identity());
    fixture.stop(GRACE).await;
    assert!(!daemon.alive().unwrap());
}

#[tokio::test]
async fn a_process_is_as_old_as_the_time_since_its_start() {
    let fixture = fixture();
    let age = fixture.sleep().identity().age();
    let init = Daemon::open_pid(1, host_boot().unwrap()).unwrap().unwrap().identity().age();
    assert!(age < Duration::from_secs(60) && init >= age, "{age:?}, {init:?}");
    fixture.daemons.stop(&fixture.role, GENERATION, Duration::from_secs(3)).await.unwrap();
}

#[test]
fn spawn_without_record() {
    // Run by a_daemon_outlives_a_nixbox_killed_between_spawn_and_record, as the process that is killed.
    let Some(runtime) = std::env::var_os("TEST_RUNTIME") else {
        return;
    };
    // What `spawn` does, up to where it would write the record.
    let mut command = sleeper().command();
    for key in [mark::WORKSPACE, mark::GENERATION, mark::ROLE] {
        command.env(key, std::env::var_os(key).unwrap());
    }
    let log = File::create(Path::new(&runtime).join("log")).unwrap();
    let mut child =
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
    child.wait().unwrap();
}

#[tokio::test]
async fn a_zombie_is_dead() {
    let fixture = fixture();
    let daemon = fixture.sleep();
    daemon.signal(Signal::KILL).unwrap();
    // Not reaped: this process is its parent and does not wait for it, only for the pidfd.
    let pid = Pid::from_raw(i32::try_from(daemon.pid()).unwrap()).unwrap();
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).unwrap();
    let limit = Timespec::try_from(GRACE).unwrap();
    assert_eq!(poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit)).unwrap(), 1);
    assert!(!daemon.alive().unwrap());
    let stat = fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).unwrap();
    assert!(stat.contains(") Z "), "{stat}");
    assert!(fixture.find().is_none());
    assert_eq!(daemon.exited().await.unwrap(), ProcessExit::Signal(9));
    assert_eq!(daemon.exited().await.unwrap(), ProcessExit::Unknown);
    fixture.stop(GRACE).await;
}

#[tokio::test]
async fn a_daemon_that_ignores_term_is_killed() {
    let fixture = fixture();
    let daemon = fixture.spawn("trap '' TERM; echo deaf; while :; do sleep 1000; done");
    fixture.logged("deaf").await;
    fixture.stop(Duration::from_millis(50)).await;
    assert!(!daemon.alive().unwrap());
}

#[tokio::test]
async fn children_of_a_daemon_end_with_it() {
    let fixture = fixture();
    let daemon = fixture.spawn("setsid sleep 1000 & sleep 1000 & echo both; wait");
    fixture.logged("both").await;
    let mark = fixture.daemons.mark(&fixture.role, GENERATION);
    let family = timeout(GRACE, async {
        loop {
            // A mark cannot be seen while a process execs.
            match search(&mark).find().unwrap() {
                family if family.len() == 3 => return family,
                _ => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        }
    })
    .await
    .unwrap();
    assert_eq!(fixture.find().unwrap().identity(), daemon.identity());
    fixture.stop(GRACE).await;
    assert!(family.iter().all(|member| !member.alive().unwrap()));
}

#[tokio::test]
async fn a_daemon_that_cannot_be_recorded_does_not_run() {
    let fixture = fixture();
    fs::create_dir_all(fixture.record().join("occupied")).unwrap();
    let spawned = fixture.daemons.spawn(&fixture.role, GENERATION, &sleeper());
    assert!(matches!(spawned, Err(ProcessError::File { .. })), "{spawned:?}");
    let mark = fixture.daemons.mark(&fixture.role, GENERATION);
    assert!(search(&mark).find().unwrap().is_empty());
}

#[tokio::test]
async fn the_error_for_a_missing_program_names_it() {
    let fixture = fixture();
    let program = Program::new("/nowhere/vmm", Privileges::Own(CapabilitySet::empty()));
    let error = fixture.daemons.spawn(&fixture.role, GENERATION, &program).unwrap_err();
    assert_eq!(error.to_string(), "cannot start \"/nowhere/vmm\"");
    assert!(fixture.find().is_none());
}

#[tokio::test]
async fn logs_of_the_last_generations_are_kept() {
    let fixture = fixture();
    for generation in 1..=7 {
        let generation = Generation(generation);
        fixture.daemons.spawn(&fixture.role, generation, &sleeper()).unwrap();
        fixture.daemons.stop(&fixture.role, generation, GRACE).await.unwrap();
    }
    let other = fixture.directory.path().join("share-7-x.log");
    fs::write(&other, "").unwrap();
    let kept = |generation| fixture.daemons.log(&fixture.role, Generation(generation)).exists();
    assert_eq!((1..=7).map(kept).collect::<Vec<_>>(), [false, false, true, true, true, true, true]);
    assert!(other.exists());
}

/// What is left of a nixbox that was killed between making a record and giving it its name.
#[tokio::test]
async fn a_record_that_was_half_written_is_removed_with_its_daemon() {
    let fixture = fixture();
    let half = unnamed(&fixture.record());
    // With a daemon and its record beside it, and alone.
    let _daemon = fixture.sleep();
    for _ in 0..2 {
        fs::write(&half, "{").unwrap();
        assert_eq!(fixture.daemons.generations().unwrap(), [GENERATION].into());
        fixture.daemons.stop(&fixture.role, GENERATION, GRACE).await.unwrap();
        assert!(!half.exists());
        assert!(!fixture.record().exists());
    }
}

#[test]
fn the_last_line_of_a_console_is_shown_without_what_moves_the_cursor() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("serial.log");
    for (written, shown) in [
        ("one\ntwo\n", "two"),
        // What systemd writes while a unit takes long to start.
        (
            "[  OK  ] Started \u{1b}[0;1;39mssh.service\u{1b}[0m.\r\n\
             \r\u{1b}[K[\u{1b}[0;31m*     \u{1b}[0m] Job dev-vdb.device/start running (1s / 1min 30s)\r\
             \u{1b}M\r\u{1b}[K[\u{1b}[0;1;31m*\u{1b}[0m\u{1b}[0;31m*    \u{1b}[0m] Job dev-vdb.device/start running (2s)\r\
             \u{1b}M\r\u{1b}[K",
            "[**    ] Job dev-vdb.device/start running (2s)",
        ),
        ("\u{1b}]0;title\u{7}login: ", "login:"),
        ("\u{1b}]0;title\u{1b}\\login: ", "login:"),
        ("cut short \u{1b}[0;3", "cut short"),
        ("\u{1b}(Bä", "Bä"),
    ] {
        std::fs::write(&path, written).unwrap();
        assert_eq!(last_line(&path).as_deref(), Some(shown), "{written:?}");
    }
}

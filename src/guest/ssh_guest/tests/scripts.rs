//! The scripts of a person in a guest with a real SSH server.

use std::io::{BufRead as _, Read as _};
use std::os::unix::fs::chown;
use std::sync::mpsc::Receiver;

use super::*;
use crate::world::GuestScriptPoint::{AfterRestore, AfterUp};
use crate::world::GuestScriptsOutcome::{Failed, Succeeded, Unfinished};

const KINDS: [Kind; 2] = [Kind::Busybox, Kind::Debian];

/// A guest with these scripts after `up`, and what a person is told.
fn with_scripts(server: &Server, scripts: &[&str]) -> (SshGuest, Receiver<String>) {
    let (send, told) = std::sync::mpsc::channel();
    let wanted = Wanted { environment: environment("it's a token"), ..Wanted::default() };
    let settings = settings(server.address, "user", Arc::clone(&server.key), server.directory.path(), wanted);
    let scripts = scripts.iter().map(|script| (*script).to_owned()).collect();
    let settings = GuestSettings {
        scripts: BTreeMap::from([(AfterUp, scripts)]),
        on_script: Arc::new(move |notice| send.send(notice.to_string()).unwrap()),
        ..settings
    };
    (SshGuest::new(settings, Arc::new(StateOnlyVmm(Mutex::new(VmmState::Running)))), told)
}

/// A pipe in the home of the user. Reading it to the end waits for the last process that holds it open.
fn pipe(server: &Server) -> PathBuf {
    let pipe = server.home("user", "pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    chown(&pipe, Some(1000), Some(1000)).unwrap();
    pipe
}

/// Waits for the first line of a pipe, calls `begun`, and then waits for its end.
fn read_pipe(path: PathBuf, begun: impl FnOnce() + Send + 'static) -> tokio::task::JoinHandle<String> {
    tokio::task::spawn_blocking(move || {
        let mut pipe = std::io::BufReader::new(fs::File::open(path).unwrap());
        let mut read = String::new();
        pipe.read_line(&mut read).unwrap();
        begun();
        pipe.read_to_string(&mut read).unwrap();
        read
    })
}

#[tokio::test]
async fn scripts_run_in_order_with_the_environment_and_those_that_fail_are_told() {
    for kind in KINDS {
        let Some(server) = Server::start(kind) else { return };
        let scripts = [
            "echo \"$(id -u) $PWD $TOKEN\" > first; umask",
            "echo one; printf 'two\\n\\033[2Jthree\\n' >&2; exit 7",
            "cat; echo last >> first; kill -9 $$",
        ];
        let (guest, told) = with_scripts(&server, &scripts);
        assert!(guest.has_scripts(AfterUp) && !guest.has_scripts(AfterRestore));
        guest.inject(&machine()).await.unwrap();
        let interrupt = Interrupt::new();
        assert_eq!(guest.run_scripts(&machine(), AfterUp, LIMIT, &interrupt).await.unwrap(), Failed);
        let home = if kind == Kind::Busybox { "/home/user".into() } else { server.home("user", "") };
        let home = home.display().to_string();
        let written = fs::read_to_string(server.home("user", "first")).unwrap();
        assert_eq!(written, format!("1000 {} it's a token\nlast\n", home.trim_end_matches('/')), "{kind:?}");
        let told: Vec<_> = told.try_iter().collect();
        assert_eq!(told.len(), 2, "{told:?}");
        for part in ["script 2 of guest.scripts.after-up", "exit status 7", "two; [2Jthree"] {
            assert!(told[0].contains(part), "{kind:?}: {told:?}");
        }
        assert!(told[1].starts_with("script 3 of") && told[1].contains("137"), "{kind:?}: {told:?}");
        // A point without scripts.
        assert_eq!(guest.run_scripts(&machine(), AfterRestore, LIMIT, &interrupt).await.unwrap(), Succeeded);
    }
}

#[tokio::test]
async fn a_program_in_the_background_is_not_waited_for_and_stays() {
    for kind in KINDS {
        let Some(server) = Server::start(kind) else { return };
        let (guest, told) = with_scripts(&server, &["exec 9> pipe; echo begun >&9; sleep 1000 &"]);
        let reader = read_pipe(pipe(&server), || ());
        let ran = guest.run_scripts(&machine(), AfterUp, LIMIT, &Interrupt::new()).await;
        assert_eq!(ran.unwrap(), Succeeded, "{kind:?}");
        // A new connection ends what nixbox itself left running, and not this.
        drop(guest);
        guest_of(&server).ready(&machine()).await.unwrap();
        assert!(!reader.is_finished(), "{kind:?}");
        assert_eq!(told.try_iter().count(), 0);
        drop(server);
        assert_eq!(reader.await.unwrap(), "begun\n");
    }
}

fn guest_of(server: &Server) -> SshGuest {
    guest(server, "user", Wanted::default())
}

#[tokio::test]
async fn a_script_that_takes_too_long_is_ended_with_what_it_started() {
    for kind in KINDS {
        let Some(server) = Server::start(kind) else { return };
        let slow = "trap '' TERM; exec 9> pipe; echo begun >&9; echo so far; sleep 1000 & sleep 1000";
        let (guest, told) = with_scripts(&server, &[slow, "echo not reached > second"]);
        let reader = read_pipe(pipe(&server), || ());
        let limit = Duration::from_secs(1);
        let ran = guest.run_scripts(&machine(), AfterUp, limit, &Interrupt::new()).await;
        assert_eq!(ran.unwrap(), Unfinished, "{kind:?}");
        assert_eq!(reader.await.unwrap(), "begun\n");
        let told: Vec<_> = told.try_iter().collect();
        assert!(told.len() == 1 && told[0].contains("in time") && told[0].contains("so far"), "{told:?}");
        assert!(!server.home("user", "second").exists());
    }
}

#[tokio::test]
async fn a_script_does_not_outlive_an_interrupt_or_the_nixbox_that_runs_it() {
    for kind in KINDS {
        for killed in [false, true] {
            let Some(server) = Server::start(kind) else { return };
            let (guest, told) = with_scripts(&server, &["exec 9> pipe; echo begun >&9; sleep 1000"]);
            let (interrupt, dies) = (Interrupt::new(), Interrupt::new());
            let asked = if killed { dies.clone() } else { interrupt.clone() };
            let reader = read_pipe(pipe(&server), move || asked.request());
            let machine = machine();
            let ran = async { Some(guest.run_scripts(&machine, AfterUp, LIMIT, &interrupt).await) };
            // A future that is dropped closes its connection, as the end of nixbox does.
            let ran = tokio::select! { ran = ran => ran, () = dies.wait() => None };
            assert!(matches!(ran, None | Some(Err(Failure::Interrupted))), "{kind:?}: {ran:?}");
            assert_eq!(ran.is_none(), killed);
            assert_eq!(reader.await.unwrap(), "begun\n", "{kind:?}");
            assert_eq!(told.try_iter().count(), 0);
        }
    }
}

use std::path::PathBuf;

use tokio::io::AsyncReadExt as _;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::*;
use crate::guest::channel::{CommandExit, TerminalSize};
use crate::guest::testing::{Kind, LIMIT, Server};

fn command(words: &[&str]) -> PersonCommand {
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    PersonCommand {
        line: CommandLine::of_words(&words),
        variables: Vec::new(),
        directory: None,
        user: None,
        terminal: None,
    }
}

/// What a command that has ended printed, and how it ended.
async fn run(shell: &Shell, command: &PersonCommand) -> (String, String, CommandExit) {
    let (guard, running) = command.start(shell).await.unwrap();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let (_, never_resized) = mpsc::channel(1);
    let ended = running.pass_through(tokio::io::empty(), &mut out, &mut err, never_resized);
    let ended = timeout(LIMIT, ended).await.unwrap().unwrap();
    guard.dismiss().await.unwrap();
    (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap(), ended)
}

/// The servers, each with a user and what `id -u` says of another user that nixbox can become there.
const SERVERS: [(Kind, &str); 4] = [
    (Kind::Busybox, "root"),
    (Kind::Busybox, "user"),
    (Kind::Debian, "user"),
    (Kind::DebianWithoutSudo, "user"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_gets_its_words_variables_and_directory_and_its_status_comes_back() {
    for (kind, user) in SERVERS {
        let Some(server) = Server::start(kind) else { continue };
        std::fs::write(server.home(user, ".env"), "export GREETING='a b'\n").unwrap();
        std::fs::create_dir(server.home(user, "it's here")).unwrap();
        let shell = server.connect(user).await;
        let words =
            ["sh", "-c", "printf '%s|' \"$GREETING\" \"$@\"; exit 7", "x", "it's", "", "a\nb", "$HOME", "-n"];
        let (out, err, ended) = run(&shell, &command(&words)).await;
        assert_eq!(out, "a b|it's||a\nb|$HOME|-n|", "{kind:?} {user}: {err}");
        assert_eq!(ended, CommandExit::Status(7));

        let mut line = command(&[
            "cd / && pwd | tr -d '\\n' && printf ' %s' \"$GREETING\" \"$OWN\" \"$NIXBOX_SCRIPT\" && pwd",
        ]);
        line.variables = vec![("OWN".parse().unwrap(), Secret::new(b"it's \\n \"x\"\n".to_vec()))];
        let (out, err, ended) = run(&shell, &line).await;
        assert_eq!(out, "/ a b it's \\n \"x\"\n /\n", "{kind:?} {user}: {err}");
        assert_eq!(ended, CommandExit::Status(0));

        for directory in ["it's here", "~/it's here"] {
            let (out, ..) =
                run(&shell, &PersonCommand { directory: Some(directory.to_owned()), ..command(&["pwd"]) })
                    .await;
            assert!(out.ends_with("/it's here\n"), "{kind:?} {user}: {out}");
        }
        let nowhere = PersonCommand { directory: Some("nowhere".to_owned()), ..command(&["pwd"]) };
        let (_, err, ended) = run(&shell, &nowhere).await;
        assert!(ended == CommandExit::Status(127) && err.contains("nowhere"), "{kind:?} {user}: {err}");
        let (_, err, ended) = run(&shell, &command(&["no-such-program", "x"])).await;
        assert!(
            ended == CommandExit::Status(127) && err.contains("no-such-program"),
            "{kind:?} {user}: {err}"
        );
        let (.., ended) = run(&shell, &command(&["kill -TERM $$"])).await;
        assert_eq!(ended, CommandExit::Signal("TERM".to_owned()), "{kind:?} {user}");
        until_no_directory_is_left(&server.connect(user).await).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_user_runs_a_command_without_the_workspace_s_variables() {
    for (kind, user, other, id) in
        [(Kind::Busybox, "root", "user", "1000"), (Kind::Debian, "user", "root", "0")]
    {
        let Some(server) = Server::start(kind) else { continue };
        std::fs::write(server.home(user, ".env"), "export GREETING='a b'\n").unwrap();
        let shell = server.connect(user).await;
        let asked = PersonCommand {
            user: Some(other.parse().unwrap()),
            variables: vec![("OWN".parse().unwrap(), Secret::new(b"it's".to_vec()))],
            directory: Some("/".to_owned()),
            ..command(&["echo $(id -u) $(pwd) ${HOME##*/} $OWN $GREETING"])
        };
        let (out, err, ended) = run(&shell, &asked).await;
        assert_eq!(out, format!("{id} / {other} it's\n"), "{kind:?}: {err}");
        assert_eq!(ended, CommandExit::Status(0));
        until_no_directory_is_left(&server.connect(user).await).await;
    }
    let Some(server) = Server::start(Kind::DebianWithoutSudo) else { return };
    let shell = server.connect("user").await;
    let asked = PersonCommand { user: Some("root".parse().unwrap()), ..command(&["true"]) };
    assert!(matches!(asked.start(&shell).await, Err(ScriptError::NoRights { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_of_the_guest_has_the_type_and_the_size_that_it_is_given() {
    for (kind, user) in SERVERS {
        let Some(server) = Server::start(kind) else { continue };
        let shell = server.connect(user).await;
        let size = TerminalSize { columns: 91, rows: 17 };
        let asked = PersonCommand {
            terminal: Some(GuestTerminal { kind: "vt100".to_owned(), size }),
            ..command(&["test -t 0 && echo $TERM $(stty size); read -r l; stty size"])
        };
        let (guard, running) = asked.start(&shell).await.unwrap();
        let (mut out, theirs) = tokio::io::duplex(1 << 16);
        let (mut input, stdin) = tokio::io::duplex(1 << 16);
        let (resize, resized) = mpsc::channel(1);
        let through = running.pass_through(stdin, theirs, tokio::io::sink(), resized);
        let talk = async {
            let mut told = Vec::new();
            while !told.ends_with(b"17 91\r\n") {
                told.push(out.read_u8().await.unwrap());
            }
            assert!(told.starts_with(b"vt100 "), "{kind:?} {user}");
            resize.send(TerminalSize { columns: 44, rows: 11 }).await.unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut input, b"\n").await.unwrap();
            while !told.ends_with(b"11 44\r\n") {
                told.push(out.read_u8().await.unwrap());
            }
        };
        let (ended, ()) = timeout(LIMIT, async { tokio::join!(through, talk) }).await.unwrap();
        assert_eq!(ended.unwrap(), CommandExit::Status(0), "{kind:?} {user}");
        guard.dismiss().await.unwrap();
    }
}

/// A command with a process in the background, which waits for a line from a pipe in the user's home.
const WAITS: &str =
    "mkfifo gate; sh -c 'read -r word < gate' & trap 'exit 9' TERM; echo begun; read -r word < gate";

async fn begun(shell: &Shell, asked: &PersonCommand) -> (CommandGuard, GuestCommand) {
    let (guard, mut running) = asked.start(shell).await.unwrap();
    let mut out = Vec::new();
    // A terminal ends lines with two characters.
    while !out.ends_with(b"begun\n") && !out.ends_with(b"begun\r\n") {
        if let crate::guest::channel::CommandEvent::Out(data) = running.next().await.unwrap() {
            out.extend_from_slice(&data);
        }
    }
    (guard, running)
}

/// Waits until no process of the guest has this file open. Opening a pipe for writing fails if nobody reads from it.
async fn until_nobody_reads(pipe: PathBuf) {
    use rustix::fs::{Mode, OFlags};
    let gone = async {
        while rustix::fs::open(&pipe, OFlags::WRONLY | OFlags::NONBLOCK, Mode::empty()).is_ok() {
            tokio::task::yield_now().await;
        }
    };
    timeout(LIMIT, gone).await.unwrap();
}

async fn until_no_directory_is_left(shell: &Shell) {
    let script = r#"while [ -n "$(ls -d /dev/shm/nixbox-run.* /run/nixbox-run.* /tmp/nixbox-run.* 2> /dev/null)" ]; do :; done"#;
    shell.script("look for directories", Rights::User, script, &[], LIMIT).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signals_reach_all_processes_of_the_command() {
    for (kind, user) in SERVERS {
        let Some(server) = Server::start(kind) else { continue };
        let shell = server.connect(user).await;
        let (guard, mut running) = begun(&shell, &command(&[WAITS])).await;
        guard.signal("TERM").await.unwrap();
        let ended = timeout(LIMIT, async {
            loop {
                if let crate::guest::channel::CommandEvent::Ended(ended) = running.next().await.unwrap() {
                    return ended;
                }
            }
        });
        assert_eq!(ended.await.unwrap(), CommandExit::Status(9), "{kind:?} {user}");
        until_nobody_reads(server.home(user, "gate")).await;
        guard.dismiss().await.unwrap();
        until_no_directory_is_left(&server.connect(user).await).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_a_command_is_left_when_nixbox_is_killed() {
    let ignoring = WAITS.replace("trap 'exit 9' TERM", "trap '' HUP");
    for (kind, user) in SERVERS {
        for (in_terminal, line) in [(false, WAITS), (true, WAITS), (false, ignoring.as_str())] {
            let Some(server) = Server::start(kind) else { continue };
            let shell = server.connect(user).await;
            let size = TerminalSize { columns: 80, rows: 24 };
            let terminal = in_terminal.then(|| GuestTerminal { kind: "vt100".to_owned(), size });
            let asked = PersonCommand { terminal, ..command(&[line]) };
            let (guard, running) = begun(&shell, &asked).await;
            drop((guard, running, shell));
            until_nobody_reads(server.home(user, "gate")).await;
            until_no_directory_is_left(&server.connect(user).await).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_has_not_begun_when_nixbox_is_killed_does_not_run() {
    for (kind, user) in SERVERS {
        let Some(server) = Server::start(kind) else { continue };
        let shell = server.connect(user).await;
        let asked = command(&["echo ran > ran"]);
        let file = asked.file(&shell);
        let script = GUARD.replace("LENGTH", &file.len().to_string()).replace("OWNER", "0:0");
        let mut dialogue = shell.converse_unmarked(WHAT, Rights::User, &script).await.unwrap();
        dialogue.send(file).await.unwrap();
        let line = dialogue.line().await.unwrap();
        let directory = directory_of(&line).unwrap().to_owned();
        // The shell has read the file and not run it yet, as if it were slow.
        let late = server.connect(user).await;
        let script =
            format!("t=$(cat {directory}/command); echo read; read -r go; sh -c \"$t\" {directory}/command");
        let mut late_one = late.converse_unmarked("run late", Rights::User, &script).await.unwrap();
        assert_eq!(late_one.line().await.unwrap().as_slice(), b"read");
        drop((dialogue, shell));
        until_no_directory_is_left(&late).await;
        late_one.send(Zeroizing::new(b"go\n".to_vec())).await.unwrap();
        assert!(
            matches!(
                late_one.finish().await,
                Err(ScriptError::Failed { exit: CommandExit::Status(129), .. })
            ),
            "{kind:?} {user}"
        );
        assert!(!server.home(user, "ran").exists());
    }
}

/// nixbox is killed while it sends what is to run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_of_a_command_is_removed_and_does_not_run() {
    for (kind, user) in SERVERS {
        let Some(server) = Server::start(kind) else { continue };
        let shell = server.connect(user).await;
        let file = command(&["echo ran > ran"]).file(&shell);
        let script = GUARD.replace("LENGTH", &file.len().to_string()).replace("OWNER", "0:0");
        let dialogue = shell.converse_unmarked(WHAT, Rights::User, &script).await.unwrap();
        dialogue.send(Zeroizing::new(file[..file.len() - 1].to_vec())).await.unwrap();
        // The guard has made its directory, and waits for the rest.
        let late = server.connect(user).await;
        let script = "until ls /dev/shm/nixbox-run.*/command; do :; done";
        late.script("look for the file", Rights::User, script, &[], LIMIT).await.unwrap();
        drop((dialogue, shell));
        until_no_directory_is_left(&late).await;
        assert!(!server.home(user, "ran").exists(), "{kind:?} {user}");
    }
}

#[test]
fn a_directory_that_a_shell_could_take_for_something_else_is_refused() {
    assert_eq!(directory_of(b"/run/user/1000/nixbox-run.a_B-9"), Some("/run/user/1000/nixbox-run.a_B-9"));
    for bad in [&b""[..], b"run/x", b"/run/$(x)", b"/run/a b", b"/run/\xff", &[b'/'; 256]] {
        assert_eq!(directory_of(bad), None);
    }
}

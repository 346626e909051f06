//! Commands that a person runs in the guest: their words, their environment, their signals, and their end.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};

use crate::workspace::Workspace;

#[test]
fn one_argument_is_a_line_for_the_shell_and_several_are_a_program() {
    let workspace = Workspace::new("simulator", false);
    workspace.ok(&["up"]);
    let said = workspace.ok(&["run", "mkdir -p 'a b' && cd 'a b' && pwd && echo \"<$TOKEN>\""]);
    let home = workspace.guest("echo $HOME");
    assert_eq!(said.stdout, format!("{}/a b\n<{}>\n", home.trim(), workspace.guest("printf %s $TOKEN")));
    for directory in ["a b", "~/a b"] {
        assert!(workspace.ok(&["run", "-w", directory, "pwd"]).stdout.ends_with("/a b\n"));
    }
    let said = workspace.ok(&["run", "-e", "OWN=it's", "-e", "NIXBOX_SCOPES", "echo $OWN $NIXBOX_SCOPES"]);
    assert_eq!(said.stdout, "it's none\n");
    assert_eq!(workspace.run(&["run", "exit 7"]).code, Some(7));
    assert_eq!(workspace.run(&["run", "kill -TERM $$"]).code, Some(128 + 15));
    let nowhere = workspace.run(&["run", "-w", "nowhere", "true"]);
    assert!(nowhere.code == Some(127) && nowhere.stderr.contains("nowhere"), "{nowhere:?}");
    // A person writes these by mistake; nothing is run in the guest.
    for (arguments, words) in [
        (&["run"][..], "<COMMAND>"),
        (&["run", "-e", "A-B=c", "true"], "cannot be an environment variable"),
        (&["run", "-e", "NIXBOX_NEVER_SET", "true"], "-e NAME=VALUE"),
        (&["run", "--user", "a b", "true"], "a b"),
        (&["run", "--no-such-option", "true"], "--no-such-option"),
    ] {
        let refused = workspace.run(arguments);
        assert!(refused.code == Some(2) && refused.stderr.contains(words), "{arguments:?}: {refused:?}");
    }
    workspace.ok(&["down"]);
    assert_eq!(workspace.run(&["run", "true"]).code, Some(3));
}

/// Starts a command that says that it has begun, and reads from a pipe in the guest's home.
fn begin(workspace: &Workspace, script: &str) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut child = workspace.command(&["run", script]).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "begun\n");
    (child, out)
}

const WAITS: &str = "rm -f gate; mkfifo gate; trap 'echo told; exit 9' TERM INT HUP; echo begun; \
                     sh -c 'read -r word < gate'";

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_raw(child.id().try_into().unwrap()).unwrap(), signal).unwrap();
}

/// Waits until nobody reads from the pipe.
fn wait_for_end(workspace: &Workspace) {
    let gate = format!("{}/gate", workspace.guest("echo $HOME").trim());
    while rustix::fs::open(&gate, OFlags::WRONLY | OFlags::NONBLOCK, Mode::empty()).is_ok() {
        std::thread::yield_now();
    }
}

#[test]
fn a_command_gets_the_signals_of_its_nixbox_and_ends_with_it() {
    let workspace = Workspace::new("simulator", false);
    workspace.ok(&["up"]);
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let (mut child, mut out) = begin(&workspace, WAITS);
        send(&child, signal);
        let mut rest = String::new();
        out.read_to_string(&mut rest).unwrap();
        assert_eq!((rest.as_str(), child.wait().unwrap().code()), ("told\n", Some(9)), "{signal:?}");
        wait_for_end(&workspace);
    }
    // What ignores the signals ends when nixbox has been told three times, or is killed.
    let deaf = WAITS.replace("'echo told; exit 9'", "''");
    let (mut child, _out) = begin(&workspace, &deaf);
    let mut sent = 0;
    let ended = loop {
        // Signals of one kind that come at once are one.
        workspace.ok(&["run", "true"]);
        if let Some(ended) = child.try_wait().unwrap() {
            break ended;
        }
        send(&child, Signal::INT);
        sent += 1;
    };
    assert!(ended.code() == Some(130) && sent >= 3, "{ended:?} after {sent}");
    wait_for_end(&workspace);
    let (mut child, _out) = begin(&workspace, &deaf);
    send(&child, Signal::KILL);
    child.wait().unwrap();
    wait_for_end(&workspace);
}

/// A reader that stands still loses nothing, nor does a guest that stands still end the command.
#[test]
fn output_is_never_cut() {
    let workspace = Workspace::new("simulator", false);
    workspace.ok(&["up"]);
    let mut child = workspace
        .command(&["run", "head -c 60000000 /dev/zero; read -r line; echo \"$line\""])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut first = [1];
    out.read_exact(&mut first).unwrap();
    // Everything is full now, and stays so while these run.
    workspace.ok(&["status"]);
    let vmm = Pid::from_raw(workspace.vmm()).unwrap();
    kill_process(vmm, Signal::STOP).unwrap();
    assert!(child.try_wait().unwrap().is_none());
    kill_process(vmm, Signal::CONT).unwrap();
    child.stdin.take().unwrap().write_all(b"last\n").unwrap();
    let mut rest = Vec::new();
    out.read_to_end(&mut rest).unwrap();
    assert!(rest.ends_with(b"\0last\n") && rest.len() == 60_000_004, "{} bytes", rest.len());
    assert!(child.wait().unwrap().success());
}

#[test]
fn logs_shows_what_the_guest_wrote_and_writes_and_nothing_that_a_terminal_obeys() {
    let workspace = Workspace::new("simulator", true);
    let refused = workspace.run(&["logs"]);
    assert!(refused.code == Some(3) && refused.stderr.contains("no such log"), "{refused:?}");
    workspace.ok(&["up"]);
    let console = workspace.runtime().join("serial-1.log");
    let write = |text: &str| {
        let mut file = std::fs::OpenOptions::new().append(true).open(&console).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    };
    write("one\r\n\x1b[2Jtwo\r\n");
    assert_eq!(workspace.ok(&["logs", "-n", "2"]).stdout, "one\n\\x1b[2Jtwo\n");
    let mut child = workspace.command(&["logs", "-f", "-n", "1"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut next = || {
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        line
    };
    assert_eq!(next(), "\\x1b[2Jtwo\n");
    write("thr");
    write("ee\nfour\n");
    assert_eq!([next(), next()], ["three\n", "four\n"]);
    // It goes on with the next VM.
    workspace.ok(&["down"]);
    workspace.ok(&["up"]);
    let of_next = next();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(of_next.contains("no kernel runs here"), "{of_next}");
    let all = workspace.ok(&["logs", "console", "vmm", "shares", "-n", "1"]).stdout;
    assert!(all.starts_with("console: "), "{all}");
}

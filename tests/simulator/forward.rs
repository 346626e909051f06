//! `nixbox forward`. The loopback of the simulated guest is that of this machine.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::workspace::{LIMIT, Said, Workspace};

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Starts `nixbox forward`, and waits until it says that it forwards this many ports.
fn forward(workspace: &Workspace, arguments: &[&str], ports: usize) -> (Child, Vec<String>) {
    let mut command = workspace.command(&[&["forward"], arguments].concat());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let told = (0..ports).map(|_| lines.next().expect("a line for each port").unwrap()).collect();
    (child, told)
}

fn end(child: Child, signal: Option<Signal>) -> Said {
    if let Some(signal) = signal {
        kill_process(Pid::from_child(&child), signal).unwrap();
    }
    child.wait_with_output().unwrap().into()
}

/// Answers one connection with what it is asked, in capitals.
pub(crate) fn answer_once(listener: &TcpListener) {
    let (mut socket, _) = listener.accept().unwrap();
    let mut asked = String::new();
    socket.read_to_string(&mut asked).unwrap();
    socket.write_all(asked.to_uppercase().as_bytes()).unwrap();
}

/// Asks over a connection, of which `end` ends the asking side.
fn ask_over<S: Read + Write>(mut connection: S, end: impl FnOnce(&S) -> std::io::Result<()>) -> String {
    connection.write_all(b"question").unwrap();
    end(&connection).unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    answer
}

pub(crate) fn ask(port: u16) -> String {
    let connection = TcpStream::connect(("127.0.0.1", port)).unwrap();
    ask_over(connection, |connection| connection.shutdown(Shutdown::Write))
}

/// Starts `nixbox forward --background`, and returns the process that serves.
pub(crate) fn in_background(workspace: &Workspace, arguments: &[&str]) -> i32 {
    let said = workspace.ok(&[&["forward", "--background", "--json"], arguments].concat());
    let line = said.stdout.lines().next().unwrap();
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    i32::try_from(line["pid"].as_i64().unwrap()).unwrap()
}

pub(crate) fn listed(workspace: &Workspace) -> Vec<i64> {
    let listed = workspace.ok(&["forward", "list", "--json"]).json();
    listed.as_array().unwrap().iter().map(|one| one["pid"].as_i64().unwrap()).collect()
}

#[test]
fn a_connection_that_is_not_read_holds_up_no_other() {
    let workspace = Workspace::new("simulator", false);
    workspace.ok(&["up"]);
    let near = free_port();
    let program = TcpListener::bind("127.0.0.1:0").unwrap();
    let pair = format!("{near}:{}", program.local_addr().unwrap().port());
    let (child, _) = forward(&workspace, &[&pair], 1);
    let unread = TcpStream::connect(("127.0.0.1", near)).unwrap();
    let (mut sender, _) = program.accept().unwrap();
    std::thread::scope(|scope| {
        // It ends when the connection does.
        let flood = scope.spawn(move || {
            let mut sent = 0_u64;
            while sender.write_all(&[0; 1 << 16]).is_ok() {
                sent += 1 << 16;
            }
            sent
        });
        scope.spawn(|| (0..30).for_each(|_| answer_once(&program)));
        (0..30).for_each(|_| assert_eq!(ask(near), "QUESTION"));
        drop(unread);
        assert!(flood.join().unwrap() > 0);
    });
    assert_eq!(end(child, Some(Signal::TERM)).code, Some(0));
}

#[test]
fn unix_sockets_of_this_host_are_forwarded() {
    let workspace = Workspace::new("simulator", false);
    workspace.ok(&["up"]);
    let program = TcpListener::bind("127.0.0.1:0").unwrap();
    let path = workspace.path().join("socket");
    let pair = format!("{}:{}", path.display(), program.local_addr().unwrap().port());
    let (child, told) = forward(&workspace, &[&pair], 1);
    assert!(told[0].starts_with(path.to_str().unwrap()), "{told:?}");
    std::thread::scope(|scope| {
        scope.spawn(|| answer_once(&program));
        assert_eq!(ask_socket(&path), "QUESTION");
    });
    assert_eq!(end(child, Some(Signal::INT)).code, Some(0));
    assert!(!path.exists());
}

#[test]
fn ports_are_forwarded_until_a_signal_or_the_end_of_the_vm() {
    let workspace = Workspace::new("simulator", false);
    let (near, remote) = (free_port(), free_port());
    assert_eq!(workspace.run(&["forward", &near.to_string()]).code, Some(3), "no VM is running");
    workspace.ok(&["up"]);
    let program = TcpListener::bind("127.0.0.1:0").unwrap();
    let far = program.local_addr().unwrap().port();
    let (pair, refused) = (format!("{near}:{far}"), free_port());

    let (child, told) = forward(&workspace, &["--json", &pair, &format!("{refused}:{}", free_port())], 2);
    let line: serde_json::Value = serde_json::from_str(&told[0]).unwrap();
    assert_eq!((&line["listens"], &line["guest_port"]), (&"host".into(), &far.into()));
    assert_eq!(line["host"], format!("127.0.0.1:{near}"));
    std::thread::scope(|scope| {
        scope.spawn(|| (0..3).for_each(|_| answer_once(&program)));
        (0..3).for_each(|_| assert_eq!(ask(near), "QUESTION"));
    });
    // A connection stands while a live snapshot is made.
    let mut socket = TcpStream::connect(("127.0.0.1", near)).unwrap();
    let (mut accepted, _) = program.accept().unwrap();
    workspace.ok(&["snapshot"]);
    socket.write_all(b"still here").unwrap();
    let mut heard = [0; 10];
    accepted.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"still here");
    // Nothing listens there in the guest, which ends the connection and nothing else.
    for _ in 0..2 {
        let mut socket = TcpStream::connect(("127.0.0.1", refused)).unwrap();
        assert_eq!(socket.read(&mut [0]).unwrap_or_default(), 0);
    }
    let said = end(child, Some(Signal::INT));
    assert_eq!(
        (said.code, said.stderr.matches("nothing in the guest listens").count()),
        (Some(0), 1),
        "{said:?}"
    );

    // The guest's port, to a program of this host.
    let (child, told) = forward(&workspace, &["--remote", &format!("{remote}:{far}")], 1);
    assert_eq!(told[0], format!("port {remote} of the guest leads to 127.0.0.1:{far}"));
    std::thread::scope(|scope| {
        scope.spawn(|| answer_once(&program));
        assert_eq!(ask(remote), "QUESTION");
    });
    // Ports that cannot be bound.
    let taken = far.to_string();
    for (arguments, code, words) in [
        (&[near.to_string().as_str(), &taken][..], 1, "in use"),
        (&["0"], 2, "not a port"),
        (&["80:80:80"], 2, "[HOST:]PORT[:PORT]"),
        (&["9000", "127.0.0.1:9000:1"], 2, "twice"),
        (&["--remote", &taken], 1, "cannot listen on port"),
    ] {
        let said = workspace.run(&[&["forward"], arguments].concat());
        assert_eq!(said.code, Some(code), "{arguments:?}: {said:?}");
        assert!(said.stderr.contains(words), "{arguments:?}: {said:?}");
        assert_eq!(said.stdout, "", "{arguments:?}");
    }
    workspace.ok(&["down"]);
    let said = end(child, None);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.stderr.contains("no port is forwarded any more"), "{said:?}");
}

/// Asks on a Unix socket.
fn ask_socket(path: &std::path::Path) -> String {
    ask_over(UnixStream::connect(path).unwrap(), |connection| connection.shutdown(Shutdown::Write))
}

#[test]
fn unix_sockets_of_the_guest_are_forwarded_both_ways() {
    let workspace = Workspace::new("simulator", false);
    workspace.ok(&["up"]);
    let program = TcpListener::bind("127.0.0.1:0").unwrap();
    let far = program.local_addr().unwrap().port();
    // The file of this machine that stands for the guest's.
    let file = |name: &str| workspace.runtime().join("guest/tmp").join(name);
    let pair = format!("/tmp/x.sock:{far}");
    let (child, told) = forward(&workspace, &["--remote", "--json", &pair], 1);
    let line: serde_json::Value = serde_json::from_str(&told[0]).unwrap();
    assert_eq!((&line["listens"], &line["guest_socket"]), (&"guest".into(), &"/tmp/x.sock".into()));
    // And from this host to the socket in the guest, which leads back.
    let near = free_port();
    let (other, _) = forward(&workspace, &[&format!("{near}:/tmp/x.sock")], 1);
    std::thread::scope(|scope| {
        scope.spawn(|| (0..2).for_each(|_| answer_once(&program)));
        assert_eq!(ask(near), "QUESTION");
        assert_eq!(ask_socket(&file("x.sock")), "QUESTION");
    });
    assert_eq!(end(child, Some(Signal::INT)).code, Some(0));
    assert_eq!(end(other, Some(Signal::INT)).code, Some(0));
    // The file stays in the guest, where nixbox removes nothing.
    assert!(file("x.sock").exists());
    std::fs::write(file("precious"), "precious").unwrap();
    let long = format!("/{}:{far}", "s".repeat(107));
    for (pair, code, words) in [
        (pair.as_str(), 1, "/tmp/x.sock of the guest: it exists already: remove it in the guest"),
        ("/tmp/precious:1", 1, "exists already"),
        ("/tmp/none/x.sock:1", 1, "directory is missing"),
        ("/tmp/it's $HOME/x.sock:1", 1, "directory is missing"),
        ("/tmp/x.sock", 2, "[HOST:]PORT[:PORT]"),
        ("/tmp/x.sock:0", 2, "not a port"),
        (&long, 2, "107 bytes"),
    ] {
        for background in [&[][..], &["--background"]] {
            let said = workspace.run(&[&["forward", "--remote"], background, &[pair]].concat());
            assert_eq!(said.code, Some(code), "{pair}: {said:?}");
            assert!(said.stderr.contains(words), "{pair}: {said:?}");
            assert_eq!(said.stdout, "", "{pair}");
        }
    }
    assert_eq!(std::fs::read_to_string(file("precious")).unwrap(), "precious");
    workspace.guest("rm /tmp/x.sock");
    in_background(&workspace, &["--remote", &pair]);
    let list = workspace.ok(&["forward", "list"]).stdout;
    assert!(list.contains(&format!("/tmp/x.sock of the guest leads to 127.0.0.1:{far}")), "{list}");
    std::thread::scope(|scope| {
        scope.spawn(|| answer_once(&program));
        assert_eq!(ask_socket(&file("x.sock")), "QUESTION");
    });
    workspace.ok(&["forward", "stop", "/tmp/x.sock"]);
    assert!(listed(&workspace).is_empty());
}

#[test]
fn ports_are_forwarded_again_when_the_guest_was_rebooted() {
    let workspace = Workspace::new("simulator", false);
    workspace.ok(&["up"]);
    let program = TcpListener::bind("127.0.0.1:0").unwrap();
    let far = program.local_addr().unwrap().port();
    // It ends with the test.
    std::thread::spawn(move || {
        for socket in program.incoming() {
            let mut socket = socket.unwrap();
            // The other end may be gone, as after a reboot.
            socket.write_all(b"answer").ok();
        }
    });
    let answers = |port: u16| {
        let mut answer = String::new();
        TcpStream::connect(("127.0.0.1", port))
            .is_ok_and(|mut socket| socket.read_to_string(&mut answer).is_ok())
            && answer == "answer"
    };
    let (near, remote) = (free_port(), free_port());
    let known = [
        in_background(&workspace, &[&format!("{near}:{far}")]),
        in_background(&workspace, &["--remote", &format!("{remote}:{far}")]),
    ];
    for _ in 0..2 {
        assert!(answers(near) && answers(remote));
        workspace.run(&["run", "--", "reboot"]);
        let since = Instant::now();
        let wait = || {
            assert!(since.elapsed() < LIMIT, "{:?}", workspace.run(&["logs", "forwards"]));
            std::thread::sleep(Duration::from_millis(20));
        };
        while workspace.status()["vm"]["rebooted"] != true {
            wait();
        }
        workspace.ok(&["run", "true"]);
        // A kept connection that has broken is no obstacle.
        assert!(answers(near), "{:?}", workspace.run(&["logs", "forwards"]));
        while !answers(remote) {
            wait();
        }
    }
    let mut listed = listed(&workspace);
    listed.sort_unstable();
    let mut known = known.map(i64::from);
    known.sort_unstable();
    assert_eq!(listed, known);
}

//! `nixbox forward`. The loopback of the simulated guest is that of this machine.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::workspace::{LIMIT, Said, Workspace, nixbox_in};

/// A port that was free a moment ago.
fn free_port() -> u16 {
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
fn answer_once(listener: &TcpListener) {
    let (mut socket, _) = listener.accept().unwrap();
    let mut asked = String::new();
    socket.read_to_string(&mut asked).unwrap();
    socket.write_all(asked.to_uppercase().as_bytes()).unwrap();
}

fn ask(port: u16) -> String {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    socket.write_all(b"question").unwrap();
    socket.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    answer
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

/// Starts `nixbox forward --background`, and returns the process that serves.
fn in_background(workspace: &Workspace, arguments: &[&str]) -> i32 {
    let said = workspace.ok(&[&["forward", "--background", "--json"], arguments].concat());
    let line = said.stdout.lines().next().unwrap();
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    i32::try_from(line["pid"].as_i64().unwrap()).unwrap()
}

fn listed(workspace: &Workspace) -> Vec<i64> {
    let listed = workspace.ok(&["forward", "list", "--json"]).json();
    listed.as_array().unwrap().iter().map(|one| one["pid"].as_i64().unwrap()).collect()
}

/// Waits until nothing listens on the port, and nothing is listed.
fn until_ended(workspace: &Workspace, port: u16) {
    let since = Instant::now();
    while !listed(workspace).is_empty() || TcpStream::connect(("127.0.0.1", port)).is_ok() {
        assert!(since.elapsed() < LIMIT, "{:?}", workspace.marked());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn ports_are_forwarded_in_the_background_until_they_are_stopped() {
    let workspace = Workspace::new("simulator", false);
    let (first, second, remote) = (free_port(), free_port(), free_port());
    // Without a VM there is nothing to forward, nothing to list and nothing to stop.
    let said = workspace.run(&["forward", "-b", &first.to_string()]);
    assert_eq!(said.code, Some(3), "{said:?}");
    assert!(listed(&workspace).is_empty());
    for arguments in [&["stop"][..], &["stop", "8080"]] {
        let said = workspace.run(&[&["forward"], arguments].concat());
        assert_eq!(said.code, Some(3), "{said:?}");
        assert!(said.stderr.contains("nixbox forward list"), "{said:?}");
    }
    workspace.ok(&["forward", "stop", "--all"]);
    workspace.ok(&["up"]);
    assert!(workspace.ok(&["forward", "list"]).stderr.contains("nothing is forwarded"));

    let program = TcpListener::bind("127.0.0.1:0").unwrap();
    let far = program.local_addr().unwrap().port();
    let path = workspace.path().join("socket");
    let socket = format!("{}:{far}", path.display());
    let one = in_background(&workspace, &[&format!("{first}:{far}"), &socket]);
    let other = in_background(&workspace, &[&format!("{second}:{}", free_port())]);
    let third = in_background(&workspace, &["--remote", &format!("{remote}:{far}")]);
    std::thread::scope(|scope| {
        scope.spawn(|| (0..3).for_each(|_| answer_once(&program)));
        assert_eq!(ask(first), "QUESTION");
        assert_eq!(ask(remote), "QUESTION");
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    });
    // It has left the terminal of the command, and the directory.
    let stat = std::fs::read_to_string(format!("/proc/{one}/stat")).unwrap();
    assert_eq!(stat.rsplit(") ").next().unwrap().split(' ').nth(3).unwrap(), one.to_string(), "{stat}");
    assert_eq!(std::fs::read_link(format!("/proc/{one}/cwd")).unwrap().to_str(), Some("/"));
    let environment = std::fs::read_to_string(format!("/proc/{one}/environ")).unwrap();
    assert!(!environment.contains("CARGO"), "{environment}");

    let list = workspace.ok(&["forward", "list", "--json"]).json();
    let generation = workspace.status()["vm"]["generation"].clone();
    assert_eq!(list.as_array().unwrap().len(), 3);
    for forward in list.as_array().unwrap() {
        assert_eq!(forward["generation"], generation, "{list}");
        assert!(forward["since"].as_str().unwrap().starts_with("20"), "{list}");
        let ports = forward["ports"].as_array().unwrap();
        match forward["pid"].as_i64().unwrap() {
            pid if pid == i64::from(one) => {
                assert_eq!((&ports[0]["listens"], &ports[0]["guest_port"]), (&"host".into(), &far.into()));
                assert_eq!(ports[1]["host"], path.to_str().unwrap());
            }
            pid if pid == i64::from(other) => assert_eq!(ports[0]["host"], format!("127.0.0.1:{second}")),
            _ => assert_eq!((&ports[0]["listens"], ports.len()), (&"guest".into(), 1)),
        }
    }
    let text = workspace.ok(&["forward", "list"]).stdout;
    assert_eq!((text.lines().count(), text.matches("leads to").count()), (5, 4), "{text}");

    // What cannot be forwarded fails as in the foreground, and leaves no process.
    let taken = first.to_string();
    for (arguments, code, words) in [
        (&["-b", &taken][..], 1, "in use"),
        (&["-b", "0"], 2, "not a port"),
        (&["-b", "9000", "127.0.0.1:9000:1"], 2, "twice"),
        (&["-b", "--remote", &taken], 1, "cannot listen on port"),
        (&["-b"], 2, "PORT"),
        (&["stop", "1", &taken], 3, "\"1\""),
        (&["stop", "x"], 3, "\"x\""),
        (&["stop", ""], 3, "\"\""),
        (&["stop"], 2, "several processes"),
        (&["stop", "--all", &taken], 2, "--all"),
        (&["list", &taken], 2, "unexpected argument"),
        (&[&taken, "list"], 2, "not a port"),
    ] {
        let said = workspace.run(&[&["forward"], arguments].concat());
        assert_eq!(said.code, Some(code), "{arguments:?}: {said:?}");
        assert!(said.stderr.contains(words), "{arguments:?}: {said:?}");
    }
    // Neither does a command that cannot say that it has succeeded.
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = workspace.command(&["forward", "-b", &free_port().to_string()]);
    assert_eq!(command.stdout(full).output().unwrap().status.code(), Some(1));
    assert_eq!(listed(&workspace).len(), 3);

    // A snapshot, and what else is done with a VM, does not mind.
    workspace.ok(&["snapshot"]);
    assert!(workspace.check());
    workspace.ok(&["recover"]);
    assert_eq!(listed(&workspace).len(), 3);

    // Nothing in the guest listens there.
    for _ in 0..2 {
        let mut socket = TcpStream::connect(("127.0.0.1", second)).unwrap();
        assert_eq!(socket.read(&mut [0]).unwrap_or_default(), 0);
    }
    let log = workspace.ok(&["logs", "forwards"]).stdout;
    assert_eq!(log.matches("nothing in the guest listens").count(), 1, "{log}");
    assert!(log.contains(&format!("process {other}: ")), "{log}");

    let said = workspace.ok(&["forward", "stop", "--json", &taken]).json();
    assert_eq!(said["stopped"], serde_json::json!([one]));
    assert!(TcpStream::connect(("127.0.0.1", first)).is_err() && !path.exists());
    workspace.ok(&["forward", "stop", &other.to_string(), &format!("{remote}:{far}")]);
    assert!(listed(&workspace).is_empty(), "{third}");
    assert!(TcpListener::bind(("127.0.0.1", remote)).is_ok());
}

#[test]
fn a_killed_forward_leaves_nothing_that_is_in_the_way() {
    let workspace = Workspace::new("simulator", false);
    workspace.ok(&["up"]);
    let program = TcpListener::bind("127.0.0.1:0").unwrap();
    let far = program.local_addr().unwrap().port();
    let (near, remote) = (free_port(), free_port());
    let path = workspace.path().join("socket");
    let host = [format!("{near}:{far}"), format!("{}:{far}", path.display())];
    let host: Vec<&str> = host.iter().map(String::as_str).collect();
    let guest = ["--remote", &format!("{remote}:{far}")];
    let known = workspace.marked().len();
    for round in 0..2 {
        let killed = [in_background(&workspace, &host), in_background(&workspace, &guest)];
        for pid in killed {
            kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
        }
        until_ended(&workspace, near);
        assert_eq!(workspace.marked().len(), known, "round {round}: {:?}", workspace.marked());
        // The guest's SSH server stops listening when it has noticed that its client is gone.
        let since = Instant::now();
        while TcpStream::connect(("127.0.0.1", remote)).is_ok() {
            assert!(since.elapsed() < LIMIT);
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(workspace.check());
    }
    // A file that is no socket of nixbox's stays.
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "precious").unwrap();
    let said = workspace.run(&[&["forward", "-b"], &host[..]].concat());
    assert_eq!((said.code, said.stderr.contains("exists already")), (Some(1), true), "{said:?}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    assert!(listed(&workspace).is_empty());
}

#[test]
fn a_forward_ends_with_its_vm() {
    let workspace = Workspace::new("simulator", false);
    workspace.ok(&["up"]);
    workspace.ok(&["snapshot", "--name", "one"]);
    let (near, remote) = (free_port(), free_port());
    let near_text = near.to_string();
    let both = |workspace: &Workspace| {
        in_background(workspace, &[&near_text]);
        in_background(workspace, &["--remote", &format!("{remote}:{near}")])
    };
    // `down` ends it, so that its ports are free afterwards; also where it cannot end by itself.
    let stopped = both(&workspace);
    kill_process(Pid::from_raw(stopped).unwrap(), Signal::STOP).unwrap();
    workspace.ok(&["down"]);
    assert!(listed(&workspace).is_empty());
    drop(TcpListener::bind(("127.0.0.1", near)).unwrap());
    assert!(!workspace.check());
    // A VM that ends without nixbox.
    workspace.ok(&["up"]);
    both(&workspace);
    kill_process(Pid::from_raw(workspace.vmm()).unwrap(), Signal::KILL).unwrap();
    until_ended(&workspace, near);
    let log = workspace.ok(&["logs", "forwards"]).stdout;
    assert!(log.contains("no port is forwarded any more"), "{log}");
    // A VM that is replaced by another. The next forward does not wait for the end of the former one.
    workspace.ok(&["up"]);
    let former = both(&workspace);
    workspace.ok(&["restore", "one", "--replace"]);
    let next = both(&workspace);
    assert!(!listed(&workspace).contains(&i64::from(former)));
    assert!(listed(&workspace).contains(&i64::from(next)));
    assert!(workspace.check());
    // A snapshot that leaves the VM down.
    workspace.ok(&["snapshot", "--stop"]);
    until_ended(&workspace, near);
    assert!(!workspace.check());
}

#[test]
fn a_forward_follows_its_vm_to_another_vmm() {
    // A live snapshot of this version, with a share, goes on in another VMM.
    let workspace = Workspace::new("simulator-v53", true);
    workspace.ok(&["up"]);
    let (near, remote) = (free_port(), free_port());
    let known = [
        in_background(&workspace, &[&near.to_string()]),
        in_background(&workspace, &["--remote", &format!("{remote}:{near}")]),
    ];
    let vmm = workspace.vmm();
    workspace.ok(&["snapshot"]);
    assert_ne!(workspace.vmm(), vmm);
    // Longer than the interval at which the VM is looked at. Nothing is to be seen of a process that goes on.
    std::thread::sleep(Duration::from_secs(3));
    let mut known = known.map(i64::from);
    known.sort_unstable();
    assert_eq!(listed(&workspace), known);
    drop(TcpStream::connect(("127.0.0.1", near)).unwrap());
    workspace.ok(&["down"]);
    assert!(listed(&workspace).is_empty());
}

/// Asks on a Unix socket.
fn ask_socket(path: &std::path::Path) -> String {
    let mut socket = UnixStream::connect(path).unwrap();
    socket.write_all(b"question").unwrap();
    socket.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    answer
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
fn a_forward_that_hangs_does_not_keep_a_workspace() {
    let workspace = Workspace::new("simulator", false);
    workspace.ok(&["up"]);
    let near = free_port();
    let hangs = in_background(&workspace, &[&near.to_string()]);
    let doctor = workspace.run(&["doctor"]);
    assert!(!doctor.stdout.contains("forward") && !doctor.stderr.contains("forward"), "{doctor:?}");
    let id = workspace.status_text("id");
    kill_process(Pid::from_raw(hangs).unwrap(), Signal::STOP).unwrap();
    let vmm = workspace.vmm();
    kill_process(Pid::from_raw(vmm).unwrap(), Signal::KILL).unwrap();
    let since = Instant::now();
    while workspace.marked().iter().any(|process| process.pid == vmm) {
        assert!(since.elapsed() < LIMIT);
        std::thread::sleep(Duration::from_millis(5));
    }
    // It is no process of a VM.
    let list = nixbox_in("/", &["list", "--json"]).json();
    let row = list.as_array().unwrap().iter().find(|one| one["id"] == id.as_str()).unwrap();
    assert_eq!(row["processes"], serde_json::json!([]), "{row}");
    std::fs::remove_dir_all(workspace.path()).unwrap();
    let said = nixbox_in("/", &["forget", &id]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(workspace.marked().is_empty());
    drop(TcpListener::bind(("127.0.0.1", near)).unwrap());
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

//! Ports that are forwarded in the background: `nixbox forward --background`, `list` and `stop`.

use std::io::Read;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::forward::{answer_once, ask, free_port, in_background, listed};
use crate::workspace::{LIMIT, Workspace, nixbox_in};

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

use std::fs;
use std::os::unix::net::UnixListener;
use std::process::Output;

use super::*;
use crate::host::spawn::{Invoker, Privileges};
use crate::testing::{Need, have};

/// A directory with a file that a daemon may use, and a secret beside it.
fn arena() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for name in ["own", "made"] {
        fs::create_dir(directory.path().join(name)).unwrap();
    }
    for name in ["own/file", "secret"] {
        fs::write(directory.path().join(name), name).unwrap();
    }
    directory
}

/// The output of a shell that the launcher has become.
fn shell(confinement: Confinement, directory: &Path, script: &str) -> Output {
    let privileges = Privileges::Invoker(Invoker::detect().unwrap());
    let program = Program::new("/bin/sh", privileges).argument("-c").argument(script).argument(directory);
    confinement.launch(program).command().output().unwrap()
}

fn own(directory: &Path) -> Confinement {
    Confinement::of_a_program()
        .may(FileAccess::Write, directory.join("own"))
        .may(FileAccess::Make, directory.join("made"))
        .may(FileAccess::OwnFile, directory.join("log"))
        .may(FileAccess::Read, directory.join("absent"))
}

#[test]
fn a_daemon_runs_with_its_arguments_and_uses_its_files_on_every_kernel() {
    let directory = arena();
    let script = "cat $0/own/file; echo new > $0/made/file; echo a >> $0/own/file; echo log > $0/log; exit 7";
    let output = shell(own(directory.path()), directory.path(), script);
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(7), &b""[..]), "{output:?}");
    assert_eq!(output.stdout, b"own/file");
    let read = |name: &str| fs::read_to_string(directory.path().join(name)).unwrap();
    assert_eq!((read("made/file"), read("log")), ("new\n".to_owned(), "log\n".to_owned()));
}

#[test]
fn a_daemon_cannot_open_any_other_file() {
    if !have(&[Need::Landlock]) {
        return;
    }
    let directory = arena();
    for attempt in [
        "cat $0/secret",
        "cat /etc/passwd",
        "ls $0",
        "echo a >> $0/secret",
        "echo a > $0/new",
        "echo a > $0/own/new",
        "rm $0/own/file",
        "mv $0/own/file $0/made/file",
        "ln $0/own/file $0/made/link",
        "mkdir $0/made/directory",
        "ls /proc/1",
    ] {
        let script = format!("if {attempt}; then echo done; fi");
        let output = shell(own(directory.path()), directory.path(), &script);
        let (said, error) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let denied = error.contains("ermission denied") || error.contains("cross-device");
        assert!(!said.contains("done") && denied, "{attempt}: {said} {error}");
    }
    assert_eq!(fs::read_to_string(directory.path().join("secret")).unwrap(), "secret");
}

#[test]
fn what_cannot_be_made_or_started_is_said() {
    let directory = arena();
    let bad = own(directory.path()).may(FileAccess::OwnFile, directory.path().join("absent/log"));
    let output = shell(bad, directory.path(), "true");
    assert_eq!(output.status.code(), Some(REFUSED.into()), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot make"), "{output:?}");
    // A socket or FIFO in the place of a file is not written.
    let socket = UnixListener::bind(directory.path().join("socket")).unwrap();
    let bad = own(directory.path()).may(FileAccess::OwnFile, directory.path().join("socket"));
    assert_eq!(shell(bad, directory.path(), "true").status.code(), Some(REFUSED.into()));
    drop(socket);
    let privileges = Privileges::Invoker(Invoker::detect().unwrap());
    let program = own(directory.path()).launch(Program::new("/nowhere/at-all", privileges));
    let output = program.command().output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot start"), "{output:?}");
}

#[test]
fn the_arguments_of_the_launcher_name_every_rule() {
    let confinement = own("/d".as_ref());
    let mut arguments = confinement.launcher_arguments();
    arguments.extend(["/bin/p".into(), "--flag".into()]);
    let (parsed, program, rest) = Confinement::parse(&arguments).unwrap();
    assert_eq!((parsed, program, rest), (confinement, OsStr::new("/bin/p"), &["--flag".into()][..]));
    for (access, name) in FileAccess::NAMES {
        assert_eq!(FileAccess::of_name(name.as_ref()), Some(access));
    }
    let with_tcp = Confinement::default().may_use_tcp();
    let arguments = [with_tcp.launcher_arguments(), vec!["/bin/p".into()]].concat();
    assert_eq!(Confinement::parse(&arguments).unwrap().0, with_tcp);
    let few = [&[][..], &["tcp"], &["x", "0", "/p"], &["tcp", "x", "/p"], &["tcp", "-1"], &["tcp", "0"]];
    let bad = [&["tcp", "1", "read"][..], &["tcp", "1", "read", "/a"], &["tcp", "1", "all", "/a", "/p"]];
    for bad in few.into_iter().chain(bad) {
        let arguments: Vec<OsString> = bad.iter().map(|word| (*word).into()).collect();
        assert!(Confinement::parse(&arguments).is_none(), "{bad:?}");
    }
}

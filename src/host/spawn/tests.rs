use super::*;
use crate::testing::{self, Need, USER, have};
use std::os::fd::AsRawFd;
use std::process::Stdio;

fn status_of(program: Program) -> String {
    let output = program.argument("/proc/self/status").command().stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn line<'a>(status: &'a str, key: &str) -> Vec<&'a str> {
    let line = status.lines().find(|line| line.starts_with(key)).unwrap();
    line.split_whitespace().skip(1).collect()
}

#[test]
fn another_user_gets_its_ids_and_groups_and_no_capability() {
    if !have(&[Need::Root]) {
        return;
    }
    let other = Invoker { uid: 12345, gid: 12346, groups: vec![12346, 12347] };
    let status = status_of(Program::new("/bin/cat", Privileges::Invoker(other)));
    assert_eq!(line(&status, "Uid:"), ["12345"; 4]);
    assert_eq!(line(&status, "Gid:"), ["12346"; 4]);
    assert_eq!(line(&status, "Groups:"), ["12346", "12347"]);
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        assert_eq!(line(&status, set), ["0000000000000000"], "{set}");
    }
    assert_eq!(line(&status, "NoNewPrivs:"), ["1"]);
}

#[test]
fn only_requested_capabilities_survive_the_exec() {
    if !have(&[Need::Root]) {
        return;
    }
    let bind = CapabilitySet::NET_BIND_SERVICE;
    let status = status_of(Program::new("/bin/cat", Privileges::Own(bind)));
    assert_eq!(line(&status, "CapAmb:"), [format!("{:016x}", bind.bits())]);
    assert_eq!(line(&status, "CapInh:"), [format!("{:016x}", bind.bits())]);
    let status = status_of(Program::new("/bin/cat", Privileges::Invoker(Invoker::user(0, 0).unwrap())));
    assert_eq!(line(&status, "CapAmb:"), ["0000000000000000"]);
    assert_eq!(line(&status, "CapInh:"), ["0000000000000000"]);
}

#[test]
fn descriptors_and_variables_of_nixbox_are_not_inherited() {
    // A descriptor without close-on-exec, such as a pipe of nixbox's caller.
    let leak = rustix::io::fcntl_dupfd_cloexec(std::fs::File::open("/dev/null").unwrap(), 300).unwrap();
    rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).unwrap();
    let own = Privileges::Own(CapabilitySet::empty());
    let script = format!(
        "test -e /proc/$$/fd/{} && echo leaked || echo closed; umask; ulimit -n; pwd; env | cut -d= -f1 | sort",
        leak.as_raw_fd()
    );
    let program = Program::new("/bin/bash", own).argument("-c").argument(script).open_files(512);
    let output = program.command().stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines = text.lines();
    assert_eq!(lines.next().unwrap(), "closed");
    assert_eq!(lines.next().unwrap(), "0077");
    assert_eq!(lines.next().unwrap(), "512");
    assert_eq!(lines.next().unwrap(), "/");
    assert_eq!(lines.collect::<Vec<_>>(), ["PATH", "PWD", "SHLVL", "_"]);
}

#[test]
fn the_variable_has_precedence_over_path_and_must_name_a_program() {
    let find = |named: Option<&str>, search: &str| {
        locate("sh", "NIXBOX_SH", named.map(OsString::from), Some(search.into()))
    };
    assert_eq!(find(None, "/nowhere:/bin").unwrap(), Path::new("/bin/sh"));
    assert_eq!(find(Some("/bin/cat"), "/bin").unwrap(), Path::new("/bin/cat"));
    assert!(matches!(find(Some("/bin"), "/bin"), Err(SpawnError::NotExecutable { .. })));
    assert!(matches!(find(Some(""), "/bin"), Err(SpawnError::NotExecutable { .. })));
    assert!(matches!(find(Some("/etc/passwd"), "/bin"), Err(SpawnError::NotExecutable { .. })));
    assert!(matches!(find(None, "bin::.:/nowhere"), Err(SpawnError::NotFound { .. })));
}

/// Distributions put virtiofsd there.
#[test]
fn a_program_is_found_in_the_directories_for_programs_of_programs_after_those_of_path() {
    let programs = std::fs::read_dir("/usr/libexec").into_iter().flatten();
    let programs = programs.map(|entry| entry.unwrap().path()).filter(|path| program::is_executable(path));
    for path in programs {
        let name: &'static str = path.file_name().unwrap().to_str().unwrap().to_owned().leak();
        assert_eq!(locate(name, "NIXBOX_X", None, Some("/nowhere".into())).unwrap(), path);
    }
    // One on PATH comes first.
    assert_eq!(locate("sh", "NIXBOX_SH", None, Some("/bin".into())).unwrap(), Path::new("/bin/sh"));
}

#[test]
fn a_program_that_the_user_may_not_run_is_named_with_the_user_and_the_obstacle() {
    use std::os::unix::fs::PermissionsExt;
    if !have(&[Need::Root]) {
        return;
    }
    let user = Invoker { uid: USER, gid: 12346, groups: vec![12346] };
    let directory = testing::open_directory();
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let make = |parent: &str, file: u32| {
        let parent = directory.path().join(parent);
        std::fs::create_dir_all(&parent).unwrap();
        mode(&parent, 0o755);
        let path = parent.join("tool");
        std::fs::write(&path, "#!/bin/sh\n").unwrap();
        mode(&path, file);
        path
    };
    let (home, own, open) = (make("home/bin", 0o755), make("own", 0o700), make("open", 0o755));
    let closed = directory.path().join("home");
    mode(&closed, 0o700);
    let link = directory.path().join("tool");
    std::os::unix::fs::symlink(&home, &link).unwrap();
    let find = |named: Option<&Path>, search: &[&Path]| {
        let search = env::join_paths(search.iter().map(|path| path.parent().unwrap())).unwrap();
        locate_for(&user, "tool", "NIXBOX_TOOL", named.map(OsString::from), Some(search))
    };
    // Root finds the first of them. The user runs the one that is open to every user.
    assert_eq!(find(None, &[&home, &own, &open]).unwrap(), open);
    for (program, obstacle) in [(&home, &closed), (&link, &closed), (&own, &own)] {
        let expected = format!(
            "user {USER} may not run {program:?}, because {obstacle:?} is closed to that user; \
             install tool in a directory that every user can reach, such as /usr/local/bin"
        );
        assert_eq!(find(None, &[program]).unwrap_err().to_string(), expected);
        assert_eq!(find(Some(program), &[]).unwrap_err().to_string(), expected);
        let stand_in = StandIn { path: program.clone(), words: Vec::new() };
        let made = super::program("tool", "NIXBOX_TOOL", Some(&stand_in), Privileges::Invoker(user.clone()));
        assert_eq!(made.unwrap_err().to_string(), expected);
    }
    // The user's own nixbox cannot see what is in a closed directory, and names the directory.
    let seen = user.act(|| locate("tool", "NIXBOX_TOOL", Some(home.clone().into()), None)).unwrap();
    let obstacle =
        matches!(&seen, Err(SpawnError::Closed { uid: USER, obstacle, .. }) if *obstacle == closed);
    assert!(obstacle, "{seen:?}");
    let seen = user.act(|| locate("tool", "NIXBOX_TOOL", None, Some(home.parent().unwrap().into())));
    let error = seen.unwrap().unwrap_err().to_string();
    assert!(error.contains("tool is not on PATH") && error.contains("home/bin"), "{error}");
    assert!(find(None, &[]).unwrap_err().to_string().starts_with("tool is not on PATH, nor in /usr/libexec"));
    // Whatever the thread took on ended with it.
    assert!(rustix::process::geteuid().is_root());
}

#[test]
fn sudo_ids_are_numbers_or_an_error() {
    let sudo = |uid: &str, gid: &str| Invoker::from_sudo(uid.as_ref(), gid.as_ref());
    let nobody = sudo("65534", "65534").unwrap();
    assert_eq!((nobody.uid(), nobody.gid()), (65534, 65534));
    assert_eq!(nobody.groups, [65534]);
    assert_eq!(sudo("54321", "7").unwrap().groups, [7]);
    for bad in ["", "-1", "+1", "1 ", "0x1", "4294967295", "4294967296"] {
        assert!(matches!(sudo(bad, "0"), Err(SpawnError::BadSudo { variable: "SUDO_UID", .. })), "{bad}");
        assert!(matches!(sudo("1", bad), Err(SpawnError::BadSudo { variable: "SUDO_GID", .. })), "{bad}");
    }
}

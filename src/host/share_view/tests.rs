//! The launcher with a shell in place of virtiofsd, which looks at what the daemon would serve.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Output, Stdio};

use super::*;
use crate::host::socket::{self, SocketPath};
use crate::testing::{self, Need, USER, have};
use crate::world::PathInShare;

/// A directory with workspaces in it, which belongs to a user.
struct Fixture {
    directory: tempfile::TempDir,
    user: u32,
}

impl Fixture {
    fn of(user: u32) -> Self {
        let directory = testing::open_directory();
        chown(directory.path(), Some(user), Some(user)).unwrap();
        let fixture = Self { directory, user };
        fixture.workspace("one");
        fixture
    }

    fn path(&self) -> PathBuf {
        self.directory.path().canonicalize().unwrap()
    }

    fn own(&self, path: &std::path::Path) {
        for part in path.ancestors().take_while(|part| *part != self.path()) {
            std::os::unix::fs::lchown(part, Some(self.user), Some(self.user)).unwrap();
        }
    }

    fn workspace(&self, name: &str) -> PathBuf {
        let root = self.path().join(name);
        let nixbox = root.join(HIDDEN);
        fs::create_dir_all(nixbox.join("ssh")).unwrap();
        for (file, text) in [("config.toml", "name"), (".gitignore", "*"), ("ssh/vm_key", "secret")] {
            fs::write(nixbox.join(file), text).unwrap();
            self.own(&nixbox.join(file));
        }
        fs::write(root.join("code"), "code").unwrap();
        self.own(&root.join("code"));
        fs::set_permissions(&nixbox, fs::Permissions::from_mode(0o700)).unwrap();
        root
    }

    /// A socket of a share, as a supervisor hands it over.
    fn socket(&self) -> OwnedFd {
        let path = self.directory.path().join("share.sock");
        fs::remove_file(&path).ok();
        socket::bind(&SocketPath::new(path).unwrap()).unwrap()
    }

    /// The launcher that becomes a shell with `script`, whose first argument is where the daemon finds the source.
    fn command(&self, source: &std::path::Path, workspace: &std::path::Path, script: &str) -> Command {
        let mut command = Command::new("/proc/self/exe");
        let view = ShareView {
            source: source.to_owned(),
            workspace: workspace.to_owned(),
            protect: PathInShare::DEFAULT.iter().map(|path| path.as_str().into()).collect(),
        };
        // A source that is not there is refused by its path.
        let status = source.symlink_metadata();
        let (device, inode) = status.map_or((0, 0), |status| (status.dev(), status.ino()));
        command.arg(COMMAND).arg(BECOME).arg(format!("{device}:{inode}:{}", std::process::id()));
        command.args(view.launcher_arguments()).args(["/bin/sh", "-c", script, "sh"]);
        command
            .arg(place::PATH)
            .arg(ShareView::daemon_argument())
            .stdin(self.socket())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if self.user != 0 {
            command.uid(self.user).gid(self.user);
        }
        command
    }

    fn output(&self, source: &std::path::Path, script: &str) -> Output {
        self.command(source, &self.path().join("one"), script).output().unwrap()
    }

    fn sees(&self, source: &std::path::Path, script: &str) -> String {
        let output = self.output(source, script);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{error}");
        String::from_utf8(output.stdout).unwrap() + &error
    }

    fn refused(&self, source: &std::path::Path) -> String {
        let output = self.output(source, "true");
        assert_eq!(output.status.code(), Some(REFUSED.into()), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    }
}

/// Root, and a user who is not.
fn users() -> impl Iterator<Item = Fixture> {
    have(&[Need::Root]).then_some([0, USER]).into_iter().flatten().map(Fixture::of)
}

const LIST: &str = "cd $1; find . -path '*.nixbox*' | sort; find . -name vm_key";

#[test]
fn the_share_of_a_workspace_shows_two_files_of_nixbox_that_cannot_be_changed() {
    for fixture in users() {
        let source = fixture.path().join("one");
        let seen = fixture.sees(&source, LIST);
        assert_eq!(seen, "./.nixbox\n./.nixbox/.gitignore\n./.nixbox/config.toml\n");
        let seen = fixture.sees(&source, "cat $1/code $1/.nixbox/config.toml; stat -c %a $1/.nixbox");
        assert_eq!(seen, "codename700\n");
        for attempt in [
            "echo '[hooks]' >> .nixbox/config.toml",
            "rm .nixbox/config.toml",
            "touch .nixbox/journal",
            "mv .nixbox other",
            "rmdir .nixbox",
            "chmod 777 .nixbox",
        ] {
            let seen = fixture.sees(&source, &format!("cd $1; if {attempt}; then echo done; fi"));
            let expected = ["Read-only file system", "Device or resource busy"];
            assert!(expected.iter().any(|error| seen.contains(error)) && !seen.contains("done"), "{seen}");
        }
        assert_eq!(fs::read_to_string(source.join(".nixbox/config.toml")).unwrap(), "name");
    }
}

#[test]
fn every_workspace_below_a_source_is_masked_and_stays_where_it_is() {
    for fixture in users() {
        let other = fixture.workspace("two/deeper");
        let source = fixture.path();
        let seen = fixture.sees(&source, "cd $1; find . -name vm_key; find . -name config.toml | sort");
        assert_eq!(seen, "./one/.nixbox/config.toml\n./two/deeper/.nixbox/config.toml\n");
        // Another directory in the place of a workspace would not be masked.
        for attempt in ["mv one three", "mv two three", "mv two/deeper two/other"] {
            let seen = fixture.sees(&source, &format!("cd $1; if {attempt}; then echo done; fi"));
            assert!(seen.contains("busy") && !seen.contains("done"), "{seen}");
        }
        assert!(other.join(".nixbox/ssh/vm_key").exists());
    }
}

#[test]
fn a_source_inside_of_nixbox_and_a_link_are_refused() {
    for fixture in users() {
        for inside in ["one/.nixbox", "one/.nixbox/ssh"] {
            let error = fixture.refused(&fixture.path().join(inside));
            assert!(error.contains("lies inside a .nixbox"), "{error}");
        }
        let link = fixture.path().join("link");
        symlink("one", &link).unwrap();
        // nixbox gives the launcher what the link leads to. A link that appears after that is refused.
        let error = fixture.refused(&link);
        assert!(error.contains("cannot open") || error.contains("is a link now"), "{error}");
    }
}

#[test]
fn of_nixbox_only_regular_files_are_shown() {
    for fixture in users() {
        let source = fixture.path().join("one");
        let nixbox = source.join(HIDDEN);
        fs::remove_file(nixbox.join("config.toml")).unwrap();
        symlink("ssh/vm_key", nixbox.join("config.toml")).unwrap();
        fs::remove_file(nixbox.join(".gitignore")).unwrap();
        let fifo = Command::new("mkfifo").arg(nixbox.join(".gitignore")).status().unwrap();
        assert!(fifo.success());
        assert_eq!(fixture.sees(&source, LIST), "./.nixbox\n");
    }
}

#[test]
fn a_workspace_in_a_directory_that_may_not_be_listed_is_masked() {
    for fixture in users() {
        let hidden = fixture.workspace("closed");
        chown(&hidden, Some(USER + 1), Some(USER + 1)).unwrap();
        fs::set_permissions(&hidden, fs::Permissions::from_mode(0o711)).unwrap();
        let source = fixture.path();
        let seen = fixture.sees(&source, "ls $1/closed/.nixbox");
        assert_eq!(seen, "config.toml\n");
        // A user can list what belongs to that user whatever its permissions are, because the daemon can, too.
        let own = fixture.workspace("own/inner");
        let outer = own.parent().unwrap();
        fs::set_permissions(outer, fs::Permissions::from_mode(0o311)).unwrap();
        assert_eq!(fixture.sees(&source, "ls $1/own/inner/.nixbox"), "config.toml\n");
    }
}

#[test]
fn a_workspace_that_the_search_cannot_find_is_refused() {
    for fixture in users() {
        let gone = fixture.path().join("one/gone");
        let output = fixture.command(&fixture.path(), &gone, "true").output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(REFUSED.into()), "{error}");
        assert!(error.contains("was not found below the share"), "{error}");
    }
}

#[test]
fn a_share_is_refused_where_no_namespace_can_be_made() {
    if !have(&[Need::Root, Need::Program("setpriv")]) {
        return;
    }
    let fixture = Fixture::of(0);
    let source = fixture.path().join("one");
    let launcher = fixture.command(&source, &source, "true");
    // The link would lead to setpriv, whose program this process is then.
    let program = std::env::current_exe().unwrap();
    let output = Command::new("setpriv")
        .args(["--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"])
        .arg(program)
        .args(launcher.get_args())
        .output()
        .unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(REFUSED.into()), "{error}");
    assert!(
        error.contains("no mount namespace can be made") && error.contains("remove the share"),
        "{error}"
    );
}

fn mounts() -> String {
    fs::read_to_string("/proc/self/mountinfo").unwrap()
}

fn mask_mounts(pid: u32) -> usize {
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    mounts.lines().filter(|line| line.contains(MASK)).count()
}

/// Ends a launcher or daemon without a chance for it to clean up.
fn kill(mut child: Child) {
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
}

#[test]
fn the_host_has_no_mount_at_any_time_and_nothing_is_left_of_a_killed_daemon() {
    for fixture in users() {
        let before = mounts();
        let source = fixture.path();
        let mut daemon =
            fixture.command(&source, &source.join("one"), "echo; kill -STOP $$").spawn().unwrap();
        std::io::Read::read_exact(daemon.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        assert_eq!(mask_mounts(daemon.id()), 1);
        assert_eq!(mounts(), before);
        let environment = fs::read(format!("/proc/{}/environ", daemon.id())).unwrap();
        assert!(environment.split(|byte| *byte == 0).any(|entry| entry == b"NIXBOX_MASKS=one/.nixbox"));
        kill(daemon);
        assert_eq!(mounts(), before);
        assert!(source.join("one/.nixbox/ssh/vm_key").exists());
    }
}

/// `F_SETSIG` of include/uapi/asm-generic/fcntl.h, which the crate libc does not have.
const F_SETSIG: i32 = 10;

#[test]
fn a_nixbox_that_the_host_made_anew_is_exposed() {
    for fixture in users() {
        let source = fixture.path();
        let (one, two) = (source.join("one"), fixture.workspace("two"));
        let mut daemon = fixture.command(&source, &one, "echo; kill -STOP $$").spawn().unwrap();
        std::io::Read::read_exact(daemon.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        let exposed = || standing::exposed(daemon.id(), &one).unwrap();
        assert_eq!(exposed(), Vec::<PathBuf>::new());
        // A workspace that is moved away takes its mask along, and a new one has none.
        fs::rename(&one, source.join("moved")).unwrap();
        assert_eq!(exposed(), Vec::<PathBuf>::new());
        fixture.workspace("one");
        assert_eq!(exposed(), [one.join(HIDDEN)]);
        fs::remove_dir_all(two.join(HIDDEN)).unwrap();
        assert_eq!(exposed(), [one.join(HIDDEN)]);
        fixture.workspace("two");
        assert_eq!(exposed(), [one.join(HIDDEN), two.join(HIDDEN)]);
        let pid = daemon.id();
        kill(daemon);
        assert_eq!(standing::exposed(pid, &one).unwrap(), Vec::<PathBuf>::new());
    }
}

#[test]
fn the_environment_names_each_mask() {
    let paths: Vec<PathBuf> = vec![HIDDEN.into(), "a b/.nixbox".into(), "c\nd/.nixbox".into()];
    let value = standing::masks_value(&paths).unwrap();
    assert_eq!(value, ".nixbox//a b/.nixbox//c\nd/.nixbox");
    let long: Vec<PathBuf> = (0..500).map(|number| format!("{number:0200}/.nixbox").into()).collect();
    assert_eq!(standing::masks_value(&long), None);
}

#[test]
fn protected_paths_are_read_only_and_stay_where_they_are() {
    for fixture in users() {
        let source = fixture.path().join("one");
        let git = source.join(".git");
        fs::create_dir_all(git.join("hooks")).unwrap();
        for file in ["hooks/pre-commit", "config", "HEAD"] {
            fs::write(git.join(file), "text").unwrap();
            fixture.own(&git.join(file));
        }
        for attempt in [
            "echo a >> .git/config",
            "echo a >> .git/hooks/pre-commit",
            "touch .git/hooks/post-commit",
            "chmod +x .git/hooks/pre-commit",
            "mv .git/hooks .git/other",
            "mv .git/HEAD .git/config",
            "mv .git other",
            "rm -rf .git/hooks",
        ] {
            let seen = fixture.sees(&source, &format!("cd $1; if {attempt}; then echo done; fi"));
            assert!(!seen.contains("done"), "{attempt}: {seen}");
        }
        assert_eq!(fixture.sees(&source, "cd $1/.git; cat config hooks/*; echo new > HEAD"), "texttext");
        assert_eq!(fs::read_to_string(git.join("HEAD")).unwrap(), "new\n");
        // The directories above the source of a share have no part in it.
        assert_eq!(fixture.sees(&fixture.path(), "echo a >> $1/one/.git/config"), "");
    }
}

#[test]
fn the_git_file_of_a_work_tree_is_protected_and_a_link_is_refused() {
    for fixture in users() {
        let source = fixture.path().join("one");
        fs::write(source.join(".git"), "gitdir: elsewhere").unwrap();
        fixture.own(&source.join(".git"));
        let seen = fixture.sees(&source, "cd $1; if echo a > .git; then echo done; fi");
        assert!(seen.contains("Read-only") && !seen.contains("done"), "{seen}");
        fs::remove_file(source.join(".git")).unwrap();
        symlink("elsewhere", source.join(".git")).unwrap();
        assert!(fixture.refused(&source).contains("cannot be protected"));
    }
}

#[test]
fn a_daemon_makes_no_file_that_gives_privileges() {
    for fixture in users() {
        let source = fixture.path().join("one");
        let sees = |script: &str| fixture.sees(&source, &format!("cd $1; {script}"));
        for refused in
            ["chmod u+s code", "chmod g+s code", "chmod 6755 code", "mknod node c 1 3", "mknod node b 7 0"]
        {
            let said = sees(&format!("if {refused}; then echo done; fi"));
            assert!(said.contains("not permitted") && !said.contains("done"), "{refused}: {said}");
        }
        let ordinary = "chmod 1750 code; stat -c %a code; mknod fifo p; mkfifo -m 600 other; mkdir -m 755 new; rm -r fifo other new";
        assert_eq!(sees(ordinary), "1750\n");
        // What is made in a setgid directory is setgid by the kernel's doing.
        fs::create_dir(source.join("group")).unwrap();
        fixture.own(&source.join("group"));
        fs::set_permissions(source.join("group"), fs::Permissions::from_mode(0o2755)).unwrap();
        assert_eq!(sees("mkdir group/inner; stat -c %A group/inner"), "drwxr-sr-x\n");
    }
}

#[test]
fn calls_that_make_a_file_with_the_setuid_bit_fail() {
    if !have(&[Need::Root, Need::Program("python3")]) {
        return;
    }
    const SCRIPT: &str = r#"cd $1; python3 -c '
import ctypes, errno, os, stat
libc = ctypes.CDLL(None, use_errno=True)
def attempt(name, act):
    try:
        act()
        print(name, "done")
    except OSError as error:
        print(name, errno.errorcode[error.errno])
def raw(number, *arguments):
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "")
attempt("open", lambda: os.open("a", os.O_CREAT | os.O_WRONLY, 0o4755))
attempt("tmpfile", lambda: os.open(".", os.O_TMPFILE | os.O_WRONLY, 0o4755))
attempt("mknod", lambda: os.mknod("b", stat.S_IFREG | 0o4755))
attempt("fchmod", lambda: os.fchmod(os.open("code", os.O_RDONLY), 0o4755))
attempt("fchmodat2", lambda: raw(452, -100, b"code", 0o4755, 0))
attempt("openat2", lambda: raw(437, -100, b"code", bytes(24), 24))
attempt("setxattr", lambda: os.setxattr("code", "user.a", b"b"))
attempt("whiteout", lambda: raw(316 if os.uname().machine == "x86_64" else 276, -100, b"code", -100, b"c", 4))
attempt("plain", lambda: os.open("d", os.O_CREAT | os.O_WRONLY, 0o755))
attempt("read", lambda: os.open("code", os.O_RDONLY, 0o4755))
'"#;
    let fixture = Fixture::of(0);
    let seen = fixture.sees(&fixture.path().join("one"), SCRIPT);
    let expected = "open EPERM\ntmpfile EPERM\nmknod EPERM\nfchmod EPERM\nfchmodat2 EPERM\nopenat2 ENOSYS\nsetxattr ENOTSUP\nwhiteout EINVAL\nplain done\nread done\n";
    assert_eq!(seen.replace("EOPNOTSUPP", "ENOTSUP"), expected);
}

/// A lease on a file: who opens the file waits until the lease is given up.
struct Lease(fs::File);

impl Lease {
    #[allow(unsafe_code)]
    fn fcntl(&self, command: i32, argument: i32) -> i32 {
        // SAFETY: these commands of fcntl(2) take a number, and touch no memory.
        let result = unsafe { libc::fcntl(self.0.as_raw_fd(), command, argument) };
        assert!(result >= 0, "{}", io::Error::last_os_error());
        result
    }

    fn take(path: &std::path::Path) -> Self {
        let lease = Self(fs::File::options().read(true).write(true).open(path).unwrap());
        // The signal that reports a waiting process: ignored by default, where SIGIO would end this process.
        lease.fcntl(F_SETSIG, libc::SIGURG);
        lease.fcntl(libc::F_SETLEASE, libc::F_WRLCK);
        lease
    }

    fn is_awaited(&self) -> bool {
        self.fcntl(libc::F_GETLEASE, 0) != libc::F_WRLCK
    }
}

#[test]
fn nothing_is_left_of_a_launcher_that_is_killed_between_its_namespace_and_the_daemon() {
    for fixture in users() {
        let before = mounts();
        let source = fixture.path();
        let second = fixture.workspace("two");
        let lease = Lease::take(&second.join(".nixbox/config.toml"));
        let launcher = fixture.command(&source, &source.join("one"), "echo never").spawn().unwrap();
        while !lease.is_awaited() {
            std::thread::yield_now();
        }
        let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).unwrap();
        assert_ne!(namespace(&launcher.id().to_string()), namespace("self"));
        assert_eq!(mask_mounts(launcher.id()), 1);
        assert_eq!(mounts(), before);
        kill(launcher);
        assert_eq!(mounts(), before);
        drop(lease);
        assert!(!fixture.sees(&source, LIST).contains("vm_key"));
    }
}

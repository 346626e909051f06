//! Starting programs: where they are found, as whom they run, and what they inherit, which is next to nothing.
//!
//! The one place besides `host/ioctl.rs` with unsafe code: what a child does between fork and exec.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, io};

use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

/// Why a program cannot be started as wished.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// It is nowhere on PATH.
    #[error("{name} is not on PATH; install it, or name it in {variable}")]
    NotFound {
        /// The program.
        name: &'static str,
        /// The variable that overrides PATH.
        variable: &'static str,
    },
    /// The variable names something that cannot be run.
    #[error("{variable} names {path:?}, which is no file that can be executed")]
    NotExecutable {
        /// The variable.
        variable: &'static str,
        /// What it holds.
        path: PathBuf,
    },
    /// `SUDO_UID` or `SUDO_GID` is no number.
    #[error(
        "{variable} is {value:?}, which is no id; run nixbox through sudo, or as root without that variable"
    )]
    BadSudo {
        /// The variable.
        variable: &'static str,
        /// What it holds.
        value: OsString,
    },
    /// The user data base could not be asked.
    #[error("the groups of user {uid} cannot be looked up")]
    Groups {
        /// The user.
        uid: u32,
        /// Why.
        source: io::Error,
    },
}

/// The program `name`: what the environment variable `variable` says, else the first one on PATH. Relative entries of
/// PATH are passed over, since what they mean changes with the directory.
///
/// # Errors
/// [`SpawnError::NotFound`], [`SpawnError::NotExecutable`].
pub fn find_program(name: &'static str, variable: &'static str) -> Result<PathBuf, SpawnError> {
    locate(name, variable, env::var_os(variable), env::var_os("PATH"))
}

/// A program that stands in for another: it is called by these words, and then by the other's arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StandIn {
    /// Where it is.
    pub path: PathBuf,
    /// The words.
    pub words: Vec<String>,
}

/// The program `name`, as [`find_program`] finds it, or what stands in for it.
///
/// # Errors
/// Those of [`find_program`].
pub fn program(
    name: &'static str,
    variable: &'static str,
    stand_in: Option<&StandIn>,
    privileges: Privileges,
) -> Result<Program, SpawnError> {
    Ok(match stand_in {
        None => Program::new(find_program(name, variable)?, privileges),
        Some(StandIn { path, words }) => words.iter().fold(Program::new(path, privileges), Program::argument),
    })
}

fn locate(
    name: &'static str,
    variable: &'static str,
    named: Option<OsString>,
    search: Option<OsString>,
) -> Result<PathBuf, SpawnError> {
    if let Some(named) = named {
        return match std::path::absolute(&named) {
            Ok(path) if executable(&path) => Ok(path),
            Ok(_) | Err(_) => Err(SpawnError::NotExecutable { variable, path: named.into() }),
        };
    }
    env::split_paths(&search.unwrap_or_default())
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(name))
        .find(|path| executable(path))
        .ok_or(SpawnError::NotFound { name, variable })
}

fn executable(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

/// The user who ran nixbox: the real user, or whoever called sudo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invoker {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

impl Invoker {
    /// Whoever runs this process.
    ///
    /// # Errors
    /// [`SpawnError::BadSudo`], [`SpawnError::Groups`].
    pub fn detect() -> Result<Self, SpawnError> {
        let uid = rustix::process::getuid().as_raw();
        if let (0, Some(sudo_uid)) = (uid, env::var_os("SUDO_UID")) {
            return Self::from_sudo(&sudo_uid, &env::var_os("SUDO_GID").unwrap_or_default());
        }
        let groups = rustix::process::getgroups()
            .map_err(|source| SpawnError::Groups { uid, source: source.into() })?;
        Ok(Self {
            uid,
            gid: rustix::process::getgid().as_raw(),
            groups: groups.into_iter().map(|group| group.as_raw()).collect(),
        })
    }

    fn from_sudo(uid: &OsStr, gid: &OsStr) -> Result<Self, SpawnError> {
        Self::user(parse_id("SUDO_UID", uid)?, parse_id("SUDO_GID", gid)?)
    }

    /// The user `uid` with primary group `gid` and the supplementary groups that the user data base knows: /dev/kvm is
    /// often open to a group alone.
    ///
    /// # Errors
    /// [`SpawnError::Groups`] if the user data base cannot be asked. A user whom it does not know has no further group.
    pub fn user(uid: u32, gid: u32) -> Result<Self, SpawnError> {
        let failed = |errno: nix::errno::Errno| SpawnError::Groups { uid, source: errno.into() };
        let groups = match nix::unistd::User::from_uid(uid.into()).map_err(failed)? {
            None => vec![gid],
            Some(user) => match std::ffi::CString::new(user.name) {
                Err(_) => vec![gid],
                Ok(name) => nix::unistd::getgrouplist(&name, gid.into())
                    .map_err(failed)?
                    .into_iter()
                    .map(nix::unistd::Gid::as_raw)
                    .collect(),
            },
        };
        Ok(Self { uid, gid, groups })
    }

    /// The user id.
    #[must_use]
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// The primary group id.
    #[must_use]
    pub fn gid(&self) -> u32 {
        self.gid
    }

    /// The supplementary groups.
    #[must_use]
    pub fn groups(&self) -> &[u32] {
        &self.groups
    }

    /// Whether a child has to change its ids to run as this user.
    #[must_use]
    pub fn is_other(&self) -> bool {
        rustix::process::geteuid().as_raw() != self.uid || rustix::process::getegid().as_raw() != self.gid
    }
}

fn parse_id(variable: &'static str, value: &OsStr) -> Result<u32, SpawnError> {
    value
        .to_str()
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|text| text.parse().ok())
        // The largest one means "unchanged" to setresuid(2).
        .filter(|id| *id != u32::MAX)
        .ok_or_else(|| SpawnError::BadSudo { variable, value: value.to_owned() })
}

/// What a program may do.
#[derive(Debug, Clone)]
pub enum Privileges {
    /// What the invoking user may: no capability of nixbox's own file reaches it, and sudo's root does not either.
    Invoker(Invoker),
    /// What nixbox may, and these capabilities where nixbox is not root.
    Own(CapabilitySet),
}

/// A program to run: absolute paths only, since its working directory is `/`.
#[derive(Debug, Clone)]
pub struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
    privileges: Privileges,
    open_files: Option<u64>,
}

impl Program {
    /// The program at `path`, without arguments.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>, privileges: Privileges) -> Self {
        Self { path: path.into(), arguments: Vec::new(), privileges, open_files: None }
    }

    /// Adds an argument. It can be read by everybody on this machine: never a secret.
    #[must_use]
    pub fn argument(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Its limit of open files, soft and hard. Above the hard limit of nixbox itself this needs `CAP_SYS_RESOURCE`.
    #[must_use]
    pub fn open_files(mut self, limit: u64) -> Self {
        self.open_files = Some(limit);
        self
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// As a command that, when spawned, is a session of its own with no descriptor but the standard three, an
    /// environment of `PATH` alone (nixbox's own may hold secrets, and /proc shows a daemon's for its whole life),
    /// umask 077, and no way to more privileges than it starts with.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command.args(&self.arguments).current_dir("/").env_clear();
        if let Some(search) = env::var_os("PATH") {
            command.env("PATH", search);
        }
        let plan = SpawnPlan::new(&self.privileges, self.open_files);
        run_before_exec(&mut command, plan);
        command
    }
}

/// What a child does between fork and exec, all of it allocated beforehand.
struct SpawnPlan {
    ids: Option<Ids>,
    ambient: CapabilitySet,
    open_files: Option<u64>,
}

struct Ids {
    uid: rustix::process::Uid,
    gid: rustix::process::Gid,
    groups: Vec<rustix::process::Gid>,
}

impl SpawnPlan {
    fn new(privileges: &Privileges, open_files: Option<u64>) -> Self {
        use rustix::process::{Gid, Uid};
        match privileges {
            Privileges::Own(ambient) => Self { ids: None, ambient: *ambient, open_files },
            Privileges::Invoker(invoker) => Self {
                ids: invoker.is_other().then(|| Ids {
                    uid: Uid::from_raw(invoker.uid),
                    gid: Gid::from_raw(invoker.gid),
                    groups: invoker.groups.iter().map(|gid| Gid::from_raw(*gid)).collect(),
                }),
                ambient: CapabilitySet::empty(),
                open_files,
            },
        }
    }

    /// Makes system calls only: another thread may have held the allocator's lock when the process forked.
    fn carry_out(&self) -> io::Result<()> {
        // Without a session of its own the daemon dies with nixbox's process group.
        rustix::process::setsid()?;
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
        if let Some(limit) = self.open_files {
            let both = Rlimit { current: Some(limit), maximum: Some(limit) };
            rustix::process::setrlimit(Resource::Nofile, both)?;
        }
        if let Some(ids) = &self.ids {
            rustix::thread::set_thread_groups(&ids.groups)?;
            rustix::thread::set_thread_res_gid(ids.gid, ids.gid, ids.gid)?;
            rustix::thread::set_thread_res_uid(ids.uid, ids.uid, ids.uid)?;
        }
        rustix::thread::clear_ambient_capability_set()?;
        let now = rustix::thread::capabilities(None)?;
        let inheritable = self.ambient;
        rustix::thread::set_capabilities(None, CapabilitySets { inheritable, ..now })?;
        for capability in self.ambient.iter() {
            rustix::thread::configure_capability_in_ambient_set(capability, true)?;
        }
        rustix::thread::set_no_new_privs(true)?;
        close_on_exec()
    }
}

#[allow(unsafe_code)]
fn run_before_exec(command: &mut Command, plan: SpawnPlan) {
    // SAFETY: the closure runs in the forked child, where only async-signal-safe calls are sound. `carry_out` makes
    // system calls through rustix and libc and neither allocates nor locks; an `io::Error` of an errno does not either.
    unsafe { command.pre_exec(move || plan.carry_out()) };
}

/// Whatever nixbox had open without close-on-exec (pipes of its caller, above all) ends at exec. std's own pipe that
/// reports a failing exec stays open until then.
#[allow(unsafe_code)]
fn close_on_exec() -> io::Result<()> {
    // SAFETY: close_range(2) with CLOSE_RANGE_CLOEXEC closes nothing by itself and touches no memory.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Need, have};
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
    fn asked_for_capabilities_survive_the_exec_and_others_do_not() {
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
    fn nothing_of_nixbox_is_inherited() {
        // Without close-on-exec, as a pipe of nixbox's caller would be.
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
    fn the_variable_goes_before_path_and_has_to_be_right() {
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
}

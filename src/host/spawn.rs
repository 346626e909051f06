//! Starts programs that outlive nixbox: where they are found, as which user they run, and what they inherit.
//!
//! What a child does between fork and exec is unsafe code, here and in [`entrance`]. The other files that have some are
//! `host/ioctl.rs` and `host/share_view/seccomp.rs`.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::{env, io};

use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::program::{self, directories_in};
use entrance::NamespaceEntrance;

pub(super) mod entrance;

/// Why a program cannot be started as the user asked for.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// `closed` are the directories of PATH that the user may not search. The program may be in one of them.
    #[error(
        "{name} is not on PATH{}, nor in {}; install it, or name it in {variable}", unseen(.closed),
        LIBRARY_DIRECTORIES.join(" or ")
    )]
    NotFound { name: &'static str, variable: &'static str, closed: Vec<PathBuf> },
    #[error("{variable} names {path:?}, which is not a file that can be executed")]
    NotExecutable { variable: &'static str, path: PathBuf },
    #[error(
        "{variable} is {value:?}, which is not an id; run nixbox through sudo, or as root without that variable"
    )]
    BadSudo { variable: &'static str, value: OsString },
    /// `obstacle` is a directory above the program, or the program itself.
    #[error(
        "user {uid} may not run {program:?}, because {obstacle:?} is closed to that user; \
         install {name} in a directory that every user can reach, such as /usr/local/bin"
    )]
    Closed { name: &'static str, uid: u32, program: PathBuf, obstacle: PathBuf },
    #[error("cannot look for programs as user {uid}")]
    TakeOn { uid: u32, source: io::Error },
    #[error("the groups of user {uid} cannot be looked up")]
    Groups { uid: u32, source: io::Error },
}

/// Where distributions put programs that other programs run, such as virtiofsd. These directories come after those of PATH.
const LIBRARY_DIRECTORIES: [&str; 2] = ["/usr/libexec", "/usr/lib"];

/// The path of the program `name`: the one in the environment variable `variable`, or else the first one on PATH that the
/// user of this process may run, or else one in [`LIBRARY_DIRECTORIES`]. Relative entries of PATH are passed over, since what they mean changes with the directory.
///
/// # Errors
/// [`SpawnError::NotFound`], [`SpawnError::NotExecutable`], [`SpawnError::Closed`].
pub fn find_program(name: &'static str, variable: &'static str) -> Result<PathBuf, SpawnError> {
    locate(name, variable, env::var_os(variable), env::var_os("PATH"))
}

/// The program `name` as [`find_program`] finds it when `user` runs it.
///
/// # Errors
/// Those of [`find_program`], and [`SpawnError::TakeOn`].
pub fn find_program_for(
    user: &Invoker,
    name: &'static str,
    variable: &'static str,
) -> Result<PathBuf, SpawnError> {
    locate_for(user, name, variable, env::var_os(variable), env::var_os("PATH"))
}

/// Checks that `user` may run `program`, and enter every directory on the way to it.
///
/// # Errors
/// [`SpawnError::Closed`], which says what is in the way; [`SpawnError::TakeOn`].
pub fn check_access(user: &Invoker, name: &'static str, program: &Path) -> Result<(), SpawnError> {
    // A link may lead into a directory that is closed. That directory is the obstacle then, and not the link.
    let real = std::fs::canonicalize(program).unwrap_or_else(|_| program.to_owned());
    match user.act(|| first_closed(&real).or_else(|| first_closed(program)))? {
        None => Ok(()),
        Some(obstacle) => {
            Err(SpawnError::Closed { name, uid: user.uid, program: program.to_owned(), obstacle })
        }
    }
}

/// The outermost directory above `program`, or `program` itself, that the user of this thread may not enter or run.
fn first_closed(program: &Path) -> Option<PathBuf> {
    let mut way: Vec<&Path> = program.ancestors().collect();
    way.reverse();
    let closed = |path: &&Path| {
        rustix::fs::access(*path, rustix::fs::Access::EXEC_OK) == Err(rustix::io::Errno::ACCESS)
    };
    way.into_iter().find(closed).map(Path::to_owned)
}

/// The part of a message that names directories that may not be searched.
fn unseen(closed: &[PathBuf]) -> String {
    let uid = rustix::process::getuid().as_raw();
    match closed {
        [] => String::new(),
        closed => format!(", of which user {uid} may not search {closed:?}"),
    }
}

/// A program that stands in for another. It gets `words` as its first arguments, followed by those of the other.
#[allow(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StandIn {
    pub path: PathBuf,
    pub words: Vec<String>,
}

/// The program `name` as [`find_program`] finds it, or the program that stands in for it.
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
        None => {
            let path = match &privileges {
                Privileges::Invoker(user) => find_program_for(user, name, variable)?,
                Privileges::Own(_) => find_program(name, variable)?,
            };
            Program::new(path, privileges)
        }
        Some(StandIn { path, words }) => {
            if let Privileges::Invoker(user) = &privileges {
                check_access(user, name, path)?;
            }
            words.iter().fold(Program::new(path, privileges), Program::argument)
        }
    })
}

fn locate_for(
    user: &Invoker,
    name: &'static str,
    variable: &'static str,
    named: Option<OsString>,
    search: Option<OsString>,
) -> Result<PathBuf, SpawnError> {
    user.act(|| locate(name, variable, named.clone(), search.clone()))?.or_else(|error| {
        if user.is_other() {
            // What nixbox itself finds is the program that the user is kept from.
            check_access(user, name, &locate(name, variable, named, search)?)?;
        }
        Err(error)
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
            Ok(path) if program::is_executable(&path) => Ok(path),
            Ok(program) => Err(match first_closed(&program) {
                Some(obstacle) if obstacle != program => {
                    let uid = rustix::process::getuid().as_raw();
                    SpawnError::Closed { name, uid, program, obstacle }
                }
                _ => SpawnError::NotExecutable { variable, path: named.into() },
            }),
            Err(_) => Err(SpawnError::NotExecutable { variable, path: named.into() }),
        };
    }
    let mut directories = directories_in(&search.unwrap_or_default());
    directories.extend(LIBRARY_DIRECTORIES.map(PathBuf::from));
    program::search(name, &directories).ok_or_else(|| {
        directories.retain(|directory| {
            let found = std::fs::metadata(directory.join(name));
            found.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
        });
        SpawnError::NotFound { name, variable, closed: directories }
    })
}

/// The user who ran nixbox: the real user of the process, or the user who called sudo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invoker {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

impl Invoker {
    /// The user who ran this process.
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

    /// The user `uid` with primary group `gid` and the supplementary groups that the user data base knows. /dev/kvm is
    /// often open to the members of a group only.
    ///
    /// # Errors
    /// [`SpawnError::Groups`] if the user data base cannot be asked. A user that it does not know has no further group.
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

    /// Runs `act` as this user, on a thread that takes on the ids of the user and then ends. So the kernel itself decides
    /// what the user may do.
    fn act<T: Send>(&self, act: impl FnOnce() -> T + Send) -> Result<T, SpawnError> {
        if !self.is_other() {
            return Ok(act());
        }
        let failed = |source| SpawnError::TakeOn { uid: self.uid, source };
        let ids = Ids::of(self);
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .spawn_scoped(scope, || ids.take_on().map(|()| act()))
                .map_err(failed)?;
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).map_err(failed)
        })
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
        // To setresuid(2) the largest id means "unchanged".
        .filter(|id| *id != u32::MAX)
        .ok_or_else(|| SpawnError::BadSudo { variable, value: value.to_owned() })
}

/// The privileges with which a program runs.
#[derive(Debug, Clone)]
pub enum Privileges {
    /// Those of the invoking user. The program gets neither the capabilities of nixbox's file, nor root through sudo.
    Invoker(Invoker),
    /// Those of nixbox's user, with these capabilities if nixbox is not root.
    Own(CapabilitySet),
}

/// A program to run. Its arguments have to use absolute paths, because its working directory is `/`.
#[derive(Debug, Clone)]
pub struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
    privileges: Privileges,
    open_files: Option<u64>,
    network: Option<Arc<NamespaceEntrance>>,
}

impl Program {
    /// The program at `path`, without arguments.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>, privileges: Privileges) -> Self {
        Self { path: path.into(), arguments: Vec::new(), privileges, open_files: None, network: None }
    }

    /// Adds an argument, which must not be secret: every user of this machine can read it.
    #[must_use]
    pub fn argument(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// The same, started by a launcher: nixbox's own program, which gets `words` as its first arguments, then the path and
    /// the arguments of this program, and becomes this program by exec.
    #[must_use]
    pub fn launched(self, words: impl IntoIterator<Item = OsString>) -> Self {
        // The link names the file that this process runs, even if an upgrade has replaced the file meanwhile.
        let mut arguments: Vec<OsString> = words.into_iter().collect();
        arguments.push(self.path.into());
        arguments.extend(self.arguments);
        Self { path: "/proc/self/exe".into(), arguments, ..self }
    }

    /// Sets its limit of open files, soft and hard. A limit above the hard limit of nixbox needs `CAP_SYS_RESOURCE`.
    #[must_use]
    pub fn open_files(mut self, limit: u64) -> Self {
        self.open_files = Some(limit);
        self
    }

    /// Lets it run in the network of a VM, or in that of nixbox.
    #[must_use]
    pub fn in_network(mut self, entrance: Option<Arc<NamespaceEntrance>>) -> Self {
        self.network = entrance;
        self
    }

    /// The path of its file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A command that runs the program in a session of its own, with the three standard descriptors only, umask 077, and
    /// no way to gain privileges. Its environment has only `PATH`, because that of nixbox may hold secrets, and /proc
    /// shows the environment of a daemon as long as it lives.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command.args(&self.arguments).current_dir("/").env_clear();
        if let Some(search) = env::var_os("PATH") {
            command.env("PATH", search);
        }
        let plan = SpawnPlan::new(&self.privileges, self.open_files);
        if let Some(entrance) = &self.network {
            entrance::enter(&mut command, Arc::clone(entrance), CapabilitySet::empty());
        }
        run_before_exec(&mut command, plan);
        command
    }
}

/// What a child does between fork and exec. Everything in it is allocated beforehand.
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

impl Ids {
    fn of(user: &Invoker) -> Self {
        use rustix::process::{Gid, Uid};
        Self {
            uid: Uid::from_raw(user.uid),
            gid: Gid::from_raw(user.gid),
            groups: user.groups.iter().map(|gid| Gid::from_raw(*gid)).collect(),
        }
    }

    /// Makes these the ids of this thread. Makes system calls only, as [`SpawnPlan::carry_out`] does.
    fn take_on(&self) -> io::Result<()> {
        rustix::thread::set_thread_groups(&self.groups)?;
        rustix::thread::set_thread_res_gid(self.gid, self.gid, self.gid)?;
        rustix::thread::set_thread_res_uid(self.uid, self.uid, self.uid)?;
        Ok(())
    }
}

impl SpawnPlan {
    fn new(privileges: &Privileges, open_files: Option<u64>) -> Self {
        match privileges {
            Privileges::Own(ambient) => Self { ids: None, ambient: *ambient, open_files },
            Privileges::Invoker(invoker) => Self {
                ids: invoker.is_other().then(|| Ids::of(invoker)),
                ambient: CapabilitySet::empty(),
                open_files,
            },
        }
    }

    /// Makes system calls only, because another thread may have held the lock of the allocator when the process forked.
    fn carry_out(&self) -> io::Result<()> {
        // Without a session of its own, the daemon would die with the process group of nixbox.
        rustix::process::setsid()?;
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
        if let Some(limit) = self.open_files {
            let both = Rlimit { current: Some(limit), maximum: Some(limit) };
            rustix::process::setrlimit(Resource::Nofile, both)?;
        }
        if let Some(ids) = &self.ids {
            ids.take_on()?;
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

/// Lets the program of this command outlive nixbox: in a session of its own, with the three standard descriptors only.
#[allow(unsafe_code)]
pub(super) fn detach(command: &mut Command) {
    let detach = || {
        rustix::process::setsid()?;
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
        close_on_exec()
    };
    // SAFETY: as for `run_before_exec`.
    unsafe { command.pre_exec(detach) };
}

#[allow(unsafe_code)]
fn run_before_exec(command: &mut Command, plan: SpawnPlan) {
    // SAFETY: the closure runs in the forked child, where only async-signal-safe calls are sound. `carry_out` makes
    // system calls through rustix and libc and neither allocates nor locks; an `io::Error` of an errno does not either.
    unsafe { command.pre_exec(move || plan.carry_out()) };
}

/// Closes at exec what nixbox has open without close-on-exec, such as pipes of its caller. The pipe by which std reports
/// a failing exec stays open until then.
#[allow(unsafe_code)]
fn close_on_exec() -> io::Result<()> {
    // SAFETY: close_range(2) with CLOSE_RANGE_CLOEXEC closes nothing by itself and touches no memory.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests;

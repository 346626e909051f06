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
    #[error("{name} is not on PATH{}; install it, or name it in {variable}", unseen(.closed))]
    NotFound {
        /// The program.
        name: &'static str,
        /// The variable that overrides PATH.
        variable: &'static str,
        /// The directories of PATH that the user may not search. The program may be in one of them.
        closed: Vec<PathBuf>,
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
    /// The program is there, and the user as whom it is to run may not run it.
    #[error(
        "user {uid} may not run {program:?}, because {obstacle:?} is closed to that user; \
         install {name} in a directory that every user can reach, such as /usr/local/bin"
    )]
    Closed {
        /// The program's name.
        name: &'static str,
        /// The user as whom it is to run.
        uid: u32,
        /// The program.
        program: PathBuf,
        /// The directory above the program, or the program itself, that the user has no access to.
        obstacle: PathBuf,
    },
    /// The system does not let nixbox take on the ids of the user.
    #[error("cannot look for programs as user {uid}")]
    TakeOn {
        /// The user.
        uid: u32,
        /// Why.
        source: io::Error,
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

/// The program `name`: what the environment variable `variable` says, else the first one on PATH that the user of this
/// process may run. Relative entries of PATH are passed over, since what they mean changes with the directory.
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
            Ok(path) if executable(&path) => Ok(path),
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
    let mut closed = Vec::new();
    for directory in env::split_paths(&search.unwrap_or_default()).filter(|path| path.is_absolute()) {
        let path = directory.join(name);
        if executable(&path) {
            return Ok(path);
        }
        if std::fs::metadata(&path).is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied) {
            closed.push(directory);
        }
    }
    Err(SpawnError::NotFound { name, variable, closed })
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

    /// Does something as this user, on a thread that takes on the user's ids and then ends: so the kernel itself says what
    /// the user may do.
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
mod tests;

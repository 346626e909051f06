//! Starts a daemon that can open its own files only, by Landlock(7).
//!
//! nixbox starts its own program as a launcher (`nixbox confined-daemon`), which restricts itself and then becomes the daemon
//! by exec. The kernel applies the rules to the daemon and to all of its threads and children, whatever version the daemon has,
//! and neither privileges nor other paths are needed. The launcher has one thread, as the restriction is that of a thread.
//!
//! A rule is about a file, or a directory and all below it, that the launcher opens when the daemon is started. What is not
//! there then has no rule, and neither has a file that takes its place later. So files that are made after the start have to
//! lie in a directory with a rule. The rules do not keep a process from connecting to a Unix socket by its path, nor from
//! looking at the metadata of files.
//!
//! A kernel that knows only a part of the rights applies that part. A kernel without Landlock applies none, the daemon runs
//! nevertheless, and `nixbox doctor` says so ([`is_available`]).

use std::ffi::{OsStr, OsString};
use std::fs::OpenOptions;
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    PathFdError, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, Scope,
};
use rustix::fs::OFlags;

use super::spawn::Program;

/// The newest rights that are denied where the kernel knows them.
const NEWEST: ABI = ABI::V6;

/// The directories and files of the system that a program and its libraries are in. They hold nothing of a user.
const SYSTEM: [&str; 9] = [
    "/usr",
    "/bin",
    "/lib",
    "/lib32",
    "/lib64",
    "/nix/store",
    "/gnu/store",
    "/etc/ld.so.cache",
    "/etc/ld.so.preload",
];

/// Why a daemon was not started.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum ConfinementError {
    #[error("the launcher of confined daemons got {0} arguments, which is not what nixbox gives it")]
    Arguments(usize),
    #[error("cannot make {0:?}, which the daemon is to write")]
    Make(PathBuf, #[source] io::Error),
    #[error("cannot open {0:?}, which the daemon may use")]
    Open(PathBuf, #[source] PathFdError),
    #[error("the daemon's access to files cannot be restricted")]
    Rules(#[from] RulesetError),
    #[error("the daemon's capabilities cannot be handed on")]
    Capabilities(#[source] io::Error),
    #[error("cannot start {0:?}")]
    Exec(PathBuf, #[source] io::Error),
}

/// What a daemon may do with a file, or with all files below a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileAccess {
    /// Read, and list directories.
    Read,
    /// Read and execute.
    Execute,
    /// Read, write and control a device.
    Device,
    /// Read and write files that are there.
    Write,
    /// Read and write a regular file, which the launcher makes if it is missing.
    OwnFile,
    /// Read and write files, and make new ones.
    Make,
    /// Read files, and make sockets.
    Listen,
}

impl FileAccess {
    /// Each access with its name on the launcher's command line.
    const NAMES: [(Self, &'static str); 7] = [
        (Self::Read, "read"),
        (Self::Execute, "execute"),
        (Self::Device, "device"),
        (Self::Write, "write"),
        (Self::OwnFile, "own-file"),
        (Self::Make, "make"),
        (Self::Listen, "listen"),
    ];

    fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(access, _)| *access == self).map_or("", |(_, name)| name)
    }

    fn of_name(name: &OsStr) -> Option<Self> {
        Self::NAMES.iter().find(|(_, known)| name == *known).map(|(access, _)| *access)
    }

    fn rights(self) -> BitFlags<AccessFs> {
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        match self {
            Self::Read => read,
            Self::Execute => read | AccessFs::Execute,
            Self::Device => AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev,
            Self::Write => read | AccessFs::WriteFile,
            Self::OwnFile => AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate,
            Self::Make => read | AccessFs::WriteFile | AccessFs::Truncate | AccessFs::MakeReg,
            Self::Listen => read | AccessFs::MakeSock,
        }
    }
}

/// All files that a daemon may use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Confinement {
    rules: Vec<(FileAccess, PathBuf)>,
    /// Whether it may use TCP.
    tcp: bool,
}

impl Confinement {
    /// The files of the system that every program needs: libraries, and the devices that have no state.
    #[must_use]
    pub fn of_a_program() -> Self {
        let system = SYSTEM.iter().map(|path| (FileAccess::Execute, PathBuf::from(path)));
        let devices = ["/dev/null", "/dev/urandom"].map(|path| (FileAccess::Device, PathBuf::from(path)));
        Self { rules: system.chain(devices).collect(), tcp: false }
    }

    /// Adds a file or directory, by an absolute path.
    #[must_use]
    pub fn may(mut self, access: FileAccess, path: impl Into<PathBuf>) -> Self {
        self.rules.push((access, path.into()));
        self
    }

    /// Lets the daemon bind and connect to TCP ports.
    #[must_use]
    pub fn may_use_tcp(self) -> Self {
        Self { tcp: true, ..self }
    }

    /// Whether this file or directory itself was added so.
    #[cfg(test)]
    pub(crate) fn allows(&self, access: FileAccess, path: &Path) -> bool {
        self.rules.iter().any(|rule| rule.0 == access && rule.1 == path)
    }

    /// The program, started by the launcher.
    #[must_use]
    pub fn launch(self, program: Program) -> Program {
        let words = self.may(FileAccess::Execute, program.path()).launcher_words();
        program.launched(words)
    }

    /// The command of nixbox that is the launcher, with its arguments up to the path of the program.
    pub(super) fn launcher_words(&self) -> Vec<OsString> {
        std::iter::once(COMMAND.into()).chain(self.launcher_arguments()).collect()
    }

    fn launcher_arguments(&self) -> Vec<OsString> {
        let tcp = if self.tcp { TCP } else { NO_TCP };
        let mut arguments = vec![tcp.into(), self.rules.len().to_string().into()];
        arguments.extend(
            self.rules
                .iter()
                .flat_map(|(access, path)| [access.name().into(), path.clone().into_os_string()]),
        );
        arguments
    }

    /// The confinement and the rest of the launcher's arguments.
    fn parse(arguments: &[OsString]) -> Option<(Self, &OsStr, &[OsString])> {
        let [tcp, count, rest @ ..] = arguments else { return None };
        let tcp = [NO_TCP, TCP].iter().position(|known| tcp == known)? == 1;
        let count: usize = count.to_str()?.parse().ok()?;
        let (rules, rest) = rest.split_at_checked(count.checked_mul(2)?)?;
        let (program, rest) = rest.split_first()?;
        let rule = |pair: &[OsString]| Some((FileAccess::of_name(&pair[0])?, PathBuf::from(&pair[1])));
        let rules = rules.chunks_exact(2).map(rule).collect::<Option<_>>()?;
        Some((Self { rules, tcp }, program, rest))
    }

    /// Restricts this process and all that it becomes or starts, as far as the kernel can.
    fn enter(&self) -> Result<(), ConfinementError> {
        let handled = AccessFs::from_all(NEWEST);
        let mut rules = Ruleset::default().handle_access(handled)?.scope(Scope::from_all(NEWEST))?;
        if !self.tcp {
            // Without a rule, no TCP port can be bound or connected to.
            rules = rules.handle_access(AccessNet::from_all(NEWEST))?;
        }
        let mut rules = rules.create()?;
        for (access, path) in &self.rules {
            if *access == FileAccess::OwnFile {
                make(path).map_err(|source| ConfinementError::Make(path.clone(), source))?;
            }
            let Some(opened) = open(path)? else { continue };
            let rights = match path.is_dir() {
                true => access.rights(),
                false => access.rights() & AccessFs::from_file(NEWEST),
            };
            rules = rules.add_rule(PathBeneath::new(opened, rights))?;
        }
        // Whether the kernel applies all, a part or none of this is for `nixbox doctor` to say.
        let _status = rules.restrict_self()?;
        Ok(())
    }
}

fn make(path: &Path) -> io::Result<()> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(flags).open(path).map(drop)
}

/// `None` if the path does not lead to a file that this user can reach. The daemon could not open it either.
fn open(path: &Path) -> Result<Option<PathFd>, ConfinementError> {
    match PathFd::new(path) {
        Ok(opened) => Ok(Some(opened)),
        Err(PathFdError::OpenCall { source, .. })
            if matches!(
                source.kind(),
                ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::PermissionDenied
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(ConfinementError::Open(path.to_owned(), error)),
    }
}

/// Whether the kernel has Landlock, and it is turned on.
#[must_use]
pub fn is_available() -> bool {
    let rules = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    rules.handle_access(AccessFs::from_all(ABI::V1)).and_then(Ruleset::create).is_ok()
}

/// Raises the capabilities that were handed to this process and that nixbox has given up when it started. The daemon
/// inherits no others.
pub(super) fn keep_capabilities() -> io::Result<()> {
    let sets = rustix::thread::capabilities(None)?;
    for capability in (sets.permitted & sets.inheritable).iter() {
        rustix::thread::configure_capability_in_ambient_set(capability, true)?;
    }
    Ok(())
}

/// The words of the launcher's command line that say whether the daemon may use TCP.
const TCP: &str = "tcp";
const NO_TCP: &str = "no-tcp";
/// The command of nixbox that is the launcher.
pub const COMMAND: &str = "confined-daemon";
/// The exit status of a launcher that says on stderr why it did not start the daemon.
pub const REFUSED: u8 = 41;

/// Becomes the daemon that `arguments` name. Returns only an error, and the process has to end then.
///
/// This has to be called while the process has one thread.
#[must_use]
pub fn launch(arguments: &[OsString]) -> ConfinementError {
    let Some((confinement, program, rest)) = Confinement::parse(arguments) else {
        return ConfinementError::Arguments(arguments.len());
    };
    if let Err(source) = keep_capabilities() {
        return ConfinementError::Capabilities(source);
    }
    match confinement.enter() {
        Ok(()) => ConfinementError::Exec(program.into(), Command::new(program).args(rest).exec()),
        Err(error) => error,
    }
}

#[cfg(test)]
mod tests;

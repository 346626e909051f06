//! The scope of a daemon, and the launcher that enters it.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::thread::CapabilitySet;

use super::bus::WantedScope;
use super::error::SystemdError;
use super::unit;
use crate::host::confinement::keep_capabilities;
use crate::host::program;
use crate::host::spawn::{Privileges, Program};
use crate::world::{Generation, WorkspaceId};

/// The command of nixbox that is the launcher.
pub const COMMAND: &str = "scope-daemon";
/// The exit status of a launcher that has not become a daemon.
pub const FAILED: u8 = 41;
/// The word for the manager of the system on the launcher's command line. The word for a user's manager is the user's id.
const SYSTEM: &str = "system";
/// The name of the program that speaks to systemd.
const BUSCTL: &str = "busctl";
/// How long systemd may take. It answers within milliseconds, and within seconds while it reads its configuration again.
/// The limit lies well below those for the start of a daemon.
const LIMIT: Duration = Duration::from_secs(5);
/// How long a rehearsal may take: the limit for systemd, and the start of a process.
const REHEARSAL_LIMIT: Duration = Duration::from_secs(8);

/// A manager of systemd that outlives the session of the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScopeManager {
    /// The manager of the system.
    System,
    /// The manager of the user with this id.
    User(u32),
}

impl ScopeManager {
    /// The word for it on the launcher's command line.
    fn word(&self) -> String {
        match self {
            Self::System => SYSTEM.to_owned(),
            Self::User(uid) => uid.to_string(),
        }
    }

    fn of_word(word: &OsStr) -> Option<Self> {
        if word == SYSTEM { Some(Self::System) } else { Some(Self::User(word.to_str()?.parse().ok()?)) }
    }

    /// The scope for a daemon of a VM. `role` is what the daemon is for, and is part of a file's name.
    #[must_use]
    pub fn scope(&self, workspace: WorkspaceId, generation: Generation, role: &str) -> Scope {
        let name = format!("nixbox-{workspace}-{generation}-{role}.scope");
        Scope { manager: self.clone(), busctl: BUSCTL.into(), name }
    }
}

/// A scope, which need not exist yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    manager: ScopeManager,
    /// The program busctl: an absolute path, or its name.
    busctl: PathBuf,
    name: String,
}

impl Scope {
    /// The first arguments of the launcher. The path of a program and the arguments of that program follow.
    pub(in crate::host) fn launcher_arguments(&self) -> [OsString; 4] {
        let busctl = self.busctl.clone().into();
        [COMMAND.into(), self.manager.word().into(), busctl, self.name.clone().into()]
    }

    /// The scope, and the rest of the launcher's arguments.
    fn parse(arguments: &[OsString]) -> Option<(Self, &OsStr, &[OsString])> {
        let [manager, busctl, name, program, rest @ ..] = arguments else { return None };
        let manager = ScopeManager::of_word(manager)?;
        Some((Self { manager, busctl: busctl.into(), name: name.to_str()?.to_owned() }, program, rest))
    }

    /// Puts this process into the scope.
    fn enter(&self) -> Result<(), SystemdError> {
        // The user's PATH is not searched, because nixbox may have privileges that the user has not.
        let found = if self.busctl.is_absolute() {
            self.busctl.clone()
        } else {
            program::locate(BUSCTL, "systemd", vec![])?
        };
        let unit = unit::unit_in(&unit::cgroup()?);
        let user = match self.manager {
            ScopeManager::System => None,
            ScopeManager::User(uid) => Some(uid),
        };
        // A unit can be ordered before units of its own manager only.
        let same_manager = unit.as_ref().filter(|unit| unit.of_user == user.is_some());
        let ordered_before = same_manager.and_then(unit::Unit::service);
        WantedScope { busctl: &found, user, name: &self.name, ordered_before }.enter(LIMIT)
    }
}

/// Enters the scope and becomes the daemon that `arguments` name. Calls `tell` if the process stays outside of the scope,
/// and goes on. Returns without an error only if they name no daemon, for a rehearsal.
///
/// This has to be called while the process has one thread.
///
/// # Errors
/// [`SystemdError`]. The process has to end then.
pub fn launch(arguments: &[OsString], tell: impl FnOnce(&SystemdError)) -> Result<(), SystemdError> {
    let Some((scope, program, rest)) = Scope::parse(arguments) else {
        return Err(SystemdError::Arguments(arguments.len()));
    };
    let entered = scope.enter();
    if program.is_empty() {
        return entered;
    }
    if let Err(error) = entered {
        tell(&error);
    }
    keep_capabilities().map_err(SystemdError::Privileges)?;
    let source = Command::new(program).args(rest).exec();
    Err(SystemdError::Exec { path: program.into(), source })
}

/// Tries whether a process that nixbox starts can enter a scope of this manager. The process and the scope have ended when
/// this returns.
///
/// # Errors
/// [`SystemdError::Rehearsal`] says why it cannot.
pub async fn rehearse(manager: &ScopeManager) -> Result<(), SystemdError> {
    let name = format!("nixbox-rehearsal-{}.scope", std::process::id());
    let scope = Scope { manager: manager.clone(), busctl: BUSCTL.into(), name };
    let own = Privileges::Own(CapabilitySet::empty());
    let program = Program::new("", own).launched(scope.launcher_arguments());
    let mut command = tokio::process::Command::from(program.command());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let path = || Path::new(program.path()).to_owned();
    match tokio::time::timeout(REHEARSAL_LIMIT, command.output()).await {
        Err(_) => Err(SystemdError::Silent(REHEARSAL_LIMIT)),
        Ok(Err(source)) => Err(SystemdError::Exec { path: path(), source }),
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => {
            let text = String::from_utf8_lossy(&output.stderr);
            Err(SystemdError::Rehearsal(text.trim().replace(char::is_control, " ")))
        }
    }
}

//! What systemd ends of a user's VM, although nixbox did not end it: processes of a unit that stops, and what logind removes
//! at a log-out; and where nixbox puts processes and files, so that they live on.
//!
//! | who | `/run/user/UID` and `/dev/shm` | so nixbox puts |
//! |---|---|---|
//! | root | are not touched by a log-out | sockets in `/run`, RAM on tmpfs |
//! | a user who lingers (loginctl(1), `enable-linger`) | stay from boot to shutdown | sockets in `/run/user/UID`, RAM on tmpfs |
//! | a user on a host without logind | are touched by nobody | the same, as far as these directories exist |
//! | any other user | are removed at the last log-out (logind.conf(5), `RemoveIPC=`) | both in the user's state |
//!
//! logind notes who lingers with a file of the user's name in `/var/lib/systemd/linger`, and has `/run/systemd/users` when it
//! runs. Where the processes are is in [`super::systemd`]. May use `world`, `files` and that module.

use std::path::PathBuf;

use super::systemd::SystemdError;
use super::systemd::scope::{self, ScopeManager};
use super::systemd::unit::{self, Unit};
use crate::files::FileError;

/// If this variable is `none`, daemons enter no scopes. Tests set it, so that their many daemons do not ask the systemd of
/// the host.
const VARIABLE: &str = "NIXBOX_SCOPES";

/// What ends a VM that this process starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lifetime {
    /// Whether the files in `/run/user/UID` and `/dev/shm` go with the last log-out of the user.
    pub files_end_at_log_out: bool,
    /// The service to which the processes belong that this process starts outside of a scope. Its stop ends them
    /// (systemd.kill(5), `KillMode=`).
    pub service: Option<String>,
    /// The manager of systemd in whose scopes daemons live on.
    pub scopes: Option<ScopeManager>,
}

/// Where systemd says it.
struct SystemdFiles {
    /// The directory that logind has when it runs.
    users: PathBuf,
    /// The directory with a file for each user who lingers.
    lingering: PathBuf,
    /// The directory that systemd has when it is the host's init, see sd_booted(3).
    booted: PathBuf,
}

impl Lifetime {
    /// Asks the system about this process.
    ///
    /// # Errors
    /// If a file of the system cannot be read.
    pub fn of_this_process() -> Result<Self, FileError> {
        let user = rustix::process::geteuid();
        let entry = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(user.as_raw()));
        let name = entry.ok().flatten().map(|entry| entry.name);
        let files = SystemdFiles {
            users: "/run/systemd/users".into(),
            lingering: "/var/lib/systemd/linger".into(),
            booted: "/run/systemd/system".into(),
        };
        let unit = unit::unit_in(&unit::cgroup()?);
        let lifetime = Self::read(&files, user.as_raw(), name.as_deref(), unit.as_ref());
        let unwanted = std::env::var_os(VARIABLE).is_some_and(|value| value == "none");
        Ok(if unwanted { Self { scopes: None, ..lifetime } } else { lifetime })
    }

    fn read(files: &SystemdFiles, uid: u32, name: Option<&str>, unit: Option<&Unit>) -> Self {
        let lingers = name.is_some_and(|name| files.lingering.join(name).exists());
        let scopes = match uid {
            _ if !files.booted.is_dir() => None,
            0 => Some(ScopeManager::System),
            uid => lingers.then_some(ScopeManager::User(uid)),
        };
        Self {
            files_end_at_log_out: uid != 0 && files.users.is_dir() && !lingers,
            service: unit.and_then(Unit::service).map(str::to_owned),
            scopes,
        }
    }

    /// Tries whether the daemons can enter scopes, if there is a manager of scopes.
    ///
    /// # Errors
    /// The reason why they cannot.
    pub async fn rehearse(&self) -> Result<(), SystemdError> {
        match &self.scopes {
            Some(scopes) => scope::rehearse(scopes).await,
            None => Ok(()),
        }
    }

    /// One sentence for each thing that ends the VM. `refused` says why the daemons cannot enter a scope after all.
    #[must_use]
    pub fn warnings(&self, refused: Option<&str>) -> Vec<String> {
        if let Some(reason) = refused {
            let unit = self.service.as_deref().unwrap_or("the session of this command");
            return vec![format!(
                "systemd does not give the VM a scope of its own ({reason}), so the VM may end with {unit}"
            )];
        }
        if self.scopes.is_some() {
            return Vec::new();
        }
        let log_out = self.files_end_at_log_out.then(|| {
            "a log-out ends a VM that was started in a desktop session (where logind.conf has KillUserProcesses=yes, in any \
             session), and its RAM is kept on disk, because a log-out empties /dev/shm: `loginctl enable-linger` lets VMs \
             live on, with RAM on tmpfs"
                .to_owned()
        });
        let service = self.service.as_ref().map(|service| {
            format!(
                "the VM belongs to {service} and ends when that service stops, unless it has KillMode=process; scopes of \
                 systemd keep VMs of root and of users who linger (`loginctl enable-linger`)"
            )
        });
        log_out.into_iter().chain(service).collect()
    }

    /// How long daemons live if there is nothing to warn of, in a few words for a person.
    #[must_use]
    pub fn words(&self) -> &'static str {
        match self.scopes {
            Some(ScopeManager::System) => "until the host shuts down, in systemd scopes of the system",
            Some(ScopeManager::User(_)) => {
                "until the host shuts down, in systemd scopes of a user who lingers"
            }
            None => "nothing ends them",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn daemons_and_files_outlive_a_log_out_of_root_and_of_users_who_linger() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let files = SystemdFiles { users: path("users"), lingering: path("linger"), booted: path("booted") };
        let service = Unit { name: "backup.service".to_owned(), of_user: false };
        let session = Unit { name: "session-3.scope".to_owned(), of_user: false };
        let read = |uid, name, unit| Lifetime::read(&files, uid, name, Some(unit));

        let lifetime = read(1000, Some("me"), &session);
        assert_eq!((lifetime.files_end_at_log_out, &lifetime.scopes), (false, &None), "there is no systemd");
        assert!(lifetime.warnings(None).is_empty());
        assert_eq!(read(0, Some("root"), &service).scopes, None);

        for directory in [&files.users, &files.booted, &files.lingering] {
            fs::create_dir(directory).unwrap();
        }
        for name in [Some("me"), None] {
            let lifetime = read(1000, name, &session);
            assert_eq!((lifetime.files_end_at_log_out, &lifetime.scopes), (true, &None));
            let [log_out] = &lifetime.warnings(None)[..] else { panic!("{:?}", lifetime.warnings(None)) };
            assert!(log_out.contains("loginctl enable-linger"), "{log_out}");
            let warnings = read(1000, name, &service).warnings(None);
            assert!(warnings[1].contains("belongs to backup.service"), "{warnings:?}");
        }
        fs::write(files.lingering.join("me"), "").unwrap();
        assert_eq!(read(1000, Some("other"), &service).scopes, None);
        for (uid, name, scopes) in [(0, "root", ScopeManager::System), (1000, "me", ScopeManager::User(1000))]
        {
            let lifetime = read(uid, Some(name), &service);
            assert_eq!((lifetime.files_end_at_log_out, &lifetime.scopes), (false, &Some(scopes)));
            assert!(lifetime.warnings(None).is_empty());
            let [refused] = &lifetime.warnings(Some("why"))[..] else { panic!("no warning") };
            assert!(refused.contains("(why)") && refused.contains("end with backup.service"), "{refused}");
            assert!(read(uid, Some(name), &session).warnings(Some("why"))[0].contains("the session"));
        }
    }
}

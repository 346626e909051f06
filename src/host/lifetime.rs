//! What systemd ends of a user's VM, although nixbox did not end it: processes of a unit that stops, and what logind removes
//! at a log-out.
//!
//! | who | `/run/user/UID` and `/dev/shm` | so nixbox puts |
//! |---|---|---|
//! | root | are not touched by a log-out | sockets in `/run`, RAM on tmpfs |
//! | a user who lingers (loginctl(1), `enable-linger`) | stay from boot to shutdown | sockets in `/run/user/UID`, RAM on tmpfs |
//! | a user on a host without logind | are touched by nobody | the same, as far as these directories exist |
//! | any other user | are removed at the last log-out (logind.conf(5), `RemoveIPC=`) | both in the user's state |
//!
//! logind notes who lingers with a file of the user's name in `/var/lib/systemd/linger`, and has `/run/systemd/users` when it
//! runs. The unit of a process is in `/proc/self/cgroup`, see cgroups(7). May use `world` and `files`.

use std::path::PathBuf;

use crate::files::FileError;

/// What ends a VM that this process starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lifetime {
    /// Whether the files in `/run/user/UID` and `/dev/shm` go with the last log-out of the user.
    pub files_end_at_log_out: bool,
    /// The service whose stop ends the processes that this process starts (systemd.kill(5), `KillMode=`).
    pub service: Option<String>,
}

/// Where systemd says it.
struct SystemdFiles {
    /// The directory that logind has when it runs.
    users: PathBuf,
    /// The directory with a file for each user who lingers.
    lingering: PathBuf,
    /// The file with the units of this process.
    cgroup: PathBuf,
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
            cgroup: "/proc/self/cgroup".into(),
        };
        Self::read(&files, user.is_root(), name.as_deref())
    }

    fn read(files: &SystemdFiles, root: bool, name: Option<&str>) -> Result<Self, FileError> {
        let lingers = name.is_some_and(|name| files.lingering.join(name).exists());
        let text = match std::fs::read_to_string(&files.cgroup) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(FileError::system("read", &files.cgroup)(error)),
        };
        Ok(Self {
            files_end_at_log_out: !root && files.users.is_dir() && !lingers,
            service: service_in(&text),
        })
    }

    /// One sentence for each thing that ends the VM.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let Self { files_end_at_log_out, service } = self;
        let log_out = files_end_at_log_out.then(|| {
            "a log-out ends a VM that was started in a desktop session, and its RAM is kept on disk, because a log-out empties \
             /dev/shm: `loginctl enable-linger` lets VMs live on, with RAM on tmpfs"
                .to_owned()
        });
        let service = service.as_ref().map(|service| {
            format!(
                "the VM belongs to {service} and ends when that service stops, unless it has KillMode=process: start it with \
                 `systemd-run --scope nixbox up` to keep it"
            )
        });
        log_out.into_iter().chain(service).collect()
    }
}

/// The service that a text of `/proc/self/cgroup` names. A process of a user's session is in a scope, and the manager of the
/// user's units, `user@UID.service`, has further units in it; neither is meant.
fn service_in(cgroup: &str) -> Option<String> {
    // `0::/system.slice/backup.service`, and `1:name=systemd:/…` where version 1 of cgroups is in use.
    let path = cgroup.lines().find_map(|line| {
        let (head, path) = line.rsplit_once(':')?;
        (head == "0:" || head.ends_with(":name=systemd")).then_some(path)
    })?;
    let unit = path.rsplit('/').find(|part| part.ends_with(".service") || part.ends_with(".scope"))?;
    (unit.ends_with(".service") && !unit.starts_with("user@")).then(|| unit.to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_service_of_a_process_is_read() {
        for (cgroup, service) in [
            ("0::/system.slice/backup.service\n", Some("backup.service")),
            ("0::/system.slice/system-getty.slice/getty@tty1.service/inner\n", Some("getty@tty1.service")),
            ("4:memory:/x.service\n1:name=systemd:/system.slice/cron.service\n0::/\n", Some("cron.service")),
            ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/a.service\n", Some("a.service")),
            ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/vte-spawn-1.scope\n", None),
            ("0::/user.slice/user-1000.slice/user@1000.service/init.scope\n", None),
            ("0::/user.slice/user-0.slice/session-3.scope\n", None),
            ("0::/user.slice/user-1000.slice/user@1000.service\n", None),
            ("0::/\n", None),
            ("", None),
            ("nonsense", None),
        ] {
            assert_eq!(service_in(cgroup).as_deref(), service, "{cgroup}");
        }
    }

    #[test]
    fn files_end_at_a_log_out_of_a_user_who_does_not_linger_where_logind_runs() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let files = SystemdFiles { users: path("users"), lingering: path("linger"), cgroup: path("cgroup") };
        let ends = |root, name| {
            let lifetime = Lifetime::read(&files, root, name).unwrap();
            assert_eq!(lifetime.warnings().len(), usize::from(lifetime.files_end_at_log_out));
            lifetime.files_end_at_log_out
        };
        assert!(!ends(false, Some("me")), "there is no logind");
        fs::create_dir(&files.users).unwrap();
        assert!(ends(false, Some("me")) && ends(false, None) && !ends(true, Some("root")));
        fs::create_dir(&files.lingering).unwrap();
        assert!(ends(false, Some("me")));
        fs::write(files.lingering.join("me"), "").unwrap();
        assert!(!ends(false, Some("me")) && ends(false, Some("other")));
    }
}
